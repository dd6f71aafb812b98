// SPDX-License-Identifier: GPL-2.0
//! One instruction each with an operand where there is no memory: what it reads, what it writes, what it computes.

use crate::guest::*;
use crate::harness::Test;
use crate::kvm::Exit;
use crate::{check, eq};
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/mmio_insn_arithmetic", arithmetic),
    Test::new("micro/mmio_insn_compare", compare),
    Test::new("micro/mmio_insn_exchange", exchange),
    Test::new("micro/mmio_insn_bits", bits),
    Test::new("micro/mmio_insn_flow", flow),
    Test::new("micro/mmio_insn_moves", moves),
];

type Piece = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// An instruction: its name, the code (RBX points at MMIO, RAX and RCX are 7 and 3, RDX is 0), what is read (length
/// and answer), what is written, and RDX afterwards.
struct Case(
    &'static str,
    Piece,
    &'static [(u32, u64)],
    &'static [(u32, u64)],
    u64,
);

fn run(cases: &[Case]) {
    for Case(what, piece, reads, writes, rdx_after) in cases {
        let g = Guest::new(Mode::Long);
        g.load(|a| {
            a.mov(ebx, MMIO as u32)?;
            a.mov(eax, 7)?;
            a.mov(ecx, 3)?;
            a.xor(edx, edx)?;
            piece(a)?;
            a.hlt()
        });
        g.mem.wr(0x9000, 0xf4u8);
        let want = reads
            .iter()
            .map(|r| (false, r))
            .chain(writes.iter().map(|w| (true, w)));
        let mut good = true;
        for (write, (len, value)) in want {
            let bytes = value.to_le_bytes()[..*len as usize].to_vec();
            let data = if write { bytes.clone() } else { Vec::new() };
            let e = g.cpu.run();
            let expected = Exit::Mmio {
                addr: MMIO,
                len: *len,
                write,
                data,
            };
            good = e == expected;
            check!(
                good,
                "{what}: {e:x?}, expected {expected:x?}{}",
                g.describe()
            );
            if !good {
                break;
            }
            if !write {
                g.cpu.answer(&bytes);
            }
        }
        if !good {
            continue;
        }
        let e = g.cpu.run();
        check!(e == Exit::Hlt, "{what}: {e:x?} at the end{}", g.describe());
        eq!(g.cpu.regs().rdx, *rdx_after, "{what}");
    }
}

fn arithmetic() {
    run(&[
        Case(
            "IMUL r, m, imm8",
            |a| a.imul_3(edx, dword_ptr(rbx), 7),
            &[(4, 6)],
            &[],
            42,
        ),
        Case(
            "IMUL r, m, imm32",
            |a| a.imul_3(edx, dword_ptr(rbx), 1000),
            &[(4, 6)],
            &[],
            6000,
        ),
        Case(
            "IMUL r, m",
            |a| {
                a.mov(edx, 5)?;
                a.imul_2(edx, dword_ptr(rbx))
            },
            &[(4, 6)],
            &[],
            30,
        ),
        Case(
            "MUL m",
            |a| {
                a.mul(dword_ptr(rbx))?;
                a.mov(edx, eax)
            },
            &[(4, 6)],
            &[],
            42,
        ),
        Case("DIV m", |a| a.div(dword_ptr(rbx)), &[(4, 4)], &[], 3),
        Case(
            "ADC r, m",
            |a| {
                a.stc()?;
                a.adc(edx, dword_ptr(rbx))
            },
            &[(4, 6)],
            &[],
            7,
        ),
        Case(
            "SBB r, m",
            |a| {
                a.mov(edx, 9)?;
                a.stc()?;
                a.sbb(edx, dword_ptr(rbx))
            },
            &[(4, 6)],
            &[],
            2,
        ),
        Case(
            "ADD r8, m",
            |a| a.add(dl, byte_ptr(rbx)),
            &[(1, 0xfe)],
            &[],
            0xfe,
        ),
        Case(
            "SUB m, r",
            |a| a.sub(dword_ptr(rbx), eax),
            &[(4, 10)],
            &[(4, 3)],
            0,
        ),
        Case(
            "SBB m, imm",
            |a| {
                a.stc()?;
                a.sbb(word_ptr(rbx), 2)
            },
            &[(2, 10)],
            &[(2, 7)],
            0,
        ),
        Case(
            "DEC m",
            |a| a.dec(byte_ptr(rbx)),
            &[(1, 0)],
            &[(1, 0xff)],
            0,
        ),
        Case(
            "LOCK ADD m, r",
            |a| a.lock().add(dword_ptr(rbx), eax),
            &[(4, 1)],
            &[(4, 8)],
            0,
        ),
    ]);
}

fn compare() {
    run(&[
        Case(
            "TEST m, imm",
            |a| {
                a.test(dword_ptr(rbx), 0x10)?;
                a.setne(dl)
            },
            &[(4, 0x10)],
            &[],
            1,
        ),
        Case(
            "TEST m, r",
            |a| {
                a.test(dword_ptr(rbx), eax)?;
                a.sete(dl)
            },
            &[(4, 8)],
            &[],
            1,
        ),
        Case(
            "CMP m, imm8",
            |a| {
                a.cmp(byte_ptr(rbx), 0x7f)?;
                a.sete(dl)
            },
            &[(1, 0x7f)],
            &[],
            1,
        ),
        Case(
            "CMP r, m",
            |a| {
                a.cmp(eax, dword_ptr(rbx))?;
                a.seta(dl)
            },
            &[(4, 6)],
            &[],
            1,
        ),
        Case(
            "CMP m, r",
            |a| {
                a.cmp(qword_ptr(rbx), rax)?;
                a.setb(dl)
            },
            &[(8, 6)],
            &[],
            1,
        ),
        Case(
            "CMOVcc, true",
            |a| {
                a.cmp(eax, 0)?;
                a.cmovne(edx, dword_ptr(rbx))
            },
            &[(4, 0x1234)],
            &[],
            0x1234,
        ),
        Case(
            "CMOVcc, false",
            |a| {
                a.cmp(eax, 0)?;
                a.cmove(edx, dword_ptr(rbx))
            },
            &[(4, 0x1234)],
            &[],
            0,
        ),
        Case(
            "SETcc m",
            |a| {
                a.cmp(eax, 7)?;
                a.sete(byte_ptr(rbx))
            },
            &[],
            &[(1, 1)],
            0,
        ),
    ]);
}

fn exchange() {
    run(&[
        Case(
            "XCHG m, r",
            |a| {
                a.xchg(dword_ptr(rbx), eax)?;
                a.mov(edx, eax)
            },
            &[(4, 9)],
            &[(4, 7)],
            9,
        ),
        Case(
            "XADD m, r",
            |a| {
                a.xadd(dword_ptr(rbx), eax)?;
                a.mov(edx, eax)
            },
            &[(4, 9)],
            &[(4, 16)],
            9,
        ),
        Case(
            "CMPXCHG, equal",
            |a| {
                a.cmpxchg(dword_ptr(rbx), ecx)?;
                a.sete(dl)
            },
            &[(4, 7)],
            &[(4, 3)],
            1,
        ),
        Case(
            "LOCK CMPXCHG, equal",
            |a| {
                a.lock().cmpxchg(dword_ptr(rbx), ecx)?;
                a.sete(dl)
            },
            &[(4, 7)],
            &[(4, 3)],
            1,
        ),
    ]);
    // Unequal: the accumulator gets the value; whether the old value is written back differs between CPUs.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(ebx, MMIO as u32)?;
        a.mov(eax, 7)?;
        a.cmpxchg(dword_ptr(rbx), ecx)?;
        a.hlt()
    });
    g.expect(&Exit::Mmio {
        addr: MMIO,
        len: 4,
        write: false,
        data: vec![],
    });
    g.cpu.answer(&[9, 0, 0, 0]);
    let mut e = g.cpu.run();
    if matches!(e, Exit::Mmio { .. }) {
        eq!(
            e,
            Exit::Mmio {
                addr: MMIO,
                len: 4,
                write: true,
                data: vec![9, 0, 0, 0]
            }
        );
        e = g.cpu.run();
    }
    eq!(e, Exit::Hlt);
    eq!(g.cpu.regs().rax, 9);
}

fn bits() {
    run(&[
        Case(
            "BT m, imm",
            |a| {
                a.bt(dword_ptr(rbx), 3)?;
                a.setb(dl)
            },
            &[(4, 8)],
            &[],
            1,
        ),
        Case(
            "BT m, r",
            |a| {
                a.bt(dword_ptr(rbx), ecx)?;
                a.setb(dl)
            },
            &[(4, 8)],
            &[],
            1,
        ),
        Case(
            "BTC m, imm",
            |a| {
                a.btc(dword_ptr(rbx), 3)?;
                a.setb(dl)
            },
            &[(4, 8)],
            &[(4, 0)],
            1,
        ),
        Case(
            "BTR m, r",
            |a| {
                a.btr(dword_ptr(rbx), ecx)?;
                a.setb(dl)
            },
            &[(4, 9)],
            &[(4, 1)],
            1,
        ),
        Case(
            "BSF r, m",
            |a| a.bsf(edx, dword_ptr(rbx)),
            &[(4, 0x50)],
            &[],
            4,
        ),
        Case(
            "BSR r, m",
            |a| a.bsr(edx, dword_ptr(rbx)),
            &[(4, 0x50)],
            &[],
            6,
        ),
        Case(
            "SHR m, cl",
            |a| a.shr(dword_ptr(rbx), cl),
            &[(4, 0x50)],
            &[(4, 10)],
            0,
        ),
        Case(
            "SAR m, 1",
            |a| a.sar(byte_ptr(rbx), 1),
            &[(1, 0x82)],
            &[(1, 0xc1)],
            0,
        ),
        Case(
            "ROL m, imm",
            |a| a.rol(word_ptr(rbx), 4),
            &[(2, 0x1234)],
            &[(2, 0x2341)],
            0,
        ),
        Case(
            "RCR m, 1",
            |a| {
                a.stc()?;
                a.rcr(dword_ptr(rbx), 1)
            },
            &[(4, 2)],
            &[(4, 0x8000_0001)],
            0,
        ),
        Case(
            "SHLD m, r, imm",
            |a| a.shld(dword_ptr(rbx), eax, 4),
            &[(4, 0x10)],
            &[(4, 0x100)],
            0,
        ),
    ]);
}

fn flow() {
    // The stack of these is memory, their operand is not.
    run(&[
        Case(
            "PUSH m",
            |a| {
                a.push(qword_ptr(rbx))?;
                a.pop(rdx)
            },
            &[(8, 0xabcd)],
            &[],
            0xabcd,
        ),
        Case(
            "POP m",
            |a| {
                a.push(rax)?;
                a.pop(qword_ptr(rbx))
            },
            &[],
            &[(8, 7)],
            0,
        ),
        Case(
            "CALL m",
            |a| {
                a.mov(edx, 5)?;
                a.call(qword_ptr(rbx))
            },
            &[(8, 0x9000)],
            &[],
            5,
        ),
        Case(
            "JMP m",
            |a| {
                a.mov(edx, 6)?;
                a.jmp(qword_ptr(rbx))
            },
            &[(8, 0x9000)],
            &[],
            6,
        ),
        Case(
            "XLAT",
            |a| {
                a.xor(eax, eax)?;
                a.xlatb()?;
                a.mov(edx, eax)
            },
            &[(1, 0x44)],
            &[],
            0x44,
        ),
    ]);
}

fn moves() {
    run(&[
        Case(
            "MOVNTI",
            |a| a.movnti(dword_ptr(rbx), eax),
            &[],
            &[(4, 7)],
            0,
        ),
        Case(
            "MOV moffs, rax",
            |a| a.db(&[0x48, 0xa3, 0, 0, 0, 0xd0, 0, 0, 0, 0]),
            &[],
            &[(8, 7)],
            0,
        ),
        Case(
            "MOV eax, moffs",
            |a| {
                a.db(&[0xa1, 0, 0, 0, 0xd0, 0, 0, 0, 0])?;
                a.mov(edx, eax)
            },
            &[(4, 0x99)],
            &[],
            0x99,
        ),
        Case(
            "MOV m, sreg",
            |a| a.mov(word_ptr(rbx), ds),
            &[],
            &[(2, DATA_SEL as u64)],
            0,
        ),
        Case(
            "MOVSX r64, m8",
            |a| a.movsx(rdx, byte_ptr(rbx)),
            &[(1, 0x80)],
            &[],
            0xffff_ffff_ffff_ff80,
        ),
        Case(
            "MOVZX r16, m8",
            |a| {
                a.mov(edx, -1)?;
                a.movzx(dx, byte_ptr(rbx))
            },
            &[(1, 0x80)],
            &[],
            0xffff_0080,
        ),
        Case(
            "STOSQ",
            |a| {
                a.mov(rdi, rbx)?;
                a.stosq()
            },
            &[],
            &[(8, 7)],
            0,
        ),
        Case(
            "LODSB",
            |a| {
                a.mov(rsi, rbx)?;
                a.lodsb()?;
                a.mov(edx, eax)
            },
            &[(1, 0x33)],
            &[],
            0x33,
        ),
        Case(
            "SCASB",
            |a| {
                a.mov(rdi, rbx)?;
                a.scasb()?;
                a.sete(dl)
            },
            &[(1, 7)],
            &[],
            1,
        ),
        Case(
            "CMPSB",
            |a| {
                a.mov(rsi, rbx)?;
                a.mov(edi, DATA as u32)?;
                a.cmpsb()?;
                a.sete(dl)
            },
            &[(1, 0)],
            &[],
            1,
        ),
    ]);
}
