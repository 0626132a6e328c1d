#!/usr/bin/env bash
# Runs every test and adds up what they counted. Root and BPF are needed by the image of the chart and the last groups: with CI=true
# their absence is a failure, elsewhere those tests are counted as skipped.
set -uo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo --preserve-env=CI,PATH "$@"; else "$@"; fi
}

cargo build --bin namegate || exit 1
# The Helm chart, the definitions of Cilium's policies, the image.
integration/chart.sh 2>&1 | tee -a "$log" || status=1
cargo test --lib --bins -- --quiet 2>&1 | tee -a "$log" || status=1
# What the fuzz targets check, over their corpus.
cargo test --test corpus 2>&1 | tee -a "$log" || status=1
# The collector against a scripted API server.
cargo test --test collector 2>&1 | tee -a "$log" || status=1
# Allocations and instructions a reply, as a release build has them.
cargo test --release --test counts 2>&1 | tee -a "$log" || status=1
cargo test --doc 2>&1 | tee -a "$log" || status=1
for group in programs integration faults; do
	cargo test --test "$group" --no-run || exit 1
done
root() { as_root "$(integration/built.sh "$1")" "${@:2}" 2>&1 | tee -a "$log" || status=1; }
root programs --test-threads 1
# Two at a time: they mostly wait, and each world has its own namespaces. But not those that need the cores or measure time.
alone="capabilities churn floor peers early fragments take_over"
root integration --test-threads 2 $(printf -- '--skip %s ' $alone)
for group in $alone; do root integration --test-threads 1 "$group"; done
root faults
# A third of the attacks, without the floods.
cargo test --test assault --no-run || exit 1
as_root "$(integration/built.sh assault)" --slice 2>&1 | tee -a "$log" || status=1

# "test result: ok. 12 passed; 0 failed; 3 ignored; …", once a program
awk -v status="$status" '
	/^test result:/ { for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i; if ($(i+1) ~ /^ignored/) s += $i } }
	END {
		printf "%d passed, %d failed, %d skipped\n", p, f, s
		exit (status != 0 || f > 0 || p == 0)
	}
' "$log"
