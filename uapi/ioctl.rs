// SPDX-License-Identifier: GPL-2.0
//! Ioctl numbers, which C computes with macros that bindgen does not see (`<linux/kvm.h>`).

use kernel::ioctl::{_IO, _IOR, _IOW, _IOWR};

use super::*;

const TYPE: u32 = KVMIO;

macro_rules! numbers {
    ($($name:ident = $encode:ident$(::<$ty:ty>)?($nr:expr);)*) => {
        $(
            #[doc = concat!("`KVM_", stringify!($name), "`.")]
            pub(crate) const $name: u32 = $encode$(::<$ty>)?(TYPE, $nr);
        )*
    };
}

numbers! {
    GET_API_VERSION = _IO(0x00);
    CREATE_VM = _IO(0x01);
    GET_MSR_INDEX_LIST = _IOWR::<kvm_msr_list>(0x02);
    CHECK_EXTENSION = _IO(0x03);
    GET_VCPU_MMAP_SIZE = _IO(0x04);
    GET_SUPPORTED_CPUID = _IOWR::<kvm_cpuid2>(0x05);
    GET_EMULATED_CPUID = _IOWR::<kvm_cpuid2>(0x09);
    CREATE_VCPU = _IO(0x41);
    GET_DIRTY_LOG = _IOW::<kvm_dirty_log>(0x42);
    SET_USER_MEMORY_REGION = _IOW::<kvm_userspace_memory_region>(0x46);
    SET_TSS_ADDR = _IO(0x47);
    SET_IDENTITY_MAP_ADDR = _IOW::<u64>(0x48);
    SET_USER_MEMORY_REGION2 = _IOW::<kvm_userspace_memory_region2>(0x49);
    SET_GSI_ROUTING = _IOW::<kvm_irq_routing>(0x6a);
    IOEVENTFD = _IOW::<kvm_ioeventfd>(0x79);
    SIGNAL_MSI = _IOW::<kvm_msi>(0xa5);
    RUN = _IO(0x80);
    GET_REGS = _IOR::<kvm_regs>(0x81);
    SET_REGS = _IOW::<kvm_regs>(0x82);
    GET_SREGS = _IOR::<kvm_sregs>(0x83);
    SET_SREGS = _IOW::<kvm_sregs>(0x84);
    INTERRUPT = _IOW::<kvm_interrupt>(0x86);
    GET_MSRS = _IOWR::<kvm_msrs>(0x88);
    SET_MSRS = _IOW::<kvm_msrs>(0x89);
    IRQ_LINE = _IOW::<kvm_irq_level>(0x61);
    ENABLE_CAP = _IOW::<kvm_enable_cap>(0xa3);
    SET_SIGNAL_MASK = _IOW::<kvm_signal_mask>(0x8b);
    GET_FPU = _IOR::<kvm_fpu>(0x8c);
    SET_FPU = _IOW::<kvm_fpu>(0x8d);
    SET_CPUID2 = _IOW::<kvm_cpuid2>(0x90);
    GET_CPUID2 = _IOWR::<kvm_cpuid2>(0x91);
    GET_MP_STATE = _IOR::<kvm_mp_state>(0x98);
    SET_MP_STATE = _IOW::<kvm_mp_state>(0x99);
    NMI = _IO(0x9a);
    GET_TSC_KHZ = _IO(0xa3);
    SET_NR_MMU_PAGES = _IO(0x44);
    TRANSLATE = _IOWR::<kvm_translation>(0x85);
    SET_CPUID = _IOW::<kvm_cpuid>(0x8a);
    X86_SET_MSR_FILTER = _IOW::<kvm_msr_filter>(0xc6);
    X86_SET_MSR_FILTER_COMPAT = _IOW::<pod::MsrFilterArg32>(0xc6);
    SET_CLOCK = _IOW::<kvm_clock_data>(0x7b);
    GET_CLOCK = _IOR::<kvm_clock_data>(0x7c);
    SET_TSC_KHZ = _IO(0xa2);
    KVMCLOCK_CTRL = _IO(0xad);
    SET_DEVICE_ATTR = _IOW::<kvm_device_attr>(0xe1);
    GET_DEVICE_ATTR = _IOW::<kvm_device_attr>(0xe2);
    HAS_DEVICE_ATTR = _IOW::<kvm_device_attr>(0xe3);
    X86_SETUP_MCE = _IOW::<u64>(0x9c);
    X86_GET_MCE_CAP_SUPPORTED = _IOR::<u64>(0x9d);
    X86_SET_MCE = _IOW::<kvm_x86_mce>(0x9e);
    GET_MSR_FEATURE_INDEX_LIST = _IOWR::<kvm_msr_list>(0x0a);
    SET_GUEST_DEBUG = _IOW::<kvm_guest_debug>(0x9b);
    GET_VCPU_EVENTS = _IOR::<kvm_vcpu_events>(0x9f);
    SET_VCPU_EVENTS = _IOW::<kvm_vcpu_events>(0xa0);
    GET_DEBUGREGS = _IOR::<kvm_debugregs>(0xa1);
    SET_DEBUGREGS = _IOW::<kvm_debugregs>(0xa2);
    GET_XSAVE = _IOR::<kvm_xsave>(0xa4);
    SET_XSAVE = _IOW::<kvm_xsave>(0xa5);
    GET_SREGS2 = _IOR::<kvm_sregs2>(0xcc);
    SET_SREGS2 = _IOW::<kvm_sregs2>(0xcd);
    GET_XSAVE2 = _IOR::<kvm_xsave>(0xcf);
    GET_XCRS = _IOR::<kvm_xcrs>(0xa6);
    SET_XCRS = _IOW::<kvm_xcrs>(0xa7);
}
