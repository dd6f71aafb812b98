// SPDX-License-Identifier: GPL-2.0
//! Control, extended-control and debug registers: their bits, and in one place what may be written to them.
//!
//! The same rules serve an instruction of the guest (a refusal is #GP) and an ioctl (a refusal is EINVAL). What depends on the
//! guest's CPUID comes in as [`Limits`], what depends on the mode the CPU is in as [`Mode`].
#![forbid(unsafe_code)]

pub use crate::model::regs::{cr0, rflags};

/// Bits of CR3.
pub mod cr3 {
    /// The process-context identifier, with CR4.PCIDE.
    pub const PCID: u64 = 0xfff;
    /// In a MOV to CR3 with CR4.PCIDE: keep the TLB entries of the new PCID.
    pub const NO_FLUSH: u64 = 1 << 63;
}

/// Bits of CR4.
pub mod cr4 {
    pub use crate::model::regs::cr4::*;
    /// DR4 and DR5 are undefined.
    pub const DE: u64 = 1 << 3;
    /// Machine checks enabled.
    pub const MCE: u64 = 1 << 6;
    /// SIMD floating-point exceptions.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// Control-flow enforcement.
    pub const CET: u64 = 1 << 23;
    /// Linear-address masking of supervisor pointers.
    pub const LAM_SUP: u64 = 1 << 28;

    /// The bits that may be set whatever CPUID says; CPUID never withholds them.
    pub const ALWAYS: u64 =
        VME | PVI | TSD | DE | PSE | PAE | MCE | PGE | PCE | OSFXSR | OSXMMEXCPT;
}

/// Bits of EFER.
pub mod efer {
    pub use crate::model::regs::efer::*;
    /// Long-mode segment limits.
    pub const LMSLE: u64 = 1 << 13;
    /// Fast FXSAVE.
    pub const FFXSR: u64 = 1 << 14;
    /// Automatic IBRS.
    pub const AUTOIBRS: u64 = 1 << 21;
}

/// State components: bits of XCR0.
pub mod xcr0 {
    /// x87; always set.
    pub const FP: u64 = 1 << 0;
    /// XMM registers.
    pub const SSE: u64 = 1 << 1;
    /// Upper halves of the YMM registers.
    pub const YMM: u64 = 1 << 2;
    /// MPX bound registers.
    pub const BNDREGS: u64 = 1 << 3;
    /// MPX configuration.
    pub const BNDCSR: u64 = 1 << 4;
    /// AVX-512: opmasks, upper ZMM halves, ZMM16 to 31.
    pub const AVX512: u64 = 7 << 5;
    /// Protection-key rights of user pages.
    pub const PKRU: u64 = 1 << 9;
    /// AMX tile configuration and data.
    pub const XTILE: u64 = 3 << 17;
    /// The components that Lodge offers to guests.
    pub const OFFERED: u64 = FP | SSE | YMM | AVX512 | PKRU;
}

/// Bits of DR6.
pub mod dr6 {
    /// Breakpoints 0 to 3 were hit.
    pub const TRAPS: u64 = 0xf;
    /// A bus lock was detected; active low.
    pub const BUS_LOCK: u64 = 1 << 11;
    /// A debug register was touched with DR7.GD.
    pub const BD: u64 = 1 << 13;
    /// Single step.
    pub const BS: u64 = 1 << 14;
    /// Task switch.
    pub const BT: u64 = 1 << 15;
    /// Inside of a transactional region; active low.
    pub const RTM: u64 = 1 << 16;
    /// The value after reset: reserved bits that read as one, and the active-low bits.
    pub const RESET: u64 = 0xffff_0ff0;
    /// What software can change.
    pub const VOLATILE: u64 = TRAPS | BUS_LOCK | BD | BS | BT | RTM;
    /// What always reads as one.
    pub const FIXED_1: u64 = RESET & !VOLATILE;
}

/// Bits of DR7.
pub mod dr7 {
    /// The enable bits of the four breakpoints.
    pub const ENABLES: u64 = 0xff;
    /// L0 to L3 and LE: what is enabled for one task only.
    pub const LOCAL: u64 = 0x155;
    /// General detect: touching a debug register is #DB.
    pub const GD: u64 = 1 << 13;
    /// The value after reset.
    pub const RESET: u64 = 0x400;
    /// What always reads as one.
    pub const FIXED_1: u64 = 0x400;
    /// What software can change.
    pub const VOLATILE: u64 = 0xffff_2bff;
}

/// Bits of the IA32_APIC_BASE register.
pub mod apic_base {
    /// This is the bootstrap processor.
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode, together with `ENABLE`.
    pub const X2APIC: u64 = 1 << 10;
    /// The local APIC is on.
    pub const ENABLE: u64 = 1 << 11;
    /// After reset, but for `BSP`: on, at its usual address.
    pub const RESET: u64 = 0xfee0_0000 | ENABLE;
    /// Reserved whatever the CPU.
    pub const RESERVED: u64 = 0x2ff;
}

/// Why a value may not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadReg {
    /// A bit that is reserved, or that the guest's CPUID withholds.
    Reserved,
    /// CR0.NW without CR0.CD.
    NwWithoutCd,
    /// CR0.PG without CR0.PE.
    PgWithoutPe,
    /// Paging switched on with EFER.LME and without CR4.PAE, or PAE switched off in long mode.
    LongNeedsPae,
    /// Paging switched on with EFER.LME while CS is a 64-bit segment.
    LongFromCsL,
    /// Paging switched off in 64-bit mode, or with CR4.PCIDE.
    PagingInUse,
    /// CR4.LA57 changed in long mode.
    La57InUse,
    /// CR4.PCIDE set outside of long mode or with a PCID in CR3.
    PcidNotNow,
    /// CR4.CET without CR0.WP.
    CetNeedsWp,
    /// EFER.LME changed with paging on.
    LmeInUse,
    /// A combination of state components that XCR0 forbids.
    Components,
    /// There is no such extended control register.
    NoSuchXcr,
    /// An APIC mode, or a change of it, that does not exist.
    ApicMode,
}

/// The TLB flush that a write owes, from the guest's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flush {
    /// None.
    None,
    /// The entries of the current PCID.
    Current,
    /// All entries, of every PCID, global ones too.
    All,
}

/// What the guest's CPUID (and what the module and the CPU support) leaves of each register.
/// Computed once, when the CPUID is set: `GuestFeatures::limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bits of CR4 that must be zero.
    pub cr4_reserved: u64,
    /// Bits of EFER that the module can virtualize at all: the limit of KVM_SET_MSRS.
    pub efer_host: u64,
    /// Bits of EFER that this guest may set: the limit of WRMSR and KVM_SET_SREGS.
    pub efer_guest: u64,
    /// Bits of a guest-physical address that must be zero.
    pub gpa_reserved: u64,
    /// State components that may be enabled in XCR0 (FP may always).
    pub xcr0: u64,
    /// Bits of DR6 that read as one because the guest lacks the feature.
    pub dr6_fixed: u64,
    /// The guest has x2APIC.
    pub x2apic: bool,
}

/// The registers that a check looks at besides the new value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// CS is a 64-bit code segment (its L bit).
    pub cs_l: bool,
}

impl Mode {
    /// Paging is on.
    pub const fn paging(&self) -> bool {
        self.cr0 & cr0::PG != 0
    }

    /// Long mode is active.
    pub const fn long(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// 64-bit mode.
    pub const fn bits64(&self) -> bool {
        self.long() && self.cs_l
    }

    /// Paging with PAE page tables outside of long mode: four PDPTEs are in the CPU.
    pub const fn pae_paging(&self) -> bool {
        self.paging() && !self.long() && self.cr4 & cr4::PAE != 0
    }

    /// EFER with LMA as LME and `cr0` make it. LMA follows CR0.PG only: software cannot write it.
    const fn with_lma(&self, cr0: u64) -> u64 {
        if self.efer & efer::LME != 0 && cr0 & cr0::PG != 0 {
            self.efer | efer::LMA
        } else {
            self.efer & !efer::LMA
        }
    }
}

/// Whether `addr` is canonical for `bits` (48 or 57) bits of linear address.
pub const fn is_canonical(addr: u64, bits: u8) -> bool {
    canonical(addr, bits) == addr
}

/// `addr` with the upper bits made copies of the highest of `bits` (48 or 57) address bits.
pub const fn canonical(addr: u64, bits: u8) -> u64 {
    let shift = 64u32.wrapping_sub(bits as u32) & 63;
    ((addr << shift) as i64 >> shift) as u64
}

/// A CR0 value that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr0Write {
    /// What CR0 becomes: ET set, reserved bits dropped.
    pub cr0: u64,
    /// What EFER becomes: LMA follows paging.
    pub efer: u64,
    /// The four PDPTEs have to be loaded and checked first; if they are bad, the write is refused with #GP.
    pub load_pdptrs: bool,
    /// The flush it owes.
    pub flush: Flush,
}

/// What of CR0 can be judged from its value alone (KVM_SET_SREGS asks no more).
pub const fn valid_cr0(new: u64) -> Result<(), BadReg> {
    if new >> 32 != 0 {
        return Err(BadReg::Reserved);
    }
    if new & cr0::NW != 0 && new & cr0::CD == 0 {
        return Err(BadReg::NwWithoutCd);
    }
    if new & cr0::PG != 0 && new & cr0::PE == 0 {
        return Err(BadReg::PgWithoutPe);
    }
    Ok(())
}

/// MOV to CR0 (and LMSW, CLTS after [`lmsw`]).
pub const fn check_cr0(new: u64, mode: &Mode) -> Result<Cr0Write, BadReg> {
    const KNOWN: u64 = cr0::PE
        | cr0::MP
        | cr0::EM
        | cr0::TS
        | cr0::ET
        | cr0::NE
        | cr0::WP
        | cr0::AM
        | cr0::NW
        | cr0::CD
        | cr0::PG;
    if let Err(e) = valid_cr0(new) {
        return Err(e);
    }
    // Reserved bits below 32 are ignored, not refused.
    let new = (new | cr0::ET) & KNOWN;
    let changed = new ^ mode.cr0;
    let pae = mode.cr4 & cr4::PAE != 0;
    let lme = mode.efer & efer::LME != 0;
    if lme && !mode.paging() && new & cr0::PG != 0 {
        if !pae {
            return Err(BadReg::LongNeedsPae);
        }
        if mode.cs_l {
            return Err(BadReg::LongFromCsL);
        }
    }
    if new & cr0::PG == 0 && (mode.bits64() || mode.cr4 & cr4::PCIDE != 0) {
        return Err(BadReg::PagingInUse);
    }
    if new & cr0::WP == 0 && mode.cr4 & cr4::CET != 0 {
        return Err(BadReg::CetNeedsWp);
    }
    let reloads = changed & (cr0::CD | cr0::NW | cr0::PG) != 0;
    Ok(Cr0Write {
        cr0: new,
        efer: mode.with_lma(new),
        load_pdptrs: !lme && new & cr0::PG != 0 && pae && reloads,
        flush: if changed & cr0::PG != 0 && new & cr0::PG == 0 {
            Flush::All
        } else {
            Flush::None
        },
    })
}

/// The CR0 that LMSW with operand `msw` asks for: it writes the low four bits and cannot clear PE.
pub const fn lmsw(cr0: u64, msw: u16) -> u64 {
    cr0 & !0xe | msw as u64 & 0xf
}

/// A CR3 value that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr3Write {
    /// What CR3 becomes.
    pub cr3: u64,
    /// The four PDPTEs have to be loaded and checked first; if they are bad, the write is refused with #GP.
    pub load_pdptrs: bool,
    /// The flush it owes: the entries of the new PCID, or none.
    pub flush: Flush,
}

/// MOV to CR3.
pub const fn check_cr3(new: u64, mode: &Mode, limits: &Limits) -> Result<Cr3Write, BadReg> {
    let mut value = new;
    let mut flush = Flush::Current;
    if mode.cr4 & cr4::PCIDE != 0 {
        if new & cr3::NO_FLUSH != 0 {
            flush = Flush::None;
        }
        value &= !cr3::NO_FLUSH;
    }
    // Loading the value that is there already is not checked: KVM_SET_SREGS may have put any value there.
    let same = value == mode.cr3 && !mode.pae_paging();
    if !same && value & limits.gpa_reserved != 0 {
        return Err(BadReg::Reserved);
    }
    Ok(Cr3Write {
        cr3: value,
        load_pdptrs: mode.pae_paging(),
        flush,
    })
}

/// Whether one of the four PDPTEs of PAE paging may be loaded: not present, or without reserved bits.
pub const fn valid_pdpte(pdpte: u64, limits: &Limits) -> bool {
    const RESERVED: u64 = 0b1_1110_0110;
    pdpte & 1 == 0 || pdpte & (limits.gpa_reserved | RESERVED) == 0
}

/// A CR4 value that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr4Write {
    /// What CR4 becomes.
    pub cr4: u64,
    /// The four PDPTEs have to be loaded and checked first; if they are bad, the write is refused with #GP.
    pub load_pdptrs: bool,
    /// The flush it owes.
    pub flush: Flush,
    /// OSXSAVE or PKE changed: the guest's CPUID shows that, see `cpuid::refresh`.
    pub cpuid_dirty: bool,
}

/// What of CR4 can be judged from its value alone (KVM_SET_SREGS asks no more).
pub const fn valid_cr4(new: u64, limits: &Limits) -> Result<(), BadReg> {
    if new & limits.cr4_reserved != 0 {
        return Err(BadReg::Reserved);
    }
    Ok(())
}

/// MOV to CR4.
pub const fn check_cr4(new: u64, mode: &Mode, limits: &Limits) -> Result<Cr4Write, BadReg> {
    const RELOADS: u64 = cr4::PGE | cr4::PSE | cr4::PAE | cr4::SMEP;
    if let Err(e) = valid_cr4(new, limits) {
        return Err(e);
    }
    let changed = new ^ mode.cr4;
    let mut load_pdptrs = false;
    if mode.long() {
        if new & cr4::PAE == 0 {
            return Err(BadReg::LongNeedsPae);
        }
        if changed & cr4::LA57 != 0 {
            return Err(BadReg::La57InUse);
        }
    } else if mode.paging() && new & cr4::PAE != 0 {
        load_pdptrs = changed & RELOADS != 0;
    }
    let pcid_on = changed & new & cr4::PCIDE != 0;
    if pcid_on && (mode.cr3 & cr3::PCID != 0 || !mode.long()) {
        return Err(BadReg::PcidNotNow);
    }
    if new & cr4::CET != 0 && mode.cr0 & cr0::WP == 0 {
        return Err(BadReg::CetNeedsWp);
    }
    Ok(Cr4Write {
        cr4: new,
        load_pdptrs,
        flush: cr4_flush(mode.cr4, new),
        cpuid_dirty: changed & (cr4::OSXSAVE | cr4::PKE) != 0,
    })
}

const fn cr4_flush(old: u64, new: u64) -> Flush {
    let changed = old ^ new;
    if changed & cr4::PGE != 0 || changed & old & cr4::PCIDE != 0 {
        Flush::All
    } else if changed & cr4::PAE != 0 || changed & new & cr4::SMEP != 0 {
        Flush::Current
    } else {
        Flush::None
    }
}

/// MOV to CR8: the priority, four bits.
pub const fn check_cr8(new: u64) -> Result<u8, BadReg> {
    if new > 0xf {
        return Err(BadReg::Reserved);
    }
    Ok(new as u8)
}

/// What of EFER can be judged from its value alone (KVM_SET_SREGS asks no more).
pub const fn valid_efer(new: u64, limits: &Limits) -> Result<(), BadReg> {
    if new & !(limits.efer_host & limits.efer_guest) != 0 {
        return Err(BadReg::Reserved);
    }
    Ok(())
}

/// WRMSR to EFER; the result is what EFER becomes, with LMA as it was.
pub const fn check_efer(new: u64, mode: &Mode, limits: &Limits) -> Result<u64, BadReg> {
    if let Err(e) = valid_efer(new, limits) {
        return Err(e);
    }
    if mode.paging() && (new ^ mode.efer) & efer::LME != 0 {
        return Err(BadReg::LmeInUse);
    }
    Ok(new & !efer::LMA | mode.efer & efer::LMA)
}

/// EFER by KVM_SET_MSRS: any order of restoring state is allowed, so only what the module cannot virtualize is refused.
pub const fn set_efer(new: u64, mode: &Mode, limits: &Limits) -> Result<u64, BadReg> {
    if new & !limits.efer_host != 0 {
        return Err(BadReg::Reserved);
    }
    Ok(new & !efer::LMA | mode.efer & efer::LMA)
}

/// XSETBV and KVM_SET_XCRS: register `index`, which must be 0.
pub const fn check_xcr(index: u32, new: u64, limits: &Limits) -> Result<u64, BadReg> {
    if index != 0 {
        return Err(BadReg::NoSuchXcr);
    }
    if new & xcr0::FP == 0 || new & xcr0::YMM != 0 && new & xcr0::SSE == 0 {
        return Err(BadReg::Components);
    }
    if new & !(limits.xcr0 | xcr0::FP) != 0 {
        return Err(BadReg::Reserved);
    }
    if new & xcr0::AVX512 != 0 && (new & xcr0::YMM == 0 || new & xcr0::AVX512 != xcr0::AVX512) {
        return Err(BadReg::Components);
    }
    Ok(new)
}

/// A debug register, after the aliases are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dr {
    /// The address of breakpoint 0 to 3.
    Address(u8),
    /// DR6.
    Status,
    /// DR7.
    Control,
}

/// Which register a MOV to or from debug register `n` (0 to 7) means; `None` is #UD. DR4 and DR5 are DR6 and DR7 unless CR4.DE.
pub const fn debug_register(n: u8, cr4: u64) -> Option<Dr> {
    match n {
        0..=3 => Some(Dr::Address(n)),
        4 | 5 if cr4 & cr4::DE != 0 => None,
        4 | 6 => Some(Dr::Status),
        5 | 7 => Some(Dr::Control),
        _ => None,
    }
}

/// MOV to DR6: what it becomes.
pub const fn check_dr6(new: u64, limits: &Limits) -> Result<u64, BadReg> {
    if new >> 32 != 0 {
        return Err(BadReg::Reserved);
    }
    Ok(new & dr6::VOLATILE | dr6::FIXED_1 | limits.dr6_fixed)
}

/// MOV to DR7: what it becomes.
pub const fn check_dr7(new: u64) -> Result<u64, BadReg> {
    if new >> 32 != 0 {
        return Err(BadReg::Reserved);
    }
    Ok(new & dr7::VOLATILE | dr7::FIXED_1)
}

/// Which of the four breakpoints (bits of DR6) are enabled for the execution of the instruction at linear address `at`.
pub fn code_breakpoints(dr: &[u64; 4], dr7: u64, at: u64) -> u64 {
    let mut hit = 0u64;
    for (n, address) in (0u32..4).zip(dr) {
        let enabled = dr7.wrapping_shr(n.wrapping_mul(2)) & 3 != 0;
        // R/W and LEN: execution has both zero.
        let what = dr7.wrapping_shr(n.wrapping_mul(4).wrapping_add(16)) & 15;
        if enabled && what == 0 && *address == at {
            hit |= 1u64.wrapping_shl(n);
        }
    }
    hit
}

/// KVM_SET_DEBUGREGS takes any DR6 and DR7 whose upper halves are zero, as they are.
pub const fn valid_debugregs(dr6: u64, dr7: u64) -> Result<(), BadReg> {
    if dr6 >> 32 != 0 || dr7 >> 32 != 0 {
        return Err(BadReg::Reserved);
    }
    Ok(())
}

/// What of IA32_APIC_BASE can be judged from its value alone.
pub const fn valid_apic_base(new: u64, limits: &Limits) -> Result<(), BadReg> {
    let x2apic = if limits.x2apic { 0 } else { apic_base::X2APIC };
    if new & (limits.gpa_reserved | apic_base::RESERVED | x2apic) != 0 {
        return Err(BadReg::Reserved);
    }
    if new & apic_base::X2APIC != 0 && new & apic_base::ENABLE == 0 {
        return Err(BadReg::ApicMode);
    }
    Ok(())
}

/// WRMSR to IA32_APIC_BASE: x2APIC mode is entered from xAPIC mode only, and left only by switching off.
pub const fn check_apic_base(new: u64, old: u64, limits: &Limits) -> Result<(), BadReg> {
    if new == old {
        return Ok(());
    }
    if let Err(e) = valid_apic_base(new, limits) {
        return Err(e);
    }
    const MODE: u64 = apic_base::ENABLE | apic_base::X2APIC;
    let leaves_x2apic = old & MODE == MODE && new & MODE == apic_base::ENABLE;
    let skips_xapic = old & MODE == 0 && new & MODE == MODE;
    if leaves_x2apic || skips_xapic {
        return Err(BadReg::ApicMode);
    }
    Ok(())
}

#[cfg(test)]
#[path = "cr_tests.rs"]
mod tests;
