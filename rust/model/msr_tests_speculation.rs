// SPDX-License-Identifier: GPL-2.0
//! The MSRs of speculation control.
use super::*;

#[test]
fn speculation_goes_by_what_the_guest_has() {
    for (name, has) in [
        ("bochs-icelake", true),
        ("epyc-milan", true),
        ("tcg-epyc", false),
    ] {
        let mut v = Vcpu::new(name);
        let kept = Effect::Hw(HwMsr::SpecCtrl, 5);
        let there = Answer::Hw(HwMsr::SpecCtrl);
        assert_eq!(v.rd(0x48, Who::Guest), refused(has, there), "{name}");
        assert_eq!(v.wr(0x48, 5, Who::Guest), refused(has, kept), "{name}");
        let barrier = v.wr(0x49, 1, Who::Guest);
        assert_eq!(barrier, refused(has, Effect::PredCmd(1)), "{name}");
        assert_eq!(v.wr(0x49, 0, Who::Guest), refused(has, Effect::Done));
        // SBPB is on none of them.
        for bad in [2, 0x80, 0x81, 1 << 63] {
            for who in [Who::Guest, Who::Host] {
                assert_eq!(v.wr(0x49, bad, who), Err(BadMsr::Refused), "{name}");
            }
        }
        let flush = name == "bochs-icelake";
        for who in [Who::Guest, Who::Host] {
            let got = v.wr(0x10b, 1, who);
            assert_eq!(got, refused(flush, Effect::FlushL1d), "{name}");
            assert_eq!(v.wr(0x10b, 0, who), refused(flush, Effect::Done));
            assert_eq!(v.wr(0x10b, 2, who), Err(BadMsr::Refused));
            assert_eq!(v.rd(0x49, who), Err(BadMsr::Unknown));
            assert_eq!(v.rd(0x10b, who), Err(BadMsr::Unknown));
        }
        // User space needs no CPUID for it, and the CPU decides.
        v.guest = GuestFeatures::derive(&[], &v.host);
        assert_eq!(v.rd(0x48, Who::Guest), Err(BadMsr::Refused));
        assert_eq!(v.wr(0x48, 0, Who::Guest), Err(BadMsr::Refused));
        assert_eq!(v.wr(0x49, 0, Who::Guest), Err(BadMsr::Refused));
        assert_eq!(v.wr(0x10b, 0, Who::Guest), Err(BadMsr::Refused));
        assert_eq!(v.rd(0x48, Who::Host), Ok(there));
        assert_eq!(v.wr(0x48, 5, Who::Host), Ok(kept));
        let barrier = v.wr(0x49, 1, Who::Host);
        assert_eq!(barrier, refused(has, Effect::PredCmd(1)), "{name}");
    }
}

#[test]
fn arch_capabilities_are_user_spaces_to_set() {
    let mut v = Vcpu::new("bochs-icelake");
    assert_eq!(v.value(0x10a), 0x0800_005f);
    assert_eq!(
        v.rd(0x10a, Who::Guest),
        Ok(Answer::Value(v.host.arch_capabilities()))
    );
    assert_eq!(v.wr(0x10a, 0, Who::Guest), Err(BadMsr::Unknown));
    assert_eq!(v.wr(0x10a, u64::MAX, Who::Host), Ok(Effect::Done));
    assert_eq!(v.value(0x10a), u64::MAX);
    assert!(is_immutable(0x10a));
    // Without the feature it is not there; but it is listed, so that zero is what user space reads and can write.
    v.guest = GuestFeatures::derive(&[], &v.host);
    assert_eq!(v.rd(0x10a, Who::Guest), Err(BadMsr::Unknown));
    assert_eq!(v.value(0x10a), 0);
    assert_eq!(v.wr(0x10a, 0, Who::Host), Ok(Effect::Done));
    assert_eq!(v.wr(0x10a, 1, Who::Host), Err(BadMsr::Unknown));
}

#[test]
fn each_set_of_passed_msrs_has_its_place() {
    for (i, p) in Passed::ALL.into_iter().enumerate() {
        assert_eq!(p.index(), i);
        let n = usize::from(p.spec_ctrl) + usize::from(p.pred_cmd);
        assert_eq!(p.msrs().count(), n);
    }
    assert_eq!(Passed::default().index(), 0);
}
