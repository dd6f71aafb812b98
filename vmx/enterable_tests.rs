// SPDX-License-Identifier: GPL-2.0
//! Tests of what entry takes.
use super::*;
use crate::model::regs::Attr;

fn segment(selector: u16, limit: u32, vmx: u32) -> Segment {
    Segment {
        base: 0,
        limit,
        selector,
        attr: Attr::from_vmx(vmx),
    }
}

/// As after reset, with CR0.PE set by hand: a data segment's type for CS would be refused, code it is.
fn real() -> Selected {
    let data = segment(0, 0xffff, 0x93);
    let mut segs = Segments::each(|_| data);
    *segs.get_mut(Seg::Cs) = segment(0, 0xffff, 0x9b);
    Selected {
        segs,
        tr: segment(0, 0xffff, 0x8b),
        ldtr: segment(0, 0xffff, 0x82),
        vm86: false,
        long: false,
    }
}

/// Flat segments of a 32-bit kernel.
fn flat() -> Selected {
    let mut segs = Segments::each(|_| segment(0x10, u32::MAX, 0xc093));
    *segs.get_mut(Seg::Cs) = segment(8, u32::MAX, 0xc09b);
    Selected {
        segs,
        tr: segment(0x20, 0x67, 0x8b),
        ldtr: segment(0, 0, 1 << 16),
        ..real()
    }
}

fn with(of: &Selected, change: impl FnOnce(&mut Selected)) -> bool {
    let mut s = *of;
    change(&mut s);
    enterable(&s)
}

#[test]
fn a_kernel_and_what_real_mode_leaves_at_selector_zero() {
    assert!(enterable(&flat()));
    assert!(enterable(&real()));
}

/// The bits of a selector that were part of an address become a privilege level.
#[test]
fn real_mode_selectors_in_protected_mode() {
    for selector in [1u16, 2, 3, 0x1233, 0xf003] {
        for seg in ALL {
            assert!(!with(&real(), |s| s.segs.get_mut(seg).selector = selector));
        }
    }
    // Their low two bits alone decide.
    assert!(with(&real(), |s| s.segs.get_mut(Seg::Cs).selector = 0xf000));
    assert!(with(&real(), |s| s.segs.get_mut(Seg::Ds).selector = 0x1234 & !3));
    // As a VMM describes CS of real mode, which is data that may be executed there.
    assert!(!with(&real(), |s| s.segs.get_mut(Seg::Cs).attr = Attr(0x93)));
}

#[test]
fn limits_and_granularity() {
    for seg in ALL {
        for (limit, g, good) in [
            (u32::MAX, true, true),
            (u32::MAX, false, false),
            (0xf_ffff, false, true),
            (0x10_0000, false, false),
            (0x10_0000, true, false),
            (0x10_0fff, true, true),
            (0xfff, true, true),
            (0, true, false),
            (0, false, true),
        ] {
            let is = with(&flat(), |s| {
                let seg = s.segs.get_mut(seg);
                seg.limit = limit;
                seg.attr = seg.attr.with_g(g);
            });
            assert_eq!(is, good, "{seg:?} {limit:x} {g}");
        }
    }
}

#[test]
fn levels_belong_together() {
    let to = |s: &mut Segment, level: u8| {
        s.attr = s.attr.with_dpl(level);
        s.selector = s.selector & !3 | u16::from(level);
    };
    // User mode.
    let user = |s: &mut Selected| {
        to(s.segs.get_mut(Seg::Cs), 3);
        to(s.segs.get_mut(Seg::Ss), 3);
        to(s.segs.get_mut(Seg::Ds), 3);
    };
    assert!(with(&flat(), user));
    for seg in [Seg::Cs, Seg::Ss] {
        assert!(!with(&flat(), |s| to(s.segs.get_mut(seg), 3)));
    }
    // Conforming code is of this level or one further in.
    let conforming = |s: &mut Selected, dpl| {
        user(s);
        s.segs.get_mut(Seg::Cs).attr = Attr(0xc09f).with_dpl(dpl);
    };
    assert!(with(&flat(), |s| conforming(s, 0)));
    assert!(with(&flat(), |s| conforming(s, 3)));
    assert!(!with(&flat(), |s| s.segs.get_mut(Seg::Cs).attr = Attr(0xc0ff)));
    // A data segment further out than its selector says is taken, one further in is not.
    assert!(with(&flat(), |s| {
        s.segs.get_mut(Seg::Es).attr = Attr(0xc0f3);
    }));
    assert!(!with(&flat(), |s| s.segs.get_mut(Seg::Es).selector = 0x13));
    // Unless it is conforming code.
    assert!(with(&flat(), |s| {
        *s.segs.get_mut(Seg::Es) = segment(0x13, u32::MAX, 0xc09f);
    }));
}

#[test]
fn types() {
    for kind in 0..16u16 {
        let set = |seg: Seg| {
            with(&flat(), |s| {
                let attr = &mut s.segs.get_mut(seg).attr;
                *attr = Attr(attr.0 & !15 | kind);
            })
        };
        assert_eq!(set(Seg::Cs), matches!(kind, 9 | 11 | 13 | 15), "{kind}");
        assert_eq!(set(Seg::Ss), matches!(kind, 3 | 7), "{kind}");
        let readable = matches!(kind, 1 | 3 | 5 | 7 | 11 | 15);
        for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
            assert_eq!(set(seg), readable, "{kind}");
        }
        for long in [false, true] {
            let task = with(&flat(), |s| {
                s.tr.attr = Attr(0x80 | kind);
                s.long = long;
            });
            assert_eq!(task, kind == 11 || kind == 3 && !long, "{kind}");
        }
        let ldt = with(&flat(), |s| {
            s.ldtr = segment(0x28, 7, 0x80 | u32::from(kind))
        });
        assert_eq!(ldt, kind == 2, "{kind}");
    }
}

#[test]
fn unusable_segments() {
    let drop = |s: &mut Segment| s.attr = s.attr.with_unusable(true);
    for seg in [Seg::Ss, Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
        assert!(with(&flat(), |s| drop(s.segs.get_mut(seg))));
    }
    assert!(!with(&flat(), |s| drop(s.segs.get_mut(Seg::Cs))));
    assert!(!with(&flat(), |s| drop(&mut s.tr)));
    // The level is SS's all the same.
    assert!(!with(&flat(), |s| {
        let ss = s.segs.get_mut(Seg::Ss);
        drop(ss);
        ss.selector = 3;
    }));
    assert!(!with(&flat(), |s| s.tr.selector = 4));
    assert!(!with(&flat(), |s| s.ldtr = segment(0x2c, 7, 0x82)));
}

#[test]
fn virtual_8086_mode() {
    let mut s = flat();
    s.vm86 = true;
    assert!(!enterable(&s));
    s.segs = Segments::each(|seg| Segment {
        base: (0x1000 + seg as u64) << 4,
        limit: 0xffff,
        selector: 0x1000 + seg as u16,
        attr: Attr(0xf3),
    });
    assert!(enterable(&s));
    assert!(!with(&s, |s| s.vm86 = false));
    for seg in ALL {
        assert!(!with(&s, |s| s.segs.get_mut(seg).base += 16));
        assert!(!with(&s, |s| s.segs.get_mut(seg).limit = u32::MAX));
        assert!(!with(&s, |s| s.segs.get_mut(seg).attr = Attr(0x93)));
    }
    assert!(!with(&s, |s| s.tr.attr = Attr(0x89)));
}
