// SPDX-License-Identifier: GPL-2.0
//! The serial port COM1, a 16550, with standard input and output at its other end.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::sys::signals::stop;

const BASE: u16 = 0x3f8;
const LAST: u16 = 0x3ff;
/// Output is shown at the end of a line, when this much has come, or when the guest is idle.
const BUFFER: usize = 512;
/// Input that the guest does not read is kept up to this much; the rest is lost, as on a real line.
const INPUT: usize = 64 * 1024;

/// Whether `port` is one of COM1's.
pub fn owns(port: u16) -> bool {
    matches!(port, BASE..=LAST)
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

/// Standard output, written in lines.
struct Output {
    file: Option<File>,
    buffer: Vec<u8>,
}

impl Output {
    /// Writes what is buffered. When nobody reads any more the guest goes on without; when the reader only stands
    /// still the guest waits, until the run has to end.
    fn show(&mut self) {
        if let Some(file) = &mut self.file {
            if write_unless_stopped(file, &self.buffer).is_err() {
                self.file = None;
            }
        }
        self.buffer.clear();
    }
}

fn write_unless_stopped(file: &mut impl Write, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match file.write(data) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => data = data.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted && stop().is_none() => {}
            // Somebody else made the terminal non-blocking.
            Err(e) if e.kind() == ErrorKind::WouldBlock && stop().is_none() => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if data.contains(&b'\n') || self.buffer.len() >= BUFFER {
            self.show();
        }
        Ok(data.len())
    }

    /// The port flushes after every byte: too often.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port.
pub struct Console {
    port: Serial<Line, NoEvents, Output>,
    interrupt: Line,
    pending: VecDeque<u8>,
}

impl Console {
    /// The port, connected to standard output.
    pub fn new() -> Result<Self> {
        let stdout = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .context("standard output")?;
        Ok(Self::with_output(Some(File::from(stdout))))
    }

    fn with_output(file: Option<File>) -> Self {
        let interrupt = Line::default();
        let output = Output {
            file,
            buffer: Vec::with_capacity(BUFFER),
        };
        Self {
            port: Serial::new(interrupt.clone(), output),
            interrupt,
            pending: VecDeque::new(),
        }
    }

    /// A byte written.
    pub fn write(&mut self, port: u16, value: u8) {
        // The only failures are those of the output and the interrupt, neither of which fails.
        let _ = self.port.write(port.wrapping_sub(BASE) as u8, value);
    }

    /// A byte read.
    pub fn read(&mut self, port: u16) -> u8 {
        let value = self.port.read(port.wrapping_sub(BASE) as u8);
        self.refill();
        value
    }

    /// Bytes from the user.
    pub fn input(&mut self, bytes: &[u8]) {
        let room = INPUT.saturating_sub(self.pending.len());
        self.pending.extend(bytes.iter().take(room));
        self.refill();
    }

    /// Whether the port asked for an interrupt since the last call.
    pub fn take_interrupt(&mut self) -> bool {
        self.interrupt.0.take()
    }

    /// Shows what is buffered.
    pub fn flush(&mut self) {
        let output = self.port.writer_mut();
        if !output.buffer.is_empty() {
            output.show();
        }
    }

    /// Moves waiting input into the receive buffer as far as there is room. In loop-back mode nothing moves.
    fn refill(&mut self) {
        if self.pending.is_empty() || self.port.fifo_capacity() == 0 {
            return;
        }
        let bytes: Vec<u8> = self
            .pending
            .iter()
            .take(self.port.fifo_capacity())
            .copied()
            .collect();
        let taken = self.port.enqueue_raw_bytes(&bytes).unwrap_or(0);
        self.pending.drain(..taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_arrives_in_order_with_an_interrupt() {
        let mut console = Console::with_output(None);
        console.write(BASE + 1, 0x01);
        let sent: Vec<u8> = (0..200).collect();
        console.input(&sent);
        assert!(console.take_interrupt());
        assert!(!console.take_interrupt());
        let mut received = Vec::new();
        while console.read(BASE + 5) & 1 != 0 {
            received.push(console.read(BASE));
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn output_is_kept_until_the_end_of_the_line() {
        let mut console = Console::with_output(None);
        for byte in b"abc" {
            console.write(BASE, *byte);
        }
        assert_eq!(console.port.writer().buffer, b"abc");
        console.write(BASE, b'\n');
        assert!(console.port.writer().buffer.is_empty());
        console.write(BASE, b'$');
        console.flush();
        assert!(console.port.writer().buffer.is_empty());
    }

    /// Takes this many bytes of each write, and not many writes.
    struct Taker(usize, u32);

    impl Write for Taker {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.1 = self.1.checked_sub(1).expect("no end");
            Ok(self.0.min(data.len()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_output_that_takes_nothing_is_an_error() {
        let mut taker = Taker(2, 3);
        write_unless_stopped(&mut taker, b"12345").unwrap();
        assert_eq!(taker.1, 0, "in parts");
        let error = write_unless_stopped(&mut Taker(0, 3), b"12345").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WriteZero);
    }

    #[test]
    fn an_empty_transmitter_interrupts() {
        let mut console = Console::with_output(None);
        console.write(BASE + 1, 0x02);
        assert!(console.take_interrupt());
        assert_eq!(console.read(BASE + 2) & 0x0f, 0x02);
        console.write(BASE, b'x');
        assert!(console.take_interrupt());
    }
}
