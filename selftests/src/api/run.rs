// SPDX-License-Identifier: GPL-2.0
//! KVM_RUN itself, KVM_INTERRUPT, KVM_NMI and KVM_SET_SIGNAL_MASK.

use crate::guest::{inp, out, will_spin, Guest, Mode, CODE};
use crate::harness::Test;
use crate::kvm::*;
use crate::sys::{self, bad_addr, Arg};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::{EFAULT, EINTR, EINVAL};
use std::mem::offset_of;

pub const TESTS: &[Test] = &[
    Test::new("api/run_immediate_exit", immediate_exit),
    Test::new("api/run_immediate_exit_completes_io", immediate_exit_io),
    Test::new("api/run_signal_pending", signal_pending),
    Test::new("api/run_signal_mask", signal_mask),
    Test::new("api/run_without_memory", without_memory),
    Test::new("api/run_shared_fields", shared_fields),
    Test::new("api/run_sync_regs_absent", sync_regs),
    Test::new("api/interrupt_vectors", interrupt_vectors),
    Test::new("api/nmi_call", nmi_call),
];

fn immediate_exit() {
    let g = Guest::new(Mode::Real);
    g.mem.wr(CODE as usize, 0xf4u8);
    g.cpu.set_immediate_exit(true);
    for _ in 0..3 {
        let e = g.cpu.run();
        check!(matches!(e, Exit::Err(EINTR, _)), "{e:x?}");
        eq!(g.cpu.regs().rip, CODE, "the guest did not run");
    }
    g.cpu.set_immediate_exit(false);
    eq!(g.cpu.run(), Exit::Hlt);
}

fn immediate_exit_io() {
    // A pending read is completed, but nothing behind it runs.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.in_(al, 0x33)?;
        a.out(0x34, al)?;
        a.hlt()
    });
    g.expect(&inp(0x33, 1));
    g.cpu.answer(&[0x77]);
    g.cpu.set_immediate_exit(true);
    let e = g.cpu.run();
    check!(matches!(e, Exit::Err(EINTR, _)), "{e:x?}");
    eq!(g.cpu.regs().rip, CODE + 2, "behind the IN");
    eq!(g.cpu.regs().rax & 0xff, 0x77, "with its data");
    g.cpu.set_immediate_exit(false);
    g.expect(&out(0x34, &[0x77]));
}

fn signal_pending() {
    let g = Guest::new(Mode::Real);
    g.mem.write(CODE as usize, &[0xeb, 0xfe]);
    will_spin(&g.cpu);
    sys::interrupting(libc::SIGUSR1);
    // A signal that arrived before: the guest spins for ever, so KVM_RUN must notice by itself.
    sys::block(libc::SIGUSR1, true);
    crate::must!(sys::tkill(sys::gettid(), libc::SIGUSR1));
    let mut none = SigMask {
        len: 8,
        set: [0; 8],
    };
    eq!(mask(&g.cpu, &mut none), Ok(0));
    eq!(g.cpu.run(), Exit::Err(EINTR, KVM_EXIT_INTR));
    check!(
        sys::pending(libc::SIGUSR1),
        "the signal stays for its handler, which the thread's own mask blocks"
    );
}

/// `struct kvm_signal_mask` with a set of 8 bytes.
struct SigMask {
    len: u32,
    set: [u8; 8],
}

fn mask(c: &Vcpu, m: &mut SigMask) -> Result<i32, i32> {
    let mut b = m.len.to_le_bytes().to_vec();
    b.extend(m.set);
    let r = sys::ioctl(c.fd.0.raw(), SET_SIGNAL_MASK, Arg::Buf(&mut b));
    crate::record::call(
        "SET_SIGNAL_MASK",
        &format!("len {} set {:x?}", m.len, m.set),
        r,
        &[],
    );
    r
}

fn signal_mask() {
    let g = Guest::new(Mode::Real);
    g.mem.wr(CODE as usize, 0xf4u8);
    let c = &g.cpu;
    for len in [0, 4, 7, 16, 128, u32::MAX] {
        eq!(
            mask(c, &mut SigMask { len, set: [0; 8] }),
            Err(EINVAL),
            "length {len}"
        );
    }
    eq!(c.fd.num(SET_SIGNAL_MASK, bad_addr()), Err(EFAULT));
    eq!(c.fd.num(SET_SIGNAL_MASK, 0), Ok(0), "no mask");
    // While the mask blocks a pending signal, the guest runs.
    sys::interrupting(libc::SIGUSR1);
    sys::block(libc::SIGUSR1, true);
    crate::must!(sys::tkill(sys::gettid(), libc::SIGUSR1));
    eq!(
        mask(
            c,
            &mut SigMask {
                len: 8,
                set: [0xff; 8]
            }
        ),
        Ok(0)
    );
    eq!(c.run(), Exit::Hlt);
    check!(sys::pending(libc::SIGUSR1), "still pending");
    sys::block(libc::SIGUSR1, false);
    check!(
        !sys::pending(libc::SIGUSR1),
        "the thread's mask is its own again"
    );
    eq!(c.fd.num(SET_SIGNAL_MASK, 0), Ok(0));
}

fn without_memory() {
    let k = Kvm::open();
    let vm = k.vm();
    let c = vm.vcpu(0);
    c.use_supported_cpuid(&k);
    // The reset vector lies outside of all memory: fetching from it cannot be emulated.
    match c.run() {
        Exit::Internal(sub, _) => eq!(sub, KVM_INTERNAL_ERROR_EMULATION),
        e => check!(false, "{e:x?}"),
    }
    eq!(c.regs().rip, 0xfff0);
}

fn shared_fields() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.sti()?;
        a.nop()?;
        a.hlt()?;
        a.cli()?;
        a.mov(rax, cr8)?;
        a.out(0x10, eax)?;
        a.hlt()
    });
    let at = |f: usize| f;
    eq!(g.cpu.run(), Exit::Hlt);
    check!(g.cpu.if_flag(), "IF in the run page");
    check!(g.cpu.ready(), "an interrupt could be injected");
    let base: u64 = g.cpu.run.rd(at(offset_of!(kvm_run, apic_base)));
    eq!(base, g.cpu.sregs().apic_base);
    // Without an APIC in the kernel CR8 comes from the run page.
    g.cpu.run.wr(offset_of!(kvm_run, cr8), 5u64);
    g.expect(&out(0x10, &[5, 0, 0, 0]));
    check!(!g.cpu.if_flag(), "IF in the run page");
    check!(!g.cpu.ready(), "no interrupt while IF is 0");
    eq!(g.cpu.sregs().cr8, 5);
    g.cpu.run.wr(offset_of!(kvm_run, cr8), 0x10u64);
    let e = g.cpu.run();
    check!(matches!(e, Exit::Err(EINVAL, _)), "a CR8 of 16: {e:x?}");
    g.cpu.run.wr(offset_of!(kvm_run, cr8), 0u64);
    eq!(g.cpu.run(), Exit::Hlt);
}

fn sync_regs() {
    let g = Guest::new(Mode::Real);
    g.mem.wr(CODE as usize, 0xf4u8);
    let valid = g.kvm.cap(KVM_CAP_SYNC_REGS) as u64;
    for (what, field) in [
        ("valid", offset_of!(kvm_run, kvm_valid_regs)),
        ("dirty", offset_of!(kvm_run, kvm_dirty_regs)),
    ] {
        g.cpu.run.wr(field, !valid & (1 << 40));
        let e = g.cpu.run();
        check!(
            matches!(e, Exit::Err(EINVAL, _)),
            "kvm_{what}_regs with an unknown bit: {e:x?}"
        );
        g.cpu.run.wr(field, 0u64);
    }
    eq!(g.cpu.run(), Exit::Hlt);
}

fn interrupt_vectors() {
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0xf4]);
    // Whoever injects sees to it that the guest can take it: with IF clear an Intel CPU would not be entered.
    let open = |g: &Guest| {
        let mut r = g.cpu.regs();
        r.rflags |= 0x200;
        g.cpu.set_regs(&r);
    };
    open(&g);
    for v in [256, 257, 1 << 16, u32::MAX] {
        eq!(g.cpu.interrupt(v), Err(EINVAL), "vector {v}");
        eq!(g.cpu.sregs().interrupt_bitmap, [0; 4]);
    }
    eq!(g.cpu.fd.num(INTERRUPT, bad_addr()), Err(EFAULT));
    for v in [0u32, 32, 255] {
        eq!(g.cpu.interrupt(v), Ok(0), "vector {v}");
        let mut want = [0u64; 4];
        want[v as usize / 64] = 1 << (v % 64);
        eq!(g.cpu.sregs().interrupt_bitmap, want, "pending");
        let t = g.run_to_trap();
        eq!((u32::from(t.vector), t.ip), (v, CODE));
        g.enter_mode(&g.cpu);
        open(&g);
    }
    // A second one before the first is delivered takes its place.
    eq!(g.cpu.interrupt(0x40), Ok(0));
    let r = g.cpu.interrupt(0x41);
    crate::record::line(
        "second interrupt",
        "",
        &format!("{r:?} {:x?}", g.cpu.sregs().interrupt_bitmap),
        "",
    );
    let t = g.run_to_trap();
    eq!(t.vector, 0x41);
}

fn nmi_call() {
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0xf4]);
    eq!(g.cpu.nmi(), Ok(0));
    eq!(g.cpu.fd.num(NMI, 5), Ok(0), "the argument means nothing");
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (2, CODE));
}
