// SPDX-License-Identifier: GPL-2.0
//! KVM's quirks: what it once got wrong and VMMs or guests have come to rely on. Each is there until user space turns it off, for good.

use kernel::sync::atomic::{Atomic, Relaxed};

use crate::uapi;

/// OUT to port 7Eh: RIP is past the instruction when user space gets it.
pub(crate) const OUT_7E_INC_RIP: u32 = uapi::KVM_X86_QUIRK_OUT_7E_INC_RIP;
/// The other vendor's hypercall is overwritten with the right one.
pub(crate) const FIX_HYPERCALL_INSN: u32 = uapi::KVM_X86_QUIRK_FIX_HYPERCALL_INSN;
/// CPUID shows MONITOR and MWAIT as user space said, whatever IA32_MISC_ENABLE does.
pub(crate) const MISC_ENABLE_NO_MWAIT: u32 = uapi::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT;
/// A slot that goes or moves takes the mappings of all slots with it. Here it takes its own only, with the quirk and without, which no
/// guest can tell apart.
pub(crate) const SLOT_ZAP_ALL: u32 = uapi::KVM_X86_QUIRK_SLOT_ZAP_ALL;
/// MONITOR and MWAIT do nothing, whether the guest has them or not.
pub(crate) const MWAIT_NEVER_UD_FAULTS: u32 = uapi::KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS;

/// Those that are there: KVM_CAP_DISABLE_QUIRKS2.
pub(crate) const ALL: u32 = OUT_7E_INC_RIP
    | FIX_HYPERCALL_INSN
    | MWAIT_NEVER_UD_FAULTS
    | MISC_ENABLE_NO_MWAIT
    | SLOT_ZAP_ALL;

/// The quirks of a VM.
pub(crate) struct Quirks {
    disabled: Atomic<u32>,
}

impl Quirks {
    /// All of them.
    pub(crate) fn new() -> Self {
        Self {
            disabled: Atomic::new(0),
        }
    }

    /// Whether `quirk` is there still.
    pub(crate) fn has(&self, quirk: u32) -> bool {
        self.disabled.load(Relaxed) & quirk == 0
    }

    /// Turns off those of `set` that are known.
    pub(crate) fn disable(&self, set: u64) {
        let set = set as u32 & ALL;
        let mut old = self.disabled.load(Relaxed);
        while let Err(now) = self.disabled.cmpxchg(old, old | set, Relaxed) {
            old = now;
        }
    }
}
