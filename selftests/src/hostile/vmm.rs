// SPDX-License-Identifier: GPL-2.0
//! A VMM of several threads that makes every ioctl, known and unknown, with random arguments on the same descriptors, while its memory is
//! taken away and moved under the calls, descriptors are closed and duplicated, the run pages are written over, and the process
//! forks, is signalled and in the end killed.

use super::ioctls::{self, size};
use super::neighbour::Neighbour;
use super::rng::Rng;
use super::seeds;
use super::state::{mutate, tame};
use super::tally::Tally;
use crate::check;
use crate::guest::{Guest, Mode};
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{self, Arg, Ended, Map, OwnedFd};
use kvm_bindings::kvm_run;
use libc::*;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new("hostile/ioctls", fuzz)
        .secs(90)
        .long(3000)
        .no_ab(),
    Test::new("hostile/ioctls_killed", fuzz_killed)
        .secs(90)
        .long(3000)
        .no_ab(),
    Test::new("hostile/aliased_slots", aliases)
        .secs(60)
        .long(3000)
        .no_ab(),
];

const PAGE: usize = 4096;
/// Pages of the pool of arguments: good ones, read-only ones, inaccessible ones, and those that change under the calls.
const GOOD: usize = 16;
const READ_ONLY: usize = 24;
const NONE: usize = 32;
const POOL: usize = 64;
/// Bytes of memory for guests.
const MEM: usize = 4 << 20;
const THREADS: usize = 3;
/// Descriptors that all threads use.
const FDS: usize = 12;

/// What the threads share.
struct World {
    fds: [AtomicI32; FDS],
    pool: Map,
    mem: Map,
    /// The pages of two vCPUs' mappings.
    runs: Vec<Map>,
    stop: AtomicBool,
    tids: [AtomicI32; THREADS],
    runs_done: AtomicU32,
    slots_set: AtomicU32,
    calls: AtomicU32,
    tally: &'static Tally,
}

impl World {
    fn new(rng: &mut Rng, tally: &'static Tally) -> Self {
        let k = crate::must!(OwnedFd::open("/dev/kvm", O_RDWR));
        let mem = Map::anon(MEM);
        let pool = Map::anon(POOL * PAGE);
        crate::must!(pool.protect(GOOD * PAGE, (READ_ONLY - GOOD) * PAGE, PROT_READ));
        crate::must!(pool.protect(READ_ONLY * PAGE, (NONE - READ_ONLY) * PAGE, PROT_NONE));
        // Nothing spins where the host could not stop it: all is HLT. Elsewhere half of it is anything.
        mem.fill(0, MEM, 0xf4);
        if sys::on_tcg() {
            let mut b = vec![0u8; 0x1_0000];
            rng.fill(&mut b);
            mem.put(0x8000, &b);
        }
        let w = Self {
            fds: [const { AtomicI32::new(-1) }; FDS],
            pool,
            mem,
            runs: Vec::new(),
            stop: AtomicBool::new(false),
            tids: [const { AtomicI32::new(0) }; THREADS],
            runs_done: AtomicU32::new(0),
            slots_set: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            tally,
        };
        let raw = k.raw();
        std::mem::forget(k);
        w.fds[0].store(raw, Relaxed);
        let mut w = w;
        for n in 0..2 {
            let vm = crate::must!(sys::ioctl(raw, CREATE_VM, Arg::Num(0)));
            w.fds[1 + n].store(vm, Relaxed);
            for id in 0..2 {
                let c = crate::must!(sys::ioctl(vm, CREATE_VCPU, Arg::Num(id)));
                w.fds[3 + 2 * n + id as usize].store(c, Relaxed);
                let prot = PROT_READ | PROT_WRITE;
                w.runs
                    .push(crate::must!(Map::new(3 * PAGE, prot, MAP_SHARED, c, 0)));
            }
        }
        w
    }

    fn fd(&self, rng: &mut Rng) -> i32 {
        self.fds[rng.below(FDS as u64) as usize].load(Relaxed)
    }

    /// Puts a descriptor of KVM among the others, in place of one, which is closed.
    fn adopt(&self, rng: &mut Rng, fd: i32) {
        let n = rng.below(FDS as u64) as usize;
        let old = self.fds[n].swap(fd, Relaxed);
        if old >= 0 {
            drop(OwnedFd::new(old));
        }
    }

    /// An address for an argument of `len` bytes, filled by `fill` where that can be.
    fn argument(&self, rng: &mut Rng, len: usize, fill: impl FnOnce(&mut Rng, &mut [u8])) -> u64 {
        let page = |n: usize| self.pool.addr() + (n * PAGE) as u64;
        let skew = if rng.one_in(8) { rng.below(8) } else { 0 };
        match rng.below(32) {
            0 => page(GOOD) + skew,
            1 => page(READ_ONLY) + skew,
            // Across the end of what can be read.
            2 => page(GOOD) - rng.below(len as u64 + 1),
            3 => page(READ_ONLY) - rng.below(len as u64 + 1),
            4 => rng.pick(&[
                0,
                8,
                0xffff_8880_0000_0000,
                0xffff_ffff_8100_0000,
                1 << 63,
                0x0000_8000_0000_0000,
                0x0000_7fff_ffff_f000,
                0x0000_7fff_ffff_efff,
                u64::MAX - 3,
                u64::MAX,
            ]),
            // Memory that another thread takes away.
            5..=9 => page(NONE + rng.below((POOL - NONE - 2) as u64) as usize) + skew,
            // The kernel's own shared pages.
            10 => self.runs[rng.below(4) as usize].addr() + skew,
            _ => {
                let mut b = vec![0u8; len.clamp(8, 2 * PAGE)];
                fill(rng, &mut b);
                let at = rng.below((GOOD - 4) as u64) as usize * PAGE + skew as usize;
                self.pool.put(at, &b);
                self.pool.addr() + at as u64
            }
        }
    }

    /// The contents of an argument to ioctl `nr`.
    fn contents(&self, rng: &mut Rng, fd: i32, nr: u64, b: &mut [u8]) {
        // What the kernel told is nearly right.
        let known = match nr {
            SET_REGS => GET_REGS,
            SET_SREGS => GET_SREGS,
            SET_FPU => GET_FPU,
            SET_XCRS => GET_XCRS,
            0x4140_aecd => 0x8140_aecc,
            0x4080_aea2 => 0x8080_aea1,
            0x4040_aea0 => 0x8040_ae9f,
            0x5000_aea5 => 0x9000_aea4,
            _ => 0,
        };
        if known != 0 {
            let _ = sys::ioctl(fd, known, Arg::Buf(b));
            mutate(rng, b);
            tame(nr, b);
            return;
        }
        match nr & 0xff {
            0x46 | 0x49 => self.region(rng, b),
            // Arrays with a count in front: mostly a small one.
            0x02 | 0x05 | 0x09 | 0x0a | 0x6a | 0x88 | 0x90 | 0x91 | 0xb0 | 0x8a => {
                let count = if rng.one_in(4) {
                    rng.odd() as u32
                } else {
                    rng.below(40) as u32
                };
                rng.fill(b);
                b[..4].copy_from_slice(&count.to_le_bytes());
                b[4..8].fill(0);
                // Entries begin behind the argument proper; whatever lies there will do.
            }
            0x8b => {
                rng.fill(b);
                let len = if rng.one_in(8) { rng.u32() } else { 8 };
                b[..4].copy_from_slice(&len.to_le_bytes());
                // The signal that ends KVM_RUN is not blocked.
                if let Some(x) = b.get_mut(5) {
                    *x &= !(1 << ((SIGUSR1 - 1) & 7));
                }
                b[4] = 0;
            }
            _ => {
                mutate(rng, b);
                // Addresses in structures: of the pool.
                if b.len() >= 16 && rng.one_in(2) {
                    let at = 8 * rng.below(b.len() as u64 / 8) as usize;
                    let a = self.pool.addr() + (rng.below(POOL as u64) << 12);
                    b[at..at + 8].copy_from_slice(&a.to_le_bytes());
                }
            }
        }
    }

    /// A memory region: memory of ours or none, mostly where it can be.
    fn region(&self, rng: &mut Rng, b: &mut [u8]) {
        let slot = if rng.one_in(8) {
            rng.u32()
        } else {
            rng.below(6) as u32
        };
        let flags = if rng.one_in(4) {
            rng.below(8) as u32
        } else {
            0
        };
        let gpa = if rng.one_in(6) {
            rng.odd()
        } else {
            rng.below(64) << 16
        };
        let len = match rng.below(6) {
            0 => 0,
            1 => rng.odd(),
            _ => (1 + rng.below(64)) << 12,
        };
        let hva = match rng.below(8) {
            0 => self.pool.addr() + (rng.below(POOL as u64) << 12),
            1 => self.runs[rng.below(4) as usize].addr(),
            2 => rng.pick(&[
                1 << 63,
                0xffff_8880_0000_0000,
                0x7fff_ffff_f000,
                sys::bad_addr(),
            ]),
            _ => self.mem.addr() + (rng.below(512) << 12),
        };
        // Not more than there is: what lies behind is the program's.
        let len = if len > 64 << 12 && len < 1 << 46 {
            64 << 12
        } else {
            len
        };
        let words = [u64::from(slot) | u64::from(flags) << 32, gpa, len, hva];
        b.fill(0);
        for (to, w) in b.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&w.to_le_bytes());
        }
    }

    fn one_call(&self, rng: &mut Rng, thread: usize) {
        let fd = self.fd(rng);
        let nr = match rng.below(16) {
            0..=8 => rng.pick(ioctls::ALL).0,
            // Another size or direction.
            9 => rng.pick(ioctls::ALL).0 ^ (1 << (16 + rng.below(16))),
            10 => 0xae00 | u64::from(rng.u8()) | u64::from(rng.u32() & 0xffff_0000),
            11 => u64::from(rng.u32()),
            12 | 13 => RUN,
            14 => SET_USER_MEMORY_REGION,
            _ => rng.pick(&[SET_SREGS, SET_REGS, SET_MSRS, SET_CPUID2]),
        };
        let arg = match size(nr) {
            _ if nr == RUN && !rng.one_in(16) => 0,
            0 if rng.one_in(2) => rng.below(8),
            0 => match rng.odd() {
                // A number, and by no chance an address of this program.
                n if !(1 << 32..1 << 47).contains(&n) => n,
                _ => 1,
            },
            n => self.argument(rng, n, |rng, b| self.contents(rng, fd, nr, b)),
        };
        // The kernel makes an int of an ioctl's result: of the highest rates, KVM_GET_TSC_KHZ is an errno.
        let arg = match arg as u32 {
            0xffff_f000.. if nr == SET_TSC_KHZ => 0xffff_efff,
            _ => arg,
        };
        // A guest that spins with its interrupts off would stop the whole machine (doc/errata.md).
        if nr == RUN && !sys::on_tcg() {
            return;
        }
        self.calls.fetch_add(1, Relaxed);
        let place = self.tally.made(thread, nr);
        let r = sys::ioctl(fd, nr, Arg::Num(arg));
        if r.is_ok() {
            self.tally.taken(place);
        }
        match r {
            Ok(v) => match nr {
                CREATE_VM | CREATE_VCPU => self.adopt(rng, v),
                RUN => {
                    self.runs_done.fetch_add(1, Relaxed);
                }
                SET_USER_MEMORY_REGION => {
                    self.slots_set.fetch_add(1, Relaxed);
                }
                _ => {}
            },
            Err(e) => {
                // EIO would say that the VM was stopped for a mistake of the kernel's.
                let known = matches!(
                    e,
                    EINVAL
                        | ENOTTY
                        | EFAULT
                        | EBADF
                        | E2BIG
                        | ENOENT
                        | EEXIST
                        | ENXIO
                        | EPERM
                        | EINTR
                        | EAGAIN
                        | ENOMEM
                        | EMFILE
                        | EBUSY
                        | EOPNOTSUPP
                        | ENODEV
                        | ENOSPC
                        | EHWPOISON
                        | EOVERFLOW
                );
                check!(known, "{} ({arg:x}): errno {e}", ioctl_name(nr));
            }
        }
    }

    /// Something else than an ioctl.
    fn other(&self, rng: &mut Rng) {
        match rng.below(8) {
            0 => {
                if let Ok(fd) = sys::dup(self.fd(rng)) {
                    self.adopt(rng, fd);
                }
            }
            1 if rng.one_in(4) => {
                let n = 3 + rng.below(FDS as u64 - 3) as usize;
                let fd = self.fds[n].swap(-1, Relaxed);
                if fd >= 0 {
                    drop(OwnedFd::new(fd));
                }
            }
            2 if rng.one_in(8) => {
                // A child has the descriptors and other memory: nothing but errors for it.
                let fd = self.fd(rng);
                let pid = sys::fork(|| {
                    let a = sys::ioctl(fd, RUN, Arg::Num(0));
                    let b = sys::ioctl(fd, GET_TSC_KHZ, Arg::Num(0));
                    i32::from(a.is_ok() || b.is_ok())
                });
                check!(
                    sys::wait(pid, true) == Ended::Exit(0),
                    "a forked child could use a VM"
                );
            }
            _ => {
                let run = &self.runs[rng.below(4) as usize];
                let at = rng.below(512) as usize * 8;
                run.wr(at, rng.odd());
                // Whole fields of what the kernel looks at: immediate_exit, cr8, the exit's union.
                run.wr(offset_of!(kvm_run, immediate_exit), rng.u8() & 1);
                run.wr(offset_of!(kvm_run, cr8), rng.below(17));
                let union = offset_of!(kvm_run, __bindgen_anon_1);
                run.wr(union + 8 * rng.below(32) as usize, rng.u64());
                if !rng.one_in(16) {
                    // No registers to be synchronised, or KVM_RUN does nothing else than say EINVAL.
                    run.wr(offset_of!(kvm_run, kvm_valid_regs), 0u64);
                    run.wr(offset_of!(kvm_run, kvm_dirty_regs), 0u64);
                }
            }
        }
    }

    fn attack(&self, n: usize, mut rng: Rng) {
        self.tids[n].store(sys::gettid(), Relaxed);
        while !self.stop.load(Relaxed) {
            if rng.one_in(6) {
                self.other(&mut rng);
            } else {
                self.one_call(&mut rng, n);
            }
        }
        self.tids[n].store(0, Relaxed);
    }

    /// Takes memory away, moves it and brings it back.
    fn shake(&self, mut rng: Rng) {
        while !self.stop.load(Relaxed) {
            let page = NONE + rng.below((POOL - NONE - 2) as u64) as usize;
            let rw = PROT_READ | PROT_WRITE;
            let prot = rng.pick(&[PROT_NONE, PROT_READ, rw, rw]);
            let at = rng.below(MEM as u64 >> 13) as usize * 2 * PAGE;
            let _ = match rng.below(7) {
                0 => self.pool.replace(page * PAGE, PAGE, prot),
                1 => self.pool.protect(page * PAGE, PAGE, prot),
                2 => self.pool.advise(page * PAGE, PAGE, MADV_DONTNEED),
                3 => self.mem.advise(at, 2 * PAGE, MADV_DONTNEED),
                4 => self.mem.replace(at, PAGE, prot),
                5 => self.mem.protect(at, PAGE, prot),
                _ => {
                    let from = rng.below(MEM as u64 >> 12) as usize * PAGE;
                    let gone = if from == at {
                        Ok(0)
                    } else {
                        self.mem.remap(from, at, PAGE)
                    };
                    // What was moved away leaves a hole, into which the program's own memory could come.
                    gone.and_then(|_| self.mem.replace(from, PAGE, rw))
                }
            };
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// The attacker's process: for `ms` milliseconds, then it just exits, wherever its threads are.
fn process(seed: &mut Rng, ms: u64, tally: &'static Tally) -> i32 {
    // What failed before, with another seed, is not this process's.
    let before = harness::fails();
    sys::interrupting(SIGUSR1);
    let w: &'static World = Box::leak(Box::new(World::new(seed, tally)));
    for n in 0..THREADS {
        let rng = Rng::new(seed.u64());
        std::thread::spawn(move || w.attack(n, rng));
    }
    let rng = Rng::new(seed.u64());
    std::thread::spawn(move || w.shake(rng));
    let began = Instant::now();
    // Longer on a slow machine, until there was something to be seen.
    let enough = || w.calls.load(Relaxed) > 10 || began.elapsed() > Duration::from_secs(20);
    while began.elapsed() < Duration::from_millis(ms) || !enough() {
        std::thread::sleep(Duration::from_millis(2));
        for t in &w.tids {
            let tid = t.load(Relaxed);
            if tid != 0 {
                let _ = sys::tkill(tid, SIGUSR1);
            }
        }
    }
    if seed.one_in(2) {
        w.stop.store(true, Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
    harness::say(&format!(
        "{} calls, {} runs, {} slots",
        w.calls.load(Relaxed),
        w.runs_done.load(Relaxed),
        w.slots_set.load(Relaxed)
    ));
    check!(w.calls.load(Relaxed) > 10, "hardly a call was made");
    i32::from(harness::fails() != before)
}

fn fuzz() {
    let mut near = Neighbour::start();
    let tally: &Tally = Box::leak(Box::new(Tally::new(THREADS)));
    seeds(&mut near, harness::rounds(6, 400), |rng| {
        let pid = sys::fork(|| process(rng, 400, tally));
        let ended = sys::wait(pid, true);
        check!(ended == Ended::Exit(0), "the attacker: {ended:?}");
    });
    tally.report();
    near.end();
}

/// The same, killed at any moment.
fn fuzz_killed() {
    let mut near = Neighbour::start();
    let tally: &Tally = Box::leak(Box::new(Tally::new(THREADS)));
    seeds(&mut near, harness::rounds(8, 400), |rng| {
        let after = 1 + rng.below(250);
        let pid = sys::fork(|| process(rng, 60_000, tally));
        std::thread::sleep(Duration::from_millis(after));
        let _ = sys::kill(pid, SIGKILL);
        let ended = sys::wait(pid, true);
        check!(ended == Ended::Signal(SIGKILL), "the attacker: {ended:?}");
    });
    tally.report();
    near.end();
}

/// The same page in thousands of slots: one change of the host's is as many of the guest's, and nobody else waits for all of them.
fn aliases() {
    let mut near = Neighbour::start();
    let g = Guest::new(Mode::Long);
    let page = Map::anon(PAGE);
    let n = harness::rounds(1500, 30_000);
    let (first, apart) = (MEM as u64, 2 * PAGE as u64);
    for i in 0..n {
        crate::must!(g
            .vm
            .region(1 + i as u32, 0, first + i * apart, PAGE as u64, page.addr()));
    }
    // Adds up the first word of each.
    g.load(|a| {
        use iced_x86::code_asm::*;
        let mut top = a.create_label();
        a.mov(esi, first as u32)?;
        a.mov(ecx, n as u32)?;
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.add(rax, qword_ptr(rsi))?;
        a.add(rsi, apart as i32)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    for value in [1u64, 5, 0] {
        crate::must!(page.advise(0, PAGE, MADV_DONTNEED));
        if value != 0 {
            page.wr(0, value);
        }
        let mut r = g.cpu.regs();
        r.rip = crate::guest::CODE;
        g.cpu.set_regs(&r);
        g.expect(&Exit::Hlt);
        crate::eq!(g.cpu.regs().rax, value * n, "the sum over all slots");
        near.check();
    }
    drop(g);
    drop(page);
    near.end();
}
