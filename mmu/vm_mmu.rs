// SPDX-License-Identifier: GPL-2.0
//! A VM's second-stage MMU: the tables, the slots, and how both follow the host's address space.
//!
//! The locking is at the head of `mmu/mod.rs`.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};

use crate::sys::cpu::{Flag, Word};
use crate::sys::mm::{self, MmWatch, RwSpinLock, WriteGuard};
use crate::sys::params;
use crate::sys::srcu_cell::SrcuCell;

use super::dirty_log::DirtyLog;
use super::flush::{self, RemoteFlush};
use super::invalidation::HostChanges;
use super::notifier::Host;
use super::pages::{Graves, PageTables, RootPage};
use super::pte::PteFormat;
use super::slots::{self, Change, Limits, Slot, SlotError, SlotRequest};
use super::storage::{Bug, Counts};
use super::tdp::Tdp;
use super::vm_ledger::VmLedger;
use super::{Gfn, GfnRange, Level};

/// What a VM's MMU is to be like.
#[derive(Clone, Copy)]
pub(crate) struct MmuConfig<C> {
    /// The format's own configuration.
    pub(crate) format: C,
    /// The level of the root table's entries: `L512G` (four levels) or `L256T` (five).
    pub(crate) root_level: Level,
    /// The largest leaf that the hardware can do; the user and mitigations of the host may want smaller ones.
    pub(crate) max_leaf: Level,
    /// Physical address bits of the guest (MAXPHYADDR): slots end below them.
    pub(crate) phys_bits: u8,
    /// KVM_MEM_ flags that user space may set.
    pub(crate) slot_flags: u32,
}

/// The largest leaf that there may be, of those the hardware can do.
fn leaf_limit(hardware: Level) -> Level {
    if !params::get().large_pages {
        return Level::L4K;
    }
    hardware
}

/// The slots as published; sorted by gfn.
pub(super) struct SlotSet {
    slots: KVVec<Slot>,
    /// The log of each slot whose writes are logged, at the same place.
    logs: KVVec<Option<Arc<DirtyLog>>>,
}

impl SlotSet {
    /// The slots, sorted by gfn.
    pub(super) fn get(&self) -> &[Slot] {
        &self.slots
    }

    /// The slot that holds `gfn`, and its log.
    #[inline]
    pub(super) fn find(&self, gfn: Gfn) -> Option<(&Slot, Option<&DirtyLog>)> {
        let index = slots::index_of(&self.slots, gfn)?;
        let log = self.logs.get(index).and_then(Option::as_deref);
        Some((self.slots.get(index)?, log))
    }

    /// The slot with this id, and its log.
    pub(super) fn by_id(&self, id: u16) -> Option<(Slot, Option<Arc<DirtyLog>>)> {
        let mut all = Iterator::zip(self.slots.iter(), self.logs.iter());
        all.find(|(slot, _)| slot.id == id)
            .map(|(slot, log)| (*slot, log.clone()))
    }

    /// The guest pages behind the user addresses `start..end`, in these slots and in `others`.
    pub(super) fn gfns_of_hvas<'a>(
        &'a self,
        others: &'a [Slot],
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = GfnRange> + 'a {
        let others = slots::gfns_of_hvas(others, start, end);
        // By its path: pinned initialisers have a method of this name for every type.
        Iterator::chain(slots::gfns_of_hvas(&self.slots, start, end), others)
    }

    /// A set without `gone` and with `new`, whose log is `log`.
    fn with(
        &self,
        gone: Option<Slot>,
        new: Option<Slot>,
        mut log: Option<Arc<DirtyLog>>,
    ) -> Result<KBox<Self>> {
        let room = self.slots.len().saturating_add(1);
        let mut set = Self {
            slots: KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?,
            logs: KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?,
        };
        // There is room for one more than there are: nothing is allocated under way.
        let mut push = |slot, log| {
            set.slots.push_within_capacity(slot).map_err(|_| ENOMEM)?;
            set.logs.push_within_capacity(log).map_err(|_| ENOMEM)
        };
        let mut new = new;
        let old = Iterator::zip(self.slots.iter(), self.logs.iter());
        for (slot, kept) in old.filter(|(slot, _)| Some(**slot) != gone) {
            if let Some(first) = new.take_if(|new| new.base_gfn < slot.base_gfn) {
                push(first, log.take())?;
            }
            push(*slot, kept.clone())?;
        }
        if let Some(last) = new {
            push(last, log)?;
        }
        Ok(KBox::new(set, GFP_KERNEL_ACCOUNT)?)
    }
}

/// The part of the MMU that the notifier reaches.
#[pin_data]
pub(super) struct Core<P: PteFormat, F: RemoteFlush> {
    /// `mmu_lock`.
    #[pin]
    pub(super) lock: RwSpinLock<Tdp<P>>,
    /// What of the host's side has to be looked at as one. The slots are published under it.
    #[pin]
    pub(super) host: SpinLock<Host>,
    /// Written under `host`.
    pub(super) changes: HostChanges<Word>,
    #[pin]
    pub(super) slots: SrcuCell<SlotSet>,
    /// Held while the slots are being changed.
    #[pin]
    pub(super) changing: Mutex<()>,
    /// Moves with each change of the slots. Written under `changing`.
    pub(super) generation: Word,
    leaves: [Atomic<i64>; 3],
    tables: Atomic<i64>,
    /// A change of the tables was refused: the VM must not run on.
    pub(super) broken: Flag,
    ledger: VmLedger,
    pub(super) flush: Arc<F>,
    limits: Limits,
    /// Only small leaves may be executed from.
    pub(super) small_code: bool,
    // Last: the tables that end in it are zapped by `Mmu`'s drop.
    root: RootPage,
}

impl<P: PteFormat, F: RemoteFlush> Core<P, F> {
    fn new(flush: Arc<F>, config: &MmuConfig<P::Config>) -> Result<Arc<Self>> {
        let root = RootPage::new()?;
        let tdp = Tdp::<P>::new(
            config.format,
            config.root_level,
            leaf_limit(config.max_leaf),
            &mut &root,
        )
        .ok_or(EINVAL)?;
        let reach = 1u64.checked_shl(u32::from(config.phys_bits).saturating_sub(super::PAGE_SHIFT));
        let end = reach.map_or(tdp.end(), |end| tdp.end().min(Gfn(end)));
        let limits = Limits {
            hva_end: mm::user_end(),
            max_gfn: Gfn(end.0.saturating_sub(1)),
            flags: config.slot_flags,
        };
        let empty = KBox::new(
            SlotSet {
                slots: KVVec::new(),
                logs: KVVec::new(),
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        Arc::pin_init(
            try_pin_init!(Self {
                lock <- RwSpinLock::new(tdp),
                host <- new_spinlock!(Host::default(), "lodge_host"),
                changes: HostChanges::new(Word::new(), Word::new()),
                slots <- SrcuCell::new(empty),
                changing <- new_mutex!((), "lodge_slots"),
                generation: Word::new(),
                leaves: [const { Atomic::new(0) }; 3],
                tables: Atomic::new(0),
                broken: Flag::new(false),
                ledger: VmLedger::new(),
                flush,
                limits,
                small_code: mm::small_code_only(params::get().nx_huge_pages),
                root,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Adds a change of the counts. Its flush is paid.
    #[inline]
    pub(super) fn count(&self, change: &Counts) {
        self.ledger.publish(change);
        for (total, n) in self.leaves.iter().zip(change.leaves) {
            if n != 0 {
                total.add(n, Relaxed);
            }
        }
        if change.tables != 0 {
            self.tables.add(change.tables, Relaxed);
        }
    }

    /// Notes a refused change: the VM is dead from now on. What was to be taken away may be there still, so its guest stops before the host
    /// gets the memory back.
    pub(super) fn note(&self, bug: Option<Bug>) {
        let Some(bug) = bug else { return };
        let known = self.broken.exchange(true);
        // Also if it is known: whoever noted it first may not have come to this yet.
        self.flush.stop_vm();
        if !known {
            pr_err!(
                "second-stage entry {:#x} at level {} must not become {:#x}\n",
                bug.old,
                bug.level,
                bug.new
            );
        }
    }

    /// Zaps pages under the write side, with the flush.
    pub(super) fn zap_locked(&self, guard: &mut WriteGuard<'_, Tdp<P>>, range: GfnRange) {
        let graves = Graves::default();
        let settled = flush::zap(guard, &PageTables, graves, range, &*self.flush);
        self.count(&settled.counts);
        self.note(settled.bug);
        settled.graves.free();
    }

    /// Lets the write side go and takes it again, if others wait for it or for the CPU.
    pub(super) fn let_others<'a>(
        &'a self,
        guard: WriteGuard<'a, Tdp<P>>,
        may_block: bool,
    ) -> WriteGuard<'a, Tdp<P>> {
        if !guard.wanted() {
            return guard;
        }
        drop(guard);
        if may_block {
            mm::cond_resched();
        }
        self.lock.write()
    }

    /// Zaps pages under the write side, which it lets go between two chunks if others wait for it or for the CPU.
    pub(super) fn zap_range<'a>(
        &'a self,
        mut guard: WriteGuard<'a, Tdp<P>>,
        range: GfnRange,
        may_block: bool,
    ) -> WriteGuard<'a, Tdp<P>> {
        for part in range.parts() {
            for chunk in part.chunks() {
                self.zap_locked(&mut guard, chunk);
                if chunk.end < range.end {
                    guard = self.let_others(guard, may_block);
                }
            }
            // Tables that no chunk covers as a whole.
            if part.chunks().nth(1).is_some() {
                self.zap_locked(&mut guard, part);
            }
        }
        guard
    }

    /// Zaps pages, taking the write side by itself.
    fn zap(&self, range: GfnRange, may_block: bool) {
        drop(self.zap_range(self.lock.write(), range, may_block));
        if may_block {
            mm::cond_resched();
        }
    }

    /// Zaps the pages of a slot that is gone, and frees the tables that no slot needs now: they span nothing but `gap`, the pages around it
    /// that are in no slot.
    fn zap_gone(&self, gone: GfnRange, gap: GfnRange) {
        self.zap(gone, true);
        let mut guard = self.lock.write();
        for span in slots::left_tables(gone, gap) {
            self.zap_locked(&mut guard, span);
            guard = self.let_others(guard, true);
        }
    }

    /// Zaps everything, bit by bit so that the write side is let go in between.
    ///
    /// # Context
    /// A task; sleeps.
    pub(super) fn zap_all(&self) {
        let slots = self.slots.read();
        let mut guard = self.lock.write();
        for range in slots::teardown(slots.get()) {
            self.zap_locked(&mut guard, range);
            guard = self.let_others(guard, true);
        }
    }

    /// Takes the right to write from a slot's pages, with the flush.
    fn write_protect(&self, slot: &Slot) {
        for part in slot.gfns().parts() {
            let mut guard = self.lock.write();
            self.write_protect_locked(&mut guard, core::iter::once(part));
            drop(guard);
            mm::cond_resched();
        }
    }

    /// Takes the right to write from pages under the write side, with the flush.
    pub(super) fn write_protect_locked(
        &self,
        guard: &mut WriteGuard<'_, Tdp<P>>,
        ranges: impl Iterator<Item = GfnRange>,
    ) {
        let settled = flush::write_protect(guard, &PageTables, ranges, &*self.flush);
        self.count(&settled.counts);
        self.note(settled.bug);
    }

    fn change_slots(&self, plan: impl FnOnce(&[Slot]) -> Result<Change, SlotError>) -> Result {
        let _changing = self.changing.lock();
        let (change, gone, set) = {
            let slots = self.slots.read();
            let change = match plan(slots.get()) {
                Ok(change) => change,
                Err(SlotError::Invalid) => return Err(EINVAL),
                Err(SlotError::Overlap) => return Err(EEXIST),
            };
            let (gone, new) = change.slots();
            if gone.is_none() && new.is_none() {
                return Ok(());
            }
            let log = match new {
                Some(new) if new.dirty_log => {
                    let kept = gone.and_then(|old| slots.by_id(old.id)).and_then(|s| s.1);
                    Some(kept.map_or_else(|| DirtyLog::new(new.npages), Ok)?)
                }
                _ => None,
            };
            (change, gone, slots.with(gone, new, log)?)
        };
        let leaving = gone.map(|gone| (gone.gfns(), slots::gap(set.get(), gone.gfns())));
        // The notifier must find the slot until its pages are zapped: they may be freed by the host at any time.
        self.publish(gone, set).wait();
        self.generation.advance();
        // No fault maps through the old set any more.
        match (change, leaving) {
            // From here on each first write faults, and is logged. Large pages that are left are taken apart by their first write.
            (Change::Flags { new, .. }, _) if new.dirty_log => self.write_protect(&new),
            // When logging ends, small leaves give way to large ones.
            (Change::Flags { old, .. }, _) => self.zap(old.gfns(), true),
            (_, Some((gone, gap))) => self.zap_gone(gone, gap),
            (_, None) => {}
        }
        self.host.lock().retiring = None;
        Ok(())
    }
}

/// A VM's second-stage MMU. Bound to the address space of the task that made it.
pub(crate) struct Mmu<P: PteFormat, F: RemoteFlush> {
    // First: events end before the core goes.
    pub(super) watch: MmWatch<Core<P, F>>,
    pub(super) core: Arc<Core<P, F>>,
    root: u64,
}

impl<P: PteFormat, F: RemoteFlush> Mmu<P, F> {
    /// Makes an MMU without slots for the current address space. EINVAL for levels that do not exist; ENOMEM; EINTR.
    ///
    /// # Context
    /// A task of the VM's process; sleeps.
    pub(crate) fn new(flush: Arc<F>, config: MmuConfig<P::Config>) -> Result<Self> {
        let core = Core::<P, F>::new(flush, &config)?;
        let root = core.lock.read().root().get();
        let watch = MmWatch::new(core.clone())?;
        Ok(Self { watch, core, root })
    }

    /// The physical address of the root table; for as long as the MMU lives.
    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    /// Whether the current task runs in the VM's address space.
    pub(crate) fn is_current_mm(&self) -> bool {
        self.watch.is_current()
    }

    /// KVM_SET_USER_MEMORY_REGION(2) without guest_memfd: EINVAL or EEXIST for a request that is refused, and nothing has changed
    /// then; ENOMEM.
    ///
    /// # Context
    /// A task; sleeps for an SRCU grace period.
    pub(crate) fn set_slot(&self, request: &SlotRequest) -> Result {
        let limits = &self.core.limits;
        self.core
            .change_slots(|slots| slots::plan(slots, request, limits))
    }

    /// Makes the slot of one page that holds the page tables of guests that have paging off, or moves it: EINVAL or EEXIST, as above.
    ///
    /// # Context
    /// As above.
    pub(crate) fn place_identity_slot(&self, gpa: u64, hva: u64) -> Result {
        let request = SlotRequest {
            slot: 0,
            flags: 0,
            gpa,
            size: super::PAGE_SIZE,
            hva,
        };
        let limits = &self.core.limits;
        self.core
            .change_slots(|slots| slots::plan_as(slots, slots::IDENTITY_SLOT, &request, limits))
    }

    /// How many leaves and tables there are; exact when nothing maps or unmaps meanwhile.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts {
            tables: self.core.tables.load(Relaxed),
            ..Counts::default()
        };
        for (n, total) in counts.leaves.iter_mut().zip(&self.core.leaves) {
            *n = total.load(Relaxed);
        }
        counts
    }

    /// What tests note of the changes.
    pub(crate) fn ledger(&self) -> &VmLedger {
        &self.core.ledger
    }

    /// Whether the tables are known to be inconsistent: the VM must not run.
    pub(crate) fn is_broken(&self) -> bool {
        self.core.broken.get()
    }
}

impl<P: PteFormat, F: RemoteFlush> Drop for Mmu<P, F> {
    fn drop(&mut self) {
        self.core.zap_all();
    }
}
