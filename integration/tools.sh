#!/usr/bin/env bash
# Installs what checks the chart, of pinned versions, into FOLDER (target/tools unless given), where it is not yet: helm and
# kubectl-validate are compiled with `go install`, the schemas of Kubernetes' kinds come with its Go module, promtool with a
# Debian package that is unpacked and not installed. Without Go it says so and ends well: integration/chart.sh counts what
# it can't check.
#
#     integration/tools.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."

HELM=v4.3.1
KUBECTL_VALIDATE=v0.0.4
KUBERNETES=v1.36.3

tools=${1:-target/tools}
mkdir -p "$tools/bin"
tools=$(cd "$tools" && pwd)

if command -v go >/dev/null; then
	# One package at a time: two at a time take the memory of a small machine.
	# What can't be compiled, for want of a connection, is missing: the checks that need it are counted as ignored.
	compile() {
		if GOBIN="$tools/bin" GOFLAGS="${GOFLAGS:-} -p=1" go install "$1"; then return 0; fi
		echo "$1 can't be compiled; what it checks is not checked" >&2
		return 1
	}
	# Whether a tool is not of this version.
	lacks() { [ "$(cat "$tools/$1.version" 2>/dev/null)" != "$2" ]; }
	if lacks helm "$HELM"; then
		echo "compiling helm $HELM, minutes"
		compile "helm.sh/helm/v4/cmd/helm@$HELM" && echo "$HELM" >"$tools/helm.version" || true
	fi
	if lacks kubectl-validate "$KUBECTL_VALIDATE"; then
		echo "compiling kubectl-validate $KUBECTL_VALIDATE, minutes"
		compile "sigs.k8s.io/kubectl-validate@$KUBECTL_VALIDATE" &&
			echo "$KUBECTL_VALIDATE" >"$tools/kubectl-validate.version" || true
	fi
	if lacks schemas "$KUBERNETES"; then
		echo "fetching the schemas of Kubernetes $KUBERNETES"
		module=$({ go mod download -json "k8s.io/kubernetes@$KUBERNETES" || true; } | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
		rm -rf "$tools/schemas"
		# apis__apps__v1_openapi.json is apis/apps/v1.json to kubectl-validate.
		for file in "$module"/api/openapi-spec/v3/api*_openapi.json; do
			path=$(basename "$file" _openapi.json)
			path=${path//__/\/}
			case $path in api/v1 | apis/*/*) install -D -m 644 "$file" "$tools/schemas/$path.json" ;; esac
		done
		if [ -d "$tools/schemas" ]; then echo "$KUBERNETES" >"$tools/schemas.version"; fi
	fi
else
	echo "no go: helm and kubectl-validate are not installed, and the chart is not checked"
fi

if ! command -v promtool >/dev/null && [ ! -x "$tools/bin/promtool" ] && command -v apt-get >/dev/null; then
	echo "unpacking promtool"
	SUDO=
	[ "$(id -u)" = 0 ] || SUDO=sudo
	apt-cache show prometheus >/dev/null 2>&1 || $SUDO apt-get update -qq
	mkdir -p "$tools/prometheus.new"
	(
		cd "$tools/prometheus.new"
		apt-get -o APT::Sandbox::User=root download -qq prometheus || exit 0
		dpkg -x prometheus_*.deb .
		mv usr/bin/promtool "$tools/bin/promtool"
	)
	rm -rf "$tools/prometheus.new"
fi
