// SPDX-License-Identifier: GPL-2.0
//! The bytes of a fuzzer's input as what the emulator is given. Behind their end, everything is zero.

use libfuzzer_sys::arbitrary::{Arbitrary, Unstructured};
use lodge_model::model::emu::job::{Answer, Delivery, Need, TaskReason, TaskSwitch};
use lodge_model::model::event::Exception;
use lodge_model::model::regs::{cr0, cr4, efer, has, rflags, Attr, Context, Regs, Seg, Segment};

/// What the emulator is to do.
pub enum Work {
    /// Execute the instruction.
    Insn,
    /// Switch tasks, and push an error code.
    TaskSwitch(TaskSwitch, Option<u16>),
    /// Deliver an event.
    Event(Delivery),
}

/// The input, taken from the front.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    /// All of it.
    pub fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    fn take<T: Arbitrary<'a>>(&mut self) -> T {
        let value = self.0.arbitrary();
        value.expect("numbers need no bytes: zeros follow the end")
    }

    /// Longer than any instruction.
    pub fn instruction(&mut self) -> [u8; 18] {
        self.take()
    }

    /// A CPU in some mode: in two of three cases, with the segments that this mode usually has.
    pub fn context(&mut self) -> Context {
        let shape: u8 = self.take();
        let (long, big) = (shape & 3 == 0, shape & 3 == 1);
        let mut ctx = Context {
            cr0: cr0::PE | cr0::PG,
            cr4: cr4::OSFXSR | cr4::OSXSAVE,
            efer: if long { efer::LMA } else { 0 },
            cpu: u16::MAX & !has::AMD,
            cpl: shape >> 2 & 3,
            ..Context::default()
        };
        for segment in &mut ctx.segs.0 {
            *segment = Segment {
                base: 0,
                limit: if long || big { u32::MAX } else { 0xffff },
                selector: 8 | u16::from(ctx.cpl),
                attr: Attr::new(3, true, ctx.cpl, true, false, false, big, true),
            };
        }
        ctx.segs.get_mut(Seg::Cs).attr = Attr::new(11, true, ctx.cpl, true, false, long, big, true);
        if shape & 0x10 != 0 {
            ctx.cpu = self.take();
        }
        if shape & 0x20 != 0 {
            (ctx.cr0, ctx.cr4, ctx.efer) = (self.take(), self.take(), self.take());
        }
        if shape & 0x40 != 0 {
            for n in 0..ctx.segs.0.len() {
                ctx.segs.0[n] = self.segment();
            }
        }
        ctx
    }

    fn segment(&mut self) -> Segment {
        Segment {
            base: self.take(),
            limit: self.take(),
            selector: self.take(),
            attr: Attr::from_vmx(self.take()),
        }
    }

    /// General registers, near a page's end where the input is short.
    pub fn registers(&mut self) -> Regs {
        let mut regs = Regs {
            rip: 0x1000,
            rflags: rflags::FIXED | self.take::<u64>() & 0x3f_7fd5,
            ..Regs::default()
        };
        let how: u8 = self.take();
        for n in 0..16 {
            let value = match how & 3 {
                0 => 0x2ffc,
                1 => u64::from(self.take::<u8>()),
                2 => u64::from(self.take::<u32>()),
                _ => self.take(),
            };
            regs.set(n, value);
        }
        if how & 4 != 0 {
            regs.rip = self.take();
        }
        regs
    }

    /// One in 16 inputs is a task switch, with an error code to push or without, or an event.
    pub fn work(&mut self) -> Work {
        let kind: u8 = self.take();
        let with = kind & 0x80 != 0;
        match kind & 0x1f {
            0x1f => {
                let reason = [
                    TaskReason::Call,
                    TaskReason::Iret,
                    TaskReason::Jmp,
                    TaskReason::Gate,
                ];
                let switch = TaskSwitch {
                    selector: self.take(),
                    reason: reason[usize::from(kind >> 5 & 3)],
                    insn_len: kind & 3,
                };
                Work::TaskSwitch(switch, with.then(|| self.take()))
            }
            0x1e => Work::Event(Delivery {
                vector: self.take(),
                error: with.then(|| self.take()),
                insn_len: self.take(),
                int_n: kind & 0x40 != 0,
            }),
            _ => Work::Insn,
        }
    }

    /// An answer of the kind that is asked for, a fault, or now and then one of another kind. Behind the end: a fault.
    pub fn answer(&mut self, need: &Need) -> Answer {
        match self.take::<u8>() {
            0..=15 => Answer::Fault(Exception::protection(self.take())),
            16 => Answer::Start,
            17 => Answer::Ack,
            18 => Answer::Value(self.take()),
            19 => Answer::Exchanged(self.take()),
            20 => Answer::Vector(self.take()),
            choice => self.fitting(need, choice),
        }
    }

    fn fitting(&mut self, need: &Need, choice: u8) -> Answer {
        match need {
            Need::Check { .. } => Answer::Ram(choice & 1 == 0),
            Need::CmpXchg { .. } => Answer::Exchanged(choice & 7 != 0),
            Need::ReadVec { .. } | Need::Cpuid { .. } => Answer::Vector(self.take()),
            Need::ReadTable { .. } => Answer::Segment(self.segment()),
            Need::Read { .. }
            | Need::In { .. }
            | Need::ReadCr { .. }
            | Need::ReadDr { .. }
            | Need::Rdmsr { .. }
            | Need::ReadMsr { .. }
            | Need::ReadPmc { .. }
            | Need::ReadXcr { .. }
            | Need::ReadFpu => Answer::Value(self.take()),
            _ => Answer::Ack,
        }
    }
}
