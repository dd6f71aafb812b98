# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Common ground of the set-up scripts: where things are, and how a step is announced, run once and retried.
# Sourced by the other scripts in this folder; needs bash.

set -euo pipefail

LODGE_SRC=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LODGE_CACHE=${LODGE_CACHE:-$HOME/.cache/lodge}
# The flavour of Debian's kernel that the host VM and the guest run: `cloud-amd64` boots fastest.
LODGE_FLAVOUR=${LODGE_FLAVOUR:-cloud-amd64}
# User-space programs are linked statically, so that they run in a VM that has nothing else.
export RUST_TARGET=x86_64-unknown-linux-gnu
mkdir -p "$LODGE_CACHE"
LODGE_CACHE=$(cd "$LODGE_CACHE" && pwd)
LODGE_ROOT=$LODGE_CACHE/root
LODGE_LOG=$LODGE_CACHE/log
# The parts of the host VM's initramfs.
LODGE_PARTS=$LODGE_CACHE/vm
# KERNEL=debug: the kernel of debug-kernel.sh in place of the stock one, to build for and in the host VM. What belongs to it
# has its own place, so that both can be used at the same time.
export KERNEL=${KERNEL:-stock}
if [ "$KERNEL" != stock ]; then LODGE_LOG=$LODGE_LOG/$KERNEL LODGE_PARTS=$LODGE_PARTS/$KERNEL; fi
mkdir -p "$LODGE_LOG" "$LODGE_CACHE/stamp" "$LODGE_CACHE/lock"
# What a compiler, objtool or modpost calls a warning in a build log.
export WARNING='(^|[^a-z-])[Ww]arning(:|\[)|WARNING|objtool: '

say() { printf 'lodge: %s\n' "$*" >&2; }
die() { printf 'lodge: error: %s\n' "$*" >&2; exit 1; }

# need_root: the root file system and its mounts need root.
need_root() { [ "$(id -u)" = 0 ] || die "this step makes a Debian root and mounts in it: run it as root"; }

# step NAME ESTIMATE KEY COMMAND...: runs COMMAND once for each KEY, its output in a log file.
# The stamp is written only after success, so an interrupted or failed step is done again.
step() {
    local name=$1 estimate=$2 key=$3 stamp=$LODGE_CACHE/stamp/$1 log=$LODGE_LOG/$1.log began pid
    shift 3
    exec 8>"$LODGE_CACHE/lock/$name"
    flock -n 8 || { say "$name: another process is at it, waiting"; flock 8; }
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then exec 8>&-; return 0; fi
    say "$name: about $estimate, log in $log"
    began=$(date +%s)
    "$@" >"$log" 2>&1 </dev/null 8>&- &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if [ -t 2 ]; then printf '\rlodge: %s: %ss ' "$name" "$(($(date +%s) - began))" >&2; fi
    done
    if [ -t 2 ]; then printf '\r' >&2; fi
    if ! wait "$pid"; then
        tail -n 25 "$log" >&2
        die "step '$name' failed; the whole log is $log; the same command tries it again"
    fi
    printf '%s' "$key" >"$stamp"
    exec 8>&-
    say "$name: done in $(($(date +%s) - began)) s"
}

# in_root COMMAND...: runs COMMAND in the Debian root, in a mount namespace of its own, with the checkout at
# /lodge, the cache at /cache and the caller's cargo settings. Nothing stays mounted afterwards.
in_root() {
    env LODGE_SRC="$LODGE_SRC" LODGE_CACHE="$LODGE_CACHE" LODGE_ROOT="$LODGE_ROOT" \
        unshare --mount --propagation private "$LODGE_SRC/tools/env/chroot.sh" "$@"
}

# path_in_root PATH: where a path of the checkout or the cache is seen in the root.
path_in_root() {
    case $1 in
    "$LODGE_CACHE"/*) echo "/cache/${1#"$LODGE_CACHE/"}" ;;
    "$LODGE_SRC") echo /lodge ;;
    "$LODGE_SRC"/*) echo "/lodge/${1#"$LODGE_SRC/"}" ;;
    *) die "$1 is neither in the checkout nor in $LODGE_CACHE" ;;
    esac
}

# stock_version: the release of Debian's kernel that the guest runs, and the host VM too.
stock_version() { readlink "$LODGE_CACHE/kernel/current"; }

# kernel_version: the folder in $LODGE_CACHE/kernel of the kernel that the host VM runs and that we build for.
kernel_version() {
    case $KERNEL in
    stock) stock_version ;;
    debug) echo "$(stock_version)-debug" ;;
    *) die "KERNEL is stock or debug, not '$KERNEL'" ;;
    esac
}

# need_kernel VER: makes Debian's VER, or, if that is empty, the kernel in use.
need_kernel() {
    "$LODGE_SRC/tools/env/kernel.sh" ${1:+"$1"}
    if [ "$KERNEL" != stock ] && [ -z "$1" ]; then "$LODGE_SRC/tools/env/$KERNEL-kernel.sh"; fi
}
