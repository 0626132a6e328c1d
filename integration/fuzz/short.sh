#!/usr/bin/env bash
# Runs each fuzz target for a minute, from the corpus in the tree, and prints a JSON line for each. Fails when one of them
# found something; the input then lies where the line says. What is new in the corpus stays in the target directory.
#
#     integration/fuzz/short.sh [TARGET…]      FUZZ_SECONDS=600 for longer
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${FUZZ_SECONDS:-60}
target_dir=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
# Its own: other compiler, other flags.
export CARGO_TARGET_DIR=$target_dir/fuzz
fuzz=(cargo +nightly fuzz)
[ $# -gt 0 ] || set -- query answer upstream pattern manifest datagrams frames \
	config checkpoint state journal admin question scenario
"${fuzz[@]}" build --fuzz-dir integration/fuzz
found=0
for target; do
	grown=$CARGO_TARGET_DIR/corpus/$target
	artifacts=$CARGO_TARGET_DIR/artifacts/$target
	log=$CARGO_TARGET_DIR/$target.log
	mkdir -p "$grown" "$artifacts"
	status=0
	"${fuzz[@]}" run --fuzz-dir integration/fuzz "$target" "$grown" "integration/fuzz/corpus/$target" -- \
		-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -artifact_prefix="$artifacts/" \
		-print_final_stats=1 >"$log" 2>&1 || status=$?
	executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	corpus=$(sed -n 's/^#[0-9]*\s*DONE .*corp: \([0-9]*\).*/\1/p' "$log")
	input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
	printf '{"fuzz":"%s","seconds":%s,"executions":%s,"corpus":%s,"crashes":%s,"input":"%s"}\n' \
		"$target" "$seconds" "${executions:-0}" "${corpus:-0}" "$([ $status = 0 ] && echo 0 || echo 1)" "$input"
	if [ $status != 0 ]; then
		found=1
		grep -A 3 -E 'panicked at|ERROR: ' "$log" | head -n 12 >&2 || tail -n 5 "$log" >&2
	fi
done
exit $found
