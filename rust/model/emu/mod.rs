// SPDX-License-Identifier: GPL-2.0
//! The instruction decoder and emulator.
//!
//! [`decode::decode`] turns bytes into an [`insn::Insn`]; its table (`table`) writes the opcode maps down in the
//! notation of the manuals, and an instruction's length follows from its operands.
#![forbid(unsafe_code)]

pub mod decode;
pub mod insn;
mod table;
