// SPDX-License-Identifier: GPL-2.0
//! General registers, FPU, XCRs, the MP state, and what a fresh vCPU looks like.

use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{bad_addr, bytes_of, filled};
use crate::{check, eq};
use kvm_bindings::*;
use libc::{EFAULT, EINVAL};

pub const TESTS: &[Test] = &[
    Test::new("api/reset_state", reset_state),
    Test::new("api/regs_round_trip", regs_round_trip),
    Test::new("api/fpu_round_trip", fpu_round_trip),
    Test::new("api/xcrs", xcrs),
    Test::new("api/mp_state", mp_state),
    Test::new("api/bad_pointers", bad_pointers),
    Test::new("api/no_stale_bytes", no_stale_bytes),
    Test::new("api/irqchip_ioctls_without_irqchip", without_irqchip),
];

fn vcpu() -> (Kvm, Vm, Vcpu) {
    let k = Kvm::open();
    let vm = k.vm();
    let c = vm.vcpu(0);
    (k, vm, c)
}

fn reset_state() {
    let (_k, vm, c) = vcpu();
    let r = c.regs();
    eq!(r.rip, 0xfff0);
    eq!(r.rflags, 2);
    eq!(
        (r.rax, r.rbx, r.rcx, r.rsi, r.rdi, r.rbp, r.rsp),
        (0, 0, 0, 0, 0, 0, 0)
    );
    // Family 6: what an Intel CPU of the default model leaves in EDX after reset.
    eq!(r.rdx, 0x600);
    let s = c.sregs();
    eq!(
        (s.cs.selector, s.cs.base, s.cs.limit),
        (0xf000, 0xffff_0000, 0xffff)
    );
    eq!((s.ds.selector, s.ds.base, s.ds.limit), (0, 0, 0xffff));
    eq!(
        (s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit),
        (0, 0xffff, 0, 0xffff)
    );
    eq!(s.cr0, 0x6000_0010);
    eq!((s.cr2, s.cr3, s.cr4, s.cr8, s.efer), (0, 0, 0, 0, 0));
    check!(
        s.apic_base & 0xffff_f000 == 0xfee0_0000,
        "apic_base {:x}",
        s.apic_base
    );
    check!(
        s.apic_base & 0x100 == 0x100,
        "vCPU 0 boots: apic_base {:x}",
        s.apic_base
    );
    eq!((s.ldt.limit, s.tr.limit, s.ldt.type_), (0xffff, 0xffff, 2));
    // A busy TSS, of 16 bits on AMD and of 32 on Intel.
    check!(matches!(s.tr.type_, 3 | 11), "TR type {}", s.tr.type_);
    eq!(s.interrupt_bitmap, [0; 4]);
    let f: kvm_fpu = crate::must!(c.fd.take(GET_FPU));
    // The calls have a field for MXCSR that they do not use.
    eq!((f.fcw, f.fsw, f.ftwx), (0x37f, 0, 0));
    let m: kvm_mp_state = crate::must!(c.fd.take(GET_MP_STATE));
    eq!(m.mp_state, KVM_MP_STATE_RUNNABLE);
    let second = vm.vcpu(1);
    let s = second.sregs();
    eq!(s.apic_base & 0x100, 0, "vCPU 1 does not boot");
    let m: kvm_mp_state = crate::must!(second.fd.take(GET_MP_STATE));
    crate::record::line("mp_state of vCPU 1", "", &m.mp_state.to_string(), "");
}

fn regs_round_trip() {
    let (_k, _vm, c) = vcpu();
    let mut r: kvm_regs = filled(0);
    let fields: [&mut u64; 17] = [
        &mut r.rax, &mut r.rbx, &mut r.rcx, &mut r.rdx, &mut r.rsi, &mut r.rdi, &mut r.rsp,
        &mut r.rbp, &mut r.r8, &mut r.r9, &mut r.r10, &mut r.r11, &mut r.r12, &mut r.r13,
        &mut r.r14, &mut r.r15, &mut r.rip,
    ];
    for (i, f) in fields.into_iter().enumerate() {
        *f = 0x0101_0101_0101_0101 * (i as u64 + 1);
    }
    r.rip = 0x1234_5678;
    r.rflags = 0xed7;
    c.set_regs(&r);
    eq!(bytes_of(&c.regs()), bytes_of(&r));
    for flags in [0u64, 2, 0x202, 0x10002, 0x3f_7fd7] {
        r.rflags = flags;
        c.set_regs(&r);
        eq!(c.regs().rflags, flags | 2, "the flag that is always set");
    }
    for rip in [0, u64::MAX, 1 << 63, 0x0000_8000_0000_0000] {
        r.rip = rip;
        c.set_regs(&r);
        eq!(c.regs().rip, rip);
    }
    eq!(c.fd.num(SET_REGS, bad_addr()), Err(EFAULT));
    eq!(
        c.regs().rip,
        0x0000_8000_0000_0000,
        "a refused call changes nothing"
    );
}

fn fpu_round_trip() {
    let (_k, _vm, c) = vcpu();
    let mut f: kvm_fpu = filled(0);
    for (i, r) in f.fpr.iter_mut().enumerate() {
        for (j, b) in r.iter_mut().take(10).enumerate() {
            *b = (16 * i + j) as u8;
        }
    }
    for (i, r) in f.xmm.iter_mut().enumerate() {
        for (j, b) in r.iter_mut().enumerate() {
            *b = (i ^ (j << 4)) as u8;
        }
    }
    (f.fcw, f.fsw, f.ftwx, f.last_opcode) = (0x27f, 0x3800, 0x81, 0x123);
    (f.last_ip, f.last_dp, f.mxcsr) = (0x1111_2222, 0x3333_4444, 0x1fa0);
    eq!(c.fd.give(SET_FPU, &f), Ok(0));
    let g: kvm_fpu = crate::must!(c.fd.take(GET_FPU));
    eq!(g.fpr, f.fpr);
    eq!(g.xmm, f.xmm);
    eq!(
        (g.fcw, g.fsw, g.ftwx, g.last_opcode),
        (f.fcw, f.fsw, f.ftwx, f.last_opcode)
    );
    eq!((g.last_ip, g.last_dp), (f.last_ip, f.last_dp));
    eq!((g.pad1, g.pad2), (0, 0), "padding");
    crate::record::line("mxcsr after SET_FPU", "", &format!("{:x}", g.mxcsr), "");
    let before = g;
    eq!(c.fd.num(SET_FPU, bad_addr()), Err(EFAULT));
    eq!(
        bytes_of(&crate::must!(c.fd.take::<kvm_fpu>(GET_FPU))),
        bytes_of(&before)
    );
}

fn xcr0(value: u64) -> kvm_xcrs {
    let mut x: kvm_xcrs = filled(0);
    x.nr_xcrs = 1;
    x.xcrs[0].value = value;
    x
}

fn xcrs() {
    let (k, _vm, c) = vcpu();
    if k.cap(KVM_CAP_XCRS) == 0 {
        harness::skip("no XSAVE on this CPU");
    }
    c.use_supported_cpuid(&k);
    let x: kvm_xcrs = crate::must!(c.fd.take(GET_XCRS));
    eq!(
        (x.nr_xcrs, x.flags, x.xcrs[0].xcr, x.xcrs[0].value),
        (1, 0, 0, 1),
        "after reset"
    );
    eq!(x.padding, [0; 16]);
    eq!(x.xcrs[0].reserved, 0);
    for good in [1, 3, 7] {
        eq!(c.fd.give(SET_XCRS, &xcr0(good)), Ok(0), "XCR0 {good:x}");
        eq!(
            crate::must!(c.fd.take::<kvm_xcrs>(GET_XCRS)).xcrs[0].value,
            good
        );
    }
    // Without x87, AVX without SSE, half of MPX, half of AVX-512, what no CPU has.
    for bad in [
        0u64,
        2,
        5,
        9,
        0x27,
        0x67,
        (1 << 62) | 7,
        (1 << 63) | 7,
        u64::MAX,
    ] {
        eq!(c.fd.give(SET_XCRS, &xcr0(bad)), Err(EINVAL), "XCR0 {bad:x}");
        eq!(
            crate::must!(c.fd.take::<kvm_xcrs>(GET_XCRS)).xcrs[0].value,
            7
        );
    }
    eq!(
        c.fd.give(
            SET_XCRS,
            &kvm_xcrs {
                flags: 1,
                ..xcr0(1)
            }
        ),
        Err(EINVAL),
        "flags"
    );
    eq!(
        c.fd.give(
            SET_XCRS,
            &kvm_xcrs {
                nr_xcrs: 17,
                ..xcr0(1)
            }
        ),
        Err(EINVAL),
        "more than fit"
    );
    eq!(
        c.fd.give(
            SET_XCRS,
            &kvm_xcrs {
                nr_xcrs: u32::MAX,
                ..xcr0(1)
            }
        ),
        Err(EINVAL)
    );
    eq!(
        c.fd.give(
            SET_XCRS,
            &kvm_xcrs {
                nr_xcrs: 0,
                ..xcr0(0)
            }
        ),
        Ok(0),
        "nothing to set"
    );
    // Only register 0 is known; another one is passed over.
    let mut other = xcr0(1);
    other.xcrs[0].xcr = 5;
    eq!(c.fd.give(SET_XCRS, &other), Ok(0));
    eq!(
        crate::must!(c.fd.take::<kvm_xcrs>(GET_XCRS)).xcrs[0].value,
        7
    );
    let mut second = xcr0(1);
    second.nr_xcrs = 2;
    second.xcrs[0].xcr = 5;
    second.xcrs[1].value = 3;
    eq!(c.fd.give(SET_XCRS, &second), Ok(0));
    eq!(
        crate::must!(c.fd.take::<kvm_xcrs>(GET_XCRS)).xcrs[0].value,
        3
    );
}

fn mp_state() {
    let (_k, _vm, c) = vcpu();
    let set = |s: u32| c.fd.give(SET_MP_STATE, &kvm_mp_state { mp_state: s });
    eq!(set(KVM_MP_STATE_RUNNABLE), Ok(0));
    // The others belong to a local APIC, which is not there.
    for s in (1..16).chain([u32::MAX]) {
        eq!(set(s), Err(EINVAL), "state {s}");
        eq!(
            crate::must!(c.fd.take::<kvm_mp_state>(GET_MP_STATE)).mp_state,
            0
        );
    }
    eq!(c.fd.num(SET_MP_STATE, bad_addr()), Err(EFAULT));
    eq!(c.fd.num(GET_MP_STATE, bad_addr()), Err(EFAULT));
}

fn bad_pointers() {
    let (_k, _vm, c) = vcpu();
    let (r, s) = (c.regs(), c.sregs());
    let calls = [
        GET_REGS,
        SET_REGS,
        GET_SREGS,
        SET_SREGS,
        GET_FPU,
        SET_FPU,
        GET_XCRS,
        SET_XCRS,
        GET_MP_STATE,
        SET_MP_STATE,
        GET_MSRS,
        SET_MSRS,
        SET_CPUID2,
        GET_CPUID2,
        INTERRUPT,
        SET_SIGNAL_MASK,
    ];
    let edge = crate::sys::Map::anon(8192);
    crate::must!(edge.protect(4096, 4096, libc::PROT_NONE));
    for nr in calls {
        for (what, a) in [
            ("nowhere", bad_addr()),
            ("kernel", 0xffff_8880_0000_0000),
            ("end", u64::MAX - 3),
        ] {
            eq!(c.fd.num(nr, a), Err(EFAULT), "{} {what}", ioctl_name(nr));
        }
        if nr != SET_SIGNAL_MASK {
            eq!(c.fd.num(nr, 0), Err(EFAULT), "{} null", ioctl_name(nr));
        }
        // The first bytes can be reached, the rest cannot.
        if ![GET_MP_STATE, SET_MP_STATE, INTERRUPT].contains(&nr) {
            edge.wr(4092, 8u32);
            eq!(
                c.fd.num(nr, edge.addr() + 4096 - 4),
                Err(EFAULT),
                "{} at an edge",
                ioctl_name(nr)
            );
        }
    }
    eq!(bytes_of(&c.regs()), bytes_of(&r), "registers");
    eq!(bytes_of(&c.sregs()), bytes_of(&s), "special registers");
    for nr in [0x8000_ae80u64, 0x4004_ae80] {
        eq!(c.fd.num(nr, 0), Err(EINVAL));
    }
    eq!(c.fd.num(RUN, 1), Err(EINVAL), "KVM_RUN takes no argument");
}

/// Every byte of every output is written by the kernel, and equally so whatever was there before.
fn no_stale_bytes() {
    let (k, _vm, c) = vcpu();
    c.use_supported_cpuid(&k);
    fn twice<T: crate::sys::Abi>(fd: &Kfd, nr: u64) {
        let (mut a, mut b): (T, T) = (filled(0x5a), filled(0xa5));
        eq!(fd.with(nr, &mut a), Ok(0));
        eq!(fd.with(nr, &mut b), Ok(0));
        let (a, b) = (bytes_of(&a), bytes_of(&b));
        let at = a.iter().zip(&b).position(|(x, y)| x != y);
        eq!(
            at,
            None,
            "{}: a byte that depends on what was there",
            ioctl_name(nr)
        );
    }
    twice::<kvm_regs>(&c.fd, GET_REGS);
    twice::<kvm_sregs>(&c.fd, GET_SREGS);
    twice::<kvm_fpu>(&c.fd, GET_FPU);
    twice::<kvm_xcrs>(&c.fd, GET_XCRS);
    twice::<kvm_mp_state>(&c.fd, GET_MP_STATE);
    let s = c.sregs();
    for seg in [s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.tr, s.ldt] {
        eq!(seg.padding, 0);
    }
    for t in [s.gdt, s.idt] {
        eq!(t.padding, [0; 3]);
    }
    let x: kvm_xcrs = crate::must!(c.fd.take(GET_XCRS));
    eq!(x.nr_xcrs, u32::from(super::system::has_xsave()));
    check!(
        bytes_of(&x)[24..].iter().all(|b| *b == 0),
        "unused XCR slots are 0"
    );
    let cpuid = k.cpuid();
    for e in &cpuid.entries[..cpuid.nent as usize] {
        eq!(e.padding, [0; 3], "leaf {:x}.{:x}", e.function, e.index);
    }
}

fn without_irqchip() {
    let (_k, vm, c) = vcpu();
    let mut lapic: Box<kvm_lapic_state> = Box::new(filled(0));
    eq!(
        c.fd.with(0x8400_ae8e, &mut *lapic),
        Err(EINVAL),
        "GET_LAPIC"
    );
    eq!(c.fd.give(0x4400_ae8f, &*lapic), Err(EINVAL), "SET_LAPIC");
    // KVM_IRQ_LINE and KVM_GET_IRQCHIP have nothing to act on.
    let level = [3u32, 1];
    eq!(
        vm.fd.give(0x4008_ae61, &level),
        Err(libc::ENXIO),
        "IRQ_LINE"
    );
    let r = vm.fd.num(0xae71, 0);
    check!(r.is_err(), "REINJECT_CONTROL without a PIT: {r:?}");
}
