// SPDX-License-Identifier: GPL-2.0
//! Machine checks: KVM_X86_GET_MCE_CAP_SUPPORTED, KVM_X86_SETUP_MCE, KVM_X86_SET_MCE and the registers of the banks. And the MSRs that
//! describe what can be offered.

use crate::guest::{Guest, Mode, CODE};
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{bad_addr, filled, on_amd};
use crate::{check, eq};
use kvm_bindings::*;
use libc::{E2BIG, EFAULT, EINVAL};

pub const TESTS: &[Test] = &[
    Test::new("api/mce_setup", setup),
    Test::new("api/mce_banks", banks),
    Test::new("api/mce_report", report),
    Test::new("api/mce_shutdown", shutdown),
    Test::new("api/feature_msrs", feature_msrs),
];

const CTL_P: u64 = 1 << 8;
const SER_P: u64 = 1 << 24;
const VAL: u64 = 1 << 63;
const OVER: u64 = 1 << 62;
const UC: u64 = 1 << 61;
const S_AR: u64 = 3 << 55;
const MCIP: u64 = 4;

fn supported(k: &Kvm) -> u64 {
    if k.cap(KVM_CAP_MCE) == 0 {
        harness::skip("no KVM_CAP_MCE");
    }
    crate::must!(k.0.take(X86_GET_MCE_CAP_SUPPORTED))
}

fn setup() {
    let k = Kvm::open();
    let all = supported(&k);
    check!(all & (CTL_P | SER_P) == CTL_P | SER_P, "{all:x}");
    check!(all & 0xff == 0, "{all:x}: the number of banks is not in it");
    eq!(k.cap(KVM_CAP_MCE), 32);
    eq!(k.0.num(X86_GET_MCE_CAP_SUPPORTED, bad_addr()), Err(EFAULT));
    let vm = k.vm();
    let c = vm.vcpu(0);
    c.use_supported_cpuid(&k);
    let set = |cap: u64| c.fd.give(X86_SETUP_MCE, &cap);
    // AMD's register has no more than the count and MCG_CTL_P.
    let kept = if on_amd() { CTL_P | 0xff } else { u64::MAX };
    eq!(c.msr(0x179), Some(32), "before");
    for good in [1, 10, 32, 10 | CTL_P, 10 | CTL_P | SER_P, 10 | 0x3_0000] {
        eq!(set(good), Ok(0), "{good:x}");
        eq!(c.msr(0x179), Some(good & kept), "IA32_MCG_CAP");
    }
    for bad in [
        0,
        33,
        255,
        CTL_P,
        10 | 1 << 9,
        10 | 1 << 11,
        10 | 1 << 25,
        10 | 1 << 63,
    ] {
        eq!(set(bad), Err(EINVAL), "{bad:x}");
        eq!(
            c.msr(0x179),
            Some((10 | 0x3_0000) & kept),
            "{bad:x}: nothing changed"
        );
    }
    check!(!c.set_msr(0x179, 1), "IA32_MCG_CAP cannot be written");
    eq!(c.fd.num(X86_SETUP_MCE, bad_addr()), Err(EFAULT));
    eq!(c.fd.num(X86_SET_MCE, bad_addr()), Err(EFAULT));
}

/// What a VMM sets and gets: QEMU sets all of these, and ends if one is refused.
fn banks() {
    let k = Kvm::open();
    let cap = 10 | supported(&k) & (CTL_P | SER_P);
    let vm = k.vm();
    let c = vm.vcpu(0);
    c.use_supported_cpuid(&k);
    eq!(c.fd.give(X86_SETUP_MCE, &cap), Ok(0));
    eq!((c.msr(0x17a), c.msr(0x17b)), (Some(0), Some(u64::MAX)));
    for bank in 0..10 {
        let ctl = 0x400 + 4 * bank;
        eq!(c.msr(ctl), Some(u64::MAX), "bank {bank}");
        for (i, v) in [
            (0, 0),
            (0, u64::MAX),
            (1, VAL | 5),
            (1, 0),
            (2, 0x1000),
            (3, 0x8c),
        ] {
            check!(c.set_msr(ctl + i, v), "MSR {:x} = {v:x}", ctl + i);
            eq!(c.msr(ctl + i), Some(v), "MSR {:x}", ctl + i);
        }
        check!(!c.set_msr(ctl, 5), "bank {bank}: CTL takes all or nothing");
    }
    for beyond in [0x428, 0x47f] {
        eq!(c.msr(beyond), None, "MSR {beyond:x}");
        check!(!c.set_msr(beyond, 0), "MSR {beyond:x}");
    }
    check!(
        c.set_msr(0x17a, 5) && c.set_msr(0x17b, 0) && c.set_msr(0x17b, u64::MAX),
        "MCG"
    );
    check!(!c.set_msr(0x17b, 5), "IA32_MCG_CTL takes all or nothing");
    for i in 0..32 {
        let _ = (
            c.msr(0x280 + i),
            c.set_msr(0x280 + i, 0),
            c.set_msr(0x280 + i, 1 << 30),
        );
    }
}

fn mce(bank: u8, status: u64, mcg_status: u64) -> kvm_x86_mce {
    let mut m: kvm_x86_mce = filled(0);
    (m.bank, m.status, m.mcg_status, m.addr, m.misc) =
        (bank, status, mcg_status, 0x1234_5000, 0x8c);
    m
}

/// A guest that has machine checks on.
fn guest(k: Kvm) -> Guest {
    let vm = k.vm();
    let g = Guest::with_vm(k, vm, Mode::Long);
    g.mem.write(CODE as usize, &[0x90, 0xf4]);
    let cap = 10 | CTL_P | SER_P;
    eq!(g.cpu.fd.give(X86_SETUP_MCE, &cap), Ok(0));
    let mut s = g.cpu.sregs();
    s.cr4 |= 1 << 6;
    g.cpu.set_sregs(&s);
    g
}

fn report() {
    let k = Kvm::open();
    supported(&k);
    let g = guest(k);
    let c = &g.cpu;
    let set = |m: &kvm_x86_mce| c.fd.give(X86_SET_MCE, m);
    eq!(
        set(&mce(10, VAL, 0)),
        Err(EINVAL),
        "a bank that is not there"
    );
    eq!(
        set(&mce(255, VAL, 0)),
        Err(EINVAL),
        "a bank that is not there"
    );
    eq!(set(&mce(1, UC, MCIP)), Err(EINVAL), "not valid");
    eq!(c.msr(0x405), Some(0));
    // Corrected errors are there to be read, and tell of the one before.
    eq!(set(&mce(1, VAL | 0x11, 0)), Ok(0));
    eq!(
        (c.msr(0x405), c.msr(0x406), c.msr(0x407)),
        (Some(VAL | 0x11), Some(0x1234_5000), Some(0x8c))
    );
    eq!(set(&mce(1, VAL | 0x22, 0)), Ok(0));
    eq!(c.msr(0x405), Some(VAL | OVER | 0x22));
    eq!(c.run(), Exit::Hlt, "the guest is not told");
    // Uncorrected ones are signalled.
    eq!(set(&mce(2, VAL | UC | S_AR, MCIP | 1)), Ok(0));
    eq!(
        (c.msr(0x409), c.msr(0x17a)),
        (Some(VAL | UC | S_AR), Some(MCIP | 1))
    );
    let mut r = c.regs();
    r.rip = CODE;
    let events: kvm_vcpu_events = crate::must!(c.fd.take(GET_VCPU_EVENTS));
    eq!(events.exception.nr, 18);
    let t = g.run_to_trap();
    eq!(t.vector, 18);
    // Switched off: forgotten.
    check!(c.set_msr(0x17a, 0) && c.set_msr(0x17b, 0), "MCG");
    eq!(set(&mce(3, VAL | UC | S_AR, MCIP)), Ok(0));
    eq!((c.msr(0x40d), c.msr(0x17a)), (Some(0), Some(0)));
    check!(c.set_msr(0x17b, u64::MAX) && c.set_msr(0x40c, 0), "MC3_CTL");
    eq!(set(&mce(3, VAL | UC | S_AR, MCIP)), Ok(0));
    eq!((c.msr(0x40d), c.msr(0x17a)), (Some(0), Some(0)));
    // Uncorrected, but no action is required: recorded only.
    eq!(set(&mce(4, VAL | UC, 0)), Ok(0));
    eq!(c.msr(0x411), Some(VAL | UC));
    c.set_regs(&r);
    eq!(c.run(), Exit::Hlt);
}

fn shutdown() {
    let k = Kvm::open();
    supported(&k);
    let g = guest(k);
    let m = mce(2, VAL | UC | S_AR, MCIP);
    check!(g.cpu.set_msr(0x17a, MCIP), "one is being dealt with");
    eq!(g.cpu.fd.give(X86_SET_MCE, &m), Ok(0));
    eq!(g.cpu.run(), Exit::Shutdown);
    let g = guest(Kvm::open());
    let mut s = g.cpu.sregs();
    s.cr4 &= !(1 << 6);
    g.cpu.set_sregs(&s);
    eq!(g.cpu.fd.give(X86_SET_MCE, &m), Ok(0));
    eq!(g.cpu.run(), Exit::Shutdown, "without CR4.MCE");
}

fn feature_msrs() {
    let k = Kvm::open();
    if k.cap(KVM_CAP_GET_MSR_FEATURES) == 0 {
        harness::skip("no KVM_CAP_GET_MSR_FEATURES");
    }
    let list = |room: u32| {
        let mut b = [0u32; 257];
        b[0] = room;
        let r = crate::sys::ioctl_with(k.0 .0.raw(), GET_MSR_FEATURE_INDEX_LIST, &mut b);
        (r, b)
    };
    let (r, b) = list(256);
    eq!(r, Ok(0));
    let n = b[0];
    check!(n > 0 && n < 200, "{n} of them");
    let (r, short) = list(n - 1);
    eq!((r, short[0]), (Err(E2BIG), n));
    check!(short[1..].iter().all(|x| *x == 0), "no index is written");
    let mut all = MsrsBuf::of(
        &b[1..=n as usize]
            .iter()
            .map(|i| (*i, 0xa5))
            .collect::<Vec<_>>(),
    );
    eq!(
        k.0.with(GET_MSRS, &mut *all),
        Ok(n as i32),
        "each has a value"
    );
    for e in &all.entries[..n as usize] {
        // The revision of the microcode is the machine's.
        let v = if e.index == 0x8b { 0 } else { e.data };
        crate::record::line(
            "feature MSR",
            &format!("{:x}", e.index),
            &format!("{v:x}"),
            "",
        );
    }
    let mut m = MsrsBuf::of(&[(b[1], 0), (0x1234_5678, 0xa5), (b[1], 0xa5)]);
    eq!(k.0.with(GET_MSRS, &mut *m), Ok(1), "that is none of them");
    eq!(
        (m.entries[1].data, m.entries[2].data),
        (0, 0xa5),
        "what cannot be read is 0, what is behind it left alone"
    );
    eq!(k.0.num(GET_MSRS, bad_addr()), Err(EFAULT));
    eq!(k.0.num(GET_MSR_FEATURE_INDEX_LIST, bad_addr()), Err(EFAULT));
    let mut many: Box<MsrsBuf> = Box::new(filled(0));
    many.nmsrs = 256;
    eq!(k.0.with(GET_MSRS, &mut *many), Err(E2BIG));
}
