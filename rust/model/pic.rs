// SPDX-License-Identifier: GPL-2.0
#![forbid(unsafe_code)]
//! A pair of 8259A interrupt controllers, wired as in a PC: the second one's INT output is line 2 of the first.
//!
//! Manual: Intel "8259A Programmable Interrupt Controller", "Initialization Command Words" and "Operation Command
//! Words"; the edge/level registers at 0x4D0 and 0x4D1 are those of EISA. The model does nothing by itself: each call
//! returns a [`PicWork`] that says what the INT output of the pair is now and which lines were completed.
//!
//! One deliberate difference from the chip: a request on an edge-triggered line stays latched when the line goes low
//! before it is acknowledged, as in every PC chip set, because devices here pulse their lines.

/// First port of the first controller; the second port is the next one.
pub const PIC1_PORT: u16 = 0x20;
/// First port of the second controller.
pub const PIC2_PORT: u16 = 0xa0;
/// Edge/level control register of the first controller; that of the second is the next port.
pub const ELCR_PORT: u16 = 0x4d0;

/// Lines 0, 1 and 2 cannot be made level-triggered (timer, keyboard, cascade).
const ELCR1_MASK: u8 = 0xf8;
/// Nor can 8 and 13 (clock, coprocessor).
const ELCR2_MASK: u8 = 0xde;
/// The line of the first controller that the second one drives.
const CASCADE: u8 = 2;
/// What a controller answers with when it is asked for a vector and nothing is pending.
const SPURIOUS: u8 = 7;

const ICW1_SELECT: u8 = 1 << 4;
const ICW1_NEEDS_ICW4: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW1_LEVEL: u8 = 1 << 3;
const ICW4_AUTO_EOI: u8 = 1 << 1;
const ICW4_FULLY_NESTED: u8 = 1 << 4;
const OCW3_SELECT: u8 = 1 << 3;
const OCW3_READ_ISR: u8 = 1 << 0;
const OCW3_READ: u8 = 1 << 1;
const OCW3_POLL: u8 = 1 << 2;
const OCW3_SPECIAL: u8 = 1 << 5;
const OCW3_SPECIAL_SET: u8 = 1 << 6;
/// Bit 7 of the poll answer: an interrupt was pending and is acknowledged now.
const POLL_PENDING: u8 = 1 << 7;

/// What the owner of the model has to do after a call.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PicWork {
    /// Level of the INT output towards the processor.
    pub intr: bool,
    /// Lines (bit n for IRQ n) whose in-service bit was cleared by this call.
    pub completed: u16,
}

/// The next initialization word that a controller expects on its second port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Chip {
    // Programmed.
    elcr: u8,
    base: u8,
    imr: u8,
    needs_icw4: bool,
    single: bool,
    all_level: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
    expect: Expect,
    /// The line with the highest priority.
    first: u8,
    // Volatile.
    irr: u8,
    isr: u8,
    lines: u8,
}

const fn bit(line: u8) -> u8 {
    1u8.wrapping_shl((line & 7) as u32)
}

impl Chip {
    fn is_level(&self, line: u8) -> bool {
        self.all_level || self.elcr & bit(line) != 0
    }

    fn set_line(&mut self, line: u8, high: bool) {
        let mask = bit(line);
        let was_high = self.lines & mask != 0;
        if high {
            if !was_high || self.is_level(line) {
                self.irr |= mask;
            }
            self.lines |= mask;
        } else {
            if self.is_level(line) {
                self.irr &= !mask;
            }
            self.lines &= !mask;
        }
    }

    /// The line of highest priority in `set`.
    fn highest(&self, set: u8) -> Option<u8> {
        let rotated = set.rotate_right(u32::from(self.first & 7));
        (rotated != 0).then(|| (rotated.trailing_zeros() as u8).wrapping_add(self.first) & 7)
    }

    /// Distance of a line from the highest priority: 0 is served first.
    fn rank(&self, line: u8) -> u8 {
        line.wrapping_sub(self.first) & 7
    }

    /// The line that the INT output asks service for.
    fn pending(&self, is_master: bool) -> Option<u8> {
        let line = self.highest(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.fully_nested && is_master && line == CASCADE {
            in_service &= !bit(CASCADE);
        }
        match self.highest(in_service) {
            Some(busy) if self.rank(busy) <= self.rank(line) => None,
            _ => Some(line),
        }
    }

    /// The acknowledge cycle of `line`.
    fn acknowledge(&mut self, line: u8) {
        if !self.is_level(line) {
            self.irr &= !bit(line);
        }
        if !self.auto_eoi {
            self.isr |= bit(line);
        } else if self.rotate_on_auto_eoi {
            self.first = line.wrapping_add(1) & 7;
        }
    }

    fn vector(&self, line: u8) -> u8 {
        self.base | (line & 7)
    }

    fn init(&mut self, icw1: u8) {
        self.needs_icw4 = icw1 & ICW1_NEEDS_ICW4 != 0;
        self.single = icw1 & ICW1_SINGLE != 0;
        self.all_level = icw1 & ICW1_LEVEL != 0;
        if !self.needs_icw4 {
            self.auto_eoi = false;
            self.fully_nested = false;
        }
        self.imr = 0;
        self.isr = 0;
        self.first = 0;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        self.rotate_on_auto_eoi = false;
        // The edge sense circuit is reset: only what level-triggered lines ask for remains.
        let level = if self.all_level { 0xff } else { self.elcr };
        self.irr = self.lines & level;
        self.expect = Expect::Icw2;
    }

    fn ocw2(&mut self, value: u8) {
        let line = value & 7;
        let rotate = value & 0x80 != 0;
        match value >> 5 {
            // Non-specific end of interrupt; bits that the special mask mode hides are left alone.
            1 | 5 => {
                let hidden = if self.special_mask { self.imr } else { 0 };
                if let Some(done) = self.highest(self.isr & !hidden) {
                    self.isr &= !bit(done);
                    if rotate {
                        self.first = done.wrapping_add(1) & 7;
                    }
                }
            }
            3 | 7 => {
                self.isr &= !bit(line);
                if rotate {
                    self.first = line.wrapping_add(1) & 7;
                }
            }
            6 => self.first = line.wrapping_add(1) & 7,
            0 | 4 => self.rotate_on_auto_eoi = rotate,
            _ => {}
        }
    }

    fn ocw3(&mut self, value: u8) {
        if value & OCW3_SPECIAL_SET != 0 {
            self.special_mask = value & OCW3_SPECIAL != 0;
        }
        if value & OCW3_POLL != 0 {
            self.poll = true;
        } else if value & OCW3_READ != 0 {
            self.read_isr = value & OCW3_READ_ISR != 0;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & ICW1_SELECT != 0 {
            self.init(value);
        } else if value & OCW3_SELECT != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.expect {
            Expect::Mask => self.imr = value,
            Expect::Icw2 => {
                self.base = value & 0xf8;
                self.expect = if !self.single {
                    Expect::Icw3
                } else if self.needs_icw4 {
                    Expect::Icw4
                } else {
                    Expect::Mask
                };
            }
            // The wiring is fixed, so the cascade word says nothing new.
            Expect::Icw3 => {
                self.expect = if self.needs_icw4 {
                    Expect::Icw4
                } else {
                    Expect::Mask
                }
            }
            Expect::Icw4 => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.fully_nested = value & ICW4_FULLY_NESTED != 0;
                self.expect = Expect::Mask;
            }
        }
    }

    /// The poll command's answer: the read acts as the acknowledge cycle.
    fn poll(&mut self, is_master: bool) -> u8 {
        self.poll = false;
        match self.pending(is_master) {
            Some(line) => {
                self.acknowledge(line);
                POLL_PENDING | line
            }
            None => 0,
        }
    }
}

/// The two controllers of a PC, fifteen usable lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PicPair {
    master: Chip,
    slave: Chip,
}

impl PicPair {
    /// The pair after power-on: nothing is programmed, all lines are low.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the level of an interrupt line. `irq` is 0 to 15; 2 is the cascade and is ignored, as is any other number.
    pub fn set_irq(&mut self, irq: u8, high: bool) -> PicWork {
        match irq {
            CASCADE => {}
            0..=7 => self.master.set_line(irq, high),
            8..=15 => self.slave.set_line(irq.wrapping_sub(8), high),
            _ => {}
        }
        self.settle(0)
    }

    /// A low-high-low pulse on a line: one request if it is edge-triggered and low before.
    pub fn pulse_irq(&mut self, irq: u8) -> PicWork {
        let _ = self.set_irq(irq, true);
        self.set_irq(irq, false)
    }

    /// Whether the pair asks the processor for an interrupt.
    pub fn intr(&self) -> bool {
        self.master.pending(true).is_some()
    }

    /// The interrupt acknowledge cycle: the vector for the processor. With nothing pending it is the spurious vector
    /// of line 7 (or of line 15 if the second controller withdrew its request), which sets no in-service bit there.
    pub fn acknowledge(&mut self) -> (u8, PicWork) {
        let (vector, lines) = match self.master.pending(true) {
            Some(CASCADE) => {
                self.master.acknowledge(CASCADE);
                match self.slave.pending(false) {
                    Some(line) => {
                        self.slave.acknowledge(line);
                        (self.slave.vector(line), 0x100u16.wrapping_shl(line.into()))
                    }
                    None => (self.slave.vector(SPURIOUS), 0),
                }
            }
            Some(line) => {
                self.master.acknowledge(line);
                (self.master.vector(line), u16::from(bit(line)))
            }
            None => (self.master.vector(SPURIOUS), 0),
        };
        // INT of the second controller falls during the cycle, so that its next request is an edge again.
        self.master.set_line(CASCADE, false);
        // With automatic end of interrupt, the line is completed already.
        let work = self.settle(lines & !self.in_service());
        (vector, work)
    }

    /// Whether `port` belongs to the pair.
    pub const fn owns(port: u16) -> bool {
        matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1)
    }

    /// A byte read from one of the pair's ports; another port reads as all ones.
    pub fn read(&mut self, port: u16) -> (u8, PicWork) {
        let before = self.in_service();
        let value = match port {
            ELCR_PORT => self.master.elcr,
            0x4d1 => self.slave.elcr,
            0x20 | 0x21 => Self::read_chip(&mut self.master, port, true),
            0xa0 | 0xa1 => Self::read_chip(&mut self.slave, port, false),
            _ => 0xff,
        };
        (value, self.settle(before & !self.in_service()))
    }

    fn read_chip(chip: &mut Chip, port: u16, is_master: bool) -> u8 {
        if chip.poll {
            chip.poll(is_master)
        } else if port & 1 != 0 {
            chip.imr
        } else if chip.read_isr {
            chip.isr
        } else {
            chip.irr
        }
    }

    /// A byte written to one of the pair's ports; a write to another port does nothing.
    pub fn write(&mut self, port: u16, value: u8) -> PicWork {
        let before = self.in_service();
        match port {
            0x20 => self.master.write_command(value),
            0x21 => self.master.write_data(value),
            0xa0 => self.slave.write_command(value),
            0xa1 => self.slave.write_data(value),
            ELCR_PORT => self.master.elcr = value & ELCR1_MASK,
            0x4d1 => self.slave.elcr = value & ELCR2_MASK,
            _ => {}
        }
        self.settle(before & !self.in_service())
    }

    fn in_service(&self) -> u16 {
        u16::from_le_bytes([self.master.isr, self.slave.isr])
    }

    /// Carries the second controller's output to the first and reports.
    fn settle(&mut self, completed: u16) -> PicWork {
        let request = self.slave.pending(false).is_some();
        self.master.set_line(CASCADE, request);
        PicWork {
            intr: self.intr(),
            completed,
        }
    }
}

#[cfg(test)]
#[path = "pic_tests.rs"]
mod tests;
