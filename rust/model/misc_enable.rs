// SPDX-License-Identifier: GPL-2.0
//! IA32_MISC_ENABLE, and its bit that takes MONITOR and MWAIT from a guest.
#![forbid(unsafe_code)]

use super::msr::{get, put, BadMsr, Effect};
use super::msr_table::{bits, slot};

const INDEX: u32 = 0x1a0;

/// A write of any value by user space, or of one that a guest may write.
pub(super) fn write(slots: &mut [u64], value: u64, by_guest: bool) -> Result<Effect, BadMsr> {
    const READ_ONLY: u64 = bits::MISC_BTS_UNAVAILABLE | bits::MISC_PEBS_UNAVAILABLE;
    let old = get(slots, slot::MISC_ENABLE);
    let mut new = value;
    if by_guest {
        if (old ^ new) & READ_ONLY != 0 {
            return Err(BadMsr::Refused);
        }
        // Performance monitoring: written, and stays as it is.
        new = new & !bits::MISC_EMON | old & bits::MISC_EMON;
    }
    put(slots, slot::MISC_ENABLE, new);
    Ok(if (old ^ new) & bits::MISC_MWAIT != 0 {
        Effect::CpuidDirty
    } else {
        Effect::Done
    })
}

/// MONITOR and MWAIT are switched on.
pub fn mwait(slots: &[u64]) -> bool {
    get(slots, slot::MISC_ENABLE) & bits::MISC_MWAIT != 0
}

/// A write of `value` to MSR `index` switches them on or off.
pub fn switches_mwait(slots: &[u64], index: u32, value: u64) -> bool {
    index == INDEX && mwait(slots) != (value & bits::MISC_MWAIT != 0)
}

#[cfg(test)]
#[path = "misc_enable_tests.rs"]
mod tests;
