#!/usr/bin/env bash
# Make .venv match pyproject.toml and the constraints files; does nothing when it already does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.fer_ray_setup
wanted=$(cat pyproject.toml constraints.txt constraints-dev.txt | sha256sum | cut -d' ' -f1)
if [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    echo "setup: .venv is up to date"
    exit 0
fi

echo "setup: installing into .venv (first time: several minutes)"
[[ -x .venv/bin/python ]] || "${PYTHON:-python3}" -m venv .venv
# torch by itself and by exact version first, so that no later resolution weighs other builds of it.
mapfile -t torch < <(grep -E '^(torch|torchvision)==' constraints.txt)
.venv/bin/python -m pip install -qq "${torch[@]}" -c constraints.txt
.venv/bin/python -m pip install -qq -e '.[dev]' -c constraints.txt -c constraints-dev.txt
echo "$wanted" > "$stamp"
echo "setup: done; . .venv/bin/activate gives the command fer_ray"
