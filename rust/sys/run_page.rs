// SPDX-License-Identifier: GPL-2.0
//! The pages that a vCPU shares with user space: `struct kvm_run` and the PIO data.
//!
//! Unsafe because: user space writes to them at any time, so each access is one copy of a plain value
//! and nothing may be borrowed from them.

use core::arch::asm;
use core::mem::{align_of, size_of};

use kernel::prelude::*;
use kernel::transmute::{AsBytes, FromBytes};

use crate::sys::page::Pages;

/// Pages in a vCPU's mapping: kvm_run, PIO data, and the VM's ring of coalesced MMIO.
pub(crate) const PAGES: usize = 3;
/// Which of them is the ring, one for all vCPUs of the VM.
pub(crate) const RING_PAGE: usize = 2;
/// Where the PIO data begins in the mapping.
pub(crate) const PIO_OFFSET: usize = 4096;
/// Room for PIO data.
pub(crate) const PIO_SIZE: usize = 4096;

/// The shared pages of one vCPU.
pub(crate) struct RunPages {
    pages: [Pages<0>; RING_PAGE],
}

impl RunPages {
    /// Zeroed pages.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            pages: [Pages::new()?, Pages::new()?],
        })
    }

    /// The page at `offset` pages into the mapping.
    pub(crate) fn page(&self, offset: usize) -> Option<&Pages<0>> {
        self.pages.get(offset)
    }

    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let page = self.pages.get(offset / 4096)?;
        let within = offset % 4096;
        if within.checked_add(len).is_none_or(|end| end > 4096) {
            return None;
        }
        // SAFETY: `within + len` is inside the page.
        Some(unsafe { page.as_ptr().add(within) })
    }

    /// Copies a value out of the mapping. Zero for an offset outside, which would be our own mistake.
    #[inline]
    pub(crate) fn get<T: FromBytes + Default + Copy>(&self, offset: usize) -> T {
        let mut value = T::default();
        if let Some(p) = self.at(offset, size_of::<T>()) {
            if is_word::<T>(offset) {
                // SAFETY: inside the page, and aligned, as the page is; any bytes are a valid `T`.
                return unsafe { p.cast::<T>().read_volatile() };
            }
            // SAFETY: inside the page, and `value` is as long; any bytes are a valid `T`.
            unsafe { copy(p, (&raw mut value).cast(), size_of::<T>()) };
        }
        value
    }

    /// Copies a value into the mapping.
    #[inline]
    pub(crate) fn set<T: AsBytes + Copy>(&self, offset: usize, value: T) {
        if !is_word::<T>(offset) {
            self.set_all(offset, &value);
        } else if let Some(p) = self.at(offset, size_of::<T>()) {
            // SAFETY: inside the page, and aligned, as the page is; `T` has no padding, so no stale kernel byte goes out.
            unsafe { p.cast::<T>().write_volatile(value) };
        }
    }

    /// Copies a larger value into the mapping.
    #[inline]
    pub(crate) fn set_all<T: AsBytes>(&self, offset: usize, value: &T) {
        if let Some(p) = self.at(offset, size_of::<T>()) {
            // SAFETY: inside the page; `T` has no padding, so no stale kernel byte goes out.
            unsafe { copy(core::ptr::from_ref(value).cast(), p, size_of::<T>()) };
        }
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        if let Some(p) = self.at(offset, bytes.len()) {
            // SAFETY: inside the page.
            unsafe { copy(bytes.as_ptr(), p, bytes.len()) };
        }
    }

    /// Copies bytes out.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        if let Some(p) = self.at(offset, bytes.len()) {
            // SAFETY: inside the page.
            unsafe { copy(p, bytes.as_mut_ptr(), bytes.len()) };
        }
    }
}

/// Is a `T` at this offset moved by one instruction?
const fn is_word<T>(offset: usize) -> bool {
    size_of::<T>() <= 8 && offset % align_of::<T>() == 0
}

/// Copies between the pages and memory of ours, in assembly since the compiler must not think that it knows what is in the pages.
///
/// # Safety
/// `len` bytes at `from` can be read and at `to` written, and they do not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: by the contract; the direction flag is clear.
    unsafe {
        asm!(
            "rep movsq",
            "mov ecx, {rest:e}",
            "rep movsb",
            rest = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}
