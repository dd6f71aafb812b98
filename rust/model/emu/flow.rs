// SPDX-License-Identifier: GPL-2.0
//! Near branches, stack frames and instructions on the flags. Far transfers change segments: they are unhandled.
#![forbid(unsafe_code)]

use super::alu;
use super::cx::Cx;
use super::insn::Kind;
use super::job::{Run, Shadow};
use super::run::unhandled;
use super::table::Arg;
use crate::model::regs::rflags::{AC, AF, CF, DF, IF, IOPL, NT, OF, PF, RF, SF, TF, VM, ZF};
use crate::model::regs::{Seg, RAX, RBP, RCX, RSP};

/// CPUID available.
const ID: u64 = 1 << 21;

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
        Kind::Enter if cx.insn.imm2 & 31 == 0 => {
            cx.push(size, cx.regs.get(RBP))?;
            let frame = cx.regs.get(RSP);
            cx.set_reg(RBP, size, frame);
            cx.set_sp(frame.wrapping_sub(cx.insn.imm));
            cx.stack_top_writable(size)
        }
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
        Kind::Pushf if !virtual_8086(cx) => cx.push(size, cx.regs.rflags & !(RF | VM)),
        Kind::Popf if !virtual_8086(cx) => {
            let value = cx.pop(size)?;
            pop_flags(cx, size, value);
            Ok(())
        }
        _ => unhandled(),
    }
}

/// In virtual-8086 mode some instructions depend on IOPL and the extensions of CR4: unhandled.
fn virtual_8086(cx: &Cx<'_>) -> bool {
    cx.regs.rflags & VM != 0
}

/// CPL lets the interrupt flag be changed: always so in real mode.
fn may_change_if(cx: &Cx<'_>) -> bool {
    let protected = cx.ctx.protected(cx.regs.rflags);
    !protected || u64::from(cx.ctx.cpl) <= (cx.regs.rflags >> 12) & 3
}

fn pop_flags(cx: &mut Cx<'_>, size: u8, value: u64) {
    let mut change = alu::STATUS | TF | DF | NT | AC | ID;
    if may_change_if(cx) {
        change |= IF;
    }
    if !cx.ctx.protected(cx.regs.rflags) || cx.ctx.cpl == 0 {
        change |= IOPL;
    }
    change &= alu::mask(size);
    cx.regs.rflags = (cx.regs.rflags & !change) | (value & change);
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
        Cli | Sti if virtual_8086(cx) => return unhandled(),
        Cli | Sti if !may_change_if(cx) => return Err(cx.gp()),
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
