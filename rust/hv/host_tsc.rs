// SPDX-License-Identifier: GPL-2.0
//! Whether something happened to the host's time-stamp counter that a vCPU's has to make up for: a suspend, or another CPU where
//! the CPUs' counters differ.
//!
//! The scheduler's callbacks look, so that neither an entry nor an exit has to; what they found is dealt with before the next entry, and before
//! an ioctl does anything.

use crate::sys::cpu::{self, Flag, PreemptOff, Word};

/// What a vCPU knows of the host's counter. Used by the thread that has the vCPU loaded, and its scheduler callbacks.
pub(crate) struct HostTsc {
    /// [`cpu::tsc_place`], where its thread was last; 0: nowhere.
    place: Word,
    /// The vCPU's offset is not good here.
    changed: Flag,
    /// The CPUs' counters differ.
    unstable: Flag,
    /// The counter of the last CPU for which the offset was good, when it was left; 0: none.
    left: Word,
}

/// Where a vCPU comes from whose counter cannot go by the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// It can.
    Here,
    /// From a CPU (it may be this one) whose counter was that.
    Elsewhere(u64),
    /// None is known.
    Nowhere,
}

impl HostTsc {
    pub(crate) fn new() -> Self {
        Self {
            place: Word::new(),
            changed: Flag::new(false),
            unstable: Flag::new(false),
            left: Word::new(),
        }
    }

    /// The vCPU's thread got a CPU.
    #[inline]
    pub(crate) fn arrive(&self) {
        let place = cpu::tsc_place();
        if place != self.place.get() {
            self.moved(place);
        }
    }

    #[cold]
    fn moved(&self, place: u64) {
        let resumed = (place ^ self.place.get()) >> 32 != 0;
        let unstable = !cpu::tsc_stable();
        self.place.set(place);
        self.unstable.set(unstable);
        if resumed || unstable {
            self.changed.set(true);
        }
    }

    /// The vCPU's thread loses its CPU.
    #[inline]
    pub(crate) fn leave(&self) {
        // Always: the counters may be found to differ before it arrives.
        if !self.changed.get() {
            self.left.set(cpu::rdtsc());
        }
    }

    /// The guest must not be entered before [`HostTsc::take`]. With interrupts off the answer is good until they are on again.
    #[inline(always)]
    pub(crate) fn changed(&self) -> bool {
        self.changed.get()
    }

    /// The caller makes the offset good for this CPU, which it keeps meanwhile.
    pub(crate) fn take(&self, _preempt: &PreemptOff) -> From {
        self.changed.set(false);
        match (self.unstable.get(), self.left.get()) {
            (false, _) => From::Here,
            (true, 0) => From::Nowhere,
            (true, left) => From::Elsewhere(left),
        }
    }
}
