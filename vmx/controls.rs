// SPDX-License-Identifier: GPL-2.0
//! The execution, entry and exit controls: which ones we need, which we like, and which must stay off, as data.
//!
//! A processor tells in its capability MSRs (manual: "VMX Capability Reporting Facility") for each control word which
//! bits may be clear and which may be set. [`negotiate`] combines that with the tables of this file to the words
//! that every VMCS starts with, or to a [`Refusal`] that names what is missing.
#![forbid(unsafe_code)]

use core::fmt;

#[path = "control_bits.rs"]
mod bits;
#[path = "caps.rs"]
mod caps;

pub use bits::{entry, ept_vpid, exit, pin, primary, secondary};
pub use caps::VmxCaps;

/// The bits of a control word that may be set.
const fn may_set(caps: u64) -> u32 {
    (caps >> 32) as u32
}

/// The bits of a control word that must be set.
const fn must_set(caps: u64) -> u32 {
    caps as u32
}

/// The control words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Pin-based VM-execution controls.
    Pin,
    /// Primary processor-based VM-execution controls.
    Primary,
    /// Secondary processor-based VM-execution controls.
    Secondary,
    /// VM-exit controls.
    Exit,
    /// VM-entry controls.
    Entry,
}

/// What we want of one control word.
struct Wanted {
    word: Word,
    /// Set from the start; without them there is no guest.
    required: u32,
    /// Clear at first, set and cleared while a guest runs; they must be settable and clearable.
    dynamic: u32,
    /// Of the required ones, those that a VM can do without (KVM_CAP_X86_DISABLE_EXITS): they must be clearable.
    clearable: u32,
    /// Set from the start where the processor has them.
    optional: u32,
    /// Would break our assumptions; a processor that forces one of them is refused.
    forbidden: u32,
}

const PIN: Wanted = Wanted {
    word: Word::Pin,
    required: pin::EXTERNAL_INTERRUPT | pin::NMI | pin::VIRTUAL_NMIS,
    dynamic: 0,
    clearable: 0,
    optional: 0,
    forbidden: pin::PREEMPTION_TIMER | pin::POSTED_INTERRUPTS,
};

const PRIMARY: Wanted = Wanted {
    word: Word::Primary,
    required: primary::TSC_OFFSETTING
        | primary::HLT
        | primary::MWAIT
        | primary::RDPMC
        | primary::CR8_LOAD
        | primary::CR8_STORE
        | primary::MOV_DR
        | primary::UNCONDITIONAL_IO
        | primary::MSR_BITMAPS
        | primary::MONITOR
        | primary::SECONDARY,
    dynamic: primary::INTERRUPT_WINDOW | primary::NMI_WINDOW,
    clearable: primary::HLT | primary::MWAIT | primary::MONITOR,
    optional: 0,
    // Guests own CR3 and their translations: EPT isolates them.
    forbidden: primary::INVLPG
        | primary::RDTSC
        | primary::CR3_LOAD
        | primary::CR3_STORE
        | primary::TPR_SHADOW
        | primary::IO_BITMAPS
        | primary::MONITOR_TRAP
        | primary::TERTIARY
        | primary::PAUSE,
};

/// The primary controls by which accesses to CR3 exit: set only while a guest without unrestricted guest has paging off.
pub const CR3_EXITS: u32 = primary::CR3_LOAD | primary::CR3_STORE;

const SECONDARY: Wanted = Wanted {
    word: Word::Secondary,
    required: secondary::EPT,
    dynamic: 0,
    clearable: 0,
    optional: secondary::UNRESTRICTED_GUEST
        | secondary::VPID
        | secondary::WBINVD
        | secondary::RDTSCP
        | secondary::INVPCID
        | secondary::TSC_SCALING
        // No CPUID bit keeps a guest from it, and it can take pages of an enclave that its VMM made from under the host.
        | secondary::ENCLS,
    // XSAVES is not offered to guests, so that nothing of theirs reaches the host's IA32_XSS.
    forbidden: secondary::XSAVES
        | secondary::APIC_ACCESSES
        | secondary::X2APIC_MODE
        | secondary::APIC_REGISTERS
        | secondary::INTERRUPT_DELIVERY
        | secondary::VMFUNC
        | secondary::SHADOW_VMCS
        | secondary::PML
        | secondary::EPT_VIOLATION_VE
        | secondary::MODE_BASED_EXECUTE,
};

const EXIT: Wanted = Wanted {
    word: Word::Exit,
    required: exit::SAVE_DEBUG
        | exit::HOST_64
        | exit::ACKNOWLEDGE_INTERRUPT
        | exit::LOAD_PAT
        | exit::LOAD_EFER,
    dynamic: 0,
    clearable: 0,
    optional: 0,
    // PAT and EFER change only by intercepted writes, so there is nothing to save.
    forbidden: exit::SAVE_PAT | exit::SAVE_EFER | exit::SAVE_PREEMPTION_TIMER,
};

const ENTRY: Wanted = Wanted {
    word: Word::Entry,
    required: entry::LOAD_DEBUG | entry::LOAD_PAT | entry::LOAD_EFER,
    dynamic: entry::IA32E,
    clearable: 0,
    optional: 0,
    forbidden: entry::SMM | entry::DEACTIVATE_DUAL_MONITOR,
};

/// Controls that make sense only together: what an entry loads, the exit must put back.
const PAIRS: &[(u32, u32)] = &[
    (entry::LOAD_DEBUG, exit::SAVE_DEBUG),
    (entry::LOAD_PERF, exit::LOAD_PERF),
    (entry::LOAD_PAT, exit::LOAD_PAT),
    (entry::LOAD_EFER, exit::LOAD_EFER),
];

/// Features that a module parameter can switch off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Extended page tables.
    pub ept: bool,
    /// Unrestricted guest.
    pub unrestricted_guest: bool,
    /// Accessed and dirty flags in EPT entries.
    pub ept_ad: bool,
    /// Virtual-processor identifiers.
    pub vpid: bool,
}

impl Default for Options {
    /// Everything that the processor has.
    fn default() -> Self {
        Self {
            ept: true,
            unrestricted_guest: true,
            ept_ad: true,
            vpid: true,
        }
    }
}

/// Why a processor cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A VMCS would not fit into a page; the size in bytes.
    VmcsSize(u32),
    /// VMCS memory would not be write-back; the memory type.
    VmcsMemoryType(u32),
    /// There are no extended page tables.
    NoEpt,
    /// EPT lacks something: its name.
    EptLacks(&'static str),
    /// Required bits of a control word cannot be set.
    Missing(Word, u32),
    /// Bits of a control word cannot be cleared although they must be.
    Forced(Word, u32),
    /// A module parameter switches off what we cannot do without: its name.
    SwitchedOff(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::VmcsSize(bytes) => write!(f, "a VMCS needs {bytes} bytes"),
            Self::VmcsMemoryType(kind) => write!(f, "VMCS memory type {kind} is not write-back"),
            Self::NoEpt => write!(f, "the processor has no extended page tables (EPT)"),
            Self::EptLacks(what) => write!(f, "EPT has no {what}"),
            Self::Missing(word, bits) => write!(f, "{word:?} controls {bits:#x} are missing"),
            Self::Forced(word, bits) => {
                write!(f, "{word:?} controls {bits:#x} cannot be switched off")
            }
            Self::SwitchedOff(name) => {
                write!(f, "the parameter {name} switches off what is needed")
            }
        }
    }
}

/// How INVVPID can flush what belongs to one VPID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VpidFlush {
    /// There are no VPIDs: entries and exits flush.
    None,
    /// Single-context INVVPID.
    Single,
    /// Only all-context INVVPID.
    All,
}

/// What was agreed with the processor. Two processors of a machine must agree on it to run the same guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// VMCS revision identifier.
    pub revision: u32,
    /// Pin-based controls that a VMCS starts with.
    pub pin: u32,
    /// Primary controls that a VMCS starts with.
    pub primary: u32,
    /// Secondary controls that a VMCS starts with.
    pub secondary: u32,
    /// VM-exit controls that a VMCS starts with.
    pub exit: u32,
    /// VM-entry controls that a VMCS starts with.
    pub entry: u32,
    /// How a VPID is flushed.
    pub vpid: VpidFlush,
    /// Single-context INVEPT exists; otherwise only the all-context form.
    pub invept_single: bool,
    /// EPT uses accessed and dirty flags.
    pub ept_ad: bool,
    /// EPT allows execute-only translations.
    pub ept_execute_only: bool,
    /// EPT leaves of 2 MiB.
    pub ept_2m: bool,
    /// EPT leaves of 1 GiB.
    pub ept_1g: bool,
    /// EPT can have five levels.
    pub ept_5_levels: bool,
    /// Bits that a guest's CR0 must have; PE and PG are free under unrestricted guest only.
    pub cr0_set: u64,
    /// Bits that a guest's CR0 may have.
    pub cr0_allowed: u64,
    /// Bits that a guest's CR4 must have in the VMCS (VMXE; the guest does not see it).
    pub cr4_set: u64,
    /// Bits that a guest's CR4 may have.
    pub cr4_allowed: u64,
    /// The activity state HLT can be entered.
    pub activity_hlt: bool,
    /// An event may be injected with an instruction length of zero.
    pub zero_length_injection: bool,
}

impl Controls {
    /// Guests run with CR0.PE and CR0.PG set always: there is no unrestricted guest.
    pub const fn restricted(&self) -> bool {
        self.secondary & secondary::UNRESTRICTED_GUEST == 0
    }

    /// The secondary controls of a vCPU: `vpid` is 0 where the numbers have run out, and the instructions may be kept from the guest.
    /// A control that the CPU lacks stays off.
    pub const fn secondary_of(&self, vpid: u16, rdtscp: bool, invpcid: bool) -> u32 {
        let mut off = 0;
        if vpid == 0 {
            off |= secondary::VPID;
        }
        if !rdtscp {
            off |= secondary::RDTSCP;
        }
        if !invpcid {
            off |= secondary::INVPCID;
        }
        self.secondary & !off
    }

    /// The EPT pointer of tables with `levels` levels whose root is at `root`.
    pub const fn eptp(&self, root: u64, levels: u8) -> u64 {
        const WRITE_BACK: u64 = 6;
        let walk = (levels.saturating_sub(1) as u64 & 7) << 3;
        root & 0x000f_ffff_ffff_f000 | walk | WRITE_BACK | ((self.ept_ad as u64) << 6)
    }
}

/// Decides the control words for a processor.
///
/// # Errors
/// The first thing that is missing, the most telling one first.
pub fn negotiate(caps: &VmxCaps, options: &Options) -> Result<Controls, Refusal> {
    if caps.vmcs_bytes() > 4096 {
        return Err(Refusal::VmcsSize(caps.vmcs_bytes()));
    }
    if caps.memory_type() != 6 {
        return Err(Refusal::VmcsMemoryType(caps.memory_type()));
    }
    check_ept(caps, options)?;

    let pin = settle(&PIN, caps.pin)?;
    let primary = settle(&PRIMARY, caps.primary)?;
    let mut secondary = settle(&SECONDARY, caps.secondary)?;
    let mut exit = settle(&EXIT, caps.exit)?;
    let mut entry = settle(&ENTRY, caps.entry)?;
    for &(on_entry, on_exit) in PAIRS {
        if entry & on_entry == 0 || exit & on_exit == 0 {
            entry &= !on_entry | must_set(caps.entry);
            exit &= !on_exit | must_set(caps.exit);
        }
    }
    let vpid = vpid_flush(caps, options, secondary);
    if vpid == VpidFlush::None {
        secondary &= !secondary::VPID;
    }
    let cr0_set = if options.unrestricted_guest && secondary & secondary::UNRESTRICTED_GUEST != 0 {
        // Manual: "Restrictions on VMX Operation": unrestricted guest frees PE and PG.
        const PE_PG: u64 = 1 | (1 << 31);
        caps.cr0_fixed0 & !PE_PG
    } else {
        secondary = restrict(caps, secondary)?;
        caps.cr0_fixed0
    };

    let has = |bit| caps.ept_vpid & bit != 0;
    Ok(Controls {
        revision: caps.revision(),
        pin,
        primary,
        secondary,
        exit,
        entry,
        vpid,
        invept_single: has(ept_vpid::INVEPT_SINGLE),
        ept_ad: options.ept_ad && has(ept_vpid::ACCESSED_DIRTY),
        ept_execute_only: has(ept_vpid::EXECUTE_ONLY),
        ept_2m: has(ept_vpid::LEAF_2M),
        ept_1g: has(ept_vpid::LEAF_1G),
        ept_5_levels: has(ept_vpid::WALK_5),
        cr0_set,
        cr0_allowed: caps.cr0_fixed1,
        cr4_set: caps.cr4_fixed0,
        cr4_allowed: caps.cr4_fixed1,
        activity_hlt: caps.misc & (1 << 6) != 0,
        zero_length_injection: caps.misc & (1 << 30) != 0,
    })
}

/// The secondary controls without unrestricted guest. While a guest has paging off, CR3 in the VMCS is not its own, so that its accesses
/// have to exit.
fn restrict(caps: &VmxCaps, secondary: u32) -> Result<u32, Refusal> {
    let missing = CR3_EXITS & !may_set(caps.primary);
    if missing != 0 {
        return Err(Refusal::Missing(Word::Primary, missing));
    }
    let forced = secondary::UNRESTRICTED_GUEST & must_set(caps.secondary);
    if forced != 0 {
        return Err(Refusal::Forced(Word::Secondary, forced));
    }
    Ok(secondary & !secondary::UNRESTRICTED_GUEST)
}

/// One control word out of what the processor offers and what we want.
fn settle(wanted: &Wanted, caps: u64) -> Result<u32, Refusal> {
    let missing = (wanted.required | wanted.dynamic) & !may_set(caps);
    if missing != 0 {
        return Err(Refusal::Missing(wanted.word, missing));
    }
    let forced = (wanted.forbidden | wanted.dynamic | wanted.clearable) & must_set(caps);
    if forced != 0 {
        return Err(Refusal::Forced(wanted.word, forced));
    }
    Ok(wanted.required | wanted.optional & may_set(caps) | must_set(caps))
}

/// The parts of EPT that we cannot do without.
fn check_ept(caps: &VmxCaps, options: &Options) -> Result<(), Refusal> {
    if !options.ept {
        return Err(Refusal::SwitchedOff("ept"));
    }
    if may_set(caps.secondary) & secondary::EPT == 0 {
        return Err(Refusal::NoEpt);
    }
    for (bit, name) in [
        (ept_vpid::WALK_4, "page walks of four levels"),
        (ept_vpid::WRITE_BACK, "write-back paging structures"),
        (ept_vpid::INVEPT, "INVEPT"),
        (ept_vpid::INVEPT_ALL, "all-context INVEPT"),
    ] {
        if caps.ept_vpid & bit == 0 {
            return Err(Refusal::EptLacks(name));
        }
    }
    Ok(())
}

fn vpid_flush(caps: &VmxCaps, options: &Options, secondary: u32) -> VpidFlush {
    let has = |bit| caps.ept_vpid & bit != 0;
    if !options.vpid || secondary & secondary::VPID == 0 || !has(ept_vpid::INVVPID) {
        VpidFlush::None
    } else if has(ept_vpid::INVVPID_SINGLE) {
        VpidFlush::Single
    } else if has(ept_vpid::INVVPID_ALL) {
        VpidFlush::All
    } else {
        VpidFlush::None
    }
}

#[cfg(test)]
#[path = "controls_tests.rs"]
mod tests;
