// SPDX-License-Identifier: GPL-2.0
//! A ledger of what CPUs may still have in their TLBs, for tests: no emulator at hand keeps a translation over a world switch, so
//! a guest there cannot notice that a flush is missing. The ledger can. It is in the module that is built with LODGE_LEDGER
//! (`vm_ledger.rs`), and in the model of `flush_tests.rs`; in the ordinary module nothing of it exists.
//!
//! # What is kept
//! - A **clock**, one number for all, that moves with each reading that says so. No time, just an order.
//! - The **moment** of each change of an entry that takes something from a guest. The funnel reads it off the clock right after
//!   it wrote the entry; whether the change takes something is judged by [`restricts`], which knows nothing of the flushes that
//!   the funnel reports.
//! - For each VM, the latest moment that is **published**: whoever made the changes has come back from its flush, and goes on to
//!   give pages back. The moment travels in [`Counts`](super::storage::Counts), which each operation adds to the VM's *after* it
//!   has paid.
//! - For each CPU and tag, what may be in the TLB ([`Held`]): whose translations, and the moment `since` which all of them were
//!   made. Whether an entry flushes is read off what the hardware is told (the VMCB; INVEPT), not off the decision that led to
//!   it.
//!
//! # What has to hold
//! At each entry, *published <= since* for what the entry's tag holds, unless it flushes; then `since` is the moment at that entry.
//! And at each exit once more, before interrupts are on again. Else a guest could use, or could have used, a translation that
//! somebody relied on to be gone.
//!
//! # Why a sound module is never accused
//! An entry announces guest mode, takes the demand for a flush, and only then reads the clock and what is published, all with
//! interrupts off (`model/kick.rs`, `hv/run.rs`). A change of the moment `t` is: written, `t` read off the clock, flush demanded of
//! the vCPU, vCPUs in guest mode waited for, `t` published. Each of these has a full barrier. If an entry (or its exit) finds `t`
//! published, the demand came before; and it did not come while this entry was announced, as then its flush would still be waiting
//! for the answer to an interrupt, which comes after interrupts are on. So the demand was there when this entry, or an earlier one,
//! took it; whoever took it read the clock later, thus at `t` or after, and flushed then or, if it was given up, left that to the
//! next. Hence `since >= t`.
//!
//! A change that is made but not published is not looked at: a guest may use the old translation until the flush has returned.
//! That is the race that the protocol allows, and why two moments are needed, not one: an entry that flushes between the demand
//! and the publishing has done its duty.
//!
//! # Why an unsound one is found
//! `since` is read before the flush takes effect and after all changes up to then were written, so what is in the TLB after it was
//! walked later than any change of a moment up to `since`. A tag that holds nothing, or another's, or what nobody knows (the CPU was
//! off; a refused entry may not have flushed) is told apart, so a tag that is given out twice is found as well.
//!
//! What the ledger does not see: accessed bits, which take nothing from anybody; a guest's own translations; and on Intel a VPID, as
//! INVEPT drops what belongs to the root with any VPID.
#![forbid(unsafe_code)]

use super::pte::PteFormat;
use super::{Level, Perms};

/// Whether a CPU may have kept something of the entry `old` that `new` no longer gives.
pub fn restricts<P: PteFormat>(config: P::Config, level: Level, old: u64, new: u64) -> bool {
    const NOTHING: Perms = Perms {
        write: false,
        exec: false,
    };
    // Address, size and memory type.
    let bare = |pte| P::with_perms(config, pte, NOTHING) & !P::HARDWARE_BITS;
    P::is_present(old)
        && (!P::is_present(new)
            || P::is_leaf(old, level) != P::is_leaf(new, level)
            || bare(old) != bare(new)
            || (P::perms(old).write && !P::perms(new).write)
            || (P::perms(old).exec && !P::perms(new).exec))
}

/// What a CPU's TLB may hold with a tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Held {
    /// Whatever somebody left, before us or in spite of us.
    #[default]
    Unknown,
    /// Nothing.
    Nothing,
    /// What was made for `owner` later than `since`.
    Of {
        /// Whose translations.
        owner: u64,
        /// A moment.
        since: u64,
    },
}

/// What is wrong with an entry or an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The tag may hold anything, and was not flushed.
    Unknown,
    /// The tag holds another's translations.
    Foreign,
    /// The tag holds translations that are gone from the tables.
    Stale,
    /// Translations were relied on to be gone while the guest ran with them.
    NotDrivenOut,
}

impl Missing {
    /// In words, for the kernel's log.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unknown => "ledger: an entry with a tag of unknown content, not flushed",
            Self::Foreign => "ledger: an entry with a tag that has another's translations",
            Self::Stale => "ledger: an entry with stale translations",
            Self::NotDrivenOut => "ledger: a guest ran on with stale translations",
        }
    }
}

impl Held {
    /// An entry of `owner`, of whose tables changes up to the moment `published` are relied on, at the moment `now`; `flushes`
    /// drops what is held. Gives the moment since which all that is held was made.
    pub fn enter(
        &mut self,
        flushes: bool,
        owner: u64,
        published: u64,
        now: u64,
    ) -> Result<u64, Missing> {
        let since = match *self {
            _ if flushes => now,
            Self::Nothing => now,
            Self::Unknown => return Err(Missing::Unknown),
            Self::Of { owner: other, .. } if other != owner => return Err(Missing::Foreign),
            Self::Of { since, .. } if published > since => return Err(Missing::Stale),
            Self::Of { since, .. } => since,
        };
        *self = Self::Of { owner, since };
        Ok(since)
    }
}

/// An exit from a guest with translations made later than `since`, when changes up to the moment `published` are relied on.
pub fn exit(since: u64, published: u64) -> Result<(), Missing> {
    if published > since {
        return Err(Missing::NotDrivenOut);
    }
    Ok(())
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
