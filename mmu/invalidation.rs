// SPDX-License-Identifier: GPL-2.0
//! The host's page-table changes that are in progress, and how a fault finds out about those that concern it.
//!
//! Two numbers are written under a lock and read without it: how many changes are in progress, and a sequence that moves when one
//! ends that may concern a slot. As long as nothing is in progress a fault takes no lock for them, and reads cache lines that nobody writes. What the
//! order of the accesses is for is said where they are; the whole argument is at the head of `mmu/mod.rs`, and
//! `invalidation_tests/` tries all interleavings, also without any one of the steps.
#![forbid(unsafe_code)]

/// How many changes have begun and not ended, and user addresses that hold all of theirs. Kept under a lock.
///
/// Only one range is kept: with several at once it may hold addresses that none of them concerns, and a fault there tries again
/// for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Invalidations {
    count: u64,
    start: u64,
    end: u64,
}

impl Invalidations {
    /// A change of `start..end` begins.
    pub fn begin(&mut self, start: u64, end: u64) {
        if self.count == 0 {
            (self.start, self.end) = (start, end);
        } else {
            self.start = self.start.min(start);
            self.end = self.end.max(end);
        }
        self.count = self.count.saturating_add(1);
    }

    /// A change ends. Its range is still blocked as long as any other goes on.
    pub fn end(&mut self) {
        self.count = self.count.saturating_sub(1);
    }

    /// Whether a change in progress may concern `start..end`: nothing may be mapped there now.
    pub fn concern(&self, start: u64, end: u64) -> bool {
        self.count != 0 && start < self.end && self.start < end
    }
}

/// A number that is written under the lock of the [`Invalidations`], and read without it.
pub trait Number {
    /// Reads it (acquire).
    fn load(&self) -> u64;
    /// Writes it (release).
    fn store(&self, value: u64);
}

/// What a fault has to show before it may map: which changes had ended before it looked at the host's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// What faults can see of the changes without the lock.
pub struct HostChanges<N> {
    /// How many are in progress.
    active: N,
    /// Moves when one ends that may concern a slot.
    sequence: N,
}

impl<N: Number> HostChanges<N> {
    /// None so far, from two cells of 0.
    pub const fn new(active: N, sequence: N) -> Self {
        Self { active, sequence }
    }

    /// For a fault, before it looks at the host's page tables: what had ended by then is seen there (acquire here, release in
    /// [`Self::end`]).
    pub fn ticket(&self) -> Ticket {
        Ticket(self.sequence.load())
    }

    /// A change of `start..end` begins. Under the lock.
    pub fn begin(&self, now: &mut Invalidations, start: u64, end: u64) {
        now.begin(start, end);
        self.active.store(now.count);
    }

    /// A change ends. Under the lock. If it is none that `concerns` a slot, as they are now or one that is retiring, no fault need know of it.
    pub fn end(&self, now: &mut Invalidations, concerns: bool) {
        // First: who sees that it is no longer in progress has to see that it ended.
        if concerns {
            self.sequence.store(self.sequence.load().wrapping_add(1));
        }
        now.end();
        self.active.store(now.count);
    }

    /// Whether a fault may map what it found after it got its ticket. `concern` takes the lock and asks
    /// [`Invalidations::concern`] for all addresses of the leaf; it is called only while changes are in progress. It holds until
    /// whoever changes something can zap the leaf, so the caller holds what keeps him out, from before this call until the leaf
    /// is visible.
    pub fn allow(&self, ticket: Ticket, concern: impl FnOnce() -> bool) -> bool {
        // In this order, for the same reason.
        let concerned = self.active.load() != 0 && concern();
        !concerned && self.ticket() == ticket
    }
}

#[cfg(test)]
#[path = "invalidation_tests.rs"]
mod tests;
