// SPDX-License-Identifier: GPL-2.0
//! Tests of the VMCS field table.
use super::*;

#[test]
fn encodings_are_unique() {
    for (i, (encoding, name)) in ALL.iter().enumerate() {
        for (other, other_name) in ALL.iter().skip(i + 1) {
            assert_ne!(encoding, other, "{name} and {other_name}");
            assert_ne!(name, other_name);
        }
    }
}

#[test]
fn the_name_tells_the_group() {
    for (encoding, name) in ALL {
        let group = group_of(*encoding);
        if name.starts_with("HOST_") {
            assert_eq!(group, Group::Host, "{name}");
        }
        // The two addresses below are about the guest, but are exit information.
        if name.starts_with("GUEST_")
            && !matches!(*name, "GUEST_PHYSICAL_ADDRESS" | "GUEST_LINEAR_ADDRESS")
        {
            assert_eq!(group, Group::Guest, "{name}");
        }
    }
}

#[test]
fn the_name_tells_the_width() {
    for (encoding, name) in ALL {
        let width = width_of(*encoding);
        for (ending, expected) in [
            ("_SELECTOR", WidthCode::Word),
            ("_LIMIT", WidthCode::Double),
            ("_ACCESS", WidthCode::Double),
            ("_BASE", WidthCode::Natural),
            ("_COUNT", WidthCode::Double),
            ("_ADDR", WidthCode::Quad),
        ] {
            if name.ends_with(ending) {
                assert_eq!(width, expected, "{name}");
            }
        }
    }
}

/// A few encodings that are easy to get wrong, written down a second time from the manual.
#[test]
fn known_encodings() {
    assert_eq!(VPID.encoding(), 0);
    assert_eq!(GUEST_TR_SELECTOR.encoding(), 0x080e);
    assert_eq!(HOST_TR_SELECTOR.encoding(), 0x0c0c);
    assert_eq!(EPT_POINTER.encoding(), 0x201a);
    assert_eq!(TSC_MULTIPLIER.encoding(), 0x2032);
    assert_eq!(GUEST_PDPTE3.encoding(), 0x2810);
    assert_eq!(HOST_PERF_GLOBAL_CTRL.encoding(), 0x2c04);
    assert_eq!(SECONDARY_CONTROLS.encoding(), 0x401e);
    assert_eq!(EXIT_INSTRUCTION_INFO.encoding(), 0x440e);
    assert_eq!(GUEST_IDTR_LIMIT.encoding(), 0x4812);
    assert_eq!(GUEST_TR_ACCESS.encoding(), 0x4822);
    assert_eq!(PREEMPTION_TIMER.encoding(), 0x482e);
    assert_eq!(GUEST_LINEAR_ADDRESS.encoding(), 0x640a);
    assert_eq!(GUEST_IDTR_BASE.encoding(), 0x6818);
    assert_eq!(GUEST_RFLAGS.encoding(), 0x6820);
    assert_eq!(HOST_RIP.encoding(), 0x6c16);
}

#[test]
fn names_are_found() {
    assert_eq!(name(0x681e), "GUEST_RIP");
    assert_eq!(name(0x1234), "unknown");
    assert_eq!(std::format!("{:?}", GUEST_CR3), "GUEST_CR3(0x6802)");
}

#[test]
fn raw_values_keep_their_width() {
    assert_eq!(<u16 as Width>::from_raw(0xffff_ffff_1234_5678), 0x5678);
    assert_eq!(<u32 as Width>::from_raw(0xffff_ffff_1234_5678), 0x1234_5678);
    assert_eq!(<u64 as Width>::from_raw(u64::MAX), u64::MAX);
    assert_eq!(<Natural as Width>::to_raw(5), 5);
}

#[test]
fn segments_hang_together() {
    for (i, segment) in [
        GUEST_ES, GUEST_CS, GUEST_SS, GUEST_DS, GUEST_FS, GUEST_GS, GUEST_LDTR, GUEST_TR,
    ]
    .iter()
    .enumerate()
    {
        let step = 2 * i as u32;
        assert_eq!(segment.selector.encoding(), 0x0800 + step);
        assert_eq!(segment.limit.encoding(), 0x4800 + step);
        assert_eq!(segment.access.encoding(), 0x4814 + step);
        assert_eq!(segment.base.encoding(), 0x6806 + step);
    }
}
