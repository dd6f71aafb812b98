// SPDX-License-Identifier: GPL-2.0
//! KVM's paravirtual clock: one per VM, in nanoseconds, told to each vCPU in a page that the guest chose; KVM_GET_CLOCK,
//! KVM_SET_CLOCK and KVM_KVMCLOCK_CTRL.
//!
//! It goes by the host's time-stamp counter, from one moment at which it was set by the host's time since boot. That moment is the VM's:
//! all vCPUs' pages and KVM_GET_CLOCK are made from it, so that they agree, however late one of them is written, though the host's
//! own clock goes by a slightly different rate. A vCPU's page is written anew before the guest is entered after each change of the clock,
//! of the vCPU's counter or of the page's place.
//!
//! The host's sleep stops guests too: each vCPU that uses the clock is told so at its first entry after, as by KVM_KVMCLOCK_CTRL
//! (`Kicks::host_sleeps`, which takes no vCPU's mutex).
//!
//! Where the counter is none to go by, as the CPUs' differ, or a suspend may have reset it, the moment is a new one each time, or after it.

use kernel::prelude::*;
use kernel::sync::atomic::Atomic;
use kernel::sync::{new_mutex, Mutex};

use crate::hv::backend::Backend;
use crate::hv::user;
use crate::hv::vcpu::Loaded;
use crate::hv::vm::Vm;
use crate::mmu::guest_memory::GuestMemError;
use crate::mmu::Gpa;
use crate::model::msr;
use crate::model::pvclock::{self, flag, Anchor, Scale, TimeInfo};
use crate::sys::cpu::{self, Now, Word};
use crate::uapi::{self, kvm_clock_data};

/// KVM_CAP_ADJUST_CLOCK: the flags of `struct kvm_clock_data`.
pub(crate) const FLAGS: u32 =
    uapi::KVM_CLOCK_TSC_STABLE | uapi::KVM_CLOCK_REALTIME | uapi::KVM_CLOCK_HOST_TSC;

/// What a VM's clock goes by.
struct Base {
    /// What it is ahead of the host's time, modulo 2^64, at the anchor.
    offset: u64,
    /// A moment since the last resume.
    anchor: Anchor,
    /// How many there had been.
    resumes: u64,
    /// The rate of the host's counter as it was known then: the kernel refines it once after boot.
    khz: u32,
}

impl Base {
    fn new(offset: u64, now: &Now) -> Self {
        Self {
            offset,
            anchor: Anchor {
                tsc: now.tsc,
                ns: now.host.wrapping_add(offset),
            },
            resumes: cpu::tsc_resumes(),
            khz: cpu::tsc_khz(),
        }
    }

    /// The host's counter can be gone by since the anchor.
    fn holds(&self) -> bool {
        cpu::tsc_stable() && self.resumes == cpu::tsc_resumes() && self.khz == cpu::tsc_khz()
    }
}

/// A VM's clock.
#[pin_data]
pub(crate) struct VmClock {
    #[pin]
    base: Mutex<Base>,
    /// Counts the times that it was set, so that vCPUs notice them.
    changes: Word,
    /// The rate of the time-stamp counters of vCPUs to come.
    pub(crate) tsc_khz: Atomic<u32>,
}

/// A moment of a VM's clock.
struct Reading {
    now: Now,
    /// What the clock goes by.
    anchor: Anchor,
    /// Its time, in nanoseconds.
    time: u64,
}

impl VmClock {
    /// A clock that stands at zero now.
    pub(crate) fn new() -> impl PinInit<Self> {
        let now = Now::read();
        let base = Base::new(0u64.wrapping_sub(now.host), &now);
        pin_init!(Self {
            base <- new_mutex!(base, "lodge_clock"),
            changes: Word::new(),
            tsc_khz: Atomic::new(cpu::tsc_khz()),
        })
    }

    /// Reads it. Sleeps.
    fn read(&self) -> Reading {
        let mut base = self.base.lock();
        // Under the lock: no anchor is later.
        let now = Now::read();
        if !base.holds() {
            *base = Base::new(base.offset, &now);
            // The pages are all made from one anchor. (Where the counter is none to go by, each has its own anyway.)
            if cpu::tsc_stable() {
                self.changes.count_change();
            }
        }
        let anchor = base.anchor;
        Reading {
            now,
            anchor,
            time: anchor.at(now.tsc, &Scale::from_khz(base.khz)),
        }
    }

    /// Sets it to what `time` makes of this moment. Sleeps.
    fn set(&self, time: impl FnOnce(&Now) -> u64) {
        let mut base = self.base.lock();
        let now = Now::read();
        *base = Base::new(time(&now).wrapping_sub(now.host), &now);
        // The new base is seen by whoever sees the change.
        self.changes.count_change();
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
    let Reading { now, time, .. } = vm.clock.read();
    let mut data = kvm_clock_data {
        clock: time,
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
    vm.clock.set(|now| {
        let since = match data.flags & uapi::KVM_CLOCK_REALTIME {
            0 => 0,
            _ => now.real.saturating_sub(data.realtime),
        };
        data.clock.wrapping_add(since)
    });
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

    /// The clock was set, and the page does not tell it yet.
    #[inline(always)]
    pub(crate) fn clock_was_set(&self) -> bool {
        self.state.clock.seen != self.vm.clock.changes.get()
    }

    /// Writes the vCPU's page if it is out of date. Before each entry; sleeps.
    pub(crate) fn refresh_clock(&mut self) {
        let changes = self.vm.clock.changes.get();
        if !self.state.clock.stale && self.state.clock.seen == changes {
            return;
        }
        self.catch_up_tsc();
        self.state.clock.seen = changes;
        let written = match msr::time_page(&*self.state.msrs) {
            Some(gpa) => self.write_time(Gpa(gpa)).is_ok(),
            None => true,
        };
        let c = &mut self.state.clock;
        // A page that is not in memory is tried again: the guest may have one there later.
        c.stale = !written || self.state.tsc.catches_up();
        c.stopped &= !written;
    }

    fn write_time(&mut self, gpa: Gpa) -> Result<(), GuestMemError> {
        let stopped = self.state.clock.stopped;
        let Reading { now, anchor, time } = self.vm.clock.read();
        // Held to the end, so that a page whose slot goes is not left half written.
        let memory = self.vm.mmu.guest_memory();
        let mut old = [0u8; TimeInfo::SIZE];
        memory.read(gpa, &mut old)?;
        let version = old.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let (writing, written) = pvclock::versions(version);
        // The guest clears the flag when it has seen it.
        let mut flags = old.get(29).copied().unwrap_or(0) & flag::GUEST_STOPPED;
        if stopped {
            flags |= flag::GUEST_STOPPED;
        }
        let tsc = &self.state.tsc;
        // One that is pushed forward does not go by the host's.
        let (tsc_then, system_time) = match tsc.catches_up() {
            true => (now.tsc, time),
            false => (anchor.tsc, anchor.ns),
        };
        let info = TimeInfo {
            version: writing,
            tsc: tsc.guest(tsc_then),
            system_time,
            scale: Scale::from_khz(tsc.actual_khz()),
            flags,
        };
        memory.write(gpa, &writing.to_le_bytes())?;
        memory.write(gpa, &info.bytes())?;
        memory.write(gpa, &written.to_le_bytes())
    }

    /// The guest (or user space for it) asks for the time of day at which the clock was zero.
    pub(crate) fn write_wall_clock(&mut self, address: u64) {
        if address != 0 {
            // Where there is no memory the guest finds out.
            let _gone = self.put_wall_clock(address);
        }
    }

    fn put_wall_clock(&mut self, address: u64) -> Result<(), GuestMemError> {
        const VERSION: u64 = 4;
        let (gpa, body) = (Gpa(address), Gpa(address.wrapping_add(VERSION)));
        let Reading { now, time, .. } = self.vm.clock.read();
        let time = pvclock::wall_clock(now.real, time);
        let memory = self.vm.mmu.guest_memory();
        let mut old = [0u8; 4];
        memory.read(gpa, &mut old)?;
        let (writing, written) = pvclock::versions(u32::from_le_bytes(old));
        memory.write(gpa, &writing.to_le_bytes())?;
        memory.write(body, &time)?;
        memory.write(gpa, &written.to_le_bytes())
    }
}
