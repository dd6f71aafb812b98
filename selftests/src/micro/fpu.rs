// SPDX-License-Identifier: GPL-2.0
//! x87, SSE and AVX registers: kept across exits and not mixed with those of user space.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/fpu_x87_across_exits", x87),
    Test::new("micro/fpu_sse_across_exits", sse),
    Test::new("micro/fpu_avx_across_exits", avx),
    Test::new("micro/fpu_get_set_and_guest", get_set),
    Test::new("micro/fpu_initial_state", initial_state).no_ab(),
    Test::new("micro/fpu_not_available", not_available),
    Test::new("micro/fpu_two_vcpus", two_vcpus),
];

/// Lets user space use its own FPU between two exits.
fn disturb(round: u64) -> f64 {
    let mut x = round as f64 + 0.5;
    for i in 0..50 {
        x = (x * 1.000_1 + f64::from(i)).sqrt();
    }
    std::hint::black_box(x)
}

fn enable_sse(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, cr4)?;
    a.or(rax, 0x600)?;
    a.mov(cr4, rax)
}

fn x87() {
    let g = Guest::new(Mode::Long);
    for i in 0..8usize {
        g.mem.wr(DATA as usize + 8 * i, (1.5 + i as f64).to_bits());
    }
    g.load(|a| {
        a.fninit()?;
        for i in 0..8u64 {
            a.fld(qword_ptr(DATA + 8 * i))?;
        }
        for _ in 0..4 {
            a.out(0x10, al)?;
        }
        for i in 0..8u64 {
            a.fstp(qword_ptr(DATA + 0x100 + 8 * i))?;
            a.out(0x10, al)?;
        }
        a.hlt()
    });
    let mut round = 0;
    while let Exit::Io { port: 0x10, .. } = g.cpu.run() {
        round += 1;
        disturb(round);
    }
    eq!(round, 12);
    for i in 0..8usize {
        let got = f64::from_bits(g.mem.rd(DATA as usize + 0x100 + 8 * i));
        check!(got == 8.5 - i as f64, "register {i}: {got}");
    }
}

fn pattern(g: &Guest, at: u64, n: usize) {
    for i in 0..n {
        g.mem.wr(at as usize + i, (i * 31 + 7) as u8);
    }
}

const XMM: [AsmRegisterXmm; 16] = [
    xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14,
    xmm15,
];
const YMM: [AsmRegisterYmm; 16] = [
    ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14,
    ymm15,
];

fn sse() {
    let g = Guest::new(Mode::Long);
    pattern(&g, DATA, 256);
    g.mem.wr(DATA as usize + 0x800, 0x1fa0u32);
    g.load(|a| {
        enable_sse(a)?;
        a.ldmxcsr(dword_ptr(DATA + 0x800))?;
        for (i, x) in XMM.iter().enumerate() {
            a.movups(*x, xmmword_ptr(DATA + 16 * i as u64))?;
        }
        for _ in 0..8 {
            a.out(0x10, al)?;
            a.cpuid()?;
        }
        for (i, x) in XMM.iter().enumerate() {
            a.movups(xmmword_ptr(DATA + 0x1000 + 16 * i as u64), *x)?;
        }
        a.stmxcsr(dword_ptr(DATA + 0x804))?;
        a.hlt()
    });
    let mut round = 0;
    while let Exit::Io { port: 0x10, .. } = g.cpu.run() {
        round += 1;
        disturb(round);
    }
    eq!(round, 8);
    eq!(
        g.mem.read(DATA as usize + 0x1000, 256),
        g.mem.read(DATA as usize, 256)
    );
    eq!(g.mem.rd::<u32>(DATA as usize + 0x804), 0x1fa0, "MXCSR");
}

/// The CPU has all of these features of CPUID leaf 1, ECX.
fn has(g: &Guest, features: u32) -> bool {
    let c = g.kvm.cpuid();
    let n = c.nent as usize;
    c.entries[..n]
        .iter()
        .any(|e| e.function == 1 && e.ecx & features == features)
}

fn has_xsave(g: &Guest) -> bool {
    has(g, 1 << 26)
}

fn has_avx(g: &Guest) -> bool {
    has(g, 1 << 26 | 1 << 28)
}

/// Switches SSE and XSAVE on, and the components of `xcr0`, in 64-bit code.
fn switch_on(a: &mut CodeAssembler, xcr0: u32) -> Result<(), IcedError> {
    a.mov(rax, cr4)?;
    a.or(rax, 0x4_0600)?;
    a.mov(cr4, rax)?;
    a.xor(ecx, ecx)?;
    a.xor(edx, edx)?;
    a.mov(eax, xcr0)?;
    a.xsetbv()
}

fn avx() {
    let g = Guest::new(Mode::Long);
    if !has_avx(&g) {
        harness::skip("no AVX on this CPU");
    }
    pattern(&g, DATA, 512);
    g.load(|a| {
        switch_on(a, 7)?;
        for (i, y) in YMM.iter().enumerate() {
            a.vmovups(*y, ymmword_ptr(DATA + 32 * i as u64))?;
        }
        for _ in 0..8 {
            a.out(0x10, al)?;
        }
        for (i, y) in YMM.iter().enumerate() {
            a.vmovups(ymmword_ptr(DATA + 0x1000 + 32 * i as u64), *y)?;
        }
        a.hlt()
    });
    let mut round = 0;
    while let Exit::Io { port: 0x10, .. } = g.cpu.run() {
        round += 1;
        disturb(round);
        if round == 4 {
            // A vCPU of another VM with other contents runs in between.
            let other = Guest::new(Mode::Long);
            other.load(|a| {
                enable_sse(a)?;
                for x in XMM {
                    a.pcmpeqd(x, x)?;
                }
                a.hlt()
            });
            eq!(other.values(), vec![]);
        }
    }
    eq!(round, 8);
    eq!(
        g.mem.read(DATA as usize + 0x1000, 512),
        g.mem.read(DATA as usize, 512)
    );
}

fn get_set() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        enable_sse(a)?;
        // The guest uses both parts first: with registers in their initial state XSAVE's header says "nothing to
        // restore", and what KVM_SET_FPU puts there is lost in-tree.
        a.fninit()?;
        a.fld1()?;
        a.pcmpeqd(xmm3, xmm3)?;
        a.hlt()?;
        a.movups(xmmword_ptr(DATA), xmm3)?;
        a.fstp(tbyte_ptr(DATA + 0x20))?;
        a.fld1()?;
        a.fldpi()?;
        a.pcmpeqd(xmm5, xmm5)?;
        a.hlt()
    });
    eq!(g.cpu.run(), Exit::Hlt);
    let mut f: kvm_fpu = crate::must!(g.cpu.fd.take(GET_FPU));
    f.xmm[3] = [0x3c; 16];
    // One valid register on the stack: 1.0 in ST(0).
    f.fpr[0][..10].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    (f.fsw, f.ftwx) = (7 << 11, 0x80);
    eq!(g.cpu.fd.give(SET_FPU, &f), Ok(0));
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.mem.read(DATA as usize, 16), vec![0x3c; 16]);
    eq!(
        g.mem.read(DATA as usize + 0x20, 10),
        f.fpr[0][..10].to_vec()
    );
    let f: kvm_fpu = crate::must!(g.cpu.fd.take(GET_FPU));
    eq!(f.xmm[5], [0xff; 16]);
    eq!((f.fsw >> 11) & 7, 6, "two values on the stack");
    eq!(f.fpr[1][7..10], [0x80, 0xff, 0x3f], "1.0 below");
    eq!(
        f.fpr[0][..8],
        0xc90f_daa2_2168_c235u64.to_le_bytes(),
        "pi on top"
    );
}

/// Registers that XRSTOR put into their initial state are that for KVM_GET_FPU, whatever they held before, and KVM_SET_FPU of the same
/// keeps them so.
fn initial_state() {
    let g = Guest::new(Mode::Long);
    if !has_xsave(&g) {
        harness::skip("no XSAVE on this CPU");
    }
    const IMAGE: u64 = DATA + 0x1000;
    g.mem.wr(DATA as usize, 0x1fa0u32);
    // What the standard form of XRSTOR takes from the image even so.
    g.mem.wr(IMAGE as usize + 24, 0x1f80u32);
    g.load(|a| {
        switch_on(a, 3)?;
        a.fninit()?;
        a.fldpi()?;
        a.pcmpeqd(xmm0, xmm0)?;
        a.pcmpeqd(xmm15, xmm15)?;
        a.ldmxcsr(dword_ptr(DATA))?;
        a.out(0x10, al)?;
        a.mov(eax, 3)?;
        a.xrstor(ptr(IMAGE))?;
        a.out(0x11, al)?;
        a.movups(xmmword_ptr(DATA + 0x10), xmm0)?;
        a.movups(xmmword_ptr(DATA + 0x20), xmm15)?;
        a.stmxcsr(dword_ptr(DATA + 0x30))?;
        a.fnstcw(word_ptr(DATA + 0x34))?;
        a.fnstsw(word_ptr(DATA + 0x36))?;
        a.hlt()
    });
    g.expect(&out(0x10, &[3]));
    let f: kvm_fpu = crate::must!(g.cpu.fd.take(GET_FPU));
    eq!((f.xmm[0], f.xmm[15]), ([0xff; 16], [0xff; 16]));
    eq!((f.fsw, f.ftwx), (7 << 11, 0x80), "one value on the stack");
    g.expect(&out(0x11, &[3]));
    let f: kvm_fpu = crate::must!(g.cpu.fd.take(GET_FPU));
    eq!((f.xmm[0], f.xmm[15]), ([0; 16], [0; 16]));
    eq!((f.fcw, f.fsw, f.ftwx), (0x37f, 0, 0));
    eq!(f.fpr, [[0; 16]; 8]);
    eq!(g.cpu.fd.give(SET_FPU, &f), Ok(0));
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.mem.read(DATA as usize + 0x10, 32), vec![0; 32]);
    eq!(g.mem.rd::<u32>(DATA as usize + 0x30), 0x1f80, "MXCSR");
    eq!(g.mem.rd::<u16>(DATA as usize + 0x34), 0x37f, "control word");
    eq!(g.mem.rd::<u16>(DATA as usize + 0x36), 0, "status word");
}

fn not_available() {
    // CR0.TS makes #NM for the guest, whatever the host does with its own FPU.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(rax, 0x8000_0019u64)?;
        a.mov(cr0, rax)?;
        a.fninit()
    });
    let t = g.run_to_trap();
    eq!((t.vector, t.ip > CODE), (7, true));
    let g = Guest::new(Mode::Long);
    g.load(|a| a.movaps(xmm0, xmm1));
    eq!(g.run_to_trap().vector, 6, "SSE without CR4.OSFXSR");
}

fn two_vcpus() {
    // Two vCPUs of one thread in turn.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        enable_sse(a)?;
        a.movq(xmm7, rbx)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.movq(rax, xmm7)?;
        a.out(0x10, al)?;
        a.jmp(top)
    });
    let second = g.second_vcpu(1);
    for (c, v) in [(&g.cpu, 0x11u64), (&second, 0x22)] {
        let mut r = c.regs();
        r.rbx = v;
        c.set_regs(&r);
    }
    for i in 0..20 {
        eq!(g.cpu.run(), out(0x10, &[0x11]));
        disturb(i);
        eq!(second.run(), out(0x10, &[0x22]));
    }
}
