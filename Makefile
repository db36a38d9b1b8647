# Every target sets up .venv first. Where wheels come from is pip's own configuration: PIP_FIND_LINKS and the like just work.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
REQUESTS := $(wildcard configs/*.yaml)

.PHONY: help install demo test test-zoo test-all plans docs lint format clean

help: ## Show what one can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Set up .venv with autoplan and all it is developed with

# The pins decide which torch, pip's configuration which build of it. Bytecode is made here, on all cores: where Python writes none
# (PYTHONDONTWRITEBYTECODE), every command would compile what it loads of torch anew, for half of its time. Templates that are no Python fail.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[hf,dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib src || true
	touch $@

demo: $(INSTALLED) ## Plan a small Llama on 2x2, show the plan, train it on 4 CPU processes, compare with one device, diff with 4x1
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo.sh

# Two files at a time: planning takes one core, and workers that talk to each other wait a lot.
test: $(INSTALLED) ## Run the tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not gpu and not zoo' -n 2 --dist loadfile

test-zoo: $(INSTALLED) ## Plan and verify a zoo of architectures, and tests that take minutes
	$(BIN)/python -m pytest -m zoo --durations 10

test-all: $(INSTALLED) ## Run all tests
	$(BIN)/python -m pytest

plans: $(INSTALLED) ## Plan every request in configs/ into plans/, to be reviewed as a diff
	mkdir -p plans
	for request in $(REQUESTS); do echo "$$request" >&2; $(BIN)/autoplan plan "$$request" -o "plans/$$(basename "$$request")"; done

docs: $(INSTALLED) ## Write docs/OPS.md from the rules
	$(BIN)/autoplan ops --markdown > docs/OPS.md.tmp && mv docs/OPS.md.tmp docs/OPS.md

lint: $(INSTALLED) ## Check format, style and types; pre-commit runs the same
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv, caches and what the demo wrote
	rm -rf $(VENV) .demo build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
