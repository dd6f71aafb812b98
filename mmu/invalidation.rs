// SPDX-License-Identifier: GPL-2.0
//! The host's page-table changes that are in progress, and how a fault finds out about those that concern it.
//!
//! Two numbers are written under a lock and read without it: how many changes are in progress, and a sequence that moves when one
//! ends that may concern a slot. As long as nothing is in progress a fault takes no lock for them, and reads cache lines that nobody writes. What the
//! order of the accesses is for is said where they are; the whole argument is at the head of `mmu/mod.rs`, and
//! `invalidation_tests/` tries all interleavings, also without any one of the steps.
#![forbid(unsafe_code)]

/// How many changes at once are told apart: as many threads of a process change its address space, or the host does for it.
const APART: usize = 8;

/// A range of user addresses.
type Range = (u64, u64);

/// The changes that have begun and not ended. Kept under a lock.
///
/// The ranges of a few are kept as they are. Those of more share one that holds all of them, and so maybe addresses that none of them
/// concerns: a fault there tries again for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Invalidations {
    count: u64,
    /// 0..0 is a free place.
    apart: [Range; APART],
    /// How many are not in `apart`, and a range that holds theirs.
    shared: u64,
    hull: Range,
}

impl Invalidations {
    /// A change of `start..end` begins.
    #[inline]
    pub fn begin(&mut self, start: u64, end: u64) {
        self.count = self.count.saturating_add(1);
        match self.apart.iter_mut().find(|place| place.1 == 0) {
            Some(place) => *place = (start, end),
            None => self.share((start, end)),
        }
    }

    /// A change ends that began with the same range: the memory manager gives both from one structure.
    #[inline]
    pub fn end(&mut self, start: u64, end: u64) {
        self.count = self.count.saturating_sub(1);
        match self.apart.iter_mut().find(|place| **place == (start, end)) {
            Some(place) => *place = (0, 0),
            None => self.shared = self.shared.saturating_sub(1),
        }
    }

    #[cold]
    fn share(&mut self, (start, end): Range) {
        self.hull = match self.shared {
            0 => (start, end),
            _ => (self.hull.0.min(start), self.hull.1.max(end)),
        };
        self.shared = self.shared.saturating_add(1);
    }

    /// Whether a change in progress may concern `start..end`: nothing may be mapped there now.
    pub fn concern(&self, start: u64, end: u64) -> bool {
        let overlaps = |range: &Range| start < range.1 && range.0 < end;
        self.shared != 0 && overlaps(&self.hull) || self.apart.iter().any(overlaps)
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
    #[inline]
    pub fn ticket(&self) -> Ticket {
        Ticket(self.sequence.load())
    }

    /// A change of `start..end` begins. Under the lock.
    #[inline]
    pub fn begin(&self, now: &mut Invalidations, start: u64, end: u64) {
        now.begin(start, end);
        self.active.store(now.count);
    }

    /// A change of `start..end` ends. Under the lock. If it is none that `concerns` a slot, as they are now or one that is retiring, no fault
    /// need know of it.
    #[inline]
    pub fn end(&self, now: &mut Invalidations, start: u64, end: u64, concerns: bool) {
        // First: who sees that it is no longer in progress has to see that it ended.
        if concerns {
            self.sequence.store(self.sequence.load().wrapping_add(1));
        }
        now.end(start, end);
        self.active.store(now.count);
    }

    /// Whether a fault may map what it found after it got its ticket. `concern` takes the lock and asks
    /// [`Invalidations::concern`] for all addresses of the leaf; it is called only while changes are in progress. It holds until
    /// whoever changes something can zap the leaf, so the caller holds what keeps him out, from before this call until the leaf
    /// is visible.
    #[inline]
    pub fn allow(&self, ticket: Ticket, concern: impl FnOnce() -> bool) -> bool {
        // In this order, for the same reason.
        let concerned = self.active.load() != 0 && concern();
        !concerned && self.ticket() == ticket
    }
}

#[cfg(test)]
#[path = "invalidation_tests.rs"]
mod tests;
