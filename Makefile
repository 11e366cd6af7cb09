# Everything starts from `make demo` or `make test`; both make .venv from constraints.txt first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test test-slow lint docs clean

help:                ## what can be made
	@grep -hE '^[a-z%-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

install: .venv/.installed  ## a virtual environment in .venv with hkd and what its tests need

# torch first, by the version of constraints.txt; whether that is a build for CPUs or for CUDA is the package index's affair.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hkd needs Python 3.11 or later, but $(PYTHON) is older. Run: make PYTHON=python3.11 install" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install        ## the whole thing on real speech → runs/demo/report.html
	$(BIN)/hkd demo

test: install        ## all tests, a process a core
	$(BIN)/pytest -n auto --dist loadfile

test-slow: install   ## the long ones too: hundreds of kills, the whole demo killed and resumed
	$(BIN)/pytest -m "slow or not slow"

lint: install        ## style, types, and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install        ## the documentation as a site → build/site; fails on a dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Other ways to keep labels live apart from hkd; litdata without its dependencies, one of which brings another torch.
.venv-bench/.installed: benchmarks/peers.txt constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	-.venv-bench/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	-.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps litdata==0.2.76
	@touch $@

bench-store: .venv-bench/.installed

bench-gpu: install   ## what a CUDA GPU is used for: dump, training, text; then the tests that need one. Without one it says what it would measure
	$(BIN)/python benchmarks/bench_gpu.py
	$(BIN)/pytest -m cuda

bench-%: install     ## a benchmark: store, dump, train, start, s3, align, architectures, cloze, lm-text, sparse-kl, passes, text-passes → benchmarks/results/
	$(BIN)/python benchmarks/bench_$(subst -,_,$*).py

clean:               ## remove what was made here, but not the caches in the home folder
	rm -rf .venv .venv-bench runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
