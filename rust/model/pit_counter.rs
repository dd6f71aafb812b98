// SPDX-License-Identifier: GPL-2.0
#![forbid(unsafe_code)]
//! One counter of the 8254. Times are clock pulses (ticks) since the caller's zero.
//!
//! A written count moves into the counting element at the clock pulse after the write or, in modes 2 and 3 while they
//! run, at the end of the current cycle or half cycle. `Load` says when that happened; `Load::elapsed` is the number of
//! decrementing pulses since, and count, output and edges are functions of it.

/// Which bytes of the count a program transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Low,
    High,
    LowThenHigh,
}

impl Access {
    /// From a control word; nothing means the counter latch command.
    pub(super) fn from_control(value: u8) -> Option<Self> {
        match (value >> 4) & 3 {
            1 => Some(Self::Low),
            2 => Some(Self::High),
            3 => Some(Self::LowThenHigh),
            _ => None,
        }
    }

    fn status_bits(self) -> u8 {
        match self {
            Self::Low => 0x10,
            Self::High => 0x20,
            Self::LowThenHigh => 0x30,
        }
    }
}

/// The six modes; control words 6 and 7 mean 2 and 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    TerminalCount,
    OneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

impl Mode {
    fn from_control(value: u8) -> Self {
        match (value >> 1) & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    fn status_bits(self) -> u8 {
        match self {
            Self::TerminalCount => 0,
            Self::OneShot => 0x2,
            Self::RateGenerator => 0x4,
            Self::SquareWave => 0x6,
            Self::SoftwareStrobe => 0x8,
            Self::HardwareStrobe => 0xa,
        }
    }

    /// Counting starts at a rising edge of the gate, whose level does not matter otherwise.
    fn is_triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }

    fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }
}

/// The counting element since it was last loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    /// The count it was loaded with, 1 to 65536.
    count: u32,
    /// Pulses counted before `at`.
    done: u64,
    /// The tick of the load, or of the last time that counting went on.
    at: u64,
    /// Whether pulses after `at` count.
    running: bool,
    /// The output until `at`.
    before: bool,
}

impl Load {
    fn elapsed(&self, now: u64) -> u64 {
        let since = if self.running {
            now.saturating_sub(self.at)
        } else {
            0
        };
        self.done.saturating_add(since)
    }
}

/// A count that waits for the end of the cycle in modes 2 and 3, or for a trigger in modes 1 and 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    count: u32,
    /// The tick at which the cycle ends; none while only a trigger can load.
    switch_at: Option<u64>,
    /// Whether the low half of a square wave begins there.
    into_low_half: bool,
}

/// One counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    mode: Mode,
    access: Access,
    bcd: bool,
    gate: bool,
    low_byte: Option<u8>,
    read_high_next: bool,
    latched: Option<u16>,
    status: Option<u8>,
    load: Option<Load>,
    waiting: Option<Waiting>,
    /// Rising edges of the output that are counted but not yet reported.
    rises: u64,
    /// The tick up to which they are counted.
    seen: u64,
}

impl Counter {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            access: Access::LowThenHigh,
            bcd: false,
            gate,
            low_byte: None,
            read_high_next: false,
            latched: None,
            status: None,
            load: None,
            waiting: None,
            rises: 0,
            seen: 0,
        }
    }

    /// A control word for this counter.
    pub(super) fn program(&mut self, access: Access, control: u8, now: u64) {
        let was = self.output(now);
        self.mode = Mode::from_control(control);
        self.access = access;
        self.bcd = control & 1 != 0;
        self.low_byte = None;
        self.read_high_next = false;
        self.latched = None;
        self.status = None;
        self.load = None;
        self.waiting = None;
        self.note_edge(was, now);
    }

    /// A byte of the count.
    pub(super) fn write(&mut self, value: u8, now: u64) {
        match (self.access, self.low_byte) {
            (Access::Low, _) => self.set_count(u16::from(value), now),
            (Access::High, _) => self.set_count(u16::from_le_bytes([0, value]), now),
            (Access::LowThenHigh, Some(low)) => {
                self.low_byte = None;
                self.set_count(u16::from_le_bytes([low, value]), now);
            }
            (Access::LowThenHigh, None) => {
                self.sync(now);
                self.low_byte = Some(value);
                // In mode 0 the first byte stops the count and the output goes low.
                if self.mode == Mode::TerminalCount {
                    self.load = None;
                }
            }
        }
    }

    /// A byte of the latched status, the latched count or the count.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = match self.latched {
            Some(count) => count.to_le_bytes(),
            None => self.encoded(now).to_le_bytes(),
        };
        match self.access {
            Access::Low => self.latched = None,
            Access::High => {
                self.latched = None;
                return high;
            }
            Access::LowThenHigh if self.read_high_next => {
                self.read_high_next = false;
                self.latched = None;
                return high;
            }
            Access::LowThenHigh => self.read_high_next = true,
        }
        low
    }

    /// The counter latch command; a count already latched stays.
    pub(super) fn latch_count(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.encoded(now));
        }
    }

    /// The status half of the read-back command.
    pub(super) fn latch_status(&mut self, now: u64) {
        if self.status.is_some() {
            return;
        }
        let output = u8::from(self.output(now)) << 7;
        let null = u8::from(self.is_null(now)) << 6;
        let mode = self.mode.status_bits() | u8::from(self.bcd);
        self.status = Some(output | null | self.access.status_bits() | mode);
    }

    /// The gate input.
    pub(super) fn set_gate(&mut self, high: bool, now: u64) {
        if high == self.gate {
            return;
        }
        let was = self.output(now);
        self.gate = high;
        if self.mode.is_triggered() {
            if high {
                self.reload(was || self.mode == Mode::HardwareStrobe, now);
            }
        } else if self.mode.is_periodic() && high {
            self.reload(true, now);
        } else if let Some(load) = &mut self.load {
            load.done = load.elapsed(now);
            load.at = load.at.max(now);
            load.running = high;
            if let (Some(waiting), true) = (&mut self.waiting, self.mode.is_periodic()) {
                waiting.switch_at = None;
            }
        }
        self.note_edge(was, now);
    }

    /// The output at `now`.
    pub(super) fn output(&mut self, now: u64) -> bool {
        self.sync(now);
        match &self.load {
            None => self.mode != Mode::TerminalCount,
            Some(_) if self.mode.is_periodic() && !self.gate => true,
            Some(load) if now < load.at && load.done == 0 => load.before,
            Some(load) => level(self.mode, load.count, load.elapsed(now)),
        }
    }

    /// Rising edges of the output since the last call.
    pub(super) fn take_rises(&mut self, now: u64) -> u64 {
        self.sync(now);
        core::mem::take(&mut self.rises)
    }

    /// The tick of the next rising edge, if nothing is written until then.
    pub(super) fn next_rise(&mut self, now: u64) -> Option<u64> {
        self.sync(now);
        let load = self.load.filter(|load| load.running)?;
        let next = next_edge(self.mode, load.count, load.elapsed(now))
            .map(|pulse| load.at.saturating_add(pulse.saturating_sub(load.done)));
        match (self.waiting, next) {
            (
                Some(Waiting {
                    switch_at: Some(switch),
                    into_low_half,
                    count,
                }),
                _,
            ) => {
                let low = if into_low_half { high_pulses(count) } else { 0 };
                let new = next_edge(self.mode, count, low)
                    .map(|pulse| switch.saturating_add(pulse.saturating_sub(low)));
                next.filter(|tick| *tick <= switch).or(new)
            }
            _ => next,
        }
    }

    /// A complete count has been written.
    fn set_count(&mut self, raw: u16, now: u64) {
        let was = self.output(now);
        let count = decode(raw, self.bcd);
        if self.mode.is_triggered() {
            self.waiting = Some(Waiting {
                count,
                switch_at: None,
                into_low_half: false,
            });
        } else if let (true, Some(load)) = (self.mode.is_periodic(), self.load) {
            let (switch_at, into_low_half) = cycle_end(self.mode, &load, now);
            let switch_at = load.running.then_some(switch_at);
            self.waiting = Some(Waiting {
                count,
                switch_at,
                into_low_half,
            });
        } else {
            let before = self.mode != Mode::TerminalCount;
            let at = now.saturating_add(1);
            self.load = Some(Load {
                count,
                done: 0,
                at,
                running: self.gate,
                before,
            });
        }
        self.note_edge(was, now);
    }

    /// A trigger: the counting element is loaded at the next pulse.
    fn reload(&mut self, before: bool, now: u64) {
        let count = self
            .waiting
            .take()
            .map(|w| w.count)
            .or(self.load.map(|load| load.count));
        if let Some(count) = count {
            let at = now.saturating_add(1);
            self.load = Some(Load {
                count,
                done: 0,
                at,
                running: true,
                before,
            });
        }
    }

    /// Makes a count effective whose cycle has ended, and counts the edges up to `now`.
    fn sync(&mut self, now: u64) {
        if let Some(Waiting {
            count,
            switch_at: Some(switch),
            into_low_half,
        }) = self.waiting
        {
            if now >= switch {
                self.count_rises(switch);
                let done = if into_low_half { high_pulses(count) } else { 0 };
                self.load = Some(Load {
                    count,
                    done,
                    at: switch,
                    running: true,
                    before: !into_low_half,
                });
                self.waiting = None;
            }
        }
        self.count_rises(now);
    }

    fn count_rises(&mut self, now: u64) {
        if let Some(load) = self.load.filter(|load| load.running) {
            let from = edges_until(self.mode, load.count, load.elapsed(self.seen));
            let to = edges_until(self.mode, load.count, load.elapsed(now));
            self.rises = self.rises.saturating_add(to.saturating_sub(from));
        }
        self.seen = self.seen.max(now);
    }

    /// Counts the edge that a write to the counter or its gate made by itself.
    fn note_edge(&mut self, was: bool, now: u64) {
        self.seen = self.seen.max(now);
        if !was && self.output(now) {
            self.rises = self.rises.saturating_add(1);
        }
    }

    /// Whether a written count has not reached the counting element, the status byte's null count flag.
    fn is_null(&self, now: u64) -> bool {
        self.waiting.is_some() || self.load.is_none_or(|load| now < load.at && load.done == 0)
    }

    fn encoded(&mut self, now: u64) -> u16 {
        self.sync(now);
        let value = match self.load {
            Some(load) => remaining(self.mode, load.count, load.elapsed(now), self.modulus()),
            None => self.waiting.map_or(0, |waiting| waiting.count),
        };
        encode(value, self.bcd)
    }

    fn modulus(&self) -> u32 {
        if self.bcd {
            10_000
        } else {
            0x1_0000
        }
    }
}

/// Pulses in the high half of a square wave: the longer one if the count is odd.
fn high_pulses(count: u32) -> u64 {
    u64::from(count).div_ceil(2)
}

/// The position in the current cycle of a periodic mode.
fn phase(count: u32, elapsed: u64) -> u64 {
    elapsed.checked_rem(u64::from(count)).unwrap_or(0)
}

/// The output `elapsed` pulses after the load.
fn level(mode: Mode, count: u32, elapsed: u64) -> bool {
    let n = u64::from(count);
    match mode {
        Mode::TerminalCount | Mode::OneShot => elapsed >= n,
        // A count of 1 is illegal in mode 2: the output stays high here.
        Mode::RateGenerator => count == 1 || phase(count, elapsed) != n.wrapping_sub(1),
        Mode::SquareWave => phase(count, elapsed) < high_pulses(count),
        Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != n,
    }
}

/// Rising edges in the first `elapsed` pulses after the load.
fn edges_until(mode: Mode, count: u32, elapsed: u64) -> u64 {
    let n = u64::from(count);
    match mode {
        Mode::TerminalCount | Mode::OneShot => u64::from(elapsed >= n),
        Mode::RateGenerator | Mode::SquareWave if count == 1 => 0,
        Mode::RateGenerator | Mode::SquareWave => elapsed.checked_div(n).unwrap_or(0),
        Mode::SoftwareStrobe | Mode::HardwareStrobe => u64::from(elapsed > n),
    }
}

/// The pulse of the first rising edge after `elapsed`.
fn next_edge(mode: Mode, count: u32, elapsed: u64) -> Option<u64> {
    let n = u64::from(count);
    match mode {
        Mode::TerminalCount | Mode::OneShot => (elapsed < n).then_some(n),
        Mode::RateGenerator | Mode::SquareWave if count == 1 => None,
        Mode::RateGenerator | Mode::SquareWave => {
            let left = n.wrapping_sub(phase(count, elapsed));
            Some(elapsed.saturating_add(left))
        }
        Mode::SoftwareStrobe | Mode::HardwareStrobe => (elapsed <= n).then(|| n.wrapping_add(1)),
    }
}

/// The counting element `elapsed` pulses after the load; `modulus` reads as zero.
fn remaining(mode: Mode, count: u32, elapsed: u64, modulus: u32) -> u32 {
    let n = u64::from(count);
    let modulus = u64::from(modulus);
    let value = match mode {
        Mode::RateGenerator => n.wrapping_sub(phase(count, elapsed)),
        Mode::SquareWave => {
            let in_cycle = phase(count, elapsed);
            let high = high_pulses(count);
            let in_half = in_cycle.checked_sub(high).unwrap_or(in_cycle);
            (n & !1).wrapping_sub(in_half.wrapping_mul(2))
        }
        // After zero it goes on from the top.
        _ => {
            let spent = elapsed.checked_rem(modulus).unwrap_or(0);
            n.wrapping_add(modulus).wrapping_sub(spent)
        }
    };
    value.checked_rem(modulus).unwrap_or(0) as u32
}

/// When the current cycle (mode 2) or half cycle (mode 3) ends, and whether a low half follows.
fn cycle_end(mode: Mode, load: &Load, now: u64) -> (u64, bool) {
    let in_cycle = phase(load.count, load.elapsed(now));
    let high = high_pulses(load.count);
    let in_high_half = mode == Mode::SquareWave && in_cycle < high && load.count > 1;
    let left = if in_high_half {
        high.wrapping_sub(in_cycle)
    } else {
        u64::from(load.count).wrapping_sub(in_cycle)
    };
    (now.max(load.at).saturating_add(left), in_high_half)
}

/// The count that a written value stands for: zero is the largest.
fn decode(raw: u16, bcd: bool) -> u32 {
    let value = if bcd { from_bcd(raw) } else { u32::from(raw) };
    match (value, bcd) {
        (0, false) => 0x1_0000,
        (0, true) => 10_000,
        _ => value,
    }
}

fn from_bcd(raw: u16) -> u32 {
    let digit = |shift: u32| u32::from(raw.wrapping_shr(shift) & 0xf);
    let high = digit(12)
        .wrapping_mul(1000)
        .wrapping_add(digit(8).wrapping_mul(100));
    high.wrapping_add(digit(4).wrapping_mul(10))
        .wrapping_add(digit(0))
        % 10_000
}

fn encode(value: u32, bcd: bool) -> u16 {
    if !bcd {
        return value as u16;
    }
    let digits = [
        value / 1000 % 10,
        value / 100 % 10,
        value / 10 % 10,
        value % 10,
    ];
    digits
        .into_iter()
        .fold(0, |bits, digit| bits.wrapping_shl(4) | digit as u16)
}
