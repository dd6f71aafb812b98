// SPDX-License-Identifier: GPL-2.0
//! Tests of the hardware's control registers.
use super::super::controls::{secondary, VpidFlush};
use super::*;

const PE_PG: u64 = cr0::PE | cr0::PG;

/// As Bochs' CPUs have them.
fn controls(unrestricted: bool) -> Controls {
    Controls {
        revision: 4,
        pin: 0,
        primary: 0,
        secondary: secondary::EPT
            | if unrestricted {
                secondary::UNRESTRICTED_GUEST
            } else {
                0
            },
        exit: 0,
        entry: 0,
        vpid: VpidFlush::Single,
        invept_single: true,
        ept_ad: true,
        ept_execute_only: true,
        ept_2m: true,
        ept_1g: true,
        ept_5_levels: false,
        cr0_set: cr0::NE | if unrestricted { 0 } else { PE_PG },
        cr0_allowed: 0xffff_ffff,
        cr4_set: cr4::VMXE,
        cr4_allowed: 0x0077_2fff,
        activity_hlt: true,
        zero_length_injection: true,
    }
}

#[test]
fn a_guest_without_paging_runs_over_pages_of_four_megabytes() {
    let c = controls(false);
    let own = cr4::PAE | cr4::PGE | cr4::SMEP | cr4::SMAP | cr4::OSFXSR;
    let lme = efer::LME | efer::NXE | efer::SCE;
    let m = modes(&c, cr0::PE | cr0::ET | cr0::CD, own, lme, 1 << 6);
    assert_eq!(m.cr0, PE_PG | cr0::ET | cr0::NE);
    let want = cr4::PSE | cr4::PGE | cr4::OSFXSR | cr4::VMXE | 1 << 6;
    assert_eq!(m.cr4, want);
    assert_eq!(m.efer, efer::NXE | efer::SCE);
    assert!(m.identity && !m.long);
}

#[test]
fn with_paging_the_registers_are_the_guests() {
    for unrestricted in [false, true] {
        let c = controls(unrestricted);
        let m = modes(&c, PE_PG | cr0::WP, cr4::PAE, efer::LME | efer::LMA, 0);
        assert_eq!(m.cr0, PE_PG | cr0::WP | cr0::NE);
        assert_eq!(m.cr4, cr4::PAE | cr4::VMXE);
        assert_eq!(m.efer, efer::LME | efer::LMA);
        assert!(!m.identity && m.long);
    }
}

#[test]
fn unrestricted_guests_need_no_pages() {
    let c = controls(true);
    let m = modes(&c, cr0::ET, cr4::PAE, efer::LME, 0);
    assert_eq!(m.cr0, cr0::ET | cr0::NE);
    assert_eq!(m.cr4, cr4::PAE | cr4::VMXE);
    assert_eq!(m.efer, efer::LME);
    assert!(!m.identity && !m.long);
}

/// What VM entry checks of these registers ("Checks on Guest Control Registers, Debug Registers, and MSRs"), for every combination of
/// the bits that decide.
#[test]
fn entry_takes_whatever_comes_of_a_guest_that_a_cpu_can_be() {
    for bits in 0..1u32 << 9 {
        let bit = |n: u32, value: u64| if bits >> n & 1 != 0 { value } else { 0 };
        let own0 = bit(0, cr0::PE) | bit(1, cr0::PG) | bit(2, cr0::WP);
        let own4 = bit(3, cr4::PAE) | bit(4, cr4::PSE) | bit(5, cr4::SMEP) | bit(6, cr4::PCIDE);
        let mut own_efer = bit(7, efer::LME) | bit(8, efer::NXE);
        let paging = own0 & cr0::PG != 0;
        if paging && own0 & cr0::PE == 0 {
            continue;
        }
        if paging && own_efer & efer::LME != 0 {
            if own4 & cr4::PAE == 0 {
                continue;
            }
            own_efer |= efer::LMA;
        } else if own4 & cr4::PCIDE != 0 {
            continue;
        }
        for unrestricted in [false, true] {
            let c = controls(unrestricted);
            let m = modes(&c, own0, own4, own_efer, 0);
            assert_eq!(c.cr0_set & !m.cr0, 0);
            assert_eq!(c.cr4_set & !m.cr4, 0);
            assert_eq!(m.long, m.efer & efer::LMA != 0);
            if m.cr0 & cr0::PG != 0 {
                assert_ne!(m.cr0 & cr0::PE, 0);
                assert_eq!(m.efer & efer::LMA != 0, m.efer & efer::LME != 0);
            }
            if m.long {
                assert_ne!(m.cr4 & cr4::PAE, 0);
                assert_ne!(m.cr0 & cr0::PG, 0);
            } else {
                assert_eq!(m.cr4 & cr4::PCIDE, 0);
            }
            assert_eq!(m.identity, !unrestricted && !paging);
        }
    }
}

#[test]
fn each_address_is_itself() {
    for n in 0..1024 {
        assert_eq!(identity_entry(n) & 0xffc0_0000, n << 22);
        assert_eq!(identity_entry(n) & 0x3f_ffff, 0xe7);
    }
}
