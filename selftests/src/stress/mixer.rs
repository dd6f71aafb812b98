// SPDX-License-Identifier: GPL-2.0
//! A guest that changes every register there is, makes exits of the chosen kind, and looks whether its own are as it left them.
//!
//! One round: take new values from memory into MSRs, debug registers, the FPU and the general registers; do the work;
//! compare all of them with what was loaded. Then `out PORT_DONE`, or `out PORT_BAD` with the number of what differs in EAX.

use crate::guest::*;
use crate::kvm::*;
use crate::registers::{self, Random};
use crate::sys::on_amd;
use iced_x86::code_asm::*;

/// The general registers to be loaded, and as they were found.
const GPRS: u64 = DATA;
const FOUND: u64 = DATA + 0x80;
/// Debug registers 0 to 3 and 7.
const DRS: u64 = DATA + 0x200;
/// Values of the MSRs.
const MSRS: u64 = DATA + 0x300;
/// How often the work is done in a round.
const TURNS: u64 = DATA + 0x400;
/// The XSAVE areas.
const LOAD: u64 = 0x4_0000;
const STORE: u64 = 0x4_4000;

/// Written at the end of a good round.
pub const PORT_DONE: u32 = 0x10;
/// Written with the number of what differs.
pub const PORT_BAD: u32 = 0x11;

/// What a round does between loading and comparing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// CPUID: exits that the kernel deals with.
    Cpuid,
    /// Nothing but time: exits by interrupts only.
    Spin,
}

/// The guest.
pub struct Mixer {
    /// VM, vCPU, memory.
    pub g: Guest,
    msrs: Vec<u32>,
    mask: u64,
    rng: Random,
}

/// Every register that holds a value over the work; the last is compared with the others' help.
const REGS: [(AsmRegister64, usize); 15] = [
    (rax, 0),
    (rcx, 1),
    (rdx, 2),
    (rbx, 3),
    (rbp, 5),
    (rsi, 6),
    (rdi, 7),
    (r8, 8),
    (r9, 9),
    (r10, 10),
    (r11, 11),
    (r12, 12),
    (r13, 13),
    (r14, 14),
    (r15, 15),
];

impl Mixer {
    /// A guest whose state is `seed`'s. With `small_xcr0` it turns off what of XCR0 can be.
    pub fn new(work: Work, small_xcr0: bool, seed: u64) -> Self {
        if !registers::has_xsave() {
            crate::harness::skip("this CPU has no XSAVE");
        }
        let g = Guest::new(Mode::Long);
        let has = |leaf: u32, reg: usize, bit: u32| {
            let c = g.kvm.cpuid();
            let n = c.nent as usize;
            let e = c.entries[..n]
                .iter()
                .find(|e| e.function == leaf && e.index == 0);
            e.is_some_and(|e| [e.eax, e.ebx, e.ecx, e.edx][reg] >> bit & 1 == 1)
        };
        let mut msrs = vec![
            0xc000_0081,
            0xc000_0082,
            0xc000_0083,
            0xc000_0084,
            0xc000_0100,
            0xc000_0101,
            0xc000_0102,
            0x174,
            0x175,
            0x176,
            0x277,
        ];
        if has(0x8000_0001, 3, 27) {
            msrs.push(0xc000_0103);
        }
        let supported = g
            .kvm
            .cpuid()
            .entries
            .iter()
            .find(|e| e.function == 0xd && e.index == 0)
            .map_or(3, |e| u64::from(e.edx) << 32 | u64::from(e.eax));
        let mask = if small_xcr0 { 3 } else { supported };
        let pke = mask >> 9 & 1 == 1 && has(7, 2, 3);
        let mixer = Self {
            g,
            msrs,
            mask: if pke { mask } else { mask & !(1 << 9) },
            rng: Random::new(seed),
        };
        mixer.program(work, pke);
        mixer
    }

    fn program(&self, work: Work, pke: bool) {
        self.g.load(|a| {
            let mut top = a.create_label();
            a.mov(rax, cr4)?;
            a.or(rax, 0x4_0600 | if pke { 1 << 22 } else { 0 })?;
            a.mov(cr4, rax)?;
            a.xor(ecx, ecx)?;
            a.mov(eax, self.mask as u32)?;
            a.mov(edx, (self.mask >> 32) as u32)?;
            a.xsetbv()?;
            a.set_label(&mut top)?;
            self.take(a)?;
            do_work(a, work)?;
            self.compare(a, work)?;
            a.out(PORT_DONE, al)?;
            a.jmp(top)
        });
    }

    /// New values from memory into everything.
    fn take(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        for (i, &msr) in self.msrs.iter().enumerate() {
            let at = MSRS + 8 * i as u64;
            a.mov(ecx, msr)?;
            a.mov(eax, dword_ptr(at))?;
            a.mov(edx, dword_ptr(at + 4))?;
            a.wrmsr()?;
        }
        for (i, dr) in [dr0, dr1, dr2, dr3, dr7].into_iter().enumerate() {
            a.mov(rax, qword_ptr(DRS + 8 * i as u64))?;
            a.mov(dr, rax)?;
        }
        a.mov(eax, self.mask as u32)?;
        a.mov(edx, (self.mask >> 32) as u32)?;
        a.xrstor(ptr(LOAD))?;
        for (r, n) in REGS {
            a.mov(r, qword_ptr(GPRS + 8 * n as u64))?;
        }
        Ok(())
    }

    /// Compares everything with what `take` took.
    fn compare(&self, a: &mut CodeAssembler, work: Work) -> Result<(), IcedError> {
        for (r, n) in REGS {
            a.mov(qword_ptr(FOUND + 8 * n as u64), r)?;
        }
        a.mov(eax, self.mask as u32)?;
        a.mov(edx, (self.mask >> 32) as u32)?;
        a.xsave(ptr(STORE))?;
        for (_, n) in REGS {
            // CPUID leaves its answer in these.
            if work == Work::Cpuid && n < 4 {
                continue;
            }
            a.mov(rax, qword_ptr(FOUND + 8 * n as u64))?;
            a.cmp(rax, qword_ptr(GPRS + 8 * n as u64))?;
            bad_unless_equal(a, n as u32)?;
        }
        for (i, (offset, len)) in registers::xsave_parts(self.mask).into_iter().enumerate() {
            a.cld()?;
            a.mov(rsi, LOAD + offset as u64)?;
            a.mov(rdi, STORE + offset as u64)?;
            a.mov(ecx, len as u32)?;
            a.cmp(ecx, ecx)?;
            a.repe().cmpsb()?;
            bad_unless_equal(a, 0x100 + i as u32)?;
        }
        for (i, &msr) in self.msrs.iter().enumerate() {
            let at = MSRS + 8 * i as u64;
            a.mov(ecx, msr)?;
            a.rdmsr()?;
            a.cmp(eax, dword_ptr(at))?;
            bad_unless_equal(a, 0x200 + i as u32)?;
            a.cmp(edx, dword_ptr(at + 4))?;
            bad_unless_equal(a, 0x300 + i as u32)?;
        }
        for (i, dr) in [dr0, dr1, dr2, dr3, dr7].into_iter().enumerate() {
            a.mov(rax, dr)?;
            a.cmp(rax, qword_ptr(DRS + 8 * i as u64))?;
            bad_unless_equal(a, 0x400 + i as u32)?;
        }
        Ok(())
    }

    /// Gives the guest new values, and `turns` of work, for its next round.
    pub fn refill(&mut self, turns: u64) {
        let (m, rng) = (&self.g.mem, &mut self.rng);
        let canonical = |v: u64| ((v << 16) as i64 >> 16) as u64;
        for i in 0..16 {
            m.wr((GPRS + 8 * i) as usize, rng.word());
        }
        for i in 0..4 {
            // Never reached: nothing is mapped there. Some have the host's form of addresses.
            m.wr((DRS + 8 * i) as usize, canonical(rng.word() | 1 << 40));
        }
        // Enable bits, kinds and lengths at random, without general detect; I/O breakpoints need CR4.DE.
        let kinds = (0..4).fold(0, |v, i| v | (rng.word() & 2 | 1) << (16 + 4 * i));
        m.wr((DRS + 32) as usize, 0x400 | rng.word() & 0x3ff | kinds);
        for (i, &msr) in self.msrs.iter().enumerate() {
            let v = match msr {
                0x174 => rng.word() & 0xfffc,
                // Memory types: any but the reserved ones.
                0x277 => (0..8).fold(0, |v, _| {
                    v << 8 | [0u64, 1, 4, 5, 6, 7][rng.below(6) as usize]
                }),
                0xc000_0081 => rng.word(),
                // AMD's have 32 bits.
                0x175 | 0x176 if on_amd() => rng.word() & 0xffff_ffff,
                0xc000_0084 | 0xc000_0103 => rng.word() & 0xffff_ffff,
                _ => canonical(rng.word()),
            };
            m.wr((MSRS + 8 * i as u64) as usize, v);
        }
        registers::random_xsave(m, LOAD as usize, self.mask, rng);
        m.fill(STORE as usize, 4096, 0);
        m.wr(TURNS as usize, turns.max(1));
    }

    /// What differs, in words: `n` is what the guest reported.
    pub fn difference(&self, n: u32) -> String {
        let m = &self.g.mem;
        let (i, at) = ((n & 0xff) as usize, (n & 0xff) as u64 * 8);
        match n >> 8 {
            0 => format!(
                "general register {i}: {:x}, expected {:x}",
                m.rd::<u64>((FOUND + at) as usize),
                m.rd::<u64>((GPRS + at) as usize)
            ),
            1 => {
                let (offset, len) = registers::xsave_parts(self.mask)[i];
                let n = len.min(64);
                format!(
                    "XSAVE area at {offset}: {:02x?}, expected {:02x?}",
                    m.read(STORE as usize + offset, n),
                    m.read(LOAD as usize + offset, n)
                )
            }
            2 | 3 => format!(
                "MSR {:x}, expected {:x}, {:x?}",
                self.msrs[i],
                m.rd::<u64>((MSRS + at) as usize),
                self.g.cpu.msr(self.msrs[i])
            ),
            _ => format!(
                "debug register {i}, expected {:x}, has {:x}",
                m.rd::<u64>((DRS + at) as usize),
                self.g.cpu.regs().rax
            ),
        }
    }

    /// Judges an exit: did a round end well?
    pub fn judge(&self, e: &Exit) -> Result<(), String> {
        match e {
            Exit::Io { port: 0x10, .. } => Ok(()),
            Exit::Io {
                port: 0x11, data, ..
            } => {
                let n = data.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
                Err(format!("the guest finds changed: {}", self.difference(n)))
            }
            e => Err(format!("{e:x?}{}", self.g.describe())),
        }
    }
}

fn do_work(a: &mut CodeAssembler, work: Work) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    if work == Work::Cpuid {
        a.xor(eax, eax)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
    }
    a.dec(qword_ptr(TURNS))?;
    a.jne(again)
}

/// Ends the round with the report `n` if the comparison that came before found a difference.
fn bad_unless_equal(a: &mut CodeAssembler, n: u32) -> Result<(), IcedError> {
    let mut good = a.create_label();
    a.je(good)?;
    a.mov(eax, n)?;
    a.out(PORT_BAD, eax)?;
    a.set_label(&mut good)?;
    a.nop()
}
