// SPDX-License-Identifier: GPL-2.0
//! The hypervisor proper: fd objects, the run loop, ioctls and what the two backends share. Safe code.
#![deny(unsafe_code)]

pub(crate) mod backend;
pub(crate) mod clock;
pub(crate) mod cpuid;
pub(crate) mod cr;
mod data_walk;
pub(crate) mod debug;
pub(crate) mod device;
pub(crate) mod emulate;
mod emulate_fail;
mod emulate_regs;
mod emulate_run;
pub(crate) mod events;
pub(crate) mod exits;
pub(crate) mod fault;
mod fetch;
pub(crate) mod guest_mem;
pub(crate) mod host;
pub(crate) mod host_tsc;
mod identity;
pub(crate) mod io;
pub(crate) mod ioctl_vcpu;
pub(crate) mod ioctl_vm;
pub(crate) mod ioevent;
mod known;
pub(crate) mod mce;
pub(crate) mod msr;
pub(crate) mod msr_filter;
pub(crate) mod policy;
pub(crate) mod quirks;
pub(crate) mod regs;
pub(crate) mod run;
pub(crate) mod sregs;
pub(crate) mod stats;
pub(crate) mod sync_regs;
pub(crate) mod tsc;
pub(crate) mod user;
pub(crate) mod user_run;
pub(crate) mod vcpu;
pub(crate) mod vcpu_events;
pub(crate) mod vm;
pub(crate) mod xsave;
