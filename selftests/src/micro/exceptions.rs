// SPDX-License-Identifier: GPL-2.0
//! Exceptions, and what else goes through the guest's descriptor table by itself.

use super::events::bytes;
use crate::guest::*;
use crate::harness::{say, Test};
use crate::kvm::Exit;
use crate::sys;
use crate::{check, eq};
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/exceptions", exceptions),
    Test::new("micro/software_interrupts", software),
    Test::new("micro/page_faults", page_faults),
    Test::new("micro/single_step", single_step),
    Test::new("micro/double_fault", double_fault),
    Test::new("micro/iret_to_user", user_mode),
    Test::new("micro/event_delivery_to_device", delivery_to_device),
];

fn exceptions() {
    type Piece = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    // (what, code before, the faulting bytes' own offset is what the frame must show, vector, error code)
    let cases: [(&str, Piece, u8, u32); 6] = [
        (
            "#DE",
            |a| {
                a.xor(ecx, ecx)?;
                a.div(ecx)
            },
            0,
            0,
        ),
        (
            "#UD",
            |a| {
                a.xor(ecx, ecx)?;
                a.ud2()
            },
            6,
            0,
        ),
        (
            "#GP of a bad selector",
            |a| {
                a.mov(eax, 0x77)?;
                a.mov(ds, ax)
            },
            13,
            0x74,
        ),
        (
            "#NP of a gate",
            |a| {
                a.xor(ecx, ecx)?;
                a.int(0x99)
            },
            13,
            0x99 * 8 + 2,
        ),
        ("#BP", |a| a.int3(), 3, 0),
        (
            "#GP of a privileged MSR",
            |a| {
                a.mov(ecx, 0x1234_5678)?;
                a.rdmsr()
            },
            13,
            0,
        ),
    ];
    for mode in [Mode::Prot, Mode::Pae, Mode::Long] {
        for (what, f, vector, error) in cases {
            if what == "#NP of a gate" && sys::loses_int_n() {
                say("INT n is left out: Bochs' SVM loses it when it exits");
                continue;
            }
            let g = Guest::new(mode);
            let size = if mode == Mode::Long { 16 } else { 8 };
            g.mem.wr(IDT as usize + size * 0x99, 0u64);
            g.load(f);
            let t = g.run_to_trap();
            let v = if what == "#NP of a gate" && t.vector == 11 {
                13
            } else {
                t.vector
            };
            eq!((v, t.error), (vector, error), "{what} in {mode:?}");
            if what != "#BP" {
                check!(
                    t.ip >= CODE && t.ip < CODE + 8,
                    "{what}: a fault, at the instruction {:x}",
                    t.ip
                );
            } else {
                eq!(t.ip, CODE + 1, "a trap");
            }
        }
    }
    let g = bytes(Mode::Real, &[0x0f, 0x0b]);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (6, CODE), "#UD in real mode");
}

fn software() {
    sys::needs_int_n();
    for mode in Mode::ALL {
        let g = bytes(mode, &[0xcd, 0x80, 0xf4]);
        let t = g.run_to_trap();
        eq!((t.vector, t.ip), (0x80, CODE + 2), "{mode:?}");
    }
}

fn page_faults() {
    let g = Guest::new(Mode::Long);
    // 2 MiB pages: 3 is absent, 4 read-only, 5 not executable.
    g.mem.wr(PD as usize + 8 * 3, 0u64);
    g.mem.wr(PD as usize + 8 * 4, 0x20_0000u64 | 0x85);
    g.mem
        .wr(PD as usize + 8 * 5, 0x20_0000u64 | 0x87 | (1 << 63));
    let mut s = g.cpu.sregs();
    s.cr0 |= 1 << 16;
    s.efer |= 1 << 11;
    g.cpu.set_sregs(&s);
    type Piece = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(&str, Piece, u64, u32); 5] = [
        (
            "read of an absent page",
            |a| a.mov(eax, dword_ptr(0x60_0123)),
            0x60_0123,
            0,
        ),
        (
            "write of an absent page",
            |a| a.mov(dword_ptr(0x60_0456), eax),
            0x60_0456,
            2,
        ),
        (
            "write of a read-only page",
            |a| a.mov(dword_ptr(0x80_0010), eax),
            0x80_0010,
            3,
        ),
        (
            "execution of a data page",
            |a| {
                a.mov(eax, 0xa0_0000)?;
                a.jmp(rax)
            },
            0xa0_0000,
            0x11,
        ),
        (
            "execution of an absent page",
            |a| {
                a.mov(eax, 0x60_0000)?;
                a.jmp(rax)
            },
            0x60_0000,
            0x10,
        ),
    ];
    for (what, f, addr, error) in cases {
        let state = (g.cpu.regs(), g.cpu.sregs());
        g.load(f);
        let t = g.run_to_trap();
        eq!(
            (t.vector, t.error, g.cpu.sregs().cr2),
            (14, error, addr),
            "{what}"
        );
        g.cpu.set_sregs(&state.1);
        g.cpu.set_regs(&state.0);
    }
    // Reserved bits, where the CPU sees them.
    g.mem.wr(PD as usize + 8 * 3, 0x60_0087u64 | (1 << 51));
    g.load(|a| a.mov(eax, dword_ptr(0x60_0123)));
    let t = g.run_to_trap();
    // TCG leaves out that the page was present.
    let present = if crate::sys::on_tcg() { t.error & 1 } else { 1 };
    eq!((t.vector, t.error & 9), (14, 8 | present), "a reserved bit");
}

fn single_step() {
    if sys::on_bochs_svm() {
        crate::harness::skip("a guest's single step makes Bochs' SVM crash the host");
    }
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.push(0x102)?;
        a.popfq()?;
        a.nop()?;
        a.hlt()
    });
    let t = g.run_to_trap();
    eq!(t.vector, 1);
    eq!(
        g.mem.rd::<u8>(t.ip as usize - 1),
        0x90,
        "behind the NOP: {:x}",
        t.ip
    );
    eq!(t.flags & 0x100, 0x100);
    // Over instructions that exit: IN and CPUID.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.push(0x102)?;
        a.popfq()?;
        a.in_(al, 0x20)?;
        a.hlt()
    });
    g.expect(&inp(0x20, 1));
    g.cpu.answer(&[1]);
    let t = g.run_to_trap();
    eq!(t.vector, 1, "after IN");
    eq!(g.mem.rd::<u8>(t.ip as usize), 0xf4);
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.push(0x102)?;
        a.popfq()?;
        a.cpuid()?;
        a.hlt()
    });
    let t = g.run_to_trap();
    eq!(t.vector, 1, "after CPUID");
    eq!(g.mem.rd::<u8>(t.ip as usize), 0xf4);
}

fn double_fault() {
    // The gate of #PF is missing: #PF, then #NP or #GP in its delivery, make #DF.
    let g = Guest::new(Mode::Long);
    g.mem.wr(IDT as usize + 16 * 14, 0u64);
    g.mem.wr(PD as usize + 8 * 3, 0u64);
    g.load(|a| {
        // What #DF needs is mapped beforehand: TCG forgets that a fault is the second one where an exit came between the two.
        a.mov(al, byte_ptr(IDT))?;
        a.mov(al, byte_ptr(GDT))?;
        a.push(rax)?;
        a.mov(eax, dword_ptr(0x60_0000))
    });
    let t = g.run_to_trap();
    eq!((t.vector, t.error), (8, 0));
    // A stack that cannot be pushed to: #DF cannot be delivered either.
    let g = Guest::new(Mode::Long);
    g.mem.wr(PD as usize + 8 * 3, 0u64);
    g.load(|a| {
        a.mov(rsp, 0x60_0800u64)?;
        a.push(rax)
    });
    eq!(g.cpu.run(), Exit::Shutdown);
}

fn user_mode() {
    // Ring 3 by IRET, back by an interrupt gate through the TSS's stack; port access from there is refused.
    let g = Guest::new(Mode::Long);
    g.mem.wr(GDT as usize + 0x28, 0x00af_fb00_0000_ffffu64);
    g.mem.wr(GDT as usize + 0x30, 0x00cf_f300_0000_ffffu64);
    g.mem.wr(TSS as usize + 4, 0x7800u64);
    // No I/O permission map.
    g.mem.wr(TSS as usize + 0x66, 0xffffu16);
    let (user, stack) = (0x9000u64, 0x7400u64);
    g.load(|a| {
        a.push(0x33)?;
        a.push(stack as i32)?;
        a.push(2)?;
        a.push(0x2b)?;
        a.push(user as i32)?;
        a.iretq()
    });
    g.load_at(user, |a| {
        a.inc(ebx)?;
        a.mov(dword_ptr(DATA), ebx)?;
        a.in_(al, 0x20)
    });
    let t = g.run_to_trap();
    eq!((t.vector, t.error), (13, 0), "IN in ring 3");
    eq!(g.mem.rd::<u32>(DATA as usize), 1);
    let top = g.cpu.regs().rsp;
    check!(
        (0x7700..0x7800).contains(&top),
        "on the stack of the TSS: {top:x}"
    );
    eq!(g.mem.rd::<u64>(top as usize + 24), 0x2b, "came from ring 3");
}

/// The descriptor table of an exception, or the stack of its handler, is where no memory is: no instruction can be emulated for
/// the CPU's own access, and user space is told of what was under way.
fn delivery_to_device() {
    use kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV;
    let expect = |g: &Guest, at: u64, what: &str| match g.cpu.run() {
        Exit::Internal(KVM_INTERNAL_ERROR_DELIVERY_EV, data) => {
            eq!((data.len(), data[3] & !7), (5, at), "{what}: {data:x?}")
        }
        e => check!(false, "{what}: {e:x?}{}", g.describe()),
    };
    // UD2 and INT3, the gates of the table of which are in a device.
    for (vector, code) in [(6u64, &[0x0f, 0x0b][..]), (3, &[0xcc])] {
        let g = bytes(Mode::Long, code);
        let mut s = g.cpu.sregs();
        s.idt.base = MMIO;
        g.cpu.set_sregs(&s);
        expect(&g, MMIO + 16 * vector, "gate");
        // The event is not lost: with a table in memory it arrives.
        s.idt.base = IDT;
        g.cpu.set_sregs(&s);
        let t = g.run_to_trap();
        eq!(
            (u64::from(t.vector), t.ip),
            (vector, CODE + (vector == 3) as u64)
        );
    }
    // A stack in a device: SS:RSP is pushed first.
    let g = bytes(Mode::Long, &[0x0f, 0x0b]);
    let mut r = g.cpu.regs();
    r.rsp = MMIO + 0x1000;
    g.cpu.set_regs(&r);
    expect(&g, MMIO + 0x1000 - 8, "stack");
}
