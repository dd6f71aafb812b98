// SPDX-License-Identifier: GPL-2.0
//! What this CPU's SVM can do (AMD APM volume 3, "Function 8000_000Ah: SVM Features").
#![forbid(unsafe_code)]

/// The features that Lodge uses, and their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Number of address-space identifiers, the host's included.
    pub asids: u32,
    /// Nested paging.
    pub npt: bool,
    /// The next RIP is saved at an exit caused by an instruction.
    pub nrip_save: bool,
    /// TLB entries of one ASID can be flushed.
    pub flush_by_asid: bool,
    /// The VMCB tells which of its parts are unchanged since the last run.
    pub clean_bits: bool,
    /// Instruction bytes and operands are provided at exits.
    pub decode_assists: bool,
    /// PAUSE exits can be counted.
    pub pause_filter: bool,
}

/// Features that a module parameter turned off.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disabled {
    /// No nested paging.
    pub npt: bool,
    /// Decode instructions even where the CPU saves the next RIP.
    pub nrip_save: bool,
    /// Give a fresh ASID where a flush by ASID would do.
    pub flush_by_asid: bool,
}

/// Why Lodge cannot use the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No nested paging (or turned off): shadow paging is not there yet.
    NoNpt,
    /// Fewer than two ASIDs.
    NoAsids,
}

impl Features {
    /// From EBX and EDX of the leaf.
    pub fn negotiate(ebx: u32, edx: u32, disabled: Disabled) -> Result<Self, Refusal> {
        let bit = |n: u32| (edx >> n) & 1 != 0;
        if !bit(0) || disabled.npt {
            return Err(Refusal::NoNpt);
        }
        if ebx < 2 {
            return Err(Refusal::NoAsids);
        }
        Ok(Self {
            asids: ebx,
            npt: true,
            nrip_save: bit(3) && !disabled.nrip_save,
            clean_bits: bit(5),
            flush_by_asid: bit(6) && !disabled.flush_by_asid,
            decode_assists: bit(7),
            pause_filter: bit(10),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcg_and_ryzen() {
        // QEMU 10 TCG, EPYC: NPT only.
        let tcg = Features::negotiate(16, 1, Disabled::default());
        assert!(tcg.is_ok_and(|f| f.npt && !f.nrip_save && !f.flush_by_asid && f.asids == 16));
        // Bochs ryzen: NPT, LBR, NRIP save, flush by ASID, pause filter.
        let ryzen = Features::negotiate(64, 1 | 2 | 8 | 0x40 | 0x400, Disabled::default());
        assert!(
            ryzen.is_ok_and(|f| f.nrip_save && f.flush_by_asid && f.pause_filter && !f.clean_bits)
        );
    }

    #[test]
    fn refusals() {
        assert_eq!(
            Features::negotiate(16, 0, Disabled::default()),
            Err(Refusal::NoNpt)
        );
        let off = Disabled {
            npt: true,
            ..Disabled::default()
        };
        assert_eq!(Features::negotiate(16, 1, off), Err(Refusal::NoNpt));
        assert_eq!(
            Features::negotiate(1, 1, Disabled::default()),
            Err(Refusal::NoAsids)
        );
    }
}
