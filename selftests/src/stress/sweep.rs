// SPDX-License-Identifier: GPL-2.0
//! A guest that goes over its memory again and again: in sweep `s` each page must hold `s` in its first and in its last word, and
//! gets `s + 1`. A page that was lost, or came back as it once was, is found in the next sweep at the latest.

use crate::guest::*;
use crate::harness::{self, fails};
use crate::kvm::*;
use crate::sys::Map;
use iced_x86::code_asm::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where the memory lies for the guest.
pub const AT: u64 = 0x1000_0000;
/// Written at the end of a sweep, with its number.
const PORT_SWEPT: u32 = 0x20;
/// Written where a page does not hold what it should.
const PORT_LOST: u32 = 0x21;
/// The slot of the memory.
pub const SLOT: u32 = 1;

/// A guest with memory of its own to sweep.
pub struct Sweeper {
    /// VM, first vCPU, the small memory for code.
    pub g: Guest,
    /// Bytes swept.
    pub size: u64,
}

/// What a vCPU of a sweeper has done.
#[derive(Default)]
pub struct Progress {
    /// Sweeps that ended.
    pub sweeps: AtomicU64,
    /// KVM_RUN said EFAULT: the memory was not there at that moment.
    pub efaults: AtomicU64,
    /// It shall end after the sweep that it is in.
    stop: AtomicBool,
    done: AtomicBool,
}

/// Ends the vCPUs' threads, whatever becomes of the test.
struct Stop<'a>(&'a [Progress]);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        for p in self.0 {
            p.stop.store(true, Ordering::SeqCst);
        }
    }
}

fn code(a: &mut CodeAssembler, holes: bool) -> Result<(), IcedError> {
    // RSI: the first page; RDI: how many; RBP: bytes from one to the next; R12: the number of the sweep; R13: holes seen.
    let mut sweep = a.create_label();
    let mut page = a.create_label();
    let mut lost = a.create_label();
    a.set_label(&mut sweep)?;
    a.mov(rbx, rsi)?;
    a.mov(rcx, rdi)?;
    a.set_label(&mut page)?;
    for word in [qword_ptr(rbx), qword_ptr(rbx + 4088)] {
        let mut good = a.create_label();
        a.mov(rax, word)?;
        a.cmp(rax, r12)?;
        a.je(good)?;
        if holes {
            a.test(rax, rax)?;
        }
        a.jne(lost)?;
        a.inc(r13)?;
        a.set_label(&mut good)?;
    }
    a.lea(rax, qword_ptr(r12 + 1))?;
    a.mov(qword_ptr(rbx), rax)?;
    a.mov(qword_ptr(rbx + 4088), rax)?;
    a.add(rbx, rbp)?;
    a.dec(rcx)?;
    a.jne(page)?;
    a.inc(r12)?;
    a.mov(eax, r12d)?;
    a.out(PORT_SWEPT, eax)?;
    a.jmp(sweep)?;
    a.set_label(&mut lost)?;
    a.out(PORT_LOST, eax)?;
    a.jmp(lost)
}

impl Sweeper {
    /// Sweeps `size` bytes at `memory`, all zero; page `n` in the guest is page `n` there.
    pub fn new(memory: u64, size: u64) -> Self {
        let s = Self::without_memory(size);
        crate::eq!(s.g.vm.region(SLOT, 0, AT, size, memory), Ok(0));
        s
    }

    /// The same, but words may be 0 at any time: somebody makes holes. [`Sweeper::holes`] tells how many the guest saw.
    pub fn with_holes(memory: u64, size: u64) -> Self {
        let s = Self::new(memory, size);
        s.g.load(|a| code(a, true));
        s
    }

    /// The words that were 0 and could not have been without a hole.
    pub fn holes(&self) -> u64 {
        self.g.cpu.regs().r13
    }

    /// The same without the slot.
    pub fn without_memory(size: u64) -> Self {
        let g = Guest::new(Mode::Long);
        g.load(|a| code(a, false));
        let s = Self { g, size };
        s.aim(&s.g.cpu, 0, size / 4096, 4096);
        s
    }

    /// Lets `cpu` sweep `pages` pages from the one at offset `first`, with a distance of `stride` bytes.
    pub fn aim(&self, cpu: &Vcpu, first: u64, pages: u64, stride: u64) {
        let mut r = cpu.regs();
        (r.rsi, r.rdi, r.rbp, r.r12, r.rip) = (AT + first, pages, stride, 0, CODE);
        cpu.set_regs(&r);
    }

    /// Runs `cpu` to the end of its next sweep. False: something went wrong, and was reported.
    pub fn sweep(&self, cpu: &Vcpu, p: &Progress) -> bool {
        loop {
            match cpu.run() {
                Exit::Io {
                    out: true, port, ..
                } if u32::from(port) == PORT_SWEPT => {
                    p.sweeps.fetch_add(1, Ordering::SeqCst);
                    return true;
                }
                Exit::Err(libc::EFAULT, _) => {
                    p.efaults.fetch_add(1, Ordering::SeqCst);
                    // Memory that never comes back is for the test to report.
                    if p.stop.load(Ordering::SeqCst) {
                        return false;
                    }
                    std::thread::yield_now();
                }
                Exit::Err(libc::EINTR, _) => {}
                e => {
                    let r = cpu.regs();
                    harness::fail(&format!(
                        "sweep {}: {e:x?} at page {:x} of {:x}: {r:x?} {:x?}",
                        r.r12,
                        r.rbx.wrapping_sub(AT) >> 12,
                        self.size >> 12,
                        cpu.sregs()
                    ));
                    return false;
                }
            }
        }
    }

    /// The sweeps that a vCPU has behind it, by its registers: what each of its pages must hold when it stands between two.
    pub fn swept(&self, cpu: &Vcpu) -> u64 {
        cpu.regs().r12
    }

    /// Runs the vCPUs in threads of their own while `body` does its work; then checks that each of them got on.
    pub fn while_sweeping(&self, cpus: &[&Vcpu], body: impl FnOnce(&[Progress])) -> Vec<u64> {
        let all: Vec<Progress> = cpus.iter().map(|_| Progress::default()).collect();
        std::thread::scope(|s| {
            for (cpu, p) in cpus.iter().zip(&all) {
                will_spin(cpu);
                s.spawn(move || {
                    // Always to the end of a sweep, so that memory can be judged afterwards.
                    while self.sweep(cpu, p) && !p.stop.load(Ordering::SeqCst) {}
                    p.done.store(true, Ordering::SeqCst);
                });
            }
            let _stop = Stop(&all);
            for p in &all {
                p.wait("the first sweep", 1);
            }
            body(&all);
            // What was done last has to be survived too.
            for p in &all {
                p.advance(2);
            }
        });
        cpus.iter().map(|c| self.swept(c)).collect()
    }
}

impl Progress {
    fn wait(&self, what: &str, sweeps: u64) {
        let began = Instant::now();
        while self.sweeps.load(Ordering::SeqCst) < sweeps && !self.done.load(Ordering::SeqCst) {
            assert!(
                began.elapsed() < Duration::from_secs(600),
                "waited for {what} in vain: {} sweeps, EFAULT {} times",
                self.sweeps.load(Ordering::SeqCst),
                self.efaults.load(Ordering::SeqCst)
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until `n` more sweeps have ended.
    pub fn advance(&self, n: u64) {
        self.wait("the next sweeps", self.sweeps.load(Ordering::SeqCst) + n);
    }

    /// Has it ended, which it does early only for an error?
    pub fn over(&self) -> bool {
        self.done.load(Ordering::SeqCst) || fails() > 0
    }
}

/// Checks that each page from `first` to before `last` with the distance `stride` holds `want` at both ends.
pub fn check_pages(m: &Map, first: u64, last: u64, stride: u64, want: u64) {
    let wrong: Vec<(u64, u64, u64)> = (first..last)
        .step_by(stride as usize)
        .map(|o| (o, m.rd(o as usize), m.rd(o as usize + 4088)))
        .filter(|(_, a, b)| (*a, *b) != (want, want))
        .collect();
    crate::check!(
        wrong.is_empty(),
        "{} pages do not hold {want}; (offset, first word, last word): {:x?}",
        wrong.len(),
        &wrong[..wrong.len().min(8)]
    );
}
