// SPDX-License-Identifier: GPL-2.0
//! Segment loads, far transfers, interrupts and the system's registers: results, and each fault they can raise.
use super::super::*;
use super::machine::{flat, start, Machine, BASE};
use crate::model::event::vector;
use crate::model::regs::rflags::{IF, IOPL, NT, OF, RF, TF, VIF, VM, ZF};
use crate::model::regs::{
    cr0, cr4, efer, has, Attr, CpuMode, Seg, Segment, RAX, RBX, RCX, RDI, RDX, RSI, RSP,
};
use std::collections::BTreeMap;
use std::vec::Vec;

const GDT: u64 = BASE;
const LDT: u64 = BASE + 0x800;
const IDT: u64 = BASE + 0x1000;
const TSS: u64 = BASE + 0x2000;
/// Top of the stack that the instruction finds, and of the one in the TSS.
const STACK: u64 = BASE + 0x3800;
const INNER: u64 = BASE + 0x2800;

const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const CODE3: u16 = 0x18 | 3;
const DATA3: u16 = 0x20 | 3;
const CONFORMING: u16 = 0x28;
const ABSENT_DATA: u16 = 0x30;
const TASK: u16 = 0x38;
const LOCAL: u16 = 0x40;
const GATE: u16 = 0x48;
const CODE16: u16 = 0x58;
const READ_ONLY: u16 = 0x60;
const ABSENT_CODE: u16 = 0x68;
const CODE64: u16 = 0x70;
const TASK_GATE: u16 = 0x78 | 3;
const CODE64_3: u16 = 0x80 | 3;
const SMALL_CODE: u16 = 0x88;
const GATE64: u16 = 0x90;
const BEYOND: u16 = 0x200;
/// In the LDT.
const LOCAL_DATA: u16 = 0x04;

/// A descriptor from its fields; the limit is in bytes or, with G in `attr`, in pages.
fn descriptor(base: u64, limit: u64, attr: u64) -> u64 {
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | (attr & 0xf0ff) << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24 & 0xff) << 56
}

fn gate(selector: u16, offset: u64, attr: u64, count: u64) -> u64 {
    (offset & 0xffff) | u64::from(selector) << 16 | count << 32 | attr << 40 | (offset >> 16) << 48
}

/// A machine with tables.
struct System {
    m: Machine,
    ctx: Context,
    tables: [Segment; 4],
    msrs: BTreeMap<u32, u64>,
    loads: Vec<(Seg, Segment)>,
    rights: Vec<AccessAs>,
}

impl System {
    fn new(mode: CpuMode, cpl: u8) -> Self {
        let long = mode == CpuMode::Bits64;
        let mut s = Self {
            m: Machine::new(),
            ctx: flat(mode),
            tables: [Segment::default(); 4],
            msrs: BTreeMap::new(),
            loads: Vec::new(),
            rights: Vec::new(),
        };
        s.ctx.cpl = cpl;
        s.ctx.cr0 |= cr0::PE;
        let rpl = u16::from(cpl);
        for (seg, selector) in [
            (Seg::Cs, CODE0),
            (Seg::Ss, DATA0),
            (Seg::Ds, DATA0),
            (Seg::Es, DATA0),
        ] {
            let segment = s.ctx.segs.get_mut(seg);
            segment.selector = if cpl == 3 { selector + 0x10 } else { selector } | rpl;
            segment.attr = segment.attr.with_dpl(cpl);
        }
        if mode == CpuMode::Bits16 {
            s.ctx.segs.get_mut(Seg::Cs).limit = 0xffff;
        }
        s.m.ram.fill(0);
        let code = 0xc09a;
        for (selector, value) in [
            (CODE0, descriptor(0, 0xf_ffff, code)),
            (DATA0, descriptor(0, 0xf_ffff, 0xc092)),
            (CODE3, descriptor(0, 0xf_ffff, 0xc0fa)),
            (DATA3, descriptor(0, 0xf_ffff, 0xc0f2)),
            (CONFORMING, descriptor(0, 0xf_ffff, 0xc09e)),
            (ABSENT_DATA, descriptor(0, 0xf_ffff, 0xc012)),
            (TASK, descriptor(TSS, 0x67, 0x0089)),
            (LOCAL, descriptor(LDT, 0x1f, 0x0082)),
            (GATE, gate(CODE0, 0x1234, 0xec, 2)),
            (CODE16, descriptor(0, 0xffff, 0x009a)),
            (READ_ONLY, descriptor(0, 0xf_ffff, 0xc090)),
            (ABSENT_CODE, descriptor(0, 0xf_ffff, 0xc01a)),
            (CODE64, descriptor(0, 0xf_ffff, 0xa09a)),
            (TASK_GATE, gate(TASK, 0, 0xe5, 0)),
            (CODE64_3, descriptor(0, 0xf_ffff, 0xa0fa)),
            (SMALL_CODE, descriptor(0, 0xfff, 0x409a)),
            (GATE64, gate(CODE64, 0x1234, 0xec, 0)),
        ] {
            s.set(GDT + u64::from(selector & !7), 8, value);
        }
        s.set(LDT, 8, descriptor(0x1000, 0xfff, 0x4092));
        let table = |base, limit| Segment {
            base,
            limit,
            ..Segment::default()
        };
        let kind = |kind| Attr::new(kind, false, 0, true, false, false, false, false);
        s.tables = [
            table(GDT, 0x9f),
            table(IDT, if long { 0xfff } else { 0x7ff }),
            Segment {
                selector: LOCAL,
                attr: kind(2),
                ..table(LDT, 0x1f)
            },
            Segment {
                selector: TASK,
                attr: kind(11),
                ..table(TSS, 0x67)
            },
        ];
        if long {
            for n in 0..7 {
                s.set(TSS + 4 + 8 * n, 8, INNER);
            }
        } else {
            s.set(TSS + 4, 4, INNER);
            s.set(TSS + 8, 2, u64::from(DATA0));
        }
        s
    }

    fn set(&mut self, at: u64, len: usize, value: u64) {
        let at = (at - BASE) as usize;
        self.m.ram[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }

    fn table(&mut self, table: Table) -> &mut Segment {
        &mut self.tables[table as usize]
    }

    fn answer(&mut self, need: Need) -> Answer {
        match need {
            Need::ReadTable { table } => Answer::Segment(*self.table(table)),
            Need::WriteTable { table, value } => {
                *self.table(table) = value;
                Answer::Ack
            }
            Need::LoadSeg { seg, value } => {
                self.loads.push((seg, value));
                Answer::Ack
            }
            Need::ReadMsr { index } | Need::Rdmsr { index } => {
                Answer::Value(self.msrs.get(&index).copied().unwrap_or(0))
            }
            Need::WriteMsr { index, value } | Need::Wrmsr { index, value } => {
                self.msrs.insert(index, value);
                Answer::Ack
            }
            Need::Cpuid { leaf, subleaf } => {
                Answer::Vector([u64::from(leaf) + 1, u64::from(subleaf), 3, 4])
            }
            need => self.m.answer(need),
        }
    }

    /// Runs an instruction to its end.
    fn run(&mut self, bytes: &[u8], regs: &Regs) -> (Need, Regs) {
        self.run_job(Job::new(bytes, regs, &self.ctx).unwrap())
    }

    fn run_job(&mut self, mut job: Job) -> (Need, Regs) {
        self.loads.clear();
        self.rights.clear();
        let mut answer = Answer::Start;
        for _ in 0..1000 {
            let need = job.step(answer);
            match need {
                Need::Done(_) | Need::Fault(_) | Need::Unhandled | Need::TaskSwitch(_) => {
                    return (need, *job.regs());
                }
                Need::Read { .. } | Need::Write { .. } | Need::CmpXchg { .. } => {
                    self.rights.push(job.access_as());
                }
                _ => {}
            }
            answer = self.answer(need);
        }
        panic!("no end: {job:?}");
    }

    /// As [`Self::run`] where the end is a fault: its vector and error code.
    fn fault(&mut self, bytes: &[u8], regs: &Regs) -> (u8, Option<u32>) {
        let (end, after) = self.run(bytes, regs);
        let Need::Fault(e) = end else {
            panic!("{bytes:02x?}: {end:?}");
        };
        assert_eq!(after, *regs, "a fault leaves the registers");
        assert!(self.loads.is_empty(), "{:?}", self.loads);
        (e.vector, e.error)
    }

    fn loaded(&self, seg: Seg) -> Option<Segment> {
        self.loads.iter().rev().find(|l| l.0 == seg).map(|l| l.1)
    }

    /// The words on a stack whose top is `sp`.
    fn words<const N: usize>(&self, sp: u64, size: u64) -> [u64; N] {
        core::array::from_fn(|n| self.m.read(sp + n as u64 * size, size))
    }
}

fn gp(error: u16) -> (u8, Option<u32>) {
    (vector::GP, Some(error.into()))
}

const UD: (u8, Option<u32>) = (vector::UD, None);

fn at_stack(gpr: &[(u8, u64)]) -> Regs {
    let mut regs = start(gpr);
    if gpr.iter().all(|&(n, _)| n != RSP) {
        regs.set(RSP, STACK);
    }
    regs
}

/// mov SEG, ax
fn load(seg: Seg) -> [u8; 2] {
    [0x8e, 0xc0 | (seg as u8) << 3]
}

#[test]
fn data_segments_are_checked() {
    for (cpl, seg, selector, expected) in [
        (0, Seg::Ds, DATA0, None),
        (0, Seg::Ds, 0, None),
        (0, Seg::Es, 3, None),
        (0, Seg::Fs, CONFORMING, None),
        (0, Seg::Gs, READ_ONLY, None),
        (0, Seg::Ds, LOCAL_DATA, None),
        (3, Seg::Ds, DATA3, None),
        (3, Seg::Ds, CONFORMING | 3, None),
        (0, Seg::Ds, CODE0, None),
        (3, Seg::Ds, DATA0, Some(gp(DATA0))),
        (0, Seg::Ds, DATA0 | 3, Some(gp(DATA0))),
        (0, Seg::Ds, BEYOND, Some(gp(BEYOND))),
        (0, Seg::Ds, 0x24, Some(gp(0x24))),
        (0, Seg::Ds, TASK, Some(gp(TASK))),
        (
            0,
            Seg::Ds,
            ABSENT_DATA,
            Some((vector::NP, Some(ABSENT_DATA.into()))),
        ),
        (0, Seg::Ss, DATA0, None),
        (0, Seg::Ss, 0, Some(gp(0))),
        (0, Seg::Ss, DATA0 | 1, Some(gp(DATA0))),
        (0, Seg::Ss, READ_ONLY, Some(gp(READ_ONLY))),
        (0, Seg::Ss, CODE0, Some(gp(CODE0))),
        (0, Seg::Ss, DATA3, Some(gp(DATA3 & !3))),
        (3, Seg::Ss, DATA3, None),
        (
            0,
            Seg::Ss,
            ABSENT_DATA,
            Some((vector::SS, Some(ABSENT_DATA.into()))),
        ),
        (0, Seg::Ss, BEYOND, Some(gp(BEYOND))),
    ] {
        let mut s = System::new(CpuMode::Bits32, cpl);
        let regs = at_stack(&[(RAX, selector.into())]);
        let what = std::format!("{seg:?} {selector:#x} at {cpl}");
        match expected {
            Some(fault) => assert_eq!(s.fault(&load(seg), &regs), fault, "{what}"),
            None => {
                let (end, _) = s.run(&load(seg), &regs);
                let Need::Done(done) = end else {
                    panic!("{what}: {end:?}");
                };
                let stack = seg == Seg::Ss;
                assert_eq!(done.shadow == Shadow::MovSs, stack, "{what}");
                let now = s.loaded(seg).unwrap();
                assert_eq!(now.selector, selector, "{what}");
                assert_eq!(now.attr.unusable(), selector & !3 == 0, "{what}");
                if selector & !3 != 0 {
                    assert_eq!(now.attr.kind() & 1, 1, "accessed: {what}");
                    let table = if selector & 4 != 0 { LDT } else { GDT };
                    let at = table + u64::from(selector & !7) + 5;
                    assert_eq!(s.m.read(at, 1) & 1, 1, "in memory: {what}");
                }
                assert!(s.rights.iter().all(|r| *r == AccessAs::System), "{what}");
            }
        }
    }
    // Base and limit come from the descriptor.
    let mut s = System::new(CpuMode::Bits32, 0);
    s.run(&load(Seg::Ds), &at_stack(&[(RAX, LOCAL_DATA.into())]));
    let ds = s.loaded(Seg::Ds).unwrap();
    assert_eq!((ds.base, ds.limit), (0x1000, 0xfff));
    // No LDT, no segments in it.
    s.table(Table::Ldt).attr = Attr(0).with_unusable(true);
    let regs = at_stack(&[(RAX, LOCAL_DATA.into())]);
    assert_eq!(s.fault(&load(Seg::Ds), &regs), gp(LOCAL_DATA));
    // MOV to CS does not exist.
    assert_eq!(s.fault(&load(Seg::Cs), &regs), UD);
    // 64-bit code: a null stack segment, except in user mode.
    let mut s = System::new(CpuMode::Bits64, 0);
    let (end, _) = s.run(&load(Seg::Ss), &at_stack(&[(RAX, 0)]));
    assert!(matches!(end, Need::Done(_)));
    assert!(s.loaded(Seg::Ss).unwrap().attr.unusable());
    let mut s = System::new(CpuMode::Bits64, 3);
    assert_eq!(s.fault(&load(Seg::Ss), &at_stack(&[(RAX, 3)])), gp(0));
}

#[test]
fn segments_from_the_stack_and_from_far_pointers() {
    let mut s = System::new(CpuMode::Bits32, 0);
    s.set(STACK, 4, 0xdead_0000 | u64::from(DATA0));
    // pop fs
    let (_, regs) = s.run(&[0x0f, 0xa1], &at_stack(&[]));
    assert_eq!(regs.get(RSP), STACK + 4);
    assert_eq!(s.loaded(Seg::Fs).unwrap().selector, DATA0);
    // pop ss holds events back; a fault leaves the stack pointer
    let (end, _) = s.run(&[0x17], &at_stack(&[]));
    assert!(matches!(end, Need::Done(d) if d.shadow == Shadow::MovSs));
    s.set(STACK, 4, u64::from(BEYOND));
    assert_eq!(s.fault(&[0x1f], &at_stack(&[])), gp(BEYOND));
    // les eax, [ebx]
    s.set(STACK, 8, 0x10_1234_5678);
    let (_, regs) = s.run(&[0xc4, 0x03], &at_stack(&[(RBX, STACK)]));
    assert_eq!(regs.get(RAX), 0x1234_5678);
    assert_eq!(s.loaded(Seg::Es).unwrap().selector, DATA0);
    // lss does not: it is one instruction for both
    let (end, _) = s.run(&[0x0f, 0xb2, 0x03], &at_stack(&[(RBX, STACK)]));
    assert!(matches!(end, Need::Done(d) if d.shadow == Shadow::None));
    // Real mode: the base only, whatever the limit was before.
    let mut s = System::new(CpuMode::Bits16, 0);
    s.ctx.cr0 = 0;
    s.ctx.segs.get_mut(Seg::Ds).limit = 0x1234_5678;
    s.run(&load(Seg::Ds), &at_stack(&[(RAX, 0xb800)]));
    let ds = s.loaded(Seg::Ds).unwrap();
    assert_eq!(
        (ds.base, ds.limit, ds.selector),
        (0xb_8000, 0x1234_5678, 0xb800)
    );
    // Virtual-8086 mode: everything anew.
    s.ctx.cr0 = cr0::PE;
    let mut regs = at_stack(&[(RAX, 0xb800)]);
    regs.rflags |= VM;
    s.run(&load(Seg::Ds), &regs);
    let ds = s.loaded(Seg::Ds).unwrap();
    assert_eq!((ds.base, ds.limit, ds.attr.dpl()), (0xb_8000, 0xffff, 3));
}

#[test]
fn task_and_local_table_registers() {
    // lldt ax; ltr ax
    let (lldt, ltr) = ([0x0f, 0x00, 0xd0], [0x0f, 0x00, 0xd8]);
    for (code, selector, expected) in [
        (lldt, LOCAL, None),
        (lldt, 0, None),
        (ltr, TASK, None),
        (ltr, 0, Some(gp(0))),
        (lldt, TASK, Some(gp(TASK))),
        (ltr, LOCAL, Some(gp(LOCAL))),
        (ltr, BEYOND, Some(gp(BEYOND))),
        (lldt, LOCAL | 4, Some(gp(LOCAL | 4))),
    ] {
        let mut s = System::new(CpuMode::Bits32, 0);
        let regs = at_stack(&[(RAX, selector.into())]);
        match expected {
            Some(fault) => assert_eq!(s.fault(&code, &regs), fault, "{selector:#x}"),
            None => {
                assert!(matches!(s.run(&code, &regs).0, Need::Done(_)));
                let table = if code == ltr { Table::Tss } else { Table::Ldt };
                assert_eq!(s.table(table).selector, selector);
            }
        }
    }
    let mut s = System::new(CpuMode::Bits32, 0);
    s.run(&ltr, &at_stack(&[(RAX, TASK.into())]));
    assert_eq!(s.m.read(GDT + u64::from(TASK) + 5, 1), 0x8b, "busy");
    // A busy one cannot be loaded.
    let regs = at_stack(&[(RAX, TASK.into())]);
    assert_eq!(s.fault(&ltr, &regs), gp(TASK));
    s.set(GDT + u64::from(TASK) + 5, 1, 0x09);
    let absent = (vector::NP, Some(TASK.into()));
    assert_eq!(s.fault(&ltr, &regs), absent);
    // For level 0 of protected mode only.
    let mut user = System::new(CpuMode::Bits32, 3);
    assert_eq!(user.fault(&ltr, &regs), gp(0));
    let mut real = System::new(CpuMode::Bits16, 0);
    real.ctx.cr0 = 0;
    assert_eq!(real.fault(&ltr, &regs), UD);
    // sldt eax; str eax: what the registers hold
    let mut s = System::new(CpuMode::Bits32, 3);
    let (_, regs) = s.run(&[0x0f, 0x00, 0xc0], &at_stack(&[(RAX, u64::MAX)]));
    assert_eq!(regs.get(RAX), LOCAL.into());
    let (_, regs) = s.run(&[0x0f, 0x00, 0xc8], &at_stack(&[]));
    assert_eq!(regs.get(RAX), TASK.into());
    assert_eq!(real.fault(&[0x0f, 0x00, 0xc8], &at_stack(&[])), UD);
}

#[test]
fn user_mode_instruction_prevention() {
    // sldt, str, smsw, sgdt, sidt
    for code in [
        &[0x0f, 0x00, 0xc0][..],
        &[0x0f, 0x00, 0xc8],
        &[0x0f, 0x01, 0xe0],
        &[0x0f, 0x01, 0x03],
        &[0x0f, 0x01, 0x0b],
    ] {
        for (cpl, umip) in [(0, false), (0, true), (3, false), (3, true)] {
            let mut s = System::new(CpuMode::Bits32, cpl);
            if umip {
                s.ctx.cr4 |= cr4::UMIP;
            }
            let regs = at_stack(&[(RBX, STACK)]);
            if cpl == 3 && umip {
                assert_eq!(s.fault(code, &regs), gp(0), "{code:02x?}");
            } else {
                assert!(matches!(s.run(code, &regs).0, Need::Done(_)), "{code:02x?}");
            }
        }
    }
}

#[test]
fn descriptor_tables_are_stored_and_loaded() {
    let mut s = System::new(CpuMode::Bits32, 0);
    let regs = at_stack(&[(RBX, STACK)]);
    s.run(&[0x0f, 0x01, 0x03], &regs);
    assert_eq!((s.m.read(STACK, 2), s.m.read(STACK + 2, 4)), (0x9f, GDT));
    s.set(STACK, 2, 0x1ff);
    s.set(STACK + 2, 4, 0x1234_5678);
    s.run(&[0x0f, 0x01, 0x1b], &regs);
    let idt = *s.table(Table::Idt);
    assert_eq!((idt.base, idt.limit), (0x1234_5678, 0x1ff));
    // A 16-bit operand takes 24 bits of base.
    s.run(&[0x66, 0x0f, 0x01, 0x13], &regs);
    assert_eq!(s.table(Table::Gdt).base, 0x34_5678);
    let mut s = System::new(CpuMode::Bits64, 0);
    s.set(STACK, 2, 0x1ff);
    s.set(STACK + 2, 8, 0xffff_8000_0000_1000);
    s.run(&[0x0f, 0x01, 0x13], &regs);
    assert_eq!(s.table(Table::Gdt).base, 0xffff_8000_0000_1000);
    s.set(STACK + 2, 8, 1 << 60);
    assert_eq!(s.fault(&[0x0f, 0x01, 0x13], &regs), gp(0));
    let mut s = System::new(CpuMode::Bits32, 3);
    assert_eq!(s.fault(&[0x0f, 0x01, 0x13], &regs), gp(0));
}

#[test]
fn descriptors_can_be_looked_at() {
    let zero = |regs: &Regs| regs.rflags & ZF != 0;
    // lar eax, cx; lsl eax, cx; verr cx; verw cx
    let (lar, lsl) = ([0x0f, 0x02, 0xc1], [0x0f, 0x03, 0xc1]);
    let (verr, verw) = ([0x0f, 0x00, 0xe1], [0x0f, 0x00, 0xe9]);
    for (cpl, selector, expected) in [
        (0, CODE0, [true, true, true, false]),
        (0, DATA0, [true, true, true, true]),
        (0, READ_ONLY, [true, true, true, false]),
        (3, DATA0, [false; 4]),
        (0, DATA0 | 3, [false; 4]),
        (3, CONFORMING, [true, true, true, false]),
        (0, TASK, [true, true, false, false]),
        (0, GATE, [true, false, false, false]),
        (0, 0, [false; 4]),
        (0, BEYOND, [false; 4]),
    ] {
        let mut s = System::new(CpuMode::Bits32, cpl);
        let regs = at_stack(&[(RCX, selector.into()), (RAX, 5)]);
        for (code, ok) in [lar, lsl, verr, verw].into_iter().zip(expected) {
            let (end, after) = s.run(&code, &regs);
            assert!(matches!(end, Need::Done(_)));
            assert_eq!(zero(&after), ok, "{code:02x?} {selector:#x} at {cpl}");
            if !ok || code == verr || code == verw {
                assert_eq!(after.get(RAX), 5);
            }
        }
    }
    let mut s = System::new(CpuMode::Bits32, 0);
    let regs = at_stack(&[(RCX, DATA0.into())]);
    assert_eq!(s.run(&lar, &regs).1.get(RAX), 0xcf_9200);
    assert_eq!(s.run(&lsl, &regs).1.get(RAX), 0xffff_ffff);
    // arpl ax, cx
    for (ax, cx, after, raised) in [(0x10, 3, 0x13, true), (0x13, 0, 0x13, false)] {
        let (_, regs) = s.run(&[0x63, 0xc8], &at_stack(&[(RAX, ax), (RCX, cx)]));
        assert_eq!((regs.get(RAX), zero(&regs)), (after, raised));
    }
    let mut real = System::new(CpuMode::Bits16, 0);
    real.ctx.cr0 = 0;
    for code in [&lar[..], &verr, &[0x63, 0xc8]] {
        assert_eq!(real.fault(code, &at_stack(&[])), UD);
    }
}

/// Where IOPL does not help, the permission map of the TSS decides.
#[test]
fn ports_and_their_permission_map() {
    let mut s = System::new(CpuMode::Bits32, 3);
    // The TSS of long mode and of 32-bit mode have the base of the map in the same place.
    s.set(TSS + 0x66, 2, 0x68);
    s.table(Table::Tss).limit = 0x68 + 0x80;
    s.set(TSS + 0x68 + 0x7e, 2, 0xff7f);
    s.set(TSS + 0x68 + 0xe, 1, 2);
    for (code, port, allowed) in [
        (&[0xec][..], 0x3f7, true),
        (&[0xec], 0x3f8, false),
        (&[0xec], 0x3f6, false),
        (&[0x66, 0xed], 0x3f7, false),
        (&[0xed], 0x300, true),
        (&[0xed], 0x3f4, false),
        // The map ends before the port.
        (&[0xec], 0x4f8, false),
        // ins and outs, alone and repeated; in and out name their port
        (&[0x6c], 0x3f7, true),
        (&[0x6c], 0x3f8, false),
        (&[0xf3, 0x6f], 0x300, true),
        (&[0xf3, 0x6f], 0x3f4, false),
        (&[0xf3, 0x6c], 0x4f8, false),
        (&[0xe4, 0x70], 0x3f8, true),
        (&[0xe6, 0x71], 0x3f7, false),
    ] {
        let regs = at_stack(&[
            (RDX, port),
            (RCX, 2),
            (RSI, BASE + 0x3000),
            (RDI, BASE + 0x3000),
        ]);
        if allowed {
            let (end, _) = s.run(code, &regs);
            assert!(matches!(end, Need::Done(_)), "{port:#x} {end:?}");
        } else {
            assert_eq!(s.fault(code, &regs), gp(0), "{port:#x}");
        }
    }
    let mut trusted = at_stack(&[(RDX, 0x3f8)]);
    trusted.rflags |= IOPL;
    assert!(matches!(s.run(&[0xec], &trusted).0, Need::Done(_)));
    // A 16-bit TSS has no map.
    s.table(Table::Tss).attr = Attr::new(3, false, 0, true, false, false, false, false);
    assert_eq!(s.fault(&[0xec], &at_stack(&[(RDX, 0x3f7)])), gp(0));
}

#[path = "job_tests_deliver.rs"]
mod deliver;
#[path = "job_tests_far.rs"]
mod far;
#[path = "job_tests_interrupt.rs"]
mod interrupt;
#[path = "job_tests_task.rs"]
mod task;
