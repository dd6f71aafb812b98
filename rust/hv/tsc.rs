// SPDX-License-Identifier: GPL-2.0
//! The guest's time-stamp counter: its rate, its offset from the host's, and the ioctls that set them.

use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;

use crate::hv::backend::Backend;
use crate::hv::host_tsc::From;
use crate::hv::user;
use crate::hv::vcpu::Loaded;
use crate::hv::vm::Vm;
use crate::model::pvclock::{rates_differ, TscScale};
use crate::model::tsc_sync::{later, Course, Loss, Moment, TscSync};
use crate::sys::cpu::{self, Now, PreemptOff};
use crate::uapi::{self, ioctl, kvm_device_attr};

/// The highest rate that can be asked for, in kHz, where the hardware scales.
const MAX_KHZ: u32 = i32::MAX as u32;

/// A guest's time-stamp counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tsc {
    /// Guest = scaled host + offset.
    offset: u64,
    scale: TscScale,
    /// The rate that user space asked for.
    khz: u32,
    /// The rate is above the hardware's, which cannot make it: the counter is pushed forward at each entry.
    catches_up: bool,
    /// Where it stood when it was set, which it is pushed forward from.
    course: Course,
    /// The suspends that the offset makes up for.
    loss: Loss,
}

impl Tsc {
    /// A counter at the hardware's rate.
    pub(crate) fn new() -> Self {
        Self {
            offset: 0,
            scale: TscScale::default(),
            khz: cpu::tsc_khz(),
            catches_up: false,
            course: Course::default(),
            loss: Loss::after(cpu::tsc_lost()),
        }
    }

    /// Its value when the host's is `host`.
    pub(crate) fn guest(&self, host: u64) -> u64 {
        self.scale.apply(host).wrapping_add(self.offset)
    }

    /// This moment, for who compares it with other vCPUs' counters.
    fn moment(&self) -> Moment {
        let now = Now::read();
        Moment {
            ns: now.host,
            scaled: self.scale.apply(now.tsc),
            khz: self.khz,
            stable: cpu::tsc_stable(),
        }
    }

    /// From now on it runs from where it is.
    fn start_here(&mut self) {
        let now = Now::read();
        self.course = Course {
            offset: self.offset,
            ns: now.host,
            value: self.guest(now.tsc),
        };
    }

    /// On a CPU whose counter the offset is not for: goes on from the last value, or from where it should be by now if that is later.
    fn arrive_from(&mut self, from: From) {
        let now = Now::read();
        let last = match from {
            From::Elsewhere(left) => self.guest(left),
            From::Here | From::Nowhere => self.guest(now.tsc),
        };
        let khz = if self.catches_up {
            self.khz
        } else {
            self.actual_khz()
        };
        let value = later(last, self.course.value_at(now.host, khz));
        self.offset = value.wrapping_sub(self.scale.apply(now.tsc));
    }

    /// It is pushed forward at each entry.
    pub(crate) fn catches_up(&self) -> bool {
        self.catches_up
    }

    /// KVM_GET_TSC_KHZ.
    pub(crate) fn khz(&self) -> u32 {
        self.khz
    }

    /// The rate at which it runs while the guest does: the hardware's where that is near enough to what was asked for, or has to do.
    pub(crate) fn actual_khz(&self) -> u32 {
        self.scale.rate(cpu::tsc_khz())
    }
}

/// KVM_CAP_TSC_CONTROL.
pub(crate) fn can_scale<B: Backend>() -> bool {
    B::tsc_scale_places().is_some()
}

/// The rate that `arg` of KVM_SET_TSC_KHZ means. EINVAL above what the hardware can scale to.
fn wanted<B: Backend>(arg: usize) -> Result<u32> {
    let khz = arg as u32;
    if can_scale::<B>() && khz >= MAX_KHZ {
        return Err(EINVAL);
    }
    Ok(if khz == 0 { cpu::tsc_khz() } else { khz })
}

/// KVM_SET_TSC_KHZ of a VM: for vCPUs to come. EINVAL once there are vCPUs.
pub(crate) fn set_default<B: Backend>(vm: &Vm<B>, arg: usize) -> Result<isize> {
    let khz = wanted::<B>(arg)?;
    vm.before_vcpus(|_| {
        vm.clock.tsc_khz.store(khz, Relaxed);
        Ok(())
    })?;
    Ok(0)
}

/// KVM_GET_TSC_KHZ of a VM.
pub(crate) fn default_khz<B: Backend>(vm: &Vm<B>) -> u32 {
    vm.clock.tsc_khz.load(Relaxed)
}

impl<B: Backend> Loaded<'_, B> {
    /// The counter's value now.
    pub(crate) fn tsc_now(&mut self) -> u64 {
        let _here = self.stay_with_tsc();
        self.state.tsc.guest(cpu::rdtsc())
    }

    /// Sets the counter of this vCPU alone; gives how far it moved.
    pub(crate) fn set_tsc(&mut self, value: u64) -> u64 {
        let _here = self.stay_with_tsc();
        let moved = value.wrapping_sub(self.state.tsc.guest(cpu::rdtsc()));
        self.shift_tsc(moved);
        moved
    }

    /// Moves the counter of this vCPU alone.
    pub(crate) fn move_tsc(&mut self, by: u64) {
        let _here = self.stay_with_tsc();
        self.shift_tsc(by);
    }

    fn shift_tsc(&mut self, by: u64) {
        let t = &mut self.state.tsc;
        t.offset = t.offset.wrapping_add(by);
        if t.catches_up {
            t.start_here();
        } else {
            t.course.value = t.course.value.wrapping_add(by);
        }
        self.write_tsc_offset();
    }

    fn write_tsc_offset(&mut self) {
        B::set_tsc_offset(&mut self.state.hw, self.state.tsc.offset);
        self.state.clock.set_stale();
    }

    fn follow_course(&mut self, course: Course) {
        let t = &mut self.state.tsc;
        (t.offset, t.course) = (course.offset, course);
        self.write_tsc_offset();
    }

    fn with_sync(&mut self, set: impl FnOnce(&mut TscSync, &Moment) -> Course) {
        let vm = self.vm;
        let mut sync = vm.tsc_sync.lock();
        // Where the CPUs' counters differ, an offset is good on the CPU that it was chosen on.
        let preempt = self.stay_with_tsc();
        let t = &self.state.tsc;
        sync.make_up(cpu::tsc_lost(), |lost| t.scale.apply(lost));
        let course = set(&mut sync, &t.moment());
        self.follow_course(course);
        drop(preempt);
    }

    /// Keeps the thread on a CPU for which the offset is good.
    fn stay_with_tsc(&mut self) -> PreemptOff {
        let preempt = PreemptOff::new();
        if self.host_tsc.changed() {
            self.arrive_here(&preempt);
        }
        preempt
    }

    /// User space sets the counter, or the vCPU is new: it may have to be in step with the others.
    pub(crate) fn synchronize_tsc(&mut self, value: Option<u64>) {
        self.with_sync(|sync, now| sync.write(value, now));
    }

    /// User space sets the counter's offset.
    fn synchronize_tsc_offset(&mut self, offset: u64) {
        self.with_sync(|sync, now| sync.set_offset(offset, now));
    }

    /// Makes up for what happened to the host's counter: the guest's goes on from where it was. Its clock has to be told anew in any case, as
    /// it may have gone on without the counter.
    #[cold]
    pub(crate) fn follow_host_tsc(&mut self) {
        drop(self.stay_with_tsc());
    }

    #[cold]
    fn arrive_here(&mut self, preempt: &PreemptOff) {
        let from = self.host_tsc.take(preempt);
        let t = &mut self.state.tsc;
        let lost = t.loss.take(cpu::tsc_lost());
        t.offset = t.offset.wrapping_add(t.scale.apply(lost));
        if from != From::Here {
            t.arrive_from(from);
        }
        self.write_tsc_offset();
    }

    /// KVM_SET_TSC_KHZ. EINVAL for a rate that the hardware cannot make.
    pub(crate) fn set_tsc_khz(&mut self, arg: usize) -> Result {
        let khz = wanted::<B>(arg)?;
        self.set_tsc_rate(khz)
    }

    /// Sets the rate of the counter, which goes on from where it is only if its offset is set anew.
    pub(crate) fn set_tsc_rate(&mut self, khz: u32) -> Result {
        let host = cpu::tsc_khz();
        let mut scale = TscScale::default();
        let mut catches_up = false;
        if rates_differ(khz, host) {
            match B::tsc_scale_places() {
                Some(places) => scale = TscScale::new(khz, host, places).ok_or(EINVAL)?,
                None if khz > host => catches_up = true,
                None => return Err(EINVAL),
            }
        }
        let t = &mut self.state.tsc;
        (t.khz, t.scale, t.catches_up) = (khz, scale, catches_up);
        // vCPUs that are in step have to be so at a rate that they are pushed to, too: all from the moment that they have in common.
        if !catches_up {
            t.start_here();
        }
        B::set_tsc_ratio(&mut self.state.hw, scale.ratio);
        self.state.clock.set_stale();
        Ok(())
    }

    /// Pushes a counter forward that has to run faster than the hardware's. Before each entry: its clock stays stale for that.
    pub(crate) fn catch_up_tsc(&mut self) {
        if !self.state.tsc.catches_up {
            return;
        }
        let now = Now::read();
        let t = &mut self.state.tsc;
        let due = t.course.value_at(now.host, t.khz);
        let behind = due.wrapping_sub(t.guest(now.tsc));
        if behind as i64 > 0 {
            t.offset = t.offset.wrapping_add(behind);
            self.write_tsc_offset();
        }
    }

    /// KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR and KVM_SET_DEVICE_ATTR: a vCPU has one attribute, the offset of its time-stamp counter.
    /// ENXIO for others.
    pub(crate) fn attribute(&mut self, cmd: u32, arg: usize) -> Result {
        let attr: kvm_device_attr = user::get(arg)?;
        if attr.group != uapi::KVM_VCPU_TSC_CTRL || attr.attr != uapi::KVM_VCPU_TSC_OFFSET.into() {
            return Err(ENXIO);
        }
        match cmd {
            ioctl::GET_DEVICE_ATTR => user::put(attr.addr as usize, &self.state.tsc.offset)?,
            ioctl::SET_DEVICE_ATTR => {
                let offset = user::get(attr.addr as usize)?;
                self.synchronize_tsc_offset(offset);
            }
            _ => {}
        }
        Ok(())
    }
}
