.PHONY: help setup demo check format test test-slow test-docker test-celery conformance clean
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin

help:            ## what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready  ## a local .venv from the committed lock file (about 6 GB: torch with its CUDA libraries)

.venv/.ready: uv.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.9'
	$(BIN)/uv sync --frozen --inexact --compile-bytecode
	@touch $@

demo: setup      ## a real server, a real worker, a plain producer; then a table of what came back
	$(BIN)/python -m demo

check: setup     ## lint, types, layers, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: setup    ## rewrites the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup      ## every test but the long ones, about twenty minutes
	$(BIN)/python -m pytest -m 'not slow and not docker'

test-slow: setup ## the long ones
	$(BIN)/python -m pytest -m 'slow and not docker' --timeout 1200

test-docker: setup ## builds the image and drives it with pytest-celery; needs a Docker engine
	$(BIN)/python -m pytest -m docker --timeout 1800

test-celery: setup ## the pool's and the broker's tests on each version of Celery; CELERY_VERSIONS="5.5 5.6" takes fewer
	tests/celery-versions.sh

conformance: setup ## the behaviours of a worker on this pool and Celery's own, into docs/conformance.md
	CONFORMANCE_PATIENCE_S=15 $(BIN)/python -m pytest tests/conformance --pools legit_async,threads,prefork --brokers valkey,pipelined,rabbitmq --table docs/conformance.md

clean:           ## removes what setup and the tools made
	rm -rf .venv .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
