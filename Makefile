# Everything runs from .venv, which the first target that needs it makes. The stamps in it are
# renewed only when a requirement file or pyproject.toml has changed.

PYTHON ?= python3
LOCK_PYTHON ?= python3.11
SECONDS ?= 600

BIN := .venv/bin
# -qq: errors, and not the warnings that a machine's own pip settings bring.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench bench-quick fuzz lock clean

help:  ## Say what the targets do
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv/.runtime  ## Set up what is needed and show samehost at work
	@$(BIN)/python examples/demo.py

test: .venv/.dev  ## Run the tests (ARGS= for pytest); as root, installs the programs they use
	@tools/system-packages
	$(BIN)/pytest -n 3 --dist loadfile $(ARGS)

check: .venv/.dev  ## Check format, lint, types and import directions, and build the documentation
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --strict src
	MYPYPATH=examples $(BIN)/mypy --strict examples
	$(BIN)/lint-imports --no-logo
	$(BIN)/sphinx-build -W --keep-going -q -d build/doctrees docs build/docs

format: .venv/.dev  ## Format the code and fix what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: .venv/.bench  ## Measure samehost beside its peers, in about seven minutes; the report is in build/bench
	@$(BIN)/python -m bench $(ARGS)

bench-quick: .venv/.bench  ## Measure what is essential, in two minutes
	@$(BIN)/python -m bench --quick $(ARGS)

fuzz: .venv/.fuzz  ## Fuzz the protocol: over a million steps, then each parser for SECONDS (600)
	@$(BIN)/pytest -q tests/protocol --hypothesis-profile=fuzz $(ARGS)
	@$(BIN)/python tools/fuzz.py $(SECONDS)

# On the oldest Python, so that the pins fit them all; from the public registry alone, so that the
# hashes are everybody's.
lock:  ## Renew requirements/*.txt from *.in (ARGS=--upgrade: newest versions)
	@$(LOCK_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo 'The lock is made on Python 3.11: make lock LOCK_PYTHON=...' >&2; exit 1; }
	@$(LOCK_PYTHON) -m venv --clear build/lock
	@build/lock/bin/python -m pip install -qq --disable-pip-version-check pip-tools==7.6.2
	@cd requirements && for name in runtime dev bench fuzz; do \
	  env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null \
	    CUSTOM_COMPILE_COMMAND='make lock' ../build/lock/bin/pip-compile --quiet \
	    --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url \
	    --no-emit-find-links --no-emit-trusted-host --no-emit-options \
	    $(ARGS) --output-file $$name.txt $$name.in || exit; \
	done

clean:  ## Remove what the other targets made
	rm -rf .venv build dist .coverage .coverage.* htmlcov
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# A .venv whose interpreter has gone counts as missing: the link leads nowhere.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'samehost needs Python 3.11 or newer, which $(PYTHON) is not:' \
	    'name another, as in make PYTHON=python3.13 ...' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv

.venv/.runtime: requirements/runtime.txt pyproject.toml | $(BIN)/python
	@echo 'Setting up .venv'
	@$(PIP_INSTALL) --require-hashes -r requirements/runtime.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements/dev.txt | .venv/.runtime
	@echo 'Setting up .venv for development'
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@

.venv/.bench: requirements/bench.txt | .venv/.dev
	@echo 'Setting up .venv for benchmarks'
	@$(PIP_INSTALL) --require-hashes -r requirements/bench.txt
	@touch $@

.venv/.fuzz: requirements/fuzz.txt | .venv/.dev
	@echo 'Setting up .venv for fuzzing'
	@$(PIP_INSTALL) --require-hashes -r requirements/fuzz.txt
	@touch $@
