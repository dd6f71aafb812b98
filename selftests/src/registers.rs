// SPDX-License-Identifier: GPL-2.0
//! All registers of a thread at once: loaded from an image, held over a system call or a long loop, and stored.
//!
//! Unsafe because: no language has words for "every register"; it is assembly, and the state it changes is the thread's own.

use crate::sys::{self, Map};
use std::arch::global_asm;

/// Where the XSAVE area lies in an image; the general registers are at its start, in the order of their numbers.
const XSAVE: usize = 4096;
/// Bytes of an image: the XSAVE area of all that is switched here is smaller.
pub const IMAGE: usize = 16384;
/// Where RFLAGS is.
const FLAGS: usize = 128;

/// What the assembly works on.
#[repr(C)]
struct Frame {
    load: u64,
    store: u64,
    mask: u64,
    call: u64,
    args: [u64; 3],
    result: u64,
}

// rdi: the frame. Everything that the ABI wants kept is on the stack meanwhile, and so is the pointer to the frame.
macro_rules! around {
    ($name:literal, $load:literal, $held:literal, $kept:literal) => {
        concat!(
            ".globl ", $name, "\n", $name, ":\n",
            "push rbx\n push rbp\n push r12\n push r13\n push r14\n push r15\n pushfq\n sub rsp, 16\n",
            "stmxcsr [rsp]\n fnstcw [rsp + 4]\n mov [rsp + 8], rdi\n",
            "mov rsi, [rdi]\n mov eax, [rdi + 16]\n mov edx, [rdi + 20]\n xrstor64 [rsi + 4096]\n",
            "push qword ptr [rsi + 128]\n popfq\n",
            "mov rbx, [rsi + 24]\n mov rbp, [rsi + 40]\n mov r8, [rsi + 64]\n mov r9, [rsi + 72]\n mov r10, [rsi + 80]\n",
            "mov r12, [rsi + 96]\n mov r13, [rsi + 104]\n mov r14, [rsi + 112]\n mov r15, [rsi + 120]\n",
            $load,
            $held,
            // RSP is the one register that leads back.
            "push rdi\n pushfq\n push r11\n mov rdi, [rsp + 32]\n mov r11, [rdi + 8]\n mov [rdi + 56], rax\n",
            "mov [r11 + 24], rbx\n mov [r11 + 40], rbp\n mov [r11 + 64], r8\n mov [r11 + 72], r9\n mov [r11 + 80], r10\n",
            "mov [r11 + 96], r12\n mov [r11 + 104], r13\n mov [r11 + 112], r14\n mov [r11 + 120], r15\n",
            $kept,
            "pop rbx\n mov [r11 + 88], rbx\n pop rbx\n mov [r11 + 128], rbx\n pop rbx\n mov [r11 + 56], rbx\n",
            "mov eax, [rdi + 16]\n mov edx, [rdi + 20]\n xsave64 [r11 + 4096]\n",
            "fninit\n fldcw [rsp + 4]\n ldmxcsr [rsp]\n add rsp, 16\n",
            "popfq\n pop r15\n pop r14\n pop r13\n pop r12\n pop rbp\n pop rbx\n ret\n",
        )
    };
}

global_asm!(
    around!(
        "selftests_call",
        "mov rax, [rdi + 24]\n mov rsi, [rdi + 40]\n mov rdx, [rdi + 48]\n mov rdi, [rdi + 32]\n",
        "syscall\n",
        ""
    ),
    around!(
        "selftests_spin",
        "mov rcx, [rdi + 32]\n mov rax, [rsi]\n mov rdx, [rsi + 16]\n mov r11, [rsi + 88]\n mov rdi, [rsi + 56]\n mov rsi, [rsi + 48]\n",
        // Leaves the flags alone, as DEC would not.
        "2: lea rcx, [rcx - 1]\n jrcxz 3f\n jmp 2b\n 3:\n",
        "mov [r11], rax\n mov [r11 + 16], rdx\n mov [r11 + 48], rsi\n"
    ),
);

extern "C" {
    fn selftests_call(frame: *mut Frame);
    fn selftests_spin(frame: *mut Frame);
}

/// The general registers that a system call keeps.
const KEPT: &[usize] = &[3, 5, 7, 8, 9, 10, 12, 13, 14, 15];
/// Those that the loop keeps.
const HELD: &[usize] = &[0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// The flags that user space may set without harm here: CF, PF, AF, ZF, SF, DF, OF, AC, ID.
const FREE_FLAGS: u64 = 0xcd5 | 1 << 18 | 1 << 21;
/// The state components of AMX, which a process has to ask for.
const AMX: u64 = 3 << 17;

/// A component of the XSAVE area.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// Its bit in XCR0.
    pub bit: u32,
    /// Where it lies in the area.
    pub offset: usize,
    /// Its bytes.
    pub len: usize,
}

/// What of the legacy area is compared: control words and tags, MXCSR, the x87 registers without their padding, XMM.
/// What remains (the last instruction's and operand's address) CPUs save in certain cases only.
pub fn legacy_parts() -> Vec<(usize, usize)> {
    let mut v = vec![(0, 5), (24, 4), (160, 256)];
    v.extend((0..8).map(|i| (32 + 16 * i, 10)));
    v
}

/// Has this CPU, as the kernel set it up, XSAVE?
pub fn has_xsave() -> bool {
    sys::cpuid(1, 0)[2] >> 27 & 1 == 1
}

/// XCR0.
pub fn xcr0() -> u64 {
    // SAFETY: `has_xsave` is checked: CR4.OSXSAVE is set.
    assert!(has_xsave(), "XGETBV needs XSAVE");
    let (lo, hi): (u32, u32);
    // SAFETY: as above; reads only.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi, options(nomem, nostack));
    }
    u64::from(hi) << 32 | u64::from(lo)
}

/// The extended components of `xcr0`, all but x87 and SSE.
pub fn components(xcr0: u64) -> Vec<Component> {
    (2..63)
        .filter(|bit| xcr0 >> bit & 1 == 1)
        .map(|bit| {
            let [len, offset, ..] = sys::cpuid(0xd, bit);
            Component {
                bit,
                offset: offset as usize,
                len: len as usize,
            }
        })
        .collect()
}

/// A small generator (xorshift64*): the tests must be repeatable.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts with `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.word() >> 11) % n.max(1)
    }
}

/// Fills an XSAVE area at `at` of `map` with values that are valid and that no initial state has.
pub fn random_xsave(map: &Map, at: usize, mask: u64, rng: &mut Random) {
    map.fill(at, 4096, 0);
    // x87: no exception unmasked, random rounding; all registers valid.
    map.wr(at, 0x007fu16 | (rng.below(16) as u16) << 8);
    map.wr(at + 4, 0xffu8);
    // MXCSR: all exceptions masked; random rounding, FTZ.
    map.wr(at + 24, 0x1f80u32 | (rng.below(8) as u32) << 13);
    for i in 0..8 {
        map.wr(at + 32 + 16 * i, rng.word() | 1 << 63);
        map.wr(at + 40 + 16 * i, (0x3fff + rng.below(512)) as u16);
    }
    for i in 0..32 {
        map.wr(at + 160 + 8 * i, rng.word() | 1);
    }
    map.wr(at + 512, mask);
    for c in components(mask) {
        for i in (0..c.len).step_by(8) {
            let v = match c.bit {
                // Bound registers and their configuration: canonical, and off.
                3 | 4 => 0,
                // Protection keys: what is mapped with key 0 stays accessible.
                9 => rng.word() & 0xffff_fffc,
                _ => rng.word() | 1,
            };
            map.wr(at + c.offset + i, v);
        }
    }
}

/// The parts of an XSAVE area with `mask` that have to be the same after it was loaded and stored: (offset, bytes).
pub fn xsave_parts(mask: u64) -> Vec<(usize, usize)> {
    let mut parts = legacy_parts();
    parts.extend(
        components(mask)
            .iter()
            .filter(|c| !matches!(c.bit, 3 | 4))
            .map(|c| (c.offset, c.len)),
    );
    parts
}

/// The registers of the calling thread, random for each use.
pub struct Registers {
    load: Map,
    store: Map,
    mask: u64,
    rng: Random,
}

impl Registers {
    /// For threads of this process; a test that cannot use them is skipped.
    pub fn new(seed: u64) -> Self {
        if !has_xsave() {
            crate::harness::skip("this CPU has no XSAVE");
        }
        Self {
            load: Map::anon(IMAGE),
            store: Map::anon(IMAGE),
            mask: xcr0() & !AMX,
            rng: Random::new(seed),
        }
    }

    fn fill(&mut self) {
        for i in 0..16 {
            self.load.wr(8 * i, self.rng.word());
        }
        self.load.wr(FLAGS, self.rng.word() & FREE_FLAGS | 0x202);
        random_xsave(&self.load, XSAVE, self.mask, &mut self.rng);
        self.store.fill(0, IMAGE, 0xee);
        self.store.fill(XSAVE + 512, 64, 0);
    }

    fn frame(&self) -> Frame {
        Frame {
            load: self.load.addr(),
            store: self.store.addr(),
            mask: self.mask,
            call: 0,
            args: [0; 3],
            result: 0,
        }
    }

    /// What is not as it was, in words; empty if all is well.
    fn changed(&self, gprs: &[usize]) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: String, at: usize, len: usize| {
            if let Some(i) =
                (0..len).find(|i| self.load.rd::<u8>(at + i) != self.store.rd::<u8>(at + i))
            {
                let (want, got) = (
                    self.load.read(at, len.min(64)),
                    self.store.read(at, len.min(64)),
                );
                found.push(format!(
                    "{what}, byte {i}: {got:02x?}, expected {want:02x?}"
                ));
            }
        };
        for &r in gprs {
            compare(format!("general register {r}"), 8 * r, 8);
        }
        for (offset, len) in xsave_parts(self.mask) {
            compare(format!("XSAVE area at {offset}"), XSAVE + offset, len);
        }
        let (want, got) = (self.load.rd::<u64>(FLAGS), self.store.rd::<u64>(FLAGS));
        if (want ^ got) & FREE_FLAGS != 0 {
            found.push(format!("RFLAGS {got:x}, expected {want:x}"));
        }
        found
    }

    /// The ioctl `nr` of `fd` with the argument 0, made with random values in all registers. Gives its result, and what is wrong
    /// with the registers afterwards.
    pub fn over_ioctl(&mut self, fd: i32, nr: u64) -> (sys::Res, Vec<String>) {
        self.fill();
        let mut frame = Frame {
            call: libc::SYS_ioctl as u64,
            args: [fd as u64, nr, 0],
            ..self.frame()
        };
        // RDI is an argument, and kept.
        self.load.wr(56, fd as u64);
        // SAFETY: the images are big enough, and valid for XRSTOR; the ioctl takes no pointer.
        unsafe { selftests_call(&mut frame) };
        let r = frame.result as i64;
        let r = if r < 0 { Err(-r as i32) } else { Ok(r as i32) };
        (r, self.changed(KEPT))
    }

    /// A loop of `turns` with random values in all registers; what is wrong with them afterwards.
    pub fn over_loop(&mut self, turns: u64) -> Vec<String> {
        self.fill();
        let mut frame = Frame {
            args: [turns.max(1), 0, 0],
            ..self.frame()
        };
        // SAFETY: as above.
        unsafe { selftests_spin(&mut frame) };
        self.changed(HELD)
    }
}

/// The selectors in DS, ES, FS, GS.
pub fn selectors() -> [u16; 4] {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reads only.
    unsafe {
        std::arch::asm!(
            "mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags)
        );
    }
    [ds, es, fs, gs]
}

/// Loads DS and ES, which 64-bit code does not use, with Linux's selector for user data.
pub fn use_data_selectors() {
    // SAFETY: a valid selector; its base and limit do not count in 64-bit mode.
    unsafe {
        std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0x2bu16, options(nomem, nostack, preserves_flags));
    }
}

/// Loads GS with `selector`. False if it is not valid: that is a signal, so only ask with what the kernel gave.
pub fn use_gs(selector: u16) {
    // SAFETY: nothing in a 64-bit Linux program uses GS.
    unsafe {
        std::arch::asm!("mov gs, {0:x}", in(reg) selector, options(nomem, nostack, preserves_flags));
    }
}

/// The word at offset `at` of GS.
pub fn gs_word(at: u64) -> u64 {
    let v: u64;
    // SAFETY: the callers set the base to memory of theirs that is longer than `at`.
    unsafe {
        std::arch::asm!("mov {0}, gs:[{1}]", out(reg) v, in(reg) at, options(readonly, nostack, preserves_flags));
    }
    v
}

/// arch_prctl(ARCH_SET_GS).
pub fn set_gs_base(base: u64) -> sys::Res {
    const ARCH_SET_GS: i32 = 0x1001;
    // SAFETY: nothing in a 64-bit Linux program uses GS.
    let r = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    if r < 0 {
        Err(sys::errno())
    } else {
        Ok(0)
    }
}

/// The base of FS as arch_prctl tells it.
pub fn fs_base() -> u64 {
    const ARCH_GET_FS: i32 = 0x1003;
    let mut v = 0u64;
    // SAFETY: a live variable.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &mut v) };
    v
}

/// Installs a data segment of 32 bits at `base` in the process's LDT; gives its selector.
pub fn ldt_segment(entry: u16, base: u32) -> Result<u16, i32> {
    // struct user_desc: number, base, limit, and bits: 32-bit, limit in pages, usable.
    let desc: [u32; 4] = [entry.into(), base, 0xf_ffff, 1 | 1 << 4 | 1 << 6];
    // SAFETY: a live structure of the size that is given.
    let r = unsafe { libc::syscall(libc::SYS_modify_ldt, 0x11, &desc, size_of_val(&desc)) };
    if r < 0 {
        return Err(sys::errno());
    }
    Ok(entry << 3 | 7)
}

/// The ioctl `request` of `fd` while FS has `selector`: its result as the system call gives it, and the word at offset `at` of FS
/// after it.
pub fn ioctl_with_fs(fd: i32, request: u64, selector: u16, at: u64) -> (i64, u64) {
    const ARCH_SET_FS: u64 = 0x1002;
    let base = fs_base();
    let (result, word);
    // SAFETY: FS is for thread-local variables, of which this uses none, and it has its base again at the end. The selector is
    // that of a segment which is longer than `at`, and the ioctl takes no pointer.
    unsafe {
        std::arch::asm!(
            "mov fs, {selector:x}",
            "syscall",
            "mov {result}, rax",
            "mov {word}, fs:[{at}]",
            "mov eax, {arch_prctl}",
            "mov edi, {set}",
            "mov rsi, {base}",
            "syscall",
            selector = in(reg) selector,
            result = out(reg) result,
            word = out(reg) word,
            at = in(reg) at,
            base = in(reg) base,
            arch_prctl = const libc::SYS_arch_prctl,
            set = const ARCH_SET_FS,
            inout("rax") libc::SYS_ioctl => _,
            inout("rdi") i64::from(fd) => _,
            inout("rsi") request => _,
            in("rdx") 0,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    (result, word)
}

/// Loads ES with `selector`, and then with none. That is a signal if the selector is not valid.
pub fn try_es(selector: u16) {
    // SAFETY: 64-bit code does not use ES.
    unsafe {
        std::arch::asm!("mov es, {0:x}", "mov es, {1:x}", in(reg) selector, in(reg) 0u16, options(nomem, nostack, preserves_flags));
    }
}

/// RDTSCP's third result: Linux keeps the number of the CPU in it.
pub fn tsc_aux() -> u32 {
    let aux: u32;
    // SAFETY: the callers asked CPUID for RDTSCP.
    unsafe {
        std::arch::asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux, options(nomem, nostack));
    }
    aux
}

/// Has this CPU RDTSCP?
pub fn has_rdtscp() -> bool {
    sys::cpuid(0x8000_0001, 0)[3] >> 27 & 1 == 1
}
