// SPDX-License-Identifier: GPL-2.0
//! The page tables over which the hardware runs guests that have paging off, where it cannot switch paging off
//! ([`Backend::needs_identity_map`]): one page of the process's memory in a slot of its own, at an address that user space can choose.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::user;
use crate::hv::vm::Vm;
use crate::sys::mm::MappedPage;
use crate::vmx::modes::{identity_entry, IDENTITY_DEFAULT};

/// Where a VM has them.
pub(crate) struct IdentityMap {
    /// Where user space wants them.
    gpa: u64,
    /// The page, once a vCPU was to be made that needs it.
    page: Option<MappedPage>,
    /// Where its slot is. Not at `gpa`, if no vCPU came of it and user space has changed its mind.
    slot: Option<u64>,
}

impl IdentityMap {
    /// At the usual address, not made yet.
    pub(crate) const fn new() -> Self {
        Self {
            gpa: IDENTITY_DEFAULT,
            page: None,
            slot: None,
        }
    }

    /// KVM_SET_IDENTITY_MAP_ADDR: 0 is the usual address. Whether the slot can be there is seen when a vCPU is made.
    pub(crate) fn set_address(&mut self, gpa: u64) {
        self.gpa = if gpa == 0 { IDENTITY_DEFAULT } else { gpa };
    }

    /// The guest-physical address, if the hardware needs them; makes them for the first vCPU. EEXIST: user space has a slot there.
    /// EINVAL: no slot can be there.
    pub(crate) fn of_vcpu<B: Backend>(&mut self, vm: &Vm<B>) -> Result<Option<u64>> {
        if !B::needs_identity_map() {
            return Ok(None);
        }
        if self.page.is_none() {
            let page = MappedPage::new()?;
            fill(page.hva())?;
            self.page = Some(page);
        }
        if let (Some(page), true) = (&self.page, self.slot != Some(self.gpa)) {
            vm.mmu.place_identity_slot(self.gpa, page.hva())?;
            self.slot = Some(self.gpa);
        }
        Ok(Some(self.gpa))
    }
}

/// Writes the page directory.
fn fill(page: u64) -> Result {
    const PART: usize = 64;
    let mut at = usize::try_from(page).map_err(|_| EFAULT)?;
    let mut n = 0u32;
    for _ in 0..1024 / PART {
        let mut entries = [0u32; PART];
        for entry in &mut entries {
            *entry = identity_entry(n);
            n = n.wrapping_add(1);
        }
        user::put_slice(at, &entries)?;
        at = user::after(at, size_of::<[u32; PART]>())?;
    }
    Ok(())
}
