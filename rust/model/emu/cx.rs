// SPDX-License-Identifier: GPL-2.0
//! What the code of an instruction works with: operands, memory through segments, and requests answered by the log.
#![forbid(unsafe_code)]

use super::alu;
use super::arg::Arg;
use super::insn::{Base, Insn, Kind};
use super::job::{AccessAs, Need, Run, Shadow, Stop, Table};
use super::log::{unpack, Cursor, Log};
use crate::model::event::vector;
use crate::model::regs::{cr0, rflags, Context, CpuMode, Regs, Seg, Segment, RAX, RCX, RDX};

/// One run of an instruction's code.
pub(super) struct Cx<'a> {
    pub(super) insn: &'a Insn,
    pub(super) ctx: &'a Context,
    log: &'a Log,
    cursor: Cursor,
    /// The question that ended the run, if that is why it ended.
    pub(super) need: Option<Need>,
    pub(super) access_as: AccessAs,
    /// GDTR and LDTR, as soon as they were asked for.
    pub(super) gdt: Option<Segment>,
    pub(super) ldt: Option<Segment>,
    /// The working copy, committed at the end.
    pub(super) regs: Regs,
    pub(super) shadow: Shadow,
    /// Where a branch goes.
    pub(super) target: Option<u64>,
    /// IRET: it sets RF itself, and unblocks NMIs.
    pub(super) iret: bool,
    /// A software interrupt was delivered: the single-step trap is lost.
    pub(super) delivered: bool,
    /// How many runs came before that ended with [`super::job::Flow::Phase`].
    pub(super) phase: u8,
    /// Selectors that later phases find in the context.
    pub(super) selectors: Option<[u16; 6]>,
    /// The new task's TSS asks for a #DB.
    pub(super) task_trap: bool,
}

/// What a run leaves behind, besides the registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    pub(super) shadow: Shadow,
    pub(super) target: Option<u64>,
    pub(super) iret: bool,
    pub(super) delivered: bool,
    pub(super) selectors: Option<[u16; 6]>,
    pub(super) task_trap: bool,
}

const PAGE: u64 = 4096;

/// Bytes from `at` to the end of its page.
pub(super) const fn to_page_end(at: u64) -> u64 {
    PAGE.wrapping_sub(at & PAGE.wrapping_sub(1))
}

impl<'a> Cx<'a> {
    pub(super) fn new(insn: &'a Insn, ctx: &'a Context, log: &'a Log, regs: Regs) -> Self {
        Self {
            insn,
            ctx,
            log,
            cursor: Cursor::default(),
            need: None,
            access_as: AccessAs::Current,
            gdt: None,
            ldt: None,
            regs,
            shadow: Shadow::None,
            target: None,
            iret: false,
            delivered: false,
            phase: 0,
            selectors: None,
            task_trap: false,
        }
    }

    /// The last answer that was read is only passed on in the question that is asked now.
    pub(super) const fn carried(&self) -> bool {
        self.cursor.carried
    }

    /// What is left after the run.
    pub(super) const fn end(&self) -> End {
        End {
            shadow: self.shadow,
            target: self.target,
            iret: self.iret,
            delivered: self.delivered,
            selectors: self.selectors,
            task_trap: self.task_trap,
        }
    }

    /// The stop for a question that the log does not answer.
    #[cold]
    fn missing(&mut self, need: Need) -> Stop {
        self.need = Some(need);
        Stop::NEED
    }

    /// The answer to `need` as one word, or the stop that asks for it.
    pub(super) fn ask(&mut self, need: Need) -> Run<u64> {
        match self.cursor.next(self.log) {
            Some([word]) => Ok(word),
            None => Err(self.missing(need)),
        }
    }

    /// As [`Self::ask`] where only the arrival of the answer counts.
    pub(super) fn tell(&mut self, need: Need) -> Run<()> {
        match self.cursor.next(self.log) {
            Some([]) => Ok(()),
            None => Err(self.missing(need)),
        }
    }

    /// As [`Self::ask`] for a word that nothing but the very next question depends on.
    pub(super) fn ask_carried(&mut self, need: Need) -> Run<u64> {
        match self.cursor.next_carried(self.log) {
            Some(word) => Ok(word),
            None => Err(self.missing(need)),
        }
    }

    /// As [`Self::ask`] for an answer of four words.
    pub(super) fn ask_vector(&mut self, need: Need) -> Run<[u64; 4]> {
        match self.cursor.next(self.log) {
            Some(words) => Ok(words),
            None => Err(self.missing(need)),
        }
    }

    /// A table register.
    pub(super) fn table(&mut self, table: Table) -> Run<Segment> {
        match self.cursor.next(self.log) {
            Some(words) => Ok(unpack(words)),
            None => Err(self.missing(Need::ReadTable { table })),
        }
    }

    /// Makes accesses with the rights of `who` while `body` runs.
    pub(super) fn access<T>(
        &mut self,
        who: AccessAs,
        body: impl FnOnce(&mut Self) -> Run<T>,
    ) -> Run<T> {
        self.access_as = who;
        let result = body(self)?;
        self.access_as = AccessAs::Current;
        Ok(result)
    }

    /// A fault with error code zero, where the mode has error codes.
    pub(super) fn fault(&self, vector: u8) -> Stop {
        if self.ctx.cr0 & cr0::PE != 0 {
            Stop::fault_with(vector, 0)
        } else {
            Stop::fault(vector)
        }
    }

    /// A fault whose error code names a selector.
    pub(super) const fn selector_fault(vector: u8, selector: u16) -> Stop {
        Stop::fault_with(vector, selector as u32 & 0xfffc)
    }

    pub(super) fn gp(&self) -> Stop {
        self.fault(vector::GP)
    }

    pub(super) const fn ud() -> Stop {
        Stop::fault(vector::UD)
    }

    /// Protected mode (with long mode), not virtual-8086 mode, as the instruction began.
    pub(super) fn protected(&self) -> bool {
        self.ctx.protected(self.regs.rflags)
    }

    pub(super) fn vm86(&self) -> bool {
        self.ctx.cr0 & cr0::PE != 0 && self.regs.rflags & rflags::VM != 0
    }

    pub(super) fn iopl(&self) -> u8 {
        (self.regs.rflags >> 12) as u8 & 3
    }

    /// #GP unless at privilege level 0.
    pub(super) fn privileged(&self) -> Run<()> {
        if self.ctx.cpl == 0 {
            Ok(())
        } else {
            Err(self.gp())
        }
    }

    pub(super) fn long_mode(&self) -> bool {
        self.insn.mode == CpuMode::Bits64
    }

    // Registers.

    /// General register `n` cut to `size` bytes. Byte registers 4 to 7 without REX are AH, CH, DH and BH.
    pub(super) fn reg(&self, n: u8, size: u8) -> u64 {
        self.insn.reg_of(&self.regs, n, size)
    }

    /// Writes a general register; a doubleword clears the upper half.
    pub(super) fn set_reg(&mut self, n: u8, size: u8, value: u64) {
        self.insn.set_reg(&mut self.regs, n, size, value);
    }

    // Addresses.

    /// Offset of the memory operand within its segment.
    pub(super) fn offset(&self) -> u64 {
        let Some(mem) = self.insn.mem else { return 0 };
        let base = match mem.base {
            Base::None => 0,
            Base::Gpr(n) => self.regs.get(n),
            Base::Rip => self.regs.rip.wrapping_add(u64::from(self.insn.len)),
        };
        let index = mem.index.map_or(0, |n| self.regs.get(n));
        base.wrapping_add(index.wrapping_shl(u32::from(mem.scale)))
            .wrapping_add(mem.disp as u64)
            & alu::mask(self.insn.addr_size)
    }

    /// The linear address of `size` bytes at `offset` in `seg`, checked as the mode demands.
    pub(super) fn linear(&self, seg: Seg, offset: u64, size: u8, write: bool) -> Run<u64> {
        let vector = if seg == Seg::Ss {
            vector::SS
        } else {
            vector::GP
        };
        let segment = self.ctx.segs.get(seg);
        let last = u64::from(size.max(1)).wrapping_sub(1);
        if self.long_mode() {
            let base = match seg {
                Seg::Fs | Seg::Gs => segment.base,
                _ => 0,
            };
            let at = base.wrapping_add(offset);
            if !self.canonical(at) || !self.canonical(at.wrapping_add(last)) {
                return Err(self.fault(vector));
            }
            self.aligned(at, size)?;
            return Ok(at);
        }
        if self.protected() {
            self.type_check(seg, write)?;
        }
        let attr = segment.attr;
        let end = offset.checked_add(last).ok_or(self.fault(vector))?;
        // Expand-down: a data segment with type bit 2. Outside of protected mode the type means nothing.
        let down = self.protected() && attr.kind() & 0xc == 4;
        let upper = if attr.db() { 0xffff_ffff } else { 0xffff };
        let limit = u64::from(segment.limit);
        let inside = if down {
            offset > limit && end <= upper
        } else {
            end <= limit
        };
        if !inside {
            return Err(self.fault(vector));
        }
        let at = segment.base.wrapping_add(offset) & 0xffff_ffff;
        self.aligned(at, size)?;
        Ok(at)
    }

    /// Null segments and those whose type does not allow the access.
    fn type_check(&self, seg: Seg, write: bool) -> Run<()> {
        let attr = self.ctx.segs.get(seg).attr;
        let code = attr.kind() & 8 != 0;
        let ok = !attr.unusable()
            && if write {
                !code && attr.kind() & 2 != 0
            } else {
                !code || attr.kind() & 2 != 0
            };
        if ok {
            Ok(())
        } else {
            Err(self.fault(if seg == Seg::Ss {
                vector::SS
            } else {
                vector::GP
            }))
        }
    }

    pub(super) fn canonical(&self, at: u64) -> bool {
        let unused = 64u32.wrapping_sub(u32::from(self.ctx.linear_bits()));
        (at as i64).wrapping_shl(unused).wrapping_shr(unused) as u64 == at
    }

    /// #AC for a user access that is not aligned, where CR0 and RFLAGS ask for it.
    fn aligned(&self, at: u64, size: u8) -> Run<()> {
        let checked = self.ctx.cpl == 3
            && self.ctx.cr0 & cr0::AM != 0
            && self.regs.rflags & rflags::AC != 0
            && matches!(size, 2 | 4 | 8);
        if checked && at & u64::from(size).wrapping_sub(1) != 0 {
            return Err(Stop::fault_with(vector::AC, 0));
        }
        Ok(())
    }

    /// The linear address of the memory operand.
    pub(super) fn operand(&self, size: u8, write: bool) -> Run<u64> {
        self.linear(self.insn.seg, self.offset(), size, write)
    }

    // Memory by linear address.

    /// The next linear address after `count` bytes.
    pub(super) fn advance(&self, at: u64, count: u64) -> u64 {
        let next = at.wrapping_add(count);
        if self.long_mode() || self.access_as == AccessAs::System && self.ctx.long() {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    /// Reads up to eight bytes, in two parts if they lie in two pages.
    pub(super) fn read(&mut self, at: u64, size: u8, rmw: bool) -> Run<u64> {
        let first = to_page_end(at).min(u64::from(size)) as u8;
        let low = self.ask(Need::Read {
            at,
            len: first,
            rmw,
        })? & alu_mask(first);
        if first == size {
            return Ok(low);
        }
        let rest = size.wrapping_sub(first);
        let high = self.ask(Need::Read {
            at: self.advance(at, u64::from(first)),
            len: rest,
            rmw,
        })? & alu_mask(rest);
        Ok(low | high.wrapping_shl(u32::from(first).wrapping_mul(8)))
    }

    /// Makes sure that all of `size` bytes can be written before the first part is.
    pub(super) fn check_write(&mut self, at: u64, size: u8) -> Run<()> {
        let first = to_page_end(at).min(u64::from(size)) as u16;
        let rest = u16::from(size).wrapping_sub(first);
        if rest != 0 {
            self.ask(Need::Check {
                at,
                len: first,
                write: true,
            })?;
            let at = self.advance(at, u64::from(first));
            self.ask(Need::Check {
                at,
                len: rest,
                write: true,
            })?;
        }
        Ok(())
    }

    /// Writes up to eight bytes. If they lie in two pages, [`Self::check_write`] goes before.
    pub(super) fn write(&mut self, at: u64, size: u8, value: u64) -> Run<()> {
        self.check_write(at, size)?;
        self.write_parts(at, size, value)
    }

    /// As [`Self::write`], without the check.
    pub(super) fn write_parts(&mut self, at: u64, size: u8, value: u64) -> Run<()> {
        let first = to_page_end(at).min(u64::from(size)) as u8;
        self.tell(Need::Write {
            at,
            len: first,
            value: value & alu_mask(first),
        })?;
        if first == size {
            return Ok(());
        }
        let rest = size.wrapping_sub(first);
        let high = value.wrapping_shr(u32::from(first).wrapping_mul(8));
        self.tell(Need::Write {
            at: self.advance(at, u64::from(first)),
            len: rest,
            value: high & alu_mask(rest),
        })
    }

    /// Replaces `old` by `new` with a locked access; where it would cross a page, or is 16 bytes of a device, with plain ones.
    pub(super) fn exchange(&mut self, at: u64, size: u8, old: u128, new: u128) -> Run<()> {
        let crosses = to_page_end(at) < u64::from(size);
        if crosses {
            self.check_write(at, size)?;
        }
        if crosses || size == 16 && !self.is_ram(at, size)? {
            let low = size.min(8);
            self.write_parts(at, low, new as u64)?;
            if size > 8 {
                self.write_parts(self.advance(at, 8), 8, (new >> 64) as u64)?;
            }
            return Ok(());
        }
        self.tell(Need::CmpXchg {
            at,
            len: size,
            old,
            new,
        })
    }

    /// The memory at `at`, in one page, is no device's. It can be written.
    fn is_ram(&mut self, at: u64, size: u8) -> Run<bool> {
        let check = Need::Check {
            at,
            len: size.into(),
            write: true,
        };
        Ok(self.ask(check)? != 0)
    }

    // Operands.

    /// Size of an operand in bytes.
    pub(super) fn size(&self, arg: Arg) -> u8 {
        let insn = self.insn;
        match arg {
            Arg::Eb | Arg::Gb | Arg::Al | Arg::Zb | Arg::Ob | Arg::Xb | Arg::Yb | Arg::Cl => 1,
            Arg::Ew | Arg::Gw | Arg::Dx | Arg::Sw => 2,
            Arg::RvMw if insn.mem.is_some() => 2,
            Arg::Ez => insn.op_size.min(4),
            Arg::Ey | Arg::Gy | Arg::My if self.long_mode() && insn.prefixes.w() => 8,
            Arg::Ey | Arg::Gy | Arg::My => 4,
            Arg::Rr if self.long_mode() => 8,
            Arg::Rr => 4,
            _ => insn.op_size,
        }
    }

    /// The register an operand names, or `None` where it is memory.
    /// The number of the general register that the operand is.
    pub(super) fn register(&self, arg: Arg) -> Option<u8> {
        match arg {
            Arg::Gb | Arg::Gw | Arg::Gv | Arg::Gy => Some(self.insn.reg),
            Arg::Al | Arg::Ax => Some(RAX),
            Arg::Cl => Some(RCX),
            Arg::Dx => Some(RDX),
            Arg::Zb | Arg::Zv => Some((self.insn.opcode & 7) | ((self.insn.prefixes.rex & 1) << 3)),
            Arg::Eb | Arg::Ew | Arg::Ez | Arg::Ev | Arg::Ey | Arg::RvMw | Arg::Rr => {
                match self.insn.mem {
                    None => Some(self.insn.rm),
                    Some(_) => None,
                }
            }
            _ => None,
        }
    }

    /// Whether the operand is the memory operand.
    pub(super) fn is_mem(&self, arg: Arg) -> bool {
        let place = matches!(
            arg,
            Arg::Eb | Arg::Ew | Arg::Ez | Arg::Ev | Arg::Ey | Arg::RvMw
        ) || matches!(arg, Arg::Ob | Arg::Ov | Arg::Mv | Arg::My | Arg::Mq);
        place && self.insn.mem.is_some()
    }

    /// The operand's value, zero-extended (immediates as the decoder extended them).
    pub(super) fn get(&mut self, arg: Arg) -> Run<u64> {
        let size = self.size(arg);
        if self.is_mem(arg) {
            let at = self.operand(size, false)?;
            return self.read(at, size, false);
        }
        match arg {
            Arg::One => Ok(1),
            Arg::Ib | Arg::Is | Arg::Iw | Arg::Iz | Arg::Iv => Ok(self.insn.imm),
            _ => match self.register(arg) {
                Some(n) => Ok(self.reg(n, size)),
                None => Err(Stop::UNHANDLED),
            },
        }
    }

    /// Writes the operand.
    pub(super) fn put(&mut self, arg: Arg, value: u64) -> Run<()> {
        let size = self.size(arg);
        if self.is_mem(arg) {
            let at = self.operand(size, true)?;
            return self.write(at, size, value & alu::mask(size));
        }
        match self.register(arg) {
            Some(n) => self.set_reg(n, size, value),
            None => return Err(Stop::UNHANDLED),
        }
        Ok(())
    }

    /// Reads the operand, computes the new value and flags from the old ones, writes it back: atomically where the
    /// instruction is locked (XCHG always is). Returns the old value.
    pub(super) fn update(&mut self, arg: Arg, f: impl FnOnce(u64, u64) -> (u64, u64)) -> Run<u64> {
        let size = self.size(arg);
        if self.is_mem(arg) {
            let at = self.operand(size, true)?;
            return self.update_at(at, size, f);
        }
        let old = self.get(arg)?;
        let (new, flags) = f(old, self.regs.rflags);
        self.regs.rflags = flags;
        self.put(arg, new)?;
        Ok(old)
    }

    /// As [`Self::update`] for `size` bytes at a linear address.
    pub(super) fn update_at(
        &mut self,
        at: u64,
        size: u8,
        f: impl FnOnce(u64, u64) -> (u64, u64),
    ) -> Run<u64> {
        let old = self.read(at, size, true)?;
        let (new, flags) = f(old, self.regs.rflags);
        self.regs.rflags = flags;
        let new = new & alu::mask(size);
        if self.insn.prefixes.lock || self.insn.kind() == Kind::Xchg {
            self.exchange(at, size, u128::from(old), u128::from(new))?;
        } else {
            self.write(at, size, new)?;
        }
        Ok(old)
    }
}

/// All bits of `size` bytes, for any size from 1 to 8.
const fn alu_mask(size: u8) -> u64 {
    u64::MAX.wrapping_shr(64u32.wrapping_sub((size as u32).wrapping_mul(8)))
}
