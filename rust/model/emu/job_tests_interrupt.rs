// SPDX-License-Identifier: GPL-2.0
//! Software interrupts and returns from them, flags in virtual-8086 mode, fast system calls, other system instructions.
use super::*;
use crate::model::exception::Exception;

const INT80: [u8; 2] = [0xcd, 0x80];

fn set_gate(s: &mut System, n: u64, value: u64) {
    let shift = if s.ctx.efer & efer::LMA != 0 { 4 } else { 3 };
    s.set(IDT + (n << shift), 8, value);
}

#[test]
fn interrupts_in_protected_mode() {
    let mut s = System::new(CpuMode::Bits32, 3);
    set_gate(&mut s, 0x80, gate(CODE0, 0x1234, 0xee, 0));
    let mut regs = at_stack(&[]);
    regs.rflags |= IF | TF;
    let (end, after) = s.run(&INT80, &regs);
    let Need::Done(done) = end else {
        panic!("{end:?}");
    };
    assert!(!done.trap, "the handler is not stepped into");
    assert_eq!((after.rip, after.get(RSP)), (0x1234, INNER - 20));
    assert_eq!(
        s.words(INNER - 20, 4),
        [0x1002, CODE3.into(), regs.rflags, STACK, DATA3.into()]
    );
    assert_eq!(after.rflags & (IF | TF), 0);
    // A trap gate leaves IF.
    set_gate(&mut s, 0x80, gate(CODE0, 0x1234, 0xef, 0));
    assert_eq!(s.run(&INT80, &regs).1.rflags & (IF | TF), IF);
    // The same level, a 16-bit gate
    let mut s = System::new(CpuMode::Bits32, 0);
    set_gate(&mut s, 0x80, gate(CODE0, 0x1234, 0x86, 0));
    let (_, after) = s.run(&INT80, &regs);
    assert_eq!(after.get(RSP), STACK - 6);
    assert_eq!(
        s.words(STACK - 6, 2),
        [0x1002, CODE0.into(), regs.rflags & 0xffff]
    );
    // A task gate
    set_gate(&mut s, 0x80, gate(TASK, 0, 0xe5, 0));
    let (selector, reason) = (TASK, TaskReason::Gate);
    assert_eq!(
        s.run(&INT80, &regs).0,
        Need::TaskSwitch(TaskSwitch {
            selector,
            reason,
            insn_len: 2
        })
    );
}

#[test]
fn interrupts_are_checked() {
    let error = 0x80 << 3 | 2;
    let regs = at_stack(&[]);
    for (value, expected) in [
        (0, (vector::GP, Some(error))),
        // The gate is for level 0.
        (gate(CODE0, 0, 0x8e, 0), (vector::GP, Some(error))),
        (gate(CODE0, 0, 0x6e, 0), (vector::NP, Some(error))),
        (gate(0, 0, 0xee, 0), gp(0)),
        (gate(BEYOND, 0, 0xee, 0), gp(BEYOND)),
        (gate(DATA0, 0, 0xee, 0), gp(DATA0)),
        (
            gate(ABSENT_CODE, 0, 0xee, 0),
            (vector::NP, Some(ABSENT_CODE.into())),
        ),
        (gate(SMALL_CODE, 0x1_0000, 0xee, 0), gp(0)),
    ] {
        let mut s = System::new(CpuMode::Bits32, 3);
        set_gate(&mut s, 0x80, value);
        assert_eq!(s.fault(&INT80, &regs), expected, "{value:#x}");
    }
    let mut s = System::new(CpuMode::Bits32, 0);
    s.table(Table::Idt).limit = 0x80 * 8 + 6;
    assert_eq!(s.fault(&INT80, &regs), (vector::GP, Some(error)));
    // INTO without overflow is nothing.
    assert!(matches!(s.run(&[0xce], &regs).0, Need::Done(_)));
    set_gate(&mut s, 4, gate(CODE0, 0x1234, 0x8e, 0));
    let mut overflow = regs;
    overflow.rflags |= OF;
    assert_eq!(s.run(&[0xce], &overflow).1.rip, 0x1234);
    set_gate(&mut s, 3, gate(CODE0, 0x1234, 0x8e, 0));
    assert_eq!(s.run(&[0xcc], &regs).1.rip, 0x1234);
}

#[test]
fn interrupts_in_64_bit_mode() {
    let mut s = System::new(CpuMode::Bits64, 3);
    set_gate(&mut s, 0x80, gate(CODE64, 0x1234, 0xee, 0));
    let regs = at_stack(&[(RSP, STACK - 3)]);
    let (end, after) = s.run(&INT80, &regs);
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!(after.get(RSP), INNER - 40);
    assert_eq!(
        s.words(INNER - 40, 8),
        [0x1002, CODE3.into(), 2, STACK - 3, DATA3.into()]
    );
    // The interrupt stack table, at the same level: SS stays.
    let mut s = System::new(CpuMode::Bits64, 0);
    s.set(TSS + 0x24, 8, INNER - 0x100);
    set_gate(&mut s, 0x80, gate(CODE64, 0x1234, 0x8e, 1));
    let (_, after) = s.run(&INT80, &regs);
    assert_eq!(after.get(RSP), INNER - 0x100 - 40);
    // Without: the stack is aligned.
    set_gate(&mut s, 0x80, gate(CODE64, 0x1234, 0x8e, 0));
    let (_, after) = s.run(&INT80, &regs);
    assert_eq!(after.get(RSP), ((STACK - 3) & !15) - 40);
    // Only 64-bit code can be reached, only by 64-bit gates.
    set_gate(&mut s, 0x80, gate(CODE0, 0x1234, 0x8e, 0));
    assert_eq!(s.fault(&INT80, &regs), gp(CODE0));
    set_gate(&mut s, 0x80, gate(CODE64, 0x1234, 0x86, 0));
    assert_eq!(s.fault(&INT80, &regs), gp(0x402));
}

#[test]
fn interrupts_in_real_and_virtual_8086_mode() {
    let mut s = System::new(CpuMode::Bits16, 0);
    s.ctx.cr0 = 0;
    s.set(IDT + 0x200, 4, 0xf000_1234);
    s.table(Table::Idt).limit = 0x3ff;
    let mut regs = at_stack(&[(RSP, STACK)]);
    regs.rflags |= IF;
    s.ctx.segs.get_mut(Seg::Ss).base = 0x1_0000;
    regs.set(RSP, 0x3800);
    let (end, after) = s.run(&INT80, &regs);
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!((after.rip, after.get(RSP)), (0x1234, 0x3800 - 6));
    assert_eq!(s.loaded(Seg::Cs).unwrap().base, 0xf_0000);
    assert_eq!(s.words(STACK - 6, 2), [0x1002, CODE0.into(), regs.rflags]);
    assert_eq!(after.rflags & IF, 0);
    // Virtual-8086 mode: IOPL below 3 leaves it to the monitor.
    let mut s = System::new(CpuMode::Bits32, 3);
    s.ctx.segs.get_mut(Seg::Cs).limit = 0xffff;
    set_gate(&mut s, 0x80, gate(CODE0, 0x1234, 0xee, 0));
    regs.set(RSP, STACK);
    regs.rflags |= VM;
    assert_eq!(s.fault(&INT80, &regs), gp(0));
    regs.rflags |= IOPL;
    let (end, after) = s.run(&INT80, &regs);
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!(after.get(RSP), INNER - 36);
    let words: [u64; 9] = s.words(INNER - 36, 4);
    assert_eq!(
        words[..5],
        [0x1002, CODE3.into(), regs.rflags, STACK, DATA3.into()]
    );
    assert_eq!(after.rflags & VM, 0);
    for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
        assert!(s.loaded(seg).unwrap().attr.unusable());
    }
    // The handler must be at level 0.
    set_gate(&mut s, 0x80, gate(CODE3, 0x1234, 0xee, 0));
    assert_eq!(s.fault(&INT80, &regs), gp(CODE3 & !3));
}

#[test]
fn returns_from_interrupts() {
    let frame = |s: &mut System, size: u64, words: &[u64]| {
        for (n, word) in words.iter().enumerate() {
            s.set(STACK + n as u64 * size, size as usize, *word);
        }
    };
    let mut s = System::new(CpuMode::Bits32, 0);
    frame(
        &mut s,
        4,
        &[0x1100, CODE0.into(), (IF | RF | 2) & 0xffff_ffff],
    );
    let (end, regs) = s.run(&[0xcf], &at_stack(&[]));
    assert!(matches!(end, Need::Done(d) if d.iret));
    assert_eq!((regs.rip, regs.get(RSP)), (0x1100, STACK + 12));
    assert_eq!(regs.rflags, IF | RF | 2);
    // To level 3
    frame(
        &mut s,
        4,
        &[0x1100, CODE3.into(), IF | IOPL, 0x7000, DATA3.into()],
    );
    let (_, regs) = s.run(&[0xcf], &at_stack(&[]));
    assert_eq!((regs.rip, regs.get(RSP)), (0x1100, 0x7000));
    assert_eq!(regs.rflags & (IF | IOPL), IF | IOPL);
    assert!(s.loaded(Seg::Ds).unwrap().attr.unusable());
    // To virtual-8086 mode
    let words = [0x1100, 0x2000, VM | IF, 0x7000, 0x3000, 1, 2, 3, 4];
    frame(&mut s, 4, &words);
    let (end, regs) = s.run(&[0xcf], &at_stack(&[]));
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!(
        (regs.rip, regs.get(RSP), regs.rflags & VM),
        (0x1100, 0x7000, VM)
    );
    for (seg, selector) in [
        (Seg::Cs, 0x2000),
        (Seg::Ss, 0x3000),
        (Seg::Es, 1),
        (Seg::Ds, 2),
        (Seg::Fs, 3),
        (Seg::Gs, 4),
    ] {
        let now = s.loaded(seg).unwrap();
        assert_eq!((now.selector, now.attr.dpl()), (selector, 3));
    }
    // NT: to the task before; in long mode nowhere.
    let mut nested = at_stack(&[]);
    nested.rflags |= NT;
    s.set(TSS, 2, TASK.into());
    let (selector, reason) = (TASK, TaskReason::Iret);
    assert_eq!(
        s.run(&[0xcf], &nested).0,
        Need::TaskSwitch(TaskSwitch {
            selector,
            reason,
            insn_len: 1
        })
    );
    let mut s = System::new(CpuMode::Bits64, 0);
    assert_eq!(s.fault(&[0x48, 0xcf], &nested), gp(0));
    // Level 3 cannot set IF below IOPL, nor IOPL itself.
    let mut s = System::new(CpuMode::Bits32, 3);
    frame(&mut s, 4, &[0x1100, CODE3.into(), IF | IOPL]);
    assert_eq!(s.run(&[0xcf], &at_stack(&[])).1.rflags & (IF | IOPL), 0);
    // 64-bit: SS:RSP comes off the stack always; a null SS will do for the supervisor.
    let mut s = System::new(CpuMode::Bits64, 0);
    frame(&mut s, 8, &[0x1100, CODE64.into(), IF, 0x7000, 0]);
    let (end, regs) = s.run(&[0x48, 0xcf], &at_stack(&[]));
    assert!(matches!(end, Need::Done(_)), "{end:?}");
    assert_eq!((regs.rip, regs.get(RSP)), (0x1100, 0x7000));
    frame(&mut s, 8, &[0x1100, CODE64_3.into(), IF, 0x7000, 3]);
    assert_eq!(s.fault(&[0x48, 0xcf], &at_stack(&[])), gp(0));
    frame(
        &mut s,
        8,
        &[1 << 60, CODE64_3.into(), IF, 0x7000, DATA3.into()],
    );
    assert_eq!(s.fault(&[0x48, 0xcf], &at_stack(&[])), gp(0));
}

#[test]
fn flags_in_virtual_8086_mode() {
    // pushf, popf, cli, sti
    let codes: [&[u8]; 4] = [&[0x9c], &[0x9d], &[0xfa], &[0xfb]];
    let mut s = System::new(CpuMode::Bits16, 3);
    s.ctx.segs.get_mut(Seg::Ss).attr = Attr::new(3, true, 3, true, false, false, true, false);
    let mut regs = at_stack(&[]);
    regs.rflags |= VM;
    for code in codes {
        assert_eq!(s.fault(code, &regs), gp(0), "{code:02x?}");
    }
    let trusted = Regs {
        rflags: regs.rflags | IOPL,
        ..regs
    };
    for code in codes {
        let (end, _) = s.run(code, &trusted);
        assert!(matches!(end, Need::Done(_)), "{code:02x?} {end:?}");
    }
    assert_eq!(s.run(&[0xfb], &trusted).1.rflags & IF, IF);
    // With the extensions the virtual flag takes the place of the real one.
    s.ctx.cr4 |= cr4::VME;
    assert_eq!(s.run(&[0xfb], &regs).1.rflags & (IF | VIF), VIF);
    regs.rflags |= VIF;
    s.run(&[0x9c], &regs);
    assert_eq!(s.m.read(STACK - 2, 2), IF | IOPL | 2);
    s.set(STACK, 2, 2);
    assert_eq!(s.run(&[0x9d], &regs).1.rflags & VIF, 0);
    s.set(STACK, 2, TF | 2);
    assert_eq!(s.fault(&[0x9d], &regs), gp(0));
}

/// POPF at level 3 leaves IF alone silently; at level 0 it changes it. CLI faults instead.
#[test]
fn flags_and_privilege() {
    for (cpl, iopl, changes) in [(0, 0, true), (3, 0, false), (3, IOPL, true)] {
        let mut s = System::new(CpuMode::Bits32, cpl);
        s.set(STACK, 4, 2);
        let mut regs = at_stack(&[]);
        regs.rflags |= IF | iopl;
        let (_, after) = s.run(&[0x9d], &regs);
        assert_eq!(
            after.rflags & IF == 0,
            changes,
            "POPF at {cpl} with {iopl:#x}"
        );
        assert_eq!(after.rflags & IOPL, if cpl == 0 { 0 } else { iopl });
        if changes {
            assert_eq!(s.run(&[0xfa], &regs).1.rflags & IF, 0);
        } else {
            assert_eq!(s.fault(&[0xfa], &regs), gp(0));
            s.ctx.cr4 |= cr4::PVI;
            assert_eq!(s.run(&[0xfb], &regs).1.rflags & VIF, VIF);
        }
    }
}

#[test]
fn fast_system_calls() {
    let mut s = System::new(CpuMode::Bits64, 3);
    let syscall = [0x0f, 0x05];
    let regs = at_stack(&[]);
    assert_eq!(s.fault(&syscall, &regs), UD, "turned off");
    s.ctx.efer |= efer::SCE;
    s.msrs.extend([
        (0xc000_0081, 0x0013_0008_0000_0000),
        (0xc000_0082, 0xffff_8000_0000_1000),
        (0xc000_0084, IF),
    ]);
    let mut regs = at_stack(&[]);
    regs.rflags |= IF;
    let (_, after) = s.run(&syscall, &regs);
    assert_eq!(after.rip, 0xffff_8000_0000_1000);
    assert_eq!((after.get(RCX), after.get(11)), (0x1002, regs.rflags));
    assert_eq!(after.rflags & IF, 0);
    let (cs, ss) = (s.loaded(Seg::Cs).unwrap(), s.loaded(Seg::Ss).unwrap());
    assert_eq!(
        (cs.selector, ss.selector, ss.attr.dpl(), cs.attr.l()),
        (8, 16, 0, true)
    );
    // sysretq
    s.ctx.cpl = 0;
    let (_, back) = s.run(&[0x48, 0x0f, 0x07], &after);
    assert_eq!((back.rip, back.rflags), (0x1002, regs.rflags));
    assert_eq!(s.loaded(Seg::Cs).unwrap().selector, 0x23);
    let mut bad = after;
    bad.set(RCX, 1 << 60);
    assert_eq!(s.fault(&[0x48, 0x0f, 0x07], &bad), gp(0));
    s.ctx.cpl = 3;
    assert_eq!(s.fault(&[0x48, 0x0f, 0x07], &after), gp(0));
    // sysenter, sysexit
    let mut s = System::new(CpuMode::Bits32, 3);
    let sysenter = [0x0f, 0x34];
    assert_eq!(s.fault(&sysenter, &regs), gp(0));
    s.msrs
        .extend([(0x174, 8), (0x175, 0x7000), (0x176, 0x1100)]);
    let (_, after) = s.run(&sysenter, &regs);
    assert_eq!(
        (after.rip, after.get(RSP), after.rflags & IF),
        (0x1100, 0x7000, 0)
    );
    assert_eq!(s.fault(&[0x0f, 0x35], &regs), gp(0));
    s.ctx.cpl = 0;
    let (_, after) = s.run(&[0x0f, 0x35], &at_stack(&[(RCX, 0x6000), (RDX, 0x1200)]));
    assert_eq!((after.rip, after.get(RSP)), (0x1200, 0x6000));
    assert_eq!(s.loaded(Seg::Ss).unwrap().selector, 0x23);
    // 32-bit SYSCALL is AMD's; SYSENTER in long mode is Intel's.
    s.ctx.efer |= efer::SCE;
    assert_eq!(s.fault(&syscall, &regs), UD);
    s.ctx.cpu |= has::AMD;
    s.msrs.insert(0xc000_0081, 0x0008_1234_5678);
    assert_eq!(s.run(&syscall, &regs).1.rip, 0x1234_5678);
    let mut s = System::new(CpuMode::Bits64, 3);
    s.ctx.cpu |= has::AMD;
    assert_eq!(s.fault(&sysenter, &regs), UD);
}

/// The TF that counts is the one that SYSCALL leaves: a trap on the way into the kernel would find the user's stack.
#[test]
fn fast_system_calls_are_trapped_by_the_new_flag() {
    let mut s = System::new(CpuMode::Bits64, 3);
    s.ctx.efer |= efer::SCE;
    s.msrs.insert(0xc000_0081, 0x0013_0008_0000_0000);
    let mut regs = at_stack(&[]);
    regs.rflags |= TF;
    for (mask, trapped) in [(TF, false), (0, true)] {
        s.msrs.insert(0xc000_0084, mask);
        let (end, after) = s.run(&[0x0f, 0x05], &regs);
        assert!(matches!(end, Need::Done(d) if d.trap == trapped), "{end:?}");
        assert_ne!(after.get(11) & TF, 0);
    }
    s.ctx.cpl = 0;
    for (flags, trapped) in [(2 | TF, true), (2, false)] {
        let mut regs = at_stack(&[(RCX, 0x1100), (11, flags)]);
        regs.rflags |= flags ^ TF;
        let (end, _) = s.run(&[0x48, 0x0f, 0x07], &regs);
        assert!(matches!(end, Need::Done(d) if d.trap == trapped), "{end:?}");
    }
}

/// Where no stack is switched to, the error code names none.
#[test]
fn a_full_stack_of_the_same_level_has_no_name() {
    let mut s = System::new(CpuMode::Bits32, 0);
    set_gate(&mut s, 0x80, gate(CODE0, 0x1234, 0x8e, 0));
    s.ctx.segs.get_mut(Seg::Ss).limit = 0xff;
    let full = Exception::with_error(vector::SS, 0);
    assert_eq!(s.run(&INT80, &at_stack(&[])).0, Need::Fault(full));
}

#[test]
fn privileged_instructions() {
    let codes: [&[u8]; 16] = [
        &[0xf4],
        &[0x0f, 0x08],
        &[0x0f, 0x09],
        &[0x0f, 0x06],
        &[0x0f, 0x01, 0xf0],
        &[0x0f, 0x01, 0x3b],
        &[0x0f, 0x01, 0x13],
        &[0x0f, 0x01, 0x1b],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x22, 0xc0],
        &[0x0f, 0x21, 0xc0],
        &[0x0f, 0x23, 0xc0],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
    ];
    for code in codes {
        let mut s = System::new(CpuMode::Bits32, 3);
        let regs = at_stack(&[(RBX, STACK)]);
        assert_eq!(s.fault(code, &regs), gp(0), "{code:02x?}");
    }
    let mut s = System::new(CpuMode::Bits64, 0);
    assert!(matches!(s.run(&[0xf4], &at_stack(&[])).0, Need::Done(d) if d.halt));
    // clac, stac at level 3 are #UD; xsetbv and xgetbv without OSXSAVE too
    s.ctx.cpl = 3;
    assert_eq!(s.fault(&[0x0f, 0x01, 0xca], &at_stack(&[])), UD);
    s.ctx.cr4 = 0;
    assert_eq!(s.fault(&[0x0f, 0x01, 0xd0], &at_stack(&[])), UD);
    // rdtsc, rdpmc as CR4 says
    assert!(matches!(
        s.run(&[0x0f, 0x31], &at_stack(&[])).0,
        Need::Done(_)
    ));
    s.ctx.cr4 = cr4::TSD;
    assert_eq!(s.fault(&[0x0f, 0x31], &at_stack(&[])), gp(0));
    assert_eq!(s.fault(&[0x0f, 0x33], &at_stack(&[])), gp(0));
    // swapgs
    assert_eq!(s.fault(&[0x0f, 0x01, 0xf8], &at_stack(&[])), gp(0));
    s.ctx.cpl = 0;
    s.ctx.segs.get_mut(Seg::Gs).base = 5;
    s.msrs.insert(0xc000_0102, 7);
    s.run(&[0x0f, 0x01, 0xf8], &at_stack(&[]));
    assert_eq!(
        (s.loaded(Seg::Gs).unwrap().base, s.msrs[&0xc000_0102]),
        (7, 5)
    );
    // wrfsbase rax
    s.ctx.cr4 = cr4::FSGSBASE;
    s.run(&[0xf3, 0x48, 0x0f, 0xae, 0xd0], &at_stack(&[(RAX, 9)]));
    assert_eq!(s.loaded(Seg::Fs).unwrap().base, 9);
    let bad = at_stack(&[(RAX, 1 << 60)]);
    assert_eq!(s.fault(&[0xf3, 0x48, 0x0f, 0xae, 0xd0], &bad), gp(0));
    // cpuid
    let (_, regs) = s.run(&[0x0f, 0xa2], &at_stack(&[(RAX, 6), (RCX, 8)]));
    let four = [RAX, RBX, RCX, RDX].map(|n| regs.get(n));
    assert_eq!(four, [7, 8, 3, 4]);
}
