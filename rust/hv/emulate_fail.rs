// SPDX-License-Identifier: GPL-2.0
//! Instructions that trap into the emulator as #UD, and those that it cannot do.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow};
use crate::hv::guest_mem::MAX_INSN;
use crate::hv::quirks::FIX_HYPERCALL_INSN;
use crate::hv::stats::Stat;
use crate::hv::vcpu::Loaded;
use crate::mmu::gwalk::Access;
use crate::mmu::Gpa;
use crate::model::emu::decode::decode;
use crate::model::emu::insn::Kind;
use crate::model::event::Exception;
use crate::model::regs::rflags;
use crate::sys::params;
use crate::uapi;

/// UD2 and three letters: the instruction behind is to be emulated (module parameter `force_emulation_prefix`).
const PREFIX: [u8; 5] = [0x0f, 0x0b, b'k', b'v', b'm'];
/// Bit of the parameter: RFLAGS.RF is cleared before.
const CLEAR_RF: i32 = 1 << 1;

impl<B: Backend> Loaded<'_, B> {
    /// #UD of the guest, intercepted: a forced emulation, the other vendor's hypercall, an instruction that this CPU lacks
    /// and the guest was promised, or really #UD.
    pub(crate) fn undefined_opcode(&mut self) -> Result<Flow> {
        let fetched = self.fetch();
        let forced = params::get().force_emulation_prefix;
        if forced != 0 && fetched.bytes().starts_with(&PREFIX) {
            let wide = self.is_64bit();
            let regs = &mut self.state.switch.regs;
            if forced & CLEAR_RF != 0 {
                regs.rflags &= !rflags::RF;
            }
            let rip = regs.rip.wrapping_add(PREFIX.len() as u64);
            regs.rip = if wide { rip } else { rip & 0xffff_ffff };
            return self.emulate_forced();
        }
        let mode = self.context().mode();
        let kind = decode(fetched.bytes(), mode).map(|i| i.kind());
        let foreign = self.state.features.vendor() != self.state.features.host_vendor();
        match kind {
            Ok(Kind::Vmcall | Kind::Vmmcall) if self.vm.policy.quirks.has(FIX_HYPERCALL_INSN) => {
                Ok(self.foreign_hypercall())
            }
            Ok(Kind::Syscall | Kind::Sysenter | Kind::Sysexit) if foreign => self.emulate(),
            Ok(Kind::Rdpid | Kind::Movbe) => self.emulate(),
            _ => {
                self.raise(Exception::undefined());
                Ok(Flow::Resume)
            }
        }
    }

    /// The instruction at RIP, behind the prefix. What is no instruction gives #UD.
    fn emulate_forced(&mut self) -> Result<Flow> {
        let fetched = self.fetch();
        let mode = self.context().mode();
        match decode(fetched.bytes(), mode) {
            Err(e) if fetched.fault(e).is_some() => {
                self.raise(Exception::undefined());
                Ok(Flow::Resume)
            }
            Ok(i) if matches!(i.kind(), Kind::Vmcall | Kind::Vmmcall) => Ok(self.hypercall(i.len)),
            _ => self.emulate(),
        }
    }

    /// VMCALL on AMD, VMMCALL on Intel: the right one is written in its place, as KVM does, and executed anew.
    fn foreign_hypercall(&mut self) -> Flow {
        if B::cpl(&mut self.state.hw) != 0 {
            self.raise_gp();
            return Flow::Resume;
        }
        let at = self.linear_rip();
        for (n, byte) in B::HYPERCALL.into_iter().enumerate() {
            let access = Access {
                write: true,
                ..Access::default()
            };
            let done = match self.translate(at.wrapping_add(n as u64), access) {
                Ok(t) => self.vm.mmu.write_guest(Gpa(t.gpa), &[byte]).is_ok(),
                Err(Some(fault)) => {
                    self.raise(fault);
                    return Flow::Resume;
                }
                Err(None) => false,
            };
            if !done {
                return self.emulation_failed(&[]);
            }
        }
        Flow::Resume
    }

    /// What the emulator cannot do, `insn` as far as it could be read: the guest gets #UD, and if it is in its kernel, user space gets
    /// KVM_EXIT_INTERNAL_ERROR. With KVM_CAP_EXIT_ON_EMULATION_FAILURE user space gets that always, and the guest nothing.
    pub(crate) fn emulation_failed(&mut self, insn: &[u8]) -> Flow {
        self.count(Stat::InsnEmulationFail);
        if !self.vm.policy.exit_on_emulation_failure() {
            self.raise(Exception::undefined());
            if B::cpl(&mut self.state.hw) != 0 {
                return Flow::Resume;
            }
        }
        let words = failure(insn);
        let used = if insn.is_empty() { 1 } else { words.len() };
        self.run.internal_error(
            uapi::KVM_INTERNAL_ERROR_EMULATION,
            words.get(..used).unwrap_or(&words),
        );
        Flow::User
    }
}

/// The data of kvm_run.emulation_failure: flags, then the number of bytes and the bytes themselves, filled up with NOPs.
fn failure(insn: &[u8]) -> [u64; 3] {
    let mut words = [0u64; 3];
    if insn.is_empty() {
        return words;
    }
    let mut packed = [0x90u8; 16];
    packed[0] = insn.len().min(MAX_INSN) as u8;
    for (to, from) in packed.iter_mut().skip(1).zip(insn) {
        *to = *from;
    }
    words[0] = u64::from(uapi::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    for (word, chunk) in words.iter_mut().skip(1).zip(packed.chunks_exact(8)) {
        *word = chunk.try_into().map_or(0, u64::from_le_bytes);
    }
    words
}
