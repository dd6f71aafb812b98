// SPDX-License-Identifier: GPL-2.0
//! The instruction at RIP, which is remembered with what it depended on (`known.rs`).
//!
//! Where the CPU does not tell the length of an intercepted instruction, each exit has to fetch and decode it, and so has an exit
//! whose instruction is emulated.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::guest_mem::{Fetched, Physical, MAX_INSN};
use crate::hv::known::{Basis, Known, Place, Recorder, Table};
use crate::hv::vcpu::Loaded;
use crate::mmu::Gpa;
use crate::model::cr::efer;
use crate::model::emu::decode::{decode, DecodeError};
use crate::model::emu::insn::{Insn, Kind};
use crate::model::event::Exception;
use crate::model::regs::{Context, CpuMode, Seg};
use crate::sys::mm::UserWord;

/// What decides which instruction is at RIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    at: Place,
    user: bool,
    mode: CpuMode,
}

impl Key {
    const fn hash(&self) -> u64 {
        let linear = self.at.linear;
        linear ^ linear >> 4 ^ linear >> 12
    }
}

/// The instructions that a vCPU remembers.
pub(crate) type Fetches = Table<Key, Insn>;

/// The bytes, as many as can be read, and why they are no instruction.
pub(crate) type NoInsn = (Fetched, DecodeError);

impl<B: Backend> Loaded<'_, B> {
    #[inline]
    fn fetch_key(&mut self) -> Key {
        let cs = B::segment(&mut self.state.hw, Seg::Cs);
        let (c, regs) = (&self.state.controls, &self.state.switch.regs);
        let bits64 = c.efer & efer::LMA != 0 && cs.attr.l();
        // As the emulator sees it.
        let mode = if bits64 {
            CpuMode::Bits64
        } else if cs.attr.db() {
            CpuMode::Bits32
        } else {
            CpuMode::Bits16
        };
        let linear = if bits64 {
            regs.rip
        } else {
            cs.base.wrapping_add(regs.rip) & 0xffff_ffff
        };
        Key {
            at: self.place(linear),
            user: B::cpl(&mut self.state.hw) == 3,
            mode,
        }
    }

    /// What the instruction at RIP is, and its length. The fault is what the guest gets for it, or None when it cannot be read.
    #[inline(always)]
    pub(crate) fn identify(&mut self) -> Result<(Kind, u8), Option<Exception>> {
        let key = self.fetch_key();
        let generation = self.vm.mmu.slots_generation();
        if let Some(insn) = self.state.fetches.find(key.hash(), &key, generation) {
            return Ok((insn.kind(), insn.len));
        }
        self.identify_anew(&key, generation)
    }

    #[cold]
    #[inline(never)]
    fn identify_anew(
        &mut self,
        key: &Key,
        generation: u64,
    ) -> Result<(Kind, u8), Option<Exception>> {
        match self.fetch_anew(key, generation) {
            Ok(insn) => Ok((insn.kind(), insn.len)),
            Err((fetched, e)) => Err(fetched.fault(e)),
        }
    }

    /// Begins the emulation of the instruction at RIP.
    pub(crate) fn begin_job(&mut self, context: &Context) -> Result<(), NoInsn> {
        let key = self.fetch_key();
        let generation = self.vm.mmu.slots_generation();
        let state = &mut *self.state;
        if let Some(insn) = state.fetches.find(key.hash(), &key, generation) {
            state.job.begin(insn, &state.switch.regs, context);
            return Ok(());
        }
        let insn = self.fetch_anew(&key, generation)?;
        let state = &mut *self.state;
        state.job.begin(&insn, &state.switch.regs, context);
        Ok(())
    }

    /// Reads the bytes of the instruction at RIP, as many as can be read.
    pub(crate) fn fetch(&mut self) -> Fetched {
        let key = self.fetch_key();
        self.fetch_from(&Physical(self.vm), key.at.linear, key.user)
    }

    /// Fetches and decodes, and remembers what can be remembered.
    #[inline(never)]
    fn fetch_anew(&mut self, key: &Key, generation: u64) -> Result<Insn, NoInsn> {
        let recorder = Recorder::new(Physical(self.vm));
        let fetched = self.fetch_from(&recorder, key.at.linear, key.user);
        match decode(fetched.bytes(), key.mode) {
            Ok(insn) => {
                self.remember_insn(key, generation, &recorder, &fetched, &insn);
                Ok(insn)
            }
            Err(e) => Err((fetched, e)),
        }
    }

    /// Keeps the instruction for the next time. (Not inlined: the two together have too large a stack frame.)
    #[inline(never)]
    fn remember_insn(
        &mut self,
        key: &Key,
        generation: u64,
        recorder: &Recorder<'_, B>,
        fetched: &Fetched,
        insn: &Insn,
    ) {
        let mut known = Known {
            key: *key,
            basis: Basis::new(generation),
            value: *insn,
        };
        let path = self.path(&mut known.basis, &key.at, recorder);
        if path
            .and_then(|()| self.code(&mut known.basis, fetched))
            .is_some()
        {
            self.state.fetches.remember(key.hash(), &known);
        }
    }

    /// Writes down the words that hold the fetched bytes.
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
            basis.add(UserWord {
                hva: hva.wrapping_add((n as u64).wrapping_mul(8)),
                value: u64::from_le_bytes(chunk.try_into().ok()?),
            })?;
        }
        Some(())
    }
}
