// SPDX-License-Identifier: GPL-2.0
use super::*;
use proptest::prelude::*;
use std::vec::Vec;

/// A guest with everything Lodge offers, 40 physical address bits.
fn limits() -> Limits {
    Limits {
        cr4_reserved: !(cr4::ALWAYS
            | cr4::OSXSAVE
            | cr4::SMEP
            | cr4::SMAP
            | cr4::FSGSBASE
            | cr4::PKE
            | cr4::LA57
            | cr4::UMIP
            | cr4::PCIDE),
        efer_host: efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::FFXSR,
        efer_guest: efer::SCE | efer::LME | efer::LMA | efer::NXE,
        gpa_reserved: !((1 << 40) - 1),
        xcr0: xcr0::OFFERED,
        dr6_fixed: dr6::RTM | dr6::BUS_LOCK,
        x2apic: false,
    }
}

const REAL: Mode = Mode {
    cr0: cr0::ET | cr0::CD | cr0::NW,
    cr3: 0,
    cr4: 0,
    efer: 0,
    cs_l: false,
};
const LONG: Mode = Mode {
    cr0: cr0::PG | cr0::PE | cr0::WP | cr0::ET,
    cr3: 0x1000,
    cr4: cr4::PAE,
    efer: efer::LME | efer::LMA | efer::SCE,
    cs_l: true,
};

#[test]
fn cr0_by_value() {
    assert_eq!(valid_cr0(cr0::NW), Err(BadReg::NwWithoutCd));
    assert_eq!(valid_cr0(cr0::NW | cr0::CD), Ok(()));
    assert_eq!(valid_cr0(cr0::PG), Err(BadReg::PgWithoutPe));
    for bit in 32..64 {
        assert_eq!(valid_cr0(1 << bit), Err(BadReg::Reserved));
    }
}

#[test]
fn cr0_drops_reserved_low_bits_and_keeps_et() {
    let done = check_cr0(0xffff_ffff, &REAL).unwrap();
    assert_eq!(done.cr0, 0xe005_003f);
    assert_eq!(check_cr0(0, &REAL).unwrap().cr0, cr0::ET);
}

#[test]
fn entering_long_mode() {
    let on = cr0::PG | cr0::PE;
    let mut mode = Mode {
        cr0: cr0::PE,
        efer: efer::LME,
        cr4: cr4::PAE,
        ..REAL
    };
    let done = check_cr0(on, &mode).unwrap();
    assert_eq!(done.efer, efer::LME | efer::LMA);
    assert!(!done.load_pdptrs);
    mode.cs_l = true;
    assert_eq!(check_cr0(on, &mode), Err(BadReg::LongFromCsL));
    mode.cs_l = false;
    mode.cr4 = 0;
    assert_eq!(check_cr0(on, &mode), Err(BadReg::LongNeedsPae));
    mode.efer = 0;
    assert_eq!(check_cr0(on, &mode).unwrap().efer, 0);
}

#[test]
fn leaving_long_mode() {
    let off = cr0::PE | cr0::WP;
    assert_eq!(check_cr0(off, &LONG), Err(BadReg::PagingInUse));
    let compat = Mode {
        cs_l: false,
        ..LONG
    };
    let done = check_cr0(off, &compat).unwrap();
    assert_eq!(done.efer & efer::LMA, 0);
    assert_eq!(done.flush, Flush::All);
    let pcid = Mode {
        cr4: cr4::PAE | cr4::PCIDE,
        ..compat
    };
    assert_eq!(check_cr0(off, &pcid), Err(BadReg::PagingInUse));
}

#[test]
fn pae_paging_loads_pdptrs() {
    let mode = Mode {
        cr0: cr0::PE,
        cr4: cr4::PAE,
        ..REAL
    };
    let done = check_cr0(cr0::PG | cr0::PE, &mode).unwrap();
    assert!(done.load_pdptrs);
    let paging = Mode {
        cr0: done.cr0,
        ..mode
    };
    assert!(!check_cr0(done.cr0 | cr0::TS, &paging).unwrap().load_pdptrs);
    assert!(check_cr0(done.cr0 | cr0::CD, &paging).unwrap().load_pdptrs);
    assert!(check_cr3(0x2000, &paging, &limits()).unwrap().load_pdptrs);
    assert!(
        check_cr4(cr4::PAE | cr4::PGE, &paging, &limits())
            .unwrap()
            .load_pdptrs
    );
    assert!(
        !check_cr4(cr4::PAE | cr4::DE, &paging, &limits())
            .unwrap()
            .load_pdptrs
    );
    assert!(!check_cr3(0x2000, &LONG, &limits()).unwrap().load_pdptrs);
}

#[test]
fn pdptes() {
    let l = limits();
    for (pdpte, ok) in [
        (0, true),
        (0x1001, true),
        (0x1019, true),
        (0x1003, false),
        (0x1021, false),
    ] {
        assert_eq!(valid_pdpte(pdpte, &l), ok, "{pdpte:#x}");
    }
    assert!(!valid_pdpte(1 | (1 << 40), &l) && !valid_pdpte(1 | (1 << 63), &l));
    assert!(valid_pdpte(!1, &l));
}

#[test]
fn cr4_in_long_mode() {
    let l = limits();
    assert_eq!(check_cr4(0, &LONG, &l), Err(BadReg::LongNeedsPae));
    assert_eq!(
        check_cr4(cr4::PAE | cr4::LA57, &LONG, &l),
        Err(BadReg::La57InUse)
    );
    assert!(check_cr4(cr4::LA57, &REAL, &l).is_ok());
    assert_eq!(check_cr4(cr4::VMXE, &REAL, &l), Err(BadReg::Reserved));
    let dirty = check_cr4(cr4::PAE | cr4::OSXSAVE, &LONG, &l).unwrap();
    assert!(dirty.cpuid_dirty);
    assert_eq!(dirty.flush, Flush::None);
}

#[test]
fn pcid_rules() {
    let l = limits();
    let want = cr4::PAE | cr4::PCIDE;
    assert!(check_cr4(want, &LONG, &l).is_ok());
    let tagged = Mode {
        cr3: 0x1001,
        ..LONG
    };
    assert_eq!(check_cr4(want, &tagged, &l), Err(BadReg::PcidNotNow));
    assert_eq!(
        check_cr4(want, &Mode { efer: 0, ..LONG }, &l),
        Err(BadReg::PcidNotNow)
    );
    let on = Mode {
        cr4: want,
        cr3: 0x1001,
        ..LONG
    };
    assert!(check_cr4(want | cr4::PGE, &on, &l).is_ok());
    assert_eq!(check_cr4(cr4::PAE, &on, &l).unwrap().flush, Flush::All);
    let kept = check_cr3(0x5003 | cr3::NO_FLUSH, &on, &l).unwrap();
    assert_eq!((kept.cr3, kept.flush), (0x5003, Flush::None));
    assert_eq!(
        check_cr3(0x5003 | cr3::NO_FLUSH, &LONG, &l),
        Err(BadReg::Reserved)
    );
    assert_eq!(check_cr3(1 << 40, &LONG, &l), Err(BadReg::Reserved));
}

#[test]
fn cet_needs_write_protection() {
    let mut l = limits();
    l.cr4_reserved &= !cr4::CET;
    let no_wp = Mode {
        cr0: LONG.cr0 & !cr0::WP,
        ..LONG
    };
    assert_eq!(
        check_cr4(cr4::PAE | cr4::CET, &no_wp, &l),
        Err(BadReg::CetNeedsWp)
    );
    let cet = Mode {
        cr4: cr4::PAE | cr4::CET,
        ..LONG
    };
    assert_eq!(check_cr0(cr0::PG | cr0::PE, &cet), Err(BadReg::CetNeedsWp));
}

#[test]
fn flushes_of_cr4() {
    let l = limits();
    let flush = |old, new| {
        check_cr4(new, &Mode { cr4: old, ..REAL }, &l)
            .unwrap()
            .flush
    };
    assert_eq!(flush(0, cr4::PGE), Flush::All);
    assert_eq!(flush(cr4::PGE, 0), Flush::All);
    assert_eq!(flush(0, cr4::SMEP), Flush::Current);
    assert_eq!(flush(cr4::SMEP, 0), Flush::None);
    assert_eq!(flush(0, cr4::PAE), Flush::Current);
    assert_eq!(flush(0, cr4::SMAP), Flush::None);
}

#[test]
fn efer_by_guest_and_host() {
    let l = limits();
    assert_eq!(check_efer(efer::LME, &REAL, &l), Ok(efer::LME));
    assert_eq!(check_efer(efer::LME | efer::LMA, &REAL, &l), Ok(efer::LME));
    assert_eq!(check_efer(efer::SCE, &LONG, &l), Err(BadReg::LmeInUse));
    assert_eq!(
        check_efer(efer::LME | efer::NXE, &LONG, &l),
        Ok(efer::LME | efer::NXE | efer::LMA)
    );
    assert_eq!(check_efer(efer::FFXSR, &REAL, &l), Err(BadReg::Reserved));
    assert_eq!(check_efer(efer::SVME, &REAL, &l), Err(BadReg::Reserved));
    assert_eq!(set_efer(efer::FFXSR, &REAL, &l), Ok(efer::FFXSR));
    assert_eq!(set_efer(efer::SCE, &LONG, &l), Ok(efer::SCE | efer::LMA));
    assert_eq!(set_efer(efer::SVME, &REAL, &l), Err(BadReg::Reserved));
}

#[test]
fn xcr0_combinations() {
    let l = limits();
    let ok = [1, 3, 7, 0xe7, 0x2e7, 0x203, 0x201];
    for v in ok {
        assert_eq!(check_xcr(0, v, &l), Ok(v), "{v:#x}");
    }
    let bad = [0, 2, 5, 6, 0x27, 0xe3, 0x67, 0x1f, (1 << 63) | 1, 0x6_0007];
    for v in bad {
        assert!(check_xcr(0, v, &l).is_err(), "{v:#x}");
    }
    assert_eq!(check_xcr(1, 1, &l), Err(BadReg::NoSuchXcr));
    let none = Limits { xcr0: 0, ..l };
    assert_eq!(check_xcr(0, 1, &none), Ok(1));
    assert_eq!(check_xcr(0, 3, &none), Err(BadReg::Reserved));
}

#[test]
fn debug_registers() {
    let l = limits();
    assert_eq!(check_dr6(0, &l), Ok(dr6::RESET));
    assert_eq!(check_dr6(dr6::BS, &l), Ok(dr6::RESET | dr6::BS));
    assert_eq!(check_dr6(1 << 32, &l), Err(BadReg::Reserved));
    assert_eq!(check_dr7(0), Ok(0x400));
    assert_eq!(check_dr7(0xffff_ffff), Ok(0xffff_2fff));
    assert_eq!(check_dr7(1 << 40), Err(BadReg::Reserved));
    assert_eq!(debug_register(4, 0), Some(Dr::Status));
    assert_eq!(debug_register(5, 0), Some(Dr::Control));
    assert_eq!(debug_register(4, cr4::DE), None);
    assert_eq!(debug_register(5, cr4::DE), None);
    assert_eq!(debug_register(6, cr4::DE), Some(Dr::Status));
    assert_eq!(debug_register(2, cr4::DE), Some(Dr::Address(2)));
}

#[test]
fn apic_base_modes() {
    let mut l = limits();
    let on = apic_base::RESET;
    assert_eq!(valid_apic_base(0, &l), Ok(()));
    assert_eq!(valid_apic_base(on | apic_base::BSP, &l), Ok(()));
    assert_eq!(
        valid_apic_base(on | apic_base::X2APIC, &l),
        Err(BadReg::Reserved)
    );
    assert_eq!(valid_apic_base(1, &l), Err(BadReg::Reserved));
    l.x2apic = true;
    assert_eq!(
        valid_apic_base(apic_base::X2APIC, &l),
        Err(BadReg::ApicMode)
    );
    let x2 = on | apic_base::X2APIC;
    assert_eq!(check_apic_base(x2, on, &l), Ok(()));
    assert_eq!(check_apic_base(x2, 0xfee0_0000, &l), Err(BadReg::ApicMode));
    assert_eq!(check_apic_base(on, x2, &l), Err(BadReg::ApicMode));
    assert_eq!(check_apic_base(0xfee0_0000, x2, &l), Ok(()));
}

#[test]
fn lmsw_cannot_clear_pe() {
    assert_eq!(lmsw(cr0::PE | cr0::TS, 0), cr0::PE);
    assert_eq!(lmsw(0, 0xffff), 0xf);
}

proptest! {
    /// Whatever is accepted leaves registers that the next check, and KVM_SET_SREGS, accept as a state.
    #[test]
    fn accepted_states_are_consistent(steps in proptest::collection::vec((0u8..3, any::<u64>()), 1..40)) {
        let l = limits();
        let mut mode = REAL;
        let picks: Vec<u64> = std::vec![cr0::PE, cr0::PG, cr0::WP, cr0::CD, cr4::PAE, cr4::PGE, cr4::PCIDE, cr4::LA57, efer::LME];
        for (kind, r) in steps {
            // Flip one interesting bit, so that legal states are reached often.
            let bit = picks[(r % picks.len() as u64) as usize];
            match kind {
                0 => if let Ok(w) = check_cr0(mode.cr0 ^ (bit & 0xffff_ffff), &mode) {
                    mode.cr0 = w.cr0;
                    mode.efer = w.efer;
                },
                1 => if let Ok(w) = check_cr4(mode.cr4 ^ bit, &mode, &l) { mode.cr4 = w.cr4; },
                _ => if let Ok(e) = check_efer(mode.efer ^ bit, &mode, &l) { mode.efer = e; },
            }
            prop_assert!(valid_cr0(mode.cr0).is_ok());
            prop_assert!(valid_cr4(mode.cr4, &l).is_ok());
            prop_assert!(valid_efer(mode.efer, &l).is_ok());
            let long = mode.efer & efer::LME != 0 && mode.cr0 & cr0::PG != 0;
            prop_assert_eq!(long, mode.long());
            prop_assert!(!long || mode.cr4 & cr4::PAE != 0);
            prop_assert!(mode.cr4 & cr4::PCIDE == 0 || mode.long());
        }
    }

    #[test]
    fn canonical_is_idempotent(a: u64, wide: bool) {
        let bits = if wide { 57 } else { 48 };
        let c = canonical(a, bits);
        prop_assert!(is_canonical(c, bits));
        prop_assert_eq!(c << (64 - bits), a << (64 - bits));
        let top = (a as i64) >> (bits - 1);
        prop_assert_eq!(is_canonical(a, bits), top == 0 || top == -1);
    }

    #[test]
    fn no_value_panics(a: u64, b: u64, c: u64, d: u64, cs_l: bool, new: u64) {
        let mode = Mode { cr0: a, cr3: b, cr4: c, efer: d, cs_l };
        let l = limits();
        let _ = check_cr0(new, &mode);
        let _ = check_cr3(new, &mode, &l);
        let _ = check_cr4(new, &mode, &l);
        let _ = check_efer(new, &mode, &l);
        let _ = check_apic_base(new, a, &l);
    }
}

#[test]
fn code_breakpoints_of_dr7() {
    let dr = [0x1000, 0x2000, 0x1000, 0x1000];
    // The last one is for writes.
    let dr7 = 0b0101_0110 | 1 << 28;
    assert_eq!(code_breakpoints(&dr, 0, 0x1000), 0);
    assert_eq!(code_breakpoints(&dr, dr7, 0x2000), 1 << 1);
    assert_eq!(code_breakpoints(&dr, dr7, 0x1000), 1 << 0 | 1 << 2);
    assert_eq!(code_breakpoints(&dr, dr7, 0x1001), 0);
    for n in 0..4 {
        for what in 0..16 {
            let dr7 = 1 << (2 * n) | what << (16 + 4 * n);
            let hit = code_breakpoints(&[0; 4], dr7, 0);
            assert_eq!(hit, if what == 0 { 1 << n } else { 0 });
        }
    }
}
