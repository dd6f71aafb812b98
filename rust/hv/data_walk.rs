// SPDX-License-Identifier: GPL-2.0
//! The way to the data of an emulated access, which is remembered with what it depended on (`known.rs`).
//!
//! A walk that found its page has set the accessed flags, and the dirty flag for a write: these are bits of the words that it depended
//! on, so while they are unchanged there is nothing left to set.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::guest_mem::Physical;
use crate::hv::known::{Basis, Known, Place, Recorder, Table};
use crate::hv::vcpu::Loaded;
use crate::mmu::gwalk::Access;
use crate::mmu::Gpa;
use crate::model::event::Exception;
use crate::model::regs::rflags;

/// What decides where a linear page leads, and whether the access is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    at: Place,
    access: Access,
    ac: bool,
    pkru: u32,
}

impl Key {
    const fn hash(&self) -> u64 {
        self.at.linear >> 12
    }
}

/// Where an address, or its page, leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Guest-physical.
    pub(crate) gpa: u64,
    /// It is in a slot, if only in one that cannot be written. Otherwise it is a device.
    pub(crate) memory: bool,
}

/// The walks that a vCPU remembers: from a linear page to a guest-physical one.
pub(crate) type Walks = Table<Key, Found>;

/// The bits of an address within its page.
const OFFSET: u64 = 0xfff;

impl Found {
    /// The address in this page that `linear` leads to.
    const fn at(self, linear: u64) -> Self {
        Self {
            gpa: self.gpa | linear & OFFSET,
            ..self
        }
    }
}

impl<B: Backend> Loaded<'_, B> {
    /// Where a data access goes. The fault is the guest's page fault, or None when others keep changing the entries.
    pub(crate) fn walk_to_data(
        &mut self,
        linear: u64,
        access: Access,
    ) -> Result<Found, Option<Exception>> {
        let key = Key {
            at: self.place(linear & !OFFSET),
            access,
            ac: self.state.switch.regs.rflags & rflags::AC != 0,
            pkru: self.state.switch.pkru,
        };
        let generation = self.vm.mmu.slots_generation();
        match self.state.walks.find(key.hash(), &key, generation) {
            Some(page) => Ok(page.at(linear)),
            None => self.walk_anew(&key, generation, linear),
        }
    }

    /// Walks, and remembers what can be remembered.
    #[inline(never)]
    fn walk_anew(
        &mut self,
        key: &Key,
        generation: u64,
        linear: u64,
    ) -> Result<Found, Option<Exception>> {
        let recorder = Recorder::new(Physical(self.vm));
        let gpa = self.translate_in(&recorder, linear, key.access)?.gpa;
        let mut known = Known {
            key: *key,
            basis: Basis::new(generation),
            value: Found {
                gpa: gpa & !OFFSET,
                memory: self.vm.mmu.is_memory(Gpa(gpa), false),
            },
        };
        if self.path(&mut known.basis, &key.at, &recorder).is_some() {
            self.state.walks.remember(key.hash(), &known);
        }
        Ok(known.value.at(linear))
    }
}
