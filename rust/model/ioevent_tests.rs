// SPDX-License-Identifier: GPL-2.0
//! Registrations against a plain statement of KVM's rules.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[test]
fn words_that_make_no_sense_are_refused() {
    for len in [3, 5, 6, 7, 9, 16, u32::MAX] {
        assert_eq!(IoEvent::checked(0, 0, len, 0), None, "length {len}");
    }
    assert_eq!(IoEvent::checked(0, u64::MAX, 2, 0), None, "past the end");
    assert!(IoEvent::checked(0, u64::MAX - 2, 2, 0).is_some());
    assert!(IoEvent::checked(0, u64::MAX, 0, 0).is_some());
    assert_eq!(IoEvent::checked(1 << 5, 0, 4, 0), None, "unknown flag");
    assert_eq!(
        IoEvent::checked(DATAMATCH, 0, 0, 0),
        None,
        "any length, one value"
    );
    assert_eq!(
        IoEvent::checked(PIO, 0, 4, 0).map(|e| e.bus),
        Some(Bus::Port)
    );
    assert_eq!(
        IoEvent::checked(CCW_NOTIFY, 0, 4, 0).map(|e| e.bus),
        Some(Bus::Other)
    );
    assert_eq!(
        IoEvent::checked(PIO | CCW_NOTIFY, 0, 4, 0).map(|e| e.bus),
        Some(Bus::Port)
    );
}

fn events() -> impl Strategy<Value = IoEvent> {
    (
        prop_oneof![Just(Bus::Memory), Just(Bus::Port), Just(Bus::Other)],
        0u64..3,
        prop_oneof![Just(0u32), Just(1), Just(2), Just(4), Just(8)],
        prop_oneof![
            Just(None),
            (0u64..3).prop_map(Some),
            Just(Some(0x1_0000_0001))
        ],
    )
        .prop_map(|(bus, addr, len, datamatch)| IoEvent {
            bus,
            addr,
            len,
            datamatch: datamatch.filter(|_| len != 0),
        })
}

/// The registrations that are made when these are tried one by one, sorted.
fn register(tries: &[IoEvent]) -> Vec<IoEvent> {
    let mut set = Vec::<IoEvent>::new();
    for e in tries {
        if !set.iter().any(|have| have.collides(e)) {
            set.insert(place(&set, e.key()), *e);
        }
    }
    set
}

proptest! {
    #[test]
    fn a_write_hits_the_only_one_that_takes_it(
        tries in proptest::collection::vec(events(), 0..20),
        bus in prop_oneof![Just(Bus::Memory), Just(Bus::Port)],
        addr in 0u64..3,
        len in prop_oneof![Just(1u8), Just(2), Just(4), Just(8)],
        value in prop_oneof![0u64..3, Just(0x1_0000_0001), Just(0x0100), any::<u64>()],
    ) {
        let set = register(&tries);
        prop_assert!(set.windows(2).all(|w| w[0].key() <= w[1].key()));
        let mut bytes = [0u8; 8];
        let n = usize::from(len);
        bytes[..n].copy_from_slice(&value.to_le_bytes()[..n]);
        let low = u64::from_le_bytes(bytes);
        let hits: Vec<_> = set
            .iter()
            .enumerate()
            .filter(|(_, e)| e.bus == bus && e.addr == addr)
            .filter(|(_, e)| {
                e.len == 0 || e.len == u32::from(len) && e.datamatch.is_none_or(|d| d == low)
            })
            .map(|(i, _)| i)
            .collect();
        prop_assert!(hits.len() <= 1, "{set:?}");
        prop_assert_eq!(find(&set, bus, addr, len, value), hits.first().copied());
    }

    #[test]
    fn colliding_is_mutual(a in events(), b in events()) {
        prop_assert_eq!(a.collides(&b), b.collides(&a));
        prop_assert!(a.collides(&a));
    }
}
