// SPDX-License-Identifier: GPL-2.0
//! Where a sensitive instruction is executed: 32- or 64-bit, at which privilege level, with which IOPL, in virtual-8086 mode, with UMIP,
//! by the CPU or by the emulator; and how it ended.

use super::prefix::{Forced, PREFIX};
use crate::guest::*;
use crate::kvm::{Exit, SET_SREGS};
use crate::sys::{on_bochs_svm, on_tcg};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use std::sync::atomic::{AtomicBool, Ordering};

/// The type of a 32- or 64-bit task state that is loaded: busy. QEMU's TCG keeps it as it was before LTR made it busy, and
/// gives up ("invalid tss type") when it changes to an inner stack with the right one.
pub fn tss_type() -> u8 {
    if on_tcg() {
        9
    } else {
        11
    }
}

/// Which instruction of a piece of code the emulator executes, made to by the forced-emulation prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// None: the CPU executes them all.
    No,
    /// The first.
    First,
    /// The last.
    Last,
}

static EMULATED: AtomicBool = AtomicBool::new(false);

/// As long as the guard lives, each place of [`Ring::wheres`] is there with the first and with the last instruction emulated. Skips the test
/// where there is no forced-emulation prefix.
pub fn emulated() -> Forced {
    let forced = Forced::on();
    EMULATED.store(true, Ordering::Relaxed);
    forced
}

impl Emulated {
    fn all() -> &'static [Self] {
        if EMULATED.load(Ordering::Relaxed) {
            &[Self::First, Self::Last]
        } else {
            &[Self::No]
        }
    }
}

/// The place of one execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Where {
    pub bits: u32,
    pub ring3: bool,
    pub iopl: u64,
    pub vm86: bool,
    pub umip: bool,
    pub emulated: Emulated,
}

impl Where {
    /// Privilege level; that of virtual-8086 mode is 3.
    pub fn cpl(&self) -> u64 {
        if self.outer() {
            3
        } else {
            0
        }
    }

    /// Not in ring 0.
    pub fn outer(&self) -> bool {
        self.ring3 || self.vm86
    }

    /// ModR/M for the memory at DATA, with `reg` in the middle: [BX], [EBX] or [RBX].
    pub fn mem(&self, reg: u8) -> u8 {
        (reg << 3) | if self.vm86 { 7 } else { 3 }
    }

    /// Bytes of an immediate word of the operand size.
    pub fn word(&self) -> usize {
        if self.vm86 {
            2
        } else {
            4
        }
    }

    /// Bytes in front of the instruction that is emulated: of such code as the tests have, PUSH, PUSHF and MOV to a segment register.
    fn before(&self, code: &[u8]) -> usize {
        if self.emulated != Emulated::Last {
            return 0;
        }
        let mut at = 0;
        loop {
            let len = match code.get(at..).unwrap_or_default() {
                [0x68, ..] => 1 + self.word(),
                [0x0e | 0x50 | 0x9c, ..] => 1,
                [0x6a | 0x8e, ..] | [0x0f, 0xa0, ..] => 2,
                _ => break,
            };
            if at + len >= code.len() {
                break;
            }
            at += len;
        }
        at
    }

    /// The selector in CS.
    pub fn cs(&self) -> u16 {
        match (self.vm86, self.ring3, self.bits) {
            (true, ..) => 0,
            (_, true, 64) => 0x53,
            (_, true, _) => 0x43,
            (_, _, 64) => CODE64_SEL,
            _ => CODE_SEL,
        }
    }

    /// The selector in SS.
    pub fn ss(&self) -> u16 {
        self.data()
    }

    /// The selector in the data segment registers.
    pub fn data(&self) -> u16 {
        match (self.vm86, self.ring3) {
            (true, _) => 0x2000,
            (_, true) => 0x4b,
            _ => DATA_SEL,
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All of it was executed.
    Done,
    /// Its first instruction raised this exception.
    Trap(u8, u32),
    /// The instruction at this offset did.
    TrapAt(u8, u32, u64),
    /// An exit to user space.
    Exit(Exit),
}

/// A guest in which code is executed at any privilege level.
pub struct Ring {
    pub g: Guest,
    umip: bool,
    end: std::cell::Cell<u64>,
    /// Bytes of code that lie lower than they should, to make room for the prefix.
    moved: std::cell::Cell<u64>,
}

impl Ring {
    /// One with 32-bit paging and one in long mode.
    pub fn all() -> Vec<Self> {
        [Mode::Paged, Mode::Long]
            .into_iter()
            .map(Self::new)
            .collect()
    }

    /// One in `mode`.
    pub fn new(mode: Mode) -> Self {
        let g = Guest::new(mode);
        let call_target = 0x9000u64;
        let code = u64::from(if mode == Mode::Long {
            CODE64_SEL
        } else {
            CODE_SEL
        });
        let gate = |dpl: u64| {
            (call_target & 0xffff)
                | (code << 16)
                | ((0x8c00 | dpl << 13) << 32)
                | (call_target >> 16 << 48)
        };
        let more = [
            0x00cf_fb00_0000_ffffu64, // 40: ring 3 code
            0x00cf_f300_0000_ffff,    // 48: ring 3 data
            0x00af_fb00_0000_ffff,    // 50: ring 3 code, 64-bit
            0x0000_8902_8000_0067, // 58: another TSS; its upper half in long mode is the next, which is an LDT elsewhere
            if mode == Mode::Long {
                0
            } else {
                0x0000_8202_9000_00ff
            },
            if mode == Mode::Long { 0 } else { gate(3) },
            0x0000_0000_0000_0000,
            0,
            if mode == Mode::Long {
                0x0000_8202_9000_00ff
            } else {
                gate(0)
            }, // 80
            0,
            gate(3), // 90: call gates, of 16 bytes in long mode
            0,
            gate(0), // a0
            0,
            0x00cf_9e00_0000_ffff, // b0: conforming code
            0x00af_9e00_0000_ffff, // b8: the same, 64-bit
        ];
        for (i, d) in more.iter().enumerate() {
            g.mem.wr(GDT as usize + 0x40 + 8 * i, *d);
        }
        g.mem.wr(TSS as usize + 4, STACK);
        if mode != Mode::Long {
            g.mem.wr(TSS as usize + 8, u32::from(DATA_SEL));
        }
        let mut s = g.cpu.sregs();
        s.cr4 |= 1 << 11;
        let umip = crate::record::muted(|| g.cpu.fd.give(SET_SREGS, &s)).is_ok();
        let r = Self {
            g,
            umip,
            end: 0.into(),
            moved: 0.into(),
        };
        r.open_ports(false);
        r
    }

    /// It is in long mode.
    pub fn bits64(&self) -> bool {
        self.g.mode == Mode::Long
    }

    /// The limit of its IDT.
    pub fn idt_limit(&self) -> u16 {
        if self.bits64() {
            0xfff
        } else {
            0x7ff
        }
    }

    /// Bytes that IN of the whole accumulator reads.
    pub fn io_size(&self, w: &Where) -> u8 {
        if w.vm86 {
            2
        } else {
            4
        }
    }

    /// The I/O permission map lets ring 3 reach ports 0 to 0x7f, or there is none.
    pub fn open_ports(&self, open: bool) {
        let at = TSS as usize;
        self.g
            .mem
            .wr(at + 0x66, if open { 0x68u16 } else { 0xffff });
        self.g.mem.fill(at + 0x68, 0x10, 0);
        self.g.mem.fill(at + 0x78, 8, 0xff);
    }

    /// Everywhere that this guest can be. An exit from virtual-8086 mode ends Bochs itself on its SVM ("VM is set in long mode").
    pub fn wheres(&self) -> Vec<Where> {
        let mut v = Vec::new();
        let no_vm86 = self.bits64() || on_bochs_svm();
        for (ring3, vm86) in [(false, false), (true, false), (false, true)] {
            for iopl in [0, 3] {
                for umip in [false, true] {
                    if vm86 && no_vm86 || umip && !self.umip {
                        continue;
                    }
                    let bits = if self.bits64() { 64 } else { 32 };
                    v.extend(Emulated::all().iter().map(|&emulated| Where {
                        bits,
                        ring3,
                        iopl,
                        vm86,
                        umip,
                        emulated,
                    }));
                }
            }
        }
        v
    }

    /// Executes `code` there, with registers as `change` leaves them.
    pub fn run(&self, w: &Where, code: &[u8], change: impl FnOnce(&mut kvm_regs)) -> Ended {
        self.run_with(w, code, change, |_| {})
    }

    /// The same, with other special registers.
    pub fn run_with(
        &self,
        w: &Where,
        code: &[u8],
        change: impl FnOnce(&mut kvm_regs),
        special: impl FnOnce(&mut kvm_sregs),
    ) -> Ended {
        let g = &self.g;
        let at = CODE as usize;
        g.mem.write(at, code);
        g.mem.write(at + code.len(), &[0x0f, 0x0b]);
        let entry = self.put_prefix(w, code);
        g.mem.fill(DATA as usize, 64, 0xa5);
        // Busy, as it is in the register; LTR has made the other one busy.
        g.mem.wr(GDT as usize + 0x58, 0x0000_8902_8000_0067u64);
        self.end.set(CODE + code.len() as u64);
        crate::record::muted(|| self.place(w, special));
        let mut r = kvm_regs {
            rip: entry,
            rsp: if w.vm86 { 0x1000 } else { DATA + 0x1000 },
            rbx: if w.vm86 { 0 } else { DATA },
            rflags: 0x202 | w.iopl << 12 | u64::from(w.vm86) << 17,
            ..Default::default()
        };
        change(&mut r);
        g.cpu.set_regs(&r);
        self.go_on()
    }

    /// Puts the prefix in front of the instruction that is to be emulated, which stays where it is: what is before it moves down.
    fn put_prefix(&self, w: &Where, code: &[u8]) -> u64 {
        self.moved.set(0);
        if w.emulated == Emulated::No {
            return CODE;
        }
        let before = w.before(code);
        let at = CODE as usize - PREFIX.len();
        self.g.mem.write(at, &code[..before]);
        self.g.mem.write(at + before, PREFIX);
        self.moved.set(before as u64);
        at as u64
    }

    /// Enters the guest and tells how the code ends.
    pub fn go_on(&self) -> Ended {
        match self.g.cpu.run() {
            Exit::Io {
                out: true, port, ..
            } if port == u16::from(PORT_TRAP) => {
                let t = self.g.trap();
                // What lies lower is told where it should be.
                let low = t.ip.wrapping_sub(CODE - PREFIX.len() as u64);
                let at = if low < self.moved.get() {
                    low
                } else {
                    t.ip.wrapping_sub(CODE)
                };
                match at {
                    _ if t.vector == 6 && t.ip == self.end.get() => Ended::Done,
                    0 => Ended::Trap(t.vector, t.error),
                    at => Ended::TrapAt(t.vector, t.error, at),
                }
            }
            e => Ended::Exit(e),
        }
    }

    fn place(&self, w: &Where, special: impl FnOnce(&mut kvm_sregs)) {
        let g = &self.g;
        g.enter_mode(&g.cpu);
        let mut s = g.cpu.sregs();
        s.gdt.limit = 0xbf;
        let ring = |s: kvm_segment, selector: u16| kvm_segment {
            selector,
            dpl: (selector & 3) as u8,
            ..s
        };
        let paragraph = |selector: u16| kvm_segment {
            base: u64::from(selector) << 4,
            limit: 0xffff,
            selector,
            type_: 3,
            dpl: 3,
            db: 0,
            g: 0,
            ..data_seg()
        };
        let (cs, data) = if w.vm86 {
            (paragraph(w.cs()), paragraph(w.data()))
        } else {
            (
                ring(code_seg(w.bits == 64), w.cs()),
                ring(data_seg(), w.data()),
            )
        };
        (s.cs, s.ss, s.ds, s.es, s.fs, s.gs) = (cs, data, data, data, data, data);
        // The task state with room for a permission map.
        s.tr.limit = 0x7f;
        s.tr.type_ = tss_type();
        s.ldt = kvm_segment {
            base: 0x2_9000,
            limit: 0xff,
            selector: 0x60,
            type_: 2,
            s: 0,
            db: 0,
            g: 0,
            ..data_seg()
        };
        if w.umip {
            s.cr4 |= 1 << 11;
        }
        special(&mut s);
        g.cpu.set_sregs(&s);
    }
}
