// SPDX-License-Identifier: GPL-2.0
//! INT n, INT3, INTO and IRET, and the delivery of events.
#![forbid(unsafe_code)]

use super::alu;
use super::cx::Cx;
use super::desc::{null, system, Descriptor};
use super::far::{inner_stack, outer_stack, outward, set_stack, Code};
use super::insn::Kind;
use super::job::{AccessAs, Run, Stop, Table, TaskReason};
use super::seg::{real_segment, vm86_segment};
use super::stack::Stack;
use crate::model::event::vector;
use crate::model::regs::rflags::{AC, DF, ID, IF, IOPL, NT, RF, TF, VIF, VIP, VM};
use crate::model::regs::{cr4, Seg, Segment, RSP};

pub(super) fn run(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    match kind {
        Kind::Int => interrupt(cx, &Event::by(cx.insn.imm as u8, How::IntN)),
        Kind::Int3 => interrupt(cx, &Event::by(vector::BP, How::Other)),
        Kind::Into if cx.regs.rflags & crate::model::regs::rflags::OF != 0 => {
            interrupt(cx, &Event::by(vector::OF, How::Other))
        }
        Kind::Into => Ok(()),
        Kind::Deliver => deliver(cx),
        _ => iret(cx),
    }
}

/// What is delivered.
struct Event {
    vector: u8,
    how: How,
    error: Option<u32>,
}

/// What asked for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// INT n.
    IntN,
    /// INT3 or INTO.
    Other,
    /// No instruction: a fault, an interrupt, an NMI.
    Hardware,
}

impl Event {
    const fn by(vector: u8, how: How) -> Self {
        Self {
            vector,
            how,
            error: None,
        }
    }
}

/// An event in the place of an instruction.
fn deliver(cx: &mut Cx<'_>) -> Run<()> {
    let d = cx.insn.delivery().ok_or(Stop::UNHANDLED)?;
    let how = match (d.insn_len, d.int_n) {
        (0, _) => How::Hardware,
        (_, true) => How::IntN,
        (_, false) => How::Other,
    };
    let event = Event {
        vector: d.vector,
        how,
        error: d.error,
    };
    let done = interrupt(cx, &event);
    if how == How::Hardware {
        return done.map_err(Stop::external);
    }
    done
}

/// Delivers an interrupt or exception. Virtual-8086 mode treats INT n differently, and the gate's privilege level is for instructions.
fn interrupt(cx: &mut Cx<'_>, event: &Event) -> Run<()> {
    let vector = event.vector;
    cx.delivered = true;
    if cx.vm86() && event.how == How::IntN {
        let extended = cx.ctx.cr4 & cr4::VME != 0;
        if extended && redirected(cx, vector)? {
            return vm86_interrupt(cx, vector);
        }
        if cx.iopl() < 3 {
            return Err(cx.gp());
        }
    }
    if cx.protected() || cx.vm86() {
        return through_idt(cx, event);
    }
    let idt = cx.table(Table::Idt)?;
    let offset = u64::from(vector) << 2;
    if offset.wrapping_add(3) > u64::from(idt.limit) {
        return Err(Stop::fault(vector::GP));
    }
    let at = cx.system_address(idt.base, offset);
    let entry = cx.read_system(at, 4)?;
    cx.stack_room(2, 3)?;
    let flags = cx.regs.rflags;
    enter_real(cx, entry, flags)?;
    cx.regs.rflags &= !(IF | TF | AC | RF);
    Ok(())
}

/// Pushes flags, CS and IP as words, and goes on at the far pointer `entry`.
fn enter_real(cx: &mut Cx<'_>, entry: u64, flags: u64) -> Run<()> {
    let cs = cx.ctx.segs.get(Seg::Cs).selector;
    cx.push(2, flags)?;
    cx.push(2, u64::from(cs))?;
    cx.push(2, cx.insn.next_rip(cx.regs.rip))?;
    let cs = real_segment(cx, Seg::Cs, (entry >> 16) as u16);
    cx.load(Seg::Cs, cs)?;
    cx.target = Some(entry & 0xffff);
    Ok(())
}

/// Whether the TSS's bitmap sends INT n of virtual-8086 mode to the 8086 program's own handler.
fn redirected(cx: &mut Cx<'_>, n: u8) -> Run<bool> {
    let tss = cx.table(Table::Tss)?;
    if tss.limit < 0x67 {
        return Err(cx.gp());
    }
    let at = cx.system_address(tss.base, 0x66);
    let map = cx.read_system(at, 2)?;
    let offset = map.wrapping_sub(32).wrapping_add(u64::from(n >> 3));
    if map < 32 || offset > u64::from(tss.limit) {
        return Err(cx.gp());
    }
    let at = cx.system_address(tss.base, offset);
    let byte = cx.read_system(at, 1)?;
    Ok(byte.wrapping_shr(u32::from(n & 7)) & 1 == 0)
}

/// The 8086 program's own handler, with the virtual interrupt flag where IOPL keeps it from the real one.
fn vm86_interrupt(cx: &mut Cx<'_>, n: u8) -> Run<()> {
    let entry = cx.access(AccessAs::Supervisor, |cx| {
        cx.read(u64::from(n) << 2, 4, false)
    })?;
    let flags = cx.regs.rflags;
    let trusted = cx.iopl() == 3;
    let shown = if trusted { flags } else { virtual_flags(flags) };
    cx.stack_room(2, 3)?;
    enter_real(cx, entry, shown)?;
    cx.regs.rflags &= !(TF | NT | if trusted { IF } else { VIF });
    Ok(())
}

/// FLAGS as an 8086 program sees them: IOPL 3, and the virtual interrupt flag for the real one.
pub(super) const fn virtual_flags(flags: u64) -> u64 {
    let shown = if flags & VIF != 0 { IF } else { 0 };
    (flags & !IF) | shown | IOPL
}

/// A gate of the IDT.
struct Gate {
    code: Code,
    offset: u64,
    /// Bytes of what is pushed.
    size: u8,
    /// An interrupt gate, which clears IF.
    closes: bool,
    ist: u8,
}

/// Reads and checks the gate of `vector`; a task gate stops here.
fn gate(cx: &mut Cx<'_>, event: &Event) -> Run<Gate> {
    let vector = event.vector;
    let long = cx.ctx.long();
    let shift = if long { 4 } else { 3 };
    let offset = u64::from(vector).wrapping_shl(shift);
    // The IDT bit of the error code.
    let error = (u32::from(vector) << 3) | 2;
    let fault = |v| Stop::fault_with(v, error);
    let idt = cx.table(Table::Idt)?;
    let last = offset.wrapping_add(if long { 15 } else { 7 });
    if last > u64::from(idt.limit) {
        return Err(fault(vector::GP));
    }
    let at = cx.system_address(idt.base, offset);
    let desc = Descriptor(cx.read_system(at, 8)?);
    let (size, closes) = match desc.system() {
        Some(kind @ (system::INT | system::TRAP)) => {
            (if long { 8 } else { 4 }, kind == system::INT)
        }
        Some(kind @ (system::INT16 | system::TRAP16)) if !long => (2, kind == system::INT16),
        Some(system::TASK) if !long => (0, false),
        _ => return Err(fault(vector::GP)),
    };
    let level = if cx.vm86() { 3 } else { cx.ctx.cpl };
    if event.how != How::Hardware && desc.attr().dpl() < level {
        return Err(fault(vector::GP));
    }
    if !desc.attr().p() {
        return Err(fault(vector::NP));
    }
    if size == 0 {
        let (selector, reason) = (desc.target(), TaskReason::Gate);
        return Err(Stop::task_switch(selector, reason));
    }
    let mut offset = desc.offset() & alu::mask(size);
    if long {
        let at = cx.system_address(at, 8);
        offset |= cx.read_system(at, 4)? << 32;
    }
    let code = Code::through_gate(cx, desc.target())?;
    Ok(Gate {
        code,
        offset,
        size,
        closes,
        ist: if long { (desc.0 >> 32) as u8 & 7 } else { 0 },
    })
}

fn through_idt(cx: &mut Cx<'_>, event: &Event) -> Run<()> {
    let gate = gate(cx, event)?;
    let (code, size) = (gate.code, gate.size);
    let from_vm86 = cx.vm86();
    if from_vm86 && code.cpl != 0 {
        return Err(Cx::selector_fault(vector::GP, code.selector));
    }
    let cpl = if from_vm86 { 3 } else { cx.ctx.cpl };
    let switches = code.cpl < cpl || gate.ist != 0;
    let ss = *cx.ctx.segs.get(Seg::Ss);
    let mut stack = if switches {
        inner_stack(cx, code.cpl, (gate.ist != 0).then_some(gate.ist))?
    } else {
        // A fault there names no selector ("INT n/INTO/INT3/INT1", "Operation").
        let current = Segment { selector: 0, ..ss };
        match size {
            8 => Stack::flat(current, cx.regs.get(RSP)),
            _ => Stack::new(current, cx.regs.get(RSP)),
        }
    };
    let (old_sp, saved) = (cx.regs.get(RSP), cx.regs.rflags);
    if size == 8 {
        stack.sp &= !15;
    }
    let outer = switches || size == 8;
    let count = match (from_vm86, outer) {
        (true, _) => 9,
        (false, true) => 5,
        (false, false) => 3u8,
    };
    stack.room(cx, size, count.wrapping_add(event.error.is_some().into()))?;
    code.reaches(cx, gate.offset)?;
    let cs = code.segment(cx)?;
    let who = if code.cpl == 3 {
        AccessAs::Current
    } else {
        AccessAs::Supervisor
    };
    let selector = |seg| u64::from(cx.ctx.segs.get(seg).selector);
    let data = [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es].map(selector);
    let (old_ss, old_cs) = (selector(Seg::Ss), selector(Seg::Cs));
    let back = cx.insn.next_rip(cx.regs.rip);
    cx.access(who, |cx| {
        if from_vm86 {
            for value in data {
                stack.push(cx, size, value)?;
            }
        }
        if outer {
            stack.push(cx, size, old_ss)?;
            stack.push(cx, size, old_sp)?;
        }
        stack.push(cx, size, saved)?;
        stack.push(cx, size, old_cs)?;
        stack.push(cx, size, back)?;
        match event.error {
            Some(error) => stack.push(cx, size, u64::from(error)),
            None => Ok(()),
        }
    })?;
    if from_vm86 {
        for seg in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
            cx.load(seg, null(0, 0))?;
        }
    }
    if switches {
        // Without a change of level the interrupt stack table leaves SS alone.
        let ss = if code.cpl < cpl { stack.ss } else { ss };
        cx.load(Seg::Ss, ss)?;
    }
    cx.load(Seg::Cs, cs)?;
    set_stack(cx, &stack);
    cx.regs.rflags &= !(TF | NT | RF | VM | if gate.closes { IF } else { 0 });
    cx.target = Some(gate.offset);
    Ok(())
}

/// What IRET and POPF may change at any privilege level, for an operand of `size` bytes.
pub(super) const fn changeable(size: u8) -> u64 {
    (alu::STATUS | TF | DF | NT | AC | ID) & alu::mask(size)
}

fn iret(cx: &mut Cx<'_>) -> Run<()> {
    let size = cx.insn.op_size;
    cx.iret = true;
    if cx.protected() {
        return iret_protected(cx, size);
    }
    if cx.vm86() && cx.iopl() < 3 && (cx.ctx.cr4 & cr4::VME == 0 || size != 2) {
        return Err(cx.gp());
    }
    let offset = cx.peek(0, size)?;
    let selector = cx.peek(u64::from(size), size)? as u16;
    let flags = cx.peek(u64::from(size) << 1, size)?;
    if offset > u64::from(cx.ctx.segs.get(Seg::Cs).limit) {
        return Err(cx.gp());
    }
    let old = cx.regs.rflags;
    let mut change = changeable(size) | IF | RF;
    let mut new = flags;
    if !cx.vm86() {
        change |= IOPL;
    } else if cx.iopl() < 3 {
        // The virtual interrupt flag in place of the real one.
        if flags & TF != 0 || flags & IF != 0 && old & VIP != 0 {
            return Err(cx.gp());
        }
        change = (change & !IF) | VIF;
        new = (flags & !VIF) | if flags & IF != 0 { VIF } else { 0 };
    }
    cx.regs.rflags = (old & !change) | (new & change);
    let cs = real_segment(cx, Seg::Cs, selector);
    cx.load(Seg::Cs, cs)?;
    let sp = cx
        .regs
        .get(RSP)
        .wrapping_add(u64::from(size).wrapping_mul(3));
    cx.set_sp(sp);
    cx.target = Some(offset);
    Ok(())
}

fn iret_protected(cx: &mut Cx<'_>, size: u8) -> Run<()> {
    if cx.regs.rflags & NT != 0 {
        return if cx.ctx.long() {
            Err(cx.gp())
        } else {
            back_to_task(cx)
        };
    }
    let step = u64::from(size);
    let offset = cx.peek(0, size)?;
    let selector = cx.peek(step, size)? as u16;
    let flags = cx.peek(step << 1, size)?;
    let (cpl, long) = (cx.ctx.cpl, cx.ctx.long());
    if flags & VM != 0 && cpl == 0 && !long {
        return to_vm86(cx, offset, selector, flags);
    }
    let code = Code::returned(cx, selector)?;
    let popped = step.wrapping_mul(3);
    if code.cpl == cpl && !cx.long_mode() {
        code.reaches(cx, offset)?;
        let cs = code.segment(cx)?;
        cx.load(Seg::Cs, cs)?;
        let sp = cx.regs.get(RSP).wrapping_add(popped);
        cx.set_sp(sp);
        cx.target = Some(offset);
    } else {
        let sp = cx.peek(popped, size)?;
        let ss = cx.peek(popped.wrapping_add(step), size)? as u16;
        let stack = outer_stack(cx, &code, ss, sp)?;
        code.reaches(cx, offset)?;
        outward(cx, &code, &stack, offset)?;
    }
    set_flags(cx, flags, size, cpl);
    Ok(())
}

/// The flags as far as the old privilege level may change them.
fn set_flags(cx: &mut Cx<'_>, flags: u64, size: u8, cpl: u8) {
    let mut change = changeable(size) | RF;
    if cpl <= cx.iopl() {
        change |= IF;
    }
    if cpl == 0 {
        change |= IOPL;
        if size > 2 {
            change |= VIF | VIP;
        }
    }
    cx.regs.rflags = (cx.regs.rflags & !change) | (flags & change);
}

/// IRET to virtual-8086 mode, which level 0 of a 32-bit system does.
fn to_vm86(cx: &mut Cx<'_>, offset: u64, selector: u16, flags: u64) -> Run<()> {
    if offset > 0xffff {
        return Err(cx.gp());
    }
    let mut words = [0u64; 6];
    let mut above = 12u64;
    for word in &mut words {
        *word = cx.peek(above, 4)?;
        above = above.wrapping_add(4);
    }
    let [sp, ss, es, ds, fs, gs] = words;
    cx.load(Seg::Cs, vm86_segment(selector))?;
    for (seg, selector) in [
        (Seg::Es, es),
        (Seg::Ds, ds),
        (Seg::Fs, fs),
        (Seg::Gs, gs),
        (Seg::Ss, ss),
    ] {
        cx.load(seg, vm86_segment(selector as u16))?;
    }
    cx.regs.set(RSP, sp);
    let change = changeable(4) | RF | IF | IOPL | VM | VIF | VIP;
    cx.regs.rflags = (cx.regs.rflags & !change) | (flags & change);
    cx.target = Some(offset);
    Ok(())
}

/// IRET with NT set: back to the task that the TSS links to.
fn back_to_task(cx: &mut Cx<'_>) -> Run<()> {
    let tss = cx.table(Table::Tss)?;
    let at = cx.system_address(tss.base, 0);
    let selector = cx.read_system(at, 2)? as u16;
    let reason = TaskReason::Iret;
    Err(Stop::task_switch(selector, reason))
}
