// SPDX-License-Identifier: GPL-2.0
//! A vCPU's hardware state: the VMCS as a register file, and what is stale in the TLB.
#![deny(unsafe_code)]

use super::backend::Exit;
use super::controls::{entry, primary, VpidFlush, CR3_EXITS};
use super::enterable::{enterable, Selected};
use super::exit::{activity, interruptibility, Basic, EptViolation, IntrInfo, Kind as IntrKind};
use super::fields::{self as f, SegmentFields};
use super::insn::{self, Run};
use super::shared::{Shared, Vpid};
use super::tlb::{Abilities, Stale};
use super::vmcs::Fields;
use crate::mmu::step::Step;
use crate::mmu::vm_ledger::{skips, Roots, VcpuLedger};
use crate::model::cr::dr6;
use crate::model::event::Exception;
use crate::model::regs::{rflags, Attr, Seg, Segment, Segments, RSP};
use crate::sys::cpu::IrqOff;
use crate::sys::page::Pages;
use crate::sys::switch::Switch;

/// A vCPU's hardware state.
pub(crate) struct Hw {
    pub(super) vmcs: Fields,
    pub(super) shared: &'static Shared,
    pub(super) run: Run,
    pub(super) msr_lists: Pages<0>,
    pub(super) vpid: Vpid,
    pub(super) eptp: u64,
    /// Translations in the TLB that are stale.
    pub(super) stale: Stale,
    pub(super) ledger: VcpuLedger,
    pub(super) roots: Roots,
    /// The control words that change, as the VMCS has them.
    pub(super) primary: u32,
    pub(super) entry: u32,
    /// The VM's exits that are left out.
    pub(super) off: u32,
    /// RSP, RIP and RFLAGS as the VMCS has them.
    pub(super) rsp: u64,
    pub(super) rip: u64,
    pub(super) rflags: u64,
    /// What the VMCS has as the interruptibility state.
    pub(super) interruptibility: u32,
    /// CR0.PE is set.
    pub(super) protected: bool,
    /// There is no unrestricted guest.
    pub(super) restricted: bool,
    /// Paging is off, so that CR3 in the VMCS is `identity`, and the guest's is `cr3`.
    pub(super) unpaged: bool,
    pub(super) cr3: u64,
    /// Where the page tables of a guest that has paging off are.
    pub(super) identity: u64,
    /// Entry takes the segment registers, with RFLAGS.VM as it says.
    pub(super) enterable: Option<bool>,
}

impl Hw {
    /// Sets or clears bits of the primary controls.
    pub(super) fn set_primary(&mut self, bits: u32, on: bool) {
        let word = if on {
            self.primary | bits
        } else {
            self.primary & !bits
        };
        if word != self.primary {
            self.primary = word;
            self.vmcs.write(f::PRIMARY_CONTROLS, word);
        }
    }

    /// Sets or clears bits of the entry controls.
    pub(super) fn set_entry(&mut self, bits: u32, on: bool) {
        let word = if on {
            self.entry | bits
        } else {
            self.entry & !bits
        };
        if word != self.entry {
            self.entry = word;
            self.vmcs.write(f::ENTRY_CONTROLS, word);
        }
    }

    /// Ends a halt. Where HLT does not exit, the activity state keeps it over exits and entries, until an event is delivered; and entry
    /// refuses to deliver most exceptions to a guest that is halted ("Checks on Guest Non-Register State").
    pub(super) fn wake(&mut self) {
        let halts = self.primary & primary::HLT == 0;
        if halts && self.vmcs.read(f::GUEST_ACTIVITY) == activity::HLT {
            self.vmcs.write(f::GUEST_ACTIVITY, activity::ACTIVE);
        }
    }

    /// A single step's trap is pending. Entry wants that with TF in an interrupt shadow ("Checks on Guest Non-Register State").
    pub(super) fn hold_step(&mut self) {
        let pending = self.vmcs.read(f::GUEST_PENDING_DEBUG);
        self.vmcs.write(f::GUEST_PENDING_DEBUG, pending | dr6::BS);
    }

    /// The same, if there is such a shadow.
    pub(super) fn hold_step_in_shadow(&mut self) {
        if self.interruptibility & (interruptibility::STI | interruptibility::MOV_SS) != 0 {
            self.hold_step();
        }
    }

    /// Drops what the TLB holds of the guest and should not. False: the guest must not be entered.
    pub(super) fn flush(&mut self, irq: &IrqOff) -> core::result::Result<bool, insn::Failure> {
        let c = &self.shared.controls;
        let can = Abilities {
            ept_single: c.invept_single,
            vpid_single: c.vpid == VpidFlush::Single,
        };
        let needed = self.stale.invalidate(can, self.vpid.number());
        let mut root = false;
        match needed.ept {
            Some(extent) if !skips(Step::Invept) => {
                insn::invept(extent, self.eptp)?;
                root = true;
            }
            _ => {}
        }
        match needed.vpid {
            Some(extent) if !skips(Step::Invvpid) => insn::invvpid(extent, self.vpid.number())?,
            _ => {}
        }
        self.stale.done();
        let (roots, epochs) = (&mut self.roots, &self.shared.epochs);
        Ok(roots.enter(irq, epochs, &mut self.ledger, root))
    }

    /// Writes RSP, RIP and RFLAGS where they changed.
    pub(super) fn load_registers(&mut self, switch: &Switch) {
        let regs = &switch.regs;
        let (rsp, rip) = (regs.get(RSP), regs.rip);
        // Entry checks the reserved bits; the flags of user space may have any.
        let flags = regs.rflags & 0x003f_7fd7 | rflags::FIXED;
        if rsp != self.rsp {
            self.vmcs.write(f::GUEST_RSP, rsp);
        }
        if rip != self.rip {
            self.vmcs.write(f::GUEST_RIP, rip);
        }
        if flags != self.rflags {
            self.vmcs.write(f::GUEST_RFLAGS, flags);
        }
    }

    /// Reads RSP, RIP, RFLAGS and the interruptibility state after an exit.
    pub(super) fn store_registers(&mut self, switch: &mut Switch) {
        self.rsp = self.vmcs.read(f::GUEST_RSP);
        self.rip = self.vmcs.read(f::GUEST_RIP);
        self.rflags = self.vmcs.read(f::GUEST_RFLAGS);
        self.interruptibility = self.vmcs.read(f::GUEST_INTERRUPTIBILITY);
        switch.regs.set(RSP, self.rsp);
        switch.regs.rip = self.rip;
        switch.regs.rflags = self.rflags;
    }

    /// The VM died of an access to the VMCS that failed.
    pub(super) fn broken(&self) -> bool {
        self.vmcs.broken()
    }

    /// Length of the instruction that exited, in bytes.
    pub(super) fn instruction_length(&mut self) -> u8 {
        self.vmcs.read(f::EXIT_INSTRUCTION_LENGTH) as u8
    }

    /// Changes the bits `mask` of the interruptibility state to `on`.
    #[inline]
    pub(super) fn set_interruptibility(&mut self, mask: u32, on: u32) {
        let new = self.interruptibility & !mask | on;
        if new != self.interruptibility {
            self.interruptibility = new;
            self.vmcs.write(f::GUEST_INTERRUPTIBILITY, new);
        }
    }

    /// NMIs are blocked until the next IRET, or are not.
    pub(super) fn block_nmis(&mut self, blocked: bool) {
        let on = if blocked { interruptibility::NMI } else { 0 };
        self.set_interruptibility(interruptibility::NMI, on);
    }

    /// The guest's CR3.
    pub(super) fn cr3(&mut self) -> u64 {
        if self.unpaged {
            self.cr3
        } else {
            self.vmcs.read(f::GUEST_CR3)
        }
    }

    /// Sets it.
    pub(super) fn set_cr3(&mut self, value: u64) {
        if self.unpaged {
            self.cr3 = value;
        } else {
            self.vmcs.write(f::GUEST_CR3, value);
        }
    }

    /// Runs the guest over our page tables from now on, or over its own.
    pub(super) fn set_unpaged(&mut self, on: bool) {
        if on != self.unpaged {
            let cr3 = self.cr3();
            self.unpaged = on;
            self.cr3 = cr3;
            let value = if on { self.identity } else { cr3 };
            self.vmcs.write(f::GUEST_CR3, value);
            self.set_primary(CR3_EXITS, on);
        }
    }

    /// Whether entry refuses the guest as it is, with these flags: in real mode always, in protected mode until its segment registers are
    /// loaded. What it has run with, it can be entered with again, but for virtual-8086 mode, which has rules of its own.
    #[inline(never)]
    pub(super) fn must_emulate(&mut self, flags: u64) -> bool {
        if !self.protected {
            return true;
        }
        let vm86 = flags & rflags::VM != 0;
        if self.enterable == Some(vm86) {
            return false;
        }
        let selected = Selected {
            segs: Segments::each(|seg| self.read_segment(segment_fields(seg))),
            tr: self.read_segment(&f::GUEST_TR),
            ldtr: self.read_segment(&f::GUEST_LDTR),
            vm86,
            long: self.entry & entry::IA32E != 0,
        };
        let good = enterable(&selected);
        self.enterable = good.then_some(vm86);
        !good
    }

    /// A segment register.
    pub(super) fn read_segment(&mut self, fields: &SegmentFields) -> Segment {
        Segment {
            base: self.vmcs.read(fields.base),
            limit: self.vmcs.read(fields.limit),
            selector: self.vmcs.read(fields.selector),
            attr: Attr::from_vmx(self.vmcs.read(fields.access)),
        }
    }

    /// Sets a segment register; `access` are its access rights if it is usable.
    pub(super) fn write_segment(&mut self, fields: &SegmentFields, value: Segment, access: u32) {
        const UNUSABLE: u32 = 1 << 16;
        self.enterable = None;
        let present = value.attr.p() && !value.attr.unusable();
        self.vmcs.write(fields.base, value.base);
        self.vmcs.write(fields.limit, value.limit);
        self.vmcs.write(fields.selector, value.selector);
        self.vmcs.write(
            fields.access,
            if present { access } else { access | UNUSABLE },
        );
    }

    /// Does the exit tell that IRET had unblocked NMIs and then faulted? Then they are blocked still.
    pub(super) fn iret_faulted(&mut self, exit: &Exit) -> bool {
        const DOUBLE_FAULT: u8 = 8;
        match exit.reason.basic() {
            Some(Basic::ExceptionOrNmi) => {
                exit.info.nmi_unblocked_by_iret()
                    && exit.info.exception().is_some_and(|v| v != DOUBLE_FAULT)
            }
            Some(Basic::EptViolation) => {
                let qualification = self.vmcs.read(f::EXIT_QUALIFICATION);
                EptViolation::decode(qualification).nmi_unblocked_by_iret
            }
            _ => false,
        }
    }

    /// The entry field for an exception; also writes what else it needs.
    pub(super) fn exception_info(&mut self, e: &Exception) -> IntrInfo {
        // Real mode pushes no error code, and entry refuses one.
        let error = e.error.filter(|_| self.protected);
        if let Some(error) = error {
            // Entry refuses bits 31:16.
            self.vmcs
                .write(f::ENTRY_EXCEPTION_ERROR_CODE, error & 0xffff);
        }
        let soft = e.insn_len != 0;
        if soft {
            self.vmcs
                .write(f::ENTRY_INSTRUCTION_LENGTH, e.insn_len.into());
        }
        let kind = if soft {
            IntrKind::SoftwareException
        } else {
            IntrKind::Exception
        };
        IntrInfo::new(kind, e.vector, error.is_some())
    }
}

/// The fields of a segment register.
pub(super) fn segment_fields(seg: Seg) -> &'static SegmentFields {
    match seg {
        Seg::Es => &f::GUEST_ES,
        Seg::Cs => &f::GUEST_CS,
        Seg::Ss => &f::GUEST_SS,
        Seg::Ds => &f::GUEST_DS,
        Seg::Fs => &f::GUEST_FS,
        Seg::Gs => &f::GUEST_GS,
    }
}
