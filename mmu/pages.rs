// SPDX-License-Identifier: GPL-2.0
//! The engine's storage on real memory: table pages by physical address, a cache of spare ones, and the RCU graveyard.
//!
//! Unsafe because: the tables are reached by physical address. The engine is trusted to use a `TablePa` only while the page is linked or
//! its own, which is what the protocol in `mmu/mod.rs` is about; no code outside of `mmu/` can make one.
#![allow(unsafe_code)]

use core::ffi::c_void;

use kernel::prelude::*;

use crate::sys::cpu::Word;

use super::storage::{Cell64, Graveyard, TablePool, Tables};
use super::{TablePa, ENTRIES};

unsafe extern "C" {
    safe fn lodge_table_alloc() -> u64;
    fn lodge_table_free(pa: u64);
    safe fn lodge_table_va(pa: u64) -> *mut c_void;
    fn lodge_table_bury(graves: *mut u64, pa: u64);
    fn lodge_tables_free_rcu(graves: u64);
    safe fn lodge_rcu_barrier();
}

/// An entry in a table page.
#[repr(transparent)]
pub(crate) struct PageCell(Word);

// SAFETY: an atomic integer, for which all bits zero is a value.
unsafe impl pin_init::Zeroable for PageCell {}

impl Cell64 for PageCell {
    #[inline(always)]
    fn load(&self) -> u64 {
        self.0.get()
    }
    #[inline(always)]
    fn store(&self, value: u64) {
        self.0.set(value);
    }
    #[inline(always)]
    fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange(old, new)
    }
    #[inline(always)]
    fn swap(&self, value: u64) -> u64 {
        self.0.exchange(value)
    }
    #[cfg(lodge_ledger)]
    fn moment(&self) -> u64 {
        super::vm_ledger::moment()
    }
}

/// All table pages there are.
#[derive(Clone, Copy)]
pub(crate) struct PageTables;

impl Tables for PageTables {
    type Cell = PageCell;
    #[inline]
    fn cell(&self, table: TablePa, index: usize) -> Option<&PageCell> {
        if index >= ENTRIES {
            return None;
        }
        let first = lodge_table_va(table.get()).cast::<PageCell>();
        // SAFETY: the engine hands in pages of ours that are linked or its own (see the head of this file), and `index` is inside.
        // All accesses are atomic.
        Some(unsafe { &*first.add(index) })
    }
}

/// The most tables a fault can need: all levels below a root of five levels.
const CACHE: usize = 4;

/// Spare table pages of a vCPU, to be filled before `mmu_lock` is taken.
///
/// # Invariants
/// The first `len` of `pages` are zeroed table pages owned by this value.
pub(crate) struct TableCache {
    pages: [u64; CACHE],
    len: usize,
}

impl TableCache {
    /// An empty cache.
    pub(crate) const fn new() -> Self {
        Self {
            pages: [0; CACHE],
            len: 0,
        }
    }

    /// Fills the cache with what a fault can need. ENOMEM. Task context, may sleep.
    #[inline]
    pub(crate) fn fill(&mut self) -> Result {
        while let Some(slot) = self.pages.get_mut(self.len) {
            *slot = lodge_table_alloc();
            if *slot == 0 {
                return Err(ENOMEM);
            }
            // INVARIANT: the page is fresh.
            self.len = self.len.wrapping_add(1);
        }
        Ok(())
    }
}

impl TablePool for TableCache {
    fn take(&mut self) -> Option<TablePa> {
        let last = self.len.checked_sub(1)?;
        let page = *self.pages.get(last)?;
        self.len = last;
        Some(TablePa::new(page))
    }

    fn put_back(&mut self, table: TablePa) {
        match self.pages.get_mut(self.len) {
            Some(slot) => {
                *slot = table.get();
                self.len = self.len.wrapping_add(1);
            }
            // SAFETY: the page came from a cache and was never linked.
            None => unsafe { lodge_table_free(table.get()) },
        }
    }
}

impl Drop for TableCache {
    fn drop(&mut self) {
        for &page in self.pages.iter().take(self.len) {
            // SAFETY: by the invariant.
            unsafe { lodge_table_free(page) };
        }
    }
}

/// The page of a root table.
///
/// # Invariants
/// A zeroed table page at first, owned by this value. Its owner sees to it that tables built on it are gone before it is dropped.
pub(crate) struct RootPage(u64);

impl RootPage {
    /// Allocates. ENOMEM. Task context, may sleep.
    pub(crate) fn new() -> Result<Self> {
        // INVARIANT: fresh, and no table is built on it.
        match lodge_table_alloc() {
            0 => Err(ENOMEM),
            page => Ok(Self(page)),
        }
    }
}

/// Lends the page to the engine, as its root.
impl TablePool for &RootPage {
    fn take(&mut self) -> Option<TablePa> {
        Some(TablePa::new(self.0))
    }
    fn put_back(&mut self, _table: TablePa) {}
}

impl Drop for RootPage {
    fn drop(&mut self) {
        // SAFETY: by the invariant.
        unsafe { lodge_table_free(self.0) };
    }
}

/// Unlinked tables. Dropping them without [`Graves::free`] leaks them.
#[derive(Default)]
#[must_use]
pub(crate) struct Graves(u64);

impl Graveyard for Graves {
    fn bury(&mut self, table: TablePa) {
        // SAFETY: the engine unlinked the page just now and will not touch it again.
        unsafe { lodge_table_bury(&mut self.0, table.get()) };
    }
}

impl Graves {
    /// Frees them after an RCU grace period. Any context.
    pub(crate) fn free(self) {
        // SAFETY: the flush is paid, since the engine only gives graves out for it; what CPUs may still walk without a lock is
        // covered by the grace period.
        unsafe { lodge_tables_free_rcu(self.0) };
    }

    /// Waits until every table given to [`Graves::free`] by anyone is freed: module code does that, so unloading waits for it. Sleeps.
    pub(crate) fn wait() {
        lodge_rcu_barrier();
    }
}
