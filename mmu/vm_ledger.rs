// SPDX-License-Identifier: GPL-2.0
//! The ledger in the module that is built with LODGE_LEDGER: what `ledger.rs` asks for, kept where VMs, vCPUs and CPUs are; and
//! the steps that the parameter `break_flush` leaves out, to show that the ledger finds it. The ordinary module has
//! `no_ledger.rs` in place of this file.
#![deny(unsafe_code)]

use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full};

use crate::sys::cpu::{self, IrqOff, PreemptOff};
use crate::sys::global::PerCpu;
use crate::sys::params;

use super::ledger::{self, Held, Missing};
use super::step::{Flush, Step};
use super::storage::Counts;

static CLOCK: Atomic<u64> = Atomic::new(0);

/// A moment, and the clock moves on. A full barrier.
pub(super) fn moment() -> u64 {
    CLOCK.fetch_add(1u64, Full).wrapping_add(1)
}

/// Is this step left out?
pub(crate) fn skips(step: Step) -> bool {
    Step::from_number(params::get().break_flush as usize) == Some(step)
}

/// Does the entry that is under way forget the demand that it takes?
pub(crate) fn forgets_demand() -> bool {
    skips(Step::Demand) || (skips(Step::GivenUp) && cpu::guest_work_pending())
}

/// The part of a VM.
pub(crate) struct VmLedger {
    published: Atomic<u64>,
}

impl VmLedger {
    pub(super) fn new() -> Self {
        Self {
            published: Atomic::new(0),
        }
    }

    /// Somebody changed entries, has come back from the flush, and goes on.
    pub(super) fn publish(&self, change: &Counts) {
        let mut old = self.published.load(Acquire);
        while old < change.restricted {
            match self.published.cmpxchg(old, change.restricted, Full) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }
}

/// The part of a vCPU.
pub(crate) struct VcpuLedger {
    /// Whose translations its are: a number of its own.
    owner: u64,
    /// What its VM had published at this entry.
    published: u64,
    /// The moment since which all was made that this entry runs with.
    since: u64,
    missing: Option<Missing>,
}

impl VcpuLedger {
    pub(crate) fn new() -> Self {
        Self {
            owner: moment(),
            published: 0,
            since: u64::MAX,
            missing: None,
        }
    }

    /// An entry has taken the demand for a flush. Interrupts off.
    pub(crate) fn look(&mut self, vm: &VmLedger) {
        self.published = vm.published.load(Acquire);
        // Until the guest is really entered there is nothing to be wrong at its exit.
        self.since = u64::MAX;
    }

    /// The guest was left. Interrupts are off still, also for the one that ended the run.
    pub(crate) fn left(&mut self, vm: &VmLedger) {
        if let Err(missing) = ledger::exit(self.since, vm.published.load(Acquire)) {
            self.accuse(missing);
        }
    }

    /// What is wrong, if anything is: the VM must not run on.
    pub(crate) fn accusation(&self) -> Option<&'static str> {
        self.missing.map(Missing::text)
    }

    /// True: it is to have no consequences.
    fn accuse(&mut self, missing: Missing) -> bool {
        let on = params::get().ledger;
        if on {
            self.missing.get_or_insert(missing);
        }
        !on
    }
}

/// How often each CPU came to be of unknown content.
pub(crate) struct Epochs(PerCpu<u64>);

impl Epochs {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(PerCpu::new(0)?))
    }

    /// Nobody knows any more what this CPU holds.
    pub(crate) fn forget(&self, preempt: &PreemptOff) {
        self.0.update(preempt, |epoch| epoch.wrapping_add(1));
    }
}

/// What each CPU may hold for one vCPU with its root: the epoch that it is about, and what was held then.
///
/// What another vCPU's flush of the same root did is not noted, as each vCPU flushes for itself.
pub(crate) struct Roots(KVec<(u64, Held)>);

impl Roots {
    /// Nobody knows.
    pub(crate) fn new() -> Result<Self> {
        let mut cpus = KVec::with_capacity(cpu::nr_cpus() as usize, GFP_KERNEL)?;
        for _ in 0..cpu::nr_cpus() {
            cpus.push((0, Held::Unknown), GFP_KERNEL)?;
        }
        Ok(Self(cpus))
    }

    /// An entry of `vcpu`, with its root flushed or not. False: it must not be.
    pub(crate) fn enter(
        &mut self,
        irq: &IrqOff,
        epochs: &Epochs,
        vcpu: &mut VcpuLedger,
        flushed: bool,
    ) -> bool {
        let epoch = epochs.0.get(irq).unwrap_or(0);
        let Some((of, held)) = self.0.get_mut(irq.cpu() as usize) else {
            return vcpu.accuse(Missing::Unknown);
        };
        if *of != epoch {
            (*of, *held) = (epoch, Held::Unknown);
        }
        let now = CLOCK.load(Acquire);
        match held.enter(flushed, vcpu.owner, vcpu.published, now) {
            Ok(since) => {
                vcpu.since = since;
                true
            }
            Err(missing) => vcpu.accuse(missing),
        }
    }
}

/// What all CPUs may hold, by tag.
pub(crate) struct Tags(KVVec<PerCpu<Held>>);

impl Tags {
    /// For tags below `count`. Nobody knows what the CPUs hold.
    pub(crate) fn new(count: u32) -> Result<Self> {
        let mut tags = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
        for _ in 0..count {
            tags.push(PerCpu::new(Held::Unknown)?, GFP_KERNEL)?;
        }
        Ok(Self(tags))
    }

    /// An entry of `vcpu` with `tag` that does `flush`. False: it must not be.
    pub(crate) fn enter(
        &self,
        irq: &IrqOff,
        vcpu: &mut VcpuLedger,
        tag: u32,
        flush: Flush,
    ) -> bool {
        if flush == Flush::All {
            self.all(irq.preempt(), Held::Nothing);
        }
        let Some((cell, mut held)) = self
            .0
            .get(tag as usize)
            .and_then(|cell| Some((cell, cell.get(irq)?)))
        else {
            return vcpu.accuse(Missing::Unknown);
        };
        let now = CLOCK.load(Acquire);
        let flushes = flush != Flush::None;
        match held.enter(flushes, vcpu.owner, vcpu.published, now) {
            Ok(since) => {
                vcpu.since = since;
                cell.set(irq, held);
                true
            }
            Err(missing) => vcpu.accuse(missing),
        }
    }

    /// Nobody knows any more what this CPU holds.
    pub(crate) fn forget(&self, preempt: &PreemptOff) {
        self.all(preempt, Held::Unknown);
    }

    fn all(&self, preempt: &PreemptOff, held: Held) {
        for cell in &self.0 {
            cell.update(preempt, |_| held);
        }
    }
}
