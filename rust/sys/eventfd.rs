// SPDX-License-Identifier: GPL-2.0
//! Eventfds of user space.
//!
//! Unsafe because: the context is the kernel's, counted by hand.

use core::ffi::c_void;
use core::ptr::NonNull;

use kernel::error::from_err_ptr;
use kernel::ffi::c_int;
use kernel::prelude::*;

unsafe extern "C" {
    safe fn eventfd_ctx_fdget(fd: c_int) -> *mut c_void;
    fn eventfd_ctx_put(ctx: *mut c_void);
    fn eventfd_signal_mask(ctx: *mut c_void, mask: u32);
}

/// A reference on an eventfd, which outlives the descriptor.
///
/// # Invariants
/// A `struct eventfd_ctx` on which this value owns a reference.
#[derive(PartialEq, Eq)]
pub(crate) struct EventFd(NonNull<c_void>);

// SAFETY: an eventfd may be used and given back by any task.
unsafe impl Send for EventFd {}
// SAFETY: signalling takes the eventfd's own lock.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// The eventfd behind a descriptor of the current task. EBADF; EINVAL if it is something else. Task context.
    pub(crate) fn get(fd: i32) -> Result<Self> {
        let ctx = from_err_ptr(eventfd_ctx_fdget(fd))?;
        // INVARIANT: the call took a reference.
        NonNull::new(ctx).map(Self).ok_or(EBADF)
    }

    /// Adds 1 to its count. Any context.
    pub(crate) fn signal(&self) {
        // SAFETY: by the invariant. No further events are to be told.
        unsafe { eventfd_signal_mask(self.0.as_ptr(), 0) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: by the invariant, of which this is the end.
        unsafe { eventfd_ctx_put(self.0.as_ptr()) };
    }
}
