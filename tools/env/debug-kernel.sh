#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds the debug kernel (debug.config) from the source of the kernel in use, with Clang, which Rust together with KASAN
# needs. The result is $LODGE_CACHE/kernel/$VER-debug, with the same things in it as a stock kernel's folder has, but for the
# kernel's own KVM.
. "$(dirname "$0")/lib.sh"

FRAGMENT=$LODGE_SRC/tools/env/debug.config
ARGS=(ARCH=x86_64 LLVM=-19)

# lacking CONFIG: the required lines of the fragment that a configuration does not have.
lacking() { sed -n 's/ *# required$//p' "$FRAGMENT" | grep -vxFf "$1" || true; }

build_debug_kernel() {
    local ver=$1 name=$1-debug source dir lacking
    source=/cache/kernel/linux-source-$(echo "$ver" | grep -oE '^7\.[0-9]+')/$ver
    dir=$LODGE_CACHE/kernel/$name
    # A build that was broken off goes on; another configuration rebuilds what it has to.
    mkdir -p "$dir/build"
    rm -f "$dir/kbuild-args"
    # It has no modules of its own.
    mkdir -p "$dir/modules"
    sed 's/ *# required$//' "$FRAGMENT" >"$dir/fragment"
    in_root make -C "$source" O="/cache/kernel/$name/build" "${ARGS[@]}" \
        KCONFIG_ALLCONFIG="/cache/kernel/$name/fragment" allnoconfig
    lacking=$(lacking "$dir/build/.config")
    [ -z "$lacking" ] || die "the configuration lacks: $(echo "$lacking" | tr '\n' ' ')"
    # Its own modules, which are KVM, are left out: they take as long as a fifth of the rest.
    in_root make -C "$source" O="/cache/kernel/$name/build" "${ARGS[@]}" -j"$(nproc)" bzImage modules_prepare
    cp "$dir/build/vmlinux.symvers" "$dir/build/Module.symvers"
    cp "$dir/build/arch/x86/boot/bzImage" "$dir/vmlinuz"
    echo "${ARGS[*]}" >"$dir/kbuild-args"
}

need_root
"$(dirname "$0")/root.sh"
"$(dirname "$0")/kernel.sh"
ver=$(readlink "$LODGE_CACHE/kernel/current")
key=$( (declare -f build_debug_kernel && echo "${ARGS[*]}" && grep -v '^#' "$FRAGMENT") | sha256sum | cut -c1-16)
step "debug-kernel-$ver" "25 minutes" "$key" build_debug_kernel "$ver"
