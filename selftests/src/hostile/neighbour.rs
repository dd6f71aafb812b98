// SPDX-License-Identifier: GPL-2.0
//! The neighbour: a VM of another process that computes, while attackers are at work, what is known beforehand; and what
//! must not be left when they are gone.

use crate::guest::*;
use crate::harness;
use crate::kvm::Exit;
use crate::sys::{self, Ended, OwnedFd};
use iced_x86::code_asm::*;
use std::time::{Duration, Instant};

const WORDS: usize = 1024;
const FACTOR: u64 = 6_364_136_223_846_793_005;

/// Counters of the host that are the same again when all VMs are gone.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    /// Users of the module.
    users: Option<String>,
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
            users: read("/sys/module/kvm/refcnt"),
            tables,
        }
    }
}

impl Left {
    /// No more than `before`: what an earlier test left to be freed may be gone since.
    fn within(&self, before: &Self) -> bool {
        self.users == before.users && self.tables <= before.tables
    }
}

/// The neighbour's process, and the state of the host before it came.
pub struct Neighbour {
    pid: i32,
    ask: OwnedFd,
    answer: OwnedFd,
    before: Left,
}

impl Neighbour {
    /// Starts it. To be called while the test has one thread and no descriptor of KVM.
    pub fn start() -> Self {
        let before = Left::now();
        let ((ask_out, ask), (answer, answer_in)) = (sys::pipe(), sys::pipe());
        let pid = sys::fork(|| {
            let _ = ask.close();
            live(ask_out.raw(), answer_in.raw())
        });
        Self {
            pid,
            ask,
            answer,
            before,
        }
    }

    /// One round of its computation.
    pub fn check(&mut self) {
        let mut b = [0u8];
        let asked = sys::write(self.ask.raw(), &[1]) == Ok(1);
        let mut got = Err(libc::EINTR);
        // The attacker's timer may be running.
        while got == Err(libc::EINTR) {
            got = sys::read(self.answer.raw(), &mut b);
        }
        let right = asked && got == Ok(1) && b[0] == 1;
        if !right {
            panic!("the neighbour VM computed something else, or is gone");
        }
    }

    /// Ends it, and sees that nothing is left of it or of any other VM.
    pub fn end(mut self) {
        self.check();
        let _ = self.ask.close();
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

/// The neighbour's life: a round for each byte that comes, until none does.
fn live(ask: i32, answer: i32) -> i32 {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let (mut round, mut word) = (a.create_label(), a.create_label());
        a.mov(rdx, FACTOR)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut round)?;
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
        a.hlt()?;
        a.jmp(round)
    });
    let mut memory = vec![0u64; WORDS];
    let (mut x, mut sum) = (0u64, 0u64);
    let mut r = g.cpu.regs();
    r.rax = 0;
    g.cpu.set_regs(&r);
    let mut b = [0u8];
    while sys::read(ask, &mut b) == Ok(1) {
        for w in &mut memory {
            x = x.wrapping_mul(FACTOR).wrapping_add(1);
            *w ^= x;
            sum = sum.wrapping_add(*w);
        }
        let e = g.cpu.run();
        let r = g.cpu.regs();
        let same = (0..WORDS).all(|i| g.mem.rd::<u64>(DATA as usize + 8 * i) == memory[i]);
        let right = e == Exit::Hlt && (r.rax, r.rbx) == (x, sum) && same;
        if !right {
            harness::say(&format!("the neighbour: {e:x?}, memory right: {same}"));
        }
        if sys::write(answer, &[u8::from(right)]) != Ok(1) {
            return 1;
        }
    }
    0
}
