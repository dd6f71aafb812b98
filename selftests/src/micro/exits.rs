// SPDX-License-Identifier: GPL-2.0
//! KVM_CAP_X86_DISABLE_EXITS: guests that halt, wait and pause in the CPU, and read its counters.

use super::prefix::{Forced, PREFIX};
use super::threads::with_running;
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{self, filled, Map, Res};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::{EINTR, EINVAL};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new("micro/exits_refused", refused),
    Test::new("micro/exits_hlt", hlt).no_ab(),
    Test::new("micro/exits_hlt_closed", hlt_closed).no_ab(),
    Test::new("micro/exits_hlt_kicked", hlt_kicked).no_ab(),
    Test::new("micro/exits_hlt_restarted", hlt_restarted).no_ab(),
    Test::new("micro/exits_hlt_emulated", hlt_emulated),
    Test::new("micro/exits_unhalt", unhalt),
    Test::new("micro/exits_mwait", mwait),
    Test::new("micro/exits_mwait_waits", mwait_waits).no_ab(),
    Test::new("micro/exits_pause", pause),
    Test::new("micro/exits_counters", counters),
];

const MWAIT: u64 = 1;
const HLT: u64 = 2;
const PAUSE: u64 = 4;
const CSTATE: u64 = 8;
const APERFMPERF: u64 = 16;
/// A vector for interrupts.
const VECTOR: u32 = 0x40;
const IF: u64 = 0x200;

fn enable(vm: &Vm, cap: u32, value: u64) -> Res {
    let mut c: kvm_enable_cap = filled(0);
    (c.cap, c.args[0]) = (cap, value);
    vm.fd.give(ENABLE_CAP, &c)
}

fn offered(k: &Kvm) -> u64 {
    match k.cap(KVM_CAP_X86_DISABLE_EXITS) {
        0 => harness::skip("no KVM_CAP_X86_DISABLE_EXITS"),
        all => all as u64,
    }
}

/// A guest without the exits of `off`.
fn without(off: u64) -> Guest {
    let k = Kvm::open();
    let missing = off & !offered(&k);
    if missing != 0 {
        harness::skip(&format!("exits {missing:#x} cannot be turned off here"));
    }
    let vm = k.vm();
    eq!(enable(&vm, KVM_CAP_X86_DISABLE_EXITS, off), Ok(0));
    Guest::with_vm(k, vm, Mode::Long)
}

/// What the kernel knows of this CPU; bugs are not looked at, since no machine of the tests has one of those that matter.
fn refused() {
    let k = Kvm::open();
    let all = offered(&k);
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |f: &str| flags.split_whitespace().any(|w| w == f);
    let mut want = HLT | PAUSE | CSTATE;
    if has("monitor") && has("arat") {
        want |= MWAIT;
    }
    if has("aperfmperf") {
        want |= APERFMPERF;
    }
    eq!(all, want, "what the CPU allows");
    let vm = k.vm();
    eq!(
        vm.fd.num(CHECK_EXTENSION, KVM_CAP_X86_DISABLE_EXITS.into()),
        Ok(all as i32),
        "the VM says the same"
    );
    for bit in (0..64).filter(|bit| all >> bit & 1 == 0) {
        let r = enable(&vm, KVM_CAP_X86_DISABLE_EXITS, all | 1 << bit);
        eq!(r, Err(EINVAL), "bit {bit}");
    }
    let mut c: kvm_enable_cap = filled(0);
    (c.cap, c.flags, c.args[0]) = (KVM_CAP_X86_DISABLE_EXITS, 1, PAUSE);
    eq!(vm.fd.give(ENABLE_CAP, &c), Err(EINVAL), "flags");
    // What was refused has changed nothing.
    let g = Guest::with_vm(k, vm, Mode::Long);
    g.load(|a| a.hlt());
    g.expect(&Exit::Hlt);
    for set in [0, PAUSE, all] {
        let r = enable(&g.vm, KVM_CAP_X86_DISABLE_EXITS, set);
        eq!(r, Err(EINVAL), "{set:#x} with a vCPU");
    }
    // They add up, and nothing turns them on again.
    let k = Kvm::open();
    let vm = k.vm();
    for set in [PAUSE, HLT, CSTATE, 0] {
        eq!(enable(&vm, KVM_CAP_X86_DISABLE_EXITS, set), Ok(0));
    }
    let g = Guest::with_vm(k, vm, Mode::Long);
    g.load(|a| {
        a.sti()?;
        a.hlt()?;
        a.jmp(CODE)
    });
    interrupted(&g);
}

/// Lets signals come until one finds the guest behind the HLT that follows the first instruction.
fn interrupted(g: &Guest) {
    sys::interrupting(libc::SIGALRM);
    sys::alarm_every(20_000);
    let began = Instant::now();
    loop {
        match g.cpu.run() {
            Exit::Err(EINTR, KVM_EXIT_INTR) => {}
            e => panic!("{e:x?}{}", g.describe()),
        }
        if g.cpu.regs().rip == CODE + 2 {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "it does not halt{}",
            g.describe()
        );
    }
    sys::alarm_every(0);
}

/// A guest that halts with interrupts enabled, again and again; its handler says so.
fn halting(off: u64) -> Guest {
    let g = without(off);
    g.load(|a| {
        a.sti()?;
        a.hlt()?;
        a.jmp(CODE)
    });
    g.load_at(CODE + 0x100, |a| {
        a.out(i32::from(PORT_VALUE), al)?;
        a.iretq()
    });
    g.gate(VECTOR, CODE + 0x100);
    g
}

fn hlt() {
    // Those that do not concern it.
    let g = halting(PAUSE | CSTATE);
    g.expect(&Exit::Hlt);

    let g = halting(HLT);
    for _ in 0..3 {
        interrupted(&g);
        eq!(g.cpu.regs().rflags & IF, IF);
        check!(g.cpu.ready() && g.cpu.if_flag(), "it takes interrupts");
        eq!(mp_state(&g), KVM_MP_STATE_RUNNABLE);
        eq!(g.cpu.interrupt(VECTOR), Ok(0));
        g.expect(&out(PORT_VALUE.into(), &[0]));
        eq!(g.mem.rd::<u64>(g.cpu.regs().rsp as usize), CODE + 2);
        interrupted(&g);
        // An NMI, whose stub ends in another HLT.
        eq!(g.cpu.nmi(), Ok(0));
        let t = g.run_to_trap();
        eq!((t.vector, t.ip), (2, CODE + 2));
        let mut r = g.cpu.regs();
        (r.rip, r.rsp, r.rflags) = (CODE, STACK, 2);
        g.cpu.set_regs(&r);
        unmask_nmi(&g);
    }
    // User space does not have to wait for the guest to be ready.
    g.cpu.want_window(true);
    g.expect(&Exit::IrqWindow);
    g.cpu.want_window(false);
    interrupted(&g);
    g.cpu.set_immediate_exit(true);
    check!(matches!(g.cpu.run(), Exit::Err(EINTR, _)), "immediate_exit");
    g.cpu.set_immediate_exit(false);
}

fn mp_state(g: &Guest) -> u32 {
    match g.cpu.fd.take::<kvm_mp_state>(GET_MP_STATE) {
        Ok(s) => s.mp_state,
        Err(e) => panic!("GET_MP_STATE: {e}"),
    }
}

fn unmask_nmi(g: &Guest) {
    let mut e: kvm_vcpu_events = match g.cpu.fd.take(GET_VCPU_EVENTS) {
        Ok(e) => e,
        Err(e) => panic!("GET_VCPU_EVENTS: {e}"),
    };
    e.nmi.masked = 0;
    eq!(g.cpu.fd.give(SET_VCPU_EVENTS, &e), Ok(0));
}

/// With interrupts disabled, only the host ends the halt.
fn hlt_closed() {
    if !sys::on_tcg() {
        harness::skip("Bochs keeps the host's interrupts pending while a guest has IF clear");
    }
    let g = without(HLT);
    g.load(|a| {
        a.cli()?;
        a.hlt()?;
        a.jmp(CODE)
    });
    for _ in 0..3 {
        interrupted(&g);
        check!(!g.cpu.ready() && !g.cpu.if_flag(), "it takes no interrupt");
    }
}

/// Memory that comes and goes under a halted guest drives it out each time.
fn hlt_kicked() {
    let g = halting(HLT);
    let more = Map::anon(4096);
    let n = with_running(&g.cpu, |_| {
        for _ in 0..20 {
            let at = 0x100_0000;
            eq!(g.vm.region(1, 0, at, 4096, more.addr()), Ok(0));
            eq!(g.vm.region(1, 0, 0, 0, 0), Ok(0));
        }
        // Meanwhile it halts.
        std::thread::sleep(Duration::from_millis(20));
    });
    check!(n > 0, "a signal ends the run");
}

/// KVM_SET_MP_STATE ends a halt: a VMM that resets its guest expects it to run. Intel's CPUs keep a halt over exits.
fn hlt_restarted() {
    let g = halting(HLT);
    g.load_at(CODE + 0x200, |a| {
        a.out(i32::from(PORT_VALUE), al)?;
        a.hlt()
    });
    let restart = || {
        interrupted(&g);
        let mut r = g.cpu.regs();
        (r.rip, r.rflags) = (CODE + 0x200, IF | 2);
        g.cpu.set_regs(&r);
    };
    restart();
    sys::alarm_every(20_000);
    let exit = g.cpu.run();
    sys::alarm_every(0);
    match exit {
        Exit::Err(EINTR, _) => println!("# it was halted still"),
        _ => {
            eq!(exit, out(PORT_VALUE.into(), &[0]));
            println!("# this CPU keeps no halt over an exit");
        }
    }
    let mut r = g.cpu.regs();
    r.rip = CODE;
    g.cpu.set_regs(&r);
    restart();
    let runnable = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    eq!(g.cpu.fd.give(SET_MP_STATE, &runnable), Ok(0));
    g.expect(&out(PORT_VALUE.into(), &[0]));
}

/// A HLT that the emulator executes still ends the run.
fn hlt_emulated() {
    let _on = Forced::on();
    let g = without(HLT);
    let code = [&PREFIX[..], b"\xf4\xe6\xf0"].concat();
    g.mem.write(CODE as usize, &code);
    g.expect(&Exit::Hlt);
    eq!(g.cpu.regs().rip, CODE + 6);
    g.expect(&out(PORT_VALUE.into(), &[0]));
}

/// KVM_FEATURE_PV_UNHALT makes no sense then.
fn unhalt() {
    const LEAF: u32 = 0x4000_0001;
    const UNHALT: u32 = 1 << 7;
    for (off, shown) in [(PAUSE, UNHALT), (HLT, 0)] {
        let g = without(off);
        let mut cpuid = *g.kvm.cpuid();
        let n = cpuid.nent as usize;
        match cpuid.entries[..n].iter_mut().find(|e| e.function == LEAF) {
            Some(e) => e.eax |= UNHALT,
            None => harness::skip("no leaf of KVM's"),
        }
        eq!(g.cpu.fd.give(SET_CPUID2, &cpuid), Ok(0));
        g.load(|a| {
            a.mov(eax, LEAF)?;
            a.cpuid()?;
            // The other bits are another test's.
            a.and(eax, UNHALT as i32)?;
            a.out(i32::from(PORT_VALUE), eax)?;
            a.jmp(CODE)
        });
        // Not up to a HLT: on the second VM it does not exit.
        g.expect(&out(PORT_VALUE.into(), &shown.to_le_bytes()));
        eq!(g.cpu.fd.give(SET_CPUID2, &cpuid), Ok(0), "the same again");
    }
}

/// MONITOR and MWAIT of a guest whose CPUID lacks them and for which they do not just do nothing: #UD where they exit, and else what
/// the CPU makes of them.
fn mwait() {
    let waiting = |off| {
        let k = Kvm::open();
        let missing = off & !offered(&k);
        if missing != 0 {
            harness::skip(
                "MWAIT's exits cannot be turned off: the CPU has no MWAIT or its timer stops",
            );
        }
        let vm = k.vm();
        eq!(enable(&vm, KVM_CAP_X86_DISABLE_EXITS, off), Ok(0));
        let quirk = KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS;
        eq!(enable(&vm, KVM_CAP_DISABLE_QUIRKS2, quirk.into()), Ok(0));
        let g = Guest::with_vm(k, vm, Mode::Long);
        g.load(|a| {
            a.mov(eax, DATA as u32)?;
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.sti()?;
            a.monitor()?;
            a.mwait()?;
            a.out(i32::from(PORT_VALUE), al)?;
            a.hlt()
        });
        g
    };
    let g = waiting(MWAIT | HLT);
    g.expect(&out(PORT_VALUE.into(), &[0]));

    let g = waiting(HLT);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (6, CODE + 10), "MONITOR");
}

/// A guest that waits for another thread's write, in the CPU.
fn mwait_waits() {
    let g = without(MWAIT);
    g.load(|a| {
        let mut again = a.create_label();
        let mut written = a.create_label();
        a.sti()?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.set_label(&mut again)?;
        a.mov(eax, DATA as u32)?;
        a.monitor()?;
        a.cmp(dword_ptr(DATA), 0)?;
        a.jne(written)?;
        a.mwait()?;
        a.jmp(again)?;
        a.set_label(&mut written)?;
        a.inc(dword_ptr(DATA + 8))?;
        a.mov(dword_ptr(DATA), 0)?;
        a.jmp(again)
    });
    with_running(&g.cpu, |_| {
        for n in 1..=3u32 {
            g.mem.wr(DATA as usize, 1u32);
            let began = Instant::now();
            while g.mem.rd::<u32>(DATA as usize + 8) != n {
                if began.elapsed() > Duration::from_secs(10) {
                    return harness::fail(&format!("write {n} was not seen"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

/// Nothing shows whether PAUSE exits; it does nothing in any case.
fn pause() {
    for off in [0, PAUSE] {
        let g = without(off);
        g.load(|a| {
            let mut again = a.create_label();
            a.mov(ecx, 5000)?;
            a.set_label(&mut again)?;
            a.pause()?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.hlt()
        });
        g.expect(&Exit::Hlt);
        eq!(g.cpu.regs().rcx, 0);
    }
}

/// RDMSR of counters: where it exits, user space is asked, since the guest has none; else it is what the CPU says.
fn counters() {
    const IDLE: [u32; 4] = [0x660, 0x3fc, 0x3fd, 0x3fe];
    const CYCLES: [u32; 2] = [0xe7, 0xe8];
    const ASKED: Exit = Exit::Other(KVM_EXIT_X86_RDMSR);
    const UNKNOWN: u64 = 2;
    let all = offered(&Kvm::open());
    if all & APERFMPERF == 0 {
        println!("# no counters of cycles on this CPU");
    }
    let intel = !sys::on_amd();
    for off in [0, CSTATE, APERFMPERF, CSTATE | APERFMPERF] {
        if off & !all != 0 {
            continue;
        }
        let g = without(off);
        eq!(enable(&g.vm, KVM_CAP_X86_USER_SPACE_MSR, UNKNOWN), Ok(0));
        let run = |msr: u32, insn: u8| {
            g.mem.write(CODE as usize, &[0x0f, insn, 0xf4]);
            let mut r = g.cpu.regs();
            (r.rip, r.rsp, r.rcx) = (CODE, STACK, msr.into());
            g.cpu.set_regs(&r);
            g.cpu.run()
        };
        let told = |msr: u32, free: bool, why: &str| {
            let exit = run(msr, 0x32);
            // A CPU that lacks it refuses.
            let direct = match &exit {
                Exit::Hlt => true,
                Exit::Io { port, .. } if *port == PORT_TRAP.into() => g.trap().vector == 13,
                _ => false,
            };
            eq!(direct, free, "MSR {msr:x} {why}without {off:#x}: {exit:x?}");
            eq!(
                exit == ASKED,
                !free,
                "MSR {msr:x} {why}without {off:#x}: {exit:x?}"
            );
            // Its completion, with 0.
            if exit == ASKED {
                g.expect(&Exit::Hlt);
            }
        };
        let free = |msr: u32| {
            if IDLE.contains(&msr) {
                intel && off & CSTATE != 0
            } else {
                off & APERFMPERF != 0
            }
        };
        for msr in IDLE.into_iter().chain(CYCLES) {
            told(msr, free(msr), "");
            eq!(run(msr, 0x30), Exit::Other(KVM_EXIT_X86_WRMSR), "{msr:x}");
            g.expect(&Exit::Hlt);
        }
        // A filter about something else changes nothing; one about them comes first.
        let bits = Map::anon(4096);
        let mut filter = [0u64; 49];
        (filter[1], filter[2], filter[3]) = (1 | 1 << 32, 0x277, bits.addr());
        eq!(g.vm.fd.give(X86_SET_MSR_FILTER, &filter), Ok(0));
        for msr in IDLE.into_iter().chain(CYCLES) {
            told(msr, free(msr), "with a filter ");
        }
        filter[2] = 0xe7;
        eq!(g.vm.fd.give(X86_SET_MSR_FILTER, &filter), Ok(0));
        let exit = run(0xe7, 0x32);
        check!(
            matches!(&exit, Exit::Io { port, .. } if *port == PORT_TRAP.into()),
            "denied: {exit:x?}"
        );
    }
}
