#!/usr/bin/env bash
# Run the whole pipeline on the drawn sample data. Arguments go to the pipeline.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python jobs/pipeline.py --config jobs/configs/quickstart.yaml "$@"
