// SPDX-License-Identifier: GPL-2.0
//! Fuzzes the instruction decoder and emulator: libFuzzer makes inputs that reach new code.
//!
//! An input is a CPU mode, registers, segments, instruction bytes and the answers to what the instruction asks for,
//! even wrong ones. Checked: no panic and no overflow; the decoder agrees with iced-x86 about what is an instruction and how
//! long it is; a job comes to an end and keeps the promises of `Need`.
#![no_main]

mod input;

use iced_x86::{Decoder, DecoderOptions};
use input::{Input, Work};
use libfuzzer_sys::fuzz_target;
use lodge_model::model::emu::decode::{decode, DecodeError};
use lodge_model::model::emu::insn::Kind;
use lodge_model::model::emu::job::{Answer, Job, Need};
use lodge_model::model::regs::{CpuMode, Regs};

/// No instruction asks for more: 256 iterations of a string instruction, or a task switch, have fewer needs.
const MAX_STEPS: u32 = 20_000;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let bytes = input.instruction();
    let ctx = input.context();
    let regs = input.registers();
    decoders_agree(&bytes, ctx.mode());
    let mut job = Job::idle();
    match input.work() {
        Work::Insn => match decode(&bytes, ctx.mode()) {
            Ok(insn) => job.begin(&insn, &regs, &ctx),
            Err(_) => return,
        },
        Work::TaskSwitch(switch, error) => job.begin_task_switch(switch, error, &regs, &ctx),
        Work::Event(event) => job.begin_delivery(&event, &regs, &ctx),
    }
    job_ends(job, &regs, &mut input);
});

/// What is an instruction to iced is one to us, of the same length, and no shorter slice is.
fn decoders_agree(bytes: &[u8], mode: CpuMode) {
    let ours = decode(bytes, mode);
    let bits = match mode {
        CpuMode::Bits16 => 16,
        CpuMode::Bits32 => 32,
        CpuMode::Bits64 => 64,
    };
    let theirs = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE).decode();
    if theirs.is_invalid() {
        return;
    }
    let len = ours.map(|insn| usize::from(insn.len));
    assert_eq!(len, Ok(theirs.len()), "{mode:?} {:?}", theirs.code());
    let shorter = &bytes[..theirs.len() - 1];
    assert_eq!(decode(shorter, mode).err(), Some(DecodeError::Truncated));
}

/// Steps the job with the answers of the input to its end.
fn job_ends(mut job: Job, before: &Regs, input: &mut Input<'_>) {
    let mut answer = Answer::Start;
    for _ in 0..MAX_STEPS {
        let need = job.step(answer);
        match need {
            Need::Done(_) | Need::TaskSwitch(_) => return assert!(!job.is_open()),
            Need::Fault(_) | Need::Unhandled => return nothing_changed(&job, before),
            _ => keeps_promises(&need),
        }
        answer = input.answer(&need);
    }
    panic!("it does not end: {job:?}");
}

/// An instruction that faults has not happened, but for the iterations of a string instruction. (What faults at the end of
/// a task switch does so in the new task.)
fn nothing_changed(job: &Job, before: &Regs) {
    assert!(!job.is_open());
    if job.insn().kind() == Kind::TaskSwitch {
        return;
    }
    assert_eq!(job.regs().rip, before.rip, "{job:?}");
    if !job.has_progress() {
        assert_eq!(job.regs().gpr, before.gpr, "{job:?}");
    }
}

/// Sizes are those that exist, and no access crosses a page.
fn keeps_promises(need: &Need) {
    let in_page = |at: u64, len: u16| len >= 1 && at % 4096 + u64::from(len) <= 4096;
    match *need {
        Need::Read { at, len, .. } | Need::Write { at, len, .. } => {
            assert!(len <= 8 && in_page(at, len.into()), "{need:?}");
        }
        Need::CmpXchg { at, len, .. } => {
            assert!(matches!(len, 1 | 2 | 4 | 8 | 16), "{need:?}");
            assert!(in_page(at, len.into()), "{need:?}");
        }
        Need::Check { at, len, .. } => assert!(in_page(at, len), "{need:?}"),
        Need::PioToMem { at, len, offset } | Need::MemToPio { at, len, offset } => {
            assert!(in_page(at, len) && offset + len <= 4096, "{need:?}");
        }
        Need::In { size, count, .. } | Need::Out { size, count, .. } => {
            assert!(matches!(size, 1 | 2 | 4), "{need:?}");
            assert!((1..=4096).contains(&(count * u16::from(size))), "{need:?}");
        }
        Need::ReadVec { reg } | Need::WriteVec { reg, .. } => assert!(reg < 16, "{need:?}"),
        _ => {}
    }
}
