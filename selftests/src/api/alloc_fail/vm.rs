// SPDX-License-Identifier: GPL-2.0
//! The ioctls of a VM, but those that make vCPUs and plain slots.

use super::covered;
use super::inject::{give, nothing, num, refused, take, Inject};
use crate::eq;
use crate::guest::*;
use crate::kvm::*;
use crate::sys::{self, filled, Map, Res};
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::{EEXIST, EINVAL, ENOENT, ENXIO};

pub fn vm() {
    let i = Inject::new();
    let kvm = Kvm::open();
    plain(&i, &kvm);
    refusals(&i, &kvm);
    clock(&i, &kvm);
    capabilities(&i, &kvm);
    ioevents(&i, &kvm);
    msr_filter(&i);
    i.covers(covered::VM);
}

fn plain(i: &Inject, kvm: &Kvm) {
    let vm = kvm.vm();
    let fd = &vm.fd;
    let cap = u64::from(KVM_CAP_NR_VCPUS);
    for (what, nr, arg) in [
        ("CHECK_EXTENSION", CHECK_EXTENSION, cap),
        ("SET_NR_MMU_PAGES", SET_NR_MMU_PAGES, 64),
        ("GET_TSC_KHZ", GET_TSC_KHZ, 0),
    ] {
        i.each_on(what, fd, |f| num(f, nr, arg), nothing);
    }
    rate(i, fd);
}

/// The rate of the counter, of a VM or of a vCPU, is the new one or the old one. It has the old one afterwards.
pub fn rate(i: &Inject, fd: &Kfd) {
    let khz = || crate::must!(num(fd, GET_TSC_KHZ, 0));
    let host = khz();
    i.each(
        "SET_TSC_KHZ",
        || crate::must!(num(fd, SET_TSC_KHZ, host as u64)),
        |_| num(fd, SET_TSC_KHZ, host as u64 * 2),
        |_, done| eq!(khz(), if done { host * 2 } else { host }),
    );
    crate::must!(num(fd, SET_TSC_KHZ, host as u64));
}

/// What a VM without interrupt controllers refuses, after it has read what it is given.
fn refusals(i: &Inject, kvm: &Kvm) {
    let vm = kvm.vm();
    let fd = &vm.fd;
    let routing = |f: &Kfd| refused(give(f, SET_GSI_ROUTING, &[0u32; 2]), EINVAL);
    i.each_on("SET_GSI_ROUTING", fd, routing, nothing);
    let msi = |f: &Kfd| refused(take::<kvm_msi>(f, SIGNAL_MSI), EINVAL);
    i.each_on("SIGNAL_MSI", fd, msi, nothing);
    let line = |f: &Kfd| refused(give(f, IRQ_LINE, &[1u32, 1]), ENXIO);
    i.each_on("IRQ_LINE", fd, line, nothing);
}

fn clock(i: &Inject, kvm: &Kvm) {
    const LATE: u64 = 1 << 60;
    let vm = kvm.vm();
    i.each_on(
        "GET_CLOCK",
        &vm.fd,
        |f| take::<kvm_clock_data>(f, GET_CLOCK),
        nothing,
    );
    let at = |clock: u64| {
        let mut d: kvm_clock_data = filled(0);
        d.clock = clock;
        d
    };
    i.each(
        "SET_CLOCK",
        || crate::must!(give(&vm.fd, SET_CLOCK, &at(0))),
        |_| give(&vm.fd, SET_CLOCK, &at(LATE)),
        |_, done| {
            let now = crate::must!(vm.fd.take::<kvm_clock_data>(GET_CLOCK)).clock;
            eq!(now >= LATE, done, "{now}");
        },
    );
}

fn enable(fd: &Kfd, cap: u32, value: u64) -> Res {
    let mut c: kvm_enable_cap = filled(0);
    (c.cap, c.args[0]) = (cap, value);
    give(fd, ENABLE_CAP, &c)
}

fn capabilities(i: &Inject, kvm: &Kvm) {
    let vm = kvm.vm();
    let cpu = vm.vcpu(0);
    i.each(
        "ENABLE_CAP",
        || crate::must!(enable(&vm.fd, KVM_CAP_EXCEPTION_PAYLOAD, 0)),
        |_| enable(&vm.fd, KVM_CAP_EXCEPTION_PAYLOAD, 1),
        |_, done| {
            let e = crate::must!(cpu.fd.take::<kvm_vcpu_events>(GET_VCPU_EVENTS));
            eq!(e.flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0, done);
        },
    );
    i.each(
        "ENABLE_CAP, exits",
        || kvm.vm(),
        |vm| enable(&vm.fd, KVM_CAP_X86_DISABLE_EXITS, 0),
        nothing,
    );
}

fn ioevents(i: &Inject, kvm: &Kvm) {
    const GONE: u32 = 4;
    let file = sys::eventfd();
    let change = |vm: &Vm, flags: u32, addr: u64| {
        let e = kvm_ioeventfd {
            addr,
            len: 4,
            fd: file.raw(),
            flags,
            ..Default::default()
        };
        give(&vm.fd, IOEVENTFD, &e)
    };
    let with = |addrs: &[u64]| {
        let vm = kvm.vm();
        for a in addrs {
            eq!(change(&vm, 0, *a), Ok(0));
        }
        vm
    };
    // It is there or not, not something between, and its neighbours are.
    let there = |vm: &Vm, there: bool| {
        eq!(change(vm, 0, 0x1000), Err(EEXIST));
        eq!(change(vm, 0, 0x3000), Err(EEXIST));
        let again = change(vm, 0, 0x2000);
        eq!(again, if there { Err(EEXIST) } else { Ok(0) });
        if again.is_ok() {
            eq!(change(vm, GONE, 0x2000), Ok(0));
        }
    };
    i.each(
        "IOEVENTFD, added",
        || with(&[0x1000, 0x3000]),
        |vm| change(vm, 0, 0x2000),
        there,
    );
    i.each(
        "IOEVENTFD, removed",
        || with(&[0x1000, 0x2000, 0x3000]),
        |vm| change(vm, GONE, 0x2000),
        |vm, done| there(vm, !done),
    );
}

/// The filter is the new one or the old one: a guest's RDMSR asks user space, or does not.
fn msr_filter(i: &Inject) {
    const MSR: u32 = 0x174;
    let none_allowed = [0u8; 64];
    let mut deny = [0u64; 49];
    // One range: reads and writes of 512 registers, at this bitmap.
    deny[1] = 3 | 512 << 32;
    (deny[2], deny[3]) = (0, none_allowed.as_ptr() as u64);
    let guest = || {
        let g = Guest::new(Mode::Long);
        let reasons = u64::from(KVM_MSR_EXIT_REASON_FILTER);
        eq!(enable(&g.vm.fd, KVM_CAP_X86_USER_SPACE_MSR, reasons), Ok(0));
        g.load(|a| {
            a.mov(ecx, MSR)?;
            a.rdmsr()?;
            a.hlt()
        });
        g
    };
    i.each(
        "X86_SET_MSR_FILTER",
        guest,
        |g| give(&g.vm.fd, X86_SET_MSR_FILTER, &deny),
        |g, done| {
            let want = if done {
                Exit::Other(KVM_EXIT_X86_RDMSR)
            } else {
                Exit::Hlt
            };
            eq!(g.cpu.run(), want);
            // For the next time: it starts again, with nothing to be finished.
            if !done {
                let mut r = g.cpu.regs();
                r.rip = CODE;
                g.cpu.set_regs(&r);
            }
        },
    );
}

const PAGE: u64 = 4096;
/// Where the slots of these tests lie, and how large they are.
const SLOT: u64 = 0x1000_0000;
const SIZE: u64 = 128 * PAGE;

/// A guest, and the memory and the bitmap of a slot that it has yet to be given.
struct Logged {
    g: Guest,
    mem: Map,
    bits: Map,
}

impl Logged {
    fn new(slot: Option<u32>) -> Self {
        let s = Self {
            g: Guest::new(Mode::Long),
            mem: Map::anon(SIZE as usize),
            bits: Map::anon(PAGE as usize),
        };
        // What is there before it is made to fail.
        s.mem.fill(0, SIZE as usize, 0);
        s.bits.fill(0, PAGE as usize, 0);
        if let Some(flags) = slot {
            eq!(s.region(flags), Ok(0));
        }
        s
    }

    fn region(&self, flags: u32) -> Res {
        let r = kvm_userspace_memory_region {
            slot: 1,
            flags,
            guest_phys_addr: SLOT,
            memory_size: SIZE,
            userspace_addr: self.mem.addr(),
        };
        give(&self.g.vm.fd, SET_USER_MEMORY_REGION, &r)
    }

    fn dirty_log(&self) -> Res {
        let arg: [u64; 2] = [1, self.bits.addr()];
        give(&self.g.vm.fd, GET_DIRTY_LOG, &arg)
    }
}

pub fn slots() {
    const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
    let i = Inject::new();
    i.each(
        "SET_USER_MEMORY_REGION, logged",
        || Logged::new(None),
        |s| s.region(LOG),
        |s, done| eq!(s.dirty_log(), if done { Ok(0) } else { Err(ENOENT) }),
    );
    i.each(
        "SET_USER_MEMORY_REGION, logged from now on",
        || Logged::new(Some(0)),
        |s| s.region(LOG),
        |s, done| eq!(s.dirty_log(), if done { Ok(0) } else { Err(ENOENT) }),
    );
    i.each(
        "SET_USER_MEMORY_REGION, logged no more",
        || Logged::new(Some(LOG)),
        |s| s.region(0),
        |s, done| eq!(s.dirty_log(), if done { Err(ENOENT) } else { Ok(0) }),
    );
    i.each(
        "SET_USER_MEMORY_REGION2",
        || Logged::new(None),
        |s| {
            let mut r: kvm_userspace_memory_region2 = filled(0);
            (r.slot, r.flags) = (1, LOG);
            (r.guest_phys_addr, r.memory_size) = (SLOT, SIZE);
            r.userspace_addr = s.mem.addr();
            give(&s.g.vm.fd, SET_USER_MEMORY_REGION2, &r)
        },
        |s, done| eq!(s.dirty_log(), if done { Ok(0) } else { Err(ENOENT) }),
    );
    // Pages that the guest wrote are told once, and not lost by a call that could not tell them.
    i.each(
        "GET_DIRTY_LOG",
        || {
            let s = Logged::new(Some(LOG));
            s.g.load(|a| {
                a.mov(ebx, SLOT as u32)?;
                a.mov(dword_ptr(rbx + 3 * PAGE as i32), 1)?;
                a.mov(dword_ptr(rbx + 70 * PAGE as i32), 1)?;
                a.hlt()
            });
            s.g.expect(&Exit::Hlt);
            s
        },
        Logged::dirty_log,
        |s, done| {
            if done {
                eq!(s.bits.rd::<u64>(0), 1 << 3);
                eq!(s.bits.rd::<u64>(8), 1 << (70 - 64));
                eq!(s.dirty_log(), Ok(0));
                eq!((s.bits.rd::<u64>(0), s.bits.rd::<u64>(8)), (0, 0));
            }
        },
    );
    i.covers(covered::SLOTS);
}
