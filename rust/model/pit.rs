// SPDX-License-Identifier: GPL-2.0
#![forbid(unsafe_code)]
//! The 8254 interval timer of a PC with port 0x61, the gate and speaker register.
//!
//! Manual: Intel "82C54 CHMOS Programmable Interval Timer", "Mode Definitions", "Counter Latch Command" and "Read-Back
//! Command". Time is an argument, in nanoseconds of any monotonic clock; nothing runs between calls. A counter is
//! described by when it was loaded, and its count and output at a later clock pulse follow by arithmetic, so that
//! a long time without calls costs nothing and loses nothing.
//!
//! Counters 0 and 1 have their gates high for good; bit 0 of port 0x61 is the gate of counter 2. Counter 0 drives IRQ0.

#[path = "pit_counter.rs"]
mod counter;

use counter::{Access, Counter};

/// The clock of all three counters, in Hz.
pub const PIT_HZ: u64 = 1_193_182;
/// First of the four ports: counters 0, 1, 2 and the control word.
pub const PIT_PORT: u16 = 0x40;
/// The gate and speaker register.
pub const SPEAKER_PORT: u16 = 0x61;

const NS_PER_SEC: u64 = 1_000_000_000;
/// The refresh request toggles every 15.085 microseconds on a PC.
const REFRESH_NS: u64 = 15_085;
const CONTROL_PORT: u16 = 0x43;
const READ_BACK: u8 = 3;
const READ_BACK_NO_COUNT: u8 = 1 << 5;
const READ_BACK_NO_STATUS: u8 = 1 << 4;
const SPEAKER_GATE2: u8 = 1 << 0;
const SPEAKER_WRITABLE: u8 = 0x0f;
const SPEAKER_REFRESH: u8 = 1 << 4;
const SPEAKER_OUT2: u8 = 1 << 5;

/// Clock pulses up to and including `ns`, exactly: no intermediate value needs more than 64 bits.
pub fn ticks_at(ns: u64) -> u64 {
    let whole = (ns / NS_PER_SEC).wrapping_mul(PIT_HZ);
    whole.wrapping_add((ns % NS_PER_SEC).wrapping_mul(PIT_HZ) / NS_PER_SEC)
}

/// The first nanosecond at which `ticks_at` reaches `tick`; saturates after 584 years.
pub fn ns_of(tick: u64) -> u64 {
    let whole = (tick / PIT_HZ).saturating_mul(NS_PER_SEC);
    whole.saturating_add((tick % PIT_HZ).wrapping_mul(NS_PER_SEC).div_ceil(PIT_HZ))
}

/// What the owner of the model has to do after a call.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PitWork {
    /// Rising edges of IRQ0 since the last report.
    pub rises: u64,
    /// When the next one comes, in nanoseconds of the caller's clock, if nothing is written until then.
    pub next: Option<u64>,
}

/// The timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pit {
    counters: [Counter; 3],
    speaker: u8,
    /// The latest time seen; an earlier one counts as this one.
    now_ns: u64,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Pit {
    /// The timer after power-on: nothing is programmed, so nothing ticks.
    pub fn new(now_ns: u64) -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            speaker: 0,
            now_ns,
        }
    }

    /// Whether `port` belongs to the timer.
    pub const fn owns(port: u16) -> bool {
        matches!(port, PIT_PORT..=CONTROL_PORT | SPEAKER_PORT)
    }

    /// Reports what has happened up to `now_ns`.
    pub fn advance(&mut self, now_ns: u64) -> PitWork {
        let now = self.tick(now_ns);
        let [counter, _, _] = &mut self.counters;
        let rises = counter.take_rises(now);
        PitWork {
            rises,
            next: counter.next_rise(now).map(ns_of),
        }
    }

    /// A byte read from one of the timer's ports; the control port and any other read as all ones.
    pub fn read(&mut self, port: u16, now_ns: u64) -> u8 {
        let now = self.tick(now_ns);
        if port == SPEAKER_PORT {
            return self.read_speaker(now);
        }
        match self
            .counters
            .get_mut(usize::from(port.wrapping_sub(PIT_PORT)))
        {
            Some(counter) => counter.read(now),
            None => 0xff,
        }
    }

    /// A byte written to one of the timer's ports; a write to another port does nothing.
    pub fn write(&mut self, port: u16, value: u8, now_ns: u64) -> PitWork {
        let now = self.tick(now_ns);
        if port == SPEAKER_PORT {
            self.speaker = value & SPEAKER_WRITABLE;
            let [_, _, counter] = &mut self.counters;
            counter.set_gate(value & SPEAKER_GATE2 != 0, now);
        } else if port == CONTROL_PORT {
            self.control(value, now);
        } else if let Some(c) = self
            .counters
            .get_mut(usize::from(port.wrapping_sub(PIT_PORT)))
        {
            c.write(value, now);
        }
        self.advance(now_ns)
    }

    fn tick(&mut self, now_ns: u64) -> u64 {
        self.now_ns = self.now_ns.max(now_ns);
        ticks_at(self.now_ns)
    }

    fn read_speaker(&mut self, now: u64) -> u8 {
        let [_, _, counter] = &mut self.counters;
        let mut value = self.speaker;
        if counter.output(now) {
            value |= SPEAKER_OUT2;
        }
        if (self.now_ns / REFRESH_NS) & 1 != 0 {
            value |= SPEAKER_REFRESH;
        }
        value
    }

    fn control(&mut self, value: u8, now: u64) {
        let select = value >> 6;
        if select == READ_BACK {
            for (index, counter) in self.counters.iter_mut().enumerate() {
                if value & 2u8.wrapping_shl(index as u32) != 0 {
                    if value & READ_BACK_NO_COUNT == 0 {
                        counter.latch_count(now);
                    }
                    if value & READ_BACK_NO_STATUS == 0 {
                        counter.latch_status(now);
                    }
                }
            }
        } else if let Some(counter) = self.counters.get_mut(usize::from(select)) {
            match Access::from_control(value) {
                Some(access) => counter.program(access, value, now),
                None => counter.latch_count(now),
            }
        }
    }
}

#[cfg(test)]
#[path = "pit_tests.rs"]
mod tests;
