// SPDX-License-Identifier: GPL-2.0
//! Events of a guest in its VMCB: injecting them (AMD APM volume 2, "Event Injection"), waiting until it can take one, and what an exit
//! cut short.
#![deny(unsafe_code)]

use core::num::NonZeroU16;

use super::hw::{Hw, Injecting, Soft};
use super::vmcb::{event, intercept, vintr};
use crate::hv::backend::Inject;
use crate::model::cr::cr0;
use crate::model::event::{vector as exception, Kind, Vectoring};
use crate::model::regs::Regs;

/// What tells one event from another; None for vector 0 as an interrupt, which no instruction raises.
fn told(info: u64) -> Option<NonZeroU16> {
    NonZeroU16::new((info & (event::TYPE | event::VECTOR)) as u16)
}

impl Hw {
    /// The next entry delivers `what`. If an instruction raised it, RIP goes behind that, for not every CPU pushes the next RIP.
    pub(super) fn inject(&mut self, regs: &mut Regs, what: Inject) {
        let v = match what {
            Inject::Exception(e) => {
                // Handlers of real mode expect none.
                let pushed = e.error.filter(|_| self.vmcb().cr0() & cr0::PE != 0);
                let error = pushed.map_or(0, |e| event::ERROR | u64::from(e) << 32);
                event::EXCEPTION | error | u64::from(e.vector)
            }
            Inject::Interrupt(i) => {
                let kind = if i.soft {
                    event::SOFT
                } else {
                    event::INTERRUPT
                };
                kind | u64::from(i.vector)
            }
            Inject::Nmi => {
                self.set_nmi_masked(true);
                event::NMI | 2
            }
        };
        self.injecting = match what {
            Inject::Nmi => Injecting::Nmi,
            _ => Injecting::Other,
        };
        self.vmcb().set_event_inj(event::VALID | v);
        let len = match what {
            Inject::Exception(e) if matches!(e.vector, exception::BP | exception::OF) => e.insn_len,
            Inject::Interrupt(i) if i.soft => i.insn_len,
            _ => {
                self.soft = None;
                return;
            }
        };
        self.soft = told(v).map(|event| Soft {
            rip: regs.rip,
            len,
            event,
        });
        regs.rip = regs.rip.wrapping_add(len.into());
        // What a CPU pushes that does know the next RIP ("Event Injection").
        self.vmcb().set_next_rip(regs.rip);
    }

    /// It does not after all.
    pub(super) fn cancel_injection(&mut self, regs: &mut Regs) {
        // An entry that is refused may clear it in the control block.
        match core::mem::replace(&mut self.injecting, Injecting::Nothing) {
            Injecting::Nothing => return,
            Injecting::Nmi => self.set_nmi_masked(false),
            Injecting::Other => {}
        }
        self.vmcb().set_event_inj(0);
        if let Some(soft) = self.soft.take() {
            regs.rip = soft.rip;
        }
    }

    /// NMIs are blocked, or no more. While they are, IRET exits.
    pub(super) fn set_nmi_masked(&mut self, masked: bool) {
        self.nmi_masked = masked;
        self.iret_rip = None;
        self.set_intercept(intercept::IRET, masked);
    }

    /// Exit as soon as the guest can take an interrupt, or no more.
    pub(super) fn set_irq_window(&mut self, on: bool) {
        self.set_intercept(intercept::VINTR, on);
        // A virtual interrupt that is never delivered: it exits when it could be.
        let (bits, v) = (vintr::IRQ | vintr::IGNORE_TPR, self.vmcb());
        v.set_vintr(if on {
            v.vintr() | bits
        } else {
            v.vintr() & !bits
        });
    }

    /// Exit as soon as the guest can take an NMI, or no more.
    pub(super) fn set_nmi_window(&mut self, on: bool) {
        // While blocked by an NMI, the intercept of IRET tells. Between it and the end of the IRET, and in an
        // interrupt shadow, one single step does.
        self.stepping = on && (self.iret_rip.is_some() || !self.nmi_masked);
    }

    /// The guest is about to execute the IRET that ends NMI blocking.
    pub(super) fn iret(&mut self, rip: u64) {
        self.set_intercept(intercept::IRET, false);
        self.iret_rip = Some(rip);
    }

    /// Has that IRET been executed?
    pub(super) fn finish_iret(&mut self, rip: u64) {
        if self.iret_rip.is_some_and(|at| at != rip) {
            self.iret_rip = None;
            self.nmi_masked = false;
        }
    }

    /// The event injected last, if that is what `info` tells of, with the guest still at the instruction that raised it.
    pub(super) fn injected_soft(&self, rip: u64, info: u64) -> Option<Soft> {
        self.soft
            .filter(|s| s.rip == rip && Some(s.event) == told(info))
    }

    /// The event whose delivery an exit cut short, as the control block tells it in `info`. RIP goes back to the instruction that raised it.
    #[cold]
    pub(super) fn cut_short(&mut self, regs: &mut Regs, info: u64) -> Option<Vectoring> {
        let vector = (info & event::VECTOR) as u8;
        let mut kind = Kind::from_code((info >> 8 & 7) as u8)?;
        let mut insn_len = 0;
        match kind {
            Kind::Nmi => self.set_nmi_masked(false),
            // What an instruction raises: it is executed again, as RIP points to it, unless it was injected.
            Kind::Software => insn_len = self.step_back(regs, info)?,
            Kind::Hardware if matches!(vector, exception::BP | exception::OF) => {
                insn_len = self.step_back(regs, info)?;
                kind = Kind::SoftException;
            }
            _ => {}
        }
        let error = (info & event::ERROR != 0).then_some((info >> 32) as u32);
        Some(Vectoring {
            kind,
            vector,
            error,
            insn_len,
        })
    }

    /// The length of the instruction whose injected event `info` tells of, to which RIP goes back.
    fn step_back(&self, regs: &mut Regs, info: u64) -> Option<u8> {
        let at = |s: Soft| regs.rip.wrapping_sub(s.len.into());
        let soft = self.soft.and_then(|s| self.injected_soft(at(s), info))?;
        regs.rip = soft.rip;
        Some(soft.len)
    }
}
