// SPDX-License-Identifier: GPL-2.0
//! The C side of the module: declarations of `rust/sys/shim.c` and `svm.c`, and of kernel functions that the
//! kernel's own bindings leave out.
//!
//! Unsafe because: calling C is. Contracts and contexts are stated in the C files.

use core::ffi::c_void;
use kernel::bindings;
use kernel::ffi::{c_char, c_int};

use crate::sys::switch::Switch;

/// `struct lodge_cpu_ops`.
#[repr(C)]
pub(crate) struct CpuOps {
    pub(crate) online: unsafe extern "C" fn() -> c_int,
    pub(crate) offline: unsafe extern "C" fn(),
}

/// `struct fpu_guest`, opaque.
#[repr(C)]
pub(crate) struct FpuGuest {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    pub(crate) fn lodge_preempt_disable();
    pub(crate) fn lodge_preempt_enable();
    pub(crate) fn lodge_mutex_lock_killable(mutex: *mut bindings::mutex) -> c_int;
    pub(crate) fn lodge_irqs_off() -> u32;
    pub(crate) fn lodge_irqs_on();
    pub(crate) safe fn lodge_cpu() -> u32;
    pub(crate) safe fn lodge_nr_cpus() -> u32;
    pub(crate) safe fn lodge_has_svm() -> bool;
    pub(crate) safe fn lodge_has_vmx() -> bool;
    pub(crate) safe fn lodge_has_xsave() -> bool;
    pub(crate) safe fn lodge_cpu_capability(word: u32) -> u32;
    pub(crate) safe fn lodge_host_xss() -> u64;
    pub(crate) safe fn lodge_has_pku() -> bool;
    pub(crate) safe fn lodge_five_level() -> bool;
    pub(crate) fn lodge_kick_self();
    pub(crate) safe fn lodge_tsc_khz() -> u32;
    pub(crate) safe fn lodge_rdtsc() -> u64;
    pub(crate) safe fn lodge_tsc_place() -> u64;
    pub(crate) safe fn lodge_tsc_stable() -> bool;
    pub(crate) safe fn lodge_tsc_lost() -> u64;
    pub(crate) fn lodge_rdmsr(msr: u32) -> u64;
    pub(crate) fn lodge_wrmsr(msr: u32, value: u64);
    pub(crate) fn lodge_rdmsr_safe(msr: u32, value: *mut u64) -> c_int;
    pub(crate) fn lodge_cpuid(leaf: u32, index: u32, out: *mut u32);
    pub(crate) safe fn lodge_host_xcr0() -> u64;
    pub(crate) fn lodge_virt_enable(intel: bool, ops: *const CpuOps) -> c_int;
    pub(crate) fn lodge_virt_disable();
    pub(crate) safe fn lodge_virt_rebooting() -> bool;
    pub(crate) fn lodge_sched_begin(
        sched: *mut c_void,
        context: *const c_void,
        sched_in: unsafe extern "C" fn(*mut c_void),
        sched_out: unsafe extern "C" fn(*mut c_void),
    );
    pub(crate) fn lodge_sched_end(sched: *mut c_void);
    pub(crate) fn lodge_sched_module(load: bool);
    pub(crate) fn lodge_kick_note(cpu: u32);
    pub(crate) fn lodge_kick_noted();
    pub(crate) fn lodge_guest_prepare() -> bool;
    pub(crate) safe fn lodge_guest_work_pending() -> bool;
    pub(crate) fn lodge_guest_work() -> c_int;
    pub(crate) fn lodge_sigmask_enter(mask: u64);
    pub(crate) fn lodge_sigmask_leave();
    pub(crate) fn lodge_fpu_new() -> *mut FpuGuest;
    pub(crate) fn lodge_fpu_free(fpu: *mut FpuGuest);
    pub(crate) fn lodge_fpu_swap(fpu: *mut FpuGuest, enter: bool);
    pub(crate) fn lodge_fpu_fxsave(fpu: *mut FpuGuest) -> *mut u8;
    pub(crate) fn lodge_fpu_header(fpu: *mut FpuGuest, xstate_bv: *mut u64, compacted: *mut bool);
    pub(crate) fn lodge_fpu_mark_legacy(fpu: *mut FpuGuest);
    pub(crate) fn lodge_now(now: *mut u64);
    pub(crate) fn lodge_fpu_image_size(fpu: *mut FpuGuest) -> u32;
    pub(crate) fn lodge_fpu_save(
        fpu: *mut FpuGuest,
        image: *mut u8,
        len: u32,
        xcr0: u64,
        pkru: u32,
    );
    pub(crate) fn lodge_fpu_restore(
        fpu: *mut FpuGuest,
        image: *mut u8,
        xcr0: u64,
        pkru: *mut u32,
    ) -> c_int;
    pub(crate) fn lodge_fpu_x87_words() -> u32;
    pub(crate) fn lodge_fpu_x87_init();
    pub(crate) fn lodge_fpu_read_vector(n: u8, value: *mut u64);
    pub(crate) fn lodge_fpu_write_vector(n: u8, value: *const u64, zero_upper: bool);
    pub(crate) safe fn lodge_lfence_serializing() -> bool;
    pub(crate) safe fn lodge_null_seg_clears_base() -> bool;
    pub(crate) safe fn lodge_cpu_weak() -> u32;
    pub(crate) safe fn lodge_cpu_controls() -> u32;
    pub(crate) safe fn lodge_arch_capabilities() -> u64;
    pub(crate) safe fn lodge_virtual_spec_ctrl() -> bool;
    pub(crate) safe fn lodge_split_locks_trap() -> bool;
    pub(crate) safe fn lodge_guest_split_lock(rip: u64) -> bool;
    pub(crate) safe fn lodge_spec_ctrl_takes(value: u64) -> bool;
    pub(crate) safe fn lodge_pred_cmd(value: u64) -> bool;
    pub(crate) safe fn lodge_flush_l1d() -> bool;
    pub(crate) fn lodge_switch_in(sw: *mut Switch);
    pub(crate) fn lodge_switch_out(sw: *mut Switch);
    pub(crate) fn lodge_switch_done();
    pub(crate) fn lodge_vcpu_barrier(number: u64);
    pub(crate) fn lodge_misc_register(fops: *const c_void) -> c_int;
    pub(crate) fn lodge_misc_deregister();
    pub(crate) fn lodge_svm_enter(sw: *mut Switch, vmcb_pa: u64, host_save_pa: u64) -> bool;
    pub(crate) fn lodge_svm_online(on: bool);
    pub(crate) fn lodge_svm_arrive(host_save_pa: u64);
    pub(crate) safe fn lodge_svm_vcpu(comes: bool);
    pub(crate) fn lodge_svm_machine_check() -> bool;
    pub(crate) safe fn lodge_svm_host_mce() -> u64;
    pub(crate) fn lodge_get_page(page: *mut c_void);
    pub(crate) fn lodge_virt_to_page(address: *const u8) -> *mut c_void;
    pub(crate) fn lodge_virt_to_phys(address: *const u8) -> u64;

    pub(crate) fn anon_inode_getfile(
        name: *const c_char,
        fops: *const c_void,
        private: *mut c_void,
        flags: c_int,
    ) -> *mut c_void;
}
