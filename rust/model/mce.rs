// SPDX-License-Identifier: GPL-2.0
//! Machine checks that user space reports to a guest: KVM_X86_SET_MCE on the banks of [`super::msr`].
//!
//! Intel SDM, "Machine-Check Architecture": the registers, which errors are signalled by #MC, and how a later error overwrites an earlier one.
#![forbid(unsafe_code)]

use super::msr::{bits, slot};

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

fn get(slots: &[u64], i: usize) -> u64 {
    slots.get(i).copied().unwrap_or(0)
}

fn put(slots: &mut [u64], i: usize, value: u64) {
    if let Some(s) = slots.get_mut(i) {
        *s = value;
    }
}

#[cfg(test)]
#[path = "mce_tests.rs"]
mod tests;
