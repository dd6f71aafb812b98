// SPDX-License-Identifier: GPL-2.0
//! Machine checks of the guest: the ioctls that set up the banks and report errors.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::user;
use crate::hv::vcpu::Loaded;
use crate::model::cr::cr4;
use crate::model::event::{vector, Exception};
use crate::model::mce::{self, Mce, Signal};
use crate::uapi::kvm_x86_mce;

/// KVM_X86_GET_MCE_CAP_SUPPORTED: the bits of IA32_MCG_CAP beside the number of banks.
pub(crate) fn supported<B: Backend>(arg: usize) -> Result<isize> {
    user::put(arg, &mce::supported(B::INTEL))?;
    Ok(0)
}

/// KVM_X86_SETUP_MCE. EINVAL for no bank, too many, or bits that are not supported.
pub(crate) fn setup<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result {
    mce::setup(&mut *cx.state.msrs, user::get(arg)?, B::INTEL).map_err(|_| EINVAL)
}

/// KVM_X86_SET_MCE. EINVAL for a bank that is not there, or an error that is not valid.
pub(crate) fn report<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result {
    let given: kvm_x86_mce = user::get(arg)?;
    let error = Mce {
        status: given.status,
        addr: given.addr,
        misc: given.misc,
        mcg_status: given.mcg_status,
        bank: given.bank,
    };
    let enabled = cx.state.controls.cr4 & cr4::MCE != 0;
    match mce::report(&mut *cx.state.msrs, &error, enabled).map_err(|_| EINVAL)? {
        Signal::None => {}
        Signal::MachineCheck => cx.raise(Exception::new(vector::MC)),
        Signal::Shutdown => cx.state.events.set_triple_fault(),
    }
    Ok(())
}
