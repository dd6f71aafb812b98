// SPDX-License-Identifier: GPL-2.0
//! The AMD backend: Secure Virtual Machine (AMD APM volume 2, "Secure Virtual Machine").
//!
//! `vmcb`, `exit`, `features` and `asid` are pure and also tested on the host; the rest exists in the kernel only.

pub mod asid;
pub mod exit;
pub mod features;
pub mod vmcb;

#[cfg(CONFIG_RUST)]
mod backend;
#[cfg(CONFIG_RUST)]
mod handle;
#[cfg(CONFIG_RUST)]
mod insn;

#[cfg(CONFIG_RUST)]
pub(crate) use backend::Svm;
