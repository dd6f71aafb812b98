// SPDX-License-Identifier: GPL-2.0
//! Slot look-up and planning: KVM's documented checks one by one, and both against the plainest model.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    hva_end: 0x7fff_ffff_f000,
    max_gfn: Gfn((1 << 28) - 1),
    flags: FLAG_READONLY | FLAG_LOG_DIRTY,
};

/// User space can neither name the slot of ours, nor have one in its place.
#[test]
fn the_identity_slot_is_not_user_spaces() {
    let limits = LIMITS;
    let page = SlotRequest {
        gpa: 0xfffb_c000,
        size: PAGE_SIZE,
        ..request()
    };
    let Ok(Change::Create(ours)) = plan_as(&[], IDENTITY_SLOT, &page, &limits) else {
        panic!("it is refused")
    };
    assert_eq!((ours.id, ours.npages), (IDENTITY_SLOT, 1));
    let slots = [ours];
    assert_eq!(plan(&slots, &page, &limits), Err(SlotError::Overlap));
    for size in [0, PAGE_SIZE] {
        let named = SlotRequest {
            slot: IDENTITY_SLOT.into(),
            size,
            ..page
        };
        assert_eq!(plan(&slots, &named, &limits), Err(SlotError::Invalid));
    }
    let unaligned = SlotRequest {
        gpa: 0xfffb_c001,
        ..page
    };
    let refused = plan_as(&[], IDENTITY_SLOT, &unaligned, &limits);
    assert_eq!(refused, Err(SlotError::Invalid));
}

fn request() -> SlotRequest {
    SlotRequest {
        slot: 3,
        flags: 0,
        gpa: 0x10_0000,
        size: 0x4000,
        hva: 0x7000_0000,
    }
}

fn slot(id: u16, base: u64, npages: u64) -> Slot {
    let hva = Hva(0x7000_0000);
    Slot {
        id,
        base_gfn: Gfn(base),
        npages,
        hva,
        readonly: false,
        dirty_log: false,
    }
}

fn refused(slots: &[Slot], request: SlotRequest) -> SlotError {
    plan(slots, &request, &LIMITS).unwrap_err()
}

#[test]
fn a_good_request_creates() {
    let expect = slot(3, 0x100, 4);
    assert_eq!(plan(&[], &request(), &LIMITS), Ok(Change::Create(expect)));
    let readonly = SlotRequest {
        flags: FLAG_READONLY,
        ..request()
    };
    let expect = Slot {
        readonly: true,
        ..expect
    };
    assert_eq!(plan(&[], &readonly, &LIMITS), Ok(Change::Create(expect)));
}

#[test]
fn bad_words_are_refused() {
    let bad = [
        SlotRequest {
            slot: u32::from(USER_SLOTS),
            ..request()
        },
        SlotRequest {
            slot: 0x1_0003,
            ..request()
        },
        SlotRequest {
            flags: 1 << 2,
            ..request()
        },
        SlotRequest {
            flags: 1 << 31,
            ..request()
        },
        SlotRequest {
            gpa: 0x10_0001,
            ..request()
        },
        SlotRequest {
            size: 0x4800,
            ..request()
        },
        SlotRequest {
            hva: 0x7000_0800,
            ..request()
        },
        SlotRequest {
            hva: 0x7fff_ffff_e000,
            ..request()
        },
        SlotRequest {
            hva: 1 << 63,
            ..request()
        },
        SlotRequest {
            hva: 0xffff_ffff_ffff_f000,
            ..request()
        },
        SlotRequest {
            gpa: 0xffff_ffff_ffff_f000,
            ..request()
        },
        SlotRequest {
            size: (MAX_SLOT_PAGES + 1) << 12,
            hva: 0,
            ..request()
        },
        SlotRequest {
            gpa: (1 << 40) - 0x3000,
            ..request()
        },
        SlotRequest {
            size: 0,
            ..request()
        },
    ];
    for request in bad {
        assert_eq!(refused(&[], request), SlotError::Invalid, "{request:x?}");
    }
    let last = SlotRequest {
        slot: u32::from(USER_SLOTS) - 1,
        ..request()
    };
    assert!(plan(&[], &last, &LIMITS).is_ok());
    let top = SlotRequest {
        gpa: (1 << 40) - 0x4000,
        ..request()
    };
    assert!(plan(&[], &top, &LIMITS).is_ok());
    let edge = SlotRequest {
        hva: 0x7fff_ffff_b000,
        ..request()
    };
    assert!(plan(&[], &edge, &LIMITS).is_ok());
    let none = Limits { flags: 0, ..LIMITS };
    let flagged = SlotRequest {
        flags: FLAG_READONLY,
        ..request()
    };
    assert_eq!(plan(&[], &flagged, &none), Err(SlotError::Invalid));
}

#[test]
fn an_existing_slot_moves_goes_or_stays() {
    let old = slot(3, 0x100, 4);
    let slots = [old, slot(5, 0x200, 4)];
    assert_eq!(plan(&slots, &request(), &LIMITS), Ok(Change::Nothing));
    let delete = SlotRequest {
        size: 0,
        hva: 0,
        gpa: 0,
        ..request()
    };
    assert_eq!(plan(&slots, &delete, &LIMITS), Ok(Change::Delete(old)));
    let to = SlotRequest {
        gpa: 0x10_2000,
        ..request()
    };
    let new = slot(3, 0x102, 4);
    assert_eq!(plan(&slots, &to, &LIMITS), Ok(Change::Move { old, new }));
    let log = SlotRequest {
        flags: FLAG_LOG_DIRTY,
        ..request()
    };
    let new = Slot {
        dirty_log: true,
        ..old
    };
    assert_eq!(plan(&slots, &log, &LIMITS), Ok(Change::Flags { old, new }));
    for request in [
        SlotRequest {
            hva: 0x7000_1000,
            ..request()
        },
        SlotRequest {
            size: 0x5000,
            ..request()
        },
        SlotRequest {
            flags: FLAG_READONLY,
            ..request()
        },
        SlotRequest {
            gpa: 0x10_2000,
            flags: FLAG_READONLY,
            ..request()
        },
    ] {
        assert_eq!(refused(&slots, request), SlotError::Invalid, "{request:x?}");
    }
}

#[test]
fn overlap_is_refused_before_reach() {
    let slots = [slot(3, 0x100, 4), slot(5, 0x200, 4)];
    for (id, gpa) in [
        (4, 0x10_3000),
        (4, 0xf_d000),
        (4, 0x10_1000),
        (3, 0x20_3000),
    ] {
        let request = SlotRequest {
            slot: id,
            gpa,
            ..request()
        };
        assert_eq!(refused(&slots, request), SlotError::Overlap, "{request:x?}");
    }
    let beside = SlotRequest {
        slot: 4,
        gpa: 0x10_4000,
        ..request()
    };
    assert!(plan(&slots, &beside, &LIMITS).is_ok());
    let over_all = SlotRequest {
        slot: 4,
        gpa: 0,
        size: 0x1000 << 20,
        hva: 0x1000,
        ..request()
    };
    assert_eq!(refused(&slots, over_all), SlotError::Overlap);
    let high = [slot(5, LIMITS.max_gfn.0, 1)];
    let request = SlotRequest {
        gpa: LIMITS.max_gfn.0 << 12,
        ..request()
    };
    assert_eq!(refused(&high, request), SlotError::Overlap);
}

#[test]
fn hvas_become_gfns() {
    let slot = slot(0, 0x100, 4);
    let gfns = |start, end| slot.gfns_of_hvas(start, end).map(|r| (r.start.0, r.end.0));
    assert_eq!(gfns(0, u64::MAX), Some((0x100, 0x104)));
    assert_eq!(gfns(0x7000_0000, 0x7000_0001), Some((0x100, 0x101)));
    assert_eq!(gfns(0x7000_0fff, 0x7000_1001), Some((0x100, 0x102)));
    assert_eq!(gfns(0x7000_3000, 0x7000_9000), Some((0x103, 0x104)));
    assert_eq!(gfns(0x7000_4000, 0x7000_9000), None);
    assert_eq!(gfns(0, 0x7000_0000), None);
    assert_eq!(gfns(0x7000_1000, 0x7000_1000), None);
    assert_eq!(slot.hva_of_byte(Gpa(0x10_3fff)), Some(Hva(0x7000_3fff)));
    assert_eq!(slot.hva_of_byte(Gpa(0x10_4000)), None);
    assert_eq!(slot.hva_of_byte(Gpa(0xf_ffff)), None);
}

#[test]
fn leaves_stay_in_the_slot_and_aligned() {
    // Two 2 MiB pages and a rest of one page at either end; guest and user addresses 2 MiB apart.
    let aligned = Slot {
        hva: Hva(0x7020_0000 - 0x1000),
        ..slot(0, 0x1ff, 1026)
    };
    let level = |slot: &Slot, gfn, host| slot.leaf_level(Gfn(gfn), host);
    assert_eq!(level(&aligned, 0x1ff, Level::L2M), Level::L4K);
    assert_eq!(level(&aligned, 0x200, Level::L2M), Level::L2M);
    assert_eq!(level(&aligned, 0x5ff, Level::L2M), Level::L2M);
    assert_eq!(level(&aligned, 0x600, Level::L2M), Level::L4K);
    assert_eq!(level(&aligned, 0x200, Level::L1G), Level::L2M);
    assert_eq!(level(&aligned, 0x200, Level::L4K), Level::L4K);
    let skewed = Slot {
        hva: Hva(0x7020_0000),
        ..aligned
    };
    assert_eq!(level(&skewed, 0x200, Level::L1G), Level::L4K);
    let giant = Slot {
        hva: Hva(1 << 30),
        ..slot(0, 1 << 18, 1 << 18)
    };
    assert_eq!(level(&giant, (1 << 18) + 7, Level::L1G), Level::L1G);
    assert_eq!(level(&giant, (1 << 18) + 7, Level::L2M), Level::L2M);
}

/// Applies a change to a sorted set.
#[test]
fn gaps_reach_to_the_neighbours() {
    let range = |start, end| GfnRange {
        start: Gfn(start),
        end: Gfn(end),
    };
    let slots = [slot(0, 0x10, 0x10), slot(1, 0x40, 1), slot(2, 0x100, 0x100)];
    assert_eq!(gap(&[], range(5, 6)), GfnRange::ALL);
    assert_eq!(gap(&slots, range(0, 1)), range(0, 0x10));
    assert_eq!(gap(&slots, range(0x20, 0x30)), range(0x20, 0x40));
    assert_eq!(gap(&slots, range(0x80, 0x81)), range(0x41, 0x100));
    assert_eq!(gap(&slots, range(0x300, 0x301)), range(0x200, u64::MAX));
    // A slot that moved by less than its size: what it left, and no more.
    assert_eq!(gap(&slots, range(0xf0, 0x1f0)), range(0x41, 0x100));
    assert_eq!(gap(&slots, range(0x110, 0x210)), range(0x200, u64::MAX));
    assert!(gap(&[slot(0, 0, 8), slot(1, 8, 8)], range(8, 8)).is_empty());
}

fn apply(slots: &mut Vec<Slot>, change: Change) {
    let (gone, new) = match change {
        Change::Create(new) => (None, Some(new)),
        Change::Delete(old) => (Some(old), None),
        Change::Move { old, new } | Change::Flags { old, new } => (Some(old), Some(new)),
        Change::Nothing => (None, None),
    };
    slots.retain(|slot| Some(*slot) != gone);
    slots.extend(new);
    slots.sort_by_key(|slot| slot.base_gfn);
}

proptest! {
    /// Any sequence of requests leaves a sorted set without overlap, in which look-ups agree with a plain search.
    #[test]
    fn planned_sets_stay_sound(
        requests in prop::collection::vec((0u32..4, 0u64..12, 0u64..5, 0u64..3, 0u32..4), 1..40)
    ) {
        let mut slots = Vec::new();
        for (slot, page, pages, at, flags) in requests {
            let (gpa, size, hva) = (page << 12, pages << 12, at << 20);
            let request = SlotRequest { slot, flags, gpa, size, hva };
            match plan(&slots, &request, &LIMITS) {
                Ok(change) => apply(&mut slots, change),
                Err(SlotError::Overlap) => {
                    let wanted = GfnRange::new(Gfn(page), pages);
                    prop_assert!(slots
                        .iter()
                        .any(|s| u32::from(s.id) != slot && s.gfns().overlaps(wanted)));
                }
                Err(SlotError::Invalid) => prop_assert!(
                    size == 0 || slots.iter().any(|s| u32::from(s.id) == slot)
                ),
            }
            for pair in slots.windows(2) {
                prop_assert!(pair[0].gfns().end <= pair[1].base_gfn);
            }
            for gfn in (0..20).map(Gfn) {
                let plain = slots.iter().find(|s| s.gfns().start <= gfn && gfn < s.gfns().end);
                prop_assert_eq!(find(&slots, gfn), plain);
                let range = GfnRange::new(gfn, pages);
                let got: Vec<_> = overlapping(&slots, range).copied().collect();
                let mut plain = slots.clone();
                plain.retain(|s| s.gfns().overlaps(range));
                if pages > 0 {
                    prop_assert_eq!(got, plain);
                }
            }
        }
    }

    /// No request, however odd, panics, and what is accepted fits the limits.
    #[test]
    fn odd_requests_are_safe(slot: u32, flags: u32, gpa: u64, size: u64, hva: u64, mask: bool) {
        let mask = if mask { !0xfff } else { !0 };
        let (gpa, size, hva) = (gpa & mask, size & mask, hva & mask);
        let request = SlotRequest { slot, flags, gpa, size, hva };
        if let Ok(Change::Create(slot)) = plan(&[], &request, &LIMITS) {
            prop_assert!(slot.gfns().end.0 <= LIMITS.max_gfn.0 + 1);
            prop_assert!(slot.hva.0 + slot.npages * PAGE_SIZE <= LIMITS.hva_end);
        }
    }
}

#[test]
fn tables_that_are_left_of_a_slot_that_goes() {
    let range = |start, end| GfnRange {
        start: Gfn(start),
        end: Gfn(end),
    };
    let spans = |gone, gap, expected: &[GfnRange]| {
        assert!(
            left_tables(gone, gap).eq(expected.iter().copied()),
            "{gone:?} in {gap:?}"
        );
    };
    // Another slot in the same 2 MiB needs each of them.
    spans(range(5, 6), range(0, 0x100), &[]);
    // One in the same 1 GiB, and one before it.
    let table = range(0x200, 0x400);
    spans(range(0x205, 0x206), range(0x100, 0x1000), &[table, table]);
    // The two ends may have tables of their own.
    spans(
        range(0x3ff, 0x4_0001),
        range(0, 0x8_0000),
        &[
            table,
            range(0x4_0000, 0x4_0200),
            range(0, 0x4_0000),
            range(0x4_0000, 0x8_0000),
        ],
    );
    assert_eq!(left_tables(range(5, 6), GfnRange::ALL).count(), 6);
}
