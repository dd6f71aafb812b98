// SPDX-License-Identifier: GPL-2.0
//! What the module wants to know of a guest's CPUID, computed once when it is set.
#![forbid(unsafe_code)]

use super::cpuid::{self, Entry, Vendor};
use super::cpuid_host::HostCaps;
use super::cr::{cr4, dr6, efer, Limits};
use super::features::{self, Caps, Feature, Word};
use super::regs::has;
use super::speculation::{self, Commands};

/// The features and limits of one guest CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFeatures {
    caps: Caps,
    vendor: Vendor,
    host_vendor: Vendor,
    physical_bits: u8,
    linear_bits: u8,
    host_xsaves: bool,
    host_tsc_aux: bool,
    instructions: u16,
    spec_ctrl: bool,
    pred_cmd: bool,
    commands: Commands,
    host_commands: Commands,
    limits: Limits,
}

impl GuestFeatures {
    /// From the entries of KVM_SET_CPUID2; with none, for a virtual CPU whose CPUID was not set yet.
    ///
    /// A feature counts if user space sets it *and* the module offers it. Call [`cpuid::refresh`] right after.
    pub fn derive(entries: &[Entry], host: &HostCaps) -> Self {
        let mut caps = Caps::none();
        for w in Word::ALL {
            caps.set_word(w, cpuid::raw_word(entries, w) & host.honoured(w));
        }
        // The page walk of the CPU does not treat the size bit as reserved because we hide the feature.
        caps.set(features::GBPAGES, host.cpu_has(features::GBPAGES));
        let physical_bits = cpuid::physical_bits(entries);
        let limits = limits(&caps, entries, host, physical_bits);
        let vendor =
            cpuid::find(entries, 0).map_or(Vendor::Intel, |e| Vendor::from_leaf0(e.regs()));
        Self {
            caps,
            vendor,
            instructions: instructions(&caps, host, vendor),
            host_vendor: host.vendor(),
            physical_bits,
            linear_bits: host.linear_bits(),
            host_xsaves: host.cpu_has(features::XSAVES),
            host_tsc_aux: host.cpu_has(features::RDTSCP) || host.cpu_has(features::RDPID),
            spec_ctrl: speculation::has_spec_ctrl(&|f| caps.has(f)),
            pred_cmd: speculation::has_pred_cmd(&|f| caps.has(f)),
            commands: speculation::commands(&|f| caps.has(f)).and(host.commands()),
            host_commands: host.commands(),
            limits,
        }
    }

    /// The guest has `f`.
    pub fn has(&self, f: Feature) -> bool {
        self.caps.has(f)
    }

    /// Sets a feature that follows a register.
    pub(super) fn set(&mut self, f: Feature, on: bool) {
        self.caps.set(f, on);
    }

    /// What it may write to its registers.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What the emulator has to know: bits of [`has`].
    pub fn instructions(&self) -> u16 {
        self.instructions
    }

    /// The maker that the guest sees.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The maker of the CPU below.
    pub fn host_vendor(&self) -> Vendor {
        self.host_vendor
    }

    /// The physical-address width that the guest sees.
    pub fn physical_bits(&self) -> u8 {
        self.physical_bits
    }

    /// The linear-address width that decides whether an MSR's or a hidden base's value is canonical: that of the CPU,
    /// whatever CR4.LA57 is, because the guest can load these registers without an exit.
    pub fn linear_bits(&self) -> u8 {
        self.linear_bits
    }

    /// On SVM nothing withholds XSAVES from a guest with CR4.OSXSAVE: the host's IA32_XSS must be replaced by 0 around the guest if
    /// it is not 0. (VMX has a control, which stays off.)
    pub fn reaches_host_xss(&self) -> bool {
        self.host_vendor.is_amd() && self.host_xsaves
    }

    /// The guest has MSR SPEC_CTRL.
    pub fn spec_ctrl(&self) -> bool {
        self.spec_ctrl
    }

    /// The guest has MSR PRED_CMD.
    pub fn pred_cmd(&self) -> bool {
        self.pred_cmd
    }

    /// The commands about speculation that the guest can give.
    pub fn commands(&self) -> Commands {
        self.commands
    }

    /// Those that the CPU below takes.
    pub fn host_commands(&self) -> Commands {
        self.host_commands
    }

    /// The CPU below has MSR TSC_AUX.
    pub fn host_tsc_aux(&self) -> bool {
        self.host_tsc_aux
    }

    /// Whether the guest can execute RDTSCP or RDPID, and so needs MSR TSC_AUX.
    pub fn tsc_aux(&self) -> bool {
        self.has(features::RDTSCP) || self.has(features::RDPID)
    }
}

/// Instructions that nothing keeps a guest from, whatever its CPUID says, are there if the CPU has them; the others if the
/// guest has them.
fn instructions(caps: &Caps, host: &HostCaps, vendor: Vendor) -> u16 {
    let of_host = [
        (has::MOVBE, features::MOVBE),
        (has::POPCNT, features::POPCNT),
        (has::SSE42, features::SSE4_2),
        (has::LZCNT, features::ABM),
        (has::BMI1, features::BMI1),
        (has::CX16, features::CX16),
    ];
    let of_guest = [
        // For a guest that is told of it, the emulator makes it where the CPU does not.
        (has::MOVBE, features::MOVBE),
        (has::RDTSCP, features::RDTSCP),
        (has::RDPID, features::RDPID),
        (has::SMAP, features::SMAP),
        (has::FSGSBASE, features::FSGSBASE),
    ];
    let mut all = if vendor.is_amd() { has::AMD } else { 0 };
    for (bit, feature) in of_host {
        if host.cpu_has(feature) {
            all |= bit;
        }
    }
    for (bit, feature) in of_guest {
        if caps.has(feature) {
            all |= bit;
        }
    }
    all
}

fn limits(caps: &Caps, entries: &[Entry], host: &HostCaps, physical_bits: u8) -> Limits {
    let told = cpuid::find_index(entries, 0xd, 0)
        .map_or(0, |e| u64::from(e.eax) | (u64::from(e.edx) << 32));
    Limits {
        cr4_reserved: cr4_reserved(caps),
        efer_host: host.efer(),
        efer_guest: guest_efer(caps),
        gpa_reserved: gpa_reserved(physical_bits),
        xcr0: told & host.xcr0(),
        dr6_fixed: dr6_fixed(caps),
        x2apic: caps.has(features::X2APIC),
    }
}

fn cr4_reserved(caps: &Caps) -> u64 {
    const BITS: [(Feature, u64); 10] = [
        (features::XSAVE, cr4::OSXSAVE),
        (features::SMEP, cr4::SMEP),
        (features::SMAP, cr4::SMAP),
        (features::FSGSBASE, cr4::FSGSBASE),
        (features::PKU, cr4::PKE),
        (features::LA57, cr4::LA57),
        (features::UMIP, cr4::UMIP),
        (features::PCID, cr4::PCIDE),
        (features::SHSTK, cr4::CET),
        (features::IBT, cr4::CET),
    ];
    let mut allowed = cr4::ALWAYS;
    for (f, bit) in BITS {
        if caps.has(f) {
            allowed |= bit;
        }
    }
    !allowed
}

fn guest_efer(caps: &Caps) -> u64 {
    let mut bits = efer::SCE;
    for (f, set) in [
        (features::LM, efer::LME | efer::LMA),
        (features::NX, efer::NXE),
        (features::FXSR_OPT, efer::FFXSR),
        (features::AUTOIBRS, efer::AUTOIBRS),
    ] {
        if caps.has(f) {
            bits |= set;
        }
    }
    bits
}

/// The bits from `width` up; none for 64 and above.
fn gpa_reserved(width: u8) -> u64 {
    u64::MAX.checked_shl(u32::from(width)).unwrap_or(0)
}

fn dr6_fixed(caps: &Caps) -> u64 {
    let mut fixed = 0;
    if !caps.has(features::RTM) {
        fixed |= dr6::RTM;
    }
    if !caps.has(features::BUS_LOCK_DETECT) {
        fixed |= dr6::BUS_LOCK;
    }
    fixed
}
