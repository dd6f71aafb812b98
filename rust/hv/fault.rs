// SPDX-License-Identifier: GPL-2.0
//! Second-stage faults: memory that is mapped on demand, and devices.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow};
use crate::hv::vcpu::Loaded;
use crate::mmu::fault::FaultOutcome;
use crate::mmu::SecondStageFault;
use crate::uapi;

/// Maps the page, or emulates the access to a device.
pub(crate) fn second_stage<B: Backend>(
    cx: &mut Loaded<'_, B>,
    fault: SecondStageFault,
) -> Result<Flow> {
    match cx
        .vm
        .mmu
        .fault(&mut cx.state.cache, fault.gpa, fault.access)?
    {
        FaultOutcome::Mapped | FaultOutcome::Retry => Ok(Flow::Resume),
        FaultOutcome::NoSlot | FaultOutcome::ReadonlyWrite => cx.emulate(),
        FaultOutcome::BadHva => Err(EFAULT),
        FaultOutcome::HwPoison => Err(EHWPOISON),
        FaultOutcome::Interrupted => {
            cx.run.set_reason(uapi::KVM_EXIT_INTR);
            Err(EINTR)
        }
        FaultOutcome::Broken => Err(cx.vm.kill("the second-stage tables are inconsistent")),
    }
}
