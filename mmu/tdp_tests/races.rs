// SPDX-License-Identifier: GPL-2.0
//! Other CPUs and a table pool that get in the way of a change.

use std::sync::atomic::Ordering::SeqCst;
use std::vec::Vec;

use super::arena::{map_of, Arena, Pool, RO, RW};
use crate::mmu::ept::{Ept, EptConfig};
use crate::mmu::npt::{Npt, NptConfig};
use crate::mmu::pte::{PteFormat, FROZEN};
use crate::mmu::storage::{Cell64, Counts, FlushOwed, TablePool, Tables};
use crate::mmu::tdp::{MapError, Mapped, Tdp};
use crate::mmu::{Gfn, GfnRange, Level, TablePa};

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

fn four_levels(pool: &mut Pool<'_>) -> Tdp<Ept> {
    let config = EptConfig {
        accessed_dirty: true,
    };
    Tdp::new(config, Level::L512G, Level::L1G, pool).unwrap()
}

#[test]
fn a_frozen_entry_makes_a_fault_wait() {
    let arena = Arena::new(16);
    let mut pool = Pool::new(&arena);
    let tdp = four_levels(&mut pool);
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
    let tdp = four_levels(&mut pool);
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
