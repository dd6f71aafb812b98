// SPDX-License-Identifier: GPL-2.0
//! KVM_CAP_DISABLE_QUIRKS and KVM_CAP_DISABLE_QUIRKS2, and each quirk with and without.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{self, filled, Res};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::EINVAL;

pub const TESTS: &[Test] = &[
    Test::new("api/quirks_refused", refused),
    Test::new("api/quirks_old_capability", old),
    Test::new("api/quirk_out_7e", out_7e),
    Test::new("api/quirk_hypercall", hypercall),
    Test::new("api/quirk_mwait", mwait),
];

const OUT_7E: u32 = KVM_X86_QUIRK_OUT_7E_INC_RIP;
const HYPERCALL: u32 = KVM_X86_QUIRK_FIX_HYPERCALL_INSN;
const MWAIT: u32 = KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS;
/// CPUID leaf 1, ECX: MONITOR and MWAIT.
const MONITOR_BIT: u32 = 1 << 3;
/// KVM_ENOSYS of <linux/kvm_para.h>.
const ENOSYS: i64 = 1000;
const UD: u8 = 6;
const PORT: u8 = 0x7e;

fn offered(g: &Guest) -> u64 {
    match g.kvm.cap(KVM_CAP_DISABLE_QUIRKS2) {
        0 => harness::skip("no KVM_CAP_DISABLE_QUIRKS2"),
        all => all as u64,
    }
}

fn enable(g: &Guest, cap: u32, flags: u32, value: u64) -> Res {
    let mut c: kvm_enable_cap = filled(0);
    (c.cap, c.flags, c.args[0]) = (cap, flags, value);
    g.vm.fd.give(ENABLE_CAP, &c)
}

fn disable(g: &Guest, quirk: u32) {
    if offered(g) & u64::from(quirk) == 0 {
        harness::skip(&format!("quirk {quirk:#x} cannot be turned off"));
    }
    eq!(
        enable(g, KVM_CAP_DISABLE_QUIRKS2, 0, quirk.into()),
        Ok(0),
        "{quirk:#x}"
    );
}

/// A guest that writes to port 7Eh and halts.
fn writer() -> Guest {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(eax, 0x5a)?;
        a.out(i32::from(PORT), al)?;
        a.hlt()
    });
    g
}

/// Where the guest is at the exit of its OUT, from the start of that.
fn moved(g: &Guest) -> u64 {
    g.expect(&out(PORT.into(), &[0x5a]));
    g.cpu.regs().rip.wrapping_sub(CODE + 5)
}

fn refused() {
    let g = writer();
    let all = offered(&g);
    eq!(
        g.vm.fd.num(CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2.into()),
        Ok(all as i32),
        "the VM says the same"
    );
    for bit in (0..64).filter(|bit| all >> bit & 1 == 0) {
        // Those that are known come with it, and stay.
        eq!(
            enable(&g, KVM_CAP_DISABLE_QUIRKS2, 0, all | 1 << bit),
            Err(EINVAL),
            "bit {bit}"
        );
    }
    eq!(
        enable(&g, KVM_CAP_DISABLE_QUIRKS2, 1, all),
        Err(EINVAL),
        "flags"
    );
    eq!(enable(&g, KVM_CAP_DISABLE_QUIRKS2, 0, 0), Ok(0), "none");
    if all & u64::from(OUT_7E) != 0 {
        eq!(moved(&g), 2, "no quirk was turned off");
    }
}

/// The old capability takes bits that mean nothing.
fn old() {
    let g = writer();
    eq!(offered(&g) & u64::from(OUT_7E), OUT_7E.into());
    eq!(g.kvm.cap(KVM_CAP_DISABLE_QUIRKS), 1);
    eq!(enable(&g, KVM_CAP_DISABLE_QUIRKS, 1, 0), Err(EINVAL));
    eq!(enable(&g, KVM_CAP_DISABLE_QUIRKS, 0, u64::MAX), Ok(0));
    eq!(moved(&g), 0);
    // What is off stays off.
    eq!(enable(&g, KVM_CAP_DISABLE_QUIRKS, 0, 0), Ok(0));
    let mut r = g.cpu.regs();
    r.rip = CODE;
    g.cpu.set_regs(&r);
    eq!(moved(&g), 0);
}

fn out_7e() {
    let g = writer();
    eq!(moved(&g), 2, "past the instruction");
    g.expect(&Exit::Hlt);

    // Only this port, and only OUT.
    let g = writer();
    g.load(|a| {
        a.in_(al, i32::from(PORT))?;
        a.out(0x7f, al)?;
        a.hlt()
    });
    g.expect(&inp(PORT.into(), 1));
    eq!(g.cpu.regs().rip, CODE);
    g.cpu.answer(&[0x77]);
    g.expect(&out(0x7f, &[0x77]));
    eq!(g.cpu.regs().rip, CODE + 2);

    let g = writer();
    disable(&g, OUT_7E);
    eq!(moved(&g), 0, "at the instruction");
    g.expect(&Exit::Hlt);
    eq!(g.cpu.regs().rip, CODE + 8);
}

fn hypercall() {
    const VMCALL: [u8; 4] = [0x0f, 0x01, 0xc1, 0xf4];
    const VMMCALL: [u8; 4] = [0x0f, 0x01, 0xd9, 0xf4];
    let amd = sys::on_amd();
    let (own, foreign) = if amd {
        (VMMCALL, VMCALL)
    } else {
        (VMCALL, VMMCALL)
    };
    let guest = |code: &[u8]| {
        let g = Guest::new(Mode::Long);
        g.mem.write(CODE as usize, code);
        g
    };
    let g = guest(&foreign);
    g.expect(&Exit::Hlt);
    eq!(g.mem.read(CODE as usize, 4), own, "patched");
    eq!(g.cpu.regs().rax as i64, -ENOSYS, "an unknown call");

    let g = guest(&foreign);
    disable(&g, HYPERCALL);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (UD, CODE));
    eq!(g.mem.read(CODE as usize, 4), foreign, "as it was");

    let g = guest(&own);
    disable(&g, HYPERCALL);
    g.expect(&Exit::Hlt);
}

/// MONITOR and MWAIT, which a guest is not offered.
fn mwait() {
    if sys::cpuid(1, 0)[2] & MONITOR_BIT == 0 {
        harness::skip("this CPU has no MONITOR");
    }
    let guest = || {
        let g = Guest::new(Mode::Long);
        g.load(|a| {
            a.mov(eax, DATA as u32)?;
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.monitor()?;
            a.mwait()?;
            a.hlt()
        });
        g
    };
    let g = guest();
    g.expect(&Exit::Hlt);

    let g = guest();
    disable(&g, MWAIT);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (UD, CODE + 9), "MONITOR");
    // MWAIT alone
    let mut r = g.cpu.regs();
    r.rip = CODE + 12;
    g.cpu.set_regs(&r);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (UD, CODE + 12), "MWAIT");

    // A guest that is told of them has them.
    let g = guest();
    disable(&g, MWAIT);
    let mut cpuid = *g.kvm.cpuid();
    let n = cpuid.nent as usize;
    let Some(leaf) = cpuid.entries[..n].iter_mut().find(|e| e.function == 1) else {
        panic!("no leaf 1");
    };
    leaf.ecx |= MONITOR_BIT;
    eq!(g.cpu.fd.give(SET_CPUID2, &cpuid), Ok(0));
    g.expect(&Exit::Hlt);
    check!(g.cpu.regs().rip == CODE + 16, "{:x?}", g.cpu.regs());
}
