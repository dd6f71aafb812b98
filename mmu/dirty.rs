// SPDX-License-Identifier: GPL-2.0
//! Which pages of a slot were written: a bitmap of atomic words, marked by any number of CPUs at once and taken by one.
//!
//! What makes it complete is an order: a write is marked *after* it was made, or, where the guest makes it, no later than it gets the right to; and
//! who takes a mark takes that right with it, and flushes, *before* anybody looks at the page.
#![forbid(unsafe_code)]

use super::storage::Cell64;
use super::{Gfn, GfnRange};

/// Pages that a word stands for.
pub const WORD_PAGES: u64 = u64::BITS as u64;

/// Words of the bitmap of a slot of `pages` pages. KVM's ABI: bit `n` of the little-endian whole is the slot's page `n`.
pub const fn words(pages: u64) -> u64 {
    pages.div_ceil(WORD_PAGES)
}

/// Marks the slot's page `page`. A page beyond the end is not there to be marked.
pub fn mark<C: Cell64>(bitmap: &[C], page: u64) {
    let Some(cell) = usize::try_from(page / WORD_PAGES)
        .ok()
        .and_then(|at| bitmap.get(at))
    else {
        return;
    };
    add(cell, 1u64.wrapping_shl((page % WORD_PAGES) as u32));
}

/// Sets these bits of a word.
pub fn add<C: Cell64>(cell: &C, bits: u64) {
    let mut old = cell.load();
    // A failed exchange means that somebody else marked another page, so this comes to an end.
    while old & bits != bits {
        match cell.compare_exchange(old, old | bits) {
            Ok(_) => return,
            Err(now) => old = now,
        }
    }
}

/// Takes what a word holds, and leaves it empty.
pub fn take<C: Cell64>(cell: &C) -> u64 {
    if cell.load() == 0 {
        return 0;
    }
    cell.swap(0)
}

/// The pages that a word of marks stands for, in runs; `first` is that of bit 0.
pub fn runs(first: Gfn, word: u64) -> impl Iterator<Item = GfnRange> {
    let (mut rest, mut at) = (word, first);
    core::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let skip = rest.trailing_zeros();
        let start = at.saturating_add(skip.into());
        rest = rest.wrapping_shr(skip);
        let len = rest.trailing_ones();
        rest = rest.checked_shr(len).unwrap_or(0);
        let run = GfnRange::new(start, len.into());
        at = run.end;
        Some(run)
    })
}

#[cfg(test)]
#[path = "dirty_tests.rs"]
mod tests;
