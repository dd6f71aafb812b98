// SPDX-License-Identifier: GPL-2.0
use super::vector::*;
use super::*;
use crate::model::regs::rflags::{AC as AC_FLAG, FIXED};

#[test]
fn double_fault_table() {
    let contributory = [DE, TS, NP, SS, GP];
    let benign = [DB, BP, OF, BR, UD, NM, MF, AC, MC, XM, VE, CP];
    for first in contributory {
        for second in contributory {
            assert_eq!(merge(first, second), Merge::DoubleFault);
        }
        assert_eq!(merge(first, PF), Merge::Second);
        assert_eq!(merge(PF, first), Merge::DoubleFault);
    }
    assert_eq!(merge(PF, PF), Merge::DoubleFault);
    for b in benign {
        for other in contributory.into_iter().chain(benign).chain([PF]) {
            assert_eq!(merge(b, other), Merge::Second);
        }
        assert_eq!(merge(PF, b), Merge::Second);
    }
    for v in 0..32 {
        assert_eq!(merge(DF, v), Merge::TripleFault);
    }
}

#[test]
fn breakpoints_that_are_not_enabled_are_not_told() {
    assert_eq!(may_tell(0xffff_ff00), !0xf);
    assert_eq!(may_tell(0xff), !0);
    for n in 0..4 {
        for enable in 1u64..=3 {
            assert_eq!(may_tell(0x400 | enable << (2 * n)), !0xf | 1 << n);
        }
    }
}

#[test]
fn a_step_of_the_host_is_not_told() {
    let (reset, step) = (dr6::RESET, dr6::RESET | dr6::BS);
    assert_eq!(besides_step(step, 0x400, false), None);
    assert_eq!(besides_step(step, 0x400, true), Some(dr6::BS));
    // Breakpoints: enabled in either way, or not.
    for n in 0..4 {
        for enable in [0u64, 1, 2] {
            let (hit, dr7) = (1u64 << n, 0x400 | enable << (2 * n));
            let enabled = enable != 0;
            assert_eq!(besides_step(step | hit, dr7, false), enabled.then_some(hit));
            let told = if enabled { hit } else { 0 };
            assert_eq!(besides_step(step | hit, dr7, true), Some(told | dr6::BS));
            // Not our step, but the guest's #DB in its place.
            assert_eq!(besides_step(reset | hit, dr7, false), Some(told));
        }
    }
    assert_eq!(besides_step(reset, 0x400, false), Some(0), "INT1");
    assert_eq!(
        besides_step(reset | dr6::BD, 0x2400, false),
        Some(dr6::BD),
        "general detect"
    );
    let bus_lock = step & !dr6::BUS_LOCK;
    assert_eq!(besides_step(bus_lock, 0x400, false), Some(dr6::BUS_LOCK));
}

#[test]
fn dr6_of_a_debug_exception() {
    let reset = dr6::RESET;
    assert_eq!(debug_status(reset, dr6::BS), reset | dr6::BS);
    assert_eq!(debug_status(reset | dr6::BS, 1), reset | dr6::BS | 1);
    assert_eq!(debug_status(reset | 0xf, 2), reset | 2);
    assert_eq!(debug_status(reset, dr6::RTM), reset & !dr6::RTM);
    assert_eq!(debug_status(reset & !dr6::RTM, 0), reset);
    assert_eq!(debug_status(reset, (1 << 12) | 1), reset | 1);
    assert_eq!(debug_status(reset, dr6::BUS_LOCK), reset & !dr6::BUS_LOCK);
}

#[test]
fn alignment_is_checked_in_user_mode_with_both_flags_only() {
    for cpl in 0..4 {
        for am in [0, cr0::AM] {
            for ac in [0, AC_FLAG] {
                let own = cpl == 3 && am != 0 && ac != 0;
                assert_eq!(checks_alignment(cpl, cr0::PE | am, FIXED | ac), own);
            }
        }
    }
}
