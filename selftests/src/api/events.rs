// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS, KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS.

use crate::guest::{Guest, Mode, CODE};
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::record;
use crate::sys::{bytes_of, filled};
use crate::{check, eq};
use kvm_bindings::*;
use libc::EINVAL;

pub const TESTS: &[Test] = &[
    Test::new("api/events_fresh", fresh),
    Test::new("api/events_round_trip", round_trip),
    Test::new("api/events_refused", refused),
    Test::new("api/events_delivered", delivered),
    Test::new("api/events_conflated", conflated),
    Test::new("api/events_payload", payload),
    Test::new("api/events_triple_fault", triple_fault),
    Test::new("api/events_shadow", shadow),
    Test::new("api/debugregs", debugregs),
];

/// What is recorded for the comparison leaves out what describes no event: the in-tree KVM tells of the last one there.
fn get(c: &Vcpu) -> kvm_vcpu_events {
    let e: kvm_vcpu_events = record::muted(|| crate::must!(c.fd.take(GET_VCPU_EVENTS)));
    let x = e.exception;
    let exception = if x.injected | x.pending != 0 {
        let payload = (e.exception_has_payload, e.exception_payload);
        format!("{x:x?} {payload:x?}")
    } else {
        String::new()
    };
    let interrupt = if e.interrupt.injected != 0 {
        e.interrupt.nr.to_string()
    } else {
        String::new()
    };
    let rest = (e.interrupt.shadow, e.nmi, e.triple_fault, e.flags);
    record::line(
        "events",
        "",
        &format!("{exception} | {interrupt} | {rest:x?}"),
        "",
    );
    e
}

fn set(c: &Vcpu, e: &kvm_vcpu_events) -> crate::sys::Res {
    c.fd.give(SET_VCPU_EVENTS, e)
}

fn enable(vm: &Vm, cap: u32) {
    let mut c: kvm_enable_cap = filled(0);
    (c.cap, c.args[0]) = (cap, 1);
    eq!(vm.fd.give(ENABLE_CAP, &c), Ok(0), "capability {cap}");
}

fn vcpu() -> (Kvm, Vm, Vcpu) {
    let k = Kvm::open();
    if k.cap(KVM_CAP_VCPU_EVENTS) == 0 {
        harness::skip("no KVM_CAP_VCPU_EVENTS");
    }
    let vm = k.vm();
    let c = vm.vcpu(0);
    c.use_supported_cpuid(&k);
    (k, vm, c)
}

const ALWAYS: u32 =
    KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;

fn fresh() {
    let (_k, vm, c) = vcpu();
    let mut none: kvm_vcpu_events = filled(0);
    none.flags = ALWAYS;
    eq!(bytes_of(&get(&c)), bytes_of(&none));
    enable(&vm, KVM_CAP_EXCEPTION_PAYLOAD);
    none.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    eq!(bytes_of(&get(&c)), bytes_of(&none));
    enable(&vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT);
    none.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    eq!(bytes_of(&get(&c)), bytes_of(&none));
    // Switched off again.
    let mut cap: kvm_enable_cap = filled(0);
    cap.cap = KVM_CAP_EXCEPTION_PAYLOAD;
    eq!(vm.fd.give(ENABLE_CAP, &cap), Ok(0));
    none.flags &= !KVM_VCPUEVENT_VALID_PAYLOAD;
    eq!(bytes_of(&get(&c)), bytes_of(&none));
}

fn round_trip() {
    let (_k, _vm, c) = vcpu();
    let same = |e: &kvm_vcpu_events, what: &str| {
        eq!(set(&c, e), Ok(0), "{what}");
        eq!(bytes_of(&get(&c)), bytes_of(e), "{what}");
    };
    let mut e = get(&c);
    e.exception.injected = 1;
    (
        e.exception.nr,
        e.exception.has_error_code,
        e.exception.error_code,
    ) = (13, 1, 0x1234);
    same(&e, "an exception");
    e.interrupt.injected = 1;
    e.interrupt.nr = 0x61;
    same(&e, "and an interrupt");
    eq!(
        c.sregs().interrupt_bitmap,
        [0, 1 << 0x21, 0, 0],
        "it is the one of KVM_GET_SREGS"
    );
    e.nmi.masked = 1;
    same(&e, "and NMIs blocked");
    e.nmi.pending = 1;
    same(&e, "and one waiting");
    e.nmi.injected = 1;
    same(&e, "and one being delivered");
    // More NMIs than a CPU can hold: one while they are blocked, else two.
    e.nmi.pending = 200;
    eq!(set(&c, &e), Ok(0));
    eq!(get(&c).nmi.pending, 1);
    (e.nmi.masked, e.nmi.injected) = (0, 0);
    eq!(set(&c, &e), Ok(0));
    eq!(get(&c).nmi.pending, 2);
    // Without its flag the number is left alone.
    e.flags = 0;
    e.nmi.pending = 0;
    eq!(set(&c, &e), Ok(0));
    eq!(get(&c).nmi.pending, 2);
    let none: kvm_vcpu_events = filled(0);
    eq!(set(&c, &none), Ok(0));
    let got = get(&c);
    eq!((got.exception.injected, got.interrupt.injected), (0, 0));
    // A vector without an error code, and the highest.
    let mut e = get(&c);
    e.nmi.pending = 0;
    for nr in [0, 6, 31] {
        e.exception.injected = 1;
        (
            e.exception.nr,
            e.exception.has_error_code,
            e.exception.error_code,
        ) = (nr, 0, 0);
        e.interrupt.nr = 0;
        same(&e, "a vector");
    }
}

fn refused() {
    let (k, _vm, c) = vcpu();
    let mut good = get(&c);
    good.exception.injected = 1;
    (good.exception.nr, good.exception.has_error_code) = (14, 1);
    good.exception.error_code = 2;
    eq!(set(&c, &good), Ok(0));
    let before = get(&c);
    let bad = |what: &str, change: &dyn Fn(&mut kvm_vcpu_events)| {
        let mut e = before;
        e.interrupt.nr = 0x55;
        e.interrupt.injected = 1;
        change(&mut e);
        eq!(set(&c, &e), Err(EINVAL), "{what}");
        eq!(
            bytes_of(&get(&c)),
            bytes_of(&before),
            "{what}: nothing changed"
        );
    };
    for bit in 6..32 {
        bad("an unknown flag", &|e| e.flags |= 1 << bit);
    }
    for nr in [2, 32, 33, 128, 255] {
        bad("a vector that is none of an exception", &|e| {
            e.exception.nr = nr
        });
    }
    bad("a payload without its capability", &|e| {
        e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    });
    if k.cap(KVM_CAP_X86_SMM) == 0 {
        // Not recorded: a KVM that has SMM makes fewer calls.
        record::muted(|| {
            bad("SMM", &|e| e.smi.smm = 1);
            bad("a pending SMI", &|e| e.smi.pending = 1);
            bad("SMM inside of an NMI", &|e| e.smi.smm_inside_nmi = 1);
        });
    }
    // A vector that is not used does not matter.
    let mut e = before;
    e.exception.injected = 0;
    e.exception.nr = 255;
    eq!(set(&c, &e), Ok(0));
}

/// Each kind of event reaches the guest.
fn delivered() {
    let nops = |g: &Guest| g.mem.write(CODE as usize, &[0x90, 0x90, 0xf4]);
    let g = Guest::new(Mode::Long);
    nops(&g);
    let mut e = get(&g.cpu);
    e.exception.injected = 1;
    (
        e.exception.nr,
        e.exception.has_error_code,
        e.exception.error_code,
    ) = (13, 1, 0x18);
    eq!(set(&g.cpu, &e), Ok(0));
    let t = g.run_to_trap();
    eq!((t.vector, t.error, t.ip), (13, 0x18, CODE));
    let g = Guest::new(Mode::Prot);
    nops(&g);
    // Intel's CPUs refuse to be entered with an interrupt while IF is clear.
    let mut r = g.cpu.regs();
    r.rflags |= 0x200;
    g.cpu.set_regs(&r);
    let mut e = get(&g.cpu);
    (e.interrupt.injected, e.interrupt.nr) = (1, 0x42);
    eq!(set(&g.cpu, &e), Ok(0));
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (0x42, CODE));
    let g = Guest::new(Mode::Long);
    nops(&g);
    let mut e = get(&g.cpu);
    e.nmi.pending = 1;
    eq!(set(&g.cpu, &e), Ok(0));
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (2, CODE));
    let e = get(&g.cpu);
    eq!(
        (e.nmi.masked, e.nmi.pending, e.nmi.injected),
        (1, 0, 0),
        "in its handler"
    );
    // Blocked ones wait.
    let g = Guest::new(Mode::Long);
    nops(&g);
    let mut e = get(&g.cpu);
    (e.nmi.pending, e.nmi.masked) = (1, 1);
    eq!(set(&g.cpu, &e), Ok(0));
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    eq!(get(&g.cpu).nmi.pending, 1);
}

/// Without KVM_CAP_EXCEPTION_PAYLOAD an exception that waits is told as injected, and its payload is applied early.
fn conflated() {
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0xf4]);
    let mut d: kvm_guest_debug = filled(0);
    d.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB;
    eq!(g.cpu.fd.give(SET_GUEST_DEBUG, &d), Ok(0));
    let e = get(&g.cpu);
    eq!(
        (e.exception.injected, e.exception.pending, e.exception.nr),
        (1, 1, 1)
    );
    // As a VMM restores it: as injected.
    eq!(set(&g.cpu, &e), Ok(0));
    let e = get(&g.cpu);
    eq!((e.exception.injected, e.exception.pending), (1, 0));
    eq!(g.run_to_trap().vector, 1);
    let e = get(&g.cpu);
    eq!(
        (e.exception.injected, e.exception.pending),
        (0, 0),
        "delivered"
    );
}

fn payload() {
    if crate::sys::on_bochs_svm() {
        harness::skip("Bochs' SVM loads neither CR2 nor DR6");
    }
    let k = Kvm::open();
    let vm = k.vm();
    enable(&vm, KVM_CAP_EXCEPTION_PAYLOAD);
    let g = Guest::with_vm(k, vm, Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0xf4]);
    let mut s = g.cpu.sregs();
    s.cr2 = 0x1111;
    g.cpu.set_sregs(&s);
    let mut e = get(&g.cpu);
    eq!(e.flags, ALWAYS | KVM_VCPUEVENT_VALID_PAYLOAD);
    e.exception.pending = 1;
    (
        e.exception.nr,
        e.exception.has_error_code,
        e.exception.error_code,
    ) = (14, 1, 4);
    (e.exception_has_payload, e.exception_payload) = (1, 0xdead_b000);
    eq!(set(&g.cpu, &e), Ok(0));
    eq!(bytes_of(&get(&g.cpu)), bytes_of(&e));
    eq!(g.cpu.sregs().cr2, 0x1111, "not before it is delivered");
    let t = g.run_to_trap();
    eq!((t.vector, t.error), (14, 4));
    eq!(g.cpu.sregs().cr2, 0xdead_b000);
    // An injected one has had its payload.
    let mut e = get(&g.cpu);
    e.exception.injected = 1;
    (
        e.exception.nr,
        e.exception.has_error_code,
        e.exception.error_code,
    ) = (14, 1, 4);
    (e.exception_has_payload, e.exception_payload) = (1, 0x7777_0000);
    eq!(set(&g.cpu, &e), Ok(0));
    let got = get(&g.cpu);
    eq!((got.exception.injected, got.exception_has_payload), (1, 0));
    // Pending wins over injected.
    e.exception.pending = 1;
    eq!(set(&g.cpu, &e), Ok(0));
    let got = get(&g.cpu);
    eq!((got.exception.injected, got.exception.pending), (0, 1));
    // KVM_SET_REGS drops an exception that waits.
    g.cpu.set_regs(&g.cpu.regs());
    eq!(get(&g.cpu).exception.pending, 0);
    // #DB: the payload goes to DR6, and DR7.GD goes.
    let mut d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    (d.dr6, d.dr7) = (0xffff_0ff0, 0x2400);
    eq!(g.cpu.fd.give(SET_DEBUGREGS, &d), Ok(0));
    let mut r = g.cpu.regs();
    r.rip = CODE;
    g.cpu.set_regs(&r);
    let mut e = get(&g.cpu);
    e.exception.pending = 1;
    (
        e.exception.nr,
        e.exception.has_error_code,
        e.exception.error_code,
    ) = (1, 0, 0);
    (e.exception_has_payload, e.exception_payload) = (1, 0x4001);
    eq!(set(&g.cpu, &e), Ok(0));
    let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    eq!((d.dr6, d.dr7), (0xffff_0ff0, 0x2400), "not before");
    eq!(g.run_to_trap().vector, 1);
    let d: kvm_debugregs = crate::must!(g.cpu.fd.take(GET_DEBUGREGS));
    eq!((d.dr6, d.dr7), (0xffff_4ff1, 0x400));
}

fn triple_fault() {
    let k = Kvm::open();
    let vm = k.vm();
    let g = Guest::with_vm(k, vm, Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0xf4]);
    let mut e = get(&g.cpu);
    e.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    e.triple_fault.pending = 1;
    eq!(set(&g.cpu, &e), Err(EINVAL), "without the capability");
    enable(&g.vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT);
    eq!(set(&g.cpu, &e), Ok(0));
    eq!(get(&g.cpu).triple_fault.pending, 1);
    e.flags &= !KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    e.triple_fault.pending = 0;
    eq!(set(&g.cpu, &e), Ok(0));
    eq!(
        get(&g.cpu).triple_fault.pending,
        1,
        "left alone without the flag"
    );
    eq!(g.cpu.run(), Exit::Shutdown);
    eq!(get(&g.cpu).triple_fault.pending, 0, "told once");
}

fn shadow() {
    if crate::sys::on_bochs_svm() {
        harness::skip("an interrupt shadow that is set does not hold back the window on Bochs' SVM; why is not known");
    }
    let g = Guest::new(Mode::Long);
    // NOP, NOP, HLT with interrupts enabled, and a window wanted: it opens behind the shadow.
    g.mem.write(CODE as usize, &[0x90, 0x90, 0xf4]);
    let mut r = g.cpu.regs();
    r.rflags |= 0x200;
    for (shadow, rip) in [(0u8, CODE), (2, CODE + 1), (1, CODE + 1)] {
        g.cpu.set_regs(&r);
        let mut e = get(&g.cpu);
        e.interrupt.shadow = shadow;
        eq!(set(&g.cpu, &e), Ok(0));
        let got = get(&g.cpu).interrupt.shadow;
        check!((got != 0) == (shadow != 0), "shadow {shadow}: {got}");
        g.cpu.want_window(true);
        eq!(g.cpu.run(), Exit::IrqWindow, "{}", g.describe());
        g.cpu.want_window(false);
        eq!(g.cpu.regs().rip, rip, "shadow {shadow}");
        // Without its flag it is left alone.
        let mut e = get(&g.cpu);
        (e.flags, e.interrupt.shadow) = (0, 2);
        eq!(set(&g.cpu, &e), Ok(0));
        eq!(get(&g.cpu).interrupt.shadow, 0);
    }
}

fn debugregs() {
    let (_k, _vm, c) = vcpu();
    let get = || -> kvm_debugregs { crate::must!(c.fd.take(GET_DEBUGREGS)) };
    let mut d = get();
    eq!(
        (d.db, d.dr6, d.dr7, d.flags),
        ([0; 4], 0xffff_0ff0, 0x400, 0)
    );
    eq!(d.reserved, [0; 9]);
    d.db = [0x1000, 0xffff_8000_0000_0000, u64::MAX, 0x1234_5678_9abc];
    for (dr6, dr7) in [
        (0xffff_0ff1, 0x401),
        (0, 0),
        (0xffff_ffff, 0xffff_ffff),
        (0xffff_4ff0, 0x555),
    ] {
        (d.dr6, d.dr7) = (dr6, dr7);
        eq!(c.fd.give(SET_DEBUGREGS, &d), Ok(0), "{dr6:x} {dr7:x}");
        eq!(bytes_of(&get()), bytes_of(&d), "{dr6:x} {dr7:x}");
    }
    let before = get();
    for bit in 32..64 {
        let bad = kvm_debugregs {
            db: [1; 4],
            dr6: 1 << bit,
            ..d
        };
        eq!(c.fd.give(SET_DEBUGREGS, &bad), Err(EINVAL), "DR6 bit {bit}");
        let bad = kvm_debugregs {
            db: [1; 4],
            dr7: 1 << bit,
            ..d
        };
        eq!(c.fd.give(SET_DEBUGREGS, &bad), Err(EINVAL), "DR7 bit {bit}");
    }
    for flags in [1, 1 << 63, u64::MAX] {
        let bad = kvm_debugregs {
            db: [1; 4],
            flags,
            ..d
        };
        eq!(
            c.fd.give(SET_DEBUGREGS, &bad),
            Err(EINVAL),
            "flags {flags:x}"
        );
    }
    eq!(bytes_of(&get()), bytes_of(&before));
}
