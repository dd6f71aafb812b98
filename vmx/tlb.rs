// SPDX-License-Identifier: GPL-2.0
//! What of a vCPU's cached translations is stale, and which invalidations an entry needs for it (Intel SDM, "Caching Translation Information").
//!
//! The TLB keeps translations of linear addresses, tagged with VPID and EPT root, and of guest-physical addresses, tagged with the root alone.
//! INVEPT drops what has a root, INVVPID what has a VPID; without a VPID, each entry and exit drops the vCPU's translations of linear addresses.
#![forbid(unsafe_code)]

/// What INVEPT and INVVPID invalidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Extent {
    /// What belongs to the one in the descriptor.
    Single = 1,
    /// Everything.
    All = 2,
}

/// The invalidations that an entry needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Invalidate {
    /// INVEPT, of the vCPU's root if single.
    pub ept: Option<Extent>,
    /// INVVPID, of the vCPU's VPID if single.
    pub vpid: Option<Extent>,
}

/// What the CPU can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// INVEPT of one root.
    pub ept_single: bool,
    /// INVVPID of one VPID.
    pub vpid_single: bool,
}

/// What is stale of a vCPU's translations on the CPU that it enters on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    linear: bool,
    second: bool,
}

impl Stale {
    /// Of a new vCPU: root and VPID may have had other owners.
    pub const fn new() -> Self {
        Self {
            linear: true,
            second: true,
        }
    }

    /// Second-stage entries changed, or the vCPU comes from another CPU: what this one has of it is of no known age.
    pub fn second_stage(&mut self) {
        self.second = true;
    }

    /// The guest's own translations changed by a way that the CPU does not see.
    pub fn linear(&mut self) {
        self.linear = true;
    }

    /// What an entry has to invalidate. `vpid` is 0 for a vCPU without one.
    pub fn invalidate(&self, can: Abilities, vpid: u16) -> Invalidate {
        let extent = |single| {
            if single {
                Extent::Single
            } else {
                Extent::All
            }
        };
        // Translations of linear addresses hold what the second stage said, so they go with it.
        let linear = (self.linear || self.second) && vpid != 0;
        Invalidate {
            ept: self.second.then(|| extent(can.ept_single)),
            vpid: linear.then(|| extent(can.vpid_single)),
        }
    }

    /// That was done.
    pub fn done(&mut self) {
        *self = Self {
            linear: false,
            second: false,
        };
    }
}

impl Default for Stale {
    fn default() -> Self {
        Self::new()
    }
}
