// SPDX-License-Identifier: GPL-2.0
//! The vCPU descriptor: its ioctls and its mapping.

use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

use crate::hv::backend::Backend;
use crate::hv::vcpu::{Loaded, Vcpu};
use crate::hv::vm::Vm;
use crate::hv::{cpuid, mce, msr, policy, user, xsave};
use crate::model::cr::{self, Limits};
use crate::model::fxsave;
use crate::sys::cpu;
use crate::sys::file::FileObject;
use crate::sys::fpu::GuestFpu;
use crate::sys::page::Pages;
use crate::sys::run_page::RING_PAGE;
use crate::uapi::{self, ioctl, kvm_fpu, kvm_interrupt, kvm_mp_state, kvm_xcr, kvm_xcrs};

/// What a vCPU's descriptor refers to. It keeps the VM alive.
pub(crate) struct VcpuFile<B: Backend> {
    pub(crate) vm: Arc<Vm<B>>,
    pub(crate) vcpu: Arc<Vcpu<B>>,
}

impl<B: Backend> Drop for VcpuFile<B> {
    fn drop(&mut self) {
        self.vm.remove_kick(&self.vcpu.shared);
    }
}

impl<B: Backend> FileObject for VcpuFile<B> {
    const NAME: &'static CStr = c"kvm-vcpu";
    const MAPPABLE: bool = true;

    fn page(&self, offset: usize) -> Option<&Pages<0>> {
        match offset {
            RING_PAGE => Some(&self.vm.ring),
            _ => self.vcpu.run.pages.page(offset),
        }
    }

    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        let (vm, vcpu) = (&*this.vm, &*this.vcpu);
        vm.check_owner()?;
        // What is not an ioctl of ours is not worth waiting for the vCPU.
        if kernel::ioctl::_IOC_TYPE(cmd) != uapi::KVMIO {
            return Err(EINVAL);
        }
        match cmd {
            ioctl::RUN if arg != 0 => Err(EINVAL),
            ioctl::RUN => vcpu.ioctl_run(vm),
            _ => not_run(vm, vcpu, cmd, arg),
        }
    }
}

/// Those that look at or change a vCPU that does not run. (Not inlined: KVM_RUN has a stack frame of its own.)
#[inline(never)]
fn not_run<B: Backend>(vm: &Vm<B>, vcpu: &Vcpu<B>, cmd: u32, arg: usize) -> Result<isize> {
    match cmd {
        // For these nothing of the vCPU has to be in the CPU, and VMMs call them often.
        ioctl::GET_REGS => get_regs(vcpu, arg),
        ioctl::INTERRUPT => interrupt(vcpu, arg),
        _ => vcpu.with_loaded(vm, |cx| dispatch(cx, cmd, arg)),
    }
}

/// KVM_GET_REGS.
#[inline(never)]
fn get_regs<B: Backend>(vcpu: &Vcpu<B>, arg: usize) -> Result<isize> {
    vcpu.with_locked(|state| user::put(arg, &state.get_regs()))?;
    Ok(0)
}

/// KVM_INTERRUPT. EINVAL for what is no vector.
#[inline(never)]
fn interrupt<B: Backend>(vcpu: &Vcpu<B>, arg: usize) -> Result<isize> {
    vcpu.with_locked(|state| {
        let i: kvm_interrupt = user::get(arg)?;
        let vector = u8::try_from(i.irq).map_err(|_| EINVAL)?;
        state.events.queue_interrupt(vector);
        Ok(0)
    })
}

fn dispatch<B: Backend>(cx: &mut Loaded<'_, B>, cmd: u32, arg: usize) -> Result<isize> {
    match cmd {
        ioctl::SET_REGS => user::with(arg, |given| {
            cx.set_regs(given);
            Ok(())
        })?,
        ioctl::GET_SREGS => get_sregs(cx, arg)?,
        ioctl::SET_SREGS => set_sregs(cx, arg)?,
        ioctl::GET_SREGS2 => get_sregs2(cx, arg)?,
        ioctl::SET_SREGS2 => set_sregs2(cx, arg)?,
        ioctl::GET_FPU => get_fpu(&cx.state.fpu, arg)?,
        ioctl::SET_FPU => set_fpu(&mut cx.state.fpu, arg)?,
        ioctl::SET_CPUID2 => return cpuid::set(cx, arg),
        ioctl::GET_CPUID2 => return cpuid::get(cx, arg),
        ioctl::GET_MSRS => return msr::get_msrs(cx, arg),
        ioctl::SET_MSRS => return msr::set_msrs(cx, arg),
        ioctl::GET_XSAVE => xsave::get(cx, arg)?,
        ioctl::GET_XSAVE2 => xsave::get2(cx, arg)?,
        ioctl::SET_XSAVE => xsave::set(cx, arg)?,
        ioctl::GET_VCPU_EVENTS => user::put(arg, &cx.vcpu_events())?,
        ioctl::SET_VCPU_EVENTS => user::with(arg, |given| cx.set_vcpu_events(given))?,
        ioctl::GET_DEBUGREGS => user::put(arg, &cx.debugregs())?,
        ioctl::X86_SETUP_MCE => mce::setup(cx, arg)?,
        ioctl::X86_SET_MCE => mce::report(cx, arg)?,
        ioctl::SET_GUEST_DEBUG => user::with(arg, |given| cx.set_guest_debug(given))?,
        ioctl::SET_DEBUGREGS => user::with(arg, |given| cx.set_debugregs(given))?,
        ioctl::GET_XCRS => get_xcrs(cx.state.controls.xcr0, arg)?,
        ioctl::SET_XCRS => {
            if let Some(value) = given_xcr0(cx.state.features.limits(), arg)? {
                cx.set_xcr0(value);
            }
        }
        ioctl::GET_MP_STATE => user::put(
            arg,
            &kvm_mp_state {
                mp_state: cx.state.mp_state,
            },
        )?,
        ioctl::SET_MP_STATE => set_mp_state(cx, user::get(arg)?)?,
        ioctl::TRANSLATE => cx.translate_for_user(arg)?,
        ioctl::SET_CPUID => return cpuid::set_old(cx, arg),
        ioctl::NMI => cx.state.events.add_nmis(1),
        ioctl::ENABLE_CAP => return policy::enable_vcpu(arg),
        ioctl::SET_SIGNAL_MASK => cx.state.signal_mask = get_signal_mask(arg)?,
        ioctl::GET_TSC_KHZ => return Ok(cx.state.tsc.khz() as isize),
        ioctl::SET_TSC_KHZ => cx.set_tsc_khz(arg)?,
        ioctl::HAS_DEVICE_ATTR | ioctl::GET_DEVICE_ATTR | ioctl::SET_DEVICE_ATTR => {
            cx.attribute(cmd, arg)?
        }
        ioctl::KVMCLOCK_CTRL => cx.guest_was_stopped()?,
        _ => return Err(EINVAL),
    }
    Ok(0)
}

// The handlers of the larger structures are not inlined: each keeps its copy on the stack only while it runs.

#[inline(never)]
fn get_sregs<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result {
    user::put(arg, &cx.get_sregs())
}

#[inline(never)]
fn set_sregs<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result {
    user::with(arg, |given| cx.set_sregs(given))
}

#[inline(never)]
fn get_sregs2<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result {
    user::put(arg, &cx.get_sregs2())
}

#[inline(never)]
fn set_sregs2<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result {
    user::with(arg, |given| cx.set_sregs2(given))
}

fn array<const N: usize>(image: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    fxsave::put(&mut out, 0, image.get(offset..).unwrap_or(&[]));
    out
}

/// KVM_GET_FPU: x87 and SSE in the layout of `struct kvm_fpu`, from the FXSAVE image (MXCSR is not told, as in KVM).
#[inline(never)]
fn get_fpu(fpu: &GuestFpu, arg: usize) -> Result {
    let mut out: KBox<kvm_fpu> = KBox::new(kvm_fpu::default(), GFP_KERNEL_ACCOUNT)?;
    let mut legacy: KBox<[u8; fxsave::SIZE]> = KBox::new([0; fxsave::SIZE], GFP_KERNEL_ACCOUNT)?;
    fpu.legacy(&mut legacy);
    let image = &legacy[..];
    out.fcw = u16::from_le_bytes(array(image, 0));
    out.fsw = u16::from_le_bytes(array(image, 2));
    out.ftwx = u8::from_le_bytes(array(image, 4));
    out.last_opcode = u16::from_le_bytes(array(image, 6));
    out.last_ip = u64::from_le_bytes(array(image, 8));
    out.last_dp = u64::from_le_bytes(array(image, 16));
    for (i, r) in out.fpr.iter_mut().enumerate() {
        *r = array(image, i.wrapping_mul(16).wrapping_add(32));
    }
    for (i, r) in out.xmm.iter_mut().enumerate() {
        *r = array(image, i.wrapping_mul(16).wrapping_add(160));
    }
    user::put(arg, &*out)
}

/// KVM_SET_FPU.
#[inline(never)]
fn set_fpu(fpu: &mut GuestFpu, arg: usize) -> Result {
    let from: KBox<kvm_fpu> = KBox::new(user::get(arg)?, GFP_KERNEL_ACCOUNT)?;
    let mut image: KBox<[u8; fxsave::SIZE]> = KBox::new([0; fxsave::SIZE], GFP_KERNEL_ACCOUNT)?;
    fpu.legacy(&mut image);
    fxsave::put(&mut *image, 0, &from.fcw.to_le_bytes());
    fxsave::put(&mut *image, 2, &from.fsw.to_le_bytes());
    fxsave::put(&mut *image, 4, &from.ftwx.to_le_bytes());
    fxsave::put(&mut *image, 6, &from.last_opcode.to_le_bytes());
    fxsave::put(&mut *image, 8, &from.last_ip.to_le_bytes());
    fxsave::put(&mut *image, 16, &from.last_dp.to_le_bytes());
    for (i, r) in from.fpr.iter().enumerate() {
        fxsave::put(&mut *image, i.wrapping_mul(16).wrapping_add(32), r);
    }
    for (i, r) in from.xmm.iter().enumerate() {
        fxsave::put(&mut *image, i.wrapping_mul(16).wrapping_add(160), r);
    }
    fpu.set_legacy(&image);
    Ok(())
}

/// KVM_GET_XCRS. A CPU without XSAVE has none.
#[inline(never)]
fn get_xcrs(xcr0: u64, arg: usize) -> Result {
    let mut out: KBox<kvm_xcrs> = KBox::new(kvm_xcrs::default(), GFP_KERNEL_ACCOUNT)?;
    if !cpu::has_xsave() {
        return user::put(arg, &*out);
    }
    out.nr_xcrs = 1;
    if let Some(x) = out.xcrs.first_mut() {
        *x = kvm_xcr {
            xcr: 0,
            reserved: 0,
            value: xcr0,
        };
    }
    user::put(arg, &*out)
}

/// What KVM_SET_XCRS gives XCR0. EINVAL for flags, too many registers, or a value that the guest's CPUID does not allow.
#[inline(never)]
fn given_xcr0(limits: &Limits, arg: usize) -> Result<Option<u64>> {
    let xcrs: KBox<kvm_xcrs> = KBox::new(user::get(arg)?, GFP_KERNEL_ACCOUNT)?;
    if !cpu::has_xsave() || xcrs.nr_xcrs as usize > xcrs.xcrs.len() || xcrs.flags != 0 {
        return Err(EINVAL);
    }
    // Only XCR0 means anything, and the first one found counts.
    let given = xcrs
        .xcrs
        .iter()
        .take(xcrs.nr_xcrs as usize)
        .find(|x| x.xcr == 0);
    given
        .map(|x| cr::check_xcr(0, x.value, limits).map_err(|_| EINVAL))
        .transpose()
}

/// KVM_SET_SIGNAL_MASK: the set of signals that are blocked during KVM_RUN; none given: the thread's own.
fn get_signal_mask(arg: usize) -> Result<Option<u64>> {
    if arg == 0 {
        return Ok(None);
    }
    let len: u32 = user::get(arg)?;
    if len as usize != core::mem::size_of::<u64>() {
        return Err(EINVAL);
    }
    user::get(user::after(arg, core::mem::size_of::<u32>())?).map(Some)
}

/// KVM_SET_MP_STATE: without an in-kernel interrupt controller a vCPU can only be runnable. One that the hardware keeps halted is
/// so then too: a VMM that resets it gives it other registers, and expects it to run.
fn set_mp_state<B: Backend>(cx: &mut Loaded<'_, B>, state: kvm_mp_state) -> Result {
    if state.mp_state != uapi::KVM_MP_STATE_RUNNABLE {
        return Err(EINVAL);
    }
    cx.state.mp_state = state.mp_state;
    B::wake(&mut cx.state.hw);
    Ok(())
}
