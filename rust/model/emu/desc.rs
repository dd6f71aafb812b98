// SPDX-License-Identifier: GPL-2.0
//! Descriptors in the tables, and reading them as the CPU does.
#![forbid(unsafe_code)]

use super::cx::Cx;
use super::job::{AccessAs, Need, Run, Stop, Table};
use crate::model::event::vector;
use crate::model::regs::{Attr, Segment};

/// Types of system descriptors.
pub(super) mod system {
    /// 16-bit TSS, available; bit 1 is "busy", bit 3 makes it a 32- or 64-bit one.
    pub(in super::super) const TSS16: u8 = 1;
    /// Local descriptor table.
    pub(in super::super) const LDT: u8 = 2;
    /// 16-bit call gate.
    pub(in super::super) const CALL16: u8 = 4;
    /// Task gate.
    pub(in super::super) const TASK: u8 = 5;
    /// 16-bit interrupt gate.
    pub(in super::super) const INT16: u8 = 6;
    /// 16-bit trap gate.
    pub(in super::super) const TRAP16: u8 = 7;
    /// 32- or 64-bit TSS, available.
    pub(in super::super) const TSS: u8 = 9;
    /// 32- or 64-bit TSS, busy.
    pub(in super::super) const TSS_BUSY: u8 = 11;
    /// 32- or 64-bit call gate.
    pub(in super::super) const CALL: u8 = 12;
    /// 32- or 64-bit interrupt gate.
    pub(in super::super) const INT: u8 = 14;
    /// 32- or 64-bit trap gate.
    pub(in super::super) const TRAP: u8 = 15;
}

/// The eight bytes of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor(pub(super) u64);

impl Descriptor {
    /// Type, S, DPL, P and so on.
    pub(super) const fn attr(self) -> Attr {
        Attr((self.0 >> 40) as u16 & 0xf0ff)
    }
    /// The limit in bytes.
    pub(super) const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | (self.0 >> 32) & 0xf_0000) as u32;
        if self.attr().g() {
            (raw << 12) | 0xfff
        } else {
            raw
        }
    }
    /// The base as far as these eight bytes have it.
    pub(super) const fn base(self) -> u64 {
        (self.0 >> 16) & 0xff_ffff | (self.0 >> 32) & 0xff00_0000
    }
    /// Code or data.
    pub(super) const fn is_segment(self) -> bool {
        self.attr().s()
    }
    /// A code segment.
    pub(super) const fn is_code(self) -> bool {
        self.is_segment() && self.attr().kind() & 8 != 0
    }
    /// A code segment that keeps the caller's privilege level.
    pub(super) const fn is_conforming(self) -> bool {
        self.is_code() && self.attr().kind() & 4 != 0
    }
    /// A data segment that can be written.
    pub(super) const fn is_writable(self) -> bool {
        self.is_segment() && self.attr().kind() & 0xa == 2
    }
    /// A segment that can be read.
    pub(super) const fn is_readable(self) -> bool {
        self.is_segment() && (self.attr().kind() & 8 == 0 || self.attr().kind() & 2 != 0)
    }
    /// The type, if it describes no segment.
    pub(super) const fn system(self) -> Option<u8> {
        if self.is_segment() {
            None
        } else {
            Some(self.attr().kind())
        }
    }
    /// What loading it into a segment register gives.
    pub(super) const fn segment(self, selector: u16) -> Segment {
        Segment {
            base: self.base(),
            limit: self.limit(),
            selector,
            attr: self.attr(),
        }
    }
    /// A gate's target selector.
    pub(super) const fn target(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// A gate's target offset, as far as these eight bytes have it.
    pub(super) const fn offset(self) -> u64 {
        self.0 & 0xffff | (self.0 >> 32) & 0xffff_0000
    }
}

/// Whether a selector is a null selector.
pub(super) const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// A descriptor and where it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) desc: Descriptor,
    /// Its linear address.
    at: u64,
    /// The last byte of its table, counted from `at`.
    left: u64,
}

impl Cx<'_> {
    /// The descriptor that `selector` names; `None` beyond its table.
    pub(super) fn look_up(&mut self, selector: u16) -> Run<Option<Found>> {
        let table = self.descriptor_table(selector)?;
        let offset = u64::from(selector & !7);
        let Some(left) = u64::from(table.limit).checked_sub(offset) else {
            return Ok(None);
        };
        if table.attr.unusable() || left < 7 {
            return Ok(None);
        }
        let at = self.system_address(table.base, offset);
        let raw = self.read_system(at, 8)?;
        let desc = Descriptor(raw);
        Ok(Some(Found { desc, at, left }))
    }

    /// As [`Self::look_up`]; beyond the table is a fault with this vector.
    pub(super) fn descriptor(&mut self, selector: u16, vector: u8) -> Run<Found> {
        let found = self.look_up(selector)?;
        found.ok_or(Self::selector_fault(vector, selector))
    }

    /// GDTR or LDTR; each is asked for once.
    fn descriptor_table(&mut self, selector: u16) -> Run<Segment> {
        let local = selector & 4 != 0;
        let known = if local { self.ldt } else { self.gdt };
        if let Some(table) = known {
            return Ok(table);
        }
        let table = self.table(if local { Table::Ldt } else { Table::Gdt })?;
        if local {
            self.ldt = Some(table);
        } else {
            self.gdt = Some(table);
        }
        Ok(table)
    }

    /// The upper eight bytes of a descriptor of sixteen, which long mode has for system segments and gates.
    pub(super) fn upper_half(&mut self, found: &Found, selector: u16) -> Run<u64> {
        if found.left < 15 {
            return Err(Self::selector_fault(vector::GP, selector));
        }
        let at = self.system_address(found.at, 8);
        self.read_system(at, 8)
    }

    /// Sets bits of the type in memory, with a locked access: "accessed" and "busy".
    pub(super) fn mark(&mut self, found: &Found, set: u8, clear: u8) -> Run<()> {
        let old = found.desc.attr().0 as u8;
        let new = (old | set) & !clear;
        if new == old {
            return Ok(());
        }
        let at = self.system_address(found.at, 5);
        self.access(AccessAs::System, |cx| {
            cx.exchange(at, 1, u128::from(old), u128::from(new))
        })
    }

    /// An address in a table: 32 bits wide outside of long mode.
    pub(super) fn system_address(&self, base: u64, offset: u64) -> u64 {
        let at = base.wrapping_add(offset);
        if self.ctx.long() {
            at
        } else {
            at & 0xffff_ffff
        }
    }

    /// Reads with the CPU's own rights.
    pub(super) fn read_system(&mut self, at: u64, size: u8) -> Run<u64> {
        if self.ctx.long() && !self.canonical(at) {
            return Err(self.gp());
        }
        self.access(AccessAs::System, |cx| cx.read(at, size, false))
    }

    /// Asks for a segment register to be loaded. Everything that can fault comes before.
    pub(super) fn load(&mut self, seg: crate::model::regs::Seg, value: Segment) -> Run<()> {
        self.tell(Need::LoadSeg { seg, value })
    }
}

/// A segment register after a null selector was loaded; SS keeps the privilege level in its attributes.
pub(super) const fn null(selector: u16, dpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: 0,
        selector,
        attr: Attr(0).with_dpl(dpl).with_unusable(true),
    }
}

/// #UD outside of protected mode.
pub(super) fn needs_protection(cx: &Cx<'_>) -> Result<(), Stop> {
    if cx.protected() {
        Ok(())
    } else {
        Err(Cx::ud())
    }
}
