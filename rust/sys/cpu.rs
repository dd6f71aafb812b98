// SPDX-License-Identifier: GPL-2.0
//! The CPU we run on: context guards, MSRs, CPUID, kicks.
//!
//! Unsafe because: privileged instructions and the kernel's context primitives are.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::marker::PhantomData;

use kernel::error::{code::EIO, Result};
use kernel::sync::atomic::{Atomic, Relaxed};

use crate::sys::ffi;

/// Proof that preemption is off, so that the CPU stays the same.
pub(crate) struct PreemptOff(PhantomData<*mut ()>);

impl PreemptOff {
    /// Turns preemption off until the value is dropped.
    pub(crate) fn new() -> Self {
        // SAFETY: balanced by `drop`. A leaked guard leaves preemption off, which is not unsound.
        unsafe { ffi::lodge_preempt_disable() };
        Self(PhantomData)
    }

    /// For a caller of C code that has turned preemption off and leaves it so.
    ///
    /// # Safety
    /// Preemption is off, once for this value.
    pub(crate) unsafe fn adopt() -> Self {
        Self(PhantomData)
    }

    /// For code that the kernel calls with preemption off.
    ///
    /// # Safety
    /// Preemption is off, and stays off as long as the reference lives.
    pub(crate) unsafe fn assume<'a>() -> &'a Self {
        // SAFETY: the type has no size, so any aligned pointer will do; the contract is its meaning.
        unsafe { core::ptr::NonNull::<Self>::dangling().as_ref() }
    }

    /// The number of this CPU.
    pub(crate) fn cpu(&self) -> u32 {
        ffi::lodge_cpu()
    }
}

impl Drop for PreemptOff {
    fn drop(&mut self) {
        // SAFETY: balances `new`.
        unsafe { ffi::lodge_preempt_enable() };
    }
}

/// Proof that interrupts (and preemption) are off.
pub(crate) struct IrqOff {
    cpu: u32,
    not_send: PhantomData<*mut ()>,
}

impl IrqOff {
    /// Turns interrupts off until the value is dropped or handed to [`IrqOff::finish`].
    pub(crate) fn new() -> Self {
        Self {
            // SAFETY: balanced by `drop`.
            cpu: unsafe { ffi::lodge_irqs_off() },
            not_send: PhantomData,
        }
    }

    /// Interrupts off implies preemption off.
    pub(crate) fn preempt(&self) -> &PreemptOff {
        // SAFETY: `lodge_irqs_off` turned preemption off too, as long as `self` lives.
        unsafe { PreemptOff::assume() }
    }

    /// The number of this CPU.
    pub(crate) fn cpu(&self) -> u32 {
        self.cpu
    }

    /// Last look before guest mode, at the tick (NO_HZ_FULL) and then for work of [`guest_work`]: is there any?
    pub(crate) fn prepare_guest(&self) -> bool {
        // SAFETY: interrupts are off.
        unsafe { ffi::lodge_guest_prepare() }
    }

    /// Makes the guest exit as soon as it is entered.
    pub(crate) fn kick_self(&self) {
        // SAFETY: interrupts are off, so the interrupt waits for guest mode.
        unsafe { ffi::lodge_kick_self() };
    }

    /// After a guest's run: takes pending interrupts, ends the guest's time, and leaves interrupts (and preemption) on.
    pub(crate) fn finish(self) {
        core::mem::forget(self);
        // SAFETY: balances `new` in place of `drop`.
        unsafe { ffi::lodge_switch_done() };
    }
}

impl Drop for IrqOff {
    fn drop(&mut self) {
        // SAFETY: balances `new`; the caller of `new` had interrupts on (task context).
        unsafe { ffi::lodge_irqs_on() };
    }
}

/// A flag that threads share, each access one instruction where it stands: the kernel crate's atomics are calls of C helpers,
/// too dear for the run loop.
#[repr(transparent)]
pub(crate) struct Flag(UnsafeCell<u8>);

// SAFETY: each access is one instruction that is atomic on x86 for a byte.
unsafe impl Sync for Flag {}

impl Flag {
    /// A flag with this value.
    pub(crate) const fn new(on: bool) -> Self {
        Self(UnsafeCell::new(on as u8))
    }

    /// Reads it (acquire: what follows is not moved before it, by neither compiler nor CPU).
    #[inline(always)]
    pub(crate) fn get(&self) -> bool {
        let value: u8;
        // SAFETY: a load of a byte of ours.
        unsafe {
            asm!("mov {v}, byte ptr [{p}]", v = out(reg_byte) value, p = in(reg) self.0.get(), options(nostack, preserves_flags));
        }
        value != 0
    }

    /// Sets it (release: what precedes is not moved behind it).
    #[inline(always)]
    pub(crate) fn set(&self, on: bool) {
        // SAFETY: a store to a byte of ours.
        unsafe {
            asm!("mov byte ptr [{p}], {v}", v = in(reg_byte) on as u8, p = in(reg) self.0.get(), options(nostack, preserves_flags));
        }
    }

    /// Sets it and gives the old value, with a full barrier.
    #[inline(always)]
    pub(crate) fn exchange(&self, on: bool) -> bool {
        let mut value = on as u8;
        // SAFETY: an exchange with a byte of ours; XCHG with memory is locked.
        unsafe {
            asm!("xchg byte ptr [{p}], {v}", v = inout(reg_byte) value, p = in(reg) self.0.get(), options(nostack, preserves_flags));
        }
        value != 0
    }
}

/// A number that threads share, accessed as a [`Flag`] is.
#[repr(transparent)]
pub(crate) struct Word(UnsafeCell<u64>);

// SAFETY: each access is one instruction that is atomic on x86 for an aligned word.
unsafe impl Sync for Word {}

impl Word {
    /// Zero.
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    /// This number.
    pub(crate) const fn with(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Sets it (release).
    #[inline(always)]
    pub(crate) fn set(&self, value: u64) {
        // SAFETY: a store to a word of ours.
        unsafe {
            asm!("mov qword ptr [{p}], {v}", v = in(reg) value, p = in(reg) self.0.get(), options(nostack, preserves_flags));
        }
    }

    /// The number now (acquire).
    #[inline(always)]
    pub(crate) fn get(&self) -> u64 {
        let value: u64;
        // SAFETY: a load of a word of ours.
        unsafe {
            asm!("mov {v}, qword ptr [{p}]", v = out(reg) value, p = in(reg) self.0.get(), options(nostack, preserves_flags));
        }
        value
    }

    /// Sets it and gives the old value, with a full barrier.
    #[inline(always)]
    pub(crate) fn exchange(&self, value: u64) -> u64 {
        let mut value = value;
        // SAFETY: an exchange with a word of ours; XCHG with memory is locked.
        unsafe {
            asm!("xchg qword ptr [{p}], {v}", v = inout(reg) value, p = in(reg) self.0.get(), options(nostack, preserves_flags));
        }
        value
    }

    /// Sets it if it is `old`, with a full barrier; the error is what it is instead.
    #[inline(always)]
    pub(crate) fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        let found: u64;
        // SAFETY: a locked instruction on a word of ours.
        unsafe {
            asm!("lock cmpxchg qword ptr [{p}], {n}", n = in(reg) new, p = in(reg) self.0.get(), inout("rax") old => found, options(nostack));
        }
        if found == old {
            Ok(found)
        } else {
            Err(found)
        }
    }

    /// Adds one, with a full barrier, whatever other threads do: for counting changes that others look for.
    #[inline(always)]
    pub(crate) fn count_change(&self) {
        // SAFETY: an addition to a word of ours; LOCK makes it one step and a barrier.
        unsafe {
            asm!("lock add qword ptr [{p}], 1", p = in(reg) self.0.get(), options(nostack));
        }
    }

    /// Adds one (release). Two threads that do this at once may advance by one only.
    #[inline(always)]
    pub(crate) fn advance(&self) {
        // SAFETY: an addition to a word of ours.
        unsafe {
            asm!("add qword ptr [{p}], 1", p = in(reg) self.0.get(), options(nostack));
        }
    }
}

/// Is there work that [`guest_work`] would do?
pub(crate) fn guest_work_pending() -> bool {
    ffi::lodge_guest_work_pending()
}

/// Does the work that must be done before a guest is entered (signals, reschedule, task work); may sleep. EINTR when a signal waits.
pub(crate) fn guest_work() -> Result {
    // SAFETY: called from KVM_RUN in task context with interrupts on.
    kernel::error::to_result(unsafe { ffi::lodge_guest_work() })
}

/// Runs `body` with the signals of `mask` blocked instead of the thread's own, which are back afterwards.
pub(crate) fn with_signal_mask<R>(mask: Option<u64>, body: impl FnOnce() -> R) -> R {
    let Some(mask) = mask else { return body() };
    // SAFETY: task context; undone below.
    unsafe { ffi::lodge_sigmask_enter(mask) };
    let result = body();
    // SAFETY: balances the call above.
    unsafe { ffi::lodge_sigmask_leave() };
    result
}

/// What a vCPU is called among all that ever were.
pub(crate) struct VcpuNumber(u64);

impl VcpuNumber {
    /// For a new vCPU.
    pub(crate) fn new() -> Self {
        static LAST: Atomic<u64> = Atomic::new(0);
        Self(LAST.fetch_add(1u64, Relaxed).wrapping_add(1))
    }

    /// Before the thread's first entry on this CPU: keeps the predictions of the vCPU that was the last to run here from this one, where
    /// the mitigation is on.
    pub(crate) fn barrier(&self, _preempt: &PreemptOff) {
        // SAFETY: preemption is off.
        unsafe { ffi::lodge_vcpu_barrier(self.0) };
    }
}

/// CPUs that are to leave guest mode, for one call of all of them.
///
/// # Context
/// Interrupts on; the holder has no lock that is taken with interrupts off. One at a time on a CPU: it is not used from interrupts.
pub(crate) struct KickSet {
    preempt: PreemptOff,
    any: bool,
}

impl KickSet {
    /// No CPU yet. Preemption is off until the value is dropped.
    pub(crate) fn new() -> Self {
        Self {
            preempt: PreemptOff::new(),
            any: false,
        }
    }

    /// Adds a CPU.
    pub(crate) fn add(&mut self, cpu: u32) {
        // This one is not in guest mode.
        if cpu != self.preempt.cpu() && cpu < nr_cpus() {
            self.any = true;
            // SAFETY: preemption stays off until `drop`; the number is that of a CPU.
            unsafe { ffi::lodge_kick_note(cpu) };
        }
    }
}

impl Drop for KickSet {
    /// Waits until all of them have left guest mode.
    fn drop(&mut self) {
        if self.any {
            // SAFETY: preemption is off, and interrupts are on by the type's context.
            unsafe { ffi::lodge_kick_noted() };
        }
    }
}

/// Reads an MSR that this CPU is known to have.
///
/// # Safety
/// Reading `msr` has no side effect that the kernel depends on.
pub(crate) unsafe fn rdmsr(msr: u32) -> u64 {
    // SAFETY: by the contract; a missing MSR is reported by the kernel's fixup and reads as 0.
    unsafe { ffi::lodge_rdmsr(msr) }
}

/// Writes an MSR.
///
/// # Safety
/// The kernel's assumptions about `msr` must hold with `value`.
pub(crate) unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: by the contract.
    unsafe { ffi::lodge_wrmsr(msr, value) };
}

/// Reads an MSR that may be missing: EIO then. Reading MSRs has no side effects on this architecture's MSRs used here.
pub(crate) fn rdmsr_safe(msr: u32) -> Result<u64> {
    let mut value = 0;
    // SAFETY: `value` is writable; a fault is caught.
    if unsafe { ffi::lodge_rdmsr_safe(msr, &mut value) } == 0 {
        Ok(value)
    } else {
        Err(EIO)
    }
}

/// A moment on the host's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// The time-stamp counter.
    pub(crate) tsc: u64,
    /// Nanoseconds since boot, sleep included, at the raw rate of the hardware.
    pub(crate) host: u64,
    /// Nanoseconds since 1970.
    pub(crate) real: u64,
}

impl Now {
    /// This moment.
    pub(crate) fn read() -> Self {
        let mut now = [0; 3];
        // SAFETY: three words are written.
        unsafe { ffi::lodge_now(now.as_mut_ptr()) };
        let [tsc, host, real] = now;
        Self { tsc, host, real }
    }
}

/// How often the machine was resumed since the module was loaded.
pub(crate) fn tsc_resumes() -> u64 {
    tsc_place() >> 32
}

/// The words of `boot_cpu_data.x86_capability`: what the kernel uses of the CPU. Words that the kernel does not have are zero.
pub(crate) fn kernel_capabilities() -> [u32; 32] {
    let mut words = [0; 32];
    for (i, w) in words.iter_mut().enumerate() {
        *w = ffi::lodge_cpu_capability(i as u32);
    }
    words
}

/// CPUID of this CPU.
pub(crate) fn cpuid(leaf: u32, index: u32) -> [u32; 4] {
    let mut out = [0; 4];
    // SAFETY: `out` has room for the four registers.
    unsafe { ffi::lodge_cpuid(leaf, index, out.as_mut_ptr()) };
    out
}

/// The virtualization extension that CPUID names, whether or not it can be used.
pub(crate) fn cpuid_virtualization() -> Option<&'static str> {
    let [_, _, ecx, _] = cpuid(1, 0);
    let [_, _, extended_ecx, _] = cpuid(0x8000_0001, 0);
    match (ecx >> 5 & 1, extended_ecx >> 2 & 1) {
        (1, _) => Some("VMX"),
        (_, 1) => Some("SVM"),
        _ => None,
    }
}

pub(crate) use ffi::{
    lodge_arch_capabilities as arch_capabilities, lodge_cpu as current_cpu,
    lodge_cpu_controls as cpu_controls, lodge_cpu_weak as cpu_weak, lodge_five_level as five_level,
    lodge_flush_l1d as flush_l1d, lodge_guest_split_lock as guest_split_lock,
    lodge_has_pku as has_pku, lodge_has_svm as has_svm, lodge_has_vmx as has_vmx,
    lodge_has_xsave as has_xsave, lodge_host_xcr0 as host_xcr0, lodge_host_xss as host_xss,
    lodge_lfence_serializing as lfence_serializing, lodge_nr_cpus as nr_cpus,
    lodge_null_seg_clears_base as null_seg_clears_base, lodge_pred_cmd as pred_cmd,
    lodge_rdtsc as rdtsc, lodge_spec_ctrl_takes as spec_ctrl_takes,
    lodge_split_locks_trap as split_locks_trap, lodge_tsc_khz as tsc_khz,
    lodge_tsc_lost as tsc_lost, lodge_tsc_place as tsc_place, lodge_tsc_stable as tsc_stable,
    lodge_virtual_spec_ctrl as virtual_spec_ctrl,
};
