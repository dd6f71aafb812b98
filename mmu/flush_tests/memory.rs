// SPDX-License-Identifier: GPL-2.0
//! Memory for tables, whose words tell the moment of each change.

use std::boxed::Box;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Mutex;
use std::vec::Vec;

use crate::mmu::storage::{Cell64, Graveyard, TablePool, Tables};
use crate::mmu::{TablePa, ENTRIES};

/// The ledger's clock. Worlds share it, as only its order matters.
pub(super) static CLOCK: AtomicU64 = AtomicU64::new(0);

pub(super) struct Word(AtomicU64);

impl Cell64 for Word {
    fn load(&self) -> u64 {
        self.0.load(SeqCst)
    }
    fn store(&self, value: u64) {
        self.0.store(value, SeqCst);
    }
    fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange(old, new, SeqCst, SeqCst)
    }
    fn swap(&self, value: u64) -> u64 {
        self.0.swap(value, SeqCst)
    }
    fn moment(&self) -> u64 {
        CLOCK.fetch_add(1, SeqCst) + 1
    }
}

const PAGES: usize = 400;

/// Host memory for tables; freed pages are handed out again, the last one first.
pub(super) struct Arena {
    words: Box<[Word]>,
    free: Mutex<Vec<u64>>,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self {
            words: (0..PAGES * ENTRIES)
                .map(|_| Word(AtomicU64::new(0)))
                .collect(),
            free: Mutex::new((1..=PAGES as u64).rev().map(|n| n << 12).collect()),
        }
    }

    pub(super) fn release(&self, page: u64) {
        for index in 0..ENTRIES {
            self.cell(TablePa::new(page), index).unwrap().store(0);
        }
        self.free.lock().unwrap().push(page);
    }
}

impl Tables for Arena {
    type Cell = Word;
    fn cell(&self, table: TablePa, index: usize) -> Option<&Word> {
        let page = (table.get() >> 12).checked_sub(1)? as usize;
        self.words.get(page * ENTRIES + index)
    }
}

impl TablePool for &Arena {
    fn take(&mut self) -> Option<TablePa> {
        self.free.lock().unwrap().pop().map(TablePa::new)
    }
    fn put_back(&mut self, table: TablePa) {
        self.release(table.get());
    }
}

#[derive(Default)]
pub(super) struct Graves(pub(super) Vec<u64>);

impl Graveyard for Graves {
    fn bury(&mut self, table: TablePa) {
        self.0.push(table.get());
    }
}
