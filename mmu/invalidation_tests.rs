// SPDX-License-Identifier: GPL-2.0
//! No range that is being changed is ever reported free; and what follows from that for faults, in `race.rs`.

#[path = "invalidation_tests/explore.rs"]
mod explore;
#[path = "invalidation_tests/race.rs"]
mod race;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[test]
fn ranges_are_half_open_and_forgotten() {
    let mut now = Invalidations::default();
    assert!(!now.concern(0, u64::MAX));
    now.begin(0x1000, 0x3000);
    assert!(now.concern(0x2fff, 0x3000) && now.concern(0, 0x1001) && now.concern(0, u64::MAX));
    assert!(!now.concern(0x3000, 0x4000) && !now.concern(0, 0x1000));
    now.end(0x1000, 0x3000);
    assert!(!now.concern(0x1000, 0x3000));
    now.begin(0x8000, 0x9000);
    assert!(!now.concern(0x1000, 0x3000));
    now.end(0x8000, 0x9000);
    now.end(0x8000, 0x9000);
    now.begin(0x1000, 0x2000);
    assert!(now.concern(0x1000, 0x2000));
}

/// A long change in one place does not block what lies between it and a short one in another.
#[test]
fn a_few_changes_are_told_apart() {
    let mut now = Invalidations::default();
    now.begin(0x1000, 0x2000);
    now.begin(0x9000, 0xa000);
    assert!(!now.concern(0x5000, 0x6000));
    now.end(0x9000, 0xa000);
    assert!(!now.concern(0x5000, 0xa000) && now.concern(0x1000, 0x2000));
    // Of many, as much is blocked as they have between them, until they end.
    for n in 1..20u64 {
        now.begin(n << 16, (n << 16) + 0x1000);
    }
    assert!(now.concern(0xf_5000, 0xf_6000) && !now.concern(0x1_5000, 0x1_6000));
    for n in 1..20u64 {
        now.end(n << 16, (n << 16) + 0x1000);
    }
    assert!(!now.concern(0x2000, u64::MAX) && now.concern(0, 0x2000));
}

proptest! {
    /// What is in progress is covered. And nothing else, if they are few.
    #[test]
    fn all_in_progress_are_covered(steps in prop::collection::vec((any::<bool>(), 0u64..50, 1u64..9), 1..120)) {
        let mut now = Invalidations::default();
        let mut open: Vec<(u64, u64)> = Vec::new();
        let mut exact = true;
        for (begin, start, len) in steps {
            if begin || open.is_empty() {
                open.push((start, start + len));
                now.begin(start, start + len);
            } else {
                let (start, end) = open.remove(start as usize % open.len());
                now.end(start, end);
            }
            exact = open.is_empty() || exact && open.len() <= APART;
            for at in 0..60 {
                let covered = open.iter().any(|r| (r.0..r.1).contains(&at));
                let concerned = now.concern(at, at + 1);
                prop_assert!(concerned == covered || concerned && !exact);
            }
            prop_assert_eq!(now.concern(0, u64::MAX), !open.is_empty());
        }
    }
}
