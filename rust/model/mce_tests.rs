// SPDX-License-Identifier: GPL-2.0
use super::*;

const CAP: u64 = 10 | bits::MCG_CTL_P | bits::MCG_SER_P;

fn slots() -> [u64; slot::COUNT] {
    let mut s = [0; slot::COUNT];
    assert_eq!(setup(&mut s, CAP, false), Ok(()));
    s
}

fn bank(s: &[u64], n: usize) -> [u64; 4] {
    let at = slot::MC_BANKS + 4 * n;
    [s[at], s[at + 1], s[at + 2], s[at + 3]]
}

fn uncorrected() -> Mce {
    Mce {
        status: VAL | UC | S | AR,
        addr: 0x1000,
        misc: 0x8c,
        mcg_status: MCIP | 1,
        bank: 3,
    }
}

#[test]
fn a_bad_one_changes_nothing() {
    let mut s = slots();
    let before = s;
    for mce in [
        Mce {
            bank: 10,
            ..uncorrected()
        },
        Mce {
            bank: 255,
            ..uncorrected()
        },
        Mce {
            status: UC,
            ..uncorrected()
        },
    ] {
        assert_eq!(report(&mut s, &mce, true), Err(BadMce));
        assert_eq!(s, before);
    }
}

#[test]
fn an_uncorrected_error_is_signalled_once() {
    let mut s = slots();
    let m = uncorrected();
    assert_eq!(report(&mut s, &m, true), Ok(Signal::MachineCheck));
    assert_eq!(bank(&s, 3), [u64::MAX, m.status, m.addr, m.misc]);
    assert_eq!(s[slot::MCG_STATUS], m.mcg_status);
    assert_eq!(
        report(&mut s, &m, true),
        Ok(Signal::Shutdown),
        "in progress"
    );
    s[slot::MCG_STATUS] = 0;
    assert_eq!(report(&mut s, &m, true), Ok(Signal::MachineCheck));
    assert_eq!(bank(&s, 3)[1], m.status | OVER, "the first was not cleared");
    s[slot::MCG_STATUS] = 0;
    assert_eq!(
        report(&mut s, &m, false),
        Ok(Signal::Shutdown),
        "without CR4.MCE"
    );
}

#[test]
fn reporting_can_be_off() {
    let m = uncorrected();
    let mut s = slots();
    s[slot::MCG_CTL] = 1;
    let before = s;
    assert_eq!(report(&mut s, &m, true), Ok(Signal::None));
    assert_eq!(s, before);
    let mut s = slots();
    s[slot::MC_BANKS + 12] = 0;
    let before = s;
    assert_eq!(report(&mut s, &m, true), Ok(Signal::None));
    assert_eq!(s, before);
    // Without the register that switches it, it is on.
    let mut s = [0; slot::COUNT];
    assert_eq!(setup(&mut s, 10, false), Ok(()));
    assert_eq!(report(&mut s, &m, true), Ok(Signal::MachineCheck));
}

#[test]
fn corrected_errors_are_recorded() {
    let mut s = slots();
    let m = Mce {
        status: VAL | 0x11,
        addr: 1,
        misc: 2,
        mcg_status: 0,
        bank: 0,
    };
    assert_eq!(report(&mut s, &m, true), Ok(Signal::None));
    assert_eq!(bank(&s, 0)[1..], [VAL | 0x11, 1, 2]);
    let n = Mce {
        status: VAL | 0x22,
        addr: 3,
        ..m
    };
    assert_eq!(report(&mut s, &n, true), Ok(Signal::None));
    assert_eq!(bank(&s, 0)[1..], [VAL | OVER | 0x22, 3, 2]);
    // They do not overwrite what is worse.
    assert_eq!(
        report(&mut s, &uncorrected(), true),
        Ok(Signal::MachineCheck)
    );
    let m = Mce { bank: 3, ..m };
    assert_eq!(report(&mut s, &m, true), Ok(Signal::None));
    assert_eq!(
        bank(&s, 3)[1..],
        [uncorrected().status | OVER, 0x1000, 0x8c]
    );
}

#[test]
fn no_action_required() {
    let mut s = slots();
    let m = Mce {
        status: VAL | UC,
        addr: 5,
        misc: 6,
        mcg_status: 0,
        bank: 9,
    };
    s[slot::MCG_STATUS] = MCIP;
    assert_eq!(report(&mut s, &m, false), Ok(Signal::None));
    assert_eq!(bank(&s, 9)[1..], [VAL | UC, 5, 6]);
    assert_eq!(s[slot::MCG_STATUS], 0);
}
