// SPDX-License-Identifier: GPL-2.0
//! Memory for tables, in which another CPU may come between a look and a change.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::vec::Vec;

use crate::mmu::storage::{Cell64, Graveyard, TablePool, Tables};
use crate::mmu::tdp::Map;
use crate::mmu::{Gfn, Level, MemType, Perms, Pfn, TablePa, ENTRIES};

/// An entry. If `rival` is not 0, another CPU writes that value right before the next compare-and-exchange.
#[derive(Default)]
pub(super) struct TestCell {
    pub(super) value: AtomicU64,
    pub(super) rival: AtomicU64,
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
pub(super) struct Arena {
    pub(super) cells: Vec<TestCell>,
    pub(super) used: AtomicUsize,
}

impl Arena {
    pub(super) fn new(pages: usize) -> Self {
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
pub(super) struct Pool<'a> {
    pub(super) arena: &'a Arena,
    pub(super) spare: Vec<TablePa>,
    pub(super) limit: usize,
}

impl<'a> Pool<'a> {
    pub(super) fn new(arena: &'a Arena) -> Self {
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
pub(super) struct Graves(pub(super) Vec<TablePa>);

impl Graveyard for Graves {
    fn bury(&mut self, table: TablePa) {
        self.0.push(table);
    }
}

pub(super) const RW: Perms = Perms {
    write: true,
    exec: true,
};
pub(super) const RO: Perms = Perms {
    write: false,
    exec: true,
};

pub(super) fn map_of(gfn: u64, perms: Perms, level: Level) -> Map {
    Map {
        gfn: Gfn(gfn),
        pfn: Pfn(gfn + (1 << 20)),
        level,
        perms,
        mem: MemType::WriteBack,
    }
}
