// SPDX-License-Identifier: GPL-2.0
//! The engine against a model of maps and sets, for both formats; races between threads; the funnel's table of arrows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::vec::Vec;

use proptest::prelude::*;

use super::funnel::judge;
use super::*;
use crate::mmu::ept::{Ept, EptConfig};
use crate::mmu::npt::{Npt, NptConfig};
use crate::mmu::pte::FROZEN;
use crate::mmu::storage::{FlushOwed, Graveyard, Owed};
use crate::mmu::{Access, GfnRange};

/// An entry. If `rival` is not 0, another CPU writes that value right before the next compare-and-exchange.
#[derive(Default)]
struct TestCell {
    value: AtomicU64,
    rival: AtomicU64,
}

impl Cell64 for TestCell {
    fn load(&self) -> u64 {
        self.value.load(SeqCst)
    }
    fn store(&self, value: u64) {
        self.value.store(value, SeqCst);
    }
    fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        let rival = self.rival.swap(0, SeqCst);
        if rival != 0 {
            self.value.store(rival, SeqCst);
        }
        self.value.compare_exchange(old, new, SeqCst, SeqCst)
    }
    fn swap(&self, value: u64) -> u64 {
        self.value.swap(value, SeqCst)
    }
}

/// Memory for tables. The page of index `i` has the physical address `(i + 1) << 12`.
struct Arena {
    cells: Vec<TestCell>,
    used: AtomicUsize,
}

impl Arena {
    fn new(pages: usize) -> Self {
        let cells = (0..pages * ENTRIES).map(|_| TestCell::default()).collect();
        Self {
            cells,
            used: AtomicUsize::new(0),
        }
    }
}

impl Tables for Arena {
    type Cell = TestCell;
    fn cell(&self, table: TablePa, index: usize) -> Option<&TestCell> {
        let page = (table.get() >> 12).checked_sub(1)? as usize;
        assert!(
            page < self.used.load(SeqCst),
            "a page that was never handed out"
        );
        (index < ENTRIES).then(|| &self.cells[page * ENTRIES + index])
    }
}

/// A pool over an arena; it checks that what comes back is untouched.
struct Pool<'a> {
    arena: &'a Arena,
    spare: Vec<TablePa>,
    limit: usize,
}

impl<'a> Pool<'a> {
    fn new(arena: &'a Arena) -> Self {
        Self {
            arena,
            spare: Vec::new(),
            limit: usize::MAX,
        }
    }
}

impl TablePool for Pool<'_> {
    fn take(&mut self) -> Option<TablePa> {
        if self.limit == 0 {
            return None;
        }
        self.limit -= 1;
        if let Some(page) = self.spare.pop() {
            return Some(page);
        }
        let index = self.arena.used.fetch_add(1, SeqCst);
        assert!(
            (index + 1) * ENTRIES <= self.arena.cells.len(),
            "arena too small"
        );
        Some(TablePa::new((index as u64 + 1) << 12))
    }
    fn put_back(&mut self, table: TablePa) {
        for index in 0..ENTRIES {
            assert_eq!(self.arena.cell(table, index).unwrap().load(), 0);
        }
        self.spare.push(table);
    }
}

/// Collects buried pages.
#[derive(Default, Debug)]
struct Graves(Vec<TablePa>);

impl Graveyard for Graves {
    fn bury(&mut self, table: TablePa) {
        self.0.push(table);
    }
}

const RW: Perms = Perms {
    write: true,
    exec: true,
};
const RO: Perms = Perms {
    write: false,
    exec: true,
};

/// What the tables should hold, told in the plainest way.
#[derive(Default)]
struct Model {
    /// First gfn of a leaf: its level, first pfn, permissions, accessed bit.
    leaves: BTreeMap<u64, (Level, u64, Perms, bool)>,
    /// Tables by the level of their entries and their first gfn; the root is not among them.
    tables: BTreeSet<(Level, u64)>,
}

fn base(gfn: u64, level: Level) -> u64 {
    gfn / level.pages() * level.pages()
}

impl Model {
    fn leaf_at(&self, gfn: u64) -> Option<(u64, Level, u64, Perms, bool)> {
        let (&start, &(level, pfn, perms, young)) = self.leaves.range(..=gfn).next_back()?;
        (gfn < start + level.pages()).then_some((start, level, pfn, perms, young))
    }

    fn map(&mut self, root: Level, m: &Map) -> Result<Mapped, MapError> {
        let mut target = m.level;
        while m.gfn.0 % target.pages() != m.pfn.0 % target.pages() {
            target = target.below().unwrap();
        }
        if let Some((start, level, pfn, perms, young)) = self.leaf_at(m.gfn.0) {
            if pfn + (m.gfn.0 - start) != m.pfn.0 {
                return Err(MapError::Blocked(level));
            }
            if perms.include(m.perms) {
                return Ok(Mapped::Spurious(level));
            }
            if target < level {
                return Err(MapError::Blocked(level));
            }
            self.leaves
                .insert(start, (level, pfn, perms.union(m.perms), young));
            return Ok(Mapped::Upgraded(level));
        }
        while target > Level::L4K {
            let below = target.below().unwrap();
            if !self.tables.contains(&(below, base(m.gfn.0, target))) {
                break;
            }
            target = below;
        }
        let mut level = target;
        while level < root {
            self.tables
                .insert((level, base(m.gfn.0, level.above().unwrap())));
            level = level.above().unwrap();
        }
        let start = base(m.gfn.0, target);
        let pfn = base(m.pfn.0, target);
        self.leaves.insert(start, (target, pfn, m.perms, true));
        Ok(Mapped::New(target))
    }

    /// Gives the tables that go, and whether anything went.
    fn zap(&mut self, range: GfnRange) -> (usize, bool) {
        let (leaves, tables) = (self.leaves.len(), self.tables.len());
        self.leaves
            .retain(|&start, leaf| !range.overlaps(GfnRange::new(Gfn(start), leaf.0.pages())));
        self.tables.retain(|&(level, start)| {
            let pages = level.above().unwrap().pages();
            !range.covers(GfnRange::new(Gfn(start), pages))
        });
        let buried = tables - self.tables.len();
        (buried, buried > 0 || leaves > self.leaves.len())
    }

    fn overlapping(&mut self, range: GfnRange) -> Vec<&mut (Level, u64, Perms, bool)> {
        let hit =
            |start: u64, level: Level| range.overlaps(GfnRange::new(Gfn(start), level.pages()));
        self.leaves
            .iter_mut()
            .filter(|(&s, l)| hit(s, l.0))
            .map(|(_, l)| l)
            .collect()
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts {
            tables: self.tables.len() as i64,
            ..Counts::default()
        };
        for leaf in self.leaves.values() {
            counts.leaves[leaf.0 as usize - 1] += 1;
        }
        counts
    }
}

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

fn map_of(gfn: u64, perms: Perms, level: Level) -> Map {
    Map {
        gfn: Gfn(gfn),
        pfn: Pfn(gfn + (1 << 20)),
        level,
        perms,
        mem: MemType::WriteBack,
    }
}

/// Threads that map the same pages meet in compare-and-exchange: one leaf a page, no page of the pool lost or linked twice.
#[test]
fn parallel_faults_agree() {
    const THREADS: usize = 4;
    let arena = Arena::new(4096);
    let tdp = Tdp::<Npt>::new(
        NptConfig::default(),
        Level::L512G,
        Level::L2M,
        &mut Pool::new(&arena),
    )
    .unwrap();
    let gfns: Vec<u64> = (0..64)
        .map(|i| (i % 8) * (1 << 18) + (i / 8) * 513)
        .collect();
    let start = std::sync::Barrier::new(THREADS);
    let results = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..THREADS)
            .map(|t| {
                let (tdp, arena, gfns, start) = (&tdp, &arena, &gfns, &start);
                scope.spawn(move || {
                    let mut pool = Pool::new(arena);
                    let mut counts = Counts::default();
                    let mut fresh = 0;
                    for (i, &gfn) in gfns.iter().enumerate() {
                        let level = if i % 3 == 0 { Level::L2M } else { Level::L4K };
                        let perms = if (i + t) % 2 == 0 { RW } else { RO };
                        start.wait();
                        loop {
                            match tdp.map(arena, &mut pool, &map_of(gfn, perms, level), &mut counts)
                            {
                                Ok(Mapped::New(_)) => fresh += 1,
                                Ok(_) => {}
                                Err(MapError::Retry) => continue,
                                // Someone mapped a read-only large page here first.
                                Err(MapError::Blocked(Level::L2M)) => {}
                                Err(e) => panic!("{e:?}"),
                            }
                            break;
                        }
                    }
                    (counts, fresh, pool.spare.len())
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap())
            .collect::<Vec<_>>()
    });
    let mut sum = Counts::default();
    let (mut fresh, mut spare) = (0, 0);
    for (counts, new, left) in results {
        sum.add(&counts);
        fresh += new;
        spare += left;
    }
    let counted = tdp.count(&arena);
    assert_eq!(sum, counted);
    assert_eq!(fresh, counted.leaves.iter().sum::<i64>());
    assert_eq!(arena.used.load(SeqCst), 1 + counted.tables as usize + spare);
    for gfn in gfns {
        assert_eq!(tdp.lookup(&arena, Gfn(gfn)).unwrap().pfn.0, gfn + (1 << 20));
    }
}

/// Another CPU links a table, or maps the page, between the look at an entry and the change of it.
#[test]
fn a_lost_race_is_followed() {
    let arena = Arena::new(16);
    let mut pool = Pool::new(&arena);
    let config = NptConfig::default();
    let tdp = Tdp::<Npt>::new(config, Level::L512G, Level::L4K, &mut pool).unwrap();
    let rival = pool.take().unwrap();
    let linked = Npt::table(config, rival.get());
    arena
        .cell(tdp.root(), 0)
        .unwrap()
        .rival
        .store(linked, SeqCst);
    let mut counts = Counts::default();
    let map = map_of(7, RW, Level::L4K);
    assert_eq!(
        tdp.map(&arena, &mut pool, &map, &mut counts),
        Ok(Mapped::New(Level::L4K))
    );
    assert_eq!(counts.tables, 2);
    assert_eq!(tdp.count(&arena).tables, 3);
    assert_eq!(arena.used.load(SeqCst), 4 + pool.spare.len());
    let leaf_table = TablePa::new(arena.used.load(SeqCst) as u64 * 4096);
    let leaf = arena.cell(leaf_table, 7).unwrap().load();
    arena
        .cell(leaf_table, 8)
        .unwrap()
        .rival
        .store(leaf + 0x1000, SeqCst);
    let map = map_of(8, RW, Level::L4K);
    let mapped = tdp.map(&arena, &mut pool, &map, &mut counts);
    assert_eq!(mapped, Ok(Mapped::Spurious(Level::L4K)));
    assert_eq!(counts.leaves, [1, 0, 0]);
}

/// The CPU sets bits while the engine ages and upgrades: neither side's change is lost.
#[test]
fn hardware_bits_survive_races() {
    const ACCESSED: u64 = 1 << 5;
    let arena = Arena::new(16);
    let mut pool = Pool::new(&arena);
    let tdp = Tdp::<Npt>::new(NptConfig::default(), Level::L512G, Level::L4K, &mut pool).unwrap();
    let mut counts = Counts::default();
    tdp.map(&arena, &mut pool, &map_of(7, RO, Level::L4K), &mut counts)
        .unwrap();
    let leaf_table = TablePa::new(arena.used.load(SeqCst) as u64 * 4096);
    let cell = arena.cell(leaf_table, 7).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10_000 {
                cell.value.fetch_or(ACCESSED, SeqCst);
            }
        });
        for _ in 0..2_000 {
            let aged = tdp.age(&arena, GfnRange::new(Gfn(7), 1));
            assert_eq!((aged.bug, aged.flush), (None, FlushOwed::NONE));
        }
        let up = tdp.map(
            &arena,
            &mut Pool::new(&arena),
            &map_of(7, RW, Level::L4K),
            &mut counts,
        );
        assert_eq!(up, Ok(Mapped::Upgraded(Level::L4K)));
    });
    let leaf = tdp.lookup(&arena, Gfn(7)).unwrap();
    assert!(leaf.perms.write && leaf.dirty);
    assert_eq!(counts.leaves, [1, 0, 0]);
}

#[test]
fn a_frozen_entry_makes_a_fault_wait() {
    let arena = Arena::new(16);
    let mut pool = Pool::new(&arena);
    let tdp = Tdp::<Ept>::new(
        EptConfig {
            accessed_dirty: true,
        },
        Level::L512G,
        Level::L1G,
        &mut pool,
    )
    .unwrap();
    arena.cell(tdp.root(), 0).unwrap().store(FROZEN);
    let mut counts = Counts::default();
    let map = map_of(3, RW, Level::L4K);
    assert_eq!(
        tdp.map(&arena, &mut pool, &map, &mut counts),
        Err(MapError::Retry)
    );
    assert_eq!(tdp.lookup(&arena, Gfn(3)), None);
    assert_eq!(counts, Counts::default());
}

#[test]
fn an_empty_pool_keeps_what_was_linked() {
    let arena = Arena::new(16);
    let mut pool = Pool::new(&arena);
    let tdp = Tdp::<Ept>::new(
        EptConfig {
            accessed_dirty: true,
        },
        Level::L512G,
        Level::L1G,
        &mut pool,
    )
    .unwrap();
    pool.limit = 2;
    let mut counts = Counts::default();
    let map = map_of(3, RW, Level::L4K);
    assert_eq!(
        tdp.map(&arena, &mut pool, &map, &mut counts),
        Err(MapError::NoTable)
    );
    assert_eq!(counts.tables, 2);
    pool.limit = 1;
    assert_eq!(
        tdp.map(&arena, &mut pool, &map, &mut counts),
        Ok(Mapped::New(Level::L4K))
    );
    assert_eq!(counts, tdp.count(&arena));
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

/// The arrows of "Life of an entry": each pair of kinds at each level is legal or refused, and owes what it should.
#[test]
fn the_funnel_knows_its_arrows() {
    let config = NptConfig::default();
    let leaf = |pa, level, perms| Npt::leaf(config, pa, level, perms, MemType::WriteBack);
    for level in (1..=5).filter_map(Level::from_number) {
        let verdict = |old, new| judge::<Npt>(config, level, old, new).map(|v| v.flush).ok();
        let table = Npt::table(config, 0x5000);
        assert_eq!(verdict(0, FROZEN), Some(false));
        assert_eq!(verdict(FROZEN, 0), Some(false));
        assert_eq!(verdict(0, 0), None);
        assert_eq!(verdict(0x1000, 0), None);
        assert_eq!(verdict(0, 0x1000), None);
        if level > Level::L4K {
            assert_eq!(verdict(0, table), Some(false));
            assert_eq!(verdict(table, FROZEN), Some(true));
            assert_eq!(verdict(table, 0), None);
            assert_eq!(verdict(table, Npt::table(config, 0x6000)), None);
            assert_eq!(verdict(FROZEN, table), None);
        }
        if !level.may_be_leaf() {
            continue;
        }
        let (rw, ro) = (leaf(1 << 40, level, RW), leaf(1 << 40, level, RO));
        assert_eq!(verdict(0, rw), Some(false));
        assert_eq!(verdict(ro, rw), Some(false));
        assert_eq!(verdict(rw, ro), Some(true));
        assert_eq!(verdict(rw, Npt::clear_accessed(rw)), Some(false));
        assert_eq!(verdict(rw, 0), Some(true));
        assert_eq!(verdict(rw, FROZEN), Some(true));
        assert_eq!(verdict(FROZEN, rw), None);
        assert_eq!(verdict(rw, leaf(1 << 41, level, RW)), None);
        if level > Level::L4K {
            assert_eq!(verdict(rw, table), None);
            assert_eq!(verdict(table, rw), None);
        }
    }
}

/// The encodings, bit by bit ("EPT Translation Mechanism", "Nested Paging").
#[test]
fn leaves_have_the_manuals_bits() {
    let ept = |ad, level, perms, mem| {
        Ept::leaf(
            EptConfig { accessed_dirty: ad },
            0x1_4000_0000,
            level,
            perms,
            mem,
        )
    };
    assert_eq!(
        ept(false, Level::L4K, RW, MemType::WriteBack),
        0x1_4000_0077
    );
    assert_eq!(ept(true, Level::L2M, RW, MemType::WriteBack), 0x1_4000_03f7);
    assert_eq!(ept(true, Level::L4K, RO, MemType::Uncached), 0x1_4000_0105);
    let npt = |sme, level, perms, mem| {
        Npt::leaf(
            NptConfig {
                encryption_mask: sme,
            },
            0x1_4000_0000,
            level,
            perms,
            mem,
        )
    };
    assert_eq!(npt(0, Level::L4K, RW, MemType::WriteBack), 0x1_4000_0067);
    assert_eq!(npt(0, Level::L1G, RO, MemType::WriteBack), 0x1_4000_00a5);
    let no_exec = Perms {
        write: false,
        exec: false,
    };
    assert_eq!(
        npt(0, Level::L4K, no_exec, MemType::WriteBack),
        0x8000_0001_4000_0025
    );
    assert_eq!(
        npt(1 << 47, Level::L4K, RO, MemType::WriteBack),
        0x8001_4000_0025
    );
    assert_eq!(
        npt(1 << 47, Level::L4K, RO, MemType::Uncached),
        0x1_4000_0025
    );
    assert!(!Ept::is_present(FROZEN) && !Npt::is_present(FROZEN));
    assert!(RO.allow(Access::EXEC) && !RO.allow(Access::WRITE) && !no_exec.allow(Access::EXEC));
}
