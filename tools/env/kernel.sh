#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Resolves the newest 7.x kernel of trixie-backports, installs image, headers and source in the root and regenerates
# the Rust metadata that Debian's headers package leaves out. The result is $LODGE_CACHE/kernel/$VER:
#   build   the prepared output tree to hand to Kbuild as its first -C      vmlinuz, modules   the stock kernel
# and $LODGE_CACHE/kernel/current, a link to the one in use.
#   usage: kernel.sh [VER]           or kernel.sh --previous: prints the newest kernel of the series before, if there is one
. "$(dirname "$0")/lib.sh"

KERNELS=$LODGE_CACHE/kernel
mkdir -p "$KERNELS"

# kernels: the linux-image-7.* of our flavour that the archive has, in order.
kernels() {
    in_root apt-cache search --names-only "^linux-image-7\.[0-9.]+\+deb13-$LODGE_FLAVOUR\$" |
        awk '{ sub(/^linux-image-/, "", $1); print $1 }' | sort -V
}

newest_kernel() { kernels | tail -n 1; }

# previous_kernel VER: the newest of an older series than VER's whose source is still there.
previous_kernel() {
    local ver series found=
    for ver in $(kernels); do
        series=$(echo "$ver" | grep -oE '^7\.[0-9]+')
        case $1 in "$series".*) break ;; esac
        if [ -n "$(in_root apt-cache search --names-only "^linux-source-$series\$")" ]; then found=$ver; fi
    done
    echo "$found"
}

# kbuild_args VER: what makes configuration and vermagic match the stock kernel's.
kbuild_args() {
    echo "ARCH=x86_64 CROSS_COMPILE=x86_64-linux-gnu- CC=x86_64-linux-gnu-gcc-14 KERNELRELEASE=$1"
}

install_kernel() {
    local ver=$1 series
    series=$(echo "$ver" | grep -oE '^7\.[0-9]+')
    # A kernel's post-installation hooks would build an initramfs and run a boot loader: neither is wanted here.
    in_root sh -c "mkdir -p /etc/kernel/postinst.d && chmod -x /etc/kernel/postinst.d/* 2>/dev/null
        apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        -t trixie-backports linux-image-$ver linux-headers-$ver linux-source-$series"
}

prepare_kernel() {
    local ver=$1 series source dir=$KERNELS/$1
    series=$(echo "$ver" | grep -oE '^7\.[0-9]+')
    rm -rf "$dir"
    mkdir -p "$dir/build"
    # The source has to be that of the kernel: the metadata goes by its sizes and layouts.
    source=$(in_root dpkg-query -W -f '${Version}' "linux-source-$series")
    [ "${source%%-*}" = "${ver%%[-+]*}" ] || die "the source package is $source, which is not that of $ver"
    if [ ! -d "$KERNELS/linux-source-$series/$ver" ]; then
        rm -rf "$KERNELS/linux-source-$series/$ver.new"
        mkdir -p "$KERNELS/linux-source-$series/$ver.new"
        in_root tar -xf "/usr/src/linux-source-$series.tar.xz" -C "/cache/kernel/linux-source-$series/$ver.new" --strip-components=1
        mv "$KERNELS/linux-source-$series/$ver.new" "$KERNELS/linux-source-$series/$ver"
    fi
    cp "$LODGE_ROOT/boot/vmlinuz-$ver" "$dir/vmlinuz"
    ln -sfn "../../root/lib/modules/$ver" "$dir/modules"
    cp "$LODGE_ROOT/boot/config-$ver" "$dir/build/.config"
    cp "$LODGE_ROOT/usr/src/linux-headers-$ver/Module.symvers" "$dir/build/"
    # shellcheck disable=SC2046
    in_root make -C "/cache/kernel/linux-source-$series/$ver" O="/cache/kernel/$ver/build" $(kbuild_args "$ver") \
        -j"$(nproc)" olddefconfig prepare modules_prepare
    grep -q '^CONFIG_RUST=y' "$dir/build/.config" || die "the prepared configuration has no CONFIG_RUST=y"
    # `prepare` may rewrite it: the stock kernel's exports are what our module links against.
    cp "$LODGE_ROOT/usr/src/linux-headers-$ver/Module.symvers" "$dir/build/"
    kbuild_args "$ver" >"$dir/kbuild-args"
}

need_root
key=$(declare -f install_kernel prepare_kernel kbuild_args | sha256sum | cut -c1-16)
if [ "${1:-}" = --previous ]; then
    step lists "10 seconds" "" in_root apt-get update
    previous_kernel "$(stock_version)"
    exit
elif [ $# -ge 1 ]; then
    ver=$1
elif [ -f "$LODGE_CACHE/stamp/kernel-choice" ]; then
    ver=$(cat "$KERNELS/choice")
else
    step lists "10 seconds" "" in_root apt-get update
    ver=$(newest_kernel)
    [ -n "$ver" ] || die "trixie-backports has no linux-image-7.* of flavour $LODGE_FLAVOUR"
    echo "$ver" >"$KERNELS/choice"
    touch "$LODGE_CACHE/stamp/kernel-choice"
    say "the newest kernel is $ver"
fi
case $ver in 7.*+deb13-*) ;; *) die "'$ver' is not one of Debian's 7.x kernels for trixie; for a self-built kernel use KDIR=" ;; esac
step "kernel-$ver" "1 minute (plus the download)" "$key" install_kernel "$ver"
step "metadata-$ver" "2 minutes" "$key" prepare_kernel "$ver"
if [ $# = 0 ]; then ln -sfn "$ver" "$KERNELS/current"; fi
