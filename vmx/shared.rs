// SPDX-License-Identifier: GPL-2.0
//! What all vCPUs share: the negotiated controls, the MSR bitmaps, the VPIDs.
#![deny(unsafe_code)]

use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::Mutex;

use super::controls::{negotiate, secondary, Controls, Options, Refusal, VmxCaps, VpidFlush};
use super::setup::GuestMsr;
use super::vmcs::Lists;
use super::vpid::{Vpids, WORDS};
use crate::hv::exits;
use crate::mmu::vm_ledger::Epochs;
use crate::model::msr::{HwMsr, Pass, Passed};
use crate::sys::compat::EOPNOTSUPP;
use crate::sys::cpu::{self, PreemptOff};
use crate::sys::global::Global;
use crate::sys::page::Pages;
use crate::sys::params;

/// What all vCPUs share.
pub(super) struct Shared {
    pub(super) controls: Controls,
    /// MSR bitmaps, a set bit makes the access exit: for each set of counters that guests can read of the CPU ([`COUNTERS`]), one for
    /// each of [`Passed::ALL`].
    msr_bitmaps: KVec<Pages<0>>,
    /// Taken VPIDs.
    vpids: Pin<KBox<Mutex<KVec<u64>>>>,
    /// The host's values of [`GuestMsr::ALL`], which are the same on all CPUs but for TSC_AUX.
    pub(super) host_msrs: [u64; 6],
    pub(super) rdtscp: bool,
    pub(super) epochs: Epochs,
    _lists: Lists,
}

/// There from set-up to teardown.
pub(super) static SHARED: Global<Shared> = Global::new();

impl Shared {
    /// Negotiates the controls and prepares the rest. Once at load.
    pub(super) fn new() -> Result<Self> {
        let controls = negotiate(&read_caps()?, &options()).map_err(refused)?;
        let count = COUNTERS.len().wrapping_mul(Passed::ALL.len());
        let mut msr_bitmaps = KVec::with_capacity(count, GFP_KERNEL)?;
        for off in COUNTERS {
            for passed in Passed::ALL {
                msr_bitmaps.push(msr_map(off, passed)?, GFP_KERNEL)?;
            }
        }
        let mut taken = KVec::with_capacity(WORDS, GFP_KERNEL)?;
        for _ in 0..WORDS {
            taken.push(0u64, GFP_KERNEL)?;
        }
        let epochs = Epochs::new()?;
        let preempt = PreemptOff::new();
        let rdtscp = controls.secondary & secondary::RDTSCP != 0;
        let host_msrs = GuestMsr::ALL.map(|m| {
            if m == GuestMsr::TscAux && !rdtscp {
                0
            } else {
                m.read(&preempt)
            }
        });
        drop(preempt);
        Ok(Self {
            controls,
            msr_bitmaps,
            vpids: KBox::pin_init(new_mutex!(taken, "lodge_vpids"), GFP_KERNEL)?,
            host_msrs,
            rdtscp,
            epochs,
            _lists: Lists::new()?,
        })
    }

    /// The MSR bitmap of guests without the exits `off` that reach the MSRs of `passed`. There is one for each.
    pub(super) fn msr_bitmap(&self, off: u32, passed: Passed) -> Result<&Pages<0>> {
        let counters =
            usize::from(off & exits::CSTATE != 0) | usize::from(off & exits::APERFMPERF != 0) << 1;
        let first = counters.wrapping_mul(Passed::ALL.len());
        let at = first.wrapping_add(passed.index());
        self.msr_bitmaps.get(at).ok_or(EIO)
    }
}

/// Which exits the MSR bitmaps leave out.
const COUNTERS: [u32; 4] = [
    0,
    exits::CSTATE,
    exits::APERFMPERF,
    exits::CSTATE | exits::APERFMPERF,
];

/// The MSR bitmap of guests without the exits `off` that reach the MSRs of `passed`.
fn msr_map(off: u32, passed: Passed) -> Result<Pages<0>> {
    let mut map = Pages::new()?;
    map.bytes_mut().fill(0xff);
    for msr in HwMsr::ALL {
        allow_msr(map.bytes_mut(), msr.index(), msr.pass_through(false));
    }
    for counter in exits::counters(off, true) {
        allow_msr(map.bytes_mut(), counter, Pass::Read);
    }
    for (msr, how) in passed.msrs() {
        allow_msr(map.bytes_mut(), msr, how);
    }
    Ok(map)
}

/// A VPID of a vCPU's own; 0 for none.
pub(super) struct Vpid(u16);

impl Vpid {
    /// The lowest free one, if VPIDs are used.
    pub(super) fn take(shared: &Shared) -> Self {
        if shared.controls.vpid == VpidFlush::None {
            return Self(0);
        }
        let mut taken = shared.vpids.lock();
        Self(Vpids::new(&mut taken).take().unwrap_or(0))
    }

    /// The number.
    pub(super) fn number(&self) -> u16 {
        self.0
    }
}

impl Drop for Vpid {
    fn drop(&mut self) {
        if let (true, Ok(shared)) = (self.0 != 0, SHARED.get()) {
            let mut taken = shared.vpids.lock();
            if !Vpids::new(&mut taken).give(self.0) {
                pr_err!("VPID {} was not taken\n", self.0);
            }
        }
    }
}

/// Lets the guest reach `msr` without an exit ("MSR-Bitmap Address"): read low, read high, write low, write high.
fn allow_msr(map: &mut [u8], msr: u32, how: Pass) {
    let (base, n) = match msr {
        0..=0x1fff => (0usize, msr as usize),
        0xc000_0000..=0xc000_1fff => (0x400, (msr & 0x1fff) as usize),
        _ => return,
    };
    let mut clear = |at: usize| {
        if let Some(byte) = map.get_mut(at.wrapping_add(n / 8)) {
            *byte &= !(1u8 << (n % 8));
        }
    };
    if matches!(how, Pass::Read | Pass::ReadWrite) {
        clear(base);
    }
    if matches!(how, Pass::Write | Pass::ReadWrite) {
        clear(base.wrapping_add(0x800));
    }
}

/// The capability MSRs of this CPU.
pub(super) fn read_caps() -> Result<VmxCaps> {
    VmxCaps::read(cpu::rdmsr_safe)
}

/// What the module parameters leave on.
pub(super) fn options() -> Options {
    let p = params::get();
    Options {
        ept: p.second_stage,
        unrestricted_guest: p.unrestricted_guest,
        ept_ad: p.access_dirty,
        vpid: p.vpid,
    }
}

/// Says why the CPU cannot be used.
pub(super) fn refused(refusal: Refusal) -> Error {
    pr_err!("VMX cannot be used: {}\n", core::format_args!("{refusal}"));
    EOPNOTSUPP
}
