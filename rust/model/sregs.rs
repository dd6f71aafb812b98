// SPDX-License-Identifier: GPL-2.0
//! KVM_SET_SREGS and KVM_SET_SREGS2: whether the special registers that user space gives make a CPU.
//!
//! Only the modes are checked, not the descriptors: a CPU finds bad segments itself, at the entry.
#![forbid(unsafe_code)]

use super::cr::{self, cr0, cr4, efer, BadReg, Limits};
use super::regs::{Segment, TableReg};

/// The fields of struct kvm_sregs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // They are named as there.
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: TableReg,
    pub idt: TableReg,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub interrupt_bitmap: [u64; 4],
}

/// Why the registers make no CPU. All are EINVAL, and nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadSregs {
    /// EFER.LME and CR0.PG without CR4.PAE or EFER.LMA.
    LongMode,
    /// EFER.LMA, or a 64-bit code segment, without EFER.LME and CR0.PG.
    NotLongMode,
    /// CR3 has address bits that the guest's CPU has not.
    Cr3(BadReg),
    /// CR4 has reserved bits.
    Cr4(BadReg),
    /// CR0 is inconsistent.
    Cr0(BadReg),
    /// EFER has reserved bits.
    Efer(BadReg),
    /// IA32_APIC_BASE.
    ApicBase(BadReg),
    /// Flags of KVM_SET_SREGS2 that do not exist, or PDPTEs outside of PAE paging.
    Flags,
}

/// Registers that passed [`check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedSregs<'a> {
    regs: &'a Sregs,
}

/// The flag of KVM_SET_SREGS2 that says that the PDPTEs are given.
pub const PDPTRS_VALID: u64 = 1;

/// Checks registers of KVM_SET_SREGS for a guest with `limits`. `apic_base` is the IA32_APIC_BASE that the vCPU has: that value
/// is always accepted.
pub fn check<'a>(
    s: &'a Sregs,
    limits: &Limits,
    apic_base: u64,
) -> Result<CheckedSregs<'a>, BadSregs> {
    if s.efer & efer::LME != 0 && s.cr0 & cr0::PG != 0 {
        if s.cr4 & cr4::PAE == 0 || s.efer & efer::LMA == 0 {
            return Err(BadSregs::LongMode);
        }
        if s.cr3 & limits.gpa_reserved != 0 {
            return Err(BadSregs::Cr3(BadReg::Reserved));
        }
    } else if s.efer & efer::LMA != 0 || s.cs.attr.l() {
        return Err(BadSregs::NotLongMode);
    }
    cr::valid_cr4(s.cr4, limits).map_err(BadSregs::Cr4)?;
    cr::valid_cr0(s.cr0).map_err(BadSregs::Cr0)?;
    cr::valid_efer(s.efer, limits).map_err(BadSregs::Efer)?;
    if s.apic_base != apic_base {
        cr::valid_apic_base(s.apic_base, limits).map_err(BadSregs::ApicBase)?;
    }
    Ok(CheckedSregs { regs: s })
}

/// Checks the flags of KVM_SET_SREGS2 against its registers, before [`check`]; true if the PDPTEs are given.
pub fn check_flags(flags: u64, s: &Sregs) -> Result<bool, BadSregs> {
    let given = flags & PDPTRS_VALID != 0;
    if flags & !PDPTRS_VALID != 0 || given && !pae_paging(s) {
        return Err(BadSregs::Flags);
    }
    Ok(given)
}

const fn pae_paging(s: &Sregs) -> bool {
    s.cr0 & cr0::PG != 0 && s.cr4 & cr4::PAE != 0 && s.efer & efer::LMA == 0
}

impl<'a> CheckedSregs<'a> {
    /// The registers.
    pub fn regs(&self) -> &'a Sregs {
        self.regs
    }

    /// The external interrupt that is being delivered: `EventQueue::queue_interrupt`.
    pub fn interrupt(&self) -> Option<u8> {
        let mut first = 0u32;
        for word in self.regs.interrupt_bitmap {
            if word != 0 {
                return u8::try_from(first.wrapping_add(word.trailing_zeros())).ok();
            }
            first = first.wrapping_add(64);
        }
        None
    }

    /// CR8, unless it is a value that CR8 cannot have: then it stays as it is.
    pub fn cr8(&self) -> Option<u8> {
        cr::check_cr8(self.regs.cr8).ok()
    }

    /// The CPU has four PDPTEs in it, to be loaded from CR3. (If they are bad, user space has not been told by KVM either.)
    pub fn load_pdptrs(&self) -> bool {
        pae_paging(self.regs)
    }
}

#[cfg(test)]
#[path = "sregs_tests.rs"]
mod tests;
