// SPDX-License-Identifier: GPL-2.0
//! KVM_SET_SREGS: which states are refused, and that a refused one changes nothing.

use crate::guest::{code_seg, data_seg, Guest, Mode, PD, PML4};
use crate::harness::Test;
use crate::kvm::*;
use crate::sys::bytes_of;
use crate::{check, eq};
use kvm_bindings::*;
use libc::EINVAL;

pub const TESTS: &[Test] = &[
    Test::new("api/sregs_round_trip", round_trip),
    Test::new("api/sregs_attributes", attributes),
    Test::new("api/sregs_cr0", cr0),
    Test::new("api/sregs_cr4", cr4),
    Test::new("api/sregs_efer", efer),
    Test::new("api/sregs_long_mode_rules", long_mode_rules),
    Test::new("api/sregs_cr3", cr3),
    Test::new("api/sregs_apic_base", apic_base),
    Test::new("api/sregs_interrupt_bitmap", interrupt_bitmap),
    Test::new("api/sregs_cr8", cr8),
    Test::new("api/sregs2_round_trip", sregs2_round_trip),
    Test::new("api/sregs2_pdptes", sregs2_pdptes),
];

const PE: u64 = 1;
const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const LME: u64 = 1 << 8;
const LMA: u64 = 1 << 10;

/// Tries a change; refused changes must leave all as it was.
fn attempt(c: &Vcpu, change: impl FnOnce(&mut kvm_sregs)) -> Result<i32, i32> {
    let before = c.sregs();
    let mut s = before;
    change(&mut s);
    let r = c.fd.give(SET_SREGS, &s);
    let after = c.sregs();
    if r.is_err() {
        eq!(
            bytes_of(&after),
            bytes_of(&before),
            "a refused call changes nothing"
        );
    }
    r
}

fn round_trip() {
    let g = Guest::new(Mode::Long);
    let c = &g.cpu;
    let s = c.sregs();
    c.set_sregs(&s);
    eq!(
        bytes_of(&c.sregs()),
        bytes_of(&s),
        "what was read can be set"
    );
    let mut t = s;
    t.cs = kvm_segment {
        base: 0,
        ..code_seg(true)
    };
    t.fs = kvm_segment {
        base: 0x1234_5678_9abc,
        ..data_seg()
    };
    t.gs = kvm_segment {
        base: 0xffff_8000_1234_0000,
        selector: 0x33,
        dpl: 3,
        ..data_seg()
    };
    t.cr2 = 0xdead_beef_cafe;
    t.gdt = kvm_dtable {
        base: 0xffff_fe00_0000_1000,
        limit: 0x7f,
        padding: [0; 3],
    };
    t.idt = kvm_dtable {
        base: 0xffff_fe00_0000_0000,
        limit: 0xfff,
        padding: [0; 3],
    };
    t.ldt = kvm_segment {
        selector: 0x28,
        base: 0x4_0000,
        limit: 0xff,
        type_: 2,
        s: 0,
        g: 0,
        db: 0,
        ..data_seg()
    };
    t.tr.base = 0xffff_fe00_0000_3000;
    c.set_sregs(&t);
    let u = c.sregs();
    for (what, a, b) in [
        ("fs", u.fs, t.fs),
        ("gs", u.gs, t.gs),
        ("cs", u.cs, t.cs),
        ("tr", u.tr, t.tr),
        ("ldt", u.ldt, t.ldt),
    ] {
        eq!(
            (a.base, a.limit, a.selector, a.type_),
            (b.base, b.limit, b.selector, b.type_),
            "{what}"
        );
        eq!(
            (a.dpl, a.db, a.s, a.l, a.g, a.present),
            (b.dpl, b.db, b.s, b.l, b.g, b.present),
            "{what}"
        );
    }
    eq!(
        (u.cr2, u.gdt.base, u.gdt.limit),
        (t.cr2, t.gdt.base, t.gdt.limit)
    );
    eq!((u.idt.base, u.idt.limit), (t.idt.base, t.idt.limit));
    // A segment that is not usable.
    t.es.unusable = 1;
    t.es.present = 0;
    c.set_sregs(&t);
    eq!(c.sregs().es.unusable, 1);
}

/// Attributes that a loaded segment register cannot have, or that CPUs keep or not.
fn attributes() {
    let g = Guest::new(Mode::Prot);
    let mut s = g.cpu.sregs();
    s.ds.type_ = 2;
    s.es = kvm_segment {
        type_: 0,
        limit: 0xfff,
        g: 0,
        ..s.es
    };
    s.fs.unusable = 1;
    s.gs.present = 0;
    // An available TSS; Intel's CPUs do not take one.
    if crate::sys::on_amd() {
        s.tr.type_ = 9;
    }
    g.cpu.set_sregs(&s);
    let t = g.cpu.sregs();
    eq!((t.ds.type_, t.es.type_), (3, 1), "loaded is accessed");
    eq!((t.es.limit, t.es.g), (0xfff, 0));
    eq!((t.fs.present, t.fs.unusable), (0, 1));
    eq!((t.gs.present, t.gs.unusable), (0, 1));
    eq!(t.tr.type_, 11, "loaded is busy");
    g.load(|a| a.hlt());
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
}

fn cr0() {
    let g = Guest::new(Mode::Long);
    for (cr0, want) in [
        (PG | PE | 0x10, Ok(0)),
        (PG | PE | (1 << 16) | 0x32, Ok(0)),
        (PG | 0x10, Err(EINVAL)),
        (PG | PE | (1 << 29), Err(EINVAL)),
        (PG | PE | (1 << 30), Ok(0)),
        (PG | PE | (3 << 29), Ok(0)),
        (PG | PE | (1 << 32), Err(EINVAL)),
        (PG | PE | (1 << 63), Err(EINVAL)),
        (u64::MAX, Err(EINVAL)),
    ] {
        eq!(attempt(&g.cpu, |s| s.cr0 = cr0), want, "CR0 {cr0:x}");
    }
    // Bits that no CPU has are passed over below bit 32.
    let r = attempt(&g.cpu, |s| s.cr0 = PG | PE | (1 << 8));
    crate::record::line(
        "CR0 with a bit that means nothing",
        "",
        &format!("{r:?} {:x}", g.cpu.sregs().cr0),
        "",
    );
}

fn cr4() {
    let g = Guest::new(Mode::Long);
    for bit in 0..64 {
        // Each bit by itself: what the CPU and CPUID offer is taken, the rest refused.
        let r = attempt(&g.cpu, |s| s.cr4 = PAE | (1 << bit));
        crate::record::line("CR4 bit", &bit.to_string(), &format!("{r:?}"), "");
        if bit >= 32 || matches!(bit, 15 | 19 | 26..=31) {
            eq!(r, Err(EINVAL), "CR4 bit {bit}");
        }
        if matches!(bit, 0..=10) {
            eq!(r, Ok(0), "CR4 bit {bit}");
        }
    }
    eq!(attempt(&g.cpu, |s| s.cr4 = u64::MAX), Err(EINVAL));
    // What guest CPUID does not have is refused even if the CPU has it.
    let c = g.second_vcpu(1);
    let mut cpuid = g.kvm.cpuid();
    let n = cpuid.nent as usize;
    for e in &mut cpuid.entries[..n] {
        if e.function == 7 && e.index == 0 {
            e.ebx &= !((1 << 20) | (1 << 7));
        }
    }
    crate::must!(c.fd.give(SET_CPUID2, &*cpuid));
    eq!(
        attempt(&c, |s| s.cr4 |= 1 << 21),
        Err(EINVAL),
        "SMAP without CPUID"
    );
    eq!(
        attempt(&c, |s| s.cr4 |= 1 << 20),
        Err(EINVAL),
        "SMEP without CPUID"
    );
}

fn efer() {
    let g = Guest::new(Mode::Long);
    for bit in 0..64 {
        let r = attempt(&g.cpu, |s| s.efer = LME | LMA | (1 << bit));
        crate::record::line("EFER bit", &bit.to_string(), &format!("{r:?}"), "");
        if bit >= 22 || matches!(bit, 1..=7 | 9 | 16..=17 | 19) {
            eq!(r, Err(EINVAL), "EFER bit {bit}");
        }
        if matches!(bit, 0 | 8 | 10 | 11) {
            eq!(r, Ok(0), "EFER bit {bit}");
        }
    }
}

fn long_mode_rules() {
    let g = Guest::new(Mode::Long);
    let c = &g.cpu;
    eq!(
        attempt(c, |s| s.cr4 &= !PAE),
        Err(EINVAL),
        "64-bit without PAE"
    );
    eq!(
        attempt(c, |s| s.efer &= !LMA),
        Err(EINVAL),
        "LME and paging without LMA"
    );
    eq!(
        attempt(c, |s| s.efer &= !LME),
        Err(EINVAL),
        "LMA without LME"
    );
    eq!(
        attempt(c, |s| s.cr0 &= !PG),
        Err(EINVAL),
        "LMA without paging"
    );
    eq!(
        attempt(c, |s| (s.cs.l, s.cs.db) = (0, 1)),
        Ok(0),
        "32-bit code in long mode"
    );
    let p = Guest::new(Mode::Prot);
    eq!(
        attempt(&p.cpu, |s| s.efer = LMA),
        Err(EINVAL),
        "LMA outside of long mode"
    );
    eq!(
        attempt(&p.cpu, |s| (s.cs.l, s.cs.db) = (1, 0)),
        Err(EINVAL),
        "64-bit code outside of long mode"
    );
    eq!(
        attempt(&p.cpu, |s| s.efer = LME),
        Ok(0),
        "LME before paging"
    );
    let r = Guest::new(Mode::Real);
    eq!(
        attempt(&r.cpu, |s| s.cr0 |= PG),
        Err(EINVAL),
        "paging in real mode"
    );
}

fn cr3() {
    let g = Guest::new(Mode::Long);
    eq!(
        attempt(&g.cpu, |s| s.cr3 = PML4 | 0x18),
        Ok(0),
        "cache bits"
    );
    for bit in [52, 62, 63] {
        eq!(
            attempt(&g.cpu, |s| s.cr3 = PML4 | (1 << bit)),
            Err(EINVAL),
            "bit {bit}"
        );
    }
    let width = g.kvm.cpuid();
    let n = width.nent as usize;
    let e = width.entries[..n]
        .iter()
        .find(|e| e.function == 0x8000_0008);
    let bits = e.map_or(36, |e| e.eax & 0xff);
    if bits < 52 {
        eq!(
            attempt(&g.cpu, |s| s.cr3 = PML4 | (1 << bits)),
            Err(EINVAL),
            "the first bit beyond {bits}"
        );
        eq!(
            attempt(&g.cpu, |s| s.cr3 = 1 << (bits - 1)),
            Ok(0),
            "the last bit of {bits}"
        );
    }
    // PDPTEs of a PAE guest are read when they are needed: a table that is not there is no error here.
    let p = Guest::new(Mode::Pae);
    eq!(attempt(&p.cpu, |s| s.cr3 = 0x3f00_0000), Ok(0));
}

fn apic_base() {
    let g = Guest::new(Mode::Long);
    let c = &g.cpu;
    let base = c.sregs().apic_base;
    eq!(attempt(c, |s| s.apic_base = base), Ok(0));
    eq!(
        attempt(c, |s| s.apic_base = base | 1),
        Err(EINVAL),
        "a reserved bit"
    );
    eq!(
        attempt(c, |s| s.apic_base = base | (1 << 62)),
        Err(EINVAL),
        "an address that does not exist"
    );
    eq!(
        attempt(c, |s| s.apic_base = 0x400 | 0xfee0_0000),
        Err(EINVAL),
        "x2APIC without being enabled"
    );
    let r = attempt(c, |s| s.apic_base = 0xfee0_0000);
    crate::record::line(
        "disabled APIC",
        "",
        &format!("{r:?} {:x}", c.sregs().apic_base),
        "",
    );
}

fn interrupt_bitmap() {
    let g = Guest::new(Mode::Long);
    let mut s = g.cpu.sregs();
    s.interrupt_bitmap[1] = 1 << 5;
    eq!(g.cpu.fd.give(SET_SREGS, &s), Ok(0));
    let t = g.cpu.sregs();
    eq!(
        t.interrupt_bitmap,
        [0, 1 << 5, 0, 0],
        "the vector is pending"
    );
    // It is delivered at the next entry. With IF clear an Intel CPU would not be entered at all.
    g.mem.write(0x8000, &[0x90, 0xf4]);
    let mut r = g.cpu.regs();
    r.rflags |= 0x200;
    g.cpu.set_regs(&r);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (0x45, 0x8000));
    eq!(
        g.cpu.sregs().interrupt_bitmap,
        [0; 4],
        "and no longer pending"
    );
}

fn cr8() {
    let g = Guest::new(Mode::Long);
    for v in 0..16u64 {
        eq!(attempt(&g.cpu, |s| s.cr8 = v), Ok(0));
        eq!(g.cpu.sregs().cr8, v);
    }
    check!(
        attempt(&g.cpu, |s| s.cr8 = 0x10).is_ok(),
        "not checked here"
    );
    crate::record::line("CR8 of 16", "", &format!("{:x}", g.cpu.sregs().cr8), "");
}

fn get2(c: &Vcpu) -> kvm_sregs2 {
    crate::must!(c.fd.take(GET_SREGS2))
}

/// KVM_GET_SREGS2 tells what KVM_GET_SREGS does, and takes it back.
fn sregs2_round_trip() {
    for mode in [Mode::Real, Mode::Prot, Mode::Paged, Mode::Long] {
        let g = Guest::new(mode);
        eq!(g.cpu.interrupt(0x30), Ok(0));
        let (one, two) = (g.cpu.sregs(), get2(&g.cpu));
        // All but the last field, which differs, and the one in place of which the flags stand.
        eq!(bytes_of(&one)[..280], bytes_of(&two)[..280], "{mode:?}");
        eq!(
            (two.flags, two.pdptrs),
            (0, [0; 4]),
            "{mode:?}: no PAE paging"
        );
        let mut changed = two;
        changed.cr2 = 0x1234;
        changed.gdt.limit = 0x77;
        changed.fs.base = 0x5000;
        eq!(g.cpu.fd.give(SET_SREGS2, &changed), Ok(0), "{mode:?}");
        eq!(bytes_of(&get2(&g.cpu)), bytes_of(&changed), "{mode:?}");
        eq!(
            g.cpu.sregs().interrupt_bitmap,
            one.interrupt_bitmap,
            "{mode:?}: the queued interrupt is left alone"
        );
        for flags in [1, 2, 1 << 63, u64::MAX] {
            let bad = kvm_sregs2 {
                flags,
                cr2: 1,
                ..changed
            };
            eq!(
                g.cpu.fd.give(SET_SREGS2, &bad),
                Err(EINVAL),
                "{mode:?}, {flags:x}"
            );
        }
        let bad = kvm_sregs2 {
            cr0: 0x8000_0000,
            ..changed
        };
        eq!(
            g.cpu.fd.give(SET_SREGS2, &bad),
            Err(EINVAL),
            "{mode:?}: paging without protection"
        );
        eq!(
            bytes_of(&get2(&g.cpu)),
            bytes_of(&changed),
            "{mode:?}: nothing changed"
        );
    }
    let g = Guest::new(Mode::Real);
    for nr in [GET_SREGS2, SET_SREGS2] {
        eq!(g.cpu.fd.num(nr, crate::sys::bad_addr()), Err(libc::EFAULT));
    }
}

fn sregs2_pdptes() {
    let g = Guest::new(Mode::Pae);
    let s = get2(&g.cpu);
    eq!(s.flags, 1);
    eq!(
        s.pdptrs,
        [
            PD | 1,
            (PD + 0x1000) | 1,
            (PD + 0x2000) | 1,
            (PD + 0x3000) | 1
        ]
    );
    eq!(g.cpu.fd.give(SET_SREGS2, &s), Ok(0));
    eq!(bytes_of(&get2(&g.cpu)), bytes_of(&s));
    // Without the flag they are read from memory.
    let again = kvm_sregs2 {
        flags: 0,
        pdptrs: [0; 4],
        ..s
    };
    eq!(g.cpu.fd.give(SET_SREGS2, &again), Ok(0));
    eq!(bytes_of(&get2(&g.cpu)), bytes_of(&s));
    for flags in [2, 3, 1 << 32] {
        eq!(
            g.cpu.fd.give(SET_SREGS2, &kvm_sregs2 { flags, ..s }),
            Err(EINVAL),
            "{flags:x}"
        );
    }
    g.load(|a| a.hlt());
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    eq!(get2(&g.cpu).pdptrs, s.pdptrs);
}
