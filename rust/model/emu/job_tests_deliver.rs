// SPDX-License-Identifier: GPL-2.0
//! The delivery of events in the place of an instruction.
use super::*;

const NMI: Delivery = Delivery {
    vector: 2,
    error: None,
    insn_len: 0,
    int_n: false,
};

impl System {
    fn deliver(&mut self, event: &Delivery, regs: &Regs) -> (Need, Regs) {
        let mut job = Job::idle();
        job.begin_delivery(event, regs, &self.ctx);
        assert_eq!(job.insn().delivery(), Some(*event));
        self.run_job(job)
    }

    fn delivery_fault(&mut self, event: &Delivery, regs: &Regs) -> (u8, Option<u32>) {
        let (end, after) = self.deliver(event, regs);
        let Need::Fault(e) = end else {
            panic!("{event:?}: {end:?}");
        };
        assert_eq!(after, *regs, "a fault leaves the registers");
        assert!(self.loads.is_empty(), "{:?}", self.loads);
        (e.vector, e.error)
    }

    fn set_gate(&mut self, n: u64, value: u64) {
        let shift = if self.ctx.long() { 4 } else { 3 };
        self.set(IDT + (n << shift), 8, value);
    }
}

fn fault(vector: u8, error: u32) -> Delivery {
    Delivery {
        vector,
        error: Some(error),
        ..NMI
    }
}

#[test]
fn real_mode_pushes_three_words() {
    let mut s = System::new(CpuMode::Bits16, 0);
    s.ctx.cr0 = 0;
    s.table(Table::Idt).limit = 0x3ff;
    let ss = s.ctx.segs.get_mut(Seg::Ss);
    ss.base = 0x1_0000;
    ss.limit = 0xffff;
    let mut regs = at_stack(&[(RSP, 0x3800)]);
    regs.rflags |= IF | TF;
    for (event, back) in [
        (NMI, 0x1000),
        // There are no error codes.
        (fault(vector::GP, 0), 0x1000),
        // INT n that was cut short: back behind it.
        (
            Delivery {
                vector: 0x80,
                insn_len: 2,
                int_n: true,
                ..NMI
            },
            0x1002,
        ),
    ] {
        s.set(IDT + u64::from(event.vector) * 4, 4, 0xf000_1234);
        let (end, after) = s.deliver(&event, &regs);
        let Need::Done(done) = end else {
            panic!("{end:?}");
        };
        assert!(!done.trap && !done.halt && !done.iret && !done.repeat);
        assert_eq!((after.rip, after.get(RSP)), (0x1234, 0x3800 - 6));
        assert_eq!(s.loaded(Seg::Cs).unwrap().base, 0xf_0000);
        assert_eq!(
            s.words(STACK - 6, 2),
            [back, CODE0.into(), regs.rflags & 0xffff]
        );
        assert_eq!(after.rflags & (IF | TF), 0);
    }
    // A vector beyond the table, and a stack that ends in the middle.
    s.table(Table::Idt).limit = 7;
    assert_eq!(s.delivery_fault(&NMI, &regs).0, vector::GP);
    s.table(Table::Idt).limit = 0x3ff;
    regs.set(RSP, 3);
    assert_eq!(s.delivery_fault(&NMI, &regs).0, vector::SS);
}

#[test]
fn error_codes_come_last() {
    for mode in [CpuMode::Bits32, CpuMode::Bits64] {
        for cpl in [0, 3] {
            let mut s = System::new(mode, cpl);
            let long = mode == CpuMode::Bits64;
            let (code, size) = if long { (CODE64, 8) } else { (CODE0, 4) };
            // Of level 0: no instruction asks for it, so that does not matter.
            s.set_gate(13, gate(code, 0x1234, 0x8e, 0));
            let regs = at_stack(&[]);
            let (end, after) = s.deliver(&fault(vector::GP, 0x28), &regs);
            assert!(matches!(end, Need::Done(_)), "{end:?}");
            let outer = long || cpl == 3;
            let top = if cpl == 3 { INNER } else { STACK };
            let sp = top - size * if outer { 6 } else { 4 };
            assert_eq!((after.rip, after.get(RSP)), (0x1234, sp));
            let cs = u64::from(if cpl == 3 { CODE3 } else { CODE0 });
            assert_eq!(s.words(sp, size), [0x28, 0x1000, cs, regs.rflags]);
        }
    }
}

/// Nothing in the program caused the second fault: its error code says "external".
#[test]
fn faults_on_the_way_are_external() {
    let regs = at_stack(&[]);
    let gate_error = 2 << 3 | 2 | 1;
    for (value, expected) in [
        (0, (vector::GP, Some(gate_error))),
        (gate(CODE0, 0, 0x0e, 0), (vector::NP, Some(gate_error))),
        (gate(0, 0, 0x8e, 0), (vector::GP, Some(1))),
        (
            gate(DATA0, 0, 0x8e, 0),
            (vector::GP, Some(u32::from(DATA0) | 1)),
        ),
        (
            gate(ABSENT_CODE, 0, 0x8e, 0),
            (vector::NP, Some(u32::from(ABSENT_CODE) | 1)),
        ),
    ] {
        let mut s = System::new(CpuMode::Bits32, 3);
        s.set_gate(2, value);
        assert_eq!(s.delivery_fault(&NMI, &regs), expected, "{value:#x}");
    }
    // Instructions' events are checked as the instructions are.
    let mut s = System::new(CpuMode::Bits32, 3);
    s.set_gate(3, gate(CODE0, 0x1234, 0x8e, 0));
    let int3 = Delivery {
        vector: 3,
        insn_len: 1,
        ..NMI
    };
    assert_eq!(s.delivery_fault(&int3, &regs), gp(3 << 3 | 2));
    s.set_gate(3, gate(CODE0, 0x1234, 0xee, 0));
    let (end, _) = s.deliver(&int3, &regs);
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!(s.words(INNER - 20, 4), [0x1001, u64::from(CODE3)]);
}

#[test]
fn out_of_virtual_8086_mode_and_through_a_task_gate() {
    let mut s = System::new(CpuMode::Bits32, 3);
    s.ctx.segs.get_mut(Seg::Cs).limit = 0xffff;
    s.set_gate(13, gate(CODE0, 0x1234, 0x8e, 0));
    let mut regs = at_stack(&[]);
    // IOPL is for INT n.
    regs.rflags |= VM;
    let (end, after) = s.deliver(&fault(vector::GP, 0), &regs);
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!((after.rip, after.get(RSP)), (0x1234, INNER - 40));
    let frame = [0, 0x1000, u64::from(CODE3), regs.rflags, STACK];
    assert_eq!(s.words(INNER - 40, 4), frame);
    assert_eq!(after.rflags & VM, 0);
    s.set_gate(13, gate(TASK, 0, 0x85, 0));
    regs.rflags &= !VM;
    let (selector, reason) = (TASK, TaskReason::Gate);
    let (end, after) = s.deliver(&fault(vector::GP, 0), &regs);
    assert_eq!(
        end,
        Need::TaskSwitch(TaskSwitch {
            selector,
            reason,
            insn_len: 0
        })
    );
    assert_eq!(after.rip, 0x1000);
}
