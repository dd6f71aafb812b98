// SPDX-License-Identifier: GPL-2.0
//! What a VMCS holds besides guest registers: controls, addresses, and the host state that an exit loads.
//!
//! Unsafe because: a wrong host state or address in a VMCS is the host's end at the next exit or entry.

use core::cell::Cell;
use core::ptr;

use super::controls::{secondary, Controls};
use super::fields::{self as f, Field};
use super::insn::{self, CpuState, ThreadState};
use super::vmcs::Fields;
use crate::sys::cpu::{self, PreemptOff};
use crate::sys::page::Pages;

const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// #DB and #AC can be raised without end inside of the processor, and #MC is the host's; #UD may be for the emulator.
pub(super) const EXCEPTIONS: u32 = 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18;

/// What a new VMCS is made of. The pages belong to the module or the VM, and outlive the VMCS.
pub(super) struct Init<'a> {
    pub(super) controls: &'a Controls,
    pub(super) msr_bitmap: &'a Pages<0>,
    /// What entries (first half) and exits (second half) load; none at first.
    pub(super) msr_lists: &'a Pages<0>,
    pub(super) eptp: u64,
    /// 0 for none.
    pub(super) vpid: u16,
}

/// Writes everything that is neither a guest register nor host state.
pub(super) fn init(vmcs: &mut Fields, init: &Init<'_>) {
    let c = init.controls;
    vmcs.write(f::PIN_CONTROLS, c.pin);
    vmcs.write(f::PRIMARY_CONTROLS, c.primary);
    vmcs.write(f::SECONDARY_CONTROLS, c.secondary_of(init.vpid, true, true));
    vmcs.write(f::EXIT_CONTROLS, c.exit);
    vmcs.write(f::ENTRY_CONTROLS, c.entry);
    vmcs.write(f::EXCEPTION_BITMAP, EXCEPTIONS);
    vmcs.write(f::VPID, init.vpid);
    // A fresh VMCS holds nothing that the manual promises.
    const ZERO: [Field<u32>; 7] = [
        f::PF_ERROR_CODE_MASK,
        f::PF_ERROR_CODE_MATCH,
        f::CR3_TARGET_COUNT,
        f::EXIT_MSR_STORE_COUNT,
        f::EXIT_MSR_LOAD_COUNT,
        f::ENTRY_MSR_LOAD_COUNT,
        f::ENTRY_INTR_INFO,
    ];
    for field in ZERO {
        vmcs.write(field, 0);
    }
    vmcs.write(f::VMCS_LINK_POINTER, u64::MAX);
    // CR0 and CR4 are shown as the guest wrote them, and each write of another value exits.
    vmcs.write(f::CR0_MASK, u64::MAX);
    vmcs.write(f::CR4_MASK, u64::MAX);
    vmcs.write(f::GUEST_DEBUGCTL, 0);
    vmcs.write(f::GUEST_PENDING_DEBUG, 0);
    vmcs.write(f::GUEST_ACTIVITY, super::exit::activity::ACTIVE);
    vmcs.write(f::GUEST_INTERRUPTIBILITY, 0);
    vmcs.write(f::GUEST_SYSENTER_CS, 0);
    vmcs.write(f::GUEST_SYSENTER_ESP, 0);
    vmcs.write(f::GUEST_SYSENTER_EIP, 0);
    // SAFETY: bitmap and lists are pages that outlive the VMCS; the EPT pointer is made of the VM's root.
    unsafe {
        vmcs.write_trusted(f::MSR_BITMAP, init.msr_bitmap.phys());
        vmcs.write_trusted(f::EPT_POINTER, init.eptp);
        vmcs.write_trusted(f::ENTRY_MSR_LOAD_ADDR, init.msr_lists.phys());
        vmcs.write_trusted(f::EXIT_MSR_LOAD_ADDR, init.msr_lists.phys() | 1 << 11);
    }
    if c.secondary & secondary::ENCLS != 0 {
        // SAFETY: a bit for each leaf, no address.
        unsafe { vmcs.write_trusted(f::ENCLS_EXITING_BITMAP, u64::MAX) };
    }
}

/// Puts another MSR bitmap in effect.
pub(super) fn use_msr_bitmap(vmcs: &mut Fields, map: &'static Pages<0>) {
    // SAFETY: the page is there as long as the module is.
    unsafe { vmcs.write_trusted(f::MSR_BITMAP, map.phys()) };
}

/// Writes the host state that follows the CPU.
pub(super) fn host_cpu(vmcs: &mut Fields, _preempt: &PreemptOff) {
    let mut s = CpuState::default();
    // SAFETY: preemption is off; `s` is written, and says what this CPU's state is.
    unsafe {
        insn::lodge_vmx_cpu_state(&mut s);
        vmcs.write_trusted(f::HOST_CR0, s.cr0);
        vmcs.write_trusted(f::HOST_CS_SELECTOR, s.cs);
        vmcs.write_trusted(f::HOST_SS_SELECTOR, s.ss);
        // Null, as they mostly are in user space; others come back by `thread_out`.
        for selector in [
            f::HOST_DS_SELECTOR,
            f::HOST_ES_SELECTOR,
            f::HOST_FS_SELECTOR,
            f::HOST_GS_SELECTOR,
        ] {
            vmcs.write_trusted(selector, 0);
        }
        vmcs.write_trusted(f::HOST_TR_SELECTOR, s.tr_selector);
        vmcs.write_trusted(f::HOST_TR_BASE, s.tr);
        vmcs.write_trusted(f::HOST_GDTR_BASE, s.gdt);
        vmcs.write_trusted(f::HOST_IDTR_BASE, s.idt);
        vmcs.write_trusted(f::HOST_SYSENTER_CS, s.sysenter_cs);
        vmcs.write_trusted(f::HOST_SYSENTER_ESP, s.sysenter_esp);
        vmcs.write_trusted(f::HOST_SYSENTER_EIP, s.sysenter_eip);
        vmcs.write_trusted(f::HOST_PAT, s.pat);
        vmcs.write_trusted(f::HOST_EFER, s.efer);
        vmcs.write_trusted(f::HOST_RIP, s.rip);
    }
}

/// Notes the thread's segment state, which exits do not bring back, and writes what they do.
pub(super) fn thread_in(vmcs: &mut Fields, _preempt: &PreemptOff) -> ThreadState {
    let mut t = ThreadState::default();
    // SAFETY: preemption is off; the bases are the thread's and the CPU's.
    unsafe {
        insn::lodge_vmx_thread_save(&mut t);
        vmcs.write_trusted(f::HOST_FS_BASE, t.fs_base);
        vmcs.write_trusted(f::HOST_GS_BASE, t.gs_base);
    }
    t
}

/// Brings back what [`thread_in`] noted. The guest's KERNEL_GS_BASE must have been saved.
pub(super) fn thread_out(t: &ThreadState, _preempt: &PreemptOff) {
    // SAFETY: preemption is off, in the thread and on the CPU of `thread_in`.
    unsafe {
        insn::lodge_vmx_thread_restore(ptr::from_ref(t));
        cpu::wrmsr(MSR_KERNEL_GS_BASE, t.kernel_gs_base);
    }
}

/// Where [`thread_in`]'s notes are until [`thread_out`].
pub(super) struct ThreadCell(Cell<ThreadState>);

// SAFETY: used with preemption off, by the thread that has the vCPU loaded; the vCPU's lock hands it from one thread to the next.
unsafe impl Sync for ThreadCell {}

impl ThreadCell {
    /// Nothing noted.
    pub(super) fn new() -> Self {
        Self(Cell::default())
    }

    /// The notes.
    pub(super) fn get(&self, _preempt: &PreemptOff) -> ThreadState {
        self.0.get()
    }

    /// Keeps notes.
    pub(super) fn set(&self, state: ThreadState, _preempt: &PreemptOff) {
        self.0.set(state);
    }
}

/// CR4.MCE as the host has it: machine checks are the host's, whatever a guest writes.
pub(super) fn host_mce() -> u64 {
    const MCE: u64 = 1 << 6;
    let cr4: u64;
    // SAFETY: reading CR4 has no side effect.
    unsafe {
        core::arch::asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags))
    };
    cr4 & MCE
}

/// An MSR of those that guests have to themselves while they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum GuestMsr {
    /// STAR.
    Star = 0,
    /// LSTAR.
    Lstar = 1,
    /// CSTAR.
    Cstar = 2,
    /// FMASK.
    Fmask = 3,
    /// KERNEL_GS_BASE; the host's is the thread's, and comes back by [`thread_out`].
    KernelGsBase = 4,
    /// TSC_AUX; only where RDTSCP exists.
    TscAux = 5,
}

impl GuestMsr {
    /// All of them.
    pub(super) const ALL: [Self; 6] = [
        Self::Star,
        Self::Lstar,
        Self::Cstar,
        Self::Fmask,
        Self::KernelGsBase,
        Self::TscAux,
    ];

    /// The number.
    pub(super) const fn index(self) -> u32 {
        match self {
            Self::Star => 0xc000_0081,
            Self::Lstar => 0xc000_0082,
            Self::Cstar => 0xc000_0083,
            Self::Fmask => 0xc000_0084,
            Self::KernelGsBase => MSR_KERNEL_GS_BASE,
            Self::TscAux => 0xc000_0103,
        }
    }

    /// The value on this CPU.
    pub(super) fn read(self, _preempt: &PreemptOff) -> u64 {
        // SAFETY: reading these has no side effect.
        unsafe { cpu::rdmsr(self.index()) }
    }

    /// Sets it. The caller brings the host's value back before the thread leaves the CPU or returns to user space; the kernel itself
    /// uses none of them.
    pub(super) fn write(self, value: u64, _preempt: &PreemptOff) {
        // SAFETY: they matter at SYSCALL, SWAPGS and RDTSCP of user space only, before which the host's value is back.
        unsafe { cpu::wrmsr(self.index(), value) };
    }
}
