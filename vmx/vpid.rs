// SPDX-License-Identifier: GPL-2.0
//! Which virtual-processor identifiers are taken.
//!
//! VPID 0 is the host's, so it is never handed out; a vCPU that gets none runs with the VPID control clear, where every
//! entry and exit flushes. The bitmap is the caller's, one bit for each identifier, and so is the lock around it.
#![forbid(unsafe_code)]

/// Words of a bitmap of all 65536 identifiers.
pub const WORDS: usize = 1 << 10;

/// The allocator, over a bitmap in which a set bit means taken.
pub struct Vpids<'a> {
    taken: &'a mut [u64],
}

impl<'a> Vpids<'a> {
    /// Over `taken`, all zero at first. Only as many identifiers exist as it has bits, and 65536 at most.
    pub fn new(taken: &'a mut [u64]) -> Self {
        let words = taken.len().min(WORDS);
        Self {
            taken: taken.get_mut(..words).unwrap_or_default(),
        }
    }

    /// The lowest free identifier, now taken; `None` when all are.
    ///
    /// The caller flushes the identifier before its first use: an earlier owner may have left translations.
    pub fn take(&mut self) -> Option<u16> {
        for (index, word) in self.taken.iter_mut().enumerate() {
            // The host's identifier counts as taken without being marked.
            let busy = *word | u64::from(index == 0);
            let bit = busy.trailing_ones();
            if bit < u64::BITS {
                *word |= 1 << bit;
                return u16::try_from((index << 6) | bit as usize).ok();
            }
        }
        None
    }

    /// Gives `vpid` back. Tells whether it was taken: that it was not is a mistake of the caller.
    pub fn give(&mut self, vpid: u16) -> bool {
        let mask = 1u64 << (vpid & 63);
        match self.taken.get_mut(usize::from(vpid >> 6)) {
            Some(word) if *word & mask != 0 => {
                *word &= !mask;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
#[path = "vpid_tests.rs"]
mod tests;
