// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_MSRS and KVM_SET_MSRS: counts, limits, and the MSRs that a boot needs.

use crate::harness::Test;
use crate::kvm::*;
use crate::sys::{bad_addr, filled, Map};
use crate::{check, eq};
use libc::{E2BIG, EFAULT};

pub const TESTS: &[Test] = &[
    Test::new("api/msrs_counts", counts),
    Test::new("api/msrs_limits", limits),
    Test::new("api/msrs_boot", boot),
    Test::new("api/msrs_values", values),
    Test::new("api/msrs_canonical", canonical),
    Test::new("api/msrs_tsc", tsc),
    Test::new("api/msr_index_list", index_list),
    Test::new("api/msr_index_list_values", index_list_values),
];

const UNKNOWN: u32 = 0x1234_5678;
const LSTAR: u32 = 0xc000_0082;
const STAR: u32 = 0xc000_0081;
const FMASK: u32 = 0xc000_0084;
const EFER: u32 = 0xc000_0080;

fn vcpu() -> (Kvm, Vm, Vcpu) {
    let k = Kvm::open();
    let vm = k.vm();
    let c = vm.vcpu(0);
    c.use_supported_cpuid(&k);
    (k, vm, c)
}

fn counts() {
    let (_k, _vm, c) = vcpu();
    let mut m = MsrsBuf::of(&[(STAR, 0x11), (LSTAR, 0x22), (UNKNOWN, 0x33), (FMASK, 0x44)]);
    eq!(
        c.fd.with(SET_MSRS, &mut *m),
        Ok(2),
        "stops at the first that is refused"
    );
    eq!(
        (c.msr(STAR), c.msr(LSTAR), c.msr(FMASK)),
        (Some(0x11), Some(0x22), Some(0))
    );
    let mut m = MsrsBuf::of(&[(STAR, 0xa5), (UNKNOWN, 0xa5), (LSTAR, 0xa5)]);
    eq!(c.fd.with(GET_MSRS, &mut *m), Ok(1));
    eq!(
        (m.entries[0].data, m.entries[1].data, m.entries[2].data),
        (0x11, 0, 0xa5),
        "the failed one is 0, behind it nothing is filled"
    );
    let mut m = MsrsBuf::of(&[(UNKNOWN, 1), (STAR, 5)]);
    eq!(c.fd.with(SET_MSRS, &mut *m), Ok(0));
    eq!(c.msr(STAR), Some(0x11));
    eq!(c.fd.with(GET_MSRS, &mut *MsrsBuf::of(&[])), Ok(0), "none");
    eq!(c.fd.with(SET_MSRS, &mut *MsrsBuf::of(&[])), Ok(0), "none");
    // The same one twice: in order.
    let mut m = MsrsBuf::of(&[(STAR, 1), (STAR, 2)]);
    eq!(c.fd.with(SET_MSRS, &mut *m), Ok(2));
    eq!(c.msr(STAR), Some(2));
}

fn limits() {
    let (_k, _vm, c) = vcpu();
    let mut m: Box<MsrsBuf> = Box::new(filled(0));
    for e in &mut m.entries {
        e.index = STAR;
    }
    m.nmsrs = 255;
    eq!(c.fd.with(GET_MSRS, &mut *m), Ok(255));
    for n in [256, 257, 1 << 16, u32::MAX] {
        m.nmsrs = n;
        eq!(c.fd.with(GET_MSRS, &mut *m), Err(E2BIG), "{n}");
        eq!(c.fd.with(SET_MSRS, &mut *m), Err(E2BIG), "{n}");
    }
    eq!(c.fd.num(GET_MSRS, bad_addr()), Err(EFAULT));
    let edge = Map::anon(8192);
    let _ = edge.protect(4096, 4096, libc::PROT_NONE);
    edge.wr(4088, 1u32);
    edge.wr(4092, 0u32);
    eq!(
        c.fd.num(GET_MSRS, edge.addr() + 4088),
        Err(EFAULT),
        "entries out of reach"
    );
    eq!(
        c.fd.num(SET_MSRS, edge.addr() + 4088),
        Err(EFAULT),
        "entries out of reach"
    );
    // Entries that can be read but not written.
    let _ = edge.protect(4096, 4096, libc::PROT_READ);
    eq!(
        c.fd.num(GET_MSRS, edge.addr() + 4088),
        Err(EFAULT),
        "entries that cannot be written"
    );
}

/// What VMMs set before they boot a kernel.
const BOOT: &[(u32, u64)] = &[
    (0x174, 0),
    (0x175, 0),
    (0x176, 0),
    (STAR, 0),
    (0xc000_0083, 0),
    (LSTAR, 0),
    (0xc000_0102, 0),
    (FMASK, 0),
    (0x10, 0),
    (0x1a0, 1),
    (0x2ff, 0x806),
];

fn boot() {
    let (_k, _vm, c) = vcpu();
    let mut m = MsrsBuf::of(BOOT);
    eq!(c.fd.with(SET_MSRS, &mut *m), Ok(BOOT.len() as i32));
}

fn values() {
    let (_k, _vm, c) = vcpu();
    for (msr, v) in [
        (STAR, 0x0023_0010_1234_5678u64),
        (LSTAR, 0xffff_ffff_8100_0000),
        (0xc000_0083, 0xffff_ffff_8100_1000),
        (FMASK, 0x4_7700),
        (0xc000_0102, 0xffff_8880_0000_0000),
        (0xc000_0100, 0x7fff_1234_5000),
        (0xc000_0101, 0xffff_8880_1234_0000),
        (0x174, 0x10),
        (0x175, 0xfe00_3000),
        (0x176, 0x8100_2000),
        (0x277, 0x0007_0406_0007_0406),
        (0x2ff, 0xc06),
        (0x250, 0x0606_0606_0606_0606),
        (0x200, 6),
        (0x201, 0xff_8000_0800),
    ] {
        check!(c.set_msr(msr, v), "MSR {msr:x}");
        eq!(c.msr(msr), Some(v), "MSR {msr:x}");
    }
    // Values that make no sense.
    for (msr, v) in [
        (0x277, 0x0007_0406_0007_0402u64),
        (0x277, u64::MAX),
        (0x2ff, 0xff),
        (0x250, 0x0202_0202_0202_0202),
        (EFER, 1 << 9),
        (EFER, u64::MAX),
    ] {
        let before = c.msr(msr);
        check!(!c.set_msr(msr, v), "MSR {msr:x} refuses {v:x}");
        eq!(c.msr(msr), before, "and keeps its value");
    }
    eq!(c.msr(UNKNOWN), None);
    for msr in 0..0x40u32 {
        let _ = c.msr(msr);
    }
    for msr in [
        0xfe,
        0x1a0,
        0x1d9,
        0x3a,
        0x8b,
        0xc000_0103,
        0xc000_0104,
        0xc001_0010,
        0xc001_0015,
        0xc001_001f,
        0x4000_0000,
    ] {
        let _ = c.msr(msr);
    }
}

fn canonical() {
    let (_k, _vm, c) = vcpu();
    // SYSENTER's stack and entry have 64 bits for an Intel guest, 32 for an AMD one.
    for msr in [0x175, 0x176] {
        check!(c.set_msr(msr, 0xffff_fe00_0000_3000), "MSR {msr:x}");
        let v = c.msr(msr).unwrap_or(0);
        check!(
            v == 0x3000 || v == 0xffff_fe00_0000_3000,
            "MSR {msr:x}: {v:x}"
        );
    }
    // The host may set an address that the guest could not: what KVM makes of it is for the comparison.
    for msr in [
        LSTAR,
        0xc000_0083,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0x175,
        0x176,
    ] {
        let _ = c.set_msr(msr, 0x0000_8000_0000_0000);
        let _ = c.msr(msr);
    }
}

fn tsc() {
    let (_k, _vm, c) = vcpu();
    check!(c.set_msr(0x10, 0), "TSC");
    let a = c.msr(0x10).unwrap_or(0);
    check!(a < 1 << 36, "starts near 0: {a:x}");
    let b = c.msr(0x10).unwrap_or(0);
    check!(b > a, "advances: {a:x}, {b:x}");
    check!(c.set_msr(0x10, 1 << 50), "TSC");
    let d = c.msr(0x10).unwrap_or(0);
    check!((1 << 50..(1 << 50) + (1 << 36)).contains(&d), "{d:x}");
}

/// `struct kvm_msr_list` with room for many.
fn list_with(k: &Kvm, room: u32) -> (Result<i32, i32>, [u32; 257]) {
    let mut b = [0u32; 257];
    b[0] = room;
    let r = crate::sys::ioctl_with(k.0 .0.raw(), GET_MSR_INDEX_LIST, &mut b);
    (r, b)
}

fn index_list() {
    let k = Kvm::open();
    let (r, b) = list_with(&k, 256);
    eq!(r, Ok(0));
    let n = b[0];
    check!(n > 5 && n <= 256, "{n} MSRs");
    let list = &b[1..=n as usize];
    for (i, m) in list.iter().enumerate() {
        check!(!list[..i].contains(m), "MSR {m:x} twice");
    }
    check!(
        b[n as usize + 1..].iter().all(|x| *x == 0),
        "nothing behind"
    );
    for m in [STAR, LSTAR, FMASK, 0xc000_0102, 0x174, 0x175, 0x176, 0x10] {
        check!(list.contains(&m), "MSR {m:x} is listed");
    }
    for room in [0, 1, n - 1] {
        let (r, b) = list_with(&k, room);
        eq!(r, Err(E2BIG), "room for {room}");
        eq!(b[0], n, "the number that is needed");
        check!(b[1..].iter().all(|x| *x == 0), "no index is written");
    }
    eq!(list_with(&k, n).0, Ok(0));
    eq!(k.0.num(GET_MSR_INDEX_LIST, bad_addr()), Err(EFAULT));
    let edge = Map::anon(8192);
    crate::must!(edge.protect(4096, 4096, libc::PROT_NONE));
    edge.wr(4092, 256u32);
    eq!(
        k.0.num(GET_MSR_INDEX_LIST, edge.addr() + 4092),
        Err(EFAULT),
        "indices out of reach"
    );
}

fn index_list_values() {
    // What is listed can be read, and set to what was read: that is how VMMs save and restore.
    let (k, vm, c) = vcpu();
    let (_, b) = list_with(&k, 256);
    let other = vm.vcpu(1);
    other.use_supported_cpuid(&k);
    for m in &b[1..=b[0] as usize] {
        // Some of KVM's own can be set only with an APIC in the kernel.
        if (0x4b56_4d00..0x4b56_4e00).contains(m) {
            continue;
        }
        let Some(v) = c.msr(*m) else {
            check!(false, "MSR {m:x} cannot be read");
            continue;
        };
        check!(
            other.set_msr(*m, v),
            "MSR {m:x} cannot be set to {v:x}, which was read"
        );
    }
}
