# Checks by name, and their count: sourced by integration/chart.sh and integration/cluster-chart.sh, after they have set
# `suite`, the word that begins each line, and `work`, a directory.
# shellcheck shell=bash disable=SC2154
passed=0 failed=0 ignored=0

# A check by name: the command's output is told if it fails.
check() {
	local name=$1
	shift
	if "$@" >"$work/said" 2>&1; then
		passed=$((passed + 1))
		echo "$suite $name ... ok"
	else
		failed=$((failed + 1))
		echo "$suite $name ... FAILED"
		cut -c1-2000 "$work/said" | head -n 40
	fi
}

# What is not checked, and why.
ignore() {
	ignored=$((ignored + 1))
	echo "$suite $1 ... ignored, $2"
}

# The last line, which integration/test.sh adds up. Fails if a check did.
count() {
	local result=ok
	[ $failed = 0 ] || result=FAILED
	printf 'test result: %s. %d passed; %d failed; %d ignored; 0 measured; 0 filtered out\n' \
		"$result" "$passed" "$failed" "$ignored"
	[ $failed = 0 ]
}

# Whether integration/beyond-form.txt excuses that the definitions accept what namegate refuses: MESSAGE SPEC. Prints the
# lines that do.
excused() {
	local message=$1 spec=$2 said within found=1
	while IFS='|' read -r said within; do
		[ "$said" = "$message" ] && [[ $spec == *"$within"* ]] && found=0 && echo "$said|$within"
	done < <(grep -vE '^(#|$)' integration/beyond-form.txt)
	return $found
}

# Standard input without what Kubernetes has no schema of: Prometheus' operator's kinds.
without_operator() {
	awk -v RS='\n---\n' -v ORS='\n---\n' '!/(^|\n)apiVersion: monitoring\.coreos\.com/'
}
