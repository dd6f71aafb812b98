#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Runs the tests: those that need no VM, and in host VMs the module's and the selftests. The last line is the sum,
# `N passed, N failed, N skipped`; what did not run is never counted as passed.
#   usage: [VENDOR=NAME] [T=PATTERN] test.sh [--host]      (or, used by itself: test.sh --suite NAME)
#          [VENDOR=NAME] [T=PATTERN] [SCALE=PERCENT] test.sh --long     what is worth running for long, with full counts
. "$(dirname "$0")/lib.sh"
env=$(dirname "$0")

# Everything takes longer on the debug kernel.
slower=1
if [ "$KERNEL" = debug ]; then slower=4; fi

# Longest first, so that the last one to run is a short one.
SUITES="amd intel amd-bochs host previous intel-haswell ledger la57 qemu lifecycle intel-lynnfield amd-bochs-spec refuse-penryn refuse-lockedvmx refuse-lockedsvm unstable-tsc perf refuse-nonpt refuse-nosvm"
REFUSALS="refuse-penryn refuse-lockedvmx refuse-lockedsvm refuse-nonpt refuse-nosvm"
# What `make test-long` runs; VENDOR= picks one without the prefix.
LONG_SUITES="long-amd long-kvm-ioctls long-qemu long-host long-swap long-intel long-amd-bochs long-lifecycle-intel long-perf-intel long-ledger long-ledger-intel long-ledger-intel-smp long-ledger-amd-bochs long-tagged-intel long-tagged-amd-bochs long-la57 long-tigerlake long-amd-plain long-amd-bochs-plain long-intel-plain"

# What the module can do without, as parameters that turn it off. Those of the other vendor change nothing.
PLAIN="large_pages=0 nrips=0 flush_by_asid=0 eptad=0 vpid=0"
# A few tests that show whether the module works in another configuration.
BOCHS_SAMPLE="micro/mem_large micro/slot_ micro/preempted micro/real_to"

# Where a vCPU goes from one CPU to another, or two CPUs run one guest.
TWO_CPUS="micro/vcpu_migrates micro/tsc_across_cpus micro/preempted micro/slot_delete_while stress/guest_registers_migrate stress/life_cpu_offline"
TWO_CPUS+=" stress/fault_same stress/fault_neighbours stress/fault_apart"

# What depends on unrestricted guest: real mode, protected mode without paging, and the way between them.
RESTRICTED="micro/real_ micro/every_mode micro/hlt micro/long_to micro/invalid_state micro/reset_vector micro/triple micro/task_ micro/debug_"
RESTRICTED+=" micro/exception micro/host_fs_selector api/run_ api/close_orders hostile/refused_entry hostile/registers"
# Bochs' lynnfield, which this list is for, has no XSAVE either.
RESTRICTED+=" api/capabilities api/supported_cpuid api/no_stale api/bad_pointers api/xcrs api/xsave api/fpu"

# What depends on speculation control: tests for an AMD that has it.
SPECULATION="spec arch_cap msr cpuid feature micro/host_ stress/host_"
# Bochs' ryzen with those MSRs has no CPUID bits for them. The kernel is told: SPEC_CTRL, IBRS, IBPB, STIBP.
SPECULATION_BITS=setcpuid=240,249,250,251

# A CPU of QEMU's with all that it can do, but for MOVBE and RDPID.
LA57=max,+svm,+npt,-movbe,-rdpid
# What goes through all five levels of the tables: mapping and taking away, changes of slots, faults of several vCPUs, leaves of each size.
# And what the module does where it makes none of what guests lack.
LA57_SAMPLE="micro/mem_ micro/slot_ micro/preempted stress/fault_ stress/mem_hugetlb api/cpuid_emulated"

# What of the host's is kept: on Bochs' tigerlake, whose supervisor states make the host's IA32_XSS something else than 0.
HOST_STATE="stress/host_ micro/host_ hostile/registers"

# Tests whose guests lose memory, or the right to it, or change their CPU: with the ledger of TLB flushes.
LEDGER="ledger/ micro/slot_ micro/mem_ micro/dirty_log micro/vcpu_ micro/two_ micro/preempted stress/fault_"
LEDGER+=" stress/life_cpu_offline stress/guest_registers hostile/aliased hostile/refused_entry"

# What Bochs has no time for in a short run: exits cost it several times as much. In a long run they are there.
BOCHS_LEAVES_OUT=$(printf -- '-stress/%s ' mem_everything mem_reclaimed mem_collapsed mem_remapped mem_protected mem_thrown mem_memfd \
    mem_file mem_userfault mem_slot_moves mem_hugetlb life_200 life_64 life_inherited life_killed charge)
# It shows there that it works, and not how much anything costs.
BOCHS_LEAVES_OUT+=" -bench/"

# What costs much there and is the same on every CPU.
BOCHS_SLOW="-api/dirty_log_sizes -api/region_many -api/ioeventfd_many -api/alloc_fail_memory"

# The guest's modes are the same on each CPU of a vendor; what is emulated, with each vendor.
MODES="-micro/sensitive -micro/vm86 -micro/bits16 -micro/real_ -micro/task_"
EMULATOR="-micro/forced -micro/emulated -micro/bits16_emulated -micro/mmio_insn -micro/rep_"

# Per cent of the ordinary counts in a short run, on QEMU and on Bochs. A long one has all of them, or more.
TCG_BRIEF=20 BOCHS_BRIEF=20

# Twenty seconds and more, for what few changes can break.
TCG_SLOW="-stress/life_64 -stress/mem_merged -stress/mem_reclaimed"

# A page of 1 GiB for a test: it has to be set aside at boot.
GIB_PAGE=(--memory 3584 --append 'hugepagesz=1G hugepages=1')

# suite_host: cargo's tests of the workspace, one KTAP line each, their own text in the log.
suite_host() {
    "$env/root.sh"
    # The tests of the package `selftests` need a VM; what it has for cargo, it has too.
    in_root cargo test --workspace --no-fail-fast -- ${T:+"$T"} 2>&1 | sed -u -E '
        s/^test (.*) \.\.\. ok$/ok host: \1/
        /^test (.*) \.\.\. ignored, long/d
        s/^test (.*) \.\.\. ignored(.*)$/ok host: \1 # SKIP ignored\2/
        s/^test (.*) \.\.\. FAILED$/not ok host: \1/'
}

# suite_vm VENDOR SLOW LIMIT GUESTS: the module's life, then the selftests on it, then those tests of `lodge` whose name has
# GUESTS in it, which boot a stock kernel; at last a sample of the selftests without what the module can do without.
# MODULE=intree tests the tests.
suite_vm() {
    local module=${MODULE:-ours} life="true" slow=$(($2 * slower)) limit=$(($3 * slower)) plain=true
    local leave_out='' sample=$BOCHS_SAMPLE brief=$BOCHS_BRIEF
    case $1 in
    # Of what can be turned off, it has large pages only: long-amd-plain is enough.
    amd) leave_out=$TCG_SLOW sample='' brief=$TCG_BRIEF ;;
    # The emulator's tests and those of failing allocations: icelake and TCG run them, for each vendor's part.
    # Life and memory are the same with each vendor's part, too.
    amd-bochs)
        leave_out="$BOCHS_LEAVES_OUT $BOCHS_SLOW $EMULATOR -api/alloc_fail -stress/life -stress/mem -lifecycle/"
        ;;
    # What it has that the other Intel CPU has not, or the other way round, are features of VMX; these tests do not depend on them.
    intel-haswell) leave_out="-stress/ -hostile/ -bench/ -api/ -lifecycle/ $EMULATOR $MODES" sample='' ;;
    *) leave_out="$BOCHS_LEAVES_OUT $BOCHS_SLOW" ;;
    esac
    # Those need a module of their own.
    leave_out="$leave_out -ledger/"
    if [ "$module" = ours ] && [ -n "$sample" ] && [ -z "${T:-}" ]; then
        plain="rmmod kvm && load-kvm ours $PLAIN && selftests --slow $slow --brief $brief $sample $leave_out"
    fi
    if [ "$module" = ours ]; then life="module-tests works '${T:-}'"; fi
    "$env/vm.sh" --vendor "$1" --timeout "$limit" --module none --parts "$module programs guest foreign extras" \
        --file "$LODGE_SRC/tools/lodge/tests/in-vm:bin/lodge-tests" --log "$LODGE_LOG/vm-test-$1.log" \
        "$life; life=\$?; load-kvm $module || exit; tests=0
         if selftests --list | grep -q -e '${T:-}'; then selftests --slow $slow --brief $brief ${T:-$leave_out}; tests=\$?; fi
         lodge-tests --short --slow $slow '${T:-$4}'; guests=\$?; $plain; plain=\$?; check-leaks; [ \$life\$tests\$guests\$plain\$? = 00000 ]"
}

# suite_matrix NAME VENDOR SLOW LIMIT PARAMETERS TESTS GUESTS [OPTION...]: the ordinary selftests, or those with a word of TESTS in
# their name, and those tests of `lodge` with GUESTS in theirs, in another configuration of the module or, by OPTIONs of vm.sh, of the VM.
suite_matrix() {
    local name=$1 vendor=$2 slow=$(($3 * slower)) limit=$(($4 * slower)) parameters=$5 tests=$6 guests=$7 brief=$TCG_BRIEF
    shift 7
    case $name in long-*) brief=100 ;; esac
    "$env/vm.sh" --vendor "$vendor" --timeout "$limit" --module none --parts "ours programs guest foreign extras" \
        --file "$LODGE_SRC/tools/lodge/tests/in-vm:bin/lodge-tests" --log "$LODGE_LOG/vm-$name.log" "$@" \
        "load-kvm ours $parameters || exit; tests=0
         if selftests --list | grep -q -e '${T:-}'; then selftests --slow $slow --brief $brief ${T:-$tests}; tests=\$?; fi
         lodge-tests --slow $slow '${T:-$guests}'; guests=\$?; check-leaks; [ \$tests\$guests\$? = 000 ]"
}

# suite_long_host: the tests of the workspace that are marked `#[ignore = "long"]`, optimised.
suite_long_host() {
    "$env/root.sh"
    in_root cargo test --release --workspace --no-fail-fast -- --ignored ${T:+"$T"} 2>&1 | sed -u -E '
        s/^test (.*) \.\.\. ok$/ok long-host: \1/
        s/^test (.*) \.\.\. FAILED$/not ok long-host: \1/'
    # Without one, the line says so; a pattern may pick none.
    if ! grep -rqF '#[ignore = "long"]' --include='*.rs' "$LODGE_SRC"/{rust,mmu,vmx,svm,selftests,tools}; then
        echo "ok long-host: none # SKIP no test of the workspace is marked long"
    fi
}

# suite_long_vm VENDOR SLOW LIMIT SCALE [OPTION...]: the selftests that are worth it, with SCALE per cent of their full counts
# (SCALE= says otherwise); OPTIONs are those of vm.sh.
suite_long_vm() {
    local vendor=$1 slow=$(($2 * slower)) limit=$(($3 * slower)) scale=$4 module=${MODULE:-ours}
    shift 4
    "$env/vm.sh" --vendor "$vendor" --timeout "$limit" --module "$module" --parts "programs foreign extras" \
        --log "$LODGE_LOG/vm-long-$vendor.log" "$@" \
        "selftests --long --list | grep -q -e '${T:-}' || exit 0
         selftests --long --scale ${SCALE:-$scale} --slow $slow ${T:-}; tests=\$?; check-leaks; [ \$tests\$? = 00 ]"
}

# suite_previous: the module builds without a warning for the series of kernels before the one in use, while the archive has one.
suite_previous() {
    local ver log
    ver=$("$env/kernel.sh" --previous)
    if [ -z "$ver" ]; then
        echo "ok previous: builds # SKIP trixie-backports has no series of 7.x kernels before $(stock_version)"
        return
    fi
    log=$LODGE_CACHE/log/module-$ver-lint.log
    if KERNEL=stock KVER=$ver "$env/module.sh" --lint && ! grep -E "$WARNING" "$log"; then
        echo "ok previous: builds for $ver"
    else
        echo "not ok previous: builds for $ver"
        return 1
    fi
}

# suite_ledger NAME VENDOR SLOW LIMIT BRIEF TESTS [OPTION...]: a module that checks at each entry that no TLB flush is missing, and by which tests can
# leave one out.
suite_ledger() {
    local name=$1 vendor=$2 slow=$(($3 * slower)) limit=$(($4 * slower)) brief=$5 tests=$6
    shift 6
    KVER='' KDIR='' "$env/module.sh" --ledger
    "$env/vm.sh" --vendor "$vendor" --timeout "$limit" --module none --parts "ledger programs extras" --log "$LODGE_LOG/vm-$name.log" "$@" \
        "load-kvm ours || exit; if selftests --list | grep -q -e '${T:-}'; then selftests --slow $slow --brief $brief ${T:-$tests}; fi"
}

# suite_tagged NAME VENDOR: the same on a Bochs that keeps translations across world switches, where guests show what is missing.
suite_tagged() {
    "$env/bochs.sh"
    LODGE_BOCHS=/cache/bochs/bochs suite_ledger "$1" "$2" 6 2700 100 "$LEDGER"
}

# suite_perf VENDOR: `perf kvm stat` works.
suite_perf() {
    "$env/vm.sh" --vendor "$1" --timeout "$((600 * slower))" --module "${MODULE:-ours}" --smp 1 --parts "programs perf" \
        --log "$LODGE_LOG/vm-perf-$1.log" "perf-tests '${T:-}'"
}

# suite_kvm_ioctls VENDOR [OPTION...]: the tests that a crate for VMMs carries, on the kernel's own KVM and on ours, whatever MODULE= says.
# The debug kernel has no KVM of its own.
suite_kvm_ioctls() {
    local vendor=$1 modules="intree ours"
    shift
    if [ "$KERNEL" != stock ]; then modules=ours; fi
    "$env/kvm-ioctls.sh"
    "$env/vm.sh" --vendor "$vendor" --module none --timeout "$((300 * slower))" --parts "$modules kvm-ioctls" --log "$LODGE_LOG/vm-kvm-ioctls-$vendor.log" "$@" \
        "kvm-ioctls-tests '$modules' '${T:-}'"
}

# suite_qemu NAME VENDOR SLOW [--all]: unmodified QEMU runs on our module.
suite_qemu() {
    local slow=$(($3 * slower))
    "$env/memtest.sh"
    "$env/vm.sh" --vendor "$2" --timeout "$((900 * slow))" --module "${MODULE:-ours}" --parts "guest qemu memtest" --log "$LODGE_LOG/vm-$1.log" \
        "qemu-tests ${4:-} --slow $slow '${T:-}'; tests=\$?; check-leaks; [ \$tests\$? = 00 ]"
}

# suite_swap: a guest with more memory than the host has, which swaps.
suite_swap() {
    "$env/vm.sh" --memory 512 --disk 1024 --timeout "$((3600 * slower))" --module "${MODULE:-ours}" --parts "programs guest" \
        --file "$LODGE_SRC/tools/lodge/tests/in-vm:bin/lodge-tests" --log "$LODGE_LOG/vm-swap.log" \
        "mkswap /dev/nvme0n1 && swapon /dev/nvme0n1 || exit; lodge-tests --slow 15 'more memory'; tests=\$?; check-leaks; [ \$tests\$? = 00 ]"
}

# suite_refuse WHY OPTION...: on a CPU that lacks something, the module says so, in a line that holds WHY, and stays out.
suite_refuse() {
    local why=$1
    shift
    "$env/vm.sh" --module none --parts ours "$@" "module-tests refuses '${T:-}' '$why'"
}

# suite_locked VENDOR MSR VALUE: firmware has switched virtualization off and locked that.
suite_locked() {
    local rom=$LODGE_CACHE/run/locked-$1.rom
    mkdir -p "$LODGE_CACHE/run"
    "$env/root.sh"
    "$env/rom.sh" "$2" "$3" "$rom"
    suite_refuse "is disabled, by the firmware" --vendor "$1" --rom "$rom" --log "$LODGE_LOG/vm-locked-$1.log"
}

# end_kernel VENDOR WAY EXPECT [KERNEL INITRD]: a kernel ends with guests running on all CPUs, and the console shows EXPECT.
end_kernel() {
    local vendor=$1 way=$2 expect=$3 log=$LODGE_LOG/vm-$1-$2.log attempt status
    shift 3
    for attempt in first last; do
        status=0
        "$env/vm.sh" --vendor "$vendor" --parts 'programs guest' --log "$log" --expect "$expect" \
            --append 'crashkernel=256M sysrq_always_enabled' "selftests end $way $*" || status=$?
        # As it does with the first one (vm.sh), TCG gets the boot of the next kernel wrong now and then.
        if [ "$vendor $attempt $status" != 'amd first 98' ] || ! next_kernel_met_int3 "$log"; then return $status; fi
        say "the next kernel met an INT3 of TCG's (doc/errata.md; console in $log.first); once more"
        mv "$log" "$log.first"
    done
}
# next_kernel_met_int3 LOG: and the kernel before it, which is quiet from its boot on, had nothing to complain about.
next_kernel_met_int3() {
    sed '1,/Linux version/d' "$1" | grep -qa 'Oops: int3' && ! sed '/Linux version/q' "$1" | grep -qaE 'BUG:|WARNING:|Oops'
}

# suite_lifecycle VENDOR: each way in which a kernel ends; the next one shows on the console.
suite_lifecycle() {
    local way expect next status=0
    for way in kexec reboot crash-kexec crash; do
        case "lifecycle/$way" in *"${T:-}"*) ;; *) continue ;; esac
        next=''
        case $way in
        # Its user space has begun; the end of its words may be lost in its own reboot, on a slow line.
        *kexec) next='/guest/vmlinuz /guest/initrd' expect='^guest: Linux ' ;;
        reboot) expect='reboot: Restarting system' ;;
        crash) expect='Kernel panic - not syncing: sysrq triggered crash' ;;
        esac
        # shellcheck disable=SC2086 # words
        if end_kernel "$1" "$way" "$expect" $next; then
            echo "ok lifecycle/$way"
        else
            echo "not ok lifecycle/$way"
            status=1
        fi
    done
    return $status
}

suite() {
    case $1 in
    host) suite_host ;;
    amd) suite_vm amd 4 1800 '' ;;
    # An emulated guest of an emulated host takes its time: one boot has to do on Bochs. (AMD's guests boot on TCG.)
    intel) suite_vm intel 4 2700 'boots a stock kernel' ;;
    intel-haswell | amd-bochs) suite_vm "$1" 4 2700 'memory-mapped access' ;;
    intel-lynnfield) suite_matrix intel-lynnfield intel-lynnfield 4 900 '' "$RESTRICTED" none ;;
    amd-bochs-spec) suite_matrix amd-bochs-spec amd-bochs-spec 4 900 '' "$SPECULATION" none --append "$SPECULATION_BITS" ;;
    perf) suite_perf amd ;;
    perf-intel | long-perf-intel) suite_perf intel ;;
    # One of them expects four CPUs at least, where there are several.
    kvm-ioctls | long-kvm-ioctls) suite_kvm_ioctls amd --smp 3 ;;
    kvm-ioctls-intel) suite_kvm_ioctls intel ;;
    qemu) suite_qemu qemu amd 1 ;;
    long-qemu) suite_qemu long-qemu amd 2 --all ;;
    qemu-intel) suite_qemu qemu-intel intel 6 ;;
    long-qemu-intel) suite_qemu long-qemu-intel intel 6 --all ;;
    ledger) suite_ledger ledger amd 6 1500 "$TCG_BRIEF" "$LEDGER" ;;
    long-ledger) suite_ledger ledger amd 6 3600 100 "$LEDGER stress/mem_ stress/life_200" ;;
    ledger-intel | ledger-amd-bochs | long-ledger-intel | long-ledger-amd-bochs)
        suite_ledger "${1#long-}" "${1#*ledger-}" 6 2700 100 "ledger/ micro/slot_ micro/mem_ micro/dirty_log stress/fault_"
        ;;
    long-tagged-intel | long-tagged-amd-bochs) suite_tagged "$1" "${1#long-tagged-}" ;;
    # What takes two CPUs. Bochs is not to be trusted with exceptions in guests then (doc/errata.md).
    long-ledger-intel-smp) suite_ledger ledger-intel-smp intel 12 1200 20 "ledger/ $TWO_CPUS" --smp 2 ;;
    refuse-penryn) suite_refuse 'no extended page tables' --vendor core2_penryn_t9600 ;;
    refuse-nosvm) suite_refuse 'neither Intel VMX nor AMD SVM' --cpu qemu64,-svm --log "$LODGE_LOG/vm-nosvm.log" ;;
    refuse-nonpt) suite_refuse 'no nested paging' --cpu EPYC,+svm,-npt --log "$LODGE_LOG/vm-nonpt.log" ;;
    # Bochs locks IA32_FEATURE_CONTROL at reset, with VMX on: no firmware can do it. The kernel's option makes it forget VMX all the same.
    refuse-lockedvmx) suite_refuse 'VMX is disabled' --vendor intel --append clearcpuid=vmx --log "$LODGE_LOG/vm-locked-intel.log" ;;
    # VM_CR: locked, SVM off.
    refuse-lockedsvm) suite_locked amd-bochs 0xc0010114 0x18 ;;
    lifecycle) suite_lifecycle amd ;;
    lifecycle-intel | long-lifecycle-intel) suite_lifecycle intel-haswell ;;
    # Five levels of page tables, in the host and so in the nested tables; without what the emulator makes for guests. The guest of a CPU with
    # every feature takes longer to boot.
    la57) suite_matrix la57 amd 6 1500 '' "$LA57_SAMPLE" 'boots a stock kernel' --cpu "$LA57" "${GIB_PAGE[@]}" ;;
    long-host) suite_long_host ;;
    long-swap) suite_swap ;;
    unstable-tsc) suite_matrix unstable-tsc amd 4 300 '' '/clock /tsc registers_migrate' none --append tsc=unstable ;;
    long-la57) suite_matrix long-la57 amd 3 3600 '' '' '' --cpu "$LA57" "${GIB_PAGE[@]}" ;;
    long-tigerlake) suite_matrix long-tigerlake tigerlake 4 900 '' "$HOST_STATE" none ;;
    long-amd-plain) suite_matrix long-amd-plain amd 1 3600 "$PLAIN" '' '' ;;
    long-amd-bochs-plain | long-intel-plain)
        suite_matrix "$1" "$(echo "$1" | sed 's/^long-//; s/-plain$//')" 3 7200 "$PLAIN" '' 'boots a stock kernel'
        ;;
    previous | long-previous) suite_previous ;;
    long-amd) suite_long_vm amd 1 10800 100 "${GIB_PAGE[@]}" ;;
    # An instruction costs about ten times as much on Bochs.
    long-intel | long-amd-bochs | long-intel-haswell) suite_long_vm "${1#long-}" 3 10800 10 ;;
    *) die "there is no test suite '$1'; VENDOR is one of: $SUITES refusal; with test-long: ${LONG_SUITES//long-/}" ;;
    esac
}

# run_suite NAME: runs one suite and leaves its counts in a file; tells what failed and what was skipped.
run_suite() {
    local log=$LODGE_LOG/test-$1.log status=0 began passed failed skipped
    began=$(date +%s)
    if [ -n "${LODGE_LIVE:-}" ]; then suite "$1" 2>&1 | tee "$log" || status=$?; else suite "$1" >"$log" 2>&1 || status=$?; fi
    skipped=$(grep -cE '^ *ok .*# SKIP' "$log" || true)
    passed=$(($(grep -cE '^ *ok ' "$log" || true) - skipped))
    failed=$(grep -cE '^ *not ok ' "$log" || true)
    if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
        failed=1
        if [ -z "${LODGE_LIVE:-}" ]; then tail -n 15 "$log"; fi
        echo "not ok $1: ended with status $status"
    fi
    # A pattern may pick nothing in one suite; without one, a suite without tests is an error.
    if [ $((passed + failed + skipped)) = 0 ] && [ -z "${T:-}" ]; then
        failed=1
        echo "not ok $1: no test ran"
    fi
    echo "$passed $failed $skipped" >"$LODGE_LOG/test-$1.result"
    if [ -z "${LODGE_LIVE:-}" ]; then sed -n -E "s/^ *(not ok .*|ok .*# SKIP.*)/$1: \1/p" "$log"; fi
    echo "$1: $passed passed, $failed failed, $skipped skipped in $(($(date +%s) - began)) s; the log is $log"
}

if [ "${1:-}" = --suite ]; then
    run_suite "$2"
    exit
fi
need_root
case ${1:-}:${VENDOR:-all} in
--host:*) suites=host ;;
--long:all) suites=$LONG_SUITES ;;
--long:*) suites=long-$VENDOR ;;
:all) suites=$SUITES ;;
:refusal) suites=$REFUSALS ;;
*) suites=$VENDOR ;;
esac
if [ "$(echo "$suites" | wc -w)" = 1 ]; then export LODGE_LIVE=1; fi
for name in $suites; do rm -f "$LODGE_LOG/test-$name.result"; done
echo "$suites" | tr ' ' '\n' | xargs -P "$(nproc)" -I '{}' "$0" --suite '{}' || true

passed=0 failed=0 skipped=0
for name in $suites; do
    read -r p f s <"$LODGE_LOG/test-$name.result" 2>/dev/null || { p=0 f=1 s=0; echo "not ok $name: it left no result"; }
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
echo "$passed passed, $failed failed, $skipped skipped"
# A pattern that picks nothing at all is a mistake.
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
