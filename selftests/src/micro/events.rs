// SPDX-License-Identifier: GPL-2.0
//! Interrupts and NMIs.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::{Exit, GET_DEBUGREGS, GET_VCPU_EVENTS, SET_DEBUGREGS, SET_VCPU_EVENTS};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::{kvm_debugregs, kvm_vcpu_events};

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
    Test::new("micro/interrupt_outlives_failed_entry", failed_entry),
    Test::new("micro/interrupts_many", many),
    Test::new("micro/nmi_modes", nmi_modes),
    Test::new("micro/nmi_blocked_until_iret", nmi_blocked),
    Test::new("micro/nmi_ignores_if", nmi_ignores_if),
    Test::new("micro/nmi_after_hlt", nmi_after_hlt),
    Test::new("micro/nmi_before_interrupt", nmi_before_interrupt),
    Test::new("micro/nmi_debug_status_kept", nmi_debug_status_kept).no_ab(),
    Test::new("micro/nmi_breakpoint_after_iret", nmi_breakpoint).no_ab(),
    Test::new("micro/nmi_single_step_kept", nmi_single_step).no_ab(),
];

/// A guest of a byte string.
pub(super) fn bytes(mode: Mode, code: &[u8]) -> Guest {
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

/// What an entry should have injected waits where that entry fails, as VMX's do for a bad segment.
fn failed_entry() {
    if crate::sys::on_amd() {
        harness::skip("SVM takes the privilege of SS for that of the code, whatever CS says");
    }
    if !crate::sys::unrestricted_guest() {
        harness::skip("such a guest is emulated without unrestricted guest");
    }
    let events = |g: &Guest| -> kvm_vcpu_events { crate::must!(g.cpu.fd.take(GET_VCPU_EVENTS)) };
    const IRQ: u8 = 0x61;
    const NMI: u8 = 2;
    const UD: u8 = 6;
    for (what, vector) in [("an interrupt", IRQ), ("an NMI", NMI), ("an exception", UD)] {
        let g = bytes(Mode::Prot, &[0x90, 0x90, 0xf4]);
        set_if(&g, true);
        let good = g.cpu.sregs();
        let mut bad = good;
        // CS and SS of different privilege (Intel SDM, "Checks on Guest Segment Registers").
        bad.ss.dpl = 3;
        g.cpu.set_sregs(&bad);
        match vector {
            IRQ => eq!(g.cpu.interrupt(IRQ.into()), Ok(0)),
            NMI => eq!(g.cpu.nmi(), Ok(0)),
            _ => {
                let mut e = events(&g);
                (e.exception.injected, e.exception.nr) = (1, UD);
                eq!(g.cpu.fd.give(SET_VCPU_EVENTS, &e), Ok(0));
            }
        }
        match g.cpu.run() {
            Exit::FailEntry(_) => {}
            e => panic!("{what}: {e:x?}{}", g.describe()),
        }
        let e = events(&g);
        let waits = (e.interrupt.injected, e.nmi.injected, e.exception.injected);
        let want = |v| u8::from(vector == v);
        eq!(waits, (want(IRQ), want(NMI), want(UD)), "{what}");
        eq!(e.nmi.masked, 0, "{what}");
        g.cpu.set_sregs(&good);
        let t = g.run_to_trap();
        eq!((t.vector, t.ip), (vector, CODE), "{what}");
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

/// DR6 as after reset.
const DR6: u64 = 0xffff_0ff0;

/// Sets the guest's debug registers: where breakpoints 0 and 1 are, DR6, and the enable bits of DR7, all for execution.
fn set_breakpoints(g: &Guest, at: [u64; 2], status: u64, enables: u64) {
    let mut d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    d.db[..2].copy_from_slice(&at);
    (d.dr6, d.dr7) = (status, 0x400 | enables);
    eq!(g.cpu.fd.give(SET_DEBUGREGS, &d), Ok(0));
}

fn debug_status(g: &Guest) -> u64 {
    let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    d.dr6
}

/// Runs a fresh guest of [`nmi_guest`] into the handler of an NMI, with another one waiting for its end.
fn into_first_nmi(g: &Guest) {
    g.expect(&out(0x20, &[0]));
    eq!(g.cpu.nmi(), Ok(0));
    g.expect(&out(0x21, &[0]));
    eq!(g.cpu.nmi(), Ok(0));
}

fn on_step_capable() {
    if crate::sys::on_bochs_svm() {
        harness::skip(
            "Bochs' SVM does not load DR6, and a guest's single step makes it crash the host",
        );
    }
}

/// Waiting for the end of an NMI's handler is nothing that the guest's DR6 tells of, and no #DB, whether breakpoints are in use or not.
/// DR6 still tells of one that was hit before.
fn nmi_debug_status_kept() {
    on_step_capable();
    let g = nmi_guest();
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rax, dr6)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(eax, 0)?;
        a.out(0x20, al)?;
        a.jmp(top)
    });
    for enables in [1, 0] {
        set_breakpoints(&g, [0x5000, 0], DR6 | 1, enables);
        into_first_nmi(&g);
        g.expect(&out(0x22, &[0]));
        g.expect(&out(0x21, &[0]));
        eq!(debug_status(&g), DR6 | 1, "in the second handler");
        g.expect(&out(0x22, &[0]));
        g.expect(&out(0x20, &[0]));
        g.expect(&out(0x20, &[0]));
        eq!(debug_status(&g), DR6 | 1, "after it");
        eq!(
            g.mem.rd::<u64>(DATA as usize),
            DR6 | 1,
            "as the guest sees it"
        );
    }
}

/// What the NMI handlers of [`nmi_guest`] report up to the first trap: how many times they ran, and the trap.
fn nmis_and_trap(g: &Guest) -> (u32, Trap) {
    let mut handlers = 0;
    loop {
        match g.cpu.run() {
            Exit::Io { port: 0x21, .. } => handlers += 1,
            Exit::Io { port: 0x22, .. } => {}
            Exit::Io { port, .. } if port == u16::from(PORT_TRAP) => return (handlers, g.trap()),
            e => {
                let frame: [u64; 5] =
                    std::array::from_fn(|n| g.mem.rd(STACK as usize - 40 + 8 * n));
                panic!(
                    "{e:x?} after {handlers} more, the last frame {frame:x?}{}",
                    g.describe()
                )
            }
        }
    }
}

/// A breakpoint behind the IRET at which an NMI waits is the guest's, and its DR6 tells of that only.
fn nmi_breakpoint() {
    on_step_capable();
    let g = nmi_guest();
    // A first one touches all that a delivery needs: where that faults on Bochs, it sets RF in the frame (doc/errata.md).
    g.expect(&out(0x20, &[0]));
    eq!(g.cpu.nmi(), Ok(0));
    g.expect(&out(0x21, &[0]));
    g.expect(&out(0x22, &[0]));
    into_first_nmi(&g);
    // Where both handlers return to: the jump.
    set_breakpoints(&g, [0x5000, CODE + 2], DR6 | 1, 5);
    g.expect(&out(0x22, &[0]));
    let (_, t) = nmis_and_trap(&g);
    eq!((t.vector, t.ip), (1, CODE + 2));
    eq!(debug_status(&g), DR6 | 2);
}

/// An IRET that sets RFLAGS.TF, with an NMI waiting for it: the guest's own step is made.
fn nmi_single_step() {
    on_step_capable();
    let g = nmi_guest();
    into_first_nmi(&g);
    // TF in the flags that the IRET is going to load.
    let flags = g.cpu.regs().rsp as usize + 16;
    g.mem.wr(flags, g.mem.rd::<u64>(flags) | 0x100);
    g.expect(&out(0x22, &[0]));
    let (handlers, t) = nmis_and_trap(&g);
    eq!((handlers, t.vector, t.ip), (1, 1, CODE), "behind the jump");
    eq!(t.flags & 0x100, 0x100);
    eq!(debug_status(&g), DR6 | 1 << 14);
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
