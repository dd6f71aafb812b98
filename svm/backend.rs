// SPDX-License-Identifier: GPL-2.0
//! SVM behind the [`Backend`] trait: set-up, the VMCB as a register file, entering the guest.
#![deny(unsafe_code)]

use kernel::prelude::*;

use super::asid::{CpuAsids, Tlb, VcpuAsid};
use super::exit::code;
use super::hw::{Hw, Resident};
use super::insn::{self, HostSave, VmcbPage};
use super::shared::{Shared, SHARED};
use super::vmcb::{event, intercept, tlb, vintr, Vmcb, VmcbSeg};
use crate::hv::backend::{Backend, Flow, Inject, Shadow, SysSeg, Table};
use crate::hv::vcpu::Loaded;
use crate::mmu::npt::{Npt, NptConfig};
use crate::mmu::slots::FLAG_READONLY;
use crate::mmu::vm_mmu::MmuConfig;
use crate::mmu::Level;
use crate::model::cr::efer;
use crate::model::event::{vector as exception, Kind, Vectoring};
use crate::model::features::Caps;
use crate::model::msr::HwMsr;
use crate::model::regs::{rflags, Seg, Segment, TableReg, RAX, RSP};
use crate::sys::cpu::{self, Flag, IrqOff, PreemptOff, Word};
use crate::sys::global::clear_at_unload;
use crate::sys::switch::Switch;
use crate::sys::trace;
use crate::sys::virt::CpuVirt;

/// The AMD backend.
pub(crate) struct Svm;

impl CpuVirt for Svm {
    const INTEL: bool = false;

    fn online(preempt: &PreemptOff) -> Result {
        let shared = SHARED.get()?;
        shared
            .host_save
            .get(preempt.cpu() as usize)
            .ok_or(EIO)?
            .activate(preempt);
        shared.asids.update(preempt, CpuAsids::restarted);
        Ok(())
    }

    fn offline(preempt: &PreemptOff) {
        HostSave::deactivate(preempt);
    }
}

impl Backend for Svm {
    const VENDOR: &'static str = "AMD SVM";
    const PDPTRS_IN_CONTROL_BLOCK: bool = false;
    type Pte = Npt;
    type Hw = Hw;
    type Resident = Resident;
    type Exit = u64;

    fn setup() -> Result {
        SHARED.set(KBox::new(Shared::new()?, GFP_KERNEL)?);
        Ok(())
    }

    fn withheld(none: Caps) -> Caps {
        none
    }

    fn teardown() {
        clear_at_unload(&SHARED);
    }

    fn mmu_config() -> MmuConfig<NptConfig> {
        let phys_bits = (cpu::cpuid(0x8000_0008, 0)[0] & 0xff) as u8;
        let gib_pages = cpu::cpuid(0x8000_0001, 0)[3] >> 26 & 1 != 0;
        MmuConfig {
            format: NptConfig { encryption_mask: 0 },
            root_level: if cpu::five_level() {
                Level::L256T
            } else {
                Level::L512G
            },
            max_leaf: if gib_pages { Level::L1G } else { Level::L2M },
            phys_bits,
            slot_flags: FLAG_READONLY,
        }
    }

    fn new_vcpu() -> Result<(Hw, Resident)> {
        let shared = SHARED.get()?;
        let hw = Hw {
            vmcb: VmcbPage::new()?,
            features: shared.features,
            shared,
            asid: VcpuAsid::default(),
            stale: false,
            nmi_masked: false,
            iret_rip: None,
            stepping: false,
        };
        let resident = Resident {
            host_saved: Flag::new(false),
            tsc_aux: Word::new(),
            host_tsc_aux: Word::new(),
        };
        Ok((hw, resident))
    }

    fn init(hw: &mut Hw, _resident: &Resident, root: u64) -> Result {
        let (iopm, msrpm) = (hw.shared.iopm.phys(), hw.shared.msrpm.phys());
        hw.set_intercept(intercept::ALWAYS, true);
        let c = hw.control();
        // Writes of CR0, CR4 and CR8, which are checked; CR3 needs no exit.
        c.intercept_cr = 1 << 16 | 1 << 20 | 1 << 24;
        c.intercept_dr = u32::MAX;
        // #DB and #AC can be raised without end inside of the CPU, and #MC is the host's.
        c.intercept_exceptions = 1 << 1 | 1 << 17 | 1 << 18;
        c.iopm_base = iopm;
        c.msrpm_base = msrpm;
        c.vintr = vintr::MASKING;
        c.nested_ctl = 1;
        c.nested_cr3 = root;
        Ok(())
    }

    fn sched_in(resident: &Resident, preempt: &PreemptOff) {
        resident.host_saved.set(false);
        let guest = resident.tsc_aux.get();
        if SHARED.get().is_ok_and(|s| s.rdtscp) {
            let host = insn::tsc_aux(preempt);
            resident.host_tsc_aux.set(host);
            if host != guest {
                insn::set_tsc_aux(guest, preempt);
            }
        }
    }

    fn sched_out(resident: &Resident, preempt: &PreemptOff) {
        let host = resident.host_tsc_aux.get();
        if SHARED.get().is_ok_and(|s| s.rdtscp) && host != resident.tsc_aux.get() {
            insn::set_tsc_aux(host, preempt);
        }
    }

    fn enter(hw: &mut Hw, resident: &Resident, switch: &mut Switch, irq: &IrqOff) -> u64 {
        let shared = hw.shared;
        let preempt = irq.preempt();
        let Some(host_save) = shared.host_save.get(irq.cpu() as usize) else {
            return code::INVALID;
        };
        if !resident.host_saved.get() {
            host_save.save(preempt);
            insn::vcpu_barrier(preempt);
            resident.host_saved.set(true);
        } else if insn::ldt_in_use(irq) {
            host_save.save(preempt);
        }
        let Some(mut asids) = shared.asids.get(irq) else {
            return code::INVALID;
        };
        let before = hw.asid;
        let flush = asids.assign(&mut hw.asid, irq.cpu(), hw.stale, hw.features.flush_by_asid);
        if hw.asid != before {
            shared.asids.set(irq, asids);
        }
        hw.stale = false;

        let asid = hw.asid.asid;
        let c = hw.control();
        c.asid = asid;
        c.tlb_control = match flush {
            Tlb::Keep => tlb::KEEP,
            Tlb::FlushAsid => tlb::FLUSH_ASID,
            Tlb::FlushAll => tlb::FLUSH_ALL,
        };
        let (stepping, guest_tf) = (hw.stepping, switch.regs.rflags & rflags::TF);
        let s = hw.save();
        s.rax = switch.regs.get(RAX);
        s.rsp = switch.regs.get(RSP);
        s.rip = switch.regs.rip;
        s.rflags = switch.regs.rflags;
        s.cr2 = switch.cr2;
        if stepping {
            s.rflags |= rflags::TF;
        }
        if !hw.vmcb.run(switch, host_save, irq) {
            return code::INVALID;
        }
        let Vmcb { control, save } = hw.vmcb.get_mut();
        switch.regs.set(RAX, save.rax);
        switch.regs.set(RSP, save.rsp);
        switch.regs.rip = save.rip;
        switch.regs.rflags = save.rflags;
        if stepping {
            switch.regs.rflags = switch.regs.rflags & !rflags::TF | guest_tf;
        }
        switch.cr2 = save.cr2;
        control.event_inj = 0;
        let exit = control.exit_code;
        if exit == code::INVALID && flush != Tlb::Keep {
            // Nothing says that a control block is refused after the flush rather than before it.
            shared.asids.set(irq, asids.restarted());
        }
        if exit == code::EXCEPTION | u64::from(exception::MC) {
            insn::machine_check(irq);
        }
        exit
    }

    fn take_interrupt(_hw: &mut Hw, _irq: &IrqOff) {
        // It is pending still: the host takes it when it enables interrupts.
    }

    fn entry_info(hw: &mut Hw) -> (u32, u32) {
        let inject = hw.control().event_inj;
        (inject as u32, (inject >> 32) as u32)
    }

    fn exit_info(hw: &mut Hw, exit: &u64) -> trace::Exit {
        let c = hw.control();
        let info = c.exit_int_info;
        let error = info & event::VALID != 0 && info & event::ERROR != 0;
        trace::Exit {
            info1: c.exit_info1,
            info2: c.exit_info2,
            reason: *exit as u32,
            isa: trace::SVM,
            intr_info: info as u32,
            error_code: if error { (info >> 32) as u32 } else { 0 },
        }
    }

    fn handle(cx: &mut Loaded<'_, Self>, exit: u64) -> Result<Flow> {
        super::handle::handle(cx, exit)
    }

    fn vectoring(hw: &mut Hw, switch: &Switch, exit: &u64) -> Option<Vectoring> {
        if *exit != code::IRET {
            hw.finish_iret(switch.regs.rip);
        }
        let info = hw.control().exit_int_info;
        if matches!(*exit, code::INVALID | code::SHUTDOWN) || info & event::VALID == 0 {
            return None;
        }
        let vector = (info & event::VECTOR) as u8;
        let kind = Kind::from_code((info >> 8 & 7) as u8)?;
        match kind {
            Kind::Nmi => Self::set_nmi_masked(hw, false),
            // Raised by an instruction, which is executed again: RIP points to it.
            Kind::Software => return None,
            Kind::Hardware if vector == exception::BP || vector == exception::OF => return None,
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

    fn flush_tlb(hw: &mut Hw) {
        hw.stale = true;
    }

    fn segment(hw: &mut Hw, seg: Seg) -> Segment {
        let mut s = hw.save().seg_mut(seg).get();
        match seg {
            // The CPU keeps the granularity bit of CS only as far as the limit shows it.
            Seg::Cs => s.attr = s.attr.with_g(s.limit > 0xfffff),
            // SS carries the privilege level.
            Seg::Ss => s.attr = s.attr.with_dpl(hw.save().cpl),
            _ => {}
        }
        s
    }

    fn set_segment(hw: &mut Hw, seg: Seg, value: Segment) {
        let save = hw.save();
        *save.seg_mut(seg) = VmcbSeg::from(value);
        if seg == Seg::Ss {
            save.cpl = value.attr.dpl();
        }
    }

    fn sys_segment(hw: &mut Hw, seg: SysSeg) -> Segment {
        let save = hw.save();
        match seg {
            SysSeg::Tr => save.tr.get(),
            SysSeg::Ldtr => save.ldtr.get(),
        }
    }

    fn set_sys_segment(hw: &mut Hw, seg: SysSeg, value: Segment) {
        let save = hw.save();
        match seg {
            SysSeg::Tr => save.tr = VmcbSeg::from(value),
            SysSeg::Ldtr => save.ldtr = VmcbSeg::from(value),
        }
    }

    fn table(hw: &mut Hw, table: Table) -> TableReg {
        let save = hw.save();
        let t = match table {
            Table::Gdt => save.gdtr,
            Table::Idt => save.idtr,
        };
        TableReg {
            base: t.base,
            limit: t.limit as u16,
        }
    }

    fn set_table(hw: &mut Hw, table: Table, value: TableReg) {
        let save = hw.save();
        let t = VmcbSeg {
            base: value.base,
            limit: value.limit.into(),
            ..VmcbSeg::default()
        };
        match table {
            Table::Gdt => save.gdtr = t,
            Table::Idt => save.idtr = t,
        }
    }

    fn cpl(hw: &mut Hw) -> u8 {
        hw.save().cpl
    }

    fn cr3(hw: &mut Hw) -> u64 {
        hw.save().cr3
    }

    fn set_cr3(hw: &mut Hw, value: u64) {
        hw.save().cr3 = value;
    }

    fn set_cr8(hw: &mut Hw, value: u64) {
        let c = hw.control();
        c.vintr = c.vintr & !vintr::TPR | value & vintr::TPR;
    }

    fn set_modes(hw: &mut Hw, cr0: u64, cr4: u64, efer: u64) {
        use crate::model::cr::cr0::{CD, NW};
        let save = hw.save();
        // The guest's cache control must not slow down the host's memory, and a machine check must reach the host.
        save.cr0 = cr0 & !(CD | NW);
        save.cr4 = cr4 | insn::host_mce();
        save.efer = efer | efer::SVME;
        // Where that differs from what the guest wrote, reads exit: it is shown its own value.
        let differs = u32::from(save.cr0 != cr0) | u32::from(save.cr4 != cr4) << 4;
        let c = hw.control();
        c.intercept_cr = c.intercept_cr & !(1 | 1 << 4) | differs;
        // A new mode means new translations of linear addresses, which nested tags do not tell apart.
        hw.stale = true;
    }

    fn set_pdptrs(_hw: &mut Hw, _pdptrs: [u64; 4]) {}

    fn set_debug(hw: &mut Hw, dr6: u64, dr7: u64) {
        let save = hw.save();
        save.dr6 = dr6;
        save.dr7 = dr7;
    }

    fn dr6(hw: &mut Hw) -> Option<u64> {
        Some(hw.save().dr6)
    }

    fn hw_msr(hw: &mut Hw, resident: &Resident, msr: HwMsr) -> u64 {
        let save = hw.save();
        match msr {
            HwMsr::Star => save.star,
            HwMsr::Lstar => save.lstar,
            HwMsr::Cstar => save.cstar,
            HwMsr::Fmask => save.sfmask,
            HwMsr::KernelGsBase => save.kernel_gs_base,
            HwMsr::FsBase => save.seg_mut(Seg::Fs).base,
            HwMsr::GsBase => save.seg_mut(Seg::Gs).base,
            HwMsr::SysenterCs => save.sysenter_cs,
            HwMsr::SysenterEsp => save.sysenter_esp,
            HwMsr::SysenterEip => save.sysenter_eip,
            HwMsr::Pat => save.g_pat,
            HwMsr::TscAux => resident.tsc_aux.get(),
            // Kept by the callers.
            HwMsr::Efer | HwMsr::Tsc => 0,
        }
    }

    fn set_hw_msr(hw: &mut Hw, resident: &Resident, msr: HwMsr, value: u64) {
        let save = hw.save();
        match msr {
            HwMsr::Star => save.star = value,
            HwMsr::Lstar => save.lstar = value,
            HwMsr::Cstar => save.cstar = value,
            HwMsr::Fmask => save.sfmask = value,
            HwMsr::KernelGsBase => save.kernel_gs_base = value,
            HwMsr::FsBase => save.seg_mut(Seg::Fs).base = value,
            HwMsr::GsBase => save.seg_mut(Seg::Gs).base = value,
            HwMsr::SysenterCs => save.sysenter_cs = value,
            HwMsr::SysenterEsp => save.sysenter_esp = value,
            HwMsr::SysenterEip => save.sysenter_eip = value,
            HwMsr::Pat => save.g_pat = value,
            HwMsr::Efer | HwMsr::Tsc => {}
            HwMsr::TscAux => {
                let preempt = PreemptOff::new();
                let old = resident.tsc_aux.get();
                resident.tsc_aux.set(value);
                if value != old && hw.shared.rdtscp {
                    insn::set_tsc_aux(value, &preempt);
                }
            }
        }
    }

    fn set_tsc_offset(hw: &mut Hw, offset: u64) {
        hw.control().tsc_offset = offset;
    }

    fn shadow(hw: &mut Hw) -> Shadow {
        let on = hw.control().int_state & 1 != 0;
        Shadow {
            sti: on,
            mov_ss: on,
        }
    }

    fn set_shadow(hw: &mut Hw, shadow: Shadow) {
        let c = hw.control();
        c.int_state = c.int_state & !1 | u64::from(shadow.sti || shadow.mov_ss);
    }

    fn inject(hw: &mut Hw, what: Inject) {
        let v = match what {
            Inject::Exception(e) => {
                let error = e.error.map_or(0, |e| event::ERROR | u64::from(e) << 32);
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
                Self::set_nmi_masked(hw, true);
                event::NMI | 2
            }
        };
        hw.control().event_inj = event::VALID | v;
    }

    fn cancel_injection(hw: &mut Hw) {
        let c = hw.control();
        let nmi = c.event_inj & (event::VALID | event::TYPE) == event::VALID | event::NMI;
        c.event_inj = 0;
        if nmi {
            Self::set_nmi_masked(hw, false);
        }
    }

    fn nmi_masked(hw: &mut Hw) -> bool {
        hw.nmi_masked
    }

    fn set_nmi_masked(hw: &mut Hw, masked: bool) {
        hw.nmi_masked = masked;
        hw.iret_rip = None;
        hw.set_intercept(intercept::IRET, masked);
    }

    fn set_irq_window(hw: &mut Hw, on: bool) {
        hw.set_intercept(intercept::VINTR, on);
        let c = hw.control();
        if on {
            // A virtual interrupt that is never delivered: it exits when it could be.
            c.vintr |= vintr::IRQ | vintr::IGNORE_TPR;
        } else {
            c.vintr &= !(vintr::IRQ | vintr::IGNORE_TPR);
        }
    }

    fn set_nmi_window(hw: &mut Hw, on: bool) {
        // While blocked by an NMI, the intercept of IRET tells. Between it and the end of the IRET, and in an
        // interrupt shadow, one single step does.
        let step = on && (hw.iret_rip.is_some() || !hw.nmi_masked);
        hw.stepping = step;
    }
}
