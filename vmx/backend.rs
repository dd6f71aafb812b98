// SPDX-License-Identifier: GPL-2.0
//! VMX behind the [`Backend`] trait: context switches, entering the guest, registers.
#![deny(unsafe_code)]

use kernel::prelude::*;

use super::controls::{entry, negotiate, primary, secondary, VpidFlush};
use super::exit::{interruptibility, ExitReason, IntrInfo, Kind as IntrKind};
use super::fields as f;
use super::hw::{segment_fields, Hw};
use super::insn::{self, Run};
use super::modes;
use super::resident::Resident;
use super::setup::{self, GuestMsr, Init};
use super::shared::{options, read_caps, refused, Shared, Vpid, SHARED};
use super::tlb::{Extent, Stale};
use super::vmcs::{Fields, Vmcs};
use crate::hv::backend::{Backend, Flow, Inject, Shadow, SysSeg, Table};
use crate::hv::exits;
use crate::hv::guest_mem::MAX_INSN;
use crate::hv::vcpu::Loaded;
use crate::mmu::ept::{Ept, EptConfig};
use crate::mmu::slots::{FLAG_LOG_DIRTY, FLAG_READONLY};
use crate::mmu::step::Step;
use crate::mmu::vm_ledger::{skips, Roots, VcpuLedger};
use crate::mmu::vm_mmu::MmuConfig;
use crate::mmu::Level;
use crate::model::cr::cr0;
use crate::model::event::{vector, Kind, Vectoring};
use crate::model::features::{self, Caps};
use crate::model::msr::{HwMsr, Passed};
use crate::model::regs::{rflags, Attr, Seg, Segment, TableReg};
use crate::sys::cpu::{self, IrqOff, PreemptOff};
use crate::sys::page::Pages;
use crate::sys::params::InUse;
use crate::sys::switch::Switch;
use crate::sys::trace;
use crate::sys::virt::CpuVirt;

/// The Intel backend.
pub(crate) struct Vmx;

/// An exit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// No exit came: the entry failed with this VM-instruction error, 0 where it has none.
    pub(super) failed: Option<u32>,
    pub(super) reason: ExitReason,
    pub(super) info: IntrInfo,
    pub(super) vectoring: IntrInfo,
}

/// The fields of the PDPTEs.
const PDPTES: [f::Field<u64>; 4] = [
    f::GUEST_PDPTE0,
    f::GUEST_PDPTE1,
    f::GUEST_PDPTE2,
    f::GUEST_PDPTE3,
];

impl CpuVirt for Vmx {
    const INTEL: bool = true;

    fn online(preempt: &PreemptOff) -> Result {
        let shared = SHARED.get()?;
        let controls = negotiate(&read_caps()?, &options()).map_err(refused)?;
        if controls != shared.controls {
            pr_err!(
                "CPU {} has other VMX capabilities than the first\n",
                preempt.cpu()
            );
            return Err(EIO);
        }
        shared.epochs.forget(preempt);
        // What an earlier user of VMX left behind.
        if skips(Step::Online) {
            return Ok(());
        }
        let _ = insn::invept(Extent::All, 0);
        if shared.controls.vpid != VpidFlush::None {
            let _ = insn::invvpid(Extent::All, 0);
        }
        Ok(())
    }

    fn offline(preempt: &PreemptOff) {
        Vmcs::clear_all(preempt);
    }
}

impl Backend for Vmx {
    const VENDOR: &'static str = "Intel VMX";
    const HYPERCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
    const PDPTRS_IN_CONTROL_BLOCK: bool = true;
    type Pte = Ept;
    type Hw = Hw;
    type Resident = Resident;
    type Exit = Exit;

    fn setup() -> Result {
        SHARED.set(KBox::new(Shared::new()?, GFP_KERNEL)?);
        Ok(())
    }

    fn withheld(mut none: Caps) -> Caps {
        // What a guest can do only with a control that this CPU lacks.
        let has = SHARED.get().map_or(0, |s| s.controls.secondary);
        if has & secondary::RDTSCP == 0 {
            none.set(features::RDTSCP, true);
        }
        if has & secondary::INVPCID == 0 {
            none.set(features::INVPCID, true);
        }
        none
    }

    fn in_use() -> InUse {
        SHARED.get().map_or(InUse::default(), |s| InUse {
            second_stage: s.controls.secondary & secondary::EPT != 0,
            access_dirty: s.controls.ept_ad,
            vpid: s.controls.vpid != VpidFlush::None,
            unrestricted_guest: s.controls.secondary & secondary::UNRESTRICTED_GUEST != 0,
            ..InUse::default()
        })
    }

    fn teardown() {
        crate::sys::global::clear_at_unload(&SHARED);
    }

    fn mmu_config() -> MmuConfig<EptConfig> {
        let shared = SHARED.get();
        let (ad, large, huge) = shared.map_or((false, false, false), |s| {
            (s.controls.ept_ad, s.controls.ept_2m, s.controls.ept_1g)
        });
        let bits = (cpu::cpuid(0x8000_0008, 0)[0] & 0xff) as u8;
        MmuConfig {
            format: EptConfig { accessed_dirty: ad },
            root_level: Level::L512G,
            max_leaf: match (large, huge) {
                (true, true) => Level::L1G,
                (true, false) => Level::L2M,
                _ => Level::L4K,
            },
            // Four levels reach 48 bits.
            phys_bits: bits.min(48),
            slot_flags: FLAG_READONLY | FLAG_LOG_DIRTY,
        }
    }

    fn new_vcpu() -> Result<(Hw, Resident)> {
        let shared = SHARED.get()?;
        let msr_lists = Pages::new()?;
        let hw = Hw {
            vmcs: Fields::default(),
            shared,
            run: Run::new(msr_lists.as_ptr()),
            msr_lists,
            vpid: Vpid::take(shared),
            eptp: 0,
            stale: Stale::new(),
            ledger: VcpuLedger::new(),
            roots: Roots::new()?,
            primary: shared.controls.primary,
            entry: shared.controls.entry,
            off: 0,
            rsp: 0,
            rip: 0,
            rflags: 0,
            interruptibility: 0,
            protected: false,
            restricted: shared.controls.restricted(),
            unpaged: false,
            cr3: 0,
            identity: 0,
            enterable: None,
        };
        let resident = Resident::new(Vmcs::new(shared.controls.revision)?);
        Ok((hw, resident))
    }

    fn init(hw: &mut Hw, resident: &Resident, root: u64, off: u32) -> Result {
        hw.eptp = hw.shared.controls.eptp(root, 4);
        hw.off = off;
        let init = Init {
            controls: &hw.shared.controls,
            msr_bitmap: hw.shared.msr_bitmap(off, Passed::default())?,
            msr_lists: &hw.msr_lists,
            eptp: hw.eptp,
            vpid: hw.vpid.number(),
        };
        setup::init(&mut hw.vmcs, &init);
        hw.set_primary(primary::HLT, off & exits::HLT == 0);
        hw.set_primary(primary::MONITOR | primary::MWAIT, off & exits::MWAIT == 0);
        hw.vmcs.write(f::GUEST_RSP, 0);
        hw.vmcs.write(f::GUEST_RIP, 0);
        hw.vmcs.write(f::GUEST_RFLAGS, rflags::FIXED);
        hw.rflags = rflags::FIXED;
        if hw.broken() || resident.broken() {
            return Err(EIO);
        }
        Ok(())
    }

    fn needs_identity_map() -> bool {
        SHARED.get().is_ok_and(|s| s.controls.restricted())
    }

    fn set_identity_map(hw: &mut Hw, gpa: u64) {
        hw.identity = gpa;
    }

    #[inline]
    fn emulates(hw: &mut Hw, switch: &Switch) -> bool {
        hw.restricted && hw.must_emulate(switch.regs.rflags)
    }

    fn sched_in(resident: &Resident, preempt: &PreemptOff) {
        resident.sched_in(preempt);
    }

    fn sched_out(resident: &Resident, preempt: &PreemptOff) {
        let Ok(shared) = SHARED.get() else { return };
        resident.sched_out(shared, preempt);
    }

    fn enter(hw: &mut Hw, resident: &Resident, switch: &mut Switch, irq: &IrqOff) -> Exit {
        let mut exit = Exit {
            failed: Some(0),
            reason: ExitReason(0),
            info: IntrInfo::NONE,
            vectoring: IntrInfo::NONE,
        };
        hw.run.forget();
        if resident.prepare(hw.shared, irq) && !skips(Step::Moved) {
            hw.stale.second_stage();
        }
        if resident.broken() {
            hw.vmcs.give_up();
        }
        hw.load_registers(switch);
        if hw.flush(irq) != Ok(true) {
            return exit;
        }
        if hw.broken() {
            return exit;
        }
        let entered = resident.vmcs.enter(&mut hw.run, switch, irq);
        hw.store_registers(switch);
        if entered.is_err() || hw.run.failed != 0 {
            exit.failed = Some(hw.run.error);
            return exit;
        }
        exit.failed = None;
        exit.reason = ExitReason(hw.run.reason);
        exit.info = IntrInfo(hw.run.intr_info);
        exit.vectoring = IntrInfo(hw.run.vectoring);
        exit
    }

    fn take_interrupt(hw: &mut Hw, irq: &IrqOff) {
        hw.run.take_interrupt(irq);
    }

    fn entry_info(hw: &mut Hw) -> (u32, u32) {
        let info = hw.vmcs.read(f::ENTRY_INTR_INFO);
        let error = if IntrInfo(info).has_error_code() {
            hw.vmcs.read(f::ENTRY_EXCEPTION_ERROR_CODE)
        } else {
            0
        };
        (info, error)
    }

    fn exit_info(hw: &mut Hw, exit: &Exit) -> trace::Exit {
        let error = if exit.info.valid() && exit.info.has_error_code() {
            hw.vmcs.read(f::EXIT_INTR_ERROR_CODE)
        } else {
            0
        };
        trace::Exit {
            info1: hw.vmcs.read(f::EXIT_QUALIFICATION),
            info2: exit.vectoring.0.into(),
            reason: exit.reason.0,
            isa: trace::VMX,
            intr_info: exit.info.0,
            error_code: error,
        }
    }

    fn handle(cx: &mut Loaded<'_, Self>, exit: Exit) -> Result<Flow> {
        super::handle::handle(cx, exit)
    }

    #[inline]
    fn entered(exit: &Exit) -> bool {
        exit.failed.is_none() && !exit.reason.entry_failed()
    }

    fn vectoring(hw: &mut Hw, _switch: &mut Switch, exit: &Exit) -> Option<Vectoring> {
        let info = exit.vectoring;
        if !info.valid() {
            if hw.iret_faulted(exit) {
                hw.block_nmis(true);
            }
            return None;
        }
        let kind = Kind::from_code((info.0 >> 8 & 7) as u8)?;
        if kind == Kind::Nmi {
            hw.block_nmis(false);
        }
        let soft = info.kind().is_some_and(IntrKind::needs_length);
        let error = info
            .has_error_code()
            .then(|| hw.vmcs.read(f::IDT_VECTORING_ERROR_CODE));
        let insn_len = if soft { hw.instruction_length() } else { 0 };
        Some(Vectoring {
            kind,
            vector: info.vector(),
            error,
            insn_len,
        })
    }

    fn fetched_insn(_hw: &mut Hw) -> Option<([u8; MAX_INSN], usize)> {
        None
    }

    fn flush_tlb(hw: &mut Hw) {
        hw.stale.second_stage();
    }

    fn ledger(hw: &mut Hw) -> &mut VcpuLedger {
        &mut hw.ledger
    }

    fn segment(hw: &mut Hw, seg: Seg) -> Segment {
        hw.read_segment(segment_fields(seg))
    }

    fn set_segment(hw: &mut Hw, seg: Seg, value: Segment) {
        // A usable segment was accessed; what user space restores may not say so.
        hw.write_segment(segment_fields(seg), value, value.attr.to_vmx() | 1);
    }

    fn sys_segment(hw: &mut Hw, seg: SysSeg) -> Segment {
        match seg {
            SysSeg::Tr => hw.read_segment(&f::GUEST_TR),
            SysSeg::Ldtr => hw.read_segment(&f::GUEST_LDTR),
        }
    }

    fn set_sys_segment(hw: &mut Hw, seg: SysSeg, value: Segment) {
        match seg {
            // A task register that is loaded holds a busy task state; entry wants it usable.
            SysSeg::Tr => {
                const PRESENT: u16 = 1 << 7;
                let attr = Attr(value.attr.with_unusable(false).0 | PRESENT);
                let access = attr.to_vmx() | 1 | 1 << 1;
                hw.write_segment(&f::GUEST_TR, Segment { attr, ..value }, access);
            }
            SysSeg::Ldtr => hw.write_segment(&f::GUEST_LDTR, value, value.attr.to_vmx()),
        }
    }

    fn table(hw: &mut Hw, table: Table) -> TableReg {
        let (base, limit) = match table {
            Table::Gdt => (f::GUEST_GDTR_BASE, f::GUEST_GDTR_LIMIT),
            Table::Idt => (f::GUEST_IDTR_BASE, f::GUEST_IDTR_LIMIT),
        };
        TableReg {
            base: hw.vmcs.read(base),
            limit: hw.vmcs.read(limit) as u16,
        }
    }

    fn set_table(hw: &mut Hw, table: Table, value: TableReg) {
        let (base, limit) = match table {
            Table::Gdt => (f::GUEST_GDTR_BASE, f::GUEST_GDTR_LIMIT),
            Table::Idt => (f::GUEST_IDTR_BASE, f::GUEST_IDTR_LIMIT),
        };
        hw.vmcs.write(base, value.base);
        hw.vmcs.write(limit, value.limit.into());
    }

    fn cs_l(hw: &mut Hw) -> bool {
        Attr::from_vmx(hw.vmcs.read(f::GUEST_CS_ACCESS)).l()
    }

    fn cpl(hw: &mut Hw) -> u8 {
        Attr::from_vmx(hw.vmcs.read(f::GUEST_SS_ACCESS)).dpl()
    }

    fn cr3(hw: &mut Hw) -> u64 {
        hw.cr3()
    }

    fn set_cr3(hw: &mut Hw, value: u64) {
        hw.set_cr3(value);
        hw.stale.linear();
    }

    fn set_cr8(_hw: &mut Hw, _value: u64) {
        // Each access exits and is answered with what the common code keeps.
    }

    fn set_modes(hw: &mut Hw, cr0: u64, cr4: u64, efer: u64) {
        let c = &hw.shared.controls;
        let m = modes::modes(c, cr0, cr4, efer, setup::host_mce());
        hw.set_unpaged(m.identity);
        hw.vmcs.write(f::GUEST_CR0, m.cr0);
        hw.vmcs.write(f::CR0_READ_SHADOW, cr0);
        hw.vmcs.write(f::GUEST_CR4, m.cr4);
        hw.vmcs.write(f::CR4_READ_SHADOW, cr4);
        hw.vmcs.write(f::GUEST_EFER, m.efer);
        hw.set_entry(entry::IA32E, m.long);
        if m.long {
            // Entry wants a 64-bit busy task state; a guest may enter long mode with a 16-bit one.
            let access = hw.vmcs.read(f::GUEST_TR_ACCESS);
            if access & 15 != 11 {
                hw.vmcs.write(f::GUEST_TR_ACCESS, access & !15 | 11);
            }
        }
        hw.protected = cr0 & cr0::PE != 0;
        hw.enterable = None;
        hw.stale.linear();
    }

    fn set_pdptrs(hw: &mut Hw, pdptrs: [u64; 4]) {
        for (field, value) in PDPTES.into_iter().zip(pdptrs) {
            hw.vmcs.write(field, value);
        }
    }

    fn pdptrs(hw: &mut Hw) -> [u64; 4] {
        PDPTES.map(|field| hw.vmcs.read(field))
    }

    fn set_debug(hw: &mut Hw, _resident: &Resident, _dr6: u64, dr7: u64) {
        // DR6 is in no field. It is never the processor's: #DB and MOV DR exit, and both say what it becomes.
        hw.vmcs.write(f::GUEST_DR7, dr7);
    }

    fn set_breakpoint_exits(hw: &mut Hw, on: bool) {
        let bp = if on { 1 << 3 } else { 0 };
        hw.vmcs.write(f::EXCEPTION_BITMAP, setup::EXCEPTIONS | bp);
    }

    fn hw_msr(hw: &mut Hw, resident: &Resident, msr: HwMsr) -> u64 {
        match msr {
            HwMsr::Star => resident.msr(GuestMsr::Star),
            HwMsr::Lstar => resident.msr(GuestMsr::Lstar),
            HwMsr::Cstar => resident.msr(GuestMsr::Cstar),
            HwMsr::Fmask => resident.msr(GuestMsr::Fmask),
            HwMsr::KernelGsBase => resident.msr(GuestMsr::KernelGsBase),
            HwMsr::TscAux => resident.msr(GuestMsr::TscAux),
            HwMsr::FsBase => hw.vmcs.read(f::GUEST_FS_BASE),
            HwMsr::GsBase => hw.vmcs.read(f::GUEST_GS_BASE),
            HwMsr::SysenterCs => hw.vmcs.read(f::GUEST_SYSENTER_CS).into(),
            HwMsr::SysenterEsp => hw.vmcs.read(f::GUEST_SYSENTER_ESP),
            HwMsr::SysenterEip => hw.vmcs.read(f::GUEST_SYSENTER_EIP),
            HwMsr::Pat => hw.vmcs.read(f::GUEST_PAT),
            // Not the hardware's here.
            HwMsr::Efer | HwMsr::Tsc | HwMsr::SpecCtrl => 0,
        }
    }

    fn set_hw_msr(hw: &mut Hw, resident: &Resident, msr: HwMsr, value: u64) {
        let set = |msr| resident.set_msr(msr, value, hw.shared);
        match msr {
            HwMsr::Star => set(GuestMsr::Star),
            HwMsr::Lstar => set(GuestMsr::Lstar),
            HwMsr::Cstar => set(GuestMsr::Cstar),
            HwMsr::Fmask => set(GuestMsr::Fmask),
            HwMsr::KernelGsBase => set(GuestMsr::KernelGsBase),
            HwMsr::TscAux => set(GuestMsr::TscAux),
            HwMsr::FsBase => hw.vmcs.write(f::GUEST_FS_BASE, value),
            HwMsr::GsBase => hw.vmcs.write(f::GUEST_GS_BASE, value),
            HwMsr::SysenterCs => hw.vmcs.write(f::GUEST_SYSENTER_CS, value as u32),
            HwMsr::SysenterEsp => hw.vmcs.write(f::GUEST_SYSENTER_ESP, value),
            HwMsr::SysenterEip => hw.vmcs.write(f::GUEST_SYSENTER_EIP, value),
            HwMsr::Pat => hw.vmcs.write(f::GUEST_PAT, value),
            HwMsr::Efer | HwMsr::Tsc | HwMsr::SpecCtrl => {}
        }
    }

    fn set_instructions(hw: &mut Hw, rdtscp: bool, invpcid: bool) {
        let c = &hw.shared.controls;
        let word = c.secondary_of(hw.vpid.number(), rdtscp, invpcid);
        hw.vmcs.write(f::SECONDARY_CONTROLS, word);
    }

    fn set_msr_exits(hw: &mut Hw, all: bool) {
        hw.set_primary(primary::MSR_BITMAPS, !all);
    }

    fn pass_msrs(hw: &mut Hw, passed: Passed) {
        if let Ok(map) = hw.shared.msr_bitmap(hw.off, passed) {
            setup::use_msr_bitmap(&mut hw.vmcs, map);
        }
    }

    fn set_tsc_offset(hw: &mut Hw, offset: u64) {
        hw.vmcs.write(f::TSC_OFFSET, offset);
    }

    fn tsc_scale_places() -> Option<u8> {
        let has = SHARED.get().map_or(0, |s| s.controls.secondary);
        (has & secondary::TSC_SCALING != 0).then_some(48)
    }

    fn set_tsc_ratio(hw: &mut Hw, ratio: u64) {
        if Self::tsc_scale_places().is_some() {
            let ratio = if ratio == 0 { 1 << 48 } else { ratio };
            hw.vmcs.write(f::TSC_MULTIPLIER, ratio);
        }
    }

    fn shadow(hw: &mut Hw) -> Shadow {
        let state = hw.interruptibility;
        Shadow {
            sti: state & interruptibility::STI != 0,
            mov_ss: state & interruptibility::MOV_SS != 0,
        }
    }

    fn set_shadow(hw: &mut Hw, shadow: Shadow) {
        // Entry refuses both at once; the stricter one holds.
        let (sti, mov_ss) = (interruptibility::STI, interruptibility::MOV_SS);
        let on = match shadow {
            Shadow { mov_ss: true, .. } => mov_ss,
            Shadow { sti: true, .. } => sti,
            _ => 0,
        };
        hw.set_interruptibility(sti | mov_ss, on);
    }

    fn hold_step(hw: &mut Hw) {
        hw.hold_step();
    }

    fn wake(hw: &mut Hw) {
        hw.wake();
    }

    fn inject(hw: &mut Hw, switch: &mut Switch, what: Inject) {
        hw.wake();
        let info = match what {
            Inject::Exception(e) => {
                // Whatever the #DB tells of: the check looks at TF and the shadow only.
                if e.vector == vector::DB && switch.regs.rflags & rflags::TF != 0 {
                    hw.hold_step_in_shadow();
                }
                hw.exception_info(&e)
            }
            Inject::Interrupt(i) if i.soft => {
                hw.vmcs
                    .write(f::ENTRY_INSTRUCTION_LENGTH, i.insn_len.into());
                IntrInfo::new(IntrKind::SoftwareInterrupt, i.vector, false)
            }
            Inject::Interrupt(i) => IntrInfo::new(IntrKind::External, i.vector, false),
            Inject::Nmi => IntrInfo::new(IntrKind::Nmi, 2, false),
        };
        hw.vmcs.write(f::ENTRY_INTR_INFO, info.0);
    }

    fn cancel_injection(hw: &mut Hw, _switch: &mut Switch) {
        hw.vmcs.write(f::ENTRY_INTR_INFO, 0);
    }

    fn nmi_masked(hw: &mut Hw) -> bool {
        hw.interruptibility & interruptibility::NMI != 0
    }

    fn set_nmi_masked(hw: &mut Hw, masked: bool) {
        hw.block_nmis(masked);
    }

    fn set_irq_window(hw: &mut Hw, on: bool) {
        hw.set_primary(primary::INTERRUPT_WINDOW, on);
    }

    fn set_nmi_window(hw: &mut Hw, on: bool) {
        // In the shadow of STI a CPU may exit for it before the guest executes anything, again and again ("Other Causes of VM Exits").
        let sti = hw.interruptibility & interruptibility::STI != 0;
        hw.set_primary(primary::NMI_WINDOW, on && !sti);
        if on && sti {
            hw.set_primary(primary::INTERRUPT_WINDOW, true);
        }
    }
}
