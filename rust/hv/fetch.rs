// SPDX-License-Identifier: GPL-2.0
//! Remembering what instruction fetches found.
//!
//! Where the CPU does not tell the length of an intercepted instruction, each exit has to fetch and decode it, through a walk of the
//! guest's page tables. A guest exits at few places, again and again, so what a fetch found is remembered together with all that it
//! depended on: the registers, the slots, and each word of guest memory that was read, the page-table entries as well as the code.
//! It counts only while every one of them is the same. So it gives what a new walk would give, whatever the guest or another vCPU
//! changes, at the price of one look at each word.

use core::cell::Cell;

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::guest_mem::{Fetched, Physical, MAX_INSN};
use crate::hv::vcpu::Loaded;
use crate::mmu::gwalk::GuestMem;
use crate::mmu::Gpa;
use crate::model::cr::{cr0, efer};
use crate::model::emu::decode::{decode, DecodeError};
use crate::model::emu::insn::Kind;
use crate::model::event::Exception;
use crate::model::regs::{rflags, CpuMode, Seg};
use crate::sys::mm::{self, UserWord};

/// Places that are remembered; a power of two.
const PLACES: usize = 4;
/// Words that a fetch can depend on: five levels of page tables, two words of code.
const WORDS: usize = 7;

/// The registers that decide what is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    linear: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    user: bool,
    mode: CpuMode,
}

/// A fetch, and what it depended on.
#[derive(Clone, Copy)]
struct Known {
    key: Key,
    generation: u64,
    words: [UserWord; WORDS],
    count: usize,
    kind: Kind,
    len: u8,
}

impl Known {
    fn fetched(&self) -> Fetched {
        let mut fetched = Fetched::default();
        let code = self.words.iter().take(self.count);
        // The last two words.
        let code = code.skip(self.count.saturating_sub(2));
        for (to, from) in fetched
            .bytes
            .iter_mut()
            .zip(code.flat_map(|word| word.value.to_le_bytes()))
        {
            *to = from;
        }
        fetched.len = MAX_INSN;
        fetched
    }
}

/// The fetches that a vCPU remembers.
pub(crate) struct FetchCache(KVec<Option<Known>>);

impl FetchCache {
    /// None yet, and no room for any: most CPUs never need it.
    pub(crate) const fn new() -> Self {
        Self(KVec::new())
    }

    /// Forgets all: the guest's CPUID changes, which walks depend on too.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    fn remember(&mut self, known: &Known) {
        while self.0.len() < PLACES {
            if self.0.push(None, GFP_KERNEL_ACCOUNT).is_err() {
                return;
            }
        }
        if let Some(place) = self.place(&known.key) {
            *place = Some(*known);
        }
    }

    /// What is known of this fetch, if it still holds.
    fn find(&mut self, key: &Key, generation: u64) -> Option<&Known> {
        let known = self.place(key)?.as_ref()?;
        let words = known.words.get(..known.count)?;
        let holds = known.key == *key && known.generation == generation && mm::words_are(words);
        holds.then_some(known)
    }

    fn place(&mut self, key: &Key) -> Option<&mut Option<Known>> {
        let hash = key.linear ^ key.linear >> 4 ^ key.linear >> 12;
        self.0.get_mut(hash as usize % PLACES)
    }
}

/// What a walk reads, as it reads it.
pub(super) struct Recorder<'a, B: Backend> {
    memory: Physical<'a, B>,
    words: Cell<[(u64, u64); WORDS]>,
    /// How many; more than there is room for: useless.
    count: Cell<usize>,
}

impl<'a, B: Backend> Recorder<'a, B> {
    pub(super) fn new(memory: Physical<'a, B>) -> Self {
        Self {
            memory,
            words: Cell::new([(0, 0); WORDS]),
            count: Cell::new(0),
        }
    }

    fn note(&self, gpa: u64, len: u8, value: u64) {
        let (mut words, mut n) = (self.words.get(), self.count.get());
        let known = words.iter().take(n).position(|w| w.0 == gpa);
        // Entries of four bytes are those of old paging modes, which are not worth the trouble.
        match words.get_mut(known.unwrap_or(n)) {
            Some(word) if len == 8 => {
                *word = (gpa, value);
                n = n.max(known.map_or(n.saturating_add(1), |_| n));
            }
            _ => n = WORDS.saturating_add(1),
        }
        self.words.set(words);
        self.count.set(n);
    }
}

impl<B: Backend> GuestMem for Recorder<'_, B> {
    fn read(&self, gpa: u64, len: u8) -> Option<u64> {
        let value = self.memory.read(gpa, len)?;
        self.note(gpa, len, value);
        Some(value)
    }

    fn cmpxchg(&self, gpa: u64, len: u8, old: u64, new: u64) -> Option<bool> {
        let done = self.memory.cmpxchg(gpa, len, old, new)?;
        if done {
            self.note(gpa, len, new);
        }
        Some(done)
    }
}

impl<B: Backend> Loaded<'_, B> {
    fn fetch_key(&mut self) -> Key {
        let cs = B::segment(&mut self.state.hw, Seg::Cs);
        let (c, regs) = (&self.state.controls, &self.state.switch.regs);
        let bits64 = c.efer & efer::LMA != 0 && cs.attr.l();
        let real = c.cr0 & cr0::PE == 0 || regs.rflags & rflags::VM != 0;
        let mode = if bits64 {
            CpuMode::Bits64
        } else if !real && cs.attr.db() {
            CpuMode::Bits32
        } else {
            CpuMode::Bits16
        };
        let linear = if bits64 {
            regs.rip
        } else {
            cs.base.wrapping_add(regs.rip) & 0xffff_ffff
        };
        let (cr0, cr4, efer) = (c.cr0, c.cr4, c.efer);
        Key {
            linear,
            cr0,
            cr3: B::cr3(&mut self.state.hw),
            cr4,
            efer,
            user: B::cpl(&mut self.state.hw) == 3,
            mode,
        }
    }

    /// What the instruction at RIP is, and its length. The fault is what the guest gets for it, or None when it cannot be read.
    pub(crate) fn identify(&mut self) -> Result<(Kind, u8), Option<Exception>> {
        let key = self.fetch_key();
        let generation = self.vm.mmu.slots_generation();
        if let Some(known) = self.state.fetches.find(&key, generation) {
            return Ok((known.kind, known.len));
        }
        let fetched = self.fetch_anew(key, generation);
        describe(&fetched, key.mode).map_err(|e| fetched.fault(e))
    }

    /// Reads the bytes of the instruction at RIP, as many as can be read.
    pub(crate) fn fetch(&mut self) -> Fetched {
        let key = self.fetch_key();
        let generation = self.vm.mmu.slots_generation();
        if let Some(known) = self.state.fetches.find(&key, generation) {
            return known.fetched();
        }
        self.fetch_anew(key, generation)
    }

    /// Fetches, and remembers what can be remembered.
    #[inline(never)]
    fn fetch_anew(&mut self, key: Key, generation: u64) -> Fetched {
        let recorder = Recorder::new(Physical(self.vm));
        let fetched = self.fetch_from(&recorder, key.linear, key.user);
        if let Ok(described) = describe(&fetched, key.mode) {
            self.remember(key, generation, described, &recorder, &fetched);
        }
        fetched
    }

    /// Keeps what was fetched for the next time. (Not inlined: the two together have too large a stack frame.)
    #[inline(never)]
    fn remember(
        &mut self,
        key: Key,
        generation: u64,
        (kind, len): (Kind, u8),
        recorder: &Recorder<'_, B>,
        fetched: &Fetched,
    ) {
        let mut known = Known {
            key,
            generation,
            words: [UserWord::default(); WORDS],
            count: 0,
            kind,
            len,
        };
        if self.depends(&mut known, recorder, fetched).is_some() {
            self.state.fetches.remember(&known);
        }
    }

    /// Writes down what a fetch depended on, if that can be said by a few words.
    #[inline(never)]
    fn depends(
        &self,
        known: &mut Known,
        recorder: &Recorder<'_, B>,
        fetched: &Fetched,
    ) -> Option<()> {
        // PAE paging has its first level in registers.
        if known.key.cr0 & cr0::PG != 0 && known.key.efer & efer::LMA == 0 {
            return None;
        }
        let code = fetched.code?;
        let count = recorder.count.get();
        let found = recorder.words.get();
        for (to, (gpa, value)) in known.words.iter_mut().zip(found).take(count) {
            let hva = self.vm.mmu.user_address(Gpa(gpa))?;
            *to = UserWord { hva, value };
        }
        let hva = self.vm.mmu.user_address(Gpa(code))?;
        // Sixteen bytes, of which the last is not of the instruction: what it is does not matter, but that it is the same.
        let mut bytes = [0u8; 16];
        self.vm.mmu.read_guest(Gpa(code), &mut bytes).ok()?;
        // They may have changed since they were decoded.
        if bytes.get(..MAX_INSN) != Some(fetched.bytes()) {
            return None;
        }
        for (n, chunk) in bytes.chunks_exact(8).enumerate() {
            *known.words.get_mut(count.saturating_add(n))? = UserWord {
                hva: hva.wrapping_add((n as u64).wrapping_mul(8)),
                value: u64::from_le_bytes(chunk.try_into().ok()?),
            };
        }
        known.count = count.saturating_add(2);
        Some(())
    }
}

/// What the fetched instruction is, and its length.
#[inline(never)]
fn describe(fetched: &Fetched, mode: CpuMode) -> Result<(Kind, u8), DecodeError> {
    let insn = decode(fetched.bytes(), mode)?;
    Ok((insn.kind(), insn.len))
}
