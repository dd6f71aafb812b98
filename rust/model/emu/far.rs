// SPDX-License-Identifier: GPL-2.0
//! Far JMP, CALL and RET, to code segments, through call gates and to tasks.
#![forbid(unsafe_code)]

use super::alu;
use super::cx::{to_page_end, Cx};
use super::desc::{is_null, null, system, Descriptor, Found};
use super::insn::Kind;
use super::job::{AccessAs, Run, Stop, Table, TaskReason};
use super::seg::{accessed, far_pointer, present, real_segment, stack_segment};
use super::stack::Stack;
use crate::model::event::vector;
use crate::model::regs::{Seg, Segment, RSP};

pub(super) fn run(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    use Kind::*;
    let (offset, selector) = match kind {
        JmpFar | CallFar => (cx.insn.imm, cx.insn.imm2),
        JmpFarMem | CallFarMem => far_pointer(cx)?,
        _ => return ret(cx),
    };
    let call = matches!(kind, CallFar | CallFarMem);
    if !cx.protected() {
        return transfer_real(cx, call, offset, selector);
    }
    if is_null(selector) {
        return Err(cx.gp());
    }
    let found = cx.descriptor(selector, vector::GP)?;
    if found.desc.is_code() {
        let target = Code::direct(cx, &found, selector)?;
        return transfer(cx, call, &target, offset, cx.insn.op_size);
    }
    match found.desc.system() {
        Some(system::CALL16) if !cx.ctx.long() => gate(cx, call, &found, selector, 2),
        Some(system::CALL) if !cx.ctx.long() => gate(cx, call, &found, selector, 4),
        Some(system::CALL) => gate(cx, call, &found, selector, 8),
        Some(kind @ (system::TASK | system::TSS | system::TSS16)) if !cx.ctx.long() => {
            task(cx, call, &found, selector, kind == system::TASK)
        }
        _ => Err(Cx::selector_fault(vector::GP, selector)),
    }
}

/// A code segment that passed the checks of its descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code {
    pub(super) found: Found,
    /// With the privilege level it will run at.
    pub(super) selector: u16,
    pub(super) cpl: u8,
}

impl Code {
    fn desc(&self) -> Descriptor {
        self.found.desc
    }

    /// 64-bit code.
    pub(super) fn long(&self, cx: &Cx<'_>) -> bool {
        cx.ctx.long() && self.desc().attr().l()
    }

    /// The target of a jump or call without a gate: the privilege level stays.
    fn direct(cx: &Cx<'_>, found: &Found, selector: u16) -> Run<Self> {
        let (desc, cpl) = (found.desc, cx.ctx.cpl);
        let (attr, rpl) = (desc.attr(), selector as u8 & 3);
        let allowed = if desc.is_conforming() {
            attr.dpl() <= cpl
        } else {
            rpl <= cpl && attr.dpl() == cpl
        };
        if !allowed || cx.ctx.long() && attr.l() && attr.db() {
            return Err(Cx::selector_fault(vector::GP, selector));
        }
        present(desc, vector::NP, selector)?;
        Ok(Self {
            found: *found,
            selector: (selector & !3) | u16::from(cpl),
            cpl,
        })
    }

    /// The target of a return to privilege level RPL.
    pub(super) fn returned(cx: &mut Cx<'_>, selector: u16) -> Run<Self> {
        if is_null(selector) {
            return Err(cx.gp());
        }
        let found = cx.descriptor(selector, vector::GP)?;
        let (desc, rpl) = (found.desc, selector as u8 & 3);
        let attr = desc.attr();
        let allowed = if desc.is_conforming() {
            attr.dpl() <= rpl
        } else {
            attr.dpl() == rpl
        };
        let both = cx.ctx.long() && attr.l() && attr.db();
        if !desc.is_code() || rpl < cx.ctx.cpl || !allowed || both {
            return Err(Cx::selector_fault(vector::GP, selector));
        }
        present(desc, vector::NP, selector)?;
        Ok(Self {
            found,
            selector,
            cpl: rpl,
        })
    }

    /// The target of a gate, whose code is at least as privileged as the caller.
    pub(super) fn through_gate(cx: &mut Cx<'_>, selector: u16) -> Run<Self> {
        if is_null(selector) {
            return Err(cx.gp());
        }
        let found = cx.descriptor(selector, vector::GP)?;
        let (desc, attr) = (found.desc, found.desc.attr());
        let wrong_size = cx.ctx.long() && (!attr.l() || attr.db());
        let cpl = if cx.vm86() { 3 } else { cx.ctx.cpl };
        if !desc.is_code() || attr.dpl() > cpl || wrong_size {
            return Err(Cx::selector_fault(vector::GP, selector));
        }
        present(desc, vector::NP, selector)?;
        let cpl = if desc.is_conforming() {
            cpl
        } else {
            attr.dpl()
        };
        Ok(Self {
            found,
            selector: (selector & !3) | u16::from(cpl),
            cpl,
        })
    }

    /// #GP(0) unless the segment reaches as far as `offset`.
    pub(super) fn reaches(&self, cx: &Cx<'_>, offset: u64) -> Run<()> {
        let inside = if self.long(cx) {
            cx.canonical(offset)
        } else {
            offset <= u64::from(self.desc().limit())
        };
        if inside {
            Ok(())
        } else {
            Err(cx.gp())
        }
    }

    /// What goes to CS. Marks the descriptor as accessed.
    pub(super) fn segment(&self, cx: &mut Cx<'_>) -> Run<Segment> {
        accessed(cx, &self.found, self.selector)
    }
}

/// Pushes CS and the address of the next instruction.
fn push_return(cx: &mut Cx<'_>, size: u8) -> Run<()> {
    let cs = cx.ctx.segs.get(Seg::Cs).selector;
    cx.push(size, u64::from(cs))?;
    cx.push(size, cx.insn.next_rip(cx.regs.rip))
}

fn transfer_real(cx: &mut Cx<'_>, call: bool, offset: u64, selector: u16) -> Run<()> {
    let size = cx.insn.op_size;
    if call {
        cx.stack_room(size, 2)?;
    }
    if offset > u64::from(cx.ctx.segs.get(Seg::Cs).limit) {
        return Err(cx.gp());
    }
    if call {
        push_return(cx, size)?;
    }
    let cs = real_segment(cx, Seg::Cs, selector);
    cx.load(Seg::Cs, cs)?;
    cx.target = Some(offset);
    Ok(())
}

/// To code of the same privilege level.
fn transfer(cx: &mut Cx<'_>, call: bool, code: &Code, offset: u64, size: u8) -> Run<()> {
    // Out of compatibility mode too: there the offset is a gate's, or has no more than 32 bits anyway.
    let offset = if code.long(cx) {
        offset
    } else {
        offset & 0xffff_ffff
    };
    if call {
        cx.stack_room(size, 2)?;
    }
    code.reaches(cx, offset)?;
    if call {
        push_return(cx, size)?;
    }
    let cs = code.segment(cx)?;
    cx.load(Seg::Cs, cs)?;
    cx.target = Some(offset);
    Ok(())
}

/// Through a call gate whose entries on the stack are `size` bytes wide.
fn gate(cx: &mut Cx<'_>, call: bool, found: &Found, selector: u16, size: u8) -> Run<()> {
    let desc = found.desc;
    let least = cx.ctx.cpl.max(selector as u8 & 3);
    if desc.attr().dpl() < least {
        return Err(Cx::selector_fault(vector::GP, selector));
    }
    present(desc, vector::NP, selector)?;
    let mut offset = desc.offset();
    if size == 8 {
        let upper = cx.upper_half(found, selector)?;
        if (upper >> 40) & 0x1f != 0 {
            return Err(Cx::selector_fault(vector::GP, selector));
        }
        offset |= upper << 32;
    } else {
        offset &= alu::mask(size);
    }
    let code = Code::through_gate(cx, desc.target())?;
    if code.cpl == cx.ctx.cpl {
        return transfer(cx, call, &code, offset, size);
    }
    if !call {
        // A jump cannot raise the privilege level.
        return Err(Cx::selector_fault(vector::GP, desc.target()));
    }
    inward(cx, &code, offset, size, (desc.0 >> 32) as u8 & 0x1f)
}

/// A call to an inner privilege level, with `count` parameters copied to its stack.
fn inward(cx: &mut Cx<'_>, code: &Code, offset: u64, size: u8, count: u8) -> Run<()> {
    let mut stack = inner_stack(cx, code.cpl, None)?;
    let count = if size == 8 { 0 } else { count };
    stack.room(cx, size, count.wrapping_add(4))?;
    code.reaches(cx, offset)?;
    let cs = code.segment(cx)?;
    let (ss, sp) = (cx.ctx.segs.get(Seg::Ss).selector, cx.regs.get(RSP));
    cx.access(AccessAs::Supervisor, |cx| {
        stack.push(cx, size, u64::from(ss))?;
        stack.push(cx, size, sp)
    })?;
    for n in (0..count).rev() {
        copy_parameter(
            cx,
            &mut stack,
            u64::from(n).wrapping_mul(u64::from(size)),
            size,
        )?;
    }
    let old_cs = cx.ctx.segs.get(Seg::Cs).selector;
    let back = cx.insn.next_rip(cx.regs.rip);
    cx.access(AccessAs::Supervisor, |cx| {
        stack.push(cx, size, u64::from(old_cs))?;
        stack.push(cx, size, back)
    })?;
    cx.load(Seg::Ss, stack.ss)?;
    cx.load(Seg::Cs, cs)?;
    set_stack(cx, &stack);
    cx.target = Some(offset);
    Ok(())
}

/// Takes over the stack pointer.
pub(super) fn set_stack(cx: &mut Cx<'_>, stack: &Stack) {
    let old = cx.regs.get(RSP);
    let sp = match stack.width {
        2 => (old & !0xffff) | (stack.sp & 0xffff),
        4 => stack.sp & 0xffff_ffff,
        _ => stack.sp,
    };
    cx.regs.set(RSP, sp);
}

/// Copies the parameter at `from` above the old stack pointer.
fn copy_parameter(cx: &mut Cx<'_>, stack: &mut Stack, from: u64, size: u8) -> Run<()> {
    let mut probe = *stack;
    let to = probe.next(cx, size)?;
    let value = if to_page_end(to) < u64::from(size) {
        cx.peek(from, size)?
    } else {
        cx.peek_carried(from, size)?
    };
    cx.access(AccessAs::Supervisor, |cx| stack.push(cx, size, value))
}

/// The stack of privilege level `cpl` from the TSS; in long mode the one of the interrupt stack table, if `ist` names one.
pub(super) fn inner_stack(cx: &mut Cx<'_>, cpl: u8, ist: Option<u8>) -> Run<Stack> {
    let tss = cx.table(Table::Tss)?;
    let fault = Cx::selector_fault(vector::TS, tss.selector);
    let wide = tss.attr.kind() & 8 != 0;
    let level = u64::from(cpl);
    let (offset, last) = match ist {
        _ if !wide && !cx.ctx.long() => {
            let offset = level.wrapping_mul(4).wrapping_add(2);
            (offset, offset.wrapping_add(3))
        }
        None if !cx.ctx.long() => {
            let offset = level.wrapping_mul(8).wrapping_add(4);
            (offset, offset.wrapping_add(5))
        }
        _ => {
            let offset = match ist {
                Some(n) => u64::from(n).wrapping_mul(8).wrapping_add(0x1c),
                None => level.wrapping_mul(8).wrapping_add(4),
            };
            (offset, offset.wrapping_add(7))
        }
    };
    if last > u64::from(tss.limit) {
        return Err(fault);
    }
    let at = cx.system_address(tss.base, offset);
    if cx.ctx.long() {
        let sp = cx.read_system(at, 8)?;
        return Ok(Stack::flat(null(u16::from(cpl), cpl), sp));
    }
    let (width, size) = if wide { (4, 6) } else { (2, 4) };
    let raw = cx.read_system(at, size)?;
    let sp = raw & alu::mask(width);
    let selector = raw.wrapping_shr(alu::bits(width)) as u16;
    if is_null(selector) {
        return Err(Cx::selector_fault(vector::TS, 0));
    }
    let found = cx.descriptor(selector, vector::TS)?;
    let ss = stack_segment(cx, &found, selector, cpl, vector::TS)?;
    Ok(Stack::new(ss, sp))
}

/// To another task, directly or through a task gate.
fn task(cx: &mut Cx<'_>, call: bool, found: &Found, selector: u16, gate: bool) -> Run<()> {
    let least = cx.ctx.cpl.max(selector as u8 & 3);
    if found.desc.attr().dpl() < least {
        return Err(Cx::selector_fault(vector::GP, selector));
    }
    present(found.desc, vector::NP, selector)?;
    let reason = if call {
        TaskReason::Call
    } else {
        TaskReason::Jmp
    };
    let selector = if gate { found.desc.target() } else { selector };
    Err(Stop::task_switch(selector, reason))
}

fn ret(cx: &mut Cx<'_>) -> Run<()> {
    let size = cx.insn.op_size;
    let extra = cx.insn.imm;
    let offset = cx.peek(0, size)?;
    let selector = cx.peek(u64::from(size), size)? as u16;
    let popped = u64::from(size).wrapping_mul(2);
    if !cx.protected() {
        if offset > u64::from(cx.ctx.segs.get(Seg::Cs).limit) {
            return Err(cx.gp());
        }
        let cs = real_segment(cx, Seg::Cs, selector);
        cx.load(Seg::Cs, cs)?;
        let sp = cx.regs.get(RSP).wrapping_add(popped).wrapping_add(extra);
        cx.set_sp(sp);
        cx.target = Some(offset);
        return Ok(());
    }
    let code = Code::returned(cx, selector)?;
    if code.cpl == cx.ctx.cpl {
        code.reaches(cx, offset)?;
        let cs = code.segment(cx)?;
        cx.load(Seg::Cs, cs)?;
        let sp = cx.regs.get(RSP).wrapping_add(popped).wrapping_add(extra);
        cx.set_sp(sp);
        cx.target = Some(offset);
        return Ok(());
    }
    let above = popped.wrapping_add(extra);
    let sp = cx.peek(above, size)?;
    let ss = cx.peek(above.wrapping_add(u64::from(size)), size)? as u16;
    let stack = outer_stack(cx, &code, ss, sp.wrapping_add(extra))?;
    code.reaches(cx, offset)?;
    outward(cx, &code, &stack, offset)
}

/// The stack of the outer level that a return goes to.
pub(super) fn outer_stack(cx: &mut Cx<'_>, code: &Code, selector: u16, sp: u64) -> Run<Stack> {
    let long = code.long(cx);
    if is_null(selector) {
        let rpl = selector as u8 & 3;
        return if long && code.cpl != 3 && rpl == code.cpl {
            Ok(Stack::flat(null(selector, code.cpl), sp))
        } else {
            Err(cx.gp())
        };
    }
    let found = cx.descriptor(selector, vector::GP)?;
    let ss = stack_segment(cx, &found, selector, code.cpl, vector::GP)?;
    Ok(if long {
        Stack::flat(ss, sp)
    } else {
        Stack::new(ss, sp)
    })
}

/// Loads what a return to an outer level leaves: nothing can fault any more but the accessed bit of the code segment.
pub(super) fn outward(cx: &mut Cx<'_>, code: &Code, stack: &Stack, offset: u64) -> Run<()> {
    let cs = code.segment(cx)?;
    cx.load(Seg::Ss, stack.ss)?;
    cx.load(Seg::Cs, cs)?;
    set_stack(cx, stack);
    for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        // What the outer level may not use is taken from it.
        let attr = cx.ctx.segs.get(seg).attr;
        let conforming = attr.kind() & 0xc == 0xc;
        let usable = !attr.unusable() && attr.s();
        if usable && !conforming && attr.dpl() < code.cpl {
            cx.load(seg, null(0, 0))?;
        }
    }
    cx.target = Some(offset);
    Ok(())
}
