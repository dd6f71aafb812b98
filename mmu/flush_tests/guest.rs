// SPDX-License-Identifier: GPL-2.0
//! What guests do: they use translations, cached ones if there are any, and notice those that are stale.

use std::vec::Vec;

use super::super::tlb::{Cached, Hit, Tag};
use super::{Machine, World};
use crate::mmu::pte::PteFormat;
use crate::mmu::storage::{Cell64, Tables};
use crate::mmu::{Gfn, Pfn, TablePa};

impl<P: PteFormat> World<P> {
    /// The linear translations of a vCPU are what its guest says from now on: those from before are stale.
    pub(in super::super) fn uses_old_linear(&self, id: usize, cpu: usize, gfn: u64) -> bool {
        let v = self.vcpus[id].as_ref().unwrap();
        let root = self.vms[v.shared.vm].as_ref().unwrap().tdp.root().get();
        let tag = Tag::Linear { vpid: v.vpid, root };
        !matches!(self.cpus[cpu].tlb.find(tag, Gfn(gfn)), Hit::Miss)
    }

    fn stale(&mut self, what: std::string::String) {
        self.stale.get_or_insert(what);
    }

    /// The guest reads or writes a page, if it runs and the page is mapped for it.
    pub(in super::super) fn access(&mut self, id: usize, gfn: u64, write: bool) {
        let Some(v) = self.vcpus[id].as_ref() else {
            return;
        };
        let Some(cpu) = *v.shared.running.lock().unwrap() else {
            return;
        };
        let vm = v.shared.vm;
        let root = self.vms[vm].as_ref().unwrap().tdp.root().get();
        let tags: &[Tag] = match self.machine {
            Machine::Amd { .. } => &[Tag::Asid(v.used_asid)],
            Machine::Intel { .. } => &[Tag::Linear { vpid: v.vpid, root }, Tag::Physical { root }],
        };
        let gfn = Gfn(gfn);
        let hit = tags.iter().map(|t| self.cpus[cpu].tlb.find(*t, gfn));
        for hit in hit.collect::<Vec<_>>() {
            match hit {
                Hit::Miss => {}
                Hit::Junk => {
                    return self.stale(std::format!("{gfn:?}: another hypervisor's entry"))
                }
                // Without the right, a CPU walks before it faults.
                Hit::Cached(c) if write && !c.perms.write => {}
                Hit::Cached(c) => return self.check(vm, &c, gfn, write),
            }
        }
        self.walk(vm, cpu, tags, gfn, write);
    }

    /// Whether a cached entry still says what the tables say.
    fn check(&mut self, vm: usize, c: &Cached, gfn: Gfn, write: bool) {
        let v = self.vms[vm].as_ref().unwrap();
        let now = v.tdp.lookup(&self.arena, gfn);
        let good = now.is_some_and(|l| l.pfn == c.pfn(gfn) && (!write || l.perms.write));
        let unseen = v.aged.contains(&gfn.0) && now.is_some_and(|l| !l.accessed);
        if !good {
            self.stale(std::format!(
                "{gfn:?} write {write}: {c:?}, but the tables say {now:?}"
            ));
        } else if unseen {
            self.stale(std::format!(
                "{gfn:?}: the CPU does not set the accessed bit again"
            ));
        }
    }

    fn walk(&mut self, vm: usize, cpu: usize, tags: &[Tag], gfn: Gfn, write: bool) {
        let v = self.vms[vm].as_mut().unwrap();
        let (mut table, mut level) = (v.tdp.root(), v.tdp.root_level());
        loop {
            let cell = self.arena.cell(table, level.index(gfn)).unwrap();
            let pte = cell.load();
            if !P::is_present(pte) {
                return;
            }
            if !P::is_leaf(pte, level) {
                table = TablePa::new(P::pa(self.config, pte));
                level = level.below().unwrap();
                continue;
            }
            if write && !P::perms(pte).write {
                return;
            }
            let accessed = (0..64)
                .map(|b| 1u64 << b)
                .find(|b| P::accessed(*b))
                .unwrap();
            if P::tracks_access(self.config) {
                cell.store(pte | accessed);
            }
            v.aged.remove(&gfn.0);
            for tag in tags {
                self.cpus[cpu].tlb.fill(Cached {
                    tag: *tag,
                    span: level.span(gfn),
                    first: Pfn(P::pa(self.config, pte) >> 12),
                    perms: P::perms(pte),
                });
            }
            return;
        }
    }
}
