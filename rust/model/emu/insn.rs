// SPDX-License-Identifier: GPL-2.0
//! A decoded instruction: what the bytes say, before any register is looked at.
#![forbid(unsafe_code)]

use super::alu;
use super::need::{Delivery, TaskReason};
use super::table::Desc;
use super::task::Order;
use crate::model::regs::{CpuMode, Regs, Seg};

/// Longest instruction the architecture allows, in bytes.
pub const MAX_LEN: usize = 15;

/// Opcode map, whatever the encoding it was reached through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Map {
    /// One-byte opcodes.
    #[default]
    Primary,
    /// After `0F`.
    Esc0f,
    /// After `0F 38`.
    Esc0f38,
    /// After `0F 3A`.
    Esc0f3a,
    /// 3DNow!: `0F 0F`, the opcode is the last byte.
    Now3d,
    /// A map that only VEX, EVEX or XOP reach, by its number.
    Other(u8),
}

/// The way an opcode is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Legacy prefixes and escapes.
    #[default]
    Legacy,
    /// Two- or three-byte VEX.
    Vex,
    /// EVEX (512-bit vectors, masks).
    Evex,
    /// AMD's XOP.
    Xop,
}

/// Repeat prefix; the last of several counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repeat {
    /// Neither.
    #[default]
    None,
    /// `F3`: REP, REPE.
    Rep,
    /// `F2`: REPNE.
    Repne,
}

/// The prefixes an instruction carries. For VEX, EVEX and XOP the equivalent bits are filled in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// `F0`.
    pub lock: bool,
    /// `F2` or `F3`; for VEX and the like, the one its `pp` field stands for.
    pub rep: Repeat,
    /// `66`; for VEX and the like, when its `pp` field stands for it.
    pub opsize: bool,
    /// `67`.
    pub addrsize: bool,
    /// Segment override in force. In 64-bit mode only FS and GS are kept, the others have no effect there.
    pub seg: Option<Seg>,
    /// The REX byte, or zero; for VEX and the like W, R, X and B as REX has them.
    pub rex: u8,
}

impl Prefixes {
    /// REX.W or its equivalent.
    pub const fn w(&self) -> bool {
        self.rex & 8 != 0
    }
}

/// What a memory operand's address starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// Nothing: an absolute displacement.
    #[default]
    None,
    /// General register by its hardware number.
    Gpr(u8),
    /// Address of the next instruction.
    Rip,
}

/// A memory operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mem {
    /// First address component.
    pub base: Base,
    /// Index register by its hardware number. For vector-indexed (gather) operands this is meaningless.
    pub index: Option<u8>,
    /// Left shift of the index, 0 to 3.
    pub scale: u8,
    /// Displacement, sign-extended; a `moffs` address is zero-extended. For EVEX it is not scaled.
    pub disp: i64,
    /// Bytes accessed; zero where none are (LEA) or the table does not say.
    pub size: u8,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug)]
pub struct Insn {
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// The mode it was decoded in.
    pub mode: CpuMode,
    /// Prefixes.
    pub prefixes: Prefixes,
    /// How the opcode is encoded.
    pub encoding: Encoding,
    /// Opcode map.
    pub map: Map,
    /// Opcode byte in that map.
    pub opcode: u8,
    /// Operand size in bytes: 2, 4 or 8. Byte operations are told by their operands.
    pub op_size: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub addr_size: u8,
    /// The raw ModRM byte, if there is one.
    pub modrm: Option<u8>,
    /// ModRM.reg with its REX extension.
    pub reg: u8,
    /// ModRM.rm with its REX extension: a register number when `mem` is `None`.
    pub rm: u8,
    /// The memory operand that ModRM or a `moffs` describes.
    pub mem: Option<Mem>,
    /// Segment of the memory operand (also of a string source): the override or the default.
    pub seg: Seg,
    /// First immediate, extended to 64 bits as its operand demands; a far pointer's offset.
    pub imm: u64,
    /// Second immediate: of ENTER, EXTRQ, INSERTQ; a far pointer's selector.
    pub imm2: u16,
    /// VEX.vvvv and the like, register number (whose bit 3 does not count outside of 64-bit mode); 0 if it names none.
    pub vvvv: u8,
    /// Vector length in bytes for VEX, EVEX and XOP: 16, 32 or 64.
    pub vl: u8,
    pub(super) desc: Desc,
}

impl Insn {
    /// What the instruction does, as far as the table names it.
    #[inline]
    pub const fn kind(&self) -> Kind {
        self.desc.kind
    }

    /// A task switch in the place of an instruction; RIP is what the old task goes on with.
    pub(super) fn task(order: Order, mode: CpuMode) -> Self {
        Self {
            imm: u64::from(order.selector),
            imm2: order.error.unwrap_or(0),
            vl: order.error.is_some().into(),
            reg: order.reason as u8,
            len: order.insn_len,
            desc: super::table::TASK,
            ..super::decode::blank(mode)
        }
    }

    /// The reverse of [`Self::task`].
    pub(super) fn task_order(&self) -> Option<Order> {
        let reason = match self.reg {
            0 => TaskReason::Call,
            1 => TaskReason::Iret,
            2 => TaskReason::Jmp,
            _ => TaskReason::Gate,
        };
        (self.kind() == Kind::TaskSwitch).then_some(Order {
            selector: self.imm as u16,
            reason,
            error: (self.vl != 0).then_some(self.imm2),
            insn_len: self.len,
        })
    }

    /// General register `n` cut to `size` bytes, as this instruction's prefixes have it: byte registers 4 to 7 without REX are AH, CH, DH
    /// and BH.
    pub(super) const fn reg_of(&self, regs: &Regs, n: u8, size: u8) -> u64 {
        match self.high_byte(n, size) {
            Some(low) => (regs.get(low) >> 8) & 0xff,
            None => regs.get(n) & alu::mask(size),
        }
    }

    /// Writes a general register; a doubleword clears the upper half.
    pub(super) fn set_reg(&self, regs: &mut Regs, n: u8, size: u8, value: u64) {
        let value = value & alu::mask(size);
        let old = regs.get(n);
        match (self.high_byte(n, size), size) {
            (Some(low), _) => {
                let old = regs.get(low);
                regs.set(low, (old & !0xff00) | (value << 8));
            }
            (None, 1 | 2) => regs.set(n, (old & !alu::mask(size)) | value),
            _ => regs.set(n, value),
        }
    }

    const fn high_byte(&self, n: u8, size: u8) -> Option<u8> {
        if size == 1 && n >= 4 && n < 8 && self.prefixes.rex == 0 {
            Some(n & 3)
        } else {
            None
        }
    }

    /// The delivery of an event in the place of an instruction.
    pub(super) fn event(d: &Delivery, mode: CpuMode) -> Self {
        Self {
            len: d.insn_len,
            imm: u64::from(d.vector) | u64::from(d.error.unwrap_or(0)) << 32,
            vl: d.error.is_some().into(),
            reg: d.int_n.into(),
            desc: super::table::DELIVER,
            ..super::decode::blank(mode)
        }
    }

    /// The reverse of [`Self::event`].
    pub fn delivery(&self) -> Option<Delivery> {
        (self.kind() == Kind::Deliver).then_some(Delivery {
            vector: self.imm as u8,
            error: (self.vl != 0).then_some((self.imm >> 32) as u32),
            insn_len: self.len,
            int_n: self.reg != 0,
        })
    }

    /// The instruction pointer after this instruction, when it is at `rip`: 32 bits wide outside of 64-bit mode.
    pub const fn next_rip(&self, rip: u64) -> u64 {
        let next = rip.wrapping_add(self.len as u64);
        match self.mode {
            CpuMode::Bits64 => next,
            _ => next & 0xffff_ffff,
        }
    }
}

/// Every instruction the table tells apart. Those the emulator has no use for are [`Kind::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The mnemonics document themselves.
#[rustfmt::skip]
pub enum Kind {
    /// Not assigned: the CPU raises #UD.
    Invalid,
    /// A valid instruction that the table describes for its length only.
    Other,
    // The eight of the 00-3F and 80-83 opcodes, in the order of their numbers.
    Add, Or, Adc, Sbb, And, Sub, Xor, Cmp,
    // Group 2, in the order of its numbers.
    Rol, Ror, Rcl, Rcr, Shl, Shr, Sal, Sar,
    Shld, Shrd, Test, Not, Neg, Inc, Dec, Mul, Imul, Div, Idiv, ImulTo,
    Mov, Movzx, Movsx, Movsxd, Movbe, MovFromSeg, MovToSeg, Lea, Xchg, Xadd, Cmpxchg, Cmpxchg8b, Bswap,
    Bt, Bts, Btr, Btc, Bsf, Bsr, Setcc, Cmovcc, Cbw, Cwd, Popcnt, Tzcnt, Lzcnt,
    Push, Pop, Pusha, Popa, Pushf, Popf, Enter, Leave,
    Jcc, Jmp, JmpNear, JmpFar, JmpFarMem, CallRel, CallNear, CallFar, CallFarMem, Ret, RetFar, Iret, Loop, Jcxz,
    Int3, Int, Into, Int1, Bound,
    Movs, Cmps, Stos, Lods, Scas, Ins, Outs, In, Out, Xlat,
    Cmc, Clc, Stc, Cli, Sti, Cld, Std, Lahf, Sahf, Salc, Daa, Das, Aaa, Aas, Aam, Aad,
    Nop, Pause, Hlt, Fwait,
    PushSeg, PopSeg, LoadFar, Arpl, Lar, Lsl, Verr, Verw,
    Sldt, Str, Lldt, Ltr, Sgdt, Sidt, Lgdt, Lidt, Smsw, Lmsw, Clts, Invlpg,
    MovFromCr, MovToCr, MovFromDr, MovToDr,
    Invd, Wbinvd, Wbnoinvd, Cpuid, Rdmsr, Wrmsr, Rdtsc, Rdtscp, Rdpmc, Xgetbv, Xsetbv, Rdpid,
    Monitor, Mwait, Monitorx, Mwaitx, Clac, Stac, Swapgs, Rsm, Ud,
    Syscall, Sysret, Sysenter, Sysexit,
    Vmcall, Vmlaunch, Vmresume, Vmxoff, Vmxon, Vmptrld, Vmptrst, Vmclear, Vmread, Vmwrite, Vmfunc, Invept, Invvpid,
    Vmrun, Vmmcall, Vmload, Vmsave, Stgi, Clgi, Skinit, Invlpga, Invlpgb, Tlbsync, Invpcid,
    Fninit, Fnstcw, Fnstsw, Crc32,
    Encls, Enclu, Enclv, Getsec, Rdrand, Rdseed, Serialize, Xsaves, Xrstors, Prefetch, Clflush, Fence, Rdfsbase,
    // No instructions: what a task switch and the delivery of an event are carried out as.
    TaskSwitch, Deliver,
    // Vector moves.
    MovVec, MovVecAligned, MovVecScalar, MovVecHalf, MovVecGpr, MovVecQ,
}

impl Kind {
    /// One of the vector register loads and stores that the table describes.
    pub const fn is_vector_move(self) -> bool {
        matches!(
            self,
            Self::MovVec
                | Self::MovVecAligned
                | Self::MovVecScalar
                | Self::MovVecHalf
                | Self::MovVecGpr
                | Self::MovVecQ
        )
    }
}
