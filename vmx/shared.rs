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
use crate::model::msr::{HwMsr, Pass};
use crate::sys::compat::EOPNOTSUPP;
use crate::sys::cpu::{self, PreemptOff};
use crate::sys::global::Global;
use crate::sys::page::Pages;
use crate::sys::params;

/// What all vCPUs share.
pub(super) struct Shared {
    pub(super) controls: Controls,
    /// MSR bitmaps, a set bit makes the access exit: for each set of counters that guests can read of the CPU ([`COUNTERS`]).
    msr_bitmaps: [Pages<0>; 4],
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
        let [none, idle, cycles, both] = COUNTERS;
        let msr_bitmaps = [
            msr_map(none)?,
            msr_map(idle)?,
            msr_map(cycles)?,
            msr_map(both)?,
        ];
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

    /// The MSR bitmap of guests without the exits `off`.
    pub(super) fn msr_bitmap(&self, off: u32) -> &Pages<0> {
        let [none, idle, cycles, both] = &self.msr_bitmaps;
        match (off & exits::CSTATE != 0, off & exits::APERFMPERF != 0) {
            (false, false) => none,
            (true, false) => idle,
            (false, true) => cycles,
            (true, true) => both,
        }
    }
}

/// Which exits the MSR bitmaps leave out.
const COUNTERS: [u32; 4] = [
    0,
    exits::CSTATE,
    exits::APERFMPERF,
    exits::CSTATE | exits::APERFMPERF,
];

/// The MSR bitmap of guests without the exits `off`.
fn msr_map(off: u32) -> Result<Pages<0>> {
    let mut map = Pages::new()?;
    map.bytes_mut().fill(0xff);
    for msr in HwMsr::ALL {
        match msr.pass_through(false) {
            Pass::ReadWrite => allow_msr(map.bytes_mut(), msr.index(), true),
            Pass::Read => allow_msr(map.bytes_mut(), msr.index(), false),
            Pass::None => {}
        }
    }
    for counter in exits::counters(off, true) {
        allow_msr(map.bytes_mut(), counter, false);
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

/// Lets the guest read (and write) `msr` without an exit ("MSR-Bitmap Address"): read low, read high, write low, write high.
fn allow_msr(map: &mut [u8], msr: u32, write: bool) {
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
    clear(base);
    if write {
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
