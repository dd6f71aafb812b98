// SPDX-License-Identifier: GPL-2.0
//! The sensitive instructions and the far transfers once more, each executed by the emulator in place of the CPU: what the manuals say is the same.

use super::{privilege, privilege_gates, privilege_where, vm86};
use crate::harness::{say, Test};

pub const TESTS: &[Test] = &[
    Test::new("micro/emulated_sensitive", || all(privilege::TESTS)).secs(60),
    Test::new("micro/emulated_transfers", || all(privilege_gates::TESTS)).secs(60),
    Test::new("micro/emulated_vm86", || all(vm86::TESTS)).secs(60),
    Test::new("micro/emulated_vme", || all(vm86::VME_TESTS)).secs(60),
];

fn all(tests: &[Test]) {
    let _forced = privilege_where::emulated();
    for t in tests {
        let before = crate::harness::fails();
        (t.run)();
        if crate::harness::fails() != before {
            say(&format!("the emulator, in {}", t.name));
        }
    }
}
