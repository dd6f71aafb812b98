// SPDX-License-Identifier: GPL-2.0
//! Access to guest memory by the host, in user space's mappings of it.
#![deny(unsafe_code)]

use crate::sys::mm;
use crate::sys::srcu_cell::SrcuRead;

use super::dirty_log::DirtyLog;
use super::flush::RemoteFlush;
use super::pte::PteFormat;
use super::slots::{self, Slot};
use super::vm_mmu::{Mmu, SlotSet};
use super::Gpa;

/// Guest memory that could not be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestMemError {
    /// The first byte that failed; all before it were done.
    pub(crate) gpa: Gpa,
    /// Why.
    pub(crate) kind: GuestMemErrorKind,
}

/// Why guest memory could not be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestMemErrorKind {
    /// No slot is there: MMIO.
    NoSlot,
    /// The slot is read-only, and this was a write: MMIO.
    Readonly,
    /// User space has no memory there: EFAULT.
    BadHva,
}

/// Guest memory in the slots as they are: while this is held, none of them goes.
///
/// # Context
/// A task of the VM's process. It may sleep while it holds this, but not wait for a change of the slots.
pub(crate) struct GuestMemory<'a> {
    slots: SrcuRead<'a, SlotSet>,
}

impl GuestMemory<'_> {
    /// Reads guest memory, over page borders. What follows the byte that failed is not read.
    ///
    /// # Context
    /// A task of the VM's process; sleeps.
    pub(crate) fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), GuestMemError> {
        let slots = &self.slots;
        let (mut at, mut rest) = (gpa, buf);
        while !rest.is_empty() {
            let fail = |kind| GuestMemError { gpa: at, kind };
            let slot = slots::find(slots.get(), at.gfn()).ok_or(fail(GuestMemErrorKind::NoSlot))?;
            let hva = slot
                .hva_of_byte(at)
                .ok_or(fail(GuestMemErrorKind::NoSlot))?;
            let n = rest.len().min(at.left_in_page() as usize);
            let (part, tail) = rest.split_at_mut(n);
            let left = mm::read_user(part, hva.0);
            if left != 0 {
                return Err(failed_at(at, n, left));
            }
            rest = tail;
            at = next(at, n);
        }
        Ok(())
    }

    /// Writes guest memory, over page borders. What precedes the byte that failed is written.
    ///
    /// # Context
    /// A task of the VM's process; sleeps.
    pub(crate) fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), GuestMemError> {
        let (mut at, mut rest) = (gpa, buf);
        while !rest.is_empty() {
            let (slot, log) = writable_slot(&self.slots, at)?;
            let hva = slot.hva_of_byte(at).ok_or(GuestMemError {
                gpa: at,
                kind: GuestMemErrorKind::NoSlot,
            })?;
            let n = rest.len().min(at.left_in_page() as usize);
            let (part, tail) = rest.split_at(n);
            let left = mm::write_user(hva.0, part);
            // After the write, so that whoever takes the mark finds what was written.
            if let Some(log) = log {
                log.mark(slot, at.gfn());
            }
            if left != 0 {
                return Err(failed_at(at, n, left));
            }
            rest = tail;
            at = next(at, n);
        }
        Ok(())
    }
}

impl<P: PteFormat, F: RemoteFlush> Mmu<P, F> {
    /// Guest memory, for several accesses that belong together.
    pub(crate) fn guest_memory(&self) -> GuestMemory<'_> {
        GuestMemory {
            slots: self.core.slots.read(),
        }
    }

    /// Whether `gpa` is memory: in a slot, and a writable one if `write`.
    pub(crate) fn is_memory(&self, gpa: Gpa, write: bool) -> bool {
        let slots = self.core.slots.read();
        slots::find(slots.get(), gpa.gfn()).is_some_and(|slot| !(write && slot.readonly))
    }

    /// Where user space has the byte at `gpa`: none outside of the slots. It holds as long as [`Mmu::slots_generation`], read before
    /// this, stays the same.
    pub(crate) fn user_address(&self, gpa: Gpa) -> Option<u64> {
        let slots = self.core.slots.read();
        let slot = slots::find(slots.get(), gpa.gfn())?;
        slot.hva_of_byte(gpa).map(|hva| hva.0)
    }

    /// Moves with each change of the slots, before the call that changes them returns.
    pub(crate) fn slots_generation(&self) -> u64 {
        self.core.generation.get()
    }

    /// [`GuestMemory::read`], by itself.
    pub(crate) fn read_guest(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), GuestMemError> {
        self.guest_memory().read(gpa, buf)
    }

    /// [`GuestMemory::write`], by itself.
    pub(crate) fn write_guest(&self, gpa: Gpa, buf: &[u8]) -> Result<(), GuestMemError> {
        self.guest_memory().write(gpa, buf)
    }

    /// A naturally aligned word of 8 bytes of guest memory, or of 4, as page tables consist of.
    ///
    /// # Context
    /// A task of the VM's process; sleeps.
    pub(crate) fn read_guest_word(&self, gpa: Gpa, wide: bool) -> Option<u64> {
        let slots = self.core.slots.read();
        let slot = slots::find(slots.get(), gpa.gfn())?;
        mm::read_user_word(slot.hva_of_byte(gpa)?.0, wide)
    }

    /// Writes `new` to a guest word of `bytes` (1, 2, 4 or 8) if it is `old`; otherwise gives what it is. Atomic for the guest's other
    /// CPUs unless the word lies across two cache lines.
    ///
    /// # Context
    /// A task of the VM's process; sleeps.
    pub(crate) fn cmpxchg_guest(
        &self,
        gpa: Gpa,
        bytes: u32,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, GuestMemError> {
        let slots = self.core.slots.read();
        let bad = GuestMemError {
            gpa,
            kind: GuestMemErrorKind::BadHva,
        };
        let (slot, log) = writable_slot(&slots, gpa)?;
        let hva = slot.hva_of_byte(gpa).ok_or(bad)?;
        if bytes > 8 || u64::from(bytes) > gpa.left_in_page() {
            return Err(bad);
        }
        if (gpa.0 & LINE.wrapping_sub(1)).saturating_add(bytes.into()) > LINE {
            drop(slots);
            return self.exchange_across_lines(gpa, bytes, old, new);
        }
        let done = mm::cmpxchg_user(hva.0, bytes, old, new).map_err(|_| bad)?;
        if let (Some(log), Ok(())) = (log, done) {
            log.mark(slot, gpa.gfn());
        }
        Ok(done)
    }

    /// A locked access across cache lines raises #AC where the host looks for those, and in the kernel that is fatal.
    fn exchange_across_lines(
        &self,
        gpa: Gpa,
        bytes: u32,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, GuestMemError> {
        let mut found = [0u8; 8];
        if let Some(part) = found.get_mut(..bytes as usize) {
            self.read_guest(gpa, part)?;
        }
        let found = u64::from_le_bytes(found);
        if found != old {
            return Ok(Err(found));
        }
        let new = new.to_le_bytes();
        let part = new.get(..bytes as usize).unwrap_or_default();
        self.write_guest(gpa, part).map(Ok)
    }
}

/// Bytes in a cache line.
const LINE: u64 = 64;

fn writable_slot(slots: &SlotSet, gpa: Gpa) -> Result<(&Slot, Option<&DirtyLog>), GuestMemError> {
    let fail = |kind| GuestMemError { gpa, kind };
    let (slot, log) = slots
        .find(gpa.gfn())
        .ok_or(fail(GuestMemErrorKind::NoSlot))?;
    if slot.readonly {
        return Err(fail(GuestMemErrorKind::Readonly));
    }
    Ok((slot, log))
}

/// The address `n` bytes on. A slot ends below 2^64, so an access cannot wrap within slots; the next look-up fails instead.
fn next(at: Gpa, n: usize) -> Gpa {
    Gpa(at.0.saturating_add(n as u64))
}

/// The error for a copy of `n` bytes at `at` of which the last `left` failed.
fn failed_at(at: Gpa, n: usize, left: usize) -> GuestMemError {
    GuestMemError {
        gpa: next(at, n.saturating_sub(left)),
        kind: GuestMemErrorKind::BadHva,
    }
}
