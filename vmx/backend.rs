// SPDX-License-Identifier: GPL-2.0
//! VMX behind the [`Backend`] trait: set-up, the VMCS as a register file, entering the guest.
#![deny(unsafe_code)]

use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::Mutex;

use super::controls::{
    entry, negotiate, primary, secondary, Controls, Options, Refusal, VmxCaps, VpidFlush,
};
use super::exit::{interruptibility, Basic, ExitReason, IntrInfo, Kind as IntrKind};
use super::fields as f;
use super::fields::SegmentFields;
use super::insn::{self, Extent, Run};
use super::setup::{self, GuestMsr, Init, ThreadCell};
use super::vmcs::{Fields, Lists, Vmcs};
use super::vpid::{Vpids, WORDS};
use crate::hv::backend::{Backend, Flow, Inject, Shadow, SysSeg, Table};
use crate::hv::vcpu::Loaded;
use crate::mmu::ept::{Ept, EptConfig};
use crate::mmu::vm_mmu::MmuConfig;
use crate::mmu::Level;
use crate::model::cr::{cr0, efer};
use crate::model::event::{Exception, Kind, Vectoring};
use crate::model::features::{self, Caps};
use crate::model::msr::{HwMsr, Pass};
use crate::model::regs::{rflags, Attr, Seg, Segment, TableReg, RSP};
use crate::sys::cpu::{self, IrqOff, PreemptOff};
use crate::sys::global::Global;
use crate::sys::page::Pages;
use crate::sys::params;
use crate::sys::switch::Switch;
use crate::sys::virt::CpuVirt;

/// What all vCPUs share.
struct Shared {
    controls: Controls,
    /// MSR bitmaps: a set bit makes the access exit.
    msr_bitmap: Pages<0>,
    /// Taken VPIDs.
    vpids: Pin<KBox<Mutex<KVec<u64>>>>,
    /// The host's values of [`GuestMsr::ALL`], which are the same on all CPUs but for TSC_AUX.
    host_msrs: [u64; 6],
    rdtscp: bool,
    lists: Lists,
}

static SHARED: Global<Shared> = Global::new();

/// The Intel backend.
pub(crate) struct Vmx;

/// A VPID of a vCPU's own; 0 for none.
struct Vpid(u16);

impl Vpid {
    fn take(shared: &Shared) -> Self {
        if shared.controls.vpid == VpidFlush::None {
            return Self(0);
        }
        let mut taken = shared.vpids.lock();
        Self(Vpids::new(&mut taken).take().unwrap_or(0))
    }
}

impl Drop for Vpid {
    fn drop(&mut self) {
        if let (true, Ok(shared)) = (self.0 != 0, SHARED.get()) {
            let mut taken = shared.vpids.lock();
            if !Vpids::new(&mut taken).give(self.0) {
                pr_err!("VPID {} was not taken\n", self.0);
            }
        }
    }
}

/// A vCPU's hardware state.
pub(crate) struct Hw {
    pub(super) vmcs: Fields,
    shared: &'static Shared,
    run: Run,
    msr_lists: Pages<0>,
    vpid: Vpid,
    eptp: u64,
    /// Translations in the TLB are stale: those of linear addresses, or also the second stage's.
    stale_linear: bool,
    stale_second: bool,
    /// The control words that change, as the VMCS has them.
    primary: u32,
    entry: u32,
    /// RSP, RIP and RFLAGS as the VMCS has them.
    rsp: u64,
    rip: u64,
    rflags: u64,
    /// CR0.PE is set.
    protected: bool,
}

/// What context switches touch.
pub(crate) struct Resident {
    vmcs: Vmcs,
    /// It came to this CPU since the last entry.
    moved: Atomic<bool>,
    /// The thread came to this CPU since the last entry.
    switched: Atomic<bool>,
    /// Something about the VMCS failed: no entry any more.
    broken: Atomic<bool>,
    /// The guest's values of [`GuestMsr::ALL`], while they are not in the CPU.
    msrs: [Atomic<u64>; 6],
    host_tsc_aux: Atomic<u64>,
    thread: ThreadCell,
}

/// An exit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// No exit came: the entry failed with this VM-instruction error, 0 where it has none.
    pub(super) failed: Option<u32>,
    pub(super) reason: ExitReason,
    pub(super) info: IntrInfo,
    vectoring: IntrInfo,
}

/// Lets the guest read (and write) `msr` without an exit ("MSR-Bitmap Address"): read low, read high, write low, write high.
fn allow_msr(map: &mut [u8], msr: u32, write: bool) {
    let (base, n) = match msr {
        0..=0x1fff => (0usize, msr as usize),
        0xc000_0000..=0xc000_1fff => (0x400, (msr & 0x1fff) as usize),
        _ => return,
    };
    let mut clear = |at: usize| {
        if let Some(byte) = map.get_mut(at.wrapping_add(n / 8)) {
            *byte &= !(1u8 << (n % 8));
        }
    };
    clear(base);
    if write {
        clear(base.wrapping_add(0x800));
    }
}

fn read_caps() -> Result<VmxCaps> {
    VmxCaps::read(cpu::rdmsr_safe)
}

fn options() -> Options {
    let p = params::get();
    Options {
        ept: p.second_stage,
        unrestricted_guest: p.unrestricted_guest,
        ept_ad: p.access_dirty,
        vpid: p.vpid,
    }
}

fn refused(refusal: Refusal) -> Error {
    pr_err!("VMX cannot be used: {}\n", core::format_args!("{refusal}"));
    EOPNOTSUPP
}

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
        // What an earlier user of VMX left behind.
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

impl Hw {
    fn set_primary(&mut self, bits: u32, on: bool) {
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

    fn set_entry(&mut self, bits: u32, on: bool) {
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

    /// Drops what the TLB holds of the guest and should not.
    fn flush(&mut self) -> core::result::Result<(), insn::Failure> {
        let c = &self.shared.controls;
        if self.stale_second {
            let extent = if c.invept_single {
                Extent::Single
            } else {
                Extent::All
            };
            insn::invept(extent, self.eptp)?;
        }
        // Without a VPID each entry and exit does it.
        if (self.stale_linear || self.stale_second) && self.vpid.0 != 0 {
            let extent = if c.vpid == VpidFlush::Single {
                Extent::Single
            } else {
                Extent::All
            };
            insn::invvpid(extent, self.vpid.0)?;
        }
        self.stale_linear = false;
        self.stale_second = false;
        Ok(())
    }

    fn load_registers(&mut self, switch: &Switch) {
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

    fn store_registers(&mut self, switch: &mut Switch) {
        self.rsp = self.vmcs.read(f::GUEST_RSP);
        self.rip = self.vmcs.read(f::GUEST_RIP);
        self.rflags = self.vmcs.read(f::GUEST_RFLAGS);
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

    fn interruptibility(&mut self, bits: u32, on: bool) {
        let old = self.vmcs.read(f::GUEST_INTERRUPTIBILITY);
        let new = if on { old | bits } else { old & !bits };
        if new != old {
            self.vmcs.write(f::GUEST_INTERRUPTIBILITY, new);
        }
    }

    fn read_segment(&mut self, fields: &SegmentFields) -> Segment {
        Segment {
            base: self.vmcs.read(fields.base),
            limit: self.vmcs.read(fields.limit),
            selector: self.vmcs.read(fields.selector),
            attr: Attr::from_vmx(self.vmcs.read(fields.access)),
        }
    }

    fn write_segment(&mut self, fields: &SegmentFields, value: Segment, access: u32) {
        const UNUSABLE: u32 = 1 << 16;
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
    fn iret_faulted(&mut self, exit: &Exit) -> bool {
        const DOUBLE_FAULT: u8 = 8;
        match exit.reason.basic() {
            Some(Basic::ExceptionOrNmi) => {
                exit.info.nmi_unblocked_by_iret()
                    && exit.info.exception().is_some_and(|v| v != DOUBLE_FAULT)
            }
            Some(Basic::EptViolation) => {
                let qualification = self.vmcs.read(f::EXIT_QUALIFICATION);
                super::exit::EptViolation::decode(qualification).nmi_unblocked_by_iret
            }
            _ => false,
        }
    }

    fn guest_msr(resident: &Resident, msr: GuestMsr) -> &Atomic<u64> {
        let [star, lstar, cstar, fmask, kernel_gs_base, tsc_aux] = &resident.msrs;
        match msr {
            GuestMsr::Star => star,
            GuestMsr::Lstar => lstar,
            GuestMsr::Cstar => cstar,
            GuestMsr::Fmask => fmask,
            GuestMsr::KernelGsBase => kernel_gs_base,
            GuestMsr::TscAux => tsc_aux,
        }
    }
}

fn segment_fields(seg: Seg) -> &'static SegmentFields {
    match seg {
        Seg::Es => &f::GUEST_ES,
        Seg::Cs => &f::GUEST_CS,
        Seg::Ss => &f::GUEST_SS,
        Seg::Ds => &f::GUEST_DS,
        Seg::Fs => &f::GUEST_FS,
        Seg::Gs => &f::GUEST_GS,
    }
}

impl Backend for Vmx {
    const VENDOR: &'static str = "Intel VMX";
    const PDPTRS_IN_CONTROL_BLOCK: bool = true;
    type Pte = Ept;
    type Hw = Hw;
    type Resident = Resident;
    type Exit = Exit;

    fn setup() -> Result {
        let controls = negotiate(&read_caps()?, &options()).map_err(refused)?;
        let mut msr_bitmap = Pages::new()?;
        msr_bitmap.bytes_mut().fill(0xff);
        for msr in HwMsr::ALL {
            match msr.pass_through(false) {
                Pass::ReadWrite => allow_msr(msr_bitmap.bytes_mut(), msr.index(), true),
                Pass::Read => allow_msr(msr_bitmap.bytes_mut(), msr.index(), false),
                Pass::None => {}
            }
        }
        let mut taken = KVec::with_capacity(WORDS, GFP_KERNEL)?;
        for _ in 0..WORDS {
            taken.push(0u64, GFP_KERNEL)?;
        }
        let preempt = PreemptOff::new();
        let rdtscp = controls.secondary & secondary::RDTSCP != 0;
        let host_msrs = GuestMsr::ALL.map(|m| {
            if m == GuestMsr::TscAux && !rdtscp {
                0
            } else {
                m.read(&preempt)
            }
        });
        drop(preempt);
        let shared = Shared {
            controls,
            msr_bitmap,
            vpids: KBox::pin_init(new_mutex!(taken, "lodge_vpids"), GFP_KERNEL)?,
            host_msrs,
            rdtscp,
            lists: Lists::new()?,
        };
        SHARED.set(KBox::new(shared, GFP_KERNEL)?);
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
            slot_flags: crate::uapi::KVM_MEM_READONLY,
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
            stale_linear: true,
            stale_second: true,
            primary: shared.controls.primary,
            entry: shared.controls.entry,
            rsp: 0,
            rip: 0,
            rflags: 0,
            protected: false,
        };
        let resident = Resident {
            vmcs: Vmcs::new(shared.controls.revision)?,
            moved: Atomic::new(false),
            switched: Atomic::new(false),
            broken: Atomic::new(false),
            msrs: [const { Atomic::new(0) }; 6],
            host_tsc_aux: Atomic::new(0),
            thread: ThreadCell::new(),
        };
        Ok((hw, resident))
    }

    fn init(hw: &mut Hw, resident: &Resident, root: u64) -> Result {
        hw.eptp = hw.shared.controls.eptp(root, 4);
        let init = Init {
            controls: &hw.shared.controls,
            msr_bitmap: &hw.shared.msr_bitmap,
            msr_lists: &hw.msr_lists,
            eptp: hw.eptp,
            vpid: hw.vpid.0,
        };
        setup::init(&mut hw.vmcs, &init);
        hw.vmcs.write(f::GUEST_RSP, 0);
        hw.vmcs.write(f::GUEST_RIP, 0);
        hw.vmcs.write(f::GUEST_RFLAGS, rflags::FIXED);
        hw.rflags = rflags::FIXED;
        if hw.broken() || resident.broken.load(Relaxed) {
            return Err(EIO);
        }
        Ok(())
    }

    fn sched_in(resident: &Resident, preempt: &PreemptOff) {
        let Ok(shared) = SHARED.get() else { return };
        let mut vmcs = Fields::default();
        match resident.vmcs.load(preempt) {
            Ok(true) => {
                setup::host_cpu(&mut vmcs, preempt);
                resident.moved.store(true, Relaxed);
            }
            Ok(false) => {}
            Err(_) => resident.broken.store(true, Relaxed),
        }
        resident.switched.store(true, Relaxed);
        resident
            .thread
            .set(setup::thread_in(&mut vmcs, preempt), preempt);
        for (msr, host) in GuestMsr::ALL.into_iter().zip(shared.host_msrs) {
            let guest = Hw::guest_msr(resident, msr).load(Relaxed);
            match msr {
                GuestMsr::TscAux if !shared.rdtscp => {}
                GuestMsr::TscAux => {
                    let host = msr.read(preempt);
                    resident.host_tsc_aux.store(host, Relaxed);
                    if guest != host {
                        msr.write(guest, preempt);
                    }
                }
                GuestMsr::KernelGsBase => msr.write(guest, preempt),
                _ if guest != host => msr.write(guest, preempt),
                _ => {}
            }
        }
        if vmcs.broken() {
            resident.broken.store(true, Relaxed);
        }
    }

    fn sched_out(resident: &Resident, preempt: &PreemptOff) {
        let Ok(shared) = SHARED.get() else { return };
        for (msr, host) in GuestMsr::ALL.into_iter().zip(shared.host_msrs) {
            let cell = Hw::guest_msr(resident, msr);
            match msr {
                GuestMsr::TscAux if !shared.rdtscp => {}
                // The guest writes it without an exit; the thread's value comes back below.
                GuestMsr::KernelGsBase => cell.store(msr.read(preempt), Relaxed),
                _ => {
                    let host = match msr {
                        GuestMsr::TscAux => resident.host_tsc_aux.load(Relaxed),
                        _ => host,
                    };
                    if cell.load(Relaxed) != host {
                        msr.write(host, preempt);
                    }
                }
            }
        }
        setup::thread_out(&resident.thread.get(preempt), preempt);
    }

    fn enter(hw: &mut Hw, resident: &Resident, switch: &mut Switch, irq: &IrqOff) -> Exit {
        let mut exit = Exit {
            failed: Some(0),
            reason: ExitReason(0),
            info: IntrInfo::NONE,
            vectoring: IntrInfo::NONE,
        };
        if resident.switched.xchg(false, Relaxed) {
            setup::vcpu_barrier(irq.preempt());
        }
        if resident.moved.xchg(false, Relaxed) {
            hw.stale_second = true;
        }
        hw.load_registers(switch);
        if (hw.stale_linear || hw.stale_second) && hw.flush().is_err() {
            return exit;
        }
        if hw.broken() || resident.broken.load(Relaxed) {
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

    fn handle(cx: &mut Loaded<'_, Self>, exit: Exit) -> Result<Flow> {
        super::handle::handle(cx, exit)
    }

    fn vectoring(hw: &mut Hw, _switch: &Switch, exit: &Exit) -> Option<Vectoring> {
        if exit.failed.is_some() || exit.reason.entry_failed() {
            // An entry that did not happen leaves its injection behind.
            hw.vmcs.write(f::ENTRY_INTR_INFO, 0);
            return None;
        }
        let info = exit.vectoring;
        if !info.valid() {
            if hw.iret_faulted(exit) {
                hw.interruptibility(interruptibility::NMI, true);
            }
            return None;
        }
        let kind = Kind::from_code((info.0 >> 8 & 7) as u8)?;
        if kind == Kind::Nmi {
            hw.interruptibility(interruptibility::NMI, false);
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

    fn flush_tlb(hw: &mut Hw) {
        hw.stale_second = true;
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

    fn cpl(hw: &mut Hw) -> u8 {
        Attr::from_vmx(hw.vmcs.read(f::GUEST_SS_ACCESS)).dpl()
    }

    fn cr3(hw: &mut Hw) -> u64 {
        hw.vmcs.read(f::GUEST_CR3)
    }

    fn set_cr3(hw: &mut Hw, value: u64) {
        hw.vmcs.write(f::GUEST_CR3, value);
        hw.stale_linear = true;
    }

    fn set_cr8(_hw: &mut Hw, _value: u64) {
        // Each access exits and is answered with what the common code keeps.
    }

    fn set_modes(hw: &mut Hw, cr0: u64, cr4: u64, efer: u64) {
        let c = &hw.shared.controls;
        // CD and NW are not switched by entries; the guest's cache control must not slow down the host's memory.
        let hw_cr0 = cr0 & !(cr0::CD | cr0::NW) & c.cr0_allowed | c.cr0_set;
        let hw_cr4 = cr4 & c.cr4_allowed | c.cr4_set;
        hw.vmcs.write(f::GUEST_CR0, hw_cr0);
        hw.vmcs.write(f::CR0_READ_SHADOW, cr0);
        hw.vmcs.write(f::GUEST_CR4, hw_cr4);
        hw.vmcs.write(f::CR4_READ_SHADOW, cr4);
        hw.vmcs.write(f::GUEST_EFER, efer);
        let long = efer & efer::LMA != 0;
        hw.set_entry(entry::IA32E, long);
        if long {
            // Entry wants a 64-bit busy task state; a guest may enter long mode with a 16-bit one.
            let access = hw.vmcs.read(f::GUEST_TR_ACCESS);
            if access & 15 != 11 {
                hw.vmcs.write(f::GUEST_TR_ACCESS, access & !15 | 11);
            }
        }
        hw.protected = cr0 & cr0::PE != 0;
        hw.stale_linear = true;
    }

    fn set_pdptrs(hw: &mut Hw, pdptrs: [u64; 4]) {
        let fields = [
            f::GUEST_PDPTE0,
            f::GUEST_PDPTE1,
            f::GUEST_PDPTE2,
            f::GUEST_PDPTE3,
        ];
        for (field, value) in fields.into_iter().zip(pdptrs) {
            hw.vmcs.write(field, value);
        }
    }

    fn set_debug(hw: &mut Hw, _dr6: u64, dr7: u64) {
        // DR6 is in no field. It is never the processor's: #DB and MOV DR exit, and both say what it becomes.
        hw.vmcs.write(f::GUEST_DR7, dr7);
    }

    fn dr6(_hw: &mut Hw) -> Option<u64> {
        None
    }

    fn hw_msr(hw: &mut Hw, resident: &Resident, msr: HwMsr) -> u64 {
        let preempt = PreemptOff::new();
        let kept = |msr| Hw::guest_msr(resident, msr).load(Relaxed);
        match msr {
            HwMsr::Star => kept(GuestMsr::Star),
            HwMsr::Lstar => kept(GuestMsr::Lstar),
            HwMsr::Cstar => kept(GuestMsr::Cstar),
            HwMsr::Fmask => kept(GuestMsr::Fmask),
            HwMsr::KernelGsBase => GuestMsr::KernelGsBase.read(&preempt),
            HwMsr::TscAux => kept(GuestMsr::TscAux),
            HwMsr::FsBase => hw.vmcs.read(f::GUEST_FS_BASE),
            HwMsr::GsBase => hw.vmcs.read(f::GUEST_GS_BASE),
            HwMsr::SysenterCs => hw.vmcs.read(f::GUEST_SYSENTER_CS).into(),
            HwMsr::SysenterEsp => hw.vmcs.read(f::GUEST_SYSENTER_ESP),
            HwMsr::SysenterEip => hw.vmcs.read(f::GUEST_SYSENTER_EIP),
            HwMsr::Pat => hw.vmcs.read(f::GUEST_PAT),
            // Not the hardware's here.
            HwMsr::Efer | HwMsr::Tsc => 0,
        }
    }

    fn set_hw_msr(hw: &mut Hw, resident: &Resident, msr: HwMsr, value: u64) {
        let preempt = PreemptOff::new();
        let live = |msr: GuestMsr| {
            Hw::guest_msr(resident, msr).store(value, Relaxed);
            msr.write(value, &preempt);
        };
        match msr {
            HwMsr::Star => live(GuestMsr::Star),
            HwMsr::Lstar => live(GuestMsr::Lstar),
            HwMsr::Cstar => live(GuestMsr::Cstar),
            HwMsr::Fmask => live(GuestMsr::Fmask),
            HwMsr::KernelGsBase => live(GuestMsr::KernelGsBase),
            HwMsr::TscAux if hw.shared.rdtscp => live(GuestMsr::TscAux),
            HwMsr::TscAux => Hw::guest_msr(resident, GuestMsr::TscAux).store(value, Relaxed),
            HwMsr::FsBase => hw.vmcs.write(f::GUEST_FS_BASE, value),
            HwMsr::GsBase => hw.vmcs.write(f::GUEST_GS_BASE, value),
            HwMsr::SysenterCs => hw.vmcs.write(f::GUEST_SYSENTER_CS, value as u32),
            HwMsr::SysenterEsp => hw.vmcs.write(f::GUEST_SYSENTER_ESP, value),
            HwMsr::SysenterEip => hw.vmcs.write(f::GUEST_SYSENTER_EIP, value),
            HwMsr::Pat => hw.vmcs.write(f::GUEST_PAT, value),
            HwMsr::Efer | HwMsr::Tsc => {}
        }
    }

    fn set_tsc_offset(hw: &mut Hw, offset: u64) {
        hw.vmcs.write(f::TSC_OFFSET, offset);
    }

    fn shadow(hw: &mut Hw) -> Shadow {
        let state = hw.vmcs.read(f::GUEST_INTERRUPTIBILITY);
        Shadow {
            sti: state & interruptibility::STI != 0,
            mov_ss: state & interruptibility::MOV_SS != 0,
        }
    }

    fn set_shadow(hw: &mut Hw, shadow: Shadow) {
        // Entry refuses both at once; the stricter one holds.
        hw.interruptibility(interruptibility::MOV_SS, shadow.mov_ss);
        hw.interruptibility(interruptibility::STI, shadow.sti && !shadow.mov_ss);
    }

    fn inject(hw: &mut Hw, what: Inject) {
        let info = match what {
            Inject::Exception(e) => hw.exception_info(&e),
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

    fn cancel_injection(hw: &mut Hw) {
        hw.vmcs.write(f::ENTRY_INTR_INFO, 0);
    }

    fn nmi_masked(hw: &mut Hw) -> bool {
        hw.vmcs.read(f::GUEST_INTERRUPTIBILITY) & interruptibility::NMI != 0
    }

    fn set_nmi_masked(hw: &mut Hw, masked: bool) {
        hw.interruptibility(interruptibility::NMI, masked);
    }

    fn set_irq_window(hw: &mut Hw, on: bool) {
        hw.set_primary(primary::INTERRUPT_WINDOW, on);
    }

    fn set_nmi_window(hw: &mut Hw, on: bool) {
        hw.set_primary(primary::NMI_WINDOW, on);
    }
}

impl Hw {
    /// The entry field for an exception; also writes what else it needs.
    fn exception_info(&mut self, e: &Exception) -> IntrInfo {
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
