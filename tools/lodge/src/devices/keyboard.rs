// SPDX-License-Identifier: GPL-2.0
//! The keyboard controller, of which only the reset line exists.
//!
//! Its status reads as "output full, input empty" for ever. A driver that looks for a keyboard gives up after it has
//! drained a few bytes, instead of waiting for answers; a reset through it goes ahead at once.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

use vm_superio::{I8042Device, Trigger};

const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;
/// All ones but "input buffer full".
const STATUS: u8 = 0xfd;

/// Whether `port` is one of the controller's two.
pub fn owns(port: u16) -> bool {
    matches!(port, DATA | COMMAND)
}

#[derive(Clone, Default)]
struct Line(Rc<Cell<bool>>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// The controller.
pub struct Keyboard {
    device: I8042Device<Line>,
    reset: Line,
}

impl Keyboard {
    /// The controller, its reset line at rest.
    pub fn new() -> Self {
        let reset = Line::default();
        Self {
            device: I8042Device::new(reset.clone()),
            reset,
        }
    }

    /// A byte read.
    pub fn read(&self, port: u16) -> u8 {
        if port == COMMAND {
            STATUS
        } else {
            0xff
        }
    }

    /// A byte written; whether it pulses the reset line.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        let Ok(()) = self.device.write(port.wrapping_sub(DATA) as u8, value);
        self.reset.0.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pulse_command_resets() {
        let mut keyboard = Keyboard::new();
        assert!(!keyboard.write(COMMAND, 0x20));
        assert!(!keyboard.write(DATA, 0xfe));
        assert!(keyboard.write(COMMAND, 0xfe));
        assert!(
            !keyboard.write(COMMAND, 0xff),
            "a pulse is over when it is seen"
        );
        assert_eq!(keyboard.read(COMMAND) & 2, 0);
    }
}
