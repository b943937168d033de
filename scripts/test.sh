#!/usr/bin/env bash
# Lint, types, tests, coverage. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
# The pages are tested in a real browser, where one can be had.
if ! command -v chromium > /dev/null; then
    echo "test: installing chromium"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium) &> /dev/null ||
        echo "test: no chromium; install it to have the pages tested in a browser"
fi

echo "test: lint"
.venv/bin/ruff check .
echo "test: types"
.venv/bin/ty check

echo "test: tests"
rm -rf .coverage_data
failed=0
.venv/bin/python -m coverage run -m pytest tests "$@" || failed=$?
echo "test: coverage of fer_ray, with the processes that the tests started"
.venv/bin/python -m coverage combine -q 2> /dev/null   # a process that was killed left no readable file
.venv/bin/python -m coverage report
printf 'test: %d min %02d s in all\n' $((SECONDS / 60)) $((SECONDS % 60))
exit "$failed"
