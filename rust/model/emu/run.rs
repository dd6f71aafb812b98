// SPDX-License-Identifier: GPL-2.0
//! The code of the general instructions, and the way to the others.
#![forbid(unsafe_code)]

use super::alu;
use super::arg::Arg;
use super::cx::Cx;
use super::insn::{Encoding, Kind};
use super::job::{Flow, Run, Stop};
use super::{data, far, flow, int, misc, seg, string, syscall, system, task, vec};
use crate::model::regs::{has, rflags, RAX, RBX, RCX, RDX};

/// Runs the instruction as far as the log of `cx` goes.
pub(super) fn run(cx: &mut Cx<'_>) -> Run<Flow> {
    let [a, b, c] = cx.insn.desc.args;
    if cx.insn.encoding != Encoding::Legacy && !cx.protected() {
        // VEX, EVEX and XOP are for protected mode.
        return Err(Cx::ud());
    }
    match cx.insn.kind() {
        Kind::Ins | Kind::Outs | Kind::Movs | Kind::Cmps | Kind::Stos | Kind::Lods | Kind::Scas => {
            return string::run(cx);
        }
        Kind::TaskSwitch => return task::run(cx),
        Kind::MovVec
        | Kind::MovVecAligned
        | Kind::MovVecScalar
        | Kind::MovVecHalf
        | Kind::MovVecGpr
        | Kind::MovVecQ => vec::run(cx)?,
        kind => general(cx, kind, a, b, c)?,
    }
    Ok(Flow::Next)
}

fn general(cx: &mut Cx<'_>, kind: Kind, a: Arg, b: Arg, c: Arg) -> Run<()> {
    use Kind::*;
    let size = cx.size(a);
    match kind {
        Mov | Movzx => {
            let value = cx.get(b)?;
            cx.put(a, value)
        }
        Movsx | Movsxd => {
            let value = cx.get(b)?;
            cx.put(a, alu::sext(cx.size(b), value))
        }
        Movbe => {
            misc::offered(cx, has::MOVBE)?;
            let value = cx.get(b)?;
            cx.put(a, swap(size, value))
        }
        Bswap => {
            let value = cx.get(a)?;
            cx.put(a, if size == 2 { 0 } else { swap(size, value) })
        }
        Lea => {
            let value = cx.offset();
            cx.put(a, value)
        }
        Add | Or | Adc | Sbb | And | Sub | Xor => {
            let value = cx.get(b)?;
            cx.update(a, |old, flags| alu::binary(kind, size, old, value, flags))?;
            Ok(())
        }
        Cmp | Test => {
            let (x, y) = (cx.get(a)?, cx.get(b)?);
            cx.regs.rflags = alu::binary(kind, size, x, y, cx.regs.rflags).1;
            Ok(())
        }
        Not | Neg | Inc | Dec => {
            cx.update(a, |old, flags| alu::unary(kind, size, old, flags))?;
            Ok(())
        }
        Rol | Ror | Rcl | Rcr | Shl | Shr | Sal | Sar => {
            let count = cx.get(b)? as u8;
            cx.update(a, |old, flags| alu::shift(kind, size, old, count, flags))?;
            Ok(())
        }
        Shld | Shrd => {
            let (fill, count) = (cx.get(b)?, cx.get(c)? as u8);
            cx.update(a, |old, flags| {
                alu::shift_double(kind, size, old, fill, count, flags)
            })?;
            Ok(())
        }
        Bt | Bts | Btr | Btc => bit_test(cx, kind, a, b),
        Xchg | Xadd => {
            let value = cx.get(b)?;
            let old = cx.update(a, |old, flags| match kind {
                Xadd => alu::binary(kind, size, old, value, flags),
                _ => (value, flags),
            })?;
            // XADD r, r of one register leaves the sum there: the source is written first.
            if cx.insn.mem.is_none() && kind == Xadd {
                let sum = cx.get(a)?;
                cx.put(b, old)?;
                return cx.put(a, sum);
            }
            cx.put(b, old)
        }
        Cmpxchg => cmpxchg(cx, a, b),
        Cmpxchg8b => cmpxchg8b(cx),
        Push => {
            let value = cx.get(a)?;
            cx.push(cx.insn.op_size, value)
        }
        Pop => {
            // The address of a memory destination is computed with the stack pointer already moved.
            let value = cx.pop(cx.insn.op_size)?;
            cx.put(a, value)
        }
        _ => other(cx, kind, a, b, c),
    }
}

/// The way to the instructions in files of their own.
fn other(cx: &mut Cx<'_>, kind: Kind, a: Arg, b: Arg, c: Arg) -> Run<()> {
    use Kind::*;
    match kind {
        Mul | Imul | ImulTo | Div | Idiv | Bsf | Bsr | Tzcnt | Lzcnt | Popcnt | Crc32 | Cbw
        | Cwd | Xlat | MovFromSeg | Bound | Daa | Das | Aaa | Aas | Aam | Aad => {
            data::run(cx, kind, a, b, c)
        }
        In | Out | Clts | Lmsw | Smsw | MovFromCr | MovToCr | MovFromDr | MovToDr | Rdmsr
        | Wrmsr | Invlpg | Nop | Pause | Prefetch => system::run(cx, kind, a, b),
        MovToSeg | PopSeg | LoadFar | Lar | Lsl | Verr | Verw | Arpl | Sldt | Str | Lldt | Ltr => {
            seg::run(cx, kind, a, b)
        }
        JmpFar | JmpFarMem | CallFar | CallFarMem | RetFar => far::run(cx, kind),
        Int | Int3 | Into | Iret | Deliver => int::run(cx, kind),
        Syscall | Sysret | Sysenter | Sysexit => syscall::run(cx, kind),
        Sgdt | Sidt | Lgdt | Lidt | Cpuid | Rdtsc | Rdtscp | Rdpid | Rdpmc | Xgetbv | Xsetbv
        | Hlt | Invd | Wbinvd | Wbnoinvd | Clac | Stac | Swapgs | Rdfsbase | Fnstcw | Fnstsw
        | Fninit | Fwait | Clflush | Ud | Fence | Serialize => misc::run(cx, kind, a),
        _ => flow::run(cx, kind, a, b),
    }
}

/// Reverses the bytes of an operand.
const fn swap(size: u8, value: u64) -> u64 {
    match size {
        2 => (value as u16).swap_bytes() as u64,
        4 => (value as u32).swap_bytes() as u64,
        _ => value.swap_bytes(),
    }
}

/// A register bit offset reaches beyond the operand: it is a signed offset into a bit string in memory.
fn bit_test(cx: &mut Cx<'_>, kind: Kind, a: Arg, b: Arg) -> Run<()> {
    let size = cx.size(a);
    let bit = cx.get(b)?;
    let f = |old, flags| alu::bit(kind, size, old, bit, flags);
    if !cx.is_mem(a) {
        if kind == Kind::Bt {
            let old = cx.get(a)?;
            cx.regs.rflags = f(old, cx.regs.rflags).1;
            return Ok(());
        }
        return cx.update(a, f).map(|_| ());
    }
    let mut offset = cx.offset();
    if b == Arg::Gv {
        let units = (alu::sext(size, bit) as i64).wrapping_shr(alu::bits(size).trailing_zeros());
        let bytes = (units as u64).wrapping_mul(u64::from(size));
        offset = offset.wrapping_add(bytes) & alu::mask(cx.insn.addr_size);
    }
    let at = cx.linear(cx.insn.seg, offset, size, kind != Kind::Bt)?;
    if kind == Kind::Bt {
        let old = cx.read(at, size, false)?;
        cx.regs.rflags = f(old, cx.regs.rflags).1;
        return Ok(());
    }
    cx.update_at(at, size, f).map(|_| ())
}

/// The destination is written even if the comparison fails (with its old value), as CPUs do.
fn cmpxchg(cx: &mut Cx<'_>, a: Arg, b: Arg) -> Run<()> {
    let size = cx.size(a);
    let expected = cx.reg(RAX, size);
    let new = cx.get(b)?;
    let compare = |old: u64, flags| {
        let flags = alu::binary(Kind::Cmpxchg, size, expected, old, flags).1;
        (if old == expected { new } else { old }, flags)
    };
    if cx.is_mem(a) {
        let old = cx.update(a, compare)?;
        if old != expected {
            cx.set_reg(RAX, size, old);
        }
        return Ok(());
    }
    let old = cx.get(a)?;
    let (value, flags) = compare(old, cx.regs.rflags);
    cx.regs.rflags = flags;
    // A doubleword register that keeps its value is not written: its upper half stays.
    if old == expected {
        cx.put(a, value)
    } else {
        cx.set_reg(RAX, size, old);
        Ok(())
    }
}

/// CMPXCHG8B and CMPXCHG16B: the latter must be aligned.
fn cmpxchg8b(cx: &mut Cx<'_>) -> Run<()> {
    let half = if cx.long_mode() && cx.insn.prefixes.w() {
        8
    } else {
        4
    };
    let whole = if half == 8 { 16 } else { 8 };
    if half == 8 {
        misc::offered(cx, has::CX16)?;
    }
    let at = cx.operand(whole, true)?;
    if half == 8 && at & 15 != 0 {
        return Err(cx.gp());
    }
    let low = cx.read(at, half, true)?;
    let high = cx.read(cx.advance(at, u64::from(half)), half, true)?;
    let matches = low == cx.reg(RAX, half) && high == cx.reg(RDX, half);
    let old = join(half, low, high);
    let new = join(half, cx.reg(RBX, half), cx.reg(RCX, half));
    let value = if matches { new } else { old };
    if cx.insn.prefixes.lock {
        cx.exchange(at, whole, old, value)?;
    } else {
        cx.check_write(at, whole)?;
        cx.write_parts(at, 8, value as u64)?;
        if half == 8 {
            cx.write_parts(cx.advance(at, 8), 8, (value >> 64) as u64)?;
        }
    }
    if matches {
        cx.regs.rflags |= rflags::ZF;
    } else {
        cx.regs.rflags &= !rflags::ZF;
        cx.set_reg(RAX, half, low);
        cx.set_reg(RDX, half, high);
    }
    Ok(())
}

/// Two halves of `half` bytes as one number.
fn join(half: u8, low: u64, high: u64) -> u128 {
    u128::from(low) | u128::from(high).wrapping_shl(alu::bits(half))
}

/// For instructions that the emulator knows by name only.
pub(super) const fn unhandled<T>() -> Run<T> {
    Err(Stop::UNHANDLED)
}
