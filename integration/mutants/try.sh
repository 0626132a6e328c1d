#!/bin/sh
# Shows that the tests notice when a rule is missing: applies each patch to a copy of the tree, builds it, and runs the
# test that the patch's first line names. That test must fail; as a control, without the patch it must pass. Needs root, as
# the integration tests do. About a minute a patch; the last line is JSON.
#
#     integration/mutants/try.sh [PATCH…]
set -eu
tree=$(cd "$(dirname "$0")/../.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# Never the target directory of the tree itself: a mutant would lie where its tests look for namegate.
export CARGO_TARGET_DIR="${MUTANTS_TARGET_DIR:-$tree/target/mutants}"
export CI=true
[ $# -gt 0 ] || set -- "$tree"/integration/mutants/*.patch
# shellcheck disable=SC2046 # no path here has a blank
set -- $(realpath "$@")

fresh_copy() {
	rm -rf "$copy/tree" && mkdir "$copy/tree"
	(cd "$tree" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy/tree")
}

built() {
	cargo test --quiet --test integration --no-run >"$copy/log" 2>&1
}

passes() {
	cargo test --quiet --test integration -- --test-threads 1 "$1" >"$copy/log" 2>&1
}

test_of() {
	sed -n '1s/^must fail: //p' "$1"
}

killed=0 survived=0 broken=0
fresh_copy
cd "$copy/tree"
built || { tail -n 5 "$copy/log" >&2; exit 1; }
for patch; do
	passes "$(test_of "$patch")" || touch "$copy/invalid-$(basename "$patch" .patch)"
done
for patch; do
	name=$(basename "$patch" .patch)
	test=$(test_of "$patch")
	cd "$copy" && fresh_copy && cd "$copy/tree"
	if [ -e "$copy/invalid-$name" ]; then
		echo "INVALID  $name: $test fails without it"
		broken=$((broken + 1))
	elif ! git apply "$patch" || ! built; then
		echo "BROKEN   $name: $(tail -n 1 "$copy/log")"
		broken=$((broken + 1))
	elif passes "$test"; then
		echo "SURVIVED $name: $test passes with it"
		survived=$((survived + 1))
	elif grep -q '^test result: FAILED' "$copy/log"; then
		echo "killed   $name by $(grep -m1 -E '^(line [0-9]+|INVALID|test panicked)' "$copy/log" | cut -c1-100)"
		killed=$((killed + 1))
	else
		echo "BROKEN   $name: $(tail -n 1 "$copy/log")"
		broken=$((broken + 1))
	fi
done
printf '{"mutants":%d,"killed":%d,"survived":%d,"broken":%d}\n' $# $killed $survived $broken
[ $((survived + broken)) = 0 ]
