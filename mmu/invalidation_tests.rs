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
    now.end();
    assert!(!now.concern(0x1000, 0x3000));
    now.begin(0x8000, 0x9000);
    assert!(!now.concern(0x1000, 0x3000));
    now.end();
    now.end();
    now.begin(0x1000, 0x2000);
    assert!(now.concern(0x1000, 0x2000));
}

proptest! {
    #[test]
    fn all_in_progress_are_covered(steps in prop::collection::vec((any::<bool>(), 0u64..50, 1u64..9), 1..60)) {
        let mut now = Invalidations::default();
        let mut open: Vec<(u64, u64)> = Vec::new();
        for (begin, start, len) in steps {
            if begin || open.is_empty() {
                open.push((start, start + len));
                now.begin(start, start + len);
            } else {
                open.remove(start as usize % open.len());
                now.end();
            }
            for &(start, end) in &open {
                prop_assert!(now.concern(start, start + 1) && now.concern(end - 1, end));
            }
            prop_assert_eq!(now.concern(0, u64::MAX), !open.is_empty());
        }
    }
}
