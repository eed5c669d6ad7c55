#!/usr/bin/env bash
# Writes the CycloneDX SBOM of what the image installs: requirements/sbom.sh FILE
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$(dirname "$1")"
exec .venv/bin/cyclonedx-py requirements requirements/gateway.lock --pyproject pyproject.toml --output-reproducible \
  --spec-version 1.6 --output-format JSON --validate --output-file "$1"
