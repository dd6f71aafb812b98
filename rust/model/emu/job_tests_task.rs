// SPDX-License-Identifier: GPL-2.0
//! Task switches.
use super::*;
use crate::model::emu::job::tests::MMIO;
use crate::model::exception::Exception;

/// The second task's TSS and its descriptor.
const TSS2: u64 = BASE + 0x2200;
const TASK2: u16 = 0x98;

fn two_tasks(wide: bool) -> System {
    let mut s = System::new(CpuMode::Bits32, 0);
    s.ctx.cr0 &= !cr0::PG;
    let (limit, kind) = if wide { (0x67, 0x89) } else { (0x2b, 0x81) };
    s.set(GDT + u64::from(TASK2), 8, descriptor(TSS2, limit, kind));
    s.set(GDT + u64::from(TASK) + 5, 1, 0x8b);
    let segs = [DATA0, CODE0, DATA0, DATA0, 0, 0];
    if wide {
        s.set(TSS2 + 0x20, 4, 0x1100);
        s.set(TSS2 + 0x24, 4, 2);
        for n in 0..8 {
            s.set(TSS2 + 0x28 + 4 * n, 4, 0x100 + n);
        }
        s.set(TSS2 + 0x28 + 16, 4, STACK);
        for (n, seg) in segs.into_iter().enumerate() {
            s.set(TSS2 + 0x48 + 4 * n as u64, 4, seg.into());
        }
        s.set(TSS2 + 0x60, 4, LOCAL.into());
    } else {
        s.set(TSS2 + 0xe, 2, 0x1100);
        s.set(TSS2 + 0x10, 2, 2);
        for n in 0..8 {
            s.set(TSS2 + 0x12 + 2 * n, 2, 0x100 + n);
        }
        for (n, seg) in segs.into_iter().take(4).enumerate() {
            s.set(TSS2 + 0x22 + 2 * n as u64, 2, seg.into());
        }
        s.set(TSS2 + 0x2a, 2, LOCAL.into());
    }
    s
}

fn switch(s: &mut System, reason: TaskReason, error: Option<u16>) -> (Need, Regs) {
    let selector = TASK2;
    let regs = at_stack(&[(RAX, 7), (RBX, 8)]);
    let mut job = Job::task_switch(
        TaskSwitch {
            selector,
            reason,
            insn_len: 2,
        },
        error,
        &regs,
        &s.ctx,
    );
    s.loads.clear();
    let mut answer = Answer::Start;
    for _ in 0..10_000 {
        let need = job.step(answer);
        if matches!(need, Need::Done(_) | Need::Fault(_) | Need::Unhandled) {
            return (need, *job.regs());
        }
        answer = s.answer(need);
    }
    panic!("no end: {job:?}");
}

fn busy(s: &System, selector: u16) -> bool {
    s.m.read(GDT + u64::from(selector) + 5, 1) & 2 != 0
}

#[test]
fn tasks_are_saved_and_loaded() {
    let mut s = two_tasks(true);
    let (end, regs) = switch(&mut s, TaskReason::Jmp, None);
    assert!(matches!(end, Need::Done(d) if !d.task_trap), "{end:?}");
    assert_eq!(
        (regs.rip, regs.get(RAX), regs.get(RDX)),
        (0x1100, 0x100, 0x102)
    );
    assert_eq!((regs.get(RSP), regs.rflags & NT), (STACK, 0));
    // The old task
    assert_eq!(s.words(TSS + 0x20, 4), [0x1002, 2, 7]);
    assert_eq!(s.m.read(TSS + 0x48 + 4, 4), CODE0.into());
    assert!(!busy(&s, TASK) && busy(&s, TASK2));
    assert_eq!(s.table(Table::Tss).selector, TASK2);
    assert_eq!(s.table(Table::Ldt).base, LDT);
    assert_eq!(s.loaded(Seg::Cs).unwrap().selector, CODE0);
    assert!(s.loaded(Seg::Fs).unwrap().attr.unusable());
    assert!(s
        .m
        .trace
        .iter()
        .any(|n| matches!(n, Need::WriteCr { cr: 0, value } if value & cr0::TS != 0)));
    // A call is linked, and comes back by IRET; an error code is pushed.
    let mut s = two_tasks(true);
    let (_, regs) = switch(&mut s, TaskReason::Gate, Some(0x1234));
    assert_eq!((regs.rflags & NT, regs.get(RSP)), (NT, STACK - 4));
    assert_eq!(
        (s.m.read(STACK - 4, 4), s.m.read(TSS2, 2)),
        (0x1234, TASK.into())
    );
    assert!(busy(&s, TASK) && busy(&s, TASK2));
    // With the T bit set there is a trap.
    let mut s = two_tasks(true);
    s.set(TSS2 + 0x64, 2, 1);
    assert!(matches!(switch(&mut s, TaskReason::Jmp, None).0, Need::Done(d) if d.task_trap));
    // 16-bit
    let mut s = two_tasks(false);
    let (end, regs) = switch(&mut s, TaskReason::Jmp, None);
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!(
        (regs.rip, regs.get(RAX), regs.get(RSP)),
        (0x1100, 0x100, 0x104)
    );
    assert_eq!(s.loaded(Seg::Ds).unwrap().selector, DATA0);
    assert!(s.loaded(Seg::Fs).is_none());
    assert_eq!(s.table(Table::Ldt).base, LDT);
}

/// The single step of a task that is traced is the CPU's to see to, after the first instruction.
#[test]
fn a_traced_task_begins_with_its_first_instruction() {
    for wide in [true, false] {
        let mut s = two_tasks(wide);
        s.set(TSS2 + if wide { 0x24 } else { 0x10 }, 2, 2 | TF);
        let (end, regs) = switch(&mut s, TaskReason::Jmp, None);
        assert!(
            matches!(end, Need::Done(d) if !d.trap && !d.task_trap),
            "{end:?}"
        );
        assert_eq!((regs.rip, regs.rflags), (0x1100, 2 | TF));
    }
    // The T bit of its TSS asks for a trap before that.
    let mut s = two_tasks(true);
    s.set(TSS2 + 0x24, 2, 2 | TF);
    s.set(TSS2 + 0x64, 2, 1);
    let (end, _) = switch(&mut s, TaskReason::Jmp, None);
    assert!(
        matches!(end, Need::Done(d) if !d.trap && d.task_trap),
        "{end:?}"
    );
}

/// Not by way of the debug register, which DR7.GD guards.
#[test]
fn local_breakpoints_end_with_their_task() {
    for wide in [true, false] {
        let mut s = two_tasks(wide);
        let (end, _) = switch(&mut s, TaskReason::Jmp, None);
        assert!(matches!(end, Need::Done(_)), "{end:?}");
        let moves = |n: &&Need| matches!(n, Need::ReadDr { .. } | Need::WriteDr { .. });
        assert_eq!(s.m.trace.iter().find(moves), None);
        assert!(s.m.trace.contains(&Need::EndLocalBreakpoints));
    }
}

/// A TSS that is not there faults at the instruction, before anything is changed.
#[test]
fn both_segments_are_looked_at_first() {
    const NOWHERE: u64 = MMIO + 0x1000;
    for reason in [TaskReason::Jmp, TaskReason::Call] {
        let mut s = two_tasks(true);
        s.set(GDT + u64::from(TASK2), 8, descriptor(NOWHERE, 0x67, 0x89));
        let (end, regs) = switch(&mut s, reason, None);
        assert_eq!(end, Need::Fault(Exception::page_fault(0, NOWHERE)));
        assert_eq!(regs.rip, 0x1000);
        assert!(busy(&s, TASK) && !busy(&s, TASK2));
        let mut s = two_tasks(true);
        s.table(Table::Tss).base = NOWHERE;
        let (end, regs) = switch(&mut s, reason, None);
        assert_eq!(end, Need::Fault(Exception::page_fault(2, NOWHERE + 0x20)));
        assert_eq!(regs.rip, 0x1000);
        assert!(busy(&s, TASK) && !busy(&s, TASK2));
        // Its second page
        let mut s = two_tasks(true);
        let at = NOWHERE - 0x30;
        s.set(GDT + u64::from(TASK2), 8, descriptor(at, 0x67, 0x89));
        let (end, _) = switch(&mut s, reason, None);
        assert_eq!(end, Need::Fault(Exception::page_fault(0, NOWHERE)));
        assert!(busy(&s, TASK) && !busy(&s, TASK2));
    }
}

#[test]
fn a_switch_that_has_begun_ends() {
    let mut s = two_tasks(true);
    // Not accessed yet: the CPU marks it, and loses against another one.
    s.set(GDT + u64::from(CODE0) + 5, 1, 0x9a);
    s.m.lose = 100;
    let (end, regs) = switch(&mut s, TaskReason::Jmp, None);
    assert!(matches!(end, Need::Done(d) if !d.repeat), "{end:?}");
    assert_eq!(regs.rip, 0x1100);
    // It gives up at last.
    let mut s = two_tasks(true);
    s.m.lose = u8::MAX;
    assert_eq!(switch(&mut s, TaskReason::Jmp, None).0, Need::Unhandled);
}

#[test]
fn returning_to_a_task_ends_the_blocking_of_nmis() {
    let mut s = two_tasks(true);
    s.set(GDT + u64::from(TASK2) + 5, 1, 0x8b);
    let (end, _) = switch(&mut s, TaskReason::Iret, None);
    assert!(matches!(end, Need::Done(d) if d.iret), "{end:?}");
    let (end, _) = switch(&mut two_tasks(true), TaskReason::Jmp, None);
    assert!(matches!(end, Need::Done(d) if !d.iret), "{end:?}");
}

#[test]
fn new_tasks_are_checked() {
    let fault = |s: &mut System, reason| match switch(s, reason, None) {
        (Need::Fault(e), regs) => (e.vector, e.error, regs.rip),
        (end, _) => panic!("{end:?}"),
    };
    let new = |vector, selector: u16| (vector, Some(u32::from(selector)), 0x1100);
    let old = |vector| (vector, Some(u32::from(TASK2)), 0x1000);
    // In the old task: the TSS itself.
    let mut s = two_tasks(true);
    assert_eq!(fault(&mut s, TaskReason::Iret), old(vector::TS), "not busy");
    s.set(GDT + u64::from(TASK2) + 5, 1, 0x8b);
    assert_eq!(fault(&mut s, TaskReason::Jmp), old(vector::GP), "busy");
    s.set(GDT + u64::from(TASK2) + 5, 1, 0x09);
    assert_eq!(fault(&mut s, TaskReason::Jmp), old(vector::NP));
    s.set(GDT + u64::from(TASK2), 8, descriptor(TSS2, 0x66, 0x89));
    assert_eq!(fault(&mut s, TaskReason::Call), old(vector::TS));
    // In the new task: its segments.
    for (offset, selector, vector) in [
        (0x60, TASK, vector::TS),
        (0x4c, DATA0, vector::TS),
        (0x4c, CODE3, vector::TS),
        (0x4c, ABSENT_CODE, vector::NP),
        (0x50, 0, vector::TS),
        (0x50, READ_ONLY, vector::TS),
        (0x50, ABSENT_DATA, vector::SS),
        (0x54, BEYOND, vector::TS),
        (0x54, ABSENT_DATA, vector::NP),
    ] {
        let mut s = two_tasks(true);
        s.set(TSS2 + offset, 4, selector.into());
        let (v, error, rip) = fault(&mut s, TaskReason::Jmp);
        if selector == CODE3 {
            // The level is 3 then, and the stack is not for it.
            assert_eq!((v, error, rip), new(vector::TS, DATA0));
        } else {
            assert_eq!((v, error, rip), new(vector, selector & !3), "{offset:#x}");
        }
    }
    let mut s = two_tasks(true);
    s.set(TSS2 + 0x4c, 4, SMALL_CODE.into());
    assert_eq!(fault(&mut s, TaskReason::Jmp), new(vector::GP, 0));
    // A null LDT has no segments.
    let mut s = two_tasks(true);
    s.set(TSS2 + 0x60, 4, 0);
    s.set(TSS2 + 0x54, 4, LOCAL_DATA.into());
    assert_eq!(fault(&mut s, TaskReason::Jmp), new(vector::TS, LOCAL_DATA));
}
