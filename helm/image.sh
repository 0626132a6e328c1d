#!/usr/bin/env bash
# What the Dockerfile does, without Docker: makes the image's root folder and starts namegate in it as the chart does, under
# chroot in a network namespace of its own, with a root folder that can't be written, and the chart's capabilities and no
# others. As root. Leaves nothing behind.
#
#     helm/image.sh [PROGRAM]      PROGRAM: the built namegate; target/debug/namegate unless given
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --inside ]; then
	# In a mount namespace of its own, that ends with the script.
	root=$2 namespace=$3
	mount --bind "$root" "$root"
	mount -t proc proc "$root/proc"
	[ "${4:-}" = without-sys ] || mount -t sysfs -o ro sysfs "$root/sys"
	mount -t bpf bpf "$root/sys/fs/bpf" -o mode=0700
	for folder in var/lib/namegate run/namegate var/run/namegate/snapshot tmp; do
		mount -t tmpfs -o mode=0755 tmpfs "$root/$folder"
	done
	cp config/demo/*.yaml "$root/var/run/namegate/snapshot/"
	# What takes capabilities away has to be inside: it is the last to run before namegate. A container runtime does that.
	mkdir "$root/tmp/tools"
	helm/image-root.sh "$(command -v setpriv)" "$root/tmp/tools" && mv "$root/tmp/tools/usr/bin/namegate" "$root/tmp/setpriv"
	cp -rn "$root/tmp/tools/lib" "$root/tmp/lib" && rm -rf "$root/tmp/tools"
	mount -o remount,bind,ro "$root"
	inside() { nsenter --net="/run/netns/$namespace" chroot "$root" "$@"; }
	own=$(dirname "$(find "$root/tmp/lib" -name 'libcap-ng*' | head -n 1)")
	# As they stand in the chart.
	capabilities=$(sed -n 's/^ *- \(BPF\|NET_ADMIN\|PERFMON\)$/,+\L\1/p' helm/namegate/templates/daemonset.yaml | tr -d '\n')
	inside /usr/bin/env true 2>/dev/null && { echo "the image has more than namegate"; exit 1; }
	# Becomes namegate, so that the number is namegate's.
	LD_LIBRARY_PATH="${own#"$root"}" nsenter --net="/run/netns/$namespace" chroot "$root" \
		/tmp/setpriv "--bounding-set=-all$capabilities" --inh-caps=-all --no-new-privs \
		/usr/bin/namegate node --snapshot /var/run/namegate/snapshot --node-name demo-node --metrics 127.0.0.1:9965 &
	node=$!
	trap 'kill -KILL "$node" 2>/dev/null || true' EXIT
	inside /usr/bin/namegate ready --wait --timeout 30s
	[ "$(nsenter --net="/run/netns/$namespace" curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:9965/readyz)" = 200 ]
	# BPF 39, PERFMON 38, NET_ADMIN 12.
	grep -q '^CapEff:	000000c000001000$' "/proc/$node/status" || { grep Cap "/proc/$node/status"; exit 1; }
	grep -q '^NoNewPrivs:	1$' "/proc/$node/status"
	touch "$root/etc/written" 2>/dev/null && { echo "the root folder can be written"; exit 1; }
	inside /usr/bin/namegate status >/dev/null
	# Counters are looked at every second.
	sleep 3
	inside /usr/bin/namegate ready
	kill -TERM "$node"
	wait "$node"
	exit 0
fi

if [ "$(id -u)" != 0 ]; then
	echo "ignored: not root, so no chroot"
	exit 77
fi
target_dir=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
program=${1:-$target_dir/debug/namegate}
root=$(mktemp -d)
namespace=namegate-image-$$
trap 'ip netns delete "$namespace" 2>/dev/null; rm -rf "$root"' EXIT
helm/image-root.sh "$program" "$root"
echo "the image has $(find "$root" -type f | wc -l) files:"
(cd "$root" && find . -type f | sort)
chroot "$root" /usr/bin/namegate --version
ip netns add "$namespace"
ip -n "$namespace" link set lo up
unshare --mount --propagation private "$0" --inside "$root" "$namespace"
# How many CPUs there are stands in /sys: without it some figures are missing, and nothing else.
unshare --mount --propagation private "$0" --inside "$root" "$namespace" without-sys
echo "namegate node was ready under chroot with the chart's capabilities"
