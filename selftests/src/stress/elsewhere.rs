// SPDX-License-Identifier: GPL-2.0
//! What a VMM does to memory that it gave to no guest: none of it may keep vCPUs from mapping theirs, so the function trace of
//! the module may show no exclusive section of `mmu_lock` for it.

use super::ftrace::{Trace, EXCLUSIVE};
use super::sweep::{AT, SLOT};
use crate::guest::*;
use crate::harness::{self, rounds, Test};
use crate::sys::Map;
use crate::{check, eq};

pub const TESTS: &[Test] =
    &[
        Test::new("stress/mem_elsewhere_no_exclusive_lock", no_exclusive_lock)
            .secs(60)
            .long(300)
            .no_ab(),
    ];

const SIZE: usize = 64 << 10;
/// The callback of the notifier (`rust/sys/mm.c`).
const STARTS: &str = "invalidate_start";

/// Takes pages of `m` away in three ways. Each of them tells the notifier at least once.
fn churn(m: &Map) {
    m.fill(0, SIZE, 1);
    eq!(m.advise(0, SIZE, libc::MADV_DONTNEED), Ok(0));
    m.fill(0, SIZE, 2);
    eq!(m.protect(0, SIZE, libc::PROT_READ), Ok(0));
    eq!(
        m.replace(0, SIZE, libc::PROT_READ | libc::PROT_WRITE),
        Ok(0)
    );
}
const EACH: usize = 3;

fn no_exclusive_lock() {
    let Some(trace) = Trace::of(&format!("{STARTS} {EXCLUSIVE}")) else {
        harness::skip("no function trace, or another KVM's functions")
    };
    let times = rounds(100, 2000) as usize;
    let g = Guest::new(Mode::Long);
    let (slot, other) = (Map::anon(SIZE), Map::anon(SIZE));
    for m in [&slot, &other] {
        eq!(m.advise(0, SIZE, libc::MADV_NOHUGEPAGE), Ok(0));
    }
    let calls = |f: &dyn Fn()| {
        let calls = trace.calls(f);
        let of = |what: &str| calls.iter().filter(|l| l.contains(what)).count();
        (of(STARTS), of(EXCLUSIVE))
    };
    let region = |size: usize| {
        eq!(g.vm.region(SLOT, 0, AT, size as u64, slot.addr()), Ok(0));
    };
    let many = |m: &Map| (0..times).for_each(|_| churn(m));

    // Nothing can be mapped through a slot before it is there.
    let (_, exclusive) = calls(&|| region(SIZE));
    check!(
        exclusive == 0,
        "{exclusive} exclusive sections to make a slot"
    );

    let (starts, exclusive) = calls(&|| many(&other));
    check!(
        starts >= EACH * times,
        "{starts} invalidations: is the trace complete?"
    );
    // The host moves pages of the guest's now and then.
    check!(
        exclusive < times / 10,
        "{exclusive} exclusive sections in {starts} invalidations of memory that is in no slot"
    );

    let (starts, exclusive) = calls(&|| many(&slot));
    check!(
        exclusive >= EACH * times,
        "{exclusive} exclusive sections in {starts} invalidations of a slot's memory"
    );

    // And of memory that was a slot's.
    region(0);
    let (starts, exclusive) = calls(&|| many(&slot));
    check!(
        starts >= EACH * times && exclusive < times / 10,
        "{exclusive} exclusive sections in {starts} invalidations after the slot is deleted"
    );
}
