#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds the user-space programs, linked statically, into $LODGE_CACHE/target.   usage: programs.sh [PACKAGE...]
. "$(dirname "$0")/lib.sh"

"$(dirname "$0")/root.sh"
if [ $# = 0 ]; then set -- lodge selftests; fi
args=()
for package in "$@"; do args+=(-p "$package"); done
log=$LODGE_LOG/programs.log
say "building $*"
# Only what cargo compiles is worth a line each; the target is named so that build scripts are not linked statically too.
if ! LODGE_ENV="CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS=-Ctarget-feature=+crt-static" \
    in_root cargo build --release --target "$RUST_TARGET" "${args[@]}" >"$log" 2>&1; then
    cat "$log" >&2
    die "the programs did not build; the log is $log"
fi
