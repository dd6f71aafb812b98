// SPDX-License-Identifier: GPL-2.0
//! The register file of a virtual CPU: general registers, segments and the control registers that set its mode.
#![forbid(unsafe_code)]

/// Index of RAX in [`Regs::gpr`]; all indexes follow the hardware encoding (ModRM, exit qualifications).
pub const RAX: u8 = 0;
/// Index of RCX in [`Regs::gpr`].
pub const RCX: u8 = 1;
/// Index of RDX in [`Regs::gpr`].
pub const RDX: u8 = 2;
/// Index of RBX in [`Regs::gpr`].
pub const RBX: u8 = 3;
/// Index of RSP in [`Regs::gpr`].
pub const RSP: u8 = 4;
/// Index of RBP in [`Regs::gpr`].
pub const RBP: u8 = 5;
/// Index of RSI in [`Regs::gpr`].
pub const RSI: u8 = 6;
/// Index of RDI in [`Regs::gpr`].
pub const RDI: u8 = 7;

/// The general registers, the instruction pointer and the flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15: the hardware encoding's order.
    pub gpr: [u64; 16],
    /// The instruction pointer.
    pub rip: u64,
    /// The flags register.
    pub rflags: u64,
}

impl Regs {
    /// The 64-bit value of general register `n`; only the low four bits of `n` count.
    #[inline]
    pub const fn get(&self, n: u8) -> u64 {
        let [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15] = self.gpr;
        match n & 15 {
            0 => r0,
            1 => r1,
            2 => r2,
            3 => r3,
            4 => r4,
            5 => r5,
            6 => r6,
            7 => r7,
            8 => r8,
            9 => r9,
            10 => r10,
            11 => r11,
            12 => r12,
            13 => r13,
            14 => r14,
            _ => r15,
        }
    }

    /// Sets all 64 bits of general register `n`; only the low four bits of `n` count.
    #[inline]
    pub fn set(&mut self, n: u8, value: u64) {
        if let Some(slot) = self.gpr.get_mut((n & 15) as usize) {
            *slot = value;
        }
    }
}

/// Bits of RFLAGS.
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Bit 1, which always reads as one.
    pub const FIXED: u64 = 1 << 1;
    /// Parity of the low result byte.
    pub const PF: u64 = 1 << 2;
    /// Carry out of bit 3.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Single step.
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u64 = 1 << 9;
    /// String direction: set is downwards.
    pub const DF: u64 = 1 << 10;
    /// Signed overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level, two bits.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume: suppresses instruction breakpoints once.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check; with SMAP, supervisor access to user pages.
    pub const AC: u64 = 1 << 18;
    /// Virtual interrupt flag.
    pub const VIF: u64 = 1 << 19;
    /// Virtual interrupt pending.
    pub const VIP: u64 = 1 << 20;
    /// CPUID can be used.
    pub const ID: u64 = 1 << 21;
}

/// Bits of CR0.
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// FPU emulation.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Extension type.
    pub const ET: u64 = 1 << 4;
    /// Native FPU errors.
    pub const NE: u64 = 1 << 5;
    /// Write protection holds for the supervisor too.
    pub const WP: u64 = 1 << 16;
    /// Alignment checks allowed.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disabled.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4 that the models look at.
pub mod cr4 {
    /// Virtual-8086 mode extensions.
    pub const VME: u64 = 1 << 0;
    /// Virtual interrupt flag in protected mode.
    pub const PVI: u64 = 1 << 1;
    /// RDTSC for level 0 only.
    pub const TSD: u64 = 1 << 2;
    /// RDPMC for all levels.
    pub const PCE: u64 = 1 << 8;
    /// RDFSBASE and the like.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Page size extensions (4 MiB pages with 32-bit paging).
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// SSE instructions and FXSAVE.
    pub const OSFXSR: u64 = 1 << 9;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// 57-bit linear addresses.
    pub const LA57: u64 = 1 << 12;
    /// VMX operation.
    pub const VMXE: u64 = 1 << 13;
    /// PCIDs.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE and extended states.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor may not execute user pages.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor may not access user pages.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user pages.
    pub const PKE: u64 = 1 << 22;
}

/// Bits of the EFER MSR.
pub mod efer {
    /// SYSCALL enabled.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enabled.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enabled.
    pub const NXE: u64 = 1 << 11;
    /// SVM enabled.
    pub const SVME: u64 = 1 << 12;
}

/// The six segment registers an instruction can name, numbered as the hardware encodes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Seg {
    /// Extra segment.
    Es = 0,
    /// Code segment.
    Cs = 1,
    /// Stack segment.
    Ss = 2,
    /// Data segment.
    Ds = 3,
    /// FS.
    Fs = 4,
    /// GS.
    Gs = 5,
}

impl Seg {
    /// The segment register with hardware number `n`, if there is one.
    pub const fn from_number(n: u8) -> Option<Self> {
        Some(match n {
            0 => Self::Es,
            1 => Self::Cs,
            2 => Self::Ss,
            3 => Self::Ds,
            4 => Self::Fs,
            5 => Self::Gs,
            _ => return None,
        })
    }
}

/// Attributes of a segment, laid out as bits 8 to 23 of a descriptor's second doubleword (the VMX access-rights
/// layout): type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15. Bit 8, unused there, means "unusable".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Attr(pub u16);

impl Attr {
    /// The bits with a meaning in a descriptor.
    const DESCRIPTOR: u16 = 0xf0ff;
    const UNUSABLE: u16 = 1 << 8;

    /// Puts the fields together; each is cut to its width.
    #[allow(clippy::too_many_arguments)] // A descriptor has these fields.
    #[inline]
    pub const fn new(
        kind: u8,
        s: bool,
        dpl: u8,
        p: bool,
        avl: bool,
        l: bool,
        db: bool,
        g: bool,
    ) -> Self {
        Self(
            (kind & 15) as u16
                | ((s as u16) << 4)
                | (((dpl & 3) as u16) << 5)
                | ((p as u16) << 7)
                | ((avl as u16) << 12)
                | ((l as u16) << 13)
                | ((db as u16) << 14)
                | ((g as u16) << 15),
        )
    }

    /// From a VMX access-rights field.
    pub const fn from_vmx(ar: u32) -> Self {
        let low = ar as u16 & Self::DESCRIPTOR;
        Self(if ar & (1 << 16) != 0 {
            low | Self::UNUSABLE
        } else {
            low
        })
    }

    /// As a VMX access-rights field.
    pub const fn to_vmx(self) -> u32 {
        (self.0 & Self::DESCRIPTOR) as u32 | ((self.unusable() as u32) << 16)
    }

    /// From the attribute field of a VMCB segment (a descriptor's bits with the limit's squeezed out).
    /// A segment that is not present counts as unusable.
    #[inline]
    pub const fn from_svm(attrib: u16) -> Self {
        let bits = attrib & 0xff | ((attrib & 0xf00) << 4);
        Self(if attrib & 0x80 == 0 {
            bits | Self::UNUSABLE
        } else {
            bits
        })
    }

    /// As the attribute field of a VMCB segment; an unusable segment becomes one that is not present.
    #[inline]
    pub const fn to_svm(self) -> u16 {
        let bits = self.0 & 0xff | (self.0 >> 4) & 0xf00;
        if self.unusable() {
            bits & !0x80
        } else {
            bits
        }
    }

    /// The same attributes, marked unusable or usable.
    #[inline]
    pub const fn with_unusable(self, unusable: bool) -> Self {
        Self(if unusable {
            self.0 | Self::UNUSABLE
        } else {
            self.0 & !Self::UNUSABLE
        })
    }

    /// The same attributes with the granularity bit set or clear.
    #[inline]
    pub const fn with_g(self, g: bool) -> Self {
        Self(self.0 & !(1 << 15) | ((g as u16) << 15))
    }

    /// The same attributes with these type bits set.
    #[inline]
    pub const fn with_kind_bits(self, bits: u8) -> Self {
        Self(self.0 | (bits & 15) as u16)
    }

    /// The same attributes with the default-size bit clear.
    pub const fn without_db(self) -> Self {
        Self(self.0 & !(1 << 14))
    }

    /// The same attributes with another privilege level.
    #[inline]
    pub const fn with_dpl(self, dpl: u8) -> Self {
        Self(self.0 & !(3 << 5) | (((dpl & 3) as u16) << 5))
    }

    /// The four type bits.
    pub const fn kind(self) -> u8 {
        self.0 as u8 & 15
    }
    /// Code or data, as opposed to a system segment.
    pub const fn s(self) -> bool {
        self.0 & (1 << 4) != 0
    }
    /// Descriptor privilege level.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5) as u8 & 3
    }
    /// Present.
    pub const fn p(self) -> bool {
        self.0 & (1 << 7) != 0
    }
    /// Available to software.
    pub const fn avl(self) -> bool {
        self.0 & (1 << 12) != 0
    }
    /// 64-bit code.
    pub const fn l(self) -> bool {
        self.0 & (1 << 13) != 0
    }
    /// Default size (code), stack pointer size (stack), upper bound (expand-down data).
    pub const fn db(self) -> bool {
        self.0 & (1 << 14) != 0
    }
    /// Limit granularity.
    pub const fn g(self) -> bool {
        self.0 & (1 << 15) != 0
    }
    /// A null selector was loaded, or the segment is otherwise not to be used.
    pub const fn unusable(self) -> bool {
        self.0 & Self::UNUSABLE != 0
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Base, a linear address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// The visible part.
    pub selector: u16,
    /// Everything else of the descriptor.
    pub attr: Attr,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TableReg {
    /// Base, a linear address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// The six segment registers, in the hardware encoding's order: ES, CS, SS, DS, FS, GS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Segments(pub [Segment; 6]);

impl Segments {
    /// Each as `f` says.
    #[inline]
    pub fn each(f: impl FnMut(Seg) -> Segment) -> Self {
        Self([Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs].map(f))
    }

    /// One of them.
    #[inline]
    pub const fn get(&self, seg: Seg) -> &Segment {
        let [es, cs, ss, ds, fs, gs] = &self.0;
        match seg {
            Seg::Es => es,
            Seg::Cs => cs,
            Seg::Ss => ss,
            Seg::Ds => ds,
            Seg::Fs => fs,
            Seg::Gs => gs,
        }
    }

    /// One of them, to change it.
    #[inline]
    pub fn get_mut(&mut self, seg: Seg) -> &mut Segment {
        let [es, cs, ss, ds, fs, gs] = &mut self.0;
        match seg {
            Seg::Es => es,
            Seg::Cs => cs,
            Seg::Ss => ss,
            Seg::Ds => ds,
            Seg::Fs => fs,
            Seg::Gs => gs,
        }
    }
}

/// How the current code segment and mode make the CPU read instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuMode {
    /// 16-bit code: real mode, virtual-8086 mode or a 16-bit code segment.
    #[default]
    Bits16,
    /// 32-bit code.
    Bits32,
    /// 64-bit code.
    Bits64,
}

/// What decides how an instruction is read and what it may do, besides [`Regs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The segment registers.
    pub segs: Segments,
    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// The EFER MSR.
    pub efer: u64,
    /// The current privilege level, 0 to 3.
    pub cpl: u8,
    /// What the guest's CPU has, of [`has`].
    pub cpu: u16,
}

/// What the guest's CPUID offers, as far as it decides what an instruction does.
pub mod has {
    /// The vendor is AMD, or one that follows it.
    pub const AMD: u16 = 1 << 0;
    /// MOVBE.
    pub const MOVBE: u16 = 1 << 1;
    /// POPCNT.
    pub const POPCNT: u16 = 1 << 2;
    /// CRC32 and the rest of SSE4.2.
    pub const SSE42: u16 = 1 << 3;
    /// LZCNT; without it the encoding is BSR's.
    pub const LZCNT: u16 = 1 << 4;
    /// TZCNT; without it the encoding is BSF's.
    pub const BMI1: u16 = 1 << 5;
    /// CMPXCHG16B.
    pub const CX16: u16 = 1 << 6;
    /// RDTSCP.
    pub const RDTSCP: u16 = 1 << 7;
    /// RDPID.
    pub const RDPID: u16 = 1 << 8;
    /// CLAC and STAC.
    pub const SMAP: u16 = 1 << 9;
    /// RDFSBASE and the like.
    pub const FSGSBASE: u16 = 1 << 10;
}

impl Context {
    /// Whether the guest's CPU has `what`, one of [`has`].
    pub const fn has(&self, what: u16) -> bool {
        self.cpu & what != 0
    }

    /// Protected mode (including long mode), and not virtual-8086 mode.
    pub const fn protected(&self, rflags: u64) -> bool {
        self.cr0 & cr0::PE != 0 && rflags & self::rflags::VM == 0
    }

    /// Long mode is active (64-bit or compatibility mode).
    pub const fn long(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// How instructions are read. CS.D counts in real mode, too: code that leaves protected mode has its own until its next far jump.
    pub const fn mode(&self) -> CpuMode {
        let cs = self.segs.get(Seg::Cs).attr;
        if self.long() && cs.l() {
            CpuMode::Bits64
        } else if cs.db() {
            CpuMode::Bits32
        } else {
            CpuMode::Bits16
        }
    }

    /// Width of the stack pointer in bytes.
    pub const fn stack_bytes(&self) -> u8 {
        match self.mode() {
            CpuMode::Bits64 => 8,
            _ if self.segs.get(Seg::Ss).attr.db() => 4,
            _ => 2,
        }
    }

    /// Number of meaningful bits of a linear address in 64-bit mode: 48 or 57.
    pub const fn linear_bits(&self) -> u8 {
        if self.cr4 & cr4::LA57 != 0 {
            57
        } else {
            48
        }
    }
}

#[cfg(test)]
#[path = "regs_tests.rs"]
mod tests;
