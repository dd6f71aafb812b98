// SPDX-License-Identifier: GPL-2.0
//! What the emulator cannot do: #UD for the guest, an exit with the bytes of the instruction for user space.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::{Exit, Kvm, CHECK_EXTENSION, ENABLE_CAP};
use crate::sys::{filled, Res};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::{
    kvm_enable_cap, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES as BYTES,
};

pub const TESTS: &[Test] = &[
    Test::new("micro/emulation_failure", by_default),
    Test::new("micro/emulation_failure_of_user", of_user),
    Test::new("micro/emulation_failure_exit", with_exit),
    Test::new("micro/emulation_failure_exit_of_user", with_exit_of_user),
    Test::new("micro/emulation_failure_exit_cap", capability),
];

/// FLD of 4 bytes at RBX: x87 arithmetic on a device.
const INSN: [u8; 2] = [0xd9, 0x03];
/// #UD.
const UD: u8 = 6;

fn guest() -> Guest {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.db(&INSN)?;
        a.hlt()
    });
    let mut r = g.cpu.regs();
    r.rbx = MMIO;
    g.cpu.set_regs(&r);
    g
}

/// The same in user mode.
fn user() -> Guest {
    let g = guest();
    g.to_user();
    // HLT is not for user mode; a value is reported with I/O privilege level 3.
    g.load(|a| {
        a.db(&INSN)?;
        a.out(i32::from(PORT_VALUE), eax)
    });
    let mut r = g.cpu.regs();
    r.rflags |= 0x3000;
    g.cpu.set_regs(&r);
    g
}

fn switch(g: &Guest, flags: u32, value: u64) -> Res {
    let mut c: kvm_enable_cap = filled(0);
    (c.cap, c.flags, c.args[0]) = (KVM_CAP_EXIT_ON_EMULATION_FAILURE, flags, value);
    g.vm.fd.give(ENABLE_CAP, &c)
}

fn switch_on(g: &Guest) {
    if g.kvm.cap(KVM_CAP_EXIT_ON_EMULATION_FAILURE) == 0 {
        harness::skip("no KVM_CAP_EXIT_ON_EMULATION_FAILURE");
    }
    eq!(switch(g, 0, 1), Ok(0));
}

/// Runs and expects the exit, with the instruction.
fn expect_failure(g: &Guest) {
    let data = match g.cpu.run() {
        Exit::Internal(KVM_INTERNAL_ERROR_EMULATION, data) => data,
        e => panic!("{e:x?}{}", g.describe()),
    };
    check!(data.len() >= 3, "{} words of data", data.len());
    let bytes: Vec<u8> = data.iter().skip(1).flat_map(|w| w.to_le_bytes()).collect();
    eq!(data.first().copied(), Some(u64::from(BYTES)), "the flags");
    let size = usize::from(bytes[0]);
    check!((INSN.len()..=15).contains(&size), "{size} bytes");
    eq!(&bytes[1..=INSN.len()], INSN);
    eq!(g.cpu.regs().rip, CODE, "nothing has been done yet");
}

fn pass_over(g: &Guest) {
    let mut r = g.cpu.regs();
    r.rip += INSN.len() as u64;
    g.cpu.set_regs(&r);
}

fn by_default() {
    let g = guest();
    expect_failure(&g);
    // User space has not made anything of it: the guest gets the exception.
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (UD, CODE));
}

/// A program cannot end the VM by what the emulator lacks.
fn of_user() {
    let g = user();
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (UD, CODE));
}

fn with_exit() {
    let g = guest();
    switch_on(&g);
    expect_failure(&g);
    // Nothing waits for the guest: it would fail again, and goes on where user space puts it.
    expect_failure(&g);
    pass_over(&g);
    g.expect(&Exit::Hlt);
    // It can be switched off.
    eq!(switch(&g, 0, 0), Ok(0));
    let mut r = g.cpu.regs();
    r.rip = CODE;
    g.cpu.set_regs(&r);
    expect_failure(&g);
    eq!(g.run_to_trap().vector, UD);
}

fn with_exit_of_user() {
    let g = user();
    switch_on(&g);
    expect_failure(&g);
    pass_over(&g);
    g.expect(&out(u16::from(PORT_VALUE), &0u32.to_le_bytes()));
}

fn capability() {
    let k = Kvm::open();
    let g = guest();
    switch_on(&g);
    let cap = u64::from(KVM_CAP_EXIT_ON_EMULATION_FAILURE);
    eq!(k.0.num(CHECK_EXTENSION, cap), Ok(1));
    eq!(g.vm.fd.num(CHECK_EXTENSION, cap), Ok(1));
    for bad in [2, 3, 1 << 32, u64::MAX] {
        eq!(switch(&g, 0, bad), Err(libc::EINVAL), "{bad:x}");
    }
    eq!(switch(&g, 1, 1), Err(libc::EINVAL), "flags");
}
