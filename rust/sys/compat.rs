// SPDX-License-Identifier: GPL-2.0
//! What differs between the kernels of the 7.x series that the module builds for, here and in `compat.c` only. Kbuild sets
//! `lodge_before_7_3`.
//!
//! Unsafe because: kernels before 7.3 offer SRCU to C only, and name fewer error codes.

#[cfg(not(lodge_before_7_3))]
mod version {
    use kernel::bindings;
    use kernel::module::this_module;
    use kernel::prelude::*;

    pub(crate) use kernel::error::code::EOPNOTSUPP;
    pub(crate) use kernel::sync::srcu::{Guard, Srcu};

    /// What the operations of our files name as their owner.
    pub(crate) const fn owner() -> *mut bindings::module {
        this_module::<crate::LocalModule>().as_ptr()
    }

    /// A new SRCU domain.
    pub(crate) fn new_srcu() -> impl PinInit<Srcu, Error> {
        kernel::new_srcu!("lodge")
    }
}

#[cfg(lodge_before_7_3)]
mod version {
    use core::ffi::c_void;
    use core::ptr::NonNull;

    use kernel::bindings;
    use kernel::ffi::c_int;
    use kernel::prelude::*;
    use kernel::types::NotThreadSafe;

    const fn code(errno: u32) -> Error {
        // SAFETY: `Error` is the negative errno, never 0, and has room for nothing else.
        unsafe { core::mem::transmute::<i32, Error>(0i32.wrapping_sub(errno as i32)) }
    }

    /// The operation is not supported.
    pub(crate) const EOPNOTSUPP: Error = code(bindings::EOPNOTSUPP);

    // compat.c
    unsafe extern "C" {
        safe fn lodge_srcu_new() -> *mut c_void;
        fn lodge_srcu_free(srcu: *mut c_void);
        fn lodge_srcu_read_lock(srcu: *mut c_void) -> c_int;
        fn lodge_srcu_read_unlock(srcu: *mut c_void, index: c_int);
        fn lodge_srcu_synchronize_expedited(srcu: *mut c_void);
    }

    /// What the operations of our files name as their owner.
    pub(crate) const fn owner() -> *mut bindings::module {
        crate::THIS_MODULE.as_ptr()
    }

    /// An SRCU domain: `struct srcu_struct` in memory of its own.
    #[pin_data(PinnedDrop)]
    pub(crate) struct Srcu {
        raw: NonNull<c_void>,
    }

    // SAFETY: SRCU is made to be shared.
    unsafe impl Send for Srcu {}
    // SAFETY: as above.
    unsafe impl Sync for Srcu {}

    /// A new SRCU domain.
    pub(crate) fn new_srcu() -> impl PinInit<Srcu, Error> {
        try_pin_init!(Srcu {
            raw: NonNull::new(lodge_srcu_new()).ok_or(ENOMEM)?,
        })
    }

    impl Srcu {
        /// Begins to read. Any context.
        pub(crate) fn read_lock(&self) -> Guard<'_> {
            // SAFETY: the domain lives as long as `self`.
            let index = unsafe { lodge_srcu_read_lock(self.raw.as_ptr()) };
            Guard {
                srcu: self,
                index,
                _task: NotThreadSafe,
            }
        }

        /// Waits for all readers of now. Sleeps.
        pub(crate) fn synchronize_expedited(&self) {
            // SAFETY: the domain lives as long as `self`.
            unsafe { lodge_srcu_synchronize_expedited(self.raw.as_ptr()) };
        }
    }

    #[pinned_drop]
    impl PinnedDrop for Srcu {
        fn drop(self: Pin<&mut Self>) {
            // SAFETY: guards borrow the domain, so there is no reader.
            unsafe { lodge_srcu_free(self.raw.as_ptr()) };
        }
    }

    /// Reading goes on until it is dropped.
    pub(crate) struct Guard<'a> {
        srcu: &'a Srcu,
        index: c_int,
        _task: NotThreadSafe,
    }

    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            // SAFETY: `index` is from `read_lock`, by the same task.
            unsafe { lodge_srcu_read_unlock(self.srcu.raw.as_ptr(), self.index) };
        }
    }
}

pub(crate) use version::*;
