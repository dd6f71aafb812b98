// SPDX-License-Identifier: GPL-2.0
//! A mutex taken killably: KVM_RUN holds the vCPU's for as long as the guest runs, and a second thread that waits for it
//! must be killable.
//!
//! Unsafe because: the kernel crate's `Mutex` has no killable lock; this is the same pattern on the same C mutex.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use kernel::bindings;
use kernel::prelude::*;
use kernel::types::Opaque;

use crate::sys::ffi;

/// A mutex around `T`.
#[pin_data]
pub(crate) struct KillableMutex<T> {
    #[pin]
    raw: Opaque<bindings::mutex>,
    data: UnsafeCell<T>,
}

// SAFETY: the mutex gives one thread at a time access to the data.
unsafe impl<T: Send> Send for KillableMutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for KillableMutex<T> {}

impl<T> KillableMutex<T> {
    /// An unlocked mutex.
    pub(crate) fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static kernel::sync::LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid, pinned memory for a mutex; name and key are static.
                unsafe { bindings::__mutex_init(slot, name.as_char_ptr(), key.as_ptr()) }
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Takes the mutex; EINTR when the task is killed while it waits.
    pub(crate) fn lock(&self) -> Result<Guard<'_, T>> {
        // SAFETY: the mutex was initialised by `new`.
        if unsafe { ffi::lodge_mutex_lock_killable(self.raw.get()) } != 0 {
            return Err(EINTR);
        }
        Ok(Guard {
            mutex: self,
            not_send: PhantomData,
        })
    }
}

/// The lock held.
pub(crate) struct Guard<'a, T> {
    mutex: &'a KillableMutex<T>,
    not_send: PhantomData<*mut ()>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, `self` is borrowed exclusively.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the lock is held by this task.
        unsafe { bindings::mutex_unlock(self.mutex.raw.get()) };
    }
}
