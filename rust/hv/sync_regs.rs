// SPDX-License-Identifier: GPL-2.0
//! KVM_CAP_SYNC_REGS: registers that KVM_RUN takes from the run page and leaves there, so that user space needs no further calls.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::vcpu::Loaded;
use crate::uapi;

/// The sets of registers that are offered: KVM_CAP_SYNC_REGS.
pub(crate) const FIELDS: u32 =
    uapi::KVM_SYNC_X86_REGS | uapi::KVM_SYNC_X86_SREGS | uapi::KVM_SYNC_X86_EVENTS;

impl<B: Backend> Loaded<'_, B> {
    /// At the start of KVM_RUN: takes the sets that user space changed. EINVAL for sets that are not offered, and for values that the
    /// ioctl of the set refuses; the sets before it are taken then.
    pub(crate) fn take_registers(&mut self) -> Result {
        let (valid, mut dirty) = (self.run.valid_regs(), self.run.dirty_regs());
        let offered = u64::from(FIELDS);
        if (valid | dirty) & !offered != 0 {
            return Err(EINVAL);
        }
        if dirty == 0 {
            return Ok(());
        }
        for set in [
            uapi::KVM_SYNC_X86_REGS,
            uapi::KVM_SYNC_X86_SREGS,
            uapi::KVM_SYNC_X86_EVENTS,
        ] {
            if dirty & u64::from(set) != 0 {
                self.take_set(set)?;
                dirty &= !u64::from(set);
                self.run.set_dirty_regs(dirty);
            }
        }
        Ok(())
    }

    // Not inlined: each keeps its copy on the stack only while it runs.

    #[inline(never)]
    fn take_set(&mut self, set: u32) -> Result {
        match set {
            uapi::KVM_SYNC_X86_REGS => {
                let regs = self.run.sync().regs();
                self.set_regs(&regs);
                Ok(())
            }
            uapi::KVM_SYNC_X86_SREGS => {
                let sregs = self.run.sync().sregs();
                self.set_sregs(&sregs)
            }
            _ => {
                let events = self.run.sync().events();
                self.set_vcpu_events(&events)
            }
        }
    }

    /// At the end of KVM_RUN: leaves the sets that user space wants to see.
    #[inline]
    pub(crate) fn leave_registers(&mut self) {
        let wanted = self.run.valid_regs();
        if wanted != 0 {
            self.leave_sets(wanted);
        }
    }

    #[inline(never)]
    fn leave_sets(&mut self, wanted: u64) {
        let has = |set| wanted & u64::from(set) != 0;
        if has(uapi::KVM_SYNC_X86_REGS) {
            let regs = self.state.get_regs();
            self.run.sync().set_regs(&regs);
        }
        if has(uapi::KVM_SYNC_X86_SREGS) {
            let sregs = self.get_sregs();
            self.run.sync().set_sregs(&sregs);
        }
        if has(uapi::KVM_SYNC_X86_EVENTS) {
            let events = self.vcpu_events();
            self.run.sync().set_events(&events);
        }
    }
}
