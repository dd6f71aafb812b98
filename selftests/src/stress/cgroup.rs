// SPDX-License-Identifier: GPL-2.0
//! Memory cgroups, for tests of what a VM is charged for and of what is taken from it.

use super::pages::tool;
use super::{field, set};
use crate::harness;
use crate::sys::{self, Ended};
use crate::{check, eq};

/// A memory cgroup, gone when it is dropped.
pub struct Cgroup(String);

impl Cgroup {
    /// Makes `name` below the root of the hierarchy. The test is skipped where there is none.
    pub fn new(name: &str) -> Self {
        let root = "/run/cgroup";
        let _ = std::fs::create_dir(root);
        if std::fs::metadata(format!("{root}/cgroup.controllers")).is_err() {
            tool(&["mount", "-t", "cgroup2", "none", root]);
        }
        if !set(&format!("{root}/cgroup.subtree_control"), "+memory") {
            harness::skip("no memory cgroups here");
        }
        let path = format!("{root}/{name}");
        let _ = std::fs::create_dir(&path);
        Self(path)
    }
    /// The path of one of its files.
    pub fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
    /// Moves the calling process into it.
    pub fn enter(&self) {
        check!(set(&self.file("cgroup.procs"), 0), "entering the cgroup");
    }
    /// A line of memory.stat.
    pub fn stat(&self, key: &str) -> u64 {
        field(&self.file("memory.stat"), key).unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Runs `f` as a process in a cgroup of its own, then checks that it ended well.
pub fn in_cgroup(name: &str, f: impl FnOnce(&Cgroup)) {
    let cg = Cgroup::new(name);
    let pid = sys::fork(|| {
        cg.enter();
        f(&cg);
        i32::from(harness::fails() > 0)
    });
    eq!(sys::wait(pid, true), Ended::Exit(0));
}
