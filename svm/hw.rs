// SPDX-License-Identifier: GPL-2.0
//! A vCPU's hardware state: the VMCB as a register file, and what else goes with it.
#![deny(unsafe_code)]

use core::num::NonZeroU16;

use kernel::prelude::*;

use super::asid::VcpuAsid;
use super::features::Features;
use super::insn::{self, Counted, VmcbPage};
use super::shared::Shared;
use super::vmcb::Vmcb;
use crate::mmu::vm_ledger::VcpuLedger;
use crate::model::cr::{dr6, rflags};
use crate::model::msr::Passed;
use crate::model::regs::Regs;
use crate::sys::cpu::{Flag, PreemptOff, VcpuNumber, Word};
use crate::sys::page::Pages;

/// A vCPU's hardware state.
pub(crate) struct Hw {
    pub(super) vmcb: VmcbPage,
    pub(super) features: Features,
    pub(super) shared: &'static Shared,
    /// The permission map that is in effect as long as no filter makes every access exit.
    pub(super) msrpm: &'static Pages<1>,
    /// The VM's exits that are left out.
    pub(super) off: u32,
    /// A filter makes every access exit.
    pub(super) all_msrs_exit: bool,
    pub(super) asid: VcpuAsid,
    pub(super) stale: bool,
    pub(super) ledger: VcpuLedger,
    /// NMIs are blocked.
    pub(super) nmi_masked: bool,
    /// An IRET is about to end the blocking: RIP at its intercept.
    pub(super) iret_rip: Option<u64>,
    /// The guest runs one instruction with RFLAGS.TF, ours, to find the end of that IRET.
    pub(super) stepping: bool,
    /// What came of the last run in which `stepping` was set.
    pub(super) stepped: Stepped,
    /// What the next entry injects.
    pub(super) injecting: Injecting,
    /// The event injected last, if it was one that instructions raise.
    pub(super) soft: Option<Soft>,
    /// These MSRs as the guest knows them; the CPU has 32 bits of each.
    pub(super) sysenter_esp: u64,
    pub(super) sysenter_eip: u64,
}

/// What the guest has in the places that our single step takes.
pub(super) struct Own {
    tf: u64,
    status: u64,
}

/// What came of a run that was to make our single step.
#[derive(Clone, Copy, Default)]
pub(super) struct Stepped {
    /// DR6, whose upper half is always clear; it was [`dr6::RESET`] before.
    pub(super) status: u32,
    /// The guest had set TF itself.
    pub(super) guest_steps: bool,
}

/// An injected event that an instruction raised.
#[derive(Clone, Copy)]
pub(super) struct Soft {
    /// RIP of the instruction.
    pub(super) rip: u64,
    /// Its length; 0 if RIP is not at such an instruction.
    pub(super) len: u8,
    /// Type and vector, as in the control block.
    pub(super) event: NonZeroU16,
}

/// What an entry injects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Injecting {
    Nothing,
    Nmi,
    Other,
}

/// What context switches touch.
pub(crate) struct Resident {
    _counted: Counted,
    pub(super) number: VcpuNumber,
    /// The host's FS, GS, TR and system-call state of this CPU was saved since the last context switch, and TSC_AUX is the guest's.
    pub(super) host_saved: Flag,
    /// The guest's TSC_AUX; the host's is back while the thread does not have the CPU, or has not entered the guest.
    pub(super) tsc_aux: Word,
    pub(super) host_tsc_aux: Word,
    /// The guest's DR6, which VMRUN loads, has told of something: the CPU keeps that until the thread leaves it.
    pub(super) uses_dr6: Flag,
}

impl Resident {
    /// For a new vCPU.
    pub(super) fn new() -> Self {
        Self {
            _counted: Counted::new(),
            number: VcpuNumber::new(),
            host_saved: Flag::new(false),
            tsc_aux: Word::new(),
            host_tsc_aux: Word::new(),
            uses_dr6: Flag::new(false),
        }
    }

    /// Puts the guest's TSC_AUX in place of the host's.
    pub(super) fn load_tsc_aux(&self, preempt: &PreemptOff) {
        let (host, guest) = (insn::tsc_aux(preempt), self.tsc_aux.get());
        self.host_tsc_aux.set(host);
        if host != guest {
            insn::set_tsc_aux(guest, preempt);
        }
    }
}

impl Hw {
    /// For a new vCPU: nothing is set up.
    pub(super) fn new(shared: &'static Shared) -> Result<Self> {
        Ok(Self {
            vmcb: VmcbPage::new()?,
            features: shared.features,
            shared,
            msrpm: shared.msr_map(0, Passed::default())?,
            off: 0,
            all_msrs_exit: false,
            asid: VcpuAsid::default(),
            stale: false,
            ledger: VcpuLedger::new(),
            nmi_masked: false,
            iret_rip: None,
            stepping: false,
            stepped: Stepped::default(),
            injecting: Injecting::Nothing,
            soft: None,
            sysenter_esp: 0,
            sysenter_eip: 0,
        })
    }

    /// The control block as a register file.
    pub(super) fn vmcb(&mut self) -> &mut Vmcb {
        self.vmcb.get_mut()
    }

    /// Puts the permission map in effect.
    pub(super) fn use_msr_map(&mut self) {
        // The map of the ports is all ones, and larger.
        let map = if self.all_msrs_exit {
            self.shared.iopm.phys()
        } else {
            self.msrpm.phys()
        };
        self.vmcb().set_msrpm_base(map);
    }

    pub(super) fn set_intercept(&mut self, bits: u64, on: bool) {
        let v = self.vmcb();
        v.set_intercepts(if on {
            v.intercepts() | bits
        } else {
            v.intercepts() & !bits
        });
    }

    /// Before a run, with the guest's registers in the control block: TF is set if it is to make our single step, and DR6 tells of that alone.
    /// What the guest itself has there, for [`Self::end_step`] to put back.
    pub(super) fn begin_step(&mut self) -> Option<Own> {
        self.stepping.then(|| {
            let v = self.vmcb();
            let own = Own {
                tf: v.rflags() & rflags::TF,
                status: v.dr6(),
            };
            v.set_rflags(v.rflags() | rflags::TF);
            v.set_dr6(dr6::RESET);
            own
        })
    }

    /// After the run, with `regs` as it left them, and after the control block was told of it.
    pub(super) fn end_step(&mut self, own: Option<Own>, regs: &mut Regs) {
        let Some(own) = own else { return };
        // An IRET that was executed is a step that was made, also where DR6 is not loaded and saved (Bochs).
        let executed = self.iret_rip.is_some_and(|at| at != regs.rip);
        let v = self.vmcb();
        let status = v.dr6() | if executed { dr6::BS } else { 0 };
        v.set_dr6(own.status);
        self.stepped = Stepped {
            status: status as u32,
            guest_steps: own.tf != 0,
        };
        // It has loaded TF, too. Whatever else was executed leaves ours.
        if !executed {
            regs.rflags = regs.rflags & !rflags::TF | own.tf;
        }
    }
}
