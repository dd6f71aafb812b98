#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds a Bochs that keeps its TLBs per tag across world switches (tagged_tlb.cc), from the source of Debian's, as
# $LODGE_CACHE/bochs/bochs. Debian's empties them at each, so that a guest there cannot see that a flush is missing.
. "$(dirname "$0")/lib.sh"

FEATURES="--enable-3dnow --enable-a20-pin --enable-all-optimizations --enable-amx --enable-avx --enable-cdrom --enable-cet
    --enable-cpu-level=6 --enable-debugger --enable-evex --enable-fpu --enable-memtype --enable-pci --enable-protection-keys
    --enable-repeat-speedups --enable-smp --enable-svm --enable-uintr --enable-vmx=2 --enable-x86-64 --enable-x86-debugger"

# get_source: in the root; the archive's source beside its packages. Only the upstream part is needed: Debian changes no code.
get_source() {
    set -e
    cd /cache/bochs
    mkdir -p lists/partial
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | sed -n 's/^deb /deb-src /p' >sources.list
    apt="apt-get -o Dir::Etc::sourcelist=/cache/bochs/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=/cache/bochs/lists -o APT::Sandbox::User=root"
    $apt update
    # What it fetches is checked against the archive's list; what matters is whether this part is there.
    $apt source --download-only bochs || true
    mkdir source
    tar -xf bochs_3.0*.orig.tar.* -C source --strip-components=1
}

# calls: in the source's folder; puts calls of tagged_tlb.cc where Bochs switches, flushes and resets.
calls() {
    local guest host
    sed -i 's|^  BX_SMF void TLB_invlpg(bx_address laddr);|&\
#define LODGE_HOST 0\
#define LODGE_VPID(vpid) (BX_CONST64(1) << 32 \| (vpid))\
#define LODGE_ASID(asid) (BX_CONST64(2) << 32 \| (asid))\
  BX_SMF void lodge_tlb_leave(void);\
  BX_SMF void lodge_tlb_enter(Bit64u space, Bit64u root);\
  BX_SMF void lodge_tlb_changed(void);\
  BX_SMF void lodge_tlb_control(Bit64u space, unsigned control);\
  BX_SMF void lodge_tlb_invept(bool all, Bit64u root);\
  BX_SMF void lodge_tlb_invalidate(bool all, Bit64u space, bool one, bx_address laddr);\
  BX_SMF void lodge_tlb_reset(void);|
        s|^  BX_SMF void handleCpuContextChange(void);|  BX_SMF void handleCpuContextChange(bool flush = true);|' cpu/cpu.h
    sed -i '/::handleCpuContextChange(void)/,/^}/{s|(void)|(bool flush)|
        s|^  TLB_flush();|  if (flush) TLB_flush();|}' cpu/proc_ctrl.cc
    sed -i '/^void BX_CPU_C::reset/,/^}/s|^  handleCpuContextChange();|  lodge_tlb_reset();\n&|' cpu/init.cc

    host='lodge_tlb_enter(LODGE_HOST, 0); handleCpuContextChange(false);'
    guest='lodge_tlb_enter(LODGE_VPID(vm->vmexec_ctrls2.VPID_ENABLE() ? vm->vpid : 0), vm->vmexec_ctrls2.EPT_ENABLE() ? PPFOf(vm->eptptr) : 0);'
    sed -i "/::VMenterLoadCheckGuestState/,/^}/{s|^{|{ lodge_tlb_leave();|
            s|^  handleCpuContextChange();|  $guest handleCpuContextChange(false);|}
        /^void BX_CPU_C::VMexit(Bit32u/,/^}/s|^{|{ lodge_tlb_leave();|
        /::VMexitLoadHostState/,/^}/s|^  handleCpuContextChange();|  $host|
        /BX_CPU_C::INVEPT/,/^}/{/EPTP\[51:12\]/s|TLB_flush();|lodge_tlb_invept(false, PPFOf(inv_eptp.xmm64u(0)));|
            /all EPTPs/s|TLB_flush();|lodge_tlb_invept(true, 0);|}
        /BX_CPU_C::INVVPID/,/^}/{/for address/s|TLB_flush();|lodge_tlb_invalidate(false, LODGE_VPID(vpid), true, invvpid_desc.xmm64u(1));|
            /VPID <> 0/s|TLB_flush();|lodge_tlb_invalidate(true, 0, false, 0);|
            /tagged with VPID/s/TLB_flush[a-zA-Z]*();/lodge_tlb_invalidate(false, LODGE_VPID(vpid), false, 0);/}" cpu/vmx.cc

    guest='Bit64u space = LODGE_ASID(vmcb_read32(SVM_CONTROL32_GUEST_ASID)); lodge_tlb_control(space, vmcb_read8(SVM_CONTROL32_TLB_CONTROL)); lodge_tlb_enter(space, 0);'
    sed -i "/^void BX_CPU_C::SvmEnterSaveHostState/,/^}/s|^{|{ lodge_tlb_leave();|
        /^void BX_CPU_C::Svm_Vmexit/,/^}/s|^{|{ lodge_tlb_leave();|
        /::SvmEnterLoadCheckGuestState/,/^}/s|^  handleCpuContextChange();|  $guest handleCpuContextChange(false);|
        /::SvmExitLoadHostState/,/^}/s|^  handleCpuContextChange();|  $host|
        /BX_CPU_C::INVLPGA/,/^}/s|^  TLB_invlpg(laddr);|  if (ECX) lodge_tlb_invalidate(false, LODGE_ASID(ECX), true, laddr); else TLB_invlpg(laddr);|" cpu/svm.cc
    # Each place was found.
    [ "$(grep -o 'lodge_tlb_[a-z]*' cpu/vmx.cc cpu/svm.cc cpu/init.cc | sort | uniq -c | awk '{ printf "%s ", $1 }')" = "1 1 2 1 2 2 4 2 2 " ]
}

build_bochs() {
    rm -rf "$LODGE_CACHE/bochs"
    mkdir -p "$LODGE_CACHE/bochs"
    in_root bash -c "$(declare -f get_source) && get_source"
    (cd "$LODGE_CACHE/bochs/source" && calls && cat "$LODGE_SRC/tools/env/tagged_tlb.cc" >>cpu/paging.cc)
    # shellcheck disable=SC2086 # words
    in_root sh -c 'cd /cache/bochs/source && ./configure --with-rfb --disable-docbook "$@" CXXFLAGS="-O2 -w" CFLAGS="-O2 -w" && make -j"$(nproc)"' sh $FEATURES
    mv "$LODGE_CACHE/bochs/source/bochs" "$LODGE_CACHE/bochs/bochs"
    rm -rf "$LODGE_CACHE/bochs/source" "$LODGE_CACHE/bochs/lists"
}

"$(dirname "$0")/root.sh"
step bochs "5 minutes" "$( (declare -f get_source calls build_bochs && echo "$FEATURES" && cat "$LODGE_SRC/tools/env/tagged_tlb.cc") | sha256sum)" build_bochs
