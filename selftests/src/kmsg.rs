// SPDX-License-Identifier: GPL-2.0
//! Watches the kernel log: a test during which the kernel complained has failed, whatever it says itself.

use crate::sys::{self, OwnedFd};

/// What counts as a complaint, wherever it stands in a line.
const BAD: &[&str] = &[
    "WARNING:",
    "BUG:",
    "kernel BUG",
    "Oops",
    "Call Trace:",
    "general protection fault",
    "rcu: INFO",
    "detected stalls",
    "self-detected stall",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "unchecked MSR access",
    "possible recursive locking",
    "possible circular locking",
    "inconsistent lock state",
    "possible irq lock inversion",
    "suspicious RCU usage",
    "bad unlock balance",
    "held lock freed",
    "lock held when returning",
    "turning off the locking correctness",
    "ODEBUG:",
    "invalid opcode",
    "cut here",
    "kthread starved",
    "KASAN",
    "KCSAN",
    "UBSAN",
    "refcount_t:",
    "scheduling while atomic",
    "sleeping function called",
    "Bad page state",
    "leaked",
    "list_add corruption",
    "list_del corruption",
    "Modules linked in",
    // The module stops a VM for a mistake of its own.
    "VM stopped",
];

/// The reader of /dev/kmsg, placed behind what was there when it was opened.
pub struct Kmsg(Option<OwnedFd>);

impl Kmsg {
    /// Opens the log; without it (no permission) nothing is watched and `watching` says so.
    pub fn open() -> Self {
        let fd = OwnedFd::open("/dev/kmsg", libc::O_RDONLY | libc::O_NONBLOCK).ok();
        if let Some(f) = &fd {
            let _ = sys::seek_end(f.raw());
        }
        Self(fd)
    }

    /// Is the log being watched?
    pub fn watching(&self) -> bool {
        self.0.is_some()
    }

    /// The complaints since the last call, but for lines that hold one of `allowed`.
    pub fn complaints(&self, allowed: &[&str]) -> Vec<String> {
        let Some(fd) = &self.0 else { return Vec::new() };
        let mut found = Vec::new();
        let mut buf = vec![0u8; 8192];
        loop {
            match sys::read(fd.raw(), &mut buf) {
                Ok(n) => {
                    let rec = String::from_utf8_lossy(&buf[..n]).into_owned();
                    let text = rec.split_once(';').map_or(rec.as_str(), |(_, t)| t);
                    let line = text.lines().next().unwrap_or("");
                    if is_complaint(line, allowed) {
                        found.push(line.to_owned());
                    }
                }
                // The log was overwritten under us: the next read gives the oldest record that is left.
                Err(libc::EPIPE) => found.push("the kernel log overflowed".to_owned()),
                Err(libc::EINTR) => {}
                Err(_) => return found,
            }
        }
    }
}

fn is_complaint(line: &str, allowed: &[&str]) -> bool {
    BAD.iter().any(|b| line.contains(b)) && !allowed.iter().any(|a| line.contains(a))
}

#[cfg(test)]
mod tests {
    use super::is_complaint;

    #[test]
    fn sees_complaints_only() {
        assert!(is_complaint(
            "WARNING: CPU: 1 PID: 70 at arch/x86/kvm/x86.c:1",
            &[]
        ));
        assert!(is_complaint(
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            &[]
        ));
        assert!(is_complaint("ODEBUG: free active (active state 0)", &[]));
        assert!(!is_complaint(
            "kvm: loading out-of-tree module taints kernel.",
            &[]
        ));
        assert!(!is_complaint("Call Trace:", &["Call Trace"]));
    }
}
