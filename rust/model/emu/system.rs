// SPDX-License-Identifier: GPL-2.0
//! Port I/O and the privileged registers.
#![forbid(unsafe_code)]

use super::arg::Arg;
use super::cx::Cx;
use super::insn::Kind;
use super::job::{Need, Run, Table};
use super::run::unhandled;
use super::seg::user_prevention;
use crate::model::regs::{cr0, rflags, RAX, RCX, RDX};

pub(super) fn run(cx: &mut Cx<'_>, kind: Kind, a: Arg, b: Arg) -> Run<()> {
    use Kind::*;
    match kind {
        In => {
            let port = cx.get(b)? as u16;
            let size = cx.size(a).min(4);
            port_allowed(cx, port, size)?;
            let value = cx.ask(Need::In {
                port,
                size,
                count: 1,
            })?;
            cx.set_reg(RAX, size, value);
            Ok(())
        }
        Out => {
            let port = cx.get(a)? as u16;
            let size = cx.size(b).min(4);
            port_allowed(cx, port, size)?;
            let value = cx.reg(RAX, size) as u32;
            cx.tell(Need::Out {
                port,
                size,
                count: 1,
                value,
            })?;
            Ok(())
        }
        Clts => {
            cx.privileged()?;
            let value = cx.ask(Need::ReadCr { cr: 0 })?;
            write_cr(cx, 0, value & !cr0::TS)
        }
        Lmsw => {
            cx.privileged()?;
            let word = cx.get(a)?;
            let old = cx.ask(Need::ReadCr { cr: 0 })?;
            // PE can be set but not cleared.
            let kept = !0xf | (old & cr0::PE);
            write_cr(cx, 0, (old & kept) | (word & 0xf))
        }
        Smsw => {
            user_prevention(cx)?;
            let value = cx.ask(Need::ReadCr { cr: 0 })?;
            cx.put(a, value)
        }
        MovFromCr | MovToCr => move_cr(cx, kind),
        MovFromDr => {
            let dr = debug_register(cx)?;
            let value = cx.ask(Need::ReadDr { dr })?;
            cx.put(a, value)
        }
        MovToDr => {
            let dr = debug_register(cx)?;
            let value = cx.get(b)?;
            cx.tell(Need::WriteDr { dr, value })?;
            Ok(())
        }
        Rdmsr => {
            cx.privileged()?;
            let index = cx.reg(RCX, 4) as u32;
            let value = cx.ask(Need::Rdmsr { index })?;
            cx.set_reg(RAX, 4, value);
            cx.set_reg(RDX, 4, value >> 32);
            Ok(())
        }
        Wrmsr => {
            cx.privileged()?;
            let index = cx.reg(RCX, 4) as u32;
            let value = cx.reg(RAX, 4) | (cx.reg(RDX, 4) << 32);
            cx.tell(Need::Wrmsr { index, value })?;
            Ok(())
        }
        Invlpg => {
            cx.privileged()?;
            // No segment check: an address that cannot be used has no translation to forget.
            let at = cx.operand(1, false);
            if let Ok(at) = at {
                cx.tell(Need::Invlpg { at })?;
            }
            Ok(())
        }
        Nop | Pause | Prefetch => Ok(()),
        _ => unhandled(),
    }
}

/// Ports are free where CPL is at most IOPL outside of virtual-8086 mode; otherwise the TSS decides. Also where the CPU has
/// looked, before an exit: since then another CPU may have put an instruction in the place of the one that it looked at.
pub(super) fn port_allowed(cx: &mut Cx<'_>, port: u16, size: u8) -> Run<()> {
    let iopl = (cx.regs.rflags >> 12) & 3;
    let protected = cx.ctx.cr0 & cr0::PE != 0;
    let vm86 = cx.regs.rflags & rflags::VM != 0;
    if protected && (vm86 || u64::from(cx.ctx.cpl) > iopl) {
        return permission_map(cx, port, size);
    }
    Ok(())
}

/// #GP unless the I/O permission bit map of the TSS has a zero for each port.
fn permission_map(cx: &mut Cx<'_>, port: u16, size: u8) -> Run<()> {
    /// Where a 32- or 64-bit TSS says where its map begins.
    const MAP_BASE: u64 = 0x66;
    let tss = cx.table(Table::Tss)?;
    let limit = u64::from(tss.limit);
    if tss.attr.kind() & 8 == 0 || limit < MAP_BASE.wrapping_add(1) {
        return Err(cx.gp());
    }
    let at = cx.system_address(tss.base, MAP_BASE);
    let map = cx.read_system(at, 2)?;
    let offset = map.wrapping_add(u64::from(port >> 3));
    if offset.wrapping_add(1) > limit {
        return Err(cx.gp());
    }
    let at = cx.system_address(tss.base, offset);
    let bits = cx.read_system(at, 2)?.wrapping_shr(u32::from(port & 7));
    let ports = 0xff_u64.wrapping_shr(8u32.wrapping_sub(size.into()));
    if bits & ports != 0 {
        return Err(cx.gp());
    }
    Ok(())
}

fn write_cr(cx: &mut Cx<'_>, cr: u8, value: u64) -> Run<()> {
    cx.tell(Need::WriteCr { cr, value })?;
    Ok(())
}

/// MOV to and from control registers. With LOCK, AMD's way to CR8 outside of 64-bit mode.
fn move_cr(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    let lock = if cx.insn.prefixes.lock { 8 } else { 0 };
    let cr = cx.insn.reg | lock;
    if !matches!(cr, 0 | 2 | 3 | 4 | 8) {
        return Err(Cx::ud());
    }
    cx.privileged()?;
    if kind == Kind::MovFromCr {
        let value = cx.ask(Need::ReadCr { cr })?;
        return cx.put(Arg::Rr, value);
    }
    let value = cx.get(Arg::Rr)?;
    write_cr(cx, cr, value)
}

/// The debug register named, if CPL allows. Whether DR4 and DR5 exist is for the answer to say.
fn debug_register(cx: &Cx<'_>) -> Run<u8> {
    if cx.insn.reg > 7 {
        return Err(Cx::ud());
    }
    cx.privileged()?;
    Ok(cx.insn.reg)
}
