// SPDX-License-Identifier: GPL-2.0
//! What the engine asks of the ground it stands on: cells, table pages, a pool to take pages from and a graveyard.
//!
//! In the kernel these are real pages and the kernel's atomics (`pages.rs`); in tests, vectors of std atomics.
#![forbid(unsafe_code)]

use super::{GfnRange, TablePa};

/// One entry in memory, which other CPUs and the page walkers of the hardware read and write at the same time.
///
/// The read-modify-write operations are fully ordered; a load acquires, a store releases.
pub trait Cell64 {
    /// Reads the entry once.
    fn load(&self) -> u64;
    /// Writes the entry. Only for one that neither hardware nor another CPU can be changing.
    fn store(&self, value: u64);
    /// Writes `new` if the entry is `old`; otherwise gives what it is.
    fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64>;
    /// Writes the entry and gives what it was, with the bits hardware set up to then.
    fn swap(&self, value: u64) -> u64;
    /// The moment, on the clock of `ledger.rs`, which moves by this. A full barrier.
    #[cfg(any(lodge_ledger, test))]
    fn moment(&self) -> u64 {
        0
    }
}

/// Gives access to table pages by physical address.
pub trait Tables {
    /// An entry.
    type Cell: Cell64;
    /// The entry `index` (0 to 511) of `table`; `None` if there is no such page or entry.
    fn cell(&self, table: TablePa, index: usize) -> Option<&Self::Cell>;
}

/// Pages for new tables, all zero, allocated before `mmu_lock` was taken.
pub trait TablePool {
    /// Takes a page; `None` if the pool is empty.
    fn take(&mut self) -> Option<TablePa>;
    /// Gives back a page that was taken and never linked, so is still all zero.
    fn put_back(&mut self, table: TablePa);
}

/// Takes table pages that were unlinked. Their memory stays as it is, and may be walked by hardware, until the flush is paid
/// and an RCU grace period has passed.
pub trait Graveyard {
    /// Takes one page.
    fn bury(&mut self, table: TablePa);
}

/// How many leaves of each size and how many tables (the root not counted) there are, or by how much an operation changed that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Leaves of 4 KiB, 2 MiB and 1 GiB.
    pub leaves: [i64; 3],
    /// Table pages below the root.
    pub tables: i64,
    /// The moment of the last change that takes something from a guest, for `ledger.rs`; 0 if there was none.
    #[cfg(any(lodge_ledger, test))]
    pub restricted: u64,
}

impl Counts {
    /// None, or no change.
    pub const NONE: Self = Self {
        leaves: [0; 3],
        tables: 0,
        #[cfg(any(lodge_ledger, test))]
        restricted: 0,
    };

    /// Adds another count, wrapping.
    pub fn add(&mut self, other: &Counts) {
        for (mine, theirs) in self.leaves.iter_mut().zip(other.leaves) {
            *mine = mine.wrapping_add(theirs);
        }
        self.tables = self.tables.wrapping_add(other.tables);
        #[cfg(any(lodge_ledger, test))]
        {
            self.restricted = self.restricted.max(other.restricted);
        }
    }
}

/// A TLB flush that has to be made before `mmu_lock` is let go: some CPU may still use a translation that is gone.
#[must_use = "a guest may use stale translations until the flush is paid"]
#[derive(Debug, PartialEq, Eq)]
pub struct FlushOwed(Option<GfnRange>);

impl FlushOwed {
    /// Nothing owed.
    pub const NONE: Self = Self(None);

    /// Owes a flush of these pages too.
    pub(super) fn owe(&mut self, range: GfnRange) {
        self.0 = Some(self.0.map_or(range, |have| have.union(range)));
    }

    /// Whether anything is owed.
    pub fn is_owed(&self) -> bool {
        self.0.is_some()
    }

    /// Calls `flush` with the smallest range that holds all that is stale, if anything is.
    pub fn pay(self, flush: impl FnOnce(GfnRange)) {
        if let Some(range) = self.0 {
            flush(range);
        }
    }
}

/// A refused change: the tables are not what the protocol says they are, which is our bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bug {
    /// The entry's level as a number, 1 to 5.
    pub level: u8,
    /// The entry as it is.
    pub old: u64,
    /// What should have been written; equal to `old` if the entry could not be understood at all.
    pub new: u64,
}

/// What an exclusive operation leaves behind. The unlinked tables are only to be had by paying the flush.
#[must_use = "a guest may use stale translations until the flush is paid"]
#[derive(Debug)]
pub struct Owed<G> {
    pub(super) flush: FlushOwed,
    pub(super) graves: G,
    pub(super) counts: Counts,
    pub(super) bug: Option<Bug>,
}

/// An exclusive operation whose flush is paid.
#[derive(Debug)]
pub struct Settled<G> {
    /// The unlinked tables, to be freed after an RCU grace period.
    pub graves: G,
    /// By how much the counts changed.
    pub counts: Counts,
    /// The first refused change. Everything else was done all the same.
    pub bug: Option<Bug>,
    /// Whether there was anything to flush, thus any entry taken away.
    pub flushed: bool,
}

impl Owed<()> {
    /// Nothing done, nothing owed.
    pub const NOTHING: Self = Self {
        flush: FlushOwed::NONE,
        graves: (),
        counts: Counts::NONE,
        bug: None,
    };

    /// What this operation and another one owe together.
    pub fn and(mut self, other: Self) -> Self {
        other.flush.pay(|range| self.flush.owe(range));
        self.counts.add(&other.counts);
        self.bug = self.bug.or(other.bug);
        self
    }
}

impl<G> Owed<G> {
    /// Calls `flush` with the range that is stale, if anything is, and gives the rest.
    pub fn pay(self, flush: impl FnOnce(GfnRange)) -> Settled<G> {
        let flushed = self.flush.is_owed();
        self.flush.pay(flush);
        Settled {
            graves: self.graves,
            counts: self.counts,
            bug: self.bug,
            flushed,
        }
    }
}
