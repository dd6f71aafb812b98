// SPDX-License-Identifier: GPL-2.0
//! SVM behind the [`Backend`] trait: set-up, the VMCB as a register file, entering the guest.
#![deny(unsafe_code)]

use kernel::prelude::*;

use super::asid::{CpuAsids, Tlb};
use super::exit::code;
use super::hw::{Hw, Injecting, Resident};
use super::insn::{self, HostSave};
use super::ledger;
use super::shared::{Shared, SHARED};
use super::vmcb::{event, intercept, vintr, VmcbSeg};
use crate::hv::backend::{Backend, Flow, Inject, Shadow, SysSeg, Table};
use crate::hv::exits;
use crate::hv::guest_mem::MAX_INSN;
use crate::hv::vcpu::{Loaded, VcpuState};
use crate::mmu::npt::{Npt, NptConfig};
use crate::mmu::slots::{FLAG_LOG_DIRTY, FLAG_READONLY};
use crate::mmu::step::Step;
use crate::mmu::vm_ledger::{skips, VcpuLedger};
use crate::mmu::vm_mmu::MmuConfig;
use crate::mmu::Level;
use crate::model::cr::{dr6, efer};
use crate::model::event::{vector as exception, Vectoring};
use crate::model::features::Caps;
use crate::model::msr::{HwMsr, Passed};
use crate::model::regs::{Seg, Segment, TableReg, RAX, RSP};
use crate::sys::cpu::{self, IrqOff, PreemptOff};
use crate::sys::global::clear_at_unload;
use crate::sys::params::InUse;
use crate::sys::switch::Switch;
use crate::sys::trace;
use crate::sys::virt::CpuVirt;

/// The AMD backend.
pub(crate) struct Svm;

// kmalloc's next size is twice that. (VMX's is above it either way.)
#[cfg(not(lodge_ledger))]
const _: () = assert!(size_of::<VcpuState<Svm>>() <= 1024);

impl CpuVirt for Svm {
    const INTEL: bool = false;

    fn online(preempt: &PreemptOff) -> Result {
        let shared = SHARED.get()?;
        shared
            .host_save
            .get(preempt.cpu() as usize)
            .ok_or(EIO)?
            .activate(preempt);
        shared.tags.forget(preempt);
        if !skips(Step::Restarted) {
            shared.asids.update(preempt, CpuAsids::restarted);
        }
        Ok(())
    }

    fn offline(preempt: &PreemptOff) {
        HostSave::deactivate(preempt);
    }
}

impl Backend for Svm {
    const VENDOR: &'static str = "AMD SVM";
    const HYPERCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
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

    fn in_use() -> InUse {
        SHARED.get().map_or(InUse::default(), |s| InUse {
            second_stage: s.features.npt,
            nrips: s.features.nrip_save,
            ..InUse::default()
        })
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
            slot_flags: FLAG_READONLY | FLAG_LOG_DIRTY,
        }
    }

    fn new_vcpu() -> Result<(Hw, Resident)> {
        let shared = SHARED.get()?;
        Ok((Hw::new(shared)?, Resident::new()))
    }

    fn init(hw: &mut Hw, _resident: &Resident, root: u64, off: u32) -> Result {
        let shared = hw.shared;
        hw.off = off;
        hw.msrpm = shared.msr_map(off, Passed::default())?;
        let (iopm, msrpm) = (shared.iopm.phys(), hw.msrpm.phys());
        hw.set_intercept(intercept::ALWAYS, true);
        hw.set_intercept(intercept::HLT, off & exits::HLT == 0);
        let mwait = intercept::MONITOR | intercept::MWAIT;
        hw.set_intercept(mwait, off & exits::MWAIT == 0);
        let v = hw.vmcb();
        // Writes of CR0, CR4 and CR8, which are checked; CR3 needs no exit.
        v.set_intercept_cr(1 << 16 | 1 << 20 | 1 << 24);
        v.set_intercept_dr(u32::MAX);
        // #DB and #AC can be raised without end inside of the CPU, and #MC is the host's; #UD may be for the emulator.
        v.set_intercept_exceptions(1 << 1 | 1 << 6 | 1 << 17 | 1 << 18);
        v.set_iopm_base(iopm);
        v.set_msrpm_base(msrpm);
        v.set_vintr(vintr::MASKING);
        v.set_nested_ctl(1);
        v.set_nested_cr3(root);
        Ok(())
    }

    /// The first entry does what is to be done: most calls enter no guest.
    fn sched_in(_resident: &Resident, _preempt: &PreemptOff) {}

    fn sched_out(resident: &Resident, preempt: &PreemptOff) {
        if !resident.host_saved.get() {
            return;
        }
        resident.host_saved.set(false);
        if resident.uses_dr6.get() {
            insn::reset_dr6(preempt);
        }
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
            resident.number.barrier(preempt);
            if shared.rdtscp {
                resident.load_tsc_aux(preempt);
            }
            resident.host_saved.set(true);
        }
        let Some(mut asids) = shared.asids.get(irq) else {
            return code::INVALID;
        };
        let before = hw.asid;
        let flush = asids.assign(&mut hw.asid, irq.cpu(), hw.stale, hw.features.flush_by_asid);
        let (now, flush) = ledger::leave_out(before, hw.asid, flush);
        hw.asid = now;
        if hw.asid != before {
            shared.asids.set(irq, asids);
        }
        hw.stale = false;

        let tag = hw.asid;
        let v = hw.vmcb();
        v.set_tag(before, tag, flush);
        v.set_rax(switch.regs.get(RAX));
        v.set_rsp(switch.regs.get(RSP));
        v.set_rip(switch.regs.rip);
        v.set_rflags(switch.regs.rflags);
        v.set_cr2(switch.cr2);
        if !hw.check_entry(irq) {
            return code::INVALID;
        }
        let step = hw.begin_step();
        if !hw.vmcb.run(switch, host_save, irq) {
            hw.vmcb().forget();
            hw.end_step(step, &mut switch.regs);
            return code::INVALID;
        }
        let cached = hw.features.clean_bits;
        let v = hw.vmcb();
        let exit = v.exit_code();
        // Nothing says what of a control block that is refused the CPU keeps, nor what it writes to it.
        let entered = Self::entered(&exit);
        if entered {
            switch.regs.set(RAX, v.rax());
            switch.regs.set(RSP, v.rsp());
            switch.regs.rip = v.rip();
            switch.regs.rflags = v.rflags();
            switch.cr2 = v.cr2();
            v.set_event_inj(0);
        }
        v.ran(cached && entered);
        if entered {
            hw.injecting = Injecting::Nothing;
        }
        hw.end_step(step, &mut switch.regs);
        if exit == code::INVALID && flush != Tlb::Keep {
            // Nor that it is refused after the flush rather than before it.
            shared.tags.forget(preempt);
            if !skips(Step::Refused) {
                shared.asids.set(irq, asids.restarted());
            }
        }
        if exit == code::EXCEPTION | u64::from(exception::MC) && insn::machine_check(irq) {
            return code::SHUTDOWN;
        }
        exit
    }

    fn take_interrupt(_hw: &mut Hw, _irq: &IrqOff) {
        // It is pending still: the host takes it when it enables interrupts.
    }

    fn entry_info(hw: &mut Hw) -> (u32, u32) {
        let inject = hw.vmcb().event_inj();
        (inject as u32, (inject >> 32) as u32)
    }

    fn exit_info(hw: &mut Hw, exit: &u64) -> trace::Exit {
        let v = hw.vmcb();
        let info = v.exit_int_info();
        let error = info & event::VALID != 0 && info & event::ERROR != 0;
        trace::Exit {
            info1: v.exit_info1(),
            info2: v.exit_info2(),
            reason: *exit as u32,
            isa: trace::SVM,
            intr_info: info as u32,
            error_code: if error { (info >> 32) as u32 } else { 0 },
        }
    }

    fn handle(cx: &mut Loaded<'_, Self>, exit: u64) -> Result<Flow> {
        super::handle::handle(cx, exit)
    }

    fn entered(exit: &u64) -> bool {
        *exit != code::INVALID
    }

    #[inline]
    fn vectoring(hw: &mut Hw, switch: &mut Switch, exit: &u64) -> Option<Vectoring> {
        if *exit != code::IRET {
            hw.finish_iret(switch.regs.rip);
        }
        let info = hw.vmcb().exit_int_info();
        if info & event::VALID == 0 || *exit == code::SHUTDOWN {
            return None;
        }
        hw.cut_short(&mut switch.regs, info)
    }

    fn fetched_insn(hw: &mut Hw) -> Option<([u8; MAX_INSN], usize)> {
        if !hw.features.decode_assists {
            return None;
        }
        let (mut bytes, given) = ([0; MAX_INSN], hw.vmcb().insn_bytes());
        for (to, from) in bytes.iter_mut().zip(given) {
            *to = *from;
        }
        (!given.is_empty()).then_some((bytes, given.len()))
    }

    fn flush_tlb(hw: &mut Hw) {
        hw.stale = true;
    }

    fn ledger(hw: &mut Hw) -> &mut VcpuLedger {
        &mut hw.ledger
    }

    fn segment(hw: &mut Hw, seg: Seg) -> Segment {
        let mut s = hw.vmcb().segment(seg).get();
        // CPUs keep the granularity bit or not. KVM shows it as the limit has it, for a CPU of either vendor to take it.
        s.attr = s.attr.with_g(s.limit > 0xfffff);
        match seg {
            Seg::Cs => {}
            // SS carries the privilege level.
            Seg::Ss => {
                s.attr = s.attr.with_dpl(hw.vmcb().cpl());
                if s.attr.unusable() {
                    s.attr = s.attr.without_db();
                }
            }
            // A segment that was loaded was accessed, and Intel's CPUs insist on it.
            _ if !s.attr.unusable() => s.attr = s.attr.with_kind_bits(1),
            _ => {}
        }
        s
    }

    fn set_segment(hw: &mut Hw, seg: Seg, value: Segment) {
        let v = hw.vmcb();
        v.set_segment(seg, VmcbSeg::from(value));
        if seg == Seg::Ss {
            v.set_cpl(value.attr.dpl());
        }
    }

    fn sys_segment(hw: &mut Hw, seg: SysSeg) -> Segment {
        let mut s = match seg {
            SysSeg::Tr => hw.vmcb().tr().get(),
            SysSeg::Ldtr => hw.vmcb().ldtr().get(),
        };
        s.attr = s.attr.with_g(s.limit > 0xfffff);
        if seg == SysSeg::Tr {
            // A task register that was loaded is busy, also where the CPU does not say so. KVM shows it.
            s.attr = s.attr.with_kind_bits(2);
        }
        s
    }

    fn set_sys_segment(hw: &mut Hw, seg: SysSeg, value: Segment) {
        match seg {
            SysSeg::Tr => hw.vmcb().set_tr(VmcbSeg::from(value)),
            SysSeg::Ldtr => hw.vmcb().set_ldtr(VmcbSeg::from(value)),
        }
    }

    fn table(hw: &mut Hw, table: Table) -> TableReg {
        let t = match table {
            Table::Gdt => hw.vmcb().gdtr(),
            Table::Idt => hw.vmcb().idtr(),
        };
        TableReg {
            base: t.base,
            limit: t.limit as u16,
        }
    }

    fn set_table(hw: &mut Hw, table: Table, value: TableReg) {
        let t = VmcbSeg {
            base: value.base,
            limit: value.limit.into(),
            ..VmcbSeg::default()
        };
        match table {
            Table::Gdt => hw.vmcb().set_gdtr(t),
            Table::Idt => hw.vmcb().set_idtr(t),
        }
    }

    fn cs_l(hw: &mut Hw) -> bool {
        hw.vmcb().segment(Seg::Cs).get().attr.l()
    }

    fn cpl(hw: &mut Hw) -> u8 {
        hw.vmcb().cpl()
    }

    fn cr3(hw: &mut Hw) -> u64 {
        hw.vmcb().cr3()
    }

    fn set_cr3(hw: &mut Hw, value: u64) {
        hw.vmcb().set_cr3(value);
    }

    fn set_cr8(hw: &mut Hw, value: u64) {
        let v = hw.vmcb();
        v.set_vintr(v.vintr() & !vintr::TPR | value & vintr::TPR);
    }

    fn set_modes(hw: &mut Hw, cr0: u64, cr4: u64, efer: u64) {
        use crate::model::cr::cr0::{CD, NW, PG};
        let v = hw.vmcb();
        // The guest's cache control must not slow down the host's memory, and a machine check must reach the host.
        v.set_cr0(cr0 & !(CD | NW));
        v.set_cr4(cr4 | insn::host_mce());
        // Without paging LME does nothing, and the write of CR0 that turns paging on exits. QEMU's TCG, where LME is set and PAE is
        // not, fails to turn the host's paging on again at an exit.
        let idle = if cr0 & PG == 0 { efer::LME } else { 0 };
        v.set_efer(efer & !idle | efer::SVME);
        // Where that differs from what the guest wrote, reads exit: it is shown its own value.
        let differs = u32::from(v.cr0() != cr0) | u32::from(v.cr4() != cr4) << 4;
        v.set_intercept_cr(v.intercept_cr() & !(1 | 1 << 4) | differs);
        // A new mode means new translations of linear addresses, which nested tags do not tell apart.
        hw.stale = true;
    }

    fn set_pdptrs(_hw: &mut Hw, _pdptrs: [u64; 4]) {}

    fn pdptrs(_hw: &mut Hw) -> [u64; 4] {
        [0; 4]
    }

    fn set_debug(hw: &mut Hw, resident: &Resident, dr6: u64, dr7: u64) {
        if dr6 != dr6::RESET {
            resident.uses_dr6.set(true);
        }
        let v = hw.vmcb();
        v.set_dr6(dr6);
        v.set_dr7(dr7);
    }

    fn set_breakpoint_exits(hw: &mut Hw, on: bool) {
        const BP: u32 = 1 << exception::BP;
        let v = hw.vmcb();
        let others = v.intercept_exceptions() & !BP;
        v.set_intercept_exceptions(others | if on { BP } else { 0 });
    }

    fn hw_msr(hw: &mut Hw, resident: &Resident, msr: HwMsr) -> u64 {
        let v = hw.vmcb();
        match msr {
            HwMsr::Star => v.star(),
            HwMsr::Lstar => v.lstar(),
            HwMsr::Cstar => v.cstar(),
            HwMsr::Fmask => v.sfmask(),
            HwMsr::KernelGsBase => v.kernel_gs_base(),
            HwMsr::FsBase => v.segment(Seg::Fs).base,
            HwMsr::GsBase => v.segment(Seg::Gs).base,
            HwMsr::SysenterCs => v.sysenter_cs(),
            HwMsr::SysenterEsp => hw.sysenter_esp,
            HwMsr::SysenterEip => hw.sysenter_eip,
            HwMsr::Pat => v.g_pat(),
            HwMsr::TscAux => resident.tsc_aux.get(),
            HwMsr::SpecCtrl => v.spec_ctrl(),
            // Kept by the callers.
            HwMsr::Efer | HwMsr::Tsc => 0,
        }
    }

    fn set_hw_msr(hw: &mut Hw, resident: &Resident, msr: HwMsr, value: u64) {
        let v = hw.vmcb();
        match msr {
            HwMsr::Star => v.set_star(value),
            HwMsr::Lstar => v.set_lstar(value),
            HwMsr::Cstar => v.set_cstar(value),
            HwMsr::Fmask => v.set_sfmask(value),
            HwMsr::KernelGsBase => v.set_kernel_gs_base(value),
            HwMsr::FsBase => v.set_base(Seg::Fs, value),
            HwMsr::GsBase => v.set_base(Seg::Gs, value),
            HwMsr::SysenterCs => v.set_sysenter_cs(value),
            HwMsr::SysenterEsp => {
                v.set_sysenter_esp(value & 0xffff_ffff);
                hw.sysenter_esp = value;
            }
            HwMsr::SysenterEip => {
                v.set_sysenter_eip(value & 0xffff_ffff);
                hw.sysenter_eip = value;
            }
            HwMsr::Pat => v.set_g_pat(value),
            HwMsr::SpecCtrl => v.set_spec_ctrl(value),
            HwMsr::Efer | HwMsr::Tsc => {}
            HwMsr::TscAux => {
                let preempt = PreemptOff::new();
                let old = resident.tsc_aux.get();
                resident.tsc_aux.set(value);
                if value != old && hw.shared.rdtscp && resident.host_saved.get() {
                    insn::set_tsc_aux(value, &preempt);
                }
            }
        }
    }

    fn set_instructions(hw: &mut Hw, rdtscp: bool, invpcid: bool) {
        // What the CPU itself lacks needs no intercept. RDPID cannot have one.
        let (has_rdtscp, has_invpcid) = (hw.shared.rdtscp, hw.shared.invpcid);
        hw.set_intercept(intercept::RDTSCP, has_rdtscp && !rdtscp);
        let v = hw.vmcb();
        v.set_intercept3(if has_invpcid && !invpcid {
            intercept::INVPCID
        } else {
            0
        });
    }

    fn set_msr_exits(hw: &mut Hw, all: bool) {
        hw.all_msrs_exit = all;
        hw.use_msr_map();
    }

    fn pass_msrs(hw: &mut Hw, passed: Passed) {
        // There is one for each; without, everything goes on to exit.
        if let Ok(map) = hw.shared.msr_map(hw.off, passed) {
            hw.msrpm = map;
        }
        hw.use_msr_map();
    }

    fn holds_spec_ctrl(hw: &Hw) -> bool {
        hw.shared.virtual_spec_ctrl
    }

    fn set_tsc_offset(hw: &mut Hw, offset: u64) {
        hw.vmcb().set_tsc_offset(offset);
    }

    fn tsc_scale_places() -> Option<u8> {
        // An MSR that would be switched with each world switch; no machine at hand has it.
        None
    }

    fn set_tsc_ratio(_hw: &mut Hw, _ratio: u64) {}

    fn shadow(hw: &mut Hw) -> Shadow {
        let on = hw.vmcb().int_state() & 1 != 0;
        Shadow {
            sti: on,
            mov_ss: on,
        }
    }

    fn set_shadow(hw: &mut Hw, shadow: Shadow) {
        let v = hw.vmcb();
        v.set_int_state(v.int_state() & !1 | u64::from(shadow.sti || shadow.mov_ss));
    }

    fn hold_step(_: &mut Hw) {
        // TF does it: there is no other record of the trap.
    }

    fn wake(_hw: &mut Hw) {
        // An exit ends a halt: the guest goes on behind its HLT.
    }

    fn inject(hw: &mut Hw, switch: &mut Switch, what: Inject) {
        hw.inject(&mut switch.regs, what);
    }

    fn cancel_injection(hw: &mut Hw, switch: &mut Switch) {
        hw.cancel_injection(&mut switch.regs);
    }

    fn nmi_masked(hw: &mut Hw) -> bool {
        hw.nmi_masked
    }

    fn set_nmi_masked(hw: &mut Hw, masked: bool) {
        hw.set_nmi_masked(masked);
    }

    fn set_irq_window(hw: &mut Hw, on: bool) {
        hw.set_irq_window(on);
    }

    fn set_nmi_window(hw: &mut Hw, on: bool) {
        hw.set_nmi_window(on);
    }
}
