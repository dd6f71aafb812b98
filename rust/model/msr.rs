// SPDX-License-Identifier: GPL-2.0
//! Reading and writing model-specific registers: RDMSR, WRMSR, KVM_GET_MSRS, KVM_SET_MSRS and the index lists.
//!
//! What there is, is the registry ([`super::msr_table`]). The soft ones are kept in an array of [`slot::COUNT`] words that the
//! vCPU owns (all zeros, then [`reset`]); the others are the backend's, and are passed on as [`Answer::Hw`] and [`Effect::Hw`].
#![forbid(unsafe_code)]

use super::cpuid_host::HostCaps;
use super::cr::{self, apic_base, Mode};
use super::features;
use super::guest::GuestFeatures;
use super::misc_enable;
pub use super::msr_pass::{Pass, Passed};
pub use super::msr_table::{bits, slot, HwMsr};
use super::msr_table::{Listed, May, On, Place, Row, Rule, TABLE};
use super::speculation::Commands;

/// Who reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The guest, by RDMSR or WRMSR.
    Guest,
    /// User space, by an ioctl.
    Host,
}

/// Why an access fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadMsr {
    /// There is no such MSR: #GP, or with `ignore_msrs` a zero.
    Unknown,
    /// The MSR refuses the access or the value: #GP.
    Refused,
}

/// The answer to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This value.
    Value(u64),
    /// What the backend holds.
    Hw(HwMsr),
}

/// What is left to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    Done,
    /// The backend stores this value. (EFER: LMA is as it was.)
    Hw(HwMsr, u64),
    /// The guest's time-stamp counter is to read so now. By the guest: pass the change of the offset to [`adjust_tsc`].
    Tsc(u64),
    /// The offset of the guest's time-stamp counter grows by so much (modulo 2^64).
    TscOffset(u64),
    /// The page of KVM's clock is to be written: [`time_page`].
    ClockPage,
    /// The time of day is to be written to this address.
    WallClock(u64),
    /// The guest's CPUID shows it: `cpuid::refresh`.
    CpuidDirty,
    /// PRED_CMD is to be written on this CPU.
    PredCmd(u64),
    /// The L1 data cache of this CPU is to be flushed.
    FlushL1d,
}

impl HwMsr {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Tsc,
        Self::SysenterCs,
        Self::SysenterEsp,
        Self::SysenterEip,
        Self::Pat,
        Self::Efer,
        Self::Star,
        Self::Lstar,
        Self::Cstar,
        Self::Fmask,
        Self::FsBase,
        Self::GsBase,
        Self::KernelGsBase,
        Self::TscAux,
        Self::SpecCtrl,
    ];

    /// Its number for RDMSR.
    pub const fn index(self) -> u32 {
        match self {
            Self::Tsc => 0x10,
            Self::SysenterCs => 0x174,
            Self::SysenterEsp => 0x175,
            Self::SysenterEip => 0x176,
            Self::Pat => 0x277,
            Self::Efer => 0xc000_0080,
            Self::Star => 0xc000_0081,
            Self::Lstar => 0xc000_0082,
            Self::Cstar => 0xc000_0083,
            Self::Fmask => 0xc000_0084,
            Self::FsBase => 0xc000_0100,
            Self::GsBase => 0xc000_0101,
            Self::KernelGsBase => 0xc000_0102,
            Self::TscAux => 0xc000_0103,
            Self::SpecCtrl => 0x48,
        }
    }

    /// The value after reset.
    pub const fn reset(self) -> u64 {
        match self {
            Self::Pat => bits::PAT_RESET,
            _ => 0,
        }
    }
}

/// Puts the soft MSRs to what they are after reset. `bsp`: the vCPU is the bootstrap processor.
pub fn reset(slots: &mut [u64], host: &HostCaps, bsp: bool) {
    for row in TABLE {
        if let Place::Soft(first) = row.place {
            for s in slots.iter_mut().skip(first).take(row.count as usize) {
                *s = row.reset;
            }
        }
    }
    if bsp {
        put(slots, slot::APIC_BASE, apic_base::RESET | apic_base::BSP);
    }
    let amd = host.vendor().is_amd();
    put(
        slots,
        slot::UCODE_REV,
        if amd { 0x0100_0065 } else { 1 << 32 },
    );
    put(slots, slot::ARCH_CAPABILITIES, host.arch_capabilities());
}

/// IA32_APIC_BASE.
pub fn apic_base(slots: &[u64]) -> u64 {
    get(slots, slot::APIC_BASE)
}

/// Sets IA32_APIC_BASE to a value that was checked (`sregs::check`); true if the guest's CPUID shows the change.
pub fn set_apic_base(slots: &mut [u64], value: u64) -> bool {
    let old = get(slots, slot::APIC_BASE);
    put(slots, slot::APIC_BASE, value);
    (old ^ value) & apic_base::ENABLE != 0
}

/// The guest's write of its time-stamp counter moved the offset by `delta` (modulo 2^64).
pub fn adjust_tsc(slots: &mut [u64], delta: u64) {
    let old = get(slots, slot::TSC_ADJUST);
    put(slots, slot::TSC_ADJUST, old.wrapping_add(delta));
}

/// Where the guest has the page of KVM's clock, if it uses one.
pub fn time_page(slots: &[u64]) -> Option<u64> {
    let value = get(slots, slot::SYSTEM_TIME);
    (value & 1 != 0).then_some(value & !1)
}

/// CPUID is #GP outside of privilege level 0: the guest switched CPUID faulting on.
pub fn cpuid_faulting(slots: &[u64]) -> bool {
    get(slots, slot::MISC_FEATURES) & bits::FEATURES_CPUID_FAULT != 0
}

/// Reads MSR `index`.
pub fn read(slots: &[u64], index: u32, who: Who, guest: &GuestFeatures) -> Result<Answer, BadMsr> {
    let row = find(index, guest).ok_or(BadMsr::Unknown)?;
    let may = match who {
        Who::Guest => row.read,
        Who::Host => row.host_read,
    };
    match may {
        May::Yes => {}
        May::No => return Err(BadMsr::Refused),
        May::Unknown => return Err(BadMsr::Unknown),
    }
    match gate(row, index, who, slots, guest) {
        Ok(()) => {}
        // What is listed reads as zero: user space saves it.
        Err(BadMsr::Unknown) if who == Who::Host => return Ok(Answer::Value(0)),
        Err(e) => return Err(e),
    }
    Ok(match row.place {
        Place::Hw(msr) => Answer::Hw(msr),
        Place::Const(value) => Answer::Value(value),
        Place::Soft(first) => Answer::Value(get(slots, soft(row, first, index))),
    })
}

/// Writes `value` to MSR `index`. `mode` is the CPU's mode now (for EFER).
pub fn write(
    slots: &mut [u64],
    index: u32,
    value: u64,
    who: Who,
    mode: &Mode,
    guest: &GuestFeatures,
) -> Result<Effect, BadMsr> {
    let row = find(index, guest).ok_or(BadMsr::Unknown)?;
    let may = match who {
        Who::Guest => row.write,
        Who::Host => row.host_write,
    };
    match may {
        May::Yes => {}
        May::No => return Err(BadMsr::Refused),
        May::Unknown => return absent(row, value, who),
    }
    match gate(row, index, who, slots, guest) {
        Ok(()) => {}
        Err(BadMsr::Unknown) => return absent(row, value, who),
        Err(e) => return Err(e),
    }
    let access = Access {
        row,
        index,
        value,
        who,
        guest,
    };
    match row.place {
        Place::Hw(msr) => access.hardware(msr, mode),
        Place::Const(_) => access.constant(),
        Place::Soft(first) => access.software(slots, soft(row, first, index)),
    }
}

/// A write to what is not there. What is listed takes a zero: user space restores what it read.
fn absent(row: &Row, value: u64, who: Who) -> Result<Effect, BadMsr> {
    if who == Who::Host && row.listed != Listed::No && value == 0 {
        Ok(Effect::Done)
    } else {
        Err(BadMsr::Unknown)
    }
}

/// After the vCPU has run, user space may write this MSR only the value that it has: it describes the CPU model.
pub fn is_immutable(index: u32) -> bool {
    matches!(index, 0xce | 0x10a | 0xc001_1029)
}

/// Produces the indexes of KVM_GET_MSR_INDEX_LIST. `present(index)` tells whether RDMSR works on the CPU below.
pub fn index_list<E>(
    host: &HostCaps,
    present: &impl Fn(u32) -> bool,
    push: &mut impl FnMut(u32) -> Result<(), E>,
) -> Result<(), E> {
    for row in TABLE.iter().filter(|r| is_on(r, host.vendor().is_amd())) {
        for index in row.first..row.first.saturating_add(row.count) {
            let listed = match row.listed {
                Listed::No => false,
                Listed::Yes => true,
                Listed::IfPresent => present(index),
                Listed::IfOffered(a, b) => (host.has(a) || host.has(b)) && present(index),
            };
            if listed {
                push(index)?;
            }
        }
    }
    Ok(())
}

/// The MSRs that describe what the module can make of the CPU: KVM_GET_MSR_FEATURE_INDEX_LIST.
pub const FEATURE_LIST: [u32; 4] = [0xc001_1029, 0x8b, 0x10a, 0xce];

/// KVM_GET_MSRS on the device: the value of one of [`FEATURE_LIST`]. `ucode` is what RDMSR 0x8b reads on the CPU below.
pub fn feature_value(index: u32, host: &HostCaps, ucode: u64) -> Result<u64, BadMsr> {
    match index {
        0xc001_1029 if !host.vendor().is_amd() => Err(BadMsr::Unknown),
        0xc001_1029 if host.lfence_serializing() => Ok(bits::DE_CFG_LFENCE_SERIALIZES),
        0xc001_1029 => Ok(0),
        0x8b => Ok(ucode),
        0x10a => Ok(host.arch_capabilities()),
        0xce => Ok(bits::PLATFORM_CPUID_FAULT),
        _ => Err(BadMsr::Unknown),
    }
}

pub(super) fn get(slots: &[u64], i: usize) -> u64 {
    slots.get(i).copied().unwrap_or(0)
}

pub(super) fn put(slots: &mut [u64], i: usize, value: u64) {
    if let Some(s) = slots.get_mut(i) {
        *s = value;
    }
}

fn soft(row: &Row, first: usize, index: u32) -> usize {
    first.wrapping_add(index.wrapping_sub(row.first) as usize)
}

const fn is_on(row: &Row, amd: bool) -> bool {
    match row.on {
        On::Any => true,
        On::Intel => !amd,
        On::Amd => amd,
    }
}

fn find(index: u32, guest: &GuestFeatures) -> Option<&'static Row> {
    let after = TABLE.partition_point(|r| r.first <= index);
    let row = TABLE.get(after.checked_sub(1)?)?;
    let inside = index.wrapping_sub(row.first) < row.count;
    (inside && is_on(row, guest.host_vendor().is_amd())).then_some(row)
}

/// What depends on the guest's CPUID or on other MSRs, for reads and writes alike.
fn gate(
    row: &Row,
    index: u32,
    who: Who,
    slots: &[u64],
    guest: &GuestFeatures,
) -> Result<(), BadMsr> {
    let cap = get(slots, slot::MCG_CAP);
    let bank = match row.rule {
        Rule::McBank => index.wrapping_sub(row.first) >> 2,
        Rule::McControl2 => index.wrapping_sub(row.first),
        _ => 0,
    };
    let by_guest = who == Who::Guest;
    if row.rule == Rule::ArchCapabilities && !guest.has(features::ARCH_CAPABILITIES) {
        return Err(BadMsr::Unknown);
    }
    let ok = match row.rule {
        Rule::SpecCtrl => !by_guest || guest.spec_ctrl(),
        Rule::PredCmd => !by_guest || guest.pred_cmd(),
        Rule::TscAux => guest.host_tsc_aux() && (!by_guest || guest.tsc_aux()),
        Rule::McBank => u64::from(bank) < cap & 0xff,
        Rule::McControl2 => {
            u64::from(bank) < cap & 0xff && (!by_guest || cap & bits::MCG_CMCI_P != 0)
        }
        Rule::McgControl => !by_guest || cap & bits::MCG_CTL_P != 0,
        _ if matches!(row.place, Place::Soft(s) if s == slot::OSVW || s == slot::OSVW + 1) => {
            guest.has(features::OSVW)
        }
        _ => true,
    };
    if ok {
        Ok(())
    } else {
        Err(BadMsr::Refused)
    }
}

struct Access<'a> {
    row: &'a Row,
    index: u32,
    value: u64,
    who: Who,
    guest: &'a GuestFeatures,
}

impl Access<'_> {
    fn by_guest(&self) -> bool {
        self.who == Who::Guest
    }

    fn hardware(&self, msr: HwMsr, mode: &Mode) -> Result<Effect, BadMsr> {
        let guest = self.guest;
        let v = self.value;
        let refuse_unless = |ok: bool| if ok { Ok(v) } else { Err(BadMsr::Refused) };
        let stored = match self.row.rule {
            Rule::Canonical => refuse_unless(cr::is_canonical(v, guest.linear_bits()))?,
            Rule::SysenterCs if !guest.host_vendor().is_amd() => v & 0xffff_ffff,
            Rule::SysenterAddress => self.sysenter_address(),
            // On Intel the host writes it for the guest, and the upper half is reserved.
            Rule::Fmask if !guest.host_vendor().is_amd() => refuse_unless(v >> 32 == 0)?,
            Rule::Pat => refuse_unless(v.to_le_bytes().into_iter().all(is_pat_type))?,
            Rule::TscAux if guest.vendor().is_amd() => v & 0xffff_ffff,
            Rule::TscAux => refuse_unless(v >> 32 == 0)?,
            Rule::Efer => {
                let checked = match self.who {
                    Who::Guest => cr::check_efer(v, mode, guest.limits()),
                    Who::Host => cr::set_efer(v, mode, guest.limits()),
                };
                checked.map_err(|_| BadMsr::Refused)?
            }
            Rule::Tsc => return Ok(Effect::Tsc(v)),
            _ => v,
        };
        Ok(Effect::Hw(msr, stored))
    }

    /// A non-canonical address is made canonical rather than refused: on AMD, whose SYSENTER has 32 bits, it is legal.
    fn sysenter_address(&self) -> u64 {
        let v = cr::canonical(self.value, self.guest.linear_bits());
        if self.guest.host_vendor().is_amd() && self.guest.vendor().is_amd() {
            v & 0xffff_ffff
        } else {
            v
        }
    }

    /// A command. User space may give what the CPU takes, the guest what its CPUID says.
    fn command(
        &self,
        effect: Effect,
        takes: impl Fn(Commands, u64) -> bool,
    ) -> Result<Effect, BadMsr> {
        let commands = if self.by_guest() {
            self.guest.commands()
        } else {
            self.guest.host_commands()
        };
        match self.value {
            v if !takes(commands, v) => Err(BadMsr::Refused),
            0 => Ok(Effect::Done),
            _ => Ok(effect),
        }
    }

    fn constant(&self) -> Result<Effect, BadMsr> {
        // Branch recording and single-stepping on branches are not made, and there is no way to tell the guest.
        const DEBUG_IGNORED: u64 = 3;
        let ok = match self.row.rule {
            Rule::Ignore => true,
            Rule::Zero => self.value == 0,
            Rule::PredCmd => {
                return self.command(Effect::PredCmd(self.value), Commands::takes_pred_cmd)
            }
            Rule::FlushCmd => return self.command(Effect::FlushL1d, Commands::takes_flush_cmd),
            Rule::DebugCtl => self.guest.host_vendor().is_amd() || self.value & !DEBUG_IGNORED == 0,
            _ => false,
        };
        if ok {
            Ok(Effect::Done)
        } else {
            Err(BadMsr::Refused)
        }
    }

    fn software(&self, slots: &mut [u64], i: usize) -> Result<Effect, BadMsr> {
        let old = get(slots, i);
        let new = self.value;
        match self.row.rule {
            Rule::HostStores if self.by_guest() => return Ok(Effect::Done),
            Rule::TscAdjust => return Ok(self.tsc_adjust(slots)),
            Rule::ApicBase => {
                self.check_apic_base(old)?;
                let dirty = set_apic_base(slots, new);
                return Ok(if dirty {
                    Effect::CpuidDirty
                } else {
                    Effect::Done
                });
            }
            Rule::Hwcr => return self.hwcr(slots),
            Rule::ClockPage => {
                put(slots, i, new);
                return Ok(Effect::ClockPage);
            }
            Rule::WallClock => {
                put(slots, i, new);
                return Ok(Effect::WallClock(new));
            }
            Rule::MiscEnable => return misc_enable::write(slots, new, self.by_guest()),
            _ => {}
        }
        if !self.takes(slots) {
            return Err(BadMsr::Refused);
        }
        put(slots, i, new);
        Ok(Effect::Done)
    }

    fn check_apic_base(&self, old: u64) -> Result<(), BadMsr> {
        let limits = self.guest.limits();
        let checked = match self.who {
            _ if self.value == old => Ok(()),
            Who::Guest => cr::check_apic_base(self.value, old, limits),
            Who::Host => cr::valid_apic_base(self.value, limits),
        };
        checked.map_err(|_| BadMsr::Refused)
    }

    /// User space restores the register; a guest moves its clock by writing it. Without the feature nothing happens.
    fn tsc_adjust(&self, slots: &mut [u64]) -> Effect {
        if !self.guest.has(features::TSC_ADJUST) {
            return Effect::Done;
        }
        let old = get(slots, slot::TSC_ADJUST);
        put(slots, slot::TSC_ADJUST, self.value);
        match self.who {
            Who::Guest => Effect::TscOffset(self.value.wrapping_sub(old)),
            Who::Host => Effect::Done,
        }
    }

    /// Kernels set some bits to work around errata of old CPUs; these are forgotten.
    fn hwcr(&self, slots: &mut [u64]) -> Result<Effect, BadMsr> {
        const FORGOTTEN: u64 = (1 << 3) | (1 << 6) | (1 << 8);
        const KEPT: u64 = bits::HWCR_MC_STATUS_WRITABLE | bits::HWCR_TSC_FREQ_SEL;
        let new = self.value & !FORGOTTEN;
        if new & !KEPT != 0 {
            return Err(BadMsr::Refused);
        }
        put(slots, slot::HWCR, new);
        Ok(Effect::Done)
    }

    /// Whether the value may be stored as it is.
    fn takes(&self, slots: &[u64]) -> bool {
        let v = self.value;
        let mask = self.guest.limits().gpa_reserved;
        let cap = get(slots, slot::MCG_CAP);
        match self.row.rule {
            Rule::Bits(allowed) => v & !allowed == 0,
            Rule::MtrrDefault => v & !0xcff == 0 && is_mtrr_type(v as u8),
            Rule::MtrrFixed => v.to_le_bytes().into_iter().all(is_mtrr_type),
            Rule::MtrrVariable if self.index & 1 == 0 => {
                is_mtrr_type(v as u8) && v & (mask | 0xf00) == 0
            }
            Rule::MtrrVariable => v & (mask | 0x7ff) == 0,
            Rule::McgControl => v == 0 || v == u64::MAX && cap & bits::MCG_CTL_P != 0,
            Rule::McControl2 => {
                // Bit 30 and the threshold.
                v & !((1 << 30) | 0x7fff) == 0 && (v == 0 || cap & bits::MCG_CMCI_P != 0)
            }
            Rule::McBank => self.takes_bank(slots),
            Rule::MiscFeatures => {
                let possible = get(slots, slot::PLATFORM_INFO) & bits::PLATFORM_CPUID_FAULT != 0;
                v == 0 || v == bits::FEATURES_CPUID_FAULT && possible
            }
            Rule::FeatureControl => self.takes_feature_control(slots),
            _ => true,
        }
    }

    /// A bank has CTL, STATUS, ADDR and MISC. CTL takes zeros or ones; kernels clear bit 10 of one bank of old AMDs and bit 0 of
    /// another. The guest may only clear STATUS, unless it is an AMD that asked for more.
    fn takes_bank(&self, slots: &[u64]) -> bool {
        let v = self.value;
        match self.index & 3 {
            0 => v == 0 || v | (1 << 10) | 1 == u64::MAX,
            1 if self.by_guest() && v != 0 => {
                let writable = get(slots, slot::HWCR) & bits::HWCR_MC_STATUS_WRITABLE != 0;
                self.guest.vendor().is_amd() && writable
            }
            _ => true,
        }
    }

    /// The guest can lock it and nothing more: VMX and SGX are not offered. User space restores any of the usual bits.
    fn takes_feature_control(&self, slots: &[u64]) -> bool {
        const RESTORABLE: u64 = bits::FEATURE_CONTROL_LOCKED | (3 << 1) | (3 << 17) | (1 << 20);
        if !self.by_guest() {
            return self.value & !RESTORABLE == 0;
        }
        let locked = get(slots, slot::FEATURE_CONTROL) & bits::FEATURE_CONTROL_LOCKED != 0;
        !locked && self.value & !bits::FEATURE_CONTROL_LOCKED == 0
    }
}

const fn is_pat_type(t: u8) -> bool {
    matches!(t, 0 | 1 | 4..=7)
}

const fn is_mtrr_type(t: u8) -> bool {
    matches!(t, 0 | 1 | 4..=6)
}

#[cfg(test)]
#[path = "msr_tests.rs"]
mod tests;
