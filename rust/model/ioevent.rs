// SPDX-License-Identifier: GPL-2.0
//! Writes of a guest that signal an eventfd instead of going to user space (KVM_IOEVENTFD): what a registration means, which two
//! exclude each other, and which one a write hits.
#![forbid(unsafe_code)]

/// KVM_IOEVENTFD_FLAG_DATAMATCH: only a write of this value counts.
pub const DATAMATCH: u32 = 1 << 0;
/// KVM_IOEVENTFD_FLAG_PIO: a port, not a guest-physical address.
pub const PIO: u32 = 1 << 1;
/// KVM_IOEVENTFD_FLAG_DEASSIGN: the registration goes.
pub const DEASSIGN: u32 = 1 << 2;
/// KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY: a bus of another architecture, which nothing is ever written to here.
pub const CCW_NOTIFY: u32 = 1 << 3;
/// A flag that the header counts and gives no other name than "fast MMIO"; it is taken and means nothing.
pub const FAST_MMIO: u32 = 1 << 4;
/// All flags that there are.
pub const FLAGS: u32 = DATAMATCH | PIO | DEASSIGN | CCW_NOTIFY | FAST_MMIO;

/// What is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bus {
    /// Guest-physical addresses outside of memory.
    Memory,
    /// Ports.
    Port,
    /// Another architecture's: registrations are kept, and never hit.
    Other,
}

/// A registration, or the key of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoEvent {
    /// What is written to.
    pub bus: Bus,
    /// The address, which a write has to hit exactly.
    pub addr: u64,
    /// The length in bytes that a write has to have; 0 for any.
    pub len: u32,
    /// The value that a write has to have, if it matters.
    pub datamatch: Option<u64>,
}

impl IoEvent {
    /// What the words of the ioctl name. Nothing is checked: to give a registration up, that is not asked for.
    pub const fn named(flags: u32, addr: u64, len: u32, datamatch: u64) -> Self {
        Self {
            bus: if flags & PIO != 0 {
                Bus::Port
            } else if flags & CCW_NOTIFY != 0 {
                Bus::Other
            } else {
                Bus::Memory
            },
            addr,
            len,
            datamatch: if flags & DATAMATCH != 0 {
                Some(datamatch)
            } else {
                None
            },
        }
    }

    /// The same for a registration that is to be made; `None` if the words make no sense (EINVAL).
    pub const fn checked(flags: u32, addr: u64, len: u32, datamatch: u64) -> Option<Self> {
        let bad_len = !matches!(len, 0 | 1 | 2 | 4 | 8);
        if bad_len
            || addr.checked_add(len as u64).is_none()
            || flags & !FLAGS != 0
            || len == 0 && flags & DATAMATCH != 0
        {
            return None;
        }
        Some(Self::named(flags, addr, len, datamatch))
    }

    /// Whether one write could hit both, so that they cannot both be registered (EEXIST).
    pub fn collides(&self, other: &Self) -> bool {
        let values_meet = match (self.datamatch, other.datamatch) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        self.key() == other.key()
            && (self.len == 0 || other.len == 0 || self.len == other.len && values_meet)
    }

    /// Whether a write of the low `len` bytes of `value` to this address hits it.
    pub fn takes(&self, len: u8, value: u64) -> bool {
        if self.len == 0 {
            return true;
        }
        let unused = 64u32.saturating_sub(u32::from(len).saturating_mul(8));
        let value = value & u64::MAX.checked_shr(unused).unwrap_or(0);
        self.len == u32::from(len) && self.datamatch.is_none_or(|want| want == value)
    }

    /// What registrations are sorted by.
    pub const fn key(&self) -> (Bus, u64) {
        (self.bus, self.addr)
    }
}

/// Where in `events`, sorted by key, another one with this key goes.
pub fn place(events: &[IoEvent], key: (Bus, u64)) -> usize {
    events.partition_point(|e| e.key() < key)
}

/// Which of `events`, sorted by key, a write hits; at most one, as others would have collided.
pub fn find(events: &[IoEvent], bus: Bus, addr: u64, len: u8, value: u64) -> Option<usize> {
    let first = place(events, (bus, addr));
    let rest = events.get(first..)?;
    rest.iter()
        .take_while(|e| e.key() == (bus, addr))
        .position(|e| e.takes(len, value))
        .map(|at| first.wrapping_add(at))
}

#[cfg(test)]
#[path = "ioevent_tests.rs"]
mod tests;
