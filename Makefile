# Every target sets up what it needs. `make run` and `make test` work on a fresh clone.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
QUESTION ?= What is sentence evidence?
PORT ?= 8000
DATA ?= .raglane

.PHONY: help setup setup-dev run test test-fast check format lock bench docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

setup: ## Create .venv and install the locked packages
	@requirements/install.sh

setup-dev: ## The same with the tools for tests and checks
	@requirements/install.sh dev

run: setup ## Start raglane, ingest docs/, answer a question, serve until Ctrl-C
	@$(BIN)/raglane up --data $(DATA) --port $(PORT) --ingest-if-empty docs --collection docs --ask "$(QUESTION)"

test: setup-dev check ## Run every check and every test
	$(BIN)/python -u -m pytest

test-fast: setup-dev ## Run the tests that need neither Ray Serve nor vLLM
	$(BIN)/python -m pytest tests/unit tests/contract

check: setup-dev ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup-dev ## Regenerate what is generated: configuration.md and the OpenAPI snapshot
	$(BIN)/python -m serve_app.configuration_docs > docs/configuration.md
	$(BIN)/python -m serve_app.api.openapi > tests/openapi.json

lock: ## Resolve requirements/*.in into the locks (needs uv)
	requirements/lock.sh

bench: setup-dev ## Run the standard benchmarks (15 minutes) and update docs/benchmarks.md
	$(BIN)/python -m benchmarks.standard --url http://127.0.0.1:$(PORT)

clean: ## Remove the environment and the local data
	rm -rf $(VENV) $(DATA)
