// SPDX-License-Identifier: GPL-2.0
//! The pages that a vCPU shares with user space: `struct kvm_run`, the PIO data, the coalesced ring.
//!
//! Unsafe because: user space writes to them at any time, so each access is one volatile copy of a plain value
//! and nothing may be borrowed from them.

use kernel::prelude::*;
use kernel::transmute::{AsBytes, FromBytes};

use crate::sys::page::Pages;

/// Pages in a vCPU's mapping: kvm_run, PIO data, coalesced MMIO ring.
pub(crate) const PAGES: usize = 3;
/// Where the PIO data begins in the mapping.
pub(crate) const PIO_OFFSET: usize = 4096;
/// Room for PIO data.
pub(crate) const PIO_SIZE: usize = 4096;

/// The shared pages.
pub(crate) struct RunPages {
    pages: [Pages<0>; PAGES],
}

impl RunPages {
    /// Zeroed pages.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            pages: [Pages::new()?, Pages::new()?, Pages::new()?],
        })
    }

    /// The page at `offset` pages into the mapping.
    pub(crate) fn page(&self, offset: usize) -> Option<&Pages<0>> {
        self.pages.get(offset)
    }

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
    pub(crate) fn get<T: FromBytes + Default + Copy>(&self, offset: usize) -> T {
        match self.at(offset, core::mem::size_of::<T>()) {
            // SAFETY: inside the page; any bytes are a valid `T`; alignment is not assumed by the packed copy.
            Some(p) => unsafe { core::ptr::read_volatile(p.cast::<Packed<T>>()).0 },
            None => T::default(),
        }
    }

    /// Copies a value into the mapping.
    pub(crate) fn set<T: AsBytes + Copy>(&self, offset: usize, value: T) {
        if let Some(p) = self.at(offset, core::mem::size_of::<T>()) {
            // SAFETY: inside the page; `T` has no padding, so no stale kernel byte goes out.
            unsafe { core::ptr::write_volatile(p.cast::<Packed<T>>(), Packed(value)) };
        }
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let mut at = offset;
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.set::<[u8; 8]>(at, word.try_into().unwrap_or_default());
            at = at.wrapping_add(8);
        }
        for b in words.remainder() {
            self.set(at, *b);
            at = at.wrapping_add(1);
        }
    }

    /// Copies bytes out.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        let mut at = offset;
        let mut words = bytes.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.get::<[u8; 8]>(at));
            at = at.wrapping_add(8);
        }
        for b in words.into_remainder() {
            *b = self.get(at);
            at = at.wrapping_add(1);
        }
    }
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Packed<T>(T);
