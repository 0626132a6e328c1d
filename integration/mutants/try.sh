#!/bin/sh
# Shows that the tests notice when a rule is missing: applies each patch to a copy of the tree, builds it, and runs the
# test that the patch's first line names. That test must fail. Needs root, as the integration tests do.
#
#     integration/mutants/try.sh [PATCH…]
set -eu
tree=$(cd "$(dirname "$0")/../.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# Never the target directory of the tree itself: a mutant would lie where its tests look for namegate.
export CARGO_TARGET_DIR="${MUTANTS_TARGET_DIR:-$tree/target/mutants}"
[ $# -gt 0 ] || set -- "$tree"/integration/mutants/*.patch
survived=0
for patch; do
	patch=$(cd "$(dirname "$patch")" && pwd)/$(basename "$patch")
	name=$(basename "$patch" .patch)
	test=$(sed -n '1s/^must fail: //p' "$patch")
	rm -rf "$copy/tree" && mkdir "$copy/tree"
	(cd "$tree" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy/tree")
	cd "$copy/tree"
	git apply "$patch"
	cargo test --quiet --test integration --no-run
	if CI=true cargo test --quiet --test integration -- "$test" >"$copy/log" 2>&1; then
		echo "SURVIVED $name: $test passes without it"
		survived=1
	elif grep -q '^test result: FAILED' "$copy/log"; then
		echo "killed   $name by $(grep -m1 -E '^(line [0-9]+|INVALID|test panicked)' "$copy/log" | cut -c1-100)"
	else
		echo "BROKEN   $name: $(tail -1 "$copy/log")"
		survived=1
	fi
done
exit $survived
