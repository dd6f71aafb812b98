// SPDX-License-Identifier: GPL-2.0
//! VMX instructions, each with its failure as a value, and the C side of the Intel backend.
//!
//! Unsafe because: VMX instructions act on whatever VMCS is current and on physical memory, which no type can see; the
//! functions here are the only ones that execute them, and their callers in `vmcs.rs` and `setup.rs` hold the proofs.
//!
//! A fault (#UD, #GP) is caught: a reboot turns VMX off under the feet of vCPUs that still run.

use core::arch::asm;
use core::ffi::c_void;
use kernel::ffi::c_int;

use crate::sys::cpu::IrqOff;
use crate::sys::switch::Switch;

/// Why an instruction did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It says so in the flags (VMfailInvalid, VMfailValid).
    Failed,
    /// It faulted: VMX is off.
    Faulted,
}

/// What `status` holds after the sequences below: set by SETNA, or left alone by a fault.
const FAULTED: u8 = 2;

fn outcome(status: u8) -> Result<(), Failure> {
    match status {
        0 => Ok(()),
        FAULTED => Err(Failure::Faulted),
        _ => Err(Failure::Failed),
    }
}

/// One instruction at local label 1: its flags go to `status`; a fault continues at label 2 with `status` as it was.
macro_rules! guarded {
    ($insn:literal, $($operands:tt)*) => {
        asm!(
            concat!("1: ", $insn),
            "setna {status}",
            "2:",
            ".pushsection __ex_table, \"a\"",
            ".balign 4",
            ".long (1b) - .",
            ".long (2b) - .",
            ".long 1",
            ".popsection",
            $($operands)*
        )
    };
}

/// Reads a field of the current VMCS.
///
/// # Safety
/// The VMCS that the caller means is current, or stays so across preemption (a loaded vCPU's).
pub(super) unsafe fn vmread(field: u32) -> Result<u64, Failure> {
    let mut status = FAULTED;
    let mut value = 0u64;
    // SAFETY: by the contract; nothing but the two registers and the flags changes.
    unsafe {
        guarded!(
            "vmread {field}, {value}",
            status = inout(reg_byte) status,
            value = inout(reg) value,
            field = in(reg) u64::from(field),
            options(att_syntax, nostack)
        );
    }
    outcome(status).map(|()| value)
}

/// Writes a field of the current VMCS.
///
/// # Safety
/// As for [`vmread`]; and the processor may use the value as it is: a host-state field must be the host's state, an address
/// must be that of memory that the guest or the processor may use.
pub(super) unsafe fn vmwrite(field: u32, value: u64) -> Result<(), Failure> {
    let mut status = FAULTED;
    // SAFETY: by the contract.
    unsafe {
        guarded!(
            "vmwrite {value}, {field}",
            status = inout(reg_byte) status,
            value = in(reg) value,
            field = in(reg) u64::from(field),
            options(att_syntax, nostack)
        );
    }
    outcome(status)
}

/// Writes the VMCS at `phys` back to memory and makes it clear on this processor.
///
/// # Safety
/// `phys` is the address of a VMCS. Preemption is off.
pub(super) unsafe fn vmclear(phys: u64) -> Result<(), Failure> {
    let mut status = FAULTED;
    // SAFETY: by the contract; the memory operand is `phys` itself.
    unsafe {
        guarded!(
            "vmclear ({pointer})",
            status = inout(reg_byte) status,
            pointer = in(reg) &phys,
            options(att_syntax, nostack)
        );
    }
    outcome(status)
}

/// Makes the VMCS at `phys` active and current on this processor.
///
/// # Safety
/// `phys` is the address of a VMCS that is active on no other processor, and is cleared before its page is freed. Preemption is off.
pub(super) unsafe fn vmptrld(phys: u64) -> Result<(), Failure> {
    let mut status = FAULTED;
    // SAFETY: by the contract.
    unsafe {
        guarded!(
            "vmptrld ({pointer})",
            status = inout(reg_byte) status,
            pointer = in(reg) &phys,
            options(att_syntax, nostack)
        );
    }
    outcome(status)
}

use super::tlb::Extent;

/// Drops cached translations through extended page tables.
pub(super) fn invept(extent: Extent, eptp: u64) -> Result<(), Failure> {
    let descriptor = [eptp, 0u64];
    let mut status = FAULTED;
    // SAFETY: dropping cached translations is always sound.
    unsafe {
        guarded!(
            "invept ({descriptor}), {extent}",
            status = inout(reg_byte) status,
            descriptor = in(reg) &descriptor,
            extent = in(reg) extent as u64,
            options(att_syntax, nostack)
        );
    }
    outcome(status)
}

/// Drops cached translations with a virtual-processor identifier.
pub(super) fn invvpid(extent: Extent, vpid: u16) -> Result<(), Failure> {
    let descriptor = [u64::from(vpid), 0u64];
    let mut status = FAULTED;
    // SAFETY: as above.
    unsafe {
        guarded!(
            "invvpid ({descriptor}), {extent}",
            status = inout(reg_byte) status,
            descriptor = in(reg) &descriptor,
            extent = in(reg) extent as u64,
            options(att_syntax, nostack)
        );
    }
    outcome(status)
}

/// `struct lodge_vmx` of `vmx/enter.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    host_rsp: u64,
    host_cr3: u64,
    host_cr4: u64,
    pub(super) flags: u32,
    pub(super) failed: u32,
    pub(super) error: u32,
    pub(super) reason: u32,
    pub(super) intr_info: u32,
    pub(super) vectoring: u32,
    msr_count: u32,
    page_not_present: u32,
    msrs: u64,
}

impl Run {
    /// `msrs` is the address of a page that lives as long as this is used, and nobody else uses.
    pub(super) fn new(msrs: *mut u8) -> Self {
        Self {
            msrs: msrs as u64,
            ..Self::default()
        }
    }

    /// Forgets the last exit: the next entry may come to nothing.
    pub(super) fn forget(&mut self) {
        self.reason = 0;
        self.intr_info = 0;
    }

    /// The last exit is a #PF by which a hypervisor below us says that it fetches a page: waits for that page, whose
    /// `token` is the fault's address. False for any other #PF.
    pub(super) fn wait_for_page(&self, token: u32) -> bool {
        if self.page_not_present == 0 {
            return false;
        }
        // SAFETY: task context with interrupts on: the exit has been taken apart.
        unsafe { lodge_vmx_wait_for_page(token) };
        true
    }

    /// Takes the interrupt that the last exit acknowledged, if it did.
    pub(super) fn take_interrupt(&self, _irq: &IrqOff) {
        // SAFETY: interrupts are off, and the caller has brought the host's state back.
        unsafe { lodge_vmx_interrupt(self) };
    }
}

/// [`Run::flags`]: enter with VMRESUME.
pub(super) const RESUME: u32 = 1;

/// `struct lodge_vmx_cpu` of `vmx/enter.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuState {
    pub(super) cr0: u64,
    pub(super) gdt: u64,
    pub(super) idt: u64,
    pub(super) tr: u64,
    pub(super) sysenter_esp: u64,
    pub(super) sysenter_eip: u64,
    pub(super) pat: u64,
    pub(super) efer: u64,
    pub(super) rip: u64,
    pub(super) sysenter_cs: u32,
    pub(super) cs: u16,
    pub(super) ss: u16,
    pub(super) tr_selector: u16,
}

/// `struct lodge_vmx_thread` of `vmx/enter.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ThreadState {
    pub(super) fs_base: u64,
    pub(super) gs_base: u64,
    pub(super) kernel_gs_base: u64,
    pub(super) fs: u16,
    pub(super) gs: u16,
    pub(super) ds: u16,
    pub(super) es: u16,
    pub(super) ldt: u16,
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(offset_of!(Run, host_rsp) == 0);
    assert!(offset_of!(Run, flags) == 24);
    assert!(offset_of!(Run, vectoring) == 44);
    assert!(size_of::<Run>() == 64);
    assert!(offset_of!(CpuState, rip) == 64);
    assert!(offset_of!(CpuState, tr_selector) == 80);
    assert!(size_of::<CpuState>() == 88);
    assert!(offset_of!(ThreadState, ldt) == 32);
    assert!(size_of::<ThreadState>() == 40);
};

unsafe extern "C" {
    /// Interrupts off, the vCPU's VMCS current.
    pub(super) fn lodge_vmx_enter(switch: *mut Switch, run: *mut Run);
    /// Interrupts off, the host's software-switched state back.
    fn lodge_vmx_interrupt(run: *const Run);
    /// Task context, interrupts on; sleeps.
    fn lodge_vmx_wait_for_page(token: u32);
    /// Preemption off.
    pub(super) fn lodge_vmx_cpu_state(state: *mut CpuState);
    /// Preemption off.
    pub(super) fn lodge_vmx_thread_save(state: *mut ThreadState);
    /// Preemption off, on the CPU and in the thread of the save.
    pub(super) fn lodge_vmx_thread_restore(state: *const ThreadState);
    /// Interrupts off; the node stays where it is until it is unlisted.
    pub(super) fn lodge_vmcs_list(node: *mut c_void);
    /// Interrupts off, on the CPU that listed.
    pub(super) fn lodge_vmcs_unlist(node: *mut c_void);
    /// Preemption off; `clear` unlists.
    pub(super) fn lodge_vmcs_clear_all(clear: unsafe extern "C" fn(*mut c_void));
    /// Preemption off.
    pub(super) fn lodge_vmcs_current() -> u64;
    /// Preemption off.
    pub(super) fn lodge_vmcs_set_current(phys: u64);
    /// Interrupts on.
    pub(super) fn lodge_vmcs_call(
        cpu: u32,
        function: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
    ) -> c_int;
    /// Task context, once before any CPU is used.
    pub(super) fn lodge_vmx_setup() -> c_int;
    /// Task context, after the last CPU was used.
    pub(super) fn lodge_vmx_teardown();
}
