// SPDX-License-Identifier: GPL-2.0
//! A VMCB in memory, the world switch, and the MSRs that turn SVM's own state on.
//!
//! Unsafe because: the CPU reads and writes the VMCB's page by physical address, and VMRUN leaves Rust's world.

use kernel::prelude::*;

use super::vmcb::Vmcb;
use crate::model::cr::dr6;
use crate::sys::cpu::{self, IrqOff, PreemptOff};
use crate::sys::ffi;
use crate::sys::page::Pages;
use crate::sys::switch::Switch;

const MSR_TSC_AUX: u32 = 0xc000_0103;
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;

/// A vCPU's control block. The CPU touches it only inside of [`VmcbPage::run`], which borrows it exclusively.
pub(crate) struct VmcbPage(Pages<0>);

impl VmcbPage {
    /// A block of zeroes.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Pages::new()?))
    }

    /// The block.
    pub(crate) fn get_mut(&mut self) -> &mut Vmcb {
        // SAFETY: a zeroed or used page is a valid `Vmcb` (plain integers), aligned to a page; borrowed exclusively.
        unsafe { &mut *self.0.as_ptr().cast::<Vmcb>() }
    }

    /// Runs the guest until its next exit. The caller has filled the block with a state that keeps the guest in its
    /// place: nested paging on a root that lives, permission maps, the intercepts of `vmcb::intercept::ALWAYS`.
    /// False: it did not run, since a reboot has turned SVM off.
    pub(crate) fn run(&mut self, switch: &mut Switch, host_save: &HostSave, _irq: &IrqOff) -> bool {
        // SAFETY: interrupts are off, in a task with user memory (KVM_RUN); the host's state was saved on this CPU, and is saved anew if
        // another thread may replace the LDT; the block is ours alone.
        unsafe { ffi::lodge_svm_enter(switch, self.0.phys(), host_save.vmload.phys()) }
    }
}

/// A CPU's areas for the host's state.
pub(crate) struct HostSave {
    vmrun: Pages<0>,
    vmload: Pages<0>,
}

impl HostSave {
    /// Allocates both.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            vmrun: Pages::new()?,
            vmload: Pages::new()?,
        })
    }

    /// Tells this CPU where VMRUN keeps the host's state, and its performance counters that guests will run.
    pub(crate) fn activate(&self, _preempt: &PreemptOff) {
        // SAFETY: preemption is off and SVM on, the page is ours for as long as SVM is.
        unsafe {
            cpu::wrmsr(MSR_VM_HSAVE_PA, self.vmrun.phys());
            ffi::lodge_svm_online(true);
        }
    }

    /// Makes the CPU forget both.
    pub(crate) fn deactivate(_preempt: &PreemptOff) {
        // SAFETY: preemption is off, and nothing runs a guest on this CPU any more.
        unsafe {
            ffi::lodge_svm_online(false);
            cpu::wrmsr(MSR_VM_HSAVE_PA, 0);
        }
    }

    /// Saves what VMLOAD brings back after an exit. Needed once after each context switch. The host is guarded from the predictions of
    /// guests from here on.
    pub(crate) fn save(&self, _preempt: &PreemptOff) {
        // SAFETY: SVM is on, the page is a VMCB-sized area of this CPU.
        unsafe { ffi::lodge_svm_arrive(self.vmload.phys()) };
    }
}

/// That there is a vCPU. A mitigation which costs the host is off where there is none.
pub(crate) struct Counted(());

impl Counted {
    /// For a new vCPU. May sleep.
    pub(crate) fn new() -> Self {
        ffi::lodge_svm_vcpu(true);
        Self(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ffi::lodge_svm_vcpu(false);
    }
}

/// Deals with a machine check that ended the guest's run. True: the guest caused it and cannot go on. Otherwise the host has seen it.
pub(crate) fn machine_check(_irq: &IrqOff) -> bool {
    // SAFETY: interrupts are off; called for an exit that says that there is one.
    unsafe { ffi::lodge_svm_machine_check() }
}

/// CR4.MCE of the host, which guests run with.
pub(crate) use ffi::lodge_svm_host_mce as host_mce;

/// What RDTSCP shows, on this CPU.
pub(crate) fn tsc_aux(_preempt: &PreemptOff) -> u64 {
    // SAFETY: a read without side effect.
    unsafe { cpu::rdmsr(MSR_TSC_AUX) }
}

/// Gives DR6 the value that it has when nothing has happened, as the host keeps it between its own #DBs.
pub(crate) fn reset_dr6(_preempt: &PreemptOff) {
    // SAFETY: it only tells #DB handlers what happened, and each of them sets it back; it is not one that runs here.
    unsafe {
        core::arch::asm!("mov dr6, {}", in(reg) dr6::RESET, options(nomem, nostack, preserves_flags))
    };
}

/// Sets it. The caller brings the host's value back before its thread leaves the CPU.
pub(crate) fn set_tsc_aux(value: u64, _preempt: &PreemptOff) {
    // SAFETY: only RDTSCP and RDPID in user space depend on it, which runs after it was brought back.
    unsafe { cpu::wrmsr(MSR_TSC_AUX, value) };
}
