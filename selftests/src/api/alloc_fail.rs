// SPDX-License-Identifier: GPL-2.0
//! Every ioctl with each of its allocations failing once, and each of its copies from and to user space: ENOMEM, EFAULT or
//! success, nothing changed by what failed, and the same call works afterwards. What leaks, kmemleak finds at the end of the run.
//!
//! Where the kernel has fault injection, `fail-nth` makes the n-th point of this thread fail where an allocation or a copy may;
//! elsewhere a module of the tests does (`selftests/foreign/fail_nth.c`).

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{self, Arg, Map, OwnedFd, Res};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::{EFAULT, ENOMEM};
use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

pub const TESTS: &[Test] = &[
    failing("api/alloc_fail_system", system),
    failing("api/alloc_fail_create", create),
    failing("api/alloc_fail_memory", memory),
    failing("api/alloc_fail_vcpu", vcpu),
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

/// The most points of failure that one call may have.
const MANY: u32 = 2000;

/// The module that stands in for the kernel's own fault injection, and its file.
const MODULE: &str = "/modules/foreign/fail_nth.ko";
const MODULE_FILE: &str = "/sys/kernel/debug/lodge_fail_nth";

fn open(path: &str) -> Option<File> {
    OpenOptions::new().read(true).write(true).open(path).ok()
}

/// Fault injection for the calling thread.
struct Inject(Option<File>);

impl Drop for Inject {
    fn drop(&mut self) {
        self.0 = None;
        // It was not loaded if the kernel has its own.
        let _ = sys::delete_module("fail_nth");
    }
}

impl Inject {
    /// Sets it up, or skips the test.
    fn new() -> Self {
        // What the test itself needs shall not be what fails.
        let _ = sys::bad_addr();
        let Some(file) = open("/proc/thread-self/fail-nth") else {
            if !std::path::Path::new(MODULE).exists() {
                harness::skip("the kernel has no fault injection, and fail_nth.ko is not there");
            }
            eq!(sys::load_module(MODULE, ""), Ok(0));
            return Self(Some(open(MODULE_FILE).expect(MODULE_FILE)));
        };
        // Allocations that may wait are to fail too, and silently.
        for (what, value) in [
            ("failslab/ignore-gfp-wait", "N"),
            ("failslab/verbose", "0"),
            ("fail_page_alloc/ignore-gfp-wait", "N"),
            ("fail_page_alloc/ignore-gfp-highmem", "N"),
            ("fail_page_alloc/min-order", "0"),
            ("fail_page_alloc/verbose", "0"),
            ("fail_usercopy/verbose", "0"),
        ] {
            let file = format!("/sys/kernel/debug/{what}");
            if let Err(e) = std::fs::write(&file, value) {
                panic!("{file}: {e}");
            }
        }
        Self(Some(file))
    }

    fn file(&self) -> &File {
        self.0.as_ref().expect("the file is open until the end")
    }

    fn set(&self, n: u32) -> bool {
        self.file().write_at(n.to_string().as_bytes(), 0).is_ok()
    }

    /// Runs `f` with the `n`-th point failing; gives its result, and whether there were so many.
    fn nth<R>(&self, n: u32, f: impl FnOnce() -> R) -> (R, bool) {
        check!(self.set(n), "fail-nth cannot be written");
        let r = f();
        // What is left of the count. Reading it copies to user space, which can be what fails: then it was not reached before.
        let mut left = [0u8; 16];
        let hit =
            matches!(self.file().read_at(&mut left, 0), Ok(len) if left[..len].starts_with(b"0"));
        while !self.set(0) {}
        (r, hit)
    }

    /// Makes each point of `call` fail in turn, on a new subject each time; then the call has to work, and `after` to find
    /// everything in order.
    fn each<S>(
        &self,
        what: &str,
        setup: impl Fn() -> S,
        call: impl Fn(&S) -> Res,
        after: impl Fn(&S, bool),
    ) {
        for n in 1..MANY {
            let s = setup();
            let (r, hit) = self.nth(n, || call(&s));
            if let Err(e) = r {
                check!(
                    hit && matches!(e, ENOMEM | EFAULT),
                    "{what}, point {n}: errno {e}, {hit}"
                );
            }
            after(&s, r.is_ok());
            if r.is_err() {
                let again = call(&s);
                check!(again.is_ok(), "{what} after point {n} failed: {again:?}");
                after(&s, true);
            }
            if !hit {
                check!(r.is_ok(), "{what}: {r:?}");
                harness::say(&format!("{what}: {} points", n - 1));
                return;
            }
        }
        harness::fail(&format!("{what}: more than {MANY} points"));
    }

    /// The same on a subject that calls do not use up.
    fn each_on<S>(&self, what: &str, s: &S, call: impl Fn(&S) -> Res, after: impl Fn(&S, bool)) {
        self.each(what, || s, |s| call(s), |s, done| after(s, done));
    }
}

fn nothing<S>(_: &S, _: bool) {}

// The calls that are made to fail go to the kernel directly: the wrappers of `kvm` allocate.

fn num(fd: &Kfd, nr: u64, arg: u64) -> Res {
    sys::ioctl(fd.0.raw(), nr, Arg::Num(arg))
}

fn give<T: sys::Abi>(fd: &Kfd, nr: u64, v: &T) -> Res {
    sys::ioctl_with(fd.0.raw(), nr, &mut { *v })
}

fn take<T: sys::Abi>(fd: &Kfd, nr: u64) -> Res {
    sys::ioctl_with(fd.0.raw(), nr, &mut sys::zeroed::<T>())
}

/// An ioctl that gives a descriptor, which is closed at once.
fn fd_of(fd: &Kfd, nr: u64, arg: u64) -> Res {
    sys::ioctl(fd.0.raw(), nr, Arg::Num(arg)).map(|fd| {
        drop(OwnedFd::new(fd));
        0
    })
}

fn system() {
    let i = Inject::new();
    let kvm = Kvm::open();
    let open = |_: &()| OwnedFd::open("/dev/kvm", libc::O_RDWR).map(|_| 0);
    i.each_on("open", &(), open, nothing);
    let fd = &kvm.0;
    i.each_on(
        "GET_API_VERSION",
        fd,
        |f| num(f, GET_API_VERSION, 0),
        nothing,
    );
    i.each_on(
        "CHECK_EXTENSION",
        fd,
        |f| num(f, CHECK_EXTENSION, KVM_CAP_NR_VCPUS.into()),
        nothing,
    );
    i.each_on(
        "GET_VCPU_MMAP_SIZE",
        fd,
        |f| num(f, GET_VCPU_MMAP_SIZE, 0),
        nothing,
    );
    let list = |f: &&Kfd| {
        let mut b = [0u32; 1 + MAX_ENTRIES];
        b[0] = MAX_ENTRIES as u32;
        sys::ioctl_with(f.0.raw(), GET_MSR_INDEX_LIST, &mut b)
    };
    i.each_on("GET_MSR_INDEX_LIST", &fd, list, nothing);
    let buf = RefCell::new(Box::<CpuidBuf>::new(sys::zeroed()));
    let cpuid = |f: &&Kfd| {
        let mut b = buf.borrow_mut();
        b.nent = MAX_ENTRIES as u32;
        sys::ioctl_with(f.0.raw(), GET_SUPPORTED_CPUID, &mut **b)
    };
    i.each_on("GET_SUPPORTED_CPUID", &fd, cpuid, nothing);
}

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
}

/// A call with a structure that is too big for the stack.
fn call<T: sys::Abi>(fd: &Kfd, nr: u64, v: &RefCell<Box<T>>) -> Res {
    sys::ioctl_with(fd.0.raw(), nr, &mut **v.borrow_mut())
}

/// What of a vCPU can be asked for.
fn state(cpu: &Vcpu) -> Vec<u8> {
    let mut all = sys::bytes_of(&cpu.regs());
    all.extend(sys::bytes_of(&cpu.sregs()));
    all.extend(sys::bytes_of(&crate::must!(cpu
        .fd
        .take::<kvm_fpu>(GET_FPU))));
    all.extend(sys::bytes_of(&crate::must!(cpu
        .fd
        .take::<kvm_mp_state>(GET_MP_STATE))));
    if let Ok(x) = cpu.fd.take::<kvm_xcrs>(GET_XCRS) {
        all.extend(sys::bytes_of(&x));
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
        return;
    };
    // What was just set may be told in another form than what was there at first.
    crate::must!(cpu.fd.give(set, &old));
    let before = state(cpu);
    i.each_on(
        &format!("GET_{what}"),
        &cpu,
        |c| take::<T>(&c.fd, get),
        |c, _| check!(state(c) == before, "GET_{what} changed the vCPU"),
    );
    let mut new = old;
    change(&mut new);
    i.each(
        &format!("SET_{what}"),
        || crate::must!(cpu.fd.give(set, &old)),
        |_| give(&cpu.fd, set, &new),
        |_, done| {
            check!(
                done || state(cpu) == before,
                "SET_{what} failed and changed the vCPU"
            );
        },
    );
}

fn vcpu() {
    let i = Inject::new();
    let g = Guest::new(Mode::Long);
    let cpu = &g.cpu;
    get_and_set::<kvm_regs>(&i, cpu, "REGS", GET_REGS, SET_REGS, |r| r.rbx = 0x1234);
    get_and_set::<kvm_sregs>(&i, cpu, "SREGS", GET_SREGS, SET_SREGS, |s| s.cr2 = 0x1234);
    get_and_set::<kvm_fpu>(&i, cpu, "FPU", GET_FPU, SET_FPU, |f| f.xmm[3][5] = 0x77);
    get_and_set::<kvm_xcrs>(&i, cpu, "XCRS", GET_XCRS, SET_XCRS, |_| {});
    get_and_set::<kvm_mp_state>(&i, cpu, "MP_STATE", GET_MP_STATE, SET_MP_STATE, |_| {});
    let msrs = [(0x174, 8), (0x175, 0x1000), (0xc000_0082, 5)];
    let msrs = RefCell::new(MsrsBuf::of(&msrs));
    let cpuid = RefCell::new(g.kvm.cpuid());
    // They set what is set already, so nothing may change at all.
    eq!(call(&cpu.fd, SET_MSRS, &msrs), Ok(3));
    eq!(call(&cpu.fd, SET_CPUID2, &cpuid), Ok(0));
    let before = state(cpu);
    let same = |c: &&Vcpu, _: bool| check!(state(c) == before, "it changed the vCPU");
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
    i.each_on("NMI", &cpu, |c| num(&c.fd, NMI, 0), nothing);
    i.each_on(
        "INTERRUPT",
        &cpu,
        |c| give(&c.fd, INTERRUPT, &kvm_interrupt { irq: 0x55 }),
        nothing,
    );
    i.each_on(
        "SET_SIGNAL_MASK",
        &cpu,
        |c| {
            let mut mask = [8u32, 0, 0];
            sys::ioctl_with(c.fd.0.raw(), SET_SIGNAL_MASK, &mut mask)
        },
        nothing,
    );
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
    give(fd, SET_VCPU_EVENTS, &sys::zeroed::<kvm_vcpu_events>())
}

fn run() {
    let i = Inject::new();
    // KVM_RUN that failed can be called again, and the guest goes on as if nothing had been.
    i.each(
        "RUN",
        toucher,
        |(g, _)| loop {
            sys::ioctl(g.cpu.fd.0.raw(), RUN, Arg::Num(0))?;
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
