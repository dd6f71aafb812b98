// SPDX-License-Identifier: GPL-2.0
//! Multiplication, division, bit counts, decimal adjustment and the accumulator's conversions.
#![forbid(unsafe_code)]

use super::alu;
use super::arg::Arg;
use super::cx::Cx;
use super::insn::Kind;
use super::job::{Run, Stop};
use super::misc::offered;
use super::run::unhandled;
use crate::model::event::vector;
use crate::model::regs::rflags::{AF, CF, OF, PF, SF, ZF};
use crate::model::regs::{has, Seg, RAX, RBX, RDX};

pub(super) fn run(cx: &mut Cx<'_>, kind: Kind, a: Arg, b: Arg, c: Arg) -> Run<()> {
    use Kind::*;
    match kind {
        Mul | Imul => {
            let (size, value) = (cx.size(a), cx.get(a)?);
            let acc = cx.reg(RAX, size);
            let (low, high, overflow) = multiply(kind == Imul, size, acc, value);
            set_pair(cx, size, low, high);
            set_flags(cx, CF | OF, if overflow { CF | OF } else { 0 });
            Ok(())
        }
        ImulTo => {
            let size = cx.size(a);
            let x = cx.get(b)?;
            let y = if c == Arg::No { cx.get(a)? } else { cx.get(c)? };
            let (low, _, overflow) = multiply(true, size, x, y);
            set_flags(cx, CF | OF, if overflow { CF | OF } else { 0 });
            cx.put(a, low)
        }
        Div | Idiv => {
            let (size, by) = (cx.size(a), cx.get(a)?);
            let Some((quotient, remainder)) = divide(cx, kind == Idiv, size, by) else {
                return Err(divide_error());
            };
            set_pair(cx, size, quotient, remainder);
            Ok(())
        }
        Bsf | Bsr | Tzcnt | Lzcnt | Popcnt => count_bits(cx, kind, a, b),
        Crc32 => crc32(cx, a, b),
        Cbw => {
            let size = cx.insn.op_size;
            let half = size >> 1;
            let value = alu::sext(half, cx.reg(RAX, half));
            cx.set_reg(RAX, size, value);
            Ok(())
        }
        Cwd => {
            let size = cx.insn.op_size;
            let negative = cx.reg(RAX, size) & alu::sign(size) != 0;
            cx.set_reg(RDX, size, if negative { u64::MAX } else { 0 });
            Ok(())
        }
        Xlat => {
            let al = cx.reg(RAX, 1);
            let offset = cx.regs.get(RBX).wrapping_add(al) & alu::mask(cx.insn.addr_size);
            let at = cx.linear(cx.insn.seg, offset, 1, false)?;
            let value = cx.read(at, 1, false)?;
            cx.set_reg(RAX, 1, value);
            Ok(())
        }
        MovFromSeg => match Seg::from_number((cx.insn.modrm.unwrap_or(0) >> 3) & 7) {
            Some(seg) => cx.put(a, u64::from(cx.ctx.segs.get(seg).selector)),
            None => Err(Cx::ud()),
        },
        Bound => bound(cx, a),
        Daa | Das | Aaa | Aas | Aam | Aad => decimal(cx, kind),
        _ => unhandled(),
    }
}

const fn divide_error() -> Stop {
    Stop::fault(vector::DE)
}

fn set_flags(cx: &mut Cx<'_>, which: u64, with: u64) {
    cx.regs.rflags = (cx.regs.rflags & !which) | (with & which);
}

/// Flags of a byte result: SF, ZF, PF.
fn set_szp(cx: &mut Cx<'_>, value: u64) {
    let new = alu::binary(Kind::And, 1, value, value, cx.regs.rflags).1;
    set_flags(cx, SF | ZF | PF, new);
}

/// Low and high half of a product, and whether the high half matters.
fn multiply(signed: bool, size: u8, x: u64, y: u64) -> (u64, u64, bool) {
    let bits = alu::bits(size);
    let product = if signed {
        let (x, y) = (alu::sext(size, x) as i64, alu::sext(size, y) as i64);
        i128::from(x).wrapping_mul(i128::from(y)) as u128
    } else {
        u128::from(x).wrapping_mul(u128::from(y))
    };
    let low = product as u64 & alu::mask(size);
    let high = (product.wrapping_shr(bits)) as u64 & alu::mask(size);
    let fits = if signed {
        alu::sext(size, low) as i64 as i128 == product as i128
    } else {
        high == 0
    };
    (low, high, !fits)
}

/// Writes the two halves: AH and AL for bytes, otherwise the data register and the accumulator.
fn set_pair(cx: &mut Cx<'_>, size: u8, low: u64, high: u64) {
    if size == 1 {
        cx.set_reg(RAX, 2, (low & 0xff) | (high << 8));
    } else {
        cx.set_reg(RAX, size, low);
        cx.set_reg(RDX, size, high);
    }
}

/// Quotient and remainder; `None` for #DE.
fn divide(cx: &Cx<'_>, signed: bool, size: u8, by: u64) -> Option<(u64, u64)> {
    let bits = alu::bits(size);
    // A byte divides AX, which is in one register; the others divide a pair.
    let (high, low) = match size {
        1 => (cx.reg(RAX, 2) >> 8, cx.reg(RAX, 1)),
        _ => (cx.reg(RDX, size), cx.reg(RAX, size)),
    };
    let dividend = u128::from(low) | u128::from(high).wrapping_shl(bits);
    if !signed {
        return long_division(dividend, by, size);
    }
    // By magnitudes; the remainder has the dividend's sign.
    let (minus, minus_by) = (high & alu::sign(size) != 0, by & alu::sign(size) != 0);
    let wide = u128::MAX.wrapping_shr(128u32.wrapping_sub(bits.wrapping_mul(2)) & 127);
    let dividend = if minus {
        dividend.wrapping_neg() & wide
    } else {
        dividend
    };
    let by = if minus_by {
        by.wrapping_neg() & alu::mask(size)
    } else {
        by
    };
    let (quotient, remainder) = long_division(dividend, by, size)?;
    let negative = minus != minus_by;
    let largest = alu::sign(size).wrapping_sub(u64::from(!negative));
    if quotient > largest {
        return None;
    }
    let signed = |value: u64, minus: bool| if minus { value.wrapping_neg() } else { value };
    Some((signed(quotient, negative), signed(remainder, minus)))
}

/// Shifts and subtracts, as the kernel has no 128-bit division. `None` for division by zero or a quotient of more
/// than `size` bytes.
fn long_division(dividend: u128, by: u64, size: u8) -> Option<(u64, u64)> {
    let bits = alu::bits(size);
    let mut remainder = dividend.wrapping_shr(bits);
    let by = u128::from(by);
    if remainder >= by {
        return None;
    }
    let mut quotient = 0u64;
    for n in (0..bits).rev() {
        remainder = (remainder << 1) | (dividend.wrapping_shr(n) & 1);
        quotient <<= 1;
        if remainder >= by {
            remainder = remainder.wrapping_sub(by);
            quotient |= 1;
        }
    }
    Some((quotient, remainder as u64))
}

/// The scans leave the destination alone for zero; the counts have defined flags for it.
fn count_bits(cx: &mut Cx<'_>, kind: Kind, a: Arg, b: Arg) -> Run<()> {
    let kind = match kind {
        // Older CPUs ignore the prefix.
        Kind::Tzcnt if !cx.ctx.has(has::BMI1) => Kind::Bsf,
        Kind::Lzcnt if !cx.ctx.has(has::LZCNT) => Kind::Bsr,
        kind => kind,
    };
    if kind == Kind::Popcnt {
        offered(cx, has::POPCNT)?;
    }
    let (size, value) = (cx.size(b), cx.get(b)?);
    let bits = alu::bits(size);
    let leading = value.leading_zeros().wrapping_sub(64u32.wrapping_sub(bits));
    let trailing = value.trailing_zeros().min(bits);
    let zero = if value == 0 { ZF } else { 0 };
    let result = match kind {
        Kind::Bsf | Kind::Bsr => {
            set_flags(cx, ZF, zero);
            if value == 0 {
                return Ok(());
            }
            match kind {
                Kind::Bsf => trailing,
                _ => bits.wrapping_sub(1).wrapping_sub(leading),
            }
        }
        Kind::Popcnt => {
            set_flags(cx, alu::STATUS, zero);
            value.count_ones()
        }
        _ => {
            let count = if kind == Kind::Tzcnt {
                trailing
            } else {
                leading
            };
            let carry = if value == 0 { CF } else { 0 };
            let none = if count == 0 { ZF } else { 0 };
            set_flags(cx, CF | ZF, carry | none);
            count
        }
    };
    cx.put(a, u64::from(result))
}

/// The CRC of iSCSI (polynomial 11EDC6F41, bits reflected) over one operand.
fn crc32(cx: &mut Cx<'_>, a: Arg, b: Arg) -> Run<()> {
    offered(cx, has::SSE42)?;
    let size = cx.size(b);
    let value = cx.get(b)?;
    let mut crc = cx.reg(cx.insn.reg, 4) as u32;
    for n in 0..u32::from(size) {
        crc ^= value.wrapping_shr(n << 3) as u32 & 0xff;
        for _ in 0..8 {
            let carry = if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
            crc = (crc >> 1) ^ carry;
        }
    }
    cx.put(a, u64::from(crc))
}

/// #BR if the signed index is not between the two bounds in memory.
fn bound(cx: &mut Cx<'_>, a: Arg) -> Run<()> {
    let size = cx.insn.op_size;
    let index = alu::sext(size, cx.get(a)?) as i64;
    let at = cx.operand(size.wrapping_mul(2), false)?;
    let lower = cx.read(at, size, false)?;
    let upper = cx.read(cx.advance(at, u64::from(size)), size, false)?;
    let inside = (alu::sext(size, lower) as i64..=alu::sext(size, upper) as i64).contains(&index);
    if inside {
        Ok(())
    } else {
        Err(Stop::fault(vector::BR))
    }
}

/// The decimal and ASCII adjustments of AL and AX.
fn decimal(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    use Kind::*;
    let (al, ah) = (cx.reg(RAX, 1), cx.reg(RAX, 2) >> 8);
    let half = al & 15 > 9 || cx.regs.rflags & AF != 0;
    match kind {
        Daa | Das => {
            let carry = al > 0x99 || cx.regs.rflags & CF != 0;
            let adjust = (if half { 6u64 } else { 0 }).wrapping_add(if carry { 0x60 } else { 0 });
            // DAS also reports the borrow of its low adjustment.
            let borrow = kind == Das && half && al < 6;
            let result = match kind {
                Daa => al.wrapping_add(adjust),
                _ => al.wrapping_sub(adjust),
            } & 0xff;
            cx.set_reg(RAX, 1, result);
            set_szp(cx, result);
            let flags = if half { AF } else { 0 } | if carry || borrow { CF } else { 0 };
            set_flags(cx, AF | CF, flags);
        }
        Aaa | Aas => {
            let ax = cx.reg(RAX, 2);
            let adjusted = match (half, kind) {
                (false, _) => ax,
                (true, Aaa) => ax.wrapping_add(0x106),
                _ => ax.wrapping_sub(0x106),
            };
            cx.set_reg(RAX, 2, adjusted & 0xff0f);
            set_flags(cx, AF | CF, if half { AF | CF } else { 0 });
        }
        Aam => {
            let base = cx.insn.imm;
            let (high, low) = (al.checked_div(base), al.checked_rem(base));
            let (Some(high), Some(low)) = (high, low) else {
                return Err(divide_error());
            };
            cx.set_reg(RAX, 2, (high << 8) | low);
            set_szp(cx, low);
        }
        _ => {
            let low = al.wrapping_add(ah.wrapping_mul(cx.insn.imm)) & 0xff;
            cx.set_reg(RAX, 2, low);
            set_szp(cx, low);
        }
    }
    Ok(())
}
