// SPDX-License-Identifier: GPL-2.0
//! Long runs: the registers of the host and of guests over very many exits, memory that changes under running guests, and
//! VMs, vCPUs and the module itself that come and go.

mod backing;
mod cgroup;
mod charge;
mod elsewhere;
mod ftrace;
mod host;
mod left;
mod life;
pub(crate) mod mixer;
mod pages;
mod parallel;
mod perf;
mod slots;
mod sweep;

use crate::harness::Test;

/// All of them.
pub fn tests() -> Vec<Test> {
    [
        host::TESTS,
        pages::TESTS,
        backing::TESTS,
        slots::TESTS,
        parallel::TESTS,
        elsewhere::TESTS,
        charge::TESTS,
        life::TESTS,
    ]
    .concat()
}

/// Loads a module of the stock kernel that the run brought along (the part `extras`); already loaded is fine.
pub(crate) fn insmod(name: &str) -> Result<(), i32> {
    match crate::sys::load_module(&format!("/modules/extras/{name}.ko"), "") {
        Err(libc::EEXIST) => Ok(()),
        r => r.map(|_| ()),
    }
}

/// The number in a file of /sys or /proc.
pub(crate) fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind `key` in a file of lines `key number` or `key: number kB`.
pub(crate) fn field(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|l| {
        let mut words = l.split_whitespace();
        let k = words.next()?;
        (k.trim_end_matches(':') == key).then(|| words.next()?.parse().ok())?
    })
}

/// Writes to a file of /sys or /proc; false if that is not possible.
pub(crate) fn set(path: &str, value: impl std::fmt::Display) -> bool {
    std::fs::write(path, value.to_string()).is_ok()
}

/// Sets a file of /sys or /proc and puts the old value back when dropped.
pub(crate) struct Setting(String, String);

impl Setting {
    pub(crate) fn new(path: &str, value: impl std::fmt::Display) -> Option<Self> {
        let old = std::fs::read_to_string(path).ok()?;
        // A choice is shown as `one [two] three`.
        let old = old
            .split_once('[')
            .and_then(|(_, r)| r.split_once(']'))
            .map_or(old.trim(), |(v, _)| v)
            .to_owned();
        set(path, value).then(|| Self(path.to_owned(), old))
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = set(&self.0, &self.1);
    }
}
