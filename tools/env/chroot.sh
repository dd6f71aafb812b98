#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Enters the Debian root. Called by in_root (lib.sh) inside a private mount namespace.
set -euo pipefail
: "${LODGE_SRC:?}" "${LODGE_CACHE:?}" "${LODGE_ROOT:?}"
mount -t proc proc "$LODGE_ROOT/proc"
mount --rbind /sys "$LODGE_ROOT/sys"
mount --rbind /dev "$LODGE_ROOT/dev"
mount -t tmpfs tmpfs "$LODGE_ROOT/tmp"
mkdir -p "$LODGE_ROOT/lodge" "$LODGE_ROOT/cache" "$LODGE_CACHE/cargo"
mount --bind "$LODGE_SRC" "$LODGE_ROOT/lodge"
mount --bind "$LODGE_CACHE" "$LODGE_ROOT/cache"
# The machine's way to the registries: its resolver, its certificates, its cargo configuration.
for f in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
    [ -e "$f" ] && [ -e "$LODGE_ROOT$f" ] && mount --bind "$(readlink -f "$f")" "$LODGE_ROOT$f"
done
host_cargo=${CARGO_HOME:-$HOME/.cargo}
for f in config.toml config credentials.toml; do
    if [ -f "$host_cargo/$f" ]; then cp "$host_cargo/$f" "$LODGE_CACHE/cargo/$f"; fi
done
proxies=()
for v in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    if [ -n "${!v:-}" ]; then proxies+=("$v=${!v}"); fi
done
exec chroot "$LODGE_ROOT" /usr/bin/env -i \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM="${TERM:-dumb}" LC_ALL=C.UTF-8 \
    CARGO_HOME=/cache/cargo CARGO_TARGET_DIR=/cache/target ${proxies[@]+"${proxies[@]}"} \
    ${LODGE_ENV:+$LODGE_ENV} /bin/sh -c 'cd /lodge && exec "$@"' sh "$@"
