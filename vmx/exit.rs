// SPDX-License-Identifier: GPL-2.0
//! What a VM exit reports: exit reasons, exit qualifications, interruption information, instruction errors.
//!
//! Decoding only; what is done about an exit is in `handle.rs`. The formats are those of the manual's section
//! "VM-Exit Information Fields" and its chapter "VM Exits", "Recording VM-Exit Information and Updating VM-Entry Control Fields".
#![forbid(unsafe_code)]

/// Declares an enum of numbers with names, and its decoder.
macro_rules! numbered {
    ($(#[$meta:meta])* $type:ident: $repr:ty { $( $(#[$doc:meta])* $name:ident = $number:literal, )* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr($repr)]
        pub enum $type {
            $( $(#[$doc])* $name = $number, )*
        }

        impl $type {
            /// The meaning of `number`, if it has one.
            pub const fn from_number(number: $repr) -> Option<Self> {
                match number {
                    $( $number => Some(Self::$name), )*
                    _ => None,
                }
            }

            /// The name of `number`; "unknown" if it has no meaning.
            pub const fn name_of(number: $repr) -> &'static str {
                match number {
                    $( $number => stringify!($name), )*
                    _ => "unknown",
                }
            }
        }
    };
}

numbered! {
    /// The basic exit reasons.
    Basic: u16 {
        /// An exception that the exception bitmap selects, or an NMI.
        ExceptionOrNmi = 0,
        /// An external interrupt for the host.
        ExternalInterrupt = 1,
        /// The guest could not deliver a double fault.
        TripleFault = 2,
        /// INIT.
        Init = 3,
        /// Start-up IPI.
        Sipi = 4,
        /// System-management interrupt in an I/O instruction.
        IoSmi = 5,
        /// Another system-management interrupt.
        OtherSmi = 6,
        /// The guest can take an interrupt now.
        InterruptWindow = 7,
        /// The guest can take an NMI now.
        NmiWindow = 8,
        /// The guest attempted a hardware task switch.
        TaskSwitch = 9,
        /// CPUID.
        Cpuid = 10,
        /// GETSEC.
        Getsec = 11,
        /// HLT.
        Hlt = 12,
        /// INVD.
        Invd = 13,
        /// INVLPG.
        Invlpg = 14,
        /// RDPMC.
        Rdpmc = 15,
        /// RDTSC.
        Rdtsc = 16,
        /// RSM.
        Rsm = 17,
        /// VMCALL.
        Vmcall = 18,
        /// VMCLEAR.
        Vmclear = 19,
        /// VMLAUNCH.
        Vmlaunch = 20,
        /// VMPTRLD.
        Vmptrld = 21,
        /// VMPTRST.
        Vmptrst = 22,
        /// VMREAD.
        Vmread = 23,
        /// VMRESUME.
        Vmresume = 24,
        /// VMWRITE.
        Vmwrite = 25,
        /// VMXOFF.
        Vmxoff = 26,
        /// VMXON.
        Vmxon = 27,
        /// Access to a control register.
        CrAccess = 28,
        /// MOV from or to a debug register.
        DrAccess = 29,
        /// IN, OUT and their string forms.
        Io = 30,
        /// RDMSR.
        Rdmsr = 31,
        /// WRMSR.
        Wrmsr = 32,
        /// Entry failure: guest state.
        BadGuestState = 33,
        /// Entry failure: loading MSRs.
        BadMsrLoad = 34,
        /// MWAIT.
        Mwait = 36,
        /// Monitor trap flag.
        MonitorTrap = 37,
        /// MONITOR.
        Monitor = 39,
        /// PAUSE, also through PAUSE-loop exiting.
        Pause = 40,
        /// Entry failure: machine check.
        MachineCheck = 41,
        /// The TPR went below its threshold.
        TprBelowThreshold = 43,
        /// Access to the APIC-access page.
        ApicAccess = 44,
        /// EOI that the EOI-exit bitmap selects.
        VirtualizedEoi = 45,
        /// LGDT, LIDT, SGDT or SIDT.
        GdtrIdtr = 46,
        /// LLDT, LTR, SLDT or STR.
        LdtrTr = 47,
        /// The EPT entries do not allow the access.
        EptViolation = 48,
        /// An EPT entry has reserved or nonsensical bits.
        EptMisconfiguration = 49,
        /// INVEPT.
        Invept = 50,
        /// RDTSCP.
        Rdtscp = 51,
        /// The VMX-preemption timer ran out.
        PreemptionTimer = 52,
        /// INVVPID.
        Invvpid = 53,
        /// WBINVD or WBNOINVD.
        Wbinvd = 54,
        /// XSETBV.
        Xsetbv = 55,
        /// Write to a virtualized APIC register.
        ApicWrite = 56,
        /// RDRAND.
        Rdrand = 57,
        /// INVPCID.
        Invpcid = 58,
        /// VMFUNC.
        Vmfunc = 59,
        /// ENCLS.
        Encls = 60,
        /// RDSEED.
        Rdseed = 61,
        /// The page-modification log is full.
        PmlFull = 62,
        /// XSAVES.
        Xsaves = 63,
        /// XRSTORS.
        Xrstors = 64,
        /// PCONFIG.
        Pconfig = 65,
        /// Sub-page permission miss or misconfiguration.
        SubPage = 66,
        /// UMWAIT.
        Umwait = 67,
        /// TPAUSE.
        Tpause = 68,
        /// LOADIWKEY.
        Loadiwkey = 69,
        /// The guest held the bus lock.
        BusLock = 74,
        /// The notify window passed without an interrupt window.
        Notify = 75,
        /// SEAMCALL.
        Seamcall = 76,
        /// TDCALL.
        Tdcall = 77,
        /// RDMSR with the MSR in the instruction.
        RdmsrImmediate = 84,
        /// WRMSR or WRMSRNS with the MSR in the instruction.
        WrmsrImmediate = 85,
    }
}

/// The exit-reason field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitReason(pub u32);

impl ExitReason {
    /// The number of the basic exit reason.
    pub const fn number(self) -> u16 {
        self.0 as u16
    }

    /// The basic exit reason, if it is one that we know.
    pub const fn basic(self) -> Option<Basic> {
        Basic::from_number(self.number())
    }

    /// The entry failed after the guest state began to load: the guest did not run.
    pub const fn entry_failed(self) -> bool {
        self.0 & (1 << 31) != 0
    }
}

numbered! {
    /// The kinds of event that interruption information tells.
    Kind: u8 {
        /// External interrupt.
        External = 0,
        /// Non-maskable interrupt.
        Nmi = 2,
        /// Exception of the hardware.
        Exception = 3,
        /// INT n.
        SoftwareInterrupt = 4,
        /// INT1.
        PrivilegedSoftwareException = 5,
        /// INT3 or INTO.
        SoftwareException = 6,
        /// Another event; at an entry, a pending monitor-trap exit.
        Other = 7,
    }
}

impl Kind {
    /// Delivery pushes the address after the instruction, so an injection must tell the instruction's length.
    pub const fn needs_length(self) -> bool {
        matches!(
            self,
            Self::SoftwareInterrupt | Self::PrivilegedSoftwareException | Self::SoftwareException
        )
    }
}

/// Interruption information: the format shared by the exit, IDT-vectoring and entry fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntrInfo(pub u32);

impl IntrInfo {
    const ERROR_CODE: u32 = 1 << 11;
    const NMI_UNBLOCKED: u32 = 1 << 12;
    const VALID: u32 = 1 << 31;

    /// Nothing to inject.
    pub const NONE: Self = Self(0);

    /// For the entry field: event `vector` of `kind`, with or without an error code.
    pub const fn new(kind: Kind, vector: u8, error_code: bool) -> Self {
        let error = if error_code { Self::ERROR_CODE } else { 0 };
        Self(Self::VALID | error | ((kind as u32) << 8) | vector as u32)
    }

    /// There is an event.
    pub const fn valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// The vector.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// The kind, if it is a defined one.
    pub const fn kind(self) -> Option<Kind> {
        Kind::from_number((self.0 >> 8) as u8 & 7)
    }

    /// An error code belongs to the event.
    pub const fn has_error_code(self) -> bool {
        self.0 & Self::ERROR_CODE != 0
    }

    /// In the exit field of a fault: it was IRET that faulted, after it had ended the blocking of NMIs.
    pub const fn nmi_unblocked_by_iret(self) -> bool {
        self.0 & Self::NMI_UNBLOCKED != 0
    }

    /// An NMI caused the exit.
    pub const fn is_nmi(self) -> bool {
        self.valid() && matches!(self.kind(), Some(Kind::Nmi))
    }

    /// The exception that caused the exit, if one did.
    pub const fn exception(self) -> Option<u8> {
        let exception = matches!(
            self.kind(),
            Some(Kind::Exception | Kind::SoftwareException | Kind::PrivilegedSoftwareException)
        );
        if self.valid() && exception {
            Some(self.vector())
        } else {
            None
        }
    }
}

/// An access to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV to CR `cr` from general register `gpr`.
    MovTo {
        /// Number of the control register.
        cr: u8,
        /// Number of the general register.
        gpr: u8,
    },
    /// MOV from CR `cr` to general register `gpr`.
    MovFrom {
        /// Number of the control register.
        cr: u8,
        /// Number of the general register.
        gpr: u8,
    },
    /// CLTS.
    Clts,
    /// LMSW of `source`.
    Lmsw {
        /// The source operand, also where it came from memory.
        source: u16,
    },
}

impl CrAccess {
    /// Decodes an exit qualification.
    pub const fn decode(qualification: u64) -> Self {
        let cr = qualification as u8 & 15;
        let gpr = (qualification >> 8) as u8 & 15;
        match (qualification >> 4) & 3 {
            0 => Self::MovTo { cr, gpr },
            1 => Self::MovFrom { cr, gpr },
            2 => Self::Clts,
            _ => Self::Lmsw {
                source: (qualification >> 16) as u16,
            },
        }
    }
}

/// MOV from or to a debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrAccess {
    /// Number of the debug register.
    pub dr: u8,
    /// Number of the general register.
    pub gpr: u8,
    /// From the debug register.
    pub read: bool,
}

impl DrAccess {
    /// Decodes an exit qualification.
    pub const fn decode(qualification: u64) -> Self {
        Self {
            dr: qualification as u8 & 7,
            gpr: (qualification >> 8) as u8 & 15,
            read: qualification & (1 << 4) != 0,
        }
    }
}

/// An I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// The port.
    pub port: u16,
    /// Bytes of one access: 1, 2 or 4.
    pub bytes: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub rep: bool,
}

impl Io {
    /// Decodes an exit qualification. A size that does not exist gives `None`.
    pub const fn decode(qualification: u64) -> Option<Self> {
        let bytes = match qualification & 7 {
            0 => 1,
            1 => 2,
            3 => 4,
            _ => return None,
        };
        Some(Self {
            port: (qualification >> 16) as u16,
            bytes,
            input: qualification & (1 << 3) != 0,
            string: qualification & (1 << 4) != 0,
            rep: qualification & (1 << 5) != 0,
        })
    }
}

/// An access that EPT did not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptViolation {
    /// A data read.
    pub read: bool,
    /// A data write; a read-modify-write is both.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// The permissions that the entries gave together: bit 0 read, bit 1 write, bit 2 execute.
    pub permissions: u8,
    /// The guest-linear address field is valid.
    pub linear_valid: bool,
    /// The access was to the translation of the linear address; otherwise to a paging structure on the way.
    pub translated: bool,
    /// The fault came while IRET had already ended the blocking of NMIs.
    pub nmi_unblocked_by_iret: bool,
}

impl EptViolation {
    /// Decodes an exit qualification.
    pub const fn decode(qualification: u64) -> Self {
        Self {
            read: qualification & 1 != 0,
            write: qualification & 2 != 0,
            fetch: qualification & 4 != 0,
            permissions: (qualification >> 3) as u8 & 7,
            linear_valid: qualification & (1 << 7) != 0,
            translated: qualification & (1 << 8) != 0,
            nmi_unblocked_by_iret: qualification & (1 << 12) != 0,
        }
    }
}

/// What made the guest switch tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSwitchBy {
    /// CALL.
    Call,
    /// IRET.
    Iret,
    /// JMP.
    Jmp,
    /// A task gate in the IDT.
    Gate,
}

/// A task switch that the guest attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the task-state segment to switch to.
    pub selector: u16,
    /// What made the guest switch.
    pub by: TaskSwitchBy,
}

impl TaskSwitch {
    /// Decodes an exit qualification.
    pub const fn decode(qualification: u64) -> Self {
        let by = match (qualification >> 30) & 3 {
            0 => TaskSwitchBy::Call,
            1 => TaskSwitchBy::Iret,
            2 => TaskSwitchBy::Jmp,
            _ => TaskSwitchBy::Gate,
        };
        Self {
            selector: qualification as u16,
            by,
        }
    }
}

/// The bits of DR6 that the exit qualification of a debug exception tells: B0 to B3, BD and BS, as DR6 has them.
pub const fn debug_dr6(qualification: u64) -> u64 {
    qualification & 0x600f
}

/// The instruction information of INS and OUTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// Bytes of an address: 2, 4 or 8.
    pub address_bytes: u8,
    /// Hardware number of the segment register that OUTS reads through.
    pub segment: u8,
}

impl StringIo {
    /// Decodes the field; reserved address sizes give `None`.
    pub const fn decode(info: u32) -> Option<Self> {
        let address_bytes = match (info >> 7) & 7 {
            0 => 2,
            1 => 4,
            2 => 8,
            _ => return None,
        };
        Some(Self {
            address_bytes,
            segment: (info >> 15) as u8 & 7,
        })
    }
}

/// Bits of the guest interruptibility state.
pub mod interruptibility {
    /// Blocked for one instruction after STI.
    pub const STI: u32 = 1 << 0;
    /// Blocked for one instruction after MOV or POP to SS.
    pub const MOV_SS: u32 = 1 << 1;
    /// In system-management mode.
    pub const SMI: u32 = 1 << 2;
    /// Between an NMI and its IRET.
    pub const NMI: u32 = 1 << 3;
}

/// Values of the guest activity state.
pub mod activity {
    /// Running.
    pub const ACTIVE: u32 = 0;
    /// Waiting after HLT.
    pub const HLT: u32 = 1;
    /// Shut down after a triple fault.
    pub const SHUTDOWN: u32 = 2;
    /// Waiting for a start-up IPI.
    pub const WAIT_FOR_SIPI: u32 = 3;
}

numbered! {
    /// The VM-instruction errors.
    InstructionError: u32 {
        /// VMCALL in VMX root operation.
        VmcallInRoot = 1,
        /// VMCLEAR with a bad address.
        VmclearAddress = 2,
        /// VMCLEAR of the VMXON region.
        VmclearVmxonPointer = 3,
        /// VMLAUNCH of a VMCS that was launched.
        LaunchOfLaunched = 4,
        /// VMRESUME of a VMCS that was not launched.
        ResumeOfNotLaunched = 5,
        /// VMRESUME after VMXOFF.
        ResumeAfterVmxoff = 6,
        /// Entry with bad control fields.
        EntryControls = 7,
        /// Entry with bad host-state fields.
        EntryHostState = 8,
        /// VMPTRLD with a bad address.
        VmptrldAddress = 9,
        /// VMPTRLD of the VMXON region.
        VmptrldVmxonPointer = 10,
        /// VMPTRLD with a wrong revision identifier.
        VmptrldRevision = 11,
        /// VMREAD or VMWRITE of a field that does not exist.
        NoSuchField = 12,
        /// VMWRITE of a read-only field.
        ReadOnlyField = 13,
        /// VMXON in VMX root operation.
        VmxonInRoot = 15,
        /// Entry with a bad executive-VMCS pointer.
        EntryExecutivePointer = 16,
        /// Entry with an executive VMCS that was not launched.
        EntryExecutiveNotLaunched = 17,
        /// Entry with an executive-VMCS pointer that is not the VMXON pointer.
        EntryExecutiveNotVmxon = 18,
        /// VMCALL with a VMCS that is not clear.
        VmcallNotClear = 19,
        /// VMCALL with bad VM-exit controls.
        VmcallExitControls = 20,
        /// VMCALL with a wrong MSEG revision identifier.
        VmcallMsegRevision = 22,
        /// VMXOFF under the dual-monitor treatment.
        VmxoffDualMonitor = 23,
        /// VMCALL with bad SMM-monitor features.
        VmcallSmmFeatures = 24,
        /// Entry with bad controls in the executive VMCS.
        EntryExecutiveControls = 25,
        /// Entry with events blocked by MOV SS.
        EntryBlockedByMovSs = 26,
        /// INVEPT or INVVPID with a bad operand.
        InvalidationOperand = 28,
    }
}

#[cfg(test)]
#[path = "exit_tests.rs"]
mod tests;
