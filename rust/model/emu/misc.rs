// SPDX-License-Identifier: GPL-2.0
//! Table registers, CPUID and counters, extended control registers, segment bases, and what has no operands to speak of.
#![forbid(unsafe_code)]

use super::arg::Arg;
use super::cx::Cx;
use super::insn::Kind;
use super::job::{Need, Run, Stop, Table};
use super::run::unhandled;
use super::seg::user_prevention;
use crate::model::event::vector;
use crate::model::regs::rflags::AC;
use crate::model::regs::{cr0, cr4, has, Seg, Segment, RAX, RBX, RCX, RDX};

const TSC: u32 = 0x10;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

pub(super) fn run(cx: &mut Cx<'_>, kind: Kind, a: Arg) -> Run<()> {
    use Kind::*;
    match kind {
        Sgdt | Sidt => store_table(cx, kind),
        Lgdt | Lidt => load_table(cx, kind),
        Cpuid => cpuid(cx),
        Rdtsc | Rdtscp => read_tsc(cx, kind),
        Rdpid => {
            offered(cx, has::RDPID)?;
            let value = cx.ask(Need::ReadMsr { index: TSC_AUX })?;
            let size = if cx.long_mode() { 8 } else { 4 };
            cx.set_reg(cx.insn.rm, size, value);
            Ok(())
        }
        Rdpmc => {
            if cx.ctx.cpl != 0 && cx.ctx.cr4 & cr4::PCE == 0 && cx.ctx.cr0 & cr0::PE != 0 {
                return Err(cx.gp());
            }
            let index = cx.reg(RCX, 4) as u32;
            let value = cx.ask(Need::ReadPmc { index })?;
            set_pair(cx, value);
            Ok(())
        }
        Xgetbv | Xsetbv => extended_control(cx, kind),
        Hlt | Invd | Wbinvd | Wbnoinvd => cx.privileged(),
        Clac | Stac => {
            offered(cx, has::SMAP)?;
            if cx.ctx.cpl != 0 || cx.vm86() {
                return Err(Cx::ud());
            }
            let rest = cx.regs.rflags & !AC;
            cx.regs.rflags = rest | if kind == Stac { AC } else { 0 };
            Ok(())
        }
        Swapgs => swapgs(cx),
        Rdfsbase => segment_base(cx),
        Fnstcw | Fnstsw | Fninit | Fwait => fpu(cx, kind, a),
        Clflush => {
            // It reads as far as protection goes.
            let at = cx.operand(1, false)?;
            cx.ask(Need::Check {
                at,
                len: 1,
                write: false,
            })?;
            Ok(())
        }
        Ud => Err(Cx::ud()),
        Fence | Serialize => Ok(()),
        _ => unhandled(),
    }
}

/// #UD for what the guest's CPU does not have.
pub(super) fn offered(cx: &Cx<'_>, what: u16) -> Run<()> {
    if cx.ctx.has(what) {
        Ok(())
    } else {
        Err(Cx::ud())
    }
}

/// EDX:EAX.
fn set_pair(cx: &mut Cx<'_>, value: u64) {
    cx.set_reg(RAX, 4, value);
    cx.set_reg(RDX, 4, value >> 32);
}

fn table_of(kind: Kind) -> Table {
    match kind {
        Kind::Sgdt | Kind::Lgdt => Table::Gdt,
        _ => Table::Idt,
    }
}

/// SGDT and SIDT: a word of limit, then the base.
fn store_table(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    if cx.insn.mem.is_none() {
        return Err(Cx::ud());
    }
    user_prevention(cx)?;
    let (size, whole) = if cx.long_mode() { (8, 10) } else { (4, 6) };
    let table = cx.table(table_of(kind))?;
    let at = cx.operand(whole, true)?;
    cx.check_write(at, whole)?;
    cx.write_parts(at, 2, u64::from(table.limit & 0xffff))?;
    cx.write_parts(cx.advance(at, 2), size, table.base)
}

fn load_table(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    if cx.insn.mem.is_none() {
        return Err(Cx::ud());
    }
    cx.privileged()?;
    let (size, whole) = if cx.long_mode() { (8, 10) } else { (4, 6) };
    let at = cx.operand(whole, false)?;
    let limit = cx.read(at, 2, false)? as u32;
    let mut base = cx.read(cx.advance(at, 2), size, false)?;
    if cx.insn.op_size == 2 {
        // What a 286 has.
        base &= 0xff_ffff;
    }
    if size == 8 && !cx.canonical(base) {
        return Err(cx.gp());
    }
    cx.tell(Need::WriteTable {
        table: table_of(kind),
        value: Segment {
            base,
            limit,
            ..Segment::default()
        },
    })
}

fn cpuid(cx: &mut Cx<'_>) -> Run<()> {
    let (leaf, subleaf) = (cx.reg(RAX, 4) as u32, cx.reg(RCX, 4) as u32);
    let [eax, ebx, ecx, edx] = cx.ask_vector(Need::Cpuid { leaf, subleaf })?;
    for (n, value) in [(RAX, eax), (RBX, ebx), (RCX, ecx), (RDX, edx)] {
        cx.set_reg(n, 4, value);
    }
    Ok(())
}

fn read_tsc(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    if kind == Kind::Rdtscp {
        offered(cx, has::RDTSCP)?;
    }
    if cx.ctx.cpl != 0 && cx.ctx.cr4 & cr4::TSD != 0 && cx.ctx.cr0 & cr0::PE != 0 {
        return Err(cx.gp());
    }
    let value = cx.ask(Need::ReadMsr { index: TSC })?;
    set_pair(cx, value);
    if kind == Kind::Rdtscp {
        let aux = cx.ask(Need::ReadMsr { index: TSC_AUX })?;
        cx.set_reg(RCX, 4, aux);
    }
    Ok(())
}

fn extended_control(cx: &mut Cx<'_>, kind: Kind) -> Run<()> {
    if cx.ctx.cr4 & cr4::OSXSAVE == 0 {
        return Err(Cx::ud());
    }
    let index = cx.reg(RCX, 4) as u32;
    if kind == Kind::Xgetbv {
        let value = cx.ask(Need::ReadXcr { index })?;
        set_pair(cx, value);
        return Ok(());
    }
    cx.privileged()?;
    let value = cx.reg(RAX, 4) | (cx.reg(RDX, 4) << 32);
    cx.tell(Need::WriteXcr { index, value })
}

fn swapgs(cx: &mut Cx<'_>) -> Run<()> {
    if !cx.long_mode() {
        return Err(Cx::ud());
    }
    cx.privileged()?;
    let base = cx.ask(Need::ReadMsr {
        index: KERNEL_GS_BASE,
    })?;
    let gs = *cx.ctx.segs.get(Seg::Gs);
    cx.tell(Need::WriteMsr {
        index: KERNEL_GS_BASE,
        value: gs.base,
    })?;
    cx.load(Seg::Gs, Segment { base, ..gs })
}

/// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE, in the order of their numbers.
fn segment_base(cx: &mut Cx<'_>) -> Run<()> {
    offered(cx, has::FSGSBASE)?;
    if !cx.long_mode() || cx.ctx.cr4 & cr4::FSGSBASE == 0 {
        return Err(Cx::ud());
    }
    let number = cx.insn.reg & 7;
    let seg = if number & 1 == 0 { Seg::Fs } else { Seg::Gs };
    let old = *cx.ctx.segs.get(seg);
    let size = if cx.insn.prefixes.w() { 8 } else { 4 };
    if number & 2 == 0 {
        cx.set_reg(cx.insn.rm, size, old.base);
        return Ok(());
    }
    let base = cx.reg(cx.insn.rm, size);
    if !cx.canonical(base) {
        return Err(cx.gp());
    }
    cx.load(seg, Segment { base, ..old })
}

/// The x87 instructions that drivers and boot code use on their own.
fn fpu(cx: &mut Cx<'_>, kind: Kind, a: Arg) -> Run<()> {
    let off = if kind == Kind::Fwait {
        cx.ctx.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS
    } else {
        cx.ctx.cr0 & (cr0::EM | cr0::TS) != 0
    };
    if off {
        return Err(Stop::fault(vector::NM));
    }
    match kind {
        // An x87 exception that waits is raised when the guest goes on.
        Kind::Fwait => Ok(()),
        Kind::Fninit => cx.tell(Need::InitFpu),
        _ => {
            let words = cx.ask(Need::ReadFpu)?;
            let value = if kind == Kind::Fnstcw {
                words
            } else {
                words >> 16
            };
            if a == Arg::No {
                cx.set_reg(RAX, 2, value);
                return Ok(());
            }
            cx.put(a, value & 0xffff)
        }
    }
}
