// SPDX-License-Identifier: GPL-2.0
//! The guest's FPU state, kept and switched by the kernel.
//!
//! Unsafe because: it is a C object with raw register images.

use core::ptr::NonNull;

use kernel::prelude::*;

use crate::model::fxsave::{self, Header};
use crate::sys::ffi;

/// A guest fpstate.
///
/// # Invariants
/// `raw` is a guest fpstate owned by this value; its image is stale while `loaded`.
pub(crate) struct GuestFpu {
    raw: NonNull<ffi::FpuGuest>,
    loaded: bool,
}

// SAFETY: a plain allocation, used by the holder of the vCPU's mutex.
unsafe impl Send for GuestFpu {}

/// Bytes of `struct kvm_xsave`, and of the smallest image that is exchanged.
pub(crate) const IMAGE_MIN: usize = 4096;

impl GuestFpu {
    /// A state as after reset.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: task context.
        let raw = NonNull::new(unsafe { ffi::lodge_fpu_new() }).ok_or(ENOMEM)?;
        // INVARIANT: just allocated.
        Ok(Self { raw, loaded: false })
    }

    /// Gives the thread's FPU registers to the guest. Task context, interrupts on.
    pub(crate) fn load(&mut self) {
        if !self.loaded {
            self.loaded = true;
            // SAFETY: by the invariant; the thread's own registers are saved.
            unsafe { ffi::lodge_fpu_swap(self.raw.as_ptr(), true) };
        }
    }

    /// Gives them back.
    pub(crate) fn unload(&mut self) {
        if self.loaded {
            self.loaded = false;
            // SAFETY: loaded by this thread, which holds the vCPU from `load` on.
            unsafe { ffi::lodge_fpu_swap(self.raw.as_ptr(), false) };
        }
    }

    /// Copies the legacy image (x87, SSE). Not while loaded: it would be out of date.
    pub(crate) fn legacy(&self, image: &mut [u8; fxsave::SIZE]) {
        let mut header = Header::FXSAVE;
        // SAFETY: the image is inside the state, and `self` is borrowed for as long as it is looked at; the shim writes the two words.
        unsafe {
            *image = *ffi::lodge_fpu_fxsave(self.raw.as_ptr()).cast();
            ffi::lodge_fpu_header(
                self.raw.as_ptr(),
                &mut header.xstate_bv,
                &mut header.compacted,
            );
        }
        fxsave::complete(image, header);
    }

    /// Replaces the legacy image.
    pub(crate) fn set_legacy(&mut self, image: &[u8; fxsave::SIZE]) {
        // SAFETY: as above; borrowed exclusively.
        unsafe {
            core::ptr::copy_nonoverlapping(
                image.as_ptr(),
                ffi::lodge_fpu_fxsave(self.raw.as_ptr()),
                fxsave::SIZE,
            );
            ffi::lodge_fpu_mark_legacy(self.raw.as_ptr());
        }
    }

    /// Bytes of the image that KVM_SET_XSAVE and KVM_GET_XSAVE2 exchange: at least `struct kvm_xsave`.
    pub(crate) fn image_size(&self) -> usize {
        // SAFETY: by the invariant.
        unsafe { ffi::lodge_fpu_image_size(self.raw.as_ptr()) as usize }
    }

    /// Writes the state as a standard-format XSAVE image: of the components of `xcr0` only, and with `pkru`. Not while loaded.
    pub(crate) fn save(&self, image: &mut [u8], xcr0: u64, pkru: u32) {
        if image.len() < IMAGE_MIN {
            return;
        }
        let len = image.len().min(self.image_size()) as u32;
        // SAFETY: `len` bytes at `image` are writable, which is room for the legacy area and the header at least; the
        // state is not loaded.
        unsafe {
            ffi::lodge_fpu_save(self.raw.as_ptr(), image.as_mut_ptr(), len, xcr0, pkru);
        }
    }

    /// Takes the state from a standard-format XSAVE image, and returns PKRU if the image has it, else `pkru`. EINVAL for an
    /// image that is too short or not valid, or has components that `xcr0` lacks; nothing is changed then. Not while loaded.
    pub(crate) fn restore(&mut self, image: &mut [u8], xcr0: u64, mut pkru: u32) -> Result<u32> {
        if image.len() < self.image_size() {
            return Err(EINVAL);
        }
        // SAFETY: the image is as long as the kernel expects, which checks what it says; the state is not loaded.
        kernel::error::to_result(unsafe {
            ffi::lodge_fpu_restore(self.raw.as_ptr(), image.as_mut_ptr(), xcr0, &mut pkru)
        })?;
        Ok(pkru)
    }
}

impl Drop for GuestFpu {
    fn drop(&mut self) {
        // SAFETY: by the invariant; not loaded, since whoever loads it unloads it before the vCPU is let go.
        unsafe { ffi::lodge_fpu_free(self.raw.as_ptr()) };
    }
}

/// A YMM register of the guest whose FPU state this thread has loaded. Bits above the host's vector width read as zero.
pub(crate) fn read_vector(n: u8) -> [u64; 4] {
    let mut value = [0u64; 4];
    // SAFETY: the shim writes 32 bytes.
    unsafe { ffi::lodge_fpu_read_vector(n, value.as_mut_ptr()) };
    value
}

/// Sets it: the low half, and the upper half to zero or to `value`'s.
pub(crate) fn write_vector(n: u8, value: [u64; 4], zero_upper: bool) {
    // SAFETY: the shim reads 32 bytes.
    unsafe { ffi::lodge_fpu_write_vector(n, value.as_ptr(), zero_upper) };
}

/// The x87 control word (low half) and status word (high half) of the guest whose FPU state this thread has loaded.
pub(crate) fn x87_words() -> u32 {
    // SAFETY: reads registers.
    unsafe { ffi::lodge_fpu_x87_words() }
}

/// Executes FNINIT on that state.
pub(crate) fn x87_init() {
    // SAFETY: the guest's registers are in the CPU.
    unsafe { ffi::lodge_fpu_x87_init() };
}
