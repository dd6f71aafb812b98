// SPDX-License-Identifier: GPL-2.0
//! The exclusive and ageing operations of the engine together with the flush that each owes: nothing leaves here unpaid.
#![forbid(unsafe_code)]

use super::pte::PteFormat;
use super::storage::{Bug, Counts, Graveyard, Owed, Settled, Tables};
use super::tdp::Tdp;
use super::GfnRange;

/// Why translations have to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlushReason {
    /// Entries were taken away: by the host, with a slot, or for another entry.
    Zapped,
    /// Pages lost the right to be written.
    WriteProtected,
    /// Entries were taken away to find out whether they are used, as the CPU keeps no accessed bits.
    AgedOut,
    /// Accessed bits were cleared, and the CPU is to set them again at the next use.
    Aged,
}

impl FlushReason {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Zapped,
        Self::WriteProtected,
        Self::AgedOut,
        Self::Aged,
    ];
}

/// Makes other CPUs forget stale translations. Implemented by the VM.
pub trait RemoteFlush: Send + Sync + 'static {
    /// Makes sure that no vCPU uses a second-stage translation of this VM that was cached before the call: each flushes before it
    /// enters the guest again, and none is in the guest without having flushed when this returns.
    ///
    /// # Context
    /// `mmu_lock` is held: must not sleep, allocate, or call the MMU. Interrupts are on.
    fn flush_remote_tlbs(&self, why: FlushReason);
    /// The tables cannot be trusted any more: no vCPU enters the guest again, and none is in it when this returns.
    ///
    /// # Context
    /// As for the other.
    fn stop_vm(&self);
}

/// Unmaps a range; see [`Tdp::zap`].
pub fn zap<P: PteFormat, T: Tables, G: Graveyard>(
    tdp: &mut Tdp<P>,
    tables: &T,
    graves: G,
    range: GfnRange,
    remote: &impl RemoteFlush,
) -> Settled<G> {
    tdp.zap(tables, graves, range)
        .pay(|_| remote.flush_remote_tlbs(FlushReason::Zapped))
}

/// Takes the right to write from ranges; see [`Tdp::write_protect`].
pub fn write_protect<P: PteFormat, T: Tables>(
    tdp: &mut Tdp<P>,
    tables: &T,
    ranges: impl Iterator<Item = GfnRange>,
    remote: &impl RemoteFlush,
) -> Settled<()> {
    ranges
        .fold(Owed::NOTHING, |owed, range| {
            owed.and(tdp.write_protect(tables, range))
        })
        .pay(|_| remote.flush_remote_tlbs(FlushReason::WriteProtected))
}

/// What ageing found, its flushes paid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aged {
    /// Whether any page was used since it was aged last.
    pub young: bool,
    /// By how much the counts changed.
    pub counts: Counts,
    /// The first refused change.
    pub bug: Option<Bug>,
}

/// Ages ranges; see [`Tdp::age`]. With `exact`, a page that is used from now on is seen to be; otherwise it may look unused until the CPU
/// drops its translation on its own.
pub fn age<P: PteFormat, T: Tables>(
    tdp: &Tdp<P>,
    tables: &T,
    ranges: impl Iterator<Item = GfnRange>,
    exact: bool,
    remote: &impl RemoteFlush,
) -> Aged {
    let mut all = Aged::default();
    for range in ranges {
        let aged = tdp.age(tables, range);
        all.young |= aged.young;
        all.counts.add(&aged.counts);
        all.bug = all.bug.or(aged.bug);
        aged.flush
            .pay(|_| remote.flush_remote_tlbs(FlushReason::AgedOut));
    }
    if all.young && exact {
        remote.flush_remote_tlbs(FlushReason::Aged);
    }
    all
}

#[cfg(test)]
#[path = "flush_tests.rs"]
mod tests;
