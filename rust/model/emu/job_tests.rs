// SPDX-License-Identifier: GPL-2.0
//! Jobs, instruction by instruction.
use super::*;
use crate::model::event::{vector, Exception};
use crate::model::regs::{cr0, Attr, CpuMode, Seg, Segment, RAX, RBX, RCX, RDI, RDX, RSI, RSP};
use machine::{flat, start, Machine, BASE, MMIO};
use std::vec;
use std::vec::Vec;

#[path = "job_tests_flow.rs"]
mod flow;
#[path = "job_tests_machine.rs"]
mod machine;
#[path = "job_tests_random.rs"]
mod random;
#[path = "job_tests_string.rs"]
mod strings;
#[path = "job_tests_system.rs"]
mod system;
#[path = "job_tests_vec.rs"]
mod vectors;

const DONE: Need = Need::Done(Done {
    shadow: Shadow::None,
    repeat: false,
    trap: false,
    halt: false,
    iret: false,
    task_trap: false,
});

/// Runs 64-bit code and returns the end, the registers and the machine.
fn long(bytes: &[u8], gpr: &[(u8, u64)]) -> (Need, Regs, Machine) {
    let mut machine = Machine::new();
    let mut job = Job::new(bytes, &start(gpr), &flat(CpuMode::Bits64)).unwrap();
    let end = machine.run(&mut job);
    (end, *job.regs(), machine)
}

#[test]
fn moves_between_memory_and_registers() {
    // mov [rdi+8], eax
    let (end, regs, m) = long(
        &[0x89, 0x47, 8],
        &[(RAX, 0x1122_3344_5566_7788), (RDI, BASE)],
    );
    assert_eq!((end, regs.rip), (DONE, 0x1003));
    assert_eq!(
        m.trace,
        [Need::Write {
            at: BASE + 8,
            len: 4,
            value: 0x5566_7788
        }]
    );
    // mov rax, [mmio]: in parts of no more than eight bytes, as user space expects it
    let (end, regs, m) = long(&[0x48, 0x8b, 0x07], &[(RDI, MMIO)]);
    assert_eq!((end, regs.get(RAX)), (DONE, m.input));
    // mov ah, [rdi]
    let (_, regs, m) = long(&[0x8a, 0x27], &[(RDI, BASE), (RAX, u64::MAX)]);
    assert_eq!(regs.get(RAX), u64::MAX & !0xff00 | (m.read(BASE, 1) << 8));
    // movzx eax, byte [rdi]; movsx rax, word [rdi]; movsxd rax, dword [rdi]; movbe eax, [rdi]
    let (_, regs, m) = long(&[0x0f, 0xb6, 0x07], &[(RDI, BASE + 40), (RAX, u64::MAX)]);
    assert_eq!(regs.get(RAX), m.read(BASE + 40, 1));
    let (_, regs, m) = long(&[0x48, 0x0f, 0xbf, 0x07], &[(RDI, BASE + 20)]);
    assert_eq!(regs.get(RAX), m.read(BASE + 20, 2) as i16 as u64);
    let (_, regs, m) = long(&[0x48, 0x63, 0x07], &[(RDI, BASE + 20)]);
    assert_eq!(regs.get(RAX), m.read(BASE + 20, 4) as i32 as u64);
    let (_, regs, m) = long(&[0x0f, 0x38, 0xf0, 0x07], &[(RDI, BASE)]);
    assert_eq!(
        regs.get(RAX),
        u64::from((m.read(BASE, 4) as u32).swap_bytes())
    );
    // movabs al, [moffs]; mov word [rip+disp], imm
    let mut code = vec![0xa0];
    code.extend((BASE + 5).to_le_bytes());
    let (_, regs, m) = long(&code, &[]);
    assert_eq!(regs.get(RAX), m.read(BASE + 5, 1));
    let (_, _, m) = long(&[0x66, 0xc7, 0x05, 0xf7, 0xef, 0, 0, 0x34, 0x12], &[]);
    assert_eq!(
        m.trace,
        [Need::Write {
            at: BASE,
            len: 2,
            value: 0x1234
        }]
    );
}

#[test]
fn accesses_across_pages_come_in_two_parts() {
    let at = BASE + 0xffd;
    let (end, _, m) = long(
        &[0x48, 0x89, 0x07],
        &[(RAX, 0x1122_3344_5566_7788), (RDI, at)],
    );
    assert_eq!(end, DONE);
    assert_eq!(m.read(at, 8), 0x1122_3344_5566_7788);
    assert_eq!(m.trace.len(), 4);
    assert!(matches!(
        m.trace[1],
        Need::Check {
            at: 0x11000,
            len: 5,
            write: true
        }
    ));
    // The second page is missing: nothing is written.
    let (end, regs, m) = long(&[0x48, 0x89, 0x07], &[(RAX, 1), (RDI, MMIO + 0xffc)]);
    assert_eq!(end, Need::Fault(Exception::page_fault(2, MMIO + 0x1000)));
    assert!(!m
        .trace
        .iter()
        .any(|need| matches!(need, Need::Write { .. })));
    assert_eq!(regs.rip, 0x1000);
    let (_, regs, m) = long(&[0x48, 0x8b, 0x07], &[(RDI, at)]);
    assert_eq!(regs.get(RAX), m.read(at, 8));
}

#[test]
fn arithmetic_reads_modifies_and_writes() {
    // add [rdi], eax; the walk is one for writing
    let (end, regs, m) = long(&[0x01, 0x07], &[(RAX, 0xffff_ffff), (RDI, BASE)]);
    let old = Machine::new().read(BASE, 4);
    assert_eq!((end, m.read(BASE, 4)), (DONE, old - 1));
    assert!(matches!(
        m.trace[0],
        Need::Read {
            rmw: true,
            len: 4,
            ..
        }
    ));
    assert_ne!(regs.rflags & rflags::CF, 0);
    // cmp [rdi], eax writes nothing
    let (_, regs, m) = long(&[0x39, 0x07], &[(RAX, old), (RDI, BASE)]);
    assert_eq!(m.trace.len(), 1);
    assert_ne!(regs.rflags & rflags::ZF, 0);
    // lock xadd [rdi], eax, which loses twice
    let mut m = Machine::new();
    m.lose = 2;
    let regs = start(&[(RAX, 5), (RDI, BASE)]);
    let mut job = Job::new(&[0xf0, 0x0f, 0xc1, 0x07], &regs, &flat(CpuMode::Bits64)).unwrap();
    assert_eq!(m.run(&mut job), DONE);
    assert_eq!((job.regs().get(RAX), m.read(BASE, 4)), (old, old + 5));
    // One that always loses gives the guest another try.
    m.lose = 100;
    let mut job = Job::new(&[0xf0, 0x0f, 0xc1, 0x07], &regs, &flat(CpuMode::Bits64)).unwrap();
    assert!(matches!(
        m.run(&mut job),
        Need::Done(Done {
            repeat: true,
            trap: false,
            ..
        })
    ));
    assert_eq!(*job.regs(), regs);
    // xadd eax, eax: the sum stays
    let (_, regs, _) = long(&[0x0f, 0xc1, 0xc0], &[(RAX, 7)]);
    assert_eq!(regs.get(RAX), 14);
}

#[test]
fn exchanges() {
    let old = Machine::new().read(BASE, 8);
    // xchg [rdi], rax: locked without a prefix
    let (_, regs, m) = long(&[0x48, 0x87, 0x07], &[(RAX, 9), (RDI, BASE)]);
    assert_eq!((regs.get(RAX), m.read(BASE, 8)), (old, 9));
    assert!(matches!(m.trace[1], Need::CmpXchg { len: 8, new: 9, .. }));
    // xchg r8, rax is 49 90
    let (_, regs, _) = long(&[0x49, 0x90], &[(RAX, 1), (8, 2)]);
    assert_eq!((regs.get(RAX), regs.get(8)), (2, 1));
    // cmpxchg [rdi], rcx: equal, then not
    let (_, regs, m) = long(
        &[0x48, 0x0f, 0xb1, 0x0f],
        &[(RAX, old), (RCX, 3), (RDI, BASE)],
    );
    assert_eq!((m.read(BASE, 8), regs.rflags & rflags::ZF), (3, rflags::ZF));
    let (_, regs, m) = long(
        &[0x48, 0x0f, 0xb1, 0x0f],
        &[(RAX, 1), (RCX, 3), (RDI, BASE)],
    );
    assert_eq!(
        (m.read(BASE, 8), regs.get(RAX), regs.rflags & rflags::ZF),
        (old, old, 0)
    );
    // lock cmpxchg16b [rdi]
    let high = Machine::new().read(BASE + 8, 8);
    let gpr = [
        (RAX, old),
        (RDX, high),
        (RBX, 0x11),
        (RCX, 0x22),
        (RDI, BASE),
    ];
    let (end, regs, m) = long(&[0xf0, 0x48, 0x0f, 0xc7, 0x0f], &gpr);
    assert_eq!(
        (end, m.read(BASE, 8), m.read(BASE + 8, 8)),
        (DONE, 0x11, 0x22)
    );
    assert_ne!(regs.rflags & rflags::ZF, 0);
    let gpr = [(RAX, old), (RDX, high), (RDI, BASE + 8)];
    let (end, ..) = long(&[0xf0, 0x48, 0x0f, 0xc7, 0x0f], &gpr);
    assert_eq!(
        end,
        Need::Fault(Exception::protection(0)),
        "must be aligned"
    );
    // A device is written eight bytes at a time: it reads as what the machine's `input` says.
    let input = Machine::new().input;
    let device = [
        (RAX, input),
        (RDX, input),
        (RBX, 0x1111),
        (RCX, 0x2222),
        (RDI, MMIO),
    ];
    let (end, _, m) = long(&[0xf0, 0x48, 0x0f, 0xc7, 0x0f], &device);
    assert_eq!(end, DONE);
    let writes = m.trace.iter().filter(|n| matches!(n, Need::Write { .. }));
    let written = [(MMIO, 0x1111), (MMIO + 8, 0x2222)];
    let written = written.map(|(at, value)| Need::Write { at, len: 8, value });
    assert!(writes.eq(written.iter()), "{:?}", m.trace);
    let (_, regs, m) = long(&[0x0f, 0xc7, 0x0f], &[(RAX, 1), (RDI, BASE)]);
    assert_eq!(
        (regs.get(RAX), regs.get(RDX)),
        (old & 0xffff_ffff, old >> 32)
    );
    assert_eq!(m.read(BASE, 8), old);
}

#[test]
fn bit_strings_reach_beyond_the_operand() {
    // bts [rdi], rax with bit 0x4005: eight bytes each
    let (_, _, m) = long(&[0x48, 0x0f, 0xab, 0x07], &[(RAX, 0x4005), (RDI, BASE)]);
    assert!(matches!(m.trace[0], Need::Read { at: 0x10800, .. }));
    // bt [rdi], eax with bit -1: the dword below
    let (_, regs, m) = long(&[0x0f, 0xa3, 0x07], &[(RAX, 0xffff_ffff), (RDI, BASE + 8)]);
    assert!(matches!(
        m.trace[..],
        [Need::Read {
            at: 0x10004,
            len: 4,
            ..
        }]
    ));
    assert_eq!(regs.rflags & 1, m.read(BASE + 4, 4) >> 31);
    // An immediate stays within the operand: btr dword [rdi], 35 is bit 3
    let (_, _, m) = long(&[0x0f, 0xba, 0x37, 35], &[(RDI, BASE)]);
    assert_eq!(m.read(BASE, 4), Machine::new().read(BASE, 4) & !8);
}

#[test]
fn the_stack() {
    let old = Machine::new().read(BASE, 8);
    // push [rdi]
    let (_, regs, m) = long(&[0xff, 0x37], &[(RDI, BASE), (RSP, BASE + 0x100)]);
    assert_eq!((regs.get(RSP), m.read(BASE + 0xf8, 8)), (BASE + 0xf8, old));
    // pop [rsp+8]: the address is computed after the pop
    let (end, regs, m) = long(&[0x8f, 0x44, 0x24, 8], &[(RSP, BASE)]);
    assert_eq!(
        (end, regs.get(RSP), m.read(BASE + 16, 8)),
        (DONE, BASE + 8, old)
    );
    // A non-canonical stack is a stack fault, other data a general protection fault.
    let (end, ..) = long(&[0xff, 0x37], &[(RDI, BASE), (RSP, 1 << 60)]);
    assert_eq!(end, Need::Fault(Exception::with_error(vector::SS, 0)));
    let (end, ..) = long(&[0xff, 0x37], &[(RDI, 1 << 60), (RSP, 1 << 60)]);
    assert_eq!(end, Need::Fault(Exception::with_error(vector::GP, 0)));
}

#[test]
fn ports_and_their_permission() {
    let (_, regs, m) = long(&[0xec], &[(RDX, 0x3f8), (RAX, u64::MAX)]);
    assert_eq!(regs.get(RAX), u64::MAX & !0xff | 0x11);
    assert_eq!(
        m.trace,
        [Need::In {
            port: 0x3f8,
            size: 1,
            count: 1
        }]
    );
    let (_, _, m) = long(&[0xe7, 0x80], &[(RAX, 0x1234_5678)]);
    assert_eq!(
        m.trace,
        [Need::Out {
            port: 0x80,
            size: 4,
            count: 1,
            value: 0x1234_5678
        }]
    );
    let mut ctx = flat(CpuMode::Bits64);
    ctx.cpl = 3;
    // In ring 3 each of them asks for the TSS before anything else: in and out, insb and outsb, alone and repeated.
    let codes: [&[u8]; 8] = [
        &[0xec],
        &[0xee],
        &[0xe4, 0x70],
        &[0xe6, 0x70],
        &[0x6c],
        &[0x6e],
        &[0xf3, 0x6d],
        &[0xf3, 0x6f],
    ];
    let table = Table::Tss;
    for code in codes {
        let regs = start(&[(RDX, 0x70), (RCX, 2), (RSI, BASE), (RDI, BASE)]);
        let mut job = Job::new(code, &regs, &ctx).unwrap();
        assert_eq!(job.step(Answer::Start), Need::ReadTable { table });
        assert_eq!(
            job.step(Answer::Fault(Exception::protection(0))),
            Need::Fault(Exception::protection(0))
        );
        assert_eq!(job.step(Answer::Ack), Need::Unhandled, "it has ended");
    }
}

#[test]
fn control_registers_and_msrs() {
    let (_, _, m) = long(&[0x44, 0x0f, 0x22, 0xc3], &[(RBX, 5)]);
    assert_eq!(m.trace, [Need::WriteCr { cr: 8, value: 5 }]);
    let (_, regs, m) = long(&[0x0f, 0x20, 0xe3], &[]);
    assert_eq!(
        (m.trace[0], regs.get(RBX)),
        (Need::ReadCr { cr: 4 }, m.input)
    );
    let (end, ..) = long(&[0x0f, 0x20, 0xeb], &[]);
    assert_eq!(end, Need::Fault(Exception::undefined()), "there is no CR5");
    let (_, _, m) = long(&[0x0f, 0x06], &[]);
    assert_eq!(
        m.trace[1],
        Need::WriteCr {
            cr: 0,
            value: m.input & !8
        }
    );
    // lmsw ax: cannot clear PE
    let (_, _, m) = long(&[0x0f, 0x01, 0xf0], &[(RAX, 0xfff2)]);
    assert_eq!(
        m.trace[1],
        Need::WriteCr {
            cr: 0,
            value: m.input & !0xf | 3
        }
    );
    let (_, _, m) = long(&[0x0f, 0x30], &[(RAX, u64::MAX), (RCX, 0x10), (RDX, 1)]);
    assert_eq!(
        m.trace,
        [Need::Wrmsr {
            index: 0x10,
            value: 0x1_ffff_ffff
        }]
    );
    let (_, regs, m) = long(&[0x0f, 0x32], &[(RCX, 0xc000_0080)]);
    assert_eq!(
        (regs.get(RAX), regs.get(RDX)),
        (m.input & 0xffff_ffff, m.input >> 32)
    );
    let (_, _, m) = long(&[0x0f, 0x01, 0x3f], &[(RDI, 0x7000)]);
    assert_eq!(m.trace, [Need::Invlpg { at: 0x7000 }]);
    let mut ctx = flat(CpuMode::Bits64);
    ctx.cpl = 3;
    for code in [
        &[0x0f, 0x22, 0xc0][..],
        &[0x0f, 0x30],
        &[0x0f, 0x06],
        &[0x0f, 0x23, 0xf8],
    ] {
        let mut job = Job::new(code, &start(&[]), &ctx).unwrap();
        assert_eq!(
            job.step(Answer::Start),
            Need::Fault(Exception::protection(0))
        );
    }
}

#[test]
fn segments_are_checked_outside_64_bit_mode() {
    let mut ctx = flat(CpuMode::Bits32);
    ctx.segs.get_mut(Seg::Ds).base = BASE;
    ctx.segs.get_mut(Seg::Ds).limit = 0xfff;
    let load = |ctx: &Context, at: u64| {
        let mut job = Job::new(&[0x8b, 0x07], &start(&[(RDI, at)]), ctx).unwrap();
        job.step(Answer::Start)
    };
    let gp = Need::Fault(Exception::protection(0));
    assert_eq!(
        load(&ctx, 0xffc),
        Need::Read {
            at: BASE + 0xffc,
            len: 4,
            rmw: false
        }
    );
    assert_eq!(load(&ctx, 0xffd), gp);
    assert_eq!(load(&ctx, 0xffff_fffe), gp);
    // Expand-down: what was inside is outside
    ctx.segs.get_mut(Seg::Ds).attr = Attr::new(7, true, 0, true, false, false, true, false);
    assert_eq!(load(&ctx, 0xffc), gp);
    assert_eq!(
        load(&ctx, 0x1000),
        Need::Read {
            at: BASE + 0x1000,
            len: 4,
            rmw: false
        }
    );
    // Execute-only code cannot be read, read-only data not written, a null segment neither.
    ctx.segs.get_mut(Seg::Ds).attr = Attr::new(9, true, 0, true, false, false, true, false);
    assert_eq!(load(&ctx, 0), gp);
    ctx.segs.get_mut(Seg::Ds).attr = Attr::new(1, true, 0, true, false, false, true, false);
    assert_ne!(load(&ctx, 0), gp);
    let mut job = Job::new(&[0x89, 0x07], &start(&[]), &ctx).unwrap();
    assert_eq!(job.step(Answer::Start), gp);
    ctx.segs.get_mut(Seg::Ds).attr = Attr::default().with_unusable(true);
    assert_eq!(load(&ctx, 0), gp);
    // Through the stack segment it is a stack fault.
    ctx.segs.get_mut(Seg::Ss).limit = 7;
    let mut job = Job::new(&[0x8b, 0x45, 8], &start(&[]), &ctx).unwrap();
    assert_eq!(
        job.step(Answer::Start),
        Need::Fault(Exception::with_error(vector::SS, 0))
    );
    // Real mode: no error code, wrap at the limit is a fault, the address is base plus offset.
    let mut ctx = Context::default();
    for segment in &mut ctx.segs.0 {
        *segment = Segment {
            base: 0xffff0,
            limit: 0xffff,
            ..Segment::default()
        };
    }
    let mut job = Job::new(&[0x8b, 0x05], &start(&[(RDI, 0xf_1000)]), &ctx).unwrap();
    assert_eq!(
        job.step(Answer::Start),
        Need::Read {
            at: 0x100ff0,
            len: 2,
            rmw: false
        }
    );
    let mut job = Job::new(&[0x8b, 0x05], &start(&[(RDI, 0xffff)]), &ctx).unwrap();
    assert_eq!(
        job.step(Answer::Start),
        Need::Fault(Exception::new(vector::GP))
    );
    // LES of a register has the form of VEX, which is for protected mode.
    for vex in [
        [0xc4, 0xe1, 0x78, 0x10, 0xc0, 0],
        [0xc4, 0xc4, 0x50, 0, 0, 0],
    ] {
        let mut job = Job::new(&vex, &start(&[]), &ctx).unwrap();
        assert_eq!(job.step(Answer::Start), Need::Fault(Exception::undefined()));
    }
}

#[test]
fn user_accesses_may_have_to_be_aligned() {
    let mut ctx = flat(CpuMode::Bits64);
    (ctx.cpl, ctx.cr0) = (3, ctx.cr0 | cr0::AM);
    let mut regs = start(&[(RDI, BASE + 2)]);
    let first = |regs: &Regs, ctx: &Context| {
        Job::new(&[0x8b, 0x07], regs, ctx)
            .unwrap()
            .step(Answer::Start)
    };
    assert!(matches!(first(&regs, &ctx), Need::Read { .. }));
    regs.rflags |= rflags::AC;
    assert_eq!(
        first(&regs, &ctx),
        Need::Fault(Exception::with_error(vector::AC, 0))
    );
    ctx.cpl = 0;
    assert!(matches!(first(&regs, &ctx), Need::Read { .. }));
}

#[test]
fn single_step_and_resume_flag() {
    let mut regs = start(&[]);
    regs.rflags |= rflags::TF | rflags::RF;
    let mut job = Job::new(&[0x90], &regs, &flat(CpuMode::Bits32)).unwrap();
    let Need::Done(done) = job.step(Answer::Start) else {
        panic!()
    };
    assert!(done.trap && !done.repeat);
    assert_eq!(job.regs().rflags & rflags::RF, 0);
    // The instruction pointer is 32 bits wide outside of 64-bit mode.
    regs.rip = 0xffff_ffff;
    let mut job = Job::new(&[0x90], &regs, &flat(CpuMode::Bits32)).unwrap();
    job.step(Answer::Start);
    assert_eq!(job.regs().rip, 0);
}
