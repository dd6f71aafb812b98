// SPDX-License-Identifier: GPL-2.0
use super::*;

#[test]
fn registers_are_read_back_at_their_hardware_number() {
    let mut regs = Regs::default();
    for n in 0..16u8 {
        regs.set(n, 0x100 + u64::from(n));
    }
    for n in 0..16u8 {
        assert_eq!(regs.get(n), 0x100 + u64::from(n));
        assert_eq!(regs.gpr[usize::from(n)], regs.get(n));
    }
    assert_eq!(regs.get(RSP), 0x104);
    assert_eq!(regs.get(RDI), 0x107);
}

#[test]
fn attributes_survive_both_vendors_layouts() {
    let flat_code = Attr::new(11, true, 0, true, false, true, false, true);
    assert_eq!(flat_code.to_vmx(), 0xa09b);
    assert_eq!(flat_code.to_svm(), 0xa9b);
    for bits in 0..=0xfffu16 {
        let attr = Attr::from_svm(bits);
        assert_eq!(attr.to_svm(), bits);
        assert_eq!(Attr::from_vmx(attr.to_vmx()), attr);
        assert_eq!(attr.unusable(), bits & 0x80 == 0);
        let same = Attr::new(
            attr.kind(),
            attr.s(),
            attr.dpl(),
            attr.p(),
            attr.avl(),
            attr.l(),
            attr.db(),
            attr.g(),
        );
        assert_eq!(same.with_unusable(attr.unusable()), attr);
    }
    assert!(Attr::from_vmx((1 << 16) | 0x93).unusable());
    assert_eq!(Attr::from_vmx((1 << 16) | 0x93).to_svm(), 0x13);
}

#[test]
fn the_mode_follows_efer_and_cs() {
    let mut ctx = Context::default();
    assert_eq!(ctx.mode(), CpuMode::Bits16);
    ctx.segs.get_mut(Seg::Cs).attr = Attr::new(11, true, 0, true, false, false, true, true);
    assert_eq!(ctx.mode(), CpuMode::Bits32, "real mode keeps CS.D");
    ctx.cr0 = cr0::PE;
    assert_eq!(ctx.mode(), CpuMode::Bits32);
    assert_eq!(ctx.stack_bytes(), 2);
    ctx.segs.get_mut(Seg::Ss).attr = Attr::new(3, true, 0, true, false, false, true, true);
    assert_eq!(ctx.stack_bytes(), 4);
    ctx.segs.get_mut(Seg::Cs).attr = Attr::new(11, true, 0, true, false, true, false, true);
    assert_eq!(
        ctx.mode(),
        CpuMode::Bits16,
        "CS.L means nothing outside long mode"
    );
    ctx.efer = efer::LMA;
    assert_eq!(ctx.mode(), CpuMode::Bits64);
    assert_eq!(ctx.stack_bytes(), 8);
}
