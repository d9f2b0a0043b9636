# Every target makes its own environment first: Python 3.11 with venv is all that must be there.

PYTHON ?= $(shell for name in python3.11 python3 python; do \
	command -v $$name >/dev/null && $$name -c '' 2>/dev/null && { echo $$name; break; }; done)
BIN := .venv/bin
READY = @test -n "$(PYTHON)" || { echo "error: no Python found; install Python 3.11"; exit 1; }; \
	$(PYTHON) requirements/bootstrap.py
PORT ?= 8080
# Several processes share the cores: threads that wait must not spin.
export OMP_WAIT_POLICY ?= PASSIVE
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo up test test-deep check fix bench tiny clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

demo:  ## make one picture with everything running here: out/demo.png, out/demo.json
	$(READY)
	@$(BIN)/python -m clients.cli demo $(ARGS)

up:  ## start everything and keep it running on http://127.0.0.1:8080 (PORT=, ARGS="--workers 2")
	$(READY)
	@$(BIN)/python -m clients.cli up --port $(PORT) $(ARGS)

test:  ## run all tests (ARGS=tests/shared for some of them)
	$(READY)
	@$(BIN)/python -m tests.folders $(ARGS)

test-deep:  ## the long rows of cases that `make test` has a share of
	$(READY)
	@$(BIN)/python -m pytest -m deep $(ARGS)

check:  ## formatting, lint, types, doors between rooms, module sizes
	$(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.module_sizes

fix:  ## format, and repair what ruff can repair
	$(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench:  ## measure what gateway and queue add to a request
	$(READY)
	@$(BIN)/python -m benchmarks.plumbing $(ARGS)

tiny:  ## train the tiny pair again from nothing, measure it, write its cards (hours on two cores)
	$(READY)
	@$(BIN)/python -m training.tiny $(ARGS)

clean:  ## remove the environment, caches and what a running system wrote (.llmga, out)
	rm -rf .venv .llmga out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
