// SPDX-License-Identifier: GPL-2.0
//! Memslots: which guest pages are which user addresses, and what KVM_SET_USER_MEMORY_REGION may do to them.
//!
//! A set of slots is a slice sorted by `base_gfn`, whose slots do not overlap; the caller keeps it. Nothing here changes one:
//! [`plan`] says what a request means, and the caller builds the new set.
#![forbid(unsafe_code)]

use super::{Access, Gfn, GfnRange, Gpa, Hva, Level, Perms, PAGE_SHIFT, PAGE_SIZE};

/// Slots that user space may have in an address space (KVM_CAP_NR_MEMSLOTS); larger ids are refused.
pub const USER_SLOTS: u16 = 32764;
/// The slot of the page tables over which the hardware runs guests that have paging off, beyond those of user space.
pub const IDENTITY_SLOT: u16 = USER_SLOTS + 1;
/// The largest slot, in pages; dirty bitmaps are indexed by 31 bits.
pub const MAX_SLOT_PAGES: u64 = (1 << 31) - 1;
/// KVM_MEM_LOG_DIRTY_PAGES.
pub const FLAG_LOG_DIRTY: u32 = 1 << 0;
/// KVM_MEM_READONLY.
pub const FLAG_READONLY: u32 = 1 << 1;

/// A range of guest memory backed by user memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The id that user space gave.
    pub id: u16,
    /// The first guest page.
    pub base_gfn: Gfn,
    /// Its size in pages, at least 1.
    pub npages: u64,
    /// The user address of the first page, page aligned.
    pub hva: Hva,
    /// Guest writes are not memory writes but exits to user space.
    pub readonly: bool,
    /// Written pages are to be logged.
    pub dirty_log: bool,
}

impl Slot {
    /// Its guest pages.
    pub const fn gfns(&self) -> GfnRange {
        GfnRange::new(self.base_gfn, self.npages)
    }

    /// Whether `gfn` is in it.
    pub const fn contains(&self, gfn: Gfn) -> bool {
        gfn.0 >= self.base_gfn.0 && gfn.0.wrapping_sub(self.base_gfn.0) < self.npages
    }

    /// The user address of `gfn`; `None` if the slot does not hold it.
    #[inline]
    pub const fn hva_of(&self, gfn: Gfn) -> Option<Hva> {
        if !self.contains(gfn) {
            return None;
        }
        match gfn.0.wrapping_sub(self.base_gfn.0).checked_mul(PAGE_SIZE) {
            Some(offset) => self.hva.checked_add(offset),
            None => None,
        }
    }

    /// The user address of the byte at `gpa`; `None` if the slot does not hold it.
    pub const fn hva_of_byte(&self, gpa: Gpa) -> Option<Hva> {
        match self.hva_of(gpa.gfn()) {
            Some(hva) => hva.checked_add(gpa.offset()),
            None => None,
        }
    }

    /// What a leaf may permit that is mapped for `access`, where the host permits writing as `host_writable` says. Where writes are
    /// logged, each page is mapped without the right to write until it is written.
    pub const fn perms(&self, access: Access, host_writable: bool) -> Perms {
        Perms {
            write: host_writable && !self.readonly && (!self.dirty_log || access.write),
            exec: true,
        }
    }

    /// The largest leaf for `gfn` that follows a host mapping of level `host`, lies in the slot as a whole, and for which guest and
    /// user addresses are aligned alike. Where writes are logged, page by page.
    #[inline]
    pub const fn leaf_level(&self, gfn: Gfn, host: Level) -> Level {
        if self.dirty_log {
            return Level::L4K;
        }
        let skew = self.base_gfn.0 ^ (self.hva.0 >> PAGE_SHIFT);
        let mut level = host;
        while let Some(below) = level.below() {
            if skew & level.page_mask() == 0 && self.gfns().covers(level.span(gfn)) {
                break;
            }
            level = below;
        }
        level
    }

    /// The guest pages whose memory has a byte in the user addresses `start..end`; `None` if there are none.
    pub fn gfns_of_hvas(&self, start: u64, end: u64) -> Option<GfnRange> {
        let base = self.hva.0;
        let last = base.checked_add(self.npages.checked_mul(PAGE_SIZE)?)?;
        let (start, end) = (start.max(base), end.min(last));
        if start >= end {
            return None;
        }
        let first_page = start.wrapping_sub(base) >> PAGE_SHIFT;
        let past_page = end
            .wrapping_sub(base)
            .checked_add(PAGE_SIZE.wrapping_sub(1))?
            >> PAGE_SHIFT;
        Some(GfnRange {
            start: self.base_gfn.checked_add(first_page)?,
            end: self.base_gfn.checked_add(past_page)?,
        })
    }
}

/// The slot that holds `gfn`. Logarithmic.
#[inline]
pub fn find(slots: &[Slot], gfn: Gfn) -> Option<&Slot> {
    slots.get(index_of(slots, gfn)?)
}

/// The index of the slot that holds `gfn`. Logarithmic.
#[inline]
pub fn index_of(slots: &[Slot], gfn: Gfn) -> Option<usize> {
    let after = slots.partition_point(|slot| slot.base_gfn <= gfn);
    let index = after.checked_sub(1)?;
    let slot = slots.get(index)?;
    slot.contains(gfn).then_some(index)
}

/// Reads the number that user space gives for a slot; `None` for one that no slot can have.
pub fn slot_id(number: u32) -> Option<u16> {
    // One address space, as there is no SMM.
    u16::try_from(number).ok().filter(|&id| id < USER_SLOTS)
}

/// The slots that have a page in `range`, in ascending order.
pub fn overlapping(slots: &[Slot], range: GfnRange) -> impl Iterator<Item = &Slot> {
    let first = partition(slots, |slot| slot.gfns().end <= range.start);
    let rest = slots.get(first..).unwrap_or_default();
    rest.iter()
        .take_while(move |slot| slot.base_gfn < range.end)
}

/// The pages around `gone` that are in no slot, from the slot before to the one behind: a table that spans none but these is needed
/// by no slot. Empty, if there are none.
pub fn gap(slots: &[Slot], gone: GfnRange) -> GfnRange {
    let before = partition(slots, |slot| slot.base_gfn < gone.start);
    let last = before.checked_sub(1).and_then(|index| slots.get(index));
    GfnRange {
        start: last.map_or(Gfn(0), |slot| slot.gfns().end),
        end: slots
            .get(before)
            .map_or(GfnRange::ALL.end, |slot| slot.base_gfn),
    }
}

/// What the tables span that may be left of `gone` when its pages are zapped, if that is within `gap`: small ones first. Below 512 GiB those
/// are at its edges; what is between went with the pages, which are zapped by 1 GiB.
pub fn left_tables(gone: GfnRange, gap: GfnRange) -> impl Iterator<Item = GfnRange> {
    let last = Gfn(gone.end.0.saturating_sub(1));
    let small = [Level::L2M, Level::L1G]
        .into_iter()
        .flat_map(move |level| [level.span(gone.start), level.span(last)]);
    let large = [Level::L512G, Level::L256T]
        .into_iter()
        .flat_map(move |level| gone.widened(level).parts_of(level));
    small.chain(large).filter(move |span| gap.covers(*span))
}

/// The ranges to be zapped, one after the other, when all slots go, so that each takes a bounded time however the slots lie: tables of
/// one level in each 1 GiB, then those above, which have nothing below them any more.
pub fn teardown(slots: &[Slot]) -> impl Iterator<Item = GfnRange> + '_ {
    let small = widened(slots, Level::L1G).flat_map(GfnRange::parts);
    let small = small.flat_map(|part| part.chunks().chain([part]));
    let large = widened(slots, Level::L512G).flat_map(|range| range.parts_of(Level::L512G));
    small.chain(large).chain([GfnRange::ALL])
}

/// The slots' pages, widened to whole entries of `level`; none twice.
fn widened(slots: &[Slot], level: Level) -> impl Iterator<Item = GfnRange> + '_ {
    let mut done = Gfn(0);
    slots.iter().filter_map(move |slot| {
        let range = slot.gfns().widened(level);
        let start = range.start.max(done);
        done = range.end.max(done);
        Some(GfnRange { start, ..range }).filter(|range| !range.is_empty())
    })
}

/// How many slots at the start have the property, which all before one that has it have too. As the slice's own method, but without
/// arithmetic that is checked at run time.
fn partition(slots: &[Slot], has: impl Fn(&Slot) -> bool) -> usize {
    let (mut low, mut high) = (0usize, slots.len());
    while low < high {
        let middle = low.wrapping_add(high.wrapping_sub(low) / 2);
        if slots.get(middle).is_some_and(&has) {
            low = middle.wrapping_add(1);
        } else {
            high = middle;
        }
    }
    low
}

/// The guest pages behind the user addresses `start..end`, one range for each slot that has any.
pub fn gfns_of_hvas(slots: &[Slot], start: u64, end: u64) -> impl Iterator<Item = GfnRange> + '_ {
    slots
        .iter()
        .filter_map(move |slot| slot.gfns_of_hvas(start, end))
}

/// What KVM_SET_USER_MEMORY_REGION(2) was given, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRequest {
    /// The slot id in bits 15:0, the address space in bits 31:16.
    pub slot: u32,
    /// KVM_MEM_ flags.
    pub flags: u32,
    /// guest_phys_addr, in bytes.
    pub gpa: u64,
    /// memory_size, in bytes; 0 deletes the slot.
    pub size: u64,
    /// userspace_addr.
    pub hva: u64,
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The first address that is not a user address.
    pub hva_end: u64,
    /// The largest gfn that the second stage can map.
    pub max_gfn: Gfn,
    /// The KVM_MEM_ flags that are supported.
    pub flags: u32,
}

/// What a request means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A slot that was not there.
    Create(Slot),
    /// The slot with this id goes.
    Delete(Slot),
    /// The same memory at other guest pages.
    Move {
        /// As it is.
        old: Slot,
        /// As it is to be.
        new: Slot,
    },
    /// Other flags, else the same.
    Flags {
        /// As it is.
        old: Slot,
        /// As it is to be.
        new: Slot,
    },
    /// The slot is like that already.
    Nothing,
}

impl Change {
    /// The slot that goes and the one that comes.
    pub const fn slots(self) -> (Option<Slot>, Option<Slot>) {
        match self {
            Self::Create(new) => (None, Some(new)),
            Self::Delete(old) => (Some(old), None),
            Self::Move { old, new } | Self::Flags { old, new } => (Some(old), Some(new)),
            Self::Nothing => (None, None),
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// EINVAL.
    Invalid,
    /// EEXIST: another slot has some of these guest pages.
    Overlap,
}

/// Checks a request against the slots there are, in the order of KVM's checks, and tells what it means.
pub fn plan(slots: &[Slot], request: &SlotRequest, limits: &Limits) -> Result<Change, SlotError> {
    let id = slot_id(request.slot).ok_or(SlotError::Invalid)?;
    plan_as(slots, id, request, limits)
}

/// As [`plan`] for the slot `id`, which may be one of our own.
pub fn plan_as(
    slots: &[Slot],
    id: u16,
    request: &SlotRequest,
    limits: &Limits,
) -> Result<Change, SlotError> {
    check_words(request, limits)?;
    let old = slots.iter().find(|slot| slot.id == id).copied();
    if request.size == 0 {
        return old.map(Change::Delete).ok_or(SlotError::Invalid);
    }
    let new = Slot {
        id,
        base_gfn: Gpa(request.gpa).gfn(),
        npages: request.size >> PAGE_SHIFT,
        hva: Hva(request.hva),
        readonly: request.flags & FLAG_READONLY != 0,
        dirty_log: request.flags & FLAG_LOG_DIRTY != 0,
    };
    let change = match old {
        None => Change::Create(new),
        Some(old) => modification(old, new)?,
    };
    if let Change::Create(_) | Change::Move { .. } = change {
        if overlapping(slots, new.gfns()).any(|slot| slot.id != id) {
            return Err(SlotError::Overlap);
        }
        if Gfn(new.gfns().end.0.saturating_sub(1)) > limits.max_gfn {
            return Err(SlotError::Invalid);
        }
    }
    Ok(change)
}

/// The checks that need no look at the other slots.
fn check_words(request: &SlotRequest, limits: &Limits) -> Result<(), SlotError> {
    let unaligned = |value: u64| value & PAGE_SIZE.wrapping_sub(1) != 0;
    let hva_end = request.hva.checked_add(request.size);
    let bad = request.flags & !limits.flags != 0
        || unaligned(request.size)
        || unaligned(request.gpa)
        || unaligned(request.hva)
        || hva_end.is_none_or(|end| end > limits.hva_end)
        || request.gpa.checked_add(request.size).is_none()
        || request.size >> PAGE_SHIFT > MAX_SLOT_PAGES;
    if bad {
        return Err(SlotError::Invalid);
    }
    Ok(())
}

/// What turns `old` into `new`. A slot's size, memory and read-only flag never change.
fn modification(old: Slot, new: Slot) -> Result<Change, SlotError> {
    if old.hva != new.hva || old.npages != new.npages || old.readonly != new.readonly {
        return Err(SlotError::Invalid);
    }
    Ok(if old.base_gfn != new.base_gfn {
        Change::Move { old, new }
    } else if old.dirty_log != new.dirty_log {
        Change::Flags { old, new }
    } else {
        Change::Nothing
    })
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
