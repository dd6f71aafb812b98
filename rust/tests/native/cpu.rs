// SPDX-License-Identifier: GPL-2.0
//! Executes one instruction on the CPU with chosen registers and memory, and tells what became of them.
//!
//! Unsafe because: it writes code into a page and enters it. An `int3` enters a signal handler, which puts the chosen
//! registers in the place of the interrupted ones; the `int3` behind the instruction, or its fault, enters the handler
//! again, which takes them out and puts the old ones back.

use std::ptr::{addr_of, addr_of_mut, null_mut};

/// Where the code page lies, and the data pages: in reach of 32-bit code.
pub const CODE: u64 = 0x1000_0000;
/// First of the data pages. What follows the last is not mapped.
pub const DATA: u64 = 0x2000_0000;
/// Bytes of data.
pub const DATA_SIZE: usize = 0x4000;

/// Registers before or after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// In the hardware's order.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// YMM registers, low quadword first.
    pub vec: [[u64; 4]; 16],
}

/// The trap that ended the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trap {
    /// Vector.
    pub vector: u8,
    /// Error code.
    pub error: u32,
    /// Address of a page fault.
    pub cr2: u64,
}

struct Shared {
    wanted: State,
    bits32: bool,
    running: bool,
    saved: Option<libc::mcontext_t>,
    result: State,
    trap: Trap,
}

static mut SHARED: Shared = Shared {
    wanted: State {
        gpr: [0; 16],
        rip: 0,
        rflags: 0,
        vec: [[0; 4]; 16],
    },
    bits32: false,
    running: false,
    saved: None,
    result: State {
        gpr: [0; 16],
        rip: 0,
        rflags: 0,
        vec: [[0; 4]; 16],
    },
    trap: Trap {
        vector: 0,
        error: 0,
        cr2: 0,
    },
};

const GPRS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// 32-bit user code of Linux.
const CS32: i64 = 0x23;
/// Offsets in the XSAVE image of a signal frame: SSE, header, upper halves of YMM.
const XMM: usize = 160;
const HEADER: usize = 512;
const YMM_HIGH: usize = 576;

fn take(m: &libc::mcontext_t) -> State {
    let mut s = State {
        rip: m.gregs[libc::REG_RIP as usize] as u64,
        rflags: m.gregs[libc::REG_EFL as usize] as u64,
        ..State::default()
    };
    for (to, from) in s.gpr.iter_mut().zip(GPRS) {
        *to = m.gregs[from as usize] as u64;
    }
    let image = m.fpregs.cast::<u8>();
    for n in 0..16 {
        // SAFETY: the kernel put an XSAVE image with AVX there; `new` made sure that the CPU has it. A component that is
        // in its initial state has a zero bit in the header.
        unsafe {
            let present = image.add(HEADER).cast::<u64>().read_unaligned();
            if present & 2 != 0 {
                let low = image.add(XMM + 16 * n).cast::<[u64; 2]>().read_unaligned();
                s.vec[n][..2].copy_from_slice(&low);
            }
            if present & 4 != 0 {
                let high = image
                    .add(YMM_HIGH + 16 * n)
                    .cast::<[u64; 2]>()
                    .read_unaligned();
                s.vec[n][2..].copy_from_slice(&high);
            }
        }
    }
    s
}

fn put(m: &mut libc::mcontext_t, s: &State, bits32: bool) {
    for (from, to) in s.gpr.iter().zip(GPRS) {
        m.gregs[to as usize] = *from as i64;
    }
    m.gregs[libc::REG_RIP as usize] = s.rip as i64;
    m.gregs[libc::REG_EFL as usize] = s.rflags as i64;
    if bits32 {
        let field = &mut m.gregs[libc::REG_CSGSFS as usize];
        *field = *field & !0xffff | CS32;
    }
    let image = m.fpregs.cast::<u8>();
    // SAFETY: as above.
    unsafe {
        let header = image.add(HEADER).cast::<u64>();
        header.write_unaligned(header.read_unaligned() | 6);
        for (n, v) in s.vec.iter().enumerate() {
            let [a, b, c, d] = *v;
            image
                .add(XMM + 16 * n)
                .cast::<[u64; 2]>()
                .write_unaligned([a, b]);
            image
                .add(YMM_HIGH + 16 * n)
                .cast::<[u64; 2]>()
                .write_unaligned([c, d]);
        }
    }
}

extern "C" fn handler(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext; one thread uses `SHARED`, and not while a handler runs.
    unsafe {
        let m = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let shared = &mut *addr_of_mut!(SHARED);
        if shared.running {
            shared.running = false;
            shared.result = take(m);
            shared.trap = Trap {
                vector: m.gregs[libc::REG_TRAPNO as usize] as u8,
                error: m.gregs[libc::REG_ERR as usize] as u32,
                cr2: m.gregs[libc::REG_CR2 as usize] as u64,
            };
            if let Some(saved) = shared.saved.take() {
                // The FPU image stays in its place; its contents do not matter to compiled code across `run`.
                let fpregs = m.fpregs;
                *m = saved;
                m.fpregs = fpregs;
            }
            return;
        }
        if m.gregs[libc::REG_TRAPNO as usize] != 3 {
            // A fault of our own.
            libc::_exit(99);
        }
        shared.saved = Some(*m);
        shared.running = true;
        put(m, &shared.wanted, shared.bits32);
    }
}

/// AMD made this CPU.
pub fn is_amd() -> bool {
    // SAFETY: CPUID is there on every x86-64 CPU.
    #[allow(unused_unsafe, reason = "later compilers call it safe")]
    let maker = unsafe { core::arch::x86_64::__cpuid(0) };
    maker.ebx == u32::from_le_bytes(*b"Auth")
}

/// What the emulator is told that the CPU has.
fn has_all() -> bool {
    macro_rules! all {
        ($($feature:tt)*) => { $(std::is_x86_feature_detected!($feature))&&* };
    }
    all!("avx2" "bmi1" "lzcnt" "movbe" "popcnt" "sse4.2" "cmpxchg16b")
}

/// The CPU under test. There is one, for one thread.
pub struct Cpu(());

impl Cpu {
    /// An error says why this machine does not let us.
    pub fn new() -> Result<Self, &'static str> {
        if !has_all() {
            return Err("the CPU lacks instructions that are compared");
        }
        let map = |at: u64, len: usize, prot| {
            // SAFETY: a new mapping at addresses where nothing of a 64-bit process lies.
            let p = unsafe {
                libc::mmap(
                    at as *mut libc::c_void,
                    len,
                    prot,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            p as u64 == at
        };
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        if !map(CODE, 0x1000, rw | libc::PROT_EXEC) || !map(DATA, DATA_SIZE, rw) {
            return Err("nothing can be mapped at low addresses");
        }
        let stack = Box::leak(vec![0u8; 1 << 16].into_boxed_slice());
        // SAFETY: the stack lives for ever; the handler is as sigaction wants it.
        unsafe {
            let alternative = libc::stack_t {
                ss_sp: stack.as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: stack.len(),
            };
            libc::sigaltstack(&alternative, null_mut());
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [
                libc::SIGTRAP,
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGILL,
                libc::SIGFPE,
            ] {
                libc::sigaction(signal, &action, null_mut());
            }
            // 32-bit code needs data segments; 64-bit code does not look at them.
            core::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0x2bu32);
        }
        Ok(Self(()))
    }

    /// The data pages.
    pub fn data(&mut self) -> &mut [u8] {
        // SAFETY: mapped by `new`, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(DATA as *mut u8, DATA_SIZE) }
    }

    /// Executes `insn`, which lies at `state.rip` in the code page.
    pub fn run(&mut self, bits32: bool, insn: &[u8], state: &State) -> (State, Trap) {
        assert!(state.rip >= CODE && state.rip + insn.len() as u64 <= CODE + 0x1000);
        // SAFETY: mapped and writable; the handler gives control back in any case.
        unsafe {
            std::slice::from_raw_parts_mut(CODE as *mut u8, 0x1000).fill(0xcc);
            std::ptr::copy_nonoverlapping(insn.as_ptr(), state.rip as *mut u8, insn.len());
            let shared = &mut *addr_of_mut!(SHARED);
            shared.wanted = *state;
            shared.bits32 = bits32;
            core::arch::asm!("int3", out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _,
                out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _,
                out("xmm14") _, out("xmm15") _);
            let shared = &*addr_of!(SHARED);
            (shared.result, shared.trap)
        }
    }
}
