# Everything a developer types. `make` lists the targets.
#
# The torch build is chosen here: `make setup TORCH=torch==2.12.0`, or another index for it, for example
# `make setup TORCH_INDEX=URL`. What is installed once is not touched again until pyproject.toml or TORCH changes.

SHELL       := bash
PYTHON      ?= python3
VENV        ?= .venv
TORCH       ?= torch==2.13.0
TORCH_INDEX ?=
JOBS        ?= 2
DEMO_DIR    ?= demo-store
PYTEST      ?= $(BIN)/python -m pytest -q -p no:cacheprovider

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell printf '%s' '$(TORCH) $(TORCH_INDEX)' | cksum | cut -d' ' -f1)

# Each of the test processes computes on one core, so that JOBS of them do not fight.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint check docs clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  variables: PYTHON=$(PYTHON) TORCH=$(TORCH) TORCH_INDEX=$(TORCH_INDEX) JOBS=$(JOBS) DEMO_DIR=$(DEMO_DIR)"

setup: $(STAMP) ## make .venv and install torch first, then this package with its test tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Error: $$($(PYTHON) -V) is too old, 3.11 or later is needed" >&2; \
	       echo "  fix:   make setup PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.installed-*
	@echo "installing $(TORCH) into $(VENV)"
	@$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)'
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(VENV)/torch.txt
	@echo "installing tfbind-store beside $$(cat $(VENV)/torch.txt)"
	@$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  --constraint $(VENV)/torch.txt --editable '.[test,motifs,borzoi]'
	@touch $@

demo: setup ## build a small genome, run every stage on it, print the held-out scores
	env -u OMP_NUM_THREADS $(BIN)/tfbind demo $(DEMO_DIR) --overwrite

test: setup lint ## ruff, mypy, and every test that is not slow
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not slow"

test-slow: setup ## the slow tests, those of Ray and Slurm with their extras, and the documentation's own
	@$(BIN)/python -m pip install --quiet --constraint $(VENV)/torch.txt --editable '.[test,motifs,borzoi,ray,slurm]' \
	  || echo "the extras ray and slurm cannot be installed here: the tests of these engines will skip"
	$(PYTEST) -m slow
	$(PYTEST) tests/test_docs.py tests/test_cli.py

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test ## another name for lint + test

docs: setup ## check that the README and the commands' helps agree with the code
	$(PYTEST) tests/test_docs.py --doctest-glob='*.md'

clean: ## remove the virtual environment, caches and the demo's store
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info $(DEMO_DIR)
	find . -name __pycache__ -prune -exec rm -rf {} +
