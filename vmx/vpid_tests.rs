// SPDX-License-Identifier: GPL-2.0
//! Tests of the VPID allocator.
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

#[test]
fn zero_is_never_handed_out_and_all_others_are() {
    let mut bitmap = vec![0; WORDS];
    let mut vpids = Vpids::new(&mut bitmap);
    for expected in 1..=u16::MAX {
        assert_eq!(vpids.take(), Some(expected));
    }
    assert_eq!(vpids.take(), None);
    assert!(vpids.give(777));
    assert_eq!(vpids.take(), Some(777));
    assert_eq!(vpids.take(), None);
}

#[test]
fn giving_back_what_was_not_taken_is_noticed() {
    let mut bitmap = vec![0; 1];
    let mut vpids = Vpids::new(&mut bitmap);
    assert!(!vpids.give(0));
    assert!(!vpids.give(5));
    assert!(!vpids.give(500));
    assert_eq!(vpids.take(), Some(1));
    assert!(vpids.give(1));
    assert!(!vpids.give(1));
}

#[test]
fn odd_bitmaps() {
    assert_eq!(Vpids::new(&mut []).take(), None);
    let mut large = vec![u64::MAX; WORDS + 4];
    large[WORDS] = 0;
    assert_eq!(Vpids::new(&mut large).take(), None);
}

proptest! {
    #[test]
    fn behaves_as_a_set(steps in proptest::collection::vec(any::<(bool, u16)>(), 1..400)) {
        let mut bitmap = [0; 2];
        let mut vpids = Vpids::new(&mut bitmap);
        let mut model = BTreeSet::new();
        for (take, number) in steps {
            if take {
                let lowest = (1..128).find(|n| !model.contains(n));
                prop_assert_eq!(vpids.take(), lowest);
                model.extend(lowest);
            } else {
                let choices: Vec<u16> = model.iter().copied().collect();
                if let Some(vpid) = choices.get(usize::from(number) % choices.len().max(1)) {
                    prop_assert!(vpids.give(*vpid));
                    model.remove(vpid);
                }
            }
        }
    }
}
