// SPDX-License-Identifier: GPL-2.0
//! What is counted of each vCPU, under the names that KVM gives it.

use kernel::prelude::*;

use crate::hv::vm::Kicks;
use crate::sys::cpu::Word;
use crate::sys::stats::Counted;

macro_rules! stats {
    ($($(#[$doc:meta])* $stat:ident = $name:literal,)*) => {
        /// A counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Stat {
            $($(#[$doc])* $stat,)*
        }

        const NAMES: &[&CStr] = &[$($name),*];
    };
}

stats! {
    /// The guest's runs that ended.
    Exits = c"exits",
    /// Exits for port I/O.
    IoExits = c"io_exits",
    /// Accesses to devices in memory that went to user space.
    MmioExits = c"mmio_exits",
    /// HLT.
    HaltExits = c"halt_exits",
    /// Returns to user space because a signal waits.
    SignalExits = c"signal_exits",
    /// Returns to user space because it waits to inject an interrupt.
    RequestIrqExits = c"request_irq_exits",
    /// Exits for an interrupt of the host.
    IrqExits = c"irq_exits",
    /// Exits because the guest can take an interrupt.
    IrqWindowExits = c"irq_window_exits",
    /// Hypercalls.
    Hypercalls = c"hypercalls",
    /// Instructions that were emulated.
    InsnEmulation = c"insn_emulation",
    /// Instructions that could not be.
    InsnEmulationFail = c"insn_emulation_fail",
    /// Interrupts that an entry delivers.
    IrqInjections = c"irq_injections",
    /// NMIs that an entry delivers.
    NmiInjections = c"nmi_injections",
    /// Second-stage faults.
    PfTaken = c"pf_taken",
    /// Those that ended with the page mapped.
    PfFixed = c"pf_fixed",
    /// Those that were accesses to devices.
    PfEmulate = c"pf_emulate",
    /// Requests to flush the TLB that were found before an entry.
    TlbFlush = c"tlb_flush",
    /// Times the guest's FPU state was loaded.
    FpuReload = c"fpu_reload",
}

/// A vCPU's counters. Its thread writes them, any may read.
pub(crate) struct Stats([Word; NAMES.len()]);

impl Stats {
    /// All zero.
    pub(crate) const fn new() -> Self {
        Self([const { Word::new() }; NAMES.len()])
    }

    /// Counts one.
    #[inline(always)]
    pub(crate) fn count(&self, stat: Stat) {
        if let Some(counter) = self.0.get(stat as usize) {
            counter.advance();
        }
    }

    /// Something was counted.
    pub(crate) fn any(&self, stat: Stat) -> bool {
        self.get(stat as usize) != 0
    }

    fn get(&self, n: usize) -> u64 {
        self.0.get(n).map_or(0, Word::get)
    }
}

/// The sum over the VM's vCPUs. One whose descriptor was closed no longer counts.
impl Counted for Kicks {
    const NAMES: &'static [&'static CStr] = NAMES;

    fn counter(&self, n: usize) -> u64 {
        self.sum(|vcpu| vcpu.stats.get(n))
    }
}
