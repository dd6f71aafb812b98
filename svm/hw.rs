// SPDX-License-Identifier: GPL-2.0
//! A vCPU's hardware state: the VMCB as a register file, and what else goes with it.
#![deny(unsafe_code)]

use super::asid::VcpuAsid;
use super::features::Features;
use super::insn::VmcbPage;
use super::shared::Shared;
use super::vmcb::{intercept, Control, Save};
use crate::sys::cpu::{Flag, Word};

/// A vCPU's hardware state.
pub(crate) struct Hw {
    pub(super) vmcb: VmcbPage,
    pub(super) features: Features,
    pub(super) shared: &'static Shared,
    pub(super) asid: VcpuAsid,
    pub(super) stale: bool,
    /// NMIs are blocked.
    pub(super) nmi_masked: bool,
    /// An IRET is about to end the blocking: RIP at its intercept.
    pub(super) iret_rip: Option<u64>,
    /// The guest runs one instruction with RFLAGS.TF, ours, to find the end of that IRET.
    pub(super) stepping: bool,
}

/// What context switches touch.
pub(crate) struct Resident {
    /// The host's FS, GS, TR and system-call state of this CPU was saved since the last context switch.
    pub(super) host_saved: Flag,
    /// The guest's TSC_AUX; the host's is back while the thread does not have the CPU.
    pub(super) tsc_aux: Word,
    pub(super) host_tsc_aux: Word,
}

impl Hw {
    pub(super) fn save(&mut self) -> &mut Save {
        &mut self.vmcb.get_mut().save
    }

    pub(super) fn control(&mut self) -> &mut Control {
        &mut self.vmcb.get_mut().control
    }

    pub(super) fn set_intercept(&mut self, bits: u64, on: bool) {
        let c = self.control();
        let mut v = u64::from(c.intercept1) | u64::from(c.intercept2) << 32;
        if on {
            v |= bits;
        } else {
            v &= !bits;
        }
        c.intercept1 = v as u32;
        c.intercept2 = (v >> 32) as u32;
    }

    /// The guest is about to execute the IRET that ends NMI blocking.
    pub(super) fn iret(&mut self, rip: u64) {
        self.set_intercept(intercept::IRET, false);
        self.iret_rip = Some(rip);
    }

    /// Has that IRET been executed?
    pub(super) fn finish_iret(&mut self, rip: u64) {
        if self.iret_rip.is_some_and(|at| at != rip) {
            self.iret_rip = None;
            self.nmi_masked = false;
        }
    }
}
