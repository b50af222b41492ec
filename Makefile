# Everything starts from nothing but Python 3.11 or newer and the package index. `make help` lists the targets.
# Another interpreter: make test PYTHON=/path/to/python3.  Another environment: make test VENV=.venv-312

VENV ?= .venv
PYTHON ?=
BIN := $(VENV)/bin
# The stamp carries a checksum, not a date, so that a fresh clone or a moved folder does not install again.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-browser test-data lint format types doctest bench docs-check readme clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make the virtual environment

# An environment made by hand that already holds everything is used as it is.
$(STAMP):
	@if ! $(BIN)/python tools/installed.py 2>/dev/null; then \
	  python=$$(PYTHON="$(PYTHON)" sh tools/find_python.sh) || exit 1; \
	  test -x $(BIN)/python || "$$python" -m venv $(VENV) || exit 1; \
	  $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt -e '.[dev]' || exit 1; \
	  $(BIN)/python tools/installed.py || exit 1; \
	fi
	@rm -f $(VENV)/.installed-* && touch $@

demo: $(STAMP) ## audit an example on real photographs; ends with the path of the report
	@$(BIN)/crossfeed audit examples/cifar10/A4.yaml --out crossfeed-demo

test: $(STAMP) ## the default tests
	@$(PYTEST)

test-slow: $(STAMP) ## tests that take more than about ten seconds each
	@$(PYTEST) -m slow

test-browser: $(STAMP) ## tests of the report in a browser; need a Chromium
	@$(PYTEST) -m browser

test-data: $(STAMP) ## tests on the full data sets: make test-data CROSSFEED_DATA=folder
	@test -d "$(CROSSFEED_DATA)" || { echo "make test-data: found CROSSFEED_DATA='$(CROSSFEED_DATA)'; need the folder with the data sets, e.g. make test-data CROSSFEED_DATA=~/data" >&2; exit 2; }
	@CROSSFEED_DATA="$(CROSSFEED_DATA)" $(PYTEST) -m shared

doctest: $(STAMP) ## the examples in the docstrings
	@$(PYTEST) --doctest-modules src/crossfeed

lint: $(STAMP) ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

bench: $(STAMP) ## benchmarks, with the machine and the commit beside the numbers
	@$(BIN)/python -m benchmarks

docs-check: $(STAMP) ## the reference of the spec is that of the code
	@$(BIN)/python tools/spec_reference.py --check

readme: $(STAMP) ## run the README's commands in a fresh folder
	@$(BIN)/python tools/readme_commands.py

clean: ## remove environments, caches and results
	rm -rf .venv .ci-venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist crossfeed-demo bench-results
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
