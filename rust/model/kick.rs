// SPDX-License-Identifier: GPL-2.0
//! How those who change a VM's translations reach vCPUs that run.
//!
//! ```text
//!   changes an entry, then            enters the guest
//!   -------------------------         ------------------------------
//!   flush := true                     in_guest := true
//!   looks at in_guest;                takes flush; if it was set, drops translations
//!   if set, interrupts that CPU       runs the guest
//!   and waits for the answer          in_guest := false
//! ```
//! Setting and taking `flush` are full barriers on one cell, so one of them sees the other: either the entry finds the demand, or the demand finds
//! the vCPU in guest mode. Interrupts are off from before `in_guest` is set until the guest runs, so the answer comes after the guest was left.
#![forbid(unsafe_code)]

/// A flag that several CPUs use.
pub trait Flag {
    /// Reads it; what was written before it was set is visible then.
    fn load(&self) -> bool;
    /// Writes it after all that was read and written before.
    fn store(&self, value: bool);
    /// Writes it and gives what it was. A full barrier.
    fn swap(&self, value: bool) -> bool;
}

/// A number that several CPUs use, ordered by a [`Flag`] beside it.
pub trait Number {
    /// Reads it.
    fn load(&self) -> u32;
    /// Writes it.
    fn store(&self, value: u32);
}

/// Where a vCPU is, and what it owes before it runs on.
#[derive(Debug, Default)]
pub struct Presence<F, N> {
    /// The guest's translations are stale: they are dropped before the next entry.
    flush: F,
    /// The vCPU's thread is between its last look at requests and the end of the guest's run.
    in_guest: F,
    /// The CPU it runs on, while `in_guest`.
    cpu: N,
}

impl<F: Flag, N: Number> Presence<F, N> {
    /// A vCPU that does not run, from three cells of 0.
    pub const fn new(flush: F, in_guest: F, cpu: N) -> Self {
        Self {
            flush,
            in_guest,
            cpu,
        }
    }

    /// Announces guest mode on `cpu`, then takes the demand for a flush: true if there was one. Guest mode is entered all the same, and the
    /// caller drops the translations first. Interrupts off.
    pub fn enter(&self, cpu: u32) -> bool {
        self.cpu.store(cpu);
        self.in_guest.swap(true);
        // That was a full barrier: a demand that this does not see sees `in_guest`.
        self.flush.load() && self.flush.swap(false)
    }

    /// The guest's run is over (or did not begin).
    pub fn leave(&self) {
        self.in_guest.store(false);
    }

    /// Demands a flush before the next entry. Gives the CPU that has to be interrupted, and to answer, before the demand is met.
    #[must_use]
    pub fn demand_flush(&self) -> Option<u32> {
        self.flush.swap(true);
        self.in_guest.load().then(|| self.cpu.load())
    }
}

#[cfg(test)]
#[path = "kick_tests.rs"]
mod tests;
