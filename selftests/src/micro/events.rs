// SPDX-License-Identifier: GPL-2.0
//! Interrupts, NMIs and exceptions.

use crate::guest::*;
use crate::harness::Test;
use crate::kvm::Exit;
use crate::{check, eq};
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/interrupt_modes", interrupt_modes),
    Test::new("micro/interrupt_window", window),
    Test::new("micro/interrupt_window_sti_shadow", sti_shadow),
    Test::new("micro/interrupt_window_mov_ss_shadow", mov_ss_shadow),
    Test::new("micro/interrupt_window_open_at_once", window_open),
    Test::new("micro/interrupt_window_popf", window_popf),
    Test::new("micro/interrupt_after_hlt", after_hlt),
    Test::new("micro/interrupt_nested_window", nested_window),
    Test::new("micro/interrupt_delivery_faults", delivery_faults),
    Test::new("micro/event_delivery_to_device", delivery_to_device),
    Test::new("micro/interrupts_many", many),
    Test::new("micro/nmi_modes", nmi_modes),
    Test::new("micro/nmi_blocked_until_iret", nmi_blocked),
    Test::new("micro/nmi_ignores_if", nmi_ignores_if),
    Test::new("micro/nmi_after_hlt", nmi_after_hlt),
    Test::new("micro/nmi_before_interrupt", nmi_before_interrupt),
    Test::new("micro/exceptions", exceptions),
    Test::new("micro/software_interrupts", software),
    Test::new("micro/page_faults", page_faults),
    Test::new("micro/single_step", single_step),
    Test::new("micro/double_fault", double_fault),
    Test::new("micro/iret_to_user", user_mode),
];

/// A guest of a byte string.
fn bytes(mode: Mode, code: &[u8]) -> Guest {
    let g = Guest::new(mode);
    g.mem.write(CODE as usize, code);
    g
}

fn set_if(g: &Guest, on: bool) {
    let mut r = g.cpu.regs();
    r.rflags = if on {
        r.rflags | 0x200
    } else {
        r.rflags & !0x200
    };
    g.cpu.set_regs(&r);
}

fn interrupt_modes() {
    for mode in Mode::ALL {
        let g = bytes(mode, &[0x90, 0x90, 0xf4]);
        set_if(&g, true);
        eq!(g.cpu.interrupt(0x61), Ok(0));
        let t = g.run_to_trap();
        eq!(
            (t.vector, t.ip, t.flags & 0x200),
            (0x61, CODE, 0x200),
            "{mode:?}"
        );
        eq!(
            g.cpu.regs().rflags & 0x200,
            0,
            "{mode:?}: IF is cleared by the gate"
        );
    }
}

/// Runs until the window opens; gives where the guest was then.
fn until_window(g: &Guest) -> u64 {
    g.cpu.want_window(true);
    eq!(g.cpu.run(), Exit::IrqWindow, "{}", g.describe());
    g.cpu.want_window(false);
    check!(g.cpu.ready() && g.cpu.if_flag(), "the run page says so too");
    g.cpu.regs().rip
}

fn window() {
    for mode in Mode::ALL {
        let g = Guest::new(mode);
        g.load(|a| {
            a.mov(ecx, 1000)?;
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.out(0x10, al)?;
            a.sti()?;
            a.nop()?;
            a.nop()?;
            a.nop()?;
            a.hlt()
        });
        g.cpu.want_window(true);
        g.expect(&out(0x10, &[0]));
        check!(!g.cpu.ready() && !g.cpu.if_flag(), "{mode:?}: closed");
        let rip = until_window(&g);
        eq!(g.cpu.interrupt(0x33), Ok(0));
        let t = g.run_to_trap();
        eq!(
            (t.vector, t.ip),
            (0x33, rip),
            "{mode:?}: delivered where the window opened"
        );
    }
}

fn sti_shadow() {
    // STI; NOP; CLI: the window is open between NOP and CLI only.
    let g = bytes(Mode::Long, &[0xfb, 0x90, 0xfa, 0xf4]);
    let rip = until_window(&g);
    eq!(rip, CODE + 2);
    eq!(g.cpu.interrupt(0x33), Ok(0));
    eq!(g.run_to_trap().ip, CODE + 2);
    // STI; CLI: never open.
    let g = bytes(Mode::Long, &[0xfb, 0xfa, 0xf4]);
    g.cpu.want_window(true);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.cpu.regs().rip, CODE + 3);
}

fn mov_ss_shadow() {
    // Right after a load of SS nothing is delivered either: STI; NOP; MOV SS; CLI.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(eax, u32::from(DATA_SEL))?;
        a.sti()?;
        a.mov(ss, ax)?;
        a.cli()?;
        a.hlt()
    });
    g.cpu.want_window(true);
    let e = g.cpu.run();
    // The shadows join: of STI over MOV SS, of MOV SS over CLI. Some CPUs honour only the first.
    check!(e == Exit::Hlt || e == Exit::IrqWindow, "{e:x?}");
    if e == Exit::IrqWindow {
        let at = g.cpu.regs().rip;
        check!(at > CODE + 6, "not right behind STI: {at:x}");
    }
}

fn window_open() {
    let g = bytes(Mode::Long, &[0xeb, 0xfe]);
    set_if(&g, true);
    g.cpu.want_window(true);
    for _ in 0..5 {
        eq!(g.cpu.run(), Exit::IrqWindow, "open from the start");
        eq!(g.cpu.regs().rip, CODE);
    }
}

fn window_popf() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.push(0x202)?;
        a.popfq()?;
        a.nop()?;
        a.cli()?;
        a.hlt()
    });
    let rip = until_window(&g);
    let popf = CODE
        + (0..8)
            .find(|i| g.mem.rd::<u8>((CODE + i) as usize) == 0x9d)
            .unwrap_or(0);
    eq!(rip, popf + 1, "POPF has no shadow");
}

fn after_hlt() {
    let g = bytes(Mode::Long, &[0xfb, 0xf4, 0x90, 0xf4]);
    eq!(g.cpu.run(), Exit::Hlt);
    check!(g.cpu.ready() && g.cpu.if_flag(), "ready in HLT");
    eq!(g.cpu.regs().rip, CODE + 2);
    eq!(g.cpu.interrupt(0x55), Ok(0));
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (0x55, CODE + 2));
    // A halted guest with a window asked for.
    let g = bytes(Mode::Long, &[0xfb, 0xf4, 0x90, 0xf4]);
    g.cpu.want_window(true);
    let e = g.cpu.run();
    check!(e == Exit::Hlt || e == Exit::IrqWindow, "{e:x?}");
}

fn nested_window() {
    // The handler runs with IF clear; the window opens at its IRET.
    let g = Guest::new(Mode::Long);
    let handler = 0xa000u64;
    g.gate(0x40, handler);
    g.load_at(handler, |a| {
        a.inc(ebx)?;
        a.out(0x20, al)?;
        a.iretq()
    });
    g.load(|a| {
        let mut top = a.create_label();
        a.sti()?;
        a.set_label(&mut top)?;
        a.nop()?;
        a.jmp(top)
    });
    for i in 1..=50u64 {
        let rip = until_window(&g);
        check!((CODE..CODE + 8).contains(&rip), "in the loop: {rip:x}");
        eq!(g.cpu.interrupt(0x40), Ok(0));
        g.cpu.want_window(true);
        eq!(g.cpu.run(), out(0x20, &[0]));
        check!(!g.cpu.ready(), "not in the handler");
        eq!(g.cpu.regs().rbx, i);
    }
}

fn delivery_faults() {
    // The gate is not present: #NP with the vector in the error code instead.
    let g = bytes(Mode::Long, &[0x90, 0xf4]);
    g.mem.wr(IDT as usize + 16 * 0x44, 0u64);
    set_if(&g, true);
    eq!(g.cpu.interrupt(0x44), Ok(0));
    let t = g.run_to_trap();
    eq!(t.ip, CODE);
    check!(matches!(t.vector, 11 | 13), "{t:x?}");
    eq!(t.error & !1, 0x44 * 8 + 2, "{t:x?}");
    // The IDT itself cannot be read for lack of a guest mapping: #PF, with the interrupt gone.
    let g = bytes(Mode::Long, &[0x90, 0xf4]);
    let mut s = g.cpu.sregs();
    s.idt.limit = 0x20f;
    g.cpu.set_sregs(&s);
    set_if(&g, true);
    eq!(g.cpu.interrupt(0x44), Ok(0));
    let t = g.run_to_trap();
    eq!(
        (t.vector, t.error & !1, t.ip),
        (13, 0x44 * 8 + 2, CODE),
        "beyond the limit of the IDT"
    );
}

fn many() {
    // Every vector once, each handled by the same stub.
    let g = bytes(Mode::Long, &[0x90, 0xeb, 0xfd]);
    for v in 32..256u32 {
        g.enter_mode(&g.cpu);
        set_if(&g, true);
        eq!(g.cpu.interrupt(v), Ok(0));
        let t = g.run_to_trap();
        eq!(u32::from(t.vector), v);
    }
}

fn nmi_modes() {
    for mode in Mode::ALL {
        let g = bytes(mode, &[0x90, 0xf4]);
        eq!(g.cpu.nmi(), Ok(0));
        let t = g.run_to_trap();
        eq!((t.vector, t.ip), (2, CODE), "{mode:?}");
    }
}

/// A guest that loops, with an NMI handler of three reports: 0x21 and 0x22 in it, 0x20 in the loop.
fn nmi_guest() -> Guest {
    let g = Guest::new(Mode::Long);
    let handler = 0xa000u64;
    g.gate(2, handler);
    g.load_at(handler, |a| {
        a.out(0x21, al)?;
        a.out(0x22, al)?;
        a.iretq()
    });
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.out(0x20, al)?;
        a.jmp(top)
    });
    g
}

fn nmi_blocked() {
    let g = nmi_guest();
    g.expect(&out(0x20, &[0]));
    eq!(g.cpu.nmi(), Ok(0));
    g.expect(&out(0x21, &[0]));
    // A second one during the handler waits for its IRET.
    eq!(g.cpu.nmi(), Ok(0));
    g.expect(&out(0x22, &[0]));
    g.expect(&out(0x21, &[0]));
    // Two more during the second handler: one is kept.
    eq!(g.cpu.nmi(), Ok(0));
    eq!(g.cpu.nmi(), Ok(0));
    g.expect(&out(0x22, &[0]));
    g.expect(&out(0x21, &[0]));
    g.expect(&out(0x22, &[0]));
    g.expect(&out(0x20, &[0]));
    g.expect(&out(0x20, &[0]));
}

fn nmi_ignores_if() {
    let g = nmi_guest();
    for on in [false, true] {
        set_if(&g, on);
        g.expect(&out(0x20, &[0]));
        eq!(g.cpu.nmi(), Ok(0));
        g.expect(&out(0x21, &[0]));
        g.expect(&out(0x22, &[0]));
        g.expect(&out(0x20, &[0]));
    }
}

fn nmi_after_hlt() {
    let g = bytes(Mode::Long, &[0xf4, 0x90, 0xf4]);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.cpu.nmi(), Ok(0));
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (2, CODE + 1));
}

fn nmi_before_interrupt() {
    let g = nmi_guest();
    g.expect(&out(0x20, &[0]));
    set_if(&g, true);
    eq!(g.cpu.nmi(), Ok(0));
    eq!(g.cpu.interrupt(0x50), Ok(0));
    // Both arrive, whichever first.
    let mut seen = Vec::new();
    for _ in 0..4 {
        match g.cpu.run() {
            Exit::Io { port, .. } => seen.push(port),
            e => panic!("{e:x?}"),
        }
        if seen.last() == Some(&0xee) {
            let t = g.trap();
            eq!(t.vector, 0x50);
            break;
        }
    }
    check!(seen.contains(&0xee), "the interrupt arrived: {seen:x?}");
    crate::record::line("order of NMI and interrupt", "", &format!("{seen:x?}"), "");
}

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
    if crate::sys::on_bochs_svm() {
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
        // The IDT is mapped beforehand: TCG forgets that a fault is the second one where an exit came between the two.
        a.mov(al, byte_ptr(IDT))?;
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
