// SPDX-License-Identifier: GPL-2.0
//! How much memory the machine has left, exactly enough to find a leak of a page in hundreds of VMs.
//!
//! MemFree alone says little: pages and objects that were freed wait in many places. So first everything that is put off is waited for
//! or pressed out (`settle`): RCU callbacks, caches of file data and names, empty slabs. And then the pages are counted that are free wherever
//! they are: in the buddy lists and in the lists of each CPU. A process that ended takes its pages with it, so the work whose leaks are looked for is
//! done in processes that end.

use super::{field, set};
use crate::sys;
use std::time::Duration;

/// Pages that are free: those of MemFree, and those that CPUs keep for themselves.
pub fn pages() -> i64 {
    let free = field("/proc/meminfo", "MemFree").unwrap_or(0) / 4;
    let kept: u64 = std::fs::read_to_string("/proc/zoneinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.trim().strip_prefix("count:")?.trim().parse::<u64>().ok())
        .sum();
    (free + kept) as i64
}

/// Makes the kernel give back what it holds for later.
pub fn settle() {
    let mut last = i64::MIN;
    for _ in 0..20 {
        for _ in 0..3 {
            let _ = sys::rcu_grace_period();
        }
        let _ = set("/proc/sys/vm/drop_caches", 3);
        shrink_slabs();
        let _ = set("/proc/sys/vm/stat_refresh", 1);
        // Work queues: nothing tells when they are empty, but that nothing changes any more.
        std::thread::sleep(Duration::from_millis(30));
        let now = pages();
        if (now - last).abs() <= 2 {
            return;
        }
        last = now;
    }
}

fn shrink_slabs() {
    let Ok(dir) = std::fs::read_dir("/sys/kernel/slab") else {
        return;
    };
    for e in dir.flatten() {
        // Aliases point to the same cache.
        if !e.file_type().is_ok_and(|t| t.is_symlink()) {
            let _ = set(&e.path().join("shrink").to_string_lossy(), 1);
        }
    }
}

/// Most pages that may be missing: 64 KiB.
const MOST: i64 = 16;

/// Checks that `cycle`, repeated, does not use up memory: what is free after `n` times and after `n` more is the same within 64 KiB.
/// `n` before these fill the kernel's caches. Where that cannot be judged the cycles are gone through all the same, for what they check
/// themselves.
pub fn check(what: &str, n: u64, mut cycle: impl FnMut(u64)) {
    let mut run = |first: u64, n: u64| {
        for i in first..first + n {
            cycle(i);
            if crate::harness::fails() > 0 {
                return i64::MIN;
            }
        }
        settle();
        pages()
    };
    let mut history = vec![run(0, n), run(n, n)];
    // KASAN keeps back what is freed, and remembers where it was: what is free says little there.
    if std::path::Path::new("/sys/kernel/debug/kmemleak").exists() {
        crate::harness::say(&format!(
            "{what}: the free pages after each {n}, {history:?}, are not compared on this kernel; kmemleak is asked at the end"
        ));
        return;
    }
    // A leak takes pages in each cycle. What else goes on in the machine may take some now and then, or give back some that it took before,
    // which could hide a leak: neither tells anything, and the next part is looked at.
    for part in 2..6 {
        let now = run(part * n, n);
        if crate::harness::fails() > 0 {
            return;
        }
        let before = history.last().copied().unwrap_or(now);
        history.push(now);
        if (before - now).abs() <= MOST {
            crate::harness::say(&format!("{what}: free pages after each {n}: {history:?}"));
            return;
        }
    }
    crate::harness::fail(&format!(
        "{what} use up memory, or what is free never settles; free pages after each {n}: {history:?}"
    ));
}
