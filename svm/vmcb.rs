// SPDX-License-Identifier: GPL-2.0
//! The virtual machine control block (AMD APM volume 2, "Layout of VMCB").
//!
//! This file has the layout, `vmcb_access.rs` the methods, `vmcb_bits.rs` the bits of the fields.
#![forbid(unsafe_code)]

use core::mem::{offset_of, size_of};

use crate::model::regs::{Attr, Segment};

#[path = "vmcb_access.rs"]
mod access;
#[path = "vmcb_bits.rs"]
mod bits;

pub use bits::{event, intercept, tlb, vintr};

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
    #[inline]
    pub const fn get(self) -> Segment {
        Segment {
            base: self.base,
            limit: self.limit,
            selector: self.selector,
            attr: Attr::from_svm(self.attrib),
        }
    }

    /// From the model's type.
    #[inline]
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
struct Control {
    /// Intercepts of reads of CR0 to CR15 (low half) and writes (high half).
    intercept_cr: u32,
    /// The same for debug registers.
    intercept_dr: u32,
    /// Intercepts of exceptions by vector.
    intercept_exceptions: u32,
    /// Intercepts, low half.
    intercept1: u32,
    /// Intercepts, high half.
    intercept2: u32,
    /// Further intercepts.
    intercept3: u32,
    reserved1: [u32; 9],
    /// PAUSE filter threshold.
    pause_threshold: u16,
    /// PAUSE filter count.
    pause_count: u16,
    /// Physical address of the I/O permission map.
    iopm_base: u64,
    /// Physical address of the MSR permission map.
    msrpm_base: u64,
    /// Added to the TSC that the guest reads.
    tsc_offset: u64,
    /// Address-space identifier.
    asid: u32,
    /// TLB control, see [`bits::tlb`].
    tlb_control: u8,
    reserved2: [u8; 3],
    /// Virtual interrupt, see [`bits::vintr`].
    vintr: u64,
    /// Bit 0: interrupt shadow. Bit 1: the guest's interrupt mask.
    int_state: u64,
    /// Why the guest exited.
    exit_code: u64,
    /// Exit-specific.
    exit_info1: u64,
    /// Exit-specific.
    exit_info2: u64,
    /// The event whose delivery the exit cut short.
    exit_int_info: u64,
    /// Bit 0: nested paging.
    nested_ctl: u64,
    avic_bar: u64,
    ghcb: u64,
    /// The event to inject.
    event_inj: u64,
    /// Physical address of the nested page table's root.
    nested_cr3: u64,
    /// Virtualization of last branches and of VMSAVE and VMLOAD.
    virt_ext: u64,
    /// Parts unchanged since the last run.
    clean: u32,
    reserved3: u32,
    /// RIP of the next instruction, after an exit caused by one.
    next_rip: u64,
    /// Number of instruction bytes fetched (decode assists).
    insn_len: u8,
    /// The instruction's bytes (decode assists).
    insn_bytes: [u8; 15],
    reserved4: [u8; 800],
}

/// The state-save area, at offset 1024.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Save {
    /// ES, CS, SS, DS, FS, GS: the hardware encoding's order.
    segs: [VmcbSeg; 6],
    /// GDTR.
    gdtr: VmcbSeg,
    /// LDTR.
    ldtr: VmcbSeg,
    /// IDTR.
    idtr: VmcbSeg,
    /// TR.
    tr: VmcbSeg,
    reserved1: [u8; 0x2b],
    /// Current privilege level.
    cpl: u8,
    reserved2: u32,
    /// EFER.
    efer: u64,
    reserved3: [u8; 0x70],
    /// CR4.
    cr4: u64,
    /// CR3.
    cr3: u64,
    /// CR0.
    cr0: u64,
    /// DR7.
    dr7: u64,
    /// DR6.
    dr6: u64,
    /// RFLAGS.
    rflags: u64,
    /// RIP.
    rip: u64,
    reserved4: [u8; 0x58],
    /// RSP.
    rsp: u64,
    reserved5: [u8; 0x18],
    /// RAX.
    rax: u64,
    /// STAR.
    star: u64,
    /// LSTAR.
    lstar: u64,
    /// CSTAR.
    cstar: u64,
    /// SFMASK.
    sfmask: u64,
    /// KernelGSBase.
    kernel_gs_base: u64,
    /// SYSENTER_CS.
    sysenter_cs: u64,
    /// SYSENTER_ESP.
    sysenter_esp: u64,
    /// SYSENTER_EIP.
    sysenter_eip: u64,
    /// CR2.
    cr2: u64,
    reserved6: [u8; 0x20],
    /// The guest's PAT, with nested paging.
    g_pat: u64,
    /// DEBUGCTL.
    dbgctl: u64,
    /// Last branch records.
    last_branch: [u64; 4],
    reserved7: [u8; 0x48],
    /// The guest's SPEC_CTRL, on CPUs that switch it.
    spec_ctrl: u64,
    reserved8: [u8; 0x918],
}

/// A VMCB: one page. The fields are reached through the methods of `vmcb_access.rs` only, which keep the clean bits true.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// The control area.
    control: Control,
    /// The state-save area.
    save: Save,
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
    assert!(offset_of!(Save, spec_ctrl) == 0x2e0);
    assert!(size_of::<Save>() == 0xc00);
    assert!(size_of::<Vmcb>() == 4096);
};

#[cfg(test)]
#[path = "vmcb_tests.rs"]
mod tests;
