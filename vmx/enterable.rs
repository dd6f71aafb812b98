// SPDX-License-Identifier: GPL-2.0
//! Whether VM entry takes the guest's segment registers (Intel SDM, "Checks on Guest Segment Registers"), without unrestricted guest.
//!
//! A CPU by itself keeps what the registers held before a change of mode, until they are loaded anew, and runs on; VM entry refuses most of
//! that. A guest in such a state is emulated until it has loaded what entry takes.
//!
//! What no instruction brings about, as a base that is not canonical, is left for entry to refuse: KVM_EXIT_FAIL_ENTRY, as with unrestricted
//! guest.
#![forbid(unsafe_code)]

use crate::model::regs::{Seg, Segment, Segments};

/// The registers that decide.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selected {
    /// ES, CS, SS, DS, FS and GS.
    pub segs: Segments,
    /// TR.
    pub tr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// RFLAGS.VM.
    pub vm86: bool,
    /// EFER.LMA.
    pub long: bool,
}

/// Whether entry takes them all, of a guest in protected mode.
pub fn enterable(s: &Selected) -> bool {
    let selected = if s.vm86 {
        ALL.into_iter().all(|seg| vm86(s.segs.get(seg)))
    } else {
        let data = [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs];
        stack(s) && code(s) && data.into_iter().all(|seg| data_segment(s.segs.get(seg)))
    };
    selected && task(s) && ldt(&s.ldtr)
}

const ALL: [Seg; 6] = [Seg::Cs, Seg::Ss, Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs];

/// Of virtual-8086 mode: each follows from its selector.
fn vm86(s: &Segment) -> bool {
    // Read and write, accessed, level 3.
    const RIGHTS: u32 = 0xf3;
    s.base == u64::from(s.selector) << 4 && s.limit == 0xffff && s.attr.to_vmx() == RIGHTS
}

const fn rpl(s: &Segment) -> u8 {
    s.selector as u8 & 3
}

/// Limit and granularity belong together: with pages, the low bits are ones, and without, there are 20 bits.
const fn limit(s: &Segment) -> bool {
    let pages = s.limit & 0xfff == 0xfff;
    let short = s.limit >> 20 == 0;
    if s.attr.g() {
        pages
    } else {
        short
    }
}

fn code(s: &Selected) -> bool {
    let (cs, ss) = (s.segs.get(Seg::Cs), s.segs.get(Seg::Ss));
    let attr = cs.attr;
    // Accessed code; conforming code may be of an outer level's or this one's.
    let level = match attr.kind() {
        9 | 11 => attr.dpl() == ss.attr.dpl(),
        13 | 15 => attr.dpl() <= ss.attr.dpl(),
        _ => false,
    };
    !attr.unusable() && attr.s() && attr.p() && level && rpl(cs) == rpl(ss) && limit(cs)
}

fn stack(s: &Selected) -> bool {
    let ss = s.segs.get(Seg::Ss);
    let attr = ss.attr;
    // The level counts even if there is no stack segment.
    if attr.dpl() != rpl(ss) {
        return false;
    }
    attr.unusable() || matches!(attr.kind(), 3 | 7) && attr.s() && attr.p() && limit(ss)
}

fn data_segment(s: &Segment) -> bool {
    let attr = s.attr;
    let accessed = attr.kind() & 1 != 0;
    let readable = attr.kind() & 8 == 0 || attr.kind() & 2 != 0;
    let conforming = attr.kind() & 0xc == 0xc;
    attr.unusable()
        || accessed
            && readable
            && attr.s()
            && attr.p()
            && (conforming || attr.dpl() >= rpl(s))
            && limit(s)
}

fn task(s: &Selected) -> bool {
    let attr = s.tr.attr;
    let busy = attr.kind() == 11 || !s.long && attr.kind() == 3;
    !attr.unusable() && busy && !attr.s() && attr.p() && s.tr.selector & 4 == 0 && limit(&s.tr)
}

fn ldt(s: &Segment) -> bool {
    let attr = s.attr;
    attr.unusable() || attr.kind() == 2 && !attr.s() && attr.p() && s.selector & 4 == 0 && limit(s)
}

#[cfg(test)]
#[path = "enterable_tests.rs"]
mod tests;
