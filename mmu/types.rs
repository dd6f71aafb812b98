// SPDX-License-Identifier: GPL-2.0
//! Addresses, levels, permissions and faults: the words the second-stage MMU is written in.
#![forbid(unsafe_code)]

/// Bytes in a 4 KiB page, the unit of gfns and pfns.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Entries in a table of any level.
pub const ENTRIES: usize = 512;

/// A guest page frame number: a guest physical address in units of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(pub u64);

/// A guest physical address in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// A host virtual (user) address in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hva(pub u64);

/// A host page frame number: a host physical address in units of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(pub u64);

impl Gfn {
    /// The address of the first byte of the page; `None` above 2^64.
    pub const fn gpa(self) -> Option<Gpa> {
        match self.0.checked_mul(PAGE_SIZE) {
            Some(gpa) => Some(Gpa(gpa)),
            None => None,
        }
    }

    /// `self + pages`, or `None` on overflow.
    pub const fn checked_add(self, pages: u64) -> Option<Self> {
        match self.0.checked_add(pages) {
            Some(gfn) => Some(Self(gfn)),
            None => None,
        }
    }

    /// `self + pages`, stopping at the largest value.
    pub const fn saturating_add(self, pages: u64) -> Self {
        Self(self.0.saturating_add(pages))
    }

    /// The first page of the `level` page this one lies in.
    pub const fn align_down(self, level: Level) -> Self {
        Self(self.0 & !level.page_mask())
    }
}

impl Gpa {
    /// The page this address lies in.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// The offset of this address in its 4 KiB page.
    pub const fn offset(self) -> u64 {
        self.0 & 0xfff
    }

    /// Bytes from this address to the end of its page: 1 to 4096.
    pub const fn left_in_page(self) -> u64 {
        PAGE_SIZE.wrapping_sub(self.offset())
    }

    /// `self + bytes`, or `None` on overflow.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(gpa) => Some(Self(gpa)),
            None => None,
        }
    }
}

impl Hva {
    /// `self + bytes`, or `None` on overflow.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(hva) => Some(Self(hva)),
            None => None,
        }
    }
}

impl Pfn {
    /// The host physical address of the first byte; `None` above 2^64.
    pub const fn pa(self) -> Option<u64> {
        self.0.checked_mul(PAGE_SIZE)
    }

    /// The first page of the `level` page this one lies in.
    pub const fn align_down(self, level: Level) -> Self {
        Self(self.0 & !level.page_mask())
    }
}

/// A half-open range of guest pages, `start <= gfn < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GfnRange {
    /// The first page.
    pub start: Gfn,
    /// One past the last page.
    pub end: Gfn,
}

impl GfnRange {
    /// The range of `pages` pages from `start`; it stops at the largest gfn.
    pub const fn new(start: Gfn, pages: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(pages),
        }
    }

    /// Every page there is.
    pub const ALL: Self = Self {
        start: Gfn(0),
        end: Gfn(u64::MAX),
    };

    /// Whether it holds no page.
    pub const fn is_empty(self) -> bool {
        self.end.0 <= self.start.0
    }

    /// Whether both have a page in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }

    /// Whether all of `other` is in this range.
    pub const fn covers(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// The smallest range that holds both.
    pub fn union(self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }

    /// The range cut at multiples of 1 GiB, what a table of the third level spans.
    pub fn parts(self) -> impl Iterator<Item = Self> {
        self.parts_of(Level::L1G)
    }

    /// The range cut at multiples of what an entry of `level` spans.
    pub fn parts_of(self, level: Level) -> impl Iterator<Item = Self> {
        self.cut(level.page_shift())
    }

    /// The range with all pages of the entries of `level` that span some of it.
    pub const fn widened(self, level: Level) -> Self {
        let past = self.end.0.saturating_add(level.page_mask());
        Self {
            start: self.start.align_down(level),
            end: Gfn(past & !level.page_mask()),
        }
    }

    /// The range cut at multiples of 64 MiB: what is done at a time under a lock.
    pub fn chunks(self) -> impl Iterator<Item = Self> {
        const SHIFT: u32 = 14;
        self.cut(SHIFT)
    }

    /// The range cut at multiples of `1 << shift` pages.
    fn cut(self, shift: u32) -> impl Iterator<Item = Self> {
        let mut next = self.start;
        core::iter::from_fn(move || {
            let start = next;
            let above = start.0.wrapping_shr(shift).wrapping_add(1);
            // At the end of all numbers the next multiple is none.
            next = match above.wrapping_shl(shift) {
                0 => self.end,
                end => Gfn(end).min(self.end),
            };
            (start < next).then_some(Self { start, end: next })
        })
    }

    /// The pages that both have; empty if they have none.
    pub fn intersect(self, other: Self) -> Self {
        Self {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        }
    }
}

/// The level of a paging-structure entry, counted from the leaf end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// An entry that maps 4 KiB.
    L4K = 1,
    /// An entry that spans 2 MiB.
    L2M = 2,
    /// An entry that spans 1 GiB.
    L1G = 3,
    /// An entry that spans 512 GiB; always a table.
    L512G = 4,
    /// An entry that spans 256 TiB; always a table.
    L256T = 5,
}

impl Level {
    /// The level with the number `n` (1 to 5).
    pub const fn from_number(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::L4K),
            2 => Some(Self::L2M),
            3 => Some(Self::L1G),
            4 => Some(Self::L512G),
            5 => Some(Self::L256T),
            _ => None,
        }
    }

    /// 1 for 4 KiB to 5.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The level below; `None` for 4 KiB.
    pub const fn below(self) -> Option<Self> {
        Self::from_number(self.number().wrapping_sub(1))
    }

    /// The level above; `None` for the highest.
    pub const fn above(self) -> Option<Self> {
        Self::from_number(self.number().wrapping_add(1))
    }

    /// log2 of the 4 KiB pages an entry of this level spans.
    pub const fn page_shift(self) -> u32 {
        // Each level's tables have 512 entries.
        (self.number() as u32).wrapping_sub(1).wrapping_mul(9)
    }

    /// 4 KiB pages an entry of this level spans.
    pub const fn pages(self) -> u64 {
        1u64.wrapping_shl(self.page_shift())
    }

    /// Bytes an entry of this level spans.
    pub const fn bytes(self) -> u64 {
        self.pages().wrapping_mul(PAGE_SIZE)
    }

    /// The bits of a page frame number below the alignment of this level.
    pub const fn page_mask(self) -> u64 {
        self.pages().wrapping_sub(1)
    }

    /// The index, in a table of this level, of the entry for `gfn`.
    pub const fn index(self, gfn: Gfn) -> usize {
        (gfn.0.wrapping_shr(self.page_shift()) & 511) as usize
    }

    /// The pages that the entry for `gfn` spans.
    #[inline]
    pub const fn span(self, gfn: Gfn) -> GfnRange {
        GfnRange::new(gfn.align_down(self), self.pages())
    }

    /// Whether an entry of this level may map memory (4 KiB, 2 MiB, 1 GiB).
    pub const fn may_be_leaf(self) -> bool {
        self.number() <= 3
    }
}

/// What an access does: of a guest's access that faulted, or of one to be checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A data write (a read-modify-write counts as one).
    pub write: bool,
    /// An instruction fetch.
    pub exec: bool,
    /// Made by the guest at CPL 3; the second stage makes no difference of it.
    pub user: bool,
}

impl Access {
    /// A data read in supervisor mode.
    pub const READ: Self = Self {
        write: false,
        exec: false,
        user: false,
    };
    /// A data write in supervisor mode.
    pub const WRITE: Self = Self {
        write: true,
        exec: false,
        user: false,
    };
    /// An instruction fetch in supervisor mode.
    pub const EXEC: Self = Self {
        write: false,
        exec: true,
        user: false,
    };
}

/// What a second-stage leaf permits. Reading always is: EPT cannot express write without read, NPT has no such bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perms {
    /// Writes are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub exec: bool,
}

impl Perms {
    /// Whether an access of this kind goes through.
    pub const fn allow(self, access: Access) -> bool {
        (self.write || !access.write) && (self.exec || !access.exec)
    }

    /// Whether everything `other` permits is permitted here.
    pub const fn include(self, other: Self) -> bool {
        (self.write || !other.write) && (self.exec || !other.exec)
    }

    /// What either permits.
    pub const fn union(self, other: Self) -> Self {
        Self {
            write: self.write || other.write,
            exec: self.exec || other.exec,
        }
    }
}

/// The memory type of a leaf, where the format has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemType {
    /// Ordinary RAM: write-back whatever the guest's PAT says, since its pages stay cached in the host's own mapping.
    WriteBack,
    /// Device memory: uncached, or what the guest's PAT makes weaker of it.
    Uncached,
}

/// A second-stage fault as the vendor's exit code hands it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStageFault {
    /// The guest physical address that did not translate.
    pub gpa: Gpa,
    /// What the guest did there.
    pub access: Access,
    /// How the CPU told of it: EXITINFO1, or the exit qualification.
    pub told: u64,
}

impl SecondStageFault {
    /// Decodes a nested page fault's EXITINFO1 and EXITINFO2 ("Nested versus Guest Page Faults").
    pub const fn from_npf(info1: u64, info2: u64) -> Self {
        Self {
            gpa: Gpa(info2),
            access: Access {
                write: info1 & (1 << 1) != 0,
                exec: info1 & (1 << 4) != 0,
                user: info1 & (1 << 2) != 0,
            },
            told: info1,
        }
    }

    /// Decodes an EPT violation's exit qualification and guest-physical address ("Exit Qualification for EPT Violations").
    pub const fn from_ept_violation(qualification: u64, gpa: u64) -> Self {
        Self {
            gpa: Gpa(gpa),
            access: Access {
                write: qualification & (1 << 1) != 0,
                exec: qualification & (1 << 2) != 0,
                user: false,
            },
            told: qualification,
        }
    }
}

/// The physical address of a live table page.
///
/// Only code in `mmu/` can make one, from a table page it took from a pool or from an entry that links one:
/// `Tables::cell` trusts it to reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TablePa(u64);

impl TablePa {
    /// Takes the physical address of a table page.
    pub(in crate::mmu) const fn new(pa: u64) -> Self {
        Self(pa)
    }

    /// The physical address, page aligned.
    pub const fn get(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
#[path = "types_tests.rs"]
mod tests;
