// SPDX-License-Identifier: GPL-2.0
//! What the engine needs to know of an entry format: the trait that EPT and NPT implement.
#![forbid(unsafe_code)]

use super::{Level, MemType, Perms};

/// Bits 51:12, where both formats keep a physical address.
pub const PA_MASK: u64 = 0x000f_ffff_ffff_f000;

/// An entry that is on its way out: not present in either format (bits 2:0 clear), and without address bits, so that a CPU
/// that speculates through not-present entries finds nothing in it.
pub const FROZEN: u64 = 1 << 58;

/// Where bit 7 tells a leaf from a table at the levels above 4 KiB, in both formats.
pub const LARGE_PAGE: u64 = 1 << 7;

/// A second-stage entry format. Entries are bare `u64`, since they live in cells that hardware writes too; the methods are
/// static and pure.
///
/// Facts that differ between hosts of one vendor (accessed and dirty bits, an encryption bit) are in [`PteFormat::Config`], a
/// run-time value; facts of the vendor are constants of the implementation.
pub trait PteFormat: Copy + Send + Sync + 'static {
    /// What varies from host to host.
    type Config: Copy + Send + Sync + 'static;

    /// A present entry that links the table at physical address `pa`, and permits everything.
    fn table(config: Self::Config, pa: u64) -> u64;

    /// A present entry that maps `pa`, aligned to `level`. Its accessed bit is set, and its dirty bit too if it permits
    /// writing, which saves the CPU the update.
    fn leaf(config: Self::Config, pa: u64, level: Level, perms: Perms, mem: MemType) -> u64;

    /// Whether the CPU would use this entry.
    fn is_present(pte: u64) -> bool;

    /// What a leaf permits.
    fn perms(pte: u64) -> Perms;

    /// The leaf with other permissions, nothing else changed but the dirty bit, which follows the right to write when that is given.
    fn with_perms(config: Self::Config, pte: u64, perms: Perms) -> u64;

    /// The physical address of a present entry, without any encryption bit.
    fn pa(config: Self::Config, pte: u64) -> u64;

    /// Whether the CPU sets accessed and dirty bits. If not, [`PteFormat::accessed`] says nothing.
    fn tracks_access(config: Self::Config) -> bool;

    /// Whether the leaf was used since the bit was last cleared.
    fn accessed(pte: u64) -> bool;

    /// Whether the leaf was written through since the bit was last cleared.
    fn dirty(pte: u64) -> bool;

    /// The leaf with its accessed bit cleared.
    fn clear_accessed(pte: u64) -> u64;

    /// The bits that the CPU sets on its own.
    const HARDWARE_BITS: u64;

    /// Whether a present entry at `level` maps memory instead of linking a table.
    fn is_leaf(pte: u64, level: Level) -> bool {
        match level {
            Level::L4K => true,
            Level::L2M | Level::L1G => pte & LARGE_PAGE != 0,
            Level::L512G | Level::L256T => false,
        }
    }
}
