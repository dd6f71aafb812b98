// SPDX-License-Identifier: GPL-2.0
//! An object of C's (a notifier, an entry of a list) that reads one of ours through a raw pointer.
//!
//! Unsafe because: the compiler does not see for how long C has the pointer.

use core::ffi::c_void;
use core::ptr::NonNull;

use kernel::prelude::*;
use kernel::sync::Arc;

/// C has the address of what `_of` keeps alive, from `new` to the drop.
///
/// # Invariants
/// `raw` is what may be given to `remove`, once. C uses the address of what `_of` keeps alive until that call returns.
pub(super) struct Lent<T> {
    raw: NonNull<c_void>,
    remove: unsafe extern "C" fn(*mut c_void),
    _of: Arc<T>,
}

// SAFETY: any thread may remove it, and give back the reference.
unsafe impl<T: Send + Sync> Send for Lent<T> {}
// SAFETY: a reference gives `raw` to those alone who say what C may do with it, and to nobody what is behind.
unsafe impl<T: Send + Sync> Sync for Lent<T> {}

impl<T: Send + Sync> Lent<T> {
    /// Lends what is in `of`: `add` is called with its address. ENOMEM if that returns NULL.
    ///
    /// # Safety
    /// `remove` may be called once, by any thread, with a pointer that `add` returned. C uses the address as a shared reference,
    /// from any thread, and not after `remove` has returned.
    pub(super) unsafe fn new(
        of: Arc<T>,
        add: impl FnOnce(*const c_void) -> Result<*mut c_void>,
        remove: unsafe extern "C" fn(*mut c_void),
    ) -> Result<Self> {
        let raw = add(core::ptr::from_ref(&*of).cast())?;
        // INVARIANT: by the contract.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            remove,
            _of: of,
        })
    }

    /// C's object, live as long as `self`.
    pub(super) fn raw(&self) -> *mut c_void {
        self.raw.as_ptr()
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        // SAFETY: by the invariant; before `_of` goes.
        unsafe { (self.remove)(self.raw.as_ptr()) };
    }
}
