// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_SREGS, KVM_SET_SREGS and their successors with the PDPTEs, and the register state after reset.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Shadow, SysSeg, Table};
use crate::hv::vcpu::Loaded;
use crate::model::cr;
use crate::model::msr::{self, HwMsr};
use crate::model::regs::{rflags, Attr, Regs, Seg, Segment, TableReg, RDX};
use crate::model::sregs::{self, Sregs};
use crate::uapi::{self, kvm_dtable, kvm_segment, kvm_sregs, kvm_sregs2};

/// (Not inlined: eight copies for each vendor would be 3 kB.)
#[inline(never)]
fn segment_to(s: Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.attr.kind(),
        // VMMs look at one of the two only, or keep one of the two: what is unusable is not present, and the other way round.
        present: (s.attr.p() && !s.attr.unusable()).into(),
        dpl: s.attr.dpl(),
        db: s.attr.db().into(),
        s: s.attr.s().into(),
        l: s.attr.l().into(),
        g: s.attr.g().into(),
        avl: s.attr.avl().into(),
        unusable: s.attr.unusable().into(),
        padding: 0,
    }
}

#[inline]
fn segment_from(s: &kvm_segment) -> Segment {
    let attr = Attr::new(
        s.type_,
        s.s & 1 != 0,
        s.dpl,
        s.present & 1 != 0,
        s.avl & 1 != 0,
        s.l & 1 != 0,
        s.db & 1 != 0,
        s.g & 1 != 0,
    );
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        attr: attr.with_unusable(s.unusable != 0 || s.present & 1 == 0),
    }
}

fn table_to(t: TableReg) -> kvm_dtable {
    kvm_dtable {
        base: t.base,
        limit: t.limit,
        padding: [0; 3],
    }
}

fn table_from(t: &kvm_dtable) -> TableReg {
    TableReg {
        base: t.base,
        limit: t.limit,
    }
}

/// The registers that user space gives, as the model has them.
#[inline(never)]
fn wanted(raw: &kvm_sregs) -> Sregs {
    Sregs {
        cs: segment_from(&raw.cs),
        ds: segment_from(&raw.ds),
        es: segment_from(&raw.es),
        fs: segment_from(&raw.fs),
        gs: segment_from(&raw.gs),
        ss: segment_from(&raw.ss),
        tr: segment_from(&raw.tr),
        ldt: segment_from(&raw.ldt),
        gdt: table_from(&raw.gdt),
        idt: table_from(&raw.idt),
        cr0: raw.cr0,
        cr2: raw.cr2,
        cr3: raw.cr3,
        cr4: raw.cr4,
        cr8: raw.cr8,
        efer: raw.efer,
        apic_base: raw.apic_base,
        interrupt_bitmap: raw.interrupt_bitmap,
    }
}

/// One of the two structures: the fields that both have, from `$s`, and the others.
macro_rules! converted {
    ($to:ident, $s:expr, $($others:tt)*) => {
        $to {
            cs: $s.cs,
            ds: $s.ds,
            es: $s.es,
            fs: $s.fs,
            gs: $s.gs,
            ss: $s.ss,
            tr: $s.tr,
            ldt: $s.ldt,
            gdt: $s.gdt,
            idt: $s.idt,
            cr0: $s.cr0,
            cr2: $s.cr2,
            cr3: $s.cr3,
            cr4: $s.cr4,
            cr8: $s.cr8,
            efer: $s.efer,
            apic_base: $s.apic_base,
            $($others)*
        }
    };
}

/// The older structure, with no interrupt.
#[inline(never)]
fn older(s: &kvm_sregs2) -> kvm_sregs {
    converted!(kvm_sregs, s, interrupt_bitmap: [0; 4],)
}

/// The newer structure.
#[inline(never)]
fn newer(s: &kvm_sregs, pdptrs: Option<[u64; 4]>) -> kvm_sregs2 {
    converted!(
        kvm_sregs2,
        s,
        flags: match pdptrs {
            Some(_) => uapi::KVM_SREGS2_FLAGS_PDPTRS_VALID.into(),
            None => 0,
        },
        pdptrs: pdptrs.unwrap_or_default(),
    )
}

impl<B: Backend> Loaded<'_, B> {
    /// KVM_GET_SREGS.
    pub(crate) fn get_sregs(&mut self) -> kvm_sregs {
        self.settle_payload();
        let hw = &mut self.state.hw;
        let mut seg = |s| segment_to(B::segment(hw, s));
        let (cs, ds, es) = (seg(Seg::Cs), seg(Seg::Ds), seg(Seg::Es));
        let (fs, gs, ss) = (seg(Seg::Fs), seg(Seg::Gs), seg(Seg::Ss));
        let mut interrupt_bitmap = [0u64; 4];
        if let Some(vector) = self.state.events.injected_interrupt() {
            if let Some(word) = interrupt_bitmap.get_mut(usize::from(vector / 64)) {
                *word |= 1 << (vector % 64);
            }
        }
        kvm_sregs {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr: segment_to(B::sys_segment(hw, SysSeg::Tr)),
            ldt: segment_to(B::sys_segment(hw, SysSeg::Ldtr)),
            gdt: table_to(B::table(hw, Table::Gdt)),
            idt: table_to(B::table(hw, Table::Idt)),
            cr0: self.state.controls.cr0,
            cr2: self.state.switch.cr2,
            cr3: B::cr3(hw),
            cr4: self.state.controls.cr4,
            cr8: self.state.controls.cr8,
            efer: self.state.controls.efer,
            apic_base: msr::apic_base(&*self.state.msrs),
            interrupt_bitmap,
        }
    }

    /// KVM_SET_SREGS. EINVAL for a combination that no CPU could be in; nothing is changed then.
    pub(crate) fn set_sregs(&mut self, raw: &kvm_sregs) -> Result {
        self.check_and_load(&wanted(raw), None)
    }

    /// KVM_GET_SREGS2.
    pub(crate) fn get_sregs2(&mut self) -> kvm_sregs2 {
        let pdptrs = self.pdptrs();
        newer(&self.get_sregs(), pdptrs)
    }

    /// KVM_SET_SREGS2. EINVAL as for KVM_SET_SREGS, for unknown flags, and for PDPTEs outside of PAE paging.
    pub(crate) fn set_sregs2(&mut self, raw: &kvm_sregs2) -> Result {
        let wanted = wanted(&older(raw));
        let given = sregs::check_flags(raw.flags, &wanted).map_err(|_| EINVAL)?;
        self.check_and_load(&wanted, given.then_some(raw.pdptrs))
    }

    /// The PDPTEs in use, in PAE paging. AMD's CPUs read them from memory with each use.
    fn pdptrs(&mut self) -> Option<[u64; 4]> {
        let mode = self.mode();
        if !mode.pae_paging() {
            return None;
        }
        Some(if B::PDPTRS_IN_CONTROL_BLOCK {
            B::pdptrs(&mut self.state.hw)
        } else {
            self.read_pdptrs(mode.cr3).unwrap_or_default()
        })
    }

    fn check_and_load(&mut self, wanted: &Sregs, given: Option<[u64; 4]>) -> Result {
        let limits = *self.state.features.limits();
        let checked =
            sregs::check(wanted, &limits, msr::apic_base(&*self.state.msrs)).map_err(|_| EINVAL)?;
        let s = checked.regs();
        if msr::set_apic_base(&mut *self.state.msrs, s.apic_base) {
            self.state.cpuid_dirty = true;
        }
        self.load_sregs(s);
        if checked.load_pdptrs() && B::PDPTRS_IN_CONTROL_BLOCK {
            if let Some(pdptrs) = given.or_else(|| self.read_pdptrs(s.cr3)) {
                B::set_pdptrs(&mut self.state.hw, pdptrs);
            }
        }
        if let Some(vector) = checked.interrupt() {
            self.state.events.queue_interrupt(vector);
        }
        Ok(())
    }

    fn load_sregs(&mut self, s: &Sregs) {
        let c = &mut self.state.controls;
        c.cr0 = s.cr0;
        c.cr4 = s.cr4;
        c.efer = s.efer;
        self.state.switch.cr2 = s.cr2;
        let hw = &mut self.state.hw;
        B::set_table(hw, Table::Gdt, s.gdt);
        B::set_table(hw, Table::Idt, s.idt);
        B::set_cr3(hw, s.cr3);
        // KVM leaves CR8 as it is for a value that it cannot have.
        if let Ok(cr8) = cr::check_cr8(s.cr8) {
            self.state.controls.cr8 = cr8.into();
            B::set_cr8(&mut self.state.hw, cr8.into());
        }
        self.apply_modes();
        let hw = &mut self.state.hw;
        B::set_segment(hw, Seg::Cs, s.cs);
        B::set_segment(hw, Seg::Ds, s.ds);
        B::set_segment(hw, Seg::Es, s.es);
        B::set_segment(hw, Seg::Fs, s.fs);
        B::set_segment(hw, Seg::Gs, s.gs);
        B::set_segment(hw, Seg::Ss, s.ss);
        B::set_sys_segment(hw, SysSeg::Tr, s.tr);
        B::set_sys_segment(hw, SysSeg::Ldtr, s.ldt);
        B::flush_tlb(hw);
    }

    /// The state after RESET (Intel SDM volume 3, "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT").
    pub(crate) fn reset(&mut self) {
        let data = Segment {
            base: 0,
            limit: 0xffff,
            selector: 0,
            attr: Attr::new(3, true, 0, true, false, false, false, false),
        };
        let code = Segment {
            base: 0xffff_0000,
            selector: 0xf000,
            attr: Attr::new(0xb, true, 0, true, false, false, false, false),
            ..data
        };
        let system = |kind| Segment {
            attr: Attr::new(kind, false, 0, true, false, false, false, false),
            ..data
        };
        let table = TableReg {
            base: 0,
            limit: 0xffff,
        };
        let s = Sregs {
            cs: code,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: system(0xb),
            ldt: system(2),
            gdt: table,
            idt: table,
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            apic_base: msr::apic_base(&*self.state.msrs),
            interrupt_bitmap: [0; 4],
        };
        self.load_sregs(&s);
        let mut regs = Regs {
            rip: 0xfff0,
            rflags: rflags::FIXED,
            ..Regs::default()
        };
        // The family, model and stepping that KVM shows for a CPU without CPUID.
        regs.set(RDX, 0x600);
        self.state.switch.regs = regs;
        B::set_shadow(&mut self.state.hw, Shadow::default());
        B::set_hw_msr(
            &mut self.state.hw,
            self.resident,
            HwMsr::Pat,
            0x0007_0406_0007_0406,
        );
        self.clear_spec_ctrl();
        // The control block gets the offset.
        self.move_tsc(0);
    }
}
