// SPDX-License-Identifier: GPL-2.0
//! The Intel backend: Virtual Machine Extensions (Intel SDM volume 3, from the chapter "Introduction to Virtual Machine Extensions").
//!
//! `controls`, `enterable`, `exit`, `fields`, `modes`, `tlb` and `vpid` are pure and also tested on the host; the rest exists in the kernel only.

// The tables are complete and the library is public; the module uses a part of them and exports nothing.
#[cfg_attr(CONFIG_RUST, expect(dead_code, unreachable_pub))]
pub mod controls;
#[cfg_attr(CONFIG_RUST, expect(unreachable_pub))]
pub mod enterable;
#[cfg_attr(CONFIG_RUST, expect(dead_code, unreachable_pub))]
pub mod exit;
#[cfg_attr(CONFIG_RUST, expect(dead_code, unreachable_pub))]
pub mod fields;
#[cfg_attr(CONFIG_RUST, expect(unreachable_pub))]
pub mod modes;
#[cfg_attr(CONFIG_RUST, allow(unreachable_pub))]
pub mod tlb;
#[cfg_attr(CONFIG_RUST, expect(unreachable_pub))]
pub mod vpid;

#[cfg(CONFIG_RUST)]
mod backend;
#[cfg(CONFIG_RUST)]
mod handle;
#[cfg(CONFIG_RUST)]
mod hw;
#[cfg(CONFIG_RUST)]
mod insn;
#[cfg(CONFIG_RUST)]
mod resident;
#[cfg(CONFIG_RUST)]
mod setup;
#[cfg(CONFIG_RUST)]
mod shared;
#[cfg(CONFIG_RUST)]
mod vmcs;

#[cfg(CONFIG_RUST)]
pub(crate) use backend::Vmx;
