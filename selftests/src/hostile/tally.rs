// SPDX-License-Identifier: GPL-2.0
//! Counts what the attackers' processes call, in memory that outlives them: how often each ioctl was made, and how often it was taken.

use super::ioctls;
use crate::check;
use crate::harness;
use crate::kvm::RUN;
use crate::sys::{self, Map};
use libc::{MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE};

/// Bytes for one ioctl of one thread: made, taken.
const ENTRY: usize = 8;

/// From so many calls on each ioctl has been made for certain: it is one of about 150 of them, so that one is left out with a
/// probability of e^-60.
const CERTAIN: u64 = 10_000;

/// One count for each ioctl of the list and each thread, so that no two write to the same one.
pub struct Tally {
    map: Map,
    threads: usize,
}

impl Tally {
    /// Nothing yet, for processes of `threads` threads each. They come one after the other.
    pub fn new(threads: usize) -> Self {
        let len = ioctls::ALL.len() * threads * ENTRY;
        let prot = PROT_READ | PROT_WRITE;
        let map = crate::must!(Map::new(len, prot, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        Self { map, threads }
    }

    fn at(&self, thread: usize, ioctl: usize) -> usize {
        (ioctl * self.threads + thread) * ENTRY
    }

    fn add(&self, at: usize) {
        self.map.wr(at, self.map.rd::<u32>(at).saturating_add(1));
    }

    /// Thread `thread` is about to make the ioctl `nr`; one that is not in the list does not count. Gives its place for `taken`.
    pub fn made(&self, thread: usize, nr: u64) -> Option<usize> {
        let ioctl = ioctls::ALL.iter().position(|(known, _)| *known == nr)?;
        let at = self.at(thread, ioctl);
        self.add(at);
        Some(at)
    }

    /// It succeeded.
    pub fn taken(&self, at: Option<usize>) {
        if let Some(at) = at {
            self.add(at + ENTRY / 2);
        }
    }

    /// How often an ioctl was made, and taken.
    fn of(&self, ioctl: usize) -> (u64, u64) {
        let sum = |part: usize| {
            (0..self.threads)
                .map(|t| u64::from(self.map.rd::<u32>(self.at(t, ioctl) + part)))
                .sum()
        };
        (sum(0), sum(ENTRY / 2))
    }

    /// Tells what there was, and fails if an ioctl of the list was left out though there were enough calls for each.
    pub fn report(&self) {
        let (mut calls, mut taken) = (0, 0);
        let mut never = Vec::new();
        for (i, (nr, name)) in ioctls::ALL.iter().enumerate() {
            let (made, good) = self.of(i);
            calls += made;
            taken += u32::from(good > 0);
            // Where guests do not run, that is on purpose.
            if made == 0 && (*nr != RUN || sys::on_tcg()) {
                never.push(*name);
            }
        }
        harness::say(&format!(
            "{calls} calls of {} ioctls; {taken} of them succeeded at least once, {} were never made",
            ioctls::ALL.len(),
            never.len()
        ));
        if calls >= CERTAIN {
            check!(never.is_empty(), "never made in {calls} calls: {never:?}");
            // More than fifty are served, and most of them are not hard to please.
            check!(taken >= 30, "hardly an ioctl succeeded");
        }
    }
}
