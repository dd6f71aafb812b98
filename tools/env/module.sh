#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds kvm.ko outside of the checkout, in $LODGE_CACHE/module/VER, and copies it to the top of the checkout.
#   usage: [KVER=VER | KDIR=BUILD-TREE] [M=SOURCE-FOLDER] module.sh [--fresh | --ledger] [--lint VARIABLE=VALUE...]
# KVER   an installed Debian kernel of the 7.x series; without it, the kernel that the host VM runs
# KDIR   the build tree of a self-built kernel; outside of our cache it is used with this machine's own compilers
# --fresh builds everything anew, so that the log holds every warning; --lint does so in a folder of its own, with
# further variables for Kbuild. --ledger builds the module for the test suite `ledger`, in a folder of its own too.
. "$(dirname "$0")/lib.sh"
env=$(dirname "$0")

fresh='' lint=''
case ${1:-} in
--fresh) fresh=1 && shift ;;
--lint) fresh=1 lint=-lint && shift ;;
--ledger) lint=-ledger && set -- LODGE_LEDGER=y ;;
esac
if [ -n "${KDIR:-}" ]; then
    KDIR=$(realpath "$KDIR")
    name=$(cat "$KDIR/include/config/kernel.release" 2>/dev/null) || die "KDIR=$KDIR is no prepared kernel build tree"
else
    need_root
    "$env/root.sh"
    need_kernel "${KVER:-}"
    name=${KVER:-$(kernel_version)}
    KDIR=$LODGE_CACHE/kernel/$name/build
fi
grep -q '^CONFIG_RUST=y' "$KDIR/.config" || die "the kernel of $KDIR was built without CONFIG_RUST=y"

source=${M:-$LODGE_SRC}
# A module other than ours, such as a helper of the tests, gets a folder of its own.
if [ "$source" != "$LODGE_SRC" ]; then name=$name-$(basename "$source"); fi
name=$name$lint
out=$LODGE_CACHE/module/$name
log=$LODGE_LOG/module-$name.log
mkdir -p "$LODGE_CACHE/module" "$LODGE_CACHE/lock"

# The first -C and everything after it as make wants it, in the root or with the machine's tools.
build() {
    if [ "${KDIR#"$LODGE_CACHE/"}" = "$KDIR" ]; then
        make -C "$KDIR" M="$source" MO="$out" -j"$(nproc)" "$@" modules
    else
        local tree=${KDIR#"$LODGE_CACHE/"} args=
        if [ -f "$KDIR/../kbuild-args" ]; then args=$(cat "$KDIR/../kbuild-args"); fi
        # shellcheck disable=SC2086 # the arguments are words
        in_root make -C "/cache/$tree" M="$(path_in_root "$source")" MO="/cache/module/$name" \
            $args -j"$(nproc)" "$@" modules
    fi
}

exec 9>"$LODGE_CACHE/lock/module-$name"
flock 9
if [ -n "$fresh" ]; then rm -rf "$out"; fi
mkdir -p "$out"
if ! build "$@" >"$log.new" 2>&1 9>&-; then
    cat "$log.new" >&2
    mv "$log.new" "$log"
    die "kvm.ko did not build for $name; the log is $log"
fi
# A build that found everything up to date says nothing new: keep the log of the one that compiled.
if [ -n "$fresh" ] || grep -qE '^ +(RUSTC|CC|AS|LD) ' "$log.new"; then mv "$log.new" "$log"; else rm "$log.new"; fi
if [ "$source" = "$LODGE_SRC" ] && [ -z "$lint" ]; then
    warnings=$(grep -cE "$WARNING" "$log" || true)
    if [ "$warnings" != 0 ]; then say "the build gave $warnings warnings; they are in $log"; fi
    cmp -s "$out/kvm.ko" "$LODGE_SRC/kvm.ko" || cp "$out/kvm.ko" "$LODGE_SRC/kvm.ko"
    say "kvm.ko for $name is built"
fi
