// SPDX-License-Identifier: GPL-2.0
use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const MS: u64 = 1_000_000;
/// A tick is a nanosecond.
const KHZ: u32 = 1_000_000;

/// A host whose counter began a second before its time.
fn at(ms: u64) -> Moment {
    Moment {
        ns: ms * MS,
        scaled: (1000 + ms) * MS,
        khz: KHZ,
        stable: true,
    }
}

fn unstable(ms: u64) -> Moment {
    Moment {
        stable: false,
        // As if read on another CPU.
        scaled: 77,
        ..at(ms)
    }
}

#[test]
fn the_first_starts_at_zero_and_new_ones_join() {
    let mut s = TscSync::default();
    let first = s.write(None, &at(500));
    assert_eq!(first.offset, 0u64.wrapping_sub(1500 * MS));
    assert_eq!((first.ns, first.value), (500 * MS, 0));
    assert_eq!(s.write(None, &at(90_000)), first);
    assert_eq!(
        s.write(Some(0), &at(91_000)),
        first,
        "and zeros of user space's"
    );
}

#[test]
fn the_first_value_of_user_space_counts_as_it_is() {
    let mut s = TscSync::default();
    let first = s.write(None, &at(0));
    // That near to what the kernel chose it would be drawn to it later.
    let set = s.write(Some(300 * MS), &at(100));
    assert_ne!(set.offset, first.offset);
    assert_eq!(set.offset, (300 * MS).wrapping_sub(1100 * MS));
    assert_eq!(
        s.write(Some(300 * MS), &at(200)),
        set,
        "the same for the next vCPU"
    );
    assert_eq!(s.write(None, &at(9_000)), set, "a new one joins those");
}

#[test]
fn near_is_less_than_a_second() {
    let base = {
        let mut s = TscSync::default();
        s.write(Some(5_000 * MS), &at(0));
        s
    };
    let due = 5_250 * MS;
    let joins = |value| {
        let mut s = base;
        s.write(Some(value), &at(250)) == base.course
    };
    assert!(joins(due) && joins(due + 1000 * MS - 1) && joins(due - 1000 * MS + 1));
    assert!(!joins(due + 1000 * MS) && !joins(due - 1000 * MS) && !joins(1));
    assert!(joins(0), "zero always is");
}

#[test]
fn the_last_value_counts_not_that_of_the_course() {
    let mut s = TscSync::default();
    let set = s.write(Some(5_000 * MS), &at(0));
    // Three steps of 0.8 s: each is near to the one before it.
    for n in 1..=3 {
        assert_eq!(s.write(Some((5_000 + n * 800) * MS), &at(0)), set);
    }
    assert_ne!(
        s.write(Some(5_000 * MS), &at(1)),
        set,
        "now that is far away"
    );
}

#[test]
fn rates_have_to_be_the_same() {
    let mut s = TscSync::default();
    let first = s.write(None, &at(0));
    let twice = Moment {
        khz: 2 * KHZ,
        scaled: 2 * at(10).scaled,
        ..at(10)
    };
    let other = s.write(None, &twice);
    assert_eq!(other.offset, 0u64.wrapping_sub(twice.scaled));
    assert_ne!(s.write(Some(0), &at(10)), first, "the last one had another");
    let none = Moment { khz: 0, ..at(20) };
    let a = s.write(None, &none);
    assert_ne!(s.write(None, &Moment { khz: 0, ..at(30) }), a);
}

#[test]
fn offsets() {
    let mut s = TscSync::default();
    let first = s.write(None, &at(0));
    assert_eq!(
        s.set_offset(first.offset, &at(700)),
        first,
        "the same again"
    );
    let set = s.set_offset(42, &at(700));
    assert_eq!(
        (set.offset, set.ns, set.value),
        (42, 700 * MS, 1700 * MS + 42)
    );
    assert_eq!(
        s.write(Some(1800 * MS), &at(800)),
        set,
        "it was user space's"
    );
    assert_eq!(s.write(None, &at(900)), set, "a new one");
}

#[test]
fn where_counters_differ_the_value_is_in_step() {
    let mut s = TscSync::default();
    s.write(None, &at(0));
    let set = s.write(None, &unstable(100));
    assert_eq!(set.offset.wrapping_add(77), 100 * MS);
    let set = s.write(Some(0), &unstable(300));
    assert_eq!(set.offset.wrapping_add(77), 300 * MS, "since the first");
}

#[test]
fn a_suspend_that_resets_the_counter() {
    let mut s = TscSync::default();
    s.make_up(50, |l| l);
    let set = s.write(Some(5_000 * MS), &at(0));
    s.make_up(50, |_| panic!("nothing new"));
    assert_eq!(s.write(Some(5_000 * MS), &at(0)), set);
    s.make_up(57, |lost| lost * 10);
    let moved = Course {
        offset: set.offset + 70,
        ..set
    };
    assert_eq!(s.write(None, &at(10)), moved, "as all others will have it");
    let mut loss = Loss::after(3);
    assert_eq!((loss.take(10), loss.take(10), loss.take(11)), (7, 0, 1));
}

#[test]
fn values_from_before_a_suspend_join_nothing() {
    let mut s = TscSync::default();
    let set = s.write(Some(5_000 * MS), &at(0));
    s.make_up(7, |l| l);
    let new = s.write(Some(5_000 * MS), &at(5));
    assert_eq!(new.offset, (5_000 * MS).wrapping_sub(at(5).scaled));
    assert_ne!(new, set);
}

#[test]
fn the_later_value() {
    assert_eq!((later(5, 6), later(6, 5), later(5, 5)), (6, 6, 5));
    assert_eq!(
        (later(u64::MAX, 3), later(3, u64::MAX)),
        (3, 3),
        "over the end"
    );
}

proptest! {
    #[test]
    fn a_value_that_joins_nothing_is_read_at_once(value: u64, ns: u64, scaled: u64, khz: u32, stable: bool) {
        let m = Moment { ns, scaled, khz, stable };
        let set = TscSync::default().write(Some(value), &m);
        prop_assert_eq!(set.offset.wrapping_add(scaled), value);
        prop_assert_eq!(set.value_at(ns, khz), value);
    }

    #[test]
    fn no_input_panics(steps: Vec<(Option<u64>, bool, u64, u64, u32, bool)>) {
        let mut s = TscSync::default();
        for (value, by_offset, ns, scaled, khz, stable) in steps {
            let m = Moment { ns, scaled, khz, stable };
            let _ = match value {
                Some(v) if by_offset => s.set_offset(v, &m),
                v => s.write(v, &m),
            };
        }
    }
}
