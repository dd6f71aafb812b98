// SPDX-License-Identifier: GPL-2.0
//! The CPUID of a guest: the entries that user space set, how CPUID is answered from them, and the bits that follow
//! registers of the guest.
//!
//! What is offered to user space is `cpuid_host`, what the rest of the module wants to know is [`super::guest`].
#![forbid(unsafe_code)]

use super::cpuid_host::HostCaps;
use super::cr::{apic_base, cr4};
use super::features::{self, Feature, Word};
use super::guest::GuestFeatures;

/// Most entries that KVM_SET_CPUID2 takes and KVM_GET_SUPPORTED_CPUID gives.
pub const MAX_ENTRIES: usize = 256;

/// [`Entry::flags`]: the entry answers for its subleaf only (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
pub const SIGNIFICANT_INDEX: u32 = 1;

/// One answer of CPUID: the fields of struct kvm_cpuid_entry2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The leaf: EAX at CPUID.
    pub function: u32,
    /// The subleaf: ECX at CPUID.
    pub index: u32,
    /// 0 or [`SIGNIFICANT_INDEX`]; other bits are kept and mean nothing.
    pub flags: u32,
    /// EAX of the answer.
    pub eax: u32,
    /// EBX of the answer.
    pub ebx: u32,
    /// ECX of the answer.
    pub ecx: u32,
    /// EDX of the answer.
    pub edx: u32,
}

impl Entry {
    /// EAX, EBX, ECX, EDX.
    pub const fn regs(&self) -> [u32; 4] {
        [self.eax, self.ebx, self.ecx, self.edx]
    }

    /// The same entry with this answer.
    pub const fn with(self, regs: [u32; 4]) -> Self {
        let [eax, ebx, ecx, edx] = regs;
        Self {
            eax,
            ebx,
            ecx,
            edx,
            ..self
        }
    }

    fn put(&mut self, f: Feature, on: bool) {
        let (_, _, reg) = f.word.place();
        let word = match reg {
            features::Reg::Eax => &mut self.eax,
            features::Reg::Ebx => &mut self.ebx,
            features::Reg::Ecx => &mut self.ecx,
            features::Reg::Edx => &mut self.edx,
        };
        *word = if on {
            *word | f.mask()
        } else {
            *word & !f.mask()
        };
    }

    fn answers(&self, function: u32, index: u32) -> bool {
        self.function == function && (self.flags & SIGNIFICANT_INDEX == 0 || self.index == index)
    }
}

/// Whether leaf `function` has subleaves.
pub const fn is_indexed(function: u32) -> bool {
    matches!(
        function,
        4 | 7 | 0xb | 0xd | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1d
            ..=0x1f | 0x23 | 0x24 | 0x8000_001d
    )
}

/// The maker that leaf 0 names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vendor {
    /// "GenuineIntel", and every name that is not one of the others.
    #[default]
    Intel,
    /// "AuthenticAMD" or "AMDisbetter!".
    Amd,
    /// "HygonGenuine".
    Hygon,
}

impl Vendor {
    /// From the answer of leaf 0.
    pub const fn from_leaf0(regs: [u32; 4]) -> Self {
        let [_, b, c, d] = regs;
        match (b, d, c) {
            (0x6874_7541, 0x6974_6e65, 0x444d_4163) => Self::Amd,
            (0x6944_4d41, 0x7465_6273, 0x2172_6574) => Self::Amd,
            (0x6f67_7948, 0x6e65_476e, 0x656e_6975) => Self::Hygon,
            _ => Self::Intel,
        }
    }

    /// The guest behaves as an AMD CPU where the makers differ.
    pub const fn is_amd(self) -> bool {
        matches!(self, Self::Amd | Self::Hygon)
    }
}

/// The entry for a leaf, whatever subleaf it is for; use it for leaves without subleaves.
pub fn find(entries: &[Entry], function: u32) -> Option<&Entry> {
    entries.iter().find(|e| e.function == function)
}

/// The entry that answers for a leaf and subleaf: the first of those that match.
pub fn find_index(entries: &[Entry], function: u32, index: u32) -> Option<&Entry> {
    entries.iter().find(|e| e.answers(function, index))
}

fn find_index_mut(entries: &mut [Entry], function: u32, index: u32) -> Option<&mut Entry> {
    entries.iter_mut().find(|e| e.answers(function, index))
}

/// An answer of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// EAX, EBX, ECX, EDX.
    pub regs: [u32; 4],
    /// There is an entry for exactly this leaf and subleaf.
    pub exact: bool,
}

/// Executes CPUID. Whether the guest may (CPUID faulting) is `msr::cpuid_faulting`.
///
/// A leaf out of range is answered with the highest basic leaf, as Intel does, or with zeros if the guest is an AMD.
pub fn execute(entries: &[Entry], function: u32, index: u32) -> Answer {
    if let Some(e) = find_index(entries, function, index) {
        return Answer {
            regs: e.regs(),
            exact: true,
        };
    }
    let redirected = redirect(entries, function);
    let leaf = redirected.unwrap_or(function);
    let found = redirected.and_then(|max| find_index(entries, max, index));
    let regs = match found {
        Some(e) => e.regs(),
        None => missing_subleaf(entries, leaf, index),
    };
    Answer { regs, exact: false }
}

/// The leaf that answers instead of one that is out of range.
fn redirect(entries: &[Entry], function: u32) -> Option<u32> {
    let basic = find(entries, 0)?;
    if Vendor::from_leaf0(basic.regs()).is_amd() {
        return None;
    }
    // The base leaf of the class that `function` belongs to says how far the class goes. Hypervisor leaves come in classes
    // of 256, so that a guest can be offered several interfaces.
    let class = match function {
        0x4000_0000..=0x4fff_ffff => function & 0xffff_ff00,
        0xc000_0000.. => 0xc000_0000,
        _ => function & 0x8000_0000,
    };
    match find(entries, class) {
        Some(base) if function <= base.eax => None,
        _ => Some(basic.eax),
    }
}

/// A topology leaf tells the x2APIC ID and the subleaf's number even for the subleaves it has not; others tell zeros.
fn missing_subleaf(entries: &[Entry], leaf: u32, index: u32) -> [u32; 4] {
    if !matches!(leaf, 0xb | 0x1f) {
        return [0; 4];
    }
    match find_index(entries, leaf, 1) {
        Some(first) => [0, 0, index & 0xff, first.edx],
        None => [0; 4],
    }
}

/// The registers of the guest that its CPUID shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// CR4: OSXSAVE, PKE.
    pub cr4: u64,
    /// XCR0: the size of the enabled state.
    pub xcr0: u64,
    /// IA32_APIC_BASE: whether there is an APIC.
    pub apic_base: u64,
    /// IA32_MISC_ENABLE: whether there are MONITOR and MWAIT; None: as user space said.
    pub mwait: Option<bool>,
}

/// Brings the entries, and the features derived from them, up to date with the registers that CPUID shows. To be called after
/// KVM_SET_CPUID2, and before the next CPUID once one of the registers has changed.
pub fn refresh(entries: &mut [Entry], guest: &mut GuestFeatures, host: &HostCaps, shown: &Shown) {
    let osxsave = shown.cr4 & cr4::OSXSAVE != 0;
    let apic = shown.apic_base & apic_base::ENABLE != 0;
    if let Some(e) = entries.iter_mut().find(|e| e.function == 1) {
        e.put(features::OSXSAVE, osxsave);
        e.put(features::APIC, apic);
        guest.set(features::OSXSAVE, osxsave);
        guest.set(features::APIC, apic);
        if let Some(on) = shown.mwait {
            e.put(features::MWAIT, on);
            guest.set(features::MWAIT, on);
        }
    }
    if let Some(e) = find_index_mut(entries, 7, 0) {
        let ospke = shown.cr4 & cr4::PKE != 0;
        e.put(features::OSPKE, ospke);
        guest.set(features::OSPKE, ospke);
    }
    if let Some(e) = find_index_mut(entries, 0xd, 0) {
        e.ebx = host.xstate_size(shown.xcr0, false);
    }
    if let Some(e) = find_index_mut(entries, 0xd, 1) {
        if e.eax & (features::XSAVES.mask() | features::XSAVEC.mask()) != 0 {
            e.ebx = host.xstate_size(shown.xcr0, true);
        }
    }
}

/// Takes the promise of KVM's interface that the hypervisor wakes a vCPU which halts in a spinlock (KVM_FEATURE_PV_UNHALT) from a guest
/// whose HLT does not exit: nobody would notice that it halts. KVM's leaves may be in any of the hypervisor's classes.
pub fn hide_unhalt(entries: &mut [Entry]) {
    const PV_UNHALT: u32 = 1 << 7;
    const NAME: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
    let base = (0x4000_0000..0x4001_0000)
        .step_by(0x100)
        .find(|&base| find(entries, base).is_some_and(|e| [e.ebx, e.ecx, e.edx] == NAME));
    let leaf = base.map(|b| b | 1);
    if let Some(e) = entries.iter_mut().find(|e| Some(e.function) == leaf) {
        e.eax &= !PV_UNHALT;
    }
}

/// Why a set of entries is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCpuid {
    /// The linear-address width is none of 48, 57 and 0: EINVAL.
    LinearWidth,
    /// State components that need dynamic sizes (AMX): EPERM, as for a process without the permission.
    DynamicState,
}

/// Checks entries of KVM_SET_CPUID2. Everything else is the user's affair.
pub fn check_set(entries: &[Entry]) -> Result<(), BadCpuid> {
    const DYNAMIC: u32 = 1 << 18;
    if let Some(e) = find(entries, 0x8000_0008) {
        if !matches!((e.eax >> 8) & 0xff, 0 | 48 | 57) {
            return Err(BadCpuid::LinearWidth);
        }
    }
    match find_index(entries, 0xd, 0) {
        Some(e) if e.eax & DYNAMIC != 0 => Err(BadCpuid::DynamicState),
        _ => Ok(()),
    }
}

/// The physical-address width that a guest sees: 36 unless leaf 0x80000008 exists.
pub fn physical_bits(entries: &[Entry]) -> u8 {
    match (find(entries, 0x8000_0000), find(entries, 0x8000_0008)) {
        (Some(max), Some(e)) if max.eax >= 0x8000_0008 => e.eax as u8,
        _ => 36,
    }
}

/// One feature word as user space set it; 0 if there is no entry.
pub fn raw_word(entries: &[Entry], w: Word) -> u32 {
    let (function, index, reg) = w.place();
    find_index(entries, function, index).map_or(0, |e| reg.of(e.regs()))
}

#[cfg(test)]
#[path = "cpuid_tests.rs"]
mod tests;
