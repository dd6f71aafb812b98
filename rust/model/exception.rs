// SPDX-License-Identifier: GPL-2.0
//! Exceptions: their vectors, what belongs to one, how two combine, and what they leave in DR6.
#![forbid(unsafe_code)]

use super::cr::{cr0, dr6};
use super::regs::rflags;

/// Exception vectors.
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Breakpoint (INT3).
    pub const BP: u8 = 3;
    /// Overflow (INTO).
    pub const OF: u8 = 4;
    /// Bound range.
    pub const BR: u8 = 5;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid TSS.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// x87 error.
    pub const MF: u8 = 16;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// Machine check.
    pub const MC: u8 = 18;
    /// SIMD error.
    pub const XM: u8 = 19;
    /// Virtualization exception.
    pub const VE: u8 = 20;
    /// Control protection.
    pub const CP: u8 = 21;
}

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The vector, below 32 and not 2.
    pub vector: u8,
    /// The error code, for the vectors that push one.
    pub error: Option<u32>,
    /// What goes to CR2 (#PF), or is merged into DR6 by [`debug_status`] (#DB), at the moment of injection.
    pub payload: Option<u64>,
    /// Length of the instruction, for INT3 and INTO only; 0 says that the CPU raised it.
    pub insn_len: u8,
}

impl Exception {
    /// An exception without an error code.
    pub const fn new(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            payload: None,
            insn_len: 0,
        }
    }

    /// An exception with an error code.
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self {
            vector,
            error: Some(error),
            payload: None,
            insn_len: 0,
        }
    }

    /// #UD.
    pub const fn undefined() -> Self {
        Self::new(vector::UD)
    }

    /// #GP.
    pub const fn protection(error: u32) -> Self {
        Self::with_error(vector::GP, error)
    }

    /// #PF at linear address `cr2`.
    pub const fn page_fault(error: u32, cr2: u64) -> Self {
        Self {
            vector: vector::PF,
            error: Some(error),
            payload: Some(cr2),
            insn_len: 0,
        }
    }

    /// #DB; `payload` is laid out as VMX's pending debug exceptions: all bits active high.
    pub const fn debug(payload: u64) -> Self {
        Self {
            vector: vector::DB,
            error: None,
            payload: Some(payload),
            insn_len: 0,
        }
    }

    /// INT3 or INTO, which only instructions raise.
    pub(super) const fn soft(&self) -> bool {
        matches!(self.vector, vector::BP | vector::OF)
    }

    /// Whether the pushed RFLAGS have RF set: fault-like exceptions, except #DB.
    pub(super) const fn sets_rf(&self) -> bool {
        !matches!(
            self.vector,
            vector::DB | vector::BP | vector::OF | vector::DF | vector::MC
        )
    }
}

/// How two exceptions combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

const fn class(v: u8) -> Class {
    match v {
        vector::PF => Class::PageFault,
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        _ => Class::Benign,
    }
}

/// What becomes of a second exception while a first is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// The second is delivered; the first comes back when its instruction is executed again.
    Second,
    /// Both become a double fault.
    DoubleFault,
    /// The CPU shuts down.
    TripleFault,
}

/// Combines the vectors of two exceptions: the manuals' "Conditions for Generating a Double Fault".
pub const fn merge(first: u8, second: u8) -> Merge {
    if first == vector::DF {
        return Merge::TripleFault;
    }
    match (class(first), class(second)) {
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => Merge::DoubleFault,
        _ => Merge::Second,
    }
}

/// DR6 after a #DB with `payload`. The trap bits are those of this #DB; BD, BS and BT are only ever set; RTM and BUS_LOCK are
/// active low in DR6 and active high in the payload, whose bit 12 (a breakpoint was enabled) is no bit of DR6.
pub const fn debug_status(old: u64, payload: u64) -> u64 {
    let kept = (old & !dr6::TRAPS | dr6::RTM) & !(payload & dr6::RESET);
    (kept | payload & !dr6::RESET) & !(1 << 12) | dr6::FIXED_1
}

/// What a #DB may tell of: all but the breakpoints that are not enabled in `dr7`. CPUs may tell of those, too, also where what is in their
/// registers belongs to somebody else.
pub const fn may_tell(dr7: u64) -> u64 {
    // Each breakpoint has two enable bits.
    let enables = (dr7 | dr7.wrapping_shr(1)) & 0x55;
    let enabled = enables & 1
        | enables.wrapping_shr(1) & 2
        | enables.wrapping_shr(2) & 4
        | enables.wrapping_shr(3) & 8;
    enabled | !dr6::TRAPS
}

/// What a #DB tells besides a single step of the host's, as the payload of [`Exception::debug`]: DR6 was [`dr6::RESET`] before, `status` is what
/// it became. `None`: nothing. The step is the guest's as well if `guest_steps`.
pub const fn besides_step(status: u64, dr7: u64, guest_steps: bool) -> Option<u64> {
    let told = (status ^ dr6::RESET) & dr6::VOLATILE & may_tell(dr7);
    if guest_steps || told & dr6::BS == 0 {
        return Some(told);
    }
    match told & !dr6::BS {
        0 => None,
        more => Some(more),
    }
}

/// Whether a guest in this state checks alignment, so that an #AC is its own ("Alignment Check Exception").
pub const fn checks_alignment(cpl: u8, cr0: u64, rflags: u64) -> bool {
    cpl == 3 && cr0 & cr0::AM != 0 && rflags & rflags::AC != 0
}

/// Whether `v` is the vector of an exception.
pub(super) const fn is_exception(v: u8) -> bool {
    v < 32 && v != vector::NMI
}

#[cfg(test)]
#[path = "exception_tests.rs"]
mod tests;
