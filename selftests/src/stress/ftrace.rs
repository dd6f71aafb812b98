// SPDX-License-Identifier: GPL-2.0
//! The kernel's function trace: which sections of `mmu_lock` the module enters.

use super::set;

/// The module's ways into `mmu_lock`.
pub(super) const SHARED: &str = "lodge_read_lock";
pub(super) const EXCLUSIVE: &str = "lodge_write_lock";

/// The kernel's function tracer on some functions, while it lives.
pub(super) struct Trace(String);

impl Trace {
    /// Counts calls of functions whose name fits `pattern`; None if there are none, or no tracer.
    pub(super) fn of(pattern: &str) -> Option<Self> {
        let dir = "/sys/kernel/tracing";
        let t = Self(dir.to_owned());
        let on = t.set("tracing_on", "0")
            && t.set("set_ftrace_filter", pattern)
            && t.set("current_tracer", "function")
            && t.set("buffer_size_kb", "8192")
            && t.set("trace", "");
        on.then_some(t)
    }
    fn set(&self, file: &str, value: &str) -> bool {
        set(&format!("{}/{file}", self.0), value)
    }
    /// The calls during `f`, one line each.
    pub(super) fn calls(&self, f: impl FnOnce()) -> Vec<String> {
        self.set("trace", "");
        self.set("tracing_on", "1");
        f();
        self.set("tracing_on", "0");
        let text = std::fs::read_to_string(format!("{}/trace", self.0)).unwrap_or_default();
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.set("tracing_on", "0");
        self.set("current_tracer", "nop");
        self.set("set_ftrace_filter", "");
    }
}
