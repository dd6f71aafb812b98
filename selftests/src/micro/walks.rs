// SPDX-License-Identifier: GPL-2.0
//! A guest's page tables where there is no memory for them, and where they are not what memory holds.

use crate::eq;
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::Exit;
use crate::sys;
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/walk_tables_in_hole", tables_in_hole),
    Test::new("micro/walk_loaded_pdptes", loaded_pdptes),
];

/// Where the tests put a hole into the linear addresses: the third GiB.
const LINEAR: u64 = 0x8000_0000;
/// An address without memory that a table is said to be at.
const HOLE: u64 = 0x7fff_0000;
/// Page fault.
const PF: u8 = 14;

/// The guest gets the page fault of a translation that is not present, whichever of its tables is missing.
fn tables_in_hole() {
    for entry in [PDPT + 8 * 2, PD + 4096 * 2] {
        for write in [false, true] {
            for user in [false, true] {
                access(entry, write, user);
            }
        }
    }
}

fn access(entry: u64, write: bool, user: bool) {
    let g = Guest::new(Mode::Long);
    g.mem.wr(entry as usize, HOLE | 7);
    g.load(|a| {
        if write {
            a.mov(dword_ptr(rbx), eax)
        } else {
            a.mov(eax, dword_ptr(rbx))
        }
    });
    if user {
        g.to_user();
    }
    let mut r = g.cpu.regs();
    r.rbx = LINEAR + 0x123;
    g.cpu.set_regs(&r);
    let t = g.run_to_trap();
    let error = u32::from(write) * 2 + u32::from(user) * 4;
    eq!((t.vector, t.error, t.ip), (PF, error, CODE));
    // It does not load CR2 for a page fault that is injected.
    if !sys::on_bochs_svm() {
        eq!(g.cpu.sregs().cr2, LINEAR + 0x123);
    }
}

/// With PAE paging, Intel's CPUs go by the PDPTEs that they loaded with CR3, and so do emulated accesses.
fn loaded_pdptes() {
    if sys::on_amd() {
        harness::skip("AMD's CPUs read them from memory each time");
    }
    let g = Guest::new(Mode::Pae);
    let entry = (PDPT + 8 * 3) as usize;
    let old: u64 = g.mem.rd(entry);
    g.load(|a| {
        a.mov(dword_ptr(edi), 0)?;
        a.mov(eax, dword_ptr(ebx))?;
        a.mov(ecx, cr3)?;
        a.mov(dword_ptr(edi), old as u32)?;
        a.mov(cr3, ecx)?;
        a.mov(dword_ptr(edi), 0)?;
        a.mov(dword_ptr(ebx), eax)?;
        a.mov(cr3, ecx)?;
        a.mov(eax, dword_ptr(ebx))
    });
    let mut r = g.cpu.regs();
    (r.rbx, r.rdi) = (MMIO, entry as u64);
    g.cpu.set_regs(&r);
    g.expect(&Exit::Mmio {
        addr: MMIO,
        len: 4,
        write: false,
        data: Vec::new(),
    });
    g.cpu.answer(&[1, 2, 3, 4]);
    g.expect(&Exit::Mmio {
        addr: MMIO,
        len: 4,
        write: true,
        data: vec![1, 2, 3, 4],
    });
    // Now it is loaded as it is.
    let t = g.run_to_trap();
    eq!((t.vector, t.error), (PF, 0));
    eq!(g.cpu.sregs().cr2, MMIO);
}
