// SPDX-License-Identifier: GPL-2.0
//! The Kbuild root of kvm.ko: `mod` lines and the module's declaration.
//!
//! `rust/host.rs` is the cargo root; both mount the pure modules at the same paths.

use kernel::prelude::*;

mod model;
mod sys;
#[path = "../uapi/mod.rs"]
mod uapi;

pub(crate) use LocalModule as Module;

module! {
    type: Lodge,
    name: "kvm",
    authors: ["The Lodge developers"],
    description: "KVM in Rust: Intel VMX and AMD SVM in one module",
    license: "GPL",
}

struct Lodge;

impl kernel::Module for Lodge {
    fn init(_module: &'static kernel::ThisModule) -> Result<Self> {
        pr_info!("hello {}\n", uapi::KVM_API_VERSION);
        Ok(Lodge)
    }
}
