// SPDX-License-Identifier: GPL-2.0
//! Control, debug and extended control registers: what the guest's writes do.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow};
use crate::hv::vcpu::Loaded;
use crate::mmu::Gpa;
use crate::model::cr::{self, cr4, dr7, Dr, Flush};
use crate::model::event::Exception;
use crate::model::regs::{RAX, RCX, RDX};
use crate::uapi;

/// Why a register access is refused: the exception that the guest gets.
type Refused = Exception;

fn gp<T>(_: T) -> Refused {
    Exception::protection(0)
}

impl<B: Backend> Loaded<'_, B> {
    /// Puts CR0, CR4 and EFER into effect, and what follows from them.
    pub(crate) fn apply_modes(&mut self) {
        let c = self.state.controls;
        B::set_modes(&mut self.state.hw, c.cr0, c.cr4, c.efer);
        self.state.cpuid_dirty = true;
        self.update_switch();
    }

    /// Reads the four PDPTEs of PAE paging below `cr3` and checks them; None: one is not valid.
    pub(crate) fn read_pdptrs(&mut self, cr3: u64) -> Option<[u64; 4]> {
        let mut bytes = [0u8; 32];
        self.vm
            .mmu
            .read_guest(Gpa(cr3 & 0xffff_ffe0), &mut bytes)
            .ok()?;
        let limits = *self.state.features.limits();
        let mut pdptrs = [0u64; 4];
        for (p, b) in pdptrs.iter_mut().zip(bytes.chunks_exact(8)) {
            *p = b.try_into().map(u64::from_le_bytes).ok()?;
            if !B::PDPTRS_IN_CONTROL_BLOCK {
                // QEMU's TCG sets an accessed bit here, which no CPU does.
                *p &= !(1 << 5);
            }
            if !cr::valid_pdpte(*p, &limits) {
                return None;
            }
        }
        Some(pdptrs)
    }

    /// The PDPTEs that a write must load before it takes effect.
    fn pdptrs_for(&mut self, needed: bool, cr3: u64) -> Result<Option<[u64; 4]>, Refused> {
        if !needed {
            return Ok(None);
        }
        self.read_pdptrs(cr3).map(Some).ok_or_else(|| gp(()))
    }

    fn apply_pdptrs(&mut self, pdptrs: Option<[u64; 4]>) {
        if let (Some(p), true) = (pdptrs, B::PDPTRS_IN_CONTROL_BLOCK) {
            B::set_pdptrs(&mut self.state.hw, p);
        }
    }

    fn flush(&mut self, flush: Flush) {
        if flush != Flush::None {
            B::flush_tlb(&mut self.state.hw);
        }
    }

    /// Control register `n` as the guest reads it.
    pub(crate) fn read_cr(&mut self, n: u8) -> Result<u64, Refused> {
        Ok(match n {
            0 => self.state.controls.cr0,
            2 => self.state.switch.cr2,
            3 => B::cr3(&mut self.state.hw),
            4 => self.state.controls.cr4,
            8 => self.state.controls.cr8,
            _ => return Err(Exception::undefined()),
        })
    }

    /// The guest writes control register `n`.
    pub(crate) fn write_cr(&mut self, n: u8, value: u64) -> Result<(), Refused> {
        let mode = self.mode();
        match n {
            0 => {
                let w = cr::check_cr0(value, &mode).map_err(gp)?;
                let pdptrs = self.pdptrs_for(w.load_pdptrs, mode.cr3)?;
                self.state.controls.cr0 = w.cr0;
                self.state.controls.efer = w.efer;
                self.apply_pdptrs(pdptrs);
                self.apply_modes();
                self.flush(w.flush);
            }
            2 => self.state.switch.cr2 = value,
            3 => {
                let limits = *self.state.features.limits();
                let w = cr::check_cr3(value, &mode, &limits).map_err(gp)?;
                let pdptrs = self.pdptrs_for(w.load_pdptrs, w.cr3)?;
                B::set_cr3(&mut self.state.hw, w.cr3);
                self.apply_pdptrs(pdptrs);
                self.flush(w.flush);
            }
            4 => {
                let limits = *self.state.features.limits();
                let w = cr::check_cr4(value, &mode, &limits).map_err(gp)?;
                let pdptrs = self.pdptrs_for(w.load_pdptrs, mode.cr3)?;
                self.state.controls.cr4 = w.cr4;
                self.apply_pdptrs(pdptrs);
                self.apply_modes();
                self.flush(w.flush);
            }
            8 => {
                self.state.controls.cr8 = cr::check_cr8(value).map_err(gp)?.into();
                B::set_cr8(&mut self.state.hw, self.state.controls.cr8);
            }
            _ => return Err(Exception::undefined()),
        }
        Ok(())
    }

    /// After an exit that may have written CR8, which was `old`: user space's interrupt controller may have an interrupt that its priority
    /// held back.
    pub(crate) fn tell_of_lower_priority(&mut self, old: u64, flow: Flow) -> Flow {
        if flow == Flow::User || self.state.controls.cr8 >= old {
            return flow;
        }
        self.run.set_reason(uapi::KVM_EXIT_SET_TPR);
        Flow::User
    }

    /// Which register an access to debug register `n` means. DR7.GD makes each access a #DB; while user space has the breakpoints,
    /// GD is its own.
    fn dr_access(&self, n: u8) -> Result<Dr, Refused> {
        let cr4 = self.state.controls.cr4;
        let register = cr::debug_register(n, cr4).ok_or_else(Exception::undefined)?;
        if self.state.effective_dr7() & dr7::GD != 0 {
            return Err(Exception::debug(cr::dr6::BD));
        }
        Ok(register)
    }

    /// Debug register `n` as the guest reads it.
    pub(crate) fn read_dr(&mut self, n: u8) -> Result<u64, Refused> {
        let register = self.dr_access(n)?;
        let c = &self.state.controls;
        Ok(match register {
            Dr::Address(i) => c.dr.get(usize::from(i)).copied().unwrap_or(0),
            Dr::Status => c.dr6,
            Dr::Control => c.dr7,
        })
    }

    /// The guest writes debug register `n`.
    pub(crate) fn write_dr(&mut self, n: u8, value: u64) -> Result<(), Refused> {
        let register = self.dr_access(n)?;
        let limits = *self.state.features.limits();
        let c = &mut self.state.controls;
        match register {
            Dr::Address(i) => {
                if let Some(dr) = c.dr.get_mut(usize::from(i)) {
                    *dr = value;
                }
            }
            Dr::Status => c.dr6 = cr::check_dr6(value, &limits).map_err(gp)?,
            Dr::Control => c.dr7 = cr::check_dr7(value).map_err(gp)?,
        }
        self.update_switch();
        Ok(())
    }

    /// A task switch ends the old task's own breakpoints (Intel SDM, "Debug Control Register (DR7)"). General detect guards MOV only.
    pub(crate) fn end_local_breakpoints(&mut self) {
        self.state.controls.dr7 &= !dr7::LOCAL;
        self.update_switch();
    }

    /// MOV between debug register `n` and general register `gpr`. It exits before the CPU looks at DR7.GD. (Bad privilege comes before
    /// the exit on CPUs, and last here as in KVM.)
    pub(crate) fn access_dr(&mut self, n: u8, write: bool, gpr: u8) -> Result<(), Refused> {
        if B::cpl(&mut self.state.hw) != 0 {
            self.dr_access(n)?;
            return Err(gp(()));
        }
        if write {
            let value = self.gpr(gpr);
            self.write_dr(n, value)
        } else {
            self.read_dr(n).map(|v| self.set_gpr(gpr, v))
        }
    }

    /// A general register, as wide as instructions that have no operand size see it.
    pub(crate) fn gpr(&mut self, n: u8) -> u64 {
        let value = self.state.switch.regs.get(n);
        if self.is_64bit() {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    /// Sets it.
    pub(crate) fn set_gpr(&mut self, n: u8, value: u64) {
        let value = if self.is_64bit() {
            value
        } else {
            value & 0xffff_ffff
        };
        self.state.switch.regs.set(n, value);
    }

    /// Finishes an instruction of `len` bytes that may have been refused.
    pub(crate) fn conclude(&mut self, done: Result<(), Refused>, len: u8) -> Flow {
        match done {
            Ok(()) => self.skip(len),
            Err(e) => self.raise(e),
        }
        Flow::Resume
    }

    /// Sets XCR0, which was checked.
    pub(crate) fn set_xcr0(&mut self, value: u64) {
        self.state.controls.xcr0 = value;
        self.state.cpuid_dirty = true;
        self.update_switch();
    }
}

/// XSETBV, `len` bytes long. The CPU has checked CR4.OSXSAVE; the privilege level too, but for Intel.
pub(crate) fn xsetbv<B: Backend>(cx: &mut Loaded<'_, B>, len: u8) -> Result<Flow> {
    let regs = &cx.state.switch.regs;
    let value = regs.get(RAX) & 0xffff_ffff | regs.get(RDX) << 32;
    let index = regs.get(RCX) as u32;
    let allowed = B::cpl(&mut cx.state.hw) == 0 && cx.state.controls.cr4 & cr4::OSXSAVE != 0;
    let limits = *cx.state.features.limits();
    match cr::check_xcr(index, value, &limits) {
        Ok(v) if allowed => {
            cx.set_xcr0(v);
            cx.skip(len);
        }
        _ => cx.raise_gp(),
    }
    Ok(Flow::Resume)
}
