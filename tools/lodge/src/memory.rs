// SPDX-License-Identifier: GPL-2.0
//! Guest memory: its size as the user writes it, and where it is.

use anyhow::{bail, Context, Result};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// RAM below 4 GiB ends here at the latest; the rest of these 4 GiB is for devices.
pub const LOW_END: u64 = 3 << 30;
/// RAM that does not fit below the hole begins here.
pub const HIGH_START: u64 = 4 << 30;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Bytes of a size such as `512M`, `2G`, `65536K` or a plain number of bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "expected a size such as 512M or 2G".to_string())?;
    let size = number
        .checked_mul(1 << shift)
        .ok_or("the size is too large")?;
    if size < MIB {
        return Err("at least 1M".to_string());
    }
    if size > 1 << 46 {
        return Err("at most 64 TiB".to_string());
    }
    if size % PAGE != 0 {
        return Err("not a whole number of pages (4096 bytes)".to_string());
    }
    Ok(size)
}

/// Where `size` bytes of RAM are: from 0 up to the hole, and the rest above 4 GiB.
pub fn ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(LOW_END);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((HIGH_START, size - low));
    }
    ranges
}

/// Maps `size` bytes of zeroed memory; the host provides pages as they are touched.
pub fn allocate(size: u64) -> Result<GuestMemoryMmap> {
    let mut regions = Vec::new();
    for (start, length) in ranges(size) {
        let Ok(length) = usize::try_from(length) else {
            bail!("--memory is too large")
        };
        regions.push((GuestAddress(start), length));
    }
    GuestMemoryMmap::from_ranges(&regions).with_context(|| {
        format!(
            "cannot map {} MiB of guest memory; use a smaller --memory",
            size >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        assert_eq!(parse_size("65536K"), Ok(64 << 20));
        assert_eq!(parse_size("1048576"), Ok(1 << 20));
        for bad in [
            "",
            "M",
            "-1M",
            "1.5G",
            "1048577",
            "4K",
            "20000000000G",
            "99999999999999999999",
            "é",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_goes_around_the_hole() {
        assert_eq!(ranges(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ranges((3 << 30) + 4096), [(0, 3 << 30), (4 << 30, 4096)]);
        assert_eq!(ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }
}
