// SPDX-License-Identifier: GPL-2.0
//! The emulator against the CPU that the test runs on: random instructions of user mode, with random registers, flags
//! and memory, executed and emulated.

#[path = "native/cpu.rs"]
mod cpu;

use cpu::{Cpu, State, Trap, CODE, DATA, DATA_SIZE};
use iced_x86::{Decoder, DecoderOptions, Instruction, RflagsBits};
use lodge_model::model::emu::decode::decode;
use lodge_model::model::emu::insn::{Insn, Kind};
use lodge_model::model::emu::job::{Answer, Job, Need};
use lodge_model::model::event::Exception;
use lodge_model::model::regs::{cr0, cr4, efer, Attr, Context, CpuMode, Regs, Seg, Segment};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Instructions compared in each mode.
const COUNT: u64 = 20_000;
/// The same in a long run.
const LONG: u64 = 1_000_000;
const RIP: u64 = CODE + 0x800;
const RF: u64 = 1 << 16;

/// xorshift64*, so that a failure repeats.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    fn byte(&mut self) -> u8 {
        (self.next() >> 40) as u8
    }
}

/// Prefixes, an opcode map, an opcode and noise.
fn random_bytes(rng: &mut Rng, long: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..[0, 0, 0, 1, 1, 2][rng.below(6) as usize] {
        bytes.push([0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x66, 0x2e][rng.below(7) as usize]);
    }
    if long && rng.below(2) == 0 {
        bytes.push(0x40 | rng.byte() & 15);
    }
    match rng.below(16) {
        0..=6 => {}
        7..=12 => bytes.push(0x0f),
        13 => bytes.extend([0x0f, 0x38, 0xf0 | rng.byte() & 1]),
        14 => bytes.extend([0xc5, rng.byte()]),
        _ => bytes.extend([0xc4, 0xe1 | rng.byte() & 0xe0, rng.byte() & 0x7f | 0x78]),
    }
    while bytes.len() < 24 {
        bytes.push(rng.byte());
    }
    bytes
}

/// Kinds whose outcome depends on nothing but registers, flags and memory.
#[rustfmt::skip]
fn comparable(kind: Kind) -> bool {
    use Kind::*;
    matches!(
        kind,
        Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Rol | Ror | Rcl | Rcr | Shl | Shr | Sal | Sar | Shld | Shrd | Test
            | Not | Neg | Inc | Dec | Mul | Imul | Div | Idiv | ImulTo | Mov | Movzx | Movsx | Movsxd | Movbe | Lea | Xchg
            | Xadd | Cmpxchg | Cmpxchg8b | Bswap | Bt | Bts | Btr | Btc | Bsf | Bsr | Setcc | Cmovcc | Cbw | Cwd | Popcnt
            | Tzcnt | Lzcnt | Crc32 | Push | Pop | Pusha | Popa | Pushf | Enter | Leave | Jcc | Jmp | JmpNear | CallRel
            | CallNear | Ret | Loop | Jcxz | Bound | Movs | Cmps | Stos | Lods | Scas | Xlat | Cmc | Clc | Stc | Cld | Std
            | Lahf | Sahf | Salc | Daa | Das | Aaa | Aas | Aam | Aad | Nop | Pause | Prefetch | MovVec | MovVecAligned
            | MovVecScalar | MovVecHalf | MovVecGpr | MovVecQ | Ud | Fence
    )
}

fn branches(kind: Kind) -> bool {
    use Kind::*;
    matches!(
        kind,
        Jcc | Jmp | JmpNear | CallRel | CallNear | Ret | Loop | Jcxz
    )
}

fn context(mode: CpuMode) -> Context {
    let (l, db) = (mode == CpuMode::Bits64, mode == CpuMode::Bits32);
    let mut ctx = Context {
        cr0: cr0::PE | cr0::PG,
        cr4: cr4::OSFXSR | cr4::OSXSAVE | cr4::PAE,
        efer: efer::LMA,
        cpl: 3,
        cpu: u16::MAX,
        ..Context::default()
    };
    for segment in &mut ctx.segs.0 {
        *segment = Segment {
            base: 0,
            limit: u32::MAX,
            selector: 0x2b,
            attr: Attr::new(3, true, 3, true, false, false, true, true),
        };
    }
    ctx.segs.get_mut(Seg::Cs).attr = Attr::new(11, true, 3, true, false, l, db, true);
    ctx
}

fn random_state(rng: &mut Rng, long: bool) -> State {
    let mut s = State {
        rip: RIP,
        rflags: 0x202 | rng.next() & 0xcd5,
        ..State::default()
    };
    for gpr in &mut s.gpr {
        *gpr = match rng.below(8) {
            0..=3 => DATA + rng.below(DATA_SIZE as u64),
            4 => DATA + 0x1000 * (1 + rng.below(3)) - rng.below(16),
            5 => rng.below(64),
            _ => rng.next() >> rng.below(64),
        };
        if !long {
            *gpr &= 0xffff_ffff;
        }
    }
    if !long {
        s.gpr[8..].fill(0);
    }
    for v in &mut s.vec {
        *v = [rng.next(), rng.next(), rng.next(), rng.next()];
    }
    s
}

/// The emulator's memory and vector registers.
struct Machine {
    data: Vec<u8>,
    vec: [[u64; 4]; 16],
}

impl Machine {
    fn range(&self, at: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(at.checked_sub(DATA)?).ok()?;
        (start + len <= DATA_SIZE).then_some(start..start + len)
    }

    /// The code page can be read and written too, and holds what it holds.
    fn answer(&mut self, need: Need) -> Option<Answer> {
        let fault = |at: u64, write: bool| {
            Answer::Fault(Exception::page_fault(4 | u32::from(write) << 1, at))
        };
        Some(match need {
            Need::Check { at, len, write } => match self.range(at, len.into()) {
                Some(_) => Answer::Ram(true),
                None => fault(at, write),
            },
            Need::Read { at, len, rmw } => match self.range(at, len.into()) {
                Some(r) => {
                    let mut value = [0; 8];
                    value[..r.len()].copy_from_slice(&self.data[r]);
                    Answer::Value(u64::from_le_bytes(value))
                }
                None => fault(at, rmw),
            },
            Need::Write { at, len, value } => match self.range(at, len.into()) {
                Some(r) => {
                    let len = r.len();
                    self.data[r].copy_from_slice(&value.to_le_bytes()[..len]);
                    Answer::Ack
                }
                None => fault(at, true),
            },
            Need::CmpXchg { at, len, new, .. } => match self.range(at, len.into()) {
                Some(r) => {
                    let len = r.len();
                    self.data[r].copy_from_slice(&new.to_le_bytes()[..len]);
                    Answer::Exchanged(true)
                }
                None => fault(at, true),
            },
            Need::ReadVec { reg } => Answer::Vector(self.vec[usize::from(reg)]),
            Need::WriteVec { reg, value, vex } => {
                let old = self.vec[usize::from(reg)];
                let [a, b, c, d] = value;
                self.vec[usize::from(reg)] = if vex { value } else { [a, b, old[2], old[3]] };
                let _ = (c, d);
                Answer::Ack
            }
            _ => return None,
        })
    }
}

/// What the emulator makes of it: registers and the fault. `None`: it does not do this one.
fn emulate(
    insn: &Insn,
    ctx: &Context,
    start: &State,
    m: &mut Machine,
) -> Option<(Regs, Option<Exception>)> {
    let mut regs = Regs {
        gpr: start.gpr,
        rip: start.rip,
        rflags: start.rflags,
    };
    for _ in 0..4096 {
        let mut job = Job::from_insn(insn, &regs, ctx);
        let mut answer = Answer::Start;
        let again = loop {
            match job.step(answer) {
                Need::Done(done) => break done.repeat,
                Need::Fault(e) => return Some((*job.regs(), Some(e))),
                need => answer = m.answer(need)?,
            }
        };
        regs = *job.regs();
        if !again {
            return Some((regs, None));
        }
    }
    None
}

/// Flags that iced calls undefined after the instruction.
fn undefined(theirs: &Instruction) -> u64 {
    let set = theirs.rflags_undefined();
    [
        (RflagsBits::OF, 0x800),
        (RflagsBits::SF, 0x80),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::AF, 0x10),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 4),
    ]
    .iter()
    .filter(|(bit, _)| set & bit != 0)
    .fold(0, |all, (_, ours)| all | ours)
}

/// Where the manuals leave the result itself open.
fn result_undefined(insn: &Insn, start: &State, theirs: &Instruction) -> bool {
    let count = if theirs.op_count() == 3 && insn.opcode & 1 == 0 {
        insn.imm as u8
    } else {
        start.gpr[1] as u8
    } & 31;
    matches!(insn.kind(), Kind::Shld | Kind::Shrd) && insn.op_size == 2 && count > 16
        || insn.kind() == Kind::Bswap && insn.op_size == 2
}

/// A fault as the CPU tells it; `None` when the instruction was done.
fn fault_of(trap: &Trap, after: &State) -> Option<Exception> {
    let done = trap.vector == 3 || trap.vector == 14 && trap.cr2 == after.rip && after.rip != RIP;
    // The target of a branch is no address.
    let branched = trap.vector == 13 && after.rip != RIP;
    if done || branched {
        return None;
    }
    Some(match trap.vector {
        // Of the kernel's half Linux always says that it is present.
        14 => Exception::page_fault(trap.error & !u32::from(trap.cr2 >> 63 != 0), trap.cr2),
        v @ (8 | 10..=13 | 17) => Exception::with_error(v, trap.error),
        v => Exception::new(v),
    })
}

/// Of two faults of an instruction, which comes first is the CPU's own affair: of two operands, of an operand that is neither aligned nor
/// canonical or goes beyond a limit, of a stack and a target that both cannot be used.
fn same_fault(kind: Kind, ours: &Option<Exception>, theirs: &Option<Exception>) -> bool {
    use Kind::*;
    let two = matches!(
        kind,
        Cmps | Movs | Cmpxchg8b | MovVecAligned | CallNear | Bound
    );
    ours == theirs || two && ours.is_some() && theirs.is_some()
}

/// One instruction to compare.
struct Case {
    mode: CpuMode,
    bytes: Vec<u8>,
    insn: Insn,
    theirs: Instruction,
    start: State,
}

/// How an instruction ended.
struct End {
    state: State,
    fault: Option<Exception>,
}

/// The next random instruction; `None` if its outcome depends on more, or is open.
fn pick(rng: &mut Rng, mode: CpuMode) -> Option<Case> {
    let long = mode == CpuMode::Bits64;
    let mut bytes = random_bytes(rng, long);
    let insn = decode(&bytes, mode).ok()?;
    let options = DecoderOptions::NONE;
    let theirs = Decoder::with_ip(if long { 64 } else { 32 }, &bytes, RIP, options).decode();
    let fs_gs = matches!(insn.seg, Seg::Fs | Seg::Gs);
    let repeated = insn.prefixes.rep != Default::default();
    let open = match insn.kind() {
        // With an operand-size prefix AMD's CPUs branch within 64 KiB, which we leave to Intel's reading.
        kind if branches(kind) && long && insn.prefixes.opsize => true,
        // What a repeat prefix does to LOOP: it turns the condition of LOOPE on some CPUs.
        Kind::Loop => repeated,
        // A register form is a NOP to Intel and nothing to AMD.
        Kind::Prefetch => insn.mem.is_none(),
        kind => !comparable(kind),
    };
    if theirs.is_invalid() || fs_gs || open {
        return None;
    }
    let mut start = random_state(rng, long);
    if repeated {
        start.gpr[1] = rng.below(40);
    }
    bytes.truncate(insn.len.into());
    let case = Case {
        mode,
        bytes,
        insn,
        theirs,
        start,
    };
    (!result_undefined(&case.insn, &start, &theirs)).then_some(case)
}

/// Does it both ways, with the same memory; `None` if that cannot be compared.
fn do_both(cpu: &mut Cpu, m: &mut Machine, case: &Case) -> Option<[End; 2]> {
    let (regs, fault) = emulate(&case.insn, &context(case.mode), &case.start, m)?;
    // A branch to itself or into itself goes on before the trap behind it.
    let inside = RIP..RIP + case.bytes.len() as u64;
    if fault.is_none() && inside.contains(&regs.rip) {
        return None;
    }
    let ours = End {
        state: State {
            gpr: regs.gpr,
            rip: regs.rip,
            rflags: regs.rflags,
            vec: m.vec,
        },
        fault,
    };
    let (mut state, trap) = cpu.run(case.mode != CpuMode::Bits64, &case.bytes, &case.start);
    let fault = fault_of(&trap, &state);
    if trap.vector == 3 {
        state.rip -= 1;
    }
    let theirs = End { state, fault };
    // The code page is not in the emulator's memory.
    let in_code = |e: &End| {
        e.fault
            .and_then(|e| e.payload)
            .is_some_and(|p| p & !0xfff == CODE)
    };
    let ends = [ours, theirs];
    (!ends.iter().any(in_code)).then_some(ends)
}

/// What differs.
fn difference(case: &Case, [ours, cpus]: &[End; 2], same_memory: bool) -> Option<String> {
    let kind = case.insn.kind();
    // iced takes a rotation through the carry all the way round and by one more for one by a single bit.
    let rotates = matches!(kind, Kind::Rcl | Kind::Rcr);
    let open = undefined(&case.theirs) | if rotates { 0x800 } else { 0 };
    let (a, b) = (&ours.state, &cpus.state);
    Some(if !same_fault(kind, &ours.fault, &cpus.fault) {
        format!("fault {:x?}, the CPU {:x?}", ours.fault, cpus.fault)
    } else if a.gpr != b.gpr && !(kind == Kind::Popa && ours.fault.is_some()) {
        // (What POPA had popped before it faulted may be in its register: it will be again.)
        format!("registers {:x?}, the CPU {:x?}", a.gpr, b.gpr)
    } else if a.rip != b.rip {
        format!("RIP {:x}, the CPU {:x}", a.rip, b.rip)
    } else if (a.rflags ^ b.rflags) & !open & !RF != 0 {
        format!("flags {:x}, the CPU {:x}", a.rflags, b.rflags)
    } else if a.vec != b.vec {
        format!("vectors {:x?}, the CPU {:x?}", a.vec, b.vec)
    } else if !same_memory {
        "memory".into()
    } else {
        return None;
    })
}

fn compare(cpu: &mut Cpu, mode: CpuMode, seed: u64, count: u64) {
    let mut rng = Rng(seed);
    let (mut done, mut faults) = (0, 0u64);
    // How many of each kind, and the first difference of each.
    let (mut kinds, mut differ) = (BTreeMap::new(), BTreeMap::new());
    while done < count {
        let Some(case) = pick(&mut rng, mode) else {
            continue;
        };
        cpu.data().fill_with(|| rng.byte());
        let mut m = Machine {
            data: cpu.data().to_vec(),
            vec: case.start.vec,
        };
        let Some(ends) = do_both(cpu, &mut m, &case) else {
            continue;
        };
        let kind = format!("{:?}", case.insn.kind());
        done += 1;
        faults += u64::from(ends[0].fault.is_some());
        *kinds.entry(kind.clone()).or_insert(0u32) += 1;
        if let Some(what) = difference(&case, &ends, m.data == cpu.data()) {
            let (bytes, theirs, from) = (&case.bytes, &case.theirs, &case.start);
            let told = format!("{mode:?} {bytes:02x?} {theirs}: {what}, from {from:x?}");
            differ.entry(kind).or_insert(told);
        }
    }
    println!(
        "{mode:?}: {done} compared, {faults} faults, {} kinds: {kinds:?}",
        kinds.len()
    );
    let differ: Vec<_> = differ.into_values().collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(kinds.len() > 60, "too few kinds: {kinds:?}");
}

/// One mode after the other, and one test: the signal handlers are the process's.
fn both(count: u64) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    let mut cpu = match Cpu::new() {
        Ok(cpu) => cpu,
        Err(why) => return println!("skipped: {why}"),
    };
    compare(&mut cpu, CpuMode::Bits64, 64, count);
    compare(&mut cpu, CpuMode::Bits32, 32, count);
}

#[test]
fn random_instructions_do_what_the_cpu_does() {
    // What the manuals leave to a CPU may be seen to differ on others: there the long test tells.
    if !cpu::is_amd() {
        return println!("skipped: has been tried on AMD's CPUs only");
    }
    both(COUNT);
}

#[test]
#[ignore = "long"]
fn many_random_instructions_do_what_the_cpu_does() {
    both(LONG);
}
