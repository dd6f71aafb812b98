// SPDX-License-Identifier: GPL-2.0
//! The funnel: every change of an entry goes through here, and only the arrows of "Life of an entry" (`mmu/mod.rs`) pass.
#![forbid(unsafe_code)]

use super::walk::Entry;
use super::{Tdp, TRIES};
#[cfg(any(lodge_ledger, test))]
use crate::mmu::ledger;
use crate::mmu::pte::{PteFormat, FROZEN};
use crate::mmu::storage::{Bug, Cell64, Counts, FlushOwed, Owed};
use crate::mmu::{Gfn, GfnRange, Level, Perms};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Empty,
    Frozen,
    Leaf,
    Table,
    /// Nothing the engine ever writes.
    Broken,
}

/// What an operation has done so far.
pub(super) struct Effects {
    pub(super) flush: FlushOwed,
    pub(super) counts: Counts,
    pub(super) bug: Option<Bug>,
}

impl Effects {
    pub(super) const fn new() -> Self {
        Self {
            flush: FlushOwed::NONE,
            counts: Counts::NONE,
            bug: None,
        }
    }

    pub(super) fn note(&mut self, result: Result<(), Bug>) {
        if let Err(bug) = result {
            self.bug.get_or_insert(bug);
        }
    }

    #[inline]
    pub(super) fn apply(&mut self, verdict: Verdict, level: Level, span: GfnRange) {
        if verdict.flush {
            self.flush.owe(span);
        }
        if let Some(n) = self
            .counts
            .leaves
            .get_mut(usize::from(level.number().wrapping_sub(1)))
        {
            *n = n.wrapping_add(verdict.leaves);
        }
        self.counts.tables = self.counts.tables.wrapping_add(verdict.tables);
    }

    pub(super) fn owed<G>(self, graves: G) -> Owed<G> {
        Owed {
            flush: self.flush,
            graves,
            counts: self.counts,
            bug: self.bug,
        }
    }
}

/// What a legal change brings with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) flush: bool,
    pub(super) leaves: i64,
    pub(super) tables: i64,
}

/// Tells what an entry is.
#[inline]
pub(super) fn kind<P: PteFormat>(pte: u64, level: Level) -> Kind {
    if pte == 0 {
        Kind::Empty
    } else if pte == FROZEN {
        Kind::Frozen
    } else if !P::is_present(pte) {
        Kind::Broken
    } else if P::is_leaf(pte, level) {
        Kind::Leaf
    } else {
        Kind::Table
    }
}

/// Judges a change: the arrows of "Life of an entry", and nothing else.
#[inline]
pub(super) fn judge<P: PteFormat>(
    config: P::Config,
    level: Level,
    old: u64,
    new: u64,
) -> Result<Verdict, Bug> {
    let none = Verdict::default();
    match (kind::<P>(old, level), kind::<P>(new, level)) {
        (Kind::Empty, Kind::Leaf) if level.may_be_leaf() => Ok(Verdict { leaves: 1, ..none }),
        (Kind::Empty, Kind::Table) => Ok(Verdict { tables: 1, ..none }),
        (Kind::Leaf, Kind::Leaf) if bare::<P>(config, old) == bare::<P>(config, new) => {
            Ok(Verdict {
                flush: !P::perms(new).include(P::perms(old)),
                ..none
            })
        }
        (Kind::Leaf, Kind::Empty | Kind::Frozen) => Ok(Verdict {
            flush: true,
            leaves: -1,
            ..none
        }),
        (Kind::Table, Kind::Frozen) => Ok(Verdict {
            flush: true,
            tables: -1,
            ..none
        }),
        (Kind::Empty, Kind::Frozen) | (Kind::Frozen, Kind::Empty) => Ok(none),
        _ => Err(Bug {
            level: level.number(),
            old,
            new,
        }),
    }
}

/// The part of a leaf that never changes while it is present: address, size and memory type.
pub(super) fn bare<P: PteFormat>(config: P::Config, pte: u64) -> u64 {
    P::with_perms(
        config,
        pte,
        Perms {
            write: false,
            exec: false,
        },
    ) & !P::HARDWARE_BITS
}

impl<P: PteFormat> Tdp<P> {
    /// The funnel for shared changes: `old` to `new` if the entry still is `old`.
    pub(super) fn exchange<C: Cell64>(
        &self,
        cell: &C,
        level: Level,
        gfn: Gfn,
        old: u64,
        new: u64,
        fx: &mut Effects,
    ) -> Result<bool, Bug> {
        let verdict = judge::<P>(self.config, level, old, new)?;
        if cell.compare_exchange(old, new).is_err() {
            return Ok(false);
        }
        self.tell_ledger(cell, level, old, new, fx);
        fx.apply(verdict, level, level.span(gfn));
        Ok(true)
    }

    /// The funnel for exclusive changes. Only the hardware may have changed the entry since it was read.
    pub(super) fn replace<C: Cell64>(
        &self,
        e: &Entry<'_, C>,
        new: u64,
        fx: &mut Effects,
    ) -> Result<(), Bug> {
        if e.old == new {
            return Ok(());
        }
        let verdict = judge::<P>(self.config, e.level, e.old, new)?;
        if P::is_present(e.old) {
            e.cell.swap(new);
        } else {
            e.cell.store(new);
        }
        self.tell_ledger(e.cell, e.level, e.old, new, fx);
        fx.apply(verdict, e.level, e.span);
        Ok(())
    }

    /// Notes the moment of a change that was just made and takes something from a guest: `ledger.rs` says why.
    #[cfg(any(lodge_ledger, test))]
    fn tell_ledger<C: Cell64>(&self, cell: &C, level: Level, old: u64, new: u64, fx: &mut Effects) {
        if ledger::restricts::<P>(self.config, level, old, new) {
            fx.counts.restricted = cell.moment();
        }
    }

    /// Nothing: the module has no ledger.
    #[cfg(not(any(lodge_ledger, test)))]
    #[inline(always)]
    fn tell_ledger<C>(&self, _: &C, _: Level, _: u64, _: u64, _: &mut Effects) {}

    /// Changes an entry by compare-and-exchange until it sticks or `change` has nothing more to change.
    pub(super) fn update<C: Cell64>(
        &self,
        e: &Entry<'_, C>,
        fx: &mut Effects,
        change: impl Fn(u64) -> Option<u64>,
    ) -> Result<(), Bug> {
        let mut old = e.old;
        for _ in 0..TRIES {
            let Some(new) = change(old) else {
                return Ok(());
            };
            if self.exchange(e.cell, e.level, e.span.start, old, new, fx)? {
                return Ok(());
            }
            old = e.cell.load();
        }
        Err(unreadable(e.level, old))
    }
}

/// The error for an entry that the engine never writes.
pub(super) const fn unreadable(level: Level, pte: u64) -> Bug {
    Bug {
        level: level.number(),
        old: pte,
        new: pte,
    }
}
