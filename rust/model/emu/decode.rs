// SPDX-License-Identifier: GPL-2.0
//! From bytes to [`Insn`]: prefixes, opcode map, ModRM, SIB, displacement, immediates.
//!
//! A branch with an operand-size prefix in 64-bit mode is read as Intel's CPUs read it (32-bit displacement).
#![forbid(unsafe_code)]

use super::arg::Arg;
use super::insn::{Base, Encoding, Insn, Kind, Map, Mem, Prefixes, Repeat, MAX_LEN};
use super::table::{self, Desc};
use crate::model::regs::{CpuMode, Seg, RBP, RBX, RDI, RSI, RSP};

/// Why bytes are not an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The slice ends inside the instruction: fetch more bytes (or report the fault of doing so).
    Truncated,
    /// Longer than 15 bytes: the CPU raises #GP.
    TooLong,
    /// Not assigned, or not allowed in this mode or with these prefixes: the CPU raises #UD.
    Invalid,
}

/// Decodes the instruction at the start of `bytes`, which may be longer than the instruction.
///
/// # Errors
/// [`DecodeError`]; `Truncated` only where a longer slice could still give an instruction.
pub fn decode(bytes: &[u8], mode: CpuMode) -> Result<Insn, DecodeError> {
    let mut cursor = Cursor { bytes, pos: 0 };
    let mut insn = blank(mode);
    let first = prefixes(&mut cursor, &mut insn)?;
    opcode(&mut cursor, &mut insn, first)?;
    sizes(&mut insn);
    if let Some(modrm) = insn.modrm {
        operand(&mut cursor, &mut insn, modrm)?;
    }
    immediates(&mut cursor, &mut insn)?;
    check_lock(&insn)?;
    insn.len = cursor.pos;
    Ok(insn)
}

/// The bytes and how far they are read.
struct Cursor<'a> {
    bytes: &'a [u8],
    pos: u8,
}

impl Cursor<'_> {
    fn peek(&self) -> Result<u8, DecodeError> {
        if usize::from(self.pos) >= MAX_LEN {
            return Err(DecodeError::TooLong);
        }
        let byte = self.bytes.get(usize::from(self.pos));
        byte.copied().ok_or(DecodeError::Truncated)
    }

    fn next(&mut self) -> Result<u8, DecodeError> {
        let byte = self.peek()?;
        self.pos = self.pos.wrapping_add(1);
        Ok(byte)
    }

    /// `count` bytes, little endian; at most eight.
    fn value(&mut self, count: u8) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for n in 0..u32::from(count.min(8)) {
            value |= u64::from(self.next()?).wrapping_shl(n << 3);
        }
        Ok(value)
    }

    /// As [`Self::value`], sign-extended.
    fn signed(&mut self, count: u8) -> Result<i64, DecodeError> {
        let value = self.value(count)?;
        Ok(match count {
            1 => i64::from(value as i8),
            2 => i64::from(value as i16),
            4 => i64::from(value as i32),
            _ => value as i64,
        })
    }
}

/// Nothing decoded yet.
pub(super) fn blank(mode: CpuMode) -> Insn {
    Insn {
        len: 0,
        mode,
        prefixes: Prefixes::default(),
        encoding: Encoding::Legacy,
        map: Map::Primary,
        opcode: 0,
        op_size: 4,
        addr_size: 4,
        modrm: None,
        reg: 0,
        rm: 0,
        mem: None,
        seg: Seg::Ds,
        imm: 0,
        imm2: 0,
        vvvv: 0,
        vl: 16,
        desc: table::opaque(false),
    }
}

/// Reads the legacy and REX prefixes; returns the byte after them.
fn prefixes(cursor: &mut Cursor<'_>, insn: &mut Insn) -> Result<u8, DecodeError> {
    let long = insn.mode == CpuMode::Bits64;
    let p = &mut insn.prefixes;
    loop {
        let byte = cursor.next()?;
        match byte {
            0x40..=0x4f if long => {
                p.rex = byte;
                continue;
            }
            // These four do nothing in 64-bit mode, and do not undo an FS or GS override.
            0x26 | 0x2e | 0x36 | 0x3e if long => {}
            0x26 => p.seg = Some(Seg::Es),
            0x2e => p.seg = Some(Seg::Cs),
            0x36 => p.seg = Some(Seg::Ss),
            0x3e => p.seg = Some(Seg::Ds),
            0x64 => p.seg = Some(Seg::Fs),
            0x65 => p.seg = Some(Seg::Gs),
            0x66 => p.opsize = true,
            0x67 => p.addrsize = true,
            0xf0 => p.lock = true,
            0xf2 => p.rep = Repeat::Repne,
            0xf3 => p.rep = Repeat::Rep,
            _ => return Ok(byte),
        }
        // REX counts only right before the opcode.
        p.rex = 0;
    }
}

/// Reads the opcode, and ModRM where there is one, and finds the descriptor.
fn opcode(cursor: &mut Cursor<'_>, insn: &mut Insn, first: u8) -> Result<(), DecodeError> {
    match first {
        0x0f => {}
        0xc4 | 0xc5 | 0x62 | 0x8f if is_vex(cursor, insn.mode, first)? => {
            return vex(cursor, insn, first);
        }
        _ => return legacy(cursor, insn, Map::Primary, 0, first),
    }
    match cursor.next()? {
        0x38 => {
            let op = cursor.next()?;
            legacy(cursor, insn, Map::Esc0f38, 2, op)
        }
        0x3a => {
            let op = cursor.next()?;
            legacy(cursor, insn, Map::Esc0f3a, 3, op)
        }
        0x0f => {
            insn.map = Map::Now3d;
            insn.desc = table::NOW3D;
            read_modrm(cursor, insn)
        }
        op => legacy(cursor, insn, Map::Esc0f, 1, op),
    }
}

fn legacy(
    cursor: &mut Cursor<'_>,
    insn: &mut Insn,
    map: Map,
    number: u8,
    op: u8,
) -> Result<(), DecodeError> {
    insn.map = map;
    insn.opcode = op;
    insn.desc = table::lookup(number, op);
    let p = insn.prefixes;
    if insn.desc.has(table::BYPFX) {
        insn.desc = table::by_prefix(number, op, p.rep, p.opsize, false);
    }
    if insn.desc.args.iter().any(|arg| arg.modrm()) {
        read_modrm(cursor, insn)?;
    }
    if let (true, Some(modrm)) = (insn.desc.has(table::GROUP), insn.modrm) {
        let bits64 = insn.mode == CpuMode::Bits64;
        insn.desc = table::group(number == 1, op, modrm, p.rep, p.opsize, bits64);
    }
    if number == 0 && op == 0x90 && p.rex & 1 != 0 {
        // REX.B makes NOP and PAUSE an exchange of R8 and RAX.
        insn.desc = table::XCHG_R8;
    }
    let banned = insn.desc.has(table::I64) && insn.mode == CpuMode::Bits64;
    if banned || insn.desc.kind == Kind::Invalid {
        return Err(DecodeError::Invalid);
    }
    Ok(())
}

fn read_modrm(cursor: &mut Cursor<'_>, insn: &mut Insn) -> Result<(), DecodeError> {
    let modrm = cursor.next()?;
    insn.modrm = Some(modrm);
    insn.reg = (modrm >> 3) & 7 | ((insn.prefixes.rex & 4) << 1);
    insn.rm = modrm & 7 | ((insn.prefixes.rex & 1) << 3);
    Ok(())
}

/// Whether C4, C5, 62 or 8F starts a VEX, EVEX or XOP encoding here, and not LES, LDS, BOUND or POP.
fn is_vex(cursor: &Cursor<'_>, mode: CpuMode, first: u8) -> Result<bool, DecodeError> {
    let next = cursor.peek()?;
    Ok(match first {
        0x8f => next & 0x1f >= 8,
        _ => mode == CpuMode::Bits64 || next >= 0xc0,
    })
}

/// Reads a VEX, EVEX or XOP encoding whose first byte is `first`.
fn vex(cursor: &mut Cursor<'_>, insn: &mut Insn, first: u8) -> Result<(), DecodeError> {
    let long = insn.mode == CpuMode::Bits64;
    let p = insn.prefixes;
    if p.lock || p.opsize || p.rep != Repeat::None || p.rex != 0 {
        return Err(DecodeError::Invalid);
    }
    // Two-byte VEX holds R, vvvv, L and pp; the others begin with a byte of R, X, B and the map.
    let b0 = if first == 0xc5 { 0 } else { cursor.next()? };
    let b1 = cursor.next()?;
    let b2 = if first == 0x62 { cursor.next()? } else { 0 };
    let (number, rxb) = match first {
        0xc5 => (1, ((b1 >> 7) ^ 1) << 2),
        0x62 => (b0 & 7, (b0 >> 5) ^ 7),
        _ => (b0 & 0x1f, (b0 >> 5) ^ 7),
    };
    let w = if first == 0xc5 { 0 } else { (b1 >> 4) & 8 };
    insn.prefixes.rex = if long { 0x40 | w | rxb } else { 0x40 | w };
    insn.vvvv = ((b1 >> 3) ^ 15) & 15;
    insn.vl = match first {
        0x62 => 16 << ((b2 >> 5) & 3).min(2),
        _ => 16 << ((b1 >> 2) & 1),
    };
    match b1 & 3 {
        1 => insn.prefixes.opsize = true,
        2 => insn.prefixes.rep = Repeat::Rep,
        3 => insn.prefixes.rep = Repeat::Repne,
        _ => {}
    }
    insn.encoding = match first {
        0x62 => Encoding::Evex,
        0x8f => Encoding::Xop,
        _ => Encoding::Vex,
    };
    insn.map = match number {
        1 => Map::Esc0f,
        2 => Map::Esc0f38,
        3 => Map::Esc0f3a,
        n => Map::Other(n),
    };
    insn.opcode = cursor.next()?;
    insn.desc = vex_desc(insn, number);
    if insn.desc.args.iter().any(|arg| arg.modrm()) {
        read_modrm(cursor, insn)?;
    }
    Ok(())
}

/// The descriptor of a VEX-like encoding: vector moves have one, of the others only the length is known.
fn vex_desc(insn: &Insn, number: u8) -> Desc {
    let (op, p) = (insn.opcode, insn.prefixes);
    match (insn.encoding, number) {
        (Encoding::Vex, 1) if op == 0x77 => table::VZERO,
        (Encoding::Vex, 1 | 2) if table::lookup(number, op).has(table::BYPFX) => {
            let desc = table::by_prefix(number, op, p.rep, p.opsize, true);
            if desc.kind.is_vector_move() {
                desc
            } else {
                table::opaque(false)
            }
        }
        (Encoding::Xop, 8) => table::opaque(true),
        (Encoding::Xop, 10) => table::OPAQUE_ID,
        (Encoding::Xop, _) => table::opaque(false),
        // User MSR instructions: map 7 has a doubleword immediate.
        (Encoding::Vex, 7) => table::OPAQUE_ID,
        _ => table::opaque(table::vex_imm(number, op)),
    }
}

/// Operand and address size from mode, prefixes and descriptor.
fn sizes(insn: &mut Insn) {
    let p = insn.prefixes;
    let long = insn.mode == CpuMode::Bits64;
    insn.op_size = match insn.mode {
        CpuMode::Bits64 if insn.desc.has(table::F64) || p.w() => 8,
        CpuMode::Bits64 if insn.encoding != Encoding::Legacy => 4,
        CpuMode::Bits64 if p.opsize => 2,
        CpuMode::Bits64 if insn.desc.has(table::D64) => 8,
        CpuMode::Bits64 => 4,
        _ if insn.desc.has(table::F32) || insn.encoding != Encoding::Legacy => 4,
        CpuMode::Bits32 if p.opsize => 2,
        CpuMode::Bits32 => 4,
        CpuMode::Bits16 if p.opsize => 4,
        CpuMode::Bits16 => 2,
    };
    insn.addr_size = match (insn.mode, p.addrsize) {
        (CpuMode::Bits64, false) => 8,
        (CpuMode::Bits64, true) | (CpuMode::Bits32, false) | (CpuMode::Bits16, true) => 4,
        (CpuMode::Bits32, true) | (CpuMode::Bits16, false) => 2,
    };
    insn.seg = match p.seg {
        Some(seg) if !long || matches!(seg, Seg::Fs | Seg::Gs) => seg,
        _ => Seg::Ds,
    };
}

/// Reads SIB and displacement after ModRM and fills in the memory operand.
fn operand(cursor: &mut Cursor<'_>, insn: &mut Insn, modrm: u8) -> Result<(), DecodeError> {
    if modrm >= 0xc0 || insn.desc.has(table::REG) {
        return check_form(insn);
    }
    let mut mem = if insn.addr_size == 2 {
        mem16(cursor, modrm)?
    } else {
        mem32(cursor, insn, modrm)?
    };
    mem.size = access_size(insn);
    if insn.prefixes.seg.is_none() && matches!(mem.base, Base::Gpr(RSP | RBP)) {
        insn.seg = Seg::Ss;
    }
    insn.mem = Some(mem);
    check_form(insn)
}

/// A register form where the operand must be memory, or the other way round, is not assigned; nor is a VEX prefix that does not
/// fit.
fn check_form(insn: &Insn) -> Result<(), DecodeError> {
    let bad = insn.desc.args.iter().any(|arg| match arg {
        Arg::M | Arg::Mv | Arg::My | Arg::Mq | Arg::M2v | Arg::M2y | Arg::Mx => insn.mem.is_none(),
        Arg::Sw => (insn.modrm.unwrap_or(0) >> 3) & 7 > 5,
        _ => false,
    });
    if bad || vex_misfit(insn) {
        Err(DecodeError::Invalid)
    } else {
        Ok(())
    }
}

/// Whether a vector move's VEX prefix names a third register, which only the narrow moves between registers have, or 256 bits
/// for one that has 128 at most (Intel SDM, "Instruction Operand Encoding and VEX.vvvv, ModR/M" and "AVX and SSE Instruction
/// Exception Classification").
fn vex_misfit(insn: &Insn) -> bool {
    use Kind::{MovVecGpr, MovVecHalf, MovVecQ, MovVecScalar};
    let kind = insn.kind();
    if insn.encoding != Encoding::Vex || !kind.is_vector_move() {
        return false;
    }
    let third = kind == MovVecScalar && insn.mem.is_none();
    let narrow = matches!(kind, MovVecHalf | MovVecGpr | MovVecQ);
    insn.vvvv != 0 && !third || insn.vl > 16 && narrow
}

/// 16-bit addressing: fixed pairs of base and index.
fn mem16(cursor: &mut Cursor<'_>, modrm: u8) -> Result<Mem, DecodeError> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let (base, index) = match rm {
        0 => (RBX, Some(RSI)),
        1 => (RBX, Some(RDI)),
        2 => (RBP, Some(RSI)),
        3 => (RBP, Some(RDI)),
        4 => (RSI, None),
        5 => (RDI, None),
        6 => (RBP, None),
        _ => (RBX, None),
    };
    let absolute = mode == 0 && rm == 6;
    Ok(Mem {
        base: if absolute {
            Base::None
        } else {
            Base::Gpr(base)
        },
        index: if absolute { None } else { index },
        disp: match mode {
            0 if !absolute => 0,
            1 => cursor.signed(1)?,
            _ => cursor.signed(2)?,
        },
        ..Mem::default()
    })
}

/// 32- and 64-bit addressing: ModRM with SIB.
fn mem32(cursor: &mut Cursor<'_>, insn: &Insn, modrm: u8) -> Result<Mem, DecodeError> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let mut mem = Mem::default();
    let mut no_base = mode == 0 && rm == 5;
    if rm == 4 {
        let sib = cursor.next()?;
        mem.scale = sib >> 6;
        let index = (sib >> 3) & 7 | ((insn.prefixes.rex & 2) << 2);
        mem.index = (index != 4).then_some(index);
        mem.base = Base::Gpr(sib & 7 | ((insn.prefixes.rex & 1) << 3));
        no_base = mode == 0 && sib & 7 == 5;
        if no_base {
            mem.base = Base::None;
        }
    } else if no_base {
        mem.base = match insn.mode {
            CpuMode::Bits64 => Base::Rip,
            _ => Base::None,
        };
    } else {
        mem.base = Base::Gpr(rm | ((insn.prefixes.rex & 1) << 3));
    }
    mem.disp = match mode {
        0 if !no_base => 0,
        1 => cursor.signed(1)?,
        _ => cursor.signed(4)?,
    };
    Ok(mem)
}

/// Bytes that the memory operand covers; zero where the table does not say.
fn access_size(insn: &Insn) -> u8 {
    for arg in insn.desc.args {
        return match arg {
            Arg::Eb | Arg::Ob => 1,
            Arg::Ew | Arg::RvMw => 2,
            Arg::Ez => insn.op_size.min(4),
            Arg::Wd => 4,
            Arg::Wq | Arg::Mq => 8,
            Arg::Ev | Arg::Mv | Arg::Ov => insn.op_size,
            Arg::Ey | Arg::My => size_y(insn),
            Arg::M2v => insn.op_size.wrapping_mul(2),
            Arg::M2y => size_y(insn).wrapping_mul(2),
            Arg::Wx | Arg::Mx => insn.vl,
            _ => continue,
        };
    }
    0
}

/// Doubleword, or quadword with REX.W in 64-bit mode.
fn size_y(insn: &Insn) -> u8 {
    if insn.mode == CpuMode::Bits64 && insn.prefixes.w() {
        8
    } else {
        4
    }
}

fn immediates(cursor: &mut Cursor<'_>, insn: &mut Insn) -> Result<(), DecodeError> {
    let size_z = insn.op_size.min(4);
    for arg in insn.desc.args {
        match arg {
            Arg::Ib => insn.imm = cursor.value(1)?,
            Arg::Is | Arg::Jb => insn.imm = cursor.signed(1)? as u64,
            Arg::Iw => insn.imm = cursor.value(2)?,
            Arg::Id => insn.imm = cursor.value(4)?,
            Arg::Iz | Arg::Jz => insn.imm = cursor.signed(size_z)? as u64,
            Arg::Iv => insn.imm = cursor.value(insn.op_size)?,
            Arg::Ib2 => insn.imm2 = cursor.value(1)? as u16,
            Arg::Ap => {
                insn.imm = cursor.value(size_z)?;
                insn.imm2 = cursor.value(2)? as u16;
            }
            Arg::Ob | Arg::Ov => {
                let disp = cursor.value(insn.addr_size)? as i64;
                let size = access_size(insn);
                insn.mem = Some(Mem {
                    disp,
                    size,
                    ..Mem::default()
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// LOCK needs an instruction that may carry it, and a memory destination. (With MOV CR it stands for CR8.)
fn check_lock(insn: &Insn) -> Result<(), DecodeError> {
    let cr = matches!(insn.desc.kind, Kind::MovToCr | Kind::MovFromCr);
    let fits = insn.desc.has(table::LOCK) && (insn.mem.is_some() || cr);
    if insn.prefixes.lock && !fits {
        return Err(DecodeError::Invalid);
    }
    Ok(())
}

#[cfg(test)]
#[path = "decode_tests.rs"]
pub(crate) mod tests;
