// SPDX-License-Identifier: GPL-2.0
//! Visiting the entries of a range.
#![forbid(unsafe_code)]

use super::funnel::{kind, Effects, Kind, Verdict};
use super::Tdp;
use crate::mmu::pte::PteFormat;
use crate::mmu::storage::{Cell64, Counts, Tables};
use crate::mmu::{Gfn, GfnRange, Level, TablePa, ENTRIES};

/// An entry met on a walk.
pub(super) struct Entry<'a, C> {
    pub(super) cell: &'a C,
    pub(super) level: Level,
    pub(super) span: GfnRange,
    pub(super) old: u64,
    pub(super) kind: Kind,
}

/// What a walk does after an entry.
#[derive(PartialEq, Eq)]
pub(super) enum Next {
    /// Goes on; into the table if the entry links one.
    Into,
    /// Goes on with the next entry.
    Over,
}

impl<P: PteFormat> Tdp<P> {
    /// Counts leaves and tables by walking them all. Shared; exact only if nobody maps at the same time.
    pub fn count<T: Tables>(&self, tables: &T) -> Counts {
        let mut fx = Effects::new();
        self.walk(tables, GfnRange::ALL, &mut |e: Entry<'_, T::Cell>| {
            let verdict = match e.kind {
                Kind::Leaf => Verdict {
                    leaves: 1,
                    ..Verdict::default()
                },
                Kind::Table => Verdict {
                    tables: 1,
                    ..Verdict::default()
                },
                Kind::Empty | Kind::Frozen | Kind::Broken => Verdict::default(),
            };
            fx.apply(verdict, e.level, e.span);
            Next::Into
        });
        fx.counts
    }

    /// Visits every entry that spans a part of `range`, from the root down, lower addresses first.
    pub(super) fn walk<T: Tables>(
        &self,
        tables: &T,
        range: GfnRange,
        visit: &mut impl FnMut(Entry<'_, T::Cell>) -> Next,
    ) {
        let reach = GfnRange {
            start: Gfn(0),
            end: self.end(),
        };
        let range = range.intersect(reach);
        if !range.is_empty() {
            self.walk_table(tables, self.root, self.root_level, Gfn(0), range, visit);
        }
    }

    /// Visits the entries of one table, whose first entry is for `base`, and of those below. At most five deep.
    pub(super) fn walk_table<T: Tables>(
        &self,
        tables: &T,
        table: TablePa,
        level: Level,
        base: Gfn,
        range: GfnRange,
        visit: &mut impl FnMut(Entry<'_, T::Cell>) -> Next,
    ) {
        let first = range.start.max(base).0.wrapping_sub(base.0) >> level.page_shift();
        for index in first..ENTRIES as u64 {
            let start = Gfn(base.0.wrapping_add(index.wrapping_shl(level.page_shift())));
            if start >= range.end {
                return;
            }
            let Some(cell) = tables.cell(table, index as usize) else {
                return;
            };
            let old = cell.load();
            let kind = kind::<P>(old, level);
            let span = GfnRange::new(start, level.pages());
            let next = visit(Entry {
                cell,
                level,
                span,
                old,
                kind,
            });
            if next == Next::Into && kind == Kind::Table {
                if let Some(below) = level.below() {
                    let child = TablePa::new(P::pa(self.config, old));
                    self.walk_table(tables, child, below, start, range, visit);
                }
            }
        }
    }
}
