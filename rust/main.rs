// SPDX-License-Identifier: GPL-2.0
//! The Kbuild root of kvm.ko: `mod` lines and the module's declaration.
//!
//! `rust/host.rs` is the cargo root; both mount the pure modules at the same paths.

use kernel::prelude::*;

use crate::sys::compat::EOPNOTSUPP;

mod hv;
#[path = "../mmu/mod.rs"]
mod mmu;
mod model;
#[path = "../svm/mod.rs"]
mod svm;
mod sys;
#[path = "../uapi/mod.rs"]
mod uapi;
#[path = "../vmx/mod.rs"]
mod vmx;

module! {
    type: Lodge,
    name: "kvm",
    authors: ["The Lodge developers"],
    description: "KVM in Rust: Intel VMX and AMD SVM in one module",
    license: "GPL",
}

/// The loaded module; dropping it takes everything down.
struct Lodge(#[expect(dead_code, reason = "held for its destructor")] hv::device::Loaded);

impl kernel::Module for Lodge {
    fn init(_module: &'static kernel::ThisModule) -> Result<Self> {
        if sys::cpu::has_vmx() {
            return Ok(Lodge(hv::device::load::<vmx::Vmx>()?));
        }
        if sys::cpu::has_svm() {
            return Ok(Lodge(hv::device::load::<svm::Svm>()?));
        }
        // The kernel forgets a feature that the firmware has locked away; CPUID does not.
        match sys::cpu::cpuid_virtualization() {
            Some(name) => {
                pr_err!("{name} is disabled, by the firmware (see its set-up) or the kernel's command line\n")
            }
            None => pr_err!("the CPU has neither Intel VMX nor AMD SVM\n"),
        }
        Err(EOPNOTSUPP)
    }
}
