// SPDX-License-Identifier: GPL-2.0
//! Loads of data segments, LDTR and TR, and the instructions that look at descriptors.
#![forbid(unsafe_code)]

use super::arg::Arg;
use super::cx::Cx;
use super::desc::{is_null, needs_protection, null, system, Descriptor, Found};
use super::insn::Kind;
use super::job::{Need, Run, Shadow, Table};
use crate::model::event::vector;
use crate::model::regs::rflags::ZF;
use crate::model::regs::{cr4, Attr, Seg, Segment};

pub(super) fn run(cx: &mut Cx<'_>, kind: Kind, a: Arg, b: Arg) -> Run<()> {
    use Kind::*;
    match kind {
        MovToSeg => {
            let seg = match Seg::from_number((cx.insn.modrm.unwrap_or(0) >> 3) & 7) {
                Some(seg) if seg != Seg::Cs => seg,
                _ => return Err(Cx::ud()),
            };
            let selector = cx.get(b)? as u16;
            load_data(cx, seg, selector)
        }
        PopSeg => {
            let Some(seg) = Seg::from_number((cx.insn.opcode >> 3) & 7) else {
                return Err(Cx::ud());
            };
            let selector = cx.pop(cx.insn.op_size)? as u16;
            load_data(cx, seg, selector)
        }
        LoadFar => load_far(cx, a),
        Sldt | Str => {
            needs_protection(cx)?;
            user_prevention(cx)?;
            let which = if kind == Sldt { Table::Ldt } else { Table::Tss };
            let selector = cx.table(which)?.selector;
            cx.put(a, u64::from(selector))
        }
        Lldt | Ltr => {
            needs_protection(cx)?;
            cx.privileged()?;
            let selector = cx.get(a)? as u16;
            load_system(cx, kind, selector)
        }
        Lar | Lsl => look(cx, kind, a, b),
        Verr | Verw => {
            needs_protection(cx)?;
            let selector = cx.get(a)? as u16;
            let ok = match visible(cx, selector)? {
                Some(f) if kind == Verr => f.desc.is_readable(),
                Some(f) => f.desc.is_writable(),
                None => false,
            };
            set_zero(cx, ok);
            Ok(())
        }
        _ => {
            needs_protection(cx)?;
            let rpl = cx.get(b)? & 3;
            let mut raised = false;
            cx.update(a, |old, flags| {
                raised = old & 3 < rpl;
                let new = if raised { (old & !3) | rpl } else { old };
                let flags = if raised { flags | ZF } else { flags & !ZF };
                (new, flags)
            })?;
            Ok(())
        }
    }
}

/// #GP where CR4.UMIP keeps user mode from the system's registers.
pub(super) fn user_prevention(cx: &Cx<'_>) -> Run<()> {
    if cx.ctx.cpl != 0 && cx.ctx.cr4 & cr4::UMIP != 0 {
        return Err(cx.gp());
    }
    Ok(())
}

fn set_zero(cx: &mut Cx<'_>, yes: bool) {
    if yes {
        cx.regs.rflags |= ZF;
    } else {
        cx.regs.rflags &= !ZF;
    }
}

/// Loads a segment register other than CS.
fn load_data(cx: &mut Cx<'_>, seg: Seg, selector: u16) -> Run<()> {
    let value = data_segment(cx, seg, selector, cx.ctx.cpl)?;
    cx.load(seg, value)?;
    if seg == Seg::Ss {
        cx.shadow = Shadow::MovSs;
    }
    Ok(())
}

/// LDS, LES, LSS, LFS, LGS: a far pointer to a segment register and a general one.
fn load_far(cx: &mut Cx<'_>, a: Arg) -> Run<()> {
    let seg = match cx.insn.opcode {
        0xb2 => Seg::Ss,
        0xb4 => Seg::Fs,
        0xb5 => Seg::Gs,
        0xc4 => Seg::Es,
        _ => Seg::Ds,
    };
    let (offset, selector) = far_pointer(cx)?;
    let value = data_segment(cx, seg, selector, cx.ctx.cpl)?;
    cx.load(seg, value)?;
    cx.put(a, offset)
}

/// The far pointer in memory: an offset of operand size, then a selector.
pub(super) fn far_pointer(cx: &mut Cx<'_>) -> Run<(u64, u16)> {
    if cx.insn.mem.is_none() {
        return Err(Cx::ud());
    }
    let size = cx.insn.op_size;
    let at = cx.operand(size.wrapping_add(2), false)?;
    let offset = cx.read(at, size, false)?;
    let selector = cx.read(cx.advance(at, u64::from(size)), 2, false)?;
    Ok((offset, selector as u16))
}

/// The segment that a selector gives in real and virtual-8086 mode.
pub(super) fn real_segment(cx: &Cx<'_>, seg: Seg, selector: u16) -> Segment {
    let base = u64::from(selector) << 4;
    if cx.vm86() {
        return vm86_segment(selector);
    }
    // The rest stays: "unreal" mode lives on that.
    Segment {
        base,
        selector,
        ..*cx.ctx.segs.get(seg)
    }
}

/// A segment register of virtual-8086 mode.
pub(super) const fn vm86_segment(selector: u16) -> Segment {
    Segment {
        base: (selector as u64) << 4,
        limit: 0xffff,
        selector,
        attr: Attr::new(3, true, 3, true, false, false, false, false),
    }
}

/// What a selector gives for a data segment or the stack, at privilege level `cpl`.
pub(super) fn data_segment(cx: &mut Cx<'_>, seg: Seg, selector: u16, cpl: u8) -> Run<Segment> {
    if !cx.protected() {
        return Ok(real_segment(cx, seg, selector));
    }
    let rpl = selector as u8 & 3;
    if is_null(selector) {
        // 64-bit code may do without a stack segment, except in user mode.
        let stack_ok = cx.long_mode() && cpl != 3 && rpl == cpl;
        return if seg == Seg::Ss && !stack_ok {
            Err(cx.gp())
        } else {
            Ok(null(selector, if seg == Seg::Ss { cpl } else { 0 }))
        };
    }
    let found = cx.descriptor(selector, vector::GP)?;
    if seg == Seg::Ss {
        return stack_segment(cx, &found, selector, cpl, vector::GP);
    }
    let (desc, dpl) = (found.desc, found.desc.attr().dpl());
    let allowed = desc.is_conforming() || rpl <= dpl && cpl <= dpl;
    if !desc.is_readable() || !allowed {
        return Err(Cx::selector_fault(vector::GP, selector));
    }
    present(desc, vector::NP, selector)?;
    accessed(cx, &found, selector)
}

/// A descriptor for SS at privilege level `cpl`; what does not fit raises `fault`.
pub(super) fn stack_segment(
    cx: &mut Cx<'_>,
    found: &Found,
    selector: u16,
    cpl: u8,
    fault: u8,
) -> Run<Segment> {
    let desc = found.desc;
    let fits = selector as u8 & 3 == cpl && desc.is_writable() && desc.attr().dpl() == cpl;
    if !fits {
        return Err(Cx::selector_fault(fault, selector));
    }
    present(desc, vector::SS, selector)?;
    accessed(cx, found, selector)
}

/// The fault of a descriptor that is not present.
pub(super) fn present(desc: Descriptor, vector: u8, selector: u16) -> Run<()> {
    if desc.attr().p() {
        Ok(())
    } else {
        Err(Cx::selector_fault(vector, selector))
    }
}

/// Sets the accessed bit in memory and in what is loaded.
pub(super) fn accessed(cx: &mut Cx<'_>, found: &Found, selector: u16) -> Run<Segment> {
    cx.mark(found, 1, 0)?;
    let mut segment = found.desc.segment(selector);
    segment.attr.0 |= 1;
    Ok(segment)
}

/// LLDT and LTR.
fn load_system(cx: &mut Cx<'_>, kind: Kind, selector: u16) -> Run<()> {
    let task = kind == Kind::Ltr;
    let table = if task { Table::Tss } else { Table::Ldt };
    if is_null(selector) {
        if task {
            return Err(cx.gp());
        }
        let value = null(selector, 0);
        return cx.tell(Need::WriteTable { table, value });
    }
    let wrong = Cx::selector_fault(vector::GP, selector);
    if selector & 4 != 0 {
        return Err(wrong);
    }
    let found = cx.descriptor(selector, vector::GP)?;
    let fits = match found.desc.system() {
        Some(system::TSS) => task,
        Some(system::TSS16) => task && !cx.ctx.long(),
        Some(system::LDT) => !task,
        _ => false,
    };
    if !fits {
        return Err(wrong);
    }
    present(found.desc, vector::NP, selector)?;
    let mut value = found.desc.segment(selector);
    if cx.ctx.long() {
        let upper = cx.upper_half(&found, selector)?;
        value.base |= upper << 32;
        if !cx.canonical(value.base) || (upper >> 40) & 0x1f != 0 {
            return Err(wrong);
        }
    }
    if task {
        cx.mark(&found, 2, 0)?;
        value.attr.0 |= 2;
    }
    cx.tell(Need::WriteTable { table, value })
}

/// The descriptor, if there is one and the privilege levels let it be seen.
fn visible(cx: &mut Cx<'_>, selector: u16) -> Run<Option<Found>> {
    if is_null(selector) {
        return Ok(None);
    }
    let found = cx.look_up(selector)?;
    let (cpl, rpl) = (cx.ctx.cpl, selector as u8 & 3);
    Ok(found.filter(|f| {
        let dpl = f.desc.attr().dpl();
        f.desc.is_conforming() || cpl <= dpl && rpl <= dpl
    }))
}

/// LAR and LSL.
fn look(cx: &mut Cx<'_>, kind: Kind, a: Arg, b: Arg) -> Run<()> {
    needs_protection(cx)?;
    let selector = cx.get(b)? as u16;
    let long = cx.ctx.long();
    let found = visible(cx, selector)?.filter(|f| match f.desc.system() {
        None => true,
        Some(system::TSS16) | Some(3) => !long,
        Some(system::LDT | system::TSS | system::TSS_BUSY) => true,
        Some(system::CALL16 | system::TASK) => kind == Kind::Lar && !long,
        Some(system::CALL) => kind == Kind::Lar,
        Some(_) => false,
    });
    let Some(found) = found else {
        set_zero(cx, false);
        return Ok(());
    };
    if long && !found.desc.is_segment() {
        // The upper half has no type of its own.
        let upper = cx.upper_half(&found, selector);
        match upper {
            Ok(upper) if (upper >> 40) & 0x1f == 0 => {}
            Err(stop) if !stop.is_fault() => return Err(stop),
            _ => {
                set_zero(cx, false);
                return Ok(());
            }
        }
    }
    set_zero(cx, true);
    let value = match kind {
        Kind::Lar => (found.desc.0 >> 32) & 0xff_ff00,
        _ => u64::from(found.desc.limit()),
    };
    cx.put(a, value)
}
