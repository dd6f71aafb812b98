// SPDX-License-Identifier: GPL-2.0
//! Ageing: whether pages were used.
#![forbid(unsafe_code)]

use super::funnel::{kind, Effects, Kind};
use super::walk::{Entry, Next};
use super::Tdp;
use crate::mmu::pte::PteFormat;
use crate::mmu::storage::{Bug, Counts, FlushOwed, Tables};
use crate::mmu::GfnRange;

/// The outcome of ageing.
#[must_use = "a guest may use stale translations until the flush is paid"]
#[derive(Debug)]
pub struct Aged {
    /// Whether any page of the range was used since it was aged last.
    pub young: bool,
    /// Owed if leaves had to go because the CPU keeps no accessed bits. Cleared accessed bits owe nothing: until the CPU drops its
    /// translation on its own, the page only looks older than it is.
    pub flush: FlushOwed,
    /// By how much the counts changed.
    pub counts: Counts,
    /// The first refused change.
    pub bug: Option<Bug>,
}

impl<P: PteFormat> Tdp<P> {
    /// Tells whether a range was used since it was last aged, and marks it unused. Shared.
    ///
    /// Without accessed bits every present leaf counts as used, and is taken away: the next use faults.
    pub fn age<T: Tables>(&self, tables: &T, range: GfnRange) -> Aged {
        let mut fx = Effects::new();
        let mut young = false;
        let tracks = P::tracks_access(self.config);
        self.walk(tables, range, &mut |e: Entry<'_, T::Cell>| {
            if e.kind == Kind::Leaf && (!tracks || P::accessed(e.old)) {
                young = true;
                let result = self.update(&e, &mut fx, |pte| match kind::<P>(pte, e.level) {
                    Kind::Leaf if !tracks => Some(0),
                    Kind::Leaf if P::accessed(pte) => Some(P::clear_accessed(pte)),
                    _ => None,
                });
                fx.note(result);
            }
            Next::Into
        });
        Aged {
            young,
            flush: fx.flush,
            counts: fx.counts,
            bug: fx.bug,
        }
    }

    /// Tells whether a range was used since it was last aged. Shared. Without accessed bits, whether any of it is mapped.
    pub fn test_age<T: Tables>(&self, tables: &T, range: GfnRange) -> bool {
        let mut young = false;
        let tracks = P::tracks_access(self.config);
        self.walk(tables, range, &mut |e: Entry<'_, T::Cell>| {
            young |= e.kind == Kind::Leaf && (!tracks || P::accessed(e.old));
            Next::Into
        });
        young
    }
}
