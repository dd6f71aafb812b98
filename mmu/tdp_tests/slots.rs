// SPDX-License-Identifier: GPL-2.0
//! Tables that come and go with the slots.

use std::vec::Vec;

use proptest::prelude::*;

use super::arena::{map_of, Arena, Graves, Pool, TestCell, RW};
use crate::mmu::npt::{Npt, NptConfig};
use crate::mmu::slots::{self, Slot};
use crate::mmu::storage::{Cell64, Counts, Tables};
use crate::mmu::tdp::funnel::Kind;
use crate::mmu::tdp::walk::{Entry, Next};
use crate::mmu::tdp::Tdp;
use crate::mmu::{Gfn, GfnRange, Hva, Level, ENTRIES};

/// Tables without memory behind them, and the slots that they are for.
struct World<'a> {
    tdp: Tdp<Npt>,
    arena: &'a Arena,
    pool: Pool<'a>,
    slots: Vec<Slot>,
}

impl<'a> World<'a> {
    fn new(arena: &'a Arena, root: Level) -> Self {
        let mut pool = Pool::new(arena);
        let tdp = Tdp::new(NptConfig::default(), root, Level::L1G, &mut pool).unwrap();
        Self {
            tdp,
            arena,
            pool,
            slots: Vec::new(),
        }
    }

    /// Adds a slot, unless there is one, and maps its first page, its last, one in the first of its 2 MiB, and one in each 512 GiB.
    fn add(&mut self, base: u64, npages: u64) {
        let slot = Slot {
            id: 0,
            base_gfn: Gfn(base),
            npages,
            hva: Hva(0x7000_0000),
            readonly: false,
            dirty_log: false,
        };
        if slots::overlapping(&self.slots, slot.gfns())
            .next()
            .is_some()
        {
            return;
        }
        let at = self.slots.partition_point(|s| s.base_gfn < slot.base_gfn);
        self.slots.insert(at, slot);
        let inner = (base..base + npages).step_by(512).take(8);
        let far = (base..base + npages).step_by(1 << 27).take(8);
        for gfn in inner.chain(far).chain([base + npages - 1]) {
            let map = map_of(gfn, RW, Level::L4K);
            let mut counts = Counts::default();
            self.tdp
                .map(self.arena, &mut self.pool, &map, &mut counts)
                .unwrap();
        }
    }

    fn zap(&mut self, range: GfnRange) -> usize {
        let owed = self.tdp.zap(self.arena, Graves::default(), range);
        let settled = owed.pay(|_| ());
        assert_eq!(settled.bug, None);
        let buried = settled.graves.0;
        for &table in &buried {
            for index in 0..ENTRIES {
                self.arena.cell(table, index).unwrap().store(0);
            }
        }
        self.pool.spare.extend(&buried);
        buried.len()
    }

    /// Takes the slot at this place away, as KVM_SET_USER_MEMORY_REGION does.
    fn remove(&mut self, index: usize) {
        let gone = self.slots.remove(index).gfns();
        for part in gone.parts() {
            self.zap(part);
        }
        for span in slots::left_tables(gone, slots::gap(&self.slots, gone)) {
            self.zap(span);
        }
    }

    /// What each table spans.
    fn tables(&self) -> Vec<GfnRange> {
        let mut spans = Vec::new();
        self.tdp
            .walk(self.arena, GfnRange::ALL, &mut |e: Entry<'_, TestCell>| {
                if e.kind == Kind::Table {
                    spans.push(e.span);
                }
                Next::Into
            });
        spans
    }
}

#[test]
fn a_slot_that_goes_takes_its_tables_with_it() {
    let arena = Arena::new(64);
    let mut world = World::new(&arena, Level::L512G);
    for n in 0..1000 {
        world.add(n * 512 + 7, 1);
        assert_eq!(world.tables().len(), 3);
        world.remove(0);
        assert_eq!(world.tables().len(), 0);
    }
    // One of 2 TiB, touched here and there, beside another.
    world.add(5, 1);
    world.add(1 << 20, 1 << 29);
    assert!(world.tables().len() > 11);
    world.remove(1);
    assert_eq!(world.tables().len(), 3);
    // Small ones beside another, which keeps the tables that both need.
    for n in 1..1000 {
        world.add(n * 512, 1);
        world.remove(1);
        assert_eq!(world.tables().len(), 3);
    }
    // In the middle of two.
    world.add(1 << 18, 1);
    for n in 1..500 {
        world.add(n * 512 + 511, 1);
        world.remove(1);
        assert_eq!(world.tables().len(), 5);
    }
}

/// However the slots lie, a step of the teardown has few tables to free: 32 of the lowest level with 64 MiB, or those of one table.
#[test]
fn a_teardown_is_done_in_small_steps() {
    for root in [Level::L512G, Level::L256T] {
        for (apart, pages) in [
            (512, 1),
            (1 << 18, 1),
            (1 << 27, 1),
            (600, 513),
            (1 << 19, 1 << 18),
        ] {
            let arena = Arena::new(5000);
            let mut world = World::new(&arena, root);
            for n in 0..400 {
                world.add(77 + n * apart, pages);
            }
            let mut total = world.tables().len();
            let ranges: Vec<_> = slots::teardown(&world.slots).collect();
            for range in ranges {
                let buried = world.zap(range);
                assert!(buried <= 32, "{buried} tables of {range:?}");
                total -= buried;
            }
            assert_eq!(total, 0);
            assert!(world.tables().is_empty());
        }
    }
}

/// Slots that share tables of all levels.
fn places() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let top = prop_oneof![Just(0u64), Just(1), Just(512), Just(1 << 18)];
    let mid = prop_oneof![Just(0u64), Just(1), Just(3), Just(511)];
    let low = prop_oneof![Just(0u64), Just(1), Just(510), Just(511)];
    let base = (top, mid, low).prop_map(|(t, m, l)| (t << 18) + (m << 9) + l);
    let pages =
        prop_oneof![4 => 1u64..4, 2 => 500u64..1500, 1 => Just(1u64 << 19), 1 => Just(3u64 << 27)];
    prop::collection::vec((base, pages), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_table_outlives_the_slots_that_need_it(places in places(), order: u64) {
        let arena = Arena::new(64 * places.len());
        let mut world = World::new(&arena, Level::L256T);
        for &(base, pages) in &places {
            world.add(base, pages);
        }
        let mut order = order;
        while !world.slots.is_empty() {
            let index = (order % world.slots.len() as u64) as usize;
            order = order.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            world.remove(index);
            // Each is for a page of some slot, and its mapped pages are all there.
            let needed = |span: GfnRange| world.slots.iter().any(|s| s.gfns().overlaps(span));
            prop_assert!(world.tables().into_iter().all(needed));
            for slot in &world.slots {
                prop_assert!(world.tdp.lookup(world.arena, slot.base_gfn).is_some());
            }
        }
        prop_assert!(world.tables().is_empty());
        for &(base, pages) in &places {
            world.add(base, pages);
        }
        let steps: Vec<_> = slots::teardown(&world.slots).collect();
        for range in steps {
            world.zap(range);
        }
        prop_assert!(world.tables().is_empty());
        prop_assert_eq!(world.tdp.count(world.arena).leaves, [0; 3]);
    }
}
