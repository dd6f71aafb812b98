// SPDX-License-Identifier: GPL-2.0
//! Process-context identifiers: two address spaces with a PCID each, INVPCID, and what is not allowed.
//!
//! Which translations a TLB keeps cannot be seen where it may forget at any time. What can: no access uses a translation that was given up.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::{SET_CPUID2, SET_SREGS};
use crate::sys;
use crate::{check, eq, must};
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/pcid_spaces", spaces),
    Test::new("micro/pcid_not_allowed", not_allowed),
    Test::new("micro/pcid_by_vmm", by_vmm),
];

/// The second space's tables, and a page table of each space for what lies at `PLACE`.
const PML4_B: u64 = 0x1_8000;
const PDPT_B: u64 = 0x1_9000;
const PD_B: u64 = 0x1_a000;
const PT_A: u64 = 0x1_b000;
const PT_B: u64 = 0x1_c000;
/// The address whose meaning differs.
const PLACE: u64 = 8 << 20;
/// Pages that it can mean; each begins with its number.
const PAGES: [u64; 3] = [DATA + 0x1000, DATA + 0x2000, DATA + 0x3000];
/// INVPCID's operand.
const OPERAND: u64 = DATA;

const PCIDE: u64 = 1 << 17;
const NO_FLUSH: u64 = 1 << 63;

type Code = Result<(), IcedError>;

fn has_pcid() -> bool {
    let has = sys::cpuid(1, 0)[2] >> 17 & 1 != 0;
    if !has {
        harness::skip("this CPU has no PCIDs");
    }
    has
}

fn has_invpcid() -> bool {
    sys::cpuid(7, 0)[1] >> 10 & 1 != 0
}

/// A 64-bit guest with both spaces; it is in the first.
fn guest() -> Guest {
    let g = Guest::new(Mode::Long);
    let m = &g.mem;
    m.wr(PML4_B as usize, PDPT_B | 7);
    m.wr(PDPT_B as usize, PD_B | 7);
    for i in 0..512u64 {
        m.wr((PD_B + 8 * i) as usize, (i << 21) | 0x87);
    }
    let entry = 8 * (PLACE >> 21);
    m.wr((PD + entry) as usize, PT_A | 7);
    m.wr((PD_B + entry) as usize, PT_B | 7);
    m.wr(PT_A as usize, PAGES[0] | 7);
    m.wr(PT_B as usize, PAGES[1] | 7);
    for (n, page) in PAGES.iter().enumerate() {
        m.wr(*page as usize, n as u32);
    }
    g
}

fn enable(a: &mut CodeAssembler) -> Code {
    a.mov(rax, cr4)?;
    a.or(rax, PCIDE as i32)?;
    a.mov(cr4, rax)
}

fn enter(a: &mut CodeAssembler, cr3_value: u64) -> Code {
    a.mov(rax, cr3_value)?;
    a.mov(cr3, rax)
}

/// Tells which page PLACE is.
fn tell(a: &mut CodeAssembler) -> Code {
    a.mov(eax, dword_ptr(PLACE))?;
    a.out(u32::from(PORT_VALUE), eax)
}

/// Makes PLACE another page, and gives the old translation of `pcid` up.
fn remap(a: &mut CodeAssembler, table: u64, page: usize, kind: u64, pcid: u64) -> Code {
    a.mov(rax, PAGES[page] | 7)?;
    a.mov(qword_ptr(table), rax)?;
    invalidate(a, kind, pcid, PLACE)
}

fn invalidate(a: &mut CodeAssembler, kind: u64, pcid: u64, address: u64) -> Code {
    a.mov(rax, pcid)?;
    a.mov(qword_ptr(OPERAND), rax)?;
    a.mov(rax, address)?;
    a.mov(qword_ptr(OPERAND + 8), rax)?;
    a.mov(rcx, kind)?;
    a.invpcid(rcx, xmmword_ptr(OPERAND))
}

fn spaces() {
    if !has_pcid() {
        return;
    }
    let g = guest();
    g.load(|a| {
        enable(a)?;
        for (space, pcid) in [(PML4, 1), (PML4_B, 2), (PML4, 1 | NO_FLUSH)] {
            enter(a, space | pcid)?;
            tell(a)?;
        }
        // The bit is of the MOV, not of the register.
        a.mov(rax, cr3)?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.shr(rax, 32)?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.hlt()
    });
    eq!(g.values(), vec![0, 1, 0, PML4 as u32 | 1, 0]);
    eq!(g.cpu.sregs().cr3, PML4 | 1);
    if !has_invpcid() {
        harness::say("# this CPU lacks INVPCID");
        return;
    }
    let g = guest();
    g.load(|a| {
        enable(a)?;
        enter(a, PML4_B | 2)?;
        tell(a)?;
        enter(a, PML4 | 1)?;
        // One address; one PCID; everything, with global translations and without.
        for (kind, page) in [(0, 1), (1, 2), (2, 0), (3, 1)] {
            remap(a, PT_A, page, kind, 1)?;
            tell(a)?;
        }
        // Another PCID's, whose space is entered without a flush.
        for (kind, page) in [(1, 2), (0, 0)] {
            remap(a, PT_B, page, kind, 2)?;
            enter(a, PML4_B | 2 | NO_FLUSH)?;
            tell(a)?;
            enter(a, PML4 | 1 | NO_FLUSH)?;
        }
        a.hlt()
    });
    eq!(g.values(), vec![1, 1, 2, 0, 1, 2, 0]);
}

/// #GP(0) at the instruction, and nothing has changed.
fn faults(what: &str, g: &Guest, code: impl FnOnce(&mut CodeAssembler) -> Code) {
    g.load(code);
    let t = g.run_to_trap();
    eq!((t.vector, t.error), (13, 0), "{what}");
    check!(
        t.ip > CODE,
        "{what}: behind the first instruction, {:x}",
        t.ip
    );
}

fn not_allowed() {
    if !has_pcid() {
        return;
    }
    let enabled = |g: &Guest| g.cpu.sregs().cr4 & PCIDE != 0;

    let g = guest();
    faults("with a PCID in CR3", &g, |a| {
        enter(a, PML4 | 8)?;
        enable(a)
    });
    check!(!enabled(&g), "with a PCID in CR3");

    let g = Guest::new(Mode::Pae);
    faults("outside of long mode", &g, |a| {
        a.mov(eax, cr4)?;
        a.or(eax, PCIDE as i32)?;
        a.mov(cr4, eax)
    });
    check!(!enabled(&g), "outside of long mode");

    let g = guest();
    let mut c = g.kvm.cpuid();
    let n = c.nent as usize;
    for e in c.entries[..n].iter_mut().filter(|e| e.function == 1) {
        e.ecx &= !(1 << 17);
    }
    must!(sys::ioctl_with(g.cpu.fd.0.raw(), SET_CPUID2, &mut { *c }));
    faults("without the feature in CPUID", &g, enable);
    check!(!enabled(&g), "without the feature in CPUID");

    if !has_invpcid() {
        harness::say("# this CPU lacks INVPCID");
        return;
    }
    for (what, kind, pcid, address) in [
        ("INVPCID of type 4", 4, 1, PLACE),
        ("INVPCID of a PCID above 4095", 1, 0x1000, PLACE),
        ("INVPCID of an address that is not canonical", 0, 1, 1 << 63),
    ] {
        faults(what, &guest(), |a| {
            enable(a)?;
            invalidate(a, kind, pcid, address)
        });
    }
    for kind in [0, 1] {
        faults("INVPCID of a PCID while there are none", &guest(), |a| {
            invalidate(a, kind, 1, PLACE)
        });
    }
}

fn by_vmm() {
    if !has_pcid() {
        return;
    }
    let g = guest();
    let mut s = g.cpu.sregs();
    s.cr4 |= PCIDE;
    s.cr3 = PML4_B | 5;
    g.cpu.set_sregs(&s);
    let now = g.cpu.sregs();
    eq!((now.cr3, now.cr4 & PCIDE), (PML4_B | 5, PCIDE));
    // The bit of the instruction is none of the register's.
    s.cr3 = PML4 | 5 | NO_FLUSH;
    eq!(g.cpu.fd.give(SET_SREGS, &s), Err(libc::EINVAL));
    eq!(g.cpu.sregs().cr3, PML4_B | 5);
    g.load(|a| {
        tell(a)?;
        a.mov(rax, cr3)?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.hlt()
    });
    eq!(g.values(), vec![1, PML4_B as u32 | 5]);
}
