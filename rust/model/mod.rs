// SPDX-License-Identifier: GPL-2.0
//! Pure models and policies: what the architecture says, with no kernel below it.

// The library is public and says the whole of what it models; the module uses a part of it and exports nothing.
#![cfg_attr(CONFIG_RUST, allow(dead_code, unreachable_pub))]

pub mod cpuid;
pub mod cpuid_host;
pub mod cr;
pub mod emu;
pub mod event;
pub mod exception;
pub mod features;
pub mod fxsave;
pub mod guest;
pub mod ioevent;
pub mod kick;
pub mod mce;
pub mod misc_enable;
pub mod msr;
pub mod msr_filter;
pub mod msr_pass;
pub mod msr_table;
#[cfg(not(CONFIG_RUST))]
pub mod pic;
#[cfg(not(CONFIG_RUST))]
pub mod pit;
pub mod pvclock;
pub mod regs;
pub mod residency;
pub mod speculation;
pub mod sregs;
pub mod tsc_sync;
