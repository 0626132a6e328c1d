#!/usr/bin/env bash
# Checks helm/namegate and the CustomResourceDefinitions: rendered with each of helm/namegate/ci, refused with each of
# helm/namegate/refused, validated against Kubernetes' schemas, and the definitions held against the table of what policies
# namegate accepts. Its last line counts; what a tool is missing for is ignored, and said.
#
#     integration/chart.sh [PROGRAM]      PROGRAM: the built namegate; target/debug/namegate unless given
#
# The tools come from `make tools`, or from the path.
set -uo pipefail
cd "$(dirname "$0")/.."

chart=helm/namegate
crds=$chart/files/crds
target_dir=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
program=${1:-$target_dir/debug/namegate}
PATH=$target_dir/tools/bin:$PATH
schemas=$target_dir/tools/schemas
# No cluster is asked.
export KUBECONFIG=/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
suite=chart
. integration/checks.sh

# Validates files or folders; one line a file, "PATH OK" or "PATH ERROR", goes to standard output.
validate() {
	kubectl-validate --version 1.30 --local-schemas "$schemas" --local-crds "$crds" "$@" 2>"$work/why" |
		sed -e 's/\x1b\[[0-9;]*m//g' -n -e 's/^\(.*\)\.\.\.\(OK\|ERROR\)$/\1 \2/p'
}

# All that is validated has to be right.
all_valid() {
	validate "$@" >"$work/verdicts"
	[ -s "$work/verdicts" ] && ! grep -v ' OK$' "$work/verdicts" || { cat "$work/why"; return 1; }
}

rendered() {
	local values=$1 out=$2
	helm template try "$chart" --namespace namegate --kube-version 1.36.0 --values "$values" >"$out"
}

refuses() {
	local values=$1 says
	says=$(sed -n '1s/^# says: //p' "$values")
	[ -n "$says" ] || { echo "no '# says: …' in the first line"; return 1; }
	if rendered "$values" /dev/null 2>"$work/error"; then
		echo "it is accepted"
		return 1
	fi
	grep -qF -- "$says" "$work/error" || { echo "it does not say: $says"; cat "$work/error"; return 1; }
}

# The configuration that the chart renders, as the program reads it: 1 says that no namegate runs there, 2 that it is wrong.
configured() {
	local rendered=$1 code
	awk '/^  namegate.toml: \|/ { on = 1; next } on && /^ ? ?[^ ]/ { exit } on { sub(/^    /, ""); print }' \
		"$rendered" >"$work/namegate.toml"
	[ -s "$work/namegate.toml" ] || { echo "no namegate.toml"; return 1; }
	"$program" ready --config "$work/namegate.toml" --run-dir "$work/none"
	code=$?
	[ $code = 1 ] || { echo "exit code $code"; cat "$work/namegate.toml"; return 1; }
}

# Whether a line stands in what was rendered: FILE TEXT…
says() {
	local file=$1 text
	shift
	for text in "$@"; do grep -qF -- "$text" "$file" || { echo "no $text"; return 1; }; done
}

says_not() { ! says "$1" "$2" >/dev/null; }

# What the chart asks of a container of the agent's: TEXT of capabilities, in their order.
capabilities() {
	local found
	found=$(awk '
		/- name: collector/ { exit }
		/add:$/ { on = 1; next }
		on && /^ *- [A-Z_]+$/ { print $2; next }
		{ on = 0 }' "$1" | paste -sd ' ')
	[ "$found" = "$2" ] || { echo "$found"; return 1; }
}

# The table of policies, as files: LINE-VERDICT.yaml.
table() {
	awk -F'\t' -v dir="$1" '!/^#/ && $2 ~ /^c?cnp/ {
		split($2, kind, "@")
		namespace = kind[2] == "" && kind[1] == "cnp" ? "shop" : kind[2]
		name = kind[1] == "cnp" ? "CiliumNetworkPolicy" : "CiliumClusterwideNetworkPolicy"
		file = sprintf("%s/%04d-%s.yaml", dir, NR, $3)
		if (namespace != "") namespace = ", namespace: " namespace
		printf "apiVersion: cilium.io/v2\nkind: %s\nmetadata: {name: p%s}\nspec: %s\n", name, namespace, $5 > file
		close(file)
	}' integration/conformance/validation.tsv
}

# What namegate accepts has to be valid by the definitions, what it refuses not, but for what form can't say.
definitions_and_namegate_agree() {
	local file found line message spec wrong=0
	mkdir "$work/table"
	table "$work/table"
	[ "$(find "$work/table" -name '*.yaml' | wc -l)" -gt 300 ] || { echo "too few rows"; return 1; }
	: >"$work/excused"
	while read -r file found; do
		line=$((10#$(basename "$file" | cut -c1-4)))
		message=$(sed -n "${line}p" integration/conformance/validation.tsv | cut -f4)
		case $file-$found in
		*-refused.yaml-ERROR | *-valid.yaml-OK | *-unenforced.yaml-OK) ;;
		*-refused.yaml-OK)
			spec=$(sed -n "${line}p" integration/conformance/validation.tsv | cut -f5)
			excused "$message" "$spec" >>"$work/excused" && continue
			wrong=$((wrong + 1))
			echo "row $line: namegate refuses it ($message), the definition accepts it: $spec"
			;;
		*)
			wrong=$((wrong + 1))
			echo "row $line: namegate accepts it, the definition refuses it:"
			validate "$file" >/dev/null
			cat "$work/why"
			;;
		esac
	done < <(validate "$work/table")
	# Each exception has to be one.
	while IFS='|' read -r said within; do
		grep -qxF -- "$said|$within" "$work/excused" || { echo "no exception any more: $said"; wrong=$((wrong + 1)); }
	done < <(grep -vE '^(#|$)' integration/beyond-form.txt)
	return $((wrong > 0))
}

# Policies of the examples and of the documented cases: files that `namegate check` refuses nothing of have to be valid.
examples_are_valid() {
	local file files=()
	mkdir "$work/examples"
	while read -r file; do
		grep -qE '^kind: Cilium(ClusterwideNetworkPolicy|NetworkPolicy|CIDRGroup)' "$file" || continue
		"$program" check -o json "$file" 2>/dev/null | grep -q '"refused"' && continue
		files+=("$file")
		# Only Cilium's kinds; objects beside them are not what this is about.
		awk -v RS='---\n' -v out="$work/examples/$(echo "$file" | tr / _)" \
			'/(^|\n)apiVersion: cilium\.io/ { printf "---\n%s", $0 > out }' "$file"
	done < <(find config/examples config/demo integration/conformance/documented -name '*.yaml' ! -name cases.yaml | sort)
	[ ${#files[@]} -gt 30 ] || { echo "only ${#files[@]} files"; return 1; }
	all_valid "$work/examples"
}

# Without these the checks would be of nothing.
for tool in helm kubectl-validate; do
	if ! command -v "$tool" >/dev/null; then
		ignore "all of it" "no $tool: make tools installs it where Go is"
		count
		exit
	fi
done

check "helm lint" helm lint --strict --quiet "$chart"
for values in "$chart"/ci/*-values.yaml; do
	name=$(basename "$values" -values.yaml)
	check "renders $name" rendered "$values" "$work/$name.yaml"
	without_operator <"$work/$name.yaml" >"$work/$name-valid.yaml"
	if [ -d "$schemas" ]; then
		check "validates $name" all_valid "$work/$name-valid.yaml"
	else
		ignore "validates $name" "no schemas: make tools fetches them where Go is"
	fi
	check "configuration of $name" configured "$work/$name.yaml"
done
for values in "$chart"/refused/*.yaml; do
	check "refuses $(basename "$values" .yaml)" refuses "$values"
done

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
check "the chart is of the program's version" says "$chart/Chart.yaml" "version: $version" "appVersion: \"$version\""
check "capabilities" capabilities "$work/default.yaml" "BPF NET_ADMIN PERFMON"
check "capabilities with a port below 1024" capabilities "$work/dns-over-tls.yaml" "BPF NET_ADMIN PERFMON NET_BIND_SERVICE"
check "capabilities with inbound pod" capabilities "$work/inbound-pod.yaml" "BPF NET_ADMIN PERFMON SYS_ADMIN"
check "network namespaces with inbound pod" says "$work/inbound-pod.yaml" "name: netns, mountPath" "path: \"/var/run/netns\""
check "no network namespaces otherwise" says_not "$work/default.yaml" "netns"
check "memory, as values.yaml works it out" says "$work/default.yaml" "memory: 423Mi" "memory: 277Mi"
check "memory of many flows" says "$work/large-nodes.yaml" "memory: 5554Mi"
check "memory of few flows" says "$work/small-nodes.yaml" "memory: 272Mi"
check "memory that is given" says "$work/own-memory.yaml" "memory: 1Gi" "memory: 300Mi"
check "no port is declared" says_not "$work/default.yaml" "containerPort"
check "no account may write" says_not "$work/default.yaml" "patch"
check "one account may patch statuses" says "$work/write-status.yaml" "verbs: [patch]" "ciliumnetworkpolicies/status"
check "no definitions unless asked for" says_not "$work/default.yaml" "CustomResourceDefinition"
check "the clusterwide definition is made of the other" diff <(helm/crds.sh) "$crds/ciliumclusterwidenetworkpolicies.yaml"
check "the definitions are valid" all_valid "$crds"
check "the definitions and namegate agree" definitions_and_namegate_agree
check "the examples are valid by the definitions" examples_are_valid

ignore "validates PodMonitor, ServiceMonitor and PrometheusRule" "Kubernetes has no schema of Prometheus' operator's kinds"

# What is to be found wrong: a check that finds nothing is of no use.
if [ -d "$schemas" ]; then
	wrong() {
		mkdir -p "$work/wrong"
		sed "$2" "$work/$1-valid.yaml" >"$work/wrong/a.yaml"
		! cmp -s "$work/$1-valid.yaml" "$work/wrong/a.yaml" && ! all_valid "$work/wrong/a.yaml"
	}
	check "a misspelt field of a pod is found" wrong default 's/hostNetwork:/hostNetwrok:/'
	check "a number as text is found" wrong default 's/terminationGracePeriodSeconds: 30/terminationGracePeriodSeconds: "30"/'
	check "a misspelt field of the admission policy is found" wrong sidecar 's/reinvocationPolicy:/reinvocation:/'
	check "a definition of no structure is found" wrong without-cilium 's/^          type: object$/          type: objekt/'
fi

# The pods of the documentation, as they stand there.
awk '/^ *```yaml$/ { on = 1; print "---"; next } /^ *```$/ { on = 0 } on' "$chart/README.md" >"$work/documented.yaml"
if [ -d "$schemas" ]; then check "the documented pod is valid" all_valid "$work/documented.yaml"; fi
# Its containers and volumes are those that are injected.
documented_is_injected() {
	local texts
	texts=$(grep -o '"[^"]*"' "$work/sidecar.yaml" | tr -d '"' | sort -u)
	for word in --snapshot=/var/run/namegate/snapshot --podinfo=/etc/podinfo --run-dir=/run/namegate/own \
		--state-dir=/run/namegate/state --pin-dir=/bpf/namegate POD_UID NET_BIND_SERVICE namegate-bpf /run/namegate/own POD_IPS NODE_NAME SERVICE_ACCOUNT metadata.uid namegate-snapshot \
		namegate-podinfo namegate-run namegate-init BPF NET_ADMIN PERFMON; do
		grep -qxF -- "$word" <<<"$texts" || { echo "$word is not injected"; return 1; }
		grep -qF -- "$word" "$work/documented.yaml" || { echo "$word is not documented"; return 1; }
	done
}
check "the documented pod is as the injected ones" documented_is_injected

if command -v promtool >/dev/null; then
	check "rules" promtool check rules "$chart/files/rules.yaml"
	check "what the rules alert" promtool test rules integration/rules-test.yaml
else
	ignore "rules" "no promtool: make tools unpacks it on Debian"
fi

if [ "$(id -u)" = 0 ] || [ "${CI:-}" = true ]; then
	check "the image's root folder starts the agent" timeout 120 helm/image.sh "$program"
else
	ignore "the image's root folder starts the agent" "not root"
fi

count
