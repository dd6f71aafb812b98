// SPDX-License-Identifier: GPL-2.0
//! MSRs: the guest's RDMSR and WRMSR, and the ioctls.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow};
use crate::hv::vcpu::Loaded;
use crate::hv::{host, user};
use crate::model::features;
use crate::model::misc_enable;
use crate::model::msr::{self, Answer, BadMsr, Effect, HwMsr, Passed, Who};
use crate::model::regs::{RAX, RCX, RDX};
use crate::sys::{cpu, params, trace};
use crate::uapi::kvm_msr_entry;
use crate::uapi::pod::Header;

/// Most entries in one KVM_GET_MSRS or KVM_SET_MSRS.
const MAX_ENTRIES: u32 = 256;

impl<B: Backend> Loaded<'_, B> {
    fn hw_msr(&mut self, msr: HwMsr) -> u64 {
        match msr {
            HwMsr::Efer => self.state.controls.efer,
            HwMsr::Tsc => self.tsc_now(),
            HwMsr::SpecCtrl if !B::holds_spec_ctrl(&self.state.hw) => self.state.switch.spec_ctrl,
            _ => B::hw_msr(&mut self.state.hw, self.resident, msr),
        }
    }

    fn set_hw_msr(&mut self, msr: HwMsr, value: u64) {
        match msr {
            HwMsr::Efer => {
                self.state.controls.efer = value;
                self.apply_modes();
            }
            HwMsr::Tsc => {
                self.set_tsc(value);
            }
            HwMsr::SpecCtrl if !B::holds_spec_ctrl(&self.state.hw) => {
                self.state.switch.spec_ctrl = value;
                // It uses it: from now on without exits.
                if value != 0 {
                    self.pass_msrs();
                }
            }
            _ => B::set_hw_msr(&mut self.state.hw, self.resident, msr, value),
        }
    }

    /// Lets the guest reach MSRs without an exit. SPEC_CTRL, which costs time at each exit then, only once it is not 0. Call after a
    /// change of CPUID.
    pub(crate) fn pass_msrs(&mut self) {
        let switched = !B::holds_spec_ctrl(&self.state.hw);
        let used = !switched || self.state.switch.spec_ctrl != 0;
        let passed = Passed {
            spec_ctrl: self.state.features.spec_ctrl() && used,
            pred_cmd: self.state.features.pred_cmd() && self.state.features.host_commands().ibpb,
        };
        self.state.switch.spec_passed = (passed.spec_ctrl && switched).into();
        B::pass_msrs(&mut self.state.hw, passed);
    }

    /// SPEC_CTRL after reset. (KVM clears it at INIT too.)
    pub(crate) fn clear_spec_ctrl(&mut self) {
        self.set_hw_msr(HwMsr::SpecCtrl, 0);
        self.pass_msrs();
    }

    /// Reads an MSR for the guest or for user space.
    pub(crate) fn read_msr(&mut self, index: u32, who: Who) -> Result<u64, BadMsr> {
        match msr::read(&*self.state.msrs, index, who, &self.state.features) {
            Ok(Answer::Value(v)) => Ok(v),
            Ok(Answer::Hw(msr)) => Ok(self.hw_msr(msr)),
            Err(BadMsr::Unknown) if params::get().ignore_msrs => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Writes an MSR for the guest or for user space.
    pub(crate) fn write_msr(&mut self, index: u32, value: u64, who: Who) -> Result<(), BadMsr> {
        let mode = self.mode();
        // CPUs without SSE3 are too old to have the bit.
        if self.mwait_switch().is_some()
            && misc_enable::switches_mwait(&*self.state.msrs, index, value)
            && !self.state.features.has(features::SSE3)
        {
            return Err(BadMsr::Refused);
        }
        match msr::write(
            &mut *self.state.msrs,
            index,
            value,
            who,
            &mode,
            &self.state.features,
        ) {
            Ok(Effect::Done) => {}
            Ok(Effect::Hw(HwMsr::SpecCtrl, v)) if !cpu::spec_ctrl_takes(v) => {
                return Err(BadMsr::Refused)
            }
            Ok(Effect::Hw(msr, v)) => self.set_hw_msr(msr, v),
            Ok(Effect::PredCmd(v)) if cpu::pred_cmd(v) => {}
            Ok(Effect::FlushL1d) if cpu::flush_l1d() => {}
            Ok(Effect::PredCmd(_) | Effect::FlushL1d) => return Err(BadMsr::Refused),
            Ok(Effect::Tsc(value)) if who == Who::Host => self.synchronize_tsc(Some(value)),
            Ok(Effect::Tsc(value)) => {
                let moved = self.set_tsc(value);
                msr::adjust_tsc(&mut *self.state.msrs, moved);
            }
            Ok(Effect::TscOffset(by)) => self.move_tsc(by),
            Ok(Effect::ClockPage) => self.state.clock.set_stale(),
            Ok(Effect::WallClock(address)) => self.write_wall_clock(address),
            Ok(Effect::CpuidDirty) => self.state.cpuid_dirty = true,
            Err(BadMsr::Unknown) if params::get().ignore_msrs => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// RDMSR, `len` bytes long.
pub(crate) fn rdmsr<B: Backend>(cx: &mut Loaded<'_, B>, len: u8) -> Result<Flow> {
    let index = cx.state.switch.regs.get(RCX) as u32;
    let result = match cx.read_counter(index) {
        Some(value) => cx.filtered_counter(index, value),
        None => cx.guest_read_msr(index),
    };
    trace::msr(|| (false, index, result.unwrap_or(0), result.is_err()));
    match result {
        Ok(v) => {
            cx.state.switch.regs.set(RAX, v & 0xffff_ffff);
            cx.state.switch.regs.set(RDX, v >> 32);
            cx.skip(len);
        }
        Err(reason) => return Ok(cx.msr_failed(index, None, reason, len)),
    }
    Ok(Flow::Resume)
}

/// WRMSR, `len` bytes long.
pub(crate) fn wrmsr<B: Backend>(cx: &mut Loaded<'_, B>, len: u8) -> Result<Flow> {
    let regs = &cx.state.switch.regs;
    let index = regs.get(RCX) as u32;
    let value = regs.get(RAX) & 0xffff_ffff | regs.get(RDX) << 32;
    let result = cx.guest_write_msr(index, value);
    trace::msr(|| (true, index, value, result.is_err()));
    match result {
        Ok(()) => cx.skip(len),
        Err(reason) => return Ok(cx.msr_failed(index, Some(value), reason, len)),
    }
    Ok(Flow::Resume)
}

const HEADER: usize = core::mem::size_of::<Header>();

fn entries(arg: usize) -> Result<KVVec<kvm_msr_entry>> {
    let header: Header = user::get(arg)?;
    if header.count >= MAX_ENTRIES {
        return Err(E2BIG);
    }
    user::get_slice(user::after(arg, HEADER)?, header.count as usize)
}

/// KVM_GET_MSRS: the number of MSRs read before the first that cannot be, whose value becomes 0; those behind it are left alone.
pub(crate) fn get_msrs<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result<isize> {
    let mut list = entries(arg)?;
    let mut done = 0usize;
    for e in list.iter_mut() {
        match cx.read_msr(e.index, Who::Host) {
            Ok(v) => e.data = v,
            Err(_) => {
                e.data = 0;
                break;
            }
        }
        done = done.wrapping_add(1);
    }
    user::put_slice(user::after(arg, HEADER)?, &list)?;
    Ok(done as isize)
}

/// KVM_SET_MSRS: the number of MSRs written before the first that cannot be.
pub(crate) fn set_msrs<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result<isize> {
    let list = entries(arg)?;
    let mut done = 0usize;
    for e in list.iter() {
        // What describes the CPU model stays as the guest saw it.
        let frozen = cx.has_run()
            && msr::is_immutable(e.index)
            && cx.read_msr(e.index, Who::Host) != Ok(e.data);
        if frozen || cx.write_msr(e.index, e.data, Who::Host).is_err() {
            break;
        }
        done = done.wrapping_add(1);
    }
    Ok(done as isize)
}

/// KVM_GET_MSR_FEATURE_INDEX_LIST: as [`index_list`], of the MSRs that describe what can be offered.
pub(crate) fn feature_index_list(arg: usize) -> Result<isize> {
    let caps = host::caps()?;
    let mut list: KVVec<u32> = KVVec::new();
    for index in msr::FEATURE_LIST {
        if msr::feature_value(index, caps, 0).is_ok() {
            list.push(index, GFP_KERNEL_ACCOUNT)?;
        }
    }
    put_list(arg, &list)
}

/// KVM_GET_MSRS of the device: what the module can offer of those MSRs.
pub(crate) fn feature_msrs(arg: usize) -> Result<isize> {
    const UCODE_REV: u32 = 0x8b;
    let caps = host::caps()?;
    let mut list = entries(arg)?;
    let mut done = 0usize;
    for e in list.iter_mut() {
        let ucode = cpu::rdmsr_safe(UCODE_REV).unwrap_or(0);
        match msr::feature_value(e.index, caps, ucode) {
            Ok(v) => e.data = v,
            Err(BadMsr::Unknown) if params::get().ignore_msrs => e.data = 0,
            Err(_) => {
                e.data = 0;
                break;
            }
        }
        done = done.wrapping_add(1);
    }
    user::put_slice(user::after(arg, HEADER)?, &list)?;
    Ok(done as isize)
}

fn put_list(arg: usize, list: &[u32]) -> Result<isize> {
    let room: u32 = user::get(arg)?;
    user::put(arg, &(list.len() as u32))?;
    if (room as usize) < list.len() {
        return Err(E2BIG);
    }
    user::put_slice(user::after(arg, 4)?, list)?;
    Ok(0)
}

/// KVM_GET_MSR_INDEX_LIST: E2BIG when there is no room; the number is told in any case.
pub(crate) fn index_list(arg: usize) -> Result<isize> {
    let mut list: KVVec<u32> = KVVec::new();
    let exists = |index: u32| cpu::rdmsr_safe(index).is_ok();
    msr::index_list(host::caps()?, &exists, &mut |index| {
        list.push(index, GFP_KERNEL_ACCOUNT)
    })?;
    put_list(arg, &list)
}
