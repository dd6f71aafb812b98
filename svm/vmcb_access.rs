// SPDX-License-Identifier: GPL-2.0
//! The VMCB's fields as methods, and the clean bits (AMD APM volume 2, "VMCB State Caching").
//!
//! A CPU with clean bits may keep parts of a VMCB from one run to the next. A bit that is set says: this part is what you
//! left in memory at the last exit. Each method that changes a field of such a part clears the part's bit, and nothing else can
//! change a field, so a part that is not up to date in the CPU never looks clean.
#![forbid(unsafe_code)]

use super::{bits, Vmcb, VmcbSeg};
use crate::model::regs::Seg;
use crate::svm::asid::{Tlb, VcpuAsid};

/// The parts that have a clean bit, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Part {
    /// Intercepts, TSC offset, PAUSE filter.
    Intercepts = 0,
    /// Addresses of the permission maps.
    PermissionMaps = 1,
    /// Address-space identifier.
    Asid = 2,
    /// Virtual interrupts and the task priority.
    Interrupts = 3,
    /// Nested paging and the guest's PAT.
    NestedPaging = 4,
    /// CR0, CR3, CR4, EFER.
    ControlRegisters = 5,
    /// DR6, DR7.
    DebugRegisters = 6,
    /// GDTR, IDTR.
    Tables = 7,
    /// CS, DS, SS, ES, CPL.
    Segments = 8,
    /// CR2.
    Cr2 = 9,
    /// Last branch records, DEBUGCTL.
    LastBranch = 10,
}

/// All parts: the bits that are set after a run.
const ALL_CLEAN: u32 = (1 << 11) - 1;

/// Declares for each field a method that reads it and, if it is not the CPU's alone, one that writes it. The part in
/// brackets is the one whose clean bit a change clears; fields without one are read from memory at each VMRUN or VMLOAD.
macro_rules! fields {
    ($( $(#[$doc:meta])* $area:ident.$field:ident: $type:ty $(, $set:ident $([$part:ident])?)?; )*) => {
        impl Vmcb {
            $(
                $(#[$doc])*
                #[inline]
                pub const fn $field(&self) -> $type {
                    self.$area.$field
                }
                $(
                    #[doc = concat!("Sets [`Vmcb::", stringify!($field), "`].")]
                    #[inline]
                    pub fn $set(&mut self, value: $type) {
                        if self.$area.$field != value {
                            self.$area.$field = value;
                            $( self.changed(Part::$part); )?
                        }
                    }
                )?
            )*
        }

        /// Every method above that writes, for the tests.
        #[cfg(test)]
        pub const SETTERS: &[(&str, fn(&mut Vmcb, u64))] = &[
            $( $( (stringify!($field), |v, x| v.$set(x as $type)), )? )*
        ];
    };
}

fields! {
    /// Intercepts of reads of CR0 to CR15 (low half) and writes (high half).
    control.intercept_cr: u32, set_intercept_cr [Intercepts];
    /// The same for debug registers.
    control.intercept_dr: u32, set_intercept_dr [Intercepts];
    /// Intercepts of exceptions by vector.
    control.intercept_exceptions: u32, set_intercept_exceptions [Intercepts];
    /// Further intercepts, such as [`bits::intercept::INVPCID`].
    control.intercept3: u32, set_intercept3 [Intercepts];
    /// PAUSE filter threshold.
    control.pause_threshold: u16, set_pause_threshold [Intercepts];
    /// PAUSE filter count.
    control.pause_count: u16, set_pause_count [Intercepts];
    /// Physical address of the I/O permission map.
    control.iopm_base: u64, set_iopm_base [PermissionMaps];
    /// Physical address of the MSR permission map.
    control.msrpm_base: u64, set_msrpm_base [PermissionMaps];
    /// Added to the TSC that the guest reads.
    control.tsc_offset: u64, set_tsc_offset [Intercepts];
    /// Address-space identifier; see [`Vmcb::set_tag`].
    control.asid: u32;
    /// TLB control, one of [`bits::tlb`]; see [`Vmcb::set_tag`].
    control.tlb_control: u8;
    /// Virtual interrupt, see [`bits::vintr`].
    control.vintr: u64, set_vintr [Interrupts];
    /// Bit 0: interrupt shadow. Bit 1: the guest's interrupt mask.
    control.int_state: u64, set_int_state;
    /// Why the guest exited.
    control.exit_code: u64;
    /// Exit-specific.
    control.exit_info1: u64;
    /// Exit-specific.
    control.exit_info2: u64;
    /// The event whose delivery the exit cut short.
    control.exit_int_info: u64;
    /// Bit 0: nested paging.
    control.nested_ctl: u64, set_nested_ctl [NestedPaging];
    /// The event to inject.
    control.event_inj: u64, set_event_inj;
    /// Physical address of the nested page table's root.
    control.nested_cr3: u64, set_nested_cr3 [NestedPaging];
    /// Virtualization of last branches and of VMSAVE and VMLOAD.
    control.virt_ext: u64, set_virt_ext [LastBranch];
    /// RIP of the next instruction, after an exit caused by one.
    control.next_rip: u64, set_next_rip;
    /// The guest's SPEC_CTRL, on CPUs that switch it.
    save.spec_ctrl: u64, set_spec_ctrl;
    /// LDTR.
    save.ldtr: VmcbSeg;
    /// TR.
    save.tr: VmcbSeg;
    /// GDTR.
    save.gdtr: VmcbSeg;
    /// IDTR.
    save.idtr: VmcbSeg;
    /// Current privilege level.
    save.cpl: u8, set_cpl [Segments];
    /// EFER.
    save.efer: u64, set_efer [ControlRegisters];
    /// CR4.
    save.cr4: u64, set_cr4 [ControlRegisters];
    /// CR3.
    save.cr3: u64, set_cr3 [ControlRegisters];
    /// CR0.
    save.cr0: u64, set_cr0 [ControlRegisters];
    /// DR7.
    save.dr7: u64, set_dr7 [DebugRegisters];
    /// DR6.
    save.dr6: u64, set_dr6 [DebugRegisters];
    /// RFLAGS.
    save.rflags: u64, set_rflags;
    /// RIP.
    save.rip: u64, set_rip;
    /// RSP.
    save.rsp: u64, set_rsp;
    /// RAX.
    save.rax: u64, set_rax;
    /// STAR.
    save.star: u64, set_star;
    /// LSTAR.
    save.lstar: u64, set_lstar;
    /// CSTAR.
    save.cstar: u64, set_cstar;
    /// SFMASK.
    save.sfmask: u64, set_sfmask;
    /// KernelGSBase.
    save.kernel_gs_base: u64, set_kernel_gs_base;
    /// SYSENTER_CS.
    save.sysenter_cs: u64, set_sysenter_cs;
    /// SYSENTER_ESP.
    save.sysenter_esp: u64, set_sysenter_esp;
    /// SYSENTER_EIP.
    save.sysenter_eip: u64, set_sysenter_eip;
    /// CR2.
    save.cr2: u64, set_cr2 [Cr2];
    /// The guest's PAT, with nested paging.
    save.g_pat: u64, set_g_pat [NestedPaging];
    /// DEBUGCTL.
    save.dbgctl: u64, set_dbgctl [LastBranch];
}

impl Vmcb {
    #[inline]
    fn changed(&mut self, part: Part) {
        self.control.clean &= !(1 << part as u32);
    }

    /// The clean bits, for the CPU (and the tests).
    pub const fn clean(&self) -> u32 {
        self.control.clean
    }

    /// The guest ran up to an exit: the CPU holds what memory does, if it is one that has clean bits (`cached`).
    #[inline]
    pub fn ran(&mut self, cached: bool) {
        self.control.clean = if cached { ALL_CLEAN } else { 0 };
    }

    /// No CPU is known to hold anything of this VMCB.
    #[inline]
    pub fn forget(&mut self) {
        self.control.clean = 0;
    }

    /// The address-space identifier of the next run and the flush that it needs, as [`crate::svm::asid`] assigned them; `before` is the
    /// identifier of the run before. Another one may mean another CPU, or one that was off meanwhile.
    pub fn set_tag(&mut self, before: VcpuAsid, now: VcpuAsid, flush: Tlb) {
        if before != now {
            self.forget();
        }
        if self.control.asid != now.asid {
            self.control.asid = now.asid;
            self.changed(Part::Asid);
        }
        self.control.tlb_control = match flush {
            Tlb::Keep => bits::tlb::KEEP,
            Tlb::FlushAsid => bits::tlb::FLUSH_ASID,
            Tlb::FlushAll => bits::tlb::FLUSH_ALL,
        };
    }

    /// Intercepts, see [`bits::intercept`].
    #[inline]
    pub fn intercepts(&self) -> u64 {
        u64::from(self.control.intercept1) | u64::from(self.control.intercept2) << 32
    }

    /// Sets [`Vmcb::intercepts`].
    pub fn set_intercepts(&mut self, value: u64) {
        if self.intercepts() != value {
            self.control.intercept1 = value as u32;
            self.control.intercept2 = (value >> 32) as u32;
            self.changed(Part::Intercepts);
        }
    }

    /// A segment register.
    #[inline]
    pub const fn segment(&self, seg: Seg) -> VmcbSeg {
        let [es, cs, ss, ds, fs, gs] = &self.save.segs;
        *match seg {
            Seg::Es => es,
            Seg::Cs => cs,
            Seg::Ss => ss,
            Seg::Ds => ds,
            Seg::Fs => fs,
            Seg::Gs => gs,
        }
    }

    /// Sets a segment register.
    #[inline]
    pub fn set_segment(&mut self, seg: Seg, value: VmcbSeg) {
        let [es, cs, ss, ds, fs, gs] = &mut self.save.segs;
        let (register, part) = match seg {
            Seg::Es => (es, Some(Part::Segments)),
            Seg::Cs => (cs, Some(Part::Segments)),
            Seg::Ss => (ss, Some(Part::Segments)),
            Seg::Ds => (ds, Some(Part::Segments)),
            // VMLOAD's.
            Seg::Fs => (fs, None),
            Seg::Gs => (gs, None),
        };
        *register = value;
        if let Some(part) = part {
            self.changed(part);
        }
    }

    /// Sets the base of a segment register.
    pub fn set_base(&mut self, seg: Seg, base: u64) {
        let value = self.segment(seg);
        self.set_segment(seg, VmcbSeg { base, ..value });
    }

    /// Sets [`Vmcb::gdtr`].
    pub fn set_gdtr(&mut self, value: VmcbSeg) {
        self.save.gdtr = value;
        self.changed(Part::Tables);
    }

    /// Sets [`Vmcb::idtr`].
    pub fn set_idtr(&mut self, value: VmcbSeg) {
        self.save.idtr = value;
        self.changed(Part::Tables);
    }

    /// Sets [`Vmcb::ldtr`].
    pub fn set_ldtr(&mut self, value: VmcbSeg) {
        self.save.ldtr = value;
    }

    /// Sets [`Vmcb::tr`].
    pub fn set_tr(&mut self, value: VmcbSeg) {
        self.save.tr = value;
    }

    /// The bytes of the instruction that the CPU fetched before a nested page fault; empty if it gives none (decode assists).
    pub fn insn_bytes(&self) -> &[u8] {
        let n = usize::from(self.control.insn_len & 15);
        self.control.insn_bytes.get(..n).unwrap_or(&[])
    }
}
