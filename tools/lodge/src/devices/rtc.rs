// SPDX-License-Identifier: GPL-2.0
//! The clock of a PC, MC146818: the host's time in UTC, and 114 bytes of memory. It has no alarm and no interrupts.

use std::time::{SystemTime, UNIX_EPOCH};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;

const REG_A: usize = 0x0a;
const REG_B: usize = 0x0b;
const REG_C: usize = 0x0c;
const REG_D: usize = 0x0d;
const REG_CENTURY: usize = 0x32;
/// Divider for a crystal of 32.768 kHz, rate of 1024 Hz; never "update in progress".
const REG_A_VALUE: u8 = 0x26;
const REG_B_24_HOURS: u8 = 1 << 1;
const REG_B_BINARY: u8 = 1 << 2;
/// The battery is good.
const REG_D_VALUE: u8 = 0x80;

/// Whether `port` is one of the clock's two.
pub fn owns(port: u16) -> bool {
    matches!(port, INDEX | DATA)
}

/// The clock.
pub struct Rtc {
    index: usize,
    memory: [u8; 128],
}

impl Default for Rtc {
    fn default() -> Self {
        let mut memory = [0; 128];
        memory[REG_B] = REG_B_24_HOURS;
        Self { index: 0, memory }
    }
}

impl Rtc {
    /// A byte written. The time cannot be set.
    pub fn write(&mut self, port: u16, value: u8) {
        if port == INDEX {
            self.index = usize::from(value & 0x7f);
        } else if self.index == REG_B || (self.index > REG_D && self.index != REG_CENTURY) {
            self.memory[self.index] = value;
        }
    }

    /// A byte read. The index register cannot be read.
    pub fn read(&self, port: u16) -> u8 {
        if port == INDEX {
            return 0xff;
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        self.register(now)
    }

    fn register(&self, now: u64) -> u8 {
        let (year, month, day) = civil(now / 86_400);
        let hour = now / 3600 % 24;
        match self.index {
            0 => self.digits(now % 60),
            2 => self.digits(now / 60 % 60),
            4 if self.memory[REG_B] & REG_B_24_HOURS == 0 => {
                let afternoon = if hour >= 12 { 0x80 } else { 0 };
                self.digits((hour + 11) % 12 + 1) | afternoon
            }
            4 => self.digits(hour),
            // The first of January 1970 was a Thursday; Sunday is 1.
            6 => self.digits((now / 86_400 + 4) % 7 + 1),
            7 => self.digits(day),
            8 => self.digits(month),
            9 => self.digits(year % 100),
            REG_CENTURY => self.digits(year / 100),
            REG_A => REG_A_VALUE,
            REG_C => 0,
            REG_D => REG_D_VALUE,
            index => self.memory[index],
        }
    }

    fn digits(&self, value: u64) -> u8 {
        let value = value as u8;
        if self.memory[REG_B] & REG_B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }
}

/// Year, month and day of a day since 1970, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from the first of March of year 0, leap days come last in a year and in an era of 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(11_017), (2000, 3, 1));
        assert_eq!(civil(20_454), (2026, 1, 1));
        assert_eq!(civil(47_540), (2100, 2, 28));
        assert_eq!(civil(47_541), (2100, 3, 1));
    }

    #[test]
    fn registers_in_decimal_and_binary() {
        // 2026-11-23 15:41:09 UTC, a Monday
        let now = 1_795_448_469;
        let mut rtc = Rtc::default();
        let all = |rtc: &mut Rtc| {
            [0u8, 2, 4, 6, 7, 8, 9, 0x32].map(|index| {
                rtc.write(INDEX, index | 0x80);
                rtc.register(now)
            })
        };
        assert_eq!(
            all(&mut rtc),
            [0x09, 0x41, 0x15, 0x02, 0x23, 0x11, 0x26, 0x20]
        );
        rtc.write(INDEX, 0x0b);
        rtc.write(DATA, REG_B_BINARY);
        assert_eq!(all(&mut rtc), [9, 41, 3 | 0x80, 2, 23, 11, 26, 20]);
    }

    #[test]
    fn memory_keeps_what_is_written() {
        let mut rtc = Rtc::default();
        for (index, written, read) in [(0x40, 0x5a, 0x5a), (0x0d, 0, 0x80), (0x0a, 0xff, 0x26)] {
            rtc.write(INDEX, index);
            rtc.write(DATA, written);
            assert_eq!(rtc.read(DATA), read);
        }
    }
}
