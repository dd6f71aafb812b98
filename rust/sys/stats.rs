// SPDX-License-Identifier: GPL-2.0
//! Counters that debugfs shows, of each VM and of all together.
//!
//! Unsafe because: `stats.c` keeps the VMs in a list and reads them through a raw pointer.

use core::ffi::c_void;
use core::marker::PhantomData;

use kernel::error::to_result;
use kernel::ffi::{c_char, c_int, c_uint};
use kernel::prelude::*;
use kernel::sync::Arc;

use super::lent::Lent;

unsafe extern "C" {
    fn lodge_stats_init(
        of: *const *const c_char,
        n: c_uint,
        read: unsafe extern "C" fn(*const c_void, c_uint) -> u64,
    ) -> c_int;
    fn lodge_stats_exit();
    fn lodge_stats_add(fd: c_int, context: *const c_void) -> *mut c_void;
    fn lodge_stats_remove(vm: *mut c_void);
}

/// What has counters, at least one.
pub(crate) trait Counted: Send + Sync + 'static {
    /// The counters' names, each ended by a NUL.
    const NAMES: &'static [&'static CStr];
    /// The counter with this number. Task context; may be called at any time.
    fn counter(&self, n: usize) -> u64;
}

/// The directory for all VMs, whose counters are those of `T`.
pub(crate) struct Directory<T> {
    _names: KVec<*const c_char>,
    _of: PhantomData<fn() -> T>,
}

// SAFETY: pointers to static strings.
unsafe impl<T> Send for Directory<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Directory<T> {}

impl<T: Counted> Directory<T> {
    /// Makes it. Once; before the first [`Shown::new`].
    pub(crate) fn new() -> Result<Self> {
        /// # Safety
        /// `context` points to a `T` for the duration of the call.
        unsafe extern "C" fn read<T: Counted>(context: *const c_void, n: c_uint) -> u64 {
            // SAFETY: by the contract.
            unsafe { &*context.cast::<T>() }.counter(n as usize)
        }
        let mut names = KVec::with_capacity(T::NAMES.len(), GFP_KERNEL)?;
        for name in T::NAMES {
            names.push(name.as_char_ptr(), GFP_KERNEL)?;
        }
        // SAFETY: the names stay where they are until `drop`, also when `self` moves.
        to_result(unsafe { lodge_stats_init(names.as_ptr(), names.len() as c_uint, read::<T>) })?;
        Ok(Self {
            _names: names,
            _of: PhantomData,
        })
    }
}

impl<T> Drop for Directory<T> {
    fn drop(&mut self) {
        // SAFETY: made by `new`; no VM is left.
        unsafe { lodge_stats_exit() };
    }
}

/// A VM's counters are shown.
pub(crate) struct Shown<T>(#[expect(dead_code, reason = "its drop is what counts")] Lent<T>);

impl<T: Counted> Shown<T> {
    /// Shows the counters of the VM that `fd` of the current task is to be. The [`Directory`] is one for `T`.
    pub(crate) fn new(fd: i32, of: Arc<T>) -> Result<Self> {
        // SAFETY: `context` is the address of a `T`, as the directory expects.
        let add = |context| Ok(unsafe { lodge_stats_add(fd, context) });
        // SAFETY: nobody reads the VM's counters any more when `lodge_stats_remove` returns.
        unsafe { Lent::new(of, add, lodge_stats_remove) }.map(Self)
    }
}
