// SPDX-License-Identifier: GPL-2.0
//! The clock of the devices and a one-shot timer that kicks the vCPU's thread.
//!
//! Unsafe because: POSIX timers are reached through the C library.

use std::io::Error;
use std::mem::MaybeUninit;

use anyhow::Context as _;

use super::signals::kick_signal;

const NS_PER_SEC: u64 = 1_000_000_000;

/// A `timespec` of so many nanoseconds.
pub fn timespec(ns: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (ns / NS_PER_SEC) as i64,
        tv_nsec: (ns % NS_PER_SEC) as i64,
    }
}

/// Nanoseconds of the monotonic clock.
pub fn now_ns() -> u64 {
    let mut now = timespec(0);
    // SAFETY: fills one timespec; the monotonic clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    (now.tv_sec as u64)
        .saturating_mul(NS_PER_SEC)
        .saturating_add(now.tv_nsec as u64)
}

/// A timer whose signal goes to the thread that made it.
pub struct KickTimer {
    id: libc::timer_t,
    armed: Option<u64>,
}

impl KickTimer {
    /// A timer of the calling thread, not armed.
    pub fn new() -> anyhow::Result<Self> {
        // SAFETY: an all-zero sigevent is a valid one.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = kick_signal();
        // SAFETY: always succeeds.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut id = std::ptr::null_mut();
        // SAFETY: reads one sigevent and writes one timer id.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut id) } != 0 {
            return Err(Error::last_os_error()).context("timer_create");
        }
        Ok(Self { id, armed: None })
    }

    /// Kicks once at `deadline` of the monotonic clock; nothing disarms.
    pub fn arm(&mut self, deadline: Option<u64>) {
        if self.armed == deadline {
            return;
        }
        self.armed = deadline;
        // Zero disarms, so the earliest time is one nanosecond.
        let at = deadline.map_or(0, |ns| ns.max(1));
        let spec = libc::itimerspec {
            it_interval: timespec(0),
            it_value: timespec(at),
        };
        // SAFETY: the timer exists until drop; reads one itimerspec.
        unsafe { libc::timer_settime(self.id, libc::TIMER_ABSTIME, &spec, std::ptr::null_mut()) };
    }
}

impl Drop for KickTimer {
    fn drop(&mut self) {
        // SAFETY: the timer was created and is deleted once.
        unsafe { libc::timer_delete(self.id) };
    }
}
