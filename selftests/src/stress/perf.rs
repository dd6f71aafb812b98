// SPDX-License-Identifier: GPL-2.0
//! Watchpoints by perf_event_open(2): the debug registers as a program can use them on itself.

use crate::sys::{self, OwnedFd};

/// A watchpoint of the calling thread that counts.
pub struct Watch(OwnedFd);

const TYPE_BREAKPOINT: u32 = 5;
const WRITES: u32 = 2;

impl Watch {
    /// Counts writes to the eight bytes at `addr`.
    pub fn writes(addr: u64) -> Result<Self, i32> {
        // struct perf_event_attr, as far as it is used: type and size, flags (user space only), kind, address, length.
        let mut attr = [0u64; 16];
        attr[0] = u64::from(TYPE_BREAKPOINT) | 128 << 32;
        attr[5] = 1 << 5 | 1 << 6;
        attr[6] = u64::from(WRITES) << 32;
        attr[7] = addr;
        attr[8] = 8;
        sys::perf_event_open(&mut attr).map(|fd| Self(OwnedFd::new(fd)))
    }

    /// How many it has seen.
    pub fn count(&self) -> u64 {
        let mut b = [0u8; 8];
        match sys::read(self.0.raw(), &mut b) {
            Ok(8) => u64::from_le_bytes(b),
            r => panic!("reading a counter: {r:?}"),
        }
    }
}
