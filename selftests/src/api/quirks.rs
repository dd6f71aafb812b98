// SPDX-License-Identifier: GPL-2.0
//! KVM_CAP_DISABLE_QUIRKS and KVM_CAP_DISABLE_QUIRKS2, and each quirk with and without.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::record::muted;
use crate::sys::{self, filled, Map, Res};
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
    Test::new("api/quirk_misc_enable", misc_enable),
    Test::new("api/quirk_misc_enable_guest", misc_enable_by_guest),
    Test::new("api/quirk_slot_zap", slot_zap),
];

const OUT_7E: u32 = KVM_X86_QUIRK_OUT_7E_INC_RIP;
const HYPERCALL: u32 = KVM_X86_QUIRK_FIX_HYPERCALL_INSN;
const MWAIT: u32 = KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS;
const MISC_ENABLE: u32 = KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT;
const SLOT_ZAP: u32 = KVM_X86_QUIRK_SLOT_ZAP_ALL;
/// IA32_MISC_ENABLE, and its bit for MONITOR and MWAIT.
const MSR: u32 = 0x1a0;
const MWAIT_BIT: u64 = 1 << 18;
/// CPUID leaf 1, ECX: SSE3.
const SSE3_BIT: u32 = 1;
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

/// A guest whose CPUID is told by `change` in leaf 1, on a VM without `quirks`. At CODE it reports the bit of MONITOR in that leaf, at WRITE it writes
/// EDX:EAX to the register, at WAIT it uses MONITOR.
fn told(quirks: u32, change: fn(&mut u32)) -> Guest {
    let k = Kvm::open();
    let all = k.cap(KVM_CAP_DISABLE_QUIRKS2) as u32;
    if quirks & !all != 0 {
        harness::skip(&format!(
            "of quirks {quirks:#x} only {all:#x} can be turned off"
        ));
    }
    let vm = k.vm();
    let mut c: kvm_enable_cap = filled(0);
    (c.cap, c.args[0]) = (KVM_CAP_DISABLE_QUIRKS2, quirks.into());
    eq!(vm.fd.give(ENABLE_CAP, &c), Ok(0));
    let g = Guest::with_vm(k, vm, Mode::Long);
    let mut cpuid = *g.kvm.cpuid();
    let n = cpuid.nent as usize;
    match cpuid.entries[..n].iter_mut().find(|e| e.function == 1) {
        Some(leaf) => change(&mut leaf.ecx),
        None => panic!("no leaf 1"),
    }
    eq!(g.cpu.fd.give(SET_CPUID2, &cpuid), Ok(0));
    g.load(|a| {
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.mov(eax, ecx)?;
        // The other bits are another test's.
        a.and(eax, MONITOR_BIT as i32)?;
        a.xor(ebx, ebx)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.out(i32::from(PORT_VALUE), eax)?;
        a.hlt()
    });
    g.load_at(WRITE, |a| {
        a.mov(ecx, MSR)?;
        a.wrmsr()?;
        a.hlt()
    });
    g.load_at(WAIT, |a| {
        a.mov(eax, DATA as u32)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.monitor()?;
        a.hlt()
    });
    g
}

const WRITE: u64 = CODE + 0x100;
const WAIT: u64 = CODE + 0x200;

fn start(g: &Guest, at: u64, value: u64) {
    let mut r = g.cpu.regs();
    (r.rip, r.rsp, r.rax, r.rdx) = (at, STACK, value & 0xffff_ffff, value >> 32);
    g.cpu.set_regs(&r);
}

/// The guest's CPUID, and that which user space reads, have MONITOR.
fn shows(g: &Guest) -> bool {
    start(g, CODE, 0);
    let by_guest = g.values() == [MONITOR_BIT];
    let mut c: Box<CpuidBuf> = Box::new(*g.kvm.cpuid());
    c.nent = MAX_ENTRIES as u32;
    muted(|| eq!(g.cpu.fd.with(GET_CPUID2, &mut *c), Ok(0)));
    let leaf = c.entries.iter().find(|e| e.function == 1);
    eq!(leaf.map(|e| e.ecx & MONITOR_BIT != 0), Some(by_guest));
    by_guest
}

/// MONITOR does something else than #UD.
fn monitors(g: &Guest) -> bool {
    start(g, WAIT, 0);
    match g.cpu.run() {
        Exit::Hlt => true,
        Exit::Io { port, .. } if port == u16::from(PORT_TRAP) => {
            eq!(g.trap().vector, UD);
            false
        }
        e => panic!("{e:x?}{}", g.describe()),
    }
}

/// User space switches MONITOR and MWAIT.
fn misc_enable() {
    // With the quirk, CPUID is what user space said.
    let g = told(0, |word| *word |= MONITOR_BIT);
    let reset = g.cpu.msr(MSR).unwrap_or(0);
    eq!(reset & MWAIT_BIT, 0, "off after reset");
    for value in [reset, reset | MWAIT_BIT, reset] {
        check!(g.cpu.set_msr(MSR, value), "{value:x}");
        eq!(g.cpu.msr(MSR), Some(value));
        check!(shows(&g), "{value:x}");
    }

    for said in [
        |word: &mut u32| *word |= MONITOR_BIT,
        |word: &mut u32| *word &= !MONITOR_BIT,
    ] {
        let g = told(MISC_ENABLE, said);
        check!(!shows(&g), "off after reset");
        for on in [true, false, true] {
            let value = reset | if on { MWAIT_BIT } else { 0 };
            check!(g.cpu.set_msr(MSR, value), "{value:x}");
            eq!(shows(&g), on);
            check!(g.cpu.set_msr(MSR, value | 1), "{value:x}");
            eq!(shows(&g), on, "another bit");
        }
    }

    // A CPU too old for that.
    let old = |word: &mut u32| *word &= !(SSE3_BIT | MONITOR_BIT);
    let g = told(MISC_ENABLE, old);
    check!(!g.cpu.set_msr(MSR, reset | MWAIT_BIT), "without SSE3");
    eq!(g.cpu.msr(MSR), Some(reset));
    check!(g.cpu.set_msr(MSR, reset | 1), "another bit");
    let g = told(0, old);
    check!(g.cpu.set_msr(MSR, reset | MWAIT_BIT), "with the quirk");
}

/// The guest does.
fn misc_enable_by_guest() {
    let intercepted = sys::cpuid(1, 0)[2] & MONITOR_BIT != 0;
    let g = told(MISC_ENABLE | MWAIT, |word| *word |= MONITOR_BIT);
    let reset = g.cpu.msr(MSR).unwrap_or(0);
    for on in [false, true, false] {
        start(&g, WRITE, reset | if on { MWAIT_BIT } else { 0 });
        g.expect(&Exit::Hlt);
        if intercepted {
            eq!(monitors(&g), on, "at once");
        }
        eq!(shows(&g), on);
    }
    let g = told(MISC_ENABLE, |word| *word &= !(SSE3_BIT | MONITOR_BIT));
    start(&g, WRITE, reset | MWAIT_BIT);
    eq!(g.run_to_trap().vector, 13, "without SSE3");
    start(&g, WRITE, reset);
    g.expect(&Exit::Hlt);

    // With the quirk, MONITOR follows CPUID.
    for (said, there) in [
        ((|word| *word |= MONITOR_BIT) as fn(&mut u32), true),
        (|word| *word &= !MONITOR_BIT, false),
    ] {
        let g = told(MWAIT, said);
        start(&g, WRITE, reset | if there { 0 } else { MWAIT_BIT });
        g.expect(&Exit::Hlt);
        eq!(shows(&g), there);
        if intercepted {
            eq!(monitors(&g), there);
        }
    }
}

/// A slot goes, moves and comes back between two others: each sees its own memory, whichever mappings are dropped.
fn slot_zap() {
    const SLOT: u64 = 0x100_0000;
    const OTHER: u64 = 0x200_0000;
    for quirks in [0, SLOT_ZAP] {
        let g = told(quirks, |_| {});
        g.load(|a| {
            a.mov(rax, qword_ptr(OTHER))?;
            a.mov(rbx, qword_ptr(SLOT))?;
            a.inc(qword_ptr(DATA))?;
            a.hlt()
        });
        let (one, two) = (Map::anon(0x4000), Map::anon(0x4000));
        one.wr(0, 0x1111u64);
        two.wr(0, 0x2222u64);
        let mut rounds = 0u64;
        let mut sees = |there: Option<u64>| {
            start(&g, CODE, 0);
            if there.is_none() {
                let read = Exit::Mmio {
                    addr: SLOT,
                    len: 8,
                    write: false,
                    data: Vec::new(),
                };
                g.expect(&read);
                g.cpu.answer(&[0xff; 8]);
            }
            g.expect(&Exit::Hlt);
            rounds += 1;
            let r = g.cpu.regs();
            eq!((r.rax, r.rbx), (0x2222, there.unwrap_or(u64::MAX)));
            eq!(g.mem.rd::<u64>(DATA as usize), rounds);
        };
        eq!(g.vm.region(2, 0, OTHER, 0x4000, two.addr()), Ok(0));
        for n in 0..4u64 {
            eq!(g.vm.region(1, 0, SLOT, 0x4000, one.addr()), Ok(0));
            one.wr(0, n);
            sees(Some(n));
            eq!(
                g.vm.region(1, 0, SLOT + 0x10_0000, 0x4000, one.addr()),
                Ok(0)
            );
            sees(None);
            eq!(g.vm.region(1, 0, SLOT, 0x4000, one.addr()), Ok(0));
            sees(Some(n));
            eq!(g.vm.region(1, 0, 0, 0, 0), Ok(0));
            sees(None);
        }
    }
}
