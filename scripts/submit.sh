#!/usr/bin/env bash
# Run a script of this repository on a Ray cluster: scripts/submit.sh jobs/train.py OPTIONS (see scripts/submit.py)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[[ -x $python ]] || python=python
exec "$python" scripts/submit.py "$@"
