// SPDX-License-Identifier: GPL-2.0
//! KVM's paravirtual clock: one per VM, in nanoseconds, told to each vCPU in a page that the guest chose; KVM_GET_CLOCK,
//! KVM_SET_CLOCK and KVM_KVMCLOCK_CTRL.
//!
//! The clock is the host's time since boot at its raw rate, plus an offset of the VM's. A vCPU's page is written anew before the guest
//! is entered after each change of the clock, of the vCPU's time-stamp counter or of the page's place.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};

use crate::hv::backend::Backend;
use crate::hv::user;
use crate::hv::vcpu::Loaded;
use crate::hv::vm::Vm;
use crate::mmu::Gpa;
use crate::model::msr;
use crate::model::pvclock::{self, flag, Scale, TimeInfo};
use crate::sys::cpu::{self, Now, Word};
use crate::uapi::{self, kvm_clock_data};

/// KVM_CAP_ADJUST_CLOCK: the flags of `struct kvm_clock_data`.
pub(crate) const FLAGS: u32 =
    uapi::KVM_CLOCK_TSC_STABLE | uapi::KVM_CLOCK_REALTIME | uapi::KVM_CLOCK_HOST_TSC;

/// A VM's clock.
pub(crate) struct VmClock {
    /// What it is ahead of the host's time, modulo 2^64.
    offset: Atomic<u64>,
    /// Counts the changes of `offset`, so that vCPUs notice them.
    changes: Word,
    /// The rate of the time-stamp counters of vCPUs to come.
    pub(crate) tsc_khz: Atomic<u32>,
}

impl VmClock {
    /// A clock that stands at zero now.
    pub(crate) fn new() -> Self {
        Self {
            offset: Atomic::new(0u64.wrapping_sub(Now::read().host)),
            changes: Word::new(),
            tsc_khz: Atomic::new(cpu::tsc_khz()),
        }
    }

    fn at(&self, now: &Now) -> u64 {
        now.host.wrapping_add(self.offset.load(Relaxed))
    }
}

/// What a vCPU knows of its page.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VcpuClock {
    /// [`VmClock`]'s `changes` at the last writing of the page.
    seen: u64,
    /// The page has to be written.
    stale: bool,
    /// The page is to say that the guest was stopped.
    stopped: bool,
}

impl VcpuClock {
    /// The page has to be written before the guest runs.
    pub(crate) fn set_stale(&mut self) {
        self.stale = true;
    }
}

/// KVM_GET_CLOCK.
pub(crate) fn get<B: Backend>(vm: &Vm<B>, arg: usize) -> Result<isize> {
    let now = Now::read();
    let mut data = kvm_clock_data {
        clock: vm.clock.at(&now),
        ..kvm_clock_data::default()
    };
    // Where the CPUs' counters differ, one of them tells nothing; KVM leaves out both then.
    if cpu::tsc_stable() {
        data.flags = uapi::KVM_CLOCK_REALTIME | uapi::KVM_CLOCK_HOST_TSC;
        (data.realtime, data.host_tsc) = (now.real, now.tsc);
    }
    user::put(arg, &data)?;
    Ok(0)
}

/// KVM_SET_CLOCK. With KVM_CLOCK_REALTIME the clock has gone on since that time of day. EINVAL for unknown flags.
pub(crate) fn set<B: Backend>(vm: &Vm<B>, arg: usize) -> Result<isize> {
    let data: kvm_clock_data = user::get(arg)?;
    if data.flags & !FLAGS != 0 {
        return Err(EINVAL);
    }
    let now = Now::read();
    let mut clock = data.clock;
    if data.flags & uapi::KVM_CLOCK_REALTIME != 0 {
        clock = clock.wrapping_add(now.real.saturating_sub(data.realtime));
    }
    vm.clock.offset.store(clock.wrapping_sub(now.host), Relaxed);
    // The new offset is seen by whoever sees the change.
    vm.clock.changes.count_change();
    // A guest that runs has the old one until it is entered again.
    vm.kicks.drive_out();
    Ok(0)
}

impl<B: Backend> Loaded<'_, B> {
    /// KVM_KVMCLOCK_CTRL. EINVAL for a guest that does not use the clock.
    pub(crate) fn guest_was_stopped(&mut self) -> Result {
        msr::time_page(&*self.state.msrs).ok_or(EINVAL)?;
        self.state.clock.stopped = true;
        self.state.clock.stale = true;
        Ok(())
    }

    /// Writes the vCPU's page if it is out of date. Before each entry; sleeps.
    pub(crate) fn refresh_clock(&mut self) {
        let changes = self.vm.clock.changes.get();
        if !self.state.clock.stale && self.state.clock.seen == changes {
            return;
        }
        self.catch_up_tsc();
        let c = &mut self.state.clock;
        let stopped = core::mem::take(&mut c.stopped);
        c.stale = self.state.tsc.catches_up();
        c.seen = changes;
        if let Some(gpa) = msr::time_page(&*self.state.msrs) {
            self.write_time(Gpa(gpa), stopped);
        }
    }

    /// A page that is not in memory is passed over: the guest finds out.
    fn write_time(&mut self, gpa: Gpa, stopped: bool) {
        let mut old = [0u8; TimeInfo::SIZE];
        if self.vm.mmu.read_guest(gpa, &mut old).is_err() {
            return;
        }
        let version = old.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let (writing, written) = pvclock::versions(version);
        let now = Now::read();
        // The guest clears the flag when it has seen it.
        let mut flags = old.get(29).copied().unwrap_or(0) & flag::GUEST_STOPPED;
        if stopped {
            flags |= flag::GUEST_STOPPED;
        }
        let info = TimeInfo {
            version: writing,
            tsc: self.state.tsc.guest(now.tsc),
            system_time: self.vm.clock.at(&now),
            scale: Scale::from_khz(self.state.tsc.actual_khz()),
            flags,
        };
        let mmu = &self.vm.mmu;
        let _gone = mmu
            .write_guest(gpa, &writing.to_le_bytes())
            .and_then(|()| mmu.write_guest(gpa, &info.bytes()))
            .and_then(|()| mmu.write_guest(gpa, &written.to_le_bytes()));
    }

    /// The guest (or user space for it) asks for the time of day at which the clock was zero.
    pub(crate) fn write_wall_clock(&mut self, address: u64) {
        const VERSION: u64 = 4;
        let (gpa, body) = (Gpa(address), Gpa(address.wrapping_add(VERSION)));
        let mut old = [0u8; 4];
        if address == 0 || self.vm.mmu.read_guest(gpa, &mut old).is_err() {
            return;
        }
        let (writing, written) = pvclock::versions(u32::from_le_bytes(old));
        let now = Now::read();
        let time = pvclock::wall_clock(now.real, self.vm.clock.at(&now));
        let mmu = &self.vm.mmu;
        let _gone = mmu
            .write_guest(gpa, &writing.to_le_bytes())
            .and_then(|()| mmu.write_guest(body, &time))
            .and_then(|()| mmu.write_guest(gpa, &written.to_le_bytes()));
    }
}
