// SPDX-License-Identifier: GPL-2.0
//! Whether something happened to the host's time-stamp counter that a vCPU's has to make up for: a suspend.
//!
//! The scheduler's callback looks, so that neither an entry nor an exit has to; what it found is dealt with before the next entry, and before
//! an ioctl does anything.

use crate::sys::cpu::{self, Flag, Word};

/// What a vCPU knows of the host's counter. Used by the thread that has the vCPU loaded, and its scheduler callbacks.
pub(crate) struct HostTsc {
    /// The suspends that it knows of.
    resumes: Word,
    /// The counter is not what it was.
    changed: Flag,
}

impl HostTsc {
    pub(crate) fn new() -> Self {
        Self {
            resumes: Word::new(),
            changed: Flag::new(false),
        }
    }

    /// The vCPU's thread got a CPU.
    pub(crate) fn arrive(&self) {
        let resumes = cpu::tsc_resumes();
        if resumes != self.resumes.get() {
            self.resumes.set(resumes);
            self.changed.set(true);
        }
    }

    /// The guest must not be entered before [`HostTsc::take`]. With interrupts off the answer is good until they are on again.
    #[inline(always)]
    pub(crate) fn changed(&self) -> bool {
        self.changed.get()
    }

    /// Tells no more of it.
    pub(crate) fn take(&self) {
        self.changed.set(false);
    }
}
