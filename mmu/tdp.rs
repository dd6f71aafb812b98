// SPDX-License-Identifier: GPL-2.0
//! The second-stage paging engine, for any entry format and any storage. The protocol is at the head of `mmu/mod.rs`.
//!
//! Operations on `&Tdp` may run in parallel with each other (read side of `mmu_lock`), those on `&mut Tdp` are alone (write side).
#![forbid(unsafe_code)]

use super::pte::PteFormat;
use super::storage::{Bug, Cell64, Counts, TablePool, Tables};
use super::{Gfn, Level, MemType, Perms, Pfn, TablePa, ENTRIES};

pub mod age;
mod funnel;
mod remove;
mod walk;

use funnel::{kind, unreadable, Effects, Kind};

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

    /// The host page behind `gfn` in a leaf.
    fn pfn_at(&self, pte: u64, level: Level, gfn: Gfn) -> Pfn {
        Pfn((P::pa(self.config, pte) >> super::PAGE_SHIFT) | (gfn.0 & level.page_mask()))
    }
}

/// The entry for `gfn` in a table, or the bug that there is none.
#[inline]
fn cell<T: Tables>(tables: &T, table: TablePa, level: Level, gfn: Gfn) -> Result<&T::Cell, Bug> {
    tables
        .cell(table, level.index(gfn))
        .ok_or_else(|| unreadable(level, table.get()))
}

#[cfg(test)]
#[path = "tdp_tests.rs"]
mod tests;
