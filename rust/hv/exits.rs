// SPDX-License-Identifier: GPL-2.0
//! KVM_CAP_X86_DISABLE_EXITS: the exits that a VM does without, to be chosen before its first vCPU.
//!
//! What waits in the CPU instead of in user space (HLT, MWAIT) is woken by everything that ends a run anyway: the host's interrupts exit
//! whatever the guest's RFLAGS.IF is, and so do the kicks of other threads.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::vcpu::Loaded;
use crate::hv::vm::Vm;
use crate::sys::{cpu, params};
use crate::uapi;

/// MONITOR and MWAIT.
pub(crate) const MWAIT: u32 = uapi::KVM_X86_DISABLE_EXITS_MWAIT;
/// HLT.
pub(crate) const HLT: u32 = uapi::KVM_X86_DISABLE_EXITS_HLT;
/// PAUSE, which never exits here.
pub(crate) const PAUSE: u32 = uapi::KVM_X86_DISABLE_EXITS_PAUSE;
/// Reads of the counters of idle states, on Intel.
pub(crate) const CSTATE: u32 = uapi::KVM_X86_DISABLE_EXITS_CSTATE;
/// Reads of the counters of cycles at the present and at the nominal frequency.
pub(crate) const APERFMPERF: u32 = uapi::KVM_X86_DISABLE_EXITS_APERFMPERF;

/// The counters of [`CSTATE`]: the residencies of C1, C3, C6 and C7.
static IDLE_COUNTERS: [u32; 4] = [0x660, 0x3fc, 0x3fd, 0x3fe];
/// The counters of [`APERFMPERF`]: IA32_MPERF and IA32_APERF.
static CYCLE_COUNTERS: [u32; 2] = [0xe7, 0xe8];

/// The counters that a guest without the exits `off` reads of the CPU.
pub(crate) fn counters(off: u32, intel: bool) -> impl Iterator<Item = u32> {
    let lists: [(bool, &'static [u32]); 2] = [
        (intel && off & CSTATE != 0, &IDLE_COUNTERS),
        (off & APERFMPERF != 0, &CYCLE_COUNTERS),
    ];
    lists
        .into_iter()
        .filter(|(free, _)| *free)
        .flat_map(|(_, list)| list.iter().copied())
}

/// KVM_ENABLE_CAP: EINVAL for what is not offered, and once there is a vCPU.
pub(crate) fn disable<B: Backend>(vm: &Vm<B>, set: u64) -> Result {
    if set & !u64::from(params::optional_exits()) != 0 {
        return Err(EINVAL);
    }
    let set = set as u32;
    vm.before_vcpus(|_| {
        if set & !(PAUSE | APERFMPERF) != 0 {
            params::idle_in_guest();
        }
        vm.policy.disable_exits(set);
        Ok(())
    })
}

impl<B: Backend> Loaded<'_, B> {
    /// A counter that the guest reads of the CPU, were it not for a filter, for which all accesses exit. Err: it gets a #GP.
    pub(crate) fn read_counter(&self, index: u32) -> Option<Result<u64>> {
        let off = self.vm.policy.disabled_exits();
        counters(off, B::INTEL)
            .any(|c| c == index)
            .then(|| cpu::rdmsr_safe(index))
    }
}
