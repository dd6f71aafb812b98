// SPDX-License-Identifier: GPL-2.0
//! Turning virtualization on and off, CPU by CPU: at load, CPU hotplug, suspend and reboot.
//!
//! Unsafe because: the vendor's callbacks are reached through C function pointers.

use kernel::error::{from_result, to_result};
use kernel::ffi::c_int;
use kernel::prelude::*;

use crate::sys::cpu::PreemptOff;
use crate::sys::ffi;

/// A vendor's part of turning one CPU on and off; after VMXON or with EFER.SVME set.
pub(crate) trait CpuVirt {
    /// Is it Intel's?
    const INTEL: bool;
    /// Prepares this CPU.
    fn online(preempt: &PreemptOff) -> Result;
    /// Undoes [`CpuVirt::online`].
    fn offline(preempt: &PreemptOff);
}

/// Virtualization is on, on each online CPU.
pub(crate) struct Enabled(());

impl Enabled {
    /// Turns it on. EBUSY when somebody else holds CR4.VMXE or EFER.SVME; then nothing has changed.
    pub(crate) fn new<V: CpuVirt>() -> Result<Self> {
        /// # Safety
        /// Called by the shim with preemption off.
        unsafe extern "C" fn online<V: CpuVirt>() -> c_int {
            // SAFETY: the shim calls with preemption off.
            from_result(|| V::online(unsafe { PreemptOff::assume() }).map(|()| 0))
        }
        /// # Safety
        /// As above.
        unsafe extern "C" fn offline<V: CpuVirt>() {
            // SAFETY: as above.
            V::offline(unsafe { PreemptOff::assume() })
        }
        let ops = ffi::CpuOps {
            online: online::<V>,
            offline: offline::<V>,
        };
        // SAFETY: `ops` is copied; the functions are in this module, which outlives the registration.
        to_result(unsafe { ffi::lodge_virt_enable(V::INTEL, &ops) })?;
        Ok(Self(()))
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        // SAFETY: enabled by `new`.
        unsafe { ffi::lodge_virt_disable() };
    }
}
