// SPDX-License-Identifier: GPL-2.0
//! The instruction decoder and emulator.
//!
//! [`decode::decode`] turns bytes into an [`insn::Insn`]; its table (`table`) writes the opcode maps down in the
//! notation of the manuals, and an instruction's length follows from its operands. A [`job::Job`] carries an
//! instruction out, asking its owner for memory, ports and system registers.
#![forbid(unsafe_code)]

mod alu;
mod cx;
mod data;
pub mod decode;
mod flow;
pub mod insn;
pub mod job;
mod run;
mod string;
mod system;
mod table;
mod vec;
