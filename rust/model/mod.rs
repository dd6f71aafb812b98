// SPDX-License-Identifier: GPL-2.0
//! Pure models and policies: what the architecture says, with no kernel below it.

pub mod cr;
pub mod emu;
pub mod pic;
pub mod pit;
pub mod regs;
pub mod residency;
