// SPDX-License-Identifier: GPL-2.0
//! The neighbour: a process with VMs of its own that computes, all the time while attackers are at work, what is known beforehand; and
//! what must not be left when they are gone.
//!
//! It goes from CPU to CPU, wakes up in the midst of what the attackers do there, runs its guests for a moment that may be long enough to
//! be interrupted in turn, and sleeps for some times as long, so that it takes a small part of the machine. One guest computes
//! over its memory; another, where there is XSAVE, compares every register that it has.

use crate::guest::*;
use crate::harness;
use crate::kvm::Exit;
use crate::registers::{self, Random};
use crate::stress::mixer::{Mixer, Work};
use crate::sys::{self, Ended, Map, OwnedFd};
use iced_x86::code_asm::*;
use std::time::{Duration, Instant};

const WORDS: usize = 1024;
const FACTOR: u64 = 6_364_136_223_846_793_005;
/// Where the guest finds how often it is to go over its words.
const PASSES: u64 = DATA + 8 * WORDS as u64;
/// How long it may take for one round, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counters of the host that are the same again when all VMs are gone.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    /// Users of the module.
    users: Option<u64>,
    /// Second-stage tables, in KiB.
    tables: Option<u64>,
}

impl Left {
    fn now() -> Self {
        let read = |p: &str| std::fs::read_to_string(p).ok();
        let tables = read("/proc/meminfo").and_then(|m| {
            let line = m.lines().find(|l| l.starts_with("SecPageTables:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        });
        Self {
            users: read("/sys/module/kvm/refcnt").and_then(|n| n.trim().parse().ok()),
            tables,
        }
    }

    /// Now, or as soon as nothing of an earlier test's descriptors is left, which are released a little later than their process.
    fn settled() -> Self {
        let began = Instant::now();
        loop {
            let left = Self::now();
            if left.users == Some(0) || began.elapsed() > Duration::from_secs(1) {
                return left;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Left {
    /// No more than `before`: what an earlier test left to be freed may be gone since.
    fn within(&self, before: &Self) -> bool {
        self.users <= before.users && self.tables <= before.tables
    }
}

/// The neighbour's process, and the state of the host before it came.
pub struct Neighbour {
    pid: i32,
    /// It lives until this is closed.
    life: OwnedFd,
    /// How many rounds it has done so far: written by its process.
    rounds: Map,
    seen: u64,
    /// Rounds that it did while nobody waited for it.
    beside: u64,
    began: Instant,
    before: Left,
}

impl Neighbour {
    /// Starts it, and waits until it is at work. To be called while the test has one thread and no descriptor of KVM.
    pub fn start() -> Self {
        let before = Left::settled();
        let (dead, life) = sys::pipe();
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let rounds = crate::must!(Map::new(4096, prot, shared, -1, 0));
        let pid = sys::fork(|| {
            let _ = life.close();
            live(dead.raw(), &rounds)
        });
        let mut near = Self {
            pid,
            life,
            rounds,
            seen: 0,
            beside: 0,
            began: Instant::now(),
            before,
        };
        near.check();
        (near.beside, near.began) = (0, Instant::now());
        near
    }

    /// It must have done rounds since the last look, and all of them right.
    pub fn check(&mut self) {
        let done = || self.rounds.rd::<u64>(0);
        self.beside += done() - self.seen;
        let began = Instant::now();
        // The wrong one is told by the neighbour itself, which ends then.
        let mut ended = sys::wait(self.pid, false);
        while ended == Ended::Not && done() == self.seen && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
            ended = sys::wait(self.pid, false);
        }
        if ended != Ended::Not || done() == self.seen {
            panic!(
                "the neighbour VM, after {} rounds: computed something else, hangs, or is gone: {ended:?}",
                done()
            );
        }
        self.seen = done();
    }

    /// Ends it, and sees that nothing is left of it or of any other VM.
    pub fn end(mut self) {
        let (took, beside) = (self.began.elapsed(), self.beside);
        self.check();
        harness::say(&format!(
            "the neighbour: {} rounds, {beside} of them beside the attack, in {took:.1?}",
            self.seen
        ));
        // A part of the machine was its own.
        crate::check!(
            beside >= took.as_secs() / 5,
            "the neighbour did {beside} rounds in {took:?}"
        );
        let _ = self.life.close();
        crate::eq!(sys::wait(self.pid, true), Ended::Exit(0), "the neighbour");
        // Descriptors are released a little later than their processes.
        let began = Instant::now();
        while !Left::now().within(&self.before) && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = Left::now();
        crate::check!(
            left.within(&self.before),
            "left: {left:?}, before: {:?}",
            self.before
        );
    }
}

/// The neighbour's life: rounds of its guests in turn, until one is wrong or nobody needs it any more.
fn live(dead: i32, rounds: &Map) -> i32 {
    let mut sums = Sums::new();
    let mut mixer = registers::has_xsave().then(|| Mixer::new(Work::Spin, false, 12));
    if let Some(m) = &mixer {
        will_spin(&m.g.cpu);
    }
    let mut rng = Random::new(13);
    // The share of its pauses: on a CPU of its own, or on the one that there is.
    let pauses = if sys::cpus() > 1 { 3 } else { 9 };
    for n in 1u64.. {
        let _ = sys::pin(0, (n / 4) as usize % sys::cpus());
        let length = 1 + rng.below(if sys::on_tcg() { 64 } else { 8 });
        let began = Instant::now();
        let result = match &mut mixer {
            Some(m) if n % 2 == 0 => {
                m.refill(length * WORDS as u64);
                let e = m.g.cpu.run();
                m.judge(&e)
            }
            _ => sums.round(length),
        };
        if let Err(e) = result {
            harness::fail(&format!("the neighbour VM, round {n}: {e}"));
            return 1;
        }
        rounds.wr(0, n);
        let pause = (began.elapsed() * pauses).as_millis().clamp(1, 1000);
        if sys::readable(dead, pause as i32) {
            break;
        }
    }
    0
}

/// A guest that goes over its memory, and what it must have found.
struct Sums {
    g: Guest,
    memory: Vec<u64>,
    x: u64,
    sum: u64,
}

impl Sums {
    fn new() -> Self {
        let g = Guest::new(Mode::Long);
        g.load(|a| {
            let (mut round, mut pass, mut word) =
                (a.create_label(), a.create_label(), a.create_label());
            a.xor(eax, eax)?;
            a.mov(rdx, FACTOR)?;
            a.xor(ebx, ebx)?;
            a.set_label(&mut round)?;
            a.mov(r8, qword_ptr(PASSES))?;
            a.set_label(&mut pass)?;
            a.mov(edi, DATA as u32)?;
            a.mov(ecx, WORDS as u32)?;
            a.set_label(&mut word)?;
            a.imul_2(rax, rdx)?;
            a.inc(rax)?;
            a.xor(qword_ptr(rdi), rax)?;
            a.add(rbx, qword_ptr(rdi))?;
            a.add(rdi, 8)?;
            a.dec(ecx)?;
            a.jne(word)?;
            a.dec(r8)?;
            a.jne(pass)?;
            a.hlt()?;
            a.jmp(round)
        });
        will_spin(&g.cpu);
        Self {
            g,
            memory: vec![0; WORDS],
            x: 0,
            sum: 0,
        }
    }

    /// One exit after `passes` over the memory, and the same computed here.
    fn round(&mut self, passes: u64) -> Result<(), String> {
        for _ in 0..passes {
            for w in &mut self.memory {
                self.x = self.x.wrapping_mul(FACTOR).wrapping_add(1);
                *w ^= self.x;
                self.sum = self.sum.wrapping_add(*w);
            }
        }
        self.g.mem.wr(PASSES as usize, passes);
        let e = self.g.cpu.run();
        let r = self.g.cpu.regs();
        let found = |i: usize| self.g.mem.rd::<u64>(DATA as usize + 8 * i);
        let same = (0..WORDS).all(|i| found(i) == self.memory[i]);
        if e == Exit::Hlt && (r.rax, r.rbx) == (self.x, self.sum) && same {
            return Ok(());
        }
        Err(format!(
            "{e:x?}, RAX {:x} and RBX {:x}, expected {:x} and {:x}; memory right: {same}",
            r.rax, r.rbx, self.x, self.sum
        ))
    }
}
