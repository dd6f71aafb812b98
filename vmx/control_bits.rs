// SPDX-License-Identifier: GPL-2.0
//! The bits of the VMX control words and of IA32_VMX_EPT_VPID_CAP, by the manual's tables of definitions.
#![forbid(unsafe_code)]

/// Bits of the pin-based VM-execution controls.
pub mod pin {
    /// External interrupts cause exits.
    pub const EXTERNAL_INTERRUPT: u32 = 1 << 0;
    /// NMIs cause exits.
    pub const NMI: u32 = 1 << 3;
    /// NMI blocking is virtual: of the guest, not of the processor.
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    /// The VMX-preemption timer counts down.
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
    /// Posted interrupts are processed.
    pub const POSTED_INTERRUPTS: u32 = 1 << 7;
}

/// Bits of the primary processor-based VM-execution controls.
pub mod primary {
    /// Exit as soon as the guest can take an interrupt.
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    /// RDTSC and the like add the TSC offset.
    pub const TSC_OFFSETTING: u32 = 1 << 3;
    /// HLT exits.
    pub const HLT: u32 = 1 << 7;
    /// INVLPG exits.
    pub const INVLPG: u32 = 1 << 9;
    /// MWAIT exits.
    pub const MWAIT: u32 = 1 << 10;
    /// RDPMC exits.
    pub const RDPMC: u32 = 1 << 11;
    /// RDTSC and RDTSCP exit.
    pub const RDTSC: u32 = 1 << 12;
    /// MOV to CR3 exits.
    pub const CR3_LOAD: u32 = 1 << 15;
    /// MOV from CR3 exits.
    pub const CR3_STORE: u32 = 1 << 16;
    /// The tertiary controls are used.
    pub const TERTIARY: u32 = 1 << 17;
    /// MOV to CR8 exits.
    pub const CR8_LOAD: u32 = 1 << 19;
    /// MOV from CR8 exits.
    pub const CR8_STORE: u32 = 1 << 20;
    /// CR8 is the TPR of the virtual-APIC page.
    pub const TPR_SHADOW: u32 = 1 << 21;
    /// Exit as soon as the guest can take an NMI.
    pub const NMI_WINDOW: u32 = 1 << 22;
    /// MOV from and to debug registers exits.
    pub const MOV_DR: u32 = 1 << 23;
    /// Every I/O instruction exits.
    pub const UNCONDITIONAL_IO: u32 = 1 << 24;
    /// The I/O bitmaps decide which port accesses exit.
    pub const IO_BITMAPS: u32 = 1 << 25;
    /// Exit after one instruction.
    pub const MONITOR_TRAP: u32 = 1 << 27;
    /// The MSR bitmaps decide which MSR accesses exit.
    pub const MSR_BITMAPS: u32 = 1 << 28;
    /// MONITOR exits.
    pub const MONITOR: u32 = 1 << 29;
    /// PAUSE exits.
    pub const PAUSE: u32 = 1 << 30;
    /// The secondary controls are used.
    pub const SECONDARY: u32 = 1 << 31;
}

/// Bits of the secondary processor-based VM-execution controls.
pub mod secondary {
    /// Accesses to the APIC-access page are virtualized.
    pub const APIC_ACCESSES: u32 = 1 << 0;
    /// Extended page tables.
    pub const EPT: u32 = 1 << 1;
    /// Descriptor-table instructions exit.
    pub const DESCRIPTOR_TABLE: u32 = 1 << 2;
    /// RDTSCP exists.
    pub const RDTSCP: u32 = 1 << 3;
    /// x2APIC MSRs are virtualized.
    pub const X2APIC_MODE: u32 = 1 << 4;
    /// Cached translations are tagged with the VPID.
    pub const VPID: u32 = 1 << 5;
    /// WBINVD exits.
    pub const WBINVD: u32 = 1 << 6;
    /// The guest may run unpaged and in real mode.
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    /// APIC registers are virtualized.
    pub const APIC_REGISTERS: u32 = 1 << 8;
    /// Virtual interrupts are delivered by the processor.
    pub const INTERRUPT_DELIVERY: u32 = 1 << 9;
    /// Loops of PAUSE exit.
    pub const PAUSE_LOOP: u32 = 1 << 10;
    /// RDRAND exits.
    pub const RDRAND: u32 = 1 << 11;
    /// INVPCID exists.
    pub const INVPCID: u32 = 1 << 12;
    /// VMFUNC exists.
    pub const VMFUNC: u32 = 1 << 13;
    /// VMREAD and VMWRITE of the guest go to a shadow VMCS.
    pub const SHADOW_VMCS: u32 = 1 << 14;
    /// ENCLS exits.
    pub const ENCLS: u32 = 1 << 15;
    /// RDSEED exits.
    pub const RDSEED: u32 = 1 << 16;
    /// Page-modification logging.
    pub const PML: u32 = 1 << 17;
    /// EPT violations may become #VE.
    pub const EPT_VIOLATION_VE: u32 = 1 << 18;
    /// XSAVES and XRSTORS exist.
    pub const XSAVES: u32 = 1 << 20;
    /// EPT execute permission depends on the mode.
    pub const MODE_BASED_EXECUTE: u32 = 1 << 22;
    /// RDTSC and the like multiply first.
    pub const TSC_SCALING: u32 = 1 << 25;
    /// TPAUSE, UMONITOR and UMWAIT exist.
    pub const USER_WAIT: u32 = 1 << 26;
}

/// Bits of the primary VM-exit controls.
pub mod exit {
    /// DR7 and IA32_DEBUGCTL are saved.
    pub const SAVE_DEBUG: u32 = 1 << 2;
    /// The host is in 64-bit mode.
    pub const HOST_64: u32 = 1 << 9;
    /// IA32_PERF_GLOBAL_CTRL is loaded.
    pub const LOAD_PERF: u32 = 1 << 12;
    /// The interrupt that causes the exit is acknowledged and its vector reported.
    pub const ACKNOWLEDGE_INTERRUPT: u32 = 1 << 15;
    /// IA32_PAT is saved.
    pub const SAVE_PAT: u32 = 1 << 18;
    /// IA32_PAT is loaded.
    pub const LOAD_PAT: u32 = 1 << 19;
    /// IA32_EFER is saved.
    pub const SAVE_EFER: u32 = 1 << 20;
    /// IA32_EFER is loaded.
    pub const LOAD_EFER: u32 = 1 << 21;
    /// The VMX-preemption timer is saved.
    pub const SAVE_PREEMPTION_TIMER: u32 = 1 << 22;
}

/// Bits of the VM-entry controls.
pub mod entry {
    /// DR7 and IA32_DEBUGCTL are loaded.
    pub const LOAD_DEBUG: u32 = 1 << 2;
    /// The guest is in IA-32e mode.
    pub const IA32E: u32 = 1 << 9;
    /// Entry to system-management mode.
    pub const SMM: u32 = 1 << 10;
    /// Ends the dual-monitor treatment.
    pub const DEACTIVATE_DUAL_MONITOR: u32 = 1 << 11;
    /// IA32_PERF_GLOBAL_CTRL is loaded.
    pub const LOAD_PERF: u32 = 1 << 13;
    /// IA32_PAT is loaded.
    pub const LOAD_PAT: u32 = 1 << 14;
    /// IA32_EFER is loaded.
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// Bits of IA32_VMX_EPT_VPID_CAP.
pub mod ept_vpid {
    /// Execute-only translations are allowed.
    pub const EXECUTE_ONLY: u64 = 1 << 0;
    /// Page walks of four levels.
    pub const WALK_4: u64 = 1 << 6;
    /// Page walks of five levels.
    pub const WALK_5: u64 = 1 << 7;
    /// The paging structures may be write-back.
    pub const WRITE_BACK: u64 = 1 << 14;
    /// Leaves of 2 MiB.
    pub const LEAF_2M: u64 = 1 << 16;
    /// Leaves of 1 GiB.
    pub const LEAF_1G: u64 = 1 << 17;
    /// INVEPT exists.
    pub const INVEPT: u64 = 1 << 20;
    /// Accessed and dirty flags.
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    /// Advanced exit information of EPT violations.
    pub const ADVANCED_INFO: u64 = 1 << 22;
    /// Single-context INVEPT.
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    /// All-context INVEPT.
    pub const INVEPT_ALL: u64 = 1 << 26;
    /// INVVPID exists.
    pub const INVVPID: u64 = 1 << 32;
    /// Individual-address INVVPID.
    pub const INVVPID_ADDRESS: u64 = 1 << 40;
    /// Single-context INVVPID.
    pub const INVVPID_SINGLE: u64 = 1 << 41;
    /// All-context INVVPID.
    pub const INVVPID_ALL: u64 = 1 << 42;
}
