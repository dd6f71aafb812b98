// SPDX-License-Identifier: GPL-2.0
//! Remembering what instruction fetches and page walks found.
//!
//! Where the CPU does not tell the length of an intercepted instruction, each exit has to fetch and decode it, through a walk of the
//! guest's page tables. A guest exits at few places, again and again, so what a fetch found is remembered together with all that it
//! depended on: the registers, the slots, and each word of guest memory that was read, the page-table entries as well as the code. The
//! same goes for the walk to the data of an emulated access. It counts only while every one of them is the same. So it gives what a new walk would give, whatever the guest or another vCPU
//! changes, at the price of one look at each word.

use core::cell::Cell;

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::guest_mem::{Fetched, Physical, MAX_INSN};
use crate::hv::vcpu::Loaded;
use crate::mmu::gwalk::{Access, GuestMem};
use crate::mmu::Gpa;
use crate::model::cr::{cr0, efer};
use crate::model::emu::decode::{decode, DecodeError};
use crate::model::emu::insn::{Insn, Kind};
use crate::model::event::Exception;
use crate::model::regs::{rflags, CpuMode, Seg};
use crate::sys::mm::{self, UserWord};

/// Places that are remembered of each kind; a power of two.
const PLACES: usize = 4;
/// Words that a fetch can depend on: five levels of page tables, two words of code.
const WORDS: usize = 7;

/// The registers that decide where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    linear: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    user: bool,
}

/// What decides which instruction is at RIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FetchKey {
    at: Place,
    mode: CpuMode,
}

/// What decides the page of an access to data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WalkKey {
    at: Place,
    write: bool,
    ac: bool,
    pkru: u32,
}

/// What something depended on: words of guest memory, and the slots that say where they are.
#[derive(Clone, Copy, Default)]
struct Basis {
    generation: u64,
    words: [UserWord; WORDS],
    count: usize,
}

impl Basis {
    /// Is all of it as it was?
    fn holds(&self, generation: u64) -> bool {
        let words = self.words.get(..self.count).unwrap_or(&[]);
        self.generation == generation && mm::words_are(words)
    }
}

/// An answer, the question, and what makes it hold.
#[derive(Clone, Copy)]
struct Known<K, V> {
    key: K,
    basis: Basis,
    value: V,
}

/// A few answers, each in a place that the linear address of its question chooses.
struct Table<K, V>(KVec<Option<Known<K, V>>>);

impl<K: Copy + PartialEq, V: Copy> Table<K, V> {
    fn remember(&mut self, linear: u64, known: &Known<K, V>) {
        while self.0.len() < PLACES {
            if self.0.push(None, GFP_KERNEL_ACCOUNT).is_err() {
                return;
            }
        }
        if let Some(place) = self.0.get_mut(linear as usize % PLACES) {
            *place = Some(*known);
        }
    }

    /// The answer, if it still holds.
    fn find(&self, linear: u64, key: &K, generation: u64) -> Option<&Known<K, V>> {
        let known = self.0.get(linear as usize % PLACES)?.as_ref()?;
        (known.key == *key && known.basis.holds(generation)).then_some(known)
    }
}

/// What a vCPU remembers of its fetches and of its walks for data.
pub(crate) struct FetchCache {
    fetches: Table<FetchKey, Insn>,
    /// The guest-physical page of a linear page.
    walks: Table<WalkKey, u64>,
}

impl FetchCache {
    /// Nothing yet, and no room for anything: most CPUs never need it.
    pub(crate) const fn new() -> Self {
        Self {
            fetches: Table(KVec::new()),
            walks: Table(KVec::new()),
        }
    }

    /// Forgets all: the guest's CPUID changes, which walks depend on too.
    pub(crate) fn clear(&mut self) {
        self.fetches.0.clear();
        self.walks.0.clear();
    }
}

/// The bytes that the last two words of `basis` hold.
fn code_of(basis: &Basis) -> Fetched {
    let mut fetched = Fetched::default();
    let code = basis.words.iter().take(basis.count);
    let code = code.skip(basis.count.saturating_sub(2));
    let bytes = code.flat_map(|word| word.value.to_le_bytes());
    for (to, from) in fetched.bytes.iter_mut().zip(bytes) {
        *to = from;
    }
    fetched.len = MAX_INSN;
    fetched
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
    fn place(&mut self, linear: u64) -> Place {
        let c = &self.state.controls;
        let (cr0, cr4, efer) = (c.cr0, c.cr4, c.efer);
        Place {
            linear,
            cr0,
            cr3: B::cr3(&mut self.state.hw),
            cr4,
            efer,
            user: B::cpl(&mut self.state.hw) == 3,
        }
    }

    fn fetch_key(&mut self) -> FetchKey {
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
        FetchKey {
            at: self.place(linear),
            mode,
        }
    }

    /// What the instruction at RIP is, and its length. The fault is what the guest gets for it, or None when it cannot be read.
    pub(crate) fn identify(&mut self) -> Result<(Kind, u8), Option<Exception>> {
        let key = self.fetch_key();
        let generation = self.vm.mmu.slots_generation();
        let fetches = &self.state.fetches.fetches;
        if let Some(known) = fetches.find(place_of(key.at.linear), &key, generation) {
            return Ok((known.value.kind(), known.value.len));
        }
        match self.fetch_anew(key, generation) {
            Ok(insn) => Ok((insn.kind(), insn.len)),
            Err((fetched, e)) => Err(fetched.fault(e)),
        }
    }

    /// The instruction at RIP; or the bytes, as many as can be read, and why they are none.
    pub(crate) fn instruction(&mut self) -> Result<Insn, (Fetched, DecodeError)> {
        let key = self.fetch_key();
        let generation = self.vm.mmu.slots_generation();
        let fetches = &self.state.fetches.fetches;
        if let Some(known) = fetches.find(place_of(key.at.linear), &key, generation) {
            return Ok(known.value);
        }
        self.fetch_anew(key, generation)
    }

    /// The bytes of the instruction at RIP, as many as can be read.
    pub(crate) fn fetch(&mut self) -> Fetched {
        let key = self.fetch_key();
        let generation = self.vm.mmu.slots_generation();
        let fetches = &self.state.fetches.fetches;
        if let Some(known) = fetches.find(place_of(key.at.linear), &key, generation) {
            return code_of(&known.basis);
        }
        self.fetch_from(&Physical(self.vm), key.at.linear, key.at.user)
    }

    /// Fetches and decodes, and remembers what can be remembered.
    #[inline(never)]
    fn fetch_anew(
        &mut self,
        key: FetchKey,
        generation: u64,
    ) -> Result<Insn, (Fetched, DecodeError)> {
        let recorder = Recorder::new(Physical(self.vm));
        let fetched = self.fetch_from(&recorder, key.at.linear, key.at.user);
        let insn = match decode(fetched.bytes(), key.mode) {
            Ok(insn) => insn,
            Err(e) => return Err((fetched, e)),
        };
        self.remember_fetch(&key, generation, &recorder, &fetched, &insn);
        Ok(insn)
    }

    #[inline(never)]
    fn remember_fetch(
        &mut self,
        key: &FetchKey,
        generation: u64,
        recorder: &Recorder<'_, B>,
        fetched: &Fetched,
        insn: &Insn,
    ) {
        let mut known = Known {
            key: *key,
            basis: Basis::default(),
            value: *insn,
        };
        known.basis.generation = generation;
        let path = self.path(&mut known.basis, &key.at, recorder);
        if path
            .and_then(|()| self.code(&mut known.basis, fetched))
            .is_some()
        {
            let table = &mut self.state.fetches.fetches;
            table.remember(place_of(key.at.linear), &known);
        }
    }

    /// The guest-physical address of an access to data. The fault is the guest's page fault, or None when the guest's page tables
    /// are not in memory.
    pub(crate) fn translate_known(
        &mut self,
        linear: u64,
        access: Access,
    ) -> Result<u64, Option<Exception>> {
        let offset = linear & 0xfff;
        let key = WalkKey {
            at: self.place(linear & !0xfff),
            write: access.write,
            ac: self.state.switch.regs.rflags & rflags::AC != 0,
            pkru: self.state.switch.pkru,
        };
        let generation = self.vm.mmu.slots_generation();
        let walks = &self.state.fetches.walks;
        if let Some(known) = walks.find(linear >> 12, &key, generation) {
            return Ok(known.value | offset);
        }
        self.walk_anew(&key, generation, linear, access)
    }

    #[inline(never)]
    fn walk_anew(
        &mut self,
        key: &WalkKey,
        generation: u64,
        linear: u64,
        access: Access,
    ) -> Result<u64, Option<Exception>> {
        let recorder = Recorder::new(Physical(self.vm));
        let gpa = self.translate_in(&recorder, linear, access)?.gpa;
        let mut known = Known {
            key: *key,
            basis: Basis::default(),
            value: gpa & !0xfff,
        };
        known.basis.generation = generation;
        if self.path(&mut known.basis, &key.at, &recorder).is_some() {
            self.state.fetches.walks.remember(linear >> 12, &known);
        }
        Ok(gpa)
    }

    /// Writes down the page-table entries that a walk went through, if they can be said by a few words.
    fn path(&self, basis: &mut Basis, at: &Place, recorder: &Recorder<'_, B>) -> Option<()> {
        // PAE paging has its first level in registers.
        if at.cr0 & cr0::PG != 0 && at.efer & efer::LMA == 0 {
            return None;
        }
        let count = recorder.count.get();
        let found = recorder.words.get();
        for (to, (gpa, value)) in basis.words.iter_mut().zip(found).take(count) {
            let hva = self.vm.mmu.user_address(Gpa(gpa))?;
            *to = UserWord { hva, value };
        }
        basis.count = count;
        (count <= WORDS).then_some(())
    }

    /// And the code.
    fn code(&self, basis: &mut Basis, fetched: &Fetched) -> Option<()> {
        let code = fetched.code?;
        let hva = self.vm.mmu.user_address(Gpa(code))?;
        // Sixteen bytes, of which the last is not of the instruction: what it is does not matter, but that it is the same.
        let mut bytes = [0u8; 16];
        self.vm.mmu.read_guest(Gpa(code), &mut bytes).ok()?;
        // They may have changed since they were decoded.
        if bytes.get(..MAX_INSN) != Some(fetched.bytes()) {
            return None;
        }
        for (n, chunk) in bytes.chunks_exact(8).enumerate() {
            *basis.words.get_mut(basis.count)? = UserWord {
                hva: hva.wrapping_add((n as u64).wrapping_mul(8)),
                value: u64::from_le_bytes(chunk.try_into().ok()?),
            };
            basis.count = basis.count.saturating_add(1);
        }
        Some(())
    }
}

/// Spreads code addresses over the places.
const fn place_of(linear: u64) -> u64 {
    linear ^ linear >> 4 ^ linear >> 12
}
