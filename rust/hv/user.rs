// SPDX-License-Identifier: GPL-2.0
//! Ioctl arguments: one copy in, one copy out, each checked at the edge.

use kernel::prelude::*;
use kernel::transmute::{AsBytes, FromBytes};
use kernel::uaccess::{UserPtr, UserSlice};

pub(crate) use crate::sys::ioctl_arg::with;

/// Copies the structure at `arg` in. EFAULT for a bad pointer. For a large one [`with`] is cheaper.
#[inline]
pub(crate) fn get<T: FromBytes>(arg: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(arg), core::mem::size_of::<T>())
        .reader()
        .read()
}

/// Copies `value` out to `arg`.
pub(crate) fn put<T: AsBytes>(arg: usize, value: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(arg), core::mem::size_of::<T>())
        .writer()
        .write(value)
}

/// The address `bytes` behind `arg`; EFAULT when there is none.
pub(crate) fn after(arg: usize, bytes: usize) -> Result<usize> {
    arg.checked_add(bytes).ok_or(EFAULT)
}

/// Copies `count` structures at `arg` in. The caller bounds `count`.
pub(crate) fn get_slice<T: FromBytes>(arg: usize, count: usize) -> Result<KVVec<T>> {
    let len = count.checked_mul(core::mem::size_of::<T>()).ok_or(EINVAL)?;
    let mut reader = UserSlice::new(UserPtr::from_addr(arg), len).reader();
    let mut v = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
    for _ in 0..count {
        v.push(reader.read()?, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(v)
}

/// Copies structures out to `arg`.
pub(crate) fn put_slice<T: AsBytes>(arg: usize, values: &[T]) -> Result {
    let len = core::mem::size_of_val(values);
    let mut writer = UserSlice::new(UserPtr::from_addr(arg), len).writer();
    for v in values {
        writer.write(v)?;
    }
    Ok(())
}

/// Copies `len` bytes at `arg` in. The caller bounds `len`.
pub(crate) fn get_bytes(arg: usize, len: usize) -> Result<KVVec<u8>> {
    let mut bytes = zeroed(len)?;
    UserSlice::new(UserPtr::from_addr(arg), len)
        .reader()
        .read_slice(&mut bytes)?;
    Ok(bytes)
}

/// `len` bytes of zero. (The kernel crate's own ways to fill a vector have bounds checks that can panic.)
pub(crate) fn zeroed(len: usize) -> Result<KVVec<u8>> {
    static ZEROES: [u8; 512] = [0; 512];
    let mut bytes = KVVec::with_capacity(len, GFP_KERNEL_ACCOUNT)?;
    let mut left = len;
    while left > 0 {
        let some = ZEROES.get(..left).unwrap_or(&ZEROES);
        bytes.extend_from_slice(some, GFP_KERNEL_ACCOUNT)?;
        left = left.saturating_sub(some.len());
    }
    Ok(bytes)
}

/// Copies bytes out to `arg`.
pub(crate) fn put_bytes(arg: usize, bytes: &[u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(arg), bytes.len())
        .writer()
        .write_slice(bytes)
}
