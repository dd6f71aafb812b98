// SPDX-License-Identifier: GPL-2.0
//! AMD's nested page tables: the long-mode format, walked as user accesses ("Nested Paging").
#![forbid(unsafe_code)]

use super::pte::{PteFormat, LARGE_PAGE, PA_MASK};
use super::{Level, MemType, Perms};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// The CPU makes every nested walk as a user access, so an entry without it would never translate.
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXEC: u64 = 1 << 63;

/// The NPT format.
#[derive(Clone, Copy, Debug)]
pub enum Npt {}

/// What differs between hosts with NPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NptConfig {
    /// The address bit that marks memory encrypted by the host (SME), or 0. A bit outside of 51:12 is ignored.
    pub encryption_mask: u64,
}

impl NptConfig {
    const fn mask(self) -> u64 {
        self.encryption_mask & PA_MASK
    }
}

impl PteFormat for Npt {
    type Config = NptConfig;

    const HARDWARE_BITS: u64 = ACCESSED | DIRTY;

    fn table(config: NptConfig, pa: u64) -> u64 {
        (pa & PA_MASK) | config.mask() | PRESENT | WRITE | USER | ACCESSED
    }

    fn leaf(config: NptConfig, pa: u64, level: Level, perms: Perms, mem: MemType) -> u64 {
        // The final type combines the guest's PAT with the host's MTRRs; a nested entry of type WB leaves both as they are, so
        // device memory stays uncached by its MTRR. Device memory is outside of what the host encrypts.
        let encrypted = match mem {
            MemType::WriteBack => config.mask(),
            MemType::Uncached => 0,
        };
        let size = if level == Level::L4K { 0 } else { LARGE_PAGE };
        Self::with_perms(
            config,
            (pa & PA_MASK) | encrypted | size | PRESENT | USER | ACCESSED,
            perms,
        )
    }

    fn is_present(pte: u64) -> bool {
        pte & PRESENT != 0
    }

    fn perms(pte: u64) -> Perms {
        Perms {
            write: pte & WRITE != 0,
            exec: pte & NO_EXEC == 0,
        }
    }

    fn with_perms(_config: NptConfig, pte: u64, perms: Perms) -> u64 {
        let mut new = pte & !(WRITE | NO_EXEC);
        if perms.write {
            new |= WRITE | DIRTY;
        }
        if !perms.exec {
            new |= NO_EXEC;
        }
        new
    }

    fn pa(config: NptConfig, pte: u64) -> u64 {
        pte & PA_MASK & !config.mask()
    }

    fn tracks_access(_config: NptConfig) -> bool {
        true
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
