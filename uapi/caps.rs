// SPDX-License-Identifier: GPL-2.0
//! The capability table: what CHECK_EXTENSION answers. A row is here only when a test proves what it promises.

use super::*;
use crate::hv::vm;
use crate::mmu::slots;
use crate::sys::cpu;

/// CHECK_EXTENSION; 0 for what is not there, and for numbers that mean nothing.
pub(crate) fn check(cap: usize) -> isize {
    let Ok(cap) = u32::try_from(cap) else {
        return 0;
    };
    match cap {
        KVM_CAP_USER_MEMORY
        | KVM_CAP_USER_MEMORY2
        | KVM_CAP_EXT_CPUID
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
        | KVM_CAP_VM_TYPES => 1,
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
