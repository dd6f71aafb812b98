// SPDX-License-Identifier: GPL-2.0
//! The walk of a guest's own page tables: from a linear to a guest-physical address, as the guest's CPU would do it.
//!
//! All four kinds of paging (manuals: "32-Bit Paging", "PAE Paging", "4-Level Paging and 5-Level Paging"), with the
//! exact error code of the page fault. Accessed and dirty flags are set when the access is allowed, and only then. That an
//! address is canonical is for the segment check before this to say.
#![forbid(unsafe_code)]

use crate::model::regs::{cr0, cr4, efer};

/// Bits of a page fault's error code.
pub mod pf {
    /// The translation is present: the access is not allowed.
    pub const PRESENT: u32 = 1 << 0;
    /// A write.
    pub const WRITE: u32 = 1 << 1;
    /// A user-mode access.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit is set in a paging structure.
    pub const RESERVED: u32 = 1 << 3;
    /// An instruction fetch (reported only with NX or SMEP).
    pub const FETCH: u32 = 1 << 4;
    /// A protection key forbids it.
    pub const KEY: u32 = 1 << 5;
}

/// Guest-physical memory, as the walk uses it.
pub trait GuestMem {
    /// Reads `len` (4 or 8) bytes at an address aligned to `len`. `None` where there is no memory: nothing is present there.
    fn read(&self, gpa: u64, len: u8) -> Option<u64>;

    /// Replaces `old` by `new`, atomically: whether memory still held `old`. `None` where nothing can be written; the
    /// walk then goes on without recording the access.
    fn cmpxchg(&self, gpa: u64, len: u8, old: u64, new: u64) -> Option<bool>;
}

/// The registers that govern translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The EFER MSR.
    pub efer: u64,
    /// RFLAGS.AC: with SMAP, lets the supervisor access user pages explicitly.
    pub ac: bool,
    /// PKRU.
    pub pkru: u32,
    /// Physical address width of the guest's CPU, 32 to 52.
    pub maxphyaddr: u8,
    /// Whether the guest's CPU has 1 GiB pages.
    pub gbpages: bool,
    /// With PAE paging, the four entries loaded with CR3; `None` to read them from memory at each walk.
    pub pdptrs: Option<[u64; 4]>,
}

/// The kind of access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Writes (also: reads and then writes).
    pub write: bool,
    /// Fetches an instruction.
    pub fetch: bool,
    /// At privilege level 3, and not on behalf of the CPU itself.
    pub user: bool,
    /// On behalf of the CPU itself (descriptor tables, TSS): RFLAGS.AC does not help with SMAP.
    pub implicit: bool,
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub gpa: u64,
    /// Size of the page it lies in, in bytes; 4 KiB without paging.
    pub page_size: u64,
    /// Every level allows writing.
    pub writable: bool,
    /// Every level allows user access.
    pub user: bool,
    /// No level forbids execution.
    pub executable: bool,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest's CPU raises #PF.
    PageFault {
        /// The error code.
        error: u32,
    },
    /// Other CPUs kept changing the entries: try again later.
    Contended,
}

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
/// Walks tried again because an entry changed under them.
const ATTEMPTS: u8 = 8;

/// The four kinds of paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bits32,
    Pae,
    Level4,
    Level5,
}

impl Kind {
    const fn of(paging: &Paging) -> Self {
        if paging.efer & efer::LMA != 0 {
            if paging.cr4 & cr4::LA57 != 0 {
                Self::Level5
            } else {
                Self::Level4
            }
        } else if paging.cr4 & cr4::PAE != 0 {
            Self::Pae
        } else {
            Self::Bits32
        }
    }

    const fn levels(self) -> u8 {
        match self {
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::Level4 => 4,
            Self::Level5 => 5,
        }
    }

    const fn entry_bytes(self) -> u8 {
        match self {
            Self::Bits32 => 4,
            _ => 8,
        }
    }

    /// Lowest address bit that the entries of a level (1 is the last) select by.
    const fn shift(self, level: u8) -> u32 {
        match (self, level) {
            (_, 1) => 12,
            (Self::Bits32, _) => 22,
            (_, 2) => 21,
            (_, 3) => 30,
            (_, 4) => 39,
            _ => 48,
        }
    }

    const fn index_mask(self, level: u8) -> u64 {
        match (self, level) {
            (Self::Bits32, _) => 0x3ff,
            (Self::Pae, 3) => 3,
            _ => 0x1ff,
        }
    }
}

/// Mask of the bits from `low` up to below `high`.
const fn bit_range(low: u32, high: u32) -> u64 {
    let upto = match 1u64.checked_shl(high) {
        Some(bit) => bit.wrapping_sub(1),
        None => u64::MAX,
    };
    upto & u64::MAX.wrapping_shl(low)
}

/// Translates `gva` for `access`, and sets accessed and dirty flags.
///
/// # Errors
/// [`WalkError`].
pub fn walk(
    mem: &dyn GuestMem,
    paging: &Paging,
    gva: u64,
    access: Access,
) -> Result<Translation, WalkError> {
    if paging.cr0 & cr0::PG == 0 {
        return Ok(Translation {
            gpa: gva & 0xffff_ffff,
            page_size: 4096,
            writable: true,
            user: true,
            executable: true,
        });
    }
    for _ in 0..ATTEMPTS {
        let path = descend(mem, paging, gva, access)?;
        let found = path.translation(gva);
        permitted(paging, access, &found, path.leaf)?;
        if path.record(mem, access.write) {
            return Ok(found);
        }
    }
    Err(WalkError::Contended)
}

/// The entries met on the way down.
struct Path {
    kind: Kind,
    /// Address and value by level; unused ones have no address.
    entries: [Option<(u64, u64)>; 5],
    leaf: u64,
    leaf_level: u8,
    /// All entries and-ed: W and U.
    all: u64,
    /// All entries or-ed: NX.
    any: u64,
    nxe: bool,
}

/// Reads the entries from the root to the leaf.
fn descend(
    mem: &dyn GuestMem,
    paging: &Paging,
    gva: u64,
    access: Access,
) -> Result<Path, WalkError> {
    let kind = Kind::of(paging);
    let nxe = kind != Kind::Bits32 && paging.efer & efer::NXE != 0;
    let mut path = Path {
        kind,
        entries: [None; 5],
        leaf: 0,
        leaf_level: 1,
        all: u64::MAX,
        any: 0,
        nxe,
    };
    let mut table = match kind {
        Kind::Bits32 => paging.cr3 & 0xffff_f000,
        Kind::Pae => paging.cr3 & 0xffff_ffe0,
        _ => paging.cr3 & bit_range(12, width(paging)),
    };
    let mut level = kind.levels();
    loop {
        let index = gva.wrapping_shr(kind.shift(level)) & kind.index_mask(level);
        let gpa = table.wrapping_add(index.wrapping_mul(u64::from(kind.entry_bytes())));
        let pdpte = kind == Kind::Pae && level == 3;
        let entry = match (pdpte, paging.pdptrs) {
            (true, Some(loaded)) => loaded.get(index as usize).copied(),
            _ => mem.read(gpa, kind.entry_bytes()),
        };
        // A table that is not in memory maps nothing, as on KVM: the guest made its tables, and it alone is to suffer.
        let entry = entry
            .filter(|entry| entry & P != 0)
            .ok_or(fault(paging, access, 0))?;
        let leaf = is_leaf(paging, kind, level, entry);
        if entry & reserved(paging, kind, level, leaf) != 0 {
            return Err(fault(paging, access, pf::PRESENT | pf::RESERVED));
        }
        // The PAE root entries have neither rights nor an accessed flag.
        if !pdpte {
            path.all &= entry;
            path.any |= entry;
            if let Some(slot) = path.entries.get_mut(usize::from(level.wrapping_sub(1))) {
                *slot = Some((gpa, entry));
            }
        }
        if leaf {
            path.leaf = entry;
            path.leaf_level = level;
            return Ok(path);
        }
        table = match kind {
            Kind::Bits32 => entry & 0xffff_f000,
            _ => entry & bit_range(12, width(paging)),
        };
        level = level.wrapping_sub(1);
    }
}

/// Physical address width, within what the formats can hold.
fn width(paging: &Paging) -> u32 {
    u32::from(paging.maxphyaddr.clamp(32, 52))
}

/// Whether the entry maps a page. Level 1 always does.
fn is_leaf(paging: &Paging, kind: Kind, level: u8, entry: u64) -> bool {
    match (kind, level) {
        (_, 1) => true,
        (Kind::Bits32, _) => paging.cr4 & cr4::PSE != 0 && entry & PS != 0,
        (_, 2) => entry & PS != 0,
        (Kind::Level4 | Kind::Level5, 3) => entry & PS != 0 && paging.gbpages,
        _ => false,
    }
}

/// Bits that must be zero in a present entry.
fn reserved(paging: &Paging, kind: Kind, level: u8, leaf: bool) -> u64 {
    let width = width(paging);
    if kind == Kind::Bits32 {
        // A 4 MiB page has the address bits above 31 (at most eight) in bits 13 to 20.
        let extra = width.min(40).saturating_sub(32);
        return if leaf && level == 2 {
            bit_range(13u32.saturating_add(extra), 22)
        } else {
            0
        };
    }
    if kind == Kind::Pae && level == 3 {
        return bit_range(width, 64) | bit_range(1, 3) | bit_range(5, 9);
    }
    let nx = if paging.efer & efer::NXE == 0 { NX } else { 0 };
    let high = match kind {
        Kind::Pae => bit_range(width, 63),
        _ => bit_range(width, 52),
    };
    let low = match level {
        2 | 3 if leaf => bit_range(13, kind.shift(level)),
        // PS where there are no pages of that size.
        3.. => PS,
        _ => 0,
    };
    nx | high | low
}

/// The page fault with its error code; `cause` is PRESENT, RESERVED and KEY as they apply.
fn fault(paging: &Paging, access: Access, cause: u32) -> WalkError {
    let mut error = cause;
    if access.write {
        error |= pf::WRITE;
    }
    if access.user {
        error |= pf::USER;
    }
    let nx = paging.cr4 & cr4::PAE != 0 && paging.efer & efer::NXE != 0;
    if access.fetch && (nx || paging.cr4 & cr4::SMEP != 0) {
        error |= pf::FETCH;
    }
    WalkError::PageFault { error }
}

/// The access rights, once the whole path is known.
fn permitted(
    paging: &Paging,
    access: Access,
    found: &Translation,
    leaf: u64,
) -> Result<(), WalkError> {
    let wp = paging.cr0 & cr0::WP != 0;
    let smap = paging.cr4 & cr4::SMAP != 0 && !access.fetch;
    let smep = paging.cr4 & cr4::SMEP != 0 && access.fetch;
    let denied = (access.write && !found.writable && (access.user || wp))
        || (access.fetch && !found.executable)
        || (access.user && !found.user)
        || (!access.user && found.user && smep)
        || (!access.user && found.user && smap && (access.implicit || !paging.ac));
    if denied {
        // A protection key is looked at besides, so its bit may be set as well.
        return Err(fault(
            paging,
            access,
            pf::PRESENT | key_denies(paging, access, found, leaf),
        ));
    }
    match key_denies(paging, access, found, leaf) {
        0 => Ok(()),
        key => Err(fault(paging, access, pf::PRESENT | key)),
    }
}

/// [`pf::KEY`] if the page's protection key forbids this data access to a user page.
fn key_denies(paging: &Paging, access: Access, found: &Translation, leaf: u64) -> u32 {
    let enabled = paging.cr4 & cr4::PKE != 0 && paging.efer & efer::LMA != 0;
    if !enabled || !found.user || access.fetch {
        return 0;
    }
    let key = (leaf >> 59) as u32 & 15;
    let bits = paging.pkru.wrapping_shr(key << 1);
    let wp = paging.cr0 & cr0::WP != 0;
    let no_write = bits & 2 != 0 && access.write && (access.user || wp);
    if bits & 1 != 0 || no_write {
        pf::KEY
    } else {
        0
    }
}

impl Path {
    fn translation(&self, gva: u64) -> Translation {
        let shift = self.kind.shift(self.leaf_level);
        let offset = bit_range(0, shift);
        let frame = match (self.kind, self.leaf_level) {
            (Kind::Bits32, 1) => self.leaf & 0xffff_f000,
            (Kind::Bits32, _) => (self.leaf & 0xffc0_0000) | (((self.leaf >> 13) & 0xff) << 32),
            _ => self.leaf & bit_range(shift, 52),
        };
        Translation {
            gpa: frame | (gva & offset),
            page_size: offset.wrapping_add(1),
            writable: self.all & W != 0,
            user: self.all & U != 0,
            executable: !self.nxe || self.any & NX == 0,
        }
    }

    /// Sets the accessed flags and, for a write, the leaf's dirty flag. False if an entry has changed meanwhile.
    fn record(&self, mem: &dyn GuestMem, write: bool) -> bool {
        for level in (1..=5u8).rev() {
            let slot = self.entries.get(usize::from(level.wrapping_sub(1)));
            let Some(&Some((gpa, entry))) = slot else {
                continue;
            };
            let dirty = if write && level == self.leaf_level {
                D
            } else {
                0
            };
            let new = entry | A | dirty;
            let lost = new != entry
                && mem.cmpxchg(gpa, self.kind.entry_bytes(), entry, new) == Some(false);
            if lost {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
#[path = "gwalk_tests.rs"]
mod tests;
