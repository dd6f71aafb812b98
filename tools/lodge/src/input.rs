// SPDX-License-Identifier: GPL-2.0
//! The keyboard: a thread that reads standard input, and the escape sequence that ends a run.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::sys::signals::{kick, request_stop, Stop};
use crate::sys::terminal::{wait_input, Input};

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Guest(u8),
    Nothing,
    Quit,
}

/// Finds Ctrl-A X among the keys; Ctrl-A Ctrl-A is one Ctrl-A for the guest, other keys after it are just themselves.
#[derive(Default)]
struct Escape {
    pending: bool,
}

impl Escape {
    fn key(&mut self, byte: u8) -> Key {
        match (std::mem::take(&mut self.pending), byte) {
            (false, ESCAPE) => {
                self.pending = true;
                Key::Nothing
            }
            (true, b'x' | b'X') => Key::Quit,
            _ => Key::Guest(byte),
        }
    }
}

/// Keys on their way to the guest.
#[derive(Clone, Default)]
pub struct Keys(Arc<Mutex<VecDeque<u8>>>);

impl Keys {
    /// Takes what has been typed.
    pub fn take(&self) -> Vec<u8> {
        self.lock().drain(..).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        // A queue of bytes is sound whatever its last user did.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread that reads standard input, and ends the run when `limit` has passed.
    pub fn listen(&self, limit: Option<Duration>) -> Result<()> {
        let keys = self.clone();
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        thread::Builder::new()
            .name("input".to_string())
            .spawn(move || keys.read_until(end))
            .context("cannot start a thread")?;
        Ok(())
    }

    fn read_until(&self, end: Option<Instant>) {
        let mut escape = Escape::default();
        let mut listen = true;
        let mut buffer = [0; 256];
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                request_stop(Stop::TimedOut);
                return;
            }
            if !listen && left.is_none() {
                return;
            }
            let left = left.map(|left| left.as_millis() as u64 + 1);
            match wait_input(listen, left, &mut buffer) {
                Ok(Input::Read(0)) => listen = false,
                Ok(Input::Read(n)) => {
                    for byte in buffer.iter().take(n) {
                        match escape.key(*byte) {
                            Key::Guest(byte) => self.lock().push_back(byte),
                            Key::Nothing => {}
                            Key::Quit => request_stop(Stop::Interrupted),
                        }
                    }
                    kick();
                }
                Ok(Input::TimedOut) | Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut escape = Escape::default();
        bytes
            .iter()
            .map(|byte| escape.key(*byte))
            .filter(|key| *key != Key::Nothing)
            .collect()
    }

    #[test]
    fn escape_sequences() {
        assert_eq!(keys(b"ax"), [Key::Guest(b'a'), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01x"), [Key::Quit]);
        assert_eq!(keys(b"\x01X"), [Key::Quit]);
        assert_eq!(keys(b"\x01\x01x"), [Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01b\x03"), [Key::Guest(b'b'), Key::Guest(3)]);
    }
}
