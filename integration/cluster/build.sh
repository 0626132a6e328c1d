#!/usr/bin/env bash
# Builds kube-apiserver, kubectl and etcd from their Go modules into DIR/bin, unless these versions are there. Minutes, once.
#
#     integration/cluster/build.sh DIR
set -euo pipefail

kubernetes=1.36.3
etcd=3.6.16
here="$1"
mkdir -p "$here/bin"
made="kubernetes $kubernetes, etcd $etcd, $(go env GOVERSION)"
if [ "$(cat "$here/bin/made" 2>/dev/null)" = "$made" ]; then exit 0; fi

# Somebody else's go.work or vendor folder is none of ours.
export GOWORK=off GOFLAGS="${GOFLAGS:-} -mod=mod -trimpath" CGO_ENABLED=0

# A module that requires another one, so that `go build` can build the programs of that one.
wrapper() {
	rm -rf "$here/$1" && mkdir -p "$here/$1"
	printf 'module namegate.test/%s\n\ngo 1.24\n' "$1" >"$here/$1/go.mod"
}

# In Kubernetes' own tree its parts are folders; as modules they have versions of their own.
wrapper kubernetes
(
	cd "$here/kubernetes"
	mod="$(go mod download -json "k8s.io/kubernetes@v$kubernetes" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')"
	go mod edit -require="k8s.io/kubernetes@v$kubernetes"
	go mod edit -go="$(go mod edit -json "$mod" | sed -n 's/^\t"Go": "\(.*\)",$/\1/p')"
	staging="$(sed -n 's|.*=> \./staging/src/\(k8s\.io/[a-z0-9-]*\)$|\1|p' "$mod" | sort -u)"
	for part in $staging; do go mod edit -replace="$part=$part@v0.${kubernetes#1.}"; done
	version="-X k8s.io/component-base/version.gitVersion=v$kubernetes"
	minor="${kubernetes#1.}"
	version+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
	go build -ldflags "-s -w $version" -o "$here/bin/" k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl
)

wrapper etcd
(
	cd "$here/etcd"
	go mod edit -require="go.etcd.io/etcd/server/v3@v$etcd"
	go build -ldflags "-s -w" -o "$here/bin/etcd" go.etcd.io/etcd/server/v3
)
echo "$made" >"$here/bin/made"
