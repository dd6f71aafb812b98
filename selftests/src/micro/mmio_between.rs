// SPDX-License-Identifier: GPL-2.0
//! What changes between two accesses of one emulated instruction, while user space carries out the first.

use super::mmio::{guest, rd, wr};
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{self, Map};
use crate::{check, eq, must};
use iced_x86::code_asm::*;
use kvm_bindings::{kvm_regs, kvm_vcpu_events};

pub const TESTS: &[Test] = &[
    Test::new("micro/mmio_changed_tables", changed_tables).no_ab(),
    Test::new("micro/mmio_changed_registers", changed_registers).no_ab(),
    Test::new("micro/mmio_to_ss_single_step", to_ss_single_step).no_ab(),
    // The in-tree KVM loses the interrupt.
    Test::new("micro/mmio_interrupt_then_fault", interrupt_then_fault).no_ab(),
    Test::new("micro/mmio_interrupt_then_halt", interrupt_then_halt).no_ab(),
];

/// Between two accesses of one instruction, in which the guest is not entered, only our own walk sees that its tables or registers
/// have changed: nothing that was found before may count any longer.
fn changed_tables() {
    const PRESENT: u64 = 1;
    const WRITABLE: u64 = 1 << 1;
    const ACCESSED_DIRTY: u64 = 0x60;
    const PS_USER: u64 = 0x84;
    const WP: u64 = 1 << 16;
    const OTHER: u64 = 2 << 20;
    let g = guest(|a| {
        a.cld()?;
        a.mov(rdi, rbx)?;
        a.mov(al, 0x5a)?;
        a.mov(ecx, 7)?;
        a.rep().stosb()
    });
    let entry = (PD + 8 * (MMIO >> 21)) as usize;
    let map = |page: u64, flags: u64| g.mem.wr(entry, page | PS_USER | PRESENT | flags);
    let write_protect = |on: bool| {
        let mut s = g.cpu.sregs();
        s.cr0 = if on { s.cr0 | WP } else { s.cr0 & !WP };
        g.cpu.set_sregs(&s);
    };
    write_protect(false);
    g.expect(&wr(0, &[0x5a]));
    g.expect(&wr(1, &[0x5a]));
    // To another page, and to the same with the flags to be set anew.
    map(MMIO + OTHER, WRITABLE);
    g.expect(&wr(OTHER + 2, &[0x5a]));
    map(MMIO + OTHER, WRITABLE);
    g.expect(&wr(OTHER + 3, &[0x5a]));
    eq!(g.mem.rd::<u64>(entry) & ACCESSED_DIRTY, ACCESSED_DIRTY);
    // Not writable: only with CR0.WP does that matter.
    map(MMIO, ACCESSED_DIRTY);
    g.expect(&wr(4, &[0x5a]));
    // A slot comes, and now it matters: the fault goes before the access to what is memory by now.
    let ram = Map::anon(0x1000);
    eq!(g.vm.region(1, 0, MMIO, 0x1000, ram.addr()), Ok(0));
    write_protect(true);
    let t = g.run_to_trap();
    eq!((t.vector, t.error), (14, 3));
    // There CR2 is an address of the host.
    if !sys::on_bochs_svm() {
        eq!(g.cpu.sregs().cr2, MMIO + 5);
    }
    eq!(
        (g.cpu.regs().rcx, ram.rd::<u8>(5)),
        (2, 0),
        "what is left to do"
    );
    write_protect(false);
    let mut r = g.cpu.regs();
    (r.rip, r.rsp) = (t.ip, STACK);
    g.cpu.set_regs(&r);
    g.expect(&Exit::Hlt);
    eq!(ram.read(4, 4), [0, 0x5a, 0x5a, 0]);
}

/// The second access is a fault that is known before user space has seen the first: what user space changes in the registers meanwhile
/// holds all the same.
fn changed_registers() {
    let g = Guest::new(Mode::Prot);
    g.load(|a| {
        a.cld()?;
        a.mov(al, 0x5a)?;
        a.rep().stosb()?;
        a.hlt()
    });
    let mut s = g.cpu.sregs();
    // The page of the device is the last in the segment.
    s.es.limit = MMIO as u32 | 0xfff;
    g.cpu.set_sregs(&s);
    let mut r = g.cpu.regs();
    (r.rdi, r.rcx) = (MMIO + 0xfff, 2);
    g.cpu.set_regs(&r);
    g.expect(&wr(0xfff, &[0x5a]));
    let mut r = g.cpu.regs();
    eq!((r.rdi, r.rcx), (MMIO + 0x1000, 1), "the first is done");
    (r.rsi, r.rbp) = (0x1234, 0x5678);
    g.cpu.set_regs(&r);
    let t = g.run_to_trap();
    eq!((t.vector, t.error), (13, 0));
    let r = g.cpu.regs();
    check!((r.rsi, r.rbp, r.rcx) == (0x1234, 0x5678, 1), "{r:x?}");
}

const FAR: u64 = 1 << 30;
/// The entry of the guest's tables for FAR.
const FAR_ENTRY: usize = (PD + 8 * (FAR >> 21)) as usize;

/// User space may queue an interrupt where the instruction is not finished; that one ends in a fault.
fn interrupted_fault() -> (Guest, Trap) {
    let g = guest(|a| {
        a.cld()?;
        a.mov(esi, ebx)?;
        a.mov(edi, FAR as u32)?;
        a.sti()?;
        a.nop()?;
        a.movsb()
    });
    g.mem.wr(FAR_ENTRY, 0u64);
    g.expect(&rd(0, 1));
    check!(g.cpu.ready(), "interrupts are on");
    eq!(g.cpu.interrupt(0x30), Ok(0));
    g.cpu.answer(&[0x5a]);
    let fault = g.run_to_trap();
    eq!((fault.vector, fault.error), (14, 2));
    check!(!g.cpu.ready(), "an interrupt waits already");
    eq!(g.cpu.sregs().interrupt_bitmap[0], 1 << 0x30);
    (g, fault)
}

/// The fault goes first, and the interrupt comes as soon as the handler takes interrupts.
fn interrupt_then_fault() {
    const IF: u64 = 1 << 9;
    let (g, fault) = interrupted_fault();
    // The first page of memory is there now.
    g.mem.wr(FAR_ENTRY, 0x87u64);
    let again = |ip| {
        let mut r = g.cpu.regs();
        (r.rip, r.rsp, r.rflags) = (ip, STACK, r.rflags | IF);
        g.cpu.set_regs(&r);
    };
    again(fault.ip);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (0x30, fault.ip));
    again(t.ip);
    g.expect(&rd(0, 1));
    g.cpu.answer(&[0x5a]);
    g.expect(&Exit::Hlt);
    eq!(g.mem.rd::<u8>(0), 0x5a);
}

/// The same if user space saves the events meanwhile and gives them back; and a guest that halts instead has been woken already.
fn interrupt_then_halt() {
    const HANDLER: u64 = 0xa000;
    let (g, _) = interrupted_fault();
    let events: kvm_vcpu_events = must!(g.cpu.fd.take(GET_VCPU_EVENTS));
    eq!((events.interrupt.injected, events.interrupt.nr), (1, 0x30));
    let (regs, sregs) = (g.cpu.regs(), g.cpu.sregs());
    g.cpu.set_regs(&regs);
    g.cpu.set_sregs(&sregs);
    eq!(g.cpu.fd.give(SET_VCPU_EVENTS, &events), Ok(0));
    g.load_at(HANDLER, |a| {
        a.out(0x20, al)?;
        a.sti()?;
        a.hlt()
    });
    g.cpu.set_regs(&kvm_regs {
        rip: HANDLER,
        ..regs
    });
    check!(matches!(g.cpu.run(), Exit::Io { port: 0x20, .. }), "IF=0");
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (0x30, HANDLER + 4), "behind HLT");
}

/// SS from a device while the guest steps singly: the trap is held back for one instruction more, as by any MOV to SS.
fn to_ss_single_step() {
    const TF: u64 = 1 << 8;
    if sys::on_bochs_svm() {
        harness::skip("a guest's single step makes Bochs' SVM crash the host");
    }
    let g = guest(|a| {
        a.pushfq()?;
        a.or(qword_ptr(rsp), TF as i32)?;
        a.popfq()?;
        a.mov(ss, word_ptr(rbx))?;
        a.nop()
    });
    g.expect(&rd(0, 2));
    g.cpu.answer(&DATA_SEL.to_le_bytes());
    let t = g.run_to_trap();
    eq!(t.vector, 1);
    let around = g.mem.read(t.ip as usize - 1, 2);
    eq!(around, [0x90, 0xf4], "between NOP and HLT");
    let mut r = g.cpu.regs();
    (r.rip, r.rsp, r.rflags) = (t.ip, STACK, r.rflags & !TF);
    g.cpu.set_regs(&r);
    g.expect(&Exit::Hlt);
}
