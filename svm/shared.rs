// SPDX-License-Identifier: GPL-2.0
//! What all vCPUs share: the features, the ASIDs, the permission maps, the areas for the host's state.
#![deny(unsafe_code)]

use kernel::prelude::*;

use super::asid::CpuAsids;
use super::features::{Disabled, Features, Refusal};
use super::insn::HostSave;
use crate::hv::exits;
use crate::mmu::vm_ledger::Tags;
use crate::model::msr::{HwMsr, Pass, Passed};
use crate::sys::compat::EOPNOTSUPP;
use crate::sys::cpu;
use crate::sys::global::{Global, PerCpu};
use crate::sys::mm;
use crate::sys::page::Pages;
use crate::sys::params;

/// What all vCPUs share.
pub(super) struct Shared {
    pub(super) features: Features,
    pub(super) asids: PerCpu<CpuAsids>,
    pub(super) tags: Tags,
    pub(super) host_save: KVec<HostSave>,
    /// I/O permission map: every port exits.
    pub(super) iopm: Pages<2>,
    /// MSR permission maps: for each of [`Passed::ALL`], without and with the counters of cycles.
    msrpms: KVec<Pages<1>>,
    /// The VMCB holds the guest's SPEC_CTRL.
    pub(super) virtual_spec_ctrl: bool,
    pub(super) rdtscp: bool,
    pub(super) invpcid: bool,
}

/// There from set-up to teardown.
pub(super) static SHARED: Global<Shared> = Global::new();

impl Shared {
    /// Checks what the CPU can do and prepares the rest. Once at load.
    pub(super) fn new() -> Result<Self> {
        let [_, ebx, _, edx] = cpu::cpuid(0x8000_000a, 0);
        let p = params::get();
        let disabled = Disabled {
            npt: !p.second_stage,
            nrip_save: !p.nrips,
            flush_by_asid: !p.flush_by_asid,
        };
        let features = Features::negotiate(ebx, edx, disabled).map_err(|refusal| {
            match refusal {
                Refusal::NoNpt => pr_err!(
                    "the CPU has no nested paging (or it is turned off), which Lodge needs\n"
                ),
                Refusal::NoAsids => pr_err!("the CPU reports no address-space identifiers\n"),
            }
            EOPNOTSUPP
        })?;
        if mm::memory_encrypted() {
            pr_err!("the host's memory is encrypted (SME), which Lodge cannot deal with\n");
            return Err(EOPNOTSUPP);
        }
        let mut host_save = KVec::with_capacity(cpu::nr_cpus() as usize, GFP_KERNEL)?;
        for _ in 0..cpu::nr_cpus() {
            host_save.push(HostSave::new()?, GFP_KERNEL)?;
        }
        let mut iopm = Pages::new()?;
        iopm.bytes_mut().fill(0xff);
        let mut msrpms = KVec::with_capacity(Passed::ALL.len().wrapping_mul(2), GFP_KERNEL)?;
        for off in [0, exits::APERFMPERF] {
            for passed in Passed::ALL {
                msrpms.push(msr_map(off, passed)?, GFP_KERNEL)?;
            }
        }
        let [_, _, _, ext_edx] = cpu::cpuid(0x8000_0001, 0);
        Ok(Self {
            features,
            asids: PerCpu::new(CpuAsids::new(features.asids))?,
            tags: Tags::new(features.asids)?,
            host_save,
            iopm,
            msrpms,
            virtual_spec_ctrl: cpu::virtual_spec_ctrl(),
            rdtscp: ext_edx >> 27 & 1 != 0,
            invpcid: cpu::cpuid(7, 0)[1] >> 10 & 1 != 0,
        })
    }

    /// The MSR permission map of guests without the exits `off` that reach the MSRs of `passed`. There is one for each.
    pub(super) fn msr_map(&self, off: u32, passed: Passed) -> Result<&Pages<1>> {
        let cycles = off & exits::APERFMPERF != 0;
        let first = if cycles { Passed::ALL.len() } else { 0 };
        let at = first.wrapping_add(passed.index());
        self.msrpms.get(at).ok_or(EIO)
    }
}

/// The permission map of guests without the exits `off` that reach the MSRs of `passed`.
fn msr_map(off: u32, passed: Passed) -> Result<Pages<1>> {
    let mut map = Pages::new()?;
    map.bytes_mut().fill(0xff);
    for msr in HwMsr::ALL {
        allow_msr(map.bytes_mut(), msr.index(), msr.pass_through(true));
    }
    for counter in exits::counters(off, false) {
        allow_msr(map.bytes_mut(), counter, Pass::Read);
    }
    for (msr, how) in passed.msrs() {
        allow_msr(map.bytes_mut(), msr, how);
    }
    Ok(map)
}

/// Clears the intercept bits of `msr` in the permission map ("MSR Intercepts").
fn allow_msr(map: &mut [u8], msr: u32, how: Pass) {
    let (base, first) = match msr {
        0..=0x1fff => (0usize, 0),
        0xc000_0000..=0xc000_1fff => (0x800, 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, 0xc001_0000),
        _ => return,
    };
    let n = msr.wrapping_sub(first) as usize;
    if let Some(byte) = map.get_mut(base.wrapping_add(n / 4)) {
        // Two bits an MSR: RDMSR, WRMSR.
        let bits = match how {
            Pass::None => 0u8,
            Pass::Read => 1,
            Pass::Write => 2,
            Pass::ReadWrite => 3,
        };
        *byte &= !(bits.wrapping_shl((n as u32 & 3).wrapping_mul(2)));
    }
}
