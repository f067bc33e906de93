# `make run` and `make test` are all the set-up there is. Nothing here needs or uses root.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Test processes; each of them starts servers of its own.
JOBS ?= 2

.PHONY: run test lint check bench evaluate clean

# A first look: install, start a server, store and recall memories, restart, recall again.
run: $(VENV)/.installed
	@$(BIN)/python scripts/first_run.py

# Everything that must hold: lint, types, every test.
test: lint check

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# Figures against other products and against the limit, written to docs/benchmarks.md.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks --write

# How well the right memory is found, written to docs/evaluation.md.
evaluate: $(VENV)/.installed-dev
	$(BIN)/python -m tests.evaluation.evaluate --write

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pikuri-memory needs Python 3.11 or newer, this is %s; try: make PYTHON=python3.12 run" % sys.version.split()[0])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "error: this Python cannot make virtual environments"; echo "hint: sudo apt install git make python3-venv"; exit 1; }
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing pikuri-memory into $(VENV) (a minute at most)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The exact versions of the lock file: a new release of a library cannot break a test run.
$(VENV)/.installed-dev: pyproject.toml requirements.lock | $(VENV)/bin/python
	@echo "installing the development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
