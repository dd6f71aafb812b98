// SPDX-License-Identifier: GPL-2.0
//! Speculation control: which of its features are offered, which commands a guest may give, and what IA32_ARCH_CAPABILITIES says.
//!
//! The two vendors have the same MSRs under different CPUID bits. A guest is offered both forms of what the CPU can do, so that a kernel
//! finds them by the bits of the vendor that its CPUID names. (Intel SDM, "Speculative Execution Side Channel Mitigations"; AMD APM
//! volume 2, "Speculation Control MSRs".)
#![forbid(unsafe_code)]

use super::features::{self, Feature};

/// What the host kernel says of the CPU: its weaknesses, where a bit that is set means the worse, so that what is not known counts as
/// such; and what the kernel itself uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Bits of [`weak`].
    pub weak: u32,
    /// Bits of [`uses`].
    pub uses: u32,
}

/// Bits of [`Kernel::weak`]; `lodge_cpu_weak()` in `rust/sys/speculation.c` makes them.
pub mod weak {
    #![allow(missing_docs)] // The names of the kernel's X86_BUG_….
    pub const MELTDOWN: u32 = 1 << 0;
    pub const SPEC_STORE_BYPASS: u32 = 1 << 1;
    pub const MDS: u32 = 1 << 2;
    pub const RFDS: u32 = 1 << 3;
    pub const ITS: u32 = 1 << 4;
    pub const TAA: u32 = 1 << 5;
    /// And microcode does not prevent it.
    pub const GDS: u32 = 1 << 6;
    pub const EIBRS_PBRSB: u32 = 1 << 7;
    /// L1 terminal fault is there, and entries of guests do not flush the L1 data cache.
    pub const L1D_NOT_FLUSHED: u32 = 1 << 8;
    pub const TSA_SQ: u32 = 1 << 9;
    pub const TSA_L1: u32 = 1 << 10;
    pub const TSA_FILL: u32 = 1 << 11;
}

/// Bits of [`Kernel::uses`]; `lodge_cpu_controls()` in `rust/sys/speculation.c` makes them.
pub mod uses {
    #![allow(missing_docs)]
    pub const IBRS: u32 = 1 << 0;
    pub const IBPB: u32 = 1 << 1;
    pub const STIBP: u32 = 1 << 2;
    /// The MSR SPEC_CTRL: world switches switch it.
    pub const SPEC_CTRL: u32 = 1 << 3;
}

impl Kernel {
    /// A kernel that knows nothing, and uses nothing.
    pub const UNKNOWING: Self = Self {
        weak: u32::MAX,
        uses: 0,
    };

    /// The CPU has one of these weaknesses.
    pub const fn weak(self, bits: u32) -> bool {
        self.weak & bits != 0
    }

    /// The kernel uses all of these.
    pub const fn uses(self, bits: u32) -> bool {
        self.uses & bits == bits
    }
}

/// The commands that the CPU takes: writes without a value that could be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// PRED_CMD.IBPB: what was learnt of indirect branches is forgotten.
    pub ibpb: bool,
    /// PRED_CMD.SBPB: the same, of those that AMD names.
    pub sbpb: bool,
    /// FLUSH_CMD.L1D_FLUSH.
    pub flush_l1d: bool,
}

/// PRED_CMD.IBPB.
pub const PRED_CMD_IBPB: u64 = 1 << 0;
/// PRED_CMD.SBPB.
pub const PRED_CMD_SBPB: u64 = 1 << 7;
/// FLUSH_CMD.L1D_FLUSH.
pub const FLUSH_CMD_L1D: u64 = 1 << 0;

/// Features that are a bit of SPEC_CTRL, say that the MSR is there, or how it works.
pub const OF_SPEC_CTRL: [Feature; 14] = [
    features::SPEC_CTRL,
    features::INTEL_STIBP,
    features::SPEC_CTRL_SSBD,
    features::INTEL_PSFD,
    features::IPRED_CTRL,
    features::RRSBA_CTRL,
    features::DDPD_U,
    features::BHI_CTRL,
    features::AMD_IBRS,
    features::AMD_STIBP,
    features::AMD_STIBP_ALWAYS_ON,
    features::AMD_IBRS_SAME_MODE,
    features::AMD_SSBD,
    features::AMD_PSFD,
];

/// Whether a guest with these features has the MSR SPEC_CTRL.
pub fn has_spec_ctrl(has: &impl Fn(Feature) -> bool) -> bool {
    has(features::SPEC_CTRL)
        || has(features::AMD_STIBP)
        || has(features::AMD_IBRS)
        || has(features::AMD_SSBD)
}

/// Whether a guest with these features has the MSR PRED_CMD.
pub fn has_pred_cmd(has: &impl Fn(Feature) -> bool) -> bool {
    commands(has).ibpb || has(features::SBPB)
}

/// The commands of a guest with these features. Intel's bit stands for IBRS and IBPB.
pub fn commands(has: &impl Fn(Feature) -> bool) -> Commands {
    Commands {
        ibpb: has(features::SPEC_CTRL) || has(features::AMD_IBPB),
        sbpb: has(features::SBPB),
        flush_l1d: has(features::FLUSH_L1D),
    }
}

impl Commands {
    /// What both take.
    pub fn and(self, other: Self) -> Self {
        Self {
            ibpb: self.ibpb && other.ibpb,
            sbpb: self.sbpb && other.sbpb,
            flush_l1d: self.flush_l1d && other.flush_l1d,
        }
    }

    /// PRED_CMD takes this value.
    pub const fn takes_pred_cmd(self, value: u64) -> bool {
        let ibpb = if self.ibpb { PRED_CMD_IBPB } else { 0 };
        let sbpb = if self.sbpb { PRED_CMD_SBPB } else { 0 };
        value & !(ibpb | sbpb) == 0
    }

    /// FLUSH_CMD takes this value: there has to be one.
    pub const fn takes_flush_cmd(self, value: u64) -> bool {
        self.flush_l1d && value & !FLUSH_CMD_L1D == 0
    }
}

/// Calls `offer` for each feature that a guest can have because the CPU has the same in the other vendor's form, or because it lacks
/// a weakness. `there` tells what the CPU has.
pub fn other_forms(
    there: &impl Fn(Feature) -> bool,
    kernel: Kernel,
    offer: &mut impl FnMut(Feature),
) {
    let uses = |bits| kernel.uses(bits | uses::SPEC_CTRL);
    let ibpb = kernel.uses(uses::IBPB);
    let amd_as_intel =
        there(features::AMD_IBPB_RET) && there(features::AMD_IBPB) && there(features::AMD_IBRS);
    // An IBPB that keeps predictions of returns is less than what Intel's manual promises.
    let intel_ibpb = there(features::SPEC_CTRL) && !kernel.weak(weak::EIBRS_PBRSB);
    for (feature, is) in [
        (features::SPEC_CTRL, uses(0) && amd_as_intel),
        (features::INTEL_STIBP, uses(uses::STIBP)),
        (
            features::SPEC_CTRL_SSBD,
            uses(0) && there(features::AMD_SSBD),
        ),
        (features::AMD_IBPB, ibpb),
        (features::AMD_IBPB_RET, ibpb && intel_ibpb),
        (features::AMD_IBRS, uses(uses::IBRS)),
        (features::AMD_STIBP, uses(uses::STIBP)),
        (
            features::AMD_SSBD,
            uses(0) && there(features::SPEC_CTRL_SSBD),
        ),
        (features::AMD_SSB_NO, !kernel.weak(weak::SPEC_STORE_BYPASS)),
        (features::TSA_SQ_NO, !kernel.weak(weak::TSA_SQ)),
        (features::TSA_L1_NO, !kernel.weak(weak::TSA_L1)),
        (features::TSA_FILL_NO, !kernel.weak(weak::TSA_FILL)),
    ] {
        if is {
            offer(feature);
        }
    }
}

/// Bits of IA32_ARCH_CAPABILITIES.
pub mod arch {
    #![allow(missing_docs)] // They are named as in the manual.
    pub const RDCL_NO: u64 = 1 << 0;
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const RSBA: u64 = 1 << 2;
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    pub const SSB_NO: u64 = 1 << 4;
    pub const MDS_NO: u64 = 1 << 5;
    pub const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    pub const TAA_NO: u64 = 1 << 8;
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    pub const FBSDP_NO: u64 = 1 << 14;
    pub const PSDP_NO: u64 = 1 << 15;
    pub const FB_CLEAR: u64 = 1 << 17;
    pub const RRSBA: u64 = 1 << 19;
    pub const BHI_NO: u64 = 1 << 20;
    pub const PBRSB_NO: u64 = 1 << 24;
    pub const GDS_NO: u64 = 1 << 26;
    pub const RFDS_NO: u64 = 1 << 27;
    pub const RFDS_CLEAR: u64 = 1 << 28;
    pub const ITS_NO: u64 = 1 << 62;

    /// What a guest is told as the CPU has it. The other bits stand for MSRs that guests do not have (IA32_TSX_CTRL among them).
    pub const OF_HOST: u64 = RDCL_NO
        | IBRS_ALL
        | RSBA
        | SKIP_L1DFL_VMENTRY
        | SSB_NO
        | MDS_NO
        | IF_PSCHANGE_MC_NO
        | TAA_NO
        | SBDR_SSDP_NO
        | FBSDP_NO
        | PSDP_NO
        | FB_CLEAR
        | RRSBA
        | BHI_NO
        | PBRSB_NO
        | GDS_NO
        | RFDS_NO
        | RFDS_CLEAR
        | ITS_NO;
}

/// IA32_ARCH_CAPABILITIES for guests. `host` is the CPU's, 0 where it has none; `rtm`: the CPU has transactions and the kernel uses them.
pub fn arch_capabilities(host: u64, kernel: Kernel, rtm: bool) -> u64 {
    let mut value = host & arch::OF_HOST;
    // Only hypervisors ask for these two, and a guest can be none.
    value |= arch::IF_PSCHANGE_MC_NO;
    for (weakness, bit) in [
        (weak::L1D_NOT_FLUSHED, arch::SKIP_L1DFL_VMENTRY),
        (weak::MELTDOWN, arch::RDCL_NO),
        (weak::SPEC_STORE_BYPASS, arch::SSB_NO),
        (weak::MDS, arch::MDS_NO),
        (weak::RFDS, arch::RFDS_NO),
        (weak::ITS, arch::ITS_NO),
        (weak::GDS, arch::GDS_NO),
    ] {
        if !kernel.weak(weakness) {
            value |= bit;
        }
    }
    // Without transactions there is no asynchronous abort, and nothing to be told of it.
    match (rtm, kernel.weak(weak::TAA)) {
        (false, _) => value & !arch::TAA_NO,
        (true, false) => value | arch::TAA_NO,
        (true, true) => value,
    }
}

#[cfg(test)]
#[path = "speculation_tests.rs"]
mod tests;
