// SPDX-License-Identifier: GPL-2.0
//! Near branches, stack frames and instructions on the flags.
#![forbid(unsafe_code)]

use super::alu;
use super::arg::Arg;
use super::cx::{to_page_end, Cx};
use super::insn::Kind;
use super::int::{changeable, virtual_flags};
use super::job::{Run, Shadow};
use super::run::unhandled;
use crate::model::regs::rflags::{AF, CF, DF, IF, IOPL, OF, PF, RF, SF, TF, VIF, VIP, VM, ZF};
use crate::model::regs::{cr4, Seg, RAX, RBP, RCX, RSP};

pub(super) fn run(cx: &mut Cx<'_>, kind: Kind, a: Arg, b: Arg) -> Run<()> {
    use Kind::*;
    match kind {
        Jcc | Jmp | Loop | Jcxz => relative(cx, kind),
        JmpNear => {
            let target = cx.get(a)?;
            branch(cx, target)
        }
        CallRel => {
            let target = cx.insn.next_rip(cx.regs.rip).wrapping_add(cx.insn.imm);
            call(cx, target)
        }
        CallNear => {
            let target = cx.get(a)?;
            call(cx, target)
        }
        Ret => {
            let target = cx.pop(cx.insn.op_size)?;
            let sp = cx.regs.get(RSP).wrapping_add(cx.insn.imm);
            cx.set_sp(sp);
            branch(cx, target)
        }
        Setcc => cx.put(a, u64::from(condition(cx.insn.opcode, cx.regs.rflags))),
        Cmovcc => {
            // The source is read, and a doubleword destination's upper half cleared, either way.
            let (new, old) = (cx.get(b)?, cx.get(a)?);
            let taken = condition(cx.insn.opcode, cx.regs.rflags);
            cx.put(a, if taken { new } else { old })
        }
        Pusha | Popa | Enter | Leave | Pushf | Popf | PushSeg => frame(cx, kind),
        _ => flags(cx, kind),
    }
}

/// Whether the condition in the low four bits of an opcode holds.
const fn condition(opcode: u8, flags: u64) -> bool {
    let less = (flags & SF != 0) != (flags & OF != 0);
    let met = match (opcode >> 1) & 7 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => less,
        _ => less || flags & ZF != 0,
    };
    met != (opcode & 1 != 0)
}

fn relative(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    let width = cx.insn.addr_size;
    let taken = match kind {
        Kind::Jcc => condition(cx.insn.opcode, cx.regs.rflags),
        Kind::Jcxz => cx.reg(RCX, width) == 0,
        Kind::Loop => {
            let left = cx.reg(RCX, width).wrapping_sub(1) & alu::mask(width);
            cx.set_reg(RCX, width, left);
            let equal = cx.regs.rflags & ZF != 0;
            left != 0
                && match cx.insn.opcode & 3 {
                    0 => !equal,
                    1 => equal,
                    _ => true,
                }
        }
        _ => true,
    };
    if !taken {
        return Ok(());
    }
    let target = cx.insn.next_rip(cx.regs.rip).wrapping_add(cx.insn.imm);
    branch(cx, target)
}

/// Goes on at `target`, cut to the operand size, if that is within the code segment.
fn branch(cx: &mut Cx<'_>, target: u64) -> Run<()> {
    let target = target & alu::mask(cx.insn.op_size);
    let inside = if cx.long_mode() {
        cx.canonical(target)
    } else {
        target <= u64::from(cx.ctx.segs.get(Seg::Cs).limit)
    };
    if !inside {
        return Err(cx.gp());
    }
    cx.target = Some(target);
    Ok(())
}

fn call(cx: &mut Cx<'_>, target: u64) -> Run<()> {
    branch(cx, target)?;
    cx.push(cx.insn.op_size, cx.insn.next_rip(cx.regs.rip))
}

fn frame(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    let size = cx.insn.op_size;
    match kind {
        Kind::Pusha => {
            let before = cx.regs;
            (0..8).try_for_each(|n| cx.push(size, before.get(n)))
        }
        Kind::Popa => {
            for n in (0..8).rev() {
                if n == RSP {
                    // The stack pointer's own value is skipped.
                    let sp = cx.regs.get(RSP).wrapping_add(u64::from(size));
                    cx.set_sp(sp);
                } else {
                    let value = cx.pop(size)?;
                    cx.set_reg(n, size, value);
                }
            }
            Ok(())
        }
        Kind::Enter => enter(cx, size),
        Kind::Leave => {
            let frame = cx.regs.get(RBP);
            cx.set_sp(frame);
            let value = cx.pop(size)?;
            cx.set_reg(RBP, size, value);
            Ok(())
        }
        Kind::PushSeg => {
            let seg = Seg::from_number((cx.insn.opcode >> 3) & 7);
            match seg {
                Some(seg) => cx.push(size, u64::from(cx.ctx.segs.get(seg).selector)),
                None => unhandled(),
            }
        }
        Kind::Pushf => {
            let flags = if limited_vm86(cx, size)? {
                virtual_flags(cx.regs.rflags)
            } else {
                cx.regs.rflags
            };
            cx.push(size, flags & !(RF | VM))
        }
        Kind::Popf => pop_flags(cx, size),
        _ => unhandled(),
    }
}

/// ENTER: a frame, with pointers to the enclosing ones.
fn enter(cx: &mut Cx<'_>, size: u8) -> Run<()> {
    let level = cx.insn.imm2 & 31;
    let old = cx.regs.get(RBP);
    cx.push(size, old)?;
    let frame = cx.regs.get(RSP);
    let mask = alu::mask(cx.ctx.stack_bytes());
    for n in 1..u64::from(level) {
        let from = old.wrapping_sub(u64::from(size).wrapping_mul(n)) & mask;
        let from = cx.linear(Seg::Ss, from, size, false)?;
        let to = cx.regs.get(RSP).wrapping_sub(u64::from(size)) & mask;
        let to = cx.linear(Seg::Ss, to, size, true)?;
        let pointer = if to_page_end(to) < u64::from(size) {
            cx.read(from, size, false)?
        } else {
            cx.read_carried(from, size)?
        };
        cx.push(size, pointer)?;
    }
    if level != 0 {
        cx.push(size, frame)?;
    }
    cx.set_reg(RBP, size, frame);
    let sp = cx.regs.get(RSP).wrapping_sub(cx.insn.imm);
    cx.set_sp(sp);
    cx.stack_top_writable(size)
}

/// Virtual-8086 mode with IOPL below 3: PUSHF and POPF need the mode's extensions, and 16 bits.
fn limited_vm86(cx: &Cx<'_>, size: u8) -> Run<bool> {
    if !cx.vm86() || cx.iopl() == 3 {
        return Ok(false);
    }
    if size != 2 || cx.ctx.cr4 & cr4::VME == 0 {
        return Err(cx.gp());
    }
    Ok(true)
}

/// CPL lets the interrupt flag be changed: always so in real mode.
fn may_change_if(cx: &Cx<'_>) -> bool {
    !cx.protected() || cx.ctx.cpl <= cx.iopl()
}

fn pop_flags(cx: &mut Cx<'_>, size: u8) -> Run<()> {
    let limited = limited_vm86(cx, size)?;
    let value = cx.pop(size)?;
    let (old, mut new) = (cx.regs.rflags, value);
    let mut change = changeable(size);
    if limited {
        if value & TF != 0 || value & IF != 0 && old & VIP != 0 {
            return Err(cx.gp());
        }
        change |= VIF;
        new = (value & !VIF) | if value & IF != 0 { VIF } else { 0 };
    } else if may_change_if(cx) {
        change |= IF;
    }
    if !cx.vm86() && (!cx.protected() || cx.ctx.cpl == 0) {
        change |= IOPL;
    }
    cx.regs.rflags = (old & !change) | (new & change);
    Ok(())
}

/// CLI and STI where IOPL keeps the real flag away: the virtual one, where CR4 turns that on.
fn virtual_interrupt_flag(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    let on = if cx.vm86() {
        cx.ctx.cr4 & cr4::VME != 0
    } else {
        cx.ctx.cr4 & cr4::PVI != 0 && cx.ctx.cpl == 3
    };
    let pending = kind == Kind::Sti && cx.regs.rflags & VIP != 0;
    if !on || pending {
        return Err(cx.gp());
    }
    if kind == Kind::Sti {
        cx.regs.rflags |= VIF;
    } else {
        cx.regs.rflags &= !VIF;
    }
    Ok(())
}

/// Instructions that work on flags and the accumulator.
fn flags(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    use Kind::*;
    let old = cx.regs.rflags;
    let sahf = SF | ZF | AF | PF | CF;
    match kind {
        Cmc => cx.regs.rflags = old ^ CF,
        Clc => cx.regs.rflags = old & !CF,
        Stc => cx.regs.rflags = old | CF,
        Cld => cx.regs.rflags = old & !DF,
        Std => cx.regs.rflags = old | DF,
        Cli | Sti if !may_change_if(cx) || cx.vm86() && cx.iopl() < 3 => {
            return virtual_interrupt_flag(cx, kind);
        }
        Cli => cx.regs.rflags = old & !IF,
        Sti => {
            if old & IF == 0 {
                cx.shadow = Shadow::Sti;
            }
            cx.regs.rflags = old | IF;
        }
        Lahf => {
            let rax = cx.regs.get(RAX);
            cx.regs.set(RAX, (rax & !0xff00) | ((old & sahf | 2) << 8));
        }
        Sahf => cx.regs.rflags = (old & !sahf) | ((cx.regs.get(RAX) >> 8) & sahf),
        Salc => cx.set_reg(RAX, 1, if old & CF != 0 { 0xff } else { 0 }),
        _ => return unhandled(),
    }
    Ok(())
}
