// SPDX-License-Identifier: GPL-2.0
//! Machine checks of a guest, in the registers of [`super::msr`]: the set-up of its banks (KVM_X86_SETUP_MCE), and the errors that
//! user space reports (KVM_X86_SET_MCE).
//!
//! Intel SDM, "Machine-Check Architecture": the registers, which errors are signalled by #MC, and how a later error overwrites an earlier one.
#![forbid(unsafe_code)]

use super::msr::{bits, get, put, slot};
use super::msr_table::BANKS;

/// An error, as struct kvm_x86_mce gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // They are named as there.
pub struct Mce {
    pub status: u64,
    pub addr: u64,
    pub misc: u64,
    pub mcg_status: u64,
    pub bank: u8,
}

/// What the guest's CPU does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Signal {
    /// Nothing: it is recorded, or reporting is switched off.
    None,
    /// #MC.
    MachineCheck,
    /// A second one before the first was dealt with, or one without CR4.MCE: the CPU shuts down.
    Shutdown,
}

/// There is no such bank, or the error says that it is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMce;

/// No bank, too many, or a capability that is not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCap;

/// Bits of IA32_MCi_STATUS and IA32_MCG_STATUS.
pub mod status {
    #![allow(missing_docs)]
    pub const VAL: u64 = 1 << 63;
    pub const OVER: u64 = 1 << 62;
    pub const UC: u64 = 1 << 61;
    pub const PCC: u64 = 1 << 57;
    pub const S: u64 = 1 << 56;
    pub const AR: u64 = 1 << 55;
    pub const MCIP: u64 = 1 << 2;
}
use status::{AR, MCIP, OVER, PCC, S, UC, VAL};

/// The registers of a bank.
const STATUS: usize = 1;
const ADDR: usize = 2;
const MISC: usize = 3;

impl Mce {
    /// Uncorrected, but nothing has to be done: it is signalled by an interrupt at most.
    fn no_action(&self) -> bool {
        self.mcg_status == 0 && self.status & (PCC | S | AR) == 0 && self.status & UC != 0
    }
}

/// What IA32_MCG_CAP may say beside the number of banks.
pub const fn supported(intel: bool) -> u64 {
    let cmci = if intel { bits::MCG_CMCI_P } else { 0 };
    bits::MCG_CTL_P | bits::MCG_SER_P | cmci
}

/// Sets IA32_MCG_CAP: the number of banks, and capabilities. All banks report.
pub fn setup(slots: &mut [u64], cap: u64, intel: bool) -> Result<(), BadCap> {
    let banks = cap & 0xff;
    // Bits 23:16, the count of extended registers, are taken as they are.
    if banks == 0 || banks > u64::from(BANKS) || cap & !(supported(intel) | 0xff | 0xff_0000) != 0 {
        return Err(BadCap);
    }
    if cap & bits::MCG_CMCI_P != 0 {
        for control in slots.iter_mut().skip(slot::MC_CTL2).take(banks as usize) {
            *control = 0;
        }
    }
    // AMD's register has no more than the count and that bit (APM volume 2, "Machine-Check Global-Capabilities Register").
    let kept = if intel {
        u64::MAX
    } else {
        bits::MCG_CTL_P | 0xff
    };
    put(slots, slot::MCG_CAP, cap & kept);
    if cap & bits::MCG_CTL_P != 0 {
        put(slots, slot::MCG_CTL, u64::MAX);
    }
    for control in slots
        .iter_mut()
        .skip(slot::MC_BANKS)
        .step_by(4)
        .take(banks as usize)
    {
        *control = u64::MAX;
    }
    Ok(())
}

/// Records `mce`. `enabled`: CR4.MCE is set.
pub fn report(slots: &mut [u64], mce: &Mce, enabled: bool) -> Result<Signal, BadMce> {
    let cap = get(slots, slot::MCG_CAP);
    if u64::from(mce.bank) >= cap & 0xff || mce.status & VAL == 0 {
        return Err(BadMce);
    }
    let bank = slot::MC_BANKS.wrapping_add(usize::from(mce.bank).wrapping_mul(4));
    let old = get(slots, bank.wrapping_add(STATUS));
    if mce.no_action() {
        record(slots, bank, mce, mce.status);
        put(slots, slot::MCG_STATUS, mce.mcg_status);
        return Ok(Signal::None);
    }
    let over = if old & VAL != 0 { OVER } else { 0 };
    if mce.status & UC == 0 {
        // A corrected error does not overwrite an uncorrected one.
        if old & VAL != 0 && old & UC != 0 {
            put(slots, bank.wrapping_add(STATUS), old | OVER);
        } else {
            record(slots, bank, mce, mce.status | over);
        }
        return Ok(Signal::None);
    }
    let reporting = cap & bits::MCG_CTL_P == 0 || get(slots, slot::MCG_CTL) == u64::MAX;
    if !reporting || get(slots, bank) != u64::MAX {
        return Ok(Signal::None);
    }
    if get(slots, slot::MCG_STATUS) & MCIP != 0 || !enabled {
        return Ok(Signal::Shutdown);
    }
    record(slots, bank, mce, mce.status | over);
    put(slots, slot::MCG_STATUS, mce.mcg_status);
    Ok(Signal::MachineCheck)
}

fn record(slots: &mut [u64], bank: usize, mce: &Mce, status: u64) {
    put(slots, bank.wrapping_add(STATUS), status);
    put(slots, bank.wrapping_add(ADDR), mce.addr);
    put(slots, bank.wrapping_add(MISC), mce.misc);
}

#[cfg(test)]
#[path = "mce_tests.rs"]
mod tests;
