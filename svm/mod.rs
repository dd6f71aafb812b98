// SPDX-License-Identifier: GPL-2.0
//! The AMD backend: Secure Virtual Machine (AMD APM volume 2, "Secure Virtual Machine").
//!
//! `vmcb`, `exit`, `features` and `asid` are pure and also tested on the host; the rest exists in the kernel only.

// The tables are complete and the library is public; the module uses a part of them and exports nothing.
#[cfg_attr(CONFIG_RUST, allow(unreachable_pub))]
pub mod asid;
#[cfg_attr(CONFIG_RUST, allow(dead_code, unreachable_pub))]
pub mod exit;
#[cfg_attr(CONFIG_RUST, allow(dead_code, unreachable_pub))]
pub mod features;
#[cfg_attr(CONFIG_RUST, allow(dead_code, unreachable_pub))]
pub mod vmcb;

#[cfg(CONFIG_RUST)]
mod backend;
#[cfg(CONFIG_RUST)]
mod events;
#[cfg(CONFIG_RUST)]
mod handle;
#[cfg(CONFIG_RUST)]
mod hw;
#[cfg(CONFIG_RUST)]
mod insn;
#[cfg(CONFIG_RUST)]
mod ledger;
#[cfg(CONFIG_RUST)]
mod shared;

#[cfg(CONFIG_RUST)]
pub(crate) use backend::Svm;
