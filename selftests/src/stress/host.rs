// SPDX-License-Identifier: GPL-2.0
//! The registers of the host's threads while guests change all of theirs, and the guests' while they are exited,
//! preempted and moved from CPU to CPU.

use super::mixer::{Mixer, Work};
use super::perf::Watch;
use crate::harness::{self, Test};
use crate::kvm::RUN;
use crate::registers::{self, Registers};
use crate::sys::{self, Ended, Map, OwnedFd};
use crate::{check, eq};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

pub const TESTS: &[Test] = &[
    Test::new("stress/host_registers_kept", registers_kept)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/host_neighbour_kept", neighbour_kept)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/host_segments_kept", segments_kept)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/host_breakpoints_kept", breakpoints_kept)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/host_msrs_kept", msrs_kept)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/host_debugctl_kept", debugctl_kept)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/guest_registers_migrate", guest_migrates)
        .cpus(2)
        .secs(60)
        .long(1200)
        .no_ab(),
];

/// Runs rounds of the mixers in turn, the thread's registers being checked over each KVM_RUN.
fn run_rounds(mixers: &mut [Mixer], regs: &mut Registers, rounds: u64, turns: u64) {
    for i in 0..rounds {
        let which = i as usize % mixers.len();
        let m = &mut mixers[which];
        m.refill(turns);
        let (r, changed) = regs.over_ioctl(m.g.cpu.fd.0.raw(), RUN);
        for c in &changed {
            harness::fail(&format!("the thread finds changed after KVM_RUN: {c}"));
        }
        let exit = m.g.cpu.exit_of(r);
        if let Err(e) = m.judge(&exit) {
            harness::fail(&format!("round {i}: {e}"));
            return;
        }
        if harness::fails() > 5 {
            return;
        }
    }
}

fn mixers(work: Work) -> Vec<Mixer> {
    vec![Mixer::new(work, false, 1), Mixer::new(work, true, 2)]
}

/// Exits in a long run: a million; split in rounds of this many.
const TURNS: u64 = 500;
/// Where each round is followed by checks that cost more.
const FEW: u64 = 100;

fn registers_kept() {
    crate::must!(sys::pin(0, 0));
    let mut regs = Registers::new(3);
    run_rounds(
        &mut mixers(Work::Cpuid),
        &mut regs,
        harness::rounds(40, 2200),
        TURNS,
    );
}

/// What lies where GS points to.
const WORD: u64 = 0x1122_3344_5566_7788;

/// Registers of a process that has nothing to do with KVM: it must be able to tell.
fn busy_neighbour(cpu: usize) -> i32 {
    sys::fork(move || {
        let _ = sys::pin(0, cpu);
        let mut regs = Registers::new(4);
        let words = Map::anon(4096);
        words.wr(64, WORD);
        if registers::set_gs_base(words.addr()).is_err() {
            return 1;
        }
        registers::use_data_selectors();
        let segments = || {
            (
                registers::selectors(),
                registers::fs_base(),
                registers::gs_word(64),
            )
        };
        let before = segments();
        // The kernel keeps the number of the CPU there.
        let aux = sys::cpu_number(cpu).filter(|_| registers::has_rdtscp());
        // It is killed when it is not needed any more.
        loop {
            let changed = regs.over_loop(20_000);
            for c in changed.iter().take(5) {
                harness::say(&format!("the neighbour finds changed: {c}"));
            }
            if aux.is_some_and(|n| registers::tsc_aux() & 0xfff != n as u32) {
                harness::say(&format!(
                    "the neighbour's TSC_AUX: {:x}",
                    registers::tsc_aux()
                ));
                return 1;
            }
            if segments() != before {
                harness::say(&format!(
                    "the neighbour's selectors, base of FS, word at GS: {:x?}, expected {before:x?}",
                    segments()
                ));
                return 1;
            }
            // A system call and a page fault go through what SYSCALL's and the kernel's MSRs say.
            if sys::gettid() <= 0 || !changed.is_empty() {
                return 1;
            }
        }
    })
}

/// Runs `body` with a neighbour on `cpu`, which must be well and alive at the end.
fn with_neighbour(cpu: usize, body: impl FnOnce()) {
    let pid = busy_neighbour(cpu);
    body();
    let ended = sys::wait(pid, false);
    eq!(ended, Ended::Not, "the neighbour ended");
    if ended == Ended::Not {
        eq!(sys::kill(pid, libc::SIGKILL), Ok(0));
        eq!(sys::wait(pid, true), Ended::Signal(libc::SIGKILL));
    }
}

fn neighbour_kept() {
    // Two guests that spin and one neighbour share a CPU: they are switched between at any moment.
    crate::must!(sys::pin(0, 0));
    with_neighbour(0, || {
        let mut regs = Registers::new(5);
        let spins = if sys::on_tcg() { 2_000_000 } else { 200_000 };
        let mut all = mixers(Work::Spin);
        // Bochs keeps the host's interrupts pending as long as IF is clear.
        all.iter().for_each(|m| crate::guest::will_spin(&m.g.cpu));
        run_rounds(&mut all, &mut regs, harness::rounds(20, 400), spins);
        run_rounds(
            &mut mixers(Work::Cpuid),
            &mut regs,
            harness::rounds(10, 2200),
            TURNS,
        );
    });
}

fn segments_kept() {
    crate::must!(sys::pin(0, 0));
    let words = Map::anon(4096);
    words.wr(64, WORD);
    let fs = registers::fs_base();
    let mut all = mixers(Work::Cpuid);
    let mut regs = Registers::new(6);
    // First a base beyond 32 bits and no selectors, then selectors, at last a segment of the LDT.
    crate::must!(registers::set_gs_base(words.addr()));
    let mut check = |what: &str, want: [u16; 4], word: u64| {
        for _ in 0..harness::rounds(8, 1250) {
            run_rounds(&mut all, &mut regs, 2, FEW);
            eq!(registers::selectors(), want, "{what}");
            eq!(registers::gs_word(64), word, "{what}: GS");
            eq!(registers::fs_base(), fs, "{what}: FS");
        }
    };
    let none = registers::selectors();
    check("a 64-bit base", none, WORD);
    registers::use_data_selectors();
    check("data selectors", [0x2b, 0x2b, none[2], none[3]], WORD);
    let low = Map::new(
        4096,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
        -1,
        0,
    );
    let low = crate::must!(low);
    low.wr(64, 0x99aa_bbccu64);
    match registers::ldt_segment(3, low.addr() as u32) {
        Err(e) => harness::say(&format!("no LDT here: errno {e}")),
        Ok(selector) => {
            registers::use_gs(selector);
            check(
                "a segment of the LDT",
                [0x2b, 0x2b, none[2], selector],
                0x99aa_bbcc,
            );
            // The LDT is exchanged by another thread while this one is in the kernel.
            std::thread::scope(|s| {
                s.spawn(|| registers::ldt_segment(4, low.addr() as u32).is_ok());
            });
            check("another LDT", [0x2b, 0x2b, none[2], selector], 0x99aa_bbcc);
        }
    }
}

fn breakpoints_kept() {
    // Watchpoints of the VMM's thread and of a neighbour on the same CPU count every write, and no more, whatever guests do with
    // debug registers of their own.
    crate::must!(sys::pin(0, 0));
    let mut all = mixers(Work::Cpuid);
    let mut regs = Registers::new(7);
    let word = Map::anon(4096);
    let watch = Watch::writes(word.addr());
    let watch = match watch {
        Ok(w) => w,
        Err(e) => harness::skip(&format!("no watchpoints here: errno {e}")),
    };
    let n = harness::rounds(30, 10_000);
    let (rd, wr) = sys::pipe();
    let pid = sys::fork(|| {
        let _ = wr.close();
        let _ = sys::pin(0, 0);
        let mine = Map::anon(4096);
        let Ok(w) = Watch::writes(mine.addr()) else {
            return 1;
        };
        let mut written = 0u64;
        while !sys::readable(rd.raw(), 0) {
            written += 1;
            mine.wr(0, written);
            if written % 64 == 0 && w.count() != written {
                break;
            }
        }
        let seen = w.count();
        if seen == written {
            return 7;
        }
        harness::say(&format!(
            "the neighbour wrote {written} times, its watchpoint saw {seen}"
        ));
        1
    });
    for i in 1..=n {
        run_rounds(&mut all, &mut regs, 1, FEW);
        word.wr(0, i);
        eq!(watch.count(), i, "writes that the watchpoint saw");
    }
    let _ = wr.close();
    eq!(sys::wait(pid, true), Ended::Exit(7));
}

/// MSRs that are the host's alone, and the same before and after: number and name.
const MSRS: &[(u64, &str)] = &[
    (0x174, "SYSENTER_CS"),
    (0x175, "SYSENTER_ESP"),
    (0x176, "SYSENTER_EIP"),
    (0x1d9, "DEBUGCTL"),
    (0x277, "PAT"),
    (0xda0, "XSS"),
    (0xc000_0080, "EFER"),
    (0xc000_0081, "STAR"),
    (0xc000_0082, "LSTAR"),
    (0xc000_0083, "CSTAR"),
    (0xc000_0084, "FMASK"),
    (0xc000_0103, "TSC_AUX"),
];

fn msrs_kept() {
    crate::must!(sys::pin(0, 0));
    let _ = super::insmod("msr");
    let path = format!("/dev/cpu/{}/msr", sys::cpu_number(0).unwrap_or(0));
    let Ok(dev) = OwnedFd::open(&path, libc::O_RDONLY) else {
        harness::skip(&format!("no {path}"))
    };
    let read = || -> Vec<Option<u64>> {
        let one = |n: u64| {
            let mut b = [0u8; 8];
            let r = sys::pread(dev.raw(), &mut b, n);
            (r == Ok(8)).then(|| u64::from_le_bytes(b))
        };
        MSRS.iter().map(|(n, _)| one(*n)).collect()
    };
    let before = read();
    check!(before.iter().flatten().count() > 6, "{before:x?}");
    let xcr0 = registers::xcr0();
    let mut all = mixers(Work::Cpuid);
    let mut regs = Registers::new(8);
    for _ in 0..harness::rounds(20, 5_000) {
        run_rounds(&mut all, &mut regs, 2, FEW);
        eq!(registers::xcr0(), xcr0, "XCR0");
        for ((want, got), (n, name)) in before.iter().zip(read()).zip(MSRS) {
            check!(*want == got, "{name} ({n:x}): {got:x?}, before {want:x?}");
        }
    }
}

/// The host's DEBUGCTL while a debugger steps from branch to branch: an exit of VMX zeroes it, and on SVM it would be the guest's.
fn debugctl_kept() {
    const DEBUGCTL: u64 = 0x1d9;
    // Branch steps: without TF they do nothing. The kernel writes the register at switches of threads only where these differ in it.
    const BTF: u64 = 2;
    crate::must!(sys::pin(0, 0));
    let _ = super::insmod("msr");
    let path = format!("/dev/cpu/{}/msr", sys::cpu_number(0).unwrap_or(0));
    let dev = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path);
    let Ok(dev) = dev else {
        harness::skip(&format!("no {path}"))
    };
    let write = |v: u64| dev.write_at(&v.to_le_bytes(), DEBUGCTL).is_ok();
    let read = || {
        let mut b = [0u8; 8];
        let r = dev.read_at(&mut b, DEBUGCTL);
        r.ok().map(|_| u64::from_le_bytes(b))
    };
    let before = read();
    let want = before.map(|v| v | BTF);
    if !write(want.unwrap_or(BTF)) || read() != want {
        harness::skip(&format!(
            "DEBUGCTL does not keep BTF here: {before:x?}, then {:x?}",
            read()
        ));
    }
    let mut all = mixers(Work::Cpuid);
    let mut regs = Registers::new(10);
    for _ in 0..harness::rounds(20, 5_000) {
        run_rounds(&mut all, &mut regs, 2, FEW);
        eq!(read(), want, "DEBUGCTL");
    }
    check!(write(before.unwrap_or(0)), "DEBUGCTL {before:x?}");
}

fn guest_migrates() {
    // One thread runs the guests in turn; another moves it to and fro, and busy neighbours take turns on each CPU.
    let stop = AtomicBool::new(false);
    let tid = AtomicI32::new(0);
    let n = harness::rounds(3, 600);
    with_neighbour(0, || {
        with_neighbour(1, || {
            std::thread::scope(|s| {
                s.spawn(|| {
                    tid.store(sys::gettid(), Ordering::SeqCst);
                    let mut regs = Registers::new(9);
                    let spins = if sys::on_tcg() { 400_000 } else { 100_000 };
                    for _ in 0..n {
                        let (mut a, mut b) = (mixers(Work::Spin), mixers(Work::Cpuid));
                        a.iter().for_each(|m| crate::guest::will_spin(&m.g.cpu));
                        run_rounds(&mut a, &mut regs, 4, spins);
                        run_rounds(&mut b, &mut regs, 4, 200);
                        if harness::fails() > 0 {
                            break;
                        }
                    }
                    stop.store(true, Ordering::SeqCst);
                });
                let mut cpu = 0;
                while !stop.load(Ordering::SeqCst) {
                    cpu ^= 1;
                    let t = tid.load(Ordering::SeqCst);
                    if t != 0 {
                        // It may have ended just now.
                        let _ = sys::pin(t, cpu);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        });
    });
}
