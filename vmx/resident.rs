// SPDX-License-Identifier: GPL-2.0
//! What context switches touch: the VMCS, and what of the guest is in the CPU beside it.
//!
//! Some MSRs and the bases of FS and GS are switched neither by entries nor by exits. They go in at the first entry after the thread has
//! taken the vCPU (or has come to a CPU with it), and come out when it leaves: a call that only looks at the vCPU moves none of them.
#![deny(unsafe_code)]

use super::insn::Failure;
use super::setup::{self, GuestMsr, ThreadCell};
use super::shared::Shared;
use super::vmcs::{Fields, Vmcs};
use crate::sys::cpu::{Flag, IrqOff, PreemptOff, VcpuNumber, Word};

/// A vCPU's part of it. Only the thread that has the vCPU loaded uses it, with preemption off where it looks at the CPU.
pub(crate) struct Resident {
    pub(super) vmcs: Vmcs,
    number: VcpuNumber,
    /// It came to this CPU since the last entry.
    moved: Flag,
    /// The thread came to this CPU since the last entry.
    switched: Flag,
    /// Something about the VMCS failed: no entry any more.
    broken: Flag,
    /// The guest's MSRs are in the CPU, and the thread's are in `thread` and `host_tsc_aux`.
    inside: Flag,
    /// The guest's values of [`GuestMsr::ALL`]; that of KERNEL_GS_BASE, while it is not in the CPU.
    msrs: [Word; GuestMsr::ALL.len()],
    host_tsc_aux: Word,
    thread: ThreadCell,
}

impl Resident {
    /// For a new vCPU.
    pub(super) fn new(vmcs: Vmcs) -> Self {
        Self {
            vmcs,
            number: VcpuNumber::new(),
            moved: Flag::new(false),
            switched: Flag::new(false),
            broken: Flag::new(false),
            inside: Flag::new(false),
            msrs: [const { Word::new() }; GuestMsr::ALL.len()],
            host_tsc_aux: Word::new(),
            thread: ThreadCell::new(),
        }
    }

    /// The VMCS cannot be used any more.
    #[inline]
    pub(super) fn broken(&self) -> bool {
        self.broken.get()
    }

    /// Where the guest's value of `msr` is kept.
    #[inline]
    fn kept(&self, msr: GuestMsr) -> &Word {
        let [star, lstar, cstar, fmask, kernel_gs_base, tsc_aux] = &self.msrs;
        match msr {
            GuestMsr::Star => star,
            GuestMsr::Lstar => lstar,
            GuestMsr::Cstar => cstar,
            GuestMsr::Fmask => fmask,
            GuestMsr::KernelGsBase => kernel_gs_base,
            GuestMsr::TscAux => tsc_aux,
        }
    }

    /// The guest's value of an MSR.
    pub(super) fn msr(&self, msr: GuestMsr) -> u64 {
        let preempt = PreemptOff::new();
        // The guest writes this one without an exit.
        if msr == GuestMsr::KernelGsBase && self.inside.get() {
            return msr.read(&preempt);
        }
        self.kept(msr).get()
    }

    /// Sets it.
    pub(super) fn set_msr(&self, msr: GuestMsr, value: u64, shared: &Shared) {
        let preempt = PreemptOff::new();
        self.kept(msr).set(value);
        let exists = msr != GuestMsr::TscAux || shared.rdtscp;
        if self.inside.get() && exists {
            msr.write(value, &preempt);
        }
    }

    /// The thread has taken the vCPU, or has come to a CPU with it.
    pub(super) fn sched_in(&self, preempt: &PreemptOff) {
        match self.vmcs.load(preempt) {
            Ok(true) => {
                let mut vmcs = Fields::default();
                setup::host_cpu(&mut vmcs, preempt);
                self.broken_by(&vmcs);
                self.moved.set(true);
            }
            Ok(false) => {}
            Err(Failure::Failed | Failure::Faulted) => self.broken.set(true),
        }
        self.switched.set(true);
    }

    /// It leaves: what is the thread's comes back.
    pub(super) fn sched_out(&self, shared: &Shared, preempt: &PreemptOff) {
        if !self.inside.get() {
            return;
        }
        self.inside.set(false);
        for (msr, host) in GuestMsr::ALL.into_iter().zip(shared.host_msrs) {
            let kept = self.kept(msr);
            match msr {
                GuestMsr::TscAux if !shared.rdtscp => {}
                // The thread's value comes back below.
                GuestMsr::KernelGsBase => kept.set(msr.read(preempt)),
                _ => {
                    let host = match msr {
                        GuestMsr::TscAux => self.host_tsc_aux.get(),
                        _ => host,
                    };
                    if kept.get() != host {
                        msr.write(host, preempt);
                    }
                }
            }
        }
        setup::thread_out(&self.thread.get(preempt), preempt);
    }

    /// Before an entry. True: the VMCS came from another CPU since the last one.
    #[inline]
    pub(super) fn prepare(&self, shared: &Shared, irq: &IrqOff) -> bool {
        if self.switched.get() {
            self.switched.set(false);
            self.number.barrier(irq.preempt());
        }
        // Without its VMCS there is no entry to prepare, and another VMCS is current.
        if !self.inside.get() && !self.broken.get() {
            self.bring_in(shared, irq.preempt());
        }
        let moved = self.moved.get();
        if moved {
            self.moved.set(false);
        }
        moved
    }

    /// Puts the guest's MSRs in the place of the thread's.
    #[inline(never)]
    fn bring_in(&self, shared: &Shared, preempt: &PreemptOff) {
        let mut vmcs = Fields::default();
        self.thread
            .set(setup::thread_in(&mut vmcs, preempt), preempt);
        self.broken_by(&vmcs);
        for (msr, host) in GuestMsr::ALL.into_iter().zip(shared.host_msrs) {
            let guest = self.kept(msr).get();
            match msr {
                GuestMsr::TscAux if !shared.rdtscp => {}
                GuestMsr::TscAux => {
                    let host = msr.read(preempt);
                    self.host_tsc_aux.set(host);
                    if guest != host {
                        msr.write(guest, preempt);
                    }
                }
                GuestMsr::KernelGsBase => msr.write(guest, preempt),
                _ if guest != host => msr.write(guest, preempt),
                _ => {}
            }
        }
        self.inside.set(true);
    }

    fn broken_by(&self, vmcs: &Fields) {
        if vmcs.broken() {
            self.broken.set(true);
        }
    }
}
