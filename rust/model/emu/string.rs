// SPDX-License-Identifier: GPL-2.0
//! String instructions, one iteration a run, and string port I/O, up to a page a run.
#![forbid(unsafe_code)]

use super::alu;
use super::arg::Arg;
use super::cx::{to_page_end, Cx};
use super::insn::{Kind, Repeat};
use super::job::{Flow, Need, Run};
use super::system::port_allowed;
use crate::model::regs::{rflags, Seg, RAX, RCX, RDI, RDX, RSI};

pub(super) fn run(cx: &mut Cx<'_>) -> Run<Flow> {
    let repeated = cx.insn.prefixes.rep != Repeat::None;
    let left = cx.reg(RCX, cx.insn.addr_size);
    if repeated && left == 0 {
        return Ok(Flow::Next);
    }
    let kind = cx.insn.kind();
    let size = match cx.insn.desc.args {
        [Arg::Xb | Arg::Yb | Arg::Al, ..] | [_, Arg::Xb | Arg::Yb, _] => 1,
        // A port is 32 bits wide at most.
        _ if matches!(kind, Kind::Ins | Kind::Outs) => cx.insn.op_size.min(4),
        _ => cx.insn.op_size,
    };
    let done = match kind {
        Kind::Ins => ins(cx, size, if repeated { left } else { 1 })?,
        Kind::Outs => outs(cx, size, if repeated { left } else { 1 })?,
        _ => {
            element(cx, kind, size)?;
            1
        }
    };
    if !repeated {
        return Ok(Flow::Next);
    }
    let left = left.wrapping_sub(done);
    set_addr_reg(cx, RCX, left);
    let equal = cx.regs.rflags & rflags::ZF != 0;
    let stop = match kind {
        Kind::Cmps | Kind::Scas => equal == (cx.insn.prefixes.rep == Repeat::Repne),
        _ => false,
    };
    Ok(if left == 0 || stop {
        Flow::Next
    } else {
        Flow::Again
    })
}

/// One element of MOVS, CMPS, STOS, LODS or SCAS.
fn element(cx: &mut Cx<'_>, kind: Kind, size: u8) -> Run<()> {
    match kind {
        Kind::Movs => {
            let from = source(cx, size)?;
            let to = destination(cx, size, true)?;
            let value = cx.read(from, size, false)?;
            cx.write(to, size, value)?;
            step(cx, RSI, size, 1);
            step(cx, RDI, size, 1);
        }
        Kind::Cmps => {
            let from = source(cx, size)?;
            let to = destination(cx, size, false)?;
            let (a, b) = (cx.read(from, size, false)?, cx.read(to, size, false)?);
            cx.regs.rflags = alu::binary(kind, size, a, b, cx.regs.rflags).1;
            step(cx, RSI, size, 1);
            step(cx, RDI, size, 1);
        }
        Kind::Stos => {
            let to = destination(cx, size, true)?;
            let value = cx.reg(RAX, size);
            cx.write(to, size, value)?;
            step(cx, RDI, size, 1);
        }
        Kind::Lods => {
            let from = source(cx, size)?;
            let value = cx.read(from, size, false)?;
            cx.set_reg(RAX, size, value);
            step(cx, RSI, size, 1);
        }
        _ => {
            let to = destination(cx, size, false)?;
            let value = cx.read(to, size, false)?;
            let acc = cx.reg(RAX, size);
            cx.regs.rflags = alu::binary(kind, size, acc, value, cx.regs.rflags).1;
            step(cx, RDI, size, 1);
        }
    }
    Ok(())
}

/// Linear address of the source element.
fn source(cx: &Cx<'_>, size: u8) -> Run<u64> {
    let offset = cx.reg(RSI, cx.insn.addr_size);
    cx.linear(cx.insn.seg, offset, size, false)
}

/// Linear address of the destination element; its segment cannot be overridden.
fn destination(cx: &Cx<'_>, size: u8, write: bool) -> Run<u64> {
    let offset = cx.reg(RDI, cx.insn.addr_size);
    cx.linear(Seg::Es, offset, size, write)
}

/// Writes RCX, RSI or RDI at the width of the address size.
fn set_addr_reg(cx: &mut Cx<'_>, n: u8, value: u64) {
    let size = cx.insn.addr_size;
    cx.set_reg(n, size, value);
}

/// Moves RSI or RDI by `count` elements in the direction that RFLAGS.DF says.
fn step(cx: &mut Cx<'_>, n: u8, size: u8, count: u64) {
    let bytes = u64::from(size).wrapping_mul(count);
    let old = cx.reg(n, cx.insn.addr_size);
    let new = if cx.regs.rflags & rflags::DF != 0 {
        old.wrapping_sub(bytes)
    } else {
        old.wrapping_add(bytes)
    };
    set_addr_reg(cx, n, new);
}

/// How many of `left` elements, upwards from `at` at `offset` in its segment, can go in one batch: those within
/// the page and, conservatively, the segment. One if the direction is downwards, or each is to be trapped.
fn batch(cx: &Cx<'_>, seg: Seg, offset: u64, at: u64, size: u8, write: bool, left: u64) -> u64 {
    if cx.regs.rflags & (rflags::DF | rflags::TF) != 0 {
        return 1;
    }
    let shift = u32::from(size).trailing_zeros();
    let room = to_page_end(at).wrapping_shr(shift);
    let count = room.min(left).max(1);
    // The offset must not wrap, and the last byte must be as accessible as the first.
    let bytes = count.wrapping_shl(shift);
    let last = offset.wrapping_add(bytes.wrapping_sub(1));
    let whole = last <= alu::mask(cx.insn.addr_size) && cx.linear(seg, last, 1, write).is_ok();
    if whole {
        count
    } else {
        1
    }
}

/// INS: returns how many elements were read. Memory is translated before the port is read, so that a fault loses
/// no input.
fn ins(cx: &mut Cx<'_>, size: u8, left: u64) -> Run<u64> {
    let port = cx.reg(RDX, 2) as u16;
    port_allowed(cx, port, size)?;
    let offset = cx.reg(RDI, cx.insn.addr_size);
    let at = destination(cx, size, true)?;
    let count = batch(cx, Seg::Es, offset, at, size, true, left);
    if to_page_end(at) < u64::from(size) {
        cx.check_write(at, size)?;
    } else {
        let len = bytes(size, count);
        let ram = cx.ask(Need::Check {
            at,
            len,
            write: true,
        })? != 0;
        if ram && count > 1 {
            let items = count as u16;
            cx.tell(Need::In {
                port,
                size,
                count: items,
            })?;
            cx.tell(Need::PioToMem { at, offset: 0, len })?;
            step(cx, RDI, size, count);
            return Ok(count);
        }
    }
    let value = cx.ask(Need::In {
        port,
        size,
        count: 1,
    })?;
    cx.write_parts(at, size, value)?;
    step(cx, RDI, size, 1);
    Ok(1)
}

/// OUTS: returns how many elements were written.
fn outs(cx: &mut Cx<'_>, size: u8, left: u64) -> Run<u64> {
    let port = cx.reg(RDX, 2) as u16;
    port_allowed(cx, port, size)?;
    let offset = cx.reg(RSI, cx.insn.addr_size);
    let at = source(cx, size)?;
    let count = batch(cx, cx.insn.seg, offset, at, size, false, left);
    if count > 1 {
        let len = bytes(size, count);
        let ram = cx.ask(Need::Check {
            at,
            len,
            write: false,
        })? != 0;
        if ram {
            cx.tell(Need::MemToPio { at, offset: 0, len })?;
            cx.tell(Need::Out {
                port,
                size,
                count: count as u16,
                value: 0,
            })?;
            step(cx, RSI, size, count);
            return Ok(count);
        }
    }
    let value = cx.read(at, size, false)? as u32;
    cx.tell(Need::Out {
        port,
        size,
        count: 1,
        value,
    })?;
    step(cx, RSI, size, 1);
    Ok(1)
}

/// Bytes of a batch, which is within a page.
fn bytes(size: u8, count: u64) -> u16 {
    u64::from(size).wrapping_mul(count) as u16
}
