// SPDX-License-Identifier: GPL-2.0
//! KVM_X86_SET_MSR_FILTER: which model-specific registers user space lets a guest read and write.
#![forbid(unsafe_code)]

/// The accesses that a range is about.
pub mod access {
    /// RDMSR.
    pub const READ: u32 = 1;
    /// WRMSR.
    pub const WRITE: u32 = 2;
}

/// Most ranges of a filter.
pub const MAX_RANGES: usize = 16;
/// Most bytes of a range's bitmap.
const MAX_BITMAP: usize = 0x600;

/// A range of registers: a bit for each, set if the access is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<'a> {
    /// See [`access`].
    pub flags: u32,
    /// The first register.
    pub base: u32,
    /// How many there are.
    pub count: u32,
    /// The bits.
    pub bitmap: &'a [u8],
}

/// The range makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRange;

/// The bytes of the bitmap of a range with `count` registers (not 0: such a range is passed over), in whole words of 64 bits.
pub fn bitmap_bytes(flags: u32, count: u32) -> Result<usize, BadRange> {
    let bytes = (count as usize).div_ceil(64).wrapping_mul(8);
    let known = flags & !(access::READ | access::WRITE) == 0;
    if flags == 0 || !known || bytes > MAX_BITMAP {
        return Err(BadRange);
    }
    Ok(bytes)
}

impl Range<'_> {
    /// Whether it allows an access; None if it is not about that.
    fn verdict(&self, index: u32, access: u32) -> Option<bool> {
        let inside = index >= self.base && index < self.base.wrapping_add(self.count);
        if !inside || self.flags & access == 0 {
            return None;
        }
        let bit = index.wrapping_sub(self.base);
        let byte = self.bitmap.get((bit / 8) as usize).copied().unwrap_or(0);
        Some(byte.wrapping_shr(bit % 8) & 1 != 0)
    }
}

/// Whether a filter allows an access: the first range that is about it decides, else `default`. The registers of the x2APIC are
/// never filtered.
pub fn allowed<'a>(
    default: bool,
    ranges: impl IntoIterator<Item = Range<'a>>,
    index: u32,
    access: u32,
) -> bool {
    if matches!(index, 0x800..=0x8ff) {
        return true;
    }
    ranges
        .into_iter()
        .find_map(|r| r.verdict(index, access))
        .unwrap_or(default)
}

#[cfg(test)]
#[path = "msr_filter_tests.rs"]
mod tests;
