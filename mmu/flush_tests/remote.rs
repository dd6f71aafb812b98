// SPDX-License-Identifier: GPL-2.0
//! How those who change entries reach those who run guests: the module's own protocol, with interrupts that are calls.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use crate::mmu::flush::{FlushReason, RemoteFlush};
use crate::mmu::step::Step;
use crate::mmu::storage::Counts;
use crate::model::kick::{Flag, Number, Presence};

pub(super) struct StdFlag(pub(super) AtomicBool);

impl Flag for StdFlag {
    fn load(&self) -> bool {
        self.0.load(SeqCst)
    }
    fn store(&self, value: bool) {
        self.0.store(value, SeqCst);
    }
    fn swap(&self, value: bool) -> bool {
        self.0.swap(value, SeqCst)
    }
}

pub(super) struct StdNumber(pub(super) AtomicU32);

impl Number for StdNumber {
    fn load(&self) -> u32 {
        self.0.load(SeqCst)
    }
    fn store(&self, value: u32) {
        self.0.store(value, SeqCst);
    }
}

pub(super) struct Shared {
    pub(super) vm: usize,
    pub(super) presence: Presence<StdFlag, StdNumber>,
    /// The guest runs, on this CPU.
    pub(super) running: Mutex<Option<usize>>,
}

/// The steps that are left out.
#[derive(Clone, Copy)]
pub(super) struct Without(pub(super) [Option<Step>; 2]);

impl Without {
    pub(super) fn has(&self, step: Step) -> bool {
        self.0.contains(&Some(step))
    }
}

/// The VM's side of a flush, as `Kicks` of the module.
pub(super) struct Remote {
    pub(super) vm: usize,
    pub(super) vcpus: Mutex<Vec<Arc<Shared>>>,
    pub(super) without: Without,
    /// For the ledger.
    pub(super) published: AtomicU64,
}

impl Remote {
    pub(super) fn publish(&self, counts: &Counts) {
        self.published.fetch_max(counts.restricted, SeqCst);
    }
}

impl RemoteFlush for Remote {
    fn flush_remote_tlbs(&self, why: FlushReason) {
        if self.without.has(Step::Remote(why)) {
            return;
        }
        for v in self.vcpus.lock().unwrap().iter() {
            assert_eq!(v.vm, self.vm);
            if v.presence.demand_flush().is_some() && !self.without.has(Step::Kick) {
                // The interrupt ends the guest's run before it is answered.
                if v.running.lock().unwrap().take().is_some() {
                    v.presence.leave();
                }
            }
        }
    }

    fn stop_vm(&self) {
        panic!("a change was refused");
    }
}
