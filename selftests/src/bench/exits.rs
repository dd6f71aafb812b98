// SPDX-License-Identifier: GPL-2.0
//! Instructions of the guest that exit: to the kernel, and through it to user space and back.

use super::{each, lowest, ticks, Effort, Row};
use crate::guest::{Guest, Mode, CODE, DATA, MMIO, STACK};
use crate::kvm::RUN;
use crate::must;
use crate::sys::{self, eventfd, Arg, Map};
use iced_x86::code_asm::*;
use kvm_bindings::*;
use std::mem::offset_of;

/// IA32_TSC_ADJUST: kvm-unit-tests' vmexit writes it too, as that exits on every KVM and changes nothing.
const TSC_ADJUST: u32 = 0x3b;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// An instruction, and what goes before it each time.
struct Probe {
    name: &'static str,
    before: Code,
    insn: Code,
    /// One execution is so long that a few will do.
    long: bool,
    /// User space sees registers in the run page each time, and changes the general ones.
    sync: bool,
}

const fn probe(name: &'static str, before: Code, insn: Code) -> Probe {
    Probe {
        name,
        before,
        insn,
        long: false,
        sync: false,
    }
}

const PROBES: [Probe; 13] = [
    probe(
        "exit: CPUID",
        |a| {
            a.xor(eax, eax)?;
            a.xor(ecx, ecx)
        },
        |a| a.cpuid(),
    ),
    probe("exit: WRMSR IA32_TSC_ADJUST", tsc_adjust, |a| a.wrmsr()),
    probe("exit: RDMSR IA32_TSC_ADJUST", tsc_adjust, |a| a.rdmsr()),
    probe("exit: MMIO write to an ioeventfd", bell, |a| {
        a.mov(dword_ptr(rdi), eax)
    }),
    probe("exit: INC of ROM with an ioeventfd", rom_bell, |a| {
        a.inc(dword_ptr(rdi))
    }),
    probe("user: OUT", |a| a.mov(eax, 0), |a| a.out(0x80, al)),
    probe("user: IN", |a| a.mov(eax, 0), |a| a.in_(al, 0x80)),
    probe("user: MMIO write", device, |a| a.mov(dword_ptr(rdi), eax)),
    probe("user: MMIO read", device, |a| a.mov(eax, dword_ptr(rdi))),
    probe("user: HLT", |a| a.mov(eax, 0), |a| a.hlt()),
    Probe {
        sync: true,
        ..probe(
            "user: OUT, SYNC_REGS",
            |a| a.mov(eax, 0),
            |a| a.out(0x80, al),
        )
    },
    Probe {
        long: true,
        ..probe("user: REP OUTSB, 4 KiB", string, |a| a.rep().outsb())
    },
    Probe {
        long: true,
        ..probe("user: REP INSB, 4 KiB", string, |a| a.rep().insb())
    },
];

fn tsc_adjust(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, TSC_ADJUST)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)
}

fn device(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edi, MMIO as u32)
}

/// An address without memory whose writes an eventfd takes: nobody but the kernel is asked.
const BELL: u64 = MMIO + 0x20_0000;
/// A page that can only be read, whose writes an eventfd takes: a read and a write that are emulated.
const ROM_BELL: u64 = MMIO + 0x40_0000;

fn bell(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edi, BELL as u32)
}

fn rom_bell(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edi, ROM_BELL as u32)
}

fn string(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(esi, DATA as u32)?;
    a.mov(edi, DATA as u32)?;
    a.mov(edx, 0x80)?;
    a.mov(ecx, 4096)
}

/// Ticks for a run of a guest that does `before` and `insn` `times` times and halts for good.
fn run(g: &Guest, (rounds, times): (u32, u32), p: &Probe, insn: Code) -> u64 {
    let (shown, changed) = if p.sync {
        (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS, KVM_SYNC_X86_REGS)
    } else {
        (0, 0)
    };
    g.load(|a| {
        a.mov(r8d, times)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        (p.before)(a)?;
        insn(a)?;
        a.dec(r8d)?;
        a.jnz(again)?;
        a.mov(r9d, 1)?;
        a.out(END, al)
    });
    lowest(rounds, || {
        restart(g);
        ticks(|| to_end_with(g, shown, changed))
    })
}

/// The port that ends a guest.
pub const END: i32 = 0x99;

/// Puts the guest back to its start.
pub fn restart(g: &Guest) {
    g.cpu.set_regs(&kvm_regs {
        rip: CODE,
        rsp: STACK,
        rflags: 2,
        ..Default::default()
    });
}

/// KVM_RUN until the guest ends; each exit is answered at once.
pub fn to_end(g: &Guest) {
    to_end_with(g, 0, 0);
}

/// The same; these sets of registers are left in the run page each time, and those are taken from it.
fn to_end_with(g: &Guest, shown: u32, changed: u32) {
    let fd = g.cpu.fd.0.raw();
    let sets = |field, sets: u32| g.cpu.run.wr(field, u64::from(sets));
    sets(offset_of!(kvm_run, kvm_valid_regs), shown);
    loop {
        let r = sys::ioctl(fd, RUN, Arg::Num(0));
        match g.cpu.exit_reason() {
            _ if r.is_err() => panic!("KVM_RUN: {r:?}{}", g.describe()),
            KVM_EXIT_IO if g.cpu.io_port() == END as u16 => break,
            KVM_EXIT_IO | KVM_EXIT_MMIO | KVM_EXIT_HLT if changed == 0 => {}
            KVM_EXIT_IO => sets(offset_of!(kvm_run, kvm_dirty_regs), changed),
            n => panic!("exit reason {n}{}", g.describe()),
        }
    }
    sets(offset_of!(kvm_run, kvm_valid_regs), 0);
}

/// The exits whose names have one of `only` in them.
pub fn rows(e: Effort, only: &[&str]) -> Vec<Row> {
    let g = Guest::new(Mode::Long);
    let (rom, event) = (Map::anon(4096), eventfd());
    must!(g.vm.region(1, KVM_MEM_READONLY, ROM_BELL, 4096, rom.addr()));
    for at in [BELL, ROM_BELL] {
        must!(g.vm.ioevent(event.raw(), (0, at, 4, 0)));
    }
    let cost = |p: &Probe| {
        let (rounds, times) = if p.long { (2, 2) } else { (e.rounds, e.times) };
        let with = run(&g, (rounds, times), p, p.insn);
        let without = run(&g, (rounds, times), p, |a| a.nop());
        (p.name, each(with, without, times))
    };
    let chosen = PROBES
        .iter()
        .filter(|p| only.iter().any(|part| p.name.contains(part)));
    chosen.map(cost).collect()
}
