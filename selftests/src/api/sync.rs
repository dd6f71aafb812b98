// SPDX-License-Identifier: GPL-2.0
//! KVM_CAP_SYNC_REGS, KVM_TRANSLATE, KVM_SET_CPUID and KVM_SET_NR_MMU_PAGES.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{bad_addr, bytes_of, filled, Map};
use crate::{check, eq};
use kvm_bindings::*;
use libc::{E2BIG, EFAULT, EINVAL};
use std::mem::offset_of;

pub const TESTS: &[Test] = &[
    Test::new("api/sync_regs", sync_regs),
    Test::new("api/sync_regs_refused", sync_refused),
    Test::new("api/translate", translate),
    Test::new("api/set_cpuid_old", set_cpuid_old),
    Test::new("api/nr_mmu_pages", nr_mmu_pages),
];

const VALID: usize = offset_of!(kvm_run, kvm_valid_regs);
const DIRTY: usize = offset_of!(kvm_run, kvm_dirty_regs);
const REGS: usize = offset_of!(kvm_run, s);
const SREGS: usize = REGS + offset_of!(kvm_sync_regs, sregs);
const EVENTS: usize = REGS + offset_of!(kvm_sync_regs, events);
const ALL: u64 = (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS) as u64;

fn guest() -> Guest {
    let g = Guest::new(Mode::Long);
    if g.kvm.cap(KVM_CAP_SYNC_REGS) == 0 {
        harness::skip("no KVM_CAP_SYNC_REGS");
    }
    // INC RBX; HLT; and again.
    g.mem
        .write(CODE as usize, &[0x48, 0xff, 0xc3, 0xf4, 0xeb, 0xfa]);
    g
}

fn sync_regs() {
    if crate::sys::on_bochs_svm() {
        harness::skip("Bochs' SVM does not load CR2");
    }
    let g = guest();
    let (c, run) = (&g.cpu, &g.cpu.run);
    eq!(g.kvm.cap(KVM_CAP_SYNC_REGS), ALL as i32);
    // Nothing is asked for: nothing is told.
    eq!(c.run(), Exit::Hlt);
    check!(
        run.read(REGS, 600).iter().all(|b| *b == 0),
        "the page is left alone"
    );
    run.wr(VALID, ALL);
    eq!(c.run(), Exit::Hlt);
    eq!(run.read(REGS, 144)[..], bytes_of(&c.regs())[..]);
    eq!(run.read(SREGS, 312)[..], bytes_of(&c.sregs())[..]);
    let e: kvm_vcpu_events = crate::must!(c.fd.take(GET_VCPU_EVENTS));
    eq!(run.read(EVENTS, 64)[..], bytes_of(&e)[..]);
    eq!(run.rd::<kvm_regs>(REGS).rbx, 2);
    // One set only.
    run.wr(VALID, u64::from(KVM_SYNC_X86_REGS));
    run.write(SREGS, &[0x5a; 312]);
    eq!(c.run(), Exit::Hlt);
    eq!(run.rd::<kvm_regs>(REGS).rbx, 3);
    check!(
        run.read(SREGS, 312).iter().all(|b| *b == 0x5a),
        "not asked for"
    );
    // What is not marked is not taken, what is marked is taken once.
    let mut r: kvm_regs = run.rd(REGS);
    r.rbx = 100;
    run.wr(REGS, r);
    eq!(c.run(), Exit::Hlt);
    eq!(run.rd::<kvm_regs>(REGS).rbx, 4);
    let mut r: kvm_regs = run.rd(REGS);
    r.rbx = 100;
    run.wr(REGS, r);
    run.wr(DIRTY, u64::from(KVM_SYNC_X86_REGS));
    run.wr(VALID, 0u64);
    eq!(c.run(), Exit::Hlt);
    eq!(run.rd::<u64>(DIRTY), 0, "taken");
    eq!(c.regs().rbx, 101);
    eq!(run.rd::<kvm_regs>(REGS).rbx, 100, "not asked for");
    // Special registers and events.
    let mut s = c.sregs();
    s.cr2 = 0x1234_5000;
    run.wr(SREGS, s);
    let mut e: kvm_vcpu_events = crate::must!(c.fd.take(GET_VCPU_EVENTS));
    (e.exception.injected, e.exception.nr) = (1, 6);
    run.wr(EVENTS, e);
    run.wr(DIRTY, u64::from(KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS));
    eq!(g.run_to_trap().vector, 6);
    eq!(c.sregs().cr2, 0x1234_5000);
    eq!(run.rd::<u64>(DIRTY), 0);
}

fn sync_refused() {
    let g = guest();
    let (c, run) = (&g.cpu, &g.cpu.run);
    let before = c.regs();
    for bit in [3, 4, 31, 63] {
        for at in [VALID, DIRTY] {
            run.wr(at, 1u64 << bit);
            check!(matches!(c.run(), Exit::Err(EINVAL, _)), "bit {bit}");
            run.wr(at, 0u64);
        }
    }
    eq!(bytes_of(&c.regs()), bytes_of(&before));
    // A set that the ioctl refuses.
    let mut s = c.sregs();
    s.cr0 = 1 << 31;
    run.wr(SREGS, s);
    run.wr(DIRTY, u64::from(KVM_SYNC_X86_SREGS));
    check!(
        matches!(c.run(), Exit::Err(EINVAL, _)),
        "paging without protection"
    );
    eq!(
        run.rd::<u64>(DIRTY),
        u64::from(KVM_SYNC_X86_SREGS),
        "not taken"
    );
    let mut e: kvm_vcpu_events = filled(0);
    e.flags = 1 << 31;
    run.wr(EVENTS, e);
    run.wr(DIRTY, u64::from(KVM_SYNC_X86_EVENTS));
    check!(matches!(c.run(), Exit::Err(EINVAL, _)), "unknown flags");
    run.wr(DIRTY, 0u64);
    eq!(c.run(), Exit::Hlt);
}

fn translate() {
    for mode in Mode::ALL {
        let g = Guest::new(mode);
        let ask = |linear: u64| {
            let mut t: kvm_translation = filled(0);
            t.linear_address = linear;
            eq!(g.cpu.fd.with(TRANSLATE, &mut t), Ok(0), "{mode:?}");
            eq!(t.linear_address, linear);
            (t.physical_address, t.valid, t.writeable, t.usermode)
        };
        for a in [0, 0x1234, CODE, 0x3f_ffff, 0xd000_0000] {
            eq!(ask(a), (a, 1, 1, 0), "{mode:?} {a:x}");
        }
        // The highest address stands for none.
        if matches!(mode, Mode::Real | Mode::Prot) {
            eq!(ask(u64::MAX - 1), (u64::MAX - 1, 1, 1, 0), "{mode:?}");
            eq!(ask(u64::MAX), (u64::MAX, 0, 1, 0), "{mode:?}");
        }
        if mode == Mode::Long {
            for a in [1 << 40, 0xffff_8000_0000_0000, 0x7fff_ffff_f000] {
                eq!(ask(a), (u64::MAX, 0, 1, 0), "{a:x}");
            }
            // Another place than itself.
            g.mem.wr(PD as usize + 8, DATA & !0x1f_ffff | 0x83);
            eq!(ask(0x20_0000 + 0x123), (0x123, 1, 1, 0));
        }
    }
    let g = Guest::new(Mode::Real);
    for a in [0, bad_addr()] {
        eq!(g.cpu.fd.num(TRANSLATE, a), Err(EFAULT));
    }
}

fn set_cpuid_old() {
    let k = Kvm::open();
    let vm = k.vm();
    let c = vm.vcpu(0);
    let map = Map::anon(16384);
    // Two leaves, each of six words.
    let words: [u32; 14] = [
        2,
        0,
        0,
        1,
        0x756e_6547,
        0x6c65_746e,
        0x4965_6e69,
        0,
        1,
        0x600,
        0,
        0,
        0x1000,
        0,
    ];
    for (i, w) in words.iter().enumerate() {
        map.wr(4 * i, *w);
    }
    eq!(c.fd.num(SET_CPUID, map.addr()), Ok(0));
    let mut b: Box<CpuidBuf> = Box::new(crate::sys::zeroed());
    b.nent = MAX_ENTRIES as u32;
    eq!(c.fd.with(GET_CPUID2, &mut *b), Ok(0));
    eq!(b.nent, 2);
    let e = b.entries[0];
    eq!((e.function, e.index, e.flags), (0, 0, 0));
    eq!(
        (e.eax, e.ebx, e.ecx, e.edx),
        (1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69)
    );
    eq!(b.entries[1].function, 1);
    map.wr(0, 257u32);
    eq!(c.fd.num(SET_CPUID, map.addr()), Err(E2BIG));
    eq!(c.fd.num(SET_CPUID, bad_addr()), Err(EFAULT));
}

fn nr_mmu_pages() {
    let k = Kvm::open();
    let vm = k.vm();
    for n in [0, 1, 63] {
        eq!(vm.fd.num(SET_NR_MMU_PAGES, n), Err(EINVAL), "{n}");
    }
    for n in [64, 1 << 20] {
        eq!(vm.fd.num(SET_NR_MMU_PAGES, n), Ok(0), "{n}");
    }
}
