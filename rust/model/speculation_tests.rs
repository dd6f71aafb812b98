// SPDX-License-Identifier: GPL-2.0
use super::features::*;
use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const STRONG: Kernel = Kernel { weak: 0, uses: 15 };

fn forms(there: &[Feature], kernel: Kernel) -> Vec<Feature> {
    let mut out = Vec::new();
    other_forms(&|f| there.contains(&f), kernel, &mut |f| out.push(f));
    out
}

#[test]
fn the_other_vendors_form() {
    // An Intel with everything.
    let intel = [SPEC_CTRL, INTEL_STIBP, SPEC_CTRL_SSBD];
    let got = forms(&intel, STRONG);
    for f in [AMD_IBPB, AMD_IBPB_RET, AMD_IBRS, AMD_STIBP, AMD_SSBD] {
        assert!(got.contains(&f), "{f:?}");
    }
    // Its IBPB leaves predictions of returns alone.
    let kernel = Kernel {
        weak: weak::EIBRS_PBRSB,
        ..STRONG
    };
    assert!(!forms(&intel, kernel).contains(&AMD_IBPB_RET));
    // An AMD with everything: Intel's bit means that IBPB forgets returns too.
    let amd = [AMD_IBPB, AMD_IBRS, AMD_STIBP, AMD_SSBD];
    let got = forms(&amd, STRONG);
    assert!(!got.contains(&SPEC_CTRL) && !got.contains(&AMD_IBPB_RET));
    assert!(got.contains(&INTEL_STIBP) && got.contains(&SPEC_CTRL_SSBD));
    let got = forms(&[AMD_IBPB, AMD_IBRS, AMD_IBPB_RET], STRONG);
    assert!(got.contains(&SPEC_CTRL));
}

#[test]
fn nothing_of_spec_ctrl_without_a_switch() {
    let all: Vec<Feature> = TABLE.iter().map(|r| r.feature).collect();
    let kernel = Kernel {
        uses: uses::IBRS | uses::IBPB | uses::STIBP,
        weak: 0,
    };
    let got = forms(&all, kernel);
    assert!(got.iter().all(|f| !OF_SPEC_CTRL.contains(f)));
    assert!(got.contains(&AMD_IBPB), "a command needs no switch");
    assert_eq!(forms(&all, Kernel::UNKNOWING), []);
}

#[test]
fn no_immunity_that_the_host_lacks() {
    let bits = [
        (weak::MELTDOWN, arch::RDCL_NO),
        (weak::SPEC_STORE_BYPASS, arch::SSB_NO),
        (weak::MDS, arch::MDS_NO),
        (weak::RFDS, arch::RFDS_NO),
        (weak::ITS, arch::ITS_NO),
        (weak::GDS, arch::GDS_NO),
        (weak::L1D_NOT_FLUSHED, arch::SKIP_L1DFL_VMENTRY),
    ];
    for (weakness, bit) in bits {
        let kernel = Kernel {
            weak: weakness,
            ..STRONG
        };
        assert_eq!(arch_capabilities(0, kernel, false) & bit, 0);
        assert_ne!(arch_capabilities(0, STRONG, false) & bit, 0);
    }
    let unknowing = arch_capabilities(0, Kernel::UNKNOWING, true);
    assert_eq!(unknowing, arch::IF_PSCHANGE_MC_NO);
    // TSX_CTRL, FB_CLEAR_CTRL, XAPIC_DISABLE, and all that is not known.
    let all = arch_capabilities(u64::MAX, STRONG, true);
    assert_eq!(all, arch::OF_HOST);
    for n in [7, 9, 10, 11, 12, 16, 18, 21, 22, 23, 25, 29, 61, 63] {
        assert_eq!(all >> n & 1, 0, "bit {n}");
    }
}

#[test]
fn aborts_need_transactions() {
    let kernel = |weak| Kernel { weak, ..STRONG };
    let taa = |host, weak, rtm| arch_capabilities(host, kernel(weak), rtm) & arch::TAA_NO != 0;
    assert!(!taa(arch::TAA_NO, 0, false));
    assert!(taa(0, 0, true));
    assert!(!taa(0, weak::TAA, true));
}

/// As the in-tree KVM tells it on machines of which the fixtures are.
#[test]
fn as_kvm_tells_it() {
    let tcg = Kernel {
        weak: weak::SPEC_STORE_BYPASS,
        ..Kernel::UNKNOWING
    };
    assert_eq!(arch_capabilities(0, tcg, false), 0x4000_0000_0c00_0069);
    let icelake = Kernel {
        weak: weak::MDS | weak::ITS | weak::GDS | weak::EIBRS_PBRSB,
        ..STRONG
    };
    let host = arch::RDCL_NO | arch::IBRS_ALL | arch::RSBA | arch::SKIP_L1DFL_VMENTRY;
    assert_eq!(arch_capabilities(host, icelake, false), 0x0800_005f);
}

#[test]
fn which_guests_have_the_msrs() {
    for f in [SPEC_CTRL, AMD_STIBP, AMD_IBRS, AMD_SSBD] {
        assert!(has_spec_ctrl(&|x| x == f), "{f:?}");
    }
    for f in [INTEL_STIBP, SPEC_CTRL_SSBD, AMD_IBPB, ARCH_CAPABILITIES] {
        assert!(!has_spec_ctrl(&|x| x == f), "{f:?}");
    }
    for f in [SPEC_CTRL, AMD_IBPB, SBPB] {
        assert!(has_pred_cmd(&|x| x == f), "{f:?}");
    }
    assert!(!has_pred_cmd(&|x| x == AMD_IBRS || x == FLUSH_L1D));
}

proptest! {
    #[test]
    fn commands_take_their_bits_alone(value: u64, ibpb: bool, sbpb: bool, flush_l1d: bool) {
        let c = Commands { ibpb, sbpb, flush_l1d };
        for v in [value, value & 0x81, value & 1, value & 0x80, 0] {
            let mut allowed = 0;
            if ibpb { allowed |= 1; }
            if sbpb { allowed |= 0x80; }
            prop_assert_eq!(c.takes_pred_cmd(v), v | allowed == allowed);
            prop_assert_eq!(c.takes_flush_cmd(v), flush_l1d && v <= 1);
            let none = c.and(Commands::default());
            prop_assert_eq!(none.takes_pred_cmd(v), v == 0);
            prop_assert!(!none.takes_flush_cmd(v));
        }
    }

    #[test]
    fn weaker_is_never_told_as_safer(host: u64, weak: u32, more: u32, rtm: bool) {
        let of = |weak| arch_capabilities(host, Kernel { weak, uses: 15 }, rtm);
        prop_assert_eq!(of(weak | more) & !of(weak), 0);
    }
}
