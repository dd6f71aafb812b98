// SPDX-License-Identifier: GPL-2.0
//! Events of a guest in its VMCB: injecting them, waiting until it can take one, and what an exit cut short
//! (AMD APM volume 2, "Event Injection", "Interrupt and Exception Delivery", "NMI Support").
#![deny(unsafe_code)]

use super::hw::Hw;
use super::vmcb::{event, intercept, vintr};
use crate::hv::backend::Inject;
use crate::model::cr::cr0;
use crate::model::event::{vector as exception, Kind, Vectoring};

impl Hw {
    /// The next entry delivers `what`, with the guest at `rip`.
    pub(super) fn inject(&mut self, rip: u64, what: Inject) {
        let soft = match what {
            Inject::Exception(e) => matches!(e.vector, exception::BP | exception::OF),
            Inject::Interrupt(i) => i.soft,
            Inject::Nmi => false,
        };
        self.soft_rip = soft.then_some(rip);
        if soft {
            // What a CPU that tells the next RIP also pushes ("Event Injection"). RIP is the same already.
            self.vmcb().set_next_rip(rip);
        }
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
        self.vmcb().set_event_inj(event::VALID | v);
    }

    /// It does not after all.
    pub(super) fn cancel_injection(&mut self) {
        let v = self.vmcb();
        let nmi = v.event_inj() & (event::VALID | event::TYPE) == event::VALID | event::NMI;
        v.set_event_inj(0);
        if nmi {
            self.set_nmi_masked(false);
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

    /// The event whose delivery an exit at `rip` cut short, as the control block tells it in `info`.
    #[cold]
    pub(super) fn cut_short(&mut self, rip: u64, info: u64) -> Option<Vectoring> {
        let vector = (info & event::VECTOR) as u8;
        let kind = Kind::from_code((info >> 8 & 7) as u8)?;
        match kind {
            Kind::Nmi => self.set_nmi_masked(false),
            // What an instruction raises: it is executed again, as RIP points to it, unless it was injected.
            Kind::Software if self.soft_rip != Some(rip) => return None,
            Kind::Hardware
                if matches!(vector, exception::BP | exception::OF)
                    && self.soft_rip != Some(rip) =>
            {
                return None
            }
            _ => {}
        }
        let error = (info & event::ERROR != 0).then_some((info >> 32) as u32);
        Some(Vectoring {
            kind,
            vector,
            error,
            insn_len: 0,
        })
    }
}
