// SPDX-License-Identifier: GPL-2.0
//! The arithmetic against a second model that works in wide integers, or one bit at a time.
use super::super::decode::tests::Rng;
use super::*;

const SIZES: [u8; 4] = [1, 2, 4, 8];

fn with(flags: u64, changes: &[(u64, bool)]) -> u64 {
    changes.iter().fold(
        flags,
        |flags, &(bit, set)| if set { flags | bit } else { flags & !bit },
    )
}

fn signed(size: u8, value: u64) -> i128 {
    let width = 8 * u32::from(size);
    let value = i128::from(value);
    if value >= 1 << (width - 1) {
        value - (1 << width)
    } else {
        value
    }
}

fn result_flags(size: u8, result: u64) -> [(u64, bool); 3] {
    let parity = (0..8).filter(|n| (result >> n) & 1 != 0).count();
    [
        (SF, signed(size, result) < 0),
        (ZF, result == 0),
        (PF, parity % 2 == 0),
    ]
}

/// Addition (`sign` 1) or subtraction (`sign` -1) in 128 bits.
fn wide(size: u8, sign: i128, a: u64, b: u64, carry: u64, flags: u64) -> (u64, u64) {
    let modulus = 1i128 << (8 * u32::from(size));
    let full = i128::from(a) + sign * (i128::from(b) + i128::from(carry));
    let exact = signed(size, a) + sign * (signed(size, b) + i128::from(carry));
    let result = full.rem_euclid(modulus) as u64;
    let nibble = i128::from(a & 15) + sign * (i128::from(b & 15) + i128::from(carry));
    let flags = with(flags, &result_flags(size, result));
    let overflow = exact < -modulus / 2 || exact >= modulus / 2;
    let out = [
        (CF, full < 0 || full >= modulus),
        (OF, overflow),
        (AF, !(0..16).contains(&nibble)),
    ];
    (result, with(flags, &out))
}

fn expected_binary(kind: Kind, size: u8, a: u64, b: u64, flags: u64) -> (u64, u64) {
    let carry = flags & CF;
    match kind {
        Kind::Add => wide(size, 1, a, b, 0, flags),
        Kind::Adc => wide(size, 1, a, b, carry, flags),
        Kind::Sub | Kind::Cmp => wide(size, -1, a, b, 0, flags),
        Kind::Sbb => wide(size, -1, a, b, carry, flags),
        _ => {
            let result = match kind {
                Kind::And | Kind::Test => a & b,
                Kind::Or => a | b,
                _ => a ^ b,
            };
            let flags = with(flags, &result_flags(size, result));
            (result, with(flags, &[(CF, false), (OF, false)]))
        }
    }
}

const BINARY: [Kind; 9] = [
    Kind::Add,
    Kind::Or,
    Kind::Adc,
    Kind::Sbb,
    Kind::And,
    Kind::Sub,
    Kind::Xor,
    Kind::Cmp,
    Kind::Test,
];

#[test]
fn two_operands_of_a_byte_each_exhaustively() {
    for kind in BINARY {
        for flags in [2, 2 | STATUS] {
            for pair in 0..0x10000u64 {
                let (a, b) = (pair >> 8, pair & 0xff);
                let expected = expected_binary(kind, 1, a, b, flags);
                assert_eq!(
                    binary(kind, 1, a, b, flags),
                    expected,
                    "{kind:?} {a:#x} {b:#x} {flags:#x}"
                );
            }
        }
    }
}

/// Values near the corners turn up often.
fn operand(rng: &mut Rng, size: u8) -> u64 {
    let corner = [0, 1, mask(size), sign(size), sign(size) - 1][rng.below(5) as usize];
    let value = match rng.below(3) {
        0 => corner,
        1 => corner.wrapping_add(rng.below(33)).wrapping_sub(16),
        _ => rng.next(),
    };
    value & mask(size)
}

#[test]
fn two_operands_of_any_size() {
    let mut rng = Rng(2);
    for _ in 0..400_000 {
        let (kind, size) = (BINARY[rng.below(9) as usize], SIZES[rng.below(4) as usize]);
        let (a, b, flags) = (operand(&mut rng, size), operand(&mut rng, size), rng.next());
        let expected = expected_binary(kind, size, a, b, flags);
        assert_eq!(
            binary(kind, size, a, b, flags),
            expected,
            "{kind:?} {size} {a:#x} {b:#x} {flags:#x}"
        );
    }
}

#[test]
fn one_operand() {
    let mut rng = Rng(1);
    for _ in 0..100_000 {
        let size = SIZES[rng.below(4) as usize];
        let (a, flags) = (operand(&mut rng, size), rng.next());
        let keep_carry = |(value, new): (u64, u64)| (value, with(new, &[(CF, flags & CF != 0)]));
        assert_eq!(unary(Kind::Not, size, a, flags), (a ^ mask(size), flags));
        assert_eq!(
            unary(Kind::Neg, size, a, flags),
            wide(size, -1, 0, a, 0, flags)
        );
        assert_eq!(
            unary(Kind::Inc, size, a, flags),
            keep_carry(wide(size, 1, a, 1, 0, flags))
        );
        assert_eq!(
            unary(Kind::Dec, size, a, flags),
            keep_carry(wide(size, -1, a, 1, 0, flags))
        );
    }
}

/// Shifts and rotates one bit at a time.
fn expected_shift(kind: Kind, size: u8, a: u64, count: u8, flags: u64) -> (u64, u64) {
    let count = count & if size == 8 { 63 } else { 31 };
    let (top, mut value, mut carry) = (8 * u32::from(size) - 1, a, flags & CF != 0);
    for _ in 0..count {
        let (msb, lsb) = ((value >> top) & 1, value & 1);
        let carry_in = u64::from(carry);
        let left = matches!(kind, Kind::Rol | Kind::Rcl | Kind::Shl | Kind::Sal);
        carry = if left { msb } else { lsb } != 0;
        let fill = match kind {
            Kind::Rol | Kind::Sar => msb,
            Kind::Ror => lsb,
            Kind::Rcl | Kind::Rcr => carry_in,
            _ => 0,
        };
        value = if left {
            (value << 1) & mask(size) | fill
        } else {
            (value >> 1) | (fill << top)
        };
    }
    if count == 0 {
        return (a, flags);
    }
    let mut new = with(flags, &[(CF, carry)]);
    if !matches!(kind, Kind::Rol | Kind::Ror | Kind::Rcl | Kind::Rcr) {
        new = with(new, &result_flags(size, value));
    }
    if count == 1 {
        // Overflow: the sign has changed. SAR cannot change it.
        new = with(new, &[(OF, ((a ^ value) >> top) & 1 != 0)]);
    }
    (value, new)
}

#[test]
fn shifts_and_rotates() {
    let kinds = [
        Kind::Rol,
        Kind::Ror,
        Kind::Rcl,
        Kind::Rcr,
        Kind::Shl,
        Kind::Shr,
        Kind::Sal,
        Kind::Sar,
    ];
    let mut rng = Rng(3);
    for _ in 0..40_000 {
        for size in SIZES {
            let (kind, count) = (kinds[rng.below(8) as usize], rng.byte());
            let (a, flags) = (operand(&mut rng, size), rng.next());
            let expected = expected_shift(kind, size, a, count, flags);
            assert_eq!(
                shift(kind, size, a, count, flags),
                expected,
                "{kind:?} {size} {a:#x} {count}"
            );
        }
    }
}

#[test]
fn double_shifts() {
    let mut rng = Rng(4);
    for _ in 0..100_000 {
        let (size, raw) = (SIZES[1 + rng.below(3) as usize], rng.byte());
        let (a, b, flags) = (operand(&mut rng, size), operand(&mut rng, size), rng.next());
        let count = raw & if size == 8 { 63 } else { 31 };
        let top = 8 * u32::from(size) - 1;
        for kind in [Kind::Shld, Kind::Shrd] {
            let got = shift_double(kind, size, a, b, raw, flags);
            if count == 0 || u32::from(count) > top + 1 {
                assert_eq!(got, (a, flags));
                continue;
            }
            let (mut value, mut fill, mut carry) = (a, b, false);
            for _ in 0..count {
                if kind == Kind::Shld {
                    carry = (value >> top) & 1 != 0;
                    value = (value << 1) & mask(size) | (fill >> top) & 1;
                    fill <<= 1;
                } else {
                    carry = value & 1 != 0;
                    value = (value >> 1) | ((fill & 1) << top);
                    fill >>= 1;
                }
            }
            let mut new = with(flags, &result_flags(size, value));
            new = with(new, &[(CF, carry)]);
            if count == 1 {
                new = with(new, &[(OF, ((a ^ value) >> top) & 1 != 0)]);
            }
            assert_eq!(got, (value, new), "{kind:?} {size} {a:#x} {b:#x} {count}");
        }
    }
}

#[test]
fn bit_tests() {
    for size in [2u8, 4, 8] {
        for at in 0..200u64 {
            let place = 1u64 << (at % (8 * u64::from(size)));
            for a in [0, mask(size), place, mask(size) ^ place] {
                let old = a & place != 0;
                let flags = with(2 | AF | OF, &[(CF, old)]);
                assert_eq!(bit(Kind::Bt, size, a, at, 2 | AF | OF), (a, flags));
                assert_eq!(bit(Kind::Bts, size, a, at, 2 | AF | OF), (a | place, flags));
                assert_eq!(
                    bit(Kind::Btr, size, a, at, 2 | AF | OF),
                    (a & !place, flags)
                );
                assert_eq!(
                    bit(Kind::Btc, size, a, at, 2 | AF | OF | CF),
                    (a ^ place, flags)
                );
            }
        }
    }
}
