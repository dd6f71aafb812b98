// SPDX-License-Identifier: GPL-2.0
//! The way from a second-stage fault to a mapping.

use kernel::prelude::*;

use crate::sys::mm::{self, HostPage, HostPageError};

use super::dirty_log::DirtyLog;
use super::flush::RemoteFlush;
use super::invalidation::Ticket;
use super::pages::{PageTables, TableCache};
use super::pte::PteFormat;
use super::slots::Slot;
use super::storage::Counts;
use super::tdp::{Map, MapError, Tdp};
use super::vm_mmu::{Core, Mmu};
use super::{Access, Gfn, Gpa, Level, MemType, Perms, Pfn, PAGE_SIZE};

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultOutcome {
    /// The page is mapped for this access, by this fault or by another that was faster: enter the guest again.
    Mapped,
    /// The host is changing something: enter the guest again, and fault again.
    Retry,
    /// No slot: the access is MMIO.
    NoSlot,
    /// A write to a read-only slot, or to what a driver has mapped for reading only: it is MMIO.
    ReadonlyWrite,
    /// User space has no memory there, or not for this access: EFAULT.
    BadHva,
    /// A signal is pending: EINTR.
    Interrupted,
    /// Our own bug: the VM must not run on.
    Broken,
}

/// How often a leaf that was in the way is zapped and the mapping tried again before the guest is. Not only for speed: where code
/// needs small leaves, the guest's way to the instruction would bring the large one back, and never get there.
const BLOCKED_TRIES: u32 = 8;

impl<P: PteFormat, F: RemoteFlush> Mmu<P, F> {
    /// Handles a second-stage fault of a vCPU, whose cache this is. ENOMEM for table pages.
    ///
    /// # Context
    /// A task of the VM's process, interrupts on; sleeps.
    pub(crate) fn fault(
        &self,
        cache: &mut TableCache,
        gpa: Gpa,
        access: Access,
    ) -> Result<FaultOutcome> {
        if !self.is_current_mm() {
            return Ok(FaultOutcome::BadHva);
        }
        if self.is_broken() {
            return Ok(FaultOutcome::Broken);
        }
        for _ in 0..BLOCKED_TRIES {
            if let Some(outcome) = self.core.fault(cache, gpa.gfn(), access)? {
                return Ok(outcome);
            }
        }
        Ok(FaultOutcome::Retry)
    }
}

impl<P: PteFormat, F: RemoteFlush> Core<P, F> {
    /// None: a leaf was in the way and is gone now; try again.
    // In the loop that tries again, all that does not change in it would be worked out, and put on the stack, ahead of the first try.
    #[inline(never)]
    fn fault(
        &self,
        cache: &mut TableCache,
        gfn: Gfn,
        access: Access,
    ) -> Result<Option<FaultOutcome>> {
        // Held until the entry is in place: a slot that goes waits for it.
        let slots = self.slots.read();
        let Some((slot, log)) = slots.find(gfn) else {
            return Ok(Some(FaultOutcome::NoSlot));
        };
        if access.write && slot.readonly {
            return Ok(Some(FaultOutcome::ReadonlyWrite));
        }
        let Some(hva) = slot.hva_of(gfn) else {
            return Ok(Some(FaultOutcome::Broken));
        };
        // Before anything is looked at that the host may change.
        let ticket = self.changes.ticket();
        // Sure to be refused below: the host is spared bringing in a page that it is about to take away.
        if !self.may_map(ticket, hva.0, hva.0.saturating_add(PAGE_SIZE)) {
            return Ok(Some(FaultOutcome::Retry));
        }
        let may_write = slot.perms(access, true).write;
        let page = match HostPage::get(hva.0, access.write, may_write) {
            Ok(page) => page,
            Err(HostPageError::Fault) => return Ok(Some(FaultOutcome::BadHva)),
            // As on KVM: a device's register or ROM. Ordinary memory that cannot be written is user space's mistake.
            Err(HostPageError::ReadOnly) => return Ok(Some(FaultOutcome::ReadonlyWrite)),
            // The signal ends KVM_RUN, as that of the thread's own access would end an instruction.
            Err(HostPageError::HwPoison) => {
                mm::signal_poisoned(hva.0);
                return Ok(Some(FaultOutcome::Retry));
            }
            Err(HostPageError::Interrupted) => return Ok(Some(FaultOutcome::Interrupted)),
            Err(HostPageError::Again) => return Ok(Some(FaultOutcome::Retry)),
        };
        // The host's mapping matters only where the slot has room for a large leaf.
        let mut level = match slot.leaf_level(gfn, Level::L1G) {
            Level::L4K => Level::L4K,
            _ => {
                let host = Level::from_number(mm::host_level(hva.0)).unwrap_or(Level::L4K);
                slot.leaf_level(gfn, host)
            }
        };
        // A large leaf that must not be executed gives way to small ones where the guest executes.
        let split = self.small_code && level != Level::L4K;
        if split && access.exec {
            level = Level::L4K;
        }
        let exec = access.exec || !split;
        cache.fill()?;
        let map = Map {
            gfn,
            pfn: Pfn(page.pfn()),
            level,
            perms: Perms {
                exec,
                ..slot.perms(access, page.writable())
            },
            mem: if page.is_ram() {
                MemType::WriteBack
            } else {
                MemType::Uncached
            },
        };
        Ok(self.install(cache, (slot, log), &map, ticket, page))
    }

    /// Makes the entry visible, unless the host changed its mapping since `ticket` was taken.
    fn install(
        &self,
        cache: &mut TableCache,
        (slot, log): (&Slot, Option<&DirtyLog>),
        map: &Map,
        ticket: Ticket,
        page: HostPage,
    ) -> Option<FaultOutcome> {
        let tdp = self.lock.read();
        // The host address of the whole leaf, not only of the page: an invalidation of any part of it counts.
        let start = slot
            .hva_of(map.gfn.align_down(map.level))
            .map_or(0, |hva| hva.0);
        let end = start.saturating_add(map.level.bytes());
        if !self.may_map(ticket, start, end) {
            return Some(FaultOutcome::Retry);
        }
        let mut counts = Counts::default();
        let result = Tdp::map(&tdp, &PageTables, cache, map, &mut counts);
        self.count(&counts);
        // Still under the lock: the page must be known dirty before the notifier can take it from the guest.
        if result.is_ok() && map.perms.write {
            // So must the log, before the write side can take both the mark and the right to write.
            if let Some(log) = log {
                log.mark(slot, map.gfn);
            }
            page.put_dirty();
        } else {
            drop(page);
        }
        drop(tdp);
        Some(match result {
            Ok(_) => FaultOutcome::Mapped,
            Err(MapError::Retry | MapError::NoTable) => FaultOutcome::Retry,
            Err(MapError::Blocked(level)) => {
                self.zap_locked(&mut self.lock.write(), level.span(map.gfn));
                return None;
            }
            Err(MapError::OutOfRange) => FaultOutcome::Broken,
            Err(MapError::Bug(bug)) => {
                self.note(Some(bug));
                FaultOutcome::Broken
            }
        })
    }
}
