// SPDX-License-Identifier: GPL-2.0
//! Arithmetic and its flags, for operands of 1, 2, 4 or 8 bytes.
//!
//! Every function takes RFLAGS and returns them changed. Flags that the manuals call undefined stay as they were.
#![forbid(unsafe_code)]

use super::insn::Kind;
use crate::model::regs::rflags::{AF, CF, OF, PF, SF, ZF};

/// The status flags.
pub(super) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// All bits of an operand of `size` bytes (1 to 8).
#[inline]
pub(super) const fn mask(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// Number of bits of an operand of `size` bytes.
#[inline]
pub(super) const fn bits(size: u8) -> u32 {
    match size {
        1 => 8,
        2 => 16,
        4 => 32,
        _ => 64,
    }
}

/// The top bit of an operand of `size` bytes.
#[inline]
pub(super) const fn sign(size: u8) -> u64 {
    mask(size) ^ (mask(size) >> 1)
}

/// Sign-extends an operand of `size` bytes.
#[inline]
pub(super) const fn sext(size: u8, value: u64) -> u64 {
    match size {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        4 => value as i32 as u64,
        _ => value,
    }
}

const fn flag(bit: u64, set: bool) -> u64 {
    if set {
        bit
    } else {
        0
    }
}

/// SF, ZF and PF of a result.
const fn szp(size: u8, result: u64) -> u64 {
    let even = (result as u8).count_ones() & 1 == 0;
    flag(SF, result & sign(size) != 0) | flag(ZF, result & mask(size) == 0) | flag(PF, even)
}

const fn replace(flags: u64, which: u64, with: u64) -> u64 {
    (flags & !which) | (with & which)
}

/// `a + b + carry`.
const fn add(size: u8, a: u64, b: u64, carry: bool, flags: u64) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let result = a.wrapping_add(b).wrapping_add(carry as u64) & mask(size);
    // The carry out of each bit: both set, or one set and no sum there.
    let carries = (a & b) | ((a | b) & !result);
    let overflow = (a ^ result) & (b ^ result);
    let new = szp(size, result)
        | flag(CF, carries & sign(size) != 0)
        | flag(AF, carries & 8 != 0)
        | flag(OF, overflow & sign(size) != 0);
    (result, replace(flags, STATUS, new))
}

/// `a - b - borrow`.
const fn sub(size: u8, a: u64, b: u64, borrow: bool, flags: u64) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let result = a.wrapping_sub(b).wrapping_sub(borrow as u64) & mask(size);
    let borrows = (!a & b) | ((!a | b) & result);
    let overflow = (a ^ b) & (a ^ result);
    let new = szp(size, result)
        | flag(CF, borrows & sign(size) != 0)
        | flag(AF, borrows & 8 != 0)
        | flag(OF, overflow & sign(size) != 0);
    (result, replace(flags, STATUS, new))
}

/// Flags of AND, OR, XOR and TEST: AF is undefined.
const fn logic(size: u8, result: u64, flags: u64) -> (u64, u64) {
    let result = result & mask(size);
    (result, replace(flags, STATUS & !AF, szp(size, result)))
}

/// The instructions of two operands that write the first or only set flags: result and flags.
/// Anything that is not one of them leaves `a` and the flags.
pub(super) const fn binary(kind: Kind, size: u8, a: u64, b: u64, flags: u64) -> (u64, u64) {
    let carry = flags & CF != 0;
    match kind {
        Kind::Add | Kind::Xadd => add(size, a, b, false, flags),
        Kind::Adc => add(size, a, b, carry, flags),
        Kind::Sub | Kind::Cmp | Kind::Cmpxchg | Kind::Cmps | Kind::Scas => {
            sub(size, a, b, false, flags)
        }
        Kind::Sbb => sub(size, a, b, carry, flags),
        Kind::And | Kind::Test => logic(size, a & b, flags),
        Kind::Or => logic(size, a | b, flags),
        Kind::Xor => logic(size, a ^ b, flags),
        _ => (a, flags),
    }
}

/// The instructions of one operand.
pub(super) const fn unary(kind: Kind, size: u8, a: u64, flags: u64) -> (u64, u64) {
    match kind {
        Kind::Not => (!a & mask(size), flags),
        Kind::Neg => sub(size, 0, a, false, flags),
        // INC and DEC keep CF.
        Kind::Inc => {
            let (result, new) = add(size, a, 1, false, flags);
            (result, replace(new, CF, flags))
        }
        Kind::Dec => {
            let (result, new) = sub(size, a, 1, false, flags);
            (result, replace(new, CF, flags))
        }
        _ => (a, flags),
    }
}

/// Shifts and rotates by `count` (masked here). OF is defined for single-bit counts only, AF never.
pub(super) const fn shift(kind: Kind, size: u8, a: u64, count: u8, flags: u64) -> (u64, u64) {
    let count = (count & if size == 8 { 63 } else { 31 }) as u32;
    let a = a & mask(size);
    if count == 0 {
        return (a, flags);
    }
    match kind {
        Kind::Rol | Kind::Ror => rotate(kind, size, a, count, flags),
        Kind::Rcl | Kind::Rcr => rotate_carry(kind, size, a, count, flags),
        _ => shift_arith(kind, size, a, count, flags),
    }
}

const fn rotate(kind: Kind, size: u8, a: u64, count: u32, flags: u64) -> (u64, u64) {
    let width = bits(size);
    let left = matches!(kind, Kind::Rol);
    let by = count & width.wrapping_sub(1);
    let by = if left {
        by
    } else {
        width.wrapping_sub(by) & width.wrapping_sub(1)
    };
    let result = if by == 0 {
        a
    } else {
        (a.wrapping_shl(by) | a.wrapping_shr(width.wrapping_sub(by))) & mask(size)
    };
    let (msb, lsb) = (result & sign(size) != 0, result & 1 != 0);
    let next = result & (sign(size) >> 1) != 0;
    let carry = if left { lsb } else { msb };
    let overflow = if left { msb != carry } else { msb != next };
    let which = if count == 1 { CF | OF } else { CF };
    (
        result,
        replace(flags, which, flag(CF, carry) | flag(OF, overflow)),
    )
}

/// Rotates through the carry: a ring of one bit more than the operand has, turned bit by bit.
const fn rotate_carry(kind: Kind, size: u8, a: u64, count: u32, flags: u64) -> (u64, u64) {
    let left = matches!(kind, Kind::Rcl);
    let mut rest = match size {
        // The count is below 32; turning the ring all the way round changes nothing.
        1 if count >= 27 => count.wrapping_sub(27),
        1 if count >= 18 => count.wrapping_sub(18),
        1 if count >= 9 => count.wrapping_sub(9),
        2 if count >= 17 => count.wrapping_sub(17),
        _ => count,
    };
    let (mut value, mut carry) = (a, flags & CF != 0);
    while rest != 0 {
        let out = value & if left { sign(size) } else { 1 } != 0;
        value = if left {
            ((value << 1) | carry as u64) & mask(size)
        } else {
            (value >> 1) | if carry { sign(size) } else { 0 }
        };
        carry = out;
        rest = rest.wrapping_sub(1);
    }
    let msb = value & sign(size) != 0;
    let next = value & (sign(size) >> 1) != 0;
    let overflow = if left { msb != carry } else { msb != next };
    let which = if count == 1 { CF | OF } else { CF };
    (
        value,
        replace(flags, which, flag(CF, carry) | flag(OF, overflow)),
    )
}

const fn shift_arith(kind: Kind, size: u8, a: u64, count: u32, flags: u64) -> (u64, u64) {
    let before = count.wrapping_sub(1);
    // Shift by one less, look at the bit that leaves next, then shift it out. Counts of the width and more work
    // because the intermediate value is 128 bits wide.
    let (result, carry, overflow) = match kind {
        Kind::Shl | Kind::Sal => {
            let wide = (a as u128).wrapping_shl(before);
            let carry = wide & sign(size) as u128 != 0;
            let result = (wide << 1) as u64 & mask(size);
            (result, carry, (result & sign(size) != 0) != carry)
        }
        Kind::Shr => {
            let wide = (a as u128).wrapping_shr(before);
            ((wide >> 1) as u64, wide & 1 != 0, a & sign(size) != 0)
        }
        _ => {
            let wide = (sext(size, a) as i64 as i128).wrapping_shr(before);
            ((wide >> 1) as u64 & mask(size), wide & 1 != 0, false)
        }
    };
    let new = szp(size, result) | flag(CF, carry) | flag(OF, overflow);
    let which = if count == 1 {
        STATUS & !AF
    } else {
        STATUS & !(AF | OF)
    };
    (result, replace(flags, which, new))
}

/// SHLD and SHRD: shifts `a` and fills from `b`. For 16-bit operands and counts above 16 result and flags are
/// undefined: both stay.
pub(super) const fn shift_double(
    kind: Kind,
    size: u8,
    a: u64,
    b: u64,
    count: u8,
    flags: u64,
) -> (u64, u64) {
    let width = bits(size);
    let count = (count & if size == 8 { 63 } else { 31 }) as u32;
    let (a, b) = (a & mask(size), b & mask(size));
    if count == 0 || count > width {
        return (a, flags);
    }
    let (wide, carry) = if matches!(kind, Kind::Shld) {
        let pair = ((a as u128).wrapping_shl(width)) | b as u128;
        let carry = a.wrapping_shr(width.wrapping_sub(count)) & 1 != 0;
        (pair.wrapping_shl(count).wrapping_shr(width), carry)
    } else {
        let pair = ((b as u128).wrapping_shl(width)) | a as u128;
        let carry = a.wrapping_shr(count.wrapping_sub(1)) & 1 != 0;
        (pair.wrapping_shr(count), carry)
    };
    let result = wide as u64 & mask(size);
    let new = szp(size, result) | flag(CF, carry) | flag(OF, (a ^ result) & sign(size) != 0);
    let which = if count == 1 {
        STATUS & !AF
    } else {
        STATUS & !(AF | OF)
    };
    (result, replace(flags, which, new))
}

/// BT, BTS, BTR and BTC on bit `bit` (taken modulo the width): the old bit goes to CF, nothing else changes.
pub(super) const fn bit(kind: Kind, size: u8, a: u64, bit: u64, flags: u64) -> (u64, u64) {
    let one = 1u64.wrapping_shl(bit as u32 & bits(size).wrapping_sub(1));
    let result = match kind {
        Kind::Bts => a | one,
        Kind::Btr => a & !one,
        Kind::Btc => a ^ one,
        _ => a,
    };
    (result, replace(flags, CF, flag(CF, a & one != 0)))
}

#[cfg(test)]
#[path = "alu_tests.rs"]
mod tests;
