// SPDX-License-Identifier: GPL-2.0
//! Remembering what was found in guest memory, and what it depended on.
//!
//! A guest exits at few places, again and again, and each exit has to walk the guest's page tables: to the instruction, and to the
//! data that it accesses. So what was found is remembered together with all that it depended on: the registers, the slots, and each
//! word of guest memory that was read. It counts only while every one of them is the same. So it gives what a new walk would give,
//! whatever the guest or another vCPU changes, at the price of one look at each word.

use core::cell::Cell;

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::guest_mem::Physical;
use crate::hv::vcpu::Loaded;
use crate::mmu::gwalk::GuestMem;
use crate::mmu::Gpa;
use crate::model::cr::{cr0, efer};
use crate::sys::mm::{self, UserWord};

/// Answers that are remembered of each kind; a power of two.
const PLACES: usize = 4;
/// Words that an answer can depend on: five levels of page tables, two words of code.
const WORDS: usize = 7;

/// The registers that decide where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) linear: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
}

/// What an answer depended on: words of guest memory, and the slots that say where they are.
#[derive(Clone, Copy)]
pub(crate) struct Basis {
    generation: u64,
    words: [UserWord; WORDS],
    count: usize,
}

impl Basis {
    /// On nothing but the slots, yet.
    pub(crate) fn new(generation: u64) -> Self {
        Self {
            generation,
            words: [UserWord::default(); WORDS],
            count: 0,
        }
    }

    /// Adds a word; None: there is no room.
    pub(crate) fn add(&mut self, word: UserWord) -> Option<()> {
        *self.words.get_mut(self.count)? = word;
        self.count = self.count.saturating_add(1);
        Some(())
    }

    /// Whether all of it is as it was. Never, if it depends on no word.
    #[inline]
    fn holds(&self, generation: u64) -> bool {
        let words = self.words.get(..self.count).unwrap_or(&[]);
        self.generation == generation && mm::words_are(words)
    }
}

/// An answer, the question, and what makes it hold.
#[derive(Clone, Copy)]
pub(crate) struct Known<K, V> {
    pub(crate) key: K,
    pub(crate) basis: Basis,
    pub(crate) value: V,
}

/// A few answers, each in the place that a hash of its question chooses.
pub(crate) struct Table<K, V>(KVec<Option<Known<K, V>>>);

impl<K: Copy + PartialEq, V: Copy> Table<K, V> {
    /// None yet, and no room for any: most CPUs never need it.
    pub(crate) const fn new() -> Self {
        Self(KVec::new())
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Keeps an answer, in place of another one. No matter if there is no memory for it.
    pub(crate) fn remember(&mut self, hash: u64, known: &Known<K, V>) {
        while self.0.len() < PLACES {
            if self.0.push(None, GFP_KERNEL_ACCOUNT).is_err() {
                return;
            }
        }
        if let Some(place) = self.0.get_mut(hash as usize % PLACES) {
            *place = Some(*known);
        }
    }

    /// The answer, if it still holds.
    #[inline]
    pub(crate) fn find(&self, hash: u64, key: &K, generation: u64) -> Option<&V> {
        let known = self.0.get(hash as usize % PLACES)?.as_ref()?;
        (known.key == *key && known.basis.holds(generation)).then_some(&known.value)
    }
}

/// What a walk reads, as it reads it.
pub(crate) struct Recorder<'a, B: Backend> {
    memory: Physical<'a, B>,
    words: [Cell<(u64, u64)>; WORDS],
    /// How many; more than there is room for: useless.
    count: Cell<usize>,
}

impl<'a, B: Backend> Recorder<'a, B> {
    pub(crate) fn new(memory: Physical<'a, B>) -> Self {
        Self {
            memory,
            words: Default::default(),
            count: Cell::new(0),
        }
    }

    fn note(&self, gpa: u64, len: u8, value: u64) {
        let n = self.count.get();
        let known = self.words.iter().take(n).position(|w| w.get().0 == gpa);
        // Entries of four bytes are those of old paging modes, which are not worth the trouble.
        match self.words.get(known.unwrap_or(n)) {
            Some(word) if len == 8 => {
                word.set((gpa, value));
                if known.is_none() {
                    self.count.set(n.saturating_add(1));
                }
            }
            _ => self.spoil(),
        }
    }

    /// What was read cannot be said by a few words.
    fn spoil(&self) {
        self.count.set(WORDS.saturating_add(1));
    }
}

impl<B: Backend> GuestMem for Recorder<'_, B> {
    fn read(&self, gpa: u64, len: u8) -> Option<u64> {
        let value = self.memory.read(gpa, len)?;
        self.note(gpa, len, value);
        Some(value)
    }

    fn cmpxchg(&self, gpa: u64, len: u8, old: u64, new: u64) -> Option<bool> {
        let done = self.memory.cmpxchg(gpa, len, old, new);
        match done {
            Some(true) => self.note(gpa, len, new),
            Some(false) => {}
            // The next walk has to try again to set the flag.
            None => self.spoil(),
        }
        done
    }
}

impl<B: Backend> Loaded<'_, B> {
    /// The question where `linear` leads.
    pub(crate) fn place(&mut self, linear: u64) -> Place {
        let cr3 = B::cr3(&mut self.state.hw);
        let c = &self.state.controls;
        Place {
            linear,
            cr0: c.cr0,
            cr3,
            cr4: c.cr4,
            efer: c.efer,
        }
    }

    /// Writes down the page-table entries that walks from `place` went through, if they can be said by a few words. The slots'
    /// generation in `basis` is from before the walks.
    #[inline(never)]
    pub(crate) fn path(
        &self,
        basis: &mut Basis,
        place: &Place,
        recorder: &Recorder<'_, B>,
    ) -> Option<()> {
        // PAE paging has its first level in registers.
        if place.cr0 & cr0::PG != 0 && place.efer & efer::LMA == 0 {
            return None;
        }
        let words = recorder.words.get(..recorder.count.get())?;
        for (gpa, value) in words.iter().map(Cell::get) {
            let hva = self.vm.mmu.user_address(Gpa(gpa))?;
            basis.add(UserWord { hva, value })?;
        }
        Some(())
    }
}
