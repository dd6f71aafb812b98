// SPDX-License-Identifier: GPL-2.0
//! What an instruction's operand is, in the notation of the manuals' opcode tables.
#![forbid(unsafe_code)]

use Arg::*;

/// An operand. Second letter: `b` byte, `w` word, `d` doubleword, `q` quadword, `v` operand size,
/// `z` operand size but at most a doubleword, `y` doubleword or quadword, `x` vector length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(super) enum Arg {
    /// No operand.
    No,
    /// General register or memory by ModRM.rm.
    Eb, Ew, Ez, Ev, Ey,
    /// General register by ModRM.reg.
    Gb, Gw, Gv, Gy,
    /// Memory by ModRM.rm; a register form is another instruction or invalid. `M` is an address only.
    M, Mv, My, Mq, M2v, M2y, Mx,
    /// General register of operand size, or a word in memory.
    RvMw,
    /// General register by ModRM.rm, mode-sized.
    Rr,
    /// Segment, control or debug register by ModRM.reg.
    Sw, Cr, Dr,
    /// Vector register by ModRM.reg; register or memory by ModRM.rm.
    V, Wd, Wq, Wx,
    /// A ModRM byte whose operands are not described.
    Any,
    /// AL, the accumulator by operand size, DX, the constant one, CL.
    Al, Ax, Dx, One, Cl,
    /// General register by the opcode's low three bits.
    Zb, Zv,
    /// Immediates: byte zero-extended, byte sign-extended, word, `z` sign-extended, full operand size.
    Ib, Is, Iw, Iz, Iv, Id,
    /// Second immediate byte.
    Ib2,
    /// Branch displacement, far pointer.
    Jb, Jz, Ap,
    /// Memory by an absolute address in the instruction.
    Ob, Ov,
    /// String operands: at rSI and at rDI.
    Xb, Xv, Yb, Yv,
}

impl Arg {
    /// Whether the operand needs a ModRM byte.
    pub(super) const fn modrm(self) -> bool {
        (self as u8) >= (Eb as u8) && (self as u8) <= (Any as u8)
    }
}
