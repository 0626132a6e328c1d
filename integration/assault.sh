#!/usr/bin/env bash
# make assault: attacks, faults, frames and fuzz; meant to take under 15 minutes where everything is built. Its last line is
# JSON.
#
#     integration/assault.sh [--long]      ten million frames, each fuzz target for a minute
#
# FRAMES and FUZZ_SECONDS in the environment change how many and how long.
set -uo pipefail
cd "$(dirname "$0")/.."

frames=${FRAMES:-1000000}
export FUZZ_SECONDS=${FUZZ_SECONDS:-5}
if [ "${1:-}" = --long ]; then
	frames=10000000
	export FUZZ_SECONDS=60
fi
log=$(mktemp)
trap 'rm -f "$log" "$log.code"' EXIT
status=0
began=$SECONDS

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo --preserve-env=CI,PATH "$@"; else "$@"; fi
}

# Runs a command; what is worth reading is shown, and the last line that is JSON kept.
said() {
	{ "$@" 2>&1; echo $? >"$log.code"; } | tee "$log" | grep -v '^held ' >&2
	grep '^{' "$log" | tail -n 1
	return "$(cat "$log.code")"
}

cargo build --bin namegate || exit 1
cargo test --test assault --test faults --test corpus --no-run || exit 1
attacks=$(said as_root "$(integration/built.sh assault)") || status=1
faults=$(said as_root "$(integration/built.sh faults)" all) || status=1
judged=$(NAMEGATE_FRAMES=$frames said cargo test --quiet --test corpus any_frame -- --nocapture) || status=1
integration/fuzz/short.sh | tee "$log" || status=1
fuzz=$(awk -F'[:,]' '
	/^\{"fuzz"/ { for (i = 1; i < NF; i++) { if ($i ~ /"executions"/) e += $(i+1); if ($i ~ /"crashes"/) c += $(i+1) } t++ }
	END { printf "{\"targets\":%d,\"executions\":%d,\"crashes\":%d}", t, e, c }' "$log")
printf '%s,"faults":%s,"frames_judged":%s,"fuzz":%s,"all_seconds":%d}\n' \
	"${attacks%\}}" "${faults:-null}" "${judged:-null}" "$fuzz" $((SECONDS - began))
exit $status
