// SPDX-License-Identifier: GPL-2.0
//! The logs of written pages of a VM's slots, and giving one out (KVM_GET_DIRTY_LOG).
//!
//! Marking takes no lock beyond what its callers hold: a fault has the read side of `mmu_lock`, the host's own writes only the slots' read side.
#![deny(unsafe_code)]

use kernel::prelude::*;
use kernel::sync::Arc;

use crate::sys::mm;

use super::dirty;
use super::flush::RemoteFlush;
use super::pages::PageCell;
use super::pte::PteFormat;
use super::slots::{self, Slot};
use super::vm_mmu::{Core, Mmu};
use super::{Gfn, Level};

/// Words that are taken at a time: those of 1 GiB of guest memory. Bounds how long `mmu_lock` is held.
const CHUNK: usize = (Level::L1G.pages() / dirty::WORD_PAGES) as usize;

/// The written pages of a slot.
pub(super) struct DirtyLog {
    words: KVVec<PageCell>,
}

impl DirtyLog {
    /// A log of `pages` pages, none of them written. ENOMEM. Sleeps.
    pub(super) fn new(pages: u64) -> Result<Arc<Self>> {
        let count = usize::try_from(dirty::words(pages)).map_err(|_| ENOMEM)?;
        // Linux 7.2 has no `zeroed` of a vector.
        let mut words = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            words.push(pin_init::zeroed::<PageCell>(), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Arc::new(Self { words }, GFP_KERNEL_ACCOUNT)?)
    }

    /// Marks a page of `slot`, whose log this is. Any context.
    pub(super) fn mark(&self, slot: &Slot, gfn: Gfn) {
        dirty::mark(&self.words, gfn.0.wrapping_sub(slot.base_gfn.0));
    }
}

impl<P: PteFormat, F: RemoteFlush> Mmu<P, F> {
    /// KVM_GET_DIRTY_LOG: hands out the bitmap of a slot, with the offset in bytes of each piece, and begins anew. EINVAL for a number that no slot
    /// can have, ENOENT for a slot that is not there or not logged; ENOMEM; what `put` says.
    ///
    /// # Context
    /// A task; sleeps. `put` is called with nothing but a mutex held.
    pub(crate) fn take_dirty_log(
        &self,
        slot: u32,
        put: impl FnMut(usize, &[u64]) -> Result,
    ) -> Result {
        let id = slots::slot_id(slot).ok_or(EINVAL)?;
        self.core.take_dirty_log(id, put)
    }
}

impl<P: PteFormat, F: RemoteFlush> Core<P, F> {
    fn take_dirty_log(&self, id: u16, mut put: impl FnMut(usize, &[u64]) -> Result) -> Result {
        let _changing = self.changing.lock();
        let (slot, log) = self.slots.read().by_id(id).ok_or(ENOENT)?;
        let log = log.ok_or(ENOENT)?;
        let mut taken = KVVec::with_capacity(log.words.len().min(CHUNK), GFP_KERNEL_ACCOUNT)?;
        let mut first = slot.base_gfn;
        let mut offset = 0usize;
        for chunk in log.words.chunks(CHUNK) {
            self.take_chunk(first, chunk, &mut taken);
            if let Err(e) = put(offset, &taken) {
                // User space did not get them, so they stay marked.
                for (cell, word) in Iterator::zip(chunk.iter(), taken.iter()) {
                    dirty::add(cell, *word);
                }
                return Err(e);
            }
            first = first.saturating_add(Level::L1G.pages());
            offset = offset.saturating_add(core::mem::size_of_val(chunk));
            mm::cond_resched();
        }
        Ok(())
    }

    /// Takes the marks of a part of a log, whose first page is `first`, into `taken`. The marked pages lose the right to write, so that
    /// the next write is marked again.
    fn take_chunk(&self, first: Gfn, chunk: &[PageCell], taken: &mut KVVec<u64>) {
        taken.clear();
        let mut guard = self.lock.write();
        for cell in chunk {
            // There is room: nothing is allocated under the lock.
            let _ = taken.push_within_capacity(dirty::take(cell));
        }
        let firsts =
            core::iter::successors(Some(first), |at| Some(at.saturating_add(dirty::WORD_PAGES)));
        let runs =
            Iterator::zip(firsts, taken.iter()).flat_map(|(at, word)| dirty::runs(at, *word));
        self.write_protect_locked(&mut guard, runs);
    }
}
