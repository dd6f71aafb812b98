// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_REGS and KVM_SET_REGS: the general registers.

use crate::hv::backend::Backend;
use crate::hv::vcpu::{Loaded, VcpuState};
use crate::model::regs;
use crate::uapi::kvm_regs;

impl<B: Backend> VcpuState<B> {
    /// KVM_GET_REGS.
    pub(crate) fn get_regs(&self) -> kvm_regs {
        let r = &self.switch.regs;
        kvm_regs {
            rax: r.get(regs::RAX),
            rbx: r.get(regs::RBX),
            rcx: r.get(regs::RCX),
            rdx: r.get(regs::RDX),
            rsi: r.get(regs::RSI),
            rdi: r.get(regs::RDI),
            rsp: r.get(regs::RSP),
            rbp: r.get(regs::RBP),
            r8: r.get(8),
            r9: r.get(9),
            r10: r.get(10),
            r11: r.get(11),
            r12: r.get(12),
            r13: r.get(13),
            r14: r.get(14),
            r15: r.get(15),
            rip: r.rip,
            rflags: self.rflags(),
        }
    }
}

impl<B: Backend> Loaded<'_, B> {
    /// KVM_SET_REGS.
    pub(crate) fn set_regs(&mut self, from: &kvm_regs) {
        let r = &mut self.state.switch.regs;
        r.set(regs::RAX, from.rax);
        r.set(regs::RBX, from.rbx);
        r.set(regs::RCX, from.rcx);
        r.set(regs::RDX, from.rdx);
        r.set(regs::RSI, from.rsi);
        r.set(regs::RDI, from.rdi);
        r.set(regs::RSP, from.rsp);
        r.set(regs::RBP, from.rbp);
        r.set(8, from.r8);
        r.set(9, from.r9);
        r.set(10, from.r10);
        r.set(11, from.r11);
        r.set(12, from.r12);
        r.set(13, from.r13);
        r.set(14, from.r14);
        r.set(15, from.r15);
        r.rip = from.rip;
        let gpr = r.gpr;
        self.set_rflags(from.rflags);
        // Also if it has come to its end: a fault that it ended with may wait for the next KVM_RUN, and takes its registers with it.
        self.state.job.set_gprs(&gpr);
        self.state.events.drop_pending_exception();
    }
}
