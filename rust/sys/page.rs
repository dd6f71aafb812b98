// SPDX-License-Identifier: GPL-2.0
//! Pages of kernel memory that hardware or user space uses by address.
//!
//! Unsafe because: hardware writes to them behind the compiler's back, and addresses are raw.

use core::ptr::NonNull;

use kernel::bindings;
use kernel::prelude::*;

use crate::sys::ffi;

/// `1 << ORDER` zeroed, contiguous pages, charged to the current task's memory cgroup.
///
/// # Invariants
/// `address` is the start of such an allocation, owned by this value, and `phys` is its physical address.
pub(crate) struct Pages<const ORDER: u32> {
    address: NonNull<u8>,
    /// Kept, since each entry into a guest needs two of them.
    phys: u64,
}

// SAFETY: plain memory owned by the value.
unsafe impl<const ORDER: u32> Send for Pages<ORDER> {}
// SAFETY: shared access goes through raw pointers only.
unsafe impl<const ORDER: u32> Sync for Pages<ORDER> {}

impl<const ORDER: u32> Pages<ORDER> {
    /// Bytes in the allocation.
    pub(crate) const SIZE: usize = 4096 << ORDER;

    /// Allocates. Task context, may sleep.
    pub(crate) fn new() -> Result<Self> {
        let gfp = bindings::GFP_KERNEL_ACCOUNT | bindings::__GFP_ZERO;
        // SAFETY: no preconditions.
        let address = unsafe { bindings::get_free_pages_noprof(gfp, ORDER) } as *mut u8;
        let address = NonNull::new(address).ok_or(ENOMEM)?;
        // SAFETY: the address is in the direct map.
        let phys = unsafe { ffi::lodge_virt_to_phys(address.as_ptr()) };
        // INVARIANT: just allocated.
        Ok(Self { address, phys })
    }

    /// The physical address.
    pub(crate) fn phys(&self) -> u64 {
        self.phys
    }

    /// The kernel's address.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// All bytes, while no hardware uses the pages.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: by the invariant; `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.address.as_ptr(), Self::SIZE) }
    }
}

impl<const ORDER: u32> Drop for Pages<ORDER> {
    fn drop(&mut self) {
        // SAFETY: by the invariant.
        unsafe { bindings::free_pages(self.address.as_ptr() as usize, ORDER) };
    }
}
