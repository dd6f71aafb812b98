// SPDX-License-Identifier: GPL-2.0
//! The access that is all that an instruction has left to do.
//!
//! A store or a load by MOV and its like need not run a second time when the answer is there. They are what drivers use on
//! devices, nearly all of what is ever emulated.
#![forbid(unsafe_code)]

use super::alu;
use super::cx::Cx;
use super::insn::{Insn, Kind};
use super::need::{Answer, Need};
use crate::model::regs::Regs;

/// What is left to do when a need has its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Last {
    /// More than this file knows of.
    #[default]
    More,
    /// Nothing: it was the store.
    Store,
    /// The value goes to a general register.
    Load {
        /// Which.
        reg: u8,
        /// How many bytes of it are written.
        size: u8,
        /// How many bytes are read.
        from: u8,
        /// The value is extended by its sign.
        signed: bool,
    },
}

impl Last {
    /// For an instruction that asks for this.
    pub(super) fn of(cx: &Cx<'_>, need: &Need) -> Self {
        let [to, source, _] = cx.insn.desc.args;
        let signed = match cx.insn.kind() {
            Kind::Mov | Kind::Movzx => false,
            Kind::Movsx | Kind::Movsxd => true,
            _ => return Self::More,
        };
        match *need {
            Need::Write { len, .. } if len == cx.size(to) => Self::Store,
            Need::Read { len, .. } if len == cx.size(source) => match cx.register(to) {
                Some(reg) => Self::Load {
                    reg,
                    size: cx.size(to),
                    from: len,
                    signed,
                },
                None => Self::More,
            },
            _ => Self::More,
        }
    }

    /// Takes the answer; false if there is more to do.
    pub(super) fn take(self, answer: &Answer, insn: &Insn, regs: &mut Regs) -> bool {
        match (self, answer) {
            (Self::Store, Answer::Ack) => true,
            (
                Self::Load {
                    reg,
                    size,
                    from,
                    signed,
                },
                Answer::Value(value),
            ) => {
                let value = if signed {
                    alu::sext(from, *value)
                } else {
                    value & alu::mask(from)
                };
                insn.set_reg(regs, reg, size, value);
                true
            }
            _ => false,
        }
    }
}
