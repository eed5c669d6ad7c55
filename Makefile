# Two commands matter: `make up` runs the whole product on this machine, `make test` checks all of it.
PYTHON ?= python3
ENGINES ?= 1
VENV := .venv
BIN := $(VENV)/bin
SOURCES := gateway router serving monitoring tests benchmarks examples

.PHONY: up test check fast engine-test lock image clean help

help: ## What there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

up: $(VENV)/runtime ## Install what is missing, start engines and gateway, print how to use them
	@exec $(BIN)/apprentice up --engines $(ENGINES) $(if $(PORT),--port $(PORT))

test: check fast engine-test ## Everything: style, types, unit tests, walks, real engines

check: $(VENV)/development ## Lint, format, types, imports
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(VENV)/development ## All tests but those that need a real engine or build an image
	$(BIN)/pytest -n auto -m "not engine and not image" tests

engine-test: $(VENV)/development ## Tests on real vLLM engines
	$(BIN)/pytest -m engine --timeout 900 tests/engine

image: $(VENV)/development ## Build the container image and run it once
	$(BIN)/pytest -m image --timeout 900 tests/deploy

$(VENV)/runtime: requirements/gateway.lock pyproject.toml
	@echo "Installing the gateway into $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/gateway.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e . 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

$(VENV)/development: requirements/dev.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@ $(VENV)/runtime

lock: $(VENV)/development ## Make the lock files anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes --no-header pyproject.toml -o requirements/gateway.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes --no-header --extra dev pyproject.toml -o requirements/dev.lock

clean: ## Remove what was made at run time, but not models and engines
	rm -rf $(VENV) var/data var/up
