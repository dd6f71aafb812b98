// SPDX-License-Identifier: GPL-2.0
use super::*;

const RESET: u64 = 0x1800;

#[test]
fn the_mwait_bit_shows_in_cpuid() {
    let mut slots = [0; slot::COUNT];
    put(&mut slots, slot::MISC_ENABLE, RESET);
    assert!(!mwait(&slots));
    for by_guest in [false, true] {
        let on = RESET | bits::MISC_MWAIT;
        assert!(switches_mwait(&slots, INDEX, on) && !switches_mwait(&slots, INDEX, RESET));
        assert_eq!(write(&mut slots, on, by_guest), Ok(Effect::CpuidDirty));
        assert!(mwait(&slots));
        assert_eq!(write(&mut slots, on | 1, by_guest), Ok(Effect::Done));
        assert!(!switches_mwait(&slots, INDEX, on) && switches_mwait(&slots, INDEX, RESET));
        assert!(
            !switches_mwait(&slots, INDEX + 1, RESET),
            "another register"
        );
        assert_eq!(write(&mut slots, RESET, by_guest), Ok(Effect::CpuidDirty));
    }
}

#[test]
fn a_refused_write_switches_nothing() {
    let mut slots = [0; slot::COUNT];
    put(&mut slots, slot::MISC_ENABLE, RESET);
    let r = write(&mut slots, bits::MISC_MWAIT, true);
    assert_eq!(r, Err(BadMsr::Refused));
    assert!(!mwait(&slots));
}
