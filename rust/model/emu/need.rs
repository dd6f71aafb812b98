// SPDX-License-Identifier: GPL-2.0
//! What a job asks of its owner, and the answers.
#![forbid(unsafe_code)]

use crate::model::event::Exception;
use crate::model::regs::{Seg, Segment};

/// What the instruction needs next. `at` is always a linear address and the bytes named never cross a 4 KiB page.
/// Accesses are made with the privilege that [`Job::access_as`](super::job::Job::access_as) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Translate only, so that an access in parts faults before its first part: [`Answer::Ram`].
    Check {
        /// Linear address.
        at: u64,
        /// Bytes, 1 to 4096.
        len: u16,
        /// For writing.
        write: bool,
    },
    /// Read: [`Answer::Value`].
    Read {
        /// Linear address.
        at: u64,
        /// Bytes, 1 to 8.
        len: u8,
        /// A write to the same place will follow: the page walk is one for writing.
        rmw: bool,
    },
    /// Write: [`Answer::Ack`].
    Write {
        /// Linear address.
        at: u64,
        /// Bytes, 1 to 8.
        len: u8,
        /// The bytes, little endian; those above `len` are zero.
        value: u64,
    },
    /// Write `new` if memory still holds `old`, atomically: [`Answer::Exchanged`]. Where memory is not ordinary
    /// memory, a plain write and `Exchanged(true)` do.
    CmpXchg {
        /// Linear address.
        at: u64,
        /// Bytes: 1, 2, 4, 8 or 16. Not necessarily aligned.
        len: u8,
        /// What is expected.
        old: u128,
        /// What replaces it.
        new: u128,
    },
    /// Port input. `count` 1: [`Answer::Value`]. More: the items go to the PIO data area, [`Answer::Ack`].
    In {
        /// Port number.
        port: u16,
        /// Bytes per item: 1, 2 or 4.
        size: u8,
        /// Items; `count * size` is at most 4096.
        count: u16,
    },
    /// Port output: [`Answer::Ack`]. `count` 1: `value`. More: the items are in the PIO data area.
    Out {
        /// Port number.
        port: u16,
        /// Bytes per item: 1, 2 or 4.
        size: u8,
        /// Items.
        count: u16,
        /// The item, if it is one.
        value: u32,
    },
    /// Copy from the PIO data area to ordinary memory: [`Answer::Ack`].
    PioToMem {
        /// Linear address.
        at: u64,
        /// Where in the data area.
        offset: u16,
        /// Bytes.
        len: u16,
    },
    /// Copy from ordinary memory to the PIO data area: [`Answer::Ack`].
    MemToPio {
        /// Linear address.
        at: u64,
        /// Where in the data area.
        offset: u16,
        /// Bytes.
        len: u16,
    },
    /// Read a control register: [`Answer::Value`].
    ReadCr {
        /// 0, 2, 3, 4 or 8.
        cr: u8,
    },
    /// Write a control register: [`Answer::Ack`] or #GP.
    WriteCr {
        /// 0, 2, 3, 4 or 8.
        cr: u8,
        /// The value.
        value: u64,
    },
    /// Read a debug register: [`Answer::Value`], or #UD, #DB.
    ReadDr {
        /// 0 to 7.
        dr: u8,
    },
    /// Write a debug register: [`Answer::Ack`], or #UD, #GP, #DB.
    WriteDr {
        /// 0 to 7.
        dr: u8,
        /// The value.
        value: u64,
    },
    /// Clear L0 to L3 and LE of DR7, as a task switch does: [`Answer::Ack`]. DR7.GD is for MOV alone: it neither forbids this nor
    /// changes.
    EndLocalBreakpoints,
    /// RDMSR, which user space may have a say in: [`Answer::Value`] or #GP.
    Rdmsr {
        /// The register's number.
        index: u32,
    },
    /// WRMSR: [`Answer::Ack`] or #GP.
    Wrmsr {
        /// The register's number.
        index: u32,
        /// The value.
        value: u64,
    },
    /// Read an MSR that an instruction uses: [`Answer::Value`] or #GP.
    ReadMsr {
        /// Its number.
        index: u32,
    },
    /// Write an MSR that an instruction uses: [`Answer::Ack`] or #GP.
    WriteMsr {
        /// Its number.
        index: u32,
        /// The value.
        value: u64,
    },
    /// Forget the translation of a linear address: [`Answer::Ack`].
    Invlpg {
        /// Linear address.
        at: u64,
    },
    /// Read a vector register: [`Answer::Vector`], low quadword first.
    ReadVec {
        /// Register number, 0 to 15.
        reg: u8,
    },
    /// Write a vector register: [`Answer::Ack`].
    WriteVec {
        /// Register number, 0 to 15.
        reg: u8,
        /// 256 bits, low quadword first.
        value: [u64; 4],
        /// VEX: bits above 127 are written too, those above 255 become zero. Otherwise only 127:0 change.
        vex: bool,
    },
    /// Read GDTR, IDTR, LDTR or TR: [`Answer::Segment`].
    ReadTable {
        /// Which.
        table: Table,
    },
    /// Load GDTR, IDTR, LDTR or TR: [`Answer::Ack`].
    WriteTable {
        /// Which.
        table: Table,
        /// All of it; of GDTR and IDTR base and limit count.
        value: Segment,
    },
    /// Load a segment register, checked: [`Answer::Ack`]. The descriptor privilege level of SS is the new privilege level.
    LoadSeg {
        /// Which.
        seg: Seg,
        /// All of it.
        value: Segment,
    },
    /// CPUID: [`Answer::Vector`] of EAX, EBX, ECX, EDX.
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
    },
    /// Read a performance counter: [`Answer::Value`] or #GP.
    ReadPmc {
        /// ECX.
        index: u32,
    },
    /// Read an extended control register: [`Answer::Value`] or #GP.
    ReadXcr {
        /// Its number.
        index: u32,
    },
    /// Write an extended control register: [`Answer::Ack`] or #GP.
    WriteXcr {
        /// Its number.
        index: u32,
        /// The value.
        value: u64,
    },
    /// Read the control word of the x87 FPU (in bits 15:0) and its status word (in bits 31:16): [`Answer::Value`].
    ReadFpu,
    /// Initialise the x87 FPU as FNINIT does: [`Answer::Ack`].
    InitFpu,
    /// The instruction is done: take [`Job::regs`](super::job::Job::regs).
    Done(Done),
    /// The instruction faults; [`Job::regs`](super::job::Job::regs) holds what a repeated string instruction got done before.
    Fault(Exception),
    /// The instruction switches to another task; [`Job::regs`](super::job::Job::regs) has RIP at the next instruction.
    TaskSwitch(TaskSwitch),
    /// Nothing here knows how; no register has changed.
    Unhandled,
}

/// Events held back for one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shadow {
    /// None; an earlier shadow ends.
    #[default]
    None,
    /// After STI.
    Sti,
    /// After MOV or POP to SS.
    MovSs,
}

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Interrupts held back for the next instruction.
    pub shadow: Shadow,
    /// RIP still points at the instruction, to be executed again: an unfinished repeated string instruction, or a
    /// locked access that lost against another CPU too often. Look at pending events first.
    pub repeat: bool,
    /// RFLAGS.TF was set when the instruction began: a single-step #DB is due after it.
    pub trap: bool,
    /// HLT: wait for an event.
    pub halt: bool,
    /// IRET: NMIs are no longer blocked.
    pub iret: bool,
    /// The TSS of a new task asks for a #DB before its first instruction.
    pub task_trap: bool,
}

/// The answer to a [`Need`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Begins the job.
    Start,
    /// Done.
    Ack,
    /// To [`Need::Check`]: whether it is ordinary memory, as opposed to MMIO.
    Ram(bool),
    /// The value read; bits above the size are ignored.
    Value(u64),
    /// Whether the exchange took place.
    Exchanged(bool),
    /// A vector register's low 256 bits, or four other values.
    Vector([u64; 4]),
    /// A segment or table register.
    Segment(Segment),
    /// What was asked for faults instead (page fault, #GP of an MSR).
    Fault(Exception),
}

/// The four registers that hold tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Global descriptor table.
    Gdt,
    /// Interrupt descriptor table.
    Idt,
    /// Local descriptor table.
    Ldt,
    /// Task-state segment.
    Tss,
}

/// With whose rights memory is accessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessAs {
    /// The privilege level that the instruction began with.
    #[default]
    Current,
    /// The supervisor: an inner stack.
    Supervisor,
    /// The CPU itself, for descriptor tables and the TSS: RFLAGS.AC does not help against SMAP.
    System,
}

/// Why a task switch happens, numbered as VMX's exit qualification does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskReason {
    /// CALL.
    Call = 0,
    /// IRET with RFLAGS.NT.
    Iret = 1,
    /// JMP.
    Jmp = 2,
    /// An interrupt or exception through a task gate.
    Gate = 3,
}

impl TaskReason {
    /// The reason with this number.
    pub(super) const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Call,
            1 => Self::Iret,
            2 => Self::Jmp,
            _ => Self::Gate,
        }
    }
}

/// An event that is delivered by the emulator, as the CPU does it between two instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The vector.
    pub vector: u8,
    /// What is pushed last, where the mode has error codes.
    pub error: Option<u32>,
    /// Bytes of the instruction at RIP that asked for it (INT n, INT3, INTO), and is gone on behind; 0 if none did.
    pub insn_len: u8,
    /// INT n, which virtual-8086 mode treats differently.
    pub int_n: bool,
}

/// A task switch, the checks of the instruction itself passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the new TSS.
    pub selector: u16,
    /// Why.
    pub reason: TaskReason,
    /// Length of the instruction that asks for it: the old task goes on behind that, but a fault before the switch is at it.
    pub insn_len: u8,
}
