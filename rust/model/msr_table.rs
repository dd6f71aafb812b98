// SPDX-License-Identifier: GPL-2.0
//! The registry of model-specific registers: one row each (or one for a run of them), as data.
//!
//! An MSR without a row is unknown to the guest (#GP) and to user space. Of the MSRs that belong to features we do not offer
//! (VIRT_SPEC_CTRL, IA32_TSX_CTRL, PMU, XSS, VMX's, …) there is deliberately no row.
#![forbid(unsafe_code)]

use super::features::{self, Feature};

/// An MSR that the backend holds, because the CPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // They are named as in the manuals.
pub enum HwMsr {
    Tsc,
    SysenterCs,
    SysenterEsp,
    SysenterEip,
    Pat,
    Efer,
    Star,
    Lstar,
    Cstar,
    Fmask,
    FsBase,
    GsBase,
    KernelGsBase,
    TscAux,
    SpecCtrl,
}

/// Where an MSR lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The backend has it.
    Hw(HwMsr),
    /// A slot of the vCPU's array; a run of MSRs takes a run of slots.
    Soft(usize),
    /// It always reads so.
    Const(u64),
}

/// Which CPU has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Each.
    Any,
    /// Intel's.
    Intel,
    /// AMD's.
    Amd,
}

/// An answer to "may it?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// It may.
    Yes,
    /// The MSR is there, but not for this.
    No,
    /// For this, it is as if the MSR were not there.
    Unknown,
}

/// What a write does, and which values it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Rules with the name of an MSR are those of that MSR.
pub enum Rule {
    /// Any value is stored.
    Any,
    /// Any value is taken and forgotten.
    Ignore,
    /// Zero is taken, nothing else.
    Zero,
    /// Values without other bits are stored.
    Bits(u64),
    /// A canonical address.
    Canonical,
    /// User space stores it, the guest's writes are forgotten.
    HostStores,
    ApicBase,
    ArchCapabilities,
    DebugCtl,
    Efer,
    FeatureControl,
    FlushCmd,
    ClockPage,
    Fmask,
    Hwcr,
    McBank,
    McControl2,
    McgControl,
    MiscEnable,
    MiscFeatures,
    MtrrDefault,
    MtrrFixed,
    MtrrVariable,
    Pat,
    PredCmd,
    SpecCtrl,
    SysenterAddress,
    SysenterCs,
    Tsc,
    TscAdjust,
    TscAux,
    WallClock,
}

/// Whether KVM_GET_MSR_INDEX_LIST tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// No.
    No,
    /// Yes.
    Yes,
    /// If the CPU has it.
    IfPresent,
    /// If the CPU has it and one of these features is offered.
    IfOffered(Feature, Feature),
}

/// One MSR, or a run of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The first index.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// The name.
    pub name: &'static str,
    /// Where it lives.
    pub place: Place,
    /// The value after reset, of a soft one.
    pub reset: u64,
    /// Which CPU has it.
    pub on: On,
    /// The guest reads it.
    pub read: May,
    /// The guest writes it.
    pub write: May,
    /// User space reads it.
    pub host_read: May,
    /// User space writes it.
    pub host_write: May,
    /// What a write does.
    pub rule: Rule,
    /// Whether it is listed.
    pub listed: Listed,
}

const fn row(first: u32, name: &'static str, place: Place) -> Row {
    Row {
        first,
        count: 1,
        name,
        place,
        reset: 0,
        on: On::Any,
        read: May::Yes,
        write: May::Yes,
        host_read: May::Yes,
        host_write: May::Yes,
        rule: Rule::Any,
        listed: Listed::No,
    }
}

/// A constant that cannot be written.
const fn fixed(first: u32, name: &'static str, value: u64) -> Row {
    Row {
        write: May::Unknown,
        host_write: May::Unknown,
        ..row(first, name, Place::Const(value))
    }
}

/// Reads as zero, writes are forgotten.
const fn dummy(first: u32, name: &'static str) -> Row {
    Row {
        rule: Rule::Ignore,
        ..row(first, name, Place::Const(0))
    }
}

/// Writes are forgotten, and it cannot be read.
const fn sink(first: u32, name: &'static str) -> Row {
    Row {
        read: May::Unknown,
        host_read: May::Unknown,
        ..dummy(first, name)
    }
}

impl Row {
    const fn run(self, count: u32) -> Self {
        Self { count, ..self }
    }
    const fn reset(self, reset: u64) -> Self {
        Self { reset, ..self }
    }
    const fn on(self, on: On) -> Self {
        Self { on, ..self }
    }
    const fn rule(self, rule: Rule) -> Self {
        Self { rule, ..self }
    }
    const fn listed(self, listed: Listed) -> Self {
        Self { listed, ..self }
    }
    /// The guest cannot write it.
    const fn host_writes(self) -> Self {
        Self {
            write: May::No,
            ..self
        }
    }
    /// The guest does not see it.
    const fn host_only(self) -> Self {
        Self {
            read: May::No,
            write: May::No,
            ..self
        }
    }
    /// It is there, and refuses everything.
    const fn refuses(self) -> Self {
        Self {
            read: May::No,
            write: May::No,
            host_read: May::No,
            host_write: May::No,
            ..self
        }
    }
}

/// Most machine-check banks.
pub const BANKS: u32 = 32;
/// Pairs of variable MTRRs.
pub const VARIABLE_MTRRS: u32 = 8;

/// The slots of the soft MSRs.
pub mod slot {
    #![allow(missing_docs)]
    pub const APIC_BASE: usize = 0;
    pub const TSC_ADJUST: usize = 1;
    pub const MISC_ENABLE: usize = 2;
    pub const MISC_FEATURES: usize = 3;
    pub const PLATFORM_INFO: usize = 4;
    pub const UCODE_REV: usize = 5;
    pub const FEATURE_CONTROL: usize = 6;
    pub const SMI_COUNT: usize = 7;
    pub const POWER_CTL: usize = 8;
    pub const MCG_CAP: usize = 9;
    pub const MCG_STATUS: usize = 10;
    pub const MCG_CTL: usize = 11;
    pub const MCG_EXT_CTL: usize = 12;
    pub const HWCR: usize = 13;
    pub const DE_CFG: usize = 14;
    pub const OSVW: usize = 15;
    pub const MTRR_DEFAULT: usize = 17;
    pub const MTRR_FIXED: usize = 18;
    pub const MTRR_VARIABLE: usize = 29;
    pub const MC_CTL2: usize = 45;
    pub const MC_BANKS: usize = 77;
    pub const WALL_CLOCK: usize = 205;
    pub const SYSTEM_TIME: usize = 206;
    pub const ARCH_CAPABILITIES: usize = 207;
    /// How many there are.
    pub const COUNT: usize = 208;
}

/// Bits and values of MSRs.
pub mod bits {
    #![allow(missing_docs)]
    /// IA32_MISC_ENABLE: what is not there, in a CPU without PMU.
    pub const MISC_BTS_UNAVAILABLE: u64 = 1 << 11;
    pub const MISC_PEBS_UNAVAILABLE: u64 = 1 << 12;
    pub const MISC_EMON: u64 = 1 << 7;
    /// MONITOR and MWAIT are there.
    pub const MISC_MWAIT: u64 = 1 << 18;
    pub const PLATFORM_CPUID_FAULT: u64 = 1 << 31;
    pub const FEATURES_CPUID_FAULT: u64 = 1 << 0;
    /// Memory types 0, 4, 6 and 7, twice.
    pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
    pub const MCG_CTL_P: u64 = 1 << 8;
    pub const MCG_CMCI_P: u64 = 1 << 10;
    pub const MCG_SER_P: u64 = 1 << 24;
    pub const HWCR_MC_STATUS_WRITABLE: u64 = 1 << 18;
    pub const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
    pub const DE_CFG_LFENCE_SERIALIZES: u64 = 1 << 1;
    pub const FEATURE_CONTROL_LOCKED: u64 = 1 << 0;
}

use super::cr::apic_base;
use Listed::{IfOffered, IfPresent};
use On::{Amd, Intel};
use Place::{Const, Hw, Soft};

/// The registry, in order of indexes.
pub static TABLE: &[Row] = &[
    fixed(0x0, "IA32_P5_MC_ADDR", 0),
    fixed(0x1, "IA32_P5_MC_TYPE", 0),
    row(0x10, "IA32_TSC", Hw(HwMsr::Tsc))
        .rule(Rule::Tsc)
        .listed(IfPresent),
    // KVM's clock, under the numbers that it had first.
    row(0x11, "KVM_WALL_CLOCK", Soft(slot::WALL_CLOCK))
        .rule(Rule::WallClock)
        .listed(Listed::Yes),
    row(0x12, "KVM_SYSTEM_TIME", Soft(slot::SYSTEM_TIME))
        .rule(Rule::ClockPage)
        .listed(Listed::Yes),
    fixed(0x17, "IA32_PLATFORM_ID", 0),
    row(0x1b, "IA32_APIC_BASE", Soft(slot::APIC_BASE))
        .reset(apic_base::RESET)
        .rule(Rule::ApicBase),
    fixed(0x2a, "EBL_CR_POWERON", 0),
    // A bus and multiplier that nobody divides by zero with.
    fixed(0x2c, "EBC_FREQUENCY_ID", 1 << 24),
    row(0x34, "SMI_COUNT", Soft(slot::SMI_COUNT))
        .host_writes()
        .listed(Listed::Yes),
    row(0x3a, "IA32_FEATURE_CONTROL", Soft(slot::FEATURE_CONTROL))
        .on(Intel)
        .rule(Rule::FeatureControl)
        .listed(IfPresent),
    row(0x3b, "IA32_TSC_ADJUST", Soft(slot::TSC_ADJUST))
        .rule(Rule::TscAdjust)
        .listed(Listed::Yes),
    row(0x48, "IA32_SPEC_CTRL", Hw(HwMsr::SpecCtrl))
        .rule(Rule::SpecCtrl)
        .listed(IfPresent),
    // Commands: what is written does something at once, and there is nothing to read.
    sink(0x49, "IA32_PRED_CMD").rule(Rule::PredCmd),
    sink(0x79, "IA32_BIOS_UPDT_TRIG"),
    row(0x8b, "IA32_BIOS_SIGN_ID", Soft(slot::UCODE_REV))
        .rule(Rule::HostStores)
        .listed(Listed::Yes),
    // Without a PMU the old counters read as zero: kernels probe them without asking CPUID.
    dummy(0xc1, "IA32_PMC0").run(2),
    fixed(0xcd, "FSB_FREQ", 3),
    row(0xce, "PLATFORM_INFO", Soft(slot::PLATFORM_INFO))
        .reset(bits::PLATFORM_CPUID_FAULT)
        .host_writes()
        .listed(Listed::Yes),
    // Eight variable ranges, fixed ranges, write-combining.
    fixed(0xfe, "IA32_MTRRCAP", 0x500 | VARIABLE_MTRRS as u64),
    Row {
        write: May::Unknown,
        ..row(
            0x10a,
            "IA32_ARCH_CAPABILITIES",
            Soft(slot::ARCH_CAPABILITIES),
        )
    }
    .rule(Rule::ArchCapabilities)
    .listed(Listed::Yes),
    sink(0x10b, "IA32_FLUSH_CMD").rule(Rule::FlushCmd),
    row(0x11e, "BBL_CR_CTL3", Const(0xbe70_2111)).rule(Rule::Ignore),
    row(0x140, "MISC_FEATURES_ENABLES", Soft(slot::MISC_FEATURES))
        .rule(Rule::MiscFeatures)
        .listed(Listed::Yes),
    row(0x174, "IA32_SYSENTER_CS", Hw(HwMsr::SysenterCs))
        .rule(Rule::SysenterCs)
        .listed(IfPresent),
    row(0x175, "IA32_SYSENTER_ESP", Hw(HwMsr::SysenterEsp))
        .rule(Rule::SysenterAddress)
        .listed(IfPresent),
    row(0x176, "IA32_SYSENTER_EIP", Hw(HwMsr::SysenterEip))
        .rule(Rule::SysenterAddress)
        .listed(IfPresent),
    Row {
        write: May::Unknown,
        host_write: May::Unknown,
        ..row(0x179, "IA32_MCG_CAP", Soft(slot::MCG_CAP))
    }
    .reset(BANKS as u64),
    row(0x17a, "IA32_MCG_STATUS", Soft(slot::MCG_STATUS)).listed(Listed::Yes),
    row(0x17b, "IA32_MCG_CTL", Soft(slot::MCG_CTL))
        .rule(Rule::McgControl)
        .listed(Listed::Yes),
    dummy(0x186, "IA32_PERFEVTSEL0").run(2),
    // A tick is a thousand, the multiplier four.
    fixed(0x198, "IA32_PERF_STATUS", 1000 | (4 << 40)),
    fixed(0x199, "IA32_PERF_CTL", 0),
    row(0x1a0, "IA32_MISC_ENABLE", Soft(slot::MISC_ENABLE))
        .reset(bits::MISC_PEBS_UNAVAILABLE | bits::MISC_BTS_UNAVAILABLE)
        .rule(Rule::MiscEnable)
        .listed(Listed::Yes),
    row(0x1d9, "IA32_DEBUGCTL", Const(0))
        .rule(Rule::DebugCtl)
        .listed(IfPresent),
    fixed(0x1db, "LASTBRANCHFROMIP", 0).run(4).listed(IfPresent),
    row(0x1fc, "POWER_CTL", Soft(slot::POWER_CTL)).listed(Listed::Yes),
    // Base and mask by turns; the rules tell them apart by the lowest bit of the index.
    row(0x200, "IA32_MTRR_PHYS", Soft(slot::MTRR_VARIABLE))
        .run(VARIABLE_MTRRS * 2)
        .rule(Rule::MtrrVariable),
    row(0x210, "IA32_MTRR_PHYS (none)", Const(0))
        .run(0x40)
        .refuses(),
    row(0x250, "IA32_MTRR_FIX64K", Soft(slot::MTRR_FIXED)).rule(Rule::MtrrFixed),
    row(0x258, "IA32_MTRR_FIX16K", Soft(slot::MTRR_FIXED + 1))
        .run(2)
        .rule(Rule::MtrrFixed),
    row(0x268, "IA32_MTRR_FIX4K", Soft(slot::MTRR_FIXED + 3))
        .run(8)
        .rule(Rule::MtrrFixed),
    row(0x277, "IA32_PAT", Hw(HwMsr::Pat))
        .reset(bits::PAT_RESET)
        .rule(Rule::Pat)
        .listed(IfPresent),
    row(0x280, "IA32_MC_CTL2", Soft(slot::MC_CTL2))
        .run(BANKS)
        .rule(Rule::McControl2),
    row(0x2ff, "IA32_MTRR_DEF_TYPE", Soft(slot::MTRR_DEFAULT)).rule(Rule::MtrrDefault),
    row(0x400, "IA32_MC", Soft(slot::MC_BANKS))
        .run(BANKS * 4)
        .rule(Rule::McBank),
    row(0x4d0, "IA32_MCG_EXT_CTL", Soft(slot::MCG_EXT_CTL))
        .on(Intel)
        .host_only()
        .rule(Rule::Bits(1))
        .listed(Listed::Yes),
    // Running-average power limits: Sandy Bridge guests read them without asking.
    fixed(0x606, "RAPL_POWER_UNIT", 0),
    fixed(0x611, "PKG_ENERGY_STATUS", 0),
    fixed(0x619, "DRAM_ENERGY_STATUS", 0),
    fixed(0x639, "PP0_ENERGY_STATUS", 0),
    fixed(0x641, "PP1_ENERGY_STATUS", 0),
    // Without a local APIC there is no timer that it could set.
    dummy(0x6e0, "IA32_TSC_DEADLINE").listed(Listed::Yes),
    row(0x800, "x2APIC", Const(0)).run(0x100).refuses(),
    row(0x4b56_4d00, "KVM_WALL_CLOCK_NEW", Soft(slot::WALL_CLOCK))
        .rule(Rule::WallClock)
        .listed(Listed::Yes),
    row(0x4b56_4d01, "KVM_SYSTEM_TIME_NEW", Soft(slot::SYSTEM_TIME))
        .rule(Rule::ClockPage)
        .listed(Listed::Yes),
    row(0xc000_0080, "EFER", Hw(HwMsr::Efer)).rule(Rule::Efer),
    row(0xc000_0081, "STAR", Hw(HwMsr::Star)).listed(IfPresent),
    row(0xc000_0082, "LSTAR", Hw(HwMsr::Lstar))
        .rule(Rule::Canonical)
        .listed(IfPresent),
    row(0xc000_0083, "CSTAR", Hw(HwMsr::Cstar))
        .rule(Rule::Canonical)
        .listed(IfPresent),
    row(0xc000_0084, "FMASK", Hw(HwMsr::Fmask))
        .rule(Rule::Fmask)
        .listed(IfPresent),
    row(0xc000_0100, "FS_BASE", Hw(HwMsr::FsBase)).rule(Rule::Canonical),
    row(0xc000_0101, "GS_BASE", Hw(HwMsr::GsBase)).rule(Rule::Canonical),
    row(0xc000_0102, "KERNEL_GS_BASE", Hw(HwMsr::KernelGsBase))
        .rule(Rule::Canonical)
        .listed(IfPresent),
    row(0xc000_0103, "TSC_AUX", Hw(HwMsr::TscAux))
        .rule(Rule::TscAux)
        .listed(IfOffered(features::RDTSCP, features::RDPID)),
    dummy(0xc001_0000, "K7_EVNTSEL, K7_PERFCTR").run(8),
    fixed(0xc001_0010, "SYSCFG", 0),
    row(0xc001_0015, "HWCR", Soft(slot::HWCR))
        .rule(Rule::Hwcr)
        .listed(Listed::Yes),
    row(0xc001_001b, "K7_CLK_CTL", Const(0x2000_0000)).rule(Rule::Ignore),
    dummy(0xc001_001f, "NB_CFG"),
    sink(0xc001_0020, "PATCH_LOADER"),
    fixed(0xc001_0055, "INT_PENDING_MSG", 0),
    row(0xc001_0058, "MMIO_CONF_BASE", Const(0)).rule(Rule::Zero),
    fixed(0xc001_0112, "TSEG_ADDR", 0),
    fixed(0xc001_0113, "TSEG_MASK", 0),
    sink(0xc001_0115, "VM_IGNNE").on(Amd),
    dummy(0xc001_0117, "VM_HSAVE_PA").listed(IfPresent),
    // Length and status of the erratum table: three errata are known, all are fixed.
    row(0xc001_0140, "OSVW_ID_LENGTH", Soft(slot::OSVW)).reset(3),
    row(0xc001_0141, "OSVW_STATUS", Soft(slot::OSVW + 1)),
    fixed(0xc001_1021, "IC_CFG", 0).on(Amd),
    dummy(0xc001_1022, "DC_CFG"),
    dummy(0xc001_1023, "TW_CFG"),
    row(0xc001_1029, "DE_CFG", Soft(slot::DE_CFG))
        .on(Amd)
        .rule(Rule::Bits(bits::DE_CFG_LFENCE_SERIALIZES)),
    dummy(0xc001_102a, "BU_CFG2"),
    dummy(0xc001_102c, "EX_CFG"),
];
