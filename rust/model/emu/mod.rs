// SPDX-License-Identifier: GPL-2.0
//! The instruction decoder and emulator.
//!
//! [`decode::decode`] turns bytes into an [`insn::Insn`]; its table (`table`) writes the opcode maps down in the
//! notation of the manuals, and an instruction's length follows from its operands. A [`job::Job`] carries an
//! instruction out, asking its owner for memory, ports and system registers.
#![forbid(unsafe_code)]

mod alu;
mod arg;
mod cx;
mod data;
pub mod decode;
mod desc;
mod far;
mod flow;
pub mod insn;
mod int;
pub mod job;
mod last;
mod log;
mod misc;
pub mod need;
mod run;
mod seg;
mod stack;
mod stop;
mod string;
mod syscall;
mod system;
mod table;
mod task;
mod vec;
