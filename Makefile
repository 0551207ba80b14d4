# What a person types. Each target installs what it lacks first (resources/install-tools says what), and needs no
# network the second time.

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
KERNELS := guest-6.1 guest-6.12 host-6.1 host-6.12
BENCHES := vmm fault snapshot
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test bench bench-vmm bench-fault bench-snapshot release stress lint setup kernels

help:
	@echo 'make demo    build, launch a Debian guest over the REST API, save it live, restore it lazily, clone it; with timings'
	@echo 'make test    all tests; stock Linux guests run in a KVM host in software where this KVM cannot run them'
	@echo 'make bench   measure: medians with their spread'
	@echo 'make stress  lazily served memory under random work, every byte compared; STRESS_ARGS=--seconds N --seed S'
	@echo 'make lint    formatting, clippy, licences and sources of dependencies'
	@echo 'make setup   only install what demo, test and bench need'

demo:
	@resources/install-tools demo
	cargo build --release -p vmm -p tests --bin faultless --bin demo
	$(TARGET)/release/demo

test: setup kernels
	cargo build --workspace
	cargo nextest run --workspace
	cargo test --workspace --doc --quiet

# Only what is measured is linked as a release is, which takes minutes. BENCHES=vmm, fault or snapshot for one of them;
# BENCH_ARGS=--quick, --json, or names of its parts.
bench: $(addprefix bench-,$(BENCHES))

bench-vmm: release
	CARGO_PROFILE_BENCH_LTO=off CARGO_PROFILE_BENCH_CODEGEN_UNITS=16 cargo bench -p tests --bench vmm -- $(BENCH_ARGS)

bench-snapshot: release
	CARGO_PROFILE_BENCH_LTO=off CARGO_PROFILE_BENCH_CODEGEN_UNITS=16 cargo bench -p tests --bench snapshot -- $(BENCH_ARGS)

# Linked as a release is, since the engine is in it.
bench-fault: release
	cargo bench -p tests --bench fault -- $(BENCH_ARGS)

release:
	@resources/install-tools demo
	cargo build --release -p vmm

# Needs userfaultfd and no KVM. STRESS_ARGS: --seconds N, --seed S, --round R and more; --help says.
stress:
	@resources/install-tools demo
	CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo build --release -p tests --bin stress
	$(TARGET)/release/stress $(STRESS_ARGS)

lint:
	@resources/install-tools lint
	cargo fmt --all --check
	rustfmt --check --edition 2024 --config-path rustfmt.toml tests/guest/main.rs
	cargo clippy --workspace --all-targets -- -D warnings
	cargo fetch --locked --quiet
	cargo deny --offline check bans licenses sources

setup:
	@resources/install-tools test

kernels:
	@resources/fetch-kernels $(KERNELS) > /dev/null
