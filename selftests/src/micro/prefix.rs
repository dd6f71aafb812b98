// SPDX-License-Identifier: GPL-2.0
//! The forced-emulation prefix, by which a test has single instructions executed by the emulator.

use crate::harness;

const PARAMETER: &str = "/sys/module/kvm/parameters/force_emulation_prefix";
/// What makes the instruction behind it an emulated one.
pub const PREFIX: &[u8; 5] = b"\x0f\x0bkvm";

/// The prefix has a meaning, or none, as long as this lives; then it is as it was.
pub struct Forced(String);

impl Forced {
    /// Switches it on; skips the test where that cannot be.
    pub fn on() -> Self {
        Self::set("1")
    }

    /// Switches it off.
    pub fn off() -> Self {
        Self::set("0")
    }

    fn set(value: &str) -> Self {
        let old = std::fs::read_to_string(PARAMETER).unwrap_or_default();
        if let Err(e) = std::fs::write(PARAMETER, value) {
            harness::skip(&format!("{PARAMETER}: {e}"));
        }
        Self(old)
    }
}

impl Drop for Forced {
    fn drop(&mut self) {
        let _ = std::fs::write(PARAMETER, &self.0);
    }
}
