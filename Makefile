# make demo   installs what is missing, builds, and plays the story of README.md in network namespaces of its own
# make test   installs what is missing, checks the code, runs all tests; its last line counts them
# make faults  namegate under load while it is killed, stopped, starved and cut off; some ten minutes
# make test-long   a million random policies and packets more, of the compiler and of the kernel programs, and ten million
#                  frames; 50 take-overs and 200 kills under load, 100 pods a second for a minute in eight ways; over half an hour
# make assault   attacks in two worlds, with namegate and without, and faults, frames, fuzz; after long builds, minutes (assault-long: many)
# make tools     installs what checks the chart: helm, kubectl-validate, schemas, promtool; minutes, once
# make test-cluster   the collector against a real API server, which is built from its Go modules first (minutes, once)
# make mutants   takes each rule away and sees the tests fail; under half an hour

SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Command and the Debian or Ubuntu package that has it.
BUILD_TOOLS := clang:clang llvm-strip:llvm clang-format:clang-format make:make cc:gcc pkg-config:pkg-config
LAB_TOOLS := ip:iproute2 nft:nftables curl:curl dig:bind9-dnsutils nsenter:util-linux valgrind:valgrind
# Real name servers and resolver libraries that the tests meet; the benches use some of them too.
PEER_TOOLS := nsd:nsd unbound:unbound dnsdist:dnsdist knotd:knot kdig:knot-dnsutils kzonesign:knot-dnssecutils musl-gcc:musl-tools
BENCH_TOOLS := dnsperf:dnsperf nsd:nsd dnsdist:dnsdist unbound:unbound iperf3:iperf3 perf:linux-perf
HEADERS := /usr/include/libelf.h:libelf-dev /usr/include/zlib.h:zlib1g-dev /usr/include/bpf/bpf_helpers.h:libbpf-dev

export NEEDRESTART_MODE := a
export DEBIAN_FRONTEND := noninteractive

.PHONY: demo test test-long assault assault-long faults mutants tools lint build deps deps-peers deps-lint deps-deny deps-bench deps-fuzz bench bench-node bench-long fuzz-short clean test-cluster

demo: deps
	cargo build --release --bin namegate --example demo
	target_dir="$$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')"
	$(SUDO) "$$target_dir/release/examples/demo"

test: deps deps-peers lint tools
	@integration/test.sh

# A JSON line a test. NAMEGATE_CASES: how many packets are judged.
test-long: export NAMEGATE_CASES ?= 1000000
test-long: deps
	cargo test --lib engine::compile -- --nocapture --test-threads 1 | grep -E '^\{|^test result|FAILED|panicked'
	NAMEGATE_FRAMES=$$((NAMEGATE_CASES * 10)) cargo test --test corpus any_frame -- --nocapture |
		grep -E '^\{|^test result|FAILED|panicked'
	cargo test --test programs --no-run
	programs="$$(integration/built.sh programs)"
	$(SUDO) env NAMEGATE_CASES="$$NAMEGATE_CASES" "$$programs" --test-threads 1 meaning
	# As users run it: what follows is about time.
	cargo build --release --bin namegate
	cargo test --release --test integration --test faults --no-run
	integration="$$(integration/built.sh integration --release)"
	faults="$$(integration/built.sh faults --release)"
	$(SUDO) env LAB_TAKE_OVERS=50 "$$integration" --test-threads 1 --nocapture take_over::loses_no_query
	$(SUDO) env CHURN_SECONDS=60 "$$integration" --test-threads 1 --nocapture a_hundred_
	$(SUDO) env LAB_KILLS=200 "$$faults" all killed_

# Without Go there is no API server: then the tests are counted as skipped, and say so.
test-cluster: deps
	target_dir="$$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')"
	cargo build --bin namegate
	cargo test --test cluster --no-run
	cluster="$$(integration/built.sh cluster)"
	if command -v go >/dev/null; then
		integration/cluster/build.sh "$$target_dir/cluster"
		integration/tools.sh "$$target_dir/tools"
		$(SUDO) env "PATH=$$target_dir/tools/bin:$$PATH" CLUSTER_PROGRAMS="$$target_dir/cluster" "$$cluster"
		# The chart and its definitions, as that server takes them.
		$(SUDO) env "PATH=$$PATH" integration/cluster-chart.sh "$$target_dir/cluster/bin"
	else
		"$$cluster"
	fi

# A JSON line a fault, one at the end; fails when a denied packet got through or an allowed connection was lost.
faults: deps
	cargo build --bin namegate
	cargo test --test faults --no-run
	faults="$$(integration/built.sh faults)"
	$(SUDO) "$$faults" all

# Attacks, faults, frames and fuzz. Its last line is JSON: attacks that held, fell or are invalid; leaks; losses; faults, runs,
# violations; frames judged; fuzz executions; what a flow, a grant and a name cost.
assault: deps deps-fuzz
	@integration/assault.sh

assault-long: deps deps-fuzz
	@integration/assault.sh --long

# Takes each rule away in a copy of the tree and sees the tests fail; about a minute each, a line of JSON at the end.
mutants: deps
	@$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" integration/mutants/try.sh

# Into the ignored target folder. Without Go it says so, and the chart's checks are counted as ignored.
tools:
	@target_dir="$$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')"
	integration/tools.sh "$$target_dir/tools"

lint: deps deps-lint deps-deny
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	clang-format --dry-run -Werror bpf/*.bpf.c bpf/include/*.h
	cargo deny --offline --config .deny.toml check licenses bans sources

build: deps
	cargo build --release

bench: deps deps-bench
	cargo bench --bench figures $(if $(SUDO),--config "target.'cfg(all())'.runner='$(SUDO)'")

# What a node pays: one JSON line, after some five minutes.
bench-node: deps
	cargo bench --bench node $(if $(SUDO),--config "target.'cfg(all())'.runner='$(SUDO)'")

# Ever-new names for minutes: does memory stay where it is?
bench-long: deps deps-bench
	cargo bench --bench figures $(if $(SUDO),--config "target.'cfg(all())'.runner='$(SUDO)'") -- long

# Each fuzz target for a minute, a JSON line each.
fuzz-short: deps deps-fuzz
	integration/fuzz/short.sh

# Installs what is in `missing`. Name servers only run in the tests' own namespaces: their services must not start on this
# machine.
define install
	if [ "$${#missing[@]}" -gt 0 ]; then
		echo "installing $${missing[*]}"
		policy=/usr/sbin/policy-rc.d
		if [ ! -e $$policy ]; then
			trap "$(SUDO) rm -f $$policy" EXIT
			printf '#!/bin/sh\nexit 101\n' | $(SUDO) install -m 755 /dev/stdin $$policy
		fi
		$(SUDO) apt-get update -qq
		$(SUDO) apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null
	fi
endef

# Installs nothing when nothing is missing.
deps:
	@missing=()
	for pair in $(BUILD_TOOLS) $(LAB_TOOLS); do command -v "$${pair%%:*}" >/dev/null || missing+=("$${pair##*:}"); done
	for pair in $(HEADERS); do [ -e "$${pair%%:*}" ] || missing+=("$${pair##*:}"); done
	$(install)

# systemd-resolved is unpacked and not installed: its package takes over the machine's resolv.conf.
deps-peers:
	@missing=()
	for pair in $(PEER_TOOLS); do command -v "$${pair%%:*}" >/dev/null || missing+=("$${pair##*:}"); done
	$(install)
	target_dir="$$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')"
	resolved="$$target_dir/lab/resolved"
	if [ ! -x /usr/lib/systemd/systemd-resolved ] && [ ! -d "$$resolved" ]; then
		echo "unpacking systemd-resolved"
		$(SUDO) apt-get update -qq
		mkdir -p "$$resolved.new/packages" && cd "$$resolved.new/packages"
		apt-get -o APT::Sandbox::User=root download -qq systemd-resolved libsystemd-shared
		for package in *.deb; do dpkg -x "$$package" ..; done
		cd / && rm -rf "$$resolved.new/packages" && mv "$$resolved.new" "$$resolved"
	fi

deps-lint:
	@if command -v rustup >/dev/null && ! { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1; then
		rustup component add rustfmt clippy
	fi

deps-deny:
	@command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny
	@cargo fetch --quiet --locked # it looks at other platforms' crates too, which no build here has fetched

deps-fuzz:
	@rustup toolchain list | grep -q '^nightly' || rustup toolchain install nightly --profile minimal
	command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz

deps-bench:
	@missing=()
	for pair in $(BENCH_TOOLS); do command -v "$${pair%%:*}" >/dev/null || missing+=("$${pair##*:}"); done
	$(install)

clean:
	cargo clean
