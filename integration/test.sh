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

# stage NAME COMMAND…: what it says is counted at the end, and it is told how long it took.
stage() {
	local name=$1 from=$SECONDS fine=0
	shift
	"$@" 2>&1 | tee -a "$log" || fine=1 status=1
	echo "-- $name: $((SECONDS - from)) s"
	return $fine
}
build() { cargo test "$@" --no-run || exit 1; }
root() { stage "$*" as_root "$(integration/built.sh "$1")" "${@:2}"; }

cargo build --bin namegate || exit 1
stage "chart, definitions, image" integration/chart.sh
stage "unit tests" cargo test --lib --bins -- --quiet
# What the fuzz targets check, over their corpus.
stage corpus cargo test --test corpus
for group in collector programs integration faults assault; do build --test "$group"; done
# The collector against a scripted API server: it waits while the release build is made.
stage collector "$(integration/built.sh collector)" &
# Allocations and instructions a reply, as a release build has them.
stage counts cargo test --release --test counts
stage documentation cargo test --doc
wait $! || status=1
root programs --test-threads 2
# Three at a time: they mostly wait, and each world has its own namespaces. But fewer of those that need the cores or measure time.
two="capabilities early fragments peers"
one="churn floor take_over within_100_ms"
root integration --test-threads 3 $(printf -- '--skip %s ' $two $one)
for group in $two; do root integration --test-threads 2 "$group"; done
for group in $one; do root integration --test-threads 1 "$group"; done
root faults
# A third of the attacks, without the floods.
root assault --slice

# "test result: ok. 12 passed; 0 failed; 3 ignored; …", once a program
awk -v status="$status" '
	/^test result:/ { for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i; if ($(i+1) ~ /^ignored/) s += $i } }
	END {
		printf "%d passed, %d failed, %d skipped\n", p, f, s
		exit (status != 0 || f > 0 || p == 0)
	}
' "$log"
