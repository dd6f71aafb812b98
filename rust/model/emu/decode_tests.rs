// SPDX-License-Identifier: GPL-2.0
//! The decoder against iced-x86, on seeded random instructions, and a few fixed cases.
use super::*;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use std::vec::Vec;

/// Instructions per mode.
const COUNT: u32 = 1_000_000;

/// A small generator (xorshift64*), so that a failure repeats.
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    pub(crate) fn byte(&mut self) -> u8 {
        (self.next() >> 40) as u8
    }
}

/// Bytes that begin with something like an instruction: prefixes, an escape, then noise.
pub(crate) fn random_bytes(rng: &mut Rng) -> [u8; 24] {
    const PREFIXES: [u8; 11] = [
        0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65,
    ];
    let mut head: Vec<u8> = Vec::new();
    for _ in 0..[0, 0, 0, 1, 1, 2, 3, 12][rng.below(8) as usize] {
        head.push(PREFIXES[rng.below(11) as usize]);
    }
    if rng.below(3) == 0 {
        head.push(0x40 | rng.byte() & 15);
    }
    match rng.below(16) {
        0..=5 => {}
        6..=10 => head.push(0x0f),
        11 => head.extend([0x0f, 0x38]),
        12 => head.extend([0x0f, 0x3a]),
        13 => head.push([0xc4, 0xc5, 0x62, 0x8f][rng.below(4) as usize]),
        14 => {
            let vex = [0xc4, 0x62, 0x8f][rng.below(3) as usize];
            head.extend([
                vex,
                0xe0 | (1 + rng.below(3) as u8),
                0x78 | rng.byte() & 0x87,
            ]);
        }
        _ => head.extend([0xc5, 0xf8 | rng.byte() & 7]),
    }
    let mut bytes = [0; 24];
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = head.get(n).copied().unwrap_or_else(|| rng.byte());
    }
    bytes
}

fn bits(mode: CpuMode) -> u32 {
    match mode {
        CpuMode::Bits16 => 16,
        CpuMode::Bits32 => 32,
        CpuMode::Bits64 => 64,
    }
}

fn reference(bytes: &[u8], mode: CpuMode) -> Option<Instruction> {
    let insn = Decoder::with_ip(bits(mode), bytes, 0, DecoderOptions::NONE).decode();
    (!insn.is_invalid()).then_some(insn)
}

fn register(base: Base) -> (Register, bool) {
    match base {
        Base::None => (Register::None, false),
        Base::Rip => (Register::None, true),
        Base::Gpr(n) => (Register::RAX + u32::from(n), false),
    }
}

/// iced reports CS, DS, ES and SS overrides in 64-bit mode too, where they have no effect: there the default stands.
fn segment(ours: &Insn, theirs: &Instruction) -> Register {
    let stack = matches!(
        theirs.memory_base().full_register(),
        Register::RSP | Register::RBP
    );
    match theirs.segment_prefix() {
        Register::None | Register::FS | Register::GS => theirs.memory_segment(),
        _ if ours.mode != CpuMode::Bits64 => theirs.memory_segment(),
        _ if stack => Register::SS,
        _ => Register::DS,
    }
}

/// Compares the explicit memory operand. What is not compared: kinds for which the table keeps only the length
/// (`Kind::Other` and those with `Any` operands), and XLAT, whose operand is implied.
fn same_memory(ours: &Insn, theirs: &Instruction, bytes: &[u8]) {
    let op = (0..theirs.op_count()).find(|&n| theirs.op_kind(n) == OpKind::Memory);
    let described =
        !ours.desc.args.contains(&Arg::Any) && !matches!(ours.kind(), Kind::Other | Kind::Xlat);
    if !described {
        return;
    }
    let context = || std::format!("{bytes:02x?} {:?}: {ours:?} against {theirs:?}", ours.mode);
    assert_eq!(ours.mem.is_some(), op.is_some(), "{}", context());
    let (Some(mem), Some(_)) = (ours.mem, op) else {
        return;
    };
    let (base, rip) = register(mem.base);
    let full = |r: Register| {
        if r == Register::None || r.is_ip() {
            r
        } else {
            r.full_register()
        }
    };
    assert_eq!(theirs.is_ip_rel_memory_operand(), rip, "{}", context());
    if !rip {
        assert_eq!(full(theirs.memory_base()), base, "base {}", context());
    }
    let index = mem
        .index
        .map_or(Register::None, |n| Register::RAX + u32::from(n));
    assert_eq!(full(theirs.memory_index()), index, "index {}", context());
    if mem.index.is_some() {
        assert_eq!(
            theirs.memory_index_scale(),
            1 << mem.scale,
            "scale {}",
            context()
        );
    }
    let next = if rip { u64::from(ours.len) } else { 0 };
    let mask = u64::MAX >> (64 - 8 * u32::from(ours.addr_size));
    assert_eq!(
        theirs.memory_displacement64() & mask,
        (mem.disp as u64).wrapping_add(next) & mask,
        "displacement {}",
        context()
    );
    assert_eq!(
        segment(ours, theirs),
        Register::ES + ours.seg as u32,
        "segment {}",
        context()
    );
    // Address-only operands and far pointers have no size here.
    if mem.size != 0 {
        assert_eq!(
            theirs.memory_size().size(),
            usize::from(mem.size),
            "size {}",
            context()
        );
    }
}

/// String instructions have their operands implied: compare address size and source segment.
fn same_string(ours: &Insn, theirs: &Instruction) {
    for n in 0..theirs.op_count() {
        let (size, source) = match theirs.op_kind(n) {
            OpKind::MemorySegSI => (2, true),
            OpKind::MemorySegESI => (4, true),
            OpKind::MemorySegRSI => (8, true),
            OpKind::MemoryESDI => (2, false),
            OpKind::MemoryESEDI => (4, false),
            OpKind::MemoryESRDI => (8, false),
            _ => continue,
        };
        if ours.desc.args.contains(&Arg::Any) {
            continue; // MASKMOVQ and the like.
        }
        assert_eq!(ours.addr_size, size, "{ours:?}");
        if source {
            assert_eq!(
                segment(ours, theirs),
                Register::ES + ours.seg as u32,
                "{ours:?}"
            );
        }
    }
}

/// Kinds that an exit handler relies on to recognise the intercepted instruction, and some more.
#[rustfmt::skip]
const NAMES: &[(Kind, Mnemonic)] = &[
    (Kind::Add, Mnemonic::Add), (Kind::Or, Mnemonic::Or), (Kind::Adc, Mnemonic::Adc), (Kind::Sbb, Mnemonic::Sbb),
    (Kind::And, Mnemonic::And), (Kind::Sub, Mnemonic::Sub), (Kind::Xor, Mnemonic::Xor), (Kind::Cmp, Mnemonic::Cmp),
    (Kind::Rol, Mnemonic::Rol), (Kind::Ror, Mnemonic::Ror), (Kind::Rcl, Mnemonic::Rcl), (Kind::Rcr, Mnemonic::Rcr),
    (Kind::Shl, Mnemonic::Shl), (Kind::Shr, Mnemonic::Shr), (Kind::Sal, Mnemonic::Sal), (Kind::Sar, Mnemonic::Sar),
    (Kind::Shld, Mnemonic::Shld), (Kind::Shrd, Mnemonic::Shrd), (Kind::Test, Mnemonic::Test),
    (Kind::Not, Mnemonic::Not), (Kind::Neg, Mnemonic::Neg), (Kind::Inc, Mnemonic::Inc), (Kind::Dec, Mnemonic::Dec),
    (Kind::Mul, Mnemonic::Mul), (Kind::Div, Mnemonic::Div), (Kind::Idiv, Mnemonic::Idiv),
    (Kind::Movzx, Mnemonic::Movzx), (Kind::Movsx, Mnemonic::Movsx), (Kind::Movsxd, Mnemonic::Movsxd),
    (Kind::Movbe, Mnemonic::Movbe), (Kind::Lea, Mnemonic::Lea), (Kind::Xchg, Mnemonic::Xchg),
    (Kind::Xadd, Mnemonic::Xadd), (Kind::Cmpxchg, Mnemonic::Cmpxchg), (Kind::Bswap, Mnemonic::Bswap),
    (Kind::Bt, Mnemonic::Bt), (Kind::Bts, Mnemonic::Bts), (Kind::Btr, Mnemonic::Btr), (Kind::Btc, Mnemonic::Btc),
    (Kind::Bsf, Mnemonic::Bsf), (Kind::Bsr, Mnemonic::Bsr), (Kind::Popcnt, Mnemonic::Popcnt),
    (Kind::Tzcnt, Mnemonic::Tzcnt), (Kind::Lzcnt, Mnemonic::Lzcnt), (Kind::Bound, Mnemonic::Bound),
    (Kind::Enter, Mnemonic::Enter), (Kind::Leave, Mnemonic::Leave), (Kind::Int, Mnemonic::Int),
    (Kind::Int1, Mnemonic::Int1), (Kind::Int3, Mnemonic::Int3), (Kind::Into, Mnemonic::Into),
    (Kind::In, Mnemonic::In), (Kind::Out, Mnemonic::Out), (Kind::Pause, Mnemonic::Pause), (Kind::Hlt, Mnemonic::Hlt),
    (Kind::Cli, Mnemonic::Cli), (Kind::Sti, Mnemonic::Sti), (Kind::Clts, Mnemonic::Clts),
    (Kind::Sldt, Mnemonic::Sldt), (Kind::Str, Mnemonic::Str), (Kind::Lldt, Mnemonic::Lldt), (Kind::Ltr, Mnemonic::Ltr),
    (Kind::Sgdt, Mnemonic::Sgdt), (Kind::Sidt, Mnemonic::Sidt), (Kind::Lgdt, Mnemonic::Lgdt),
    (Kind::Lidt, Mnemonic::Lidt), (Kind::Smsw, Mnemonic::Smsw), (Kind::Lmsw, Mnemonic::Lmsw),
    (Kind::Invlpg, Mnemonic::Invlpg), (Kind::Invd, Mnemonic::Invd), (Kind::Wbinvd, Mnemonic::Wbinvd),
    (Kind::Wbnoinvd, Mnemonic::Wbnoinvd), (Kind::Cpuid, Mnemonic::Cpuid), (Kind::Rdmsr, Mnemonic::Rdmsr),
    (Kind::Wrmsr, Mnemonic::Wrmsr), (Kind::Rdtsc, Mnemonic::Rdtsc), (Kind::Rdtscp, Mnemonic::Rdtscp),
    (Kind::Rdpmc, Mnemonic::Rdpmc), (Kind::Xgetbv, Mnemonic::Xgetbv), (Kind::Xsetbv, Mnemonic::Xsetbv),
    (Kind::Rdpid, Mnemonic::Rdpid), (Kind::Monitor, Mnemonic::Monitor), (Kind::Mwait, Mnemonic::Mwait),
    (Kind::Monitorx, Mnemonic::Monitorx), (Kind::Mwaitx, Mnemonic::Mwaitx), (Kind::Clac, Mnemonic::Clac),
    (Kind::Stac, Mnemonic::Stac), (Kind::Swapgs, Mnemonic::Swapgs), (Kind::Rsm, Mnemonic::Rsm),
    (Kind::Syscall, Mnemonic::Syscall), (Kind::Sysenter, Mnemonic::Sysenter), (Kind::Vmcall, Mnemonic::Vmcall),
    (Kind::Vmlaunch, Mnemonic::Vmlaunch), (Kind::Vmresume, Mnemonic::Vmresume), (Kind::Vmxoff, Mnemonic::Vmxoff),
    (Kind::Vmxon, Mnemonic::Vmxon), (Kind::Vmptrld, Mnemonic::Vmptrld), (Kind::Vmptrst, Mnemonic::Vmptrst),
    (Kind::Vmclear, Mnemonic::Vmclear), (Kind::Vmread, Mnemonic::Vmread), (Kind::Vmwrite, Mnemonic::Vmwrite),
    (Kind::Vmfunc, Mnemonic::Vmfunc), (Kind::Invept, Mnemonic::Invept), (Kind::Invvpid, Mnemonic::Invvpid),
    (Kind::Invpcid, Mnemonic::Invpcid), (Kind::Vmrun, Mnemonic::Vmrun), (Kind::Vmmcall, Mnemonic::Vmmcall),
    (Kind::Vmload, Mnemonic::Vmload), (Kind::Vmsave, Mnemonic::Vmsave), (Kind::Stgi, Mnemonic::Stgi),
    (Kind::Clgi, Mnemonic::Clgi), (Kind::Skinit, Mnemonic::Skinit), (Kind::Invlpga, Mnemonic::Invlpga),
    (Kind::Invlpgb, Mnemonic::Invlpgb), (Kind::Tlbsync, Mnemonic::Tlbsync),
    (Kind::Rdrand, Mnemonic::Rdrand), (Kind::Rdseed, Mnemonic::Rdseed), (Kind::Encls, Mnemonic::Encls),
    (Kind::Serialize, Mnemonic::Serialize), (Kind::Xlat, Mnemonic::Xlatb),
];

/// In both directions: a name in the list belongs to its kind, a kind in the list to its name. Not compared: F3 90
/// with REX.B, which iced reads as PAUSE and CPUs execute as an exchange with R8.
fn same_name(ours: &Insn, theirs: &Instruction) {
    if ours.opcode == 0x90 && ours.map == Map::Primary && ours.prefixes.rex & 1 != 0 {
        return;
    }
    for &(kind, mnemonic) in NAMES {
        let same = (kind == ours.kind()) == (mnemonic == theirs.mnemonic());
        assert!(
            same,
            "{ours:?} against {:?} {:?}",
            theirs.mnemonic(),
            theirs.code()
        );
    }
}

fn same_as_iced(mode: CpuMode, seed: u64, count: u32) {
    let mut rng = Rng(seed);
    let mut valid = 0;
    for _ in 0..count {
        let bytes = random_bytes(&mut rng);
        let ours = decode(&bytes, mode);
        let Some(theirs) = reference(&bytes, mode) else {
            continue;
        };
        valid += 1;
        let Ok(ours) = ours else {
            panic!(
                "{mode:?} {bytes:02x?}: {ours:?} against {theirs:?} ({:?})",
                theirs.code()
            );
        };
        let len = theirs.len();
        assert_eq!(
            usize::from(ours.len),
            len,
            "{mode:?} {bytes:02x?} {theirs:?} {:?}",
            theirs.code()
        );
        same_memory(&ours, &theirs, &bytes[..len]);
        same_string(&ours, &theirs);
        same_name(&ours, &theirs);
        assert!(matches!(decode(&bytes[..len], mode), Ok(i) if usize::from(i.len) == len));
        let short = rng.below(len as u64) as usize;
        assert_eq!(
            decode(&bytes[..short], mode).err(),
            Some(DecodeError::Truncated)
        );
    }
    assert!(
        valid > count / 3,
        "only {valid} of {count} were instructions"
    );
}

#[test]
fn same_as_iced_in_16_bit_code() {
    same_as_iced(CpuMode::Bits16, 0x16, COUNT);
}

#[test]
fn same_as_iced_in_32_bit_code() {
    same_as_iced(CpuMode::Bits32, 0x32, COUNT);
}

#[test]
fn same_as_iced_in_64_bit_code() {
    same_as_iced(CpuMode::Bits64, 0x64, COUNT);
}

#[test]
#[ignore = "long"]
fn many_same_as_iced() {
    for (mode, seed) in [
        (CpuMode::Bits16, 0x1616),
        (CpuMode::Bits32, 0x3232),
        (CpuMode::Bits64, 0x6464),
    ] {
        same_as_iced(mode, seed, 20 * COUNT);
    }
}

/// Each vector move behind each VEX prefix: what iced refuses, we refuse, for the third register that it must not name and the
/// length that it does not have.
#[test]
fn vex_moves_are_those_of_iced() {
    let (mut valid, mut refused) = (0, 0);
    for mode in [CpuMode::Bits16, CpuMode::Bits32, CpuMode::Bits64] {
        for n in 0..=u16::MAX {
            let [op, last] = n.to_be_bytes();
            for map in [1, 2] {
                for (w, modrm) in [(0, 0x0b), (0, 0xcb), (0x80, 0x0b), (0x80, 0xcb)] {
                    let mut bytes = [0x11u8; 24];
                    bytes[..5].copy_from_slice(&[0xc4, 0xe0 | map, w | last & 0x7f, op, modrm]);
                    let (ours, theirs) = (decode(&bytes, mode), reference(&bytes, mode));
                    match ours {
                        Ok(insn) if insn.kind().is_vector_move() => {
                            assert!(theirs.is_some(), "{mode:?} {bytes:02x?}: {insn:?}");
                            valid += 1;
                        }
                        Ok(_) => {}
                        Err(e) => {
                            assert_eq!((e, theirs), (DecodeError::Invalid, None), "{bytes:02x?}");
                            refused += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(valid > 500 && refused > 5000, "{valid} {refused}");
}

/// Every opcode of the four legacy maps with every ModRM byte, behind each mandatory prefix and REX.W: what iced knows, we
/// know with the same length.
#[test]
#[ignore = "long"]
fn every_opcode_and_modrm() {
    let prefixes: [&[u8]; 7] = [
        &[],
        &[0x66],
        &[0xf2],
        &[0xf3],
        &[0xf0],
        &[0x48],
        &[0x66, 0x48],
    ];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    for mode in [CpuMode::Bits16, CpuMode::Bits32, CpuMode::Bits64] {
        for (prefix, map) in prefixes
            .iter()
            .flat_map(|p| maps.iter().map(move |m| (p, m)))
        {
            for n in 0..=u16::MAX {
                let [op, modrm] = n.to_be_bytes();
                let mut bytes = [0x11u8; 24];
                let head = prefix.iter().chain(map.iter()).copied().chain([op, modrm]);
                for (to, from) in bytes.iter_mut().zip(head) {
                    *to = from;
                }
                let Some(theirs) = reference(&bytes, mode) else {
                    let _ = decode(&bytes, mode);
                    continue;
                };
                let len = decode(&bytes, mode).map(|i| usize::from(i.len));
                assert_eq!(len, Ok(theirs.len()), "{mode:?} {bytes:02x?}");
            }
        }
    }
}
