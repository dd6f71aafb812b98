// SPDX-License-Identifier: GPL-2.0
//! A CPU's TLB that keeps whatever it may: entries live until something drops them, over exits, entries and other vCPUs' runs.

use std::vec::Vec;

use crate::mmu::{Gfn, GfnRange, Perms, Pfn};
use crate::vmx::tlb::{Extent, Invalidate};

/// What an entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// AMD: guest-linear to host-physical, of an ASID.
    Asid(u32),
    /// Intel: the same, of a VPID and a root.
    Linear { vpid: u16, root: u64 },
    /// Intel: guest-physical to host-physical, of a root.
    Physical { root: u64 },
}

/// A cached leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cached {
    pub(super) tag: Tag,
    pub(super) span: GfnRange,
    pub(super) first: Pfn,
    pub(super) perms: Perms,
}

impl Cached {
    /// Where it translates `gfn` to.
    pub(super) fn pfn(&self, gfn: Gfn) -> Pfn {
        Pfn(self.first.0 + (gfn.0 - self.span.start.0))
    }
}

/// The TLB.
#[derive(Default)]
pub(super) struct Tlb {
    entries: Vec<Cached>,
    /// Whoever used this CPU before left entries of every tag behind, until everything is dropped.
    junk_asids: bool,
    junk_ept: bool,
    junk_vpid: bool,
    /// Tags of the junk that were dropped one by one.
    clean: Vec<Tag>,
}

/// What a look-up gives.
pub(super) enum Hit {
    Cached(Cached),
    /// Another hypervisor's entry, which may translate to anything.
    Junk,
    Miss,
}

impl Tlb {
    /// In the state in which a CPU comes to us.
    pub(super) fn unknown() -> Self {
        Self {
            junk_asids: true,
            junk_ept: true,
            junk_vpid: true,
            ..Self::default()
        }
    }

    pub(super) fn find(&self, tag: Tag, gfn: Gfn) -> Hit {
        let covers = |c: &&Cached| c.tag == tag && c.span.start <= gfn && gfn < c.span.end;
        if let Some(c) = self.entries.iter().find(covers) {
            return Hit::Cached(*c);
        }
        let junk = match tag {
            Tag::Asid(_) => self.junk_asids,
            Tag::Linear { vpid, .. } => self.junk_vpid && vpid != 0,
            Tag::Physical { .. } => self.junk_ept,
        };
        if junk && !self.clean.contains(&tag) {
            Hit::Junk
        } else {
            Hit::Miss
        }
    }

    pub(super) fn fill(&mut self, cached: Cached) {
        let same = |c: &Cached| c.tag == cached.tag && c.span == cached.span;
        self.entries.retain(|c| !same(c));
        self.entries.push(cached);
    }

    /// AMD: one ASID.
    pub(super) fn drop_asid(&mut self, asid: u32) {
        self.entries.retain(|c| c.tag != Tag::Asid(asid));
        self.clean.push(Tag::Asid(asid));
    }

    /// AMD: all ASIDs.
    pub(super) fn drop_asids(&mut self) {
        self.entries.clear();
        self.junk_asids = false;
    }

    /// Intel: what INVEPT and INVVPID do. INVEPT drops linear translations of the root too.
    pub(super) fn invalidate(&mut self, what: Invalidate, vpid: u16, root: u64) {
        match what.ept {
            Some(Extent::All) => {
                self.entries.clear();
                (self.junk_ept, self.junk_vpid) = (false, false);
            }
            Some(Extent::Single) => {
                let of_root = |t: Tag| match t {
                    Tag::Linear { root: r, .. } | Tag::Physical { root: r } => r == root,
                    Tag::Asid(_) => false,
                };
                self.entries.retain(|c| !of_root(c.tag));
                self.clean.push(Tag::Physical { root });
                // Of every VPID: this one is all that anybody looks at.
                self.clean.push(Tag::Linear { vpid, root });
            }
            None => {}
        }
        match what.vpid {
            Some(Extent::All) => {
                let linear = |t: Tag| matches!(t, Tag::Linear { .. });
                self.entries.retain(|c| !linear(c.tag));
                self.junk_vpid = false;
            }
            Some(Extent::Single) => self.drop_vpid(vpid, root),
            None => {}
        }
    }

    /// Intel: one VPID.
    pub(super) fn drop_vpid(&mut self, vpid: u16, root: u64) {
        let of_vpid = |t: Tag| matches!(t, Tag::Linear { vpid: v, .. } if v == vpid);
        self.entries.retain(|c| !of_vpid(c.tag));
        self.clean.push(Tag::Linear { vpid, root });
    }
}
