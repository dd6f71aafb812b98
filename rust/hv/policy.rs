// SPDX-License-Identifier: GPL-2.0
//! What user space has switched on for a VM: KVM_ENABLE_CAP.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};

use crate::hv::backend::Backend;
use crate::hv::quirks::{self, Quirks};
use crate::hv::vm::Vm;
use crate::hv::{exits, msr_filter, user};
use crate::uapi::{self, kvm_enable_cap};

/// A VM's switches. Each is read on its own; nothing else is ordered by them, and the ioctls that depend on one come later.
pub(crate) struct Policy {
    /// Exceptions that wait to be delivered are told with their payload (KVM_CAP_EXCEPTION_PAYLOAD).
    exception_payload: Atomic<bool>,
    /// A triple fault that waits is told (KVM_CAP_X86_TRIPLE_FAULT_EVENT).
    triple_fault_event: Atomic<bool>,
    /// For which reasons user space answers in the place of a #GP (KVM_CAP_X86_USER_SPACE_MSR).
    user_msr_reasons: Atomic<u32>,
    /// What the emulator cannot do always ends the run (KVM_CAP_EXIT_ON_EMULATION_FAILURE).
    exit_on_emulation_failure: Atomic<bool>,
    /// The exits that are off (KVM_CAP_X86_DISABLE_EXITS); fixed once there is a vCPU.
    disabled_exits: Atomic<u32>,
    /// What user space has turned off with KVM_CAP_DISABLE_QUIRKS and its successor.
    pub(crate) quirks: Quirks,
}

impl Policy {
    pub(crate) fn new() -> Self {
        Self {
            exception_payload: Atomic::new(false),
            triple_fault_event: Atomic::new(false),
            user_msr_reasons: Atomic::new(0),
            exit_on_emulation_failure: Atomic::new(false),
            disabled_exits: Atomic::new(0),
            quirks: Quirks::new(),
        }
    }

    /// KVM_CAP_EXCEPTION_PAYLOAD is on.
    pub(crate) fn exception_payload(&self) -> bool {
        self.exception_payload.load(Relaxed)
    }

    /// What KVM_CAP_X86_USER_SPACE_MSR was set to.
    pub(crate) fn user_msr_reasons(&self) -> u32 {
        self.user_msr_reasons.load(Relaxed)
    }

    /// KVM_CAP_X86_TRIPLE_FAULT_EVENT is on.
    pub(crate) fn triple_fault_event(&self) -> bool {
        self.triple_fault_event.load(Relaxed)
    }

    /// KVM_CAP_EXIT_ON_EMULATION_FAILURE is on.
    pub(crate) fn exit_on_emulation_failure(&self) -> bool {
        self.exit_on_emulation_failure.load(Relaxed)
    }

    /// What KVM_CAP_X86_DISABLE_EXITS has switched off.
    pub(crate) fn disabled_exits(&self) -> u32 {
        self.disabled_exits.load(Relaxed)
    }

    /// Switches more of them off. One thread at a time.
    pub(crate) fn disable_exits(&self, set: u32) {
        self.disabled_exits
            .store(self.disabled_exits() | set, Relaxed);
    }
}

/// KVM_ENABLE_CAP of a VM. EFAULT for a bad pointer; EINVAL for flags, for a capability that cannot be switched, or a
/// value that it does not take.
pub(crate) fn enable_vm<B: Backend>(vm: &Vm<B>, arg: usize) -> Result<isize> {
    let cap: kvm_enable_cap = user::get(arg)?;
    let [value, ..] = cap.args;
    if cap.flags != 0 {
        return Err(EINVAL);
    }
    let p = &vm.policy;
    match cap.cap {
        uapi::KVM_CAP_EXCEPTION_PAYLOAD => p.exception_payload.store(value != 0, Relaxed),
        uapi::KVM_CAP_X86_TRIPLE_FAULT_EVENT => p.triple_fault_event.store(value != 0, Relaxed),
        uapi::KVM_CAP_X86_USER_SPACE_MSR => {
            if value & !u64::from(msr_filter::REASONS) != 0 {
                return Err(EINVAL);
            }
            p.user_msr_reasons.store(value as u32, Relaxed);
        }
        uapi::KVM_CAP_EXIT_ON_EMULATION_FAILURE => {
            if value > 1 {
                return Err(EINVAL);
            }
            p.exit_on_emulation_failure.store(value != 0, Relaxed);
        }
        uapi::KVM_CAP_MAX_VCPU_ID => vm.limit_ids(value)?,
        uapi::KVM_CAP_X86_DISABLE_EXITS => exits::disable(vm, value)?,
        // The old one takes any bits, the new one those that mean something.
        uapi::KVM_CAP_DISABLE_QUIRKS => p.quirks.disable(value),
        uapi::KVM_CAP_DISABLE_QUIRKS2 => {
            if value & !u64::from(quirks::ALL) != 0 {
                return Err(EINVAL);
            }
            p.quirks.disable(value);
        }
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// KVM_ENABLE_CAP of a vCPU: EFAULT for a bad pointer, EINVAL since there is none to switch on yet.
pub(crate) fn enable_vcpu(arg: usize) -> Result<isize> {
    let _cap: kvm_enable_cap = user::get(arg)?;
    Err(EINVAL)
}
