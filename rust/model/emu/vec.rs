// SPDX-License-Identifier: GPL-2.0
//! Loads and stores of vector registers, legacy SSE and AVX.
#![forbid(unsafe_code)]

use super::arg::Arg;
use super::cx::Cx;
use super::insn::{Encoding, Kind};
use super::job::{Need, Run, Stop};
use super::run::unhandled;
use crate::model::cr::xcr0;
use crate::model::event::vector;
use crate::model::regs::{cr0, cr4};

pub(super) fn run(cx: &mut Cx<'_>) -> Run<()> {
    let vex = cx.insn.encoding == Encoding::Vex;
    available(cx, vex)?;
    let [a, b, _] = cx.insn.desc.args;
    let kind = cx.insn.kind();
    // Between two registers the narrow moves merge in ways of their own.
    let narrow = matches!(kind, Kind::MovVecScalar | Kind::MovVecHalf);
    if cx.insn.mem.is_none() && narrow {
        return unhandled();
    }
    let size = match a {
        Arg::V => width(cx, b),
        _ => width(cx, a),
    };
    if a == Arg::V {
        let mut value = load(cx, kind, b, size)?;
        if kind == Kind::MovVecHalf {
            let old = cx.ask_vector(Need::ReadVec { reg: cx.insn.reg })?;
            let ([low, ..], [old_low, old_high, ..]) = (value, old);
            let high_half = cx.insn.opcode & 4 != 0;
            value = if high_half {
                [old_low, low, 0, 0]
            } else {
                [low, old_high, 0, 0]
            };
        }
        return set_vec(cx, cx.insn.reg, value, vex);
    }
    let value = cx.ask_vector(Need::ReadVec { reg: cx.insn.reg })?;
    let [low, high, ..] = value;
    let value = if kind == Kind::MovVecHalf && cx.insn.opcode & 4 != 0 {
        [high, 0, 0, 0]
    } else if size <= 8 {
        [low, 0, 0, 0]
    } else {
        value
    };
    store(cx, kind, a, size, value, vex)
}

/// Whether SSE (and AVX) can be used now: #UD and #NM otherwise.
fn available(cx: &mut Cx<'_>, vex: bool) -> Run<()> {
    const STATE: u64 = xcr0::SSE | xcr0::YMM;
    let (cr0_now, cr4_now) = (cx.ctx.cr0, cx.ctx.cr4);
    let enabled = if vex {
        cx.ctx.protected(cx.regs.rflags)
            && cr4_now & cr4::OSXSAVE != 0
            && cx.ask(Need::ReadXcr { index: 0 })? & STATE == STATE
    } else {
        cr0_now & cr0::EM == 0 && cr4_now & cr4::OSFXSR != 0
    };
    if !enabled {
        return Err(Cx::ud());
    }
    if cr0_now & cr0::TS != 0 {
        return Err(Stop::fault(vector::NM));
    }
    Ok(())
}

/// Bytes that move.
fn width(cx: &Cx<'_>, other: Arg) -> u8 {
    match other {
        Arg::Wd => 4,
        Arg::Wq | Arg::Mq => 8,
        Arg::Ey => cx.size(Arg::Ey),
        _ => cx.insn.vl.min(32),
    }
}

fn load(cx: &mut Cx<'_>, kind: Kind, from: Arg, size: u8) -> Run<[u64; 4]> {
    if cx.insn.mem.is_none() {
        if from == Arg::Ey {
            let value = cx.get(from)?;
            return Ok([value, 0, 0, 0]);
        }
        let [a, b, c, d] = cx.ask_vector(Need::ReadVec { reg: cx.insn.rm })?;
        return Ok(match size {
            8 => [a, 0, 0, 0],
            16 => [a, b, 0, 0],
            _ => [a, b, c, d],
        });
    }
    let at = address(cx, kind, size, false)?;
    let mut value = [0; 4];
    if size <= 8 {
        let low = cx.read(at, size, false)?;
        return Ok([low, 0, 0, 0]);
    }
    let words = usize::from(size >> 3);
    let mut at = at;
    for word in value.iter_mut().take(words) {
        *word = cx.read(at, 8, false)?;
        at = cx.advance(at, 8);
    }
    Ok(value)
}

fn store(cx: &mut Cx<'_>, kind: Kind, to: Arg, size: u8, value: [u64; 4], vex: bool) -> Run<()> {
    let [low, ..] = value;
    if cx.insn.mem.is_none() {
        if to == Arg::Ey {
            return cx.put(to, low);
        }
        let [a, b, c, d] = value;
        let cut = if size <= 16 {
            [a, b, 0, 0]
        } else {
            [a, b, c, d]
        };
        return set_vec(cx, cx.insn.rm, cut, vex);
    }
    let at = address(cx, kind, size, true)?;
    cx.check_write(at, size)?;
    if size <= 8 {
        return cx.write_parts(at, size, low);
    }
    let mut at = at;
    for word in value.into_iter().take(usize::from(size >> 3)) {
        cx.write_parts(at, 8, word)?;
        at = cx.advance(at, 8);
    }
    Ok(())
}

/// The linear address; the aligned moves fault where it is not aligned.
fn address(cx: &Cx<'_>, kind: Kind, size: u8, write: bool) -> Run<u64> {
    let at = cx.operand(size, write)?;
    let misaligned = at & u64::from(size).wrapping_sub(1) != 0;
    if kind == Kind::MovVecAligned && misaligned {
        return Err(cx.gp());
    }
    Ok(at)
}

fn set_vec(cx: &mut Cx<'_>, reg: u8, value: [u64; 4], vex: bool) -> Run<()> {
    cx.tell(Need::WriteVec { reg, value, vex })?;
    Ok(())
}
