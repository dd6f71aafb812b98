#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Compares our module with the kernel's own KVM: the deterministic tests record every call on each of them, in the
# same kind of VM; a difference that doc/errata.md does not explain fails.   VENDOR= and T= as for `make test`.
. "$(dirname "$0")/lib.sh"
env=$(dirname "$0")

# record VENDOR MODULE: the calls and their results, in a file of their own.
record() {
    local log=$LODGE_LOG/ab-$1-$2.log status=0
    "$env/vm.sh" --vendor "$1" --module "$2" --parts programs --smp 1 --timeout 1800 --log "$log.vm" \
        "selftests ab ${T:-}" >"$log" 2>&1 || status=$?
    # Status 1 is that of tests that failed: what they recorded is to be compared all the same.
    case $status in 0 | 1) ;; *) say "the run on $1 with $2 ended with status $status; console in $log" && return 1 ;; esac
}

if [ "${1:-}" = --record ]; then
    record "$2" "$3"
    exit
fi
need_root
vendors=${VENDOR:-amd intel amd-bochs}
for vendor in $vendors; do printf '%s %s\n' "$vendor" ours "$vendor" intree; done |
    xargs -P "$(nproc)" -L 1 "$0" --record || die "not every record was made"
# A rule that explains nothing is a mistake only where all was compared.
pairs=() all=()
[ -n "${VENDOR:-}${T:-}" ] || all=(--all)
for vendor in $vendors; do pairs+=("$LODGE_LOG/ab-$vendor-intree.log" "$LODGE_LOG/ab-$vendor-ours.log"); done
"$LODGE_CACHE/target/$RUST_TARGET/release/selftests" ab-diff "${all[@]}" "$LODGE_SRC/doc/errata.md" "${pairs[@]}"
