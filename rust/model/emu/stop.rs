// SPDX-License-Identifier: GPL-2.0
//! Why the code of an instruction stopped early, in one word: it is handed up through every function of the emulator, and as a word
//! it takes a register instead of a copy at each of them. What is larger than that, the question that has no answer yet, stays in
//! the [`super::cx::Cx`].
#![forbid(unsafe_code)]

use core::num::NonZeroU64;

use super::need::{TaskReason, TaskSwitch};
use crate::model::event::{vector, Exception};

/// Why the instruction's code stopped early; [`Stop::why`] says it in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop(NonZeroU64);

/// What the instruction's code returns.
pub(super) type Run<T> = Result<T, Stop>;

/// What a [`Stop`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// An answer is missing, to the question that the [`super::cx::Cx`] keeps.
    Need,
    /// It faults.
    Fault(Exception),
    /// The instruction switches to another task.
    TaskSwitch(TaskSwitch),
    /// Not implemented.
    Unhandled,
}

// Bits 0 to 7: which. Bits 8 to 15: vector, or reason of a task switch. Bits 32 to 63: error code, or selector.
const NEED: u64 = 1;
const FAULT: u64 = 2;
const FAULT_WITH_ERROR: u64 = 3;
const TASK_SWITCH: u64 = 4;
const UNHANDLED: u64 = 5;

impl Stop {
    /// An answer is missing.
    pub(super) const NEED: Self = Self::new(NEED, 0, 0);
    /// Not implemented.
    pub(super) const UNHANDLED: Self = Self::new(UNHANDLED, 0, 0);

    const fn new(which: u64, low: u8, high: u32) -> Self {
        // `which` is not zero, so neither is the word.
        match NonZeroU64::new(which | (low as u64) << 8 | (high as u64) << 32) {
            Some(word) => Self(word),
            None => Self(NonZeroU64::MIN),
        }
    }

    /// It raises an exception without an error code.
    pub(super) const fn fault(vector: u8) -> Self {
        Self::new(FAULT, vector, 0)
    }

    /// It raises an exception with an error code.
    pub(super) const fn fault_with(vector: u8, error: u32) -> Self {
        Self::new(FAULT_WITH_ERROR, vector, error)
    }

    /// The instruction switches to another task.
    pub(super) const fn task_switch(selector: u16, reason: TaskReason) -> Self {
        Self::new(TASK_SWITCH, reason as u8, selector as u32)
    }

    /// Whether it faults.
    pub(super) const fn is_fault(self) -> bool {
        matches!(self.0.get() & 0xff, FAULT | FAULT_WITH_ERROR)
    }

    /// The same, of the delivery of an event that no instruction asked for: error codes that name a selector say that (the bit EXT).
    pub(super) const fn external(self) -> Self {
        match self.why() {
            Why::Fault(Exception {
                vector: vector @ (vector::TS | vector::NP | vector::SS | vector::GP),
                error: Some(error),
                ..
            }) => Self::fault_with(vector, error | 1),
            _ => self,
        }
    }

    /// What it is.
    pub(super) const fn why(self) -> Why {
        let word = self.0.get();
        let (low, high) = ((word >> 8) as u8, (word >> 32) as u32);
        match word & 0xff {
            NEED => Why::Need,
            FAULT => Why::Fault(Exception::new(low)),
            FAULT_WITH_ERROR => Why::Fault(Exception::with_error(low, high)),
            TASK_SWITCH => Why::TaskSwitch(TaskSwitch {
                selector: high as u16,
                reason: TaskReason::from_code(low),
                insn_len: 0,
            }),
            _ => Why::Unhandled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_was_put_into_it() {
        assert_eq!(Stop::NEED.why(), Why::Need);
        assert_eq!(Stop::UNHANDLED.why(), Why::Unhandled);
        for vector in 0..32 {
            let plain = Stop::fault(vector);
            assert_eq!(plain.why(), Why::Fault(Exception::new(vector)));
            assert!(plain.is_fault());
            for error in [0, 2, 0xfffc, u32::MAX] {
                let with = Stop::fault_with(vector, error);
                assert_eq!(with.why(), Why::Fault(Exception::with_error(vector, error)));
                assert!(with.is_fault());
            }
        }
        use TaskReason::*;
        for reason in [Call, Iret, Jmp, Gate] {
            for selector in [0, 8, 0xffff] {
                let stop = Stop::task_switch(selector, reason);
                assert_eq!(
                    stop.why(),
                    Why::TaskSwitch(TaskSwitch {
                        selector,
                        reason,
                        insn_len: 0
                    })
                );
                assert!(!stop.is_fault());
            }
        }
        let outside = |stop: Stop| stop.external().why();
        let gp = Exception::with_error(vector::GP, 0x1b);
        assert_eq!(outside(Stop::fault_with(vector::GP, 0x1a)), Why::Fault(gp));
        for stop in [
            Stop::fault(vector::GP),
            Stop::fault_with(vector::AC, 0),
            Stop::NEED,
            Stop::task_switch(8, Gate),
        ] {
            assert_eq!(outside(stop), stop.why());
        }
        assert!(!Stop::NEED.is_fault() && !Stop::UNHANDLED.is_fault());
    }
}
