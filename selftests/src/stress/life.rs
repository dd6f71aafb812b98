// SPDX-License-Identifier: GPL-2.0
//! VMs and vCPUs that come and go in every way, by the hundreds: nothing hangs, and no memory is used up.

use super::left;
use super::pages::wait_for;
use crate::guest::*;
use crate::harness::{self, rounds, Test};
use crate::kvm::*;
use crate::registers::Random;
use crate::sys::{self, Arg, Ended, Map};
use crate::{check, eq};
use iced_x86::code_asm::*;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new("stress/life_200_vms", many_vms)
        .secs(120)
        .long(900)
        .no_ab(),
    Test::new("stress/life_64_vcpus", many_vcpus)
        .secs(120)
        .long(2700)
        .no_ab(),
    Test::new("stress/life_closed_while_running", closed_while_running)
        .secs(90)
        .long(900)
        .no_ab(),
    Test::new("stress/life_killed", killed)
        .secs(120)
        .long(1800)
        .no_ab(),
    Test::new("stress/life_inherited", inherited)
        .secs(90)
        .long(900)
        .no_ab(),
    Test::new("stress/life_cpu_offline", cpu_offline)
        .cpus(2)
        .secs(120)
        .long(900)
        .no_ab(),
    Test::new("stress/life_module_reloaded", module_reloaded)
        .secs(120)
        .long(900)
        .no_ab(),
];

/// Does `f` in a process of its own, which ends.
fn in_process(f: impl FnOnce()) {
    let pid = sys::fork(|| {
        f();
        i32::from(harness::fails() > 0)
    });
    eq!(sys::wait(pid, true), Ended::Exit(0));
}

/// A VM with memory in two slots, of which the guest uses some pages, run to its end.
fn a_vm(i: u64) {
    let g = Guest::new(Mode::ALL[i as usize % 5]);
    let more = Map::anon(4 << 20);
    eq!(g.vm.region(1, 0, 0x40_0000, 4 << 20, more.addr()), Ok(0));
    g.load(|a| {
        a.mov(byte_ptr(0x6000), 7)?;
        a.cpuid()?;
        a.hlt()
    });
    let second = (i % 3 == 0).then(|| g.second_vcpu(1));
    eq!(g.cpu.run(), Exit::Hlt);
    if let Some(c) = second {
        eq!(c.run(), Exit::Hlt);
    }
    eq!(g.mem.rd::<u8>(0x6000), 7);
}

fn many_vms() {
    // In a short run 3 times 40, in a long one 3 times 200 and more.
    left::check("VMs", rounds(2, 10), |i| {
        in_process(|| (0..20).for_each(|n| a_vm(20 * i + n)));
    });
}

/// A guest whose vCPUs count in words of their own, for ever. Each has its number in RBX.
fn counters(n: u64) -> (Guest, Vec<Vcpu>) {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(qword_ptr(rbx * 8 + DATA as i32))?;
        a.jmp(top)
    });
    let cpus: Vec<Vcpu> = (1..n).map(|i| g.second_vcpu(i)).collect();
    for (i, c) in std::iter::once(&g.cpu).chain(&cpus).enumerate() {
        let mut r = c.regs();
        r.rbx = i as u64;
        c.set_regs(&r);
        will_spin(c);
    }
    (g, cpus)
}

/// Runs `cpu` until a signal comes after `stop`.
fn run_until(cpu: &Vcpu, stop: &AtomicBool, tid: &AtomicI32) {
    tid.store(sys::gettid(), Ordering::SeqCst);
    while !stop.load(Ordering::SeqCst) {
        let e = cpu.run();
        check!(matches!(e, Exit::Err(libc::EINTR, _)), "{e:x?}");
        if harness::fails() > 0 {
            break;
        }
    }
    tid.store(-1, Ordering::SeqCst);
}

/// Sends signals until the threads `tids` have left their guests.
fn end_all(stop: &AtomicBool, tids: &[AtomicI32]) {
    stop.store(true, Ordering::SeqCst);
    wait_for("vCPUs to stop", || {
        let mut left = 0;
        for t in tids
            .iter()
            .map(|t| t.load(Ordering::SeqCst))
            .filter(|t| *t >= 0)
        {
            left += 1;
            if t > 0 {
                let _ = sys::tkill(t, libc::SIGUSR1);
            }
        }
        left == 0
    });
}

fn sixty_four() {
    const N: usize = 64;
    let began = Instant::now();
    let mut times = Vec::new();
    let (g, cpus) = counters(N as u64);
    sys::interrupting(libc::SIGUSR1);
    let stop = AtomicBool::new(false);
    let tids: Vec<AtomicI32> = (0..N).map(|_| AtomicI32::new(0)).collect();
    std::thread::scope(|s| {
        times.push(began.elapsed());
        for (c, t) in std::iter::once(&g.cpu).chain(&cpus).zip(&tids) {
            s.spawn(|| run_until(c, &stop, t));
        }
        times.push(began.elapsed());
        wait_for("all vCPUs to count", || {
            (0..N).all(|i| g.mem.rd::<u64>(DATA as usize + 8 * i) > 100) || harness::fails() > 0
        });
        // All of them have to be told when memory goes, and get on afterwards.
        for _ in 0..rounds(3, 30) {
            times.push(began.elapsed());
            let at = DATA as usize & !0xfff;
            eq!(g.mem.advise(at, 4096, libc::MADV_DONTNEED), Ok(0));
            wait_for("all vCPUs to count anew", || {
                (0..N).all(|i| g.mem.rd::<u64>(DATA as usize + 8 * i) > 100) || harness::fails() > 0
            });
        }
        times.push(began.elapsed());
        end_all(&stop, &tids);
    });
    times.push(began.elapsed());
    // Made, started, counting, told of a change, stopped.
    harness::say(&format!("64 vCPUs: {times:.1?}"));
}

fn many_vcpus() {
    left::check("VMs with 64 vCPUs", rounds(1, 10), |_| {
        in_process(sixty_four)
    });
}

/// The orders in which the descriptors of KVM, the VM, the vCPU and the mapping of its run page, and the guest's memory, can go.
fn orders() -> Vec<[usize; 5]> {
    let mut all = Vec::new();
    for n in 0..120usize {
        let (mut left, mut order, mut rest) = (vec![0, 1, 2, 3, 4], [0; 5], n);
        for (i, o) in order.iter_mut().enumerate() {
            let base = 5 - i;
            *o = left.remove(rest % base);
            rest /= base;
        }
        all.push(order);
    }
    all
}

fn close_in_order(order: [usize; 5]) {
    let (g, _) = counters(1);
    let Guest {
        cpu, vm, kvm, mem, ..
    } = g;
    let Vcpu { fd, run } = cpu;
    let number = fd.0.raw();
    let tid = AtomicI32::new(0);
    let ended = AtomicU32::new(0);
    let before = mem.rd::<u64>(DATA as usize);
    std::thread::scope(|s| {
        s.spawn(|| {
            tid.store(sys::gettid(), Ordering::SeqCst);
            let r = sys::ioctl(number, RUN, Arg::Num(0));
            // The guest's memory may be gone first: EFAULT then, or whatever a guest without page tables does.
            check!(
                r.is_ok() || matches!(r, Err(libc::EINTR | libc::EFAULT)),
                "{order:?}: {r:?}"
            );
            tid.store(-1, Ordering::SeqCst);
            ended.store(1, Ordering::SeqCst);
        });
        wait_for("the guest", || mem.rd::<u64>(DATA as usize) > before);
        let (mut fd, mut run, mut vm, mut kvm, mut mem) =
            (Some(fd), Some(run), Some(vm), Some(kvm), Some(mem));
        for what in order {
            match what {
                0 => drop(kvm.take()),
                1 => drop(vm.take()),
                2 => drop(fd.take()),
                3 => drop(run.take()),
                _ => drop(mem.take()),
            }
        }
        // The number may already belong to another file; the call that is under way does not care.
        end_all(&AtomicBool::new(false), std::slice::from_ref(&tid));
    });
    eq!(ended.load(Ordering::SeqCst), 1);
}

fn closed_while_running() {
    sys::interrupting(libc::SIGUSR1);
    let all = orders();
    let step = 120 / rounds(10, 120) as usize;
    left::check("closing in any order", rounds(1, 3), |_| {
        in_process(|| {
            all.iter()
                .step_by(step.max(1))
                .for_each(|o| close_in_order(*o))
        });
    });
}

/// A process with two VMs, one of them with two vCPUs, memory that changes, and slots that come and go: it never ends.
fn busy_process(seed: u64) -> i32 {
    sys::fork(move || {
        let mut rng = Random::new(seed);
        let (a, more) = counters(2);
        let (b, _) = counters(1);
        let m = Map::anon(2 << 20);
        std::thread::scope(|s| {
            for c in [&a.cpu, &more[0], &b.cpu] {
                s.spawn(|| loop {
                    let _ = c.run();
                });
            }
            loop {
                match rng.below(6) {
                    0 => _ = a.vm.region(1, 0, 0x1000_0000, 2 << 20, m.addr()),
                    1 => _ = a.vm.region(1, 0, 0x1000_0000, 0, m.addr()),
                    2 => _ = a.mem.advise(DATA as usize, 4096, libc::MADV_DONTNEED),
                    3 => drop(Guest::new(Mode::Real)),
                    4 => drop(b.vm.try_vcpu(1 + rng.below(1000))),
                    _ => _ = m.advise(0, 2 << 20, libc::MADV_PAGEOUT),
                }
            }
        });
        1
    })
}

fn killed() {
    // The moments are random, from the first system calls of the process on.
    let mut rng = Random::new(11);
    let longest = rounds(40_000, 150_000);
    left::check("killed VMs", rounds(8, 200), |i| {
        let pid = busy_process(i);
        std::thread::sleep(Duration::from_micros(rng.below(if i % 4 == 0 {
            longest
        } else {
            20_000
        })));
        eq!(sys::kill(pid, libc::SIGKILL), Ok(0));
        let began = Instant::now();
        eq!(sys::wait(pid, true), Ended::Signal(libc::SIGKILL));
        check!(
            began.elapsed() < Duration::from_secs(10),
            "the process took {:?} to go",
            began.elapsed()
        );
    });
}

fn inherited() {
    // A child holds all descriptors of a running VM, and the pages of its vCPU. The parent ends in the midst of running it: by itself, or
    // killed. The VM belongs to an address space that is gone then, and what is left of it goes with the child.
    left::check("inherited VMs", rounds(4, 60), |i| {
        let (rd, wr) = sys::pipe();
        let (told, tell) = sys::pipe();
        let pid = sys::fork(|| {
            let (g, _) = counters(1);
            let heir = sys::fork(|| {
                let _ = (wr.close(), told.close());
                // Its only child: reports by the pipe, as its parent's parent cannot wait for it.
                let eio = |r: sys::Res| r == Err(libc::EIO);
                let alive = eio(sys::ioctl(g.cpu.fd.0.raw(), RUN, Arg::Num(0)));
                let _ = std::fs::metadata("/");
                // Until the parent is gone.
                let _ = sys::read(rd.raw(), &mut [0u8; 1]);
                let dead = eio(sys::ioctl(g.cpu.fd.0.raw(), RUN, Arg::Num(0)))
                    && eio(sys::ioctl(g.vm.fd.0.raw(), CREATE_VCPU, Arg::Num(7)));
                let _ = g.cpu.run.rd::<u8>(0);
                // A byte says that all was well.
                if alive && dead {
                    let _ = sys::write(tell.raw(), b"y");
                }
                0
            });
            let _ = heir;
            std::thread::scope(|s| {
                s.spawn(|| loop {
                    let _ = g.cpu.run();
                });
                wait_for("the guest", || g.mem.rd::<u64>(DATA as usize) > 0);
                if i % 2 == 0 {
                    let _ = sys::kill(std::process::id() as i32, libc::SIGKILL);
                }
                std::process::exit(9);
            });
            0
        });
        let _ = (rd.close(), tell.close());
        let want = if i % 2 == 0 {
            Ended::Signal(libc::SIGKILL)
        } else {
            Ended::Exit(9)
        };
        eq!(sys::wait(pid, true), want);
        let _ = wr.close();
        let mut b = [0u8; 1];
        eq!(sys::read(told.raw(), &mut b), Ok(1), "the heir's report");
        // And its end: nobody holds the other end of the pipe any more.
        eq!(sys::read(told.raw(), &mut b), Ok(0));
    });
}

fn cpu_offline() {
    let Some(switch) = sys::second_cpu_switch() else {
        harness::skip("there is no second CPU to switch off");
    };
    sys::interrupting(libc::SIGUSR1);
    let (a, more) = counters(2);
    let (b, _) = counters(1);
    let cpus = [&a.cpu, &more[0], &b.cpu];
    let stop = AtomicBool::new(false);
    let tids: Vec<AtomicI32> = cpus.iter().map(|_| AtomicI32::new(0)).collect();
    let counts = || {
        [
            a.mem.rd::<u64>(DATA as usize),
            a.mem.rd(DATA as usize + 8),
            b.mem.rd(DATA as usize),
        ]
    };
    let progress = || {
        let before = counts();
        wait_for("all vCPUs to count", || {
            counts().iter().zip(before).all(|(now, b)| *now > b) || harness::fails() > 0
        });
    };
    std::thread::scope(|s| {
        for (c, t) in cpus.into_iter().zip(&tids) {
            s.spawn(|| run_until(c, &stop, t));
        }
        progress();
        for _ in 0..rounds(6, 200) {
            check!(super::set(&switch, 0), "{switch} off");
            progress();
            // Made while there is one CPU, used when there are two.
            let g = Guest::new(Mode::Long);
            g.mem.wr(CODE as usize, 0xf4u8);
            check!(super::set(&switch, 1), "{switch} on");
            crate::must!(sys::pin(0, 1));
            eq!(g.cpu.run(), Exit::Hlt);
            crate::must!(sys::pin(0, 0));
            // The scheduler does not hurry to use the CPU that is back.
            crate::must!(sys::pin(tids[1].load(Ordering::SeqCst), 1));
            progress();
            crate::must!(sys::pin(tids[1].load(Ordering::SeqCst), 0));
            crate::must!(sys::pin(tids[2].load(Ordering::SeqCst), 1));
            progress();
            // It is there when that CPU is switched off. Were it pinned, the kernel would let it run anywhere from then on,
            // also on the CPU where an emulator runs guests badly (tools/env/vm.sh).
            crate::must!(sys::unpin(tids[2].load(Ordering::SeqCst)));
            if harness::fails() > 0 {
                break;
            }
        }
        end_all(&stop, &tids);
    });
}

/// The parameters that the module has now, so that it gets the same again.
fn parameters() -> String {
    let mut all = Vec::new();
    for e in std::fs::read_dir("/sys/module/kvm/parameters")
        .into_iter()
        .flatten()
        .flatten()
    {
        if let (Ok(name), Ok(v)) = (
            e.file_name().into_string(),
            std::fs::read_to_string(e.path()),
        ) {
            if name != "force_emulation_prefix" {
                all.push(format!("{name}={}", v.trim()));
            }
        }
    }
    all.join(" ")
}

fn module_reloaded() {
    const FILE: &str = "/modules/kvm.ko";
    if std::fs::metadata(FILE).is_err()
        || std::fs::metadata("/sys/module/kvm_amd/refcnt").is_ok()
        || std::fs::metadata("/sys/module/kvm_intel/refcnt").is_ok()
    {
        harness::skip("the KVM here is not one module");
    }
    let parameters = parameters();
    left::check("loading the module", rounds(3, 40), |i| {
        in_process(|| a_vm(i));
        eq!(sys::delete_module("kvm"), Ok(0), "rmmod");
        check!(std::fs::metadata("/dev/kvm").is_err(), "/dev/kvm is left");
        eq!(
            sys::load_module(FILE, &parameters),
            Ok(0),
            "insmod {parameters}"
        );
    });
    in_process(|| a_vm(0));
}
