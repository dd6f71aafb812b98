// SPDX-License-Identifier: GPL-2.0
//! Intel's extended page tables ("EPT Translation Mechanism").
#![forbid(unsafe_code)]

use super::pte::{PteFormat, LARGE_PAGE, PA_MASK};
use super::{Level, MemType, Perms};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXEC: u64 = 1 << 2;
/// The memory type field, bits 5:3 of a leaf.
const TYPE_SHIFT: u32 = 3;
const TYPE_UC: u64 = 0;
const TYPE_WB: u64 = 6;
/// Ignore PAT: the entry's memory type is the final one.
const IGNORE_PAT: u64 = 1 << 6;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

/// The EPT format.
#[derive(Clone, Copy, Debug)]
pub enum Ept {}

/// What differs between hosts with EPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptConfig {
    /// EPTP bit 6 is set: the CPU keeps accessed and dirty bits.
    pub accessed_dirty: bool,
}

impl PteFormat for Ept {
    type Config = EptConfig;

    const HARDWARE_BITS: u64 = ACCESSED | DIRTY;

    fn table(_config: EptConfig, pa: u64) -> u64 {
        (pa & PA_MASK) | READ | WRITE | EXEC
    }

    fn leaf(config: EptConfig, pa: u64, level: Level, perms: Perms, mem: MemType) -> u64 {
        let mem = match mem {
            MemType::WriteBack => (TYPE_WB << TYPE_SHIFT) | IGNORE_PAT,
            MemType::Uncached => TYPE_UC << TYPE_SHIFT,
        };
        let size = if level == Level::L4K { 0 } else { LARGE_PAGE };
        let accessed = if config.accessed_dirty { ACCESSED } else { 0 };
        Self::with_perms(config, (pa & PA_MASK) | READ | mem | size | accessed, perms)
    }

    fn is_present(pte: u64) -> bool {
        pte & (READ | WRITE | EXEC) != 0
    }

    fn perms(pte: u64) -> Perms {
        Perms {
            write: pte & WRITE != 0,
            exec: pte & EXEC != 0,
        }
    }

    fn with_perms(config: EptConfig, pte: u64, perms: Perms) -> u64 {
        let mut new = pte & !(WRITE | EXEC);
        if perms.write {
            new |= WRITE;
            if config.accessed_dirty {
                new |= DIRTY;
            }
        }
        if perms.exec {
            new |= EXEC;
        }
        new
    }

    fn pa(_config: EptConfig, pte: u64) -> u64 {
        pte & PA_MASK
    }

    fn tracks_access(config: EptConfig) -> bool {
        config.accessed_dirty
    }

    fn accessed(pte: u64) -> bool {
        pte & ACCESSED != 0
    }

    fn dirty(pte: u64) -> bool {
        pte & DIRTY != 0
    }

    fn clear_accessed(pte: u64) -> u64 {
        pte & !ACCESSED
    }
}
