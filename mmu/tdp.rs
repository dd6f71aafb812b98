// SPDX-License-Identifier: GPL-2.0
//! The second-stage paging engine, for any entry format and any storage. The protocol is at the head of `mmu/mod.rs`.
//!
//! Operations on `&Tdp` may run in parallel with each other (read side of `mmu_lock`), those on `&mut Tdp` are alone (write side).
#![forbid(unsafe_code)]

use super::pte::{PteFormat, FROZEN};
use super::storage::{Bug, Cell64, Counts, FlushOwed, Graveyard, Owed, TablePool, Tables};
use super::{Gfn, GfnRange, Level, MemType, Perms, Pfn, TablePa, ENTRIES};

/// How often a compare-and-exchange is repeated. Each failure means that someone else made progress on that very entry.
const TRIES: u32 = 64;

/// A set of second-stage tables.
#[derive(Debug)]
pub struct Tdp<P: PteFormat> {
    root: TablePa,
    root_level: Level,
    max_leaf: Level,
    config: P::Config,
}

/// What a fault wants mapped.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// The page that faulted.
    pub gfn: Gfn,
    /// The host page behind it.
    pub pfn: Pfn,
    /// The largest leaf that host mapping and slot allow around `gfn`.
    pub level: Level,
    /// What the leaf is to permit.
    pub perms: Perms,
    /// Its memory type.
    pub mem: MemType,
}

/// A mapping that is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// A leaf was added, of this level.
    New(Level),
    /// A leaf was there and permits more now.
    Upgraded(Level),
    /// A leaf was there and permitted all that was asked: someone else was faster.
    Spurious(Level),
}

/// Why nothing was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The pool is empty: fill it and try again.
    NoTable,
    /// An entry on the way is changing: try again.
    Retry,
    /// A leaf of this level that cannot be used is in the way: zap its span, then try again.
    Blocked(Level),
    /// The tables do not reach that far, or the host page has no address.
    OutOfRange,
    /// A change was refused.
    Bug(Bug),
}

/// A present leaf, as [`Tdp::lookup`] found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The host page behind the gfn that was looked up (not the first one of the leaf).
    pub pfn: Pfn,
    /// The leaf's size.
    pub level: Level,
    /// What it permits.
    pub perms: Perms,
    /// Its accessed bit.
    pub accessed: bool,
    /// Its dirty bit.
    pub dirty: bool,
}

/// The outcome of ageing.
#[must_use = "a guest may use stale translations until the flush is paid"]
#[derive(Debug)]
pub struct Aged {
    /// Whether any page of the range was used since it was aged last.
    pub young: bool,
    /// Owed if leaves had to go because the CPU keeps no accessed bits. Cleared accessed bits owe nothing: until the CPU drops its
    /// translation on its own, the page only looks older than it is.
    pub flush: FlushOwed,
    /// By how much the counts changed.
    pub counts: Counts,
    /// The first refused change.
    pub bug: Option<Bug>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Empty,
    Frozen,
    Leaf,
    Table,
    /// Nothing the engine ever writes.
    Broken,
}

/// An entry met on a walk.
struct Entry<'a, C> {
    cell: &'a C,
    level: Level,
    span: GfnRange,
    old: u64,
    kind: Kind,
}

/// What a walk does after an entry.
#[derive(PartialEq, Eq)]
enum Next {
    /// Goes on; into the table if the entry links one.
    Into,
    /// Goes on with the next entry.
    Over,
}

/// What an operation has done so far.
struct Effects {
    flush: FlushOwed,
    counts: Counts,
    bug: Option<Bug>,
}

impl Effects {
    const fn new() -> Self {
        Self {
            flush: FlushOwed::NONE,
            counts: Counts {
                leaves: [0; 3],
                tables: 0,
            },
            bug: None,
        }
    }

    fn note(&mut self, result: Result<(), Bug>) {
        if let Err(bug) = result {
            self.bug.get_or_insert(bug);
        }
    }

    fn apply(&mut self, verdict: Verdict, level: Level, span: GfnRange) {
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

    fn owed<G>(self, graves: G) -> Owed<G> {
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
struct Verdict {
    flush: bool,
    leaves: i64,
    tables: i64,
}

/// Tells what an entry is.
fn kind<P: PteFormat>(pte: u64, level: Level) -> Kind {
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
fn judge<P: PteFormat>(
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
fn bare<P: PteFormat>(config: P::Config, pte: u64) -> u64 {
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
    /// Makes empty tables with a root page from `pool`. `root_level` is 4 or 5 levels, leaves are up to `max_leaf`.
    /// `None` if the pool is empty or the levels are not such.
    pub fn new(
        config: P::Config,
        root_level: Level,
        max_leaf: Level,
        pool: &mut impl TablePool,
    ) -> Option<Self> {
        if root_level.may_be_leaf() || !max_leaf.may_be_leaf() {
            return None;
        }
        Some(Self {
            root: pool.take()?,
            root_level,
            max_leaf,
            config,
        })
    }

    /// The root table.
    pub fn root(&self) -> TablePa {
        self.root
    }

    /// The level of the root table's entries.
    pub fn root_level(&self) -> Level {
        self.root_level
    }

    /// One past the last page the tables reach.
    pub fn end(&self) -> Gfn {
        Gfn(self.root_level.pages().wrapping_mul(ENTRIES as u64))
    }

    /// Maps a page. Shared: any number of CPUs may do so at once.
    ///
    /// The leaf is as large as `map.level`, the format, the alignment of both frame numbers and the tables already there allow. Changes
    /// of the counts are added to `counts`, also on an error, as tables may have been linked before it.
    pub fn map<T: Tables>(
        &self,
        tables: &T,
        pool: &mut impl TablePool,
        map: &Map,
        counts: &mut Counts,
    ) -> Result<Mapped, MapError> {
        let mut fx = Effects::new();
        // Mapping adds leaves, tables and rights, so it never owes a flush.
        let result = self.map_inner(tables, pool, map, &mut fx);
        counts.add(&fx.counts);
        result
    }

    fn map_inner<T: Tables>(
        &self,
        tables: &T,
        pool: &mut impl TablePool,
        map: &Map,
        fx: &mut Effects,
    ) -> Result<Mapped, MapError> {
        if map.gfn >= self.end() || map.pfn.pa().is_none() {
            return Err(MapError::OutOfRange);
        }
        let mut target = self.leaf_level(map);
        let mut table = self.root;
        let mut level = self.root_level;
        for _ in 0..TRIES {
            let cell = cell(tables, table, level, map.gfn).map_err(MapError::Bug)?;
            let old = cell.load();
            match kind::<P>(old, level) {
                Kind::Frozen => return Err(MapError::Retry),
                Kind::Broken => return Err(MapError::Bug(unreadable(level, old))),
                Kind::Leaf => {
                    if let Some(result) = self.map_over(cell, level, old, target, map, fx) {
                        return result;
                    }
                }
                Kind::Table => {
                    let Some(below) = level.below() else {
                        return Err(MapError::Bug(unreadable(level, old)));
                    };
                    table = TablePa::new(P::pa(self.config, old));
                    level = below;
                    target = target.min(below);
                }
                Kind::Empty if level == target => {
                    let pa = map.pfn.align_down(level).pa().unwrap_or_default();
                    let new = P::leaf(self.config, pa, level, map.perms, map.mem);
                    if self
                        .exchange(cell, level, map.gfn, 0, new, fx)
                        .map_err(MapError::Bug)?
                    {
                        return Ok(Mapped::New(level));
                    }
                }
                Kind::Empty => {
                    let page = pool.take().ok_or(MapError::NoTable)?;
                    let new = P::table(self.config, page.get());
                    let linked = self.exchange(cell, level, map.gfn, 0, new, fx);
                    if linked != Ok(true) {
                        pool.put_back(page);
                    }
                    linked.map_err(MapError::Bug)?;
                }
            }
        }
        Err(MapError::Retry)
    }

    /// The largest leaf that the request and the alignment of both frame numbers allow.
    fn leaf_level(&self, map: &Map) -> Level {
        let mut level = map.level.min(self.max_leaf);
        while (map.gfn.0 ^ map.pfn.0) & level.page_mask() != 0 {
            match level.below() {
                Some(below) => level = below,
                None => break,
            }
        }
        level
    }

    /// Maps where a leaf already is. `None` if the entry changed meanwhile.
    fn map_over<C: Cell64>(
        &self,
        cell: &C,
        level: Level,
        old: u64,
        target: Level,
        map: &Map,
        fx: &mut Effects,
    ) -> Option<Result<Mapped, MapError>> {
        if self.pfn_at(old, level, map.gfn) != map.pfn {
            return Some(Err(MapError::Blocked(level)));
        }
        let have = P::perms(old);
        if have.include(map.perms) {
            return Some(Ok(Mapped::Spurious(level)));
        }
        // The host vouches for `target`, not for a larger leaf that was mapped with fewer rights.
        if level != target {
            return Some(Err(MapError::Blocked(level)));
        }
        let new = P::with_perms(self.config, old, have.union(map.perms));
        match self.exchange(cell, level, map.gfn, old, new, fx) {
            Ok(true) => Some(Ok(Mapped::Upgraded(level))),
            Ok(false) => None,
            Err(bug) => Some(Err(MapError::Bug(bug))),
        }
    }

    /// Finds the leaf that maps `gfn`. Shared.
    pub fn lookup<T: Tables>(&self, tables: &T, gfn: Gfn) -> Option<Leaf> {
        if gfn >= self.end() {
            return None;
        }
        let mut table = self.root;
        let mut level = self.root_level;
        loop {
            let pte = tables.cell(table, level.index(gfn))?.load();
            match kind::<P>(pte, level) {
                Kind::Table => {
                    table = TablePa::new(P::pa(self.config, pte));
                    level = level.below()?;
                }
                Kind::Leaf => {
                    return Some(Leaf {
                        pfn: self.pfn_at(pte, level, gfn),
                        level,
                        perms: P::perms(pte),
                        accessed: P::accessed(pte),
                        dirty: P::dirty(pte),
                    })
                }
                Kind::Empty | Kind::Frozen | Kind::Broken => return None,
            }
        }
    }

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

    /// Tells whether a range was used since it was last aged, and marks it unused. Shared.
    ///
    /// Without accessed bits every present leaf counts as used, and is taken away: the next use faults.
    pub fn age<T: Tables>(&self, tables: &T, range: GfnRange) -> Aged {
        let mut fx = Effects::new();
        let mut young = false;
        let tracks = P::tracks_access(self.config);
        self.walk(tables, range, &mut |e: Entry<'_, T::Cell>| {
            if e.kind == Kind::Leaf && (!tracks || P::accessed(e.old)) {
                young = true;
                let result = self.update(&e, &mut fx, |pte| match kind::<P>(pte, e.level) {
                    Kind::Leaf if !tracks => Some(0),
                    Kind::Leaf if P::accessed(pte) => Some(P::clear_accessed(pte)),
                    _ => None,
                });
                fx.note(result);
            }
            Next::Into
        });
        Aged {
            young,
            flush: fx.flush,
            counts: fx.counts,
            bug: fx.bug,
        }
    }

    /// Tells whether a range was used since it was last aged. Shared. Without accessed bits, whether any of it is mapped.
    pub fn test_age<T: Tables>(&self, tables: &T, range: GfnRange) -> bool {
        let mut young = false;
        let tracks = P::tracks_access(self.config);
        self.walk(tables, range, &mut |e: Entry<'_, T::Cell>| {
            young |= e.kind == Kind::Leaf && (!tracks || P::accessed(e.old));
            Next::Into
        });
        young
    }

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

    /// The host page behind `gfn` in a leaf.
    fn pfn_at(&self, pte: u64, level: Level, gfn: Gfn) -> Pfn {
        Pfn((P::pa(self.config, pte) >> super::PAGE_SHIFT) | (gfn.0 & level.page_mask()))
    }

    /// The funnel for shared changes: `old` to `new` if the entry still is `old`.
    fn exchange<C: Cell64>(
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
        fx.apply(verdict, level, level.span(gfn));
        Ok(true)
    }

    /// The funnel for exclusive changes. Only the hardware may have changed the entry since it was read.
    fn replace<C: Cell64>(&self, e: &Entry<'_, C>, new: u64, fx: &mut Effects) -> Result<(), Bug> {
        if e.old == new {
            return Ok(());
        }
        let verdict = judge::<P>(self.config, e.level, e.old, new)?;
        if P::is_present(e.old) {
            e.cell.swap(new);
        } else {
            e.cell.store(new);
        }
        fx.apply(verdict, e.level, e.span);
        Ok(())
    }

    /// Changes an entry by compare-and-exchange until it sticks or `change` has nothing more to change.
    fn update<C: Cell64>(
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

    /// Visits every entry that spans a part of `range`, from the root down, lower addresses first.
    fn walk<T: Tables>(
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
    fn walk_table<T: Tables>(
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

/// The entry for `gfn` in a table, or the bug that there is none.
fn cell<T: Tables>(tables: &T, table: TablePa, level: Level, gfn: Gfn) -> Result<&T::Cell, Bug> {
    let missing = unreadable(level, table.get());
    tables.cell(table, level.index(gfn)).ok_or(missing)
}

/// The error for an entry that the engine never writes.
const fn unreadable(level: Level, pte: u64) -> Bug {
    Bug {
        level: level.number(),
        old: pte,
        new: pte,
    }
}

#[cfg(test)]
#[path = "tdp_tests.rs"]
mod tests;
