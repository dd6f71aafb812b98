// SPDX-License-Identifier: GPL-2.0
//! Branches, stack frames, flags, multiplication and division, decimal adjustment.
use super::super::*;
use super::machine::{flat, start, Machine, BASE, MMIO};
use super::{long, DONE};
use crate::model::emu::decode::tests::Rng;
use crate::model::emu::insn::Kind;
use crate::model::event::{vector, Exception};
use crate::model::regs::{cr0, CpuMode, Seg, RAX, RBP, RBX, RCX, RDI, RDX, RSP};

/// Runs code in `mode` with flat segments.
fn run(mode: CpuMode, bytes: &[u8], regs: &Regs) -> (Need, Regs, Machine) {
    let mut machine = Machine::new();
    let mut job = Job::new(bytes, regs, &flat(mode)).unwrap();
    let end = machine.run(&mut job);
    (end, *job.regs(), machine)
}

fn with_flags(rflags: u64) -> Regs {
    Regs {
        rflags,
        ..start(&[])
    }
}

#[test]
fn branches() {
    // jz +0x10, taken and not; jmp -2; 16-bit displacement wraps at 64 KiB
    let (_, regs, _) = run(CpuMode::Bits64, &[0x74, 0x10], &with_flags(2 | rflags::ZF));
    assert_eq!(regs.rip, 0x1012);
    let (_, regs, _) = run(CpuMode::Bits64, &[0x74, 0x10], &with_flags(2));
    assert_eq!(regs.rip, 0x1002);
    let (_, regs, _) = long(&[0xeb, 0xfe], &[]);
    assert_eq!(regs.rip, 0x1000);
    let (_, regs, _) = run(CpuMode::Bits16, &[0xe9, 0x00, 0xf0], &start(&[]));
    assert_eq!(regs.rip, 3);
    // Each pair of conditions: overflow, carry, zero, below or equal, sign, parity, less, less or equal
    let flags = [
        rflags::OF,
        rflags::CF,
        rflags::ZF,
        rflags::ZF,
        rflags::SF,
        rflags::PF,
        rflags::SF,
        rflags::ZF,
    ];
    for (n, flag) in (0x70u8..).step_by(2).zip(flags) {
        for (opcode, set, taken) in [(n, true, true), (n, false, false), (n + 1, true, false)] {
            let regs = with_flags(if set { 2 | flag } else { 2 });
            let (_, after, _) = run(CpuMode::Bits64, &[opcode, 0x10], &regs);
            assert_eq!(after.rip == 0x1012, taken, "{opcode:#x} {set}");
        }
    }
    // loop, loopne and jcxz count at the width of the address size
    let (_, regs, _) = long(&[0xe2, 0x10], &[(RCX, 2)]);
    assert_eq!((regs.rip, regs.get(RCX)), (0x1012, 1));
    let (_, regs, _) = long(&[0x67, 0xe2, 0x10], &[(RCX, (1 << 32) | 1)]);
    assert_eq!((regs.rip, regs.get(RCX)), (0x1003, 0));
    let (_, regs, _) = long(&[0x67, 0xe3, 0x10], &[(RCX, 1 << 32)]);
    assert_eq!(regs.rip, 0x1013);
    // call and return
    let (_, regs, m) = long(&[0xe8, 0, 1, 0, 0], &[(RSP, BASE + 8)]);
    assert_eq!(
        (regs.rip, regs.get(RSP), m.read(BASE, 8)),
        (0x1105, BASE, 0x1005)
    );
    let (end, regs, m) = long(&[0xc2, 8, 0], &[(RSP, BASE)]);
    assert_eq!(
        end,
        Need::Fault(Exception::protection(0)),
        "{:#x}",
        m.read(BASE, 8)
    );
    assert_eq!(regs.get(RSP), BASE);
    let (end, regs, m) = run(CpuMode::Bits32, &[0xc2, 8, 0], &start(&[(RSP, BASE)]));
    assert_eq!(
        (end, regs.rip, regs.get(RSP)),
        (DONE, m.read(BASE, 4), BASE + 12)
    );
    // jmp rax to nowhere; beyond the code segment
    let (end, regs, _) = long(&[0xff, 0xe0], &[(RAX, 1 << 50)]);
    assert_eq!(
        (end, regs.rip),
        (Need::Fault(Exception::protection(0)), 0x1000)
    );
    let mut ctx = flat(CpuMode::Bits32);
    ctx.segs.get_mut(Seg::Cs).limit = 0x2000;
    let mut job = Job::new(&[0xff, 0xe0], &start(&[(RAX, 0x2001)]), &ctx).unwrap();
    assert_eq!(
        job.step(Answer::Start),
        Need::Fault(Exception::protection(0))
    );
}

#[test]
fn conditional_data() {
    let (_, regs, _) = run(CpuMode::Bits64, &[0x0f, 0x92, 0xc0], &with_flags(3));
    assert_eq!(regs.get(RAX), 1);
    // A doubleword CMOV that is not taken still clears the upper half, and still reads memory.
    let (_, regs, m) = long(&[0x0f, 0x44, 0x07], &[(RAX, u64::MAX), (RDI, BASE)]);
    assert_eq!((regs.get(RAX), m.trace.len()), (0xffff_ffff, 1));
    let (end, ..) = long(&[0x0f, 0x44, 0x07], &[(RDI, MMIO + 0x1000)]);
    assert!(matches!(end, Need::Fault(_)));
}

#[test]
fn frames() {
    let gpr = [(RSP, BASE + 0x100), (RBP, 0x77), (RAX, 1), (RDI, 8)];
    let (_, regs, m) = run(CpuMode::Bits32, &[0x60], &start(&gpr));
    assert_eq!((regs.get(RSP), m.read(BASE + 0xfc, 4)), (BASE + 0xe0, 1));
    assert_eq!(
        (m.read(BASE + 0xe0, 4), m.read(BASE + 0xec, 4)),
        (8, BASE + 0x100)
    );
    // Unaligned and across pages: the log has to hold it all.
    let gpr = [(RSP, BASE + 0x1011), (RAX, 0x1111_1111), (RDI, 0x8888_8888)];
    let (end, _, m) = run(CpuMode::Bits32, &[0x60], &start(&gpr));
    assert_eq!((end, m.read(BASE + 0xff1, 4)), (DONE, 0x8888_8888));
    let (end, regs, _) = run(CpuMode::Bits32, &[0x61], &start(&[(RSP, BASE + 0xff1)]));
    assert_eq!((end, regs.get(RSP)), (DONE, BASE + 0x1011));
    // enter 0x20, 0; leave
    let (_, regs, m) = long(&[0xc8, 0x20, 0, 0], &[(RSP, BASE + 0x100), (RBP, 5)]);
    assert_eq!((regs.get(RBP), regs.get(RSP)), (BASE + 0xf8, BASE + 0xd8));
    assert_eq!(m.read(BASE + 0xf8, 8), 5);
    let (_, regs, m) = long(&[0xc9], &[(RBP, BASE)]);
    assert_eq!((regs.get(RBP), regs.get(RSP)), (m.read(BASE, 8), BASE + 8));
    // enter 0x20, 31: thirty frame pointers are copied, some across a page.
    let (old, sp) = (BASE + 0x2100, BASE + 0x1085);
    let (end, regs, m) = long(&[0xc8, 0x20, 0, 31], &[(RBP, old), (RSP, sp)]);
    assert_eq!(end, DONE);
    let frame = sp - 8;
    assert_eq!((m.read(frame, 8), regs.get(RBP)), (old, frame));
    for n in 1..31 {
        assert_eq!(m.read(frame - 8 * n, 8), m.read(old - 8 * n, 8), "{n}");
    }
    assert_eq!(m.read(frame - 8 * 31, 8), frame);
    assert_eq!(regs.get(RSP), frame - 8 * 31 - 0x20);
}

#[test]
fn flag_instructions() {
    let pop = |cpl: u8, popped: u64, rflags_before: u64| {
        let mut machine = Machine::new();
        machine.ram[..8].copy_from_slice(&popped.to_le_bytes());
        let regs = Regs {
            rflags: rflags_before,
            ..start(&[(RSP, BASE)])
        };
        let mut ctx = flat(CpuMode::Bits64);
        ctx.cpl = cpl;
        let mut job = Job::new(&[0x9d], &regs, &ctx).unwrap();
        let end = machine.run(&mut job);
        (end, job.regs().rflags)
    };
    let all = rflags::IF | rflags::IOPL | rflags::CF;
    assert_eq!(pop(0, all | 2, 2), (DONE, all | 2));
    assert_eq!(
        pop(3, all | 2, 2),
        (DONE, rflags::CF | 2),
        "neither IF nor IOPL"
    );
    assert_eq!(pop(3, 2, all | 2).1, rflags::IOPL | 2, "IF by IOPL 3");
    let (end, flags) = pop(0, rflags::TF | rflags::VM | rflags::RF | 2, 2);
    assert_eq!(
        (end, flags),
        (DONE, rflags::TF | 2),
        "TF traps the next instruction only"
    );
    // sti: the shadow comes with the change only
    let (end, regs, _) = run(CpuMode::Bits64, &[0xfb], &with_flags(2));
    assert!(matches!(
        end,
        Need::Done(Done {
            shadow: Shadow::Sti,
            ..
        })
    ));
    assert_eq!(regs.rflags, 2 | rflags::IF);
    let (end, ..) = run(CpuMode::Bits64, &[0xfb], &with_flags(2 | rflags::IF));
    assert_eq!(end, DONE);
    let mut ctx = flat(CpuMode::Bits64);
    ctx.cpl = 3;
    let mut job = Job::new(&[0xfa], &with_flags(2 | rflags::IF), &ctx).unwrap();
    assert_eq!(
        job.step(Answer::Start),
        Need::Fault(Exception::protection(0))
    );
    ctx.cr0 = cr0::PG;
    let mut job = Job::new(&[0xfa], &with_flags(2 | rflags::IF), &ctx).unwrap();
    assert_eq!(job.step(Answer::Start), DONE, "real mode has no privilege");
}

#[test]
fn products_and_quotients() {
    let (_, regs, _) = long(&[0x48, 0xf7, 0xe3], &[(RAX, u64::MAX), (RBX, u64::MAX)]);
    assert_eq!((regs.get(RAX), regs.get(RDX)), (1, u64::MAX - 1));
    assert_ne!(regs.rflags & rflags::CF & rflags::OF, rflags::CF);
    let (_, regs, _) = long(&[0x48, 0xf7, 0xeb], &[(RAX, u64::MAX), (RBX, u64::MAX)]);
    assert_eq!((regs.get(RAX), regs.get(RDX), regs.rflags), (1, 0, 2));
    let (_, regs, _) = long(&[0xf6, 0xe3], &[(RAX, 0x1_00ff), (RBX, 0xff)]);
    assert_eq!(regs.get(RAX), 0x1_fe01);
    let (_, regs, _) = long(&[0x6b, 0xc3, 0xfe], &[(RBX, 0x4000_0001)]);
    assert_eq!(
        (regs.get(RAX), regs.rflags),
        (0x7fff_fffe, 2 | rflags::CF | rflags::OF)
    );
    // -7 / 2, by byte and by quadword
    let (_, regs, _) = long(&[0xf6, 0xfb], &[(RAX, 0xfff9), (RBX, 2)]);
    assert_eq!(regs.get(RAX), 0xfffd);
    let minus_seven = [(RAX, 7u64.wrapping_neg()), (RDX, u64::MAX), (RBX, 2)];
    let (_, regs, _) = long(&[0x48, 0xf7, 0xfb], &minus_seven);
    assert_eq!(
        (regs.get(RAX), regs.get(RDX)),
        (3u64.wrapping_neg(), u64::MAX)
    );
    let error = Need::Fault(Exception::new(vector::DE));
    for (code, gpr) in [
        (&[0xf7, 0xf3][..], [(RAX, 1), (RBX, 0), (RDX, 0)]),
        (&[0xf7, 0xf3], [(RAX, 0), (RBX, 1), (RDX, 1)]),
        (
            &[0xf7, 0xfb],
            [(RAX, 1 << 31), (RBX, u64::MAX), (RDX, u64::MAX)],
        ),
        (
            &[0x48, 0xf7, 0xfb],
            [(RAX, 0), (RBX, u64::MAX), (RDX, 1 << 63)],
        ),
    ] {
        assert_eq!(long(code, &gpr).0, error, "{code:x?}");
    }
}

/// AL, AF and CF before; AL, AF and CF after: from the definition of the adjustments.
#[test]
fn decimal_adjustment_makes_sums_decimal() {
    let bcd = |n: u64| ((n / 10) << 4) | (n % 10);
    for a in 0..100u64 {
        for b in 0..100u64 {
            let (sum, flags) = alu(Kind::Add, bcd(a), bcd(b));
            let regs = Regs {
                rflags: flags,
                ..start(&[(RAX, sum)])
            };
            let (_, after, _) = run(CpuMode::Bits32, &[0x27], &regs);
            assert_eq!(after.get(RAX), bcd((a + b) % 100), "{a}+{b}");
            assert_eq!(after.rflags & 1, (a + b) / 100);
            let (difference, flags) = alu(Kind::Sub, bcd(a), bcd(b));
            let regs = Regs {
                rflags: flags,
                ..start(&[(RAX, difference)])
            };
            let (_, after, _) = run(CpuMode::Bits32, &[0x2f], &regs);
            assert_eq!(after.get(RAX), bcd((100 + a - b) % 100), "{a}-{b}");
            assert_eq!(after.rflags & 1, u64::from(a < b));
        }
    }
    // aam, aad, and a division by zero
    let (_, regs, _) = run(CpuMode::Bits32, &[0xd4, 10], &start(&[(RAX, 73)]));
    assert_eq!(regs.get(RAX), 0x703);
    let (_, regs, _) = run(CpuMode::Bits32, &[0xd5, 10], &start(&[(RAX, 0x703)]));
    assert_eq!(regs.get(RAX), 73);
    let (end, ..) = run(CpuMode::Bits32, &[0xd4, 0], &start(&[]));
    assert_eq!(end, Need::Fault(Exception::new(vector::DE)));
    let (_, regs, _) = run(CpuMode::Bits32, &[0x37], &start(&[(RAX, 0x10b)]));
    assert_eq!((regs.get(RAX), regs.rflags & 0x11), (0x201, 0x11));
}

fn alu(kind: Kind, a: u64, b: u64) -> (u64, u64) {
    crate::model::emu::alu::binary(kind, 1, a, b, 2)
}

#[test]
fn bit_counts() {
    let (_, regs, _) = long(&[0x0f, 0xbc, 0xc3], &[(RAX, 9), (RBX, 0)]);
    assert_eq!(
        (regs.get(RAX), regs.rflags & rflags::ZF),
        (9, rflags::ZF),
        "BSF of zero"
    );
    let (_, regs, _) = long(&[0x48, 0x0f, 0xbd, 0xc3], &[(RBX, 0x8000)]);
    assert_eq!(regs.get(RAX), 15);
    let (_, regs, _) = long(&[0xf3, 0x66, 0x0f, 0xbd, 0xc3], &[(RBX, 1)]);
    assert_eq!(regs.get(RAX), 15, "LZCNT of a word");
    let (_, regs, _) = long(&[0xf3, 0x0f, 0xbc, 0xc3], &[(RBX, 1 << 32)]);
    assert_eq!((regs.get(RAX), regs.rflags & 1), (32, 1), "TZCNT of zero");
    let (_, regs, _) = long(&[0xf3, 0x48, 0x0f, 0xb8, 0xc3], &[(RBX, 0xf0f0)]);
    assert_eq!((regs.get(RAX), regs.rflags), (8, 2));
}

#[test]
fn random_quotients_are_those_of_128_bits() {
    let mut rng = Rng(11);
    let (mut good, mut errors) = (0, 0);
    for _ in 0..20_000 {
        let by = rng.next() as i64 >> rng.below(64);
        let dividend =
            ((i128::from(rng.next() as i64) << 64) | i128::from(rng.next())) >> rng.below(128);
        let gpr = [
            (RAX, dividend as u64),
            (RDX, (dividend >> 64) as u64),
            (RBX, by as u64),
        ];
        let (end, regs, _) = long(&[0x48, 0xf7, 0xfb], &gpr);
        let pair = dividend
            .checked_div(by.into())
            .and_then(|q| i64::try_from(q).ok());
        match pair {
            Some(quotient) => {
                good += 1;
                let remainder = (dividend % i128::from(by)) as u64;
                assert_eq!((regs.get(RAX), regs.get(RDX)), (quotient as u64, remainder));
            }
            None => {
                errors += 1;
                assert_eq!(end, Need::Fault(Exception::new(vector::DE)));
            }
        }
        let (end, regs, _) = long(&[0x48, 0xf7, 0xf3], &gpr);
        let (dividend, by) = (dividend as u128, u128::from(by as u64));
        match dividend.checked_div(by).and_then(|q| u64::try_from(q).ok()) {
            Some(quotient) => {
                assert_eq!(
                    (regs.get(RAX), regs.get(RDX)),
                    (quotient, (dividend % by) as u64)
                );
            }
            None => assert_eq!(end, Need::Fault(Exception::new(vector::DE))),
        }
    }
    assert!(good > 2_000 && errors > 2_000, "{good} {errors}");
}
