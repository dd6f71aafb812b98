// SPDX-License-Identifier: GPL-2.0
//! What counts as taking something away, and what an entry may find. How the ledger gets on with a whole machine is in
//! `flush_tests.rs`.

use proptest::prelude::*;

use super::*;
use crate::mmu::ept::{Ept, EptConfig};
use crate::mmu::npt::{Npt, NptConfig};
use crate::mmu::pte::FROZEN;
use crate::mmu::MemType;

const PAGE: u64 = 0x1234_5000;

fn perms() -> [Perms; 4] {
    [(false, false), (false, true), (true, false), (true, true)]
        .map(|(write, exec)| Perms { write, exec })
}

fn leaves<P: PteFormat>(config: P::Config) {
    let leaf = |p, perms| P::leaf(config, p, Level::L4K, perms, MemType::WriteBack);
    let restricts = |old, new| restricts::<P>(config, Level::L4K, old, new);
    for old in perms() {
        for gone in [0, FROZEN, leaf(PAGE + 0x1000, old)] {
            assert!(restricts(leaf(PAGE, old), gone), "{old:?} to {gone:x}");
        }
        for none in [0, FROZEN] {
            assert!(!restricts(none, leaf(PAGE, old)));
        }
        let uncached = P::leaf(config, PAGE, Level::L4K, old, MemType::Uncached);
        // NPT leaves memory types to the guest.
        assert_eq!(
            restricts(leaf(PAGE, old), uncached),
            leaf(PAGE, old) != uncached
        );
        for new in perms() {
            let fewer = (old.write && !new.write) || (old.exec && !new.exec);
            let (a, b) = (leaf(PAGE, old), leaf(PAGE, new));
            assert_eq!(restricts(a, b), fewer, "{old:?} to {new:?}");
            // What hardware sets takes nothing away, nor does clearing it.
            assert_eq!(restricts(a | P::HARDWARE_BITS, b), fewer);
            assert_eq!(restricts(a, b | P::HARDWARE_BITS), fewer);
            assert_eq!(restricts(P::clear_accessed(a), b), fewer);
        }
    }
    let table = P::table(config, PAGE);
    let large = P::leaf(
        config,
        0x4000_0000,
        Level::L2M,
        perms()[3],
        MemType::WriteBack,
    );
    let at_2m = |old, new| super::restricts::<P>(config, Level::L2M, old, new);
    assert!(at_2m(table, FROZEN) && at_2m(large, table) && at_2m(table, large));
    assert!(at_2m(table, P::table(config, PAGE + 0x1000)));
    assert!(!at_2m(table, table | P::HARDWARE_BITS) && !at_2m(0, table));
}

#[test]
fn what_takes_something_away() {
    leaves::<Npt>(NptConfig { encryption_mask: 0 });
    for accessed_dirty in [false, true] {
        leaves::<Ept>(EptConfig { accessed_dirty });
    }
}

#[test]
fn what_an_entry_may_find() {
    let of = |owner, since| Held::Of { owner, since };
    for (held, flushes, published, expect) in [
        (Held::Unknown, false, 0, Err(Missing::Unknown)),
        (Held::Unknown, true, 9, Ok(10)),
        (Held::Nothing, false, 9, Ok(10)),
        (of(1, 5), false, 5, Ok(5)),
        (of(1, 5), false, 6, Err(Missing::Stale)),
        (of(1, 5), true, 6, Ok(10)),
        (of(2, 5), false, 0, Err(Missing::Foreign)),
        (of(2, 5), true, 6, Ok(10)),
    ] {
        let mut now = held;
        assert_eq!(now.enter(flushes, 1, published, 10), expect, "{held:?}");
        assert_eq!(now, expect.map_or(held, |since| of(1, since)));
    }
    assert_eq!(exit(5, 5), Ok(()));
    assert_eq!(exit(5, 6), Err(Missing::NotDrivenOut));
}

proptest! {
    /// The order of `ledger.rs`, "Why a sound module is never accused": whatever two changes and the entries of a vCPU do in
    /// between one another, as long as an entry flushes where a demand is there, and a change is published once nobody is in the
    /// guest who was when it was demanded.
    #[test]
    fn a_sound_protocol_is_never_accused(schedule in prop::collection::vec(0u8..3, 1..200)) {
        race(&schedule, None)?;
    }
}

/// Where two flushers and a vCPU are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Idle,
    Written,
    Noted(u64),
    Demanded(u64),
    Waits(u64),
}

/// One vCPU (the actor 2) and two that change entries (0 and 1), one atomic step at a time.
fn race(schedule: &[u8], broken: Option<u8>) -> Result<bool, TestCaseError> {
    let (mut clock, mut published, mut demand, mut in_guest) = (0u64, 0u64, false, false);
    let mut flushers = [At::Idle; 2];
    let (mut held, mut since, mut step, mut owed) = (Held::Unknown, 0, 0, true);
    let mut accused = false;
    let mut judge = |ok: bool| {
        accused |= !ok;
        prop_assert!(ok || broken.is_some());
        Ok(())
    };
    for &actor in schedule {
        if let Some(at) = flushers.get_mut(usize::from(actor)) {
            *at = match *at {
                At::Idle => At::Written,
                At::Written => {
                    clock += 1;
                    At::Noted(clock)
                }
                At::Noted(t) => {
                    demand |= broken != Some(0);
                    At::Demanded(t)
                }
                // Looks once whether the vCPU is in the guest; the answer comes when it has left.
                At::Demanded(t) if in_guest && broken != Some(1) => At::Waits(t),
                At::Demanded(t) => {
                    published = published.max(t);
                    At::Idle
                }
                At::Waits(t) if in_guest => At::Waits(t),
                At::Waits(t) => {
                    published = published.max(t);
                    At::Idle
                }
            };
            continue;
        }
        step = match step {
            0 => {
                in_guest = true;
                1
            }
            1 => {
                owed |= core::mem::take(&mut demand) && broken != Some(2);
                2
            }
            2 => {
                let entered = held.enter(core::mem::take(&mut owed), 1, published, clock);
                judge(entered.is_ok())?;
                since = entered.unwrap_or(since);
                3
            }
            3 => {
                judge(exit(since, published).is_ok())?;
                4
            }
            _ => {
                in_guest = false;
                0
            }
        };
    }
    Ok(accused)
}

/// The same races show a demand that is not made, a guest that is not waited for, and a demand that is not taken.
#[test]
fn an_unsound_protocol_is() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    for broken in 0..3 {
        let mut runner = TestRunner::deterministic();
        let schedules = prop::collection::vec(0u8..3, 200);
        let found = (0..100).any(|_| {
            let schedule = schedules.new_tree(&mut runner).unwrap().current();
            race(&schedule, Some(broken)).unwrap()
        });
        assert!(found, "{broken}");
    }
}
