// SPDX-License-Identifier: GPL-2.0
//! The engine against a model of maps and sets, for both formats; what it refuses and reports.

#[path = "tdp_tests/arena.rs"]
mod arena;
#[path = "tdp_tests/entries.rs"]
mod entries;
#[path = "tdp_tests/model.rs"]
mod model;
#[path = "tdp_tests/races.rs"]
mod races;
#[path = "tdp_tests/slots.rs"]
mod slots;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;

use self::arena::{map_of, Arena, Graves, Pool, RW};
use self::model::Model;
use super::*;
use crate::mmu::ept::{Ept, EptConfig};
use crate::mmu::npt::{Npt, NptConfig};
use crate::mmu::pte::FROZEN;
use crate::mmu::storage::Owed;
use crate::mmu::GfnRange;

#[derive(Clone, Debug)]
enum Op {
    Map {
        gfn: u64,
        delta: u64,
        level: Level,
        perms: Perms,
    },
    Zap(GfnRange),
    Protect(GfnRange),
    Age(GfnRange),
    TestAge(GfnRange),
    ZapAll,
}

/// Few enough gfns that operations meet, at the edges of all levels and of the reach.
fn gfns() -> impl Strategy<Value = u64> {
    let top = prop_oneof![Just(0u64), Just(1), Just(512), Just((1 << 18) - 1)];
    let mid = prop_oneof![Just(0u64), Just(1), Just(511)];
    let low = prop_oneof![Just(0u64), Just(1), Just(511)];
    (top, mid, low).prop_map(|(t, m, l)| (t << 18) + (m << 9) + l)
}

fn ranges() -> impl Strategy<Value = GfnRange> {
    let pages = prop_oneof![
        Just(1u64),
        Just(2),
        Just(511),
        Just(512),
        Just(1024),
        Just(1 << 18),
        Just(1 << 20)
    ];
    (gfns(), pages, any::<bool>()).prop_map(|(gfn, pages, align)| {
        let start = if align {
            gfn & !(pages.next_power_of_two() - 1)
        } else {
            gfn
        };
        GfnRange::new(Gfn(start), pages)
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let deltas =
        prop_oneof![4 => Just(1u64 << 20), 1 => Just((1 << 20) + 512), 1 => Just((1 << 20) + 1)];
    let levels = prop_oneof![Just(Level::L4K), Just(Level::L2M), Just(Level::L1G)];
    let perms = (any::<bool>(), any::<bool>()).prop_map(|(write, exec)| Perms { write, exec });
    prop_oneof![
        8 => (gfns(), deltas, levels, perms)
            .prop_map(|(gfn, delta, level, perms)| Op::Map { gfn, delta, level, perms }),
        4 => ranges().prop_map(Op::Zap),
        2 => ranges().prop_map(Op::Protect),
        2 => ranges().prop_map(Op::Age),
        2 => ranges().prop_map(Op::TestAge),
        1 => Just(Op::ZapAll),
    ]
}

struct Rig<'a, P: PteFormat> {
    tdp: Tdp<P>,
    model: Model,
    arena: &'a Arena,
    pool: Pool<'a>,
    counts: Counts,
    config: P::Config,
}

impl<P: PteFormat> Rig<'_, P> {
    fn settle<G>(&mut self, owed: Owed<G>, expect_flush: bool) -> G {
        let mut flushes = 0;
        let settled = owed.pay(|range| {
            assert!(!range.is_empty());
            flushes += 1;
        });
        assert_eq!(flushes, usize::from(expect_flush));
        assert_eq!(settled.flushed, expect_flush);
        assert_eq!(settled.bug, None);
        self.counts.add(&settled.counts);
        settled.graves
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Map {
                gfn,
                delta,
                level,
                perms,
            } => {
                let map = Map {
                    gfn: Gfn(gfn),
                    pfn: Pfn(gfn + delta),
                    level,
                    perms,
                    mem: MemType::WriteBack,
                };
                let expect = self.model.map(self.tdp.root_level(), &map);
                let got = self
                    .tdp
                    .map(self.arena, &mut self.pool, &map, &mut self.counts);
                assert_eq!(got, expect);
            }
            Op::Zap(range) => {
                let (buried, changed) = self.model.zap(range);
                let owed = self.tdp.zap(self.arena, Graves::default(), range);
                let graves = self.settle(owed, changed);
                self.check_graves(&graves, buried);
            }
            Op::ZapAll => {
                let (buried, changed) = self.model.zap(GfnRange::ALL);
                let owed = self.tdp.zap_all(self.arena, Graves::default());
                let graves = self.settle(owed, changed);
                self.check_graves(&graves, buried);
            }
            Op::Protect(range) => {
                let mut changed = false;
                for leaf in self.model.overlapping(range) {
                    changed |= leaf.2.write;
                    leaf.2.write = false;
                }
                let owed = self.tdp.write_protect(self.arena, range);
                self.settle(owed, changed);
            }
            Op::Age(range) => self.age(range),
            Op::TestAge(range) => {
                let tracks = P::tracks_access(self.config);
                let young = self.model.overlapping(range).iter().any(|l| l.3 || !tracks);
                assert_eq!(self.tdp.test_age(self.arena, range), young);
            }
        }
    }

    fn age(&mut self, range: GfnRange) {
        let aged = self.tdp.age(self.arena, range);
        assert_eq!(aged.bug, None);
        self.counts.add(&aged.counts);
        let hit = self.model.overlapping(range);
        if P::tracks_access(self.config) {
            assert_eq!(aged.young, hit.iter().any(|l| l.3));
            assert!(!aged.flush.is_owed());
            hit.into_iter().for_each(|l| l.3 = false);
        } else {
            assert_eq!(aged.young, !hit.is_empty());
            assert_eq!(aged.flush.is_owed(), !hit.is_empty());
            self.model
                .leaves
                .retain(|&start, leaf| !range.overlaps(GfnRange::new(Gfn(start), leaf.0.pages())));
        }
        aged.flush.pay(|_| ());
    }

    /// Buried pages hold nothing that could be used, and every entry is frozen against late mappers.
    fn check_graves(&self, graves: &Graves, expect: usize) {
        assert_eq!(graves.0.len(), expect);
        assert_eq!(graves.0.iter().collect::<BTreeSet<_>>().len(), expect);
        for &table in &graves.0 {
            for index in 0..ENTRIES {
                assert_eq!(self.arena.cell(table, index).unwrap().load(), FROZEN);
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.counts, self.model.counts());
        assert_eq!(self.tdp.count(self.arena), self.model.counts());
        for (&start, &(level, pfn, perms, young)) in &self.model.leaves {
            for offset in [0, level.pages() / 2, level.pages() - 1] {
                let leaf = self
                    .tdp
                    .lookup(self.arena, Gfn(start + offset))
                    .expect("mapped");
                assert_eq!((leaf.level, leaf.pfn.0), (level, pfn + offset));
                assert_eq!(leaf.perms, perms);
                if P::tracks_access(self.config) {
                    assert_eq!(leaf.accessed, young);
                }
            }
        }
    }
}

fn against_model<P: PteFormat>(config: P::Config, root: Level, ops: &[Op]) {
    let arena = Arena::new(4 * ops.len() + 2);
    let mut pool = Pool::new(&arena);
    let tdp = Tdp::<P>::new(config, root, Level::L1G, &mut pool).unwrap();
    let mut rig = Rig {
        tdp,
        model: Model::default(),
        arena: &arena,
        pool,
        counts: Counts::default(),
        config,
    };
    for op in ops {
        rig.run(op);
        rig.check();
    }
    for gfn in [0, 1, 512, 1 << 18, 1 << 27] {
        let mapped = rig.tdp.lookup(&arena, Gfn(gfn)).is_some();
        assert_eq!(mapped, rig.model.leaf_at(gfn).is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn ept_follows_the_model(ops in prop::collection::vec(ops(), 1..24), ad: bool) {
        against_model::<Ept>(EptConfig { accessed_dirty: ad }, Level::L512G, &ops);
    }

    #[test]
    fn npt_follows_the_model(ops in prop::collection::vec(ops(), 1..24), five: bool, sme: bool) {
        let root = if five { Level::L256T } else { Level::L512G };
        let encryption_mask = if sme { 1 << 47 } else { 0 };
        against_model::<Npt>(NptConfig { encryption_mask }, root, &ops);
    }
}

#[test]
fn out_of_reach_is_refused() {
    let arena = Arena::new(4);
    let mut pool = Pool::new(&arena);
    let mut counts = Counts::default();
    let tdp = Tdp::<Npt>::new(NptConfig::default(), Level::L512G, Level::L1G, &mut pool).unwrap();
    for gfn in [1 << 36, 1 << 52, u64::MAX] {
        let map = Map {
            gfn: Gfn(gfn),
            ..map_of(0, RW, Level::L4K)
        };
        assert_eq!(
            tdp.map(&arena, &mut pool, &map, &mut counts),
            Err(MapError::OutOfRange)
        );
        assert_eq!(tdp.lookup(&arena, Gfn(gfn)), None);
    }
    let map = Map {
        pfn: Pfn(1 << 52),
        ..map_of(0, RW, Level::L4K)
    };
    assert_eq!(
        tdp.map(&arena, &mut pool, &map, &mut counts),
        Err(MapError::OutOfRange)
    );
    assert!(Tdp::<Npt>::new(NptConfig::default(), Level::L1G, Level::L4K, &mut pool).is_none());
    assert!(Tdp::<Npt>::new(NptConfig::default(), Level::L512G, Level::L512G, &mut pool).is_none());
}

/// A broken entry is reported and left alone; everything else is zapped all the same.
#[test]
fn zapping_goes_on_past_a_broken_entry() {
    let arena = Arena::new(16);
    let mut pool = Pool::new(&arena);
    let mut counts = Counts::default();
    let mut tdp =
        Tdp::<Npt>::new(NptConfig::default(), Level::L512G, Level::L4K, &mut pool).unwrap();
    for gfn in [5, 9] {
        tdp.map(&arena, &mut pool, &map_of(gfn, RW, Level::L4K), &mut counts)
            .unwrap();
    }
    let leaf_table = TablePa::new(arena.used.load(SeqCst) as u64 * 4096);
    arena.cell(leaf_table, 5).unwrap().store(0x1000);
    let settled = tdp
        .zap(&arena, Graves::default(), GfnRange::new(Gfn(0), 100))
        .pay(|_| ());
    assert_eq!(
        settled.bug,
        Some(Bug {
            level: 1,
            old: 0x1000,
            new: 0x1000
        })
    );
    assert_eq!(settled.counts.leaves, [-1, 0, 0]);
    assert!(settled.graves.0.is_empty());
}
