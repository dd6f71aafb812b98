// SPDX-License-Identifier: GPL-2.0
//! What the host does while guests run: kills their process, sends NMIs to its own CPUs, tries to unload the module.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::registers;
use crate::sys::{self, Ended, Map, OwnedFd};
use crate::{check, eq};
use std::time::Duration;

pub const TESTS: &[Test] = &[
    Test::new("micro/sigkill_in_run", sigkill).no_ab(),
    Test::new("micro/exit_without_closing", exit_without_closing).no_ab(),
    Test::new("micro/host_nmi", host_nmi)
        .secs(40)
        .no_ab()
        .log_ok(&["Call Trace:", "NMI backtrace", "Modules linked in"]),
    Test::new("micro/vm_create_destroy", create_destroy)
        .secs(60)
        .no_ab(),
    Test::new("micro/vm_many_at_once", many_at_once)
        .secs(60)
        .no_ab(),
    Test::new("micro/descriptor_limit", descriptor_limit).no_ab(),
    Test::new("micro/module_in_use", module_in_use).no_ab(),
    Test::new("micro/host_state_kept", host_state).no_ab(),
    Test::new("micro/host_fs_selector", fs_selector),
    Test::new("micro/host_first_ldt", first_ldt).cpus(2).no_ab(),
];

fn spinner() -> Guest {
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0xeb, 0xfe]);
    will_spin(&g.cpu);
    g
}

/// A moment for a child that is ready, to be in its guest. Short: every instruction of a spinning guest costs an emulator as much as another.
fn moment() {
    std::thread::sleep(Duration::from_millis(5));
}

/// A child that runs `f`, which calls what it is given when it is ready. Waits for that.
fn child(f: impl FnOnce(&dyn Fn())) -> i32 {
    let (rd, wr) = sys::pipe();
    let pid = sys::fork(|| {
        f(&|| eq!(sys::write(wr.raw(), &[1]), Ok(1)));
        1
    });
    // Ours only: with the child's, the end of a child that never gets ready would not be seen.
    drop(wr);
    eq!(sys::read(rd.raw(), &mut [0u8; 1]), Ok(1));
    pid
}

fn child_that_spins() -> i32 {
    child(|ready| {
        let g = spinner();
        ready();
        let e = g.cpu.run();
        println!("ended by itself: {e:x?}");
    })
}

fn sigkill() {
    for _ in 0..10 {
        let pid = child_that_spins();
        moment();
        eq!(sys::wait(pid, false), Ended::Not);
        eq!(sys::kill(pid, libc::SIGKILL), Ok(0));
        eq!(sys::wait(pid, true), Ended::Signal(libc::SIGKILL));
    }
    // And with a second thread waiting for the same vCPU.
    let pid = child(|ready| {
        let g = spinner();
        std::thread::scope(|s| {
            s.spawn(|| g.cpu.run());
            moment();
            ready();
            s.spawn(|| g.cpu.regs());
        });
    });
    moment();
    eq!(sys::kill(pid, libc::SIGKILL), Ok(0));
    eq!(sys::wait(pid, true), Ended::Signal(libc::SIGKILL));
}

fn exit_without_closing() {
    for _ in 0..10 {
        let pid = sys::fork(|| {
            let g = spinner();
            g.mem.wr(CODE as usize, 0xf4u8);
            let ok = g.cpu.run() == Exit::Hlt;
            std::mem::forget(g);
            if ok {
                7
            } else {
                1
            }
        });
        eq!(sys::wait(pid, true), Ended::Exit(7));
    }
}

fn host_nmi() {
    // Magic SysRq `l` sends an NMI to every CPU; the guests must not notice, nor the host lose one.
    if std::fs::metadata("/proc/sysrq-trigger").is_err() {
        harness::skip("no /proc/sysrq-trigger");
    }
    let _ = std::fs::write("/proc/sys/kernel/sysrq", "1");
    let pids: Vec<i32> = (0..sys::cpus()).map(|_| child_that_spins()).collect();
    for _ in 0..5 {
        moment();
        // Comes back when every CPU has answered.
        check!(
            std::fs::write("/proc/sysrq-trigger", "l").is_ok(),
            "sysrq l"
        );
    }
    moment();
    for pid in &pids {
        eq!(sys::wait(*pid, false), Ended::Not, "still spinning");
        eq!(sys::kill(*pid, libc::SIGKILL), Ok(0));
        eq!(sys::wait(*pid, true), Ended::Signal(libc::SIGKILL));
    }
}

fn create_destroy() {
    for i in 0..50u64 {
        let g = Guest::new(if i % 2 == 0 { Mode::Long } else { Mode::Real });
        g.mem.wr(CODE as usize, 0xf4u8);
        eq!(g.cpu.run(), Exit::Hlt);
    }
    let k = Kvm::open();
    for _ in 0..50 {
        drop(k.vm());
    }
}

fn many_at_once() {
    let guests: Vec<Guest> = (0..40).map(|_| spinner()).collect();
    for g in &guests {
        g.mem.wr(CODE as usize, 0xf4u8);
    }
    for _ in 0..3 {
        for g in &guests {
            eq!(g.cpu.run(), Exit::Hlt);
            let mut r = g.cpu.regs();
            r.rip = CODE;
            g.cpu.set_regs(&r);
        }
    }
}

fn descriptor_limit() {
    // Without a free descriptor nothing is made, and nothing is leaked: the id can be used afterwards.
    let k = Kvm::open();
    let vm = k.vm();
    let mut held = Vec::new();
    while let Ok(f) = OwnedFd::open("/dev/null", libc::O_RDONLY) {
        held.push(f);
    }
    eq!(k.0.num(CREATE_VM, 0), Err(libc::EMFILE));
    eq!(vm.fd.num(CREATE_VCPU, 3), Err(libc::EMFILE));
    held.truncate(held.len() - 2);
    let c = vm.try_vcpu(3);
    check!(c.is_ok(), "{:?}", c.err());
}

fn module_in_use() {
    let owner = ["kvm_amd", "kvm_intel", "kvm"].into_iter().find(|m| {
        let holders = format!("/sys/module/{m}/refcnt");
        std::fs::metadata(holders).is_ok()
    });
    let Some(owner) = owner else {
        harness::skip("KVM is not a module here")
    };
    let k = Kvm::open();
    let vm = k.vm();
    drop(k);
    let r = sys::delete_module(owner);
    check!(
        matches!(r, Err(libc::EWOULDBLOCK | libc::EBUSY)),
        "{owner} is in use by a VM: {r:?}"
    );
    let c = vm.vcpu(0);
    drop(vm);
    let r = sys::delete_module(owner);
    check!(
        matches!(r, Err(libc::EWOULDBLOCK | libc::EBUSY)),
        "{owner} is in use by a vCPU: {r:?}"
    );
    let Vcpu { fd, run } = c;
    drop(fd);
    eq!(run.rd::<u8>(0), 0, "the mapping alone");
    let r = sys::delete_module(owner);
    check!(
        matches!(r, Err(libc::EWOULDBLOCK | libc::EBUSY)),
        "{owner} is in use by a mapping: {r:?}"
    );
}

fn host_state() {
    // What user space relies on is the same after many exits: TLS, SSE control, the breakpoint-free debug registers.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        use iced_x86::code_asm::*;
        let mut top = a.create_label();
        a.mov(rax, cr4)?;
        a.or(rax, 0x600)?;
        a.mov(cr4, rax)?;
        a.mov(dword_ptr(DATA), 0x7f80)?;
        a.ldmxcsr(dword_ptr(DATA))?;
        a.mov(rax, 0x401u64)?;
        a.mov(dr7, rax)?;
        a.set_label(&mut top)?;
        a.out(0x10, al)?;
        a.cpuid()?;
        a.jmp(top)
    });
    std::thread_local! { static TLS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) }; }
    let third = std::hint::black_box(1.0f64) / std::hint::black_box(3.0f64);
    for i in 0..200u64 {
        TLS.set(i);
        let e = g.cpu.run();
        check!(matches!(e, Exit::Io { port: 0x10, .. }), "{e:x?}");
        eq!(TLS.get(), i);
        let again = std::hint::black_box(1.0f64) / std::hint::black_box(3.0f64);
        check!(
            again.to_bits() == third.to_bits(),
            "rounding mode: {again:?}"
        );
    }
}

/// Memory that a segment of 32 bits reaches.
fn low_memory() -> Map {
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    let low = Map::new(4096, libc::PROT_READ | libc::PROT_WRITE, FLAGS, -1, 0);
    crate::must!(low)
}

/// The VMM's FS may hold a selector. The base is the segment's then, whether or not the CPU has instructions that set it.
fn fs_selector() {
    let low = low_memory();
    low.wr(64, 0x99aa_bbcc_ddee_ff00u64);
    let selector = match registers::ldt_segment(3, low.addr() as u32) {
        Ok(s) => s,
        Err(e) => harness::skip(&format!("no LDT here: errno {e}")),
    };
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        use iced_x86::code_asm::*;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.out(0x10, al)?;
        a.jmp(top)
    });
    for _ in 0..20 {
        let (r, word) = registers::ioctl_with_fs(g.cpu.fd.0.raw(), RUN, selector, 64);
        eq!((r, word), (0, 0x99aa_bbcc_ddee_ff00));
    }
}

/// A process gets its first LDT by one thread while another is in a guest: that one can use it, too.
fn first_ldt() {
    let low = low_memory();
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        use iced_x86::code_asm::*;
        let mut top = a.create_label();
        a.mov(qword_ptr(DATA), 1)?;
        a.set_label(&mut top)?;
        a.cmp(qword_ptr(DATA + 8), 0)?;
        a.je(top)?;
        a.out(0x10, al)
    });
    will_spin(&g.cpu);
    crate::must!(sys::pin(0, 0));
    std::thread::scope(|s| {
        let other = s.spawn(|| {
            crate::must!(sys::pin(0, 1));
            while g.mem.rd::<u64>(DATA as usize) == 0 {
                std::thread::yield_now();
            }
            moment();
            let selector = registers::ldt_segment(3, low.addr() as u32);
            moment();
            g.mem.wr(DATA as usize + 8, 1u64);
            selector
        });
        let e = g.cpu.run();
        check!(matches!(e, Exit::Io { port: 0x10, .. }), "{e:x?}");
        match other.join() {
            Ok(Ok(selector)) => registers::try_es(selector),
            other => harness::fail(&format!("no LDT: {other:?}")),
        }
    });
}
