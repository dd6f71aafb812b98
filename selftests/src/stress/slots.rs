// SPDX-License-Identifier: GPL-2.0
//! Slots that move, go and come back while a vCPU reads in them: what it reads is always what is there now.

use super::pages::wait_for;
use super::sweep::{check_pages, Sweeper, AT};
use crate::guest::{will_spin, Guest, CODE, DATA};
use crate::harness::{self, rounds, Test};
use crate::kvm::{Exit, Vcpu};
use crate::registers::Random;
use crate::sys::Map;
use crate::{check, eq};
use iced_x86::code_asm::*;
use std::sync::atomic::{fence, AtomicBool, AtomicU64, Ordering};

pub const TESTS: &[Test] = &[Test::new("stress/mem_slot_moves_read", moves_read)
    .secs(60)
    .long(600)
    .no_ab()];

/// Odd while the slots change; moves with each change.
const SEQUENCE: usize = DATA as usize;
/// What the word at the start of a page is: its address with `MASK`, and `BIAS` added.
const BIAS: usize = DATA as usize + 8;
const MASK: usize = DATA as usize + 16;
/// How many words the guest has judged.
const JUDGED: usize = DATA as usize + 24;
/// Behind the code of the sweeper.
const READER: u64 = CODE + 0x1000;
const PORT_ROUND: u32 = 0x22;
const PORT_WRONG: u32 = 0x23;

/// What user space answers where there is no slot, with the address added likewise.
const NO_SLOT: u64 = 0x5000_0000_0000;

/// A vCPU that reads the first word of each of some pages again and again. In its first page of data the VMM tells what it must find.
pub struct Reader {
    cpu: Vcpu,
    mask: u64,
    /// Exits for a missing slot.
    pub exits: AtomicU64,
    rounds: AtomicU64,
    stop: AtomicBool,
}

fn code(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // RSI: the first page; RDI: how many.
    let mut round = a.create_label();
    let mut page = a.create_label();
    let mut next = a.create_label();
    let mut wrong = a.create_label();
    a.set_label(&mut round)?;
    a.mov(rbx, rsi)?;
    a.mov(rcx, rdi)?;
    a.set_label(&mut page)?;
    a.mov(r8, qword_ptr(SEQUENCE as u64))?;
    a.mov(r9, qword_ptr(BIAS as u64))?;
    a.mov(rax, qword_ptr(rbx))?;
    // Read while the slots changed: either may be.
    a.cmp(r8, qword_ptr(SEQUENCE as u64))?;
    a.jne(next)?;
    a.test(r8d, 1)?;
    a.jne(next)?;
    a.mov(rdx, rbx)?;
    a.and(rdx, qword_ptr(MASK as u64))?;
    a.add(rdx, r9)?;
    a.cmp(rax, rdx)?;
    a.jne(wrong)?;
    a.inc(qword_ptr(JUDGED as u64))?;
    a.set_label(&mut next)?;
    a.add(rbx, 4096)?;
    a.dec(rcx)?;
    a.jne(page)?;
    a.out(PORT_ROUND, eax)?;
    a.jmp(round)?;
    a.set_label(&mut wrong)?;
    a.out(PORT_WRONG, eax)?;
    a.jmp(wrong)
}

impl Reader {
    /// A further vCPU of `g` that reads `pages` pages from `first` on, whose words have their address with `mask` in them.
    pub fn new(g: &Guest, id: u64, (first, pages): (u64, u64), mask: u64) -> Self {
        let cpu = g.second_vcpu(id);
        g.load_at(READER, code);
        g.mem.wr(MASK, mask);
        let mut r = cpu.regs();
        (r.rsi, r.rdi, r.rip) = (first, pages, READER);
        cpu.set_regs(&r);
        Self {
            cpu,
            mask,
            exits: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    fn run(&self, g: &Guest) {
        while !self.stop.load(Ordering::SeqCst) {
            match self.cpu.run() {
                Exit::Mmio {
                    addr,
                    len: 8,
                    write: false,
                    ..
                } => {
                    self.exits.fetch_add(1, Ordering::SeqCst);
                    self.cpu
                        .answer(&((addr & self.mask) + NO_SLOT).to_le_bytes());
                }
                Exit::Io { port: 0x22, .. } => {
                    self.rounds.fetch_add(1, Ordering::SeqCst);
                }
                Exit::Err(libc::EINTR, _) => {}
                e => {
                    let r = self.cpu.regs();
                    let told: [u64; 3] = [SEQUENCE, BIAS, MASK].map(|at| g.mem.rd(at));
                    harness::fail(&format!(
                        "the reader: {e:x?} at {:x}: {:x}, expected {:x}; sequence, bias and mask now {told:x?}, {r:x?}",
                        r.rbx, r.rax, r.rdx
                    ));
                    return;
                }
            }
        }
    }

    /// Lets the vCPU read while `body` runs, and a whole round after it.
    pub fn while_reading(&self, g: &Guest, body: impl FnOnce()) {
        will_spin(&self.cpu);
        std::thread::scope(|s| {
            s.spawn(|| self.run(g));
            let _stop = Stop(&self.stop);
            body();
            self.looks(g);
            self.looks(g);
        });
    }

    /// Waits until it has come to the end of a round, and has judged a word in it.
    pub fn looks(&self, g: &Guest) {
        let now = || (self.rounds.load(Ordering::SeqCst), g.mem.rd::<u64>(JUDGED));
        let before = now();
        wait_for("a round of the reader", || {
            let after = now();
            after.0 > before.0 && after.1 > before.1 || harness::fails() > 0
        });
    }
}

/// Changes what the guest must find: nothing of what it reads meanwhile counts.
fn change(g: &Guest, bias: u64, body: impl FnOnce()) {
    let n: u64 = g.mem.rd(SEQUENCE);
    g.mem.wr(SEQUENCE, n + 1);
    fence(Ordering::SeqCst);
    body();
    g.mem.wr(BIAS, bias);
    fence(Ordering::SeqCst);
    g.mem.wr(SEQUENCE, n + 2);
}

/// Ends the reader's thread, whatever becomes of the test.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Where the slot that moves is, and its size; and where it always is, but for its absence: what is read.
const BASE: u64 = AT + (16 << 20);
const SIZE: u64 = 64 * 4096;
const STEP: u64 = 3 * 4096;
const STEPS: u64 = 7;
const READ: (u64, u64) = (
    BASE + (STEPS - 1) * STEP,
    (SIZE - (STEPS - 1) * STEP) / 4096,
);
const MOVING: u32 = 2;

/// Memory whose pages begin with `tag` and their offset.
fn tagged(tag: u64) -> Map {
    let m = Map::anon(SIZE as usize);
    for at in (0..SIZE).step_by(4096) {
        m.wr(at as usize, tag + at);
    }
    m
}

fn moves_read() {
    let swept = Map::anon(1 << 20);
    let s = Sweeper::new(swept.addr(), 1 << 20);
    let g = &s.g;
    let tags = [0x6000_0000_0000u64, 0x7000_0000_0000];
    let memory = tags.map(tagged);
    let reader = Reader::new(g, 1, READ, u64::MAX);
    change(g, NO_SLOT, || {});
    let mut rng = Random::new(9);
    let region = |at: u64, size: u64, m: usize| g.vm.region(MOVING, 0, at, size, memory[m].addr());
    // Its place, and which memory it has.
    let mut now: Option<(u64, usize)> = None;
    let times = rounds(100, 3000);
    let sweeps = s.while_sweeping(&[&g.cpu], |p| {
        reader.while_reading(g, || {
            for i in 0..times {
                let to = BASE + rng.below(STEPS) * STEP;
                now = match now {
                    Some((at, m)) if rng.below(3) == 0 => {
                        change(g, NO_SLOT, || eq!(region(at, 0, m), Ok(0)));
                        None
                    }
                    Some((at, m)) if rng.below(2) == 0 => {
                        // Other memory at the same moment: gone and made anew.
                        change(g, tags[1 - m].wrapping_sub(to), || {
                            eq!(region(at, 0, m), Ok(0));
                            eq!(region(to, SIZE, 1 - m), Ok(0));
                        });
                        Some((to, 1 - m))
                    }
                    old => {
                        let m = old.map_or(i as usize % 2, |(_, m)| m);
                        change(g, tags[m].wrapping_sub(to), || {
                            eq!(region(to, SIZE, m), Ok(0))
                        });
                        Some((to, m))
                    }
                };
                // Most changes are looked at before the next one; some follow at once.
                if i % 4 != 0 {
                    reader.looks(g);
                }
                if harness::fails() > 0 || p[0].over() {
                    break;
                }
            }
        });
    });
    check_pages(&swept, 0, 1 << 20, 4096, sweeps[0]);
    let exits = reader.exits.load(Ordering::SeqCst);
    check!(exits > times / 8, "{exits} exits for want of a slot");
}

/// Slots of 64 KiB that come, move and go where a [`Reader`] looks, all with the same memory.
pub struct Beside<'a> {
    g: &'a Guest,
    memory: Map,
    at: [Option<u64>; 4],
    first: u64,
}

const BESIDE: u64 = 0x1_0000;
const PLACES: u64 = 16;

impl<'a> Beside<'a> {
    /// None yet, from `first` on; and who reads there. Each word is the same, from memory or as the answer to an exit.
    pub fn new(g: &'a Guest, id: u64, first: u64) -> (Self, Reader) {
        let memory = Map::anon(BESIDE as usize);
        for at in (0..BESIDE as usize).step_by(4096) {
            memory.wr(at, NO_SLOT);
        }
        let reader = Reader::new(g, id, (first, PLACES * BESIDE / 4096), 0);
        change(g, NO_SLOT, || {});
        let at = [None; 4];
        (
            Self {
                g,
                memory,
                at,
                first,
            },
            reader,
        )
    }

    /// Makes or moves one; where another lies in its way it is refused, and goes instead.
    pub fn change(&mut self, rng: &mut Random) {
        let i = rng.below(4) as usize;
        let to = self.first + rng.below(PLACES) * BESIDE;
        let region = |size| {
            self.g
                .vm
                .region(2 + i as u32, 0, to, size, self.memory.addr())
        };
        let in_the_way = |(j, at): (usize, &Option<u64>)| j != i && *at == Some(to);
        if !self.at.iter().enumerate().any(in_the_way) {
            eq!(region(BESIDE), Ok(0));
            self.at[i] = Some(to);
            return;
        }
        eq!(region(BESIDE), Err(libc::EEXIST));
        let there = self.at[i].is_some();
        eq!(region(0), if there { Ok(0) } else { Err(libc::EINVAL) });
        self.at[i] = None;
    }
}
