// SPDX-License-Identifier: GPL-2.0
//! Memory regions: every documented check, and what adding, moving and deleting does.

use crate::guest::{Guest, Mode, DATA, MEM};
use crate::harness::Test;
use crate::kvm::*;
use crate::sys::{bad_addr, filled, Map};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::{EEXIST, EFAULT, EINVAL};

pub const TESTS: &[Test] = &[
    Test::new("api/region_checks", region_checks),
    Test::new("api/region_overlap", region_overlap),
    Test::new("api/region_change", region_change),
    Test::new("api/region_slots", region_slots),
    Test::new("api/region_pointer", region_pointer),
    Test::new("api/region2", region2),
    Test::new("api/region_many", region_many).secs(60),
    Test::new("api/region_refused_keeps", region_refused_keeps),
];

const PAGE: u64 = 4096;

fn region_checks() {
    let vm = Kvm::open().vm();
    let m = Map::anon(16 * PAGE as usize);
    let a = m.addr();
    eq!(
        vm.region(0, 0, 0, 0, a),
        Err(EINVAL),
        "deleting a slot that is not there"
    );
    eq!(
        vm.region(0, 0, 0, PAGE + 1, a),
        Err(EINVAL),
        "size not of pages"
    );
    eq!(
        vm.region(0, 0, 0, PAGE / 2, a),
        Err(EINVAL),
        "size below a page"
    );
    eq!(
        vm.region(0, 0, 1, PAGE, a),
        Err(EINVAL),
        "guest address not of a page"
    );
    eq!(
        vm.region(0, 0, 0, PAGE, a + 1),
        Err(EINVAL),
        "user address not of a page"
    );
    eq!(
        vm.region(0, 0, 0, PAGE, 1 << 63),
        Err(EINVAL),
        "user address in the kernel"
    );
    eq!(
        vm.region(0, 0, 0, PAGE, 0xffff_ffff_ffff_f000),
        Err(EINVAL),
        "user address at the end"
    );
    eq!(
        vm.region(0, 0, 0, 1 << 52, a),
        Err(EINVAL),
        "size beyond user space"
    );
    eq!(
        vm.region(0, 0, u64::MAX - PAGE + 1, 2 * PAGE, a),
        Err(EINVAL),
        "guest addresses wrap"
    );
    for flags in [1u32 << 3, 1 << 4, 1 << 5, 1 << 16, 1 << 31, u32::MAX] {
        eq!(
            vm.region(0, flags, 0, PAGE, a),
            Err(EINVAL),
            "flags {flags:x}"
        );
    }
    eq!(
        vm.region(0, KVM_MEM_GUEST_MEMFD, 0, PAGE, a),
        Err(EINVAL),
        "a flag of the longer struct"
    );
    eq!(vm.region(0, KVM_MEM_READONLY, 0, PAGE, a), Ok(0));
    eq!(vm.region(0, KVM_MEM_READONLY, 0, 0, a), Ok(0));
}

fn region_overlap() {
    let vm = Kvm::open().vm();
    let m = Map::anon(64 * PAGE as usize);
    let a = m.addr();
    eq!(vm.region(0, 0, 0x10_0000, 16 * PAGE, a), Ok(0));
    eq!(
        vm.region(1, 0, 0x10_0000, 16 * PAGE, a),
        Err(EEXIST),
        "the same"
    );
    eq!(
        vm.region(1, 0, 0x10_0000 + 15 * PAGE, PAGE, a),
        Err(EEXIST),
        "the last page"
    );
    eq!(
        vm.region(1, 0, 0x10_0000 - PAGE, 2 * PAGE, a),
        Err(EEXIST),
        "over the start"
    );
    eq!(
        vm.region(1, 0, 0x0f_0000, 64 * PAGE, a),
        Err(EEXIST),
        "around it"
    );
    eq!(
        vm.region(1, 0, 0x10_0000 + 16 * PAGE, PAGE, a),
        Ok(0),
        "right behind it"
    );
    eq!(
        vm.region(2, 0, 0x10_0000 - PAGE, PAGE, a),
        Ok(0),
        "right before it"
    );
    eq!(
        vm.region(0, 0, 0x10_0000 + PAGE, 16 * PAGE, a),
        Err(EEXIST),
        "moving onto another"
    );
    eq!(vm.region(1, 0, 0, 0, 0), Ok(0), "deleted");
    eq!(vm.region(1, 0, 0, 0, 0), Err(EINVAL), "deleted twice");
    eq!(
        vm.region(0, 0, 0x10_0000 + PAGE, 16 * PAGE, a),
        Ok(0),
        "moved over itself"
    );
    eq!(vm.region(3, 0, 0x10_0000, PAGE, a), Ok(0), "where it was");
}

fn region_change() {
    let vm = Kvm::open().vm();
    let m = Map::anon(64 * PAGE as usize);
    let a = m.addr();
    eq!(vm.region(0, 0, 0x10_0000, 16 * PAGE, a), Ok(0));
    eq!(
        vm.region(0, 0, 0x10_0000, 16 * PAGE, a),
        Ok(0),
        "nothing changed"
    );
    eq!(
        vm.region(0, 0, 0x10_0000, 8 * PAGE, a),
        Err(EINVAL),
        "shrinking"
    );
    eq!(
        vm.region(0, 0, 0x10_0000, 32 * PAGE, a),
        Err(EINVAL),
        "growing"
    );
    eq!(
        vm.region(0, 0, 0x10_0000, 16 * PAGE, a + PAGE),
        Err(EINVAL),
        "other user memory"
    );
    eq!(
        vm.region(0, KVM_MEM_READONLY, 0x10_0000, 16 * PAGE, a),
        Err(EINVAL),
        "made read-only"
    );
    eq!(vm.region(0, 0, 0x20_0000, 16 * PAGE, a), Ok(0), "moved");
    eq!(
        vm.region(1, 0, 0x10_0000, 16 * PAGE, a),
        Ok(0),
        "the same user memory twice"
    );
    // Only slot and size count when deleting.
    eq!(vm.region(0, 0, 0xdead_b000, 0, 0x1000), Ok(0));
    eq!(
        vm.region(1, 0, 0xdead_b001, 0, 0x1000),
        Err(EINVAL),
        "alignment is checked even so"
    );
}

fn region_slots() {
    let k = Kvm::open();
    let vm = k.vm();
    let m = Map::anon(PAGE as usize);
    let slots = k.cap(KVM_CAP_NR_MEMSLOTS) as u32;
    eq!(
        vm.region(slots - 1, 0, 0, PAGE, m.addr()),
        Ok(0),
        "the last slot"
    );
    eq!(vm.region(slots - 1, 0, 0, 0, 0), Ok(0));
    for slot in [0xffff, 0xff_ffff, 1 << 31, u32::MAX] {
        eq!(
            vm.region(slot, 0, 0, PAGE, m.addr()),
            Err(EINVAL),
            "slot {slot:x}"
        );
    }
    let spaces = k.cap(KVM_CAP_MULTI_ADDRESS_SPACE) as u32;
    eq!(
        vm.region(spaces.max(1) << 16, 0, 0, PAGE, m.addr()),
        Err(EINVAL),
        "address space {spaces}"
    );
}

fn region_pointer() {
    let vm = Kvm::open().vm();
    eq!(vm.fd.num(SET_USER_MEMORY_REGION, bad_addr()), Err(EFAULT));
    eq!(vm.fd.num(SET_USER_MEMORY_REGION, 0), Err(EFAULT));
    eq!(vm.fd.num(SET_USER_MEMORY_REGION, u64::MAX), Err(EFAULT));
    eq!(vm.fd.num(SET_USER_MEMORY_REGION2, bad_addr()), Err(EFAULT));
    // A struct of which only the start can be read.
    eq!(
        vm.fd.num(SET_USER_MEMORY_REGION, bad_addr() - 4096 - 8),
        Err(EFAULT)
    );
    // The user memory need not be there when the region is made.
    eq!(vm.region(0, 0, 0, PAGE, bad_addr()), Ok(0));
}

fn region2() {
    let vm = Kvm::open().vm();
    let m = Map::anon(16 * PAGE as usize);
    let good = kvm_userspace_memory_region2 {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 4 * PAGE,
        userspace_addr: m.addr(),
        ..Default::default()
    };
    eq!(vm.fd.give(SET_USER_MEMORY_REGION2, &good), Ok(0));
    eq!(
        vm.fd.give(SET_USER_MEMORY_REGION2, &good),
        Ok(0),
        "nothing changed"
    );
    eq!(
        vm.region(0, 0, 0, 4 * PAGE, m.addr()),
        Ok(0),
        "both calls mean the same slots"
    );
    let bad = kvm_userspace_memory_region2 {
        slot: 1,
        flags: 1 << 7,
        ..good
    };
    eq!(vm.fd.give(SET_USER_MEMORY_REGION2, &bad), Err(EINVAL));
    let over = kvm_userspace_memory_region2 { slot: 1, ..good };
    eq!(vm.fd.give(SET_USER_MEMORY_REGION2, &over), Err(EEXIST));
    // Fields that no flag asks for are not looked at.
    let junk = kvm_userspace_memory_region2 {
        slot: 1,
        guest_phys_addr: 0x10_0000,
        ..filled(0xff)
    };
    let junk = kvm_userspace_memory_region2 {
        flags: 0,
        memory_size: PAGE,
        userspace_addr: m.addr(),
        ..junk
    };
    eq!(
        vm.fd.give(SET_USER_MEMORY_REGION2, &junk),
        Ok(0),
        "junk in unused fields"
    );
    let gone = kvm_userspace_memory_region2 {
        slot: 1,
        memory_size: 0,
        ..good
    };
    eq!(vm.fd.give(SET_USER_MEMORY_REGION2, &gone), Ok(0), "deleted");
}

fn region_many() {
    let vm = Kvm::open().vm();
    // Thousands of equal calls would only make the record long.
    let quiet = |slot, flags, gpa, size, hva| {
        crate::record::muted(|| vm.region(slot, flags, gpa, size, hva))
    };
    let m = Map::anon(PAGE as usize);
    let n = 2000u32;
    for i in 0..n {
        let r = quiet(i, 0, u64::from(i) * 2 * PAGE, PAGE, m.addr());
        check!(r == Ok(0), "slot {i}: {r:?}");
    }
    for i in 0..n {
        let r = quiet(n, 0, u64::from(i) * 2 * PAGE, PAGE, m.addr());
        check!(r == Err(EEXIST), "over slot {i}: {r:?}");
    }
    for i in (0..n).step_by(2).chain((1..n).step_by(2)) {
        let r = quiet(i, 0, 0, 0, 0);
        check!(r == Ok(0), "deleting slot {i}: {r:?}");
    }
    eq!(
        vm.region(0, 0, 0, 1 << 30, m.addr()),
        Ok(0),
        "all is free again"
    );
}

fn region_refused_keeps() {
    let g = Guest::new(Mode::Long);
    g.mem.wr(DATA as usize, 0x1234_5678u32);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(eax, dword_ptr(DATA))?;
        a.out(0xf0, eax)?;
        a.jmp(top)
    });
    let want = crate::guest::out(0xf0, &0x1234_5678u32.to_le_bytes());
    g.expect(&want);
    for (slot, flags, gpa, size) in [
        (0u32, 0u32, 0u64, MEM as u64 / 2),
        (0, KVM_MEM_READONLY, 0, MEM as u64),
        (0, 1 << 9, 0, MEM as u64),
        (0, 0, 1, MEM as u64),
        (1, 0, 0, 4096),
        (1 << 20, 0, 0, 0),
    ] {
        let r = g.vm.region(slot, flags, gpa, size, g.mem.addr());
        check!(
            r.is_err(),
            "slot {slot:x} flags {flags:x} gpa {gpa:x} size {size:x}"
        );
        g.expect(&want);
    }
}
