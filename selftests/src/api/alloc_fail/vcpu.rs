// SPDX-License-Identifier: GPL-2.0
//! The other ioctls of a vCPU, but KVM_RUN.

use super::covered;
use super::inject::{call, give, nothing, num, refused, take, Inject};
use crate::eq;
use crate::guest::*;
use crate::kvm::*;
use crate::sys::{self, filled, Map};
use kvm_bindings::*;
use libc::EINVAL;
use std::cell::RefCell;

pub fn calls() {
    let i = Inject::new();
    let g = Guest::new(Mode::Long);
    events(&i, &g.cpu);
    plain(&i, &g);
    machine_checks(&i, &g.cpu);
    time(&i, &g.cpu);
    old_cpuid(&i, &g.kvm);
    debug(&i, &g.cpu);
    i.covers(covered::VCPU);
}

fn events(i: &Inject, cpu: &Vcpu) {
    let fd = &cpu.fd;
    let waiting = || crate::must!(fd.take::<kvm_vcpu_events>(GET_VCPU_EVENTS));
    let none = || {
        let mut none: kvm_vcpu_events = filled(0);
        none.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
        crate::must!(give(fd, SET_VCPU_EVENTS, &none))
    };
    i.each(
        "NMI",
        none,
        |_| num(fd, NMI, 0),
        |_, done| eq!(waiting().nmi.pending, u8::from(done)),
    );
    i.each(
        "INTERRUPT",
        none,
        |_| give(fd, INTERRUPT, &kvm_interrupt { irq: 0x55 }),
        |_, done| eq!(waiting().interrupt.injected, u8::from(done)),
    );
    none();
    i.each_on(
        "SET_SIGNAL_MASK",
        fd,
        |f| give(f, SET_SIGNAL_MASK, &[8u32, 0, 0]),
        nothing,
    );
}

fn plain(i: &Inject, g: &Guest) {
    let fd = &g.cpu.fd;
    let address = |f: &Kfd| {
        let mut t: kvm_translation = filled(0);
        t.linear_address = CODE;
        give(f, TRANSLATE, &t)
    };
    i.each_on("TRANSLATE", fd, address, nothing);
    let big = RefCell::new(Box::new([0u8; 4 * 4096]));
    if g.kvm.cap(KVM_CAP_XSAVE2) == 0 {
        i.absent(GET_XSAVE2);
    } else {
        i.each_on("GET_XSAVE2", fd, |f| call(f, GET_XSAVE2, &big), nothing);
    }
    let cap = |f: &Kfd| refused(take::<kvm_enable_cap>(f, ENABLE_CAP), EINVAL);
    i.each_on("ENABLE_CAP", fd, cap, nothing);
}

fn machine_checks(i: &Inject, cpu: &Vcpu) {
    const CAP: u32 = 0x179;
    const STATUS: u32 = 0x401;
    // Valid, and of no weight.
    const ERROR: u64 = 1 << 63 | 5;
    let fd = &cpu.fd;
    i.each(
        "X86_SETUP_MCE",
        || crate::must!(give(fd, X86_SETUP_MCE, &1u64)),
        |_| give(fd, X86_SETUP_MCE, &10u64),
        |_, done| eq!(cpu.msr(CAP), Some(if done { 10 } else { 1 })),
    );
    let mut error: kvm_x86_mce = filled(0);
    error.status = ERROR;
    i.each(
        "X86_SET_MCE",
        || eq!(cpu.set_msr(STATUS, 0), true),
        |_| give(fd, X86_SET_MCE, &error),
        |_, done| eq!(cpu.msr(STATUS), Some(if done { ERROR } else { 0 })),
    );
}

fn time(i: &Inject, cpu: &Vcpu) {
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    let fd = &cpu.fd;
    eq!(cpu.set_msr(SYSTEM_TIME, DATA | 1), true);
    i.each_on("KVMCLOCK_CTRL", fd, |f| num(f, KVMCLOCK_CTRL, 0), nothing);
    i.each_on("GET_TSC_KHZ", fd, |f| num(f, GET_TSC_KHZ, 0), nothing);
    super::vm::rate(i, fd);
    let cell = Map::anon(4096);
    let mut offset: kvm_device_attr = filled(0);
    (offset.group, offset.attr) = (KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET.into());
    offset.addr = cell.addr();
    cell.wr(0, 0u64);
    let attr = |nr: u64| crate::must!(give(fd, nr, &offset));
    i.each_on(
        "HAS_DEVICE_ATTR",
        fd,
        |f| give(f, HAS_DEVICE_ATTR, &offset),
        nothing,
    );
    i.each_on(
        "GET_DEVICE_ATTR",
        fd,
        |f| give(f, GET_DEVICE_ATTR, &offset),
        nothing,
    );
    i.each(
        "SET_DEVICE_ATTR",
        || {
            cell.wr(0, 5u64);
            attr(SET_DEVICE_ATTR);
            cell.wr(0, 1u64 << 52);
        },
        |()| give(fd, SET_DEVICE_ATTR, &offset),
        |(), done| {
            attr(GET_DEVICE_ATTR);
            eq!(cell.rd::<u64>(0), if done { 1 << 52 } else { 5 });
            cell.wr(0, 1u64 << 52);
        },
    );
}

/// KVM_SET_CPUID, on vCPUs that have had none.
fn old_cpuid(i: &Inject, kvm: &Kvm) {
    // Two leaves, each of six words.
    let words: [u32; 14] = [2, 0, 0, 1, 0, 0, 0, 0, 1, 0x600, 0, 0, 0x1000, 0];
    i.each(
        "SET_CPUID",
        || {
            let vm = kvm.vm();
            (vm.vcpu(0), vm)
        },
        |(c, _)| give(&c.fd, SET_CPUID, &words),
        |(c, _), done| {
            let mut b: Box<CpuidBuf> = Box::new(sys::zeroed());
            b.nent = MAX_ENTRIES as u32;
            eq!(c.fd.with(GET_CPUID2, &mut *b), Ok(0));
            eq!(b.nent, if done { 2 } else { 0 });
        },
    );
}

/// KVM_SET_GUEST_DEBUG: the #DB that is asked for waits, or does not.
fn debug(i: &Inject, cpu: &Vcpu) {
    let fd = &cpu.fd;
    let mut d: kvm_guest_debug = filled(0);
    d.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB;
    i.each(
        "SET_GUEST_DEBUG",
        || crate::must!(give(fd, SET_VCPU_EVENTS, &filled::<kvm_vcpu_events>(0))),
        |_| give(fd, SET_GUEST_DEBUG, &d),
        |_, done| {
            let e = crate::must!(fd.take::<kvm_vcpu_events>(GET_VCPU_EVENTS)).exception;
            eq!((e.injected, e.nr), if done { (1, 1) } else { (0, 0) });
        },
    );
}
