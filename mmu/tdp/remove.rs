// SPDX-License-Identifier: GPL-2.0
//! Taking away: what zaps and write protection do, under the write side of `mmu_lock`.
#![forbid(unsafe_code)]

use super::funnel::{unreadable, Effects, Kind};
use super::walk::{Entry, Next};
use super::Tdp;
use crate::mmu::pte::{PteFormat, FROZEN};
use crate::mmu::storage::{Graveyard, Owed, Tables};
use crate::mmu::{GfnRange, Perms, TablePa};

impl<P: PteFormat> Tdp<P> {
    /// Unmaps a range. Exclusive. A larger leaf that reaches out of the range goes too; its owner faults again. Tables that lie
    /// wholly in the range are unlinked and given to `graves`.
    pub fn zap<T: Tables, G: Graveyard>(
        &mut self,
        tables: &T,
        mut graves: G,
        range: GfnRange,
    ) -> Owed<G> {
        let mut fx = Effects::new();
        let this = &*self;
        this.walk(tables, range, &mut |e: Entry<'_, T::Cell>| match e.kind {
            Kind::Leaf => {
                let result = this.replace(&e, 0, &mut fx);
                fx.note(result);
                Next::Over
            }
            Kind::Table if range.covers(e.span) => {
                let result = this.replace(&e, FROZEN, &mut fx).and_then(|()| {
                    this.bury(tables, &mut graves, &e, &mut fx);
                    let frozen = Entry {
                        old: FROZEN,
                        kind: Kind::Frozen,
                        ..e
                    };
                    this.replace(&frozen, 0, &mut fx)
                });
                fx.note(result);
                Next::Over
            }
            Kind::Broken => {
                fx.note(Err(unreadable(e.level, e.old)));
                Next::Over
            }
            Kind::Table | Kind::Empty | Kind::Frozen => Next::Into,
        });
        fx.owed(graves)
    }

    /// Unmaps everything but the root. Exclusive.
    pub fn zap_all<T: Tables, G: Graveyard>(&mut self, tables: &T, graves: G) -> Owed<G> {
        self.zap(tables, graves, GfnRange::ALL)
    }

    /// Freezes all entries of the table that `e` linked, the tables below it first among them, and buries their pages.
    fn bury<T: Tables, G: Graveyard>(
        &self,
        tables: &T,
        graves: &mut G,
        e: &Entry<'_, T::Cell>,
        fx: &mut Effects,
    ) {
        let Some(below) = e.level.below() else { return };
        let table = TablePa::new(P::pa(self.config, e.old));
        let mut visit = |child: Entry<'_, T::Cell>| {
            let result = self.replace(&child, FROZEN, fx);
            if result.is_ok() && child.kind == Kind::Table {
                self.bury(tables, graves, &child, fx);
            }
            fx.note(result);
            Next::Over
        };
        self.walk_table(tables, table, below, e.span.start, e.span, &mut visit);
        graves.bury(table);
    }

    /// Takes the right to write from a range. Exclusive. A larger leaf that reaches out of the range loses it as a whole.
    pub fn write_protect<T: Tables>(&mut self, tables: &T, range: GfnRange) -> Owed<()> {
        let mut fx = Effects::new();
        let this = &*self;
        this.walk(tables, range, &mut |e: Entry<'_, T::Cell>| {
            if e.kind == Kind::Leaf {
                let result = this.update(&e, &mut fx, |pte| {
                    let perms = P::perms(pte);
                    perms.write.then(|| {
                        P::with_perms(
                            this.config,
                            pte,
                            Perms {
                                write: false,
                                ..perms
                            },
                        )
                    })
                });
                fx.note(result);
            }
            Next::Into
        });
        fx.owed(())
    }
}
