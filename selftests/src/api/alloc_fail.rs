// SPDX-License-Identifier: GPL-2.0
//! Every ioctl with each of its allocations failing once, and each of its copies from and to user space: ENOMEM, EFAULT or
//! success, nothing changed by what failed, and the same call works afterwards. What leaks, kmemleak finds at the end of the run.
//!
//! Where the kernel has fault injection, `fail-nth` makes the n-th point of this thread fail where an allocation or a copy may;
//! elsewhere a module of the tests does (`selftests/foreign/fail_nth.c`).

mod covered;
mod inject;
mod state;
mod system;
mod vcpu;
mod vm;

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{self, Map, Res};
use crate::{check, eq};
use iced_x86::code_asm::*;
use inject::{fd_of, give, nothing, num, Inject, MANY};
use kvm_bindings::*;
use libc::{EFAULT, ENOMEM};
use std::cell::Cell;

pub const TESTS: &[Test] = &[
    failing("api/alloc_fail_system", system::system),
    failing("api/alloc_fail_create", create),
    failing("api/alloc_fail_memory", memory),
    failing("api/alloc_fail_vm", vm::vm),
    failing("api/alloc_fail_slots", vm::slots),
    failing("api/alloc_fail_vcpu", state::state),
    failing("api/alloc_fail_vcpu_calls", vcpu::calls),
    failing("api/alloc_fail_run", run),
    failing("api/alloc_fail_teardown", teardown),
    failing("api/alloc_fail_load", load)
        .log_ok(LOADER)
        .long_only(900),
];

/// When pages for vmalloc fail, the kernel tells so with a call trace.
const fn failing(name: &'static str, test: fn()) -> Test {
    Test::new(name, test)
        .secs(300)
        .no_ab()
        .log_ok(&["Call Trace:"])
}

/// What the kernel says of its own when memory fails while it loads a module, whichever. The debug kernel names no files.
const LOADER: &[&str] = &[
    "Call Trace:",
    "cut here",
    "Modules linked in",
    "kernel/jump_label.c",
    "kernel/trace/trace_events.c",
    "event_define_fields",
];

fn create() {
    let i = Inject::new();
    let kvm = Kvm::open();
    i.each_on("CREATE_VM", &kvm, |k| fd_of(&k.0, CREATE_VM, 0), nothing);
    // A vCPU that could not be made leaves its id free, and the VM as it was.
    i.each(
        "CREATE_VCPU",
        || kvm.vm(),
        |vm| fd_of(&vm.fd, CREATE_VCPU, 0),
        |vm, done| {
            if done {
                eq!(vm.try_vcpu(0).err(), Some(libc::EEXIST));
                check!(vm.try_vcpu(1).is_ok(), "another vCPU can be made");
            }
        },
    );
    let vm = kvm.vm();
    let fd = vm.vcpu(0).fd;
    let map = |fd: &Kfd| {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let m = Map::new(3 * 4096, prot, libc::MAP_SHARED, fd.0.raw(), 0)?;
        eq!(m.rd::<u8>(offset_of_immediate_exit()), 0);
        Ok(0)
    };
    i.each_on("mmap", &fd, map, nothing);
    i.covers(covered::CREATE);
}

fn offset_of_immediate_exit() -> usize {
    std::mem::offset_of!(kvm_run, immediate_exit)
}

fn memory() {
    let i = Inject::new();
    let kvm = Kvm::open();
    let mem = Map::anon(4 << 20);
    mem.fill(0, 4 << 20, 0);
    let region = |vm: &Vm, slot: u32, guest_phys_addr: u64, memory_size: u64| {
        let r = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr,
            memory_size,
            userspace_addr: mem.addr(),
        };
        give(&vm.fd, SET_USER_MEMORY_REGION, &r)
    };
    i.each(
        "SET_USER_MEMORY_REGION, new",
        || kvm.vm(),
        |vm| region(vm, 1, 0x10_0000, 0x10_0000),
        |vm, done| {
            // Its place is taken or free, not something between.
            let again = region(vm, 2, 0x10_0000, 0x1000);
            let want = if done { Err(libc::EEXIST) } else { Ok(0) };
            eq!(again, want);
            if again.is_ok() {
                eq!(region(vm, 2, 0, 0), Ok(0));
            }
        },
    );
    let with_slot = || {
        let vm = kvm.vm();
        eq!(region(&vm, 1, 0x10_0000, 0x10_0000), Ok(0));
        vm
    };
    let taken = |vm: &Vm, gpa: u64| match region(vm, 2, gpa, 0x1000) {
        Ok(_) => {
            eq!(region(vm, 2, 0, 0), Ok(0));
            false
        }
        Err(e) => {
            eq!(e, libc::EEXIST);
            true
        }
    };
    i.each(
        "SET_USER_MEMORY_REGION, moved",
        with_slot,
        |vm| region(vm, 1, 0x40_0000, 0x10_0000),
        |vm, done| {
            eq!(taken(vm, 0x10_0000), !done);
            eq!(taken(vm, 0x40_0000), done);
        },
    );
    i.each(
        "SET_USER_MEMORY_REGION, deleted",
        with_slot,
        |vm| region(vm, 1, 0, 0),
        |vm, done| eq!(taken(vm, 0x10_0000), !done),
    );
    let vm = kvm.vm();
    i.each_on(
        "SET_TSS_ADDR",
        &vm,
        |vm| num(&vm.fd, SET_TSS_ADDR, 0xfffb_d000),
        nothing,
    );
    i.each_on(
        "SET_IDENTITY_MAP_ADDR",
        &vm,
        |vm| give(&vm.fd, SET_IDENTITY_MAP_ADDR, &0xfffb_c000u64),
        nothing,
    );
    i.covers(covered::MEMORY);
}

/// A guest that writes to a new small page, to a new large page and to a device, and halts.
fn toucher() -> (Guest, Map) {
    let g = Guest::new(Mode::Long);
    let more = Map::anon(4 << 20);
    let _ = more.advise(0, 4 << 20, libc::MADV_HUGEPAGE);
    eq!(g.vm.region(1, 0, 0x1000_0000, 4 << 20, more.addr()), Ok(0));
    g.load(|a| {
        a.mov(ebx, 0x1000_0000)?;
        a.mov(dword_ptr(rbx), 0x1111)?;
        a.mov(dword_ptr(rbx + 0x20_0000), 0x2222)?;
        a.lock().add(dword_ptr(DATA), 1)?;
        a.mov(ebx, MMIO as u32)?;
        a.mov(dword_ptr(rbx), 0x3333)?;
        a.hlt()
    });
    (g, more)
}

/// Leaves no event waiting.
fn take_events(fd: &Kfd) -> Res {
    let mut none: kvm_vcpu_events = sys::zeroed();
    sys::ioctl_with(fd.0.raw(), SET_VCPU_EVENTS, &mut none)
}

fn run() {
    let i = Inject::new();
    // KVM_RUN that failed can be called again, and the guest goes on as if nothing had been.
    i.each(
        "RUN",
        toucher,
        |(g, _)| loop {
            num(&g.cpu.fd, RUN, 0)?;
            match g.cpu.exit_reason() {
                KVM_EXIT_HLT => return Ok(0),
                KVM_EXIT_MMIO => {}
                // The bytes of the instruction could not be copied: that is told, and a #UD waits, without which it can be
                // repeated too.
                KVM_EXIT_INTERNAL_ERROR => {
                    take_events(&g.cpu.fd)?;
                    return Err(EFAULT);
                }
                n => panic!("exit {n}{}", g.describe()),
            }
        },
        |(g, more), done| {
            if done {
                eq!(more.rd::<u32>(0), 0x1111);
                eq!(more.rd::<u32>(2 << 20), 0x2222);
                eq!(g.mem.rd::<u32>(DATA as usize), 1);
            }
        },
    );
    i.covers(covered::RUN_ONLY);
}

fn teardown() {
    let i = Inject::new();
    // What ends cannot fail, whatever the allocations do: memory that goes under a VM, descriptors that are closed.
    let ran = || {
        let (g, more) = toucher();
        while !matches!(g.cpu.run(), Exit::Hlt) {}
        (Cell::new(Some(g)), more)
    };
    i.each(
        "madvise",
        ran,
        |(_, more)| more.advise(0, 4 << 20, libc::MADV_DONTNEED),
        nothing,
    );
    i.each(
        "close",
        ran,
        |(g, _)| {
            drop(g.take());
            Ok(0)
        },
        nothing,
    );
}

/// Loads our module again, whatever became of the test.
struct Loaded(&'static str);

impl Drop for Loaded {
    fn drop(&mut self) {
        if !std::path::Path::new("/dev/kvm").exists() {
            eq!(sys::load_module(self.0, ""), Ok(0));
        }
    }
}

fn load() {
    let i = Inject::new();
    let file = "/modules/kvm.ko";
    if !std::path::Path::new(file).exists() {
        harness::skip("the module under test is not ours");
    }
    eq!(sys::delete_module("kvm"), Ok(0));
    let _loaded = Loaded(file);
    // One takes seconds on the debug kernel: with `--scale` below 100, most are left out.
    let some = harness::rounds(20, u64::from(MANY));
    let step = (u64::from(MANY) / some).max(1);
    for n in (1..MANY).step_by(step as usize) {
        let (r, hit) = i.nth(n, || sys::load_module(file, ""));
        match r {
            Ok(_) => eq!(sys::delete_module("kvm"), Ok(0)),
            Err(e) => check!(
                hit && matches!(e, ENOMEM | EFAULT),
                "loading, point {n}: errno {e}, {hit}"
            ),
        }
        check!(
            !std::path::Path::new("/dev/kvm").exists(),
            "point {n} left /dev/kvm"
        );
        if !hit {
            harness::say(&format!("loading: {} points, one in {step} tried", n - 1));
            return;
        }
    }
    harness::fail(&format!("loading: more than {MANY} points"));
}
