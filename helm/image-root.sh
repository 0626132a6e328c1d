#!/usr/bin/env bash
# Makes the root folder of the image: the program, the libraries that it is linked with, the folders that are mounted over.
# Nothing else: no shell, no package manager.
#
#     helm/image-root.sh PROGRAM FOLDER
set -euo pipefail

program=$1
root=$2
mkdir -p "$root"/{dev,etc/{namegate,podinfo},proc,run/namegate,sys/fs/bpf,tmp,usr/bin}
mkdir -p "$root"/var/{lib/{cni,namegate},run/namegate/snapshot}
chmod 1777 "$root/tmp"
install -m 755 "$program" "$root/usr/bin/namegate"
# "libelf.so.1 => /lib/x86_64-linux-gnu/libelf.so.1 (0x…)", and the loader without an arrow.
ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
	install -D -m 755 "$library" "$root$library"
done
printf 'root:x:0:0::/:/\nnamegate:x:65532:65532::/:/\n' >"$root/etc/passwd"
printf 'root:x:0:\nnamegate:x:65532:\n' >"$root/etc/group"
