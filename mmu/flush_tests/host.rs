// SPDX-License-Identifier: GPL-2.0
//! What the host does to a VM's entries.

use super::memory::Graves;
use super::World;
use crate::mmu::flush;
use crate::mmu::pte::PteFormat;
use crate::mmu::storage::Counts;
use crate::mmu::tdp::{Map, MapError};
use crate::mmu::{Gfn, GfnRange, Level, MemType, Perms, Pfn};

impl<P: PteFormat> World<P> {
    /// A fault maps a page, as `mmu/fault.rs` does.
    pub(in super::super) fn map(
        &mut self,
        vm: usize,
        gfn: u64,
        pfn: u64,
        level: Level,
        write: bool,
    ) {
        for _ in 0..4 {
            let Some(v) = self.vms[vm].as_ref() else {
                return;
            };
            let map = Map {
                gfn: Gfn(gfn),
                pfn: Pfn(pfn),
                level,
                perms: Perms { write, exec: true },
                mem: MemType::WriteBack,
            };
            let mut pool = &self.arena;
            let mut counts = Counts::default();
            let mapped = v.tdp.map(&self.arena, &mut pool, &map, &mut counts);
            v.remote.publish(&counts);
            match mapped {
                Ok(_) => return,
                Err(MapError::Blocked(level)) => self.zap(vm, level.span(Gfn(gfn))),
                Err(e) => panic!("{e:?}"),
            }
        }
        panic!("not mapped");
    }

    pub(in super::super) fn zap(&mut self, vm: usize, range: GfnRange) {
        let Some(v) = self.vms[vm].as_mut() else {
            return;
        };
        let settled = flush::zap(
            &mut v.tdp,
            &self.arena,
            Graves::default(),
            range,
            &*v.remote,
        );
        assert_eq!(settled.bug, None);
        v.remote.publish(&settled.counts);
        settled
            .graves
            .0
            .into_iter()
            .for_each(|page| self.arena.release(page));
    }

    pub(in super::super) fn write_protect(&mut self, vm: usize, range: GfnRange) {
        let Some(v) = self.vms[vm].as_mut() else {
            return;
        };
        let settled =
            flush::write_protect(&mut v.tdp, &self.arena, core::iter::once(range), &*v.remote);
        assert_eq!(settled.bug, None);
        v.remote.publish(&settled.counts);
    }

    pub(in super::super) fn age(&mut self, vm: usize, range: GfnRange, exact: bool) {
        let Some(v) = self.vms[vm].as_mut() else {
            return;
        };
        let aged = flush::age(
            &v.tdp,
            &self.arena,
            core::iter::once(range),
            exact,
            &*v.remote,
        );
        assert_eq!(aged.bug, None);
        v.remote.publish(&aged.counts);
        for gfn in range.start.0..range.end.0 {
            if exact && aged.young {
                v.aged.insert(gfn);
            } else if !exact {
                v.aged.remove(&gfn);
            }
        }
    }
}
