// SPDX-License-Identifier: GPL-2.0
//! `struct kvm_run`: what a return to user space says, field by field (api.rst, "The kvm_run structure").
//!
//! The page is shared: what user space wrote is read once and checked, and nothing in it is trusted later.

use core::mem::offset_of;

use crate::sys::run_page::{RunPages, PIO_OFFSET, PIO_SIZE};
use crate::uapi::{self, kvm_regs, kvm_run, kvm_sregs, kvm_sync_regs, kvm_vcpu_events};

/// Offset of the union that depends on the exit reason.
const EXIT: usize = offset_of!(kvm_run, __bindgen_anon_1);

const IMMEDIATE_EXIT: usize = offset_of!(kvm_run, immediate_exit__unsafe);
const REASON: usize = offset_of!(kvm_run, exit_reason);

/// An IN that nobody has answered.
static NOTHING: [u8; PIO_SIZE] = [0; PIO_SIZE];

/// The facts about the guest that each return tells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    /// An interrupt queued now would be delivered at the next entry.
    pub(crate) ready_for_interrupt: bool,
    /// RFLAGS.IF.
    pub(crate) if_flag: bool,
    /// CR8.
    pub(crate) cr8: u64,
    /// IA32_APIC_BASE.
    pub(crate) apic_base: u64,
}

/// A `kvm_run` in its pages.
pub(crate) struct UserRun {
    pub(crate) pages: RunPages,
}

impl UserRun {
    /// User space asks for an exit as soon as an interrupt can be injected.
    pub(crate) fn wants_irq_window(&self) -> bool {
        self.pages
            .get::<u8>(offset_of!(kvm_run, request_interrupt_window))
            != 0
    }

    /// User space asks not to enter the guest.
    pub(crate) fn wants_immediate_exit(&self) -> bool {
        self.pages.get::<u8>(IMMEDIATE_EXIT) != 0
    }

    /// CR8 as user space sets it for each run.
    pub(crate) fn cr8(&self) -> u64 {
        self.pages.get(offset_of!(kvm_run, cr8))
    }

    /// The sets of registers that user space wants to see at the end of the run.
    pub(crate) fn valid_regs(&self) -> u64 {
        self.pages.get(offset_of!(kvm_run, kvm_valid_regs))
    }

    /// The sets of registers that user space changed.
    pub(crate) fn dirty_regs(&self) -> u64 {
        self.pages.get(offset_of!(kvm_run, kvm_dirty_regs))
    }

    /// Says which of them are still to be taken.
    pub(crate) fn set_dirty_regs(&self, sets: u64) {
        self.pages.set(offset_of!(kvm_run, kvm_dirty_regs), sets);
    }

    /// The registers in the page.
    pub(crate) fn sync(&self) -> SyncRegs<'_> {
        SyncRegs(self)
    }

    /// Says why KVM_RUN returns.
    pub(crate) fn set_reason(&self, reason: u32) {
        self.pages.set(REASON, reason);
    }

    /// What each return tells.
    pub(crate) fn summarise(&self, s: Summary) {
        self.pages.set(
            offset_of!(kvm_run, ready_for_interrupt_injection),
            u8::from(s.ready_for_interrupt),
        );
        self.pages
            .set(offset_of!(kvm_run, if_flag), u8::from(s.if_flag));
        self.pages.set(offset_of!(kvm_run, cr8), s.cr8);
        self.pages.set(offset_of!(kvm_run, apic_base), s.apic_base);
    }

    /// Clears `flags` at the start of a run.
    pub(crate) fn clear_flags(&self) {
        self.pages.set(offset_of!(kvm_run, flags), 0u16);
    }

    /// KVM_EXIT_IO: `count` accesses of `size` bytes; the data is in the mapping's second page. What user space does not answer reads
    /// as 0, and not as what was written last.
    pub(crate) fn io(&self, input: bool, port: u16, size: u8, count: u32) {
        self.set_reason(uapi::KVM_EXIT_IO);
        let direction = if input {
            let bytes = usize::from(size).saturating_mul(count as usize);
            self.pages
                .write(PIO_OFFSET, NOTHING.get(..bytes).unwrap_or(&NOTHING));
            uapi::KVM_EXIT_IO_IN
        } else {
            uapi::KVM_EXIT_IO_OUT
        };
        self.pages.set(EXIT, direction as u8);
        self.pages.set(EXIT + 1, size);
        self.pages.set(EXIT + 2, port);
        self.pages.set(EXIT + 4, count);
        self.pages.set(EXIT + 8, PIO_OFFSET as u64);
    }

    /// KVM_EXIT_MMIO: a write carries its data.
    pub(crate) fn mmio(&self, address: u64, len: u8, write: Option<[u8; 8]>) {
        self.set_reason(uapi::KVM_EXIT_MMIO);
        self.pages.set(EXIT, address);
        if let Some(data) = write {
            self.pages.set(EXIT + 8, data);
        }
        self.pages.set(EXIT + 16, u32::from(len));
        self.pages.set(EXIT + 20, u8::from(write.is_some()));
    }

    /// What user space answered to a KVM_EXIT_MMIO read.
    pub(crate) fn mmio_data(&self) -> [u8; 8] {
        self.pages.get(EXIT + 8)
    }

    /// KVM_EXIT_X86_RDMSR, or KVM_EXIT_X86_WRMSR of `value`.
    pub(crate) fn msr(&self, index: u32, value: Option<u64>, reason: u32) {
        self.set_reason(match value {
            Some(_) => uapi::KVM_EXIT_X86_WRMSR,
            None => uapi::KVM_EXIT_X86_RDMSR,
        });
        self.pages.set(EXIT, 0u64);
        self.pages.set(EXIT + 8, reason);
        self.pages.set(EXIT + 12, index);
        self.pages.set(EXIT + 16, value.unwrap_or(0));
    }

    /// What user space made of it: whether it failed, and the value that was read.
    pub(crate) fn msr_answer(&self) -> (bool, u64) {
        (self.pages.get::<u8>(EXIT) != 0, self.pages.get(EXIT + 16))
    }

    /// KVM_EXIT_DEBUG; DR6 and DR7 for a #DB only.
    pub(crate) fn debug(&self, vector: u8, pc: u64, registers: Option<(u64, u64)>) {
        self.set_reason(uapi::KVM_EXIT_DEBUG);
        self.pages.set(EXIT, u32::from(vector));
        self.pages.set(EXIT + 4, 0u32);
        self.pages.set(EXIT + 8, pc);
        if let Some((dr6, dr7)) = registers {
            self.pages.set(EXIT + 16, dr6);
            self.pages.set(EXIT + 24, dr7);
        }
    }

    /// KVM_EXIT_EXCEPTION.
    pub(crate) fn exception(&self, vector: u8, error: u32) {
        self.set_reason(uapi::KVM_EXIT_EXCEPTION);
        self.pages.set(EXIT, u32::from(vector));
        self.pages.set(EXIT + 4, error);
    }

    /// KVM_EXIT_FAIL_ENTRY.
    pub(crate) fn fail_entry(&self, hardware_reason: u64, cpu: u32) {
        self.set_reason(uapi::KVM_EXIT_FAIL_ENTRY);
        self.pages.set(EXIT, hardware_reason);
        self.pages.set(EXIT + 8, cpu);
    }

    /// KVM_EXIT_INTERNAL_ERROR with its data words (at most 16).
    pub(crate) fn internal_error(&self, suberror: u32, data: &[u64]) {
        self.set_reason(uapi::KVM_EXIT_INTERNAL_ERROR);
        self.pages.set(EXIT, suberror);
        self.pages.set(EXIT + 4, data.len().min(16) as u32);
        for (i, word) in data.iter().take(16).enumerate() {
            self.pages
                .set(EXIT.wrapping_add(8).wrapping_add(i.wrapping_mul(8)), *word);
        }
    }
}

/// `struct kvm_sync_regs` in a run page: copied as a whole, as user space may change it meanwhile.
pub(crate) struct SyncRegs<'a>(&'a UserRun);

/// Offset of the union that holds it, and of its parts.
const SYNC: usize = offset_of!(kvm_run, s);
const SYNC_REGS: usize = SYNC + offset_of!(kvm_sync_regs, regs);
const SYNC_SREGS: usize = SYNC + offset_of!(kvm_sync_regs, sregs);
const SYNC_EVENTS: usize = SYNC + offset_of!(kvm_sync_regs, events);

impl SyncRegs<'_> {
    /// General registers.
    pub(crate) fn regs(&self) -> kvm_regs {
        self.0.pages.get(SYNC_REGS)
    }

    /// Sets them.
    pub(crate) fn set_regs(&self, regs: &kvm_regs) {
        self.0.pages.set_all(SYNC_REGS, regs);
    }

    /// Special registers.
    pub(crate) fn sregs(&self) -> kvm_sregs {
        self.0.pages.get(SYNC_SREGS)
    }

    /// Sets them.
    pub(crate) fn set_sregs(&self, sregs: &kvm_sregs) {
        self.0.pages.set_all(SYNC_SREGS, sregs);
    }

    /// Events.
    pub(crate) fn events(&self) -> kvm_vcpu_events {
        self.0.pages.get(SYNC_EVENTS)
    }

    /// Sets them.
    pub(crate) fn set_events(&self, events: &kvm_vcpu_events) {
        self.0.pages.set_all(SYNC_EVENTS, events);
    }
}
