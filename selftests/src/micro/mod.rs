// SPDX-License-Identifier: GPL-2.0
//! Guests of a few instructions: modes, exits, events, memory that changes under them.

use crate::harness::Test;

/// All of them.
pub fn tests() -> Vec<Test> {
    Vec::new()
}
