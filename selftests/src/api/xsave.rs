// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_XSAVE, KVM_GET_XSAVE2 and KVM_SET_XSAVE.

use crate::guest::{Guest, Mode, DATA};
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{bad_addr, Map};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::{EFAULT, EINVAL};

pub const TESTS: &[Test] = &[
    Test::new("api/xsave_round_trip", round_trip),
    Test::new("api/xsave_refused", refused),
    Test::new("api/xsave_fresh", fresh),
    Test::new("api/xsave_components", components),
    Test::new("api/xsave_and_guest", and_guest),
];

type Image = [u8; 4096];
/// Where the header lies, and the components that it tells of.
const HEADER: usize = 512;
const MXCSR: usize = 24;
const YMM: usize = 576;

fn get(c: &Vcpu) -> Box<Image> {
    Box::new(crate::must!(c.fd.take(GET_XSAVE)))
}

fn set(c: &Vcpu, i: &Image) -> crate::sys::Res {
    c.fd.give(SET_XSAVE, i)
}

fn put32(i: &mut Image, at: usize, v: u32) {
    i[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

fn put64(i: &mut Image, at: usize, v: u64) {
    i[at..at + 8].copy_from_slice(&v.to_le_bytes());
}

fn get64(i: &Image, at: usize) -> u64 {
    u64::from_le_bytes(i[at..at + 8].try_into().unwrap_or_default())
}

fn vcpu() -> (Kvm, Vm, Vcpu) {
    let k = Kvm::open();
    if k.cap(KVM_CAP_XSAVE) == 0 {
        harness::skip("no KVM_CAP_XSAVE");
    }
    let vm = k.vm();
    let c = vm.vcpu(0);
    c.use_supported_cpuid(&k);
    (k, vm, c)
}

/// An image with x87, SSE and AVX in it, all bytes different from zero where they are state.
fn pattern(with: u64) -> Box<Image> {
    let mut i: Box<Image> = Box::new([0; 4096]);
    for (at, v) in [(0, 0x027f_u32), (MXCSR, 0x1fa0)] {
        put32(&mut i, at, v);
    }
    // Eight registers of 80 bits.
    for r in 0..8 {
        for b in 0..10 {
            i[32 + 16 * r + b] = (1 + 16 * r + b) as u8;
        }
    }
    i[4] = 0xff;
    for (n, b) in i[160..416].iter_mut().enumerate() {
        *b = n as u8 | 1;
    }
    for (n, b) in i[YMM..YMM + 256].iter_mut().enumerate() {
        *b = n as u8 ^ 0x5a | 0x80;
    }
    put64(&mut i, HEADER, with);
    i
}

fn same_state(a: &Image, b: &Image, avx: bool) {
    eq!(a[0..8], b[0..8], "control, status, tags, opcode");
    eq!(a[MXCSR..MXCSR + 4], b[MXCSR..MXCSR + 4], "MXCSR");
    eq!(a[32..160], b[32..160], "x87 registers");
    eq!(a[160..416], b[160..416], "XMM registers");
    if avx {
        eq!(a[YMM..YMM + 256], b[YMM..YMM + 256], "upper halves of YMM");
    }
    eq!(a[HEADER..HEADER + 64], b[HEADER..HEADER + 64], "header");
}

/// The components that user space may set: leaf 0xd of the supported CPUID.
fn offered(k: &Kvm) -> u64 {
    let c = k.cpuid();
    c.entries[..c.nent as usize]
        .iter()
        .find(|e| (e.function, e.index) == (0xd, 0))
        .map_or(0, |e| u64::from(e.eax) | u64::from(e.edx) << 32)
}

fn round_trip() {
    let (k, _vm, c) = vcpu();
    let avx = offered(&k) & 4 != 0;
    let with = if avx { 7 } else { 3 };
    let i = pattern(with);
    eq!(set(&c, &i), Ok(0));
    let got = get(&c);
    same_state(&got, &i, avx);
    // What was got can be set again, on another vCPU too.
    eq!(set(&c, &got), Ok(0));
    eq!(get(&c)[..], got[..]);
    let other = k.vm();
    let d = other.vcpu(3);
    d.use_supported_cpuid(&k);
    eq!(set(&d, &got), Ok(0));
    eq!(get(&d)[..], got[..]);
    // KVM_GET_FPU sees the same.
    let f: kvm_fpu = crate::must!(c.fd.take(GET_FPU));
    eq!((f.fcw, f.ftwx), (0x27f, 0xff));
    eq!(f.xmm[3][..], i[160 + 48..160 + 64]);
    // The larger call gives the same when the state fits into the smaller one.
    let size = k.cap(KVM_CAP_XSAVE2);
    check!(size >= 4096, "KVM_CAP_XSAVE2: {size}");
    let map = Map::anon(16384);
    eq!(c.fd.num(GET_XSAVE2, map.addr()), Ok(0));
    eq!(map.read(0, 4096)[..], got[..], "KVM_GET_XSAVE2");
}

fn refused() {
    let (k, _vm, c) = vcpu();
    let i = pattern(3);
    eq!(set(&c, &i), Ok(0));
    let before = get(&c);
    let with = |at: usize, v: u64| {
        let mut b = i.clone();
        put64(&mut b, at, v);
        b
    };
    let beyond = !offered(&k) & !3;
    let mut bad = vec![
        ("a component that nobody has", with(HEADER, 3 | 1 << 62)),
        ("bit 63", with(HEADER, 1 << 63)),
        ("all components", with(HEADER, u64::MAX)),
    ];
    // Where the CPU has no XSAVE, the kernel looks at the components only.
    if super::system::has_xsave() {
        bad.push(("compacted format", with(HEADER + 8, 1 << 63)));
        bad.push(("reserved bytes of the header", with(HEADER + 16, 1)));
        bad.push(("the last of them", with(HEADER + 56, 1 << 56)));
    }
    if beyond != 0 {
        bad.push((
            "a component that is not offered",
            with(HEADER, 3 | 1 << beyond.trailing_zeros()),
        ));
    }
    let mut b = i.clone();
    put32(&mut b, MXCSR, 0xffff_0000);
    bad.push(("reserved bits of MXCSR", b));
    for (what, image) in &bad {
        eq!(set(&c, image), Err(EINVAL), "{what}");
        eq!(get(&c)[..], before[..], "{what}: nothing changed");
    }
    for nr in [GET_XSAVE, GET_XSAVE2, SET_XSAVE] {
        for a in [bad_addr(), 0, u64::MAX - 3] {
            eq!(c.fd.num(nr, a), Err(EFAULT), "{} {a:x}", ioctl_name(nr));
        }
        let edge = Map::anon(8192);
        crate::must!(edge.protect(4096, 4096, libc::PROT_NONE));
        eq!(
            c.fd.num(nr, edge.addr() + 4096 - 512),
            Err(EFAULT),
            "{} at an edge",
            ioctl_name(nr)
        );
    }
    eq!(get(&c)[..], before[..], "nothing changed");
}

fn fresh() {
    let (_k, vm, _c) = vcpu();
    // Before a CPUID is set: x87 and SSE are always there.
    let c = vm.vcpu(1);
    let i = get(&c);
    eq!(i[0..2], [0x7f, 3], "FCW");
    eq!(i[MXCSR..MXCSR + 4], [0x80, 0x1f, 0, 0], "MXCSR");
    check!(i[32..416].iter().all(|b| *b == 0), "registers are zero");
    check!(get64(&i, HEADER) & !3 == 0, "components");
    eq!(set(&c, &pattern(3)), Ok(0));
    same_state(&get(&c), &pattern(3), false);
}

/// A component that the header leaves out goes back to its initial state.
fn components() {
    if !super::system::has_xsave() {
        harness::skip("no XSAVE on this CPU: the image is FXSAVE's, whatever its header says");
    }
    let (k, _vm, c) = vcpu();
    let avx = offered(&k) & 4 != 0;
    eq!(set(&c, &pattern(if avx { 7 } else { 3 })), Ok(0));
    eq!(set(&c, &pattern(2)), Ok(0));
    let got = get(&c);
    check!(got[32..160].iter().all(|b| *b == 0), "x87 is initial");
    eq!(got[0..2], [0x7f, 3], "FCW");
    eq!(got[160..416], pattern(2)[160..416], "SSE");
    if avx {
        check!(
            got[YMM..YMM + 256].iter().all(|b| *b == 0),
            "AVX is initial"
        );
    }
    eq!(set(&c, &pattern(0)), Ok(0));
    let got = get(&c);
    check!(got[32..416].iter().all(|b| *b == 0), "all is initial");
}

/// What is set is what the guest has in its registers, and what it has there is what is got.
fn and_guest() {
    let g = Guest::new(Mode::Long);
    let avx = offered(&g.kvm) & 4 != 0;
    if avx {
        let mut x: kvm_xcrs = crate::sys::filled(0);
        x.nr_xcrs = 1;
        x.xcrs[0].value = 7;
        eq!(g.cpu.fd.give(SET_XCRS, &x), Ok(0));
    }
    let mut s = g.cpu.sregs();
    s.cr4 |= if avx { 0x4_0600 } else { 0x600 };
    g.cpu.set_sregs(&s);
    let i = pattern(if avx { 7 } else { 3 });
    eq!(set(&g.cpu, &i), Ok(0));
    g.load(|a| {
        if avx {
            a.vmovups(ymmword_ptr(DATA), ymm5)?;
            a.vpxor(xmm6, xmm6, xmm6)?;
            a.vmovups(ymm7, ymmword_ptr(DATA))?;
        } else {
            a.movups(xmmword_ptr(DATA), xmm5)?;
            a.pxor(xmm6, xmm6)?;
            a.movups(xmm7, xmmword_ptr(DATA))?;
        }
        a.stmxcsr(dword_ptr(DATA + 64))?;
        a.hlt()
    });
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    let low = 160 + 16 * 5;
    eq!(g.mem.read(DATA as usize, 16)[..], i[low..low + 16], "XMM5");
    eq!(g.mem.rd::<u32>(DATA as usize + 64), 0x1fa0, "MXCSR");
    let got = get(&g.cpu);
    eq!(got[160 + 16 * 7..160 + 16 * 8], i[low..low + 16], "XMM7");
    check!(
        got[160 + 16 * 6..160 + 16 * 7].iter().all(|b| *b == 0),
        "XMM6"
    );
    if avx {
        let high = YMM + 16 * 5;
        eq!(
            g.mem.read(DATA as usize + 16, 16)[..],
            i[high..high + 16],
            "YMM5"
        );
        eq!(got[YMM + 16 * 7..YMM + 16 * 8], i[high..high + 16], "YMM7");
        check!(
            got[YMM + 16 * 6..YMM + 16 * 7].iter().all(|b| *b == 0),
            "YMM6"
        );
    }
}
