// SPDX-License-Identifier: GPL-2.0
//! The bitmap against a set of pages; marks and takes by several threads lose nothing.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Word(AtomicU64);

impl Cell64 for Word {
    fn load(&self) -> u64 {
        self.0.load(SeqCst)
    }
    fn store(&self, value: u64) {
        self.0.store(value, SeqCst);
    }
    fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange(old, new, SeqCst, SeqCst)
    }
    fn swap(&self, value: u64) -> u64 {
        self.0.swap(value, SeqCst)
    }
}

fn bitmap(pages: u64) -> Vec<Word> {
    (0..words(pages)).map(|_| Word::default()).collect()
}

/// All pages that are marked, taken word by word.
fn drain(bitmap: &[Word]) -> Vec<u64> {
    let mut pages = Vec::new();
    for (i, cell) in bitmap.iter().enumerate() {
        for run in runs(Gfn(i as u64 * WORD_PAGES), take(cell)) {
            assert!(!run.is_empty());
            pages.extend(run.start.0..run.end.0);
        }
    }
    pages
}

#[test]
fn sizes() {
    assert_eq!(
        [0, 1, 63, 64, 65, 128, (1 << 31) - 1].map(words),
        [0, 1, 1, 1, 2, 2, 1 << 25]
    );
}

proptest! {
    #[test]
    fn takes_what_was_marked(
        pages in 1u64..300,
        marks in proptest::collection::vec(0u64..310, 0..200),
    ) {
        let bitmap = bitmap(pages);
        let mut model = BTreeSet::new();
        for page in marks {
            mark(&bitmap, page);
            // The last word reaches beyond the slot.
            if page < words(pages) * WORD_PAGES {
                model.insert(page);
            }
        }
        prop_assert_eq!(drain(&bitmap), model.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(drain(&bitmap), Vec::<u64>::new());
    }

    #[test]
    fn runs_are_the_longest(word in any::<u64>()) {
        let all: Vec<_> = runs(Gfn(1000), word).collect();
        prop_assert!(all.windows(2).all(|w| w[0].end < w[1].start), "{all:?}");
        let back = all.iter().fold(0u64, |w, r| {
            (r.start.0..r.end.0).fold(w, |w, gfn| w | 1 << (gfn - 1000))
        });
        prop_assert_eq!(back, word);
    }
}

#[test]
fn full_words() {
    assert_eq!(
        runs(Gfn(0), u64::MAX).collect::<Vec<_>>(),
        [GfnRange::new(Gfn(0), 64)]
    );
    assert_eq!(
        runs(Gfn(7), 1 << 63).collect::<Vec<_>>(),
        [GfnRange::new(Gfn(70), 1)]
    );
}

#[test]
fn threads_lose_nothing() {
    const PAGES: u64 = 256;
    let bitmap = bitmap(PAGES);
    let marked: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    let (bitmap, marked) = (&bitmap, &marked);
    let mut found = std::thread::scope(|s| {
        let threads: Vec<_> = (0..3u64)
            .map(|n| {
                s.spawn(move || {
                    for i in 0..20_000u64 {
                        let page = (i * 7 + n * 13) % PAGES;
                        marked[page as usize].fetch_add(1, SeqCst);
                        mark(bitmap, page);
                    }
                })
            })
            .collect();
        let mut last = std::vec![0u64; PAGES as usize];
        while !threads.iter().all(|t| t.is_finished()) {
            for page in drain(bitmap) {
                last[page as usize] = marked[page as usize].load(SeqCst);
            }
        }
        last
    });
    for page in drain(bitmap) {
        found[page as usize] = marked[page as usize].load(SeqCst);
    }
    // Whatever was written last was found after it was written.
    for (page, seen) in found.iter().enumerate() {
        assert_eq!(*seen, marked[page].load(SeqCst), "page {page}");
    }
}
