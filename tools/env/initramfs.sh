#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Makes the parts that a host VM's initramfs is put together from, in $LODGE_PARTS: the kernel takes several
# archives one after the other, so a run carries only what it needs.   usage: initramfs.sh PART...
#   base      busybox, init and its helpers          intree    the kernel's own KVM modules, unpacked
#   ours      kvm.ko                                 guest     a stock kernel and an initrd to run as a guest
#   programs  lodge and the selftests                foreign   modules of the tests: some hold the CPUs' virtualization, one makes allocations fail
#   ledger    kvm.ko with the ledger of TLB flushes, in place of `ours`
#   perf      the kernel's perf and its libraries
#   extras    modules of the stock kernel that the selftests load: RAM disks, MSRs
#   kvm-ioctls  the tests of the crate of that name (kvm-ioctls.sh)
#   memtest   memtest86+ as a guest (memtest.sh)
#   qemu      QEMU with its libraries and firmware, as in the Debian root, and drivers for its devices for the guest
. "$(dirname "$0")/lib.sh"

PARTS=$LODGE_PARTS
VM=$LODGE_SRC/tools/env/vm
BIN=$LODGE_CACHE/target/$RUST_TARGET/release
mkdir -p "$PARTS"

# fresh OUTPUT INPUT...: whether OUTPUT was made from these and is newer than each of them and than this script.
fresh() {
    local output=$1 input made_from=$1.from
    shift
    if [ -f "$output" ] && [ "$*" = "$(cat "$made_from" 2>/dev/null)" ]; then
        for input in "$0" "$@"; do
            if [ ! "$output" -nt "$input" ]; then break; fi
        done
        if [ "$output" -nt "$input" ]; then return 0; fi
    fi
    echo "$*" >"$made_from"
    return 1
}

# busybox_tree DIR: busybox under all its names, and the folders that an init mounts on.
busybox_tree() {
    local applet
    mkdir -p "$1"/{bin,dev,proc,sys,tmp,run,root}
    cp "$LODGE_ROOT/bin/busybox" "$1/bin/busybox"
    for applet in $("$LODGE_ROOT/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
    done
    ln -s bin "$1/sbin"
    mknod -m 600 "$1/dev/console" c 5 1
}

# pack DIR OUTPUT: an archive in the kernel's format; appears at once or not at all.
pack() {
    in_root sh -c 'cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible' \
        sh "$(path_in_root "$1")" >"$2.$$"
    mv "$2.$$" "$2"
    rm -rf "$1"
}

# module_without_debug_info KO: four fifths of the file, which Bochs would read from a CD, and the kernel does not use. Symbols stay.
module_without_debug_info() {
    mkdir -p "$work/modules"
    in_root strip --strip-debug -o "$(path_in_root "$work")/modules/kvm.ko" "$(path_in_root "$1")"
}

part_base() {
    fresh "$PARTS/base" "$LODGE_ROOT/bin/busybox" "$VM"/* && return
    busybox_tree "$work"
    cp "$VM/init" "$work/init"
    cp "$VM/load-kvm" "$VM/check-dmesg" "$VM/check-leaks" "$VM/module-tests" "$VM/perf-tests" "$work/bin/"
    pack "$work" "$PARTS/base"
}

part_ours() {
    local ko
    ko=$LODGE_CACHE/module/$(kernel_version)/kvm.ko
    [ -f "$ko" ] || die "there is no $ko: 'make module' builds it"
    fresh "$PARTS/ours" "$ko" && return
    module_without_debug_info "$ko"
    pack "$work" "$PARTS/ours"
}

part_ledger() {
    local ko
    ko=$LODGE_CACHE/module/$(kernel_version)-ledger/kvm.ko
    [ -f "$ko" ] || die "there is no $ko: module.sh --ledger builds it"
    fresh "$PARTS/ledger" "$ko" && return
    module_without_debug_info "$ko"
    pack "$work" "$PARTS/ledger"
}

part_intree() {
    local modules file name
    [ "$KERNEL" = stock ] || die "the $KERNEL kernel was built without its own KVM"
    modules=$(readlink -f "$LODGE_CACHE/kernel/$(kernel_version)/modules")/kernel
    fresh "$PARTS/intree" "$modules"/arch/x86/kvm/kvm.ko* && return
    mkdir -p "$work/modules/intree"
    for file in "$modules"/arch/x86/kvm/kvm{,-amd,-intel}.ko* "$modules"/virt/lib/irqbypass.ko*; do
        name=$(basename "$file" .xz)
        case $file in
        *.xz) in_root xz -dc <"$file" >"$work/modules/intree/$name" ;;
        *) cp "$file" "$work/modules/intree/" ;;
        esac
    done
    pack "$work" "$PARTS/intree"
}

part_foreign() {
    local built
    built=$LODGE_CACHE/module/$(kernel_version)-foreign
    fresh "$PARTS/foreign" "$built"/{kvm-amd,kvm-intel,fail_nth}.ko && return
    mkdir -p "$work/modules/foreign"
    cp "$built"/{kvm-amd,kvm-intel,fail_nth}.ko "$work/modules/foreign/"
    pack "$work" "$PARTS/foreign"
}

part_extras() {
    local modules file
    modules=$(readlink -f "$LODGE_CACHE/kernel/$(kernel_version)/modules")/kernel
    fresh "$PARTS/extras" "$modules" && return
    mkdir -p "$work/modules/extras"
    # What a kernel has built in is not missed. (Its name is used where it is read: that is no second access.)
    # shellcheck disable=SC2094
    for file in "$modules"/drivers/block/brd.ko* "$modules"/arch/x86/kernel/msr.ko*; do
        case $file in
        *.xz) in_root xz -dc <"$file" >"$work/modules/extras/$(basename "$file" .xz)" ;;
        *.ko) cp "$file" "$work/modules/extras/" ;;
        esac
    done
    pack "$work" "$PARTS/extras"
}

part_programs() {
    local program found=()
    for program in lodge selftests compat32; do
        if [ -x "$BIN/$program" ]; then found+=("$BIN/$program"); fi
    done
    fresh "$PARTS/programs" ${found[@]+"${found[@]}"} && return
    mkdir -p "$work/bin"
    if [ ${#found[@]} -gt 0 ]; then cp "${found[@]}" "$work/bin/"; fi
    pack "$work" "$PARTS/programs"
}

part_kvm-ioctls() {
    fresh "$PARTS/kvm-ioctls" "$LODGE_CACHE/kvm-ioctls/tests" "$VM/kvm-ioctls-tests" && return
    install -D "$LODGE_CACHE/kvm-ioctls/tests" "$work/bin/kvm-ioctls"
    cp "$VM/kvm-ioctls-tests" "$work/bin/"
    pack "$work" "$PARTS/kvm-ioctls"
}

part_perf() {
    local lib
    fresh "$PARTS/perf" "$LODGE_ROOT/usr/bin/perf" && return
    install -D "$LODGE_ROOT/usr/bin/perf" "$work/bin/perf"
    for lib in $(in_root ldd /usr/bin/perf | awk '$3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }'); do
        install -D "$LODGE_ROOT$lib" "$work$lib"
    done
    pack "$work" "$PARTS/perf"
}

part_guest() {
    local kernel
    kernel=$LODGE_CACHE/kernel/$(stock_version)/vmlinuz
    fresh "$PARTS/guest" "$kernel" "$VM/guest-init" "$LODGE_ROOT/bin/busybox" && return
    busybox_tree "$work"
    cp "$VM/guest-init" "$work/init"
    pack "$work" "$PARTS/guest-initrd"
    mkdir -p "$work/guest"
    cp "$kernel" "$work/guest/vmlinuz"
    cp "$PARTS/guest-initrd" "$work/guest/initrd"
    pack "$work" "$PARTS/guest"
}

part_memtest() {
    fresh "$PARTS/memtest" "$LODGE_CACHE/memtest/memtest" && return
    install -D "$LODGE_CACHE/memtest/memtest" "$work/guest/memtest"
    pack "$work" "$PARTS/memtest"
}

part_qemu() {
    local binary=/usr/bin/qemu-system-x86_64 modules file
    modules=$(readlink -f "$LODGE_CACHE/kernel/$(stock_version)/modules")/kernel
    fresh "$PARTS/qemu" "$LODGE_ROOT$binary" "$VM"/{qemu-kvm,qemu-guest,qemu-monitor,qemu-tests,guest-devices} "$modules" && return
    # For the guest: drivers, and what uses them.
    mkdir -p "$work"/{bin,modules}
    cp "$VM/guest-devices" "$work/bin/"
    for file in block/virtio_blk net/virtio_net net/net_failover scsi/{scsi_common,scsi_mod,sd_mod} ata/{libata,ata_piix} ../net/core/failover; do
        in_root xz -dc <"$modules/drivers/$file.ko.xz" >"$work/modules/${file##*/}.ko"
    done
    pack "$work" "$PARTS/guest-devices"
    mkdir -p "$work"/{bin,guest,usr/share/qemu}
    cp "$PARTS/guest-devices" "$work/guest/devices"
    cp "$VM"/{qemu-kvm,qemu-guest,qemu-monitor,qemu-tests} "$work/bin/"
    cp "$LODGE_ROOT$binary" "$work/bin/"
    # The loader and the libraries, at the places that the binary names.
    in_root ldd "$binary" | sed -nE 's@.*(=> |^\s*)(/[^ ]+) \(.*@\2@p' | while read -r file; do
        install -D "$LODGE_ROOT$file" "$work$file"
    done
    for file in qemu/{linuxboot_dma.bin,kvmvapic.bin,efi-e1000.rom,efi-virtio.rom} seabios/{bios-256k.bin,vgabios-stdvga.bin}; do
        cp "$LODGE_ROOT/usr/share/$file" "$work/usr/share/qemu/"
    done
    pack "$work" "$PARTS/qemu"
}

exec 9>"$LODGE_CACHE/lock/initramfs"
flock 9
for part in "$@"; do
    work=$PARTS/tree
    rm -rf "$work"
    mkdir -p "$work"
    "part_$part"
done
