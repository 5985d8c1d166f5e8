# Two commands for a fresh machine with Python and make:
#
#   make demo      make two specialists of a real language model, merge them, measure the result
#   make test      everything CI checks: style, types, tests
#
# and make lint, make examples, make fuzz, make test-long (all of these, with kills and power losses
# at every moment), make clean. Each sets up .venv if need be.

SHELL  := bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check
say    := @printf '==> %s\n'

.PHONY: help demo examples test test-long fuzz lint clean
help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n 1,7p

# Everything the project needs, installed again only when what it needs has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; \
	  sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed\n" \
	  "  $(PYTHON) is Python " + v + "\n  try: make PYTHON=python3.12 ...")'
	@rm -f $@
	$(say) "setting up $(VENV): about 1.4 GB, two minutes on a fast network; once"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(say) "installing torch, pinned and first (constraints.txt says why)"
	@$(PIP) install --quiet --constraint constraints.txt torch
	$(say) "installing clmerge with what its checks and its demo need"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,demo]'
	@touch $@

demo: $(READY)
	$(say) "running examples/quickstart: up to ten minutes on two cores, seconds the second time"
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart/run.sh

examples: $(READY)
	$(say) "running examples/sentiment: accuracies, three to five minutes"
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/sentiment/run.sh
	$(say) "running examples/published-pair: a real base and its fine-tune, seconds"
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/published-pair/run.sh
	$(say) "running examples/recipes: six ways to update a model, twenty to thirty minutes"
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/recipes/run.sh

lint: $(READY)
	$(say) "ruff check, ruff format --check, mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# One OpenMP thread unless told otherwise, and waiting asleep: by default two threads spin while they
# wait for each other, and where another process holds a core a step takes five times as long.
test test-long fuzz: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test test-long fuzz: export OMP_WAIT_POLICY := $(or $(OMP_WAIT_POLICY),PASSIVE)
test test-long fuzz: export PATH := $(CURDIR)/$(BIN):$(PATH)

# WORKERS=N processes, each of which runs whole files of tests, since the tests of one share models.
WORKERS ?= 2
PYTEST  := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: lint
	$(say) "pytest"
	@$(PYTEST) -m "not long"

# SEED=N draws other ones.
fuzz: $(READY)
	$(say) "100,000 damaged checkpoints: two to three minutes"
	@$(BIN)/python tests/fuzz_headers.py --count 100000 --seed $(or $(SEED),1)

# The suite runs the examples with hardly any steps; here they run in full, three quarters of an hour.
test-long: lint
	$(say) "pytest, the long tests too"
	@$(PYTEST)
	@$(MAKE) --no-print-directory fuzz demo examples

clean:
	$(say) "removing $(VENV), demo and what checks leave behind; downloads stay in ~/.cache/clmerge"
	@rm -rf $(VENV) demo build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
