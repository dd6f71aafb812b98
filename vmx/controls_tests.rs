// SPDX-License-Identifier: GPL-2.0
//! Tests of the control negotiation, on capability MSRs recorded from processors and emulators.
use super::*;

/// A recording: the MSRs 0x480 to 0x490 in order (0 where a read faults).
struct Dump([u64; 17]);

impl Dump {
    fn caps(&self) -> VmxCaps {
        VmxCaps::read(|number| {
            let value = self.0[usize::try_from(number - 0x480).unwrap()];
            // Nobody may ask for an MSR that is not there.
            if value == 0 && !matches!(number, 0x485) {
                Err(number)
            } else {
                Ok(value)
            }
        })
        .unwrap()
    }
}

// Recorded in Bochs 3.0.
const ICELAKE: Dump = Dump([
    0x00d8_1000_0000_0004,
    0x0000_00ff_0000_0016,
    0xfff9_fffe_0401_e172,
    0x407f_ffff_0003_6dff,
    0x0000_ffff_0000_11ff,
    0x0000_0000_6004_01e0,
    0x0000_0000_8000_0021,
    0x0000_0000_ffff_ffff,
    0x0000_0000_0000_2000,
    0x0000_0000_0077_2fff,
    0x0000_0000_0000_0050,
    0x02d7_7fff_0000_0000,
    0x0000_0f01_0673_4141,
    0x0000_00ff_0000_0016,
    0xfff9_fffe_0400_6172,
    0x407f_ffff_0003_6dfb,
    0x0000_ffff_0000_11fb,
]);
const HASWELL: Dump = Dump([
    0x00d8_1000_0000_002b,
    0x0000_007f_0000_0016,
    0xfff9_fffe_0401_e172,
    0x407f_ffff_0003_6dff,
    0x0000_ffff_0000_11ff,
    0x0000_0000_2004_01e0,
    0x0000_0000_8000_0021,
    0x0000_0000_ffff_ffff,
    0x0000_0000_0000_2000,
    0x0000_0000_0017_27ff,
    0x0000_0000_0000_0050,
    0x0004_7fff_0000_0000,
    0x0000_0f01_0633_4141,
    0x0000_007f_0000_0016,
    0xfff9_fffe_0400_6172,
    0x407f_ffff_0003_6dfb,
    0x0000_ffff_0000_11fb,
]);
const LYNNFIELD: Dump = Dump([
    0x00d8_1000_0000_002b,
    0x0000_007f_0000_0016,
    0xfff9_fffe_0401_e172,
    0x407f_ffff_0003_6dff,
    0x0000_ffff_0000_11ff,
    0x0000_0000_0004_01e0,
    0x0000_0000_8000_0021,
    0x0000_0000_ffff_ffff,
    0x0000_0000_0000_2000,
    0x0000_0000_0000_67ff,
    0x0000_0000_0000_0050,
    0x0000_007f_0000_0000,
    0x0000_0f01_0611_4141,
    0x0000_007f_0000_0016,
    0xfff9_fffe_0400_6172,
    0x407f_ffff_0003_6dfb,
    0x0000_ffff_0000_11fb,
]);
const PENRYN: Dump = Dump([
    0x00d8_1000_0000_002b,
    0x0000_003f_0000_0016,
    0xf7f9_fffe_0401_e172,
    0x4003_ffff_0003_6dff,
    0x0000_3fff_0000_11ff,
    0x0000_0000_0004_01e0,
    0x0000_0000_8000_0021,
    0x0000_0000_ffff_ffff,
    0x0000_0000_0000_2000,
    0x0000_0000_0004_27ff,
    0x0000_0000_0000_0050,
    0x0000_0041_0000_0000,
    0,
    0x0000_003f_0000_0016,
    0xf7f9_fffe_0400_6172,
    0x4003_ffff_0003_6dfb,
    0x0000_3fff_0000_11fb,
]);
// Put together from the manual's descriptions, as a Skylake server reports itself.
const SKYLAKE: Dump = Dump([
    0x00da_0400_0000_0004,
    0x0000_00ff_0000_0016,
    0xfff9_fffe_0401_e172,
    0x01ff_ffff_0003_6dff,
    0x0003_ffff_0000_11ff,
    0x0000_0000_7004_c1e7,
    0x0000_0000_8000_0021,
    0x0000_0000_ffff_ffff,
    0x0000_0000_0000_2000,
    0x0000_0000_0037_67ff,
    0x0000_0000_0000_002e,
    0x0213_5fff_0000_0000,
    0x0000_0f01_0673_4141,
    0x0000_00ff_0000_0016,
    0xfff9_fffe_0400_6172,
    0x01ff_ffff_0003_6dfb,
    0x0003_ffff_0000_11fb,
]);

fn settle_all(dump: &Dump) -> Controls {
    negotiate(&dump.caps(), &Options::default()).unwrap()
}

#[test]
fn usable_processors() {
    for dump in [&ICELAKE, &HASWELL, &SKYLAKE] {
        let caps = dump.caps();
        let c = settle_all(dump);
        for (value, caps) in [
            (c.pin, caps.pin),
            (c.primary, caps.primary),
            (c.secondary, caps.secondary),
            (c.exit, caps.exit),
            (c.entry, caps.entry),
        ] {
            assert_eq!(value & !may_set(caps), 0);
            assert_eq!(must_set(caps) & !value, 0);
        }
        assert_eq!(
            c.primary & (primary::CR3_LOAD | primary::CR3_STORE | primary::INVLPG),
            0
        );
        assert_eq!(
            c.primary & (primary::INTERRUPT_WINDOW | primary::NMI_WINDOW),
            0
        );
        assert_eq!(c.entry & entry::IA32E, 0);
        assert_eq!(c.cr0_set, 0x20, "only NE is forced on a guest");
        assert_eq!(c.cr4_set, 0x2000);
        assert_eq!(c.vpid, VpidFlush::Single);
        assert!(c.invept_single && c.ept_ad && c.ept_2m && c.ept_1g && c.activity_hlt);
    }
}

#[test]
fn words_of_haswell() {
    let c = settle_all(&HASWELL);
    assert_eq!(c.revision, 0x2b);
    assert_eq!(c.pin, 0x3f);
    assert_eq!(
        c.primary,
        0x0400_6172
            | primary::TSC_OFFSETTING
            | primary::HLT
            | primary::MWAIT
            | primary::RDPMC
            | primary::CR8_LOAD
            | primary::CR8_STORE
            | primary::MOV_DR
            | primary::UNCONDITIONAL_IO
            | primary::MSR_BITMAPS
            | primary::MONITOR
            | primary::SECONDARY
    );
    assert_eq!(
        c.secondary,
        secondary::EPT
            | secondary::UNRESTRICTED_GUEST
            | secondary::VPID
            | secondary::WBINVD
            | secondary::RDTSCP
            | secondary::INVPCID
    );
    assert!(!c.zero_length_injection);
    let icelake = settle_all(&ICELAKE);
    assert_eq!(
        icelake.secondary,
        c.secondary | secondary::TSC_SCALING,
        "XSAVES stays off"
    );
    assert!(icelake.zero_length_injection);
}

#[test]
fn encls_exits_where_it_can() {
    let mut caps = SKYLAKE.caps();
    caps.secondary &= !(u64::from(secondary::ENCLS) << 32);
    let without = negotiate(&caps, &Options::default()).unwrap();
    assert_eq!(without.secondary & secondary::ENCLS, 0);
    caps.secondary |= u64::from(secondary::ENCLS) << 32;
    let with = negotiate(&caps, &Options::default()).unwrap();
    assert_eq!(with.secondary, without.secondary | secondary::ENCLS);
}

#[test]
fn refusals_name_what_is_missing() {
    let refused = |dump: &Dump| negotiate(&dump.caps(), &Options::default()).unwrap_err();
    assert_eq!(refused(&PENRYN), Refusal::NoEpt);
    assert!(std::format!("{}", refused(&PENRYN)).contains("EPT"));
}

/// A processor that has no unrestricted guest, and one where it is switched off.
#[test]
fn without_unrestricted_guest_pe_and_pg_stay_set() {
    const PE_PG: u64 = 1 | 1 << 31;
    let off = Options {
        unrestricted_guest: false,
        ..Options::default()
    };
    for (dump, options) in [
        (LYNNFIELD, Options::default()),
        (LYNNFIELD, off),
        (ICELAKE, off),
    ] {
        let c = negotiate(&dump.caps(), &options).unwrap();
        assert!(c.restricted());
        assert_eq!(c.secondary & secondary::UNRESTRICTED_GUEST, 0);
        assert_ne!(c.secondary & secondary::EPT, 0);
        assert_eq!(c.cr0_set & PE_PG, PE_PG);
        // The exits come and go with paging.
        assert_eq!(c.primary & CR3_EXITS, 0);
    }
    let with = negotiate(&ICELAKE.caps(), &Options::default()).unwrap();
    assert!(!with.restricted());
    assert_eq!(with.cr0_set & PE_PG, 0);
    // What it takes to do without.
    let mut caps = LYNNFIELD.caps();
    caps.primary &= !(u64::from(primary::CR3_STORE) << 32);
    let refusal = negotiate(&caps, &Options::default()).unwrap_err();
    assert_eq!(refusal, Refusal::Missing(Word::Primary, primary::CR3_STORE));
    let mut caps = ICELAKE.caps();
    caps.secondary |= u64::from(secondary::UNRESTRICTED_GUEST);
    let refusal = negotiate(&caps, &off).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::Forced(Word::Secondary, secondary::UNRESTRICTED_GUEST)
    );
}

#[test]
fn refusals_of_odd_processors() {
    let broken = |change: fn(&mut VmxCaps)| {
        let mut caps = HASWELL.caps();
        change(&mut caps);
        negotiate(&caps, &Options::default()).unwrap_err()
    };
    assert_eq!(
        broken(|c| c.basic |= 0x1fff << 32),
        Refusal::VmcsSize(0x1fff)
    );
    assert_eq!(
        broken(|c| c.basic &= !(15 << 50)),
        Refusal::VmcsMemoryType(0)
    );
    assert_eq!(
        broken(|c| c.pin &= !(u64::from(pin::VIRTUAL_NMIS) << 32)),
        Refusal::Missing(Word::Pin, pin::VIRTUAL_NMIS)
    );
    assert_eq!(
        broken(|c| c.primary |= u64::from(primary::CR3_LOAD)),
        Refusal::Forced(Word::Primary, primary::CR3_LOAD)
    );
    assert_eq!(
        broken(|c| c.primary &= !(u64::from(primary::INTERRUPT_WINDOW) << 32)),
        Refusal::Missing(Word::Primary, primary::INTERRUPT_WINDOW)
    );
    assert_eq!(
        broken(|c| c.exit &= !(u64::from(exit::LOAD_EFER) << 32)),
        Refusal::Missing(Word::Exit, exit::LOAD_EFER)
    );
    assert_eq!(
        broken(|c| c.ept_vpid &= !ept_vpid::WRITE_BACK),
        Refusal::EptLacks("write-back paging structures")
    );
    assert_eq!(
        broken(|c| c.ept_vpid &= !ept_vpid::INVEPT),
        Refusal::EptLacks("INVEPT")
    );
}

#[test]
fn options_switch_features_off() {
    let with = |options: Options| negotiate(&ICELAKE.caps(), &options);
    let vpid = with(Options {
        vpid: false,
        ..Options::default()
    })
    .unwrap();
    assert_eq!(vpid.vpid, VpidFlush::None);
    assert_eq!(vpid.secondary & secondary::VPID, 0);
    let ad = with(Options {
        ept_ad: false,
        ..Options::default()
    })
    .unwrap();
    assert!(!ad.ept_ad);
    assert_eq!(
        with(Options {
            ept: false,
            ..Options::default()
        }),
        Err(Refusal::SwitchedOff("ept"))
    );
}

#[test]
fn vpid_needs_a_way_to_flush() {
    let mut caps = ICELAKE.caps();
    caps.ept_vpid &= !ept_vpid::INVVPID_SINGLE;
    assert_eq!(
        negotiate(&caps, &Options::default()).unwrap().vpid,
        VpidFlush::All
    );
    caps.ept_vpid &= !ept_vpid::INVVPID_ALL;
    let none = negotiate(&caps, &Options::default()).unwrap();
    assert_eq!(
        (none.vpid, none.secondary & secondary::VPID),
        (VpidFlush::None, 0)
    );
}

#[test]
fn without_the_true_msrs_cr3_exits_cannot_be_avoided() {
    let mut dump = HASWELL;
    dump.0[0] &= !(1 << 55);
    let refusal = negotiate(&dump.caps(), &Options::default()).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::Forced(Word::Primary, primary::CR3_LOAD | primary::CR3_STORE)
    );
}

#[test]
fn eptp() {
    let c = settle_all(&HASWELL);
    assert_eq!(c.eptp(0x1234_5000, 4), 0x1234_505e);
    assert_eq!(c.eptp(0x1234_5000, 5), 0x1234_5066);
    let mut plain = c;
    plain.ept_ad = false;
    assert_eq!(plain.eptp(0x1234_5000, 4), 0x1234_501e);
}

/// VM entry refuses a VPID of 0 where VPIDs are on.
#[test]
fn secondary_of_a_vcpu() {
    let c = settle_all(&HASWELL);
    assert_eq!(c.secondary_of(1, true, true), c.secondary);
    for (rdtscp, invpcid) in [(true, true), (true, false), (false, true), (false, false)] {
        let with = c.secondary_of(7, rdtscp, invpcid);
        assert_eq!(with & secondary::VPID, secondary::VPID);
        assert_eq!(with & secondary::RDTSCP != 0, rdtscp);
        assert_eq!(with & secondary::INVPCID != 0, invpcid);
        let without = c.secondary_of(0, rdtscp, invpcid);
        assert_eq!(without, with & !secondary::VPID);
    }
}

/// No set of capability MSRs makes us set a bit that may not be set, or miss one that must.
#[test]
fn any_capabilities() {
    use proptest::prelude::*;
    proptest!(|(words in proptest::array::uniform5(any::<u64>()), ept in any::<u64>())| {
        let mut caps = SKYLAKE.caps();
        // Mostly capable, so that the negotiation is not always over at once.
        caps.pin |= words[0] & !0xff;
        caps.primary = (caps.primary | words[1] << 32) & !(words[1] >> 40 << 32);
        caps.secondary |= words[2] & 0xffff_ffff_0000_0000;
        caps.exit = caps.exit & !(words[3] & 0xf0 << 32) | words[3] & 0xff;
        caps.entry |= words[4] & 0xff;
        caps.ept_vpid = ept | SKYLAKE.caps().ept_vpid & 0xffff_ffff;
        if let Ok(c) = negotiate(&caps, &Options::default()) {
            for (value, caps) in [
                (c.primary, caps.primary),
                (c.secondary, caps.secondary),
                (c.exit, caps.exit),
                (c.entry, caps.entry),
            ] {
                prop_assert_eq!(value & !(may_set(caps) | must_set(caps)), 0);
                prop_assert_eq!(must_set(caps) & !value, 0);
            }
        }
    });
}
