// SPDX-License-Identifier: GPL-2.0
//! The opcode maps, in the operand notation of the manuals' opcode tables.
//!
//! A descriptor names the instruction and its operands; the decoder derives from the operands whether there is a
//! ModRM byte, which immediates follow, and how wide a memory operand is.
#![forbid(unsafe_code)]

use super::arg::Arg::{self, *};
use super::insn::{Kind, Repeat};

/// A descriptor of one opcode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Desc {
    pub(super) kind: Kind,
    pub(super) args: [Arg; 3],
    pub(super) flags: u8,
}

/// Invalid in 64-bit mode.
pub(super) const I64: u8 = 1;
/// Operand size defaults to 64 bits in 64-bit mode.
pub(super) const D64: u8 = 2;
/// Operand size is 64 bits in 64-bit mode whatever the prefixes say.
pub(super) const F64: u8 = 4;
/// LOCK is allowed when the destination is memory.
pub(super) const LOCK: u8 = 8;
/// ModRM.mod is ignored: always a register form.
pub(super) const REG: u8 = 16;
/// Operand size is 32 bits outside 64-bit mode whatever the prefixes say.
pub(super) const F32: u8 = 32;
/// A group: ModRM selects the descriptor, see [`group`].
pub(super) const GROUP: u8 = 64;
/// The mandatory prefix selects the descriptor, see [`by_prefix`].
pub(super) const BYPFX: u8 = 128;

impl Desc {
    const fn f(mut self, flags: u8) -> Self {
        self.flags |= flags;
        self
    }
    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

const fn d3(kind: Kind, a: Arg, b: Arg, c: Arg) -> Desc {
    Desc {
        kind,
        args: [a, b, c],
        flags: 0,
    }
}
const fn d2(kind: Kind, a: Arg, b: Arg) -> Desc {
    d3(kind, a, b, No)
}
const fn d1(kind: Kind, a: Arg) -> Desc {
    d3(kind, a, No, No)
}
const fn d0(kind: Kind) -> Desc {
    d3(kind, No, No, No)
}
const INVALID: Desc = d0(Kind::Invalid);
const OTHER: Desc = d1(Kind::Other, Any);
const OTHER_IB: Desc = d2(Kind::Other, Any, Ib);
const GRP: Desc = d1(Kind::Other, Any).f(GROUP);
const PFX: Desc = d1(Kind::Other, Any).f(BYPFX);

/// The eight arithmetic instructions by number.
const fn alu(n: u8) -> Kind {
    match n & 7 {
        0 => Kind::Add,
        1 => Kind::Or,
        2 => Kind::Adc,
        3 => Kind::Sbb,
        4 => Kind::And,
        5 => Kind::Sub,
        6 => Kind::Xor,
        _ => Kind::Cmp,
    }
}

/// CMP is the one that does not write, so it cannot be locked.
const fn alu_lock(n: u8) -> u8 {
    if n & 7 == 7 {
        0
    } else {
        LOCK
    }
}

/// The eight shifts and rotates by number.
const fn shift(n: u8) -> Kind {
    match n & 7 {
        0 => Kind::Rol,
        1 => Kind::Ror,
        2 => Kind::Rcl,
        3 => Kind::Rcr,
        4 => Kind::Shl,
        5 => Kind::Shr,
        6 => Kind::Sal,
        _ => Kind::Sar,
    }
}

const fn primary(op: u8) -> Desc {
    use Kind::*;
    match op {
        0x00..=0x3f => match op & 7 {
            0 => d2(alu(op >> 3), Eb, Gb).f(alu_lock(op >> 3)),
            1 => d2(alu(op >> 3), Ev, Gv).f(alu_lock(op >> 3)),
            2 => d2(alu(op >> 3), Gb, Eb),
            3 => d2(alu(op >> 3), Gv, Ev),
            4 => d2(alu(op >> 3), Al, Ib),
            5 => d2(alu(op >> 3), Ax, Iz),
            // 0F, 26, 2E, 36 and 3E never get here: they are an escape and prefixes.
            _ => match op {
                0x06 | 0x0e | 0x16 | 0x1e => d0(PushSeg).f(I64),
                0x07 | 0x17 | 0x1f => d0(PopSeg).f(I64),
                0x27 => d0(Daa).f(I64),
                0x2f => d0(Das).f(I64),
                0x37 => d0(Aaa).f(I64),
                0x3f => d0(Aas).f(I64),
                _ => INVALID,
            },
        },
        0x40..=0x47 => d1(Inc, Zv).f(I64),
        0x48..=0x4f => d1(Dec, Zv).f(I64),
        0x50..=0x57 => d1(Push, Zv).f(D64),
        0x58..=0x5f => d1(Pop, Zv).f(D64),
        0x60 => d0(Pusha).f(I64),
        0x61 => d0(Popa).f(I64),
        0x62 => d2(Bound, Gv, M2v).f(I64),
        0x63 => GRP,
        0x68 => d1(Push, Iz).f(D64),
        0x69 => d3(ImulTo, Gv, Ev, Iz),
        0x6a => d1(Push, Is).f(D64),
        0x6b => d3(ImulTo, Gv, Ev, Is),
        0x6c => d2(Ins, Yb, Dx),
        0x6d => d2(Ins, Yv, Dx),
        0x6e => d2(Outs, Dx, Xb),
        0x6f => d2(Outs, Dx, Xv),
        0x70..=0x7f => d1(Jcc, Jb).f(F64),
        0x80..=0x83 => GRP,
        0x84 => d2(Test, Eb, Gb),
        0x85 => d2(Test, Ev, Gv),
        0x86 => d2(Xchg, Eb, Gb).f(LOCK),
        0x87 => d2(Xchg, Ev, Gv).f(LOCK),
        0x88 => d2(Mov, Eb, Gb),
        0x89 => d2(Mov, Ev, Gv),
        0x8a => d2(Mov, Gb, Eb),
        0x8b => d2(Mov, Gv, Ev),
        0x8c => d2(MovFromSeg, RvMw, Sw),
        0x8d => d2(Lea, Gv, M),
        0x8e => d2(MovToSeg, Sw, Ew),
        0x8f => GRP,
        0x90 => d2(Nop, Zv, Ax).f(BYPFX),
        0x91..=0x97 => d2(Xchg, Zv, Ax),
        0x98 => d0(Cbw),
        0x99 => d0(Cwd),
        0x9a => d1(CallFar, Ap).f(I64),
        0x9b => d0(Fwait),
        0x9c => d0(Pushf).f(D64),
        0x9d => d0(Popf).f(D64),
        0x9e => d0(Sahf),
        0x9f => d0(Lahf),
        0xa0 => d2(Mov, Al, Ob),
        0xa1 => d2(Mov, Ax, Ov),
        0xa2 => d2(Mov, Ob, Al),
        0xa3 => d2(Mov, Ov, Ax),
        0xa4 => d2(Movs, Yb, Xb),
        0xa5 => d2(Movs, Yv, Xv),
        0xa6 => d2(Cmps, Xb, Yb),
        0xa7 => d2(Cmps, Xv, Yv),
        0xa8 => d2(Test, Al, Ib),
        0xa9 => d2(Test, Ax, Iz),
        0xaa => d2(Stos, Yb, Al),
        0xab => d2(Stos, Yv, Ax),
        0xac => d2(Lods, Al, Xb),
        0xad => d2(Lods, Ax, Xv),
        0xae => d2(Scas, Al, Yb),
        0xaf => d2(Scas, Ax, Yv),
        0xb0..=0xb7 => d2(Mov, Zb, Ib),
        0xb8..=0xbf => d2(Mov, Zv, Iv),
        0xc0..=0xc1 | 0xd0..=0xd3 => GRP,
        0xc2 => d1(Ret, Iw).f(F64),
        0xc3 => d0(Ret).f(F64),
        0xc4 | 0xc5 => d2(LoadFar, Gv, M).f(I64),
        0xc6 | 0xc7 => GRP,
        0xc8 => d2(Enter, Iw, Ib2).f(D64),
        0xc9 => d0(Leave).f(D64),
        0xca => d1(RetFar, Iw),
        0xcb => d0(RetFar),
        0xcc => d0(Int3),
        0xcd => d1(Int, Ib),
        0xce => d0(Into).f(I64),
        0xcf => d0(Iret),
        0xd4 => d1(Aam, Ib).f(I64),
        0xd5 => d1(Aad, Ib).f(I64),
        0xd6 => d0(Salc).f(I64),
        0xd7 => d0(Xlat),
        0xd8 | 0xda | 0xdc | 0xde => OTHER,
        0xd9 | 0xdb | 0xdd | 0xdf => GRP,
        0xe0..=0xe2 => d1(Loop, Jb).f(F64),
        0xe3 => d1(Jcxz, Jb).f(F64),
        0xe4 => d2(In, Al, Ib),
        0xe5 => d2(In, Ax, Ib),
        0xe6 => d2(Out, Ib, Al),
        0xe7 => d2(Out, Ib, Ax),
        0xe8 => d1(CallRel, Jz).f(F64),
        0xe9 => d1(Jmp, Jz).f(F64),
        0xea => d1(JmpFar, Ap).f(I64),
        0xeb => d1(Jmp, Jb).f(F64),
        0xec => d2(In, Al, Dx),
        0xed => d2(In, Ax, Dx),
        0xee => d2(Out, Dx, Al),
        0xef => d2(Out, Dx, Ax),
        0xf1 => d0(Int1),
        0xf4 => d0(Hlt),
        0xf5 => d0(Cmc),
        0xf6 | 0xf7 => GRP,
        0xf8 => d0(Clc),
        0xf9 => d0(Stc),
        0xfa => d0(Cli),
        0xfb => d0(Sti),
        0xfc => d0(Cld),
        0xfd => d0(Std),
        0xfe | 0xff => GRP,
        // Prefixes.
        _ => INVALID,
    }
}

const fn esc_0f(op: u8) -> Desc {
    use Kind::*;
    match op {
        0x00 | 0x01 | 0xba | 0xc7 => GRP,
        0x02 => d2(Lar, Gv, Ew),
        0x03 => d2(Lsl, Gv, Ew),
        0x05 => d0(Syscall),
        0x06 => d0(Clts),
        0x07 => d0(Sysret),
        0x08 => d0(Invd),
        0x09 => d0(Wbinvd).f(BYPFX),
        0x0b => d0(Ud),
        0x0d | 0x18 => d1(Prefetch, Any),
        0x0e => d0(Other),
        0x10 | 0x11 | 0x12 | 0x13 | 0x16 | 0x17 | 0x28 | 0x29 | 0x2b | 0x6e | 0x6f | 0x78
        | 0x79 | 0x7e | 0x7f | 0xb8 | 0xbc | 0xbd | 0xd6 | 0xe7 | 0xf0 => PFX,
        0x19..=0x1f => d1(Nop, Any),
        0x20 => d2(MovFromCr, Rr, Cr).f(F64 | F32 | REG | LOCK),
        0x21 => d2(MovFromDr, Rr, Dr).f(F64 | F32 | REG),
        0x22 => d2(MovToCr, Cr, Rr).f(F64 | F32 | REG | LOCK),
        0x23 => d2(MovToDr, Dr, Rr).f(F64 | F32 | REG),
        0x30 => d0(Wrmsr),
        0x31 => d0(Rdtsc),
        0x32 => d0(Rdmsr),
        0x33 => d0(Rdpmc),
        0x34 => d0(Sysenter),
        0x35 => d0(Sysexit),
        0x37 => d0(Getsec),
        0x40..=0x4f => d2(Cmovcc, Gv, Ev),
        0x70..=0x73 | 0xc2 | 0xc4..=0xc6 => OTHER_IB,
        0x77 => d0(Other),
        0x80..=0x8f => d1(Jcc, Jz).f(F64),
        0x90..=0x9f => d1(Setcc, Eb),
        0xa0 | 0xa8 => d0(PushSeg).f(D64),
        0xa1 | 0xa9 => d0(PopSeg).f(D64),
        0xa2 => d0(Cpuid),
        0xa3 => d2(Bt, Ev, Gv),
        0xa4 => d3(Shld, Ev, Gv, Ib),
        0xa5 => d3(Shld, Ev, Gv, Cl),
        0xaa => d0(Rsm),
        0xab => d2(Bts, Ev, Gv).f(LOCK),
        0xac => d3(Shrd, Ev, Gv, Ib),
        0xad => d3(Shrd, Ev, Gv, Cl),
        0xae => GRP,
        0xaf => d2(ImulTo, Gv, Ev),
        0xb0 => d2(Cmpxchg, Eb, Gb).f(LOCK),
        0xb1 => d2(Cmpxchg, Ev, Gv).f(LOCK),
        0xb2 | 0xb4 | 0xb5 => d2(LoadFar, Gv, M),
        0xb3 => d2(Btr, Ev, Gv).f(LOCK),
        0xb6 => d2(Movzx, Gv, Eb),
        0xb7 => d2(Movzx, Gv, Ew),
        0xb9 | 0xff => d1(Ud, Any),
        0xbb => d2(Btc, Ev, Gv).f(LOCK),
        0xbe => d2(Movsx, Gv, Eb),
        0xbf => d2(Movsx, Gv, Ew),
        0xc0 => d2(Xadd, Eb, Gb).f(LOCK),
        0xc1 => d2(Xadd, Ev, Gv).f(LOCK),
        0xc3 => d2(Mov, My, Gy),
        0xc8..=0xcf => d1(Bswap, Zv),
        0x04 | 0x0a | 0x0c | 0x0f | 0x24..=0x27 | 0x36 | 0x38..=0x3f | 0x7a..=0x7b => INVALID,
        _ => OTHER,
    }
}

const fn esc_0f38(op: u8) -> Desc {
    match op {
        0x2a | 0x80..=0x82 | 0xf0 | 0xf1 => PFX,
        _ => OTHER,
    }
}

/// Selects the descriptor of a group's member. `rm` and `reg` come without REX extension.
pub(super) const fn group(
    esc: bool,
    op: u8,
    modrm: u8,
    rep: Repeat,
    opsize: bool,
    bits64: bool,
) -> Desc {
    use Kind::*;
    let (is_reg, reg, rm) = (modrm >= 0xc0, (modrm >> 3) & 7, modrm & 7);
    match (esc, op, reg) {
        (false, 0x63, _) if bits64 => d2(Movsxd, Gv, Ez),
        (false, 0x63, _) => d2(Arpl, Ew, Gw),
        (false, 0x80 | 0x82, _) => {
            d2(alu(reg), Eb, Ib).f(alu_lock(reg) | if op == 0x82 { I64 } else { 0 })
        }
        (false, 0x81, _) => d2(alu(reg), Ev, Iz).f(alu_lock(reg)),
        (false, 0x83, _) => d2(alu(reg), Ev, Is).f(alu_lock(reg)),
        (false, 0x8f, 0) => d1(Pop, Ev).f(D64),
        (false, 0xc0, _) => d2(shift(reg), Eb, Ib),
        (false, 0xc1, _) => d2(shift(reg), Ev, Ib),
        (false, 0xd0, _) => d2(shift(reg), Eb, One),
        (false, 0xd1, _) => d2(shift(reg), Ev, One),
        (false, 0xd2, _) => d2(shift(reg), Eb, Cl),
        (false, 0xd3, _) => d2(shift(reg), Ev, Cl),
        (false, 0xc6, 0) => d2(Mov, Eb, Ib),
        (false, 0xc7, 0) => d2(Mov, Ev, Iz),
        (false, 0xc6, 7) if modrm == 0xf8 => d2(Other, Any, Ib),
        (false, 0xc7, 7) if modrm == 0xf8 => d2(Other, Any, Jz),
        (false, 0xf6, 0 | 1) => d2(Test, Eb, Ib),
        (false, 0xf7, 0 | 1) => d2(Test, Ev, Iz),
        (false, 0xf6 | 0xf7, _) => {
            let arg = if op == 0xf6 { Eb } else { Ev };
            match reg {
                2 => d1(Not, arg).f(LOCK),
                3 => d1(Neg, arg).f(LOCK),
                4 => d1(Mul, arg),
                5 => d1(Imul, arg),
                6 => d1(Div, arg),
                _ => d1(Idiv, arg),
            }
        }
        (false, 0xfe, 0) => d1(Inc, Eb).f(LOCK),
        (false, 0xfe, 1) => d1(Dec, Eb).f(LOCK),
        (false, 0xff, 0) => d1(Inc, Ev).f(LOCK),
        (false, 0xff, 1) => d1(Dec, Ev).f(LOCK),
        (false, 0xff, 2) => d1(CallNear, Ev).f(F64),
        (false, 0xff, 3) if !is_reg => d1(CallFarMem, M),
        (false, 0xff, 4) => d1(JmpNear, Ev).f(F64),
        (false, 0xff, 5) if !is_reg => d1(JmpFarMem, M),
        (false, 0xff, 6) => d1(Push, Ev).f(D64),
        (false, 0xd9, 7) if !is_reg => d1(Fnstcw, Ew),
        (false, 0xdd, 7) if !is_reg => d1(Fnstsw, Ew),
        (false, 0xdb, _) if modrm == 0xe3 => d1(Fninit, Any),
        (false, 0xdf, _) if modrm == 0xe0 => d2(Fnstsw, No, Any),
        (false, 0xd9 | 0xdb | 0xdd | 0xdf, _) => OTHER,
        (true, 0x00, 0) => d1(Sldt, RvMw),
        (true, 0x00, 1) => d1(Str, RvMw),
        (true, 0x00, 2) => d1(Lldt, Ew),
        (true, 0x00, 3) => d1(Ltr, Ew),
        (true, 0x00, 4) => d1(Verr, Ew),
        (true, 0x00, 5) => d1(Verw, Ew),
        (true, 0x00, _) => d1(Other, Any),
        (true, 0x01, _) if is_reg => group7_reg(reg, rm, rep, opsize),
        (true, 0x01, 0) => d1(Sgdt, M).f(F64 | F32),
        (true, 0x01, 1) => d1(Sidt, M).f(F64 | F32),
        (true, 0x01, 2) => d1(Lgdt, M).f(F64),
        (true, 0x01, 3) => d1(Lidt, M).f(F64),
        (true, 0x01, 4) => d1(Smsw, RvMw),
        (true, 0x01, 6) => d1(Lmsw, Ew),
        (true, 0x01, 7) => d1(Invlpg, M),
        (true, 0x01, _) => OTHER,
        (true, 0xae, _) => match (is_reg, rep, reg) {
            (true, Repeat::Rep, 0..=3) => d1(Rdfsbase, Any),
            // With a prefix it is another instruction or none.
            (true, Repeat::None, 5..=7) if !opsize => d1(Fence, Any),
            (false, Repeat::None, 7) => d1(Clflush, Any),
            _ => OTHER,
        },
        (true, 0xba, 4) => d2(Bt, Ev, Ib),
        (true, 0xba, 5) => d2(Bts, Ev, Ib).f(LOCK),
        (true, 0xba, 6) => d2(Btr, Ev, Ib).f(LOCK),
        (true, 0xba, 7) => d2(Btc, Ev, Ib).f(LOCK),
        (true, 0xc7, 1) if !is_reg => d1(Cmpxchg8b, M2y).f(LOCK),
        (true, 0xc7, 3) if !is_reg => d1(Xrstors, Any),
        (true, 0xc7, 5) if !is_reg => d1(Xsaves, Any),
        (true, 0xc7, 6) if !is_reg => match (rep, opsize) {
            (Repeat::Rep, _) => d1(Vmxon, M),
            (_, true) => d1(Vmclear, M),
            _ => d1(Vmptrld, M),
        },
        (true, 0xc7, 7) if !is_reg => d1(Vmptrst, M),
        (true, 0xc7, 6) if matches!(rep, Repeat::None) => d1(Rdrand, Any),
        (true, 0xc7, 7) => match rep {
            Repeat::Rep => d1(Rdpid, Any),
            _ => d1(Rdseed, Any),
        },
        (true, 0xc7, _) => OTHER,
        _ => INVALID,
    }
}

/// `0F 01` with a register form: each ModRM byte is an instruction of its own.
const fn group7_reg(reg: u8, rm: u8, rep: Repeat, opsize: bool) -> Desc {
    use Kind::*;
    let plain = matches!(rep, Repeat::None) && !opsize;
    let kind = match (reg, rm) {
        (4, _) => return d1(Smsw, RvMw),
        (6, _) => return d1(Lmsw, Ew),
        (0, 1) => Vmcall,
        (0, 2) => Vmlaunch,
        (0, 3) => Vmresume,
        (0, 4) => Vmxoff,
        (1, 0) => Monitor,
        (1, 1) => Mwait,
        (1, 2) if plain => Clac,
        (1, 3) if plain => Stac,
        (1, 7) if plain => Encls,
        (2, 0) if plain => Xgetbv,
        (2, 1) if plain => Xsetbv,
        (2, 4) if plain => Vmfunc,
        (2, 7) if plain => Enclu,
        (0, 0) if plain => Enclv,
        (3, 0) => Vmrun,
        (3, 1) if matches!(rep, Repeat::None) => Vmmcall,
        (3, 2) => Vmload,
        (3, 3) => Vmsave,
        (3, 4) => Stgi,
        (3, 5) => Clgi,
        (3, 6) => Skinit,
        (3, 7) => Invlpga,
        (5, 0) if plain => Serialize,
        (7, 0) => Swapgs,
        (7, 1) => Rdtscp,
        (7, 2) if plain => Monitorx,
        (7, 3) if plain => Mwaitx,
        (7, 6) if plain => Invlpgb,
        (7, 7) if plain => Tlbsync,
        _ => Other,
    };
    d1(kind, Any)
}

/// Selects a descriptor by the mandatory prefix. `map` is 1, 2 or 3 for the escapes `0F`, `0F 38`, `0F 3A`
/// and 0 for the primary map; `vex` tells a VEX encoding, where most moves merge differently or do not exist.
pub(super) const fn by_prefix(map: u8, op: u8, rep: Repeat, opsize: bool, vex: bool) -> Desc {
    use Kind::*;
    let (np, rp, rn) = (
        matches!(rep, Repeat::None),
        matches!(rep, Repeat::Rep),
        matches!(rep, Repeat::Repne),
    );
    match (map, op) {
        (0, 0x90) if rp => d0(Pause),
        (0, 0x90) => d2(Nop, Zv, Ax),
        (1, 0x09) if rp => d0(Wbnoinvd),
        (1, 0x09) => d0(Wbinvd),
        (1, 0x10) if np => d2(MovVec, V, Wx),
        (1, 0x11) if np => d2(MovVec, Wx, V),
        (1, 0x10) => d2(MovVecScalar, V, if rp { Wd } else { Wq }),
        (1, 0x11) => d2(MovVecScalar, if rp { Wd } else { Wq }, V),
        (1, 0x12 | 0x16) if np && !vex => d2(MovVecHalf, V, Wq),
        (1, 0x13 | 0x17) if np => d2(MovVecHalf, Mq, V),
        (1, 0x28) if np => d2(MovVecAligned, V, Wx),
        (1, 0x29) if np => d2(MovVecAligned, Wx, V),
        (1, 0x2b) if np => d2(MovVecAligned, Mx, V),
        (1, 0x6e) if np && opsize => d2(MovVecGpr, V, Ey),
        (1, 0x7e) if np && opsize => d2(MovVecGpr, Ey, V),
        (1, 0x6f) if np && opsize => d2(MovVecAligned, V, Wx),
        (1, 0x7f) if np && opsize => d2(MovVecAligned, Wx, V),
        (1, 0x6f) if rp => d2(MovVec, V, Wx),
        (1, 0x7f) if rp => d2(MovVec, Wx, V),
        (1, 0x7e) if rp => d2(MovVecQ, V, Wq),
        (1, 0xd6) if np && opsize => d2(MovVecQ, Wq, V),
        (1, 0xe7) if np && opsize => d2(MovVecAligned, Mx, V),
        (1, 0xf0) if rn => d2(MovVec, V, Mx),
        (1, 0x78) if rn || np && opsize => d3(Other, Any, Ib, Ib2),
        (1, 0x78) if np => d1(Vmread, Any).f(F64 | F32),
        (1, 0x79) if np && !opsize => d1(Vmwrite, Any).f(F64 | F32),
        (1, 0xb8) if rp => d2(Popcnt, Gv, Ev),
        (1, 0xb8) => INVALID,
        (1, 0xbc) => d2(if rp { Tzcnt } else { Bsf }, Gv, Ev),
        (1, 0xbd) => d2(if rp { Lzcnt } else { Bsr }, Gv, Ev),
        (2, 0x2a) if np && opsize => d2(MovVecAligned, V, Mx),
        (2, 0x80) if np && opsize => d1(Invept, Any).f(F64 | F32),
        (2, 0x81) if np && opsize => d1(Invvpid, Any).f(F64 | F32),
        (2, 0x82) if np && opsize => d1(Invpcid, Any).f(F64 | F32),
        (2, 0xf0) if rn && !vex => d2(Crc32, Gy, Eb),
        (2, 0xf1) if rn && !vex => d2(Crc32, Gy, Ev),
        (2, 0xf0) if np && !vex => d2(Movbe, Gv, Mv),
        (2, 0xf1) if np && !vex => d2(Movbe, Mv, Gv),
        _ => OTHER,
    }
}

/// Whether an opcode of a VEX or EVEX map is followed by an immediate byte.
pub(super) const fn vex_imm(map: u8, op: u8) -> bool {
    match map {
        1 => matches!(op, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6),
        3 => true,
        _ => false,
    }
}

const fn fill(which: u8) -> [Desc; 256] {
    let mut table = [INVALID; 256];
    let (mut rest, mut op): (&mut [Desc], u8) = (&mut table, 0);
    while let Some((slot, tail)) = rest.split_first_mut() {
        *slot = match which {
            0 => primary(op),
            1 => esc_0f(op),
            _ => esc_0f38(op),
        };
        rest = tail;
        op = op.wrapping_add(1);
    }
    table
}

static PRIMARY: [Desc; 256] = fill(0);
static ESC_0F: [Desc; 256] = fill(1);
static ESC_0F38: [Desc; 256] = fill(2);

/// The descriptor of `op` in map 0 to 3, before groups and mandatory prefixes are looked at.
#[inline]
pub(super) fn lookup(map: u8, op: u8) -> Desc {
    let table = match map {
        0 => &PRIMARY,
        1 => &ESC_0F,
        2 => &ESC_0F38,
        _ => return OTHER_IB,
    };
    table.get(usize::from(op)).copied().unwrap_or(INVALID)
}

/// For VEX and the like where the table describes nothing: length only.
pub(super) const fn opaque(imm: bool) -> Desc {
    if imm {
        OTHER_IB
    } else {
        OTHER
    }
}
/// `90` with REX.B.
pub(super) const XCHG_R8: Desc = d2(Kind::Xchg, Zv, Ax);
/// XOP's map 10: a doubleword immediate.
pub(super) const OPAQUE_ID: Desc = d2(Kind::Other, Any, Id);
/// `0F 0F`: the opcode follows the operands, as an immediate would.
pub(super) const NOW3D: Desc = OTHER_IB;
/// VZEROUPPER and VZEROALL: no ModRM byte.
pub(super) const VZERO: Desc = d0(Kind::Other);
/// A task switch, which no bytes are.
pub(super) const TASK: Desc = d0(Kind::TaskSwitch);
/// The delivery of an event, which no bytes are either.
pub(super) const DELIVER: Desc = d0(Kind::Deliver);
