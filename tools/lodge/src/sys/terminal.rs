// SPDX-License-Identifier: GPL-2.0
//! Raw mode of the terminal, and waiting for standard input.
//!
//! Unsafe because: termios and poll are reached through the C library.

use std::io::{Error, ErrorKind};
use std::mem::MaybeUninit;

/// The terminal in raw mode: every key goes to the guest. The old mode returns when this is dropped.
pub struct RawMode(libc::termios);

impl RawMode {
    /// Raw mode, if standard input is a terminal.
    pub fn enter() -> Option<Self> {
        let mut mode = MaybeUninit::uninit();
        // SAFETY: fills one termios when it succeeds.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, mode.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: tcgetattr succeeded.
        let old: libc::termios = unsafe { mode.assume_init() };
        let mut raw = old;
        // SAFETY: changes one termios.
        unsafe { libc::cfmakeraw(&mut raw) };
        // Our own lines end with a line feed only; the guest's carriage returns do no harm.
        raw.c_oflag |= libc::OPOST | libc::ONLCR;
        // SAFETY: reads one termios.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) };
        Some(Self(old))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // SAFETY: reads one termios, which tcgetattr filled.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSAFLUSH, &self.0) };
    }
}

/// What `wait_input` saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// So many bytes were read; none is the end of the input.
    Read(usize),
    /// The time is over.
    TimedOut,
}

/// Waits for standard input (if `listen`) for at most `timeout_ms`, and reads what there is.
pub fn wait_input(
    listen: bool,
    timeout_ms: Option<u64>,
    buffer: &mut [u8],
) -> Result<Input, Error> {
    let mut fd = libc::pollfd {
        fd: libc::STDIN_FILENO,
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout = timeout_ms.map_or(-1, |ms| ms.min(i32::MAX as u64) as i32);
    // SAFETY: `fd` is one pollfd, or none is looked at.
    let ready = unsafe { libc::poll(&mut fd, u64::from(listen), timeout) };
    if ready < 0 {
        return Err(Error::last_os_error());
    }
    if ready == 0 {
        return Ok(Input::TimedOut);
    }
    // SAFETY: reads into a live buffer of that length.
    let n = unsafe { libc::read(libc::STDIN_FILENO, buffer.as_mut_ptr().cast(), buffer.len()) };
    match usize::try_from(n) {
        Ok(n) => Ok(Input::Read(n)),
        Err(_) => match Error::last_os_error() {
            // Nothing to read from a terminal of another session, or from a closed one: no input any more.
            e if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Err(e),
            _ => Ok(Input::Read(0)),
        },
    }
}
