// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS: what is on its way into the guest, in the layout of `struct kvm_vcpu_events`.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Shadow};
use crate::hv::vcpu::Loaded;
use crate::model::emu::insn::Kind;
use crate::model::event::{vector, Saved};
use crate::uapi::{self, kvm_vcpu_events};

const STI: u8 = uapi::KVM_X86_SHADOW_INT_STI as u8;
const MOV_SS: u8 = uapi::KVM_X86_SHADOW_INT_MOV_SS as u8;

/// The flags that KVM_SET_VCPU_EVENTS knows.
const FLAGS: u32 = uapi::KVM_VCPUEVENT_VALID_NMI_PENDING
    | uapi::KVM_VCPUEVENT_VALID_SIPI_VECTOR
    | uapi::KVM_VCPUEVENT_VALID_SHADOW
    | uapi::KVM_VCPUEVENT_VALID_SMM
    | uapi::KVM_VCPUEVENT_VALID_PAYLOAD
    | uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;

impl<B: Backend> Loaded<'_, B> {
    /// KVM_GET_VCPU_EVENTS. There is no SMM and no local APIC: their fields are zero.
    pub(crate) fn vcpu_events(&mut self) -> kvm_vcpu_events {
        self.settle_payload();
        let payload = self.vm.policy.exception_payload();
        let masked = B::nmi_masked(&mut self.state.hw);
        self.state.events.set_nmi_masked(masked);
        let saved = self.state.events.save();
        let shadow = B::shadow(&mut self.state.hw);
        let mut e = kvm_vcpu_events::default();
        e.exception.pending = saved.exception_pending.into();
        // Who did not ask for payloads knows injected exceptions only.
        e.exception.injected =
            (saved.exception_injected || saved.exception_pending && !payload).into();
        e.exception.nr = saved.exception_nr;
        e.exception.has_error_code = saved.exception_error.is_some().into();
        e.exception.error_code = saved.exception_error.unwrap_or(0);
        e.exception_has_payload = saved.exception_payload.is_some().into();
        e.exception_payload = saved.exception_payload.unwrap_or(0);
        e.interrupt.injected = saved.interrupt_injected.into();
        e.interrupt.nr = saved.interrupt_nr;
        if shadow.sti {
            e.interrupt.shadow |= STI;
        }
        if shadow.mov_ss {
            e.interrupt.shadow |= MOV_SS;
        }
        e.nmi.injected = saved.nmi_injected.into();
        e.nmi.pending = saved.nmi_pending;
        e.nmi.masked = masked.into();
        e.flags = uapi::KVM_VCPUEVENT_VALID_NMI_PENDING
            | uapi::KVM_VCPUEVENT_VALID_SHADOW
            | uapi::KVM_VCPUEVENT_VALID_SMM;
        if payload {
            e.flags |= uapi::KVM_VCPUEVENT_VALID_PAYLOAD;
        }
        if self.vm.policy.triple_fault_event() {
            e.flags |= uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
            e.triple_fault.pending = saved.triple_fault.into();
        }
        e
    }

    /// KVM_SET_VCPU_EVENTS. EINVAL, and nothing is changed: unknown flags, a flag whose capability is off, a vector that is none of
    /// an exception, or SMM, which is not there.
    pub(crate) fn set_vcpu_events(&mut self, e: &kvm_vcpu_events) -> Result {
        let has = |flag| e.flags & flag != 0;
        let payload = has(uapi::KVM_VCPUEVENT_VALID_PAYLOAD);
        let triple = has(uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT);
        let smm = has(uapi::KVM_VCPUEVENT_VALID_SMM);
        let policy = &self.vm.policy;
        if e.flags & !FLAGS != 0
            || payload && !policy.exception_payload()
            || triple && !policy.triple_fault_event()
            || smm && (e.smi.smm | e.smi.pending | e.smi.smm_inside_nmi) != 0
        {
            return Err(EINVAL);
        }
        let old = self.state.events.save();
        let pending = payload && e.exception.pending != 0;
        let (exception_insn_len, interrupt_insn_len) = self.raised_at_rip(e, pending);
        let saved = Saved {
            exception_injected: e.exception.injected != 0 && !pending,
            exception_pending: pending,
            exception_nr: e.exception.nr,
            exception_error: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
            exception_payload: (pending && e.exception_has_payload != 0)
                .then_some(e.exception_payload),
            exception_insn_len,
            interrupt_injected: e.interrupt.injected != 0,
            interrupt_nr: e.interrupt.nr,
            interrupt_soft: e.interrupt.soft != 0,
            interrupt_insn_len,
            nmi_injected: e.nmi.injected != 0,
            nmi_pending: if has(uapi::KVM_VCPUEVENT_VALID_NMI_PENDING) {
                e.nmi.pending
            } else {
                old.nmi_pending
            },
            nmi_masked: e.nmi.masked != 0,
            triple_fault: if triple {
                e.triple_fault.pending != 0
            } else {
                old.triple_fault
            },
        };
        self.state.events.restore(&saved).map_err(|_| EINVAL)?;
        B::set_nmi_masked(&mut self.state.hw, saved.nmi_masked);
        if has(uapi::KVM_VCPUEVENT_VALID_SHADOW) {
            let shadow = Shadow {
                sti: e.interrupt.shadow & STI != 0,
                mov_ss: e.interrupt.shadow & MOV_SS != 0,
            };
            B::set_shadow(&mut self.state.hw, shadow);
        }
        Ok(())
    }

    /// The length of the instruction at RIP if it is what raised the exception or the interrupt of `e`: a debugger gives an INT3 back
    /// that was not its own.
    fn raised_at_rip(&mut self, e: &kvm_vcpu_events, pending: bool) -> (u8, u8) {
        let exception = (e.exception.injected != 0 || pending)
            && matches!(e.exception.nr, vector::BP | vector::OF);
        let interrupt = e.interrupt.injected != 0 && e.interrupt.soft != 0;
        if !exception && !interrupt {
            return (0, 0);
        }
        match self.identify() {
            Ok((Kind::Int3, len)) if exception && e.exception.nr == vector::BP => (len, 0),
            Ok((Kind::Into, len)) if exception && e.exception.nr == vector::OF => (len, 0),
            Ok((Kind::Int, len)) if interrupt => (0, len),
            _ => (0, 0),
        }
    }
}
