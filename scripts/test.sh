#!/usr/bin/env bash
# Lint, then test. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
# The pages are tested in a real browser, where one can be had.
if ! command -v chromium > /dev/null; then
    echo "test: installing chromium"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium) &> /dev/null ||
        echo "test: no chromium; install it to have the pages tested in a browser"
fi
.venv/bin/ruff check .
exec .venv/bin/python -m pytest tests "$@"
