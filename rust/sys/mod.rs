// SPDX-License-Identifier: GPL-2.0
//! The unsafe ground: what the rest of the module needs from the kernel and the CPU, behind safe types.
//!
//! Files here may hold `unsafe` (they are listed in `unsafe-files.txt`); each says at its head why.

pub(crate) mod compat;
pub(crate) mod cpu;
pub(crate) mod eventfd;
pub(crate) mod ffi;
pub(crate) mod file;
pub(crate) mod fpu;
pub(crate) mod global;
pub(crate) mod ioctl_arg;
mod lent;
pub(crate) mod lock;
pub(crate) mod mm;
pub(crate) mod page;
pub(crate) mod params;
pub(crate) mod power;
pub(crate) mod run_page;
pub(crate) mod sched;
pub(crate) mod srcu_cell;
pub(crate) mod stats;
pub(crate) mod switch;
pub(crate) mod trace;
pub(crate) mod virt;
