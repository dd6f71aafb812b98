// SPDX-License-Identifier: GPL-2.0
//! A small machine of memory and ports to run jobs on.
use super::super::*;
use crate::model::event::Exception;
use crate::model::regs::{cr0, cr4, efer, has, Attr, CpuMode, Seg, Segment};
use std::vec::Vec;

/// Memory at linear `BASE`, a page of MMIO behind it, then nothing.
pub(super) struct Machine {
    pub(super) ram: Vec<u8>,
    pub(super) pio: [u8; 4096],
    pub(super) trace: Vec<Need>,
    /// What reads of MMIO and ports give.
    pub(super) input: u64,
    pub(super) vectors: [[u64; 4]; 16],
    pub(super) xcr0: u64,
    /// How many compare-exchanges are to fail.
    pub(super) lose: u8,
}

pub(super) const BASE: u64 = 0x10000;
pub(super) const RAM: u64 = 0x4000;
pub(super) const MMIO: u64 = BASE + RAM;

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            ram: (0..RAM).map(|n| (n * 7 + 3) as u8).collect(),
            pio: [0; 4096],
            trace: Vec::new(),
            input: 0x8877_6655_4433_2211,
            vectors: core::array::from_fn(|n| {
                [
                    n as u64 * 4,
                    n as u64 * 4 + 1,
                    n as u64 * 4 + 2,
                    n as u64 * 4 + 3,
                ]
            }),
            xcr0: 7,
            lose: 0,
        }
    }

    pub(super) fn range(&self, at: u64, len: u64) -> Option<core::ops::Range<usize>> {
        assert!(
            len > 0 && at % 4096 + len <= 4096,
            "{at:#x} {len} crosses a page"
        );
        let start = at.checked_sub(BASE)?;
        (start + len <= RAM).then_some(start as usize..(start + len) as usize)
    }

    pub(super) fn page_fault(at: u64, write: bool) -> Answer {
        Answer::Fault(Exception::page_fault(u32::from(write) << 1, at))
    }

    pub(super) fn answer(&mut self, need: Need) -> Answer {
        self.trace.push(need);
        let mmio = |at: u64| (MMIO..MMIO + 4096).contains(&at);
        match need {
            Need::Check { at, len, write } => match self.range(at, u64::from(len)) {
                Some(_) => Answer::Ram(true),
                None if mmio(at) => Answer::Ram(false),
                None => Self::page_fault(at, write),
            },
            Need::Read { at, len, rmw } => match self.range(at, u64::from(len)) {
                Some(range) => {
                    let mut value = [0xee; 8];
                    value[..range.len()].copy_from_slice(&self.ram[range]);
                    Answer::Value(u64::from_le_bytes(value))
                }
                None if mmio(at) => Answer::Value(self.input),
                None => Self::page_fault(at, rmw),
            },
            Need::Write { at, len, value } => match self.range(at, u64::from(len)) {
                Some(range) => {
                    let len = range.len();
                    self.ram[range].copy_from_slice(&value.to_le_bytes()[..len]);
                    Answer::Ack
                }
                None if mmio(at) => Answer::Ack,
                None => Self::page_fault(at, true),
            },
            Need::CmpXchg { at, len, old, new } => match self.range(at, u64::from(len)) {
                Some(_) if self.lose > 0 => {
                    self.lose -= 1;
                    Answer::Exchanged(false)
                }
                Some(range) => {
                    let len = range.len();
                    let same = self.ram[range.clone()] == old.to_le_bytes()[..len];
                    if same {
                        self.ram[range].copy_from_slice(&new.to_le_bytes()[..len]);
                    }
                    Answer::Exchanged(same)
                }
                None if mmio(at) => Answer::Exchanged(true),
                None => Self::page_fault(at, true),
            },
            Need::In { size, count, .. } if count > 1 => {
                for n in 0..count * u16::from(size) {
                    self.pio[usize::from(n)] = 0xa0 ^ n as u8;
                }
                Answer::Ack
            }
            Need::In { .. } => Answer::Value(self.input),
            Need::PioToMem { at, offset, len } => {
                let range = self.range(at, u64::from(len)).unwrap();
                self.ram[range]
                    .copy_from_slice(&self.pio[usize::from(offset)..usize::from(offset + len)]);
                Answer::Ack
            }
            Need::MemToPio { at, offset, len } => {
                let range = self.range(at, u64::from(len)).unwrap();
                self.pio[usize::from(offset)..usize::from(offset + len)]
                    .copy_from_slice(&self.ram[range]);
                Answer::Ack
            }
            Need::ReadCr { .. } | Need::ReadDr { .. } | Need::Rdmsr { .. } => {
                Answer::Value(self.input)
            }
            Need::ReadXcr { .. } => Answer::Value(self.xcr0),
            Need::ReadVec { reg } => Answer::Vector(self.vectors[usize::from(reg)]),
            Need::WriteVec { reg, value, vex } => {
                let [a, b, c, d] = value;
                let [.., old_c, old_d] = self.vectors[usize::from(reg)];
                self.vectors[usize::from(reg)] = if vex {
                    [a, b, c, d]
                } else {
                    [a, b, old_c, old_d]
                };
                Answer::Ack
            }
            _ => Answer::Ack,
        }
    }

    pub(super) fn run(&mut self, job: &mut Job) -> Need {
        let mut answer = Answer::Start;
        for _ in 0..100_000 {
            let need = job.step(answer);
            if matches!(need, Need::Done(_) | Need::Fault(_) | Need::Unhandled) {
                return need;
            }
            // A job survives being copied away while it waits.
            let stored = *job;
            answer = self.answer(need);
            *job = stored;
        }
        panic!("no end: {job:?}");
    }

    pub(super) fn read(&self, at: u64, len: u64) -> u64 {
        let mut value = [0; 8];
        let range = (at - BASE) as usize..(at - BASE + len) as usize;
        value[..len as usize].copy_from_slice(&self.ram[range]);
        u64::from_le_bytes(value)
    }
}

pub(super) fn flat(mode: CpuMode) -> Context {
    let mut ctx = Context {
        cr0: cr0::PE | cr0::PG,
        cr4: cr4::OSFXSR | cr4::OSXSAVE,
        cpu: u16::MAX & !has::AMD,
        ..Context::default()
    };
    let (l, db) = (mode == CpuMode::Bits64, mode == CpuMode::Bits32);
    let limit = u32::MAX;
    for segment in &mut ctx.segs.0 {
        let attr = Attr::new(3, true, 0, true, false, false, db, true);
        *segment = Segment {
            base: 0,
            limit,
            selector: 8,
            attr,
        };
    }
    ctx.segs.get_mut(Seg::Cs).attr = Attr::new(11, true, 0, true, false, l, db, true);
    if l {
        ctx.efer = efer::LMA;
    }
    ctx
}

pub(super) fn start(gpr: &[(u8, u64)]) -> Regs {
    let mut regs = Regs {
        rip: 0x1000,
        rflags: 2,
        ..Regs::default()
    };
    for &(n, value) in gpr {
        regs.set(n, value);
    }
    regs
}
