// SPDX-License-Identifier: GPL-2.0
//! A value that readers use without a lock while a writer publishes another one in its place.
//!
//! Unsafe because: the pointer's target is kept alive by SRCU, which the compiler cannot see.

use core::ops::Deref;

use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full};

use crate::sys::compat::{new_srcu, Guard, Srcu};

/// A published `T`. Readers may sleep.
///
/// # Invariants
/// `current` comes from a `KBox<T>` that nobody else owns. A box is freed only after it was replaced and all readers that could have
/// seen it are done.
#[pin_data(PinnedDrop)]
pub(crate) struct SrcuCell<T> {
    #[pin]
    srcu: Srcu,
    current: Atomic<*mut T>,
}

// SAFETY: the cell owns the `T`.
unsafe impl<T: Send + Sync> Send for SrcuCell<T> {}
// SAFETY: readers share the `T`, and the last user drops it.
unsafe impl<T: Send + Sync> Sync for SrcuCell<T> {}

impl<T> SrcuCell<T> {
    /// Publishes a first value.
    pub(crate) fn new(value: KBox<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            srcu <- new_srcu(),
            // INVARIANT: just boxed.
            current: Atomic::new(KBox::into_raw(value)),
        })
    }

    /// The value at this moment, kept as long as the guard is. Any context; the holder may sleep if its context allows.
    pub(crate) fn read(&self) -> SrcuRead<'_, T> {
        let guard = self.srcu.read_lock();
        let value = self.current.load(Acquire);
        SrcuRead {
            value,
            _guard: guard,
        }
    }

    /// Publishes another value and drops the old one when no reader has it any more. When this returns, every reader sees the new one.
    /// Sleeps; the caller must not hold a guard of this cell.
    pub(crate) fn replace(&self, value: KBox<T>) {
        let old = self.current.xchg(KBox::into_raw(value), Full);
        // Expedited, since user space waits: a VMM sets its slots one by one while the guest boots.
        self.srcu.synchronize_expedited();
        // SAFETY: `old` was taken out by this call alone, and no reader is left that saw it.
        drop(unsafe { KBox::from_raw(old) });
    }
}

#[pinned_drop]
impl<T> PinnedDrop for SrcuCell<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: guards borrow the cell, so there is no reader; the box is owned by the cell.
        drop(unsafe { KBox::from_raw(self.current.load(Acquire)) });
    }
}

/// The value of a [`SrcuCell`] as it was when reading began.
pub(crate) struct SrcuRead<'a, T> {
    value: *const T,
    _guard: Guard<'a>,
}

impl<T> Deref for SrcuRead<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: by the cell's invariants, while the guard is held.
        unsafe { &*self.value }
    }
}
