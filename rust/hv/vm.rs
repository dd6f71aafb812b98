// SPDX-License-Identifier: GPL-2.0
//! A virtual machine: guest memory, its vCPUs, and reaching them.
//!
//! Lock order: `Vm::table` (mutex) -> a vCPU's mutex -> the memslots' mutex -> SRCU read side -> `mmu_lock` ->
//! `Kicks::vcpus` (spinlock). The last is taken under `mmu_lock` and held while other CPUs answer, so nothing that a CPU
//! does with interrupts off may take it.

use kernel::prelude::*;
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};

use crate::hv::backend::Backend;
use crate::hv::clock::VmClock;
use crate::hv::identity::IdentityMap;
use crate::hv::ioevent::IoEvents;
use crate::hv::msr_filter::MsrFilter;
use crate::hv::policy::Policy;
use crate::hv::stats::Stats;
use crate::mmu::flush::{FlushReason, RemoteFlush};
use crate::mmu::step::Step;
use crate::mmu::vm_ledger;
use crate::mmu::vm_mmu::Mmu;
use crate::model::kick::{self, Presence};
use crate::model::tsc_sync::TscSync;
use crate::sys::cpu::{self, Flag, Word};
use crate::sys::page::Pages;
use crate::sys::power::{Sleeper, Told};
use crate::sys::stats::Shown;

/// The part of a vCPU that any thread may look at.
pub(crate) struct VcpuShared {
    /// The id that user space gave it.
    pub(crate) id: u32,
    /// What it counts.
    pub(crate) stats: Stats,
    /// Where it is, and what it owes before it runs on.
    pub(crate) presence: Presence<Flag, Word>,
    /// The host went to sleep: the guest's clock is to tell it. Looked at when a flush was demanded.
    pub(crate) host_slept: Flag,
}

impl VcpuShared {
    fn new(id: u32) -> Self {
        Self {
            id,
            stats: Stats::new(),
            presence: Presence::new(Flag::new(false), Flag::new(false), Word::new()),
            host_slept: Flag::new(false),
        }
    }
}

impl kick::Flag for Flag {
    #[inline(always)]
    fn load(&self) -> bool {
        self.get()
    }
    #[inline(always)]
    fn store(&self, value: bool) {
        self.set(value);
    }
    #[inline(always)]
    fn swap(&self, value: bool) -> bool {
        self.exchange(value)
    }
}

impl kick::Number for Word {
    #[inline(always)]
    fn load(&self) -> u32 {
        self.get() as u32
    }
    #[inline(always)]
    fn store(&self, value: u32) {
        self.set(value.into());
    }
}

/// All vCPUs, for kicking them.
#[pin_data]
pub(crate) struct Kicks {
    #[pin]
    vcpus: SpinLock<KVec<Arc<VcpuShared>>>,
    dead: Flag,
}

impl Kicks {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                vcpus <- new_spinlock!(KVec::new(), "lodge_kicks"),
                dead: Flag::new(false),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The sum of what `of` gives for each vCPU.
    pub(crate) fn sum(&self, of: impl Fn(&VcpuShared) -> u64) -> u64 {
        let vcpus = self.vcpus.lock();
        vcpus.iter().fold(0, |sum, v| sum.wrapping_add(of(v)))
    }

    /// Is the VM dead?
    pub(crate) fn dead(&self) -> bool {
        self.dead.get()
    }
}

impl RemoteFlush for Kicks {
    fn flush_remote_tlbs(&self, why: FlushReason) {
        if !vm_ledger::skips(Step::Remote(why)) {
            self.drive_out();
        }
    }

    fn stop_vm(&self) {
        let known = self.dead.exchange(true);
        // Also if it is known: nobody runs in the guest when this returns.
        self.drive_out();
        if !known {
            pr_err!("VM stopped: its second-stage tables are not what they should be\n");
        }
    }
}

/// KVM_KVMCLOCK_CTRL for each vCPU, without its mutex: whoever runs it holds that. The demand for a flush, which each looks at
/// anyway, brings the vCPU to it at its next entry. None is driven out: the kernel is about to do that, and the guest should not see
/// before the sleep that it was stopped.
impl Sleeper for Kicks {
    fn host_sleeps(&self) {
        let vcpus = self.vcpus.lock();
        for v in vcpus.iter() {
            v.host_slept.set(true);
            let _cpu = v.presence.demand_flush();
        }
    }
}

impl Kicks {
    /// Makes vCPUs that are in guest mode leave it, and each drop its translations before it enters again. Waits for that: `mmu_lock` may
    /// be held, interrupts are on.
    pub(crate) fn drive_out(&self) {
        let vcpus = self.vcpus.lock();
        let mut kicked = cpu::KickSet::new();
        for v in vcpus.iter() {
            match v.presence.demand_flush() {
                Some(cpu) if !vm_ledger::skips(Step::Kick) => kicked.add(cpu),
                _ => {}
            }
        }
    }
}

/// The ids that are taken, and what is settled before there are vCPUs.
pub(crate) struct VcpuTable {
    ids: KVec<u32>,
    /// The bound of ids that user space set, or the first vCPU for it; 0: none yet.
    id_limit: u32,
    pub(crate) identity: IdentityMap,
}

impl VcpuTable {
    fn new() -> Self {
        Self {
            ids: KVec::new(),
            id_limit: 0,
            identity: IdentityMap::new(),
        }
    }
}

/// A virtual machine.
#[pin_data]
pub(crate) struct Vm<B: Backend> {
    _shown: Shown<Kicks>,
    _told: Told<Kicks>,
    pub(crate) mmu: Mmu<B::Pte, Kicks>,
    pub(crate) kicks: Arc<Kicks>,
    /// The ring of coalesced MMIO, which VMMs map with each vCPU. It stays empty: there is no such MMIO yet.
    pub(crate) ring: Pages<0>,
    pub(crate) policy: Policy,
    #[pin]
    pub(crate) clock: VmClock,
    /// Keeps the vCPUs' time-stamp counters in step. Taken last, with a vCPU's mutex held.
    #[pin]
    pub(crate) tsc_sync: Mutex<TscSync>,
    #[pin]
    pub(crate) msr_filter: MsrFilter,
    #[pin]
    pub(crate) ioevents: IoEvents,
    #[pin]
    pub(crate) table: Mutex<VcpuTable>,
}

/// Most vCPUs a VM can have, and the bound of their ids.
pub(crate) const MAX_VCPUS: u32 = 1024;
/// Ids are below this.
pub(crate) const MAX_VCPU_ID: u32 = 4096;
/// What CHECK_EXTENSION recommends.
pub(crate) fn recommended_vcpus() -> u32 {
    cpu::nr_cpus().min(MAX_VCPUS)
}

impl<B: Backend> Vm<B> {
    /// A VM for the memory of the current task, which is to have the descriptor `fd`.
    pub(crate) fn new(fd: i32) -> Result<Arc<Self>> {
        let kicks = Kicks::new()?;
        let mmu = Mmu::new(kicks.clone(), B::mmu_config())?;
        let shown = Shown::new(fd, kicks.clone())?;
        let told = Told::new(kicks.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                _shown: shown,
                _told: told,
                mmu,
                kicks,
                ring: Pages::new()?,
                policy: Policy::new(),
                clock <- VmClock::new(),
                tsc_sync <- new_mutex!(TscSync::default(), "lodge_tsc"),
                msr_filter <- MsrFilter::new(),
                ioevents <- IoEvents::new()?,
                table <- new_mutex!(VcpuTable::new(), "lodge_vcpus"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// EIO for a task that shares no memory with the VM's maker, and once the VM is dead.
    pub(crate) fn check_owner(&self) -> Result {
        if !self.mmu.is_current_mm() || self.kicks.dead() {
            return Err(EIO);
        }
        Ok(())
    }

    /// Our own mistake ends this VM and nothing else: each later ioctl says EIO, and vCPUs that are in the guest leave it, since each
    /// looks at `dead` when it takes a request to flush.
    ///
    /// # Context
    /// A task, interrupts on, `mmu_lock` not held.
    pub(crate) fn kill(&self, reason: &str) -> Error {
        if !self.kicks.dead.exchange(true) {
            pr_err!("VM stopped: {}\n", reason);
            self.kicks.drive_out();
        }
        EIO
    }

    /// Takes an id for a new vCPU: EINVAL beyond the limits, EEXIST when it is taken.
    pub(crate) fn add_vcpu(
        &self,
        id: u32,
        make: impl FnOnce(Arc<VcpuShared>, &mut VcpuTable) -> Result<isize>,
    ) -> Result<isize> {
        if id >= MAX_VCPU_ID {
            return Err(EINVAL);
        }
        let mut table = self.table.lock();
        if table.ids.len() >= MAX_VCPUS as usize {
            return Err(EINVAL);
        }
        if table.ids.iter().any(|i| *i == id) {
            return Err(EEXIST);
        }
        // Settled from here on, even if no vCPU comes of it.
        if table.id_limit == 0 {
            table.id_limit = MAX_VCPU_ID;
        }
        if id >= table.id_limit {
            return Err(EINVAL);
        }
        table.ids.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let shared = Arc::new(VcpuShared::new(id), GFP_KERNEL_ACCOUNT)?;
        self.add_kick(shared.clone())?;
        match make(shared.clone(), &mut table) {
            Ok(fd) => {
                table.ids.push(id, GFP_KERNEL_ACCOUNT)?;
                Ok(fd)
            }
            Err(e) => {
                self.remove_kick(&shared);
                Err(e)
            }
        }
    }

    /// KVM_CAP_MAX_VCPU_ID: ids are below `limit`. EINVAL for one beyond ours, and to change one that is settled.
    pub(crate) fn limit_ids(&self, limit: u64) -> Result {
        let limit = u32::try_from(limit).map_err(|_| EINVAL)?;
        if limit > MAX_VCPU_ID {
            return Err(EINVAL);
        }
        let mut table = self.table.lock();
        if table.id_limit != 0 && table.id_limit != limit {
            return Err(EINVAL);
        }
        table.id_limit = limit;
        Ok(())
    }

    /// Runs `f` as long as there is no vCPU, and none can come meanwhile; EINVAL once there is one.
    pub(crate) fn before_vcpus(&self, f: impl FnOnce(&mut VcpuTable) -> Result) -> Result {
        let mut table = self.table.lock();
        if !table.ids.is_empty() {
            return Err(EINVAL);
        }
        f(&mut table)
    }

    /// Makes a vCPU known to [`Kicks`]; the room is allocated before the spinlock is taken.
    fn add_kick(&self, shared: Arc<VcpuShared>) -> Result {
        // A statement of its own: in a longer one the lock would be held to its end.
        let count = self.kicks.vcpus.lock().len();
        let mut bigger = KVec::with_capacity(count.wrapping_add(1), GFP_KERNEL_ACCOUNT)?;
        let old = {
            let mut vcpus = self.kicks.vcpus.lock();
            for v in vcpus.iter() {
                bigger.push_within_capacity(v.clone()).map_err(|_| ENOMEM)?;
            }
            bigger.push_within_capacity(shared).map_err(|_| ENOMEM)?;
            core::mem::replace(&mut *vcpus, bigger)
        };
        drop(old);
        Ok(())
    }

    /// A vCPU's descriptor was closed: it never runs again.
    pub(crate) fn remove_kick(&self, shared: &Arc<VcpuShared>) {
        let removed = {
            let mut vcpus = self.kicks.vcpus.lock();
            let at = vcpus.iter().position(|v| Arc::ptr_eq(v, shared));
            at.and_then(|i| vcpus.remove(i).ok())
        };
        drop(removed);
    }
}
