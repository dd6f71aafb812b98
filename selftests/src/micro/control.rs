// SPDX-License-Identifier: GPL-2.0
//! Control and debug registers as the guest reads and writes them.

use crate::guest::*;
use crate::harness::Test;
use crate::kvm::Exit;
use crate::sys::{on_bochs_svm, on_tcg};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::KVM_EXIT_SET_TPR;

pub const TESTS: &[Test] = &[
    Test::new("micro/cr_reads_and_writes", cr_access),
    Test::new("micro/cr8_lowered", cr8_lowered),
    Test::new("micro/cr_bad_writes", cr_bad_writes),
    Test::new("micro/lmsw_clts_smsw", lmsw_clts),
    Test::new("micro/debug_registers", debug_registers),
];

fn cr_access() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(rax, cr0)?;
        a.out(0xf0, eax)?;
        a.mov(rax, 0x8001_0033u64)?;
        a.mov(cr0, rax)?;
        a.mov(rax, cr0)?;
        a.out(0xf0, eax)?;
        a.mov(rax, cr4)?;
        a.out(0xf0, eax)?;
        a.or(rax, 0x280)?;
        a.mov(cr4, rax)?;
        a.mov(rax, cr4)?;
        a.out(0xf0, eax)?;
        a.mov(rax, 0x1234_5678_9abcu64)?;
        a.mov(cr2, rax)?;
        a.mov(rax, cr3)?;
        a.out(0xf0, eax)?;
        a.mov(cr3, rax)?;
        a.mov(rax, 9u64)?;
        a.mov(cr8, rax)?;
        a.xor(eax, eax)?;
        a.mov(rax, cr8)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    let mut v = g.values();
    // Where CR4 is read without an exit, the guest sees that the host has machine checks on.
    for x in v.iter_mut().skip(2).take(2) {
        *x &= !0x40;
    }
    eq!(
        v,
        vec![0x8000_0011, 0x8001_0033, 0x20, 0x2a0, PML4 as u32, 9]
    );
    let s = g.cpu.sregs();
    eq!(
        (s.cr0, s.cr4 & !0x40, s.cr3, s.cr8),
        (0x8001_0033, 0x2a0, PML4, 9)
    );
    // There a page fault of the host, before the guest is entered again, leaves its address.
    if !on_bochs_svm() {
        eq!(s.cr2, 0x1234_5678_9abc);
    }
}

/// A priority that goes down is told to user space, whose interrupt controller may have an interrupt that it held back.
fn cr8_lowered() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        for priority in [9u64, 9, 2, 2, 5, 0] {
            a.mov(rax, priority)?;
            a.mov(cr8, rax)?;
        }
        a.hlt()
    });
    let told = Exit::Other(KVM_EXIT_SET_TPR);
    for priority in [2, 0] {
        eq!(g.cpu.run(), told, "{}", g.describe());
        let s = g.cpu.sregs();
        eq!((s.cr8, g.cpu.regs().rax), (priority, priority));
    }
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
}

fn cr_bad_writes() {
    // Code that loads RAX and writes it must fault with #GP(0), at the write.
    type Piece = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(&str, Piece); 7] = [
        ("CR0 with an upper bit", |a| {
            a.mov(rax, 0x1_8000_0011u64)?;
            a.mov(cr0, rax)
        }),
        ("CR0.PG without PE", |a| {
            a.mov(rax, 0x8000_0010u64)?;
            a.mov(cr0, rax)
        }),
        ("CR0.NW without CD", |a| {
            a.mov(rax, 0xa000_0011u64)?;
            a.mov(cr0, rax)
        }),
        ("CR4 with a bit that does not exist", |a| {
            a.mov(rax, (1u64 << 31) | 0x20)?;
            a.mov(cr4, rax)
        }),
        ("CR4.PAE cleared in long mode", |a| {
            a.xor(eax, eax)?;
            a.mov(cr4, rax)
        }),
        ("CR8 of 16", |a| {
            a.mov(rax, 16u64)?;
            a.mov(cr8, rax)
        }),
        ("CR3 with a high bit", |a| {
            a.mov(rax, (1u64 << 62) | PML4)?;
            a.mov(cr3, rax)
        }),
    ];
    for (what, f) in cases {
        if on_tcg() && matches!(what, "CR0 with an upper bit" | "CR3 with a high bit") {
            continue;
        }
        let g = Guest::new(Mode::Long);
        g.load(f);
        let before = g.cpu.sregs();
        let t = g.run_to_trap();
        eq!((t.vector, t.error), (13, 0), "{what}");
        check!(t.ip > CODE, "{what}: at the write, {:x}", t.ip);
        let after = g.cpu.sregs();
        eq!(
            (before.cr0, before.cr3, before.cr4, before.cr8),
            (after.cr0, after.cr3, after.cr4, after.cr8),
            "{what}"
        );
    }
    // CR1, CR5 and the like do not exist.
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0x0f, 0x20, 0xe8, 0xf4]);
    eq!(g.run_to_trap().vector, 6, "CR5");
}

fn lmsw_clts() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(eax, 0xf)?;
        a.lmsw(ax)?;
        a.mov(rax, cr0)?;
        a.out(0xf0, eax)?;
        a.clts()?;
        a.smsw(eax)?;
        a.out(0xf0, eax)?;
        // LMSW cannot clear PE.
        a.xor(eax, eax)?;
        a.lmsw(ax)?;
        a.mov(rax, cr0)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    eq!(g.values(), vec![0x8000_001f, 0x8000_0017, 0x8000_0011]);
}

fn debug_registers() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        for i in [1u64, 2, 3] {
            a.mov(rax, 0x1111_1111_1111u64 * i)?;
            match i {
                1 => a.mov(dr1, rax)?,
                2 => a.mov(dr2, rax)?,
                _ => a.mov(dr3, rax)?,
            }
        }
        a.mov(rax, CODE + 0x100)?;
        a.mov(dr0, rax)?;
        a.mov(rax, 0x402u64)?;
        a.mov(dr7, rax)?;
        // Exits in between must not lose them.
        a.out(0x10, al)?;
        a.out(0x10, al)?;
        a.mov(rax, dr1)?;
        a.out(0xf0, eax)?;
        a.mov(rax, dr3)?;
        a.shr(rax, 16)?;
        a.out(0xf0, eax)?;
        a.mov(rax, dr7)?;
        a.out(0xf0, eax)?;
        a.mov(rax, dr6)?;
        a.out(0xf0, eax)?;
        a.mov(rax, CODE + 0x100)?;
        a.jmp(rax)
    });
    g.mem.write(CODE as usize + 0x100, &[0x90, 0xf4]);
    eq!(g.cpu.run(), out(0x10, &[2]));
    eq!(g.cpu.run(), out(0x10, &[2]));
    let mut v = Vec::new();
    let e = g.run_values(&mut v);
    eq!(v, vec![0x1111_1111, 0x3333_3333, 0x402, 0xffff_0ff0]);
    check!(
        matches!(e, Exit::Io { port: 0xee, .. }),
        "a breakpoint: {e:x?}{}",
        g.describe()
    );
    let t = g.trap();
    eq!(
        (t.vector, t.ip),
        (1, CODE + 0x100),
        "before the instruction"
    );
    // What DR6 says is read by the guest.
    g.load_at(0xb000, |a| {
        a.mov(rax, dr6)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    let mut r = g.cpu.regs();
    r.rip = 0xb000;
    g.cpu.set_regs(&r);
    let hit = if on_bochs_svm() { 0 } else { 1 };
    eq!(g.values(), vec![0xffff_0ff0 | hit]);
}
