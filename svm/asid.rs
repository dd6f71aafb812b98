// SPDX-License-Identifier: GPL-2.0
//! Address-space identifiers: each CPU hands them out in order, and starts a new generation when they run out.
//!
//! A vCPU's ASID is good on one CPU and in one generation. A new generation begins with a flush of every ASID, so an
//! identifier never meets entries that an earlier owner left in the TLB (AMD APM volume 2, "TLB Control").
#![forbid(unsafe_code)]

/// What a CPU has handed out. ASID 0 is the host's.
#[derive(Clone, Copy, Debug)]
pub struct CpuAsids {
    generation: u64,
    next: u32,
    max: u32,
}

/// A vCPU's identifier, as of its last run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuAsid {
    /// The identifier; 0 before the first run.
    pub asid: u32,
    /// The CPU that it is good on.
    pub cpu: u32,
    generation: u64,
}

/// The flush that an entry has to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Tlb {
    /// None.
    Keep,
    /// This ASID's entries.
    FlushAsid,
    /// The entries of every ASID, the host's too.
    FlushAll,
}

impl CpuAsids {
    /// A CPU with the identifiers 1 to `count - 1`. The first entry on it flushes everything.
    pub const fn new(count: u32) -> Self {
        Self {
            generation: 1,
            next: count,
            max: count.saturating_sub(1),
        }
    }

    /// The CPU's TLB is in an unknown state (it was off, or a flush may not have happened): the next entry begins a new generation.
    /// Generations go on counting, so no identifier of an earlier one becomes valid again.
    #[must_use]
    pub const fn restarted(self) -> Self {
        Self {
            next: self.max.saturating_add(1),
            generation: self.generation.wrapping_add(1),
            max: self.max,
        }
    }

    /// The identifier for an entry of `vcpu` on this CPU (number `cpu`), and the flush the entry needs. `stale`: the vCPU's
    /// translations changed since it last ran. `by_asid`: the CPU can flush one ASID.
    pub fn assign(&mut self, vcpu: &mut VcpuAsid, cpu: u32, stale: bool, by_asid: bool) -> Tlb {
        let valid = vcpu.asid != 0 && vcpu.cpu == cpu && vcpu.generation == self.generation;
        if valid && !stale {
            return Tlb::Keep;
        }
        if valid && by_asid {
            return Tlb::FlushAsid;
        }
        let mut tlb = Tlb::Keep;
        if self.next > self.max {
            self.generation = self.generation.wrapping_add(1);
            self.next = 1;
            tlb = Tlb::FlushAll;
        }
        *vcpu = VcpuAsid {
            asid: self.next,
            cpu,
            generation: self.generation,
        };
        self.next = self.next.saturating_add(1);
        tlb
    }
}

#[cfg(test)]
#[path = "asid_tests.rs"]
mod tests;
