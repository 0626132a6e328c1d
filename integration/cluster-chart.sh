#!/usr/bin/env bash
# The chart and its definitions against the real API server: kube-apiserver and etcd in a network namespace of their own,
# which ends with the script. Its last line counts.
#
#     integration/cluster-chart.sh FOLDER      FOLDER: where kube-apiserver, kubectl and etcd are
#
# As root. helm comes from `make tools`, or from the path.
set -uo pipefail
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

target_dir=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
PATH=$target_dir/tools/bin:$PATH
chart=helm/namegate
work=$(mktemp -d)
space=namegate-cluster-$$
suite=cluster-chart
. integration/checks.sh

end() {
	# Nothing of theirs is kept, and without etcd the API server would take minutes to end by itself.
	[ -z "${api:-}" ] || kill -KILL "$api" 2>/dev/null
	[ -z "${etcd:-}" ] || kill -KILL "$etcd" 2>/dev/null
	wait 2>/dev/null
	ip netns delete "$space" 2>/dev/null
	rm -rf "$work"
}
trap end EXIT

inside() { nsenter --net="/run/netns/$space" "$@"; }

# As the administrator.
kubectl() {
	inside "$bin/kubectl" --server https://127.0.0.1:6443 --insecure-skip-tls-verify --token administrator \
		--cache-dir "$work/cache" --kubeconfig /dev/null "$@"
}

start() {
	ip netns add "$space" && ip -n "$space" link set lo up || return 1
	# nsenter becomes the program, so that the numbers are theirs.
	nsenter --net="/run/netns/$space" "$bin/etcd" --data-dir "$work/etcd" --unsafe-no-fsync --log-level error \
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380 >"$work/etcd.log" 2>&1 &
	etcd=$!
	openssl genrsa -out "$work/account.key" 2048 2>/dev/null || return 1
	echo 'administrator,administrator,1,system:masters' >"$work/tokens"
	nsenter --net="/run/netns/$space" "$bin/kube-apiserver" \
		--etcd-servers http://127.0.0.1:2379 --cert-dir "$work/certificates" --bind-address 127.0.0.1 --secure-port 6443 --advertise-address 127.0.0.1 --authorization-mode RBAC \
		--token-auth-file "$work/tokens" --service-cluster-ip-range 198.18.0.0/24 --endpoint-reconciler-type none \
		--service-account-issuer https://cluster.example --service-account-key-file "$work/account.key" \
		--service-account-signing-key-file "$work/account.key" --disable-admission-plugins ServiceAccount >"$work/api.log" 2>&1 &
	api=$!
	for _ in $(seq 120); do
		[ "$(kubectl get --raw /readyz 2>/dev/null)" = ok ] && return 0
		sleep 0.5
	done
	tail -n 20 "$work/api.log"
	return 1
}

rendered() {
	helm template namegate "$chart" --namespace namegate --values "$chart/ci/$1-values.yaml" | without_operator
}

applied() {
	rendered "$1" >"$work/$1.yaml" && kubectl apply -f "$work/$1.yaml"
}

served() {
	for _ in $(seq 60); do
		kubectl get "$1" >/dev/null 2>&1 && return 0
		sleep 0.5
	done
	kubectl get "$1"
}

# Whether an account may, or may not: yes|no ACCOUNT VERB RESOURCE [more].
may() {
	local wanted=$1 account=$2
	shift 2
	[ "$(kubectl auth can-i --as "system:serviceaccount:namegate:$account" "$@" 2>/dev/null)" = "$wanted" ] && return 0
	echo "not $wanted: $account $*"
	return 1
}

# The same of a resource that the server doesn't have: true|false ACCOUNT VERB RESOURCE; kubectl auth can-i knows no such.
may_of_administrators() {
	local found
	found=$(kubectl create -o 'jsonpath={.status.allowed}' -f - <<-REVIEW
		{apiVersion: authorization.k8s.io/v1, kind: SubjectAccessReview,
		 spec: {user: "system:serviceaccount:namegate:$2",
		        resourceAttributes: {verb: $3, group: policy.networking.k8s.io, resource: $4}}}
	REVIEW
	)
	[ "$found" = "$1" ] && return 0
	echo "not $1: $2 $3 $4"
	return 1
}

roles() {
	local resource account
	for resource in adminnetworkpolicies baselineadminnetworkpolicies clusternetworkpolicies; do
		for account in namegate namegate-status; do
			may_of_administrators true "$account" list "$resource" && may_of_administrators true "$account" watch "$resource" &&
				may_of_administrators false "$account" patch "$resource" || return 1
		done
	done
	for resource in pods services namespaces nodes endpointslices.discovery.k8s.io networkpolicies.networking.k8s.io \
		ciliumnetworkpolicies.cilium.io ciliumclusterwidenetworkpolicies.cilium.io ciliumcidrgroups.cilium.io; do
		for account in namegate namegate-status; do
			may yes "$account" list "$resource" --all-namespaces && may yes "$account" watch "$resource" --all-namespaces || return 1
			may no "$account" create "$resource" --all-namespaces && may no "$account" patch "$resource" --all-namespaces || return 1
		done
	done
	may yes namegate list configmaps/cilium-config -n kube-system &&
		may yes namegate watch configmaps/cilium-config -n kube-system &&
		may no namegate list configmaps -n kube-system && may no namegate list secrets --all-namespaces &&
		may no namegate patch ciliumnetworkpolicies.cilium.io --subresource status &&
		may yes namegate-status patch ciliumnetworkpolicies.cilium.io --subresource status &&
		may yes namegate-status patch ciliumclusterwidenetworkpolicies.cilium.io --subresource status
}

# A pod of this name, label and rest of its spec, as the API server keeps it; its init containers and volumes.
pod() {
	kubectl apply -f - >/dev/null <<-POD || return 1
		{apiVersion: v1, kind: Pod, metadata: {name: $1, namespace: shop, labels: {$2}},
		 spec: {automountServiceAccountToken: false, containers: [{name: app, image: app}]$3}}
	POD
	kubectl get pod -n shop "$1" -o 'jsonpath={.spec.initContainers[*].name}|{.spec.volumes[*].name}'
}

injected() {
	local found own volumes='namegate-snapshot namegate-podinfo namegate-run namegate-bpf'
	# The policy is looked at some time after it was made.
	for _ in $(seq 60); do
		kubectl delete pod -n shop first --ignore-not-found --wait=true --force --grace-period=0 >/dev/null 2>&1
		found=$(pod first '"namegate.io/inject": "true"' '')
		[ "$found" = "namegate-init namegate|$volumes" ] && break
		sleep 0.5
	done 2>"$work/errors"
	if [ "$found" != "namegate-init namegate|$volumes" ]; then
		echo "$found"
		tail -n 1 "$work/errors"
		grep -A 12 panic "$work/api.log" | head -n 40
		return 1
	fi
	own=', initContainers: [{name: own, image: own}], volumes: [{name: mine, emptyDir: {}}]'
	found=$(pod second '"namegate.io/inject": "true"' "$own")
	[ "$found" = "namegate-init namegate own|mine $volumes" ] || { echo "$found"; return 1; }
	found=$(pod third 'app: web' '')
	[ "$found" = '|' ] || { echo "without the label: $found"; return 1; }
	found=$(kubectl get pod -n shop first -o 'jsonpath={range .spec.initContainers[1]}{.restartPolicy} {.securityContext.capabilities} {.env[0].valueFrom.fieldRef.fieldPath}{end}')
	[ "$found" = 'Always {"add":["BPF","NET_ADMIN","PERFMON","NET_BIND_SERVICE"],"drop":["ALL"]} status.podIPs' ] || { echo "$found"; return 1; }
}

# The table of policies, each under a name of its own; what the API server takes, and what namegate does.
table() {
	local wrong=0 line verdict message spec
	mkdir "$work/table"
	awk -F'\t' -v dir="$work/table" '!/^#/ && $2 ~ /^c?cnp$/ {
		name = $2 == "cnp" ? "CiliumNetworkPolicy" : "CiliumClusterwideNetworkPolicy"
		file = sprintf("%s/%04d.yaml", dir, NR)
		namespace = $2 == "cnp" ? ", namespace: shop" : ""
		printf "apiVersion: cilium.io/v2\nkind: %s\nmetadata: {name: p%04d%s}\nspec: %s\n", name, NR, namespace, $5 > file
		close(file)
	}' integration/conformance/validation.tsv
	kubectl create --dry-run=server --validate=strict -f "$work/table" 2>"$work/table.errors" |
		sed -n 's|^[^/]*/p\([0-9]*\) .*|\1|p' >"$work/taken"
	[ "$(wc -l <"$work/taken")" -gt 100 ] || { head -n 5 "$work/table.errors"; return 1; }
	for file in "$work"/table/*.yaml; do
		line=$(basename "$file" .yaml)
		IFS=$'\t' read -r _ _ verdict message spec < <(
			sed -n "$((10#$line)){s/\t\t/\t-\t/;p}" integration/conformance/validation.tsv
		)
		if grep -qx "$line" "$work/taken"; then taken=yes; else taken=no; fi
		case $verdict-$taken in
		refused-no | valid-yes | unenforced-yes) continue ;;
		refused-yes) excused "$message" "$spec" >/dev/null && continue ;;
		esac
		wrong=$((wrong + 1))
		echo "row $((10#$line)), $verdict by namegate, taken by the API server: $taken; $spec"
		grep -F "\"p$line\"" "$work/table.errors" | head -n 1
	done
	return $((wrong > 0))
}

# A condition as the collector writes it is shown.
shown() {
	local condition='{type: Valid, status: "False", reason: Refused, message: "no", lastTransitionTime: "2026-01-01T00:00:00Z"}'
	kubectl apply -f - <<-POLICY || return 1
		{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: web, namespace: shop},
		 spec: {endpointSelector: {}, egress: [{}]}}
	POLICY
	kubectl patch cnp -n shop web --subresource status --type merge --patch "status: {conditions: [$condition]}" &&
		kubectl get cnp -n shop web -o wide | tee /dev/stderr | grep -q 'False  *no'
}

check "the API server starts" start
[ $failed = 0 ] || { count; exit 1; }
for namespace in namegate shop; do kubectl create namespace "$namespace" >/dev/null; done
check "the definitions are applied" applied without-cilium
for kind in ciliumnetworkpolicies ciliumclusterwidenetworkpolicies ciliumcidrgroups; do
	check "$kind are served" served "$kind"
done
for values in "$chart"/ci/*-values.yaml; do
	name=$(basename "$values" -values.yaml)
	# Its admission policy is of an API that has to be switched on.
	[ "$name" = sidecar-own-dns ] || check "$name is applied" applied "$name"
done
kubectl delete mutatingadmissionpolicybinding --all >/dev/null 2>&1
check "accounts may do what they need and no more" roles
check "sidecar is applied" applied sidecar
check "the sidecar is injected in front, and only where it is asked for" injected
check "the API server takes what namegate accepts" table
check "kubectl get cnp shows a condition" shown

count
