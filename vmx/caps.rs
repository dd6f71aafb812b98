// SPDX-License-Identifier: GPL-2.0
//! What a processor tells of its VMX in its capability MSRs (manual: "VMX Capability Reporting Facility").
#![forbid(unsafe_code)]

use super::{may_set, primary, secondary};

/// Numbers of the capability MSRs.
mod msr {
    pub(super) const BASIC: u32 = 0x480;
    pub(super) const PIN: u32 = 0x481;
    pub(super) const PRIMARY: u32 = 0x482;
    pub(super) const EXIT: u32 = 0x483;
    pub(super) const ENTRY: u32 = 0x484;
    pub(super) const MISC: u32 = 0x485;
    pub(super) const CR0_FIXED0: u32 = 0x486;
    pub(super) const CR0_FIXED1: u32 = 0x487;
    pub(super) const CR4_FIXED0: u32 = 0x488;
    pub(super) const CR4_FIXED1: u32 = 0x489;
    pub(super) const SECONDARY: u32 = 0x48b;
    pub(super) const EPT_VPID: u32 = 0x48c;
    pub(super) const TRUE_PIN: u32 = 0x48d;
    pub(super) const TRUE_PRIMARY: u32 = 0x48e;
    pub(super) const TRUE_EXIT: u32 = 0x48f;
    pub(super) const TRUE_ENTRY: u32 = 0x490;
}

/// The capability MSRs of a processor. A control MSR tells in its low half which bits must be set, and in its high half
/// which may be. Where the "true" MSRs exist, the four words below are theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmxCaps {
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// Pin-based controls.
    pub pin: u64,
    /// Primary processor-based controls.
    pub primary: u64,
    /// Secondary processor-based controls; 0 where there are none.
    pub secondary: u64,
    /// VM-exit controls.
    pub exit: u64,
    /// VM-entry controls.
    pub entry: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
    /// Bits that must be set in CR0 in VMX operation.
    pub cr0_fixed0: u64,
    /// Bits that may be set in CR0 in VMX operation.
    pub cr0_fixed1: u64,
    /// Bits that must be set in CR4 in VMX operation.
    pub cr4_fixed0: u64,
    /// Bits that may be set in CR4 in VMX operation.
    pub cr4_fixed1: u64,
    /// IA32_VMX_EPT_VPID_CAP; 0 where there is none.
    pub ept_vpid: u64,
}

impl VmxCaps {
    /// Reads the capability MSRs with `read`, which is not asked for an MSR that the processor does not have.
    ///
    /// # Errors
    /// What `read` returns.
    pub fn read<E>(mut read: impl FnMut(u32) -> Result<u64, E>) -> Result<Self, E> {
        let basic = read(msr::BASIC)?;
        let has_true = basic & (1 << 55) != 0;
        let mut word = |plain, exact| read(if has_true { exact } else { plain });
        let pin = word(msr::PIN, msr::TRUE_PIN)?;
        let primary = word(msr::PRIMARY, msr::TRUE_PRIMARY)?;
        let exit = word(msr::EXIT, msr::TRUE_EXIT)?;
        let entry = word(msr::ENTRY, msr::TRUE_ENTRY)?;
        let secondary = if may_set(primary) & primary::SECONDARY != 0 {
            read(msr::SECONDARY)?
        } else {
            0
        };
        let ept_or_vpid = secondary::EPT | secondary::VPID;
        let ept_vpid = if may_set(secondary) & ept_or_vpid != 0 {
            read(msr::EPT_VPID)?
        } else {
            0
        };
        Ok(Self {
            basic,
            pin,
            primary,
            secondary,
            exit,
            entry,
            misc: read(msr::MISC)?,
            cr0_fixed0: read(msr::CR0_FIXED0)?,
            cr0_fixed1: read(msr::CR0_FIXED1)?,
            cr4_fixed0: read(msr::CR4_FIXED0)?,
            cr4_fixed1: read(msr::CR4_FIXED1)?,
            ept_vpid,
        })
    }

    /// The revision identifier that a VMCS must carry in its first word.
    pub const fn revision(&self) -> u32 {
        self.basic as u32 & 0x7fff_ffff
    }

    pub(super) const fn vmcs_bytes(&self) -> u32 {
        (self.basic >> 32) as u32 & 0x1fff
    }

    pub(super) const fn memory_type(&self) -> u32 {
        (self.basic >> 50) as u32 & 15
    }
}
