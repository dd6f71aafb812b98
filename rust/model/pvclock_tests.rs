// SPDX-License-Identifier: GPL-2.0
use super::*;
use proptest::prelude::*;

#[test]
fn known_rates() {
    // One tick is a nanosecond; half of one; four.
    assert_eq!(
        Scale::from_khz(1_000_000),
        Scale {
            mul: 1 << 31,
            shift: 1
        }
    );
    assert_eq!(
        Scale::from_khz(2_000_000),
        Scale {
            mul: 1 << 31,
            shift: 0
        }
    );
    assert_eq!(
        Scale::from_khz(250_000),
        Scale {
            mul: 1 << 31,
            shift: 3
        }
    );
    assert_eq!(Scale::from_khz(0), Scale::default());
    assert_eq!(Scale::from_khz(0).nanoseconds(1 << 40), 0);
}

#[test]
fn a_page_in_memory() {
    let t = TimeInfo {
        version: 0x0403_0201,
        tsc: 0x1817_1615_1413_1211,
        system_time: 0x2827_2625_2423_2221,
        scale: Scale {
            mul: 0x3433_3231,
            shift: -2,
        },
        flags: 3,
    };
    let b = t.bytes();
    assert_eq!(b[..8], [1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(b[8..16], [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
    assert_eq!(b[16..24], [0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28]);
    assert_eq!(b[24..], [0x31, 0x32, 0x33, 0x34, 0xfe, 3, 0, 0]);
}

#[test]
fn versions_are_odd_while_writing() {
    for old in [0, 1, 2, 7, u32::MAX, u32::MAX - 1] {
        let (w, done) = versions(old);
        assert!(w & 1 == 1 && done & 1 == 0 && done == w.wrapping_add(1) && w != old);
    }
}

#[test]
fn the_wall_clock_is_that_of_zero() {
    let b = wall_clock(5 * NS_PER_SEC + 30, 2 * NS_PER_SEC + 10);
    assert_eq!(b, [3, 0, 0, 0, 20, 0, 0, 0]);
}

#[test]
fn tolerance() {
    assert!(!rates_differ(1_000_000, 1_000_000) && !rates_differ(1_000_250, 1_000_000));
    assert!(rates_differ(1_000_251, 1_000_000) && rates_differ(999_749, 1_000_000));
    assert!(rates_differ(1, 0) && !rates_differ(0, 0));
}

#[test]
fn ratios() {
    assert_eq!(TscScale::default().apply(77), 77);
    let double = TscScale::new(2_000_000, 1_000_000, 48).unwrap();
    assert_eq!((double.ratio, double.apply(5)), (2 << 48, 10));
    assert_eq!(
        TscScale::new(1, 1_000_000, 8),
        None,
        "nothing is left of it"
    );
    assert_eq!(TscScale::new(u32::MAX, 1, 48), None, "does not fit");
    assert_eq!(TscScale::new(5, 0, 48), None);
}

#[test]
fn rates() {
    assert_eq!(TscScale::default().rate(1_000_100), 1_000_100, "as it is");
    let double = TscScale::new(2_000_000, 1_000_000, 48).unwrap();
    assert_eq!((double.rate(1_000_000), double.rate(0)), (2_000_000, 1));
    assert_eq!(double.rate(u32::MAX), u32::MAX);
}

/// A page that is made from an anchor late tells the same time as the clock itself, and as a page that was made at once.
#[test]
fn a_clock_goes_by_its_anchor_alone() {
    let scale = Scale::from_khz(2_494_140);
    let anchor = Anchor {
        tsc: u64::MAX - 5,
        ns: 1000,
    };
    assert_eq!(anchor.at(anchor.tsc, &scale), 1000);
    let day = 2_494_140_000 * 86_400;
    let later = anchor.at(anchor.tsc.wrapping_add(day), &scale);
    assert!(later.abs_diff(1000 + 86_400 * NS_PER_SEC) < 100_000);
    let page = TimeInfo {
        tsc: anchor.tsc.wrapping_add(77),
        system_time: anchor.ns,
        scale,
        ..TimeInfo::default()
    };
    let guest = anchor.tsc.wrapping_add(day).wrapping_add(77);
    assert_eq!(
        page.system_time + page.scale.nanoseconds(guest.wrapping_sub(page.tsc)),
        later
    );
}

proptest! {
    #[test]
    fn a_second_is_a_second(khz in 1u32..) {
        let s = Scale::from_khz(khz);
        let got = s.nanoseconds(u64::from(khz) * 1000);
        prop_assert!(NS_PER_SEC.abs_diff(got) <= 2 + 1000, "{} of {s:?}", got);
        prop_assert!(s.mul >= 1 << 31);
    }

    #[test]
    fn divisions_are_exact(a: u32, b in 1u32.., places in 0u8..=64) {
        prop_assert_eq!(divide(a, b, places), Some((u128::from(a) << places) / u128::from(b)));
    }

    #[test]
    fn ticks_are_exact(ns in 0u64..1 << 40, khz in 1u32..1 << 24) {
        let exact = u128::from(ns) * u128::from(khz) / 1_000_000;
        prop_assert_eq!(u128::from(super::ticks(ns, khz)), exact);
    }

    #[test]
    fn time_does_not_go_back(khz in 1u32.., a in 0u64..1 << 40, b in 0u64..1 << 40) {
        let s = Scale::from_khz(khz);
        prop_assert!(a > b || s.nanoseconds(a) <= s.nanoseconds(b));
    }

    #[test]
    fn a_ratio_is_exact_enough(guest in 100_000u32..10_000_000, host in 100_000u32..10_000_000) {
        let r = TscScale::new(guest, host, 48).unwrap();
        prop_assert!(r.apply(u64::from(host)).abs_diff(guest.into()) <= 1);
    }

    #[test]
    fn no_input_panics(khz: u32, host: u32, places: u8, ticks: u64, ratio: u64, shift: i8, mul: u32) {
        let _ = Scale::from_khz(khz).nanoseconds(ticks);
        let _ = Scale { mul, shift }.nanoseconds(ticks);
        let _ = TscScale::new(khz, host, places).map(|r| r.apply(ticks));
        let _ = super::ticks(ticks, khz);
        let _ = TscScale { ratio, places }.apply(ticks);
        let _ = (rates_differ(khz, host), wall_clock(ticks, ratio));
    }
}
