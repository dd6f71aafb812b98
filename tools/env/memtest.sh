#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Fetches Debian's memtest86+ as $LODGE_CACHE/memtest/memtest. Its package is only unpacked: it would install a boot loader's tools, too.
. "$(dirname "$0")/lib.sh"

fetch() {
    rm -rf "$LODGE_CACHE/memtest"
    mkdir -p "$LODGE_CACHE/memtest"
    in_root sh -c 'apt-get update && cd /cache/memtest && apt-get -o APT::Sandbox::User=root download memtest86+ && dpkg-deb -x memtest86+_*.deb .'
    mv "$LODGE_CACHE/memtest/boot/memtest86+x64.bin" "$LODGE_CACHE/memtest/memtest"
}

"$(dirname "$0")/root.sh"
step memtest "5 seconds" "$(declare -f fetch | sha256sum)" fetch
