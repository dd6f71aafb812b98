// SPDX-License-Identifier: GPL-2.0
//! The steps by which stale translations go. Tests leave one out and look whether that is found: those of `flush_tests.rs` on a
//! model of CPUs, those of the selftests' group `ledger/` in the module that is built with LODGE_LEDGER.
#![forbid(unsafe_code)]

use super::flush::FlushReason;

/// A flush, or a step that stands for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Those who change entries call for a flush.
    Remote(FlushReason),
    /// A vCPU in the guest is interrupted.
    Kick,
    /// An entry looks whether a flush was demanded.
    Demand,
    /// A flush that was taken by an entry that is given up is still owed.
    GivenUp,
    /// AMD: the entry flushes its ASID.
    FlushAsid,
    /// AMD without flush by ASID: a stale vCPU gets a new ASID.
    FreshAsid,
    /// AMD: a vCPU that comes from another CPU gets a new ASID.
    MovedAsid,
    /// AMD: a new generation of ASIDs begins with a flush of all.
    Generation,
    /// AMD: a CPU that was off begins a new generation.
    Restarted,
    /// AMD: a refused entry, which may not have flushed, begins a new generation.
    Refused,
    /// Intel: INVEPT at an entry.
    Invept,
    /// Intel: a vCPU that comes from another CPU is stale.
    Moved,
    /// Intel: a new vCPU is stale.
    New,
    /// Intel: INVVPID at an entry, after the guest's translations were changed behind its back.
    Invvpid,
    /// Intel: a CPU that comes online drops everything.
    Online,
}

impl Step {
    /// All of them. The module's parameter `break_flush` counts from 1.
    pub const ALL: [Self; 18] = [
        Self::Remote(FlushReason::Zapped),
        Self::Remote(FlushReason::WriteProtected),
        Self::Remote(FlushReason::AgedOut),
        Self::Remote(FlushReason::Aged),
        Self::Kick,
        Self::Demand,
        Self::GivenUp,
        Self::FlushAsid,
        Self::FreshAsid,
        Self::MovedAsid,
        Self::Generation,
        Self::Restarted,
        Self::Refused,
        Self::Invept,
        Self::Moved,
        Self::New,
        Self::Invvpid,
        Self::Online,
    ];

    /// The step with this number.
    pub fn from_number(number: usize) -> Option<Self> {
        Self::ALL.get(number.checked_sub(1)?).copied()
    }
}

/// What an entry does to the TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing.
    None,
    /// Drops what the entry's tag holds.
    Tag,
    /// Drops what all tags hold.
    All,
}
