// SPDX-License-Identifier: GPL-2.0
//! A value that readers use without a lock while a writer publishes another one in its place.
//!
//! Unsafe because: the pointer's target is kept alive by SRCU, which the compiler cannot see.

use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::with_exposed_provenance_mut;

use kernel::prelude::*;

use crate::sys::compat::{new_srcu, Guard, Srcu};
use crate::sys::cpu::Word;

/// A published `T`. Readers may sleep.
///
/// # Invariants
/// `current` comes from a `KBox<T>` that nobody else owns. A box is freed only after it was replaced and all readers that could have
/// seen it are done.
#[pin_data(PinnedDrop)]
pub(crate) struct SrcuCell<T> {
    #[pin]
    srcu: Srcu,
    current: Word,
    owns: PhantomData<T>,
}

// SAFETY: the cell owns the `T`.
unsafe impl<T: Send + Sync> Send for SrcuCell<T> {}
// SAFETY: readers share the `T`, and the last user drops it.
unsafe impl<T: Send + Sync> Sync for SrcuCell<T> {}

/// The address of the value in a box that is given up.
fn address<T>(value: KBox<T>) -> u64 {
    KBox::into_raw(value).expose_provenance() as u64
}

impl<T> SrcuCell<T> {
    /// Publishes a first value.
    pub(crate) fn new(value: KBox<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            srcu <- new_srcu(),
            // INVARIANT: just boxed.
            current: Word::with(address(value)),
            owns: PhantomData,
        })
    }

    /// The value at this moment, kept as long as the guard is. Any context; the holder may sleep if its context allows.
    #[inline]
    pub(crate) fn read(&self) -> SrcuRead<'_, T> {
        let guard = self.srcu.read_lock();
        SrcuRead {
            value: with_exposed_provenance_mut(self.current.get() as usize),
            _guard: guard,
        }
    }

    /// Publishes another value and drops the old one when no reader has it any more. When this returns, every reader sees the new one.
    /// Sleeps; the caller must not hold a guard of this cell.
    pub(crate) fn replace(&self, value: KBox<T>) {
        self.publish(value).wait();
    }

    /// Publishes another value; the old one waits for its readers in what is returned. Any context.
    pub(crate) fn publish(&self, value: KBox<T>) -> Replaced<'_, T> {
        // INVARIANT: `old` was taken out by this call alone.
        Replaced {
            cell: self,
            old: with_exposed_provenance_mut(self.current.exchange(address(value)) as usize),
        }
    }
}

/// A value that is no longer published, but that readers may still have. Dropping it waits for them, and so sleeps; not while the caller
/// holds a guard of the cell.
///
/// # Invariants
/// `old` comes from a `KBox<T>`, was published in `cell` and is so no longer, and nobody else will free it.
#[must_use = "the readers are waited for where it is dropped"]
pub(crate) struct Replaced<'a, T> {
    cell: &'a SrcuCell<T>,
    old: *mut T,
}

impl<T> Replaced<'_, T> {
    /// Waits until no reader has the value any more, and drops it: every reader sees a newer one from now on.
    pub(crate) fn wait(self) {}
}

impl<T> Drop for Replaced<'_, T> {
    fn drop(&mut self) {
        // Expedited, since user space waits: a VMM sets its slots one by one while the guest boots.
        self.cell.srcu.synchronize_expedited();
        // SAFETY: by the invariant, and no reader is left that saw it.
        drop(unsafe { KBox::from_raw(self.old) });
    }
}

#[pinned_drop]
impl<T> PinnedDrop for SrcuCell<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: guards borrow the cell, so there is no reader; the box is owned by the cell.
        drop(unsafe {
            KBox::from_raw(with_exposed_provenance_mut::<T>(self.current.get() as usize))
        });
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
