// SPDX-License-Identifier: GPL-2.0
//! The capability table: what CHECK_EXTENSION answers. A row is here only when a test proves what it promises.

use super::*;
use crate::hv::backend::Backend;
use crate::hv::{clock, debug, quirks, sync_regs, tsc, vm, xsave};
use crate::mmu::slots;
use crate::model::msr_table;
use crate::sys::{cpu, params};

/// CHECK_EXTENSION; 0 for what is not there, and for numbers that mean nothing.
pub(crate) fn check<B: Backend>(cap: usize) -> isize {
    let Ok(cap) = u32::try_from(cap) else {
        return 0;
    };
    match cap {
        KVM_CAP_USER_MEMORY
        | KVM_CAP_USER_MEMORY2
        | KVM_CAP_EXT_CPUID
        | KVM_CAP_EXT_EMUL_CPUID
        | KVM_CAP_SET_TSS_ADDR
        | KVM_CAP_SET_IDENTITY_MAP_ADDR
        | KVM_CAP_DESTROY_MEMORY_REGION_WORKS
        | KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
        | KVM_CAP_INTERNAL_ERROR_DATA
        | KVM_CAP_IMMEDIATE_EXIT
        | KVM_CAP_GET_TSC_KHZ
        | KVM_CAP_CHECK_EXTENSION_VM
        | KVM_CAP_READONLY_MEM
        | KVM_CAP_SYNC_MMU
        | KVM_CAP_MP_STATE
        | KVM_CAP_USER_NMI
        | KVM_CAP_NOP_IO_DELAY
        | KVM_CAP_IOEVENTFD
        | KVM_CAP_IOEVENTFD_NO_LENGTH
        | KVM_CAP_IOEVENTFD_ANY_LENGTH
        | KVM_CAP_SIGNAL_MSI
        | KVM_CAP_VM_TYPES
        | KVM_CAP_XSAVE
        | KVM_CAP_VCPU_EVENTS
        | KVM_CAP_EXCEPTION_PAYLOAD
        | KVM_CAP_X86_TRIPLE_FAULT_EVENT
        | KVM_CAP_DEBUGREGS
        | KVM_CAP_SREGS2
        | KVM_CAP_ENABLE_CAP
        | KVM_CAP_ENABLE_CAP_VM
        | KVM_CAP_SET_GUEST_DEBUG
        | KVM_CAP_GET_MSR_FEATURES
        | KVM_CAP_CLOCKSOURCE
        | KVM_CAP_X86_USER_SPACE_MSR
        | KVM_CAP_X86_MSR_FILTER
        | KVM_CAP_MMU_SHADOW_CACHE_CONTROL
        | KVM_CAP_KVMCLOCK_CTRL
        | KVM_CAP_VCPU_ATTRIBUTES
        | KVM_CAP_X86_ROBUST_SINGLESTEP
        | KVM_CAP_DISABLE_QUIRKS
        | KVM_CAP_EXIT_ON_EMULATION_FAILURE => 1,
        KVM_CAP_DISABLE_QUIRKS2 => quirks::ALL as isize,
        KVM_CAP_X86_DISABLE_EXITS => params::optional_exits() as isize,
        KVM_CAP_XSAVE2 => xsave::size() as isize,
        KVM_CAP_SYNC_REGS => sync_regs::FIELDS as isize,
        KVM_CAP_ADJUST_CLOCK => clock::FLAGS as isize,
        KVM_CAP_TSC_CONTROL | KVM_CAP_VM_TSC_CONTROL => isize::from(tsc::can_scale::<B>()),
        KVM_CAP_MCE => msr_table::BANKS as isize,
        KVM_CAP_SET_GUEST_DEBUG2 => debug::VALID as isize,
        // Reported as the in-tree KVM does; without interrupt controllers in the kernel the ioctls refuse.
        KVM_CAP_IRQ_ROUTING => 4096,
        KVM_CAP_XCRS => isize::from(cpu::has_xsave()),
        KVM_CAP_NR_MEMSLOTS => slots::USER_SLOTS as isize,
        KVM_CAP_NR_VCPUS => vm::recommended_vcpus() as isize,
        KVM_CAP_MAX_VCPUS => vm::MAX_VCPUS as isize,
        KVM_CAP_MAX_VCPU_ID => vm::MAX_VCPU_ID as isize,
        _ => 0,
    }
}
