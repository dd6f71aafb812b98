// SPDX-License-Identifier: GPL-2.0
//! The cargo root: the pure modules of kvm.ko, mounted at the paths they have there.
//!
//! `rust/main.rs` is the Kbuild root. Both hold only `mod` lines, so `use crate::mmu::…` means the same in both.
//! What may be in a pure module is in doc/architecture.md, "Purity contract".
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

#[path = "../mmu/mod.rs"]
pub mod mmu;
pub mod model;
#[path = "../svm/mod.rs"]
pub mod svm;
#[path = "../vmx/mod.rs"]
pub mod vmx;
