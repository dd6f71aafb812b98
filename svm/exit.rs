// SPDX-License-Identifier: GPL-2.0
//! Exit codes and what comes with them (AMD APM volume 2, "SVM Intercept Exit Codes").
#![forbid(unsafe_code)]

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
    /// Write of DR15, the last.
    pub const WRITE_DR15: u64 = 0x3f;
    /// Exception 0; vector n is this plus n.
    pub const EXCEPTION: u64 = 0x40;
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
    /// INVD.
    pub const INVD: u64 = 0x76;
    /// HLT.
    pub const HLT: u64 = 0x78;
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

#[cfg(test)]
mod tests {
    use super::*;

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
