// SPDX-License-Identifier: GPL-2.0
//! The second-stage MMU: guest physical to host physical, for EPT and NPT.
//!
//! # Who holds what
//! - `mmu_lock` (a reader-writer spinlock) orders all changes of the tables. A fault maps under the **read** side, so faults run
//!   in parallel and meet in a compare-and-exchange on one entry. Zapping and write protection hold the **write** side.
//!   The engine says so in its types: shared operations take `&Tdp`, exclusive ones `&mut Tdp`.
//! - `host`, a spinlock held for a few loads and stores, guards what the notifier has to note even where nothing is mapped. The
//!   slots are published under it.
//! - Lock order: slots mutex > SRCU (slots) > `mmu_lock` > `host`. Nothing sleeps or allocates under `mmu_lock` or `host`; table
//!   pages come from a per-vCPU cache that is filled before `mmu_lock` is taken. The notifier comes with any of the memory
//!   manager's locks held, and may be forbidden to sleep: it takes these two, and enters SRCU, which never waits.
//! - Memslots are an immutable sorted array behind an SRCU pointer. A fault holds the SRCU read side from its look-up to the
//!   installed entry, so once `synchronize_srcu` returned, nobody maps through the old array any more.
//!
//! # Life of an entry
//! ```text
//!            map                      zap (exclusive)
//!   EMPTY ---------> LEAF ----------------------------------> EMPTY    flush owed
//!     |               ^ \ more rights: no flush; fewer rights: flush owed
//!     |  link          `-'
//!     `------------> TABLE --unlink--> FROZEN ---> EMPTY               flush owed, then RCU, then the page is freed
//! ```
//! Every change goes through one funnel that knows these arrows and refuses any other with an error value: a refused change is
//! our own bug, and kills the VM, not the host. FROZEN is not present to the hardware; a walker that meets it tries again. All
//! entries of an unlinked table are frozen too, so nothing can be mapped in a page that is about to go away.
//!
//! # Faults and host page-table changes
//! Guest memory is never pinned: the notifier keeps entries from outliving the host's mapping. Most changes of a process's page
//! tables are none of its guest's memory, and must not shut out its vCPUs. So `mmu_lock` is taken for those only that a slot
//! overlaps.
//!
//! A **fault**
//! 1. finds the slot, takes a ticket (the sequence of changes that have ended, and concern a slot), resolves the host page (may sleep), and finds the
//!    size of the host mapping;
//! 2. takes the read side, and gives up if a change is in progress that may concern the leaf, or the sequence moved;
//! 3. makes the entry visible and drops the page reference, still under the read side.
//!
//! A **change of the host's**, from `invalidate_start` to `invalidate_end`,
//! 1. in one section of `host` (S) notes its range, counts itself in (`active`), and reads the slots and the retiring slot;
//! 2. if any of these slots overlap the range, takes the write side and zaps it there; `invalidate_start` returns;
//! 3. when the host is done, in one section of `host` (E) moves the sequence, if a slot that is published then, or retiring, overlaps
//!    the range, *then* counts itself out.
//!
//! A **change of the slots**
//! 1. in one section of `host` (P) puts the slot that goes in `retiring` and publishes the new set;
//! 2. waits for the grace period: after it nobody maps through the old set;
//! 3. zaps the pages of the slot that goes, or takes the right to write, and pays the flush;
//! 4. clears `retiring` in another section of `host`.
//!
//! No entry for a page that the host takes away is left after step 2 of its change, or comes later. A leaf lies in its slot as a
//! whole, so only slots that overlap the range can have one. Take a fault that maps through such a slot, X, and the section P
//! that published the set in which it found X:
//! - **P came after E.** The fault read the set with acquire, so it knows of E, and what it resolved then is the page that the host has now.
//! - **P came after S, and before E.** The fault read the set with acquire, so it knows of S. It reads `active` (acquire) before the sequence:
//!   either it finds the change in progress, takes `host`, finds the range noted, and gives up; or the change was counted out,
//!   and then the fault knows of E. Its ticket is from before E, and it gives up, or from after E, and then it resolved the page
//!   that the host has now.
//! - **P came before S, and S found X**, published or retiring. The change takes the write side. A fault that had the read side
//!   before is zapped. One that gets it after knows of S from the lock, and ends as above.
//! - **P came before S, and S did not find X.** Then X went, and its `retiring` was cleared before S. So the fault's SRCU section
//!   was waited for, and what it mapped was zapped. (A slot whose flags change goes for one with the same pages, which S finds in
//!   its place.)
//!
//! In all of these E moves the sequence, for it finds X too: a slot that comes after S stays until E, or retires, or has gone as in the
//! last case, and the fault is over.
//!
//! The argument takes one change at a time: others in progress only keep `active` up and, if they are many, the noted range wide. It needs no
//! barrier but acquire, release and locks, as P and S are sections of one lock. Otherwise a fault could use a set that the
//! notifier did not see yet, and not see `active` either. `invalidation_tests/race.rs` tries all interleavings, on memory that is
//! weaker than x86's, and shows for each step what goes wrong without it.
//!
//! # Flushes
//! A change that takes something from a running guest returns a `#[must_use]` value. It is paid under the write side, before the
//! host reuses the page, and the unlinked table pages only come out of that value once it is paid.
#![deny(unsafe_code)]
#![cfg_attr(
    CONFIG_RUST,
    allow(
        dead_code,
        unreachable_pub,
        reason = "the pure files are a library for the host crate too, and the module uses a part of it"
    )
)]

pub mod dirty;
#[cfg(CONFIG_RUST)]
mod dirty_log;
pub mod ept;
#[cfg(CONFIG_RUST)]
pub(crate) mod fault;
pub mod flush;
#[cfg(CONFIG_RUST)]
pub(crate) mod guest_memory;
pub mod gwalk;
pub mod invalidation;
#[cfg(any(lodge_ledger, test))]
pub mod ledger;
#[cfg(CONFIG_RUST)]
mod notifier;
pub mod npt;
#[cfg(CONFIG_RUST)]
pub(crate) mod pages;
pub mod pte;
pub mod slots;
pub mod step;
pub mod storage;
pub mod tdp;
mod types;
#[cfg(all(CONFIG_RUST, lodge_ledger))]
pub(crate) mod vm_ledger;
#[cfg(all(CONFIG_RUST, not(lodge_ledger)))]
#[path = "no_ledger.rs"]
pub(crate) mod vm_ledger;
#[cfg(CONFIG_RUST)]
pub(crate) mod vm_mmu;

pub use types::*;
