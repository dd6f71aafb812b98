// SPDX-License-Identifier: GPL-2.0
//! Being told when the scheduler takes the CPU away from a vCPU's thread, and gives it one again.
//!
//! Unsafe because: a preempt notifier is an intrusive list node with a raw callback.

use core::ffi::c_void;
use core::marker::PhantomPinned;

use kernel::prelude::*;
use kernel::types::Opaque;

use crate::sys::cpu::PreemptOff;
use crate::sys::ffi;

/// What happens at a context switch. Both run with preemption (and at sched-out interrupts) off, while the thread is
/// anywhere in [`Notifier::run`]: they share nothing with it that it may hold exclusively.
pub(crate) trait Hooks: Sync {
    /// The thread got this CPU.
    fn sched_in(&self, preempt: &PreemptOff);
    /// The thread is about to lose this CPU.
    fn sched_out(&self, preempt: &PreemptOff);
}

/// Storage for a preempt notifier.
#[pin_data]
pub(crate) struct Notifier {
    #[pin]
    raw: Opaque<[u64; 8]>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: used by one task at a time, as the lock that `run`'s callers hold ensures.
unsafe impl Send for Notifier {}
// SAFETY: as above.
unsafe impl Sync for Notifier {}

impl Notifier {
    /// An unregistered notifier.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(|slot: *mut [u64; 8]| {
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write([0; 8]) }
            }),
            _pin: PhantomPinned,
        })
    }

    /// Runs `body` with `hooks` told of each context switch of this task; `sched_in` is called first and
    /// `sched_out` last.
    ///
    /// One task at a time may use a notifier: `lock` is what makes its owner the only one (the vCPU's state, behind the same
    /// mutex as the notifier), and is lent to `body`.
    pub(crate) fn run<H: Hooks, T, R>(
        &self,
        hooks: &H,
        lock: &mut T,
        body: impl FnOnce(&mut T) -> R,
    ) -> R {
        /// # Safety
        /// Called by the scheduler with the `hooks` that were registered.
        unsafe extern "C" fn on_in<H: Hooks>(context: *mut c_void) {
            // SAFETY: `context` is `hooks`, which outlives the registration; the scheduler has preemption off.
            unsafe { (*(context as *const H)).sched_in(PreemptOff::assume()) }
        }
        /// # Safety
        /// As above.
        unsafe extern "C" fn on_out<H: Hooks>(context: *mut c_void) {
            // SAFETY: as above.
            unsafe { (*(context as *const H)).sched_out(PreemptOff::assume()) }
        }
        let raw = self.raw.get().cast::<c_void>();
        {
            // SAFETY: `raw` is pinned storage of the size that the shim checks, used by this task alone. It turns preemption off.
            let preempt = unsafe {
                ffi::lodge_sched_begin(
                    raw,
                    core::ptr::from_ref(hooks).cast(),
                    on_in::<H>,
                    on_out::<H>,
                );
                PreemptOff::adopt()
            };
            hooks.sched_in(&preempt);
        }
        let result = body(lock);
        let preempt = PreemptOff::new();
        hooks.sched_out(&preempt);
        core::mem::forget(preempt);
        // SAFETY: registered above by this task; it turns preemption on again in the place of `preempt`.
        unsafe { ffi::lodge_sched_end(raw) };
        result
    }
}

/// Preempt notifiers are on while the module is loaded.
pub(crate) struct Enabled(());

impl Enabled {
    /// Turns them on (a static key: may sleep).
    pub(crate) fn new() -> Self {
        // SAFETY: balanced by `drop`.
        unsafe { ffi::lodge_sched_module(true) };
        Self(())
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        // SAFETY: balances `new`.
        unsafe { ffi::lodge_sched_module(false) };
    }
}
