// SPDX-License-Identifier: GPL-2.0
//! Which settings of the time-stamp counters of a VM's vCPUs are meant to be in step.
//!
//! User space sets one counter after the other, and time passes between the calls. So a value of 0, or one near to what the last value
//! has become since, means "in step with the others": the vCPU gets the very offset that they have, and there is no skew.
#![forbid(unsafe_code)]

use crate::model::pvclock::ticks;

/// How a counter runs: its offset, and one moment at which its value is known, for counters that the hardware does not keep on time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// What it is ahead of the host's counter, scaled.
    pub offset: u64,
    /// At this time of the host's, in nanoseconds ...
    pub ns: u64,
    /// ... it had this value.
    pub value: u64,
}

/// The moment at which a vCPU's counter is set.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The host's time, in nanoseconds.
    pub ns: u64,
    /// The host's counter, scaled for the vCPU.
    pub scaled: u64,
    /// The rate that the vCPU's counter is to have, in kHz.
    pub khz: u32,
    /// The counters of the host's CPUs are one.
    pub stable: bool,
}

/// What a VM remembers of the last setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscSync {
    /// That of the vCPUs that are in step.
    course: Course,
    /// The rate of the last counter that was set; 0 before.
    khz: u32,
    /// When that was.
    ns: u64,
    /// The value that it got.
    value: u64,
    /// User space has set one, so its values mean something.
    user_set: bool,
    /// The host's counter as the course goes by it.
    loss: Loss,
}

/// How much of what the host's counter lost in suspends was made up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss(u64);

impl Loss {
    /// Nothing has to be made up for of this total.
    pub const fn after(total: u64) -> Self {
        Self(total)
    }

    /// What is still to be made up for of this total; then nothing.
    pub fn take(&mut self, total: u64) -> u64 {
        total.wrapping_sub(core::mem::replace(&mut self.0, total))
    }
}

impl TscSync {
    /// User space sets a vCPU's counter to `value`; None: the vCPU is new.
    pub fn write(&mut self, value: Option<u64>, at: &Moment) -> Course {
        let written = value.unwrap_or(0);
        let near = written == 0 || self.user_set && self.is_near(written, at);
        let mut set = Course {
            offset: written.wrapping_sub(at.scaled),
            ns: at.ns,
            value: written,
        };
        let mut reads = written;
        if near && self.has_rate(at.khz) {
            set = self.course;
            if !at.stable {
                // An offset is good on one CPU only: the value counts.
                reads = set.value_at(at.ns, at.khz);
                set.offset = reads.wrapping_sub(at.scaled);
            }
        }
        self.note(value.is_some(), set, reads, at);
        set
    }

    /// User space sets the offset of a vCPU's counter.
    pub fn set_offset(&mut self, offset: u64, at: &Moment) -> Course {
        let reads = at.scaled.wrapping_add(offset);
        let set = if self.has_rate(at.khz) && self.course.offset == offset {
            self.course
        } else {
            Course {
                offset,
                ns: at.ns,
                value: reads,
            }
        };
        self.note(true, set, reads, at);
        set
    }

    /// The host's counter has lost so much in all; `scaled` is what a part of it means to the counter that is set next.
    pub fn make_up(&mut self, total: u64, scaled: impl FnOnce(u64) -> u64) {
        let lost = self.loss.take(total);
        if lost != 0 {
            // Those in step make up for it too. How far they should have come since is no longer known.
            self.course.offset = self.course.offset.wrapping_add(scaled(lost));
            self.user_set = false;
        }
    }

    fn note(&mut self, by_user: bool, course: Course, value: u64, at: &Moment) {
        *self = Self {
            course,
            khz: at.khz,
            ns: at.ns,
            value,
            user_set: self.user_set || by_user,
            loss: self.loss,
        };
    }

    /// Counters of different rates are never in step.
    fn has_rate(&self, khz: u32) -> bool {
        khz != 0 && khz == self.khz
    }

    /// Is `value` less than a second away from what the last one has become?
    fn is_near(&self, value: u64, at: &Moment) -> bool {
        let second = u64::from(at.khz).wrapping_mul(1000);
        let due = self
            .value
            .wrapping_add(ticks(at.ns.wrapping_sub(self.ns), at.khz));
        value < due.wrapping_add(second) && value.wrapping_add(second) > due
    }
}

impl Course {
    /// The value at this time of the host's, at a rate of `khz`.
    pub fn value_at(&self, ns: u64, khz: u32) -> u64 {
        self.value
            .wrapping_add(ticks(ns.wrapping_sub(self.ns), khz))
    }
}

/// The later of two values that are less than half of a counter's round apart.
pub const fn later(a: u64, b: u64) -> u64 {
    if b.wrapping_sub(a) as i64 > 0 {
        b
    } else {
        a
    }
}

#[cfg(test)]
#[path = "tsc_sync_tests.rs"]
mod tests;
