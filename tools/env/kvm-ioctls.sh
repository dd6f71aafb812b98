#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds the tests that the crate `kvm-ioctls` carries, linked statically, as $LODGE_CACHE/kvm-ioctls/tests. The crate is the one that
# our Cargo.lock names, by version and checksum; what its tests need besides is pinned by the crate's own Cargo.lock.
. "$(dirname "$0")/lib.sh"

OUT=$LODGE_CACHE/kvm-ioctls
pinned=$(grep -A3 -x 'name = "kvm-ioctls"' "$LODGE_SRC/Cargo.lock")
version=$(echo "$pinned" | sed -n 's/^version = "\(.*\)"$/\1/p')

build_tests() {
    local built source
    rm -rf "$OUT"
    mkdir -p "$OUT"
    in_root cargo fetch --locked --target "$RUST_TARGET"
    # A copy: cargo builds the tests of a package of its own only, not of one that another depends on.
    source=("$LODGE_CACHE"/cargo/registry/src/*/"kvm-ioctls-$version")
    cp -r "${source[0]}" "$OUT/source"
    LODGE_ENV="CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS=-Ctarget-feature=+crt-static" \
        in_root cargo test --no-run --locked --target "$RUST_TARGET" --manifest-path /cache/kvm-ioctls/source/Cargo.toml \
        --target-dir /cache/kvm-ioctls/target 2>&1 | tee "$OUT/log"
    built=$(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$OUT/log")
    in_root strip --strip-debug -o /cache/kvm-ioctls/tests "$built"
    rm -rf "$OUT/target"
}

"$(dirname "$0")/root.sh"
step kvm-ioctls "30 seconds" "$(echo "$pinned" "$(declare -f build_tests)" | sha256sum)" build_tests
