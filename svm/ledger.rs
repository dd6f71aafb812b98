// SPDX-License-Identifier: GPL-2.0
//! What the ledger (`mmu/ledger.rs`) is told of AMD's entries, and the steps that a test leaves out. Nothing is left of it in the
//! ordinary module.
#![deny(unsafe_code)]

use super::asid::{Tlb, VcpuAsid};
use super::hw::Hw;
use super::vmcb::tlb;
use crate::mmu::step::{Flush, Step};
use crate::mmu::vm_ledger::skips;
use crate::sys::cpu::IrqOff;

/// What is left of the tag and the flush that an entry needs, where a test leaves a step out. `before`: the last entry's tag.
#[inline(always)]
pub(super) fn leave_out(before: VcpuAsid, now: VcpuAsid, flush: Tlb) -> (VcpuAsid, Tlb) {
    let other = if before.cpu == now.cpu {
        Step::FreshAsid
    } else {
        Step::MovedAsid
    };
    match flush {
        Tlb::FlushAsid if skips(Step::FlushAsid) => (now, Tlb::Keep),
        Tlb::FlushAll if skips(Step::Generation) => (now, Tlb::Keep),
        Tlb::Keep if before.asid != 0 && before != now && skips(other) => (before, Tlb::Keep),
        _ => (now, flush),
    }
}

impl Hw {
    /// An entry is about to be made as the control block says. False: it must not be.
    #[inline(always)]
    pub(super) fn check_entry(&mut self, irq: &IrqOff) -> bool {
        let (asid, control) = (self.vmcb().asid(), self.vmcb().tlb_control());
        let flush = match control {
            tlb::FLUSH_ALL => Flush::All,
            tlb::FLUSH_ASID => Flush::Tag,
            _ => Flush::None,
        };
        self.shared.tags.enter(irq, &mut self.ledger, asid, flush)
    }
}
