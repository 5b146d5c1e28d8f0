# Everything goes through these targets; CI calls the same ones.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup quickstart test test-all gpu lint types fix clean
help:            ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

setup: $(STAMP)  ## the virtual environment with pinned dependencies
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python %d.%d is too old: 3.11 or newer is needed; say make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(STAMP)  ## the whole life of an encoder in miniature, on real text that is on this machine
	$(BIN)/modernbert quickstart $(ARGS)

test: $(STAMP)   ## the tests (at most 10 minutes on 2 cores)
	$(BIN)/pytest -m 'not slow' $(ARGS)

test-all: $(STAMP)  ## also the kill, soak and real-data tests (at most 60 minutes)
	$(BIN)/pytest --durations=15 $(ARGS)

gpu:             ## parity, speed, memory and training on a CUDA device (at most 9 minutes); installs nothing
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --out results/gpu

lint: $(STAMP)   ## ruff: style, imports, docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

fix: $(STAMP)    ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:           ## caches and the virtual environment
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
