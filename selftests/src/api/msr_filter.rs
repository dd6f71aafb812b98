// SPDX-License-Identifier: GPL-2.0
//! KVM_CAP_X86_USER_SPACE_MSR and KVM_X86_SET_MSR_FILTER.

use crate::api::cpuid::{told_of, TSC_AUX};
use crate::api::speculation::{Told, SPEC_CTRL};
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::micro::prefix::{Forced, PREFIX};
use crate::sys::{bad_addr, filled, Map};
use crate::{check, eq};
use kvm_bindings::*;
use libc::{EFAULT, EINVAL};
use std::mem::offset_of;

pub const TESTS: &[Test] = &[
    Test::new("api/msr_user_space", user_space),
    Test::new("api/msr_filter", filter),
    Test::new("api/msr_filter_passed_through", passed_through),
    Test::new("api/msr_filter_refused", refused),
    Test::new("api/msr_filter_of_rdmsr_only", of_rdmsr_only),
    Test::new("api/msr_emulated", emulated),
];

const INVAL: u64 = 1;
const UNKNOWN: u64 = 2;
const FILTER: u64 = 4;
const READ: u32 = 1;
const WRITE: u32 = 2;
const UNKNOWN_MSR: u32 = 0x1234_5678;
const MSR: usize = offset_of!(kvm_run, __bindgen_anon_1);

/// `struct kvm_msr_filter` with its ranges: (accesses, first, count, bitmap).
fn words(flags: u32, ranges: &[(u32, u32, u32, u64)]) -> [u64; 49] {
    let mut w = [0; 49];
    w[0] = flags.into();
    for (i, (access, base, count, bitmap)) in ranges.iter().enumerate() {
        w[1 + 3 * i] = u64::from(*access) | u64::from(*count) << 32;
        w[2 + 3 * i] = (*base).into();
        w[3 + 3 * i] = *bitmap;
    }
    w
}

fn set(vm: &Vm, flags: u32, ranges: &[(u32, u32, u32, u64)]) -> crate::sys::Res {
    vm.fd.give(X86_SET_MSR_FILTER, &words(flags, ranges))
}

fn ask_for(vm: &Vm, reasons: u64) -> crate::sys::Res {
    let mut c: kvm_enable_cap = filled(0);
    (c.cap, c.args[0]) = (KVM_CAP_X86_USER_SPACE_MSR, reasons);
    vm.fd.give(ENABLE_CAP, &c)
}

/// A guest that reads ECX, or writes EDX:EAX to it, and halts.
fn guest(read: bool, msr: u32, value: u64) -> Guest {
    let g = Guest::new(Mode::Long);
    if g.kvm.cap(KVM_CAP_X86_MSR_FILTER) == 0 {
        harness::skip("no KVM_CAP_X86_MSR_FILTER");
    }
    again(&g, read, msr, value);
    g
}

fn again(g: &Guest, read: bool, msr: u32, value: u64) {
    g.mem
        .write(CODE as usize, &[0x0f, if read { 0x32 } else { 0x30 }, 0xf4]);
    let mut r = g.cpu.regs();
    (r.rip, r.rsp) = (CODE, STACK);
    (r.rcx, r.rax, r.rdx) = (msr.into(), value & 0xffff_ffff, value >> 32);
    g.cpu.set_regs(&r);
}

/// Runs to the exit that asks user space: its reason and value.
fn asked(g: &Guest, read: bool, msr: u32) -> (u32, u64) {
    asked_at(g, read, msr, CODE)
}

fn asked_at(g: &Guest, read: bool, msr: u32, at: u64) -> (u32, u64) {
    let want = if read {
        KVM_EXIT_X86_RDMSR
    } else {
        KVM_EXIT_X86_WRMSR
    };
    eq!(g.cpu.run(), Exit::Other(want), "{}", g.describe());
    let run = &g.cpu.run;
    eq!((run.rd::<u8>(MSR), run.rd::<u32>(MSR + 12)), (0, msr));
    eq!(g.cpu.regs().rip, at, "at the instruction");
    (run.rd(MSR + 8), run.rd(MSR + 16))
}

fn answer(g: &Guest, error: bool, value: u64) {
    g.cpu.run.wr(MSR, u8::from(error));
    g.cpu.run.wr(MSR + 16, value);
}

fn user_space() {
    // Nobody asks: #GP.
    let g = guest(true, UNKNOWN_MSR, 0);
    eq!(g.run_to_trap().vector, 13);
    for bad in [8, 1 << 31, 1 << 32, u64::MAX] {
        eq!(ask_for(&g.vm, bad), Err(EINVAL), "{bad:x}");
    }
    eq!(ask_for(&g.vm, UNKNOWN), Ok(0));
    again(&g, true, UNKNOWN_MSR, 0);
    eq!(asked(&g, true, UNKNOWN_MSR), (UNKNOWN as u32, 0));
    answer(&g, false, 0x1122_3344_5566_7788);
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    let r = g.cpu.regs();
    eq!((r.rax, r.rdx), (0x5566_7788, 0x1122_3344));
    again(&g, false, UNKNOWN_MSR, 0xaaaa_bbbb_cccc_dddd);
    eq!(
        asked(&g, false, UNKNOWN_MSR),
        (UNKNOWN as u32, 0xaaaa_bbbb_cccc_dddd)
    );
    answer(&g, true, 0);
    let t = g.run_to_trap();
    eq!(
        (t.vector, t.error, t.ip),
        (13, 0, CODE),
        "user space refuses"
    );
    // A value that is refused is another reason.
    again(&g, false, 0x277, 0xff);
    eq!(g.run_to_trap().vector, 13);
    eq!(ask_for(&g.vm, INVAL), Ok(0));
    again(&g, false, 0x277, 0xff);
    eq!(asked(&g, false, 0x277), (INVAL as u32, 0xff));
    answer(&g, false, 0);
    eq!(g.cpu.run(), Exit::Hlt, "taken for done");
    again(&g, true, UNKNOWN_MSR, 0);
    eq!(g.run_to_trap().vector, 13, "no longer");
    // immediate_exit finishes the instruction and goes no further.
    again(&g, false, 0x277, 0xff);
    eq!(asked(&g, false, 0x277), (INVAL as u32, 0xff));
    g.cpu.set_immediate_exit(true);
    check!(matches!(g.cpu.run(), Exit::Err(libc::EINTR, _)), "EINTR");
    g.cpu.set_immediate_exit(false);
    eq!(g.cpu.regs().rip, CODE + 2);
}

const LSTAR: u32 = 0xc000_0082;

fn filter() {
    let bits = Map::anon(4096);
    let g = guest(true, 0x277, 0);
    // Of four registers from PAT on, reading is forbidden for the first, writing for the others.
    bits.wr(0, 0b1110u64);
    bits.wr(64, 0b0001u64);
    let ranges = [
        (READ, 0x277, 4, bits.addr()),
        (WRITE, 0x277, 4, bits.addr() + 64),
    ];
    eq!(set(&g.vm, 0, &ranges), Ok(0));
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (13, CODE), "#GP where nobody asks");
    let _ = ask_for(&g.vm, FILTER);
    again(&g, true, 0x277, 0);
    eq!(asked(&g, true, 0x277), (FILTER as u32, 0));
    answer(&g, false, 0x55);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.cpu.regs().rax, 0x55);
    again(&g, false, 0x277, 0x0006_0406_0007_0406);
    eq!(g.cpu.run(), Exit::Hlt, "writing is allowed");
    eq!(
        g.cpu.msr(0x277),
        Some(0x0006_0406_0007_0406),
        "user space itself is not filtered"
    );
    // What no range is about follows the default.
    again(&g, true, LSTAR, 0);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(set(&g.vm, 1, &ranges), Ok(0));
    again(&g, true, LSTAR, 0);
    eq!(asked(&g, true, LSTAR), (FILTER as u32, 0));
    answer(&g, true, 0);
    eq!(g.run_to_trap().vector, 13);
    again(&g, false, LSTAR, 7);
    eq!(asked(&g, false, LSTAR), (FILTER as u32, 7));
    answer(&g, false, 0);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.cpu.msr(LSTAR), Some(0), "nothing was written");
    // No filter again.
    eq!(set(&g.vm, 0, &[]), Ok(0));
    again(&g, false, LSTAR, 7);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.cpu.msr(LSTAR), Some(7));
}

/// Registers that the guest otherwise reaches without an exit.
fn passed_through() {
    let bits = Map::anon(4096);
    // SPEC_CTRL passes through once it was written, where it is there.
    let told = Told::by(&Kvm::open().cpuid()).bits();
    for (msr, value) in [
        (0x174, 0x1000),
        (0xc000_0100, 0x1000),
        (0xc000_0102, 0x1000),
        (SPEC_CTRL, told),
    ] {
        if value == 0 {
            continue;
        }
        let g = guest(false, msr, value);
        eq!(g.cpu.run(), Exit::Hlt);
        eq!(set(&g.vm, 0, &[(READ | WRITE, msr, 1, bits.addr())]), Ok(0));
        eq!(ask_for(&g.vm, FILTER), Ok(0));
        again(&g, true, msr, 0);
        eq!(asked(&g, true, msr), (FILTER as u32, 0), "MSR {msr:x}");
        answer(&g, false, 0x77);
        eq!(g.cpu.run(), Exit::Hlt);
        eq!(g.cpu.regs().rax, 0x77);
        again(&g, false, msr, 0x2000);
        eq!(
            asked(&g, false, msr),
            (FILTER as u32, 0x2000),
            "MSR {msr:x}"
        );
        answer(&g, false, 0);
        eq!(g.cpu.run(), Exit::Hlt);
        eq!(g.cpu.msr(msr), Some(value), "MSR {msr:x}");
    }
}

fn refused() {
    let k = Kvm::open();
    if k.cap(KVM_CAP_X86_MSR_FILTER) == 0 {
        harness::skip("no KVM_CAP_X86_MSR_FILTER");
    }
    let vm = k.vm();
    let bits = Map::anon(4096);
    let at = bits.addr();
    for flags in [2, 1 << 31, u32::MAX] {
        eq!(
            set(&vm, flags, &[(3, 0, 1, at)]),
            Err(EINVAL),
            "flags {flags:x}"
        );
    }
    eq!(set(&vm, 1, &[]), Err(EINVAL), "everything is forbidden");
    for access in [0, 4, 7, u32::MAX] {
        eq!(
            set(&vm, 0, &[(access, 0, 1, at)]),
            Err(EINVAL),
            "accesses {access:x}"
        );
    }
    eq!(
        set(&vm, 0, &[(3, 0, 0x600 * 8 + 1, at)]),
        Err(EINVAL),
        "too long"
    );
    eq!(set(&vm, 0, &[(3, 0, 0x600 * 8, at)]), Ok(0));
    eq!(set(&vm, 0, &[(3, 0, 1, bad_addr())]), Err(EFAULT));
    // A range without registers is passed over, whatever else it says.
    eq!(set(&vm, 0, &[(7, 0, 0, bad_addr())]), Ok(0));
    eq!(vm.fd.num(X86_SET_MSR_FILTER, bad_addr()), Err(EFAULT));
}

/// RDPID uses TSC_AUX, by the CPU or, where that has no RDPID, by the emulator: the filter is about RDMSR and WRMSR.
fn of_rdmsr_only() {
    let g = told_of(7, true, &[0xf3, 0x0f, 0xc7, 0xf8]);
    let bits = Map::anon(4096);
    let put = g
        .cpu
        .fd
        .with(SET_MSRS, &mut *MsrsBuf::of(&[(TSC_AUX, 0x77)]));
    eq!(put, Ok(1));
    eq!(set(&g.vm, 0, &[(READ, TSC_AUX, 1, bits.addr())]), Ok(0));
    g.expect(&Exit::Hlt);
    eq!(g.cpu.regs().rax, 0x77);
    again(&g, true, TSC_AUX, 0);
    eq!(g.run_to_trap().vector, 13, "RDMSR");
}

/// The same of the emulator's RDMSR and WRMSR.
fn emulated() {
    let _on = Forced::on();
    const AT: u64 = CODE + 5;
    let g = guest(true, UNKNOWN_MSR, 0);
    let start = |read, msr, value| {
        again(&g, read, msr, value);
        g.mem.write(CODE as usize, PREFIX);
        g.mem
            .write(AT as usize, &[0x0f, if read { 0x32 } else { 0x30 }, 0xf4]);
    };
    let gp = |why: &str| {
        let t = g.run_to_trap();
        eq!((t.vector, t.error, t.ip), (13, 0, AT), "{why}");
    };
    for read in [true, false] {
        start(read, UNKNOWN_MSR, 0);
        gp("nobody asks");
    }
    eq!(ask_for(&g.vm, UNKNOWN), Ok(0));
    start(true, UNKNOWN_MSR, u64::MAX);
    eq!(asked_at(&g, true, UNKNOWN_MSR, AT), (UNKNOWN as u32, 0));
    answer(&g, false, 0x1122_3344_5566_7788);
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    let r = g.cpu.regs();
    eq!((r.rax, r.rdx, r.rip), (0x5566_7788, 0x1122_3344, AT + 3));
    start(true, UNKNOWN_MSR, 0);
    eq!(asked_at(&g, true, UNKNOWN_MSR, AT), (UNKNOWN as u32, 0));
    answer(&g, true, 7);
    gp("user space refuses");
    for error in [false, true] {
        start(false, UNKNOWN_MSR, 0xaaaa_bbbb_cccc_dddd);
        eq!(
            asked_at(&g, false, UNKNOWN_MSR, AT),
            (UNKNOWN as u32, 0xaaaa_bbbb_cccc_dddd)
        );
        answer(&g, error, 0);
        if error {
            gp("user space refuses");
        } else {
            eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
            eq!(g.cpu.regs().rip, AT + 3);
        }
    }
    // Another reason.
    start(false, 0x277, 0xff);
    gp("a value that is refused");
    eq!(ask_for(&g.vm, INVAL | FILTER), Ok(0));
    start(false, 0x277, 0xff);
    eq!(asked_at(&g, false, 0x277, AT), (INVAL as u32, 0xff));
    // immediate_exit finishes the instruction and goes no further.
    answer(&g, false, 0);
    g.cpu.set_immediate_exit(true);
    check!(matches!(g.cpu.run(), Exit::Err(libc::EINTR, _)), "EINTR");
    g.cpu.set_immediate_exit(false);
    eq!(g.cpu.regs().rip, AT + 2);
    eq!(g.cpu.run(), Exit::Hlt);
    // Forbidden by the filter.
    let bits = Map::anon(4096);
    eq!(
        set(&g.vm, 0, &[(READ | WRITE, LSTAR, 1, bits.addr())]),
        Ok(0)
    );
    start(true, LSTAR, 0);
    eq!(asked_at(&g, true, LSTAR, AT), (FILTER as u32, 0));
    answer(&g, false, 0x77);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.cpu.regs().rax, 0x77);
    start(false, LSTAR, 7);
    eq!(asked_at(&g, false, LSTAR, AT), (FILTER as u32, 7));
    answer(&g, false, 0);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.cpu.msr(LSTAR), Some(0), "nothing was written");
    // What works is not asked about.
    start(false, 0x277, 0x0006_0406_0007_0406);
    eq!(g.cpu.run(), Exit::Hlt);
    start(true, 0x277, 0);
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(
        (g.cpu.regs().rax, g.cpu.regs().rdx),
        (0x0007_0406, 0x0006_0406)
    );
}
