// SPDX-License-Identifier: GPL-2.0
//! The emulation of one instruction as a value: it asks for what it needs and is continued with the answer.
//!
//! A [`Job`] borrows nothing, so it can wait in the virtual CPU while user space answers an MMIO or port access.
//! How it is resumable: the instruction is written down as straight code over [`super::cx::Cx`], and every answer
//! goes into a log (`log.rs`). A step runs the code from its start; requests that the log answers return at once, the first
//! one that it does not answer ends the step. Registers are committed only when the code reaches its end, or, for a
//! repeated string instruction, the end of an iteration, where the log starts anew.
#![forbid(unsafe_code)]

use super::cx::{Cx, End};
use super::decode::{blank, decode, DecodeError};
use super::insn::{Insn, Kind};
use super::last::Last;
use super::log::{Log, Words};
pub use super::need::{
    AccessAs, Answer, Delivery, Done, Need, Shadow, Table, TaskReason, TaskSwitch,
};
use super::run;
use super::stop::Why;
pub(super) use super::stop::{Run, Stop};
use super::task::Order;
use crate::model::regs::{rflags, Context, CpuMode, Regs};

/// How the instruction's code ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// RIP moves on.
    Next,
    /// One iteration of a string instruction is done, more are to come.
    Again,
    /// The registers are committed, and the code goes on with the next phase.
    Phase,
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
    /// How much of the answer is recorded.
    asked: Words,
    access_as: AccessAs,
    phase: u8,
    iterations: u16,
    lost: u8,
    /// What is left to do after the access that is asked for.
    last: Last,
    ended: bool,
}

const _: () = assert!(core::mem::size_of::<Job>() < 512);

impl Job {
    /// Decodes the instruction at the start of `bytes` in the mode that `regs` and `ctx` say.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn new(bytes: &[u8], regs: &Regs, ctx: &Context) -> Result<Self, DecodeError> {
        let insn = decode(bytes, ctx.mode())?;
        Ok(Self::from_insn(&insn, regs, ctx))
    }

    /// With an instruction that is already decoded.
    pub fn from_insn(insn: &Insn, regs: &Regs, ctx: &Context) -> Self {
        let mut job = Self::idle();
        job.begin(insn, regs, ctx);
        job
    }

    /// A task switch, which pushes `error` on the new task's stack. RIP is what the old task goes on with.
    pub fn task_switch(switch: TaskSwitch, error: Option<u16>, regs: &Regs, ctx: &Context) -> Self {
        let mut job = Self::idle();
        job.begin_task_switch(switch, error, regs, ctx);
        job
    }

    /// None: one that is at its end.
    pub fn idle() -> Self {
        Self {
            insn: blank(CpuMode::Bits64),
            regs: Regs::default(),
            ctx: Context::default(),
            log: Log::default(),
            asked: Words::default(),
            access_as: AccessAs::Current,
            phase: 0,
            iterations: 0,
            lost: 0,
            last: Last::More,
            ended: true,
        }
    }

    /// Becomes the emulation of another instruction, in place, as a job is large.
    pub fn begin(&mut self, insn: &Insn, regs: &Regs, ctx: &Context) {
        self.insn = *insn;
        self.regs = *regs;
        self.ctx = *ctx;
        self.log.clear();
        self.asked = Words::default();
        self.access_as = AccessAs::Current;
        self.phase = 0;
        self.iterations = 0;
        self.lost = 0;
        self.last = Last::More;
        self.ended = false;
    }

    /// Becomes a task switch, as [`Self::task_switch`] says.
    pub fn begin_task_switch(
        &mut self,
        switch: TaskSwitch,
        error: Option<u16>,
        regs: &Regs,
        ctx: &Context,
    ) {
        let order = Order {
            selector: switch.selector,
            reason: switch.reason,
            error,
            insn_len: switch.insn_len,
        };
        self.begin(&Insn::task(order, ctx.mode()), regs, ctx);
    }

    /// Becomes the delivery of an event, in whose place RIP stays.
    pub fn begin_delivery(&mut self, event: &Delivery, regs: &Regs, ctx: &Context) {
        self.begin(&Insn::event(event, ctx.mode()), regs, ctx);
    }

    /// It can be stepped on.
    pub const fn is_open(&self) -> bool {
        !self.ended
    }

    /// Iterations of a repeated instruction are behind it, which the registers tell of.
    pub const fn has_progress(&self) -> bool {
        self.iterations != 0
    }

    /// Gives it up.
    pub fn close(&mut self) {
        self.ended = true;
    }

    /// The instruction.
    pub const fn insn(&self) -> &Insn {
        &self.insn
    }

    /// The registers as far as they are committed; final when [`Need::Done`] or [`Need::Fault`] was returned.
    pub const fn regs(&self) -> &Regs {
        &self.regs
    }

    /// With whose rights the memory access that is asked for is made.
    pub const fn access_as(&self) -> AccessAs {
        self.access_as
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
        let before = self.regs.rflags;
        if self.last.take(&answer, &self.insn, &mut self.regs) {
            return self.finish(before, &End::default());
        }
        if matches!(answer, Answer::Exchanged(false)) {
            // Lost against another CPU: start over.
            self.log.clear();
            self.lost = self.lost.saturating_add(1);
            // A task switch that has begun cannot start over, but tries for longer.
            match self.insn.kind() {
                Kind::TaskSwitch if self.lost == u8::MAX => return self.end(Need::Unhandled),
                Kind::TaskSwitch => {}
                _ if self.lost >= MAX_LOST => return self.repeat(),
                _ => {}
            }
        } else if !matches!(answer, Answer::Start) && self.log.record(self.asked, answer).is_none()
        {
            return self.end(Need::Unhandled);
        }
        loop {
            let mut cx = Cx::new(&self.insn, &self.ctx, &self.log, self.regs);
            cx.phase = self.phase;
            match run::run(&mut cx) {
                Ok(Flow::Next) => {
                    let before = self.regs.rflags;
                    self.regs = cx.regs;
                    return self.finish(before, &cx.end());
                }
                Ok(Flow::Again) => {
                    self.regs = cx.regs;
                    self.log.clear();
                    self.iterations = self.iterations.saturating_add(1);
                    let single_step = self.regs.rflags & rflags::TF != 0;
                    // What user space sees (and may change) between two batches of port I/O are the guest's registers.
                    let port = matches!(self.insn.kind(), Kind::Ins | Kind::Outs);
                    if single_step || port || self.iterations >= MAX_ITERATIONS {
                        return self.repeat();
                    }
                }
                Ok(Flow::Phase) => {
                    self.regs = cx.regs;
                    self.next_phase(&cx.end());
                }
                Err(stop) => match (stop.why(), cx.need) {
                    (Why::Need, Some(need)) => {
                        let (access_as, carried) = (cx.access_as, cx.carried());
                        self.last = Last::of(&cx, &need);
                        self.asked = Words::of(&need);
                        self.access_as = access_as;
                        self.log.carry(carried);
                        return need;
                    }
                    (Why::Fault(exception), _) => return self.end(Need::Fault(exception)),
                    (Why::TaskSwitch(switch), _) => {
                        self.regs = cx.regs;
                        return self.end(Need::TaskSwitch(TaskSwitch {
                            insn_len: self.insn.len,
                            ..switch
                        }));
                    }
                    (Why::Unhandled | Why::Need, _) => return self.end(Need::Unhandled),
                },
            }
        }
    }

    fn next_phase(&mut self, end: &End) {
        self.phase = self.phase.wrapping_add(1);
        self.log.clear();
        if let Some(rip) = end.target {
            self.regs.rip = rip;
        }
        let Some(selectors) = end.selectors else {
            return;
        };
        for (segment, selector) in self.ctx.segs.0.iter_mut().zip(selectors) {
            segment.selector = selector;
        }
        let [_, cs, ..] = selectors;
        let vm86 = self.regs.rflags & rflags::VM != 0;
        self.ctx.cpl = if vm86 { 3 } else { cs as u8 & 3 };
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
            halt: false,
            iret: false,
            task_trap: false,
        }))
    }

    /// The registers are committed, but for RIP. `before` are the flags before that: POPF that sets TF is not itself trapped.
    /// Nor is a task switch, whose flags are the new task's by now: the CPU traps behind the first instruction of that. SYSCALL and SYSRET
    /// are trapped by the TF that they load: the kernel's stack is not there yet when it clears TF.
    fn finish(&mut self, before: u64, end: &End) -> Need {
        let order = self.insn.task_order();
        let tf = match self.insn.kind() {
            Kind::Syscall | Kind::Sysret => self.regs.rflags,
            _ => before,
        };
        let trap = tf & rflags::TF != 0 && !end.delivered && order.is_none();
        // IRET ends NMI blocking, also by a task switch.
        let iret = end.iret || order.is_some_and(|o| o.reason == TaskReason::Iret);
        self.regs.rip = end.target.unwrap_or(self.insn.next_rip(self.regs.rip));
        // A wide IRET has taken RF from the stack.
        if !end.iret || self.insn.op_size == 2 {
            self.regs.rflags &= !rflags::RF;
        }
        self.end(Need::Done(Done {
            shadow: end.shadow,
            repeat: false,
            trap,
            halt: self.insn.kind() == Kind::Hlt,
            iret,
            task_trap: end.task_trap,
        }))
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
