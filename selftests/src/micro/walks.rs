// SPDX-License-Identifier: GPL-2.0
//! A guest's page tables where there is no memory for them.

use crate::eq;
use crate::guest::*;
use crate::harness::Test;
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[Test::new("micro/walk_tables_in_hole", tables_in_hole)];

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
    eq!(g.cpu.sregs().cr2, LINEAR + 0x123);
}
