// SPDX-License-Identifier: GPL-2.0
//! Second-stage faults: memory that is mapped on demand, and devices.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow};
use crate::hv::stats::Stat;
use crate::hv::vcpu::Loaded;
use crate::mmu::fault::FaultOutcome;
use crate::mmu::{Access, Gpa, SecondStageFault};
use crate::sys::cpu;
use crate::sys::trace;
use crate::uapi;

/// What the CPU tells of an exit that cut the delivery of an event short, as user space gets it (KVM_INTERNAL_ERROR_DELIVERY_EV).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    /// Exit code or reason.
    pub(crate) reason: u64,
    /// EXITINFO1 or the exit qualification.
    pub(crate) info1: u64,
    /// EXITINFO2 or the IDT-vectoring information.
    pub(crate) info2: u64,
}

/// Maps the page, or emulates the access to a device. With `delivery` the access is the CPU's own, to a descriptor table or a stack:
/// no instruction made it, so there is none to be emulated.
pub(crate) fn second_stage<B: Backend>(
    cx: &mut Loaded<'_, B>,
    fault: SecondStageFault,
    delivery: Option<Delivery>,
) -> Result<Flow> {
    trace::page_fault(|| {
        let rip = cx.state.switch.regs.rip;
        (cx.shared.id, rip, fault.gpa.0, fault.told)
    });
    cx.count(Stat::PfTaken);
    match populate(cx, fault.gpa, fault.access)? {
        Populated::Mapped => {
            cx.count(Stat::PfFixed);
            Ok(Flow::Resume)
        }
        Populated::Retry => Ok(Flow::Resume),
        Populated::Device => {
            cx.count(Stat::PfEmulate);
            let Some(d) = delivery else {
                return cx.emulate_access();
            };
            let cpu = cpu::current_cpu().into();
            let data = [d.info2, d.reason, d.info1, fault.gpa.0, cpu];
            cx.run
                .internal_error(uapi::KVM_INTERNAL_ERROR_DELIVERY_EV, &data);
            Ok(Flow::User)
        }
    }
}

/// What is at a guest-physical address now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Populated {
    /// A page, mapped for the access.
    Mapped,
    /// It is changing, or a signal tells the thread of its loss: the guest is to try again.
    Retry,
    /// No memory for such an access.
    Device,
}

/// Maps the page at `gpa`: EFAULT where user space has none, EINTR where a signal is pending.
pub(super) fn populate<B: Backend>(
    cx: &mut Loaded<'_, B>,
    gpa: Gpa,
    access: Access,
) -> Result<Populated> {
    match cx.vm.mmu.fault(&mut cx.state.cache, gpa, access)? {
        FaultOutcome::Mapped => Ok(Populated::Mapped),
        FaultOutcome::Retry => Ok(Populated::Retry),
        FaultOutcome::NoSlot | FaultOutcome::ReadonlyWrite => Ok(Populated::Device),
        FaultOutcome::BadHva => Err(EFAULT),
        FaultOutcome::Interrupted => {
            cx.run.set_reason(uapi::KVM_EXIT_INTR);
            cx.count(Stat::SignalExits);
            Err(EINTR)
        }
        FaultOutcome::Broken => Err(cx.vm.kill("the second-stage tables are inconsistent")),
    }
}
