// SPDX-License-Identifier: GPL-2.0
//! The guest's FPU state, kept and switched by the kernel.
//!
//! Unsafe because: it is a C object with raw register images.

use core::ptr::NonNull;

use kernel::prelude::*;

use crate::sys::ffi;

/// A guest fpstate.
///
/// # Invariants
/// `raw` is a guest fpstate owned by this value, not loaded unless [`GuestFpu::with_loaded`] runs.
pub(crate) struct GuestFpu {
    raw: NonNull<ffi::FpuGuest>,
}

// SAFETY: a plain allocation, used by the holder of the vCPU's mutex.
unsafe impl Send for GuestFpu {}

/// Bytes of an FXSAVE image that GET_FPU and SET_FPU deal with (Intel SDM, "FXSAVE Area").
pub(crate) const FXSAVE_SIZE: usize = 512;

impl GuestFpu {
    /// A state as after reset.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: task context.
        let raw = NonNull::new(unsafe { ffi::lodge_fpu_new() }).ok_or(ENOMEM)?;
        // INVARIANT: just allocated.
        Ok(Self { raw })
    }

    /// A handle for exchanging the thread's FPU registers for the guest's.
    pub(crate) fn swap_handle(&self) -> Swap {
        Swap { raw: self.raw }
    }

    /// The legacy image (x87, SSE).
    pub(crate) fn legacy(&self) -> [u8; FXSAVE_SIZE] {
        // SAFETY: the image is inside the state, which is not loaded (a `&self` exists outside of KVM_RUN only).
        unsafe { core::ptr::read(ffi::lodge_fpu_fxsave(self.raw.as_ptr()).cast()) }
    }

    /// Replaces the legacy image.
    pub(crate) fn set_legacy(&mut self, image: &[u8; FXSAVE_SIZE]) {
        // SAFETY: as above.
        unsafe {
            core::ptr::write(ffi::lodge_fpu_fxsave(self.raw.as_ptr()).cast(), *image);
            ffi::lodge_fpu_mark_legacy(self.raw.as_ptr());
        }
    }
}

impl Drop for GuestFpu {
    fn drop(&mut self) {
        // SAFETY: by the invariant.
        unsafe { ffi::lodge_fpu_free(self.raw.as_ptr()) };
    }
}

/// See [`GuestFpu::swap_handle`].
pub(crate) struct Swap {
    raw: NonNull<ffi::FpuGuest>,
}

impl Swap {
    /// Runs `body` with the guest's FPU registers loaded.
    ///
    /// # Safety
    /// The [`GuestFpu`] lives, and nothing reads or writes its image, as long as `body` runs.
    pub(crate) unsafe fn with_loaded<R>(self, body: impl FnOnce() -> R) -> R {
        // SAFETY: task context with interrupts on; the state lives by the contract.
        unsafe { ffi::lodge_fpu_swap(self.raw.as_ptr(), true) };
        let result = body();
        // SAFETY: as above.
        unsafe { ffi::lodge_fpu_swap(self.raw.as_ptr(), false) };
        result
    }
}
