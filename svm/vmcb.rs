// SPDX-License-Identifier: GPL-2.0
//! The virtual machine control block (AMD APM volume 2, "Layout of VMCB").
#![forbid(unsafe_code)]

use core::mem::{offset_of, size_of};

use crate::model::regs::{Attr, Seg, Segment};

/// A segment register as the state-save area holds it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VmcbSeg {
    /// Selector.
    pub selector: u16,
    /// Attributes, bits 8 to 19 of the descriptor squeezed together.
    pub attrib: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

impl VmcbSeg {
    /// As the model's type.
    pub const fn get(self) -> Segment {
        Segment {
            base: self.base,
            limit: self.limit,
            selector: self.selector,
            attr: Attr::from_svm(self.attrib),
        }
    }

    /// From the model's type.
    pub const fn from(s: Segment) -> Self {
        Self {
            selector: s.selector,
            attrib: s.attr.to_svm(),
            limit: s.limit,
            base: s.base,
        }
    }
}

/// The control area, the first 1024 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Control {
    /// Intercepts of reads of CR0 to CR15 (low half) and writes (high half).
    pub intercept_cr: u32,
    /// The same for debug registers.
    pub intercept_dr: u32,
    /// Intercepts of exceptions by vector.
    pub intercept_exceptions: u32,
    /// Intercepts, see [`intercept`].
    pub intercept1: u32,
    /// Further intercepts, see [`intercept`].
    pub intercept2: u32,
    /// Further intercepts.
    pub intercept3: u32,
    reserved1: [u32; 9],
    /// PAUSE filter threshold.
    pub pause_threshold: u16,
    /// PAUSE filter count.
    pub pause_count: u16,
    /// Physical address of the I/O permission map.
    pub iopm_base: u64,
    /// Physical address of the MSR permission map.
    pub msrpm_base: u64,
    /// Added to the TSC that the guest reads.
    pub tsc_offset: u64,
    /// Address-space identifier.
    pub asid: u32,
    /// TLB control, see [`tlb`].
    pub tlb_control: u8,
    reserved2: [u8; 3],
    /// Virtual interrupt, see [`vintr`].
    pub vintr: u64,
    /// Bit 0: interrupt shadow. Bit 1: the guest's interrupt mask.
    pub int_state: u64,
    /// Why the guest exited.
    pub exit_code: u64,
    /// Exit-specific.
    pub exit_info1: u64,
    /// Exit-specific.
    pub exit_info2: u64,
    /// The event whose delivery the exit cut short.
    pub exit_int_info: u64,
    /// Bit 0: nested paging.
    pub nested_ctl: u64,
    avic_bar: u64,
    ghcb: u64,
    /// The event to inject.
    pub event_inj: u64,
    /// Physical address of the nested page table's root.
    pub nested_cr3: u64,
    /// Virtualization of last branches and of VMSAVE and VMLOAD.
    pub virt_ext: u64,
    /// Parts unchanged since the last run.
    pub clean: u32,
    reserved3: u32,
    /// RIP of the next instruction, after an exit caused by one.
    pub next_rip: u64,
    /// Number of instruction bytes fetched (decode assists).
    pub insn_len: u8,
    /// The instruction's bytes (decode assists).
    pub insn_bytes: [u8; 15],
    reserved4: [u8; 800],
}

/// The state-save area, at offset 1024.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Save {
    /// ES, CS, SS, DS, FS, GS: the hardware encoding's order.
    pub segs: [VmcbSeg; 6],
    /// GDTR.
    pub gdtr: VmcbSeg,
    /// LDTR.
    pub ldtr: VmcbSeg,
    /// IDTR.
    pub idtr: VmcbSeg,
    /// TR.
    pub tr: VmcbSeg,
    reserved1: [u8; 0x2b],
    /// Current privilege level.
    pub cpl: u8,
    reserved2: u32,
    /// EFER.
    pub efer: u64,
    reserved3: [u8; 0x70],
    /// CR4.
    pub cr4: u64,
    /// CR3.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6.
    pub dr6: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
    reserved4: [u8; 0x58],
    /// RSP.
    pub rsp: u64,
    reserved5: [u8; 0x18],
    /// RAX.
    pub rax: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KernelGSBase.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// CR2.
    pub cr2: u64,
    reserved6: [u8; 0x20],
    /// The guest's PAT, with nested paging.
    pub g_pat: u64,
    /// DEBUGCTL.
    pub dbgctl: u64,
    /// Last branch records.
    pub last_branch: [u64; 4],
    reserved7: [u8; 0x968],
}

impl Save {
    /// A segment register.
    pub fn seg_mut(&mut self, seg: Seg) -> &mut VmcbSeg {
        let [es, cs, ss, ds, fs, gs] = &mut self.segs;
        match seg {
            Seg::Es => es,
            Seg::Cs => cs,
            Seg::Ss => ss,
            Seg::Ds => ds,
            Seg::Fs => fs,
            Seg::Gs => gs,
        }
    }
}

/// A VMCB: one page.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// The control area.
    pub control: Control,
    /// The state-save area.
    pub save: Save,
}

const _: () = {
    assert!(offset_of!(Control, pause_threshold) == 0x3c);
    assert!(offset_of!(Control, iopm_base) == 0x40);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, vintr) == 0x60);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, nested_ctl) == 0x90);
    assert!(offset_of!(Control, event_inj) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Control, insn_len) == 0xd0);
    assert!(size_of::<Control>() == 0x400);
    assert!(offset_of!(Save, gdtr) == 0x60);
    assert!(offset_of!(Save, tr) == 0x90);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, star) == 0x200);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, g_pat) == 0x268);
    assert!(offset_of!(Save, last_branch) == 0x278);
    assert!(size_of::<Save>() == 0xc00);
    assert!(size_of::<Vmcb>() == 4096);
};

/// Bits of [`Control::intercept1`] and, from 32 on, of [`Control::intercept2`].
pub mod intercept {
    /// Physical interrupt.
    pub const INTR: u64 = 1 << 0;
    /// Physical NMI.
    pub const NMI: u64 = 1 << 1;
    /// System-management interrupt.
    pub const SMI: u64 = 1 << 2;
    /// INIT.
    pub const INIT: u64 = 1 << 3;
    /// Virtual interrupt: the guest can take one.
    pub const VINTR: u64 = 1 << 4;
    /// RDPMC.
    pub const RDPMC: u64 = 1 << 15;
    /// CPUID.
    pub const CPUID: u64 = 1 << 18;
    /// RSM.
    pub const RSM: u64 = 1 << 19;
    /// IRET.
    pub const IRET: u64 = 1 << 20;
    /// INVD.
    pub const INVD: u64 = 1 << 22;
    /// HLT.
    pub const HLT: u64 = 1 << 24;
    /// INVLPGA.
    pub const INVLPGA: u64 = 1 << 26;
    /// I/O instructions, by the permission map.
    pub const IOIO: u64 = 1 << 27;
    /// RDMSR and WRMSR, by the permission map.
    pub const MSR: u64 = 1 << 28;
    /// Task switches.
    pub const TASK_SWITCH: u64 = 1 << 29;
    /// Legacy FPU error freeze.
    pub const FERR_FREEZE: u64 = 1 << 30;
    /// Shutdown (triple fault).
    pub const SHUTDOWN: u64 = 1 << 31;
    /// VMRUN; must be set.
    pub const VMRUN: u64 = 1 << 32;
    /// VMMCALL.
    pub const VMMCALL: u64 = 1 << 33;
    /// VMLOAD.
    pub const VMLOAD: u64 = 1 << 34;
    /// VMSAVE.
    pub const VMSAVE: u64 = 1 << 35;
    /// STGI.
    pub const STGI: u64 = 1 << 36;
    /// CLGI.
    pub const CLGI: u64 = 1 << 37;
    /// SKINIT.
    pub const SKINIT: u64 = 1 << 38;
    /// WBINVD.
    pub const WBINVD: u64 = 1 << 41;
    /// MONITOR.
    pub const MONITOR: u64 = 1 << 42;
    /// MWAIT.
    pub const MWAIT: u64 = 1 << 43;
    /// XSETBV.
    pub const XSETBV: u64 = 1 << 45;
    /// RDPRU.
    pub const RDPRU: u64 = 1 << 46;

    /// What every guest is intercepted on.
    pub const ALWAYS: u64 = INTR
        | NMI
        | SMI
        | INIT
        | RDPMC
        | CPUID
        | RSM
        | INVD
        | HLT
        | INVLPGA
        | IOIO
        | MSR
        | TASK_SWITCH
        | SHUTDOWN
        | VMRUN
        | VMMCALL
        | VMLOAD
        | VMSAVE
        | STGI
        | CLGI
        | SKINIT
        | WBINVD
        | MONITOR
        | MWAIT
        | XSETBV
        | RDPRU;
}

/// Bits of [`Control::vintr`].
pub mod vintr {
    /// A virtual interrupt is pending.
    pub const IRQ: u64 = 1 << 8;
    /// It ignores the task priority.
    pub const IGNORE_TPR: u64 = 1 << 20;
    /// The guest's RFLAGS.IF and TPR do not mask the host's interrupts.
    pub const MASKING: u64 = 1 << 24;
    /// The task priority.
    pub const TPR: u64 = 0xf;
}

/// Values of [`Control::tlb_control`].
pub mod tlb {
    /// Keep all.
    pub const KEEP: u8 = 0;
    /// Flush all ASIDs.
    pub const FLUSH_ALL: u8 = 1;
    /// Flush this ASID.
    pub const FLUSH_ASID: u8 = 3;
}

/// Fields of EVENTINJ and EXITINTINFO ("Event Injection").
pub mod event {
    /// The event is valid.
    pub const VALID: u64 = 1 << 31;
    /// An error code is in the high half.
    pub const ERROR: u64 = 1 << 11;
    /// External interrupt.
    pub const INTERRUPT: u64 = 0;
    /// Non-maskable interrupt.
    pub const NMI: u64 = 2 << 8;
    /// Exception.
    pub const EXCEPTION: u64 = 3 << 8;
    /// INT n.
    pub const SOFT: u64 = 4 << 8;
    /// The type field.
    pub const TYPE: u64 = 7 << 8;
    /// The vector field.
    pub const VECTOR: u64 = 0xff;
}
