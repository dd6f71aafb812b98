// SPDX-License-Identifier: GPL-2.0
use super::access::{READ, WRITE};
use super::*;
use proptest::prelude::*;

fn range(flags: u32, base: u32, count: u32, bitmap: &[u8]) -> Range<'_> {
    Range {
        flags,
        base,
        count,
        bitmap,
    }
}

#[test]
fn the_first_range_decides() {
    let (some, all) = ([0b0000_0101u8], [0xff]);
    let ranges = [
        range(READ, 0x10, 3, &some),
        range(READ | WRITE, 0x11, 4, &all),
    ];
    let ask = |default, index, access| allowed(default, ranges, index, access);
    assert!(ask(false, 0x10, READ) && !ask(true, 0x11, READ) && ask(false, 0x12, READ));
    assert!(ask(false, 0x13, READ), "beyond the first range");
    assert!(
        !ask(false, 0x10, WRITE) && ask(true, 0x10, WRITE),
        "no range is about it"
    );
    assert!(ask(false, 0x11, WRITE));
    for i in 0x800..0x900 {
        assert!(ask(false, i, READ) && ask(false, i, WRITE), "x2APIC");
    }
}

#[test]
fn sizes() {
    assert_eq!(bitmap_bytes(READ, 1), Ok(8));
    assert_eq!(bitmap_bytes(WRITE, 64), Ok(8));
    assert_eq!(bitmap_bytes(3, 65), Ok(16));
    assert_eq!(bitmap_bytes(3, 0x600 * 8), Ok(0x600));
    for (flags, count) in [
        (0, 1),
        (4, 1),
        (7, 1),
        (1 << 31 | 1, 1),
        (3, 0x600 * 8 + 1),
        (3, u32::MAX),
    ] {
        assert_eq!(bitmap_bytes(flags, count), Err(BadRange), "{flags} {count}");
    }
}

proptest! {
    #[test]
    fn no_input_panics(flags: u32, base: u32, count: u32, index: u32, access: u32, bitmap: [u8; 20]) {
        let _ = allowed(true, [range(flags, base, count, &bitmap)], index, access);
        let _ = bitmap_bytes(flags, count);
    }
}
