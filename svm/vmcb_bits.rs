// SPDX-License-Identifier: GPL-2.0
//! The bits of the VMCB's fields.
#![forbid(unsafe_code)]

/// Bits of [`super::Vmcb::intercepts`].
pub mod intercept {
    /// Physical interrupt.
    pub const INTR: u64 = 1 << 0;
    /// Physical NMI.
    pub const NMI: u64 = 1 << 1;
    /// System-management interrupt.
    pub const SMI: u64 = 1 << 2;
    /// INIT.
    pub const INIT: u64 = 1 << 3;
    /// Virtual interrupt: the guest can take one.
    pub const VINTR: u64 = 1 << 4;
    /// RDPMC.
    pub const RDPMC: u64 = 1 << 15;
    /// CPUID.
    pub const CPUID: u64 = 1 << 18;
    /// RSM.
    pub const RSM: u64 = 1 << 19;
    /// IRET.
    pub const IRET: u64 = 1 << 20;
    /// INVD.
    pub const INVD: u64 = 1 << 22;
    /// HLT.
    pub const HLT: u64 = 1 << 24;
    /// INVLPGA.
    pub const INVLPGA: u64 = 1 << 26;
    /// I/O instructions, by the permission map.
    pub const IOIO: u64 = 1 << 27;
    /// RDMSR and WRMSR, by the permission map.
    pub const MSR: u64 = 1 << 28;
    /// Task switches.
    pub const TASK_SWITCH: u64 = 1 << 29;
    /// Legacy FPU error freeze.
    pub const FERR_FREEZE: u64 = 1 << 30;
    /// Shutdown (triple fault).
    pub const SHUTDOWN: u64 = 1 << 31;
    /// VMRUN; must be set.
    pub const VMRUN: u64 = 1 << 32;
    /// VMMCALL.
    pub const VMMCALL: u64 = 1 << 33;
    /// VMLOAD.
    pub const VMLOAD: u64 = 1 << 34;
    /// VMSAVE.
    pub const VMSAVE: u64 = 1 << 35;
    /// STGI.
    pub const STGI: u64 = 1 << 36;
    /// CLGI.
    pub const CLGI: u64 = 1 << 37;
    /// SKINIT.
    pub const SKINIT: u64 = 1 << 38;
    /// RDTSCP.
    pub const RDTSCP: u64 = 1 << 39;
    /// WBINVD.
    pub const WBINVD: u64 = 1 << 41;
    /// INT1.
    pub const ICEBP: u64 = 1 << 40;
    /// MONITOR.
    pub const MONITOR: u64 = 1 << 42;
    /// MWAIT.
    pub const MWAIT: u64 = 1 << 43;
    /// XSETBV.
    pub const XSETBV: u64 = 1 << 45;
    /// RDPRU.
    pub const RDPRU: u64 = 1 << 46;

    /// INVPCID; a bit of [`super::super::Vmcb::intercept3`].
    pub const INVPCID: u32 = 1 << 2;

    /// What every guest is intercepted on.
    pub const ALWAYS: u64 = INTR
        | NMI
        | SMI
        | INIT
        | RDPMC
        | CPUID
        | RSM
        | INVD
        | HLT
        | INVLPGA
        | IOIO
        | MSR
        | TASK_SWITCH
        | SHUTDOWN
        | VMRUN
        | VMMCALL
        | VMLOAD
        | VMSAVE
        | STGI
        | CLGI
        | SKINIT
        | ICEBP
        | WBINVD
        | MONITOR
        | MWAIT
        | XSETBV
        | RDPRU;
}

/// Bits of [`super::Vmcb::vintr`].
pub mod vintr {
    /// A virtual interrupt is pending.
    pub const IRQ: u64 = 1 << 8;
    /// It ignores the task priority.
    pub const IGNORE_TPR: u64 = 1 << 20;
    /// The guest's RFLAGS.IF and TPR do not mask the host's interrupts.
    pub const MASKING: u64 = 1 << 24;
    /// The task priority.
    pub const TPR: u64 = 0xf;
}

/// Values of [`super::Vmcb::tlb_control`].
pub mod tlb {
    /// Keep all.
    pub const KEEP: u8 = 0;
    /// Flush all ASIDs.
    pub const FLUSH_ALL: u8 = 1;
    /// Flush this ASID.
    pub const FLUSH_ASID: u8 = 3;
}

/// Fields of EVENTINJ and EXITINTINFO ("Event Injection").
pub mod event {
    /// The event is valid.
    pub const VALID: u64 = 1 << 31;
    /// An error code is in the high half.
    pub const ERROR: u64 = 1 << 11;
    /// External interrupt.
    pub const INTERRUPT: u64 = 0;
    /// Non-maskable interrupt.
    pub const NMI: u64 = 2 << 8;
    /// Exception.
    pub const EXCEPTION: u64 = 3 << 8;
    /// INT n.
    pub const SOFT: u64 = 4 << 8;
    /// The type field.
    pub const TYPE: u64 = 7 << 8;
    /// The vector field.
    pub const VECTOR: u64 = 0xff;
}
