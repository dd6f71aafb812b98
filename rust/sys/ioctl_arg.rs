// SPDX-License-Identifier: GPL-2.0
//! A structure of user space, looked at where it was read.
//!
//! Unsafe because: the kernel crate's reader gives it as a value, and LLVM moves that once more: 134 instructions for `struct kvm_sregs`.

use core::ffi::c_void;
use core::mem::{size_of, MaybeUninit};

use kernel::bindings;
use kernel::prelude::*;
use kernel::transmute::FromBytes;

/// Runs `body` with the structure at the user address `arg`. EFAULT where it cannot be read. Task context, may sleep.
#[inline]
pub(crate) fn with<T: FromBytes, R>(arg: usize, body: impl FnOnce(&T) -> Result<R>) -> Result<R> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: `value` is as large as what is written to it; the function checks the user address.
    let left = unsafe {
        bindings::_copy_from_user(
            value.as_mut_ptr().cast::<c_void>(),
            arg as *const c_void,
            size_of::<T>() as _,
        )
    };
    if left != 0 {
        return Err(EFAULT);
    }
    // SAFETY: all of its bytes were written, and any bytes are such a value.
    body(unsafe { value.assume_init_ref() })
}
