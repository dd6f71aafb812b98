// SPDX-License-Identifier: GPL-2.0
//! Module parameters: `struct lodge_params` of `rust/sys/params.h`.
//!
//! Unsafe because: the parameters live in C, where their files in sysfs are made.

use core::mem::size_of;

use kernel::error::{to_result, Result};
use kernel::ffi::c_int;

/// What the user chose at load.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Params {
    /// UD2 and "kvm" before an instruction have it emulated; bit 1: RFLAGS.RF is cleared.
    pub(crate) force_emulation_prefix: c_int,
    /// Guests execute from small leaves only: 1, or 0, or less for "if the CPU needs it".
    pub(crate) nx_huge_pages: c_int,
    /// For tests: the number of a step of the flushes that is left out.
    #[cfg(lodge_ledger)]
    pub(crate) break_flush: c_int,
    /// For tests: stop a VM for which a flush is missing.
    #[cfg(lodge_ledger)]
    pub(crate) ledger: bool,
    /// Unknown MSRs read as 0 and swallow writes.
    pub(crate) ignore_msrs: bool,
    /// Nested paging, extended page tables.
    pub(crate) second_stage: bool,
    /// Accessed and dirty bits in extended page tables.
    pub(crate) access_dirty: bool,
    /// Virtual processor identifiers.
    pub(crate) vpid: bool,
    /// Take the next RIP from the VMCB.
    pub(crate) nrips: bool,
    /// Flush single address-space identifiers.
    pub(crate) flush_by_asid: bool,
    /// Large pages in the second stage.
    pub(crate) large_pages: bool,
    /// Real mode runs directly.
    pub(crate) unrestricted_guest: bool,
}

const _: () = assert!(size_of::<Params>() == if cfg!(lodge_ledger) { 24 } else { 16 });

/// What the CPU and the parameters together came to: `struct lodge_in_use`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct InUse {
    /// Nested paging, extended page tables.
    pub(crate) second_stage: bool,
    /// Accessed and dirty bits in extended page tables.
    pub(crate) access_dirty: bool,
    /// Virtual processor identifiers.
    pub(crate) vpid: bool,
    /// The next RIP is taken from the VMCB.
    pub(crate) nrips: bool,
    /// Real mode runs directly.
    pub(crate) unrestricted_guest: bool,
}

const _: () = assert!(size_of::<InUse>() == 5);

unsafe extern "C" {
    safe fn lodge_params() -> *const Params;
    fn lodge_params_show_vendor(intel: bool, now: *const InUse) -> c_int;
    fn lodge_params_hide_vendor();
    safe fn lodge_exits_optional() -> u32;
    safe fn lodge_idle_in_guest();
}

/// The exits that a VM may do without, by the CPU and the parameter `mitigate_smt_rsb`: bits of KVM_CAP_X86_DISABLE_EXITS.
pub(crate) fn optional_exits() -> u32 {
    lodge_exits_optional()
}

/// Guests are going to idle without exits: warns where that is a risk.
pub(crate) fn idle_in_guest() {
    lodge_idle_in_guest();
}

/// The parameters as they are now.
pub(crate) fn get() -> Params {
    // SAFETY: the pointer is to a static; each field is a plain value that may change between reads.
    unsafe { core::ptr::read_volatile(lodge_params()) }
}

/// The vendor's parameters are shown in sysfs under the in-tree module's name.
pub(crate) struct Shown(());

impl Shown {
    /// Shows them.
    pub(crate) fn new(intel: bool, now: &InUse) -> Result<Self> {
        // SAFETY: called once at load; the struct is copied.
        to_result(unsafe { lodge_params_show_vendor(intel, now) })?;
        Ok(Self(()))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // SAFETY: shown by `new`.
        unsafe { lodge_params_hide_vendor() };
    }
}
