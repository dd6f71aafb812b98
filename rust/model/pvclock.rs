// SPDX-License-Identifier: GPL-2.0
//! Time for guests: rates of time-stamp counters, and the pages of KVM's paravirtual clock.
//!
//! Documentation/virt/kvm/x86/msr.rst has the layout of the pages: a guest multiplies what its time-stamp counter advanced since
//! `tsc` and adds `system_time`.
#![forbid(unsafe_code)]

/// Nanoseconds in a second.
pub const NS_PER_SEC: u64 = 1_000_000_000;

/// How ticks become nanoseconds: `(ticks << shift) * mul >> 32`, where a negative shift is to the right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// The multiplier, with 32 binary places.
    pub mul: u32,
    /// The shift.
    pub shift: i8,
}

impl Scale {
    /// For a counter of `khz` (not zero: then, all ticks are zero nanoseconds).
    pub fn from_khz(khz: u32) -> Self {
        // Nanoseconds in a tick, with 64 binary places: below 2^84, and above 2^51.
        let Some(ratio) = divide(1_000_000, khz, 64) else {
            return Self::default();
        };
        let bits = 128u32.wrapping_sub(ratio.leading_zeros());
        let mul = ratio.checked_shr(bits.wrapping_sub(32)).unwrap_or(0);
        Self {
            mul: mul as u32,
            shift: (bits as i32).wrapping_sub(64) as i8,
        }
    }

    /// So many ticks in nanoseconds, modulo 2^64.
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        let shifted = if self.shift < 0 {
            ticks
                .checked_shr(u32::from(self.shift.unsigned_abs()))
                .unwrap_or(0)
        } else {
            ticks.checked_shl(self.shift as u32).unwrap_or(0)
        };
        (u128::from(shifted).wrapping_mul(u128::from(self.mul)) >> 32) as u64
    }
}

/// A moment of a clock that goes by a time-stamp counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// The counter ...
    pub tsc: u64,
    /// ... at this time of the clock's, in nanoseconds.
    pub ns: u64,
}

impl Anchor {
    /// The clock's time at a later value of the counter, whose ticks are so long.
    pub fn at(&self, tsc: u64, scale: &Scale) -> u64 {
        let since = tsc.wrapping_sub(self.tsc);
        self.ns.wrapping_add(scale.nanoseconds(since))
    }
}

/// `a / b` with so many binary places, at most 64 (long division, as kernels have none of 128 bits); None for a zero `b`.
fn divide(a: u32, b: u32, places: u8) -> Option<u128> {
    let b = u64::from(b);
    let mut quotient = u128::from(u64::from(a).checked_div(b)?);
    let mut rest = u64::from(a).checked_rem(b)?;
    let mut left = places.min(64);
    while left > 0 {
        let n = left.min(32);
        // The rest is below 2^32.
        rest = rest.checked_shl(n.into())?;
        quotient = quotient.checked_shl(n.into())? | u128::from(rest.checked_div(b)?);
        rest = rest.checked_rem(b)?;
        left = left.wrapping_sub(n);
    }
    Some(quotient)
}

/// The ticks of a counter of `khz` in `ns` nanoseconds, modulo 2^64.
pub fn ticks(ns: u64, khz: u32) -> u64 {
    let (ms, rest) = (
        ns.checked_div(1_000_000).unwrap_or(0),
        ns.checked_rem(1_000_000).unwrap_or(0),
    );
    let part = rest.wrapping_mul(khz.into()).checked_div(1_000_000);
    ms.wrapping_mul(khz.into()).wrapping_add(part.unwrap_or(0))
}

/// Flags of [`TimeInfo`].
pub mod flag {
    /// The guest was stopped for a while: its watchdogs should not bark.
    pub const GUEST_STOPPED: u8 = 1 << 1;
}

/// A vCPU's page, `struct pvclock_vcpu_time_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeInfo {
    /// Odd while the page is being written.
    pub version: u32,
    /// The guest's time-stamp counter ...
    pub tsc: u64,
    /// ... at this time, in nanoseconds.
    pub system_time: u64,
    /// How its ticks become nanoseconds.
    pub scale: Scale,
    /// See [`flag`].
    pub flags: u8,
}

impl TimeInfo {
    /// Bytes of it.
    pub const SIZE: usize = 32;

    /// As it lies in memory.
    pub fn bytes(&self) -> [u8; Self::SIZE] {
        let mut b = [0; Self::SIZE];
        let fields: [(usize, &[u8]); 6] = [
            (0, &self.version.to_le_bytes()),
            (8, &self.tsc.to_le_bytes()),
            (16, &self.system_time.to_le_bytes()),
            (24, &self.scale.mul.to_le_bytes()),
            (28, &self.scale.shift.to_le_bytes()),
            (29, &[self.flags]),
        ];
        for (at, field) in fields {
            for (to, from) in b.iter_mut().skip(at).zip(field) {
                *to = *from;
            }
        }
        b
    }
}

/// The versions of a page that has `old` in it: while it is being written, and after.
pub const fn versions(old: u32) -> (u32, u32) {
    let writing = old.wrapping_add(1) | 1;
    (writing, writing.wrapping_add(1))
}

/// The wall-clock page, `struct pvclock_wall_clock` without its version: the time of day at which the paravirtual clock was zero.
pub fn wall_clock(realtime: u64, clock: u64) -> [u8; 8] {
    let at_zero = realtime.wrapping_sub(clock);
    let (sec, ns) = (
        at_zero.checked_div(NS_PER_SEC).unwrap_or(0),
        at_zero.checked_rem(NS_PER_SEC).unwrap_or(0),
    );
    let mut b = [0; 8];
    let both = (sec as u32)
        .to_le_bytes()
        .into_iter()
        .chain((ns as u32).to_le_bytes());
    for (to, from) in b.iter_mut().zip(both) {
        *to = from;
    }
    b
}

/// A guest's time-stamp counter: the host's, times a ratio with so many binary places (0: it is not scaled), plus an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscScale {
    /// The ratio; 0 for one to one.
    pub ratio: u64,
    /// Binary places of the ratio.
    pub places: u8,
}

impl TscScale {
    /// The ratio of `guest` to `host` kHz with `places` binary places; None if it does not fit into 64 bits or is zero.
    pub fn new(guest: u32, host: u32, places: u8) -> Option<Self> {
        let ratio = u64::try_from(divide(guest, host, places)?).ok()?;
        (ratio != 0).then_some(Self { ratio, places })
    }

    /// The host's counter, scaled.
    pub fn apply(&self, host: u64) -> u64 {
        if self.ratio == 0 {
            return host;
        }
        (u128::from(host).wrapping_mul(u128::from(self.ratio)))
            .checked_shr(self.places.into())
            .unwrap_or(0) as u64
    }

    /// The rate of the guest's counter where the host's has this one, in kHz. Never 0.
    pub fn rate(&self, host: u32) -> u32 {
        u32::try_from(self.apply(host.into()))
            .unwrap_or(u32::MAX)
            .max(1)
    }
}

/// Do two rates differ by more than a clock's inaccuracy, 250 parts per million?
pub fn rates_differ(guest: u32, host: u32) -> bool {
    let tolerance = u64::from(host)
        .wrapping_mul(250)
        .checked_div(1_000_000)
        .unwrap_or(0);
    u64::from(guest.abs_diff(host)) > tolerance
}

#[cfg(test)]
#[path = "pvclock_tests.rs"]
mod tests;
