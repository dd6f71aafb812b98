#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Runs a command in a host VM: a stock Debian kernel (or KERNEL=debug) on an emulator that emulates virtualization.
#   usage: vm.sh [OPTION...] [COMMAND]       (a line for the VM's shell)
#   --vendor NAME    amd (QEMU, the default), intel, intel-haswell, intel-lynnfield, amd-bochs, amd-bochs-spec, or any CPU model of Bochs
#   --module NAME    ours (the default), intree or none      --parts "P..."  further parts: programs guest ours intree
#   --smp N          CPUs for guests (2 on QEMU, 1 on Bochs) --cpu MODEL     QEMU's CPU (EPYC,+svm,+npt)
#   --memory MB      memory (2048, on Bochs 1024)            --icount        QEMU: one instruction is one nanosecond
#   --timeout SEC    time limit (300, on Bochs 600)          --log FILE      where the copy of the console goes
#   --append WORDS   added to the kernel's command line      --file SRC:DST  puts a file into the VM
#   --plugin SPEC    a plugin for QEMU
#   --disk MB        QEMU: an empty disk, /dev/nvme0n1, gone afterwards
#   --rom FILE       an option ROM for the firmware to run        --expect RE   the command ends the machine: what the console has to
#                    show, and that the emulator ends by itself, decides instead of the command's status
#   LODGE_BOCHS=     another Bochs: the one of bochs.sh
#   --interactive    the console is this terminal, and there is no time limit (QEMU)
# Exits with the command's status as the VM's init reports it on its serial line; 98 if the VM never got there (crash, hang),
# 99 if the command succeeded but the kernel's log shows trouble. What the emulator returns does not count.
. "$(dirname "$0")/lib.sh"

vendor=amd module=ours parts='' smp='' cpu=EPYC,+svm,+npt memory='' icount='' limit='' log='' append='' interactive='' plugin='' disk='' rom='' expect='' files=()
while [ $# -gt 0 ]; do
    case $1 in
    --vendor | --module | --parts | --smp | --cpu | --memory | --log | --append | --plugin | --disk | --rom | --expect) declare "${1#--}=$2" && shift ;;
    --timeout) limit=$2 && shift ;;
    --file) files+=("$2") && shift ;;
    --icount | --interactive) declare "${1#--}=1" ;;
    --) shift && break ;;
    -*) die "vm.sh: unknown option $1" ;;
    *) break ;;
    esac
    shift
done
command=${1:-true}

case $vendor in
amd) model= ;;
intel) model=corei7_icelake_u ;;
intel-haswell) model=corei7_haswell_4770 ;;
intel-lynnfield) model=corei5_lynnfield_750 ;;
amd-bochs) model=ryzen ;;
amd-bochs-spec) model='ryzen, add_features=sca_mitigations' ;;
*) model=$vendor ;;
esac
if [ -z "$limit" ]; then if [ -n "$model" ]; then limit=600; else limit=300; fi; fi
need_root
log=${log:-$LODGE_LOG/vm-$vendor.log}
mkdir -p "$LODGE_CACHE/run"
run=$(mktemp -d "$LODGE_CACHE/run/$vendor.XXXXXX")
trap 'rm -rf "$run"' EXIT
dir=$(path_in_root "$run")
kernel=$LODGE_CACHE/kernel/$(kernel_version)/vmlinuz

# QEMU's CPU 0 runs no guest where there are others: each XRSTOR of another CPU writes that CPU's flags without a lock
# (cpu_clear_ignne), and undoes what a world switch there changes in them (doc/errata.md).
spare=''
if [ -z "$model$icount" ] && [ "${smp:-2}" -gt 1 ]; then spare=1; fi

# The job: what is different in this run, as the last part of the initramfs.
case $module in none) ;; *) parts="$parts $module" ;; esac
mkdir -p "$run/tree/job"
printf 'LODGE_MODULE=%s\nLODGE_INTERACTIVE=%s\nLODGE_SPARE_CPU=%s\n' "$module" "$interactive" "$spare" >"$run/tree/job/env"
# The job sees what the emulator is, also where the kernel does not show whose ACPI tables these are.
printf 'export LODGE_EMULATOR=%s\n' "$(if [ -n "$model" ]; then echo bochs; else echo qemu; fi)" >>"$run/tree/job/env"
if [ -n "$model" ] && [ -n "${LODGE_BOCHS:-}" ]; then echo 'export LODGE_TAGGED_TLB=1' >>"$run/tree/job/env"; fi
printf '%s\n' "$command" >"$run/tree/job/run"
for file in ${files[@]+"${files[@]}"}; do install -D "${file%%:*}" "$run/tree/${file#*:}"; done
# shellcheck disable=SC2046,SC2086 # the parts are words
set -- $(printf '%s\n' base $parts | awk '!seen[$0]++')
"$(dirname "$0")/initramfs.sh" "$@"
(cd "$LODGE_PARTS" && cat "$@") >"$run/initrd"
in_root sh -c 'cd "$1/tree" && find . -mindepth 1 | cpio --quiet -o -H newc -R 0:0' sh "$dir" >>"$run/initrd"

# The crypto self-tests would go on beside the tests for seconds. Linux 7.3's watchdog of the time-stamp counter can stop a kernel
# that boots (doc/errata.md).
cmdline="console=ttyS0 panic=-1 oops=panic quiet loglevel=3 cryptomgr.notests tsc=nowatchdog log_buf_len=1M $append"

# What the CPU model has and TCG does not: known, and not a problem.
NOISE="TCG doesn't support requested feature"

run_qemu() {
    # The shadow of KASAN takes an eighth, its quarantine and kmemleak their share.
    if [ "$KERNEL" = debug ]; then memory=${memory:-3072}; fi
    local args=(-accel tcg -machine q35 -cpu "$cpu" -smp "$((${smp:-2} + ${spare:-0}))" -m "${memory:-2048}"
        -nodefaults -no-user-config -vga none -display none -no-reboot
        -kernel "$(path_in_root "$kernel")" -initrd "$dir/initrd" -append "$cmdline")
    if [ -n "$rom" ]; then args+=(-option-rom "$dir/rom"); fi
    if [ -n "$icount" ]; then args+=(-icount "shift=0,sleep=off" -smp 1); fi
    if [ -n "$plugin" ]; then args+=(-plugin "$plugin"); fi
    if [ -n "$disk" ]; then
        truncate -s "${disk}M" "$run/disk"
        args+=(-drive "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file=$dir/disk" -device "nvme,drive=disk,serial=disk")
    fi
    if [ -n "$interactive" ]; then
        in_root qemu-system-x86_64 "${args[@]}" -chardev stdio,mux=on,signal=off,id=tty -serial chardev:tty -mon tty \
            2> >(grep -v "$NOISE" >&2)
    else
        rm -f "$run"/monitor.*
        mkfifo "$run/monitor.in" "$run/monitor.out"
        in_root timeout -k 5 "$limit" qemu-system-x86_64 "${args[@]}" -serial stdio \
            -chardev "pipe,id=monitor,path=$dir/monitor" -mon chardev=monitor </dev/null \
            2> >(grep -v "$NOISE" >&2)
    fi
}

run_bochs() {
    local iso=$run/iso
    mkdir -p "$iso"
    cp "$kernel" "$iso/vmlinuz"
    mv "$run/initrd" "$iso/initrd"
    cp "$LODGE_ROOT/usr/lib/ISOLINUX/isolinux.bin" "$LODGE_ROOT/usr/lib/syslinux/modules/bios/ldlinux.c32" "$iso/"
    # Without ACPI's reset register a reboot is a triple fault, and that ends Bochs.
    printf 'DEFAULT l\nLABEL l\nKERNEL vmlinuz\nINITRD initrd\nAPPEND %s reboot=t\n' "$cmdline" >"$iso/isolinux.cfg"
    in_root xorriso -as mkisofs -quiet -o "$dir/boot.iso" -b isolinux.bin -c boot.cat \
        -no-emul-boot -boot-load-size 4 -boot-info-table "$dir/iso" >"$run/xorriso.log" 2>&1 || die "no ISO: $(cat "$run/xorriso.log")"
    rm -rf "$iso"
    # Bochs has no DEBUGCTL: one that keeps what is written to its lower 16 bits. (Number, 0, initial value, reserved bits, ignored ones.)
    echo "0x1d9 0 00000000 00000000 ffffffff ffff0000 00000000 00000000" >"$run/msrs"
    cat >"$run/bochsrc" <<RC
config_interface: textconfig
display_library: rfb, options="timeout=0"
cpu: model=$model, count=${smp:-1}, ips=200000000, reset_on_triple_fault=0, ignore_bad_msrs=1, msrs=$dir/msrs
memory: guest=${memory:-1024}, host=${memory:-1024}
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=$dir/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=/dev/tty
clock: sync=none, time0=local
log: $dir/bochs.log
panic: action=fatal
RC
    if [ -n "$rom" ]; then echo "optromimage1: file=$dir/rom, address=0xd0000" >>"$run/bochsrc"; fi
    # On a terminal, here the one that script makes, the C library writes the serial file out line by line.
    in_root timeout -k 5 "$limit" script -qfc \
        "exec ${LODGE_BOCHS:-bochs} -q -f $dir/bochsrc -rc /dev/null >$dir/bochs.out 2>&1" /dev/null </dev/null || true
    # The way it ended: a power-off and a triple fault are both a "panic" to Bochs.
    grep -ah 'PANIC' "$run/bochs.log" | tail -n 1
}

if [ -n "$rom" ]; then cp "$rom" "$run/rom"; fi
run_emulator() { if [ -n "$model" ]; then run_bochs; else run_qemu; fi; }

if [ -n "$interactive" ]; then
    run_emulator || true
    exit
fi
# booted: the VM got to its init.
booted() { grep -q '^LODGE-BOOT' "$run/console" 2>/dev/null; }
# look WHY: what all CPUs of a QEMU that is stuck are doing, for the log. The first gate of the IDT tells where the kernel lies:
# its code is asm_exc_divide_error.
look() {
    [ -p "$run/monitor.in" ] || return 0
    say "$1; the state of its CPUs:"
    local regs stacks
    regs=$(ask 'info registers -a' 'x/2gx 0xfffffe0000000000' | grep -v '^XMM')
    mapfile -t stacks < <(sed -n 's,^.*RSP=,x/24gx 0x,p' <<<"$regs")
    printf '%s\n' "$regs"
    ask "${stacks[@]}"
}
# ask COMMAND...: what QEMU's monitor answers.
ask() {
    (timeout 5 sh -c 'printf "%s\n" "$@" >"$0"' "$run/monitor.in" "$@" || true) &
    (timeout 2 cat "$run/monitor.out" || true) | tr -d '\r' | grep -aE '^(CPU#|[A-Z0-9]{2,3} ?=|[0-9a-f]{16}: )' || true
}
# watch: ends a QEMU whose kernel hangs before its init, and looks at one that is about to run out of time.
watch() {
    local boot=$((SECONDS + 120)) end=$((SECONDS + limit - 10))
    if [ "$KERNEL" = debug ]; then boot=$((boot + 360)); fi
    if [ "$boot" -gt "$end" ]; then boot=$end; fi
    until booted; do
        if [ "$SECONDS" -ge "$boot" ]; then
            look "the VM does not boot" 2>&1 | tee -a "$run/console"
            pkill -f -- "-initrd $dir/initrd" || true
            return
        fi
        sleep 2
    done
    while [ "$SECONDS" -lt "$end" ]; do sleep 2; done
    look "the VM is running out of time" 2>&1 | tee -a "$run/console"
}

# Now and then TCG gets a booting kernel wrong (doc/errata.md), before anything of ours is loaded. That is tried again, once.
for attempt in first last; do
    watcher='' began=$SECONDS
    : >"$run/console"
    if [ -z "$model" ]; then watch & watcher=$!; fi
    # The copy is this run's own until it is complete: others may run at the same time.
    run_emulator 2>&1 | sed -u 's/\r*$//' | tee -a "$run/console" || true
    if [ -n "$watcher" ]; then kill "$watcher" 2>/dev/null || true; fi
    if [ -n "$model" ] || [ "$attempt" = last ] || booted; then break; fi
    say "the kernel of the $vendor VM did not get to its init; once more"
done
took=$((SECONDS - began))
status=$(sed -n 's/^LODGE-EXIT: \([0-9]*\)$/\1/p' "$run/console" | tail -n 1)
mv "$run/console" "$log"
if [ -n "$expect" ] && [ -z "$status" ] && [ "$took" -lt "$limit" ]; then
    if ! grep -qaE -- "$expect" "$log"; then
        say "the $vendor VM ended without '$expect'; console in $log"
    elif grep -aE 'BUG:|WARNING:|Oops' "$log" >&2; then
        status=99
    else
        status=0
    fi
fi
if [ -z "$status" ]; then
    status=98
    say "the $vendor VM did not get to its end in $took s: crashed, hung, or out of time; console in $log"
elif [ "$status" = 99 ]; then
    say "the kernel of the $vendor VM complained; console in $log"
fi
exit "$status"
