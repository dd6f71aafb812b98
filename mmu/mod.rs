// SPDX-License-Identifier: GPL-2.0
//! The second-stage MMU: guest physical to host physical, for EPT and NPT.
//!
//! # Who holds what
//! - `mmu_lock` (a reader-writer spinlock) orders all changes of the tables. A fault maps under the **read** side, so faults run
//!   in parallel and meet in a compare-and-exchange on one entry. Zapping and write protection hold the **write** side.
//!   The engine says so in its types: shared operations take `&Tdp`, exclusive ones `&mut Tdp`.
//! - Lock order: slots mutex > SRCU (slots) > `mmu_lock`. Nothing sleeps or allocates under `mmu_lock`; table pages come from a
//!   per-vCPU cache that is filled before it is taken.
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
//! our own bug, and kills the VM, not the host. FROZEN is not present to the hardware; a walker that meets it tries again. All entries of an unlinked
//! table are frozen too, so nothing can be mapped in a page that is about to go away.
//!
//! # Faults and host page-table changes
//! Guest memory is never pinned. What keeps an entry from outliving the host mapping is the notifier's sequence:
//! 1. a fault reads the sequence, finds the slot, resolves the host page (may sleep), and finds the size of the host mapping;
//! 2. takes the read side, and gives up if an invalidation that overlaps is in progress or the sequence moved;
//! 3. makes the entry visible and drops the page reference, still under the lock.
//!
//! The notifier counts itself in under the write side *before* it zaps, loads the slot array *after* it took the lock, and moves the sequence
//! when it ends. So a fault either sees it, or installed its entry earlier and the notifier zaps that. The count does not depend on a slot overlapping, and the
//! slot being deleted stays visible to the notifier until its pages are zapped.
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
pub mod gwalk;
pub mod invalidation;
#[cfg(any(lodge_ledger, test))]
pub mod ledger;
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
