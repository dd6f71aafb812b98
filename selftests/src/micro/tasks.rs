// SPDX-License-Identifier: GPL-2.0
//! Hardware task switches of 32-bit guests: by CALL, JMP, IRET, INT n and an exception, with 32-bit and 16-bit TSSs.

use super::prefix::{Forced, PREFIX};
use crate::eq;
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::GET_DEBUGREGS;
use crate::sys;
use iced_x86::code_asm::*;
use kvm_bindings::kvm_debugregs;

pub const TESTS: &[Test] = &[
    Test::new("micro/task_call", call),
    Test::new("micro/task_jump", jump),
    Test::new("micro/task_gate", gate),
    Test::new("micro/task_int1", int1),
    Test::new("micro/task_exception", exception),
    Test::new("micro/task_16_bit", old),
    Test::new("micro/task_vm86", vm86),
    Test::new("micro/task_breakpoints", breakpoints),
];

/// The second task: its TSS, the selector of that, and its code.
const TSS2: u64 = TSS + 0x200;
const TASK2: u16 = 0x40;
const CODE2: u64 = CODE + 0x100;
const STACK2: u64 = STACK - 0x400;
/// Task-switched: set in CR0 by each switch.
const TS: u32 = 8;
/// Nested task.
const NT: u32 = 1 << 14;

/// A protected-mode guest with a second task, whose TSS has 32 or 16 bits.
fn two_tasks(wide: bool) -> Guest {
    let g = Guest::new(Mode::Prot);
    let m = &g.mem;
    let (limit, kind) = if wide { (0x67, 0x89) } else { (0x2b, 0x81) };
    m.wr(
        (GDT + u64::from(TASK2)) as usize,
        limit | TSS2 << 16 | kind << 40,
    );
    let mut s = g.cpu.sregs();
    s.gdt.limit = 0x47;
    g.cpu.set_sregs(&s);
    let at = TSS2 as usize;
    let segs = [DATA_SEL, CODE_SEL, DATA_SEL, DATA_SEL, DATA_SEL, DATA_SEL];
    if wide {
        m.wr(at + 0x20, CODE2 as u32);
        m.wr(at + 0x24, 2u32);
        m.wr(at + 0x38, STACK2 as u32);
        m.wr(at + 0x34, 0x5678u32);
        for (n, seg) in segs.into_iter().enumerate() {
            m.wr(at + 0x48 + 4 * n, u32::from(seg));
        }
    } else {
        m.wr(at + 0xe, CODE2 as u16);
        m.wr(at + 0x10, 2u16);
        m.wr(at + 0x1a, STACK2 as u16);
        m.wr(at + 0x18, 0x5678u16);
        for (n, seg) in segs.into_iter().take(4).enumerate() {
            m.wr(at + 0x22 + 2 * n, seg);
        }
    }
    // Reports its task, EBX, its flags and CR0, and goes back.
    g.load_at(CODE2, |a| {
        a.str(eax)?;
        report(a)?;
        a.mov(eax, ebx)?;
        report(a)?;
        a.pushfd()?;
        a.pop(eax)?;
        report(a)?;
        a.mov(eax, cr0)?;
        report(a)?;
        a.iretd()
    });
    g
}

fn report(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.out(i32::from(PORT_VALUE), eax)
}

/// Behind the switch in the first task: reports the task and EBX.
fn back(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.str(eax)?;
    report(a)?;
    a.mov(eax, ebx)?;
    report(a)?;
    a.hlt()
}

/// call TASK2:0 or jmp TASK2:0
fn far(a: &mut CodeAssembler, opcode: u8) -> Result<(), IcedError> {
    a.db(&[opcode, 0, 0, 0, 0, TASK2 as u8, 0])
}

const THERE_AND_BACK: [u32; 6] = [
    TASK2 as u32,
    0x5678,
    NT | 2,
    0x11 | TS,
    TSS_SEL as u32,
    0x1234,
];

fn busy(g: &Guest, selector: u16) -> bool {
    let kind: u8 = g.mem.rd((GDT + u64::from(selector)) as usize + 5);
    kind & 2 != 0
}

fn call() {
    let g = two_tasks(true);
    g.load(|a| {
        a.mov(ebx, 0x1234)?;
        far(a, 0x9a)?;
        back(a)
    });
    eq!(g.values(), THERE_AND_BACK);
    eq!(busy(&g, TASK2), false);
    eq!(busy(&g, TSS_SEL), true);
    // The link of the nested task
    eq!(g.mem.rd::<u16>(TSS2 as usize), TSS_SEL);
}

fn jump() {
    let g = two_tasks(true);
    g.load(|a| {
        a.mov(ebx, 0x1234)?;
        far(a, 0xea)?;
        back(a)
    });
    g.load_at(CODE2, |a| {
        a.pushfd()?;
        a.pop(eax)?;
        report(a)?;
        a.db(&[0xea, 0, 0, 0, 0, TSS_SEL as u8, 0])
    });
    eq!(g.values(), [2, TSS_SEL.into(), 0x1234]);
    eq!(busy(&g, TASK2), false);
    eq!(busy(&g, TSS_SEL), true);
}

/// A task gate of the IDT for a vector.
fn set_gate(g: &Guest, v: usize) {
    let at = IDT as usize + 8 * v;
    g.mem.wr(at, u64::from(TASK2) << 16 | 0x8500 << 32);
}

fn gate() {
    if sys::on_bochs_svm() {
        harness::skip("Bochs' SVM does not tell that it was delivering an INT n");
    }
    let g = two_tasks(true);
    set_gate(&g, 0x21);
    g.load(|a| {
        a.mov(ebx, 0x1234)?;
        a.int(0x21)?;
        back(a)
    });
    eq!(g.values(), THERE_AND_BACK);
}

fn exception() {
    let g = two_tasks(true);
    set_gate(&g, 13);
    g.load(|a| {
        a.mov(eax, 0x7777)?;
        a.mov(ds, ax)?;
        a.hlt()
    });
    g.load_at(CODE2, |a| {
        a.pop(eax)?;
        report(a)?;
        a.hlt()
    });
    eq!(g.values(), [0x7774], "the error code is on the new stack");
    // The old task goes on with the instruction that faulted.
    eq!(g.mem.rd::<u32>(TSS as usize + 0x20), CODE as u32 + 5);
}

/// INT1 through a gate: it too comes back behind itself. (On the emulators without its intercept, too; AMD's CPUs need that.)
fn int1() {
    let g = two_tasks(true);
    set_gate(&g, 1);
    g.load(|a| {
        a.mov(ebx, 0x1234)?;
        a.int1()?;
        back(a)
    });
    eq!(g.values(), THERE_AND_BACK);
}

fn old() {
    let g = two_tasks(false);
    g.load(|a| {
        a.mov(ebx, 0x1234)?;
        far(a, 0x9a)?;
        back(a)
    });
    eq!(g.values(), THERE_AND_BACK);
}

/// A switch ends the local breakpoints, also where DR7.GD guards the debug registers, and leaves that and the global ones. By the
/// emulator, as TCG lets a guest switch tasks by itself.
fn breakpoints() {
    let _on = Forced::on();
    const GLOBAL: u64 = 1 << 13 | 1 << 10 | 1 << 3;
    const LOCAL: u64 = 1 << 8 | 1 << 4 | 1;
    let g = two_tasks(true);
    g.load(|a| {
        a.mov(eax, CODE2 as i32)?;
        a.mov(dr0, eax)?;
        a.mov(eax, (GLOBAL | LOCAL) as i32)?;
        a.mov(dr7, eax)?;
        a.db(PREFIX)?;
        far(a, 0xea)
    });
    g.load_at(CODE2, |a| {
        a.str(eax)?;
        report(a)?;
        a.hlt()
    });
    eq!(g.values(), [TASK2.into()]);
    let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    eq!((d.dr7, d.dr6), (GLOBAL, 0xffff_0ff0));
}

/// A task in virtual-8086 mode, which an INT n leaves for the first one through a task gate.
fn vm86() {
    if sys::on_bochs_svm() {
        harness::skip("an exit from virtual-8086 mode ends Bochs itself on its SVM");
    }
    const VM: u32 = 1 << 17;
    let g = two_tasks(true);
    let at = TSS2 as usize;
    let flags = 2 | VM | 3 << 12;
    g.mem.wr(at + 0x20, 0u32);
    g.mem.wr(at + 0x24, flags);
    g.mem.wr(at + 0x38, 0x0ff0u32);
    for (n, paragraph) in [0x2000, CODE2 as u32 >> 4, 0x3000, 0x4000, 0x5000, 0x6000]
        .into_iter()
        .enumerate()
    {
        g.mem.wr(at + 0x48 + 4 * n, paragraph);
    }
    // mov ax,ds; inc bx; push ax; int 21h
    g.mem
        .write(CODE2 as usize, &[0x8c, 0xd8, 0x43, 0x50, 0xcd, 0x21]);
    let gate = u64::from(TSS_SEL) << 16 | 0xe500 << 32;
    g.mem.wr(IDT as usize + 8 * 0x21, gate);
    g.load(|a| {
        a.mov(ebx, 0x1234)?;
        far(a, 0xea)?;
        back(a)
    });
    eq!(g.values(), [TSS_SEL.into(), 0x1234]);
    // Where the second task stands, and the first one's way back to it.
    let word = |n: usize| g.mem.rd::<u32>(at + n);
    // (RF may be left from an exit on the way into the INT n.)
    let saved = word(0x24) & !(1 << 16);
    eq!((word(0x20), saved, word(0x38)), (6, flags, 0x0fee));
    eq!((word(0x28) & 0xffff, word(0x34)), (0x4000, 0x5679));
    let seen: Vec<u32> = (0..6).map(|n| word(0x48 + 4 * n) & 0xffff).collect();
    eq!(
        seen,
        [0x2000, CODE2 as u32 >> 4, 0x3000, 0x4000, 0x5000, 0x6000]
    );
    eq!(g.mem.rd::<u16>(0x3_0fee), 0x4000, "its stack");
    eq!(g.mem.rd::<u16>(TSS as usize), TASK2);
    eq!((busy(&g, TASK2), busy(&g, TSS_SEL)), (true, true));
}
