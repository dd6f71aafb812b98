// SPDX-License-Identifier: GPL-2.0
//! KVM_SET_GUEST_DEBUG: single steps, breakpoints of the hardware and breakpoint instructions, unseen by the guest.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{bad_addr, filled};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::{EBUSY, EFAULT};

pub const TESTS: &[Test] = &[
    Test::new("micro/debug_single_step", single_step),
    Test::new("micro/debug_step_over_exits", over_exits),
    Test::new("micro/debug_step_sti", step_sti),
    Test::new("micro/debug_step_hides_flag", hides_flag),
    Test::new("micro/debug_hw_breakpoint", hw_breakpoint),
    Test::new("micro/debug_hw_watchpoint", hw_watchpoint),
    Test::new("micro/debug_general_detect", general_detect),
    Test::new(
        "micro/debug_general_detect_of_debugger",
        general_detect_of_debugger,
    ),
    Test::new("micro/debug_sw_breakpoint", sw_breakpoint),
    Test::new("micro/debug_inject", inject),
    Test::new("micro/debug_handed_back", handed_back).no_ab(),
    Test::new("micro/debug_handed_back_in_shadow", handed_back_in_shadow).no_ab(),
    Test::new("micro/debug_block_interrupts", block_interrupts),
    Test::new("micro/debug_guest_registers", guest_registers),
    Test::new("micro/debug_others_registers", others_registers).no_ab(),
    Test::new("micro/debug_resume_flag", resume_flag).no_ab(),
];

fn on_step_capable() {
    if crate::sys::on_bochs_svm() {
        harness::skip(
            "a guest's single step makes Bochs' SVM crash the host, and it does not load DR6",
        );
    }
}

fn debug(c: &Vcpu, bits: u32) {
    eq!(c.guest_debug(bits, [0; 4], 0), Ok(0));
}

/// Runs to KVM_EXIT_DEBUG of a #DB; gives where, and DR6.
fn stop(g: &Guest) -> (u64, u64) {
    match g.cpu.run() {
        Exit::Debug {
            vector: 1,
            pc,
            dr6: why,
        } => (pc, why),
        e => panic!("expected a stop, got {e:x?}{}", g.describe()),
    }
}

const BS: u64 = 1 << 14;

fn single_step() {
    on_step_capable();
    for mode in Mode::ALL {
        let g = Guest::new(mode);
        g.mem.write(CODE as usize, &[0x90, 0x90, 0x90, 0xf4]);
        debug(&g.cpu, KVM_GUESTDBG_SINGLESTEP);
        for n in 1..=3 {
            let (pc, why) = stop(&g);
            eq!(pc, CODE + n, "{mode:?}");
            eq!(why, 0xffff_0ff0 | BS, "{mode:?}");
            eq!(g.cpu.regs().rip, CODE + n, "{mode:?}");
        }
        debug(&g.cpu, 0);
        eq!(g.cpu.run(), Exit::Hlt, "{mode:?}: {}", g.describe());
    }
}

fn over_exits() {
    on_step_capable();
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.cpuid()?;
        a.in_(al, 0x20)?;
        a.out(0x21, al)?;
        a.mov(rcx, cr0)?;
        a.mov(cr0, rcx)?;
        a.mov(eax, dword_ptr(MMIO))?;
        a.nop()?;
        a.hlt()
    });
    debug(&g.cpu, KVM_GUESTDBG_SINGLESTEP);
    eq!(stop(&g).0, CODE + 2, "after CPUID");
    g.expect(&inp(0x20, 1));
    g.cpu.answer(&[1]);
    eq!(stop(&g).0, CODE + 4, "after IN");
    g.expect(&out(0x21, &[1]));
    eq!(stop(&g).0, CODE + 6, "after OUT");
    eq!(stop(&g).0, CODE + 9, "after a move from CR0");
    eq!(stop(&g).0, CODE + 12, "after a move to CR0");
    match g.cpu.run() {
        Exit::Mmio {
            addr: MMIO,
            write: false,
            ..
        } => g.cpu.answer(&[1, 2, 3, 4]),
        e => panic!("expected a device access, got {e:x?}{}", g.describe()),
    }
    let (pc, _) = stop(&g);
    check!(g.mem.rd::<u8>(pc as usize) == 0x90, "after MMIO: {pc:x}");
    eq!(g.cpu.regs().rax, 0x0403_0201);
}

/// A step over STI and MOV SS ends behind it, though no interrupt could be taken there.
fn step_sti() {
    on_step_capable();
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(eax, ss)?;
        a.sti()?;
        a.nop()?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    debug(&g.cpu, KVM_GUESTDBG_SINGLESTEP);
    // Six steps, or one less where the CPU steps over MOV SS and the next instruction at once.
    let mut at = CODE;
    for _ in 0..6 {
        let (pc, _) = stop(&g);
        check!(pc > at, "forward: {at:x} {pc:x}");
        at = pc;
        if g.mem.rd::<u8>(pc as usize) == 0xf4 {
            break;
        }
    }
    eq!(g.mem.rd::<u8>(at as usize), 0xf4, "it comes to the HLT");
    debug(&g.cpu, 0);
    eq!(g.cpu.run(), Exit::Hlt);
}

fn hides_flag() {
    on_step_capable();
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0x90, 0x90, 0xf4]);
    debug(&g.cpu, KVM_GUESTDBG_SINGLESTEP);
    eq!(g.cpu.regs().rflags, 2, "before");
    stop(&g);
    eq!(g.cpu.regs().rflags & 0x100, 0, "after");
    // The guest's own DR6 is not touched.
    let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    eq!(d.dr6, 0xffff_0ff0);
    // Registers that are set elsewhere do not step, at the same place they do.
    g.cpu.set_regs(&g.cpu.regs());
    debug(&g.cpu, KVM_GUESTDBG_SINGLESTEP);
    g.cpu.set_regs(&g.cpu.regs());
    eq!(stop(&g).0, CODE + 2);
    debug(&g.cpu, 0);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.cpu.regs().rflags & 0x100, 0);
}

fn breakpoint(c: &Vcpu, at: [u64; 4], enable: u64, more: u32) {
    let bits = KVM_GUESTDBG_USE_HW_BP | more;
    eq!(c.guest_debug(bits, at, enable), Ok(0));
}

fn hw_breakpoint() {
    on_step_capable();
    for mode in [Mode::Real, Mode::Prot, Mode::Long] {
        hw_breakpoint_in(mode);
    }
}

fn hw_breakpoint_in(mode: Mode) {
    let g = Guest::new(mode);
    g.mem
        .write(CODE as usize, &[0x90, 0x90, 0x90, 0x90, 0x90, 0xf4]);
    breakpoint(&g.cpu, [CODE + 2, 0, 0, CODE + 4], 0x4c3, 0);
    let (pc, why) = stop(&g);
    eq!((pc, why & 0xf), (CODE + 2, 1), "the first");
    // On with the breakpoint off for one step.
    breakpoint(
        &g.cpu,
        [CODE + 2, 0, 0, CODE + 4],
        0x4c0,
        KVM_GUESTDBG_SINGLESTEP,
    );
    eq!(stop(&g).0, CODE + 3);
    breakpoint(&g.cpu, [CODE + 2, 0, 0, CODE + 4], 0x4c3, 0);
    let (pc, why) = stop(&g);
    eq!((pc, why & 0xf), (CODE + 4, 8), "the fourth");
    debug(&g.cpu, 0);
    eq!(g.cpu.run(), Exit::Hlt);
}

fn hw_watchpoint() {
    on_step_capable();
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(eax, dword_ptr(DATA))?;
        a.mov(dword_ptr(DATA + 8), eax)?;
        a.mov(dword_ptr(DATA), eax)?;
        a.nop()?;
        a.hlt()
    });
    // Writes of four bytes at DATA, by the second register.
    breakpoint(&g.cpu, [0, DATA, 0, 0], 0x400 | 0xc | 0xd << 20, 0);
    let (pc, why) = stop(&g);
    eq!(why & 0xf, 2);
    eq!(
        g.mem.rd::<u8>(pc as usize),
        0x90,
        "behind the write: {pc:x}"
    );
    debug(&g.cpu, 0);
    eq!(g.cpu.run(), Exit::Hlt);
}

/// The guest's own DR7.GD stops its accesses for the guest, or for who uses the registers meanwhile.
fn general_detect() {
    on_step_capable();
    for mode in [Mode::Real, Mode::Prot, Mode::Long] {
        general_detect_in(mode);
    }
}

fn general_detect_in(mode: Mode) {
    let g = Guest::new(mode);
    // MOV from DR0, HLT.
    g.mem.write(CODE as usize, &[0x0f, 0x21, 0xc0, 0xf4]);
    let mut d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    d.dr7 = 0x2400;
    eq!(g.cpu.fd.give(SET_DEBUGREGS, &d), Ok(0));
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (1, CODE));
    let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    eq!(d.dr6 & 1 << 13, 1 << 13, "BD");
    eq!(d.dr7, 0x400, "GD is off in the handler");
}

/// While a debugger has the registers, GD is its own: that stops, and the guest's does not.
fn general_detect_of_debugger() {
    on_step_capable();
    const BD: u64 = 1 << 13;
    // With GD, and without.
    const DR7: (u64, u64) = (0x2400, 0x400);
    for mode in [Mode::Real, Mode::Prot, Mode::Long] {
        // MOV from DR0, MOV to DR1, HLT.
        let code = [0x0f, 0x21, 0xc0, 0x0f, 0x23, 0xc8, 0xf4];
        let g = Guest::new(mode);
        g.mem.write(CODE as usize, &code);
        for at in [CODE, CODE + 3] {
            breakpoint(&g.cpu, [0; 4], DR7.0, 0);
            let (pc, why) = stop(&g);
            eq!((pc, why & (BD | BS | 0xf)), (at, BD), "{mode:?}");
            eq!(g.cpu.regs().rip, at, "nothing moved");
            let mut r = g.cpu.regs();
            r.rip = at + 3;
            g.cpu.set_regs(&r);
        }
        eq!(g.cpu.run(), Exit::Hlt);

        let g = Guest::new(mode);
        g.mem.write(CODE as usize, &code);
        let mut d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
        d.dr7 = DR7.0;
        eq!(g.cpu.fd.give(SET_DEBUGREGS, &d), Ok(0));
        breakpoint(&g.cpu, [0; 4], DR7.1, 0);
        g.expect(&Exit::Hlt);
        let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
        eq!(d.dr7, DR7.0, "{mode:?}: it waits");
    }
}

fn sw_breakpoint() {
    if crate::sys::on_tcg() {
        harness::skip("TCG's SVM does not apply the intercept of #BP to INT3");
    }
    for mode in [Mode::Real, Mode::Prot, Mode::Long] {
        sw_breakpoint_in(mode);
    }
}

fn sw_breakpoint_in(mode: Mode) {
    let g = Guest::new(mode);
    g.mem.write(CODE as usize, &[0x90, 0xcc, 0xf4]);
    debug(&g.cpu, KVM_GUESTDBG_USE_SW_BP);
    match g.cpu.run() {
        Exit::Debug { vector: 3, pc, .. } => eq!(pc, CODE + 1),
        e => panic!("expected a stop, got {e:x?}{}", g.describe()),
    }
    eq!(g.cpu.regs().rip, CODE + 1);
    // It is not the debugger's: the guest gets it, behind the instruction.
    debug(&g.cpu, KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_INJECT_BP);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (3, CODE + 2));
    // Not asked for: as ever.
    let g = Guest::new(mode);
    g.mem.write(CODE as usize, &[0x90, 0xcc, 0xf4]);
    debug(&g.cpu, KVM_GUESTDBG_USE_SW_BP);
    debug(&g.cpu, 0);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (3, CODE + 2));
}

fn inject() {
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0xf4]);
    debug(&g.cpu, KVM_GUESTDBG_INJECT_DB);
    for bits in [KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_INJECT_BP] {
        eq!(
            g.cpu.guest_debug(bits, [0; 4], 0),
            Err(EBUSY),
            "one is waiting"
        );
    }
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (1, CODE));
    // Without ENABLE an exception is raised all the same.
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0xf4]);
    let mut d: kvm_guest_debug = filled(0);
    d.control = KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_SINGLESTEP;
    eq!(g.cpu.fd.give(SET_GUEST_DEBUG, &d), Ok(0));
    eq!(g.run_to_trap().vector, 1);
    eq!(g.cpu.fd.num(SET_GUEST_DEBUG, bad_addr()), Err(EFAULT));
    eq!(g.cpu.fd.num(SET_GUEST_DEBUG, 0), Err(EFAULT));
    // A guest that is about to shut down.
    let g = Guest::new(Mode::Long);
    let mut cap: kvm_enable_cap = filled(0);
    (cap.cap, cap.args[0]) = (KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1);
    eq!(g.vm.fd.give(ENABLE_CAP, &cap), Ok(0));
    let mut e: kvm_vcpu_events = crate::must!(g.cpu.fd.take(GET_VCPU_EVENTS));
    (e.flags, e.triple_fault.pending) = (KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 1);
    eq!(g.cpu.fd.give(SET_VCPU_EVENTS, &e), Ok(0));
    eq!(
        g.cpu.guest_debug(KVM_GUESTDBG_INJECT_BP, [0; 4], 0),
        Err(EBUSY)
    );
}

/// What user space hands back by KVM_SET_VCPU_EVENTS returns behind the instruction that raised it, if RIP points to one.
fn handed_back() {
    // Whether KVM_RUN ends for a signal before, and then user space saves and restores what it sees.
    let hand_back = |code: &[u8], change: &dyn Fn(&mut kvm_vcpu_events), given_up, restored| {
        let g = Guest::new(Mode::Prot);
        g.mem.write(CODE as usize, code);
        let mut r = g.cpu.regs();
        // IF; OF, for INTO.
        r.rflags |= 0xa00;
        g.cpu.set_regs(&r);
        let mut e: kvm_vcpu_events = crate::must!(g.cpu.fd.take(GET_VCPU_EVENTS));
        e.flags = 0;
        change(&mut e);
        eq!(g.cpu.fd.give(SET_VCPU_EVENTS, &e), Ok(0));
        // What is being injected stays.
        g.cpu.set_regs(&r);
        if given_up {
            g.cpu.run_signalled();
        }
        eq!(g.cpu.regs().rip, CODE, "RIP moves when it is delivered");
        if restored {
            // It is not told, but RIP is at the instruction that raises it.
            let e: kvm_vcpu_events = crate::must!(g.cpu.fd.take(GET_VCPU_EVENTS));
            eq!((e.exception.injected, e.interrupt.injected), (0, 0));
            eq!(g.cpu.fd.give(SET_VCPU_EVENTS, &e), Ok(0));
            g.cpu.set_regs(&g.cpu.regs());
        }
        let t = g.run_to_trap();
        // It is over: nothing goes back to where it was. (The first run is to complete the handler's OUT.)
        g.cpu.run_signalled();
        let handler = g.cpu.regs().rip;
        g.cpu.run_signalled();
        eq!(g.cpu.regs().rip, handler);
        (t.vector, t.ip)
    };
    for (code, vector, behind) in [
        (&[0xcc, 0xf4][..], 3, 1),
        (&[0x66, 0xcc, 0xf4], 3, 2),
        (&[0xce, 0xf4], 4, 1),
        // Not what raised it.
        (&[0x90, 0xf4], 3, 0),
        (&[0xce, 0xf4], 3, 0),
    ] {
        let raise = |e: &mut kvm_vcpu_events| (e.exception.injected, e.exception.nr) = (1, vector);
        for (given_up, restored) in [(false, false), (true, false), (true, behind != 0)] {
            eq!(
                hand_back(code, &raise, given_up, restored),
                (vector, CODE + behind),
                "{code:x?} {given_up} {restored}"
            );
        }
    }
    let soft = |e: &mut kvm_vcpu_events| {
        (e.interrupt.injected, e.interrupt.soft, e.interrupt.nr) = (1, 1, 0x61);
    };
    for (given_up, restored) in [(false, false), (true, false), (true, true)] {
        eq!(
            hand_back(&[0xcd, 0x61, 0xf4], &soft, given_up, restored),
            (0x61, CODE + 2),
            "{given_up} {restored}"
        );
    }
}

/// A #DB with TF set, and an NMI, for a guest in the shadow of its STI: what is handed back there can be delivered. (Bochs takes both
/// without the pending step and without the interrupt window that real CPUs need for it.)
fn handed_back_in_shadow() {
    on_step_capable();
    let in_shadow = |tf: u64, change: &dyn Fn(&mut kvm_vcpu_events)| {
        let g = Guest::new(Mode::Long);
        g.mem.write(CODE as usize, &[0x90, 0x90, 0xf4]);
        let mut r = g.cpu.regs();
        r.rflags |= 0x200 | tf;
        g.cpu.set_regs(&r);
        let mut e: kvm_vcpu_events = crate::must!(g.cpu.fd.take(GET_VCPU_EVENTS));
        e.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
        e.interrupt.shadow = KVM_X86_SHADOW_INT_STI as u8;
        change(&mut e);
        eq!(g.cpu.fd.give(SET_VCPU_EVENTS, &e), Ok(0));
        let t = g.run_to_trap();
        (t.vector, t.ip)
    };
    let db = |e: &mut kvm_vcpu_events| (e.exception.injected, e.exception.nr) = (1, 1);
    eq!(in_shadow(0x100, &db), (1, CODE));
    let nmi = |e: &mut kvm_vcpu_events| e.nmi.pending = 1;
    eq!(in_shadow(0, &nmi), (2, CODE + 1));
}

fn block_interrupts() {
    on_step_capable();
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0x90, 0x90, 0xf4]);
    let mut r = g.cpu.regs();
    r.rflags |= 0x200;
    g.cpu.set_regs(&r);
    eq!(g.cpu.nmi(), Ok(0));
    debug(&g.cpu, KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ);
    eq!(stop(&g).0, CODE + 1);
    eq!(stop(&g).0, CODE + 2);
    debug(&g.cpu, 0);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (2, CODE + 2), "it comes when it may");
}

/// The guest's own debug registers keep their values while user space uses the hardware's.
fn guest_registers() {
    on_step_capable();
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(rax, 0x1234_0000u64)?;
        a.mov(dr1, rax)?;
        a.mov(rbx, dr1)?;
        a.mov(rcx, dr7)?;
        a.mov(eax, 0x702)?;
        a.mov(dr7, rax)?;
        a.mov(rdx, dr7)?;
        a.hlt()
    });
    breakpoint(&g.cpu, [0, CODE + 0x800, 0, 0], 0x40c, 0);
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    let r = g.cpu.regs();
    eq!((r.rbx, r.rcx, r.rdx), (0x1234_0000, 0x400, 0x702));
    let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    eq!((d.db[1], d.dr7), (0x1234_0000, 0x702));
}

/// The breakpoints of another guest are in the CPU's registers still when one without any single-steps over the same address.
fn others_registers() {
    on_step_capable();
    let code = [0x90, 0x90, 0x90, 0xf4];
    let set = |g: &Guest, at, control| {
        let mut d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
        (d.db, d.dr7) = (at, control);
        eq!(g.cpu.fd.give(SET_DEBUGREGS, &d), Ok(0));
    };
    let with_breakpoints = || {
        let g = Guest::new(Mode::Long);
        g.mem.write(CODE as usize, &code);
        set(&g, [0x5000, CODE + 2, CODE + 1, CODE + 3], 0x4ff);
        eq!(g.run_to_trap().vector, 1);
    };
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &code);
    // Its own debugger's step.
    with_breakpoints();
    let mut r = g.cpu.regs();
    r.rflags |= 0x100;
    g.cpu.set_regs(&r);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (1, CODE + 1));
    let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    eq!(d.dr6, 0xffff_0ff0 | BS);
    // Ours.
    g.enter_mode(&g.cpu);
    debug(&g.cpu, KVM_GUESTDBG_SINGLESTEP);
    for n in 1..=3 {
        with_breakpoints();
        eq!(stop(&g), (CODE + n, 0xffff_0ff0 | BS));
    }
}

/// RFLAGS.RF is for one instruction, also for one that exits: the breakpoint on it is passed over, the next one is hit.
fn resume_flag() {
    on_step_capable();
    // CPUID; OUT.
    for insn in [[0x0f, 0xa2], [0xe6, 0x20]] {
        let g = Guest::new(Mode::Long);
        g.mem.write(CODE as usize, &insn);
        g.mem.write(CODE as usize + 2, &[0x90, 0xf4]);
        let mut d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
        (d.db, d.dr7) = ([CODE, CODE + 2, 0, 0], 0x405);
        eq!(g.cpu.fd.give(SET_DEBUGREGS, &d), Ok(0));
        let mut r = g.cpu.regs();
        r.rflags |= 1 << 16;
        g.cpu.set_regs(&r);
        if insn == [0xe6, 0x20] {
            g.expect(&out(0x20, &[r.rax as u8]));
        }
        let t = g.run_to_trap();
        eq!((t.vector, t.ip), (1, CODE + 2), "{insn:x?}");
        let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
        eq!(d.dr6, 0xffff_0ff2, "{insn:x?}");
    }
}
