// SPDX-License-Identifier: GPL-2.0
//! How the second-stage tables follow the host's page tables: the callbacks of the MMU notifier, and what faults and changes of the
//! slots have to do for them.
//!
//! Much of what a process does to its address space is none of the guest's memory. So `mmu_lock` is taken only if a slot has some
//! of the range, and what has to be noted for any range has a small lock of its own, `host`. Why that is enough is at the head of
//! `mmu/mod.rs`.
#![deny(unsafe_code)]

use kernel::prelude::*;

use crate::sys::cpu::Word;
use crate::sys::mm::{AgeHow, MmEvents};
use crate::sys::srcu_cell::Replaced;

use super::flush::{self, RemoteFlush};
use super::invalidation::{Invalidations, Number, Ticket};
use super::pages::PageTables;
use super::pte::PteFormat;
use super::slots::{self, Slot};
use super::vm_mmu::{Core, SlotSet};

impl Number for Word {
    fn load(&self) -> u64 {
        self.get()
    }
    fn store(&self, value: u64) {
        self.set(value);
    }
}

/// What the lock `host` guards. The slots are published under it too.
#[derive(Default)]
pub(super) struct Host {
    /// The host's changes in progress.
    invalidations: Invalidations,
    /// A slot that is no longer published but whose pages may still be mapped.
    pub(super) retiring: Option<Slot>,
}

impl<P: PteFormat, F: RemoteFlush> Core<P, F> {
    /// Publishes a set of slots from which `gone` is missing: the notifier goes on to find it, until `retiring` is cleared.
    /// Sleeps where what is returned is dropped.
    ///
    /// # Context
    /// A task that holds `changing`.
    pub(super) fn publish(&self, gone: Option<Slot>, set: KBox<SlotSet>) -> Replaced<'_, SlotSet> {
        let mut host = self.host.lock();
        host.retiring = gone;
        self.slots.publish(set)
    }

    /// Whether a fault that has this ticket may map a page whose leaf is at the user addresses `start..end`.
    ///
    /// # Context
    /// The read side of `mmu_lock` is held, and until the entry is visible. Otherwise the answer is only a hint.
    #[inline]
    pub(super) fn may_map(&self, ticket: Ticket, start: u64, end: u64) -> bool {
        self.changes.allow(ticket, || self.concern(start, end))
    }

    #[cold]
    #[inline(never)]
    fn concern(&self, start: u64, end: u64) -> bool {
        self.host.lock().invalidations.concern(start, end)
    }
}

impl<P: PteFormat, F: RemoteFlush> MmEvents for Core<P, F> {
    fn invalidate_start(&self, start: u64, end: u64, may_block: bool) {
        let (slots, retiring) = {
            let mut host = self.host.lock();
            self.changes.begin(&mut host.invalidations, start, end);
            // In the same section: a set that is published later is so to faults that see this change.
            (self.slots.read(), host.retiring)
        };
        let mut ranges = slots.gfns_of_hvas(retiring.as_slice(), start, end);
        let Some(first) = ranges.next() else { return };
        // Whoever maps through these slots and did not see the change has the read side.
        let mut guard = self.zap_range(self.lock.write(), first, may_block);
        // User space may have the same memory in thousands of slots: the lock is let go between these too.
        for range in ranges {
            guard = self.let_others(guard, may_block);
            guard = self.zap_range(guard, range, may_block);
        }
    }

    fn invalidate_end(&self, start: u64, end: u64) {
        let overlap = |slots: &[Slot]| slots::gfns_of_hvas(slots, start, end).next().is_some();
        // There may be thousands of slots: they are looked through before the lock is taken, and under it only whether they are others now.
        let slots = self.slots.read();
        let found = overlap(slots.get());
        let mut host = self.host.lock();
        let same = core::ptr::eq(&*slots, &*self.slots.read());
        let concerns = found || !same || overlap(host.retiring.as_slice());
        self.changes
            .end(&mut host.invalidations, start, end, concerns);
    }

    fn age(&self, start: u64, end: u64, how: AgeHow) -> bool {
        let (slots, retiring) = {
            let host = self.host.lock();
            (self.slots.read(), host.retiring)
        };
        let mut ranges = slots
            .gfns_of_hvas(retiring.as_slice(), start, end)
            .peekable();
        if ranges.peek().is_none() {
            return false;
        }
        let tdp = self.lock.read();
        if how == AgeHow::Test {
            return ranges.any(|range| tdp.test_age(&PageTables, range));
        }
        let exact = how == AgeHow::ClearFlush;
        let aged = flush::age(&tdp, &PageTables, ranges, exact, &*self.flush);
        self.count(&aged.counts);
        self.note(aged.bug);
        aged.young
    }

    fn release(&self) {
        self.zap_all();
    }
}
