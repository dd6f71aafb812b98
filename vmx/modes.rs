// SPDX-License-Identifier: GPL-2.0
//! CR0, CR4 and EFER as the hardware has them while the guest runs, out of the guest's own.
//!
//! Without unrestricted guest CR0.PE and CR0.PG are always set (Intel SDM, "Restrictions on VMX Operation"). A guest that has paging off
//! runs over page tables of ours then, of 32-bit paging with pages of 4 MiB, in which each address is itself ([`IDENTITY`]).
#![forbid(unsafe_code)]

use super::controls::Controls;
use crate::model::regs::{cr0, cr4, efer};

/// Where the page directory is in guest-physical memory, unless user space says otherwise (KVM_SET_IDENTITY_MAP_ADDR).
pub const IDENTITY_DEFAULT: u64 = 0xfffb_c000;

/// Entry `n` of the page directory: a page of 4 MiB for everyone, read, write, accessed and dirty.
pub const fn identity_entry(n: u32) -> u32 {
    const PRESENT: u32 = 1 << 0;
    const WRITE: u32 = 1 << 1;
    const USER: u32 = 1 << 2;
    const ACCESSED: u32 = 1 << 5;
    const DIRTY: u32 = 1 << 6;
    const LARGE: u32 = 1 << 7;
    n << 22 | PRESENT | WRITE | USER | ACCESSED | DIRTY | LARGE
}

/// What goes into the VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// The entry control "IA-32e mode guest".
    pub long: bool,
    /// CR3 is the address of our page tables, and not the guest's.
    pub identity: bool,
}

/// The registers for a guest whose own are these. `host_mce` is CR4.MCE as the host has it.
pub const fn modes(c: &Controls, cr0: u64, cr4: u64, efer: u64, host_mce: u64) -> Modes {
    let identity = c.restricted() && cr0 & cr0::PG == 0;
    // CD and NW are not switched by entries; the guest's cache control must not slow down the host's memory.
    let hw_cr0 = cr0 & !(cr0::CD | cr0::NW) & c.cr0_allowed | c.cr0_set;
    let (mut hw_cr4, mut hw_efer) = (cr4, efer);
    if identity {
        // What works on pages would work on ours, which is as if there were none; PCIDs need IA-32e mode.
        const PAGES: u64 = cr4::PAE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE;
        hw_cr4 = hw_cr4 & !PAGES | cr4::PSE;
        // With paging on, entry wants LME to be as LMA.
        if efer & efer::LMA == 0 {
            hw_efer &= !efer::LME;
        }
    }
    Modes {
        cr0: hw_cr0,
        cr4: hw_cr4 & c.cr4_allowed | c.cr4_set | host_mce,
        efer: hw_efer,
        long: efer & efer::LMA != 0,
        identity,
    }
}

#[cfg(test)]
#[path = "modes_tests.rs"]
mod tests;
