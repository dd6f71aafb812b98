// SPDX-License-Identifier: GPL-2.0
//! SYSCALL, SYSRET, SYSENTER and SYSEXIT. Where the two vendors differ, the guest's CPUID says which it is.
#![forbid(unsafe_code)]

use super::cx::Cx;
use super::insn::Kind;
use super::job::{Need, Run};
use crate::model::regs::rflags::{FIXED, IF, RF, VM};
use crate::model::regs::{efer, has, Attr, Seg, Segment, RCX, RDX, RSP};

/// R11 gets the flags.
const R11: u8 = 11;
/// Flags that SYSRET can set.
const SYSRET_FLAGS: u64 = 0x3c_7fd7;

mod msr {
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_ESP: u32 = 0x175;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
    pub(super) const STAR: u32 = 0xc000_0081;
    pub(super) const LSTAR: u32 = 0xc000_0082;
    pub(super) const CSTAR: u32 = 0xc000_0083;
    pub(super) const SFMASK: u32 = 0xc000_0084;
}

pub(super) fn run(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    match kind {
        Kind::Syscall => syscall(cx),
        Kind::Sysret => sysret(cx),
        Kind::Sysenter => sysenter(cx),
        _ => sysexit(cx),
    }
}

fn read_msr(cx: &mut Cx<'_>, index: u32) -> Run<u64> {
    cx.ask(Need::ReadMsr { index })
}

/// A flat code segment of 64 or 32 bits.
fn code(selector: u16, dpl: u8, long: bool) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attr: Attr::new(11, true, dpl, true, false, long, !long, true),
    }
}

/// A flat stack segment.
fn stack(selector: u16, dpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attr: Attr::new(3, true, dpl, true, false, false, true, true),
    }
}

fn load(cx: &mut Cx<'_>, cs: Segment, ss: Segment) -> Run<()> {
    cx.load(Seg::Cs, cs)?;
    cx.load(Seg::Ss, ss)
}

/// #UD where the instruction is turned off, or where Intel's CPUs do not have it.
fn usable(cx: &Cx<'_>) -> Run<()> {
    let on = cx.ctx.efer & efer::SCE != 0 && cx.protected();
    if on && (cx.long_mode() || cx.ctx.has(has::AMD)) {
        Ok(())
    } else {
        Err(Cx::ud())
    }
}

fn syscall(cx: &mut Cx<'_>) -> Run<()> {
    usable(cx)?;
    let star = read_msr(cx, msr::STAR)?;
    let selector = (star >> 32) as u16 & !3;
    let (next, flags) = (cx.insn.next_rip(cx.regs.rip), cx.regs.rflags & !RF);
    let (target, new_flags) = if cx.ctx.long() {
        let index = if cx.long_mode() {
            msr::LSTAR
        } else {
            msr::CSTAR
        };
        let target = read_msr(cx, index)?;
        let mask = read_msr(cx, msr::SFMASK)?;
        (target, (flags & !mask & !RF) | FIXED)
    } else {
        (star & 0xffff_ffff, flags & !(VM | IF | RF))
    };
    let long = cx.ctx.long();
    load(
        cx,
        code(selector, 0, long),
        stack(selector.wrapping_add(8), 0),
    )?;
    cx.regs.set(RCX, next);
    if long {
        cx.regs.set(R11, flags);
    }
    cx.regs.rflags = new_flags;
    cx.target = Some(target);
    Ok(())
}

fn sysret(cx: &mut Cx<'_>) -> Run<()> {
    usable(cx)?;
    cx.privileged()?;
    let wide = cx.long_mode() && cx.insn.op_size == 8;
    let target = if wide {
        cx.regs.get(RCX)
    } else {
        cx.reg(RCX, 4)
    };
    if wide && !cx.canonical(target) {
        return Err(cx.gp());
    }
    let star = read_msr(cx, msr::STAR)?;
    let base = (star >> 48) as u16;
    let selector = if wide { base.wrapping_add(16) } else { base };
    load(
        cx,
        code(selector | 3, 3, wide),
        stack(base.wrapping_add(8) | 3, 3),
    )?;
    cx.regs.rflags = if cx.ctx.long() {
        (cx.regs.get(R11) & SYSRET_FLAGS) | FIXED
    } else {
        cx.regs.rflags | IF
    };
    cx.target = Some(target);
    Ok(())
}

fn sysenter(cx: &mut Cx<'_>) -> Run<()> {
    if !cx.protected() && !cx.vm86() {
        return Err(cx.gp());
    }
    let long = cx.ctx.long();
    if long && cx.ctx.has(has::AMD) {
        return Err(Cx::ud());
    }
    let selector = read_msr(cx, msr::SYSENTER_CS)? as u16 & !3;
    if selector == 0 {
        return Err(cx.gp());
    }
    let target = read_msr(cx, msr::SYSENTER_EIP)?;
    let sp = read_msr(cx, msr::SYSENTER_ESP)?;
    load(
        cx,
        code(selector, 0, long),
        stack(selector.wrapping_add(8), 0),
    )?;
    let cut = |value: u64| if long { value } else { value & 0xffff_ffff };
    cx.regs.set(RSP, cut(sp));
    cx.regs.rflags &= !(VM | IF | RF);
    cx.target = Some(cut(target));
    Ok(())
}

fn sysexit(cx: &mut Cx<'_>) -> Run<()> {
    if !cx.protected() {
        return Err(cx.gp());
    }
    if cx.ctx.long() && cx.ctx.has(has::AMD) {
        return Err(Cx::ud());
    }
    cx.privileged()?;
    let base = read_msr(cx, msr::SYSENTER_CS)? as u16 & !3;
    if base == 0 {
        return Err(cx.gp());
    }
    let wide = cx.long_mode() && cx.insn.op_size == 8;
    let size = if wide { 8 } else { 4 };
    let (target, sp) = (cx.reg(RDX, size), cx.reg(RCX, size));
    if wide && !(cx.canonical(target) && cx.canonical(sp)) {
        return Err(cx.gp());
    }
    let selector = base.wrapping_add(if wide { 32 } else { 16 }) | 3;
    load(
        cx,
        code(selector, 3, wide),
        stack(selector.wrapping_add(8), 3),
    )?;
    cx.regs.set(RSP, sp);
    cx.target = Some(target);
    Ok(())
}
