// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_XSAVE, KVM_GET_XSAVE2 and KVM_SET_XSAVE: the extended state in the standard format of XSAVE.
//!
//! The kernel keeps the state and converts it (`sys::fpu`). What user space gets has the components that the guest's CPUID has,
//! so that it can be loaded on a host that has no more than these; what it gives may have all that the module offers.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::vcpu::Loaded;
use crate::hv::{host, user};
use crate::sys::fpu::IMAGE_MIN;

/// KVM_CAP_XSAVE2: bytes that KVM_GET_XSAVE2 may need, for all that the module offers.
pub(crate) fn size() -> u32 {
    let min = IMAGE_MIN as u32;
    host::caps().map_or(min, |c| c.xstate_size(c.xcr0(), false).max(min))
}

fn save<B: Backend>(cx: &Loaded<'_, B>, len: usize, arg: usize) -> Result {
    let mut image = user::zeroed(len)?;
    let xcr0 = cx.state.features.limits().xcr0;
    cx.state.fpu.save(&mut image, xcr0, cx.state.switch.pkru);
    user::put_bytes(arg, &image)
}

/// KVM_GET_XSAVE. EINVAL when the state does not fit into `struct kvm_xsave`.
pub(crate) fn get<B: Backend>(cx: &Loaded<'_, B>, arg: usize) -> Result {
    if cx.state.fpu.image_size() > IMAGE_MIN {
        return Err(EINVAL);
    }
    save(cx, IMAGE_MIN, arg)
}

/// KVM_GET_XSAVE2.
pub(crate) fn get2<B: Backend>(cx: &Loaded<'_, B>, arg: usize) -> Result {
    save(cx, cx.state.fpu.image_size(), arg)
}

/// KVM_SET_XSAVE. EINVAL for components that are not offered, reserved bits of the header or of MXCSR.
pub(crate) fn set<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result {
    let mut image = user::get_bytes(arg, cx.state.fpu.image_size())?;
    let (offered, pkru) = (host::caps()?.xcr0(), cx.state.switch.pkru);
    cx.state.switch.pkru = cx.state.fpu.restore(&mut image, offered, pkru)?;
    Ok(())
}
