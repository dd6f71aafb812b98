// SPDX-License-Identifier: GPL-2.0
//! KVM_MEM_LOG_DIRTY_PAGES and KVM_GET_DIRTY_LOG: what is refused and with which errno.

use crate::eq;
use crate::harness::Test;
use crate::kvm::*;
use crate::sys::{bad_addr, Map};
use kvm_bindings::*;
use libc::{EFAULT, EINVAL, ENOENT};

pub const TESTS: &[Test] = &[
    Test::new("api/dirty_log_checks", checks),
    Test::new("api/dirty_log_flags", flags),
    Test::new("api/dirty_log_sizes", sizes),
];

const PAGE: u64 = 4096;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

fn checks() {
    let vm = Kvm::open().vm();
    let m = Map::anon(16 * PAGE as usize);
    let buf = Map::anon(PAGE as usize);
    eq!(vm.dirty_log_into(0, &buf, 0), Err(ENOENT), "no such slot");
    eq!(vm.region(0, 0, 0, 16 * PAGE, m.addr()), Ok(0));
    eq!(vm.dirty_log_into(0, &buf, 0), Err(ENOENT), "not logged");
    eq!(vm.region(0, LOG, 0, 16 * PAGE, m.addr()), Ok(0));
    eq!(vm.dirty_pages(0, 16), Ok(vec![]), "nothing written");
    for slot in [0xffffu32, 0xffff_ffff, 2 << 16] {
        eq!(
            vm.dirty_log_into(slot, &buf, 0),
            Err(EINVAL),
            "slot {slot:x}"
        );
    }
    eq!(vm.dirty_log_into(1, &buf, 0), Err(ENOENT), "another slot");
    eq!(vm.fd.num(GET_DIRTY_LOG, bad_addr()), Err(EFAULT));
    eq!(vm.fd.give(GET_DIRTY_LOG, &[0u64, bad_addr()]), Err(EFAULT));
    eq!(vm.fd.give(GET_DIRTY_LOG, &[0u64, u64::MAX]), Err(EFAULT));
    // A word that nothing is said of.
    eq!(
        vm.fd.give(GET_DIRTY_LOG, &[0xffff_ffff << 32, buf.addr()]),
        Ok(0)
    );
    eq!(vm.region(0, LOG, 0, 0, 0), Ok(0), "deleted");
    eq!(vm.dirty_log_into(0, &buf, 0), Err(ENOENT));
}

fn flags() {
    let vm = Kvm::open().vm();
    let m = Map::anon(16 * PAGE as usize);
    let a = m.addr();
    eq!(vm.region(0, LOG, 0, 16 * PAGE, a), Ok(0));
    eq!(vm.region(0, LOG, 0, 16 * PAGE, a), Ok(0), "nothing changed");
    eq!(
        vm.region(0, LOG | KVM_MEM_READONLY, 0, 16 * PAGE, a),
        Err(EINVAL),
        "made read-only"
    );
    eq!(vm.region(0, LOG, 0, 8 * PAGE, a), Err(EINVAL), "shrunk");
    eq!(vm.region(0, 0, 0, 16 * PAGE, a), Ok(0), "off");
    eq!(vm.region(0, LOG, 0, 16 * PAGE, a), Ok(0), "on");
    eq!(vm.region(0, LOG, 0x10_0000, 16 * PAGE, a), Ok(0), "moved");
    eq!(
        vm.region(0, 0, 0x20_0000, 16 * PAGE, a),
        Ok(0),
        "moved, and off"
    );
    eq!(vm.dirty_pages(0, 16), Err(ENOENT));
    eq!(
        vm.region(0, LOG, 0x30_0000, 16 * PAGE, a),
        Ok(0),
        "moved, and on"
    );
    eq!(vm.dirty_pages(0, 16), Ok(vec![]));
    eq!(
        vm.region(1, LOG | KVM_MEM_READONLY, 0, 16 * PAGE, a),
        Ok(0),
        "both"
    );
    eq!(vm.dirty_pages(1, 16), Ok(vec![]));
    eq!(
        vm.region(1, KVM_MEM_READONLY, 0, 16 * PAGE, a),
        Ok(0),
        "read-only"
    );
}

fn sizes() {
    // Whole words are written, and no byte behind them.
    let vm = Kvm::open().vm();
    let m = Map::anon(200 * PAGE as usize);
    for pages in [1u64, 63, 64, 65, 127, 128, 129, 200] {
        eq!(vm.region(0, LOG, 0, pages * PAGE, m.addr()), Ok(0));
        eq!(
            vm.dirty_pages(0, pages as usize),
            Ok(vec![]),
            "{pages} pages"
        );
        eq!(vm.region(0, LOG, 0, 0, 0), Ok(0));
    }
    // The log of 1 TiB is 32 MiB, of which every word is written.
    let (pages, buf) = (1usize << 28, Map::anon(32 << 20));
    eq!(vm.region(0, LOG, 0, pages as u64 * PAGE, 0x1000), Ok(0));
    buf.wr((32 << 20) - 8, u64::MAX);
    eq!(vm.dirty_log_into(0, &buf, 0), Ok(0));
    eq!(buf.rd::<u64>((32 << 20) - 8), 0);
}
