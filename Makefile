# Short verbs. `make demo` and `make test` do their set-up themselves, on a bare Debian 12 or Ubuntu 24.04.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

export PYTHON ?= python3
JOBS ?= $(shell nproc)
SECONDS_EACH ?= 60
SEEDS ?= 1000
FROM ?= $(shell date +%s)
VENV := .venv/bin/python
# Two at once in one folder would spoil each other's files.
BUILD = flock build/release.lock cmake --build --preset release

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

setup: ## install what is missing: Debian packages, and Python packages in .venv
	@scripts/setup.sh build

build/release/build.ninja: CMakePresets.json scripts/requirements/build.pip | setup
	@mkdir -p build
	@cmake --preset release -DSKATE_PYTHON=ON -DSKATE_INPLACE=ON -DPython_EXECUTABLE=$(CURDIR)/$(VENV) >build/release.log \
	  || { cat build/release.log; exit 1; }
	@touch $@

build: setup build/release/build.ninja ## compile; .venv/bin/python then has the new skate
	@$(BUILD) --parallel $(JOBS) --target runtime
	@[ ! -x python/skate/bin/skate ] || ln -sfr python/skate/bin/skate .venv/bin/skate

tests: setup build/release/build.ninja
	@$(BUILD) --parallel $(JOBS)

# Every runner runs, whatever the others say. The first of pytest fakes the native module: a process of its own.
test: tests ## every test, C++ then Python
	@failed=0; ctest --preset release --parallel $(JOBS) || failed=1; \
	for tests in "python/tests/surface compat/ray/tests" python/tests/cluster tests/python; do \
	  $(VENV) -m pytest $$tests $(PYTEST_ARGS) || failed=1; \
	done; exit $$failed

demo: build ## the main example: a map of Python's standard library
	@$(VENV) examples/stdlib_atlas.py $(DEMO_ARGS)

bench: build ## Ray and Skate by turns, into bench/RESULTS.md
	@$(VENV) bench/run.py $(BENCH_ARGS)

sim: setup build/release/build.ninja ## SEEDS fresh runs of the simulated cluster, from seed FROM
	@$(BUILD) --parallel $(JOBS) --target skate_sim_run
	@build/release/src/sim/skate_sim --seeds $(SEEDS) --from $(FROM)

fuzz: ## every fuzzer for SECONDS_EACH seconds
	@scripts/setup.sh build check
	@scripts/fuzz.sh $(SECONDS_EACH)

fmt: ## format C++ and Python
	@scripts/setup.sh build check
	@scripts/lint.sh --fix

lint: setup ## formatting, clang-tidy, ruff, mypy
	@scripts/setup.sh check
	@scripts/lint.sh

wheel: setup ## wheels of skate and of the ray shim, in dist/
	@$(VENV) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist \
	  --config-settings=cmake.define.SKATE_WERROR=ON .
	@$(VENV) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist compat/ray
	@ls dist/*.whl

fresh: ## make demo and make test in a new minimal Debian
	@scripts/setup.sh fresh
	@scripts/fresh.sh

clean: ## remove all that was built; .venv stays
	rm -rf build dist python/skate/bin python/skate/_skate*.so

.PHONY: help setup build tests test demo bench sim fuzz fmt lint wheel fresh clean
