#!/usr/bin/env bash
# Lint, types, tests. With --coverage first: how much of fer_ray the tests run, which takes a third longer. Other
# arguments go to pytest.
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
# By two processes (pyproject.toml): one has the tests that share a Ray, the other those that start their own, and then the rest.
run=(.venv/bin/python)
coverage=false
failed=0
if [[ ${1:-} == --coverage ]]; then
    shift
    coverage=true
    run+=(-m coverage run)
    rm -rf .coverage_data
fi
"${run[@]}" -m pytest tests "$@" || failed=$?
if $coverage; then
    echo "test: coverage of fer_ray, with the processes that the tests started"
    .venv/bin/python -m coverage combine -q 2> /dev/null   # a process that was killed left no readable file
    .venv/bin/python -m coverage report
fi
printf 'test: %d min %02d s in all\n' $((SECONDS / 60)) $((SECONDS % 60))
exit "$failed"
