// SPDX-License-Identifier: GPL-2.0
//! Pure models and policies: what the architecture says, with no kernel below it.

pub mod cpuid;
pub mod cpuid_host;
pub mod cr;
pub mod emu;
pub mod event;
pub mod exception;
pub mod features;
pub mod guest;
pub mod msr;
pub mod msr_table;
pub mod pic;
pub mod pit;
pub mod regs;
pub mod residency;
pub mod sregs;
