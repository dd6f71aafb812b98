// SPDX-License-Identifier: GPL-2.0
//! Faults, invalidations and changes of the slots at the same time, in all orders: no leaf outlives the host's page, and each
//! step is needed.
//!
//! The threads take the steps of `fault.rs`, `notifier.rs` and `Core::set_slot` in their order, with the real `HostChanges` and
//! slots. There is one user page, and up to two guest pages through which it can be mapped.

use std::string::String;
use std::vec::Vec;

use super::super::HostChanges;
use super::explore::{explore, Access, Io, Loc, Seen, Shared, Thread, Weak};
use crate::mmu::slots::{self, Slot};
use crate::mmu::{Gfn, GfnRange, Hva};

const PAGE: u64 = 0x1000;
/// Of the user page.
const HVA: (u64, u64) = (16 * PAGE, 17 * PAGE);
const ELSEWHERE: (u64, u64) = (64 * PAGE, 80 * PAGE);

const fn slot(gfn: u64, dirty_log: bool) -> Slot {
    Slot {
        id: 0,
        base_gfn: Gfn(gfn),
        npages: 1,
        hva: Hva(HVA.0),
        readonly: false,
        dirty_log,
    }
}

/// The page at guest page 0; at guest page 1; and at 0 with its writes logged.
const SLOTS: [Slot; 3] = [slot(0, false), slot(1, false), slot(0, true)];
/// The sets that may be published: none of them, or one.
const SETS: [&[usize]; 4] = [&[], &[0], &[1], &[2]];
const EMPTY: u64 = 0;
const AT_0: u64 = 1;
const AT_1: u64 = 2;
const LOGGED: u64 = 3;

/// A step that is left out, or at the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    /// A part of the memory order, or a store.
    Order(Weak),
    /// The notifier: the slots are read in the section that notes the change.
    SlotsInSection,
    /// The notifier: what is mapped is zapped.
    Zap,
    /// The notifier, at the end: looks for the range in the slots.
    SlotsAtEnd,
    /// The notifier, at the end: in the slot that is retiring too.
    RetiringAtEnd,
    /// The notifier, at the end: takes slots that came meanwhile for some that have the range.
    SameAtEnd,
    /// The fault: asks whether a change concerns it.
    Concern,
    /// The fault: asks that under the read side.
    ReadSide,
    /// The fault: the ticket is taken before the page is looked up.
    TicketFirst,
    /// The fault: holds the slots.
    Srcu,
    /// `set_slot`: leaves the slot that goes in `retiring`.
    Retiring,
    /// `set_slot`: until its pages are zapped.
    RetiringLongEnough,
    /// `set_slot`: zaps after the grace period.
    Grace,
    /// `set_slot`: publishes in the section that leaves the slot in `retiring`.
    PublishInSection,
}

const STEPS: [Without; 21] = [
    Without::Order(Weak::Acquire(Loc::Slots)),
    Without::Order(Weak::Release(Loc::Slots)),
    Without::Order(Weak::Acquire(Loc::Active)),
    Without::Order(Weak::Release(Loc::Active)),
    Without::Order(Weak::Store(Loc::Active)),
    Without::Order(Weak::Acquire(Loc::Sequence)),
    Without::Order(Weak::Release(Loc::Sequence)),
    Without::Order(Weak::Store(Loc::Sequence)),
    Without::SlotsInSection,
    Without::Zap,
    Without::SlotsAtEnd,
    Without::RetiringAtEnd,
    Without::SameAtEnd,
    Without::Concern,
    Without::ReadSide,
    Without::TicketFirst,
    Without::Srcu,
    Without::Retiring,
    Without::RetiringLongEnough,
    Without::Grace,
    Without::PublishInSection,
];

/// The code of the threads, with or without a step.
#[derive(Clone, Copy)]
struct Code(Option<Without>);

impl Code {
    fn lacks(self, step: Without) -> bool {
        self.0 == Some(step)
    }

    fn changes<'a>(self, io: &'a Io<'a>) -> HostChanges<Shared<'a>> {
        HostChanges::new(Shared(io, Loc::Active), Shared(io, Loc::Sequence))
    }

    /// `Core::fault` and `install`, for one guest page.
    fn fault(self, io: &Io<'_>, gfn: u64) {
        let changes = self.changes(io);
        if !self.lacks(Without::Srcu) {
            io.does(Access::SrcuEnter);
        }
        let set: Vec<Slot> = slots_of(io.load(Loc::Slots));
        if let Some(slot) = slots::find(&set, Gfn(gfn)) {
            let late = self.lacks(Without::TicketFirst);
            let early = (!late).then(|| changes.ticket());
            let page = io.load(Loc::Page);
            let ticket = early.unwrap_or_else(|| changes.ticket());
            let start = slot.hva_of(Gfn(gfn)).unwrap().0;
            let concern = || {
                let asked = io.host(|h| h.invalidations.concern(start, start + PAGE));
                asked && !self.lacks(Without::Concern)
            };
            let unlocked = self.lacks(Without::ReadSide);
            let allowed = unlocked && changes.allow(ticket, concern);
            io.does(Access::ReadLock);
            if allowed || (!unlocked && changes.allow(ticket, concern)) {
                io.does(Access::Map(gfn as usize, page));
            }
            io.does(Access::ReadUnlock);
        }
        if !self.lacks(Without::Srcu) {
            io.does(Access::SrcuLeave);
        }
    }

    /// The host's change of a range, from `invalidate_start` to `invalidate_end`.
    fn invalidate(self, io: &Io<'_>, (start, end): (u64, u64)) {
        let changes = self.changes(io);
        let early = self.lacks(Without::SlotsInSection);
        let before = early.then(|| {
            io.does(Access::SrcuEnter);
            io.load(Loc::Slots)
        });
        let (set, retiring) = io.host(|host| {
            changes.begin(&mut host.invalidations, start, end);
            let set = before.unwrap_or_else(|| {
                io.does(Access::SrcuEnter);
                io.load(Loc::Slots)
            });
            (set, host.retiring)
        });
        let mut all = slots_of(set);
        all.extend(retiring.map(|slot| SLOTS[slot]));
        let ranges: Vec<GfnRange> = slots::gfns_of_hvas(&all, start, end).collect();
        if !ranges.is_empty() {
            io.does(Access::WriteLock);
            for range in ranges.into_iter().filter(|_| !self.lacks(Without::Zap)) {
                zap(io, range);
            }
            io.does(Access::WriteUnlock);
        }
        io.does(Access::SrcuLeave);
        if (start, end) == HVA {
            io.does(Access::Quiet);
            io.does(Access::Change);
            io.does(Access::Loud);
        }
        self.end(io, (start, end));
    }

    /// `invalidate_end`.
    fn end(self, io: &Io<'_>, (start, end): (u64, u64)) {
        let overlap = |slots: &[Slot]| slots::gfns_of_hvas(slots, start, end).next().is_some();
        io.does(Access::SrcuEnter);
        let set = io.load(Loc::Slots);
        let found = overlap(&slots_of(set)) && !self.lacks(Without::SlotsAtEnd);
        io.host(|host| {
            let same = io.load(Loc::Slots) == set || self.lacks(Without::SameAtEnd);
            let retiring = host.retiring.map(|slot| SLOTS[slot]);
            let retires = overlap(retiring.as_slice()) && !self.lacks(Without::RetiringAtEnd);
            let concerns = found || !same || retires;
            self.changes(io)
                .end(&mut host.invalidations, start, end, concerns);
        });
        io.does(Access::SrcuLeave);
    }

    /// `Core::set_slot`.
    fn set_slot(self, io: &Io<'_>, gone: Option<usize>, set: u64) {
        let publish = || io.does(Access::Store(Loc::Slots, set));
        let late = self.lacks(Without::PublishInSection);
        io.host(|host| {
            host.retiring = gone.filter(|_| !self.lacks(Without::Retiring));
            if !late {
                publish();
            }
        });
        if late {
            publish();
        }
        if !self.lacks(Without::Grace) {
            io.does(Access::GraceBegin);
            io.does(Access::GraceEnd);
        }
        let forget = || io.host(|host| host.retiring = None);
        let soon = self.lacks(Without::RetiringLongEnough);
        if soon {
            forget();
        }
        // When logging begins, only the right to write is taken.
        if let Some(gone) = gone.filter(|_| set != LOGGED) {
            io.does(Access::WriteLock);
            zap(io, SLOTS[gone].gfns());
            io.does(Access::WriteUnlock);
        }
        if !soon {
            forget();
        }
    }
}

fn slots_of(set: u64) -> Vec<Slot> {
    SETS[set as usize].iter().map(|&s| SLOTS[s]).collect()
}

fn zap(io: &Io<'_>, range: GfnRange) {
    for gfn in range.start.0..range.end.0 {
        io.does(Access::Zap(gfn as usize));
    }
}

/// What goes on at once; the set of slots at the beginning.
type Race = (&'static str, fn(Option<Without>) -> Result<Seen, String>);

fn run(slots: u64, threads: &[Thread<'_>], without: Option<Without>) -> Result<Seen, String> {
    let weak = match without {
        Some(Without::Order(weak)) => Some(weak),
        _ => None,
    };
    explore(slots, threads, weak)
}

const RACES: [Race; 10] = [
    ("a fault", |w| {
        let c = Code(w);
        run(
            AT_0,
            &[&|io| c.fault(io, 0), &|io| c.invalidate(io, HVA)],
            w,
        )
    }),
    ("two changes of the same", |w| {
        let c = Code(w);
        let change = |io: &Io<'_>| c.invalidate(io, HVA);
        run(AT_0, &[&|io| c.fault(io, 0), &change, &change], w)
    }),
    ("a change of something else", |w| {
        let c = Code(w);
        let threads: [Thread<'_>; 3] = [&|io| c.fault(io, 0), &|io| c.invalidate(io, HVA), &|io| {
            c.invalidate(io, ELSEWHERE)
        }];
        run(AT_0, &threads, w)
    }),
    ("a new slot", |w| {
        let c = Code(w);
        let threads: [Thread<'_>; 3] = [&|io| c.fault(io, 0), &|io| c.invalidate(io, HVA), &|io| {
            c.set_slot(io, None, AT_0)
        }];
        run(EMPTY, &threads, w)
    }),
    ("a slot that goes", |w| {
        let c = Code(w);
        let threads: [Thread<'_>; 3] = [&|io| c.fault(io, 0), &|io| c.invalidate(io, HVA), &|io| {
            c.set_slot(io, Some(0), EMPTY)
        }];
        run(AT_0, &threads, w)
    }),
    ("a slot that comes and goes", |w| {
        let c = Code(w);
        let threads: [Thread<'_>; 3] = [&|io| c.fault(io, 0), &|io| c.invalidate(io, HVA), &|io| {
            c.set_slot(io, None, AT_0);
            c.set_slot(io, Some(0), EMPTY);
        }];
        run(EMPTY, &threads, w)
    }),
    ("a fault that tries again", |w| {
        let c = Code(w);
        let twice = |io: &Io<'_>| {
            c.fault(io, 0);
            c.fault(io, 0);
        };
        let change = |io: &Io<'_>| c.invalidate(io, HVA);
        run(AT_0, &[&twice, &change, &change], w)
    }),
    ("two changes, and a slot that goes", |w| {
        let c = Code(w);
        let threads: [Thread<'_>; 4] = [
            &|io| c.fault(io, 0),
            &|io| c.invalidate(io, HVA),
            &|io| c.invalidate(io, ELSEWHERE),
            &|io| c.set_slot(io, Some(0), EMPTY),
        ];
        run(AT_0, &threads, w)
    }),
    ("a slot that moves", |w| {
        let c = Code(w);
        let threads: [Thread<'_>; 4] = [
            &|io| c.fault(io, 0),
            &|io| c.fault(io, 1),
            &|io| c.invalidate(io, HVA),
            &|io| c.set_slot(io, Some(0), AT_1),
        ];
        run(AT_0, &threads, w)
    }),
    ("a slot that is logged", |w| {
        let c = Code(w);
        let threads: [Thread<'_>; 3] = [&|io| c.fault(io, 0), &|io| c.invalidate(io, HVA), &|io| {
            c.set_slot(io, Some(0), LOGGED)
        }];
        run(AT_0, &threads, w)
    }),
];

#[test]
fn no_leaf_outlives_the_page() {
    for (name, race) in RACES {
        let seen = race(None).unwrap_or_else(|what| panic!("{name}: {what}"));
        std::println!("{name}: {seen:?}");
        assert!(seen.states > 50, "{name}: {seen:?}");
        // Where the slot goes nothing may be left, and elsewhere both must come about.
        let goes = name.ends_with("goes");
        assert_eq!(seen.mapped == 0, goes, "{name}: {seen:?}");
        assert!(seen.unmapped > 0, "{name}: {seen:?}");
    }
}

#[test]
fn each_step_is_needed() {
    for step in STEPS {
        let found = RACES.iter().find_map(|(name, race)| {
            let what = race(Some(step)).err()?;
            Some((name, what))
        });
        std::println!("{step:?}: {found:?}");
        assert!(found.is_some(), "nothing goes wrong without {step:?}");
    }
}

/// Nor does a fault start over for changes of what is in no slot, whenever they come and go.
#[test]
fn changes_elsewhere_are_nothing_to_a_fault() {
    let c = Code(None);
    let elsewhere = |io: &Io<'_>| {
        c.invalidate(io, ELSEWHERE);
        c.invalidate(io, ELSEWHERE);
    };
    let threads: [Thread<'_>; 3] = [&|io| c.fault(io, 0), &elsewhere, &|io| {
        c.invalidate(io, ELSEWHERE)
    }];
    let seen = run(AT_0, &threads, None).unwrap();
    assert_eq!(seen.unmapped, 0, "{seen:?}");
}

/// Where nothing is in the way, the page is mapped: also after changes, and during one of something else.
#[test]
fn a_fault_alone_maps() {
    let c = Code(None);
    let alone = |slots, thread: Thread<'_>| {
        let seen = run(slots, &[thread], None).unwrap();
        assert_eq!((seen.mapped, seen.unmapped), (1, 0));
    };
    alone(AT_0, &|io| c.fault(io, 0));
    alone(EMPTY, &|io| {
        c.invalidate(io, HVA);
        c.set_slot(io, None, AT_0);
        c.invalidate(io, ELSEWHERE);
        c.fault(io, 0);
    });
    alone(AT_0, &|io| {
        io.host(|host| {
            c.changes(io)
                .begin(&mut host.invalidations, ELSEWHERE.0, ELSEWHERE.1)
        });
        c.fault(io, 0);
    });
}
