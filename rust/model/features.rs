// SPDX-License-Identifier: GPL-2.0
//! CPUID feature bits: their places, and what Lodge makes of each.
//!
//! [`TABLE`] is the policy: one row a feature, with the rule by which it is offered to guests. A feature without a row is not
//! offered. [`Caps`] is a set of features.
#![forbid(unsafe_code)]

use super::cr::xcr0;

/// A 32-bit register of a CPUID leaf that consists of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    /// Leaf 1, ECX.
    L1Ecx,
    /// Leaf 1, EDX.
    L1Edx,
    /// Leaf 7.0, EBX.
    L7Ebx,
    /// Leaf 7.0, ECX.
    L7Ecx,
    /// Leaf 7.0, EDX.
    L7Edx,
    /// Leaf 7.1, EAX.
    L71Eax,
    /// Leaf 7.1, EDX.
    L71Edx,
    /// Leaf 7.2, EDX.
    L72Edx,
    /// Leaf 0xd.1, EAX.
    D1Eax,
    /// Leaf 0x80000001, ECX.
    X1Ecx,
    /// Leaf 0x80000001, EDX.
    X1Edx,
    /// Leaf 0x80000007, EDX.
    X7Edx,
    /// Leaf 0x80000008, EBX.
    X8Ebx,
    /// Leaf 0x80000021, EAX.
    X21Eax,
    /// Leaf 0x80000021, ECX.
    X21Ecx,
}

/// The four registers that CPUID returns, as indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Reg {
    /// This register of EAX, EBX, ECX, EDX.
    pub const fn of(self, regs: [u32; 4]) -> u32 {
        let [a, b, c, d] = regs;
        match self {
            Self::Eax => a,
            Self::Ebx => b,
            Self::Ecx => c,
            Self::Edx => d,
        }
    }
}

/// Number of feature words.
pub const WORDS: usize = 15;

impl Word {
    /// Every word.
    pub const ALL: [Self; WORDS] = [
        Self::L1Ecx,
        Self::L1Edx,
        Self::L7Ebx,
        Self::L7Ecx,
        Self::L7Edx,
        Self::L71Eax,
        Self::L71Edx,
        Self::L72Edx,
        Self::D1Eax,
        Self::X1Ecx,
        Self::X1Edx,
        Self::X7Edx,
        Self::X8Ebx,
        Self::X21Eax,
        Self::X21Ecx,
    ];

    /// Leaf, subleaf and register.
    pub const fn place(self) -> (u32, u32, Reg) {
        match self {
            Self::L1Ecx => (1, 0, Reg::Ecx),
            Self::L1Edx => (1, 0, Reg::Edx),
            Self::L7Ebx => (7, 0, Reg::Ebx),
            Self::L7Ecx => (7, 0, Reg::Ecx),
            Self::L7Edx => (7, 0, Reg::Edx),
            Self::L71Eax => (7, 1, Reg::Eax),
            Self::L71Edx => (7, 1, Reg::Edx),
            Self::L72Edx => (7, 2, Reg::Edx),
            Self::D1Eax => (0xd, 1, Reg::Eax),
            Self::X1Ecx => (0x8000_0001, 0, Reg::Ecx),
            Self::X1Edx => (0x8000_0001, 0, Reg::Edx),
            Self::X7Edx => (0x8000_0007, 0, Reg::Edx),
            Self::X8Ebx => (0x8000_0008, 0, Reg::Ebx),
            Self::X21Eax => (0x8000_0021, 0, Reg::Eax),
            Self::X21Ecx => (0x8000_0021, 0, Reg::Ecx),
        }
    }
}

impl Word {
    /// The index of this word in `boot_cpu_data.x86_capability`, where the host kernel keeps what it makes of it: a bit that is
    /// clear there is not to be used. `None`: the kernel keeps no such word.
    pub const fn kernel_word(self) -> Option<usize> {
        Some(match self {
            Self::L1Edx => 0,
            Self::X1Edx => 1,
            Self::L1Ecx => 4,
            Self::X1Ecx => 6,
            Self::L7Ebx => 9,
            Self::D1Eax => 10,
            Self::L71Eax => 12,
            Self::X8Ebx => 13,
            Self::L7Ecx => 16,
            Self::L7Edx => 18,
            Self::X21Eax => 20,
            Self::L71Edx | Self::L72Edx | Self::X7Edx | Self::X21Ecx => return None,
        })
    }
}

/// A feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The register it is in.
    pub word: Word,
    /// The bit, 0 to 31.
    pub bit: u8,
}

impl Feature {
    const fn new(word: Word, bit: u8) -> Self {
        Self { word, bit }
    }

    /// The bit as a mask.
    pub const fn mask(self) -> u32 {
        1 << (self.bit & 31)
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps([u32; WORDS]);

impl Caps {
    /// No feature.
    pub const fn none() -> Self {
        Self([0; WORDS])
    }

    /// All features of one word, as CPUID returns them.
    pub fn word(&self, w: Word) -> u32 {
        self.0.get(w as usize).copied().unwrap_or(0)
    }

    /// Replaces one word.
    pub fn set_word(&mut self, w: Word, value: u32) {
        if let Some(slot) = self.0.get_mut(w as usize) {
            *slot = value;
        }
    }

    /// Whether `f` is in the set.
    pub fn has(&self, f: Feature) -> bool {
        self.word(f.word) & f.mask() != 0
    }

    /// Puts `f` in or takes it out.
    pub fn set(&mut self, f: Feature, on: bool) {
        let w = self.word(f.word);
        self.set_word(f.word, if on { w | f.mask() } else { w & !f.mask() });
    }
}

/// How a feature is offered to guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// As the CPU has it: the guest uses it without help, or the module has what it needs.
    Host,
    /// As the CPU has it, if these state components are enabled in the host's XCR0.
    State(u64),
    /// As the host kernel has it, which may know of it otherwise than by CPUID.
    Kernel,
    /// Only as `speculation::other_forms` says.
    OtherForm,
    /// Always: the module makes it.
    Always,
    /// If the module has a local APIC.
    Apic,
    /// Not offered, but honoured if user space sets it: the module can make it.
    OnRequest,
    /// As the CPU has it; if user space asks, the emulator makes it where the CPU does not. It may need another feature of the CPU's.
    Emulated(Option<Feature>),
    /// Never offered; the guest's CPUID follows a register of the guest.
    Dynamic,
    /// Not offered yet.
    No,
}

/// A row of [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The feature.
    pub feature: Feature,
    /// Its name, as /proc/cpuinfo has it.
    pub name: &'static str,
    /// When it is offered.
    pub offer: Offer,
}

/// Declares each feature as a constant and as a row of the table.
macro_rules! features {
    ($($(#[$doc:meta])* $id:ident = $word:ident $bit:literal, $name:literal, $offer:expr;)*) => {
        $(
            #[doc = concat!("`", $name, "`.")]
            $(#[$doc])*
            pub const $id: Feature = Feature::new(Word::$word, $bit);
        )*
        /// The policy: every feature that Lodge knows of.
        pub static TABLE: &[Row] = &[
            $(Row { feature: $id, name: $name, offer: $offer },)*
        ];
    };
}

const AVX_STATE: u64 = xcr0::FP | xcr0::SSE | xcr0::YMM;
const AVX512_STATE: u64 = AVX_STATE | xcr0::AVX512;

use Offer::{Always, Apic, Dynamic, Emulated, Host, Kernel, No, OnRequest, OtherForm, State};

features! {
    SSE3 = L1Ecx 0, "pni", Host;
    PCLMULQDQ = L1Ecx 1, "pclmulqdq", Host;
    /// Debug stores belong to the PMU.
    DTES64 = L1Ecx 2, "dtes64", No;
    /// MONITOR and MWAIT are made NOPs if user space asks.
    MWAIT = L1Ecx 3, "monitor", OnRequest;
    /// No nested virtualization.
    VMX = L1Ecx 5, "vmx", No;
    SSSE3 = L1Ecx 9, "ssse3", Host;
    FMA = L1Ecx 12, "fma", State(AVX_STATE);
    CX16 = L1Ecx 13, "cx16", Host;
    /// Needs IA32_PERF_CAPABILITIES, which is part of the PMU.
    PDCM = L1Ecx 15, "pdcm", No;
    PCID = L1Ecx 17, "pcid", Host;
    SSE4_1 = L1Ecx 19, "sse4_1", Host;
    SSE4_2 = L1Ecx 20, "sse4_2", Host;
    X2APIC = L1Ecx 21, "x2apic", Apic;
    MOVBE = L1Ecx 22, "movbe", Emulated(None);
    POPCNT = L1Ecx 23, "popcnt", Host;
    TSC_DEADLINE = L1Ecx 24, "tsc_deadline_timer", Apic;
    AES = L1Ecx 25, "aes", Host;
    XSAVE = L1Ecx 26, "xsave", State(xcr0::FP | xcr0::SSE);
    /// CR4.OSXSAVE.
    OSXSAVE = L1Ecx 27, "osxsave", Dynamic;
    AVX = L1Ecx 28, "avx", State(AVX_STATE);
    F16C = L1Ecx 29, "f16c", State(AVX_STATE);
    RDRAND = L1Ecx 30, "rdrand", Host;
    HYPERVISOR = L1Ecx 31, "hypervisor", Always;

    FPU = L1Edx 0, "fpu", Host;
    VME = L1Edx 1, "vme", Host;
    DE = L1Edx 2, "de", Host;
    PSE = L1Edx 3, "pse", Host;
    TSC = L1Edx 4, "tsc", Host;
    MSR = L1Edx 5, "msr", Host;
    PAE = L1Edx 6, "pae", Host;
    MCE = L1Edx 7, "mce", Host;
    CX8 = L1Edx 8, "cx8", Host;
    /// A local APIC may be modelled in user space. Dynamic too: it follows IA32_APIC_BASE.
    APIC = L1Edx 9, "apic", Host;
    SEP = L1Edx 11, "sep", Host;
    MTRR = L1Edx 12, "mtrr", Host;
    PGE = L1Edx 13, "pge", Host;
    MCA = L1Edx 14, "mca", Host;
    CMOV = L1Edx 15, "cmov", Host;
    PAT = L1Edx 16, "pat", Host;
    PSE36 = L1Edx 17, "pse36", Host;
    CLFLUSH = L1Edx 19, "clflush", Host;
    /// Debug stores belong to the PMU.
    DS = L1Edx 21, "dts", No;
    MMX = L1Edx 23, "mmx", Host;
    FXSR = L1Edx 24, "fxsr", Host;
    SSE = L1Edx 25, "sse", Host;
    SSE2 = L1Edx 26, "sse2", Host;
    SELFSNOOP = L1Edx 27, "ss", Host;

    FSGSBASE = L7Ebx 0, "fsgsbase", Host;
    TSC_ADJUST = L7Ebx 1, "tsc_adjust", Always;
    /// Enclaves are not virtualized.
    SGX = L7Ebx 2, "sgx", No;
    BMI1 = L7Ebx 3, "bmi1", Host;
    /// Transactional memory: wants IA32_TSX_CTRL and DR6.RTM first.
    HLE = L7Ebx 4, "hle", No;
    AVX2 = L7Ebx 5, "avx2", State(AVX_STATE);
    FDP_EXCPTN_ONLY = L7Ebx 6, "fdp_excptn_only", Host;
    SMEP = L7Ebx 7, "smep", Host;
    BMI2 = L7Ebx 8, "bmi2", Host;
    ERMS = L7Ebx 9, "erms", Host;
    INVPCID = L7Ebx 10, "invpcid", Host;
    /// As HLE.
    RTM = L7Ebx 11, "rtm", No;
    ZERO_FCS_FDS = L7Ebx 13, "zero_fcs_fds", Host;
    /// Withdrawn by the vendor; needs its state and IA32_BNDCFGS.
    MPX = L7Ebx 14, "mpx", No;
    AVX512F = L7Ebx 16, "avx512f", State(AVX512_STATE);
    AVX512DQ = L7Ebx 17, "avx512dq", State(AVX512_STATE);
    RDSEED = L7Ebx 18, "rdseed", Host;
    ADX = L7Ebx 19, "adx", Host;
    SMAP = L7Ebx 20, "smap", Host;
    AVX512IFMA = L7Ebx 21, "avx512ifma", State(AVX512_STATE);
    CLFLUSHOPT = L7Ebx 23, "clflushopt", Host;
    CLWB = L7Ebx 24, "clwb", Host;
    /// Processor trace is not virtualized.
    INTEL_PT = L7Ebx 25, "intel_pt", No;
    AVX512PF = L7Ebx 26, "avx512pf", State(AVX512_STATE);
    AVX512ER = L7Ebx 27, "avx512er", State(AVX512_STATE);
    AVX512CD = L7Ebx 28, "avx512cd", State(AVX512_STATE);
    SHA_NI = L7Ebx 29, "sha_ni", Host;
    AVX512BW = L7Ebx 30, "avx512bw", State(AVX512_STATE);
    AVX512VL = L7Ebx 31, "avx512vl", State(AVX512_STATE);

    AVX512VBMI = L7Ecx 1, "avx512vbmi", State(AVX512_STATE);
    UMIP = L7Ecx 2, "umip", Host;
    /// Also needs CR4.PKE in the host: CPUID there says so, see `HostCaps::probe`.
    PKU = L7Ecx 3, "pku", State(xcr0::FP | xcr0::PKRU);
    /// CR4.PKE.
    OSPKE = L7Ecx 4, "ospke", Dynamic;
    /// Needs its MSR and an execution control.
    WAITPKG = L7Ecx 5, "waitpkg", No;
    AVX512_VBMI2 = L7Ecx 6, "avx512_vbmi2", State(AVX512_STATE);
    /// Control-flow enforcement needs its state and MSRs.
    SHSTK = L7Ecx 7, "user_shstk", No;
    GFNI = L7Ecx 8, "gfni", Host;
    VAES = L7Ecx 9, "vaes", State(AVX_STATE);
    VPCLMULQDQ = L7Ecx 10, "vpclmulqdq", State(AVX_STATE);
    AVX512_VNNI = L7Ecx 11, "avx512_vnni", State(AVX512_STATE);
    AVX512_BITALG = L7Ecx 12, "avx512_bitalg", State(AVX512_STATE);
    AVX512_VPOPCNTDQ = L7Ecx 14, "avx512_vpopcntdq", State(AVX512_STATE);
    LA57 = L7Ecx 16, "la57", Host;
    /// What it reads comes with RDTSCP.
    RDPID = L7Ecx 22, "rdpid", Emulated(Some(RDTSCP));
    /// Needs IA32_DEBUGCTL.BUS_LOCK_DETECT and DR6.
    BUS_LOCK_DETECT = L7Ecx 24, "bus_lock_detect", No;
    CLDEMOTE = L7Ecx 25, "cldemote", Host;
    MOVDIRI = L7Ecx 27, "movdiri", Host;
    MOVDIR64B = L7Ecx 28, "movdir64b", Host;
    /// As SGX.
    SGX_LC = L7Ecx 30, "sgx_lc", No;

    AVX512_4VNNIW = L7Edx 2, "avx512_4vnniw", State(AVX512_STATE);
    AVX512_4FMAPS = L7Edx 3, "avx512_4fmaps", State(AVX512_STATE);
    FSRM = L7Edx 4, "fsrm", Host;
    AVX512_VP2INTERSECT = L7Edx 8, "avx512_vp2intersect", State(AVX512_STATE);
    /// VERW clears buffers; no MSR is involved.
    MD_CLEAR = L7Edx 10, "md_clear", Host;
    SERIALIZE = L7Edx 14, "serialize", Host;
    /// As RTM.
    TSXLDTRK = L7Edx 16, "tsxldtrk", No;
    /// As SHSTK.
    IBT = L7Edx 20, "ibt", No;
    /// AMX needs dynamic state sizes and XFD.
    AMX_BF16 = L7Edx 22, "amx_bf16", No;
    AVX512_FP16 = L7Edx 23, "avx512_fp16", State(AVX512_STATE);
    /// As AMX_BF16.
    AMX_TILE = L7Edx 24, "amx_tile", No;
    /// As AMX_BF16.
    AMX_INT8 = L7Edx 25, "amx_int8", No;
    /// IBRS and IBPB: IA32_SPEC_CTRL and IA32_PRED_CMD are there.
    SPEC_CTRL = L7Edx 26, "ibrs", Host;
    INTEL_STIBP = L7Edx 27, "stibp", Host;
    /// IA32_FLUSH_CMD is there.
    FLUSH_L1D = L7Edx 28, "flush_l1d", Host;
    /// A guest can be told on each CPU what it need not fear.
    ARCH_CAPABILITIES = L7Edx 29, "arch_capabilities", Always;
    SPEC_CTRL_SSBD = L7Edx 31, "ssbd", Host;

    SHA512 = L71Eax 0, "sha512", State(AVX_STATE);
    SM3 = L71Eax 1, "sm3", State(AVX_STATE);
    SM4 = L71Eax 2, "sm4", State(AVX_STATE);
    AVX_VNNI = L71Eax 4, "avx_vnni", State(AVX_STATE);
    AVX512_BF16 = L71Eax 5, "avx512_bf16", State(AVX512_STATE);
    CMPCCXADD = L71Eax 7, "cmpccxadd", Host;
    FZRM = L71Eax 10, "fzrm", Host;
    FSRS = L71Eax 11, "fsrs", Host;
    FSRC = L71Eax 12, "fsrc", Host;
    /// The exit of WRMSRNS is not handled yet.
    WRMSRNS = L71Eax 19, "wrmsrns", No;
    AVX_IFMA = L71Eax 23, "avx_ifma", State(AVX_STATE);
    /// CR3 and CR4 bits, and the emulator would have to strip pointers.
    LAM = L71Eax 26, "lam", No;

    AVX_VNNI_INT8 = L71Edx 4, "avx_vnni_int8", State(AVX_STATE);
    AVX_NE_CONVERT = L71Edx 5, "avx_ne_convert", State(AVX_STATE);
    AVX_VNNI_INT16 = L71Edx 10, "avx_vnni_int16", State(AVX_STATE);
    PREFETCHITI = L71Edx 14, "prefetchiti", Host;

    INTEL_PSFD = L72Edx 0, "intel_psfd", Host;
    IPRED_CTRL = L72Edx 1, "ipred_ctrl", Host;
    RRSBA_CTRL = L72Edx 2, "rrsba_ctrl", Host;
    DDPD_U = L72Edx 3, "ddpd_u", Host;
    BHI_CTRL = L72Edx 4, "bhi_ctrl", Host;
    MCDT_NO = L72Edx 5, "mcdt_no", Host;

    XSAVEOPT = D1Eax 0, "xsaveopt", State(xcr0::FP | xcr0::SSE);
    XSAVEC = D1Eax 1, "xsavec", State(xcr0::FP | xcr0::SSE);
    XGETBV1 = D1Eax 2, "xgetbv1", State(xcr0::FP | xcr0::SSE);
    /// No supervisor state is offered, so IA32_XSS would have nothing to hold.
    XSAVES = D1Eax 3, "xsaves", No;
    /// As AMX_BF16.
    XFD = D1Eax 4, "xfd", No;

    LAHF_LM = X1Ecx 0, "lahf_lm", Host;
    CMP_LEGACY = X1Ecx 1, "cmp_legacy", Host;
    /// No nested virtualization.
    SVM = X1Ecx 2, "svm", No;
    CR8_LEGACY = X1Ecx 4, "cr8_legacy", Host;
    ABM = X1Ecx 5, "abm", Host;
    SSE4A = X1Ecx 6, "sse4a", Host;
    MISALIGNSSE = X1Ecx 7, "misalignsse", Host;
    PREFETCHW = X1Ecx 8, "3dnowprefetch", Host;
    OSVW = X1Ecx 9, "osvw", Host;
    XOP = X1Ecx 11, "xop", State(AVX_STATE);
    FMA4 = X1Ecx 16, "fma4", State(AVX_STATE);
    TBM = X1Ecx 21, "tbm", Host;
    TOPOEXT = X1Ecx 22, "topoext", Host;
    /// No PMU.
    PERFCTR_CORE = X1Ecx 23, "perfctr_core", No;

    FPU_X = X1Edx 0, "fpu (0x80000001)", Host;
    VME_X = X1Edx 1, "vme (0x80000001)", Host;
    DE_X = X1Edx 2, "de (0x80000001)", Host;
    PSE_X = X1Edx 3, "pse (0x80000001)", Host;
    TSC_X = X1Edx 4, "tsc (0x80000001)", Host;
    MSR_X = X1Edx 5, "msr (0x80000001)", Host;
    PAE_X = X1Edx 6, "pae (0x80000001)", Host;
    MCE_X = X1Edx 7, "mce (0x80000001)", Host;
    CX8_X = X1Edx 8, "cx8 (0x80000001)", Host;
    APIC_X = X1Edx 9, "apic (0x80000001)", Host;
    SYSCALL = X1Edx 11, "syscall", Host;
    MTRR_X = X1Edx 12, "mtrr (0x80000001)", Host;
    PGE_X = X1Edx 13, "pge (0x80000001)", Host;
    MCA_X = X1Edx 14, "mca (0x80000001)", Host;
    CMOV_X = X1Edx 15, "cmov (0x80000001)", Host;
    PAT_X = X1Edx 16, "pat (0x80000001)", Host;
    PSE36_X = X1Edx 17, "pse36 (0x80000001)", Host;
    NX = X1Edx 20, "nx", Host;
    MMXEXT = X1Edx 22, "mmxext", Host;
    MMX_X = X1Edx 23, "mmx (0x80000001)", Host;
    FXSR_X = X1Edx 24, "fxsr (0x80000001)", Host;
    FXSR_OPT = X1Edx 25, "fxsr_opt", Host;
    GBPAGES = X1Edx 26, "pdpe1gb", Host;
    RDTSCP = X1Edx 27, "rdtscp", Host;
    LM = X1Edx 29, "lm", Host;
    AMD_3DNOWEXT = X1Edx 30, "3dnowext", Host;
    AMD_3DNOW = X1Edx 31, "3dnow", Host;

    INVARIANT_TSC = X7Edx 8, "constant_tsc", Host;

    CLZERO = X8Ebx 0, "clzero", Host;
    XSAVEERPTR = X8Ebx 2, "xsaveerptr", Host;
    WBNOINVD = X8Ebx 9, "wbnoinvd", Host;
    AMD_IBPB = X8Ebx 12, "ibpb", Host;
    AMD_IBRS = X8Ebx 14, "ibrs (0x80000008)", Host;
    AMD_STIBP = X8Ebx 15, "stibp (0x80000008)", Host;
    AMD_STIBP_ALWAYS_ON = X8Ebx 17, "stibp_always_on", Host;
    AMD_IBRS_SAME_MODE = X8Ebx 19, "ibrs_same_mode", Host;
    EFER_LMSLE_MBZ = X8Ebx 20, "efer_lmsle_mbz", Host;
    AMD_SSBD = X8Ebx 24, "ssbd (0x80000008)", Host;
    /// An MSR in place of one that each family has elsewhere.
    VIRT_SSBD = X8Ebx 25, "virt_ssbd", No;
    AMD_SSB_NO = X8Ebx 26, "ssb_no", Host;
    AMD_PSFD = X8Ebx 28, "amd_psfd", Host;
    AMD_IBPB_RET = X8Ebx 30, "ibpb_ret", Host;

    NO_NESTED_DATA_BP = X21Eax 0, "no_nested_data_bp", Host;
    /// Told on every CPU whose LFENCE the host kernel found or made serializing.
    LFENCE_RDTSC = X21Eax 2, "lfence_rdtsc", Host;
    /// VERW clears what TSA leaks.
    VERW_CLEAR = X21Eax 5, "verw_clear", Kernel;
    /// Told on every CPU without the null-selector quirk.
    NULL_SEL_CLR_BASE = X21Eax 6, "null_sel_clr_base", Host;
    /// Needs its bit of EFER; no CPU here has it.
    AUTOIBRS = X21Eax 8, "autoibrs", No;
    NO_SMM_CTL_MSR = X21Eax 9, "no_smm_ctl_msr", Always;
    /// CPUID faulting by HWCR is not made; that by MISC_FEATURES_ENABLES is.
    GP_ON_USER_CPUID = X21Eax 17, "gp_on_user_cpuid", No;
    PREFETCHI = X21Eax 20, "prefetchi", Host;
    SBPB = X21Eax 27, "sbpb", Kernel;
    IBPB_BRTYPE = X21Eax 28, "ibpb_brtype", Kernel;
    SRSO_NO = X21Eax 29, "srso_no", Kernel;
    SRSO_USER_KERNEL_NO = X21Eax 30, "srso_user_kernel_no", Host;

    TSA_SQ_NO = X21Ecx 1, "tsa_sq_no", OtherForm;
    TSA_L1_NO = X21Ecx 2, "tsa_l1_no", OtherForm;
    TSA_FILL_NO = X21Ecx 7, "tsa_fill_no", OtherForm;
}
