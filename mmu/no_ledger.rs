// SPDX-License-Identifier: GPL-2.0
//! No ledger: what stands in the ordinary module for `vm_ledger.rs`, and leaves nothing behind in it.
#![forbid(unsafe_code)]

use kernel::prelude::*;

use crate::sys::cpu::{IrqOff, PreemptOff};

use super::step::{Flush, Step};
use super::storage::Counts;

/// No step is left out.
#[inline(always)]
pub(crate) const fn skips(_: Step) -> bool {
    false
}

/// No entry forgets a demand.
#[inline(always)]
pub(crate) const fn forgets_demand() -> bool {
    false
}

pub(crate) struct VmLedger;

impl VmLedger {
    #[inline(always)]
    pub(super) const fn new() -> Self {
        Self
    }
    #[inline(always)]
    pub(super) const fn publish(&self, _: &Counts) {}
}

pub(crate) struct VcpuLedger;

impl VcpuLedger {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self
    }
    #[inline(always)]
    pub(crate) const fn look(&mut self, _: &VmLedger) {}
    #[inline(always)]
    pub(crate) const fn left(&mut self, _: &VmLedger) {}
    #[inline(always)]
    pub(crate) const fn accusation(&self) -> Option<&'static str> {
        None
    }
}

pub(crate) struct Tags;

impl Tags {
    #[inline(always)]
    pub(crate) const fn new(_: u32) -> Result<Self> {
        Ok(Self)
    }
    #[inline(always)]
    pub(crate) const fn enter(&self, _: &IrqOff, _: &mut VcpuLedger, _: u32, _: Flush) -> bool {
        true
    }
    #[inline(always)]
    pub(crate) const fn forget(&self, _: &PreemptOff) {}
}

pub(crate) struct Epochs;

impl Epochs {
    #[inline(always)]
    pub(crate) const fn new() -> Result<Self> {
        Ok(Self)
    }
    #[inline(always)]
    pub(crate) const fn forget(&self, _: &PreemptOff) {}
}

pub(crate) struct Roots;

impl Roots {
    #[inline(always)]
    pub(crate) const fn new() -> Result<Self> {
        Ok(Self)
    }
    #[inline(always)]
    pub(crate) const fn enter(
        &mut self,
        _: &IrqOff,
        _: &Epochs,
        _: &mut VcpuLedger,
        _: bool,
    ) -> bool {
        true
    }
}
