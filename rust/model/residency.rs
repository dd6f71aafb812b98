// SPDX-License-Identifier: GPL-2.0
//! Where a VMCS is: the bookkeeping that keeps one from being used on two processors.
//!
//! VMPTRLD makes a VMCS *active* on a processor, which may from then on keep parts of it in caches of its own, and
//! *current*. It stays active when another becomes current. Only VMCLEAR on that same processor writes it back and
//! makes it *clear*; using it elsewhere, or freeing its page, before that corrupts memory. VMLAUNCH needs a clear launch state,
//! VMRESUME a launched one. (Manual: "Software Use of the VMCS and Related Structures".)
//!
//! The owner of a VMCS keeps a [`Place`] for it, and each processor a list of the VMCSs active on it, for a crash handler
//! and for going offline. The order of steps that the functions below ask for keeps this true at *every* instant, because an NMI
//! may start the crash handler at any: **what is active on a processor is in its list**.
//!
//! - Claiming: list, set the place, VMPTRLD.
//! - Clearing, on the processor itself: VMCLEAR, unlist, set the place (release): whoever reads that it is clear may list it.
//!
//! A processor makes both with interrupts off; a thread loads with preemption off. The place is written only by the
//! processor that it names, or, when it names none, by the thread that owns the VMCS.
#![forbid(unsafe_code)]

/// Where a VMCS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// On no processor: its page holds all of it, and its launch state is clear.
    Clear,
    /// Active on processor `cpu`.
    Active {
        /// The processor.
        cpu: u32,
        /// Its launch state is launched.
        launched: bool,
    },
}

/// What a thread on some processor has to do before it can use a VMCS there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Nothing: it is current.
    Ready,
    /// VMPTRLD: it is active here.
    Point,
    /// Claim it: list, place, VMPTRLD.
    Claim,
    /// Have it cleared on that processor, and then ask again.
    ClearOn(u32),
}

/// How to enter the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enter {
    /// VMLAUNCH.
    Launch,
    /// VMRESUME.
    Resume,
}

/// A step was taken that the place does not allow: a bug of the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// Where the VMCS was.
    pub place: Place,
    /// The processor on which the step was to be taken.
    pub cpu: u32,
}

impl Place {
    const ACTIVE: u64 = 1 << 32;
    const LAUNCHED: u64 = 1 << 33;

    /// As one word, for an atomic cell.
    pub const fn to_word(self) -> u64 {
        match self {
            Self::Clear => 0,
            Self::Active { cpu, launched } => {
                Self::ACTIVE | if launched { Self::LAUNCHED } else { 0 } | cpu as u64
            }
        }
    }

    /// From such a word.
    pub const fn from_word(word: u64) -> Self {
        if word & Self::ACTIVE == 0 {
            Self::Clear
        } else {
            Self::Active {
                cpu: word as u32,
                launched: word & Self::LAUNCHED != 0,
            }
        }
    }

    /// What to do to use it on `cpu`, where the VMCS that is current is this one or not.
    pub const fn load(self, cpu: u32, current: bool) -> Load {
        match self {
            Self::Clear => Load::Claim,
            Self::Active { cpu: there, .. } if there != cpu => Load::ClearOn(there),
            Self::Active { .. } if current => Load::Ready,
            Self::Active { .. } => Load::Point,
        }
    }

    /// The processor on which it must be cleared before its page may be freed.
    pub const fn release(self) -> Option<u32> {
        match self {
            Self::Clear => None,
            Self::Active { cpu, .. } => Some(cpu),
        }
    }

    /// The place after `cpu` claims it.
    ///
    /// # Errors
    /// It is active somewhere.
    pub const fn claimed(self, cpu: u32) -> Result<Self, Misplaced> {
        match self {
            Self::Clear => Ok(Self::Active {
                cpu,
                launched: false,
            }),
            place => Err(Misplaced { place, cpu }),
        }
    }

    /// The place after VMCLEAR on `cpu`.
    ///
    /// # Errors
    /// It is not active there.
    pub const fn cleared(self, cpu: u32) -> Result<Self, Misplaced> {
        match self {
            Self::Active { cpu: there, .. } if there == cpu => Ok(Self::Clear),
            place => Err(Misplaced { place, cpu }),
        }
    }

    /// The instruction that enters the guest on `cpu`.
    ///
    /// # Errors
    /// It is not active there.
    pub const fn enter(self, cpu: u32) -> Result<Enter, Misplaced> {
        match self {
            Self::Active {
                cpu: there,
                launched,
            } if there == cpu => Ok(if launched {
                Enter::Resume
            } else {
                Enter::Launch
            }),
            place => Err(Misplaced { place, cpu }),
        }
    }

    /// The place after the guest was entered: a VM exit came, so the launch state is launched now.
    pub const fn entered(self) -> Self {
        match self {
            Self::Active { cpu, .. } => Self::Active {
                cpu,
                launched: true,
            },
            Self::Clear => Self::Clear,
        }
    }
}

#[cfg(test)]
#[path = "residency_tests.rs"]
mod tests;
