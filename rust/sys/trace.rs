// SPDX-License-Identifier: GPL-2.0
//! Tracepoints. Each is a static branch that is not taken, until somebody listens; only then what it tells is put together.
//!
//! Unsafe because: they are C objects. The kernel crate's macro for them knows the kernel's own tracepoints only.
//!
//! Context: any but the window in which RCU does not watch.

use kernel::bindings::tracepoint;

/// What an exit tells: `struct lodge_trace_exit`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exit {
    /// EXITINFO1, or the exit qualification.
    pub(crate) info1: u64,
    /// EXITINFO2, or the IDT-vectoring information.
    pub(crate) info2: u64,
    /// The exit code, or the exit reason with its flags.
    pub(crate) reason: u32,
    /// [`VMX`] or [`SVM`].
    pub(crate) isa: u32,
    /// EXITINTINFO, or the VM-exit interruption information.
    pub(crate) intr_info: u32,
    /// The error code that belongs to it.
    pub(crate) error_code: u32,
}

const _: () = assert!(core::mem::size_of::<Exit>() == 32);

/// [`Exit::isa`] of Intel.
pub(crate) const VMX: u32 = 1;
/// [`Exit::isa`] of AMD.
pub(crate) const SVM: u32 = 2;

/// The kinds of `kvm_mmio`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mmio {
    /// A read goes to user space.
    Unsatisfied = 0,
    /// Its data has come.
    Read = 1,
    /// A write.
    Write = 2,
}

macro_rules! tracepoints {
    ($($(#[$doc:meta])* $name:ident = $point:ident, $emit:ident($($arg:ident: $ty:ty),*);)*) => {
        #[allow(non_upper_case_globals, improper_ctypes)] // A tracepoint is only pointed to.
        unsafe extern "C" {
            $(static $point: tracepoint;
            fn $emit($($arg: $ty),*);)*
        }
        $($(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(tell: impl FnOnce() -> ($($ty,)*)) {
            // SAFETY: the static key is that of a tracepoint of `trace.c`.
            if unsafe { kernel::jump_label::static_branch_unlikely!($point, tracepoint, key) } {
                let ($($arg,)*) = tell();
                // SAFETY: plain values, or a pointer to one that lives until the return.
                unsafe { $emit($($arg),*) };
            }
        })*
    };
}

tracepoints! {
    /// `kvm_entry`: vCPU, RIP, whether it will exit at once, what is injected and its error code.
    entry = __tracepoint_kvm_entry, rust_do_trace_kvm_entry(vcpu: u32, rip: u64, at_once: bool, info: u32, error: u32);
    /// `kvm_pio`: whether it is a write, port, size, count, first value.
    pio = __tracepoint_kvm_pio, rust_do_trace_kvm_pio(write: bool, port: u32, size: u32, count: u32, value: u32);
    /// `kvm_mmio`: an [`Mmio`], length, address, value.
    mmio = __tracepoint_kvm_mmio, rust_do_trace_kvm_mmio(kind: u32, len: u32, gpa: u64, value: u64);
    /// `kvm_msr`: whether it is a write, index, value, whether it was refused.
    msr = __tracepoint_kvm_msr, rust_do_trace_kvm_msr(write: bool, index: u32, value: u64, refused: bool);
    /// `kvm_page_fault`: vCPU, RIP, address, error code.
    page_fault = __tracepoint_kvm_page_fault, rust_do_trace_kvm_page_fault(vcpu: u32, rip: u64, gpa: u64, error: u64);
}

#[allow(non_upper_case_globals, improper_ctypes)] // A tracepoint is only pointed to.
unsafe extern "C" {
    static __tracepoint_kvm_exit: tracepoint;
    fn rust_do_trace_kvm_exit(vcpu: u32, rip: u64, exit: *const Exit);
}

/// `kvm_exit`: vCPU, RIP, and what the vendor tells.
#[inline(always)]
pub(crate) fn exit(tell: impl FnOnce() -> (u32, u64, Exit)) {
    // SAFETY: the static key is that of a tracepoint of `trace.c`.
    if unsafe {
        kernel::jump_label::static_branch_unlikely!(__tracepoint_kvm_exit, tracepoint, key)
    } {
        let (vcpu, rip, exit) = tell();
        // SAFETY: `exit` lives until the return.
        unsafe { rust_do_trace_kvm_exit(vcpu, rip, &exit) };
    }
}
