// SPDX-License-Identifier: GPL-2.0
//! Each instruction twice: executed by the CPU, and, behind the forced-emulation prefix, by the emulator. Registers,
//! segments, tables, memory and faults must come out the same.

use super::prefix::{Forced, PREFIX};
use crate::guest::*;
use crate::harness::{say, Test};
use crate::kvm::{Exit, MsrsBuf, SET_MSRS};
use crate::sys;
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

pub const TESTS: &[Test] = &[
    Test::new("micro/forced_data", data).secs(120),
    Test::new("micro/forced_legacy", legacy).secs(120),
    Test::new("micro/forced_system", system).secs(120),
    Test::new("micro/forced_segments", segments).secs(120),
    Test::new("micro/forced_transfers", transfers).secs(120),
    Test::new("micro/forced_faults", faults).secs(120),
    Test::new("micro/forced_real_mode", real_mode).secs(120),
    Test::new("micro/forced_user", user).secs(120),
    Test::new("micro/forced_none", no_prefix),
];

type Piece = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A name, the instruction, and flags that the manuals leave undefined after it.
struct Case(&'static str, Piece, u64);

/// Where far transfers go to: behind the instruction.
const TARGET: u64 = CODE + 0x80;
/// Far pointers and pseudo-descriptors for the cases.
const POINTERS: u64 = DATA + 0x400;
const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const OF: u64 = 0x800;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// What an instruction did.
#[derive(PartialEq)]
struct Outcome {
    exit: Exit,
    regs: kvm_regs,
    sregs: kvm_sregs,
    memory: Vec<u8>,
}

/// The guest before the instruction.
fn prepare(mode: Mode) -> Guest {
    let g = Guest::new(mode);
    let m = &g.mem;
    m.write(CODE as usize, &[0xf4; 0x200]);
    for n in 0..0x200u64 {
        m.wr((DATA + n) as usize, (n * 0x9d + 0x31) as u8);
    }
    // A level-0 stack for those who need one.
    m.wr(TSS as usize + 4, 0x7000u32);
    m.wr(
        TSS as usize + 8,
        u32::from(if mode == Mode::Long { 0 } else { DATA_SEL }),
    );
    let code = if mode == Mode::Long {
        CODE64_SEL
    } else {
        CODE_SEL
    };
    let p = POINTERS as usize;
    // m16:32 and m16:64 to the target, to data, to what is no segment
    m.wr(p, TARGET as u32);
    m.wr(p + 4, code);
    m.wr(p + 0x10, 0x1234_5678u32);
    m.wr(p + 0x14, DATA_SEL);
    m.wr(p + 0x20, TARGET as u32);
    m.wr(p + 0x24, 0x7777u16);
    m.wr(p + 0x30, TARGET);
    m.wr(p + 0x38, code);
    // A pseudo-descriptor: the same tables, a smaller limit
    m.wr(p + 0x40, 0x37u16);
    m.wr(p + 0x42, GDT);
    m.wr(p + 0x50, 0x1ffu16);
    m.wr(p + 0x52, IDT);
    // Bounds
    m.wr(p + 0x60, 3u32);
    m.wr(p + 0x64, 9u32);
    let mut s = g.cpu.sregs();
    if mode == Mode::Long {
        s.efer |= 1;
        s.cr4 |= 1 << 9 | 1 << 10;
    }
    g.cpu.set_sregs(&s);
    let mut r = g.cpu.regs();
    (r.rax, r.rbx, r.rcx, r.rdx) = (0x1122_3344_5566_7788, DATA + 0x10, 3, 0x99aa_bbcc);
    (r.rsi, r.rdi, r.rbp, r.rsp) = (DATA + 0x80, DATA + 0xfc0, DATA + 0x180, STACK - 0x200);
    (r.r8, r.r9, r.r10, r.r11) = (POINTERS, 0x0123_4567_89ab_cdef, u64::MAX, 0x40);
    if mode != Mode::Long {
        (r.rax, r.r8, r.r9, r.r10, r.r11) = (0x5566_7788, 0, 0, 0, 0);
        r.rbp = POINTERS;
    }
    g.cpu.set_regs(&r);
    g
}

fn run(g: &Guest, forced: bool, insn: &[u8]) -> Outcome {
    let at = CODE as usize;
    g.mem.write(at, if forced { PREFIX } else { &[0x90; 5] });
    g.mem.write(at + 5, insn);
    let exit = g.cpu.run();
    // The prefix is not part of the comparison.
    g.mem.write(at, &[0x90; 5]);
    Outcome {
        exit,
        regs: g.cpu.regs(),
        sregs: g.cpu.sregs(),
        memory: g.mem.get(0, 0x3_0000),
    }
}

fn compare(mode: Mode, cases: &[Case], change: fn(&Guest)) {
    let _on = Forced::on();
    for Case(what, piece, undefined) in cases {
        if what.starts_with("INT ") && sys::loses_int_n() {
            say(&format!(
                "{what} in {mode:?} is left out: Bochs' SVM loses it when it exits"
            ));
            continue;
        }
        let insn = assemble(mode.bits(), CODE + 5, piece);
        let mut out = [false, true].map(|forced| {
            let g = prepare(mode);
            change(&g);
            let out = run(&g, forced, &insn);
            let told = g.describe();
            (out, told)
        });
        for (o, _) in &mut out {
            o.regs.rflags &= !undefined;
            let s = &mut o.sregs;
            if sys::on_bochs_svm() {
                // Which does not load CR2: it is the host's.
                s.cr2 = 0;
            }
            for seg in [
                &mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss, &mut s.ldt,
            ] {
                if seg.unusable != 0 {
                    // What is behind a null selector is the CPU's own.
                    *seg = kvm_segment {
                        selector: seg.selector,
                        unusable: 1,
                        ..Default::default()
                    };
                }
            }
        }
        let [(cpu, cpu_told), (ours, ours_told)] = &out;
        let what = format!("{what} in {mode:?}");
        check!(
            cpu.exit == ours.exit,
            "{what}: {:x?}{cpu_told}, emulated {:x?}{ours_told}",
            cpu.exit,
            ours.exit
        );
        check!(
            cpu.regs == ours.regs,
            "{what}: {:x?}, emulated {:x?}",
            cpu.regs,
            ours.regs
        );
        check!(
            cpu.sregs == ours.sregs,
            "{what}: {:x?}, emulated {:x?}",
            cpu.sregs,
            ours.sregs
        );
        if cpu.memory == ours.memory {
            continue;
        }
        let differs: Vec<_> = (0..cpu.memory.len())
            .filter(|&n| cpu.memory[n] != ours.memory[n])
            // Flags that are undefined were pushed with the others.
            .filter(|_| *undefined == 0)
            .map(|n| (n, cpu.memory[n], ours.memory[n]))
            .take(8)
            .collect();
        check!(differs.is_empty(), "{what}: memory {differs:x?}");
    }
}

fn as_is(_: &Guest) {}

fn data() {
    let cases: &[Case] = &[
        Case("ADD m, r", |a| a.add(dword_ptr(rbx), eax), 0),
        Case("LOCK ADC m, r", |a| a.lock().adc(qword_ptr(rbx), rax), 0),
        Case("SBB r, m", |a| a.sbb(ax, word_ptr(rbx)), 0),
        Case("AND m, imm", |a| a.and(byte_ptr(rbx), 0x5a), AF),
        Case("NEG m", |a| a.neg(dword_ptr(rbx)), 0),
        Case("LOCK XADD", |a| a.lock().xadd(qword_ptr(rbx), rax), 0),
        Case("XCHG m, r", |a| a.xchg(byte_ptr(rbx), ah), 0),
        Case("CMPXCHG", |a| a.cmpxchg(dword_ptr(rbx), ecx), 0),
        Case("CMPXCHG8B", |a| a.cmpxchg8b(qword_ptr(rbx)), 0),
        Case("CMPXCHG16B", |a| a.lock().cmpxchg16b(xmmword_ptr(rbx)), 0),
        Case("SHL m, CL", |a| a.shl(dword_ptr(rbx), cl), AF | OF),
        Case("RCR r, 1", |a| a.rcr(rax, 1), 0),
        Case("ROL m, imm", |a| a.rol(word_ptr(rbx), 5), OF),
        Case("SHLD", |a| a.shld(dword_ptr(rbx), eax, 7), AF | OF),
        Case("SHRD", |a| a.shrd(rax, r9, cl), AF | OF),
        Case("MUL m", |a| a.mul(dword_ptr(rbx)), SF | ZF | AF | PF),
        Case(
            "IMUL r, m, imm",
            |a| a.imul_3(ax, word_ptr(rbx), 77),
            SF | ZF | AF | PF,
        ),
        Case("DIV m", |a| a.div(byte_ptr(rbx)), STATUS),
        Case("IDIV r", |a| a.idiv(r9), STATUS),
        Case("BT m, r", |a| a.bt(dword_ptr(rbx), edx), STATUS & !CF & !ZF),
        Case(
            "LOCK BTS m, imm",
            |a| a.lock().bts(dword_ptr(rbx), 9),
            STATUS & !CF & !ZF,
        ),
        Case("BTC m, r", |a| a.btc(word_ptr(rbx), cx), STATUS & !CF & !ZF),
        Case("BSF", |a| a.bsf(rax, qword_ptr(rbx)), STATUS & !ZF),
        Case("BSR", |a| a.bsr(eax, edx), STATUS & !ZF),
        Case("POPCNT", |a| a.popcnt(rax, qword_ptr(rbx)), 0),
        Case("CRC32", |a| a.db(&[0xf2, 0x0f, 0x38, 0xf1, 0x03]), 0),
        Case("MOVBE", |a| a.movbe(rax, qword_ptr(rbx)), 0),
        Case("BSWAP", |a| a.bswap(r9), 0),
        Case("MOVSX", |a| a.movsx(eax, byte_ptr(rbx)), 0),
        Case("MOVSXD", |a| a.movsxd(rax, dword_ptr(rbx)), 0),
        Case("CMOVcc", |a| a.cmovne(eax, dword_ptr(rbx)), 0),
        Case("SETcc", |a| a.setb(byte_ptr(rbx)), 0),
        Case("XLAT", |a| a.xlatb(), 0),
        Case("CBW", |a| a.cbw(), 0),
        Case("CQO", |a| a.cqo(), 0),
        Case("LEA", |a| a.lea(eax, dword_ptr(rbx + rcx * 4 + 5)), 0),
        Case("PUSH m", |a| a.push(qword_ptr(rbx)), 0),
        Case("POP m", |a| a.pop(qword_ptr(rbx)), 0),
        Case("PUSHF", |a| a.pushfq(), 0),
        Case("POPF", |a| a.popfq(), 0),
        Case("ENTER", |a| a.enter(0x20, 0), 0),
        Case("ENTER with 5 frames", |a| a.enter(0x20, 5), 0),
        Case("LEAVE", |a| a.leave(), 0),
        Case("REP MOVSB", |a| a.rep().movsb(), 0),
        Case("REP MOVSQ", |a| a.rep().movsq(), 0),
        Case("REPNE SCASB", |a| a.repne().scasb(), 0),
        Case("REPE CMPSW", |a| a.repe().cmpsw(), 0),
        Case("STOSD", |a| a.stosd(), 0),
        Case("LODSW", |a| a.lodsw(), 0),
        Case("LAHF", |a| a.lahf(), 0),
        Case("SAHF", |a| a.sahf(), 0),
        Case("CMC", |a| a.cmc(), 0),
        Case("STD", |a| a.std(), 0),
        Case("MOVNTI", |a| a.movnti(dword_ptr(rbx), eax), 0),
        Case("CALL m", |a| a.call(qword_ptr(r8 + 0x30)), 0),
        Case("JMP m", |a| a.jmp(qword_ptr(r8 + 0x30)), 0),
        Case("LOOP", |a| a.loop_(TARGET), 0),
        Case("FNSTCW", |a| a.fnstcw(word_ptr(rbx)), 0),
        Case("FNSTSW", |a| a.fnstsw(ax), 0),
        Case("FNINIT", |a| a.fninit(), 0),
    ];
    compare(Mode::Long, cases, as_is);
}

fn legacy() {
    let cases: &[Case] = &[
        Case("PUSHA", |a| a.pushad(), 0),
        Case("POPA", |a| a.popad(), 0),
        Case("DAA", |a| a.daa(), OF),
        Case("DAS", |a| a.das(), OF),
        Case("AAA", |a| a.aaa(), STATUS & !AF & !CF),
        Case("AAS", |a| a.aas(), STATUS & !AF & !CF),
        Case("AAM", |a| a.aam(10), OF | AF | CF),
        Case("AAD", |a| a.aad(10), OF | AF | CF),
        Case("BOUND inside", |a| a.bound(ecx, dword_ptr(ebp + 0x60)), 0),
        Case("BOUND outside", |a| a.bound(eax, dword_ptr(ebp + 0x60)), 0),
        Case("ARPL", |a| a.arpl(ax, cx), 0),
        Case("LES", |a| a.les(eax, fword_ptr(ebp + 0x10)), 0),
        Case(
            "LDS of no segment",
            |a| a.lds(eax, fword_ptr(ebp + 0x20)),
            0,
        ),
        Case("PUSH ES", |a| a.push(es), 0),
        Case("POP ES of no segment", |a| a.pop(es), 0),
        Case("INTO", |a| a.into(), 0),
        Case("CALL far", |a| a.db(&[0x9a, 0x80, 0x80, 0, 0, 0x08, 0]), 0),
        Case(
            "JMP far to 16 bits",
            |a| a.db(&[0xea, 0x80, 0x80, 0, 0, 0x30, 0]),
            0,
        ),
        Case("INC r", |a| a.db(&[0x41]), 0),
        Case("SALC", |a| a.db(&[0xd6]), 0),
        Case(
            "MOV m, r with 16-bit address",
            |a| a.db(&[0x67, 0x89, 0x07]),
            0,
        ),
    ];
    for mode in [Mode::Prot, Mode::Paged, Mode::Pae] {
        compare(mode, cases, as_is);
    }
}

fn system() {
    let cases: &[Case] = &[
        Case("SGDT", |a| a.sgdt(ptr(rbx)), 0),
        Case("SIDT", |a| a.sidt(ptr(rbx)), 0),
        Case("LGDT", |a| a.lgdt(ptr(r8 + 0x40)), 0),
        Case("LIDT", |a| a.lidt(ptr(r8 + 0x50)), 0),
        Case("SLDT", |a| a.sldt(eax), 0),
        Case("STR", |a| a.str(word_ptr(rbx)), 0),
        Case("SMSW", |a| a.smsw(rax), 0),
        Case("LMSW", |a| a.lmsw(cx), 0),
        Case("LTR of a busy TSS", |a| a.ltr(r11w), 0),
        Case("CLTS", |a| a.clts(), 0),
        Case("MOV r, CR0", |a| a.mov(rax, cr0), STATUS),
        Case("MOV CR0 of nonsense", |a| a.mov(cr0, r10), STATUS),
        Case("MOV r, CR3", |a| a.mov(rax, cr3), STATUS),
        Case("MOV CR4 of nonsense", |a| a.mov(cr4, r10), STATUS),
        Case("MOV r, DR7", |a| a.mov(rax, dr7), STATUS),
        Case("MOV DR0, r", |a| a.mov(dr0, rbx), STATUS),
        Case("RDMSR of nothing", |a| a.rdmsr(), 0),
        Case("WRMSR of nothing", |a| a.wrmsr(), 0),
        Case("CPUID", |a| a.cpuid(), 0),
        Case("INVLPG", |a| a.invlpg(ptr(rbx)), 0),
        Case("WBINVD", |a| a.wbinvd(), 0),
        Case("INVD", |a| a.invd(), 0),
        Case("HLT", |a| a.hlt(), 0),
        Case("CLI", |a| a.cli(), 0),
        Case("STI", |a| a.sti(), 0),
        Case("SWAPGS", |a| a.swapgs(), 0),
        Case("XGETBV without OSXSAVE", |a| a.xgetbv(), 0),
        Case("UD2", |a| a.ud2(), 0),
    ];
    compare(Mode::Long, cases, as_is);
}

fn segments() {
    let cases: &[Case] = &[
        Case("MOV DS, m", |a| a.mov(ds, word_ptr(ebp + 0x14)), 0),
        Case("MOV r, DS", |a| a.mov(eax, ds), 0),
        Case("MOV m, CS", |a| a.mov(word_ptr(ebx), cs), 0),
        Case("MOV FS of nonsense", |a| a.mov(fs, ax), 0),
        Case("MOV SS of nonsense", |a| a.mov(ss, ax), 0),
        Case("MOV GS of null", |a| a.mov(gs, cx), 0),
        Case("MOV SS of null", |a| a.mov(ss, cx), 0),
        Case("MOV ES, m", |a| a.mov(es, word_ptr(ebp + 0x14)), 0),
        Case("LSS", |a| a.lss(esp, fword_ptr(ebp + 0x10)), 0),
        Case(
            "LFS of no segment",
            |a| a.lfs(eax, fword_ptr(ebp + 0x20)),
            0,
        ),
        Case("LAR of code", |a| a.lar(ax, word_ptr(ebp + 4)), 0),
        Case("LAR of nothing", |a| a.lar(ax, word_ptr(ebp + 0x24)), 0),
        Case("LSL of data", |a| a.lsl(eax, word_ptr(ebp + 0x14)), 0),
        Case("VERR of code", |a| a.verr(word_ptr(ebp + 4)), 0),
        Case("VERW of code", |a| a.verw(word_ptr(ebp + 4)), 0),
    ];
    for mode in [Mode::Prot, Mode::Pae] {
        compare(mode, cases, as_is);
    }
}

/// Frames for returns, at the stack pointer.
fn frame(g: &Guest) {
    let top = g.cpu.regs().rsp as usize;
    let long = g.mode == Mode::Long;
    let code = u64::from(if long { CODE64_SEL } else { CODE_SEL });
    for (n, word) in [TARGET, code, 0x46, STACK - 0x100, u64::from(DATA_SEL)]
        .into_iter()
        .enumerate()
    {
        if long {
            g.mem.wr(top + 8 * n, word);
        } else {
            g.mem.wr(top + 4 * n, word as u32);
        }
    }
    let mut r = g.cpu.regs();
    // For SYSRET and SYSCALL
    (r.rcx, r.r11) = (TARGET, 0x46);
    g.cpu.set_regs(&r);
    let msrs = [
        (0xc000_0081, 0x0013_0018_0000_0000),
        (0xc000_0082, TARGET),
        (0xc000_0084, 0x200),
        (0x174, u64::from(CODE_SEL)),
        (0x175, STACK - 0x80),
        (0x176, TARGET),
    ];
    let set = g.cpu.fd.with(SET_MSRS, &mut *MsrsBuf::of(&msrs));
    eq!(set, Ok(msrs.len() as i32));
}

fn transfers() {
    let both: &[Case] = &[
        Case(
            "IRET",
            |a| {
                if a.bitness() == 64 {
                    a.iretq()
                } else {
                    a.iretd()
                }
            },
            0,
        ),
        Case(
            "RET far",
            |a| {
                if a.bitness() == 64 {
                    a.db(&[0x48, 0xcb])
                } else {
                    a.db(&[0xcb])
                }
            },
            0,
        ),
        Case(
            "RET far, imm",
            |a| {
                if a.bitness() == 64 {
                    a.db(&[0x48, 0xca, 16, 0])
                } else {
                    a.db(&[0xca, 16, 0])
                }
            },
            0,
        ),
        Case("INT 33", |a| a.int(0x21), 0),
        Case("INT3", |a| a.int3(), 0),
        Case("RET", |a| a.ret(), 0),
    ];
    let sysenter: &[Case] = &[Case("SYSENTER", |a| a.sysenter(), 0)];
    let long: &[Case] = &[
        Case("SYSCALL", |a| a.syscall(), 0),
        Case("JMP m16:32", |a| a.jmp(fword_ptr(r8)), 0),
        Case("CALL m16:32", |a| a.call(fword_ptr(r8)), 0),
        Case(
            "JMP m16:32 to no segment",
            |a| a.jmp(fword_ptr(r8 + 0x20)),
            0,
        ),
    ];
    let legacy: &[Case] = &[
        Case("JMP m16:32", |a| a.jmp(fword_ptr(ebp)), 0),
        Case("CALL m16:32", |a| a.call(fword_ptr(ebp)), 0),
        Case("CALL m16:32 of data", |a| a.call(fword_ptr(ebp + 0x10)), 0),
    ];
    compare(Mode::Long, both, frame);
    compare(Mode::Long, long, frame);
    compare(Mode::Prot, both, frame);
    compare(Mode::Prot, sysenter, frame);
    if sys::on_bochs_svm() {
        say("SYSENTER in long mode is left out: Bochs does not give #UD as AMD's CPUs do");
    } else {
        compare(Mode::Long, sysenter, frame);
    }
    compare(Mode::Pae, legacy, frame);
}

fn faults() {
    let cases: &[Case] = &[
        Case(
            "a page that is not there",
            |a| a.mov(dword_ptr(r9 + r9), eax),
            STATUS,
        ),
        Case(
            "an address above 4 GiB, read",
            |a| a.db(&[0x48, 0x8b, 0x04, 0x8d, 0, 0, 0, 0x80]),
            0,
        ),
        Case(
            "an address that is not canonical",
            |a| a.mov(dword_ptr(r9), eax),
            0,
        ),
        Case("division by zero", |a| a.div(qword_ptr(r8 + 0x80)), STATUS),
        Case("a quotient that is too large", |a| a.div(cl), STATUS),
        Case(
            "an unaligned MOVAPS",
            |a| a.movaps(xmmword_ptr(rbx + 1), xmm0),
            0,
        ),
        Case(
            "an unaligned CMPXCHG16B",
            |a| a.cmpxchg16b(xmmword_ptr(rbx + 4)),
            0,
        ),
    ];
    compare(Mode::Long, cases, as_is);
}

fn real_mode() {
    let cases: &[Case] = &[
        Case("MOV DS, r", |a| a.mov(ds, cx), 0),
        Case("POP ES", |a| a.pop(es), 0),
        Case("INT 33", |a| a.int(0x21), 0),
        Case("JMP far", |a| a.db(&[0xea, 0x80, 0x80, 0, 0]), 0),
        Case("CALL far", |a| a.db(&[0x9a, 0x80, 0x80, 0, 0]), 0),
        Case("PUSHF", |a| a.pushf(), 0),
        Case("POPF", |a| a.popf(), 0),
        Case("PUSHA", |a| a.pusha(), 0),
        Case("SMSW", |a| a.smsw(ax), 0),
        Case("SGDT", |a| a.sgdt(ptr(si)), 0),
        Case("LAR", |a| a.lar(ax, cx), 0),
        Case("LODSB", |a| a.lodsb(), 0),
        Case("MOV r32, CR0", |a| a.mov(eax, cr0), STATUS),
        Case("IRET", |a| a.iret(), 0),
        Case("RET far", |a| a.retf(), 0),
    ];
    compare(Mode::Real, cases, |g| {
        let mut r = g.cpu.regs();
        (r.rsp, r.rbp, r.rsi, r.rdi) = (0x7000, 0x6000, 0x5800, 0x5900);
        r.rbx = 0x5a00;
        g.cpu.set_regs(&r);
        g.mem.wr(0x7000, TARGET as u16);
        g.mem.wr(0x7002, 0u16);
        g.mem.wr(0x7004, 0x0246u16);
    });
}

/// At privilege level 3: the sensitive and the privileged instructions. (In long mode: TCG ends when a 32-bit guest changes
/// to an inner level with a TSS that is busy, as all that are loaded are.)
fn user() {
    let cases: &[Case] = &[
        Case("CLI", |a| a.cli(), 0),
        Case("HLT", |a| a.hlt(), 0),
        Case("POPF", |a| a.popfq(), 0),
        Case("SGDT", |a| a.sgdt(ptr(rbx)), 0),
        Case("SMSW", |a| a.smsw(eax), 0),
        Case("LMSW", |a| a.lmsw(ax), 0),
        Case("MOV r, CR0", |a| a.mov(rax, cr0), 0),
        Case("RDMSR", |a| a.rdmsr(), 0),
        Case("IN", |a| a.in_(al, 0x70), 0),
        Case("INT 33 of a gate for level 0", |a| a.int(0x21), 0),
        Case("MOV DS of level 0", |a| a.mov(ds, word_ptr(r8 + 0x14)), 0),
        Case("JMP far to level 0", |a| a.jmp(fword_ptr(r8)), 0),
        Case("LAR of level 0", |a| a.lar(ax, word_ptr(r8 + 4)), 0),
        Case("ADD m, r", |a| a.add(dword_ptr(rbx), eax), 0),
        Case("LLDT", |a| a.lldt(ax), 0),
        Case("RDTSC of a forbidden kind", |a| a.rdpmc(), 0),
    ];
    compare(Mode::Long, cases, Guest::to_user);
}

/// Without the parameter the prefix is what it is on any CPU: UD2.
fn no_prefix() {
    let _off = Forced::off();
    let g = prepare(Mode::Long);
    g.mem.write(CODE as usize, PREFIX);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (6, CODE));
}
