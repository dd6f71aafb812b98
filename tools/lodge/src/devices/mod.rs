// SPDX-License-Identifier: GPL-2.0
//! The devices of the machine: what a PC has on its ports and a stock kernel looks for, and nothing else.
//!
//! | ports | device |
//! |---|---|
//! | 0x20, 0xa0, 0x4d0 | interrupt controllers (`lodge_model::model::pic`) |
//! | 0x40-0x43, 0x61 | timer and speaker gate (`lodge_model::model::pit`) |
//! | 0x60, 0x64 | keyboard controller: only its reset line |
//! | 0x70, 0x71 | clock and its memory |
//! | 0x80, 0xed | delays and progress codes, ignored |
//! | 0x92, 0xcf9 | two other ways to reset |
//! | 0x3f8-0x3ff | serial port, IRQ 4 |
//! | the rest, 0xcf8 and 0xcfc among them | nothing: reads give all ones |

pub mod keyboard;
pub mod rtc;
pub mod serial;

use anyhow::Result;
use lodge_model::model::pic::PicPair;
use lodge_model::model::pit::Pit;

use keyboard::Keyboard;
use rtc::Rtc;
use serial::Console;

const IRQ_TIMER: u8 = 0;
const IRQ_SERIAL: u8 = 4;
const PORT_A: u16 = 0x92;
const PORT_A_RESET: u8 = 1 << 0;
const PORT_A_A20: u8 = 1 << 1;
const PCI_ADDRESS: u16 = 0xcf8;
const PCI_END: u16 = 0xd00;
const RESET_CONTROL: u16 = 0xcf9;
const RESET_CONTROL_CPU: u8 = 1 << 2;
/// A guest may program a timer interrupt for every microsecond: no deadline comes sooner than this.
const SHORTEST_NS: u64 = 50_000;

/// How the guest asked for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The keyboard controller's pulse command.
    Keyboard,
    /// The fast reset bit of port 0x92.
    PortA,
    /// Port 0xcf9.
    Control,
}

/// All devices.
pub struct Devices {
    pic: PicPair,
    pit: Pit,
    rtc: Rtc,
    keyboard: Keyboard,
    console: Console,
    reset: Option<Reset>,
    deadline: Option<u64>,
}

impl Devices {
    /// The devices after power-on; `now` in nanoseconds of the monotonic clock.
    pub fn new(now: u64) -> Result<Self> {
        Ok(Self {
            pic: PicPair::new(),
            pit: Pit::new(now),
            rtc: Rtc::default(),
            keyboard: Keyboard::new(),
            console: Console::new()?,
            reset: None,
            deadline: None,
        })
    }

    /// An OUT of one, two or four bytes.
    pub fn write(&mut self, port: u16, data: &[u8], now: u64) {
        // An address for the PCI bus, which is absent, and not a write to the reset register inside of it.
        if data.len() > 1 && (PCI_ADDRESS..PCI_END).contains(&port) {
            return;
        }
        // All devices have byte-wide registers: a wider access is one for each port.
        for (offset, value) in (0..).zip(data.iter().copied()) {
            self.write_byte(port.wrapping_add(offset), value, now);
        }
    }

    /// An IN of one, two or four bytes.
    pub fn read(&mut self, port: u16, data: &mut [u8], now: u64) {
        for (offset, value) in (0..).zip(data.iter_mut()) {
            *value = self.read_byte(port.wrapping_add(offset), now);
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: u64) {
        if PicPair::owns(port) {
            let _ = self.pic.write(port, value);
        } else if Pit::owns(port) {
            let work = self.pit.write(port, value, now);
            self.timer_work(work.rises, work.next, now);
        } else if rtc::owns(port) {
            self.rtc.write(port, value);
        } else if serial::owns(port) {
            self.console.write(port, value);
            self.serial_work();
        } else if keyboard::owns(port) {
            if self.keyboard.write(port, value) {
                self.reset = Some(Reset::Keyboard);
            }
        } else if port == PORT_A && value & PORT_A_RESET != 0 {
            self.reset = Some(Reset::PortA);
        } else if port == RESET_CONTROL && value & RESET_CONTROL_CPU != 0 {
            self.reset = Some(Reset::Control);
        }
    }

    fn read_byte(&mut self, port: u16, now: u64) -> u8 {
        if PicPair::owns(port) {
            self.pic.read(port).0
        } else if Pit::owns(port) {
            self.pit.read(port, now)
        } else if rtc::owns(port) {
            self.rtc.read(port)
        } else if serial::owns(port) {
            let value = self.console.read(port);
            self.serial_work();
            value
        } else if keyboard::owns(port) {
            self.keyboard.read(port)
        } else if port == PORT_A {
            PORT_A_A20
        } else {
            0xff
        }
    }

    /// Lets time pass: raises the timer's interrupt when it is due.
    pub fn advance(&mut self, now: u64) {
        let work = self.pit.advance(now);
        self.timer_work(work.rises, work.next, now);
    }

    /// Input from the user for the serial port.
    pub fn input(&mut self, bytes: &[u8]) {
        self.console.input(bytes);
        self.serial_work();
    }

    /// Shows what the guest has printed so far.
    pub fn flush(&mut self) {
        self.console.flush();
    }

    /// When the next timer interrupt is due.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// The reset that the guest asked for.
    pub fn reset(&self) -> Option<Reset> {
        self.reset
    }

    /// Whether an interrupt waits for the processor.
    pub fn interrupt_waits(&self) -> bool {
        self.pic.intr()
    }

    /// The interrupt acknowledge cycle: the vector to deliver.
    pub fn acknowledge(&mut self) -> u8 {
        self.pic.acknowledge().0
    }

    /// Ticks that were missed are not made up for: the guest reads clocks, it does not count.
    fn timer_work(&mut self, rises: u64, next: Option<u64>, now: u64) {
        if rises > 0 {
            let _ = self.pic.pulse_irq(IRQ_TIMER);
        }
        self.deadline = next.map(|next| next.max(now.saturating_add(SHORTEST_NS)));
    }

    fn serial_work(&mut self) {
        if self.console.take_interrupt() {
            let _ = self.pic.pulse_irq(IRQ_SERIAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(devices: &mut Devices, port: u16, now: u64) -> u8 {
        let mut byte = [0];
        devices.read(port, &mut byte, now);
        byte[0]
    }

    #[test]
    fn absent_ports_read_as_ones() {
        let mut devices = Devices::new(0).unwrap();
        devices.write(0xcf8, &0x8000_ff00u32.to_le_bytes(), 0);
        devices.write(0x80, &[1], 0);
        for port in [0xcf8, 0xcfc, 0x80, 0x2f8, 0x1f7, 0xffff] {
            let mut data = [0; 4];
            devices.read(port, &mut data, 0);
            assert_eq!(data, [0xff; 4], "{port:#x}");
        }
        assert_eq!(devices.reset(), None);
    }

    #[test]
    fn three_ways_to_reset() {
        for (port, value, reset) in [
            (0x64, 0xfe, Reset::Keyboard),
            (0x92, 0x01, Reset::PortA),
            (0xcf9, 0x06, Reset::Control),
        ] {
            let mut devices = Devices::new(0).unwrap();
            devices.write(port, &[0], 0);
            assert_eq!(devices.reset(), None);
            devices.write(port, &[value], 0);
            assert_eq!(devices.reset(), Some(reset));
        }
    }

    #[test]
    fn the_timer_interrupts_through_the_controller() {
        let mut devices = Devices::new(0).unwrap();
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0x21, 0xfe),
        ] {
            devices.write(port, &[value], 0);
        }
        for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
            devices.write(port, &[value], 0);
        }
        assert_eq!(
            devices.acknowledge(),
            0x20,
            "the control word raised the output"
        );
        devices.write(0x20, &[0x20], 0);
        let due = devices.deadline().unwrap();
        assert!((9_980_000..10_020_000).contains(&due), "100 Hz: {due}");
        devices.advance(due - 1);
        assert!(!devices.interrupt_waits());
        devices.advance(due);
        assert!(devices.interrupt_waits());
        assert_eq!(devices.acknowledge(), 0x20);
        assert!(devices.deadline().unwrap() > due);
    }

    #[test]
    fn a_fast_timer_does_not_ask_for_the_impossible() {
        let mut devices = Devices::new(0).unwrap();
        for (port, value) in [(0x43, 0x14), (0x40, 2)] {
            devices.write(port, &[value], 1000);
        }
        assert_eq!(devices.deadline(), Some(1000 + SHORTEST_NS));
    }

    #[test]
    fn the_speaker_port_follows_counter_2() {
        let mut devices = Devices::new(0).unwrap();
        devices.write(0x61, &[1], 0);
        for (port, value) in [(0x43, 0xb0), (0x42, 0xa9), (0x42, 0x04)] {
            devices.write(port, &[value], 0);
        }
        assert_eq!(read(&mut devices, 0x61, 900_000) & 0x20, 0);
        assert_eq!(read(&mut devices, 0x61, 1_100_000) & 0x20, 0x20);
    }
}
