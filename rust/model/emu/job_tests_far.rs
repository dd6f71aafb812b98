// SPDX-License-Identifier: GPL-2.0
//! Far jumps, calls and returns.
use super::*;

/// jmp SELECTOR:OFFSET; call SELECTOR:OFFSET
fn far(opcode: u8, selector: u16, offset: u32) -> Vec<u8> {
    let mut code = std::vec![opcode];
    code.extend(offset.to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

#[test]
fn far_jumps_are_checked() {
    for (cpl, selector, expected) in [
        (0, CODE0, None),
        (0, CODE16, None),
        (3, CODE3, None),
        (3, CONFORMING | 3, None),
        (0, CODE0 | 3, Some(gp(CODE0))),
        (0, CODE3, Some(gp(CODE3 & !3))),
        (3, CODE0, Some(gp(CODE0))),
        (0, DATA0, Some(gp(DATA0))),
        (0, 0, Some(gp(0))),
        (0, BEYOND, Some(gp(BEYOND))),
        (0, ABSENT_CODE, Some((vector::NP, Some(ABSENT_CODE.into())))),
        (0, SMALL_CODE, Some(gp(0))),
        // A jump through a gate stays at its level.
        (0, GATE, None),
        (3, GATE | 3, Some(gp(CODE0))),
    ] {
        let mut s = System::new(CpuMode::Bits32, cpl);
        let code = far(0xea, selector, 0x1100);
        let regs = at_stack(&[]);
        match expected {
            Some(fault) => assert_eq!(s.fault(&code, &regs), fault, "{selector:#x} at {cpl}"),
            None => {
                let (end, after) = s.run(&code, &regs);
                assert!(matches!(end, Need::Done(_)), "{selector:#x}: {end:?}");
                let gate = selector == GATE;
                assert_eq!(after.rip, if gate { 0x1234 } else { 0x1100 });
                let cs = s.loaded(Seg::Cs).unwrap();
                let target = if gate { CODE0 } else { selector };
                assert_eq!(cs.selector, target & !3 | u16::from(cpl));
            }
        }
    }
    let mut s = System::new(CpuMode::Bits32, 0);
    for (selector, reason, opcode) in [
        (TASK, TaskReason::Jmp, 0xea),
        (TASK_GATE, TaskReason::Call, 0x9a),
    ] {
        let (end, regs) = s.run(&far(opcode, selector, 0), &at_stack(&[]));
        let selector = TASK;
        let insn_len = 7;
        let switch = TaskSwitch {
            selector,
            reason,
            insn_len,
        };
        assert_eq!(end, Need::TaskSwitch(switch));
        assert_eq!(regs.rip, 0x1000);
    }
    // 64-bit: TSS and 16-bit gates are no targets; L with D is nothing.
    let mut s = System::new(CpuMode::Bits64, 0);
    s.set(STACK, 6, u64::from(TASK) << 32);
    let regs = at_stack(&[(RBX, STACK)]);
    assert_eq!(s.fault(&[0xff, 0x2b], &regs), gp(TASK));
    s.set(STACK, 6, u64::from(CODE64) << 32 | 0x4321);
    assert_eq!(s.run(&[0xff, 0x2b], &regs).1.rip, 0x4321);
    s.set(GDT + u64::from(CODE64), 8, descriptor(0, 0xf_ffff, 0xe09a));
    assert_eq!(s.fault(&[0xff, 0x2b], &regs), gp(CODE64));
    // Real mode
    let mut s = System::new(CpuMode::Bits16, 0);
    s.ctx.cr0 = 0;
    let (_, after) = s.run(&[0xea, 0x34, 0x12, 0x00, 0xf0], &at_stack(&[]));
    assert_eq!(
        (after.rip, s.loaded(Seg::Cs).unwrap().base),
        (0x1234, 0xf_0000)
    );
}

#[test]
fn far_calls_push_and_change_stacks() {
    let mut s = System::new(CpuMode::Bits32, 0);
    let (_, regs) = s.run(&far(0x9a, CODE0, 0x1100), &at_stack(&[]));
    assert_eq!((regs.rip, regs.get(RSP)), (0x1100, STACK - 8));
    assert_eq!(s.words(STACK - 8, 4), [0x1007, CODE0.into()]);
    // Through a gate to level 0, with two parameters.
    let mut s = System::new(CpuMode::Bits32, 3);
    s.set(STACK, 8, 0x2222_2222_1111_1111);
    let (end, regs) = s.run(&far(0x9a, GATE | 3, 0), &at_stack(&[]));
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!((regs.rip, regs.get(RSP)), (0x1234, INNER - 24));
    assert_eq!(
        s.words(INNER - 24, 4),
        [
            0x1007,
            CODE3.into(),
            0x1111_1111,
            0x2222_2222,
            STACK,
            DATA3.into()
        ]
    );
    assert_eq!(s.loaded(Seg::Cs).unwrap().selector, CODE0);
    assert_eq!(s.loaded(Seg::Ss).unwrap().selector, DATA0);
    assert!(s.rights.contains(&AccessAs::Supervisor));
    // All 31 parameters.
    s.set(GDT + u64::from(GATE), 8, gate(CODE0, 0x1234, 0xec, 31));
    let (_, regs) = s.run(&far(0x9a, GATE | 3, 0), &at_stack(&[]));
    assert_eq!(regs.get(RSP), INNER - 4 * 35);
    assert_eq!(s.m.read(INNER - 4 * 33, 4), 0x1111_1111);
    // Faults of the new stack.
    let call = far(0x9a, GATE | 3, 0);
    let regs = at_stack(&[]);
    let ts = |selector: u16| (vector::TS, Some(selector.into()));
    for (ss, expected) in [
        (0, ts(0)),
        (DATA0 | 3, ts(DATA0)),
        (READ_ONLY, ts(READ_ONLY)),
        (BEYOND, ts(BEYOND)),
        (ABSENT_DATA, (vector::SS, Some(ABSENT_DATA.into()))),
    ] {
        s.set(TSS + 8, 2, ss.into());
        assert_eq!(s.fault(&call, &regs), expected, "{ss:#x}");
    }
    s.table(Table::Tss).limit = 8;
    assert_eq!(s.fault(&call, &regs), ts(TASK));
    // A gate for level 0 is out of reach of level 3, one that is absent of all.
    s.set(GDT + u64::from(GATE), 8, gate(CODE0, 0x1234, 0x8c, 0));
    assert_eq!(s.fault(&call, &regs), gp(GATE));
    s.set(GDT + u64::from(GATE), 8, gate(CODE0, 0x1234, 0x6c, 0));
    assert_eq!(s.fault(&call, &regs), (vector::NP, Some(GATE.into())));
    // 64-bit
    let mut s = System::new(CpuMode::Bits64, 3);
    s.set(STACK, 6, u64::from(GATE64 | 3) << 32);
    let regs = at_stack(&[(RBX, STACK)]);
    let (end, after) = s.run(&[0xff, 0x1b], &regs);
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!(after.get(RSP), INNER - 32);
    assert_eq!(
        s.words(INNER - 32, 8),
        [0x1002, CODE3.into(), STACK, DATA3.into()]
    );
    assert!(s.loaded(Seg::Ss).unwrap().attr.unusable());
}

/// A 64-bit call gate leads out of compatibility mode to any address, at the same level too.
#[test]
fn gates_lead_compatibility_mode_to_the_upper_half() {
    let mut s = System::new(CpuMode::Bits32, 0);
    s.ctx.efer = efer::LMA;
    s.set(GDT + u64::from(GATE64) + 8, 8, 0xffff_8000);
    for (opcode, sp) in [(0xea, STACK), (0x9a, STACK - 16)] {
        let (end, regs) = s.run(&far(opcode, GATE64, 0), &at_stack(&[]));
        assert!(matches!(end, Need::Done(_)), "{end:?}");
        assert_eq!((regs.rip, regs.get(RSP)), (0xffff_8000_0000_1234, sp));
        assert_eq!(s.loaded(Seg::Cs).unwrap().selector, CODE64);
    }
    assert_eq!(s.words(STACK - 16, 8), [0x1007, CODE0.into()]);
    // What is not canonical is out of reach, and a jump without a gate has 32 bits.
    s.set(GDT + u64::from(GATE64) + 8, 8, 0x8000_0000);
    assert_eq!(s.fault(&far(0xea, GATE64, 0), &at_stack(&[])), gp(0));
    let (_, regs) = s.run(&far(0xea, CODE64, 0xffff_fff0), &at_stack(&[]));
    assert_eq!(regs.rip, 0xffff_fff0);
}

#[test]
fn far_returns() {
    let mut s = System::new(CpuMode::Bits32, 0);
    s.set(STACK, 8, u64::from(CODE0) << 32 | 0x1100);
    let (_, regs) = s.run(&[0xca, 4, 0], &at_stack(&[]));
    assert_eq!((regs.rip, regs.get(RSP)), (0x1100, STACK + 12));
    // To level 3: the stack changes, and what level 3 may not see is gone.
    s.set(STACK, 8, u64::from(CODE3) << 32 | 0x1100);
    s.set(STACK + 12, 8, u64::from(DATA3) << 32 | 0x7000);
    let (end, regs) = s.run(&[0xca, 4, 0], &at_stack(&[]));
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!((regs.rip, regs.get(RSP)), (0x1100, 0x7004));
    assert_eq!(s.loaded(Seg::Ss).unwrap().attr.dpl(), 3);
    assert!(s.loaded(Seg::Ds).unwrap().attr.unusable());
    let regs = at_stack(&[]);
    for (cs, ss, expected) in [
        (0, DATA3, gp(0)),
        (CODE3 & !3, DATA3, gp(CODE3 & !3)),
        (DATA3, DATA3, gp(DATA3 & !3)),
        (BEYOND, DATA3, gp(BEYOND)),
        (CODE3, 0, gp(0)),
        (CODE3, DATA0, gp(DATA0)),
        (CODE3, DATA3 & !3, gp(DATA3 & !3)),
        (ABSENT_CODE, DATA0, (vector::NP, Some(ABSENT_CODE.into()))),
    ] {
        s.set(STACK + 4, 4, cs.into());
        s.set(STACK + 12, 4, ss.into());
        assert_eq!(s.fault(&[0xcb], &regs), expected, "{cs:#x} {ss:#x}");
    }
    // Inwards is no way for a return.
    let mut s = System::new(CpuMode::Bits32, 3);
    s.set(STACK, 8, u64::from(CODE0) << 32);
    assert_eq!(s.fault(&[0xcb], &regs), gp(CODE0));
}
