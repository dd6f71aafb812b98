// SPDX-License-Identifier: GPL-2.0
use super::*;
use crate::model::cpuid_host::tests::cpu;
use crate::model::cr::apic_base::RESET;
use crate::model::features::{APIC, MOVBE, MWAIT, OSPKE, OSXSAVE, RDPID};
use proptest::prelude::*;
use std::vec::Vec;

fn entry(function: u32, index: u32, flags: u32, eax: u32) -> Entry {
    Entry {
        function,
        index,
        flags,
        eax,
        ..Entry::default()
    }
}

const INTEL: [u32; 4] = [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 4] = [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65];
const HYGON: [u32; 4] = [0xd, 0x6f67_7948, 0x656e_6975, 0x6e65_476e];

#[test]
fn vendors() {
    assert_eq!(Vendor::from_leaf0(INTEL), Vendor::Intel);
    assert_eq!(Vendor::from_leaf0(AMD), Vendor::Amd);
    assert_eq!(Vendor::from_leaf0(HYGON), Vendor::Hygon);
    assert_eq!(Vendor::from_leaf0([0; 4]), Vendor::Intel);
}

#[test]
fn the_first_match_answers() {
    let list = [
        entry(7, 0, SIGNIFICANT_INDEX, 1),
        entry(7, 1, SIGNIFICANT_INDEX, 2),
        entry(7, 0, SIGNIFICANT_INDEX, 3),
        entry(9, 5, 0, 4),
    ];
    assert_eq!(find_index(&list, 7, 0).unwrap().eax, 1);
    assert_eq!(find_index(&list, 7, 1).unwrap().eax, 2);
    assert_eq!(find_index(&list, 7, 2), None);
    assert_eq!(find(&list, 7).unwrap().eax, 1);
    // Without the flag the index does not matter.
    assert_eq!(find_index(&list, 9, 77).unwrap().eax, 4);
}

fn machine(leaf0: [u32; 4]) -> Vec<Entry> {
    std::vec![
        entry(0, 0, 0, 0).with(leaf0),
        entry(1, 0, 0, 11),
        entry(0xd, 0, SIGNIFICANT_INDEX, 100),
        entry(0xd, 1, SIGNIFICANT_INDEX, 101),
        entry(0x4000_0000, 0, 0, 0x4000_0001),
        entry(0x8000_0000, 0, 0, 0x8000_0008),
        entry(0x8000_0008, 0, 0, 0x3028),
    ]
}

#[test]
fn out_of_range_on_intel_is_the_highest_basic_leaf() {
    let list = machine(INTEL);
    for leaf in [
        0xe,
        0x3fff_ffff,
        0x8000_0009,
        0x4000_0100,
        0x4000_0002,
        0xc000_0000,
        0x5000_0000,
    ] {
        let a = execute(&list, leaf, 0);
        assert_eq!((a.regs[0], a.exact), (100, false), "{leaf:#x}");
        assert_eq!(execute(&list, leaf, 1).regs[0], 101, "the subleaf is kept");
        assert_eq!(execute(&list, leaf, 9).regs, [0; 4]);
    }
    // In range and not there: zeros.
    for leaf in [2, 0xc, 0x8000_0001, 0x4000_0001] {
        assert_eq!(execute(&list, leaf, 0).regs, [0; 4], "{leaf:#x}");
    }
    assert!(execute(&list, 1, 55).exact);
}

#[test]
fn out_of_range_on_amd_is_zero() {
    for leaf0 in [AMD, HYGON] {
        let list = machine(leaf0);
        for leaf in [0xe, 0x8000_0009, 0xc000_0000] {
            assert_eq!(
                execute(&list, leaf, 0),
                Answer {
                    regs: [0; 4],
                    exact: false
                }
            );
        }
    }
    assert_eq!(execute(&[], 0, 0).regs, [0; 4]);
}

#[test]
fn topology_leaves_tell_the_id_for_any_subleaf() {
    let mut list = machine(AMD);
    let level = |i, d| entry(0xb, i, SIGNIFICANT_INDEX, 1).with([1, 2, 0x100, d]);
    list.push(level(0, 7));
    assert_eq!(
        execute(&list, 0xb, 5).regs,
        [0; 4],
        "no subleaf 1, no topology"
    );
    list.push(level(1, 7));
    assert_eq!(execute(&list, 0xb, 5).regs, [0, 0, 5, 7]);
    assert_eq!(execute(&list, 0xb, 0x105).regs, [0, 0, 5, 7]);
    assert_eq!(execute(&list, 0x1f, 5).regs, [0; 4]);
    // A leaf that is redirected to the topology leaf behaves as it.
    let mut list = machine([0xb, INTEL[1], INTEL[2], INTEL[3]]);
    list.push(level(0, 3));
    list.push(level(1, 3));
    assert_eq!(execute(&list, 0x1000, 4).regs, [0, 0, 4, 3]);
}

#[test]
fn linear_width_is_checked() {
    for (width, ok) in [
        (48, true),
        (57, true),
        (0, true),
        (47, false),
        (64, false),
        (255, false),
    ] {
        let got = check_set(&[entry(0x8000_0008, 0, 0, (width << 8) | 40)]);
        assert_eq!(got.is_ok(), ok, "{width}");
    }
    let amx = [entry(0xd, 0, SIGNIFICANT_INDEX, 1 << 18)];
    assert_eq!(check_set(&amx), Err(BadCpuid::DynamicState));
    assert_eq!(check_set(&[]), Ok(()));
}

#[test]
fn physical_width() {
    assert_eq!(physical_bits(&[]), 36);
    assert_eq!(physical_bits(&machine(INTEL)), 40);
    assert_eq!(physical_bits(&[entry(0x8000_0008, 0, 0, 40)]), 36);
    let short = [
        entry(0x8000_0000, 0, 0, 0x8000_0007),
        entry(0x8000_0008, 0, 0, 40),
    ];
    assert_eq!(physical_bits(&short), 36);
}

#[test]
fn a_guest_without_cpuid_has_the_least() {
    let caps = cpu("skylake-sp").caps();
    let guest = GuestFeatures::derive(&[], &caps);
    assert_eq!(guest.limits().cr4_reserved, !cr4::ALWAYS);
    assert_eq!(guest.limits().efer_guest, 1);
    assert_eq!(guest.limits().gpa_reserved, !0 << 36);
    assert_eq!(guest.limits().xcr0, 0);
    assert_eq!(guest.vendor(), Vendor::Intel);
}

#[test]
fn features_need_both_sides() {
    let host = cpu("haswell");
    let caps = host.caps();
    // User space sets every bit.
    let mut list = host.supported(&caps);
    for e in &mut list {
        if [1, 7, 0x8000_0001].contains(&e.function) {
            (e.ebx, e.ecx, e.edx) = (!0, !0, !0);
        }
    }
    let guest = GuestFeatures::derive(&list, &caps);
    for row in features::TABLE {
        if guest.has(row.feature) {
            assert!(
                caps.has(row.feature) || [MWAIT, MOVBE, RDPID].contains(&row.feature),
                "{}",
                row.name
            );
        }
    }
    // MONITOR is not offered, but made if asked for.
    assert!(guest.has(MWAIT) && !caps.has(MWAIT));
    // The entries themselves are the user's.
    assert_eq!(execute(&list, 7, 0).regs[1], !0);
}

#[test]
fn dynamic_bits_follow_registers() {
    let host = cpu("icelake-client");
    let caps = host.caps();
    let mut list = host.supported(&caps);
    let mut guest = GuestFeatures::derive(&list, &caps);
    let mut shown = Shown {
        cr4: 0,
        xcr0: 1,
        apic_base: RESET,
        mwait: None,
    };
    refresh(&mut list, &mut guest, &caps, &shown);
    assert!(guest.has(APIC) && !guest.has(OSXSAVE) && !guest.has(OSPKE));
    assert_eq!(execute(&list, 0xd, 0).regs[1], 576);
    shown = Shown {
        cr4: cr4::OSXSAVE | cr4::PKE,
        xcr0: 0x2e7,
        apic_base: 0,
        mwait: None,
    };
    refresh(&mut list, &mut guest, &caps, &shown);
    assert!(!guest.has(APIC) && guest.has(OSXSAVE) && guest.has(OSPKE));
    assert_eq!((execute(&list, 7, 0).regs[2] >> 4) & 1, 1);
    assert_eq!(execute(&list, 0xd, 0).regs[1], 0xa88);
    assert_eq!(execute(&list, 0xd, 1).regs[1], 0x988);
    let again = list.clone();
    refresh(&mut list, &mut guest, &caps, &shown);
    assert_eq!(list, again);
    for on in [true, false] {
        shown.mwait = Some(on);
        refresh(&mut list, &mut guest, &caps, &shown);
        assert_eq!(guest.has(MWAIT), on);
        assert_eq!((execute(&list, 1, 0).regs[2] >> 3) & 1, on.into());
    }
}

#[test]
fn unhalt_is_taken_from_kvms_leaf_only() {
    const KVM: [u32; 4] = [0x4000_0101, 0x4b4d_564b, 0x564b_4d56, 0x4d];
    const OTHER: [u32; 4] = [0x4000_0001, 0x7263_694d, 0x666f_736f, 0x7648_2074];
    let mut list = machine(INTEL);
    for (leaf, regs) in [
        (0x4000_0000, OTHER),
        (0x4000_0001, [!0; 4]),
        (0x4000_0100, KVM),
        (0x4000_0101, [!0; 4]),
    ] {
        list.retain(|e| e.function != leaf);
        list.push(entry(leaf, 0, 0, 0).with(regs));
    }
    let before = list.clone();
    hide_unhalt(&mut list);
    for (now, was) in list.iter().zip(&before) {
        let mut want = *was;
        if was.function == 0x4000_0101 {
            want.eax = !(1 << 7);
        }
        assert_eq!(*now, want);
    }
    // Without that name, nothing.
    let mut list = machine(INTEL);
    list.push(entry(0x4000_0001, 0, 0, !0));
    let before = list.clone();
    hide_unhalt(&mut list);
    assert_eq!(list, before);
}

#[test]
fn each_bit_of_cr4_and_efer_has_its_feature() {
    use crate::model::cr::efer;
    use crate::model::features::*;
    let host = cpu("tcg-max");
    let caps = host.caps();
    let icelake = cpu("icelake-client");
    for (feature, bit) in [
        (XSAVE, cr4::OSXSAVE),
        (SMEP, cr4::SMEP),
        (SMAP, cr4::SMAP),
        (FSGSBASE, cr4::FSGSBASE),
        (PKU, cr4::PKE),
        (UMIP, cr4::UMIP),
        (LA57, cr4::LA57),
        (PCID, cr4::PCIDE),
    ] {
        // PCID is Intel's here, LA57 is the emulator's.
        let (host, caps) = if feature == PCID {
            (&icelake, icelake.caps())
        } else {
            (&host, caps)
        };
        let mut list = host.supported(&caps);
        let all = *GuestFeatures::derive(&list, &caps).limits();
        assert_eq!(all.cr4_reserved & bit, 0, "{feature:?}");
        let (function, index, _) = feature.word.place();
        find_index_mut(&mut list, function, index)
            .unwrap()
            .put(feature, false);
        let less = *GuestFeatures::derive(&list, &caps).limits();
        assert_eq!(less.cr4_reserved, all.cr4_reserved | bit, "{feature:?}");
    }
    for (feature, bits) in [
        (LM, efer::LME | efer::LMA),
        (NX, efer::NXE),
        (FXSR_OPT, efer::FFXSR),
    ] {
        let host = cpu("epyc-naples");
        let caps = host.caps();
        let mut list = host.supported(&caps);
        let all = *GuestFeatures::derive(&list, &caps).limits();
        assert_eq!(all.efer_guest & bits, bits);
        find_index_mut(&mut list, 0x8000_0001, 0)
            .unwrap()
            .put(feature, false);
        let less = *GuestFeatures::derive(&list, &caps).limits();
        assert_eq!(
            (less.efer_guest, less.efer_host),
            (all.efer_guest & !bits, all.efer_host)
        );
    }
}

#[test]
fn xsaves_is_out_of_reach_on_intel_only() {
    for (name, reaches) in [
        ("epyc-milan", true),
        ("skylake-sp", false),
        ("tcg-epyc", false),
    ] {
        let host = cpu(name);
        let caps = host.caps();
        let guest = GuestFeatures::derive(&host.supported(&caps), &caps);
        assert_eq!(guest.reaches_host_xss(), reaches, "{name}");
    }
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let leaf = prop_oneof![
        Just(0u32),
        Just(1),
        Just(7),
        Just(0xb),
        Just(0xd),
        Just(0x4000_0000),
        Just(0x8000_0000),
        Just(0x8000_0008),
        any::<u32>()
    ];
    let one =
        (leaf, 0u32..4, 0u32..2, any::<[u32; 4]>()).prop_map(|(function, index, flags, r)| {
            Entry {
                function,
                index,
                flags,
                ..Entry::default()
            }
            .with(r)
        });
    proptest::collection::vec(one, 0..20)
}

proptest! {
    #[test]
    fn any_table_is_answered(list in entries(), leaf: u32, sub: u32, cr4: u64, xcr0: u64, apic_base: u64) {
        let caps = cpu("skylake-sp").caps();
        let mut list = list;
        let _ = check_set(&list);
        let mut guest = GuestFeatures::derive(&list, &caps);
        prop_assert_eq!(guest.limits().xcr0 & !caps.xcr0(), 0);
        prop_assert_eq!(guest.limits().cr4_reserved & cr4::ALWAYS, 0);
        refresh(&mut list, &mut guest, &caps, &Shown { cr4, xcr0, apic_base, mwait: None });
        let a = execute(&list, leaf, sub);
        prop_assert_eq!(a.exact, find_index(&list, leaf, sub).is_some());
        for e in &list {
            let first = find_index(&list, e.function, e.index).unwrap();
            prop_assert_eq!(execute(&list, e.function, e.index).regs, first.regs());
        }
    }
}
