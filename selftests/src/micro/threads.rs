// SPDX-License-Identifier: GPL-2.0
//! Several threads: spinning guests and signals, vCPUs that move between CPUs, memory that changes while they run.

use crate::guest::*;
use crate::harness::{rounds, Test};
use crate::kvm::*;
use crate::sys::{self, Map};
use crate::{check, eq};
use iced_x86::code_asm::*;
use libc::{EINTR, MADV_DONTNEED, SIGUSR1};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new("micro/signal_interrupts", signal_interrupts).no_ab(),
    Test::new("micro/signal_storm", signal_storm)
        .no_ab()
        .long(300),
    Test::new("micro/immediate_exit_from_thread", immediate_exit)
        .no_ab()
        .long(300),
    Test::new("micro/vcpu_busy", vcpu_busy).no_ab(),
    Test::new("micro/two_vms_two_cpus", two_vms).cpus(2).no_ab(),
    Test::new("micro/two_vcpus_one_vm", two_vcpus)
        .cpus(2)
        .no_ab(),
    Test::new("micro/vcpu_changes_thread", changes_thread).no_ab(),
    Test::new("micro/vcpu_migrates", migrates)
        .cpus(2)
        .no_ab()
        .long(300),
    Test::new("micro/tsc_across_cpus", tsc_across_cpus)
        .cpus(2)
        .no_ab(),
    Test::new("micro/slot_delete_while_running", slot_while_running)
        .no_ab()
        .long(300),
    Test::new("micro/mem_dontneed_while_running", dontneed_while_running)
        .no_ab()
        .long(300),
    Test::new("micro/mem_stress", mem_stress)
        .cpus(2)
        .secs(60)
        .no_ab()
        .long(600),
    Test::new("micro/nmi_while_running", nmi_while_running).no_ab(),
    Test::new("micro/preempted", preempted).no_ab(),
];

/// A guest that counts in memory at DATA for ever.
pub(super) fn counter() -> Guest {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(qword_ptr(DATA))?;
        a.jmp(top)
    });
    will_spin(&g.cpu);
    g
}

/// Runs the vCPU until a signal comes after `stop` was set; gives the number of interruptions.
fn run_until(c: &Vcpu, stop: &AtomicBool, tid: &AtomicI32) -> u32 {
    tid.store(sys::gettid(), Ordering::SeqCst);
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        match c.run() {
            Exit::Err(EINTR, reason) => {
                eq!(reason, kvm_bindings::KVM_EXIT_INTR);
                n += 1;
            }
            e => panic!("{e:x?} {:x?} {:x?}", c.regs(), c.sregs()),
        }
    }
    n
}

fn wait_for(what: &str, mut f: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !f() {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "waited for {what} in vain"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    began.elapsed()
}

fn kick(tid: &AtomicI32) {
    wait_for("the thread", || tid.load(Ordering::SeqCst) != 0);
    let _ = sys::tkill(tid.load(Ordering::SeqCst), SIGUSR1);
}

/// Ends a run_until() loop, however unlucky the moment of a single signal is.
fn end(stop: &AtomicBool, tid: &AtomicI32, done: &AtomicBool) {
    stop.store(true, Ordering::SeqCst);
    wait_for("the end of the run", || {
        kick(tid);
        done.load(Ordering::SeqCst)
    });
}

/// Runs `body` while another thread runs the guest; gives how often that was interrupted.
pub(super) fn with_running(c: &Vcpu, body: impl FnOnce(&AtomicI32)) -> u32 {
    sys::interrupting(SIGUSR1);
    will_spin(c);
    let (stop, done, tid) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicI32::new(0),
    );
    std::thread::scope(|s| {
        let t = s.spawn(|| {
            let n = run_until(c, &stop, &tid);
            done.store(true, Ordering::SeqCst);
            n
        });
        wait_for("the thread", || tid.load(Ordering::SeqCst) != 0);
        body(&tid);
        end(&stop, &tid, &done);
        t.join().unwrap_or(0)
    })
}

fn count(g: &Guest) -> u64 {
    g.mem.rd(DATA as usize)
}

pub(super) fn progress(g: &Guest) {
    let before = count(g);
    wait_for("the guest to count", || count(g) > before + 100);
}

fn signal_interrupts() {
    let g = counter();
    let n = with_running(&g.cpu, |tid| {
        progress(&g);
        for _ in 0..5 {
            kick(tid);
            progress(&g);
        }
    });
    check!(n >= 5, "interrupted {n} times");
    let rip = g.cpu.regs().rip;
    check!((CODE..CODE + 16).contains(&rip), "{rip:x}");
}

fn signal_storm() {
    let g = counter();
    let n = with_running(&g.cpu, |tid| {
        for _ in 0..rounds(2000, 100_000) {
            kick(tid);
        }
        progress(&g);
    });
    check!(n > 0, "interrupted {n} times");
}

fn immediate_exit() {
    // The usual protocol: set the flag, then send a signal; whatever the moment, KVM_RUN ends.
    let g = counter();
    sys::interrupting(SIGUSR1);
    let tid = AtomicI32::new(0);
    let ended = AtomicU64::new(0);
    let times = rounds(200, 20_000);
    std::thread::scope(|s| {
        s.spawn(|| {
            tid.store(sys::gettid(), Ordering::SeqCst);
            for _ in 0..times {
                let e = g.cpu.run();
                check!(matches!(e, Exit::Err(EINTR, _)), "{e:x?}");
                g.cpu.set_immediate_exit(false);
                ended.fetch_add(1, Ordering::SeqCst);
            }
        });
        for i in 0..times {
            g.cpu.set_immediate_exit(true);
            kick(&tid);
            wait_for("KVM_RUN to end", || ended.load(Ordering::SeqCst) > i);
        }
    });
}

fn vcpu_busy() {
    // While one thread is in KVM_RUN, another's ioctl on the same vCPU waits, and can be interrupted by a kill only.
    let g = counter();
    with_running(&g.cpu, |tid| {
        progress(&g);
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let r = g.cpu.regs();
                check!((CODE..CODE + 16).contains(&r.rip), "{:x}", r.rip);
                done.store(true, Ordering::SeqCst);
            });
            // Time enough to be seen not waiting; a spinning guest's costs Bochs much, so a brief run takes less of it.
            std::thread::sleep(Duration::from_millis(rounds(100, 100)));
            check!(
                !done.load(Ordering::SeqCst),
                "GET_REGS does not wait for KVM_RUN"
            );
            wait_for("GET_REGS", || {
                kick(tid);
                done.load(Ordering::SeqCst)
            });
        });
    });
}

fn two_vms() {
    let (a, b) = (counter(), counter());
    with_running(&a.cpu, |ta| {
        crate::must!(sys::pin(ta.load(Ordering::SeqCst), 0));
        with_running(&b.cpu, |tb| {
            crate::must!(sys::pin(tb.load(Ordering::SeqCst), 1));
            for _ in 0..20 {
                progress(&a);
                progress(&b);
            }
        });
    });
}

fn two_vcpus() {
    // Two vCPUs add to one word with LOCK: no addition may be lost.
    let g = Guest::new(Mode::Long);
    let n = 200_000u32;
    g.load(|a| {
        let mut top = a.create_label();
        a.mov(ecx, n)?;
        a.set_label(&mut top)?;
        a.lock().inc(qword_ptr(DATA))?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    let second = g.second_vcpu(1);
    std::thread::scope(|s| {
        for (c, cpu) in [(&g.cpu, 0), (&second, 1)] {
            s.spawn(move || {
                crate::must!(sys::pin(0, cpu));
                eq!(c.run(), Exit::Hlt);
            });
        }
    });
    eq!(count(&g), 2 * u64::from(n));
}

fn changes_thread() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(eax)?;
        a.out(0x10, eax)?;
        a.jmp(top)
    });
    for i in 1..=30u32 {
        std::thread::scope(|s| {
            s.spawn(|| eq!(g.cpu.run(), out(0x10, &i.to_le_bytes())));
        });
    }
    eq!(g.cpu.regs().rax, 30);
}

fn migrates() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.mov(rax, cr4)?;
        a.or(rax, 0x600)?;
        a.mov(cr4, rax)?;
        a.xor(eax, eax)?;
        a.pcmpeqd(xmm3, xmm3)?;
        a.set_label(&mut top)?;
        a.inc(eax)?;
        a.psubd(xmm4, xmm3)?;
        a.movd(ebx, xmm4)?;
        a.out(0x10, eax)?;
        a.jmp(top)
    });
    // Between exits...
    for i in 1..=100u32 {
        crate::must!(sys::pin(0, i as usize % 2));
        g.expect(&out(0x10, &i.to_le_bytes()));
        eq!(
            g.cpu.regs().rbx,
            u64::from(i),
            "an SSE register moved along"
        );
    }
    // ...and from under a running guest.
    let g = counter();
    with_running(&g.cpu, |tid| {
        for i in 0..rounds(60, 5000) as usize {
            crate::must!(sys::pin(tid.load(Ordering::SeqCst), i % 2));
            progress(&g);
        }
    });
}

fn tsc_across_cpus() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(rbx, rax)?;
        a.out(0x10, al)?;
        a.jmp(top)
    });
    let mut last = 0;
    for i in 0..300usize {
        if i % 3 == 0 {
            crate::must!(sys::pin(0, i / 3 % 2));
        }
        let e = g.cpu.run();
        check!(matches!(e, Exit::Io { .. }), "{e:x?}");
        let t = g.cpu.regs().rbx;
        check!(t >= last, "round {i}: {t:x} after {last:x}");
        last = t;
    }
}

fn slot_while_running() {
    // The counter's slot is not touched; another that it also writes comes and goes: its exits are MMIO then.
    let g = Guest::new(Mode::Long);
    let at = 0x1000_0000u64;
    g.load(|a| {
        let mut top = a.create_label();
        a.mov(ebx, at as u32)?;
        a.set_label(&mut top)?;
        a.inc(qword_ptr(DATA))?;
        a.mov(eax, dword_ptr(rbx))?;
        a.jmp(top)
    });
    let m = Map::anon(0x4000);
    will_spin(&g.cpu);
    sys::interrupting(SIGUSR1);
    let (stop, done, tid) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicI32::new(0),
    );
    let exits = AtomicI32::new(0);
    std::thread::scope(|s| {
        s.spawn(|| {
            tid.store(sys::gettid(), Ordering::SeqCst);
            while !stop.load(Ordering::SeqCst) {
                match g.cpu.run() {
                    Exit::Err(EINTR, _) => {}
                    Exit::Mmio {
                        addr,
                        len: 4,
                        write: false,
                        ..
                    } if addr == at => {
                        exits.fetch_add(1, Ordering::SeqCst);
                        g.cpu.answer(&[0; 4]);
                    }
                    e => panic!("{e:x?}"),
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        for _ in 0..rounds(30, 2000) {
            let before = exits.load(Ordering::SeqCst);
            wait_for("an MMIO exit", || exits.load(Ordering::SeqCst) > before);
            eq!(g.vm.region(1, 0, at, 0x4000, m.addr()), Ok(0));
            // From now on, after what was under way, there are none.
            std::thread::sleep(Duration::from_millis(2));
            let before = exits.load(Ordering::SeqCst);
            progress(&g);
            let after = exits.load(Ordering::SeqCst);
            check!(
                after <= before + 1,
                "exits although there is memory: {before}, {after}"
            );
            eq!(g.vm.region(1, 0, 0, 0, 0), Ok(0));
        }
        end(&stop, &tid, &done);
    });
}

fn dontneed_while_running() {
    // The guest must never again see what was thrown away: the count begins anew, and never jumps back up.
    let g = Guest::new(Mode::Long);
    let at = 0x1000_0000u64;
    let m = Map::anon(0x1000);
    eq!(g.vm.region(1, 0, at, 0x1000, m.addr()), Ok(0));
    g.load(|a| {
        let mut top = a.create_label();
        a.mov(ebx, at as u32)?;
        a.set_label(&mut top)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.inc(qword_ptr(DATA))?;
        a.mov(qword_ptr(DATA + 8), rax)?;
        a.jmp(top)
    });
    with_running(&g.cpu, |_| {
        for i in 1..rounds(100, 20_000) {
            m.wr(0, i);
            let before = count(&g);
            wait_for("the guest", || count(&g) > before + 4);
            let seen = g.mem.rd::<u64>(DATA as usize + 8);
            check!(seen == i, "the guest sees {seen}, not {i}");
            eq!(m.advise(0, 0x1000, MADV_DONTNEED), Ok(0));
            let before = count(&g);
            wait_for("the guest", || count(&g) > before + 4);
            let seen = g.mem.rd::<u64>(DATA as usize + 8);
            check!(
                seen == 0,
                "the guest sees {seen} in memory that was thrown away"
            );
        }
    });
}

fn mem_stress() {
    // Two vCPUs touch all of a slot while user space throws parts of it away: no access may get lost or fail.
    let g = Guest::new(Mode::Long);
    let (at, size) = (0x1000_0000u64, 16u64 << 20);
    let m = Map::anon(size as usize);
    let _ = m.advise(0, size as usize, libc::MADV_HUGEPAGE);
    eq!(g.vm.region(1, 0, at, size, m.addr()), Ok(0));
    g.load(|a| {
        let mut again = a.create_label();
        let mut top = a.create_label();
        a.set_label(&mut again)?;
        a.mov(ebx, at as u32)?;
        a.mov(ecx, (size / 4096) as u32)?;
        a.set_label(&mut top)?;
        a.lock().inc(qword_ptr(rbx))?;
        a.add(rbx, 4096)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.lock().inc(qword_ptr(DATA))?;
        a.jmp(again)
    });
    let second = g.second_vcpu(1);
    with_running(&g.cpu, |_| {
        with_running(&second, |_| {
            let began = Instant::now();
            let mut i = 0u64;
            while began.elapsed() < Duration::from_secs(rounds(4, 120)) {
                i = i
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let (off, n) = ((i >> 33) % (size / 4096) * 4096, 4096 << ((i >> 60) & 7));
                let _ = m.advise(off as usize, (n.min(size - off)) as usize, MADV_DONTNEED);
            }
            progress_slow(&g);
        });
    });
    // And once more in peace.
    eq!(m.advise(0, size as usize, MADV_DONTNEED), Ok(0));
    with_running(&g.cpu, |_| progress_slow(&g));
    check!(
        (0..size as usize).step_by(4096).all(|o| m.rd::<u64>(o) > 0),
        "every page was touched"
    );
}

fn progress_slow(g: &Guest) {
    let before = count(g);
    wait_for("whole rounds", || count(g) > before + 2);
}

fn nmi_while_running() {
    let g = Guest::new(Mode::Long);
    g.gate(2, 0xa000);
    g.load_at(0xa000, |a| {
        a.inc(qword_ptr(DATA + 8))?;
        a.iretq()
    });
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(qword_ptr(DATA))?;
        a.jmp(top)
    });
    // KVM_NMI waits for the vCPU, so it is sent between two runs: each one must arrive, once.
    sys::interrupting(SIGUSR1);
    for i in 1..=20u64 {
        eq!(g.cpu.nmi(), Ok(0));
        with_running(&g.cpu, |_| {
            wait_for("the NMI", || g.mem.rd::<u64>(DATA as usize + 8) == i);
            progress(&g);
        });
        eq!(g.mem.rd::<u64>(DATA as usize + 8), i);
    }
}

fn preempted() {
    // More spinning vCPUs than CPUs: the scheduler switches between them.
    let guests: Vec<Guest> = (0..4).map(|_| counter()).collect();
    let [a, b, c, d] = &guests[..] else { return };
    with_running(&a.cpu, |_| {
        with_running(&b.cpu, |_| {
            with_running(&c.cpu, |_| {
                with_running(&d.cpu, |_| {
                    for _ in 0..3 {
                        guests.iter().for_each(progress);
                    }
                });
            });
        });
    });
}
