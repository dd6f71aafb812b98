#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Fuzzes the instruction emulator with libFuzzer, guided by coverage, for FUZZ_SECONDS (3600). The corpus is kept in the cache, so that the
# next run goes on from there; an input that fails is left beside it, and the last line says where.
. "$(dirname "$0")/lib.sh"
env=$(dirname "$0")

need_root
"$env/root.sh"
# Where the compiler is to count and to compare for the fuzzer: the options of LLVM's "SanitizerCoverage", of which stable Rust can use all that
# need no sanitizer. They are for the target, not for build scripts: hence --target.
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
corpus=$LODGE_CACHE/fuzz/corpus
mkdir -p "$corpus"
build_fuzzer() {
    in_root env RUSTFLAGS="$flags" cargo build --release --manifest-path tools/fuzz/Cargo.toml --locked \
        --target "$RUST_TARGET" --target-dir /cache/target/fuzz
}
rm -f "$LODGE_CACHE/stamp/fuzzer"
step fuzzer "1 minute" "" build_fuzzer
# An input is at most as long as a repeated string instruction has answers for; a single one takes microseconds.
in_root "/cache/target/fuzz/$RUST_TARGET/release/fuzz" -max_total_time="${FUZZ_SECONDS:-3600}" -max_len=4096 -timeout=10 -print_final_stats=1 \
    -artifact_prefix=/cache/fuzz/ /cache/fuzz/corpus
