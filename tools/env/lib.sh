# SPDX-License-Identifier: GPL-2.0
# Common ground of the set-up scripts: where things are, and how a step is announced, run once and retried.
# Sourced by the other scripts in this folder; needs bash.

set -euo pipefail

LODGE_SRC=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LODGE_CACHE=${LODGE_CACHE:-$HOME/.cache/lodge}
# The flavour of Debian's kernel that the host VM and the guest run: `cloud-amd64` boots fastest.
LODGE_FLAVOUR=${LODGE_FLAVOUR:-cloud-amd64}
LODGE_ROOT=$LODGE_CACHE/root
LODGE_LOG=$LODGE_CACHE/log
mkdir -p "$LODGE_CACHE" "$LODGE_LOG"

say() { printf 'lodge: %s\n' "$*" >&2; }
die() { printf 'lodge: error: %s\n' "$*" >&2; exit 1; }

# need_root: the root file system and its mounts need root.
need_root() { [ "$(id -u)" = 0 ] || die "this step makes a Debian root and mounts in it: run it as root"; }

# step NAME ESTIMATE KEY COMMAND...: runs COMMAND once for each KEY, its output in a log file.
# The stamp is written only after success, so an interrupted or failed step is done again.
step() {
    local name=$1 estimate=$2 key=$3 stamp=$LODGE_CACHE/stamp/$1 log=$LODGE_LOG/$1.log began pid
    shift 3
    mkdir -p "$LODGE_CACHE/stamp"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then return 0; fi
    say "$name: about $estimate, log in $log"
    began=$(date +%s)
    "$@" >"$log" 2>&1 </dev/null &
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
    say "$name: done in $(($(date +%s) - began)) s"
}

# in_root COMMAND...: runs COMMAND in the Debian root, in a mount namespace of its own, with the checkout at
# /lodge, the cache at /cache and the caller's cargo settings. Nothing stays mounted afterwards.
in_root() {
    LODGE_SRC=$LODGE_SRC LODGE_CACHE=$LODGE_CACHE LODGE_ROOT=$LODGE_ROOT \
        unshare --mount --propagation private "$LODGE_SRC/tools/env/chroot.sh" "$@"
}
