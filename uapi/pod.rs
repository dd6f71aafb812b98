// SPDX-License-Identifier: GPL-2.0
//! Which of the ABI's structures are plain old data, to be copied from and to user space as bytes.
//!
//! Unsafe because: `FromBytes` and `AsBytes` are promises about a type's layout. Each structure here holds integers and arrays of
//! integers only, with its padding spelled out as fields by `<linux/kvm.h>`; its size is asserted against the sum of its
//! fields, so no byte is implicit.

use core::mem::size_of;

use kernel::transmute::{AsBytes, FromBytes};

use super::*;

macro_rules! pod {
    ($($ty:ty = $size:expr;)*) => {
        $(
            const _: () = assert!(size_of::<$ty>() == $size);
            // SAFETY: integers only, no implicit padding: see the head of the file.
            unsafe impl FromBytes for $ty {}
            // SAFETY: as above.
            unsafe impl AsBytes for $ty {}
        )*
    };
}

pod! {
    kvm_regs = 18 * 8;
    kvm_sregs = 8 * 24 + 2 * 16 + 7 * 8 + 32;
    kvm_sregs2 = 8 * 24 + 2 * 16 + 7 * 8 + 8 + 4 * 8;
    kvm_vcpu_events = 8 + 4 + 4 + 4 + 4 + 4 + 1 + 26 + 1 + 8;
    kvm_x86_mce = 4 * 8 + 1 + 7 + 3 * 8;
    kvm_clock_data = 8 + 4 + 4 + 8 + 8 + 4 * 4;
    kvm_device_attr = 4 + 4 + 8 + 8;
    kvm_translation = 8 + 8 + 1 + 1 + 1 + 5;
    kvm_cpuid_entry = 6 * 4;
    kvm_guest_debug = 4 + 4 + 8 * 8;
    kvm_debugregs = 4 * 8 + 8 + 8 + 8 + 9 * 8;
    kvm_fpu = 128 + 2 + 2 + 1 + 1 + 2 + 8 + 8 + 256 + 4 + 4;
    kvm_userspace_memory_region = 4 + 4 + 8 + 8 + 8;
    kvm_userspace_memory_region2 = 4 + 4 + 8 + 8 + 8 + 8 + 4 + 4 + 14 * 8;
    kvm_ioeventfd = 8 + 8 + 4 + 4 + 4 + 36;
    kvm_msi = 5 * 4 + 12;
    kvm_interrupt = 4;
    kvm_mp_state = 4;
    kvm_enable_cap = 4 + 4 + 4 * 8 + 64;
    kvm_msr_entry = 4 + 4 + 8;
    kvm_cpuid_entry2 = 10 * 4;
    kvm_xcr = 4 + 4 + 8;
    kvm_xcrs = 4 + 4 + 16 * 16 + 16 * 8;
}

/// The head of `kvm_msrs`, `kvm_cpuid2` and the like: a count, and a word that is ignored.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Header {
    /// How many entries follow.
    pub(crate) count: u32,
    /// Ignored.
    pub(crate) pad: u32,
}

/// `kvm_dirty_log`, its address as a number.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct DirtyLogArg {
    /// The slot.
    pub(crate) slot: u32,
    /// Ignored.
    pub(crate) pad: u32,
    /// Where the bitmap goes.
    pub(crate) bitmap: u64,
}

const _: () = assert!(size_of::<kvm_dirty_log>() == size_of::<DirtyLogArg>());

// SAFETY: three integers.
unsafe impl FromBytes for DirtyLogArg {}

const _: () = assert!(
    size_of::<kvm_msrs>() == size_of::<Header>()
        && size_of::<kvm_cpuid2>() == size_of::<Header>()
        && size_of::<kvm_irq_routing>() == size_of::<Header>()
);

// SAFETY: two integers.
unsafe impl FromBytes for Header {}
// SAFETY: two integers.
unsafe impl AsBytes for Header {}

/// `struct kvm_msr_filter_range`, with its padding, and the address as a number.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct MsrFilterRange {
    /// The accesses that it is about.
    pub(crate) flags: u32,
    /// How many registers.
    pub(crate) nmsrs: u32,
    /// The first of them.
    pub(crate) base: u32,
    pad: u32,
    /// Where user space has a bit for each.
    pub(crate) bitmap: u64,
}

/// `struct kvm_msr_filter`, likewise.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct MsrFilterArg {
    /// What holds for registers in no range.
    pub(crate) flags: u32,
    pad: u32,
    /// The ranges.
    pub(crate) ranges: [MsrFilterRange; 16],
}

const _: () = assert!(
    size_of::<MsrFilterArg>() == size_of::<kvm_msr_filter>()
        && size_of::<MsrFilterRange>() == size_of::<kvm_msr_filter_range>()
);

// SAFETY: integers only.
unsafe impl FromBytes for MsrFilterArg {}

/// [`MsrFilterRange`] as a 32-bit program lays it out.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct MsrFilterRange32 {
    flags: u32,
    nmsrs: u32,
    base: u32,
    bitmap: u32,
}

/// [`MsrFilterArg`] as a 32-bit program lays it out: KVM_X86_SET_MSR_FILTER has another number there.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct MsrFilterArg32 {
    flags: u32,
    ranges: [MsrFilterRange32; 16],
}

// SAFETY: integers only.
unsafe impl FromBytes for MsrFilterArg32 {}

impl From<&MsrFilterArg32> for MsrFilterArg {
    fn from(arg: &MsrFilterArg32) -> Self {
        Self {
            flags: arg.flags,
            pad: 0,
            ranges: arg.ranges.map(|r| MsrFilterRange {
                flags: r.flags,
                nmsrs: r.nmsrs,
                base: r.base,
                pad: 0,
                bitmap: r.bitmap.into(),
            }),
        }
    }
}
