// SPDX-License-Identifier: GPL-2.0
//! Guest memory by the guest's own linear addresses: page walks and instruction fetch.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::user;
use crate::hv::vcpu::Loaded;
use crate::hv::vm::Vm;
use crate::mmu::gwalk::{self, Access, GuestMem, Paging, Translation, WalkError};
use crate::mmu::Gpa;
use crate::model::cr::rflags;
use crate::model::emu::decode::DecodeError;
use crate::model::event::Exception;
use crate::model::regs::cr0;
use crate::uapi::kvm_translation;

/// The longest instruction, in bytes.
pub(crate) const MAX_INSN: usize = 15;

/// Walks that are begun again because other vCPUs changed the entries, before giving up on the instruction.
const CONTENDED_WALKS: u32 = 64;

/// Guest-physical memory as the page walk reads it.
pub(crate) struct Physical<'a, B: Backend>(pub(crate) &'a Vm<B>);

impl<B: Backend> GuestMem for Physical<'_, B> {
    fn read(&self, gpa: u64, len: u8) -> Option<u64> {
        self.0.mmu.read_guest_word(Gpa(gpa), len == 8)
    }

    fn cmpxchg(&self, gpa: u64, len: u8, old: u64, new: u64) -> Option<bool> {
        self.0
            .mmu
            .cmpxchg_guest(Gpa(gpa), len.into(), old, new)
            .ok()
            .map(|r| r.is_ok())
    }
}

/// The bytes at RIP.
#[derive(Default)]
pub(crate) struct Fetched {
    pub(super) bytes: [u8; MAX_INSN],
    pub(super) len: usize,
    /// The fault that fetching more would raise; None also where the bytes are not in memory.
    stopped: Option<Exception>,
    /// Where the first byte is in guest-physical memory, if the fifteen and one more are in one page.
    pub(super) code: Option<u64>,
}

impl Fetched {
    /// The bytes that could be read.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// What the guest gets when the instruction cannot be decoded; None: we cannot read it.
    pub(crate) fn fault(&self, e: DecodeError) -> Option<Exception> {
        match e {
            DecodeError::Truncated => self.stopped,
            DecodeError::TooLong => Some(Exception::protection(0)),
            DecodeError::Invalid => Some(Exception::undefined()),
        }
    }
}

impl<B: Backend> Loaded<'_, B> {
    /// The registers that page walks depend on.
    fn paging(&mut self) -> Paging {
        let cr3 = B::cr3(&mut self.state.hw);
        let c = self.state.controls;
        let mode = self.mode();
        // Intel's CPUs have loaded them with CR3, and look at memory no more.
        let pdptrs = match mode.pae_paging() {
            true if B::PDPTRS_IN_CONTROL_BLOCK => Some(B::pdptrs(&mut self.state.hw)),
            true => self.read_pdptrs(cr3),
            false => None,
        };
        Paging {
            cr0: c.cr0,
            cr3,
            cr4: c.cr4,
            efer: c.efer,
            ac: self.state.switch.regs.rflags & rflags::AC != 0,
            maxphyaddr: self.state.features.physical_bits(),
            pdptrs,
            pkru: self.state.switch.pkru,
            gbpages: self.state.features.has(crate::model::features::GBPAGES),
        }
    }

    /// Translates a linear address for an access. The fault is the guest's page fault, or None when others keep changing the entries.
    pub(crate) fn translate(
        &mut self,
        linear: u64,
        access: Access,
    ) -> Result<Translation, Option<Exception>> {
        self.translate_in(&Physical(self.vm), linear, access)
    }

    /// As [`Loaded::translate`], reading `memory`. (Not inlined: its stack frame is large.)
    #[inline(never)]
    pub(super) fn translate_in(
        &mut self,
        memory: &dyn GuestMem,
        linear: u64,
        access: Access,
    ) -> Result<Translation, Option<Exception>> {
        let paging = self.paging();
        for _ in 0..CONTENDED_WALKS {
            match gwalk::walk(memory, &paging, linear, access) {
                Ok(t) => return Ok(t),
                Err(WalkError::PageFault { error }) => {
                    return Err(Some(Exception::page_fault(error, linear)))
                }
                // Another vCPU keeps writing to the same entries.
                Err(WalkError::Contended) => {}
            }
        }
        Err(None)
    }

    /// KVM_TRANSLATE: the guest-physical address that the kernel of the guest would read at a linear one.
    pub(crate) fn translate_for_user(&mut self, arg: usize) -> Result {
        const NONE: u64 = u64::MAX;
        let mut t: kvm_translation = user::get(arg)?;
        let access = Access {
            write: false,
            fetch: false,
            user: false,
            implicit: false,
        };
        // Without paging any address is its own, and the highest one stands for none, as in KVM.
        t.physical_address = match self.state.controls.cr0 & cr0::PG {
            0 => t.linear_address,
            _ => self
                .walk_to_data(t.linear_address, access)
                .map_or(NONE, |f| f.gpa),
        };
        t.valid = (t.physical_address != NONE).into();
        // More is not told, as in KVM.
        t.writeable = 1;
        t.usermode = 0;
        user::put(arg, &t)
    }

    /// Reads the bytes of the instruction at `start`.
    pub(super) fn fetch_from(&mut self, memory: &dyn GuestMem, start: u64, user: bool) -> Fetched {
        let mut fetched = Fetched::default();
        while fetched.len < MAX_INSN {
            let at = start.wrapping_add(fetched.len as u64);
            let room = 0x1000u64.wrapping_sub(at & 0xfff) as usize;
            let access = Access {
                write: false,
                fetch: true,
                user,
                implicit: false,
            };
            let gpa = match self.translate_in(memory, at, access) {
                Ok(t) => t.gpa,
                Err(e) => {
                    fetched.stopped = e;
                    break;
                }
            };
            let end = fetched.len.saturating_add(room).min(MAX_INSN);
            let Some(part) = fetched.bytes.get_mut(fetched.len..end) else {
                break;
            };
            if self.vm.mmu.read_guest(Gpa(gpa), part).is_err() {
                break;
            }
            if room > MAX_INSN {
                fetched.code = Some(gpa);
            }
            fetched.len = end;
        }
        fetched
    }
}
