// SPDX-License-Identifier: GPL-2.0
//! Task switches (Intel SDM volume 3, "Task Switching"), with 32-bit and 16-bit task-state segments.
//!
//! Stages, each a run of its own: both TSSs are looked at, the old task is saved, the new one's registers are loaded, then its
//! segments, then its debug state. Faults come in the first, where nothing is changed yet, or from the fourth on: those are the new task's.
#![forbid(unsafe_code)]

use super::alu;
use super::cx::{to_page_end, Cx};
use super::desc::{is_null, null, system, Descriptor, Found};
use super::far::set_stack;
use super::job::{AccessAs, Flow, Need, Run, Stop, Table, TaskReason};
use super::seg::{accessed, present, stack_segment, vm86_segment};
use super::stack::Stack;
use crate::model::event::vector;
use crate::model::regs::rflags::{FIXED, NT, VM};
use crate::model::regs::{cr0, Seg, Segment, RSP};

/// A task switch as a pseudo-instruction's immediates: selector, reason, error code.
#[derive(Clone, Copy)]
pub(super) struct Order {
    pub(super) selector: u16,
    pub(super) reason: TaskReason,
    pub(super) error: Option<u16>,
    pub(super) insn_len: u8,
}

/// In the order of the registers' numbers in the TSS.
const SEGS: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];

/// Where a TSS keeps what, and how wide.
#[derive(Clone, Copy)]
struct Layout {
    /// Bytes of a register.
    size: u8,
    /// The instruction pointer, followed by the flags, eight registers, the segments and LDTR.
    ip: u64,
    segs: usize,
    /// The last byte that has to be there.
    last: u32,
}

const TSS32: Layout = Layout {
    size: 4,
    ip: 0x20,
    segs: 6,
    last: 0x67,
};
const TSS16: Layout = Layout {
    size: 2,
    ip: 0xe,
    segs: 4,
    last: 0x2b,
};

const fn layout(kind: u8) -> Layout {
    if kind & 8 != 0 {
        TSS32
    } else {
        TSS16
    }
}

pub(super) fn run(cx: &mut Cx<'_>) -> Run<Flow> {
    let order = cx.insn.task_order().ok_or(Stop::UNHANDLED)?;
    match cx.phase {
        0 => check(cx, order).map(|()| Flow::Phase),
        1 => save(cx, order).map(|()| Flow::Phase),
        2 => restore(cx, order).map(|()| Flow::Phase),
        3 => load_segments(cx, order).map(|()| Flow::Phase),
        _ => debug_state(cx).map(|()| Flow::Next),
    }
}

/// The descriptor of the new TSS, checked.
fn new_tss(cx: &mut Cx<'_>, order: Order) -> Run<Found> {
    let fault = Cx::selector_fault(vector::TS, order.selector);
    let back = order.reason == TaskReason::Iret;
    if is_null(order.selector) || order.selector & 4 != 0 {
        return Err(fault);
    }
    let found = cx.look_up(order.selector)?.ok_or(fault)?;
    // A task that is returned to is busy, any other must not be. The second stage marks it.
    let kind = found.desc.system().map(|kind| kind & !2);
    let busy = found.desc.attr().kind() & 2 != 0;
    let fits = matches!(kind, Some(system::TSS | system::TSS16));
    if !fits || cx.phase == 0 && busy != back {
        let vector = if back { vector::TS } else { vector::GP };
        return Err(Cx::selector_fault(vector, order.selector));
    }
    present(found.desc, vector::NP, order.selector)?;
    if found.desc.limit() < layout(found.desc.attr().kind()).last {
        return Err(fault);
    }
    Ok(found)
}

/// What may fault in the first three stages does so here.
fn check(cx: &mut Cx<'_>, order: Order) -> Run<()> {
    let found = new_tss(cx, order)?;
    let old = cx.table(Table::Tss)?;
    let l = layout(old.attr.kind());
    let saved = (l.segs as u64).wrapping_add(10).wrapping_mul(l.size.into());
    check_system(cx, cx.system_address(old.base, l.ip), saved, true)?;
    let new = found.desc.base();
    let last = layout(found.desc.attr().kind()).last;
    check_system(cx, new, u64::from(last).wrapping_add(1), false)?;
    if matches!(order.reason, TaskReason::Call | TaskReason::Gate) {
        check_system(cx, new, 2, true)?;
    }
    Ok(())
}

/// The CPU can access so many bytes (less than a page) by itself.
fn check_system(cx: &mut Cx<'_>, at: u64, bytes: u64, write: bool) -> Run<()> {
    let first = to_page_end(at).min(bytes);
    let rest = bytes.wrapping_sub(first);
    cx.access(AccessAs::System, |cx| {
        let mut ask = |at, len: u64| {
            cx.ask(Need::Check {
                at,
                len: len as u16,
                write,
            })
        };
        ask(at, first)?;
        if rest != 0 {
            ask(at.wrapping_add(first) & 0xffff_ffff, rest)?;
        }
        Ok(())
    })
}

/// Saves the old task and moves the busy mark.
fn save(cx: &mut Cx<'_>, order: Order) -> Run<()> {
    let found = new_tss(cx, order)?;
    let old = cx.table(Table::Tss)?;
    let l = layout(old.attr.kind());
    let nested = matches!(order.reason, TaskReason::Call | TaskReason::Gate);
    if !nested {
        if let Some(old) = cx.look_up(old.selector)? {
            cx.mark(&old, 0, 2)?;
        }
    }
    if order.reason == TaskReason::Iret {
        cx.regs.rflags &= !NT;
    } else {
        cx.mark(&found, 2, 0)?;
    }
    let ip = cx.insn.next_rip(cx.regs.rip);
    let (flags, regs) = (cx.regs.rflags, cx.regs);
    let selectors = SEGS.map(|seg| u64::from(cx.ctx.segs.get(seg).selector));
    let values = [ip, flags]
        .into_iter()
        .chain((0..8).map(|n| regs.get(n)))
        .chain(selectors.into_iter().take(l.segs));
    let mut at = cx.system_address(old.base, l.ip);
    cx.access(AccessAs::System, |cx| {
        for value in values {
            cx.write(at, l.size, value & alu::mask(l.size))?;
            at = cx.advance(at, u64::from(l.size));
        }
        Ok(())
    })?;
    if nested {
        let at = cx.system_address(found.desc.base(), 0);
        cx.access(AccessAs::System, |cx| {
            cx.write(at, 2, u64::from(old.selector))
        })?;
    }
    Ok(())
}

/// The registers in a TSS from the instruction pointer on, as it has them.
struct Image {
    ip: u64,
    flags: u64,
    gpr: [u64; 8],
    segs: [u16; 6],
    ldt: u16,
}

/// Reads eight bytes at a time.
fn read_image(cx: &mut Cx<'_>, base: u64, l: Layout) -> Run<Image> {
    let mut words = [0u64; 17];
    let count = l.segs.wrapping_add(11);
    let whole = (count as u64).wrapping_mul(u64::from(l.size));
    let per = 8u8.wrapping_div(l.size);
    let mut offset = 0u64;
    for group in words.chunks_mut(per.into()) {
        let left = whole.saturating_sub(offset).min(8) as u8;
        if left == 0 {
            break;
        }
        let at = cx.system_address(base, l.ip.wrapping_add(offset));
        let mut raw = cx.read_system(at, left)?;
        for word in group {
            *word = raw & alu::mask(l.size);
            raw = raw.wrapping_shr(alu::bits(l.size));
        }
        offset = offset.wrapping_add(8);
    }
    let [ip, flags, a, c, d, b, sp, bp, si, di, es, cs, ss, ds, fs, gs, ldt] = words;
    let wide = l.segs == 6;
    let segs = [
        es,
        cs,
        ss,
        ds,
        if wide { fs } else { 0 },
        if wide { gs } else { 0 },
    ];
    Ok(Image {
        ip,
        flags,
        gpr: [a, c, d, b, sp, bp, si, di],
        segs: segs.map(|s| s as u16),
        ldt: if wide { ldt } else { fs } as u16,
    })
}

/// Loads the registers of the new task; of the segment registers the selectors.
fn restore(cx: &mut Cx<'_>, order: Order) -> Run<()> {
    let found = new_tss(cx, order)?;
    let l = layout(found.desc.attr().kind());
    let base = found.desc.base();
    let image = read_image(cx, base, l)?;
    let cr3 = if l.size == 4 && cx.ctx.cr0 & cr0::PG != 0 {
        let at = cx.system_address(base, 0x1c);
        Some(cx.read_system(at, 4)?)
    } else {
        None
    };
    let nested = matches!(order.reason, TaskReason::Call | TaskReason::Gate);
    let flags = image.flags | FIXED | if nested { NT } else { 0 };
    let [_, cs, ..] = image.segs;
    let cpl = if flags & VM != 0 { 3 } else { cs as u8 & 3 };
    if let Some(value) = cr3 {
        cx.tell(Need::WriteCr { cr: 3, value })?;
    }
    cx.tell(Need::WriteCr {
        cr: 0,
        value: cx.ctx.cr0 | cr0::TS,
    })?;
    let mut tss = found.desc.segment(order.selector);
    tss.attr.0 |= 2;
    cx.tell(Need::WriteTable {
        table: Table::Tss,
        value: tss,
    })?;
    cx.tell(Need::WriteTable {
        table: Table::Ldt,
        value: null(image.ldt, 0),
    })?;
    for (seg, selector) in SEGS.into_iter().zip(image.segs).take(l.segs) {
        let mut value = Segment {
            selector,
            ..*cx.ctx.segs.get(seg)
        };
        if seg == Seg::Ss {
            value.attr = value.attr.with_dpl(cpl);
        }
        cx.load(seg, value)?;
    }
    for (n, value) in (0..8u8).zip(image.gpr) {
        cx.regs.set(n, value);
    }
    cx.regs.rflags = flags;
    cx.target = Some(image.ip);
    cx.selectors = Some(image.segs);
    Ok(())
}

/// Loads LDTR and the segment registers of the new task, and pushes an error code.
fn load_segments(cx: &mut Cx<'_>, order: Order) -> Run<()> {
    let tss = cx.table(Table::Tss)?;
    let l = layout(tss.attr.kind());
    load_ldt(cx)?;
    let mut stack = None;
    for seg in SEGS.into_iter().take(l.segs) {
        let selector = cx.ctx.segs.get(seg).selector;
        let value = if cx.vm86() {
            vm86_segment(selector)
        } else {
            segment(cx, seg, selector)?
        };
        cx.load(seg, value)?;
        match seg {
            Seg::Cs if cx.regs.rip > u64::from(value.limit) => return Err(cx.gp()),
            Seg::Ss => stack = Some(value),
            _ => {}
        }
    }
    if let (Some(error), Some(ss)) = (order.error, stack) {
        let mut stack = Stack::new(ss, cx.regs.get(RSP));
        let who = if cx.ctx.cpl == 3 {
            AccessAs::Current
        } else {
            AccessAs::Supervisor
        };
        cx.access(who, |cx| stack.push(cx, l.size, u64::from(error)))?;
        set_stack(cx, &stack);
    }
    Ok(())
}

/// The local breakpoints are the old task's; the new one's TSS may ask for a trap.
fn debug_state(cx: &mut Cx<'_>) -> Run<()> {
    let tss = cx.table(Table::Tss)?;
    cx.tell(Need::EndLocalBreakpoints)?;
    if layout(tss.attr.kind()).size == 4 {
        let at = cx.system_address(tss.base, 0x64);
        cx.task_trap = cx.read_system(at, 2)? & 1 != 0;
    }
    cx.target = Some(cx.regs.rip);
    Ok(())
}

fn load_ldt(cx: &mut Cx<'_>) -> Run<()> {
    let selector = cx.table(Table::Ldt)?.selector;
    if is_null(selector) {
        return Ok(());
    }
    let fault = Cx::selector_fault(vector::TS, selector);
    if selector & 4 != 0 {
        return Err(fault);
    }
    let desc = match cx.look_up(selector)? {
        Some(found) if found.desc.system() == Some(system::LDT) => found.desc,
        _ => return Err(fault),
    };
    present(desc, vector::TS, selector)?;
    cx.tell(Need::WriteTable {
        table: Table::Ldt,
        value: desc.segment(selector),
    })?;
    // What was asked for before is out of date.
    cx.ldt = Some(desc.segment(selector));
    Ok(())
}

/// A segment of the new task: what does not fit is #TS.
fn segment(cx: &mut Cx<'_>, seg: Seg, selector: u16) -> Run<Segment> {
    let cpl = cx.ctx.cpl;
    let fault = Cx::selector_fault(vector::TS, selector);
    if is_null(selector) {
        return match seg {
            Seg::Cs | Seg::Ss => Err(fault),
            _ => Ok(null(selector, 0)),
        };
    }
    let found = cx.descriptor(selector, vector::TS)?;
    let (desc, dpl) = (found.desc, found.desc.attr().dpl());
    match seg {
        Seg::Ss => return stack_segment(cx, &found, selector, cpl, vector::TS),
        Seg::Cs => {
            let allowed = code_allowed(desc, dpl, cpl);
            if !allowed {
                return Err(fault);
            }
        }
        _ => {
            let rpl = selector as u8 & 3;
            let allowed = desc.is_conforming() || rpl <= dpl && cpl <= dpl;
            if !desc.is_readable() || !allowed {
                return Err(fault);
            }
        }
    }
    present(desc, vector::NP, selector)?;
    accessed(cx, &found, selector)
}

const fn code_allowed(desc: Descriptor, dpl: u8, cpl: u8) -> bool {
    if desc.is_conforming() {
        dpl <= cpl
    } else {
        desc.is_code() && dpl == cpl
    }
}
