// SPDX-License-Identifier: GPL-2.0
use super::*;
use crate::model::cpuid_host::tests::cpu;
use crate::model::cr::apic_base;
use crate::model::guest::GuestFeatures;
use crate::model::regs::Attr;
use proptest::prelude::*;

fn limits(name: &str) -> Limits {
    let cpu = cpu(name);
    let host = cpu.caps();
    *GuestFeatures::derive(&cpu.supported(&host), &host).limits()
}

const CODE64: Attr = Attr::new(11, true, 0, true, false, true, false, true);

fn long() -> Sregs {
    Sregs {
        cs: Segment {
            attr: CODE64,
            ..Segment::default()
        },
        cr0: cr0::PE | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        apic_base: apic_base::RESET,
        ..Sregs::default()
    }
}

fn verdict(s: &Sregs) -> Result<(), BadSregs> {
    check(s, &limits("haswell"), 0).map(|_| ())
}

#[test]
fn modes() {
    assert_eq!(verdict(&Sregs::default()), Ok(()));
    assert_eq!(verdict(&long()), Ok(()));
    let bad = |f: fn(&mut Sregs)| {
        let mut s = long();
        f(&mut s);
        verdict(&s)
    };
    assert_eq!(bad(|s| s.cr4 = 0), Err(BadSregs::LongMode));
    assert_eq!(bad(|s| s.efer = efer::LME), Err(BadSregs::LongMode));
    assert_eq!(bad(|s| s.efer = efer::LMA), Err(BadSregs::NotLongMode));
    assert_eq!(bad(|s| s.cr0 = cr0::PE), Err(BadSregs::NotLongMode));
    assert_eq!(
        bad(|s| (s.cr0, s.efer) = (cr0::PE, efer::LME)),
        Err(BadSregs::NotLongMode),
        "CS.L"
    );
    assert_eq!(
        bad(|s| s.cr3 = 1 << 39),
        Err(BadSregs::Cr3(BadReg::Reserved))
    );
    assert_eq!(
        bad(|s| s.cr4 |= cr4::VMXE),
        Err(BadSregs::Cr4(BadReg::Reserved))
    );
    assert_eq!(
        bad(|s| s.cr0 |= cr0::NW),
        Err(BadSregs::Cr0(BadReg::NwWithoutCd))
    );
    assert_eq!(
        bad(|s| s.cr0 |= 1 << 32),
        Err(BadSregs::Cr0(BadReg::Reserved))
    );
    assert_eq!(
        bad(|s| s.efer |= efer::SVME),
        Err(BadSregs::Efer(BadReg::Reserved))
    );
    assert_eq!(
        bad(|s| s.apic_base = 1),
        Err(BadSregs::ApicBase(BadReg::Reserved))
    );
    assert_eq!(
        bad(|s| s.apic_base = 1 << 10),
        Err(BadSregs::ApicBase(BadReg::Reserved))
    );
    assert_eq!(bad(|s| s.apic_base = 1 << 11), Ok(()));
    assert_eq!(
        bad(|s| s.cs.attr = Attr::default()),
        Ok(()),
        "compatibility mode"
    );
}

#[test]
fn every_offered_bit_of_cr4_can_be_set_and_no_other() {
    for name in [
        "haswell",
        "skylake-sp",
        "epyc-milan",
        "tcg-epyc",
        "tcg-max",
        "bochs-icelake",
    ] {
        let l = limits(name);
        let all = Sregs {
            cr4: !l.cr4_reserved,
            ..Sregs::default()
        };
        assert!(check(&all, &l, 0).is_ok(), "{name}");
        for bit in 0..64 {
            let s = Sregs {
                cr4: all.cr4 | (1 << bit),
                ..all
            };
            assert_eq!(check(&s, &l, 0).is_ok(), s.cr4 == all.cr4, "{name}: {bit}");
        }
    }
}

#[test]
fn before_the_cpuid_is_set() {
    let host = cpu("skylake-sp").caps();
    let l = *GuestFeatures::derive(&[], &host).limits();
    let s = Sregs {
        cr4: cr4::ALWAYS,
        ..Sregs::default()
    };
    assert!(check(&s, &l, 0).is_ok());
    assert!(check(
        &Sregs {
            cr4: cr4::SMEP,
            ..s
        },
        &l,
        0
    )
    .is_err());
    assert!(check(&long(), &l, 0).is_err(), "no long mode yet");
}

#[test]
fn the_present_apic_base_is_no_error() {
    let l = limits("haswell");
    let s = Sregs {
        apic_base: 1,
        ..Sregs::default()
    };
    assert!(check(&s, &l, 1).is_ok() && check(&s, &l, 0).is_err());
}

#[test]
fn interrupts_and_cr8() {
    let l = limits("haswell");
    let mut s = Sregs::default();
    assert_eq!(check(&s, &l, 0).unwrap().interrupt(), None);
    for v in [0u8, 32, 63, 64, 200, 255] {
        s.interrupt_bitmap = [0; 4];
        s.interrupt_bitmap[v as usize / 64] = 1 << (v % 64);
        assert_eq!(check(&s, &l, 0).unwrap().interrupt(), Some(v));
    }
    s.interrupt_bitmap = [u64::MAX; 4];
    assert_eq!(check(&s, &l, 0).unwrap().interrupt(), Some(0));
    s.cr8 = 15;
    assert_eq!(check(&s, &l, 0).unwrap().cr8(), Some(15));
    s.cr8 = 16;
    assert_eq!(check(&s, &l, 0).unwrap().cr8(), None);
}

#[test]
fn pdptes_of_sregs2() {
    let pae = Sregs {
        cr0: cr0::PE | cr0::PG,
        cr4: cr4::PAE,
        ..Sregs::default()
    };
    assert!(check(&pae, &limits("haswell"), 0).unwrap().load_pdptrs());
    assert!(!check(&long(), &limits("haswell"), 0).unwrap().load_pdptrs());
    assert_eq!(check_flags(PDPTRS_VALID, &pae), Ok(true));
    assert_eq!(check_flags(0, &pae), Ok(false));
    assert_eq!(check_flags(PDPTRS_VALID, &long()), Err(BadSregs::Flags));
    assert_eq!(check_flags(2, &pae), Err(BadSregs::Flags));
    assert_eq!(check_flags(1 << 63, &pae), Err(BadSregs::Flags));
}

proptest! {
    /// What is accepted is a mode that a CPU can be in, and can be left with the guest's own instructions.
    #[test]
    fn accepted_modes_exist(r: u64, flips: u64, cr3 in 0u64..1 << 41, l: bool) {
        // Mostly legal bits, so that accepted states are common.
        let limits = limits("tcg-max");
        let cr0 = r & (cr0::PE | cr0::PG | cr0::WP | cr0::CD) | (u64::from(flips & 15 == 0) << 29);
        let cr4 = r.rotate_left(20) & !limits.cr4_reserved | (u64::from(flips & 0xf0 == 0) << 13);
        let efer = r.rotate_left(40) & limits.efer_guest | (u64::from(flips & 0xf00 == 0) << 12);
        let attr = Attr::new(11, true, 0, true, false, l, false, true);
        let s = Sregs { cs: Segment { attr, ..Segment::default() }, cr0, cr3, cr4, efer, ..Sregs::default() };
        if check(&s, &limits, 0).is_ok() {
            let mode = cr::Mode { cr0, cr3, cr4, efer, cs_l: l };
            prop_assert_eq!(mode.long(), efer & efer::LME != 0 && mode.paging());
            prop_assert!(!mode.cs_l || mode.long());
            prop_assert!(!mode.long() || cr4 & cr4::PAE != 0);
            prop_assert!(cr::valid_cr0(cr0).is_ok() && cr::valid_cr4(cr4, &limits).is_ok());
        }
    }
}
