// SPDX-License-Identifier: GPL-2.0
//! The emulation of one instruction as a value: it asks for what it needs and is continued with the answer.
//!
//! A [`Job`] borrows nothing, so it can wait in the virtual CPU while user space answers an MMIO or port access.
//! How it is resumable: the instruction is written down as straight code over [`super::cx::Cx`], and every answer
//! goes into a log. A step runs the code from its start; requests that the log answers return at once, the first
//! one that it does not answer ends the step. Registers are committed only when the code reaches its end, or, for a
//! repeated string instruction, the end of an iteration, where the log starts anew.
#![forbid(unsafe_code)]

use super::cx::Cx;
use super::decode::{decode, DecodeError};
use super::insn::{Insn, Kind};
use super::run;
use crate::model::event::Exception;
use crate::model::regs::{rflags, Context, Regs};

/// What the instruction needs next. `at` is always a linear address and the bytes named never cross a 4 KiB page.
/// Accesses are made with the privilege level of [`Context::cpl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Translate only, so that an access in parts faults before its first part: [`Answer::Ram`].
    Check {
        /// Linear address.
        at: u64,
        /// Bytes, 1 to 4096.
        len: u16,
        /// For writing.
        write: bool,
    },
    /// Read: [`Answer::Value`].
    Read {
        /// Linear address.
        at: u64,
        /// Bytes, 1 to 8.
        len: u8,
        /// A write to the same place will follow: the page walk is one for writing.
        rmw: bool,
    },
    /// Write: [`Answer::Ack`].
    Write {
        /// Linear address.
        at: u64,
        /// Bytes, 1 to 8.
        len: u8,
        /// The bytes, little endian; those above `len` are zero.
        value: u64,
    },
    /// Write `new` if memory still holds `old`, atomically: [`Answer::Exchanged`]. Where memory is not ordinary
    /// memory, a plain write and `Exchanged(true)` do.
    CmpXchg {
        /// Linear address.
        at: u64,
        /// Bytes: 1, 2, 4, 8 or 16. Not necessarily aligned.
        len: u8,
        /// What is expected.
        old: u128,
        /// What replaces it.
        new: u128,
    },
    /// Port input. `count` 1: [`Answer::Value`]. More: the items go to the PIO data area, [`Answer::Ack`].
    In {
        /// Port number.
        port: u16,
        /// Bytes per item: 1, 2 or 4.
        size: u8,
        /// Items; `count * size` is at most 4096.
        count: u16,
    },
    /// Port output: [`Answer::Ack`]. `count` 1: `value`. More: the items are in the PIO data area.
    Out {
        /// Port number.
        port: u16,
        /// Bytes per item: 1, 2 or 4.
        size: u8,
        /// Items.
        count: u16,
        /// The item, if it is one.
        value: u32,
    },
    /// Copy from the PIO data area to ordinary memory: [`Answer::Ack`].
    PioToMem {
        /// Linear address.
        at: u64,
        /// Where in the data area.
        offset: u16,
        /// Bytes.
        len: u16,
    },
    /// Copy from ordinary memory to the PIO data area: [`Answer::Ack`].
    MemToPio {
        /// Linear address.
        at: u64,
        /// Where in the data area.
        offset: u16,
        /// Bytes.
        len: u16,
    },
    /// The TSS must allow these ports: [`Answer::Ack`], or #GP. Asked only where CPL and IOPL do not settle it.
    PortAllowed {
        /// First port.
        port: u16,
        /// Number of ports.
        size: u8,
    },
    /// Read a control register: [`Answer::Value`].
    ReadCr {
        /// 0, 2, 3, 4 or 8.
        cr: u8,
    },
    /// Write a control register: [`Answer::Ack`] or #GP.
    WriteCr {
        /// 0, 2, 3, 4 or 8.
        cr: u8,
        /// The value.
        value: u64,
    },
    /// Read a debug register: [`Answer::Value`], or #UD, #DB.
    ReadDr {
        /// 0 to 7.
        dr: u8,
    },
    /// Write a debug register: [`Answer::Ack`], or #UD, #GP, #DB.
    WriteDr {
        /// 0 to 7.
        dr: u8,
        /// The value.
        value: u64,
    },
    /// Read an MSR: [`Answer::Value`] or #GP.
    ReadMsr {
        /// Its number.
        index: u32,
    },
    /// Write an MSR: [`Answer::Ack`] or #GP.
    WriteMsr {
        /// Its number.
        index: u32,
        /// The value.
        value: u64,
    },
    /// Forget the translation of a linear address: [`Answer::Ack`].
    Invlpg {
        /// Linear address.
        at: u64,
    },
    /// Read a vector register: [`Answer::Vector`], low quadword first.
    ReadVec {
        /// Register number, 0 to 15.
        reg: u8,
    },
    /// Write a vector register: [`Answer::Ack`].
    WriteVec {
        /// Register number, 0 to 15.
        reg: u8,
        /// 256 bits, low quadword first.
        value: [u64; 4],
        /// VEX: bits above 127 are written too, those above 255 become zero. Otherwise only 127:0 change.
        vex: bool,
    },
    /// The instruction is done: take [`Job::regs`].
    Done(Done),
    /// The instruction faults; [`Job::regs`] holds what a repeated string instruction got done before.
    Fault(Exception),
    /// Nothing here knows how; no register has changed.
    Unhandled,
}

/// Events held back for one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shadow {
    /// None; an earlier shadow ends.
    #[default]
    None,
    /// After STI.
    Sti,
    /// After MOV or POP to SS.
    MovSs,
}

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Interrupts held back for the next instruction.
    pub shadow: Shadow,
    /// RIP still points at the instruction, to be executed again: an unfinished repeated string instruction, or a
    /// locked access that lost against another CPU too often. Look at pending events first.
    pub repeat: bool,
    /// RFLAGS.TF was set when the instruction began: a single-step #DB is due after it.
    pub trap: bool,
}

/// The answer to a [`Need`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Begins the job.
    Start,
    /// Done.
    Ack,
    /// To [`Need::Check`]: whether it is ordinary memory, as opposed to MMIO.
    Ram(bool),
    /// The value read; bits above the size are ignored.
    Value(u64),
    /// Whether the exchange took place.
    Exchanged(bool),
    /// A vector register's low 256 bits.
    Vector([u64; 4]),
    /// What was asked for faults instead (page fault, #GP of an MSR).
    Fault(Exception),
}

/// Answers of the current iteration, as words.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Log {
    words: [u64; LOG_WORDS],
    len: u8,
}

/// Enough for an unaligned 32-byte store across pages: the register, two checks, five writes.
const LOG_WORDS: usize = 12;

impl Log {
    /// `None` when full.
    fn push(&mut self, word: u64) -> Option<()> {
        *self.words.get_mut(usize::from(self.len))? = word;
        self.len = self.len.wrapping_add(1);
        Some(())
    }

    /// The `n`th word, if there is one yet.
    pub(super) fn get(&self, n: u8) -> Option<u64> {
        let word = self.words.get(usize::from(n)).copied();
        if n < self.len {
            word
        } else {
            None
        }
    }
}

/// Why the instruction's code stopped early.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// An answer is missing.
    Need(Need),
    /// It faults.
    Fault(Exception),
    /// A compare-exchange lost: start over.
    Lost,
    /// Not implemented.
    Unhandled,
}

/// What the instruction's code returns.
pub(super) type Run<T> = Result<T, Stop>;

/// How the instruction's code ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// RIP moves on.
    Next,
    /// One iteration of a string instruction is done, more are to come.
    Again,
}

/// Iterations of a string instruction before events are looked at.
const MAX_ITERATIONS: u16 = 256;
/// Lost exchanges before the guest is entered again.
const MAX_LOST: u8 = 16;

/// The emulation of one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    insn: Insn,
    regs: Regs,
    ctx: Context,
    log: Log,
    iterations: u16,
    lost: u8,
    ended: bool,
}

const _: () = assert!(core::mem::size_of::<Job>() < 512);

impl Job {
    /// Decodes the instruction at the start of `bytes` in the mode that `regs` and `ctx` say.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn new(bytes: &[u8], regs: &Regs, ctx: &Context) -> Result<Self, DecodeError> {
        let insn = decode(bytes, ctx.mode(regs.rflags))?;
        Ok(Self::from_insn(&insn, regs, ctx))
    }

    /// With an instruction that is already decoded.
    pub fn from_insn(insn: &Insn, regs: &Regs, ctx: &Context) -> Self {
        Self {
            insn: *insn,
            regs: *regs,
            ctx: *ctx,
            log: Log::default(),
            iterations: 0,
            lost: 0,
            ended: false,
        }
    }

    /// The instruction.
    #[cfg(test)]
    pub const fn insn(&self) -> &Insn {
        &self.insn
    }

    /// The registers as far as they are committed; final when [`Need::Done`] or [`Need::Fault`] was returned.
    pub const fn regs(&self) -> &Regs {
        &self.regs
    }

    /// User space changed the general registers while it was asked for an answer: the rest of the instruction (of a string
    /// instruction: of this iteration) uses the new ones.
    pub fn set_gprs(&mut self, gpr: &[u64; 16]) {
        self.regs.gpr = *gpr;
    }

    /// Goes on with the answer to the last need, as far as the next one. The first call takes [`Answer::Start`].
    /// After the end, [`Need::Unhandled`].
    pub fn step(&mut self, answer: Answer) -> Need {
        if self.ended {
            return Need::Unhandled;
        }
        if let Answer::Fault(exception) = answer {
            return self.end(Need::Fault(exception));
        }
        if self.record(answer).is_none() {
            return self.end(Need::Unhandled);
        }
        loop {
            let mut cx = Cx::new(&self.insn, &self.ctx, &self.log, self.regs);
            let flow = run::run(&mut cx);
            let end = (cx.regs, cx.shadow, cx.target);
            match flow {
                Ok(Flow::Next) => return self.finish(end),
                Ok(Flow::Again) => {
                    self.regs = end.0;
                    self.log = Log::default();
                    self.iterations = self.iterations.saturating_add(1);
                    let single_step = self.regs.rflags & rflags::TF != 0;
                    // What user space sees (and may change) between two batches of port I/O are the guest's registers.
                    let port = matches!(self.insn.kind(), Kind::Ins | Kind::Outs);
                    if single_step || port || self.iterations >= MAX_ITERATIONS {
                        return self.repeat();
                    }
                }
                Err(Stop::Lost) => {
                    self.log = Log::default();
                    self.lost = self.lost.saturating_add(1);
                    if self.lost >= MAX_LOST {
                        return self.repeat();
                    }
                }
                Err(Stop::Need(need)) => return need,
                Err(Stop::Fault(exception)) => return self.end(Need::Fault(exception)),
                Err(Stop::Unhandled) => return self.end(Need::Unhandled),
            }
        }
    }

    fn record(&mut self, answer: Answer) -> Option<()> {
        match answer {
            Answer::Start | Answer::Fault(_) => Some(()),
            Answer::Ack => self.log.push(0),
            Answer::Ram(yes) | Answer::Exchanged(yes) => self.log.push(u64::from(yes)),
            Answer::Value(value) => self.log.push(value),
            Answer::Vector(words) => words.into_iter().try_for_each(|word| self.log.push(word)),
        }
    }

    fn end(&mut self, need: Need) -> Need {
        self.ended = true;
        need
    }

    /// After the first iteration RF is set, so that an instruction breakpoint does not hit again; a single step is
    /// one iteration.
    fn repeat(&mut self) -> Need {
        let trap = self.iterations != 0 && self.regs.rflags & rflags::TF != 0;
        if self.iterations != 0 {
            self.regs.rflags |= rflags::RF;
        }
        self.end(Need::Done(Done {
            shadow: Shadow::None,
            repeat: true,
            trap,
        }))
    }

    fn finish(&mut self, (regs, shadow, target): (Regs, Shadow, Option<u64>)) -> Need {
        // As it was before: POPF that sets TF is not itself trapped.
        let trap = self.regs.rflags & rflags::TF != 0;
        self.regs = regs;
        self.regs.rip = target.unwrap_or(self.insn.next_rip(regs.rip));
        self.regs.rflags &= !rflags::RF;
        self.end(Need::Done(Done {
            shadow,
            repeat: false,
            trap,
        }))
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
