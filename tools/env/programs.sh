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
# A 32-bit program of our own, for the other way into the kernel; it takes nothing but the kernel's headers.
case " $* " in *' selftests '*) ;; *) exit ;; esac
if ! in_root gcc -m32 -O1 -Wall -Werror -static -nostdlib -ffreestanding -fno-pie -no-pie -fno-stack-protector \
    -I/usr/include/x86_64-linux-gnu -o "/cache/target/$RUST_TARGET/release/compat32" selftests/compat/compat32.c >"$log" 2>&1; then
    cat "$log" >&2
    die "the 32-bit program did not build; the log is $log"
fi
