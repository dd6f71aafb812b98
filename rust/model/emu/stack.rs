// SPDX-License-Identifier: GPL-2.0
//! The stack that the instruction finds, and the one of an inner privilege level that a gate switches to.
#![forbid(unsafe_code)]

use super::alu;
use super::cx::{to_page_end, Cx};
use super::job::{Need, Run};
use crate::model::event::vector;
use crate::model::regs::{Seg, Segment, RSP};

impl Cx<'_> {
    fn stack_mask(&self) -> u64 {
        alu::mask(self.ctx.stack_bytes())
    }

    /// Changes the stack pointer as far as the stack is wide.
    pub(super) fn set_sp(&mut self, value: u64) {
        let mask = self.stack_mask();
        let old = if mask == 0xffff {
            self.regs.get(RSP)
        } else {
            0
        };
        self.regs.set(RSP, (old & !mask) | (value & mask));
    }

    /// Faults where a write of `size` bytes at the stack pointer would.
    pub(super) fn stack_top_writable(&mut self, size: u8) -> Run<()> {
        let sp = self.regs.get(RSP) & self.stack_mask();
        let at = self.linear(Seg::Ss, sp, size, true)?;
        if to_page_end(at) < u64::from(size) {
            return self.check_write(at, size);
        }
        self.ask(Need::Check {
            at,
            len: u16::from(size),
            write: true,
        })?;
        Ok(())
    }

    /// Pushes `size` bytes.
    pub(super) fn push(&mut self, size: u8, value: u64) -> Run<()> {
        let sp = self.regs.get(RSP).wrapping_sub(u64::from(size)) & self.stack_mask();
        let at = self.linear(Seg::Ss, sp, size, true)?;
        self.write(at, size, value & alu::mask(size))?;
        self.set_sp(sp);
        Ok(())
    }

    /// Pops `size` bytes.
    pub(super) fn pop(&mut self, size: u8) -> Run<u64> {
        let sp = self.regs.get(RSP) & self.stack_mask();
        let at = self.linear(Seg::Ss, sp, size, false)?;
        let value = self.read(at, size, false)?;
        self.set_sp(sp.wrapping_add(u64::from(size)));
        Ok(value)
    }
}

/// A stack that is not in SS and RSP yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    pub(super) ss: Segment,
    pub(super) sp: u64,
    /// Bytes of the stack pointer: 8 in 64-bit mode, where the segment does not matter.
    pub(super) width: u8,
}

impl Stack {
    /// A stack of a protected-mode segment.
    pub(super) const fn new(ss: Segment, sp: u64) -> Self {
        let width = if ss.attr.db() { 4 } else { 2 };
        Self { ss, sp, width }
    }

    /// A stack of 64-bit mode.
    pub(super) const fn flat(ss: Segment, sp: u64) -> Self {
        Self { ss, sp, width: 8 }
    }

    /// The linear address of the next `size` bytes down, and the stack pointer there.
    fn below(&self, cx: &Cx<'_>, size: u8) -> Run<(u64, u64)> {
        let sp = self.sp.wrapping_sub(u64::from(size)) & alu::mask(self.width);
        let last = sp.wrapping_add(u64::from(size).wrapping_sub(1));
        let fault = Cx::selector_fault(vector::SS, self.ss.selector);
        if self.width == 8 {
            return if cx.canonical(sp) && cx.canonical(last) {
                Ok((sp, sp))
            } else {
                Err(fault)
            };
        }
        let (attr, limit) = (self.ss.attr, u64::from(self.ss.limit));
        let upper = if attr.db() { 0xffff_ffff } else { 0xffff };
        let inside = if attr.kind() & 0xc == 4 {
            sp > limit && last <= upper
        } else {
            last <= limit
        };
        if inside {
            Ok((self.ss.base.wrapping_add(sp) & 0xffff_ffff, sp))
        } else {
            Err(fault)
        }
    }

    /// #SS unless the segment has room for `count` pushes of `size` bytes.
    pub(super) fn room(mut self, cx: &Cx<'_>, size: u8, count: u8) -> Run<()> {
        for _ in 0..count {
            (_, self.sp) = self.below(cx, size)?;
        }
        Ok(())
    }

    /// Where the next push of `size` bytes goes; moves the stack pointer there.
    pub(super) fn next(&mut self, cx: &Cx<'_>, size: u8) -> Run<u64> {
        let (at, sp) = self.below(cx, size)?;
        self.sp = if self.width == 2 {
            (self.sp & !0xffff) | sp
        } else {
            sp
        };
        Ok(at)
    }

    /// Pushes `size` bytes.
    pub(super) fn push(&mut self, cx: &mut Cx<'_>, size: u8, value: u64) -> Run<()> {
        let mut moved = *self;
        let at = moved.next(cx, size)?;
        cx.write(at, size, value & alu::mask(size))?;
        *self = moved;
        Ok(())
    }
}

/// For pops whose instruction may yet fault: SS:RSP as it is, without moving it.
impl Cx<'_> {
    /// `size` bytes at `offset` above the stack pointer.
    pub(super) fn peek(&mut self, offset: u64, size: u8) -> Run<u64> {
        let sp = self.regs.get(RSP).wrapping_add(offset) & self.stack_mask();
        let at = self.linear(Seg::Ss, sp, size, false)?;
        self.read(at, size, false)
    }

    /// As [`Self::peek`] for a value that goes straight into the next write.
    pub(super) fn peek_carried(&mut self, offset: u64, size: u8) -> Run<u64> {
        let sp = self.regs.get(RSP).wrapping_add(offset) & self.stack_mask();
        let at = self.linear(Seg::Ss, sp, size, false)?;
        self.read_carried(at, size)
    }

    /// As [`Self::read`] for a value that goes straight into the next write, unless one of the two crosses a page.
    pub(super) fn read_carried(&mut self, at: u64, size: u8) -> Run<u64> {
        if to_page_end(at) < u64::from(size) {
            return self.read(at, size, false);
        }
        self.ask_carried(Need::Read {
            at,
            len: size,
            rmw: false,
        })
    }

    /// #SS unless the current stack has room for `count` pushes of `size` bytes.
    pub(super) fn stack_room(&self, size: u8, count: u8) -> Run<()> {
        let mut sp = self.regs.get(RSP);
        for _ in 0..count {
            sp = sp.wrapping_sub(u64::from(size)) & self.stack_mask();
            self.linear(Seg::Ss, sp, size, true)?;
        }
        Ok(())
    }
}
