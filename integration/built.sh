#!/usr/bin/env bash
# The path of a test program, which is built if it has to be.
#
#     integration/built.sh NAME [--release]
set -euo pipefail
cargo test --test "$1" "${@:2}" --no-run --message-format=json 2>/dev/null |
	grep '"kind":\["test"\]' | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
