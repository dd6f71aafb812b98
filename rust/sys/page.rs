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
/// `address` is the start of such an allocation, owned by this value.
pub(crate) struct Pages<const ORDER: u32> {
    address: NonNull<u8>,
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
        // INVARIANT: just allocated.
        Ok(Self {
            address: NonNull::new(address).ok_or(ENOMEM)?,
        })
    }

    /// The physical address.
    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: the address is in the direct map.
        unsafe { ffi::lodge_virt_to_phys(self.address.as_ptr()) }
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
