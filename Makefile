# Two commands matter: `make demo` and `make test`. Both install what they need.

SHELL := /bin/bash
# Build output survives a clean checkout; CI keeps this directory between runs.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/palimpsest/target
# An error tells its causes itself; the frames below a test would hide them in a long log.
export RUST_LIB_BACKTRACE ?= 0
CARGO := cargo
FUZZ_SECONDS ?= 600

.PHONY: help build test check oracle crash-history sim sim-long demo bench bench-history fuzz charts kubeconform manifests e2e e2e-smoke guide

help:
	@echo 'make demo     history of a real Postgres comes alive, on this machine, in three minutes'
	@echo 'make test     all tests'
	@echo 'make check    format and lints'
	@echo 'make oracle   the long comparison with Postgres: every combination of settings, ten restores each'
	@echo 'make crash-history   kill -9 and a bad bucket during compaction, collection, archive, detach and delete, HISTORY_KILLS=100 times each'
	@echo 'make sim      the engine in 2,000 seeded worlds; SEED=42 tells the story of one. make sim-long: until stopped, or SIM_SEEDS=100000'
	@echo 'make bench    our figures beside their floors, measured in the same run'
	@echo 'make bench-history   what it costs to keep history small: an hour; HISTORY_WAL and HISTORY_SCALE make it shorter'
	@echo 'make fuzz     every fuzz target for FUZZ_SECONDS=$(FUZZ_SECONDS)'
	@echo 'make charts   charts and examples against real API servers: lint, schemas, strict dry runs'
	@echo 'make e2e      stories on a real cluster: the one that KUBECONFIG names, else one made with kind; e2e-smoke: the first three'
	@echo 'make guide    the commands of docs/operations.md, one by one, on a cluster made with kind'
	@echo 'make manifests   manifests/ from charts/'

build:
	$(CARGO) build --workspace --bins --locked

# Binaries and tests in one go: built apart, they would resolve other features of the same crates and compile them twice.
test:
	scripts/install-deps.sh
	$(CARGO) build --workspace --bins --tests --locked
	$(CARGO) test --workspace --locked --no-fail-fast

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

oracle:
	scripts/install-deps.sh
	$(CARGO) build --workspace --bins --tests --locked
	ORACLE=long $(CARGO) test -p testkit --locked --test page_oracle --test crash -- --nocapture --test-threads=1

HISTORY_KILLS ?= 100
crash-history:
	scripts/install-deps.sh
	$(CARGO) build --workspace --bins --tests --locked
	HISTORY_KILLS=$(HISTORY_KILLS) $(CARGO) test -p testkit --locked --test history_crash -- --nocapture --test-threads=1

# Built with the tests, from the same dependencies; the long run is worth an optimised build of its own.
sim:
	$(CARGO) build --workspace --bins --tests --locked
	$(CARGO_TARGET_DIR)/debug/sim $(if $(SEED),--seed $(SEED),--seeds 0..2000)

sim-long:
	$(CARGO) run --quiet -p sim --locked --profile sim -- $(if $(SIM_SEEDS),--seeds 0..$(SIM_SEEDS),--forever)

demo:
	scripts/install-deps.sh demo
	$(CARGO) build --workspace --bins --locked
	scripts/demo.sh

bench:
	scripts/install-deps.sh
	$(CARGO) build --workspace --bins --locked --release
	$(CARGO) bench --workspace --locked
	$(CARGO_TARGET_DIR)/release/pagectl bench redo
	$(CARGO_TARGET_DIR)/release/pagectl bench ingest
	scripts/bench-catchup.sh
	scripts/bench-server.sh

fuzz:
	scripts/fuzz.sh $(FUZZ_SECONDS)

# `make test` does this with one minor of Kubernetes. Of each the API server is built, without nodes.
KUBERNETES_VERSIONS ?= 1.35.4 1.36.3
charts:
	scripts/install-deps.sh
	for version in $(KUBERNETES_VERSIONS); do scripts/install-kubernetes.sh --version $$version etcd kube-apiserver || exit 1; done
	KUBERNETES_VERSIONS='$(KUBERNETES_VERSIONS)' $(CARGO) test --workspace --locked --test charts -- --test-threads=1

# Needs kubeconform on the PATH, which fetches schemas: the strict dry runs above need no network and know more.
kubeconform: manifests
	kubeconform -strict -summary -skip PageserverPool,Tenant,Timeline,Cluster,CustomResourceDefinition manifests/*.yaml manifests/examples/[!p]*.yaml

manifests:
	scripts/install-helm.sh
	scripts/manifests.sh

e2e:
	e2e/run.sh

guide:
	e2e/run.sh guide

e2e-smoke:
	e2e/run.sh a_import_and_read b_branch_and_restore c_lost_pageserver

HISTORY_WAL ?= 20GiB
HISTORY_SCALE ?= 1GiB,5GiB,20GiB
HISTORY_WORK ?= $(CARGO_TARGET_DIR)/history-work
bench-history:
	$(CARGO) build -p ctl --profile history --locked
	mkdir -p $(HISTORY_WORK)
	set -e; for mode in "month --wal $(HISTORY_WAL)" "scale --key-space $(HISTORY_SCALE) --tail-memory 128MiB" "branch --wal 1GiB" "small-cache --database 10GiB" \
	    "idle" "idle --timelines 10000 --tenants 10000" layers images; do \
	    echo "# $$mode"; $(CARGO_TARGET_DIR)/history/pagectl bench history --mode $$mode --work $(HISTORY_WORK); done
