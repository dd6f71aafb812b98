// SPDX-License-Identifier: GPL-2.0
//! Being told that the host is about to sleep (suspend, hibernation).
//!
//! Context: [`Sleeper::host_sleeps`] is called by the task that puts the host to sleep, which may sleep itself and holds the lock of
//! the kernel's list of notifiers. Adding and removing take that lock for writing, so they sleep, and a removal waits for a call that
//! is under way: neither may be done with a lock held that `host_sleeps` takes.
//!
//! Unsafe because: `power.c` keeps a raw pointer to who is told, and calls back.

use core::ffi::c_void;

use kernel::prelude::*;
use kernel::sync::Arc;

use super::lent::Lent;

unsafe extern "C" {
    fn lodge_power_add(
        context: *const c_void,
        sleeps: unsafe extern "C" fn(*const c_void),
    ) -> *mut c_void;
    fn lodge_power_remove(power: *mut c_void);
}

/// Who wants to know.
pub(crate) trait Sleeper: Send + Sync + 'static {
    /// The host is about to sleep; tasks still run. Task context.
    fn host_sleeps(&self);
}

/// A [`Sleeper`] is told, from `new` to the drop.
pub(crate) struct Told<T>(#[expect(dead_code, reason = "its drop is what counts")] Lent<T>);

impl<T: Sleeper> Told<T> {
    /// From now on `of` is told. Sleeps.
    pub(crate) fn new(of: Arc<T>) -> Result<Self> {
        /// # Safety
        /// `context` points to a `T` for the duration of the call.
        unsafe extern "C" fn sleeps<T: Sleeper>(context: *const c_void) {
            // SAFETY: by the contract.
            unsafe { &*context.cast::<T>() }.host_sleeps();
        }
        // SAFETY: the function is in this module, which VMs keep loaded, and is given the address of a `T`.
        let add = |context| Ok(unsafe { lodge_power_add(context, sleeps::<T>) });
        // SAFETY: no call is under way when `lodge_power_remove` returns, and none comes any more.
        unsafe { Lent::new(of, add, lodge_power_remove) }.map(Self)
    }
}
