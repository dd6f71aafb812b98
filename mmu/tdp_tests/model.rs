// SPDX-License-Identifier: GPL-2.0
//! What the engine should do, told by maps and sets.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use crate::mmu::storage::Counts;
use crate::mmu::tdp::{Map, MapError, Mapped};
use crate::mmu::{Gfn, GfnRange, Level, Perms};

/// What the tables should hold, told in the plainest way.
#[derive(Default)]
pub(super) struct Model {
    /// First gfn of a leaf: its level, first pfn, permissions, accessed bit.
    pub(super) leaves: BTreeMap<u64, (Level, u64, Perms, bool)>,
    /// Tables by the level of their entries and their first gfn; the root is not among them.
    pub(super) tables: BTreeSet<(Level, u64)>,
}

fn base(gfn: u64, level: Level) -> u64 {
    gfn / level.pages() * level.pages()
}

impl Model {
    pub(super) fn leaf_at(&self, gfn: u64) -> Option<(u64, Level, u64, Perms, bool)> {
        let (&start, &(level, pfn, perms, young)) = self.leaves.range(..=gfn).next_back()?;
        (gfn < start + level.pages()).then_some((start, level, pfn, perms, young))
    }

    pub(super) fn map(&mut self, root: Level, m: &Map) -> Result<Mapped, MapError> {
        let mut target = m.level;
        while m.gfn.0 % target.pages() != m.pfn.0 % target.pages() {
            target = target.below().unwrap();
        }
        if let Some((start, level, pfn, perms, young)) = self.leaf_at(m.gfn.0) {
            if pfn + (m.gfn.0 - start) != m.pfn.0 {
                return Err(MapError::Blocked(level));
            }
            if perms.include(m.perms) {
                return Ok(Mapped::Spurious(level));
            }
            if target < level {
                return Err(MapError::Blocked(level));
            }
            self.leaves
                .insert(start, (level, pfn, perms.union(m.perms), young));
            return Ok(Mapped::Upgraded(level));
        }
        while target > Level::L4K {
            let below = target.below().unwrap();
            if !self.tables.contains(&(below, base(m.gfn.0, target))) {
                break;
            }
            target = below;
        }
        let mut level = target;
        while level < root {
            self.tables
                .insert((level, base(m.gfn.0, level.above().unwrap())));
            level = level.above().unwrap();
        }
        let start = base(m.gfn.0, target);
        let pfn = base(m.pfn.0, target);
        self.leaves.insert(start, (target, pfn, m.perms, true));
        Ok(Mapped::New(target))
    }

    /// Gives the tables that go, and whether anything went.
    pub(super) fn zap(&mut self, range: GfnRange) -> (usize, bool) {
        let (leaves, tables) = (self.leaves.len(), self.tables.len());
        self.leaves
            .retain(|&start, leaf| !range.overlaps(GfnRange::new(Gfn(start), leaf.0.pages())));
        self.tables.retain(|&(level, start)| {
            let pages = level.above().unwrap().pages();
            !range.covers(GfnRange::new(Gfn(start), pages))
        });
        let buried = tables - self.tables.len();
        (buried, buried > 0 || leaves > self.leaves.len())
    }

    pub(super) fn overlapping(&mut self, range: GfnRange) -> Vec<&mut (Level, u64, Perms, bool)> {
        let hit =
            |start: u64, level: Level| range.overlaps(GfnRange::new(Gfn(start), level.pages()));
        self.leaves
            .iter_mut()
            .filter(|(&s, l)| hit(s, l.0))
            .map(|(_, l)| l)
            .collect()
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts {
            tables: self.tables.len() as i64,
            ..Counts::default()
        };
        for leaf in self.leaves.values() {
            counts.leaves[leaf.0 as usize - 1] += 1;
        }
        counts
    }
}
