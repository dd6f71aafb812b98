// SPDX-License-Identifier: GPL-2.0
//! The host takes pages away from running guests in every way it has, and gives them back: not one write may be lost.

use super::cgroup::in_cgroup;
use super::slots::Beside;
use super::sweep::{check_pages, Progress, Sweeper};
use super::{field, number, set, Setting};
use crate::harness::{self, rounds, Test};
use crate::kvm::Vcpu;
use crate::registers::Random;
use crate::sys::{self, Ended, Map};
use crate::{check, eq};
use libc::{PROT_NONE, PROT_READ, PROT_WRITE};
use std::process::Command;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new("stress/mem_swapped", swapped)
        .secs(90)
        .long(1200)
        .no_ab(),
    Test::new("stress/mem_reclaimed", reclaimed)
        .secs(90)
        .long(1200)
        .no_ab(),
    Test::new("stress/mem_collapsed", collapsed)
        .secs(90)
        .long(1200)
        .no_ab(),
    Test::new("stress/mem_remapped", remapped)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/mem_protected", protected)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/mem_forked", forked)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/mem_merged", merged)
        .secs(90)
        .long(1200)
        .no_ab(),
    Test::new("stress/mem_migrated", migrated)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/mem_thrown_away", thrown_away)
        .secs(60)
        .long(1200)
        .no_ab(),
    Test::new("stress/mem_everything", everything)
        .secs(120)
        .long(1200)
        .no_ab(),
];

const PAGEOUT: i32 = libc::MADV_PAGEOUT;
const COLLAPSE: i32 = 25;
const MERGEABLE: i32 = libc::MADV_MERGEABLE;

/// The memory that a test's guest sweeps.
pub const SIZE: u64 = 4 << 20;

/// A range of whole pages inside `size` bytes, of at most `most` pages.
pub fn range(rng: &mut Random, size: u64, most: u64) -> (usize, usize) {
    let pages = size / 4096;
    let first = rng.below(pages);
    let n = (1 + rng.below(most)).min(pages - first);
    ((first * 4096) as usize, (n * 4096) as usize)
}

/// The vCPUs of a test: as many as there are CPUs, two at most. The second one's pages lie between the first one's.
struct Pair {
    s: Sweeper,
    second: Option<Vcpu>,
}

impl Pair {
    fn new(m: &Map, size: u64) -> Self {
        let s = Sweeper::new(m.addr(), size);
        let mut pair = Self { s, second: None };
        if sys::cpus() > 1 {
            let second = pair.s.g.second_vcpu(1);
            pair.s.aim(&pair.s.g.cpu, 0, size / 8192, 8192);
            pair.s.aim(&second, 4096, size / 8192, 8192);
            pair.second = Some(second);
        }
        pair
    }

    fn cpus(&self) -> Vec<&Vcpu> {
        let mut v = vec![&self.s.g.cpu];
        v.extend(&self.second);
        v
    }

    /// Runs both while `body` works, then checks every page.
    fn run(&self, m: &Map, body: impl FnOnce(&[Progress])) {
        let swept = self.s.while_sweeping(&self.cpus(), body);
        self.judge(m, &swept);
    }

    fn judge(&self, m: &Map, swept: &[u64]) {
        match swept {
            [all] => check_pages(m, 0, self.s.size, 4096, *all),
            [even, odd] => {
                check_pages(m, 0, self.s.size, 8192, *even);
                check_pages(m, 4096, self.s.size, 8192, *odd);
            }
            _ => unreachable!("one or two vCPUs"),
        }
    }
}

/// Runs a program of busybox; the test ends if it fails.
pub fn tool(args: &[&str]) {
    let out = Command::new("busybox").args(args).output();
    match out {
        Ok(o) if o.status.success() => {}
        r => panic!("busybox {args:?}: {r:?}"),
    }
}

/// Loads the RAM disks: /dev/ram0 to swap to, /dev/ram1 for a file system.
pub fn ram_disks() {
    // They are built into the debug kernel.
    if std::path::Path::new("/dev/ram1").exists() {
        return;
    }
    let r = sys::load_module("/modules/extras/brd.ko", "rd_nr=2 rd_size=65536");
    match r {
        Ok(_) | Err(libc::EEXIST) => {}
        Err(e) => harness::skip(&format!("no RAM disk to swap to: errno {e}")),
    }
}

/// Swap space while it lives.
pub struct Swap;

impl Swap {
    /// Makes it; the test is skipped where that cannot be done.
    pub fn on() -> Self {
        ram_disks();
        tool(&["mkswap", "/dev/ram0"]);
        tool(&["swapon", "/dev/ram0"]);
        Self
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = Command::new("busybox")
            .args(["swapoff", "/dev/ram0"])
            .status();
    }
}

fn swap_counts() -> (u64, u64) {
    let n = |key| field("/proc/vmstat", key).unwrap_or(0);
    (n("pswpout"), n("pswpin"))
}

fn swapped() {
    let _swap = Swap::on();
    let m = Map::anon(SIZE as usize);
    let pair = Pair::new(&m, SIZE);
    let mut rng = Random::new(1);
    let (out, inn) = swap_counts();
    // What goes out in one round comes in by the next at the latest.
    let times = rounds(8, 400).max(2);
    // A page that a guest waits for just now stays, and a huge one is 512 of them: how much goes in two rounds is luck, so it may take more.
    let least = (times / 2).clamp(1, 4) * SIZE / 4096 / 4;
    let enough = || {
        let (now_out, now_in) = swap_counts();
        now_out - out > least && now_in - inn > least
    };
    pair.run(&m, |p| {
        for i in 0..times.max(200) {
            let (at, n) = if i % 2 == 0 {
                (0, SIZE as usize)
            } else {
                range(&mut rng, SIZE, 700)
            };
            eq!(m.advise(at, n, PAGEOUT), Ok(0));
            p[0].advance(1);
            if p[0].over() || i + 1 >= times && enough() {
                break;
            }
        }
    });
    let (now_out, now_in) = swap_counts();
    check!(now_out - out > least, "{} pages went out", now_out - out);
    check!(now_in - inn > least, "{} pages came in", now_in - inn);
}

fn reclaimed() {
    // The group may use less than what its guest sweeps: the kernel has to choose pages to reclaim all the time, and asks the MMU which of
    // them were used.
    let _swap = Swap::on();
    let (out, inn) = swap_counts();
    in_cgroup("reclaimed", |cg| {
        let size = SIZE;
        let m = Map::anon(size as usize);
        let pair = Pair::new(&m, size);
        // The VM itself is in the group too. On a kernel that checks its memory it weighs more than the MiB at most that it has elsewhere.
        let vm = field(&cg.file("memory.stat"), "kernel").unwrap_or(0);
        let max = size - (1 << 19) + vm.saturating_sub(1 << 20);
        // Not `memory.max`: what KASAN keeps of freed memory counts, and may be more than there is to take from the guest in time.
        check!(set(&cg.file("memory.high"), max), "memory.high");
        let sweeps = rounds(1, 60);
        pair.run(&m, |p| {
            let mut high = max;
            for n in 1..=sweeps.max(60) {
                p.iter().for_each(|p| p.advance(1));
                let enough = swap_counts().1 - inn > 256;
                if enough && n >= sweeps || p.iter().any(Progress::over) {
                    break;
                }
                if !enough {
                    // The VM may have become smaller meanwhile.
                    high = high.saturating_sub(1 << 16);
                    check!(set(&cg.file("memory.high"), high), "memory.high");
                }
            }
        });
    });
    let (now_out, now_in) = swap_counts();
    check!(now_out - out > 256, "{} pages went out", now_out - out);
    check!(now_in - inn > 256, "{} pages came in", now_in - inn);
}

/// Bytes of this process in huge pages.
fn huge_bytes() -> u64 {
    field("/proc/self/smaps_rollup", "AnonHugePages").unwrap_or(0) << 10
}

fn collapsed() {
    let m = Map::anon(SIZE as usize);
    eq!(m.advise(0, SIZE as usize, libc::MADV_NOHUGEPAGE), Ok(0));
    let pair = Pair::new(&m, SIZE);
    let mut rng = Random::new(2);
    let mut most = 0;
    pair.run(&m, |p| {
        for _ in 0..rounds(3, 200) {
            eq!(m.advise(0, SIZE as usize, libc::MADV_HUGEPAGE), Ok(0));
            // A page that a fault of the guest holds just now cannot be moved: it is left out.
            let _ = m.advise(0, SIZE as usize, COLLAPSE);
            most = most.max(huge_bytes());
            p[0].advance(1);
            // A change of one page's protection splits the mapping of the huge page, and NOHUGEPAGE keeps it so.
            for _ in 0..6 {
                let (at, n) = range(&mut rng, SIZE, 3);
                eq!(m.protect(at, n, PROT_READ), Ok(0));
                eq!(m.protect(at, n, PROT_READ | PROT_WRITE), Ok(0));
            }
            eq!(m.advise(0, SIZE as usize, libc::MADV_NOHUGEPAGE), Ok(0));
            p[0].advance(1);
            if p[0].over() {
                break;
            }
        }
    });
    check!(most >= SIZE / 2, "{most:x} bytes in huge pages at most");
}

fn remapped() {
    // Pages are moved elsewhere and back. Meanwhile the guest has no memory there, and waits.
    let m = Map::anon(2 * SIZE as usize);
    let pair = Pair::new(&m, SIZE);
    let mut rng = Random::new(3);
    pair.run(&m, |p| {
        for i in 0..rounds(60, 2000) {
            let huge = i % 3 == 0;
            let (at, n) = if huge {
                (0x20_0000, 0x20_0000)
            } else {
                range(&mut rng, SIZE, 40)
            };
            eq!(m.remap(at, SIZE as usize + at, n), Ok(0));
            if i % 8 == 0 {
                let before = efaults(p);
                wait_for("EFAULT", || efaults(p) > before || p[0].over());
            }
            eq!(m.remap(SIZE as usize + at, at, n), Ok(0));
            if p[0].over() {
                break;
            }
        }
    });
}

fn efaults(p: &[Progress]) -> u64 {
    p.iter()
        .map(|p| p.efaults.load(std::sync::atomic::Ordering::SeqCst))
        .sum()
}

/// Waits until `f` holds; the test ends if that takes too long.
pub fn wait_for(what: &str, mut f: impl FnMut() -> bool) {
    let began = Instant::now();
    while !f() {
        assert!(
            began.elapsed() < Duration::from_secs(300),
            "waited for {what} in vain"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn protected() {
    let m = Map::anon(SIZE as usize);
    let pair = Pair::new(&m, SIZE);
    let mut rng = Random::new(4);
    pair.run(&m, |p| {
        for i in 0..rounds(60, 2000) {
            let (at, n) = range(&mut rng, SIZE, 600);
            let prot = if i % 2 == 0 { PROT_READ } else { PROT_NONE };
            eq!(m.protect(at, n, prot), Ok(0));
            if i % 8 == 0 {
                let before = efaults(p);
                wait_for("EFAULT", || efaults(p) > before || p[0].over());
            }
            eq!(m.protect(at, n, PROT_READ | PROT_WRITE), Ok(0));
            if p[0].over() {
                break;
            }
        }
    });
}

/// What a forked process sees: a moment of the sweeps, which does not move on.
fn frozen(m: &Map, size: u64, vcpus: usize) -> i32 {
    let look = || -> Vec<(u64, u64)> {
        (0..size as usize)
            .step_by(4096)
            .map(|o| (m.rd(o), m.rd(o + 4088)))
            .collect()
    };
    let first = look();
    std::thread::sleep(Duration::from_millis(15));
    // A page that was being written has two different words: one for each vCPU at most.
    let torn = first.iter().filter(|(a, b)| a != b).count();
    if look() != first {
        harness::say("the memory of a forked process changed");
        return 1;
    }
    if torn > vcpus {
        harness::say(&format!("{torn} pages are half written"));
        return 2;
    }
    0
}

fn forked() {
    let m = Map::anon(SIZE as usize);
    let pair = Pair::new(&m, SIZE);
    let vcpus = pair.cpus().len();
    pair.run(&m, |p| {
        for _ in 0..rounds(5, 300) {
            let children: Vec<i32> = (0..2)
                .map(|_| sys::fork(|| frozen(&m, SIZE, vcpus)))
                .collect();
            p[0].advance(1);
            for pid in children {
                eq!(sys::wait(pid, true), Ended::Exit(0));
            }
            if p[0].over() {
                break;
            }
        }
    });
}

const KSM: &str = "/sys/kernel/mm/ksm";

/// KSM at full speed, and off again at the end.
struct Ksm(Vec<Setting>);

impl Ksm {
    fn on() -> Self {
        let mut all = Vec::new();
        for (name, value) in [
            ("pages_to_scan", 1000),
            ("sleep_millisecs", 10),
            ("smart_scan", 0),
        ] {
            all.extend(Setting::new(&format!("{KSM}/{name}"), value));
        }
        if !set(&format!("{KSM}/run"), 1) {
            harness::skip("no KSM here");
        }
        Self(all)
    }
    fn shared() -> u64 {
        number(&format!("{KSM}/pages_sharing")).unwrap_or(0)
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        // 2: and give every page a copy of its own again.
        let _ = set(&format!("{KSM}/run"), 2);
        let _ = set(&format!("{KSM}/run"), 0);
        self.0.clear();
    }
}

fn merged() {
    // After a sweep all pages are alike. They are merged while the guest stands, and the next sweep separates them again.
    let _ksm = Ksm::on();
    let size = SIZE / 4;
    let m = Map::anon(size as usize);
    eq!(m.advise(0, size as usize, libc::MADV_NOHUGEPAGE), Ok(0));
    eq!(m.advise(0, size as usize, MERGEABLE), Ok(0));
    let s = Sweeper::new(m.addr(), size);
    let p = Progress::default();
    for _ in 0..rounds(2, 60) {
        if !s.sweep(&s.g.cpu, &p) {
            return;
        }
        wait_for("merged pages", || Ksm::shared() > size / 4096 / 2);
    }
    check_pages(&m, 0, size, 4096, s.swept(&s.g.cpu));
    // And while it runs.
    let before = s.swept(&s.g.cpu);
    let swept = s.while_sweeping(&[&s.g.cpu], |p| p[0].advance(rounds(1, 300)));
    check!(swept[0] > before, "{swept:?}");
    check_pages(&m, 0, size, 4096, swept[0]);
}

fn migrated() {
    // The kernel moves pages to other places in memory, here because their frames are to be taken out of use: the same way as for
    // compaction and memory hot-unplug.
    const SOFT_OFFLINE: i32 = 101;
    let m = Map::anon(SIZE as usize);
    eq!(m.advise(0, SIZE as usize, libc::MADV_NOHUGEPAGE), Ok(0));
    let pair = Pair::new(&m, SIZE);
    let mut rng = Random::new(6);
    let mut moved = 0;
    pair.run(&m, |p| {
        for i in 0..rounds(24, 400) {
            let (at, _) = range(&mut rng, SIZE, 1);
            let before = frame(&m, at);
            match m.advise(at, 4096, SOFT_OFFLINE) {
                Ok(_) => moved += u64::from(frame(&m, at) != before),
                // A fault of the guest holds the page just now.
                Err(libc::EBUSY | libc::EAGAIN | libc::EIO) => {}
                Err(e) => harness::skip(&format!("no MADV_SOFT_OFFLINE here: errno {e}")),
            }
            if i % 4 == 0 {
                p[0].advance(1);
            }
            if p[0].over() {
                break;
            }
        }
    });
    check!(moved >= rounds(24, 400) / 2, "{moved} pages were moved");
}

/// The page frame behind a page of the guest's memory, as /proc/self/pagemap has it.
fn frame(m: &Map, at: usize) -> u64 {
    let f = crate::must!(sys::OwnedFd::open("/proc/self/pagemap", libc::O_RDONLY));
    let mut b = [0u8; 8];
    let _ = sys::pread(f.raw(), &mut b, (m.addr() + at as u64) / 4096 * 8);
    u64::from_le_bytes(b) & ((1 << 55) - 1)
}

fn thrown_away() {
    // MADV_DONTNEED between two sweeps: the next one must find zeroes everywhere.
    let m = Map::anon(SIZE as usize);
    let s = Sweeper::new(m.addr(), SIZE);
    let p = Progress::default();
    for i in 0..rounds(6, 400) {
        for _ in 0..3 {
            if !s.sweep(&s.g.cpu, &p) {
                return;
            }
        }
        check_pages(&m, 0, SIZE, 4096, 3);
        let how = if i % 3 == 2 {
            libc::MADV_HUGEPAGE
        } else {
            libc::MADV_NOHUGEPAGE
        };
        eq!(m.advise(0, SIZE as usize, how), Ok(0));
        eq!(m.advise(0, SIZE as usize, libc::MADV_DONTNEED), Ok(0));
        let mut r = s.g.cpu.regs();
        r.r12 = 0;
        s.g.cpu.set_regs(&r);
    }
}

/// One change of the host's mind about the memory `m`, of which the guest uses the first half.
fn disturb(m: &Map, rng: &mut Random, vcpus: usize) {
    let (at, n) = range(rng, SIZE, 300);
    let full = PROT_READ | PROT_WRITE;
    match rng.below(9) {
        0 => _ = m.advise(at, n, PAGEOUT),
        1 => _ = m.advise(at, n, libc::MADV_COLD),
        2 => {
            let _ = m.advise(at, n, libc::MADV_HUGEPAGE);
            let _ = m.advise(at, n, COLLAPSE);
        }
        3 => {
            eq!(m.protect(at, n, PROT_READ), Ok(0));
            eq!(m.protect(at, n, full), Ok(0));
        }
        4 => {
            eq!(m.protect(at, n, PROT_NONE), Ok(0));
            eq!(m.protect(at, n, full), Ok(0));
        }
        5 => {
            eq!(m.remap(at, SIZE as usize + at, n), Ok(0));
            eq!(m.remap(SIZE as usize + at, at, n), Ok(0));
        }
        6 => {
            let pid = sys::fork(|| frozen(m, SIZE, vcpus));
            eq!(sys::wait(pid, true), Ended::Exit(0));
        }
        7 => _ = m.advise(at, n, MERGEABLE),
        _ => _ = m.advise(at, n, libc::MADV_UNMERGEABLE),
    }
}

fn everything() {
    let _swap = Swap::on();
    let _ksm = Ksm::on();
    let m = Map::anon(2 * SIZE as usize);
    let pair = Pair::new(&m, SIZE);
    let vcpus = pair.cpus().len();
    let mut rng = Random::new(5);
    // Beside the guest's slot others come, move and go, and are read.
    let (mut beside, reader) = Beside::new(&pair.s.g, 2, super::sweep::AT + SIZE);
    reader.while_reading(&pair.s.g, || {
        pair.run(&m, |p| {
            for i in 0..rounds(20, 1500) {
                disturb(&m, &mut rng, vcpus);
                beside.change(&mut rng);
                if i % 16 == 0 {
                    p.iter().for_each(|p| p.advance(1));
                }
                if p.iter().any(Progress::over) {
                    break;
                }
            }
        });
    });
}
