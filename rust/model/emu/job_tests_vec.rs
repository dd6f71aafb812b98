// SPDX-License-Identifier: GPL-2.0
//! Moves of vector registers.
use super::*;
use crate::model::regs::cr4;

#[test]
fn vector_moves() {
    // movups [rdi], xmm1; movaps to an odd address; vmovdqu ymm2, [rdi]
    let (end, _, m) = long(&[0x0f, 0x11, 0x0f], &[(RDI, BASE + 1)]);
    assert_eq!(
        (end, m.read(BASE + 1, 8), m.read(BASE + 9, 8)),
        (DONE, 4, 5)
    );
    let (end, ..) = long(&[0x0f, 0x29, 0x0f], &[(RDI, BASE + 1)]);
    assert_eq!(end, Need::Fault(Exception::protection(0)));
    let (_, _, m) = long(&[0xc5, 0xfe, 0x6f, 0x17], &[(RDI, BASE)]);
    let words: Vec<u64> = (0..4).map(|n| m.read(BASE + 8 * n, 8)).collect();
    assert_eq!(m.vectors[2][..], words);
    // The worst case: 32 bytes, unaligned, into two pages
    let (end, _, m) = long(&[0xc5, 0xfe, 0x7f, 0x17], &[(RDI, BASE + 0xffd)]);
    assert_eq!((end, m.read(BASE + 0xffd + 24, 8)), (DONE, 11));
    // movups keeps the upper half of the YMM register, movss clears up to bit 127
    let (_, _, m) = long(&[0xf3, 0x0f, 0x10, 0x17], &[(RDI, BASE)]);
    assert_eq!(m.vectors[2], [m.read(BASE, 4), 0, 10, 11]);
    // movhps [rdi], xmm1; movlps xmm1, [rdi]; movq xmm1, rax
    let (_, _, m) = long(&[0x0f, 0x17, 0x0f], &[(RDI, BASE)]);
    assert_eq!(m.read(BASE, 8), 5);
    let (_, _, m) = long(&[0x0f, 0x12, 0x0f], &[(RDI, BASE)]);
    assert_eq!(m.vectors[1], [m.read(BASE, 8), 5, 6, 7]);
    let (_, _, m) = long(&[0x66, 0x48, 0x0f, 0x6e, 0xc8], &[(RAX, 77)]);
    assert_eq!(m.vectors[1], [77, 0, 6, 7]);
    let mut ctx = flat(CpuMode::Bits64);
    ctx.cr0 |= cr0::TS;
    let mut job = Job::new(&[0x0f, 0x11, 0x0f], &start(&[]), &ctx).unwrap();
    assert_eq!(
        job.step(Answer::Start),
        Need::Fault(Exception::new(vector::NM))
    );
}

/// VEX needs the SSE and the YMM state in XCR0, and OSXSAVE; TS comes after that.
#[test]
fn vex_needs_its_state() {
    let first = |xcr0: u64, change: fn(&mut Context)| {
        let mut ctx = flat(CpuMode::Bits64);
        change(&mut ctx);
        let mut m = Machine::new();
        m.xcr0 = xcr0;
        let regs = start(&[(RDI, BASE)]);
        m.run(&mut Job::new(&[0xc5, 0xf8, 0x10, 0x0f], &regs, &ctx).unwrap())
    };
    let ud = Need::Fault(Exception::new(vector::UD));
    assert_eq!(first(7, |_| {}), DONE);
    for xcr0 in [1, 3, 5] {
        assert_eq!(first(xcr0, |_| {}), ud, "{xcr0}");
        assert_eq!(first(xcr0, |ctx| ctx.cr0 |= cr0::TS), ud, "{xcr0}");
    }
    assert_eq!(first(7, |ctx| ctx.cr4 &= !cr4::OSXSAVE), ud);
    let nm = Need::Fault(Exception::new(vector::NM));
    assert_eq!(first(7, |ctx| ctx.cr0 |= cr0::TS), nm);
}
