// SPDX-License-Identifier: GPL-2.0
//! KVM_IOEVENTFD: what is refused and with which errno; and the routing calls of a VM without interrupt controllers.

use crate::eq;
use crate::harness::Test;
use crate::kvm::*;
use crate::sys::{bad_addr, counted, eventfd, zeroed};
use kvm_bindings::*;
use libc::{EBADF, EEXIST, EFAULT, EINVAL, ENOENT};

pub const TESTS: &[Test] = &[
    Test::new("api/ioeventfd_checks", checks),
    Test::new("api/ioeventfd_collisions", collisions),
    Test::new("api/ioeventfd_deassign", deassign),
    Test::new("api/ioeventfd_many", many).secs(60),
    Test::new("api/ioeventfd_closed", closed),
    Test::new("api/routing_without_irqchip", routing),
];

const PIO: u32 = 2;
const MATCH: u32 = 1;
const GONE: u32 = 4;

fn checks() {
    let vm = Kvm::open().vm();
    let e = eventfd();
    let fd = e.raw();
    for len in [3u32, 5, 6, 7, 9, 16, 4096, u32::MAX] {
        eq!(
            vm.ioevent(fd, (0, 0x1000, len, 0)),
            Err(EINVAL),
            "length {len}"
        );
    }
    eq!(vm.ioevent(fd, (0, u64::MAX, 2, 0)), Err(EINVAL), "wraps");
    eq!(
        vm.ioevent(fd, (0, u64::MAX - 1, 2, 0)),
        Err(EINVAL),
        "ends at 2^64"
    );
    for flag in [1u32 << 5, 1 << 6, 1 << 31] {
        eq!(
            vm.ioevent(fd, (flag, 0x1000, 4, 0)),
            Err(EINVAL),
            "flag {flag:x}"
        );
    }
    eq!(
        vm.ioevent(fd, (MATCH, 0x1000, 0, 0)),
        Err(EINVAL),
        "a value of no length"
    );
    eq!(vm.ioevent(-1, (0, 0x1000, 4, 0)), Err(EBADF));
    eq!(
        vm.ioevent(vm.fd.0.raw(), (0, 0x1000, 4, 0)),
        Err(EINVAL),
        "no eventfd"
    );
    // The words are looked at first.
    eq!(vm.ioevent(-1, (0, 0x1000, 3, 0)), Err(EINVAL));
    eq!(vm.fd.num(IOEVENTFD, bad_addr()), Err(EFAULT));
    // Nothing of this has left anything behind.
    eq!(vm.ioevent(fd, (0, 0x1000, 0, 0)), Ok(0));
    eq!(vm.ioevent(fd, (0, u64::MAX - 2, 2, 0)), Ok(0));
}

fn collisions() {
    let vm = Kvm::open().vm();
    let (a, b) = (eventfd(), eventfd());
    let (a, b) = (a.raw(), b.raw());
    eq!(vm.ioevent(a, (MATCH, 0x1000, 4, 7)), Ok(0));
    eq!(
        vm.ioevent(a, (MATCH, 0x1000, 4, 7)),
        Err(EEXIST),
        "the same"
    );
    eq!(
        vm.ioevent(b, (MATCH, 0x1000, 4, 7)),
        Err(EEXIST),
        "for another eventfd"
    );
    eq!(
        vm.ioevent(b, (0, 0x1000, 4, 7)),
        Err(EEXIST),
        "for any value"
    );
    eq!(
        vm.ioevent(b, (0, 0x1000, 0, 0)),
        Err(EEXIST),
        "for any length"
    );
    eq!(vm.ioevent(b, (MATCH, 0x1000, 4, 8)), Ok(0), "another value");
    eq!(
        vm.ioevent(b, (MATCH, 0x1000, 2, 7)),
        Ok(0),
        "another length"
    );
    eq!(
        vm.ioevent(b, (0, 0x1001, 4, 0)),
        Ok(0),
        "another address, overlapping"
    );
    eq!(vm.ioevent(b, (PIO, 0x1000, 0, 0)), Ok(0), "a port");
    eq!(
        vm.ioevent(b, (PIO, 0x1000, 1, 0)),
        Err(EEXIST),
        "a port of any length"
    );
    eq!(
        vm.ioevent(a, (8, 0x1000, 0, 0)),
        Ok(0),
        "the bus of another architecture"
    );
    eq!(vm.ioevent(a, (8, 0x1000, 0, 0)), Err(EEXIST));
}

fn deassign() {
    let vm = Kvm::open().vm();
    let (a, b) = (eventfd(), eventfd());
    let (a, b) = (a.raw(), b.raw());
    eq!(
        vm.ioevent(a, (GONE, 0x1000, 4, 0)),
        Err(ENOENT),
        "never made"
    );
    eq!(vm.ioevent(a, (MATCH, 0x1000, 4, 7)), Ok(0));
    for (what, fd, e) in [
        ("another eventfd", b, (GONE | MATCH, 0x1000, 4, 7)),
        ("another value", a, (GONE | MATCH, 0x1000, 4, 8)),
        ("without value", a, (GONE, 0x1000, 4, 7)),
        ("another length", a, (GONE | MATCH, 0x1000, 8, 7)),
        ("a length that cannot be", a, (GONE | MATCH, 0x1000, 3, 7)),
        ("another address", a, (GONE | MATCH, 0x1004, 4, 7)),
        ("a port", a, (GONE | MATCH | PIO, 0x1000, 4, 7)),
    ] {
        eq!(vm.ioevent(fd, e), Err(ENOENT), "{what}");
    }
    eq!(vm.ioevent(-1, (GONE | MATCH, 0x1000, 4, 7)), Err(EBADF));
    eq!(
        vm.ioevent(vm.fd.0.raw(), (GONE | MATCH, 0x1000, 4, 7)),
        Err(EINVAL)
    );
    // Flags without meaning are not looked at here.
    eq!(vm.ioevent(a, (1 << 20 | GONE | MATCH, 0x1000, 4, 7)), Ok(0));
    eq!(
        vm.ioevent(a, (GONE | MATCH, 0x1000, 4, 7)),
        Err(ENOENT),
        "twice"
    );
    // Of any length.
    eq!(vm.ioevent(a, (0, 0x1000, 0, 0)), Ok(0));
    eq!(vm.ioevent(a, (GONE, 0x1000, 4, 0)), Err(ENOENT));
    eq!(vm.ioevent(a, (GONE, 0x1000, 0, 0)), Ok(0));
    eq!(vm.ioevent(b, (0, 0x1000, 4, 0)), Ok(0), "free again");
}

fn many() {
    // Their number is limited by that of descriptors only, not by that of devices on a bus (1000).
    let vm = Kvm::open().vm();
    let e = eventfd();
    let quiet = |event| crate::record::muted(|| vm.ioevent(e.raw(), event));
    for i in 0..1100u64 {
        let r = quiet((MATCH | PIO, 0x80, 4, i));
        crate::check!(r == Ok(0), "{i}: {r:?}");
    }
    for i in [0u64, 1, 548, 1099] {
        let r = quiet((MATCH | PIO | GONE, 0x80, 4, i));
        crate::check!(r == Ok(0), "giving up {i}: {r:?}");
    }
    let again = (MATCH | PIO, 0x80, 4, 548);
    eq!(vm.ioevent(e.raw(), again), Ok(0), "free again");
    let kept = (MATCH | PIO, 0x80, 4, 549);
    eq!(vm.ioevent(e.raw(), kept), Err(EEXIST), "still there");
}

fn closed() {
    // The registration keeps the eventfd, not the descriptor; and it goes with the VM.
    let e = eventfd();
    let vm = Kvm::open().vm();
    {
        let dup = eventfd();
        eq!(vm.ioevent(dup.raw(), (0, 0x1000, 4, 0)), Ok(0));
    }
    eq!(vm.ioevent(e.raw(), (0, 0x1000, 4, 0)), Err(EEXIST));
    eq!(
        vm.ioevent(e.raw(), (GONE, 0x1000, 4, 0)),
        Err(ENOENT),
        "another's"
    );
    eq!(vm.ioevent(e.raw(), (0, 0x2000, 4, 0)), Ok(0));
    drop(vm);
    eq!(counted(&e), 0);
}

fn routing() {
    let k = Kvm::open();
    let vm = k.vm();
    eq!(vm.fd.num(SET_GSI_ROUTING, bad_addr()), Err(EFAULT));
    for head in [[0u32, 0], [1, 0], [4097, 0], [0, 1]] {
        eq!(vm.fd.give(SET_GSI_ROUTING, &head), Err(EINVAL), "{head:?}");
    }
    eq!(vm.fd.num(SIGNAL_MSI, bad_addr()), Err(EFAULT));
    let msi: kvm_msi = zeroed();
    eq!(vm.fd.give(SIGNAL_MSI, &msi), Err(EINVAL));
    let flagged = kvm_msi { flags: 1, ..msi };
    eq!(vm.fd.give(SIGNAL_MSI, &flagged), Err(EINVAL));
}
