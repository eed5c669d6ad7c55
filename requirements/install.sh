#!/usr/bin/env bash
# Installs into .venv what pip would: requirements/install.sh PIP'S OPTIONS…
# uv does it in a third of the time. Where it can't, as it reads no settings of pip's, pip does.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x .venv/bin/uv ] || $python -m pip install --quiet --require-hashes -r <(awk '/^[a-z]/ { of_uv = /^uv==/ } of_uv' requirements/dev.lock)
.venv/bin/uv pip install --quiet --python $python "$@" || $python -m pip install --quiet "$@"
