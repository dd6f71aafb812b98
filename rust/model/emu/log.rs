// SPDX-License-Identifier: GPL-2.0
//! The answers that a job has so far, in the order of its questions.
//!
//! An answer is recorded as as many words as its question is worth: none where only its arrival counts.
#![forbid(unsafe_code)]

use super::need::{Answer, Need};
use crate::model::regs::{Attr, Segment};

/// Words of answers: enough for a return to an outer privilege level with every access across pages.
const WORDS: usize = 16;

/// Answers of the current iteration.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Log {
    words: [u64; WORDS],
    len: u8,
    answers: u16,
    /// The last answer is of no use once the next one is there.
    carried: bool,
}

/// How many words the answer to a need takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Words(u8);

impl Words {
    pub(super) const fn of(need: &Need) -> Self {
        Self(words(need))
    }
}

const fn words(need: &Need) -> u8 {
    match need {
        Need::Write { .. }
        | Need::CmpXchg { .. }
        | Need::Out { .. }
        | Need::PioToMem { .. }
        | Need::MemToPio { .. }
        | Need::WriteCr { .. }
        | Need::WriteDr { .. }
        | Need::EndLocalBreakpoints
        | Need::WriteMsr { .. }
        | Need::Wrmsr { .. }
        | Need::WriteXcr { .. }
        | Need::Invlpg { .. }
        | Need::WriteVec { .. }
        | Need::WriteTable { .. }
        | Need::LoadSeg { .. }
        | Need::InitFpu => 0,
        Need::In { count, .. } if *count > 1 => 0,
        Need::ReadTable { .. } => 2,
        Need::ReadVec { .. } | Need::Cpuid { .. } => 4,
        _ => 1,
    }
}

/// A segment register as two words.
const fn pack(s: &Segment) -> [u64; 2] {
    let rest = s.limit as u64 | (s.selector as u64) << 32 | (s.attr.0 as u64) << 48;
    [s.base, rest]
}

/// The reverse of [`pack`].
pub(super) const fn unpack([base, rest]: [u64; 2]) -> Segment {
    Segment {
        base,
        limit: rest as u32,
        selector: (rest >> 32) as u16,
        attr: Attr((rest >> 48) as u16),
    }
}

impl Log {
    /// Forgets all answers. (The words stay: none is read before it is recorded.)
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.answers = 0;
        self.carried = false;
    }

    /// Records an answer as so many words; one of another kind counts as zeros. `None` when there is no room.
    pub(super) fn record(&mut self, words: Words, answer: Answer) -> Option<()> {
        if self.carried {
            self.len = self.len.wrapping_sub(1);
            self.carried = false;
        }
        let value = match answer {
            Answer::Ram(yes) | Answer::Exchanged(yes) => [u64::from(yes), 0, 0, 0],
            Answer::Value(value) => [value, 0, 0, 0],
            Answer::Vector(words) => words,
            Answer::Segment(segment) => {
                let [base, rest] = pack(&segment);
                [base, rest, 0, 0]
            }
            Answer::Start | Answer::Ack | Answer::Fault(_) => [0; 4],
        };
        for word in value.into_iter().take(words.0.into()) {
            *self.words.get_mut(usize::from(self.len))? = word;
            self.len = self.len.wrapping_add(1);
        }
        self.answers = self.answers.checked_add(1)?;
        Some(())
    }

    /// The last answer is only passed on in the question that is asked now.
    pub(super) fn carry(&mut self, yes: bool) {
        self.carried = yes;
    }
}

/// How far a run has read the log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    answer: u16,
    word: u8,
    /// The last answer that was read is carried, see [`Cursor::next_carried`].
    pub(super) carried: bool,
}

impl Cursor {
    /// The next answer, if it is there; `N` is the number of its words.
    pub(super) fn next<const N: usize>(&mut self, log: &Log) -> Option<[u64; N]> {
        if self.answer >= log.answers {
            return None;
        }
        self.carried = false;
        self.answer = self.answer.wrapping_add(1);
        let mut words = [0; N];
        for word in &mut words {
            // What is recorded has all its words.
            *word = log.words.get(usize::from(self.word)).copied().unwrap_or(0);
            self.word = self.word.wrapping_add(1);
        }
        Some(words)
    }

    /// As [`Self::next`] for a word that nothing but the very next question depends on: when that one is answered, the
    /// word is forgotten, and zero comes in its place.
    pub(super) fn next_carried(&mut self, log: &Log) -> Option<u64> {
        if self.answer.wrapping_add(1) < log.answers {
            self.answer = self.answer.wrapping_add(1);
            return Some(0);
        }
        let [word] = self.next(log)?;
        self.carried = true;
        Some(word)
    }
}
