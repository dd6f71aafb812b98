// SPDX-License-Identifier: GPL-2.0
//! Jobs of random instructions, with random answers.
use super::super::*;
use super::machine::flat;
use crate::model::emu::decode::tests::{random_bytes, Rng};
use crate::model::emu::insn::{Kind, Map};
use crate::model::event::Exception;
use crate::model::regs::{Attr, CpuMode, Seg};
use iced_x86::{
    Code, Decoder, DecoderOptions, InstructionInfo, InstructionInfoFactory, OpAccess, Register,
    RflagsBits,
};
use std::vec::Vec;

fn random_answer(rng: &mut Rng) -> Answer {
    match rng.below(40) {
        0 => Answer::Fault(Exception::protection(0)),
        1 => Answer::Start,
        2..=4 => Answer::Exchanged(false),
        5..=8 => Answer::Vector([rng.next(), rng.next(), rng.next(), rng.next()]),
        9..=14 => Answer::Ram(rng.below(2) == 0),
        15..=20 => Answer::Ack,
        21..=24 => Answer::Exchanged(true),
        _ => Answer::Value(rng.next()),
    }
}

fn random_context(rng: &mut Rng) -> Context {
    let mut ctx = flat([CpuMode::Bits16, CpuMode::Bits32, CpuMode::Bits64][rng.below(3) as usize]);
    if rng.below(3) == 0 {
        for segment in &mut ctx.segs.0 {
            segment.base = rng.next();
            segment.limit = rng.next() as u32 >> rng.below(32);
            segment.attr = Attr::from_vmx(rng.next() as u32);
        }
        (ctx.cr0, ctx.cr4, ctx.efer) = (rng.next(), rng.next(), rng.next());
    }
    ctx.cpl = rng.byte() & 3;
    ctx.cpu = rng.next() as u16;
    ctx
}

/// Whatever the bytes, registers and answers, even answers of the wrong kind: no panic, an end after a bounded
/// number of steps, needs that keep their promises.
#[test]
fn random_jobs_end() {
    jobs_end(5, 600_000);
}

#[test]
#[ignore = "long"]
fn many_random_jobs_end() {
    jobs_end(55, 30_000_000);
}

fn jobs_end(seed: u64, count: u32) {
    let mut rng = Rng(seed);
    let (mut ran, mut done) = (0, 0);
    for _ in 0..count {
        let bytes = random_bytes(&mut rng);
        let mut regs = Regs {
            rip: rng.next(),
            rflags: rng.next(),
            ..Regs::default()
        };
        for n in 0..16 {
            let value = rng.next() >> rng.below(64);
            regs.set(n, value);
        }
        let ctx = random_context(&mut rng);
        let job = if rng.below(64) == 0 {
            let reason = [TaskReason::Call, TaskReason::Iret, TaskReason::Gate];
            let reason = reason[rng.below(3) as usize];
            let selector = rng.next() as u16;
            Ok(Job::task_switch(
                TaskSwitch {
                    selector,
                    reason,
                    insn_len: 2,
                },
                Some(5),
                &regs,
                &ctx,
            ))
        } else {
            Job::new(&bytes, &regs, &ctx)
        };
        let Ok(mut job) = job else {
            continue;
        };
        ran += 1;
        let mut answer = Answer::Start;
        for steps in 0.. {
            assert!(steps < 20_000, "{job:?}");
            let need = job.step(answer);
            match need {
                Need::Done(_) => done += 1,
                Need::Fault(_) | Need::TaskSwitch(_) => {}
                Need::Unhandled => assert_eq!(job.regs().rip, regs.rip),
                Need::Read { at, len, .. } | Need::Write { at, len, .. } => {
                    assert!((1..=8).contains(&len) && at % 4096 + u64::from(len) <= 4096);
                }
                Need::Check { at, len, .. }
                | Need::PioToMem { at, len, .. }
                | Need::MemToPio { at, len, .. } => {
                    assert!(len >= 1 && at % 4096 + u64::from(len) <= 4096);
                }
                Need::CmpXchg { at, len, .. } => assert!(at % 4096 + u64::from(len) <= 4096),
                Need::In { size, count, .. } | Need::Out { size, count, .. } => {
                    assert!(
                        matches!(size, 1 | 2 | 4)
                            && (1..=4096).contains(&(count * u16::from(size)))
                    );
                }
                _ => {}
            }
            if matches!(
                need,
                Need::Done(_) | Need::Fault(_) | Need::TaskSwitch(_) | Need::Unhandled
            ) {
                break;
            }
            answer = random_answer(&mut rng);
        }
    }
    assert!(ran > 200_000 && done > 20_000, "{ran} {done}");
}

/// What an instruction touches according to iced: our job must touch no other register, flag or memory.
#[test]
fn random_jobs_touch_what_iced_says() {
    for (mode, bits) in [
        (CpuMode::Bits16, 16),
        (CpuMode::Bits32, 32),
        (CpuMode::Bits64, 64),
    ] {
        let mut rng = Rng(u64::from(bits));
        let mut info = InstructionInfoFactory::new();
        let mut compared = 0;
        for _ in 0..200_000 {
            let bytes = random_bytes(&mut rng);
            let theirs = Decoder::with_ip(bits, &bytes, 0x1000, DecoderOptions::NONE).decode();
            let mut regs = Regs {
                rip: 0x1000,
                rflags: 2 | rng.next() & 0xcd5,
                ..Regs::default()
            };
            for n in 0..16 {
                let value = rng.next() >> rng.below(64);
                regs.set(n, value);
            }
            let mut ctx = flat(mode);
            ctx.segs.get_mut(Seg::Gs).base = 0x5000;
            let Ok(mut job) = Job::new(&bytes, &regs, &ctx) else {
                continue;
            };
            if theirs.is_invalid() || theirs.has_rep_prefix() || theirs.has_repne_prefix() {
                continue;
            }
            // F3 90 with REX.B is PAUSE to iced, and an exchange with R8 to CPUs.
            if theirs.code() == Code::Pause && job.insn().prefixes.rex & 1 != 0 {
                continue;
            }
            let touched = info.info(&theirs);
            if let Some(accesses) = run_to_done(&mut job, &mut rng) {
                compared += 1;
                let context =
                    || std::format!("{mode:?} {bytes:02x?} {:?} {accesses:x?}", theirs.code());
                same_registers(job.regs(), &regs, touched, &context);
                let flags = u64::from(theirs.rflags_modified());
                // POPF also changes bits that iced has no name for.
                let known = flag_bits(flags) | !flag_bits(u64::MAX);
                assert_eq!(
                    (job.regs().rflags ^ regs.rflags) & !known,
                    0,
                    "{}",
                    context()
                );
                // CLFLUSH has its address checked, but reads nothing.
                if job.insn().kind() == Kind::Clflush {
                    continue;
                }
                // iced does not say that a register bit offset moves the address.
                let bit_string = matches!(job.insn().opcode, 0xa3 | 0xab | 0xb3 | 0xbb)
                    && job.insn().map == Map::Esc0f;
                if bit_string {
                    continue;
                }
                same_accesses(&accesses, touched, &regs, bits, &context);
            }
        }
        assert!(compared > 20_000, "{compared}");
    }
}

/// iced's flag set as RFLAGS bits.
fn flag_bits(set: u64) -> u64 {
    let bits = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
        (RflagsBits::DF, rflags::DF),
        (RflagsBits::IF, rflags::IF),
        (RflagsBits::AC, rflags::AC),
    ];
    bits.iter()
        .filter(|(theirs, _)| set & u64::from(*theirs) != 0)
        .fold(0, |all, (_, ours)| all | ours)
}

/// Linear ranges read and written, when the job comes to its end.
fn run_to_done(job: &mut Job, rng: &mut Rng) -> Option<Vec<(u64, u64, bool)>> {
    let mut accesses = Vec::new();
    let mut answer = Answer::Start;
    let mut last = 0;
    loop {
        let need = job.step(answer);
        answer = match need {
            Need::Done(_) => return Some(accesses),
            Need::Fault(_) | Need::TaskSwitch(_) | Need::Unhandled => return None,
            Need::Read { at, len, .. } => {
                accesses.push((at, u64::from(len), false));
                last = rng.next();
                Answer::Value(last)
            }
            Need::Write { at, len, .. } | Need::CmpXchg { at, len, .. } => {
                accesses.push((at, u64::from(len), true));
                Answer::Exchanged(true)
            }
            Need::ReadVec { .. } => Answer::Vector([last; 4]),
            _ => Answer::Value(rng.next()),
        };
    }
}

fn same_registers(
    now: &Regs,
    before: &Regs,
    info: &InstructionInfo,
    context: &dyn Fn() -> std::string::String,
) {
    let written = |n: u8| {
        info.used_registers().iter().any(|used| {
            let write = !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None
            );
            write
                && used.register().is_gpr()
                && used.register().full_register() == Register::RAX + u32::from(n)
        })
    };
    for n in 0..16 {
        assert!(
            now.get(n) == before.get(n) || written(n),
            "register {n}: {}",
            context()
        );
    }
}

/// Every access lies in a range that iced names, with the right direction; every range that iced says is always
/// accessed is.
fn same_accesses(
    ours: &[(u64, u64, bool)],
    info: &InstructionInfo,
    regs: &Regs,
    bits: u32,
    context: &dyn Fn() -> std::string::String,
) {
    let theirs: Vec<(u64, u64, OpAccess)> = info
        .used_memory()
        .iter()
        .map(|used| {
            let at = used.virtual_address(0, |register, _, _| {
                Some(match register {
                    Register::GS => 0x5000,
                    r if r.is_segment_register() => 0,
                    r if r.is_gpr() => {
                        let full = r.full_register() as u32 - Register::RAX as u32;
                        let mask = u64::MAX >> (64 - 8 * r.size() as u32);
                        regs.get(full as u8) & mask
                    }
                    _ => return None,
                })
            });
            (
                at.unwrap_or(0) & if bits == 64 { u64::MAX } else { 0xffff_ffff },
                used.memory_size().size() as u64,
                used.access(),
            )
        })
        .collect();
    for &(at, len, write) in ours {
        let allowed = theirs.iter().any(|&(from, size, access)| {
            let inside = at.wrapping_sub(from) <= size.wrapping_sub(len);
            let direction = match access {
                OpAccess::Read | OpAccess::CondRead => !write,
                OpAccess::Write | OpAccess::CondWrite => write,
                _ => true,
            };
            inside && direction
        });
        assert!(allowed, "{at:#x} {len} {write}: {theirs:x?} {}", context());
    }
    for &(from, size, access) in &theirs {
        let (read, write) = match access {
            OpAccess::Read => (true, false),
            OpAccess::Write => (false, true),
            OpAccess::ReadWrite => (true, true),
            _ => continue,
        };
        for wanted in [false, true] {
            if if wanted { write } else { read } {
                let bytes: u64 = ours
                    .iter()
                    .filter(|&&(at, _, w)| w == wanted && at.wrapping_sub(from) < size)
                    .map(|&(_, len, _)| len)
                    .sum();
                assert!(bytes >= size, "write {wanted}: {theirs:x?} {}", context());
            }
        }
    }
}
