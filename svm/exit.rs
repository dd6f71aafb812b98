// SPDX-License-Identifier: GPL-2.0
//! Exit codes and what comes with them (AMD APM volume 2, "SVM Intercept Exit Codes").
#![forbid(unsafe_code)]

/// Bits of EXITINFO2 after a task switch.
pub mod task {
    /// By IRET.
    pub const IRET: u64 = 1 << 36;
    /// By a far jump.
    pub const JMP: u64 = 1 << 38;
    /// The low half holds the error code of an exception.
    pub const ERROR: u64 = 1 << 44;
}

/// Exit codes.
pub mod code {
    /// Read of CR0; CRn is this plus n.
    pub const READ_CR0: u64 = 0x00;
    /// Write of CR0; CRn is this plus n.
    pub const WRITE_CR0: u64 = 0x10;
    /// Write of CR15, the last.
    pub const WRITE_CR15: u64 = 0x1f;
    /// Read of DR0; DRn is this plus n.
    pub const READ_DR0: u64 = 0x20;
    /// Write of DR0; DRn is this plus n.
    pub const WRITE_DR0: u64 = 0x30;
    /// Write of DR15, the last.
    pub const WRITE_DR15: u64 = 0x3f;
    /// Exception 0; vector n is this plus n.
    pub const EXCEPTION: u64 = 0x40;
    /// #UD.
    pub const UNDEFINED: u64 = 0x46;
    /// Exception 31, the last.
    pub const EXCEPTION_LAST: u64 = 0x5f;
    /// Physical interrupt.
    pub const INTR: u64 = 0x60;
    /// Physical NMI.
    pub const NMI: u64 = 0x61;
    /// SMI.
    pub const SMI: u64 = 0x62;
    /// INIT.
    pub const INIT: u64 = 0x63;
    /// The guest can take a virtual interrupt.
    pub const VINTR: u64 = 0x64;
    /// RDPMC.
    pub const RDPMC: u64 = 0x6f;
    /// CPUID.
    pub const CPUID: u64 = 0x72;
    /// RSM.
    pub const RSM: u64 = 0x73;
    /// IRET.
    pub const IRET: u64 = 0x74;
    /// INT n.
    pub const INT_N: u64 = 0x75;
    /// INVD.
    pub const INVD: u64 = 0x76;
    /// HLT.
    pub const HLT: u64 = 0x78;
    /// INVLPG.
    pub const INVLPG: u64 = 0x79;
    /// INVLPGA.
    pub const INVLPGA: u64 = 0x7a;
    /// Port I/O.
    pub const IOIO: u64 = 0x7b;
    /// RDMSR or WRMSR.
    pub const MSR: u64 = 0x7c;
    /// Task switch.
    pub const TASK_SWITCH: u64 = 0x7d;
    /// Shutdown.
    pub const SHUTDOWN: u64 = 0x7f;
    /// VMRUN, the first of the SVM instructions.
    pub const VMRUN: u64 = 0x80;
    /// VMMCALL.
    pub const VMMCALL: u64 = 0x81;
    /// VMLOAD.
    pub const VMLOAD: u64 = 0x82;
    /// SKINIT, the last of the SVM instructions.
    pub const SKINIT: u64 = 0x86;
    /// RDTSCP.
    pub const RDTSCP: u64 = 0x87;
    /// INT1.
    pub const ICEBP: u64 = 0x88;
    /// WBINVD.
    pub const WBINVD: u64 = 0x89;
    /// MONITOR.
    pub const MONITOR: u64 = 0x8a;
    /// MWAIT.
    pub const MWAIT: u64 = 0x8b;
    /// MWAIT with the monitor armed.
    pub const MWAIT_ARMED: u64 = 0x8c;
    /// XSETBV.
    pub const XSETBV: u64 = 0x8d;
    /// RDPRU.
    pub const RDPRU: u64 = 0x8e;
    /// INVPCID.
    pub const INVPCID: u64 = 0xa2;
    /// Nested page fault.
    pub const NPF: u64 = 0x400;
    /// The VMCB was refused.
    pub const INVALID: u64 = u64::MAX;
}

/// EXITINFO1 of a port access ("IOIO Intercept Information").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoInfo {
    /// The port.
    pub port: u16,
    /// IN, as opposed to OUT.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// Operand size in bytes: 1, 2 or 4.
    pub size: u8,
}

impl IoInfo {
    /// Takes EXITINFO1 apart.
    pub const fn decode(info: u64) -> Self {
        let size = if info & (1 << 4) != 0 {
            1
        } else if info & (1 << 5) != 0 {
            2
        } else {
            4
        };
        Self {
            port: (info >> 16) as u16,
            input: info & 1 != 0,
            string: info & (1 << 2) != 0,
            size,
        }
    }
}

/// What a CPU with decode assists tells of an intercepted instruction in EXITINFO1 ("Decode Assists"). Without them the field
/// means nothing at these exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assist {
    /// MOV to or from a control register.
    Cr {
        /// The control register.
        cr: u8,
        /// MOV to it.
        write: bool,
        /// The general register.
        gpr: u8,
    },
    /// MOV to or from a debug register.
    Dr {
        /// The debug register.
        dr: u8,
        /// MOV to it.
        write: bool,
        /// The general register.
        gpr: u8,
    },
    /// INVLPG.
    Invlpg {
        /// The linear address.
        linear: u64,
    },
    /// INT n.
    Int {
        /// Its n.
        vector: u8,
    },
}

impl Assist {
    /// Takes EXITINFO1 of an exit with `code` apart. None: the exit has no such information, which is so of CLTS, LMSW and
    /// SMSW among the accesses to CR0.
    pub const fn decode(code: u64, info: u64) -> Option<Self> {
        /// The access is by MOV.
        const MOV: u64 = 1 << 63;
        let (number, gpr) = ((code & 15) as u8, (info & 15) as u8);
        match code {
            code::READ_CR0..=code::WRITE_CR15 if info & MOV != 0 => Some(Self::Cr {
                cr: number,
                write: code >= code::WRITE_CR0,
                gpr,
            }),
            code::READ_DR0..=code::WRITE_DR15 => Some(Self::Dr {
                dr: number,
                write: code >= code::WRITE_DR0,
                gpr,
            }),
            code::INVLPG => Some(Self::Invlpg { linear: info }),
            code::INT_N => Some(Self::Int { vector: info as u8 }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assists() {
        const MOV: u64 = 1 << 63;
        let cr = |cr, write, gpr| Some(Assist::Cr { cr, write, gpr });
        let dr = |dr, write, gpr| Some(Assist::Dr { dr, write, gpr });
        assert_eq!(Assist::decode(0x00, MOV), cr(0, false, 0));
        assert_eq!(Assist::decode(0x08, MOV | 15), cr(8, false, 15));
        assert_eq!(Assist::decode(0x10, MOV | 3), cr(0, true, 3));
        assert_eq!(Assist::decode(0x18, MOV | 9), cr(8, true, 9));
        // CLTS, LMSW, SMSW: the general register means nothing.
        assert_eq!(Assist::decode(0x10, 3), None);
        assert_eq!(Assist::decode(0x00, 3), None);
        assert_eq!(Assist::decode(0x27, 5), dr(7, false, 5));
        assert_eq!(Assist::decode(0x36, 14), dr(6, true, 14));
        let linear = 0xffff_8000_0000_1000;
        assert_eq!(
            Assist::decode(0x79, linear),
            Some(Assist::Invlpg { linear })
        );
        assert_eq!(
            Assist::decode(0x75, 0x80),
            Some(Assist::Int { vector: 0x80 })
        );
        // Exits whose EXITINFO1 says something else, or nothing.
        for code in [0x40, 0x5f, 0x72, 0x7b, 0x7c, 0x400] {
            assert_eq!(Assist::decode(code, MOV | 1), None);
        }
    }

    #[test]
    fn io_info() {
        let i = IoInfo::decode(0x03f8_0000 | 1 << 4);
        assert_eq!(
            i,
            IoInfo {
                port: 0x3f8,
                input: false,
                string: false,
                size: 1
            }
        );
        let i = IoInfo::decode(0x0cfc_0000 | 1 << 6 | 1);
        assert_eq!(
            i,
            IoInfo {
                port: 0xcfc,
                input: true,
                string: false,
                size: 4
            }
        );
        let i = IoInfo::decode(0x01f0_0000 | 1 << 5 | 1 | 1 << 2 | 1 << 3);
        assert_eq!(
            i,
            IoInfo {
                port: 0x1f0,
                input: true,
                string: true,
                size: 2
            }
        );
    }
}
