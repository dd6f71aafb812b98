// SPDX-License-Identifier: GPL-2.0
//! Errors of the KVM interface: which ioctl, which errno, and what to do about it.

use std::fmt;

use vmm_sys_util::errno;

/// A failed ioctl, or the open of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoctlError {
    ioctl: &'static str,
    errno: i32,
}

/// Names the ioctl of an error.
pub trait Context<T> {
    /// Names the ioctl of an error.
    fn ioctl(self, name: &'static str) -> Result<T, IoctlError>;
}

impl<T> Context<T> for Result<T, errno::Error> {
    fn ioctl(self, name: &'static str) -> Result<T, IoctlError> {
        self.map_err(|e| IoctlError {
            ioctl: name,
            errno: e.errno(),
        })
    }
}

/// The symbol of the error numbers that KVM uses.
fn symbol(number: i32) -> &'static str {
    match number {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::EMFILE => "EMFILE",
        libc::ENOTTY => "ENOTTY",
        libc::ENOSYS => "ENOSYS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        _ => "unknown",
    }
}

/// What the user can do.
fn advice(ioctl: &str, number: i32) -> &'static str {
    match (ioctl, number) {
        ("open", libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "load the module (insmod kvm.ko; dmesg says why it refused), or name another device with --device"
        }
        ("open", libc::EACCES | libc::EPERM) => "run as root, or join the group that owns the device",
        (_, libc::ENOTTY | libc::ENOSYS) => "this device does not have the ioctl: see 'lodge info'",
        (_, libc::EBUSY) => "another hypervisor holds the processor's virtualization: stop it first",
        (_, libc::ENOMEM) => "the host is out of memory: use a smaller --memory",
        (_, libc::EIO) => "the VM is dead, or belongs to another process: see dmesg",
        (_, libc::EMFILE) => "raise the limit of open files (ulimit -n)",
        ("KVM_SET_SREGS" | "KVM_SET_CPUID2" | "KVM_SET_USER_MEMORY_REGION", libc::EINVAL) => {
            "the device refuses this state; report it with the output of 'lodge info'"
        }
        _ => "see dmesg for what the module says",
    }
}

impl fmt::Display for IoctlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = errno::Error::new(self.errno).to_string();
        // The number that the standard library adds says less than the symbol.
        let text = text.split(" (os error").next().unwrap_or_default();
        let (symbol, advice) = (symbol(self.errno), advice(self.ioctl, self.errno));
        write!(f, "{} failed: {text}, {symbol}; {advice}", self.ioctl)
    }
}

impl std::error::Error for IoctlError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_ioctl_errno_and_remedy() {
        let failed: Result<(), _> = Err(errno::Error::new(libc::EBUSY));
        let text = failed.ioctl("KVM_CREATE_VM").map_err(|e| e.to_string());
        let Err(text) = text else {
            unreachable!("it failed")
        };
        assert!(text.starts_with("KVM_CREATE_VM failed: "), "{text}");
        assert!(
            text.contains("EBUSY") && text.contains("another hypervisor"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_device_says_how_to_get_it() {
        let error = IoctlError {
            ioctl: "open",
            errno: libc::ENOENT,
        };
        assert!(error.to_string().contains("insmod kvm.ko"));
    }
}
