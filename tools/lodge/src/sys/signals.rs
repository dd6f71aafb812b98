// SPDX-License-Identifier: GPL-2.0
//! Kicks: how another thread, a timer or a signal gets the vCPU's thread out of KVM_RUN or out of its sleep.
//!
//! The kick signal's handler sets `immediate_exit` in the run page, so that a signal that arrives between the last check
//! and KVM_RUN is not lost: KVM_RUN returns at once. What happened is in atomics that the vCPU's thread takes.
//!
//! Unsafe because: a signal handler may touch only what is async-signal-safe, and writes the shared run page.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicU8, Ordering};

use anyhow::Context as _;
use kvm_bindings::kvm_run;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{register_signal_handler, SIGRTMIN};

use super::kvm::RunPage;

static RUN_PAGE: AtomicPtr<kvm_run> = AtomicPtr::new(std::ptr::null_mut());
static VCPU_THREAD: AtomicU64 = AtomicU64::new(0);
static WAKE_FD: AtomicI32 = AtomicI32::new(-1);
static KICKED: AtomicBool = AtomicBool::new(false);
static STOP: AtomicU8 = AtomicU8::new(0);

/// Why the run has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The user asked for it, or a signal did.
    Interrupted,
    /// The time limit has passed.
    TimedOut,
}

/// The signal that kicks.
pub fn kick_signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    KICKED.store(true, Ordering::SeqCst);
    let run = RUN_PAGE.load(Ordering::SeqCst);
    if !run.is_null() {
        // SAFETY: `Kicks` clears the pointer before the vCPU is closed; the field is one byte that the kernel reads.
        unsafe { std::ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) }
    }
}

extern "C" fn on_stop(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    request_stop(Stop::Interrupted);
}

/// Ends the run; the first reason stays. Async-signal-safe, any thread.
pub fn request_stop(why: Stop) {
    let code = match why {
        Stop::Interrupted => 1,
        Stop::TimedOut => 2,
    };
    let _ = STOP.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
    kick();
}

/// Why the run has to end, if it has to.
pub fn stop() -> Option<Stop> {
    match STOP.load(Ordering::SeqCst) {
        0 => None,
        1 => Some(Stop::Interrupted),
        _ => Some(Stop::TimedOut),
    }
}

/// Gets the vCPU's thread to look at what happened. Async-signal-safe, any thread.
pub fn kick() {
    let fd = WAKE_FD.load(Ordering::SeqCst);
    if fd >= 0 {
        let one = 1u64.to_ne_bytes();
        // SAFETY: a write of eight bytes from a live buffer; a failure (the counter is full) wakes as well.
        unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
    }
    let thread = VCPU_THREAD.load(Ordering::SeqCst);
    if thread != 0 {
        // SAFETY: the id is that of a thread that runs as long as `Kicks` exists.
        unsafe { libc::pthread_kill(thread, kick_signal()) };
    }
}

/// The handlers, set up for the thread that made it; dropped before its vCPU is closed.
pub struct Kicks {
    wake: EventFd,
}

impl Kicks {
    /// Makes the calling thread the vCPU's thread. SIGINT, SIGTERM and SIGHUP end the run from now on.
    pub fn new(run: RunPage) -> anyhow::Result<Self> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("eventfd")?;
        WAKE_FD.store(wake.as_raw_fd(), Ordering::SeqCst);
        RUN_PAGE.store(run.as_ptr(), Ordering::SeqCst);
        // SAFETY: always succeeds.
        VCPU_THREAD.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
        register_signal_handler(kick_signal(), on_kick).context("sigaction")?;
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            register_signal_handler(signal, on_stop).context("sigaction")?;
        }
        Ok(Self { wake })
    }

    /// Whether there was a kick since the last call. One that comes while `immediate_exit` is reset is taken too: none
    /// leaves the field set without the flag, or the flag unseen with the field clear.
    pub fn take(&self) -> bool {
        let mut kicked = false;
        while KICKED.swap(false, Ordering::SeqCst) {
            kicked = true;
            let run = RUN_PAGE.load(Ordering::SeqCst);
            // SAFETY: the page is mapped while `self` exists.
            unsafe { std::ptr::addr_of_mut!((*run).immediate_exit).write_volatile(0) }
        }
        kicked
    }

    /// Sleeps until a kick or for `ns` nanoseconds.
    pub fn sleep(&self, ns: Option<u64>) {
        let timeout = ns.map(super::timer::timespec);
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        let mut fd = libc::pollfd {
            fd: self.wake.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd and a timespec, both alive during the call. A signal ends it early, as it should.
        unsafe { libc::ppoll(&mut fd, 1, timeout, std::ptr::null()) };
        let _ = self.wake.read();
    }
}

impl Drop for Kicks {
    fn drop(&mut self) {
        RUN_PAGE.store(std::ptr::null_mut(), Ordering::SeqCst);
        VCPU_THREAD.store(0, Ordering::SeqCst);
        WAKE_FD.store(-1, Ordering::SeqCst);
    }
}
