// SPDX-License-Identifier: GPL-2.0
//! The host's page-table changes that are in progress.
#![forbid(unsafe_code)]

/// How many changes have begun and not ended, and user addresses that hold all of theirs. Kept under `mmu_lock`.
///
/// Only one range is kept: with several at once it may hold addresses that none of them concerns, and a fault there tries again for nothing.
#[derive(Clone, Copy, Debug, Default)]
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

#[cfg(test)]
#[path = "invalidation_tests.rs"]
mod tests;
