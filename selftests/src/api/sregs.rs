// SPDX-License-Identifier: GPL-2.0
//! x
use crate::harness::Test;
pub const TESTS: &[Test] = &[];
