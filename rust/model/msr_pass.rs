// SPDX-License-Identifier: GPL-2.0
//! Which MSRs a guest reaches without an exit: what the permission maps are made of.
#![forbid(unsafe_code)]

use super::msr_table::HwMsr;

/// How far the guest may reach an MSR without an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Not at all.
    None,
    /// RDMSR.
    Read,
    /// RDMSR and WRMSR.
    ReadWrite,
    /// WRMSR.
    Write,
}

/// PRED_CMD, which guests can be let write.
pub const PRED_CMD: u32 = 0x49;

/// What a guest reaches without an exit besides [`HwMsr::pass_through`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// SPEC_CTRL, to read and to write.
    pub spec_ctrl: bool,
    /// PRED_CMD, to write. (FLUSH_CMD takes so long that the exit does not matter.)
    pub pred_cmd: bool,
}

impl Passed {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::of(0), Self::of(1), Self::of(2), Self::of(3)];

    const fn of(n: usize) -> Self {
        Self {
            spec_ctrl: n & 1 != 0,
            pred_cmd: n & 2 != 0,
        }
    }

    /// Its place in [`Passed::ALL`].
    pub const fn index(self) -> usize {
        self.spec_ctrl as usize | (self.pred_cmd as usize) << 1
    }

    /// The MSRs, and how far.
    pub fn msrs(self) -> impl Iterator<Item = (u32, Pass)> {
        [
            (self.spec_ctrl, HwMsr::SpecCtrl.index(), Pass::ReadWrite),
            (self.pred_cmd, PRED_CMD, Pass::Write),
        ]
        .into_iter()
        .filter(|m| m.0)
        .map(|(_, msr, how)| (msr, how))
    }
}

impl HwMsr {
    /// What the permission map of a guest should say. SVM saves and loads the SYSCALL MSRs with the VMCB; on VMX the
    /// module loads them itself, so it has to see the writes. The values need no check: a non-canonical one is #GP anyway.
    pub const fn pass_through(self, amd: bool) -> Pass {
        match self {
            Self::FsBase | Self::GsBase | Self::KernelGsBase => Pass::ReadWrite,
            Self::SysenterCs => Pass::ReadWrite,
            // AMD's have 32 bits. A guest that was told of an Intel has 64, for the SYSENTER that is emulated.
            Self::SysenterEsp | Self::SysenterEip if !amd => Pass::ReadWrite,
            Self::Star | Self::Lstar | Self::Cstar | Self::Fmask if amd => Pass::ReadWrite,
            // VMX adds the offset to what RDMSR reads.
            Self::Tsc if !amd => Pass::Read,
            _ => Pass::None,
        }
    }
}
