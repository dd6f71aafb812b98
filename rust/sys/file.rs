// SPDX-License-Identifier: GPL-2.0
//! File descriptors whose private data is an `Arc<T>`, and `/dev/kvm`.
//!
//! Unsafe because: file operations are C callbacks with raw private data. The kernel crate's `MiscDevice` has dynamic
//! minors only and no anonymous inodes.

use core::ffi::c_void;

use kernel::bindings;
use kernel::error::{from_result, to_result};
use kernel::ffi::{c_int, c_long, c_uint, c_ulong};
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

use crate::sys::page::Pages;
use crate::sys::{compat, ffi};

/// An object behind a file descriptor. Callbacks run in task context and may sleep.
pub(crate) trait FileObject: Send + Sync + 'static {
    /// What /proc/PID/fd shows.
    const NAME: &'static CStr;

    /// The ioctl `cmd` with its argument.
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize>;

    /// The same from a 32-bit program. Most structures look alike.
    fn compat_ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        Self::ioctl(this, cmd, arg)
    }

    /// The page at `offset` pages into the mapping; None: beyond the end.
    fn page(&self, _offset: usize) -> Option<&Pages<0>> {
        None
    }

    /// Can it be mapped?
    const MAPPABLE: bool = false;
}

struct Vtable<T>(core::marker::PhantomData<T>);

impl<T: FileObject> Vtable<T> {
    const FOPS: bindings::file_operations = bindings::file_operations {
        owner: compat::owner(),
        release: Some(release::<T>),
        unlocked_ioctl: Some(ioctl::<T>),
        compat_ioctl: Some(compat_ioctl::<T>),
        mmap: if T::MAPPABLE { Some(mmap::<T>) } else { None },
        llseek: Some(bindings::noop_llseek),
        ..pin_init::zeroed()
    };
    const VM_OPS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(fault::<T>),
        ..pin_init::zeroed()
    };
    const FOPS_REF: &'static bindings::file_operations = &Self::FOPS;
    const VM_OPS_REF: &'static bindings::vm_operations_struct = &Self::VM_OPS;
}

/// # Safety
/// `file` is an open file made by [`new_fd`] with the same `T`.
unsafe fn borrow<'a, T: FileObject>(file: *mut bindings::file) -> ArcBorrow<'a, T> {
    // SAFETY: `private_data` came from `Arc::into_raw` and is given back in `release` only.
    unsafe { ArcBorrow::from_raw((*file).private_data.cast::<T>()) }
}

/// # Safety
/// The kernel releases a file made by [`new_fd`] with the same `T`.
unsafe extern "C" fn release<T: FileObject>(
    _: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: the last use of the reference that `new_fd` put there.
    drop(unsafe { Arc::from_raw((*file).private_data.cast::<T>()) });
    0
}

/// # Safety
/// `file` was made by [`new_fd`] with the same `T`.
unsafe extern "C" fn ioctl<T: FileObject>(
    file: *mut bindings::file,
    cmd: c_uint,
    arg: c_ulong,
) -> c_long {
    // SAFETY: the kernel keeps the file open during the call.
    let this = unsafe { borrow::<T>(file) };
    from_result(|| T::ioctl(this, cmd, arg))
}

/// # Safety
/// As for [`ioctl`].
unsafe extern "C" fn compat_ioctl<T: FileObject>(
    file: *mut bindings::file,
    cmd: c_uint,
    arg: c_ulong,
) -> c_long {
    // SAFETY: the kernel keeps the file open during the call.
    let this = unsafe { borrow::<T>(file) };
    from_result(|| T::compat_ioctl(this, cmd, arg))
}

/// # Safety
/// `file` was made by [`new_fd`] with the same `T`; the mapping is new.
unsafe extern "C" fn mmap<T: FileObject>(
    _: *mut bindings::file,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: the kernel passes a new mapping that nobody else uses yet.
    unsafe { (*vma).vm_ops = Vtable::<T>::VM_OPS_REF };
    0
}

/// # Safety
/// The mapping is of a file made by [`new_fd`] with the same `T`.
unsafe extern "C" fn fault<T: FileObject>(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: the mapping holds a reference to its file while it is faulted.
    unsafe {
        let file = (*(*vmf).__bindgen_anon_1.vma).vm_file;
        let this = borrow::<T>(file);
        let Some(pages) = this.page((*vmf).__bindgen_anon_1.pgoff as usize) else {
            return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
        };
        let page = ffi::lodge_virt_to_page(pages.as_ptr());
        ffi::lodge_get_page(page);
        (*vmf).page = page.cast();
    }
    0
}

/// A descriptor of the current task that is taken and not yet anything.
struct FreeFd(c_int);

impl Drop for FreeFd {
    fn drop(&mut self) {
        // SAFETY: taken by `new_fd`, and nothing was installed.
        unsafe { bindings::put_unused_fd(self.0 as c_uint) };
    }
}

/// Makes a file descriptor for what `make` makes when told its number, close-on-exec and readable and writable, in the current task.
///
/// The descriptor can be used (and closed) by another thread as soon as this returns.
pub(crate) fn new_fd<T: FileObject>(make: impl FnOnce(i32) -> Result<Arc<T>>) -> Result<isize> {
    let flags = (bindings::O_RDWR | bindings::O_CLOEXEC) as c_int;
    // SAFETY: task context.
    let fd = unsafe { bindings::get_unused_fd_flags(flags as c_uint) };
    to_result(fd)?;
    let free = FreeFd(fd);
    let raw = Arc::into_raw(make(fd)?);
    // SAFETY: name and operations are static; the operations expect what `raw` is.
    let file = unsafe {
        ffi::anon_inode_getfile(
            T::NAME.as_char_ptr(),
            core::ptr::from_ref(Vtable::<T>::FOPS_REF).cast::<c_void>(),
            raw.cast_mut().cast::<c_void>(),
            flags,
        )
    };
    match kernel::error::from_err_ptr(file) {
        Ok(file) => {
            core::mem::forget(free);
            // SAFETY: the descriptor is free, and the file new.
            unsafe { bindings::fd_install(fd as c_uint, file.cast()) };
            Ok(fd as isize)
        }
        Err(e) => {
            // SAFETY: no file took the reference.
            drop(unsafe { Arc::from_raw(raw) });
            Err(e)
        }
    }
}

/// `/dev/kvm`: its ioctls; there is no state per open file.
pub(crate) trait SystemDevice: 'static {
    /// The ioctl `cmd` with its argument.
    fn ioctl(cmd: u32, arg: usize) -> Result<isize>;
}

/// `/dev/kvm` is there.
pub(crate) struct DevKvm(());

impl DevKvm {
    /// Registers the node for the vendor `D`.
    pub(crate) fn register<D: SystemDevice>() -> Result<Self> {
        // SAFETY: the operations are static.
        to_result(unsafe {
            ffi::lodge_misc_register(core::ptr::from_ref(SystemVtable::<D>::FOPS_REF).cast())
        })?;
        Ok(Self(()))
    }
}

impl Drop for DevKvm {
    fn drop(&mut self) {
        // SAFETY: registered by `register`.
        unsafe { ffi::lodge_misc_deregister() };
    }
}

struct SystemVtable<D>(core::marker::PhantomData<D>);

impl<D: SystemDevice> SystemVtable<D> {
    const FOPS: bindings::file_operations = bindings::file_operations {
        owner: compat::owner(),
        unlocked_ioctl: Some(system_ioctl::<D>),
        compat_ioctl: Some(system_ioctl::<D>),
        llseek: Some(bindings::noop_llseek),
        ..pin_init::zeroed()
    };
    const FOPS_REF: &'static bindings::file_operations = &Self::FOPS;
}

/// # Safety
/// Called by the kernel for an open `/dev/kvm`.
unsafe extern "C" fn system_ioctl<D: SystemDevice>(
    _: *mut bindings::file,
    cmd: c_uint,
    arg: c_ulong,
) -> c_long {
    from_result(|| D::ioctl(cmd, arg))
}
