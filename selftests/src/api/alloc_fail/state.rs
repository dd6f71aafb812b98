// SPDX-License-Identifier: GPL-2.0
//! The ioctls that tell and set a vCPU's state.

use super::covered;
use super::inject::{call, give, take, Inject};
use crate::check;
use crate::eq;
use crate::guest::*;
use crate::harness;
use crate::kvm::*;
use crate::sys;
use kvm_bindings::*;
use std::cell::RefCell;

/// `struct kvm_xsave`, as long as it is without components that have to be asked for.
type Image = [u8; 4096];

/// What of a vCPU can be asked for.
fn all_of(cpu: &Vcpu) -> Vec<u8> {
    let mut all = sys::bytes_of(&cpu.regs());
    all.extend(sys::bytes_of(&cpu.sregs()));
    all.extend(sys::bytes_of(&crate::must!(cpu
        .fd
        .take::<kvm_fpu>(GET_FPU))));
    all.extend(sys::bytes_of(&crate::must!(cpu
        .fd
        .take::<kvm_mp_state>(GET_MP_STATE))));
    all.extend(sys::bytes_of(&crate::must!(cpu
        .fd
        .take::<kvm_vcpu_events>(GET_VCPU_EVENTS))));
    all.extend(sys::bytes_of(&crate::must!(cpu
        .fd
        .take::<kvm_debugregs>(GET_DEBUGREGS))));
    if let Ok(x) = cpu.fd.take::<kvm_xcrs>(GET_XCRS) {
        all.extend(sys::bytes_of(&x));
    }
    if let Ok(x) = cpu.fd.take::<Image>(GET_XSAVE) {
        all.extend(x);
    }
    let mut cpuid: Box<CpuidBuf> = Box::new(sys::zeroed());
    cpuid.nent = MAX_ENTRIES as u32;
    crate::must!(sys::ioctl_with(cpu.fd.0.raw(), GET_CPUID2, &mut *cpuid));
    all.extend(sys::bytes_of(&*cpuid));
    for index in [0x174, 0x175, 0x176, 0x277, 0xc000_0081, 0xc000_0082] {
        all.extend(cpu.msr(index).unwrap_or(0).to_le_bytes());
    }
    all
}

/// A call that reads part of a vCPU's state, and one that writes it back changed.
fn get_and_set<T: sys::Abi>(
    i: &Inject,
    cpu: &Vcpu,
    what: &str,
    get: u64,
    set: u64,
    change: impl Fn(&mut T),
) {
    let Ok(old) = cpu.fd.take::<T>(get) else {
        harness::say(&format!("{what}: not on this machine"));
        i.absent(get);
        i.absent(set);
        return;
    };
    // What was just set may be told in another form than what was there at first.
    crate::must!(cpu.fd.give(set, &old));
    let before = all_of(cpu);
    i.each_on(
        &format!("GET_{what}"),
        &cpu,
        |c| take::<T>(&c.fd, get),
        |c, _| check!(all_of(c) == before, "GET_{what} changed the vCPU"),
    );
    let mut new = old;
    change(&mut new);
    i.each(
        &format!("SET_{what}"),
        || crate::must!(cpu.fd.give(set, &old)),
        |_| give(&cpu.fd, set, &new),
        |_, done| {
            check!(
                done || all_of(cpu) == before,
                "SET_{what} failed and changed the vCPU"
            );
        },
    );
}

pub fn state() {
    let i = Inject::new();
    let g = Guest::new(Mode::Long);
    let cpu = &g.cpu;
    get_and_set::<kvm_regs>(&i, cpu, "REGS", GET_REGS, SET_REGS, |r| r.rbx = 0x1234);
    get_and_set::<kvm_sregs>(&i, cpu, "SREGS", GET_SREGS, SET_SREGS, |s| s.cr2 = 0x1234);
    get_and_set::<kvm_fpu>(&i, cpu, "FPU", GET_FPU, SET_FPU, |f| f.xmm[3][5] = 0x77);
    get_and_set::<kvm_xcrs>(&i, cpu, "XCRS", GET_XCRS, SET_XCRS, |_| {});
    get_and_set::<kvm_sregs2>(&i, cpu, "SREGS2", GET_SREGS2, SET_SREGS2, |s| {
        s.cr2 = 0x1234
    });
    get_and_set::<kvm_vcpu_events>(
        &i,
        cpu,
        "VCPU_EVENTS",
        GET_VCPU_EVENTS,
        SET_VCPU_EVENTS,
        |e| e.nmi.masked = 1,
    );
    get_and_set::<kvm_debugregs>(&i, cpu, "DEBUGREGS", GET_DEBUGREGS, SET_DEBUGREGS, |d| {
        d.db[0] = 0x1234
    });
    get_and_set::<Image>(&i, cpu, "XSAVE", GET_XSAVE, SET_XSAVE, |x| {
        // The first byte of XMM0, and that x87 and SSE are there.
        x[160] = 0x77;
        x[512] |= 3;
    });
    get_and_set::<kvm_mp_state>(&i, cpu, "MP_STATE", GET_MP_STATE, SET_MP_STATE, |_| {});
    let msrs = [(0x174, 8), (0x175, 0x1000), (0xc000_0082, 5)];
    let msrs = RefCell::new(MsrsBuf::of(&msrs));
    let cpuid = RefCell::new(g.kvm.cpuid());
    // They set what is set already, so nothing may change at all.
    eq!(call(&cpu.fd, SET_MSRS, &msrs), Ok(3));
    eq!(call(&cpu.fd, SET_CPUID2, &cpuid), Ok(0));
    let before = all_of(cpu);
    let same = |c: &&Vcpu, _: bool| check!(all_of(c) == before, "it changed the vCPU");
    i.each_on("SET_MSRS", &cpu, |c| call(&c.fd, SET_MSRS, &msrs), same);
    i.each_on("GET_MSRS", &cpu, |c| call(&c.fd, GET_MSRS, &msrs), same);
    i.each_on(
        "SET_CPUID2",
        &cpu,
        |c| call(&c.fd, SET_CPUID2, &cpuid),
        same,
    );
    let get_cpuid = |c: &&Vcpu| {
        cpuid.borrow_mut().nent = MAX_ENTRIES as u32;
        call(&c.fd, GET_CPUID2, &cpuid)
    };
    i.each_on("GET_CPUID2", &cpu, get_cpuid, same);
    i.covers(covered::STATE);
}
