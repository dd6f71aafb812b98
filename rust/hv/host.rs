// SPDX-License-Identifier: GPL-2.0
//! What the host's CPUs have, read once at load.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::mmu::Level;
use crate::model::cpuid_host::{Config, HostCaps};
use crate::model::features::Caps;
use crate::model::speculation::Kernel;
use crate::sys::cpu;
use crate::sys::global::Global;

static CAPS: Global<HostCaps> = Global::new();

/// Reads CPUID. Called once at load.
pub(crate) fn probe<B: Backend>() -> Result {
    let mut config = Config {
        host_xcr0: cpu::host_xcr0(),
        tdp_levels: if B::mmu_config().root_level == Level::L256T {
            5
        } else {
            4
        },
        lapic: false,
        lfence_serializing: cpu::lfence_serializing(),
        null_seg_clears_base: cpu::null_seg_clears_base(),
        without: B::withheld(Caps::none()),
        kernel_has: Caps::none(),
        speculation: Kernel {
            weak: cpu::cpu_weak(),
            uses: cpu::cpu_controls(),
        },
        arch_capabilities: cpu::arch_capabilities(),
    };
    config.follow_kernel(&cpu::kernel_capabilities());
    CAPS.set(KBox::new(
        HostCaps::probe(&cpu::cpuid, &config),
        GFP_KERNEL,
    )?);
    Ok(())
}

/// The capabilities; EIO before load has read them, which cannot happen to a caller with a file descriptor.
pub(crate) fn caps() -> Result<&'static HostCaps> {
    CAPS.get()
}

/// Gives them back at unload.
pub(crate) fn forget() {
    crate::sys::global::clear_at_unload(&CAPS);
}
