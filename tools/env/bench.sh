#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Measures our module and the kernel's own KVM in the same kind of VM, where an instruction is a tick of the TSC, and prints the
# table: ours, in-tree, ratio, target.   VENDOR= as for `make test`; MEASURE=ours measures ours alone against the last in-tree run.
. "$(dirname "$0")/lib.sh"
env=$(dirname "$0")

# code FILE: bytes of machine code in an object file.
code() {
    local size total=0
    for size in $(in_root objdump -h "$(path_in_root "$1")" | awk '$1 ~ /^[0-9]+$/ { size = $3 } /CODE/ { print size }'); do
        total=$((total + 16#$size))
    done
    echo "$total"
}

# text MODULE: the rows about the size of the modules' code.
text() {
    local vendor file dir=$LODGE_CACHE/run/bench common name
    for vendor in amd intel; do
        if [ "$1" = ours ]; then
            name=$(code "$LODGE_CACHE/module/$(kernel_version)/kvm.ko")
        else
            mkdir -p "$dir"
            for file in kvm "kvm-$vendor"; do
                in_root xz -dc "/lib/modules/$(kernel_version)/kernel/arch/x86/kvm/$file.ko.xz" >"$dir/$file.ko"
            done
            common=$(code "$dir/kvm.ko")
            name=$((common + $(code "$dir/kvm-$vendor.ko")))
        fi
        printf 'BENCH\ttext: kvm.ko against kvm and kvm-%s\t%s\n' "$vendor" "$name"
    done
}

# measure VENDOR MODULE
measure() {
    local log=$LODGE_LOG/bench-$1-$2.log icount=
    if [ "$1" = amd ]; then icount=--icount; fi
    "$env/vm.sh" --vendor "$1" --module "$2" --smp 1 $icount --parts programs --timeout 1200 --log "$log.vm" \
        "selftests bench" >"$log.new" || return
    text "$2" >>"$log.new"
    mv "$log.new" "$log"
}

if [ "${1:-}" = --measure ]; then
    measure "$2" "$3"
    exit
fi
need_root
for vendor in ${VENDOR:-amd}; do
    say "measuring on $vendor"
    # shellcheck disable=SC2086 # words
    printf '%s\n' ${MEASURE:-ours intree} | xargs -P "$(nproc)" -I '{}' "$0" --measure "$vendor" '{}' ||
        die "not every measurement was made; see $LODGE_LOG/bench-$vendor-*.log.vm"
    echo "$vendor, $(kernel_version), $(date -u +%F)"
    "$LODGE_CACHE/target/$RUST_TARGET/release/selftests" bench-table \
        "$LODGE_LOG/bench-$vendor-ours.log" "$LODGE_LOG/bench-$vendor-intree.log"
done
