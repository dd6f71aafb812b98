// SPDX-License-Identifier: GPL-2.0
//! Attackers: guests of random bytes and random instructions, and VMMs that hand the kernel nonsense from several threads.
//!
//! Whatever they do, each call gives a defined exit or errno, the kernel does not complain (the harness watches), a VM of
//! another process computes what it should, and nothing is left when they are gone. A failure prints its seed;
//! `selftests --seed N NAME` runs that one alone.

mod bytes;
mod code;
mod devices;
pub mod ioctls;
mod neighbour;
mod rng;
mod state;
mod tally;
mod vmm;

use crate::harness::{self, Test};
use crate::kvm::Exit;
use neighbour::Neighbour;
use rng::Rng;
use std::sync::OnceLock;

/// All of them.
pub fn tests() -> Vec<Test> {
    [bytes::TESTS, devices::TESTS, state::TESTS, vmm::TESTS].concat()
}

static SEED: OnceLock<u64> = OnceLock::new();

/// Only this seed from now on (`--seed`).
pub fn set_seed(seed: u64) {
    let _ = SEED.set(seed);
}

/// Runs `body` with the seeds 0 to `count - 1`, or with the one that was asked for, and looks at the neighbour now and then.
fn seeds(near: &mut Neighbour, count: u64, mut body: impl FnMut(&mut Rng)) {
    let range = SEED.get().map_or(0..count, |s| *s..s + 1);
    for seed in range {
        let before = harness::fails();
        let mut rng = Rng::new(seed);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&mut rng)));
        if seed % 16 == 0 {
            near.check();
        }
        if harness::fails() != before || ended.is_err() {
            harness::say(&format!(
                "with the seed {seed}; again by: selftests --seed {seed} {}",
                harness::name()
            ));
        }
        if let Err(e) = ended {
            std::panic::resume_unwind(e);
        }
    }
    near.check();
}

/// Is this an end of KVM_RUN that a guest may bring about by itself or that a kick gives? What says that we do not know
/// what happened, or that the VM is dead, is none.
fn defined(e: &Exit) -> bool {
    match e {
        Exit::Io { .. }
        | Exit::Mmio { .. }
        | Exit::Hlt
        | Exit::Shutdown
        | Exit::Intr
        | Exit::IrqWindow
        | Exit::Debug { .. }
        | Exit::FailEntry(_) => true,
        // Emulation and delivery; not "unexpected exit".
        Exit::Internal(suberror, _) => matches!(suberror, 1 | 3),
        Exit::Other(reason) => matches!(
            *reason,
            kvm_bindings::KVM_EXIT_SET_TPR
                | kvm_bindings::KVM_EXIT_HYPERCALL
                | kvm_bindings::KVM_EXIT_X86_RDMSR
                | kvm_bindings::KVM_EXIT_X86_WRMSR
        ),
        Exit::Err(e, _) => *e == libc::EINTR,
    }
}
