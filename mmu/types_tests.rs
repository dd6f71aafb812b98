// SPDX-License-Identifier: GPL-2.0
//! Address arithmetic at its edges, and the vendors' fault codes bit by bit.

use std::vec::Vec;

use super::*;

#[test]
fn addresses_do_not_wrap() {
    assert_eq!(Gfn(1 << 52).gpa(), None);
    assert_eq!(Gfn((1 << 52) - 1).gpa(), Some(Gpa(0xffff_ffff_ffff_f000)));
    assert_eq!(Gpa(u64::MAX).checked_add(1), None);
    assert_eq!(Gpa(0x1fff).left_in_page(), 1);
    assert_eq!(Gpa(0x2000).left_in_page(), 4096);
    assert_eq!(Hva(u64::MAX).checked_add(1), None);
    assert_eq!(Pfn(1 << 52).pa(), None);
    assert_eq!(Gfn(u64::MAX).checked_add(1), None);
    assert_eq!(GfnRange::new(Gfn(u64::MAX), 7).end, Gfn(u64::MAX));
}

#[test]
fn levels_nest() {
    for level in (1..=5).filter_map(Level::from_number) {
        assert_eq!(level.bytes(), 4096 << (9 * u32::from(level.number() - 1)));
        assert_eq!(
            level.below().and_then(Level::above),
            level.below().map(|_| level)
        );
        let gfn = Gfn(0x1_2345_6789_abcd);
        assert_eq!(
            level.index(gfn) as u64,
            (gfn.0 >> (9 * (level.number() - 1))) & 511
        );
        let span = level.span(gfn);
        assert!(span.start <= gfn && gfn < span.end && span.start.0 % level.pages() == 0);
    }
    assert_eq!((Level::from_number(0), Level::from_number(6)), (None, None));
}

#[test]
fn parts_make_up_the_range() {
    let parts = |start, pages| GfnRange::new(Gfn(start), pages).parts().collect::<Vec<_>>();
    assert!(parts(5, 0).is_empty());
    assert_eq!(parts(5, 7), [GfnRange::new(Gfn(5), 7)]);
    let giant = 1 << 18;
    let expect = [
        GfnRange::new(Gfn(giant - 1), 1),
        GfnRange::new(Gfn(giant), giant),
        GfnRange::new(Gfn(2 * giant), 3),
    ];
    assert_eq!(parts(giant - 1, giant + 4), expect);
    assert_eq!(parts(u64::MAX - 1, 1).len(), 1);
}

#[test]
fn ranges_widen_to_entries() {
    let large = Level::L2M.pages();
    let widened = |start, pages| GfnRange::new(Gfn(start), pages).widened(Level::L2M);
    assert_eq!(widened(5, 1), GfnRange::new(Gfn(0), large));
    assert_eq!(widened(large, large), GfnRange::new(Gfn(large), large));
    assert_eq!(widened(large - 1, 2), GfnRange::new(Gfn(0), 2 * large));
    assert_eq!(widened(5, 1).widened(Level::L4K), widened(5, 1));
    assert!(GfnRange::ALL.widened(Level::L1G).end > Gfn(u64::MAX - (1 << 18)));
}

#[test]
fn chunks_make_up_a_part() {
    let part = GfnRange::new(Gfn((1 << 18) + 5), (1 << 18) - 5);
    let chunks = part.chunks().collect::<Vec<_>>();
    assert_eq!(chunks.len(), 16);
    assert_eq!(chunks[0], GfnRange::new(Gfn((1 << 18) + 5), (1 << 14) - 5));
    assert!(chunks.windows(2).all(|two| two[0].end == two[1].start));
    assert_eq!(chunks[15].end, part.end);
    assert_eq!(GfnRange::new(Gfn(7), 1).chunks().count(), 1);
    assert_eq!(GfnRange::new(Gfn(u64::MAX - 1), 1).chunks().count(), 1);
}

#[test]
fn ranges_meet() {
    let range = |start, pages| GfnRange::new(Gfn(start), pages);
    assert!(range(0, 4).overlaps(range(3, 1)) && !range(0, 4).overlaps(range(4, 1)));
    assert!(range(0, 4).covers(range(1, 3)) && !range(1, 3).covers(range(0, 4)));
    assert_eq!(range(0, 4).union(range(8, 2)), range(0, 10));
    assert_eq!(range(0, 0).union(range(8, 2)), range(8, 2));
    assert_eq!(range(0, 4).intersect(range(2, 9)), range(2, 2));
    assert!(range(0, 4).intersect(range(5, 1)).is_empty());
}

#[test]
fn fault_codes_decode() {
    let npf = |info1| SecondStageFault::from_npf(info1, 0x1234);
    let fault = npf(0x1_0000_0007);
    assert!(fault.access.write && fault.access.user && !fault.access.exec);
    assert_eq!((fault.gpa, fault.told), (Gpa(0x1234), 0x1_0000_0007));
    let fault = npf(0x2_0000_0014);
    assert!(fault.access.exec && !fault.access.write);
    let ept = |qualification| SecondStageFault::from_ept_violation(qualification, 0x1234);
    let fault = ept(0x182);
    assert!(fault.access.write && !fault.access.exec);
    assert_eq!((fault.gpa, fault.told), (Gpa(0x1234), 0x182));
    let fault = ept(0x084 | 0x28);
    assert!(fault.access.exec && !fault.access.write);
    assert_eq!(ept(0x181).access, Access::READ);
}
