# Everything runs in .venv, which `make` itself makes; nothing is installed outside this folder.
# PYTHON: the interpreter to make it from (3.11 or newer; also the one whose library the demo reads).
PYTHON ?= python3
VENV := .venv
VLLM_VENV := .venv-vllm
BIN := $(VENV)/bin
# Test processes: one more than the two cores that are meant, since one of them mostly waits for the vLLM server.
WORKERS ?= 3
# A file's tests stay together, and so do those that share a server; tests/conftest.py says which come first.
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

export PYTHON VLLM_VENV
# Without bytecode every process compiles some thousand files anew: 20 seconds each. It stays in this folder.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help demo experiment test vllm-venv test-fast lint format bench clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.replug-demo ## Train a retriever on real code in ten minutes, and see whether it helped
	$(BIN)/replug demo

experiment: $(VENV)/.replug-demo ## The same at full size (up to 90 minutes; goes on where it stopped)
	$(BIN)/replug demo --full

test: ## All tests, the real vLLM server on the CPU included (makes .venv-vllm)
	@$(MAKE) --no-print-directory --jobs=2 $(VENV)/.replug-dev vllm-venv
	REPLUG_REQUIRE_VLLM=1 $(PYTEST) $(PYTEST_ARGS)

vllm-venv:
	server/install_cpu.sh $(VLLM_VENV)

test-fast: $(VENV)/.replug-dev ## The tests that need no server
	$(PYTEST) -m "not server" $(PYTEST_ARGS)

lint: $(VENV)/.replug-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.replug-dev ## Mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.replug-dev ## List the benchmarks
	$(BIN)/python -m benchmarks

clean: ## Remove what the demo and the caches wrote; the environments stay
	rm -rf demo/out demo/experiment .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.replug-demo: pyproject.toml poetry.lock tools/install.sh tools/constraints.py
	tools/install.sh $(VENV) demo
	@touch $@

$(VENV)/.replug-dev: pyproject.toml poetry.lock tools/install.sh tools/constraints.py
	tools/install.sh $(VENV) demo,dev
	@touch $@ $(VENV)/.replug-demo
