// SPDX-License-Identifier: GPL-2.0
//! Real mode, protected mode without paging, and what lies between them: where Intel's CPUs without unrestricted guest need an emulator,
//! and the others do not.

use super::memory::run_into_poison;
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{self, Map};
use crate::{check, eq};
use iced_x86::code_asm::*;
use libc::{EEXIST, EINVAL, EMFILE};

pub const TESTS: &[Test] = &[
    Test::new("micro/real_big_segments", big_segments),
    Test::new("micro/real_code_of_32_bits", code_of_32_bits),
    Test::new("micro/real_segments_in_protected_mode", between),
    Test::new("micro/real_interrupts", interrupts),
    Test::new("micro/real_end_of_code", end_of_code),
    Test::new("micro/real_hypercall", hypercall),
    Test::new("micro/real_vm86_and_back", to_vm86),
    Test::new("micro/real_unpaged_registers", unpaged_registers),
    Test::new("micro/real_identity_map", identity_map),
    Test::new("micro/real_poisoned_code", || poisoned_code(0)),
    Test::new("micro/real_poisoned_operand", || poisoned_code(1)),
];

/// Loads GDTR from a guest's tables: the pseudo-descriptor is at 0x600.
fn with_gdt(g: &Guest) {
    let long = Guest::new(Mode::Long);
    g.mem
        .write(GDT as usize, &long.mem.read(GDT as usize, 4096));
    g.mem.wr(0x600usize, 0x3fu16);
    g.mem.wr(0x602usize, GDT as u32);
}

/// CS.D is what it was in protected mode, until a far jump from there: also to whoever decodes an access to a device.
fn code_of_32_bits() {
    let g = Guest::new(Mode::Real);
    // mov eax, [0x10]; hlt
    g.mem
        .write(CODE as usize, &[0xa1, 0x10, 0, 0, 0, 0xf4, 0xf4, 0xf4]);
    let mut s = g.cpu.sregs();
    s.cs.db = 1;
    s.ds.base = MMIO;
    g.cpu.set_sregs(&s);
    match g.cpu.run() {
        Exit::Mmio {
            addr,
            len: 4,
            write: false,
            ..
        } => eq!(addr, MMIO + 0x10),
        e => panic!("expected a device access, got {e:x?}{}", g.describe()),
    }
    g.cpu.answer(&[1, 2, 3, 4]);
    eq!(g.cpu.run(), Exit::Hlt);
    let r = g.cpu.regs();
    eq!((r.rax, r.rip), (0x0403_0201, CODE + 6));
}

/// Segments of 4 GiB in real mode, left there by a visit to protected mode.
fn big_segments() {
    let g = Guest::new(Mode::Real);
    with_gdt(&g);
    g.mem.wr(DATA as usize, 0x1234_5678u32);
    g.load(|a| {
        a.lgdt(ptr(0x600))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.mov(cx, u32::from(DATA_SEL))?;
        a.mov(ds, cx)?;
        a.and(al, 0xfe)?;
        a.mov(cr0, eax)?;
        a.mov(esi, DATA as u32)?;
        a.mov(eax, dword_ptr(esi))?;
        a.out(u32::from(PORT_VALUE), eax)?;
        // The base goes with the selector, the limit stays.
        a.mov(cx, 0x1000u32)?;
        a.mov(ds, cx)?;
        a.mov(eax, dword_ptr(esi - 0x1_0000))?;
        a.out(u32::from(PORT_VALUE), eax)?;
        // Beyond memory is a device, also far beyond 64 KiB.
        a.mov(esi, MMIO as u32)?;
        a.mov(byte_ptr(esi), al)?;
        a.hlt()
    });
    let mut values = Vec::new();
    let e = g.run_values(&mut values);
    eq!(values, vec![0x1234_5678; 2]);
    match e {
        Exit::Mmio { addr, write, .. } => eq!((addr, write), (MMIO + 0x1_0000, true)),
        e => panic!("{e:x?}{}", g.describe()),
    }
    eq!(g.cpu.run(), Exit::Hlt);
    let s = g.cpu.sregs();
    eq!((s.ds.base, s.ds.limit, s.cr0 & 1), (0x1_0000, u32::MAX, 0));
}

/// Protected mode with the segments of real mode, of which hardly one is what entry wants: the guest goes on until it loads others.
fn between() {
    let g = Guest::new(Mode::Real);
    with_gdt(&g);
    // CS with bits that become a privilege level, and stack and data with others.
    let mut s = g.cpu.sregs();
    (s.cs.base, s.cs.selector) = (0x10, 1);
    (s.ss.base, s.ss.selector) = (0x30, 3);
    (s.es.base, s.es.selector) = (0x2_0020, 0x2002);
    g.cpu.set_sregs(&s);
    let mut r = g.cpu.regs();
    r.rip = CODE - 0x10;
    g.cpu.set_regs(&r);
    g.mem.wr(0x2_0030usize, 0xabcdu16);
    let prot = 0x9000u64;
    g.load(|a| {
        a.lgdt(ptr(0x600))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.push(0x77i32)?;
        a.mov(ax, word_ptr(0x10).es())?;
        a.mov(word_ptr(0x700), ax)?;
        a.pop(bx)?;
        a.out(u32::from(PORT_VALUE), ax)?;
        a.out(0x10, al)?;
        a.in_(al, 0x20)?;
        a.mov(bh, al)?;
        a.cpuid()?;
        a.db(&[0x66, 0xea])?;
        a.dd(&[prot as u32])?;
        a.dw(&[CODE_SEL])
    });
    let code = assemble(32, prot, |a| {
        a.mov(ax, u32::from(DATA_SEL))?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(fs, ax)?;
        a.mov(gs, ax)?;
        a.mov(ss, ax)?;
        a.mov(esp, 0x7000)?;
        a.movzx(eax, word_ptr(0x700))?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.hlt()
    });
    g.mem.write(prot as usize, &code);
    let mut values = Vec::new();
    eq!(g.run_values(&mut values), out(0x10, &[0xcd]));
    g.expect(&inp(0x20, 1));
    g.cpu.answer(&[0x55]);
    eq!(g.run_values(&mut values), Exit::Hlt, "{}", g.describe());
    eq!(values, vec![0xabcd; 2]);
    let s = g.cpu.sregs();
    eq!(
        (s.cr0 & 1, s.cs.selector, s.ss.selector),
        (1, CODE_SEL, DATA_SEL)
    );
}

/// Interrupts and NMIs, an interrupt window, and what holds them back, one instruction after the other.
fn interrupts() {
    let g = Guest::new(Mode::Real);
    g.load(|a| {
        a.nop()?;
        a.sti()?;
        a.inc(bx)?;
        a.inc(cx)?;
        a.mov(ax, ss)?;
        a.mov(ss, ax)?;
        a.inc(dx)?;
        a.hlt()
    });
    let (handler, nmi) = (0x9000u64, 0x9100u64);
    g.gate(0x40, handler);
    g.gate(2, nmi);
    g.load_at(handler, |a| {
        a.mov(ax, bx)?;
        a.out(u32::from(PORT_VALUE), ax)?;
        a.iret()
    });
    g.load_at(nmi, |a| {
        a.mov(ax, dx)?;
        a.out(0x11, ax)?;
        a.iret()
    });
    // Closed: the window comes behind STI and its next instruction.
    g.cpu.want_window(true);
    eq!(g.cpu.run(), Exit::IrqWindow, "{}", g.describe());
    g.cpu.want_window(false);
    let r = g.cpu.regs();
    eq!((r.rbx, r.rcx, r.rflags & 0x200), (1, 0, 0x200));
    eq!(g.cpu.interrupt(0x40), Ok(0));
    g.expect(&out(u16::from(PORT_VALUE), &[1, 0]));
    // Inside of the handler nothing is open; behind its IRET the NMI comes first.
    eq!(g.cpu.regs().rflags & 0x200, 0);
    eq!(g.cpu.nmi(), Ok(0));
    g.expect(&out(0x11, &[0, 0]));
    eq!(g.cpu.nmi(), Ok(0));
    // Another one waits for the IRET of the first.
    g.expect(&out(0x11, &[0, 0]));
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    let r = g.cpu.regs();
    eq!((r.rbx, r.rcx, r.rdx, r.rsp), (1, 1, 1, STACK));
}

/// Execution that leaves a code segment of 64 KiB.
fn end_of_code() {
    if sys::on_tcg() {
        harness::skip("TCG does not check the limit of CS");
    }
    let g = Guest::new(Mode::Real);
    g.mem.write(0xfffd, &[0x90, 0x90, 0x90, 0x90]);
    let mut r = g.cpu.regs();
    r.rip = 0xfffd;
    g.cpu.set_regs(&r);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (13, 0));
    // An instruction across the end.
    let g = Guest::new(Mode::Real);
    g.mem.write(0xfffe, &[0x66, 0xb8, 1, 2, 3, 4]);
    r.rip = 0xfffe;
    g.cpu.set_regs(&r);
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (13, 0xfffe));
}

fn hypercall() {
    let g = Guest::new(Mode::Real);
    let vmcall = if sys::on_amd() { 0xd9 } else { 0xc1 };
    g.mem.write(CODE as usize, &[0x0f, 0x01, vmcall, 0xf4]);
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    eq!(g.cpu.regs().rax, 0xffff_fc18, "there is none");
}

/// Virtual-8086 mode is the hardware's in any case; out of it goes an exception, into it an IRET.
fn to_vm86() {
    if sys::on_amd() {
        // doc/errata.md: TCG wants a task register that is not busy, Bochs' SVM no exit there.
        harness::skip("both emulators of AMD's CPUs end themselves in virtual-8086 mode");
    }
    let g = Guest::new(Mode::Prot);
    let program = 0x2_1000u64;
    g.load(|a| {
        for value in [
            0x2000u32, 0x2000, 0x2000, 0x2000, 0x2000, 0x800, 0x2_3002, 0x2000, 0x1000,
        ] {
            a.push(value as i32)?;
        }
        a.iretd()
    });
    let code = assemble(16, 0x1000, |a| {
        a.mov(ax, cs)?;
        a.mov(word_ptr(0x10), ax)?;
        a.db(&[0x0f, 0x0b])
    });
    g.mem.write(program as usize, &code);
    g.mem.wr(TSS as usize + 4, 0x7000u32);
    g.mem.wr(TSS as usize + 8, u32::from(DATA_SEL));
    let t = g.run_to_trap();
    eq!((t.vector, t.ip), (6, 0x1005));
    check!(t.flags & 0x2_0000 != 0, "{:x}", t.flags);
    eq!(g.mem.rd::<u16>(0x2_0010), 0x2000);
}

/// What a guest without paging has in CR3, CR4 and EFER is what it finds there, and what user space finds.
fn unpaged_registers() {
    let g = Guest::new(Mode::Prot);
    g.load(|a| {
        a.mov(eax, 0x1234_5000u32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, 0x220u32)?;
        a.mov(cr4, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.mov(eax, 0x100u32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.mov(eax, cr3)?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.mov(eax, cr4)?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.mov(eax, cr0)?;
        a.out(u32::from(PORT_VALUE), eax)?;
        // All of memory is there, and each address is itself.
        a.mov(eax, dword_ptr(DATA))?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.mov(dword_ptr(MMIO), eax)?;
        a.hlt()
    });
    g.mem.wr(DATA as usize, 0x9876_5432u32);
    let mut values = Vec::new();
    match g.run_values(&mut values) {
        Exit::Mmio {
            addr: MMIO,
            write: true,
            ..
        } => {}
        e => panic!("{e:x?}{}", g.describe()),
    }
    // As in `micro/cr_access`: TCG shows that the host has machine checks on.
    for x in values.iter_mut().skip(2).take(1) {
        *x &= !0x40;
    }
    eq!(values, vec![0x100, 0x1234_5000, 0x220, 0x11, 0x9876_5432]);
    eq!(g.cpu.run(), Exit::Hlt);
    let mut s = g.cpu.sregs();
    s.cr4 &= !0x40;
    eq!(
        (s.cr0, s.cr3, s.cr4, s.efer),
        (0x11, 0x1234_5000, 0x220, 0x100)
    );
    // And so it is after a visit to real mode, and of paging.
    let mut other = s;
    (other.cr0, other.cr3, other.cr4, other.efer) = (0x8000_0011, 0x5000, 0x10, 0);
    g.cpu.set_sregs(&other);
    eq!((g.cpu.sregs().cr3, g.cpu.sregs().cr4), (0x5000, 0x10));
    g.cpu.set_sregs(&s);
    eq!((g.cpu.sregs().cr3, g.cpu.sregs().cr4), (0x1234_5000, 0x220));
}

/// Where a guest without paging needs pages, they are in its memory, at a place of user space's choice.
fn identity_map() {
    let needed = !sys::on_amd() && !sys::unrestricted_guest();
    let taken = if needed { Err(EEXIST) } else { Ok(0) };
    let page = Map::anon(4096);
    let k = Kvm::open();
    // A vCPU comes after the slot, or before.
    for at in [0xfffb_c000u64, 0xfeff_c000] {
        let vm = k.vm();
        eq!(vm.fd.give(SET_IDENTITY_MAP_ADDR, &at), Ok(0));
        eq!(vm.region(1, 0, at, 4096, page.addr()), Ok(0));
        eq!(vm.try_vcpu(0).map(drop), taken.map(drop), "{at:x}");
        let vm = k.vm();
        eq!(vm.fd.give(SET_IDENTITY_MAP_ADDR, &at), Ok(0));
        let _cpu = vm.vcpu(0);
        eq!(vm.region(1, 0, at, 4096, page.addr()), taken, "{at:x}");
        eq!(vm.region(1, 0, at - 4096, 4096, page.addr()), Ok(0));
        eq!(
            vm.fd.give(SET_IDENTITY_MAP_ADDR, &at),
            Err(EINVAL),
            "it is late"
        );
    }
    // The vCPU that the place was for did not come: it may still be changed, and the old one is free.
    let vm = k.vm();
    let (old, new) = (0xfeff_c000u64, 0xfefe_c000u64);
    eq!(vm.fd.give(SET_IDENTITY_MAP_ADDR, &old), Ok(0));
    let all: Vec<_> =
        core::iter::from_fn(|| sys::OwnedFd::open("/dev/null", libc::O_RDONLY).ok()).collect();
    eq!(vm.try_vcpu(0).map(drop), Err(EMFILE));
    drop(all);
    eq!(vm.fd.give(SET_IDENTITY_MAP_ADDR, &new), Ok(0));
    let _cpu = vm.vcpu(0);
    eq!(vm.region(1, 0, new, 4096, page.addr()), taken);
    eq!(vm.region(2, 0, old, 4096, page.addr()), Ok(0));
    // 0 is the usual place; what no slot can be at is found out when the vCPU is made.
    let vm = k.vm();
    eq!(vm.fd.give(SET_IDENTITY_MAP_ADDR, &0u64), Ok(0));
    let _cpu = vm.vcpu(0);
    eq!(vm.region(1, 0, 0, 4096, page.addr()), Ok(0));
    eq!(vm.region(2, 0, 0xfffb_c000, 4096, page.addr()), taken);
    let vm = k.vm();
    eq!(vm.fd.give(SET_IDENTITY_MAP_ADDR, &0x1001u64), Ok(0));
    eq!(
        vm.try_vcpu(0).map(drop),
        if needed { Err(EINVAL) } else { Ok(()) }
    );
}

/// Code in a page that was lost to a memory error, from `before` bytes ahead of it on: the thread gets the signal, and no error of the
/// emulator's.
fn poisoned_code(before: u64) {
    const PAGE: u64 = 0xa000;
    let g = Guest::new(Mode::Real);
    g.load(|a| a.jmp(PAGE - before));
    // MOV AL, imm8, of which the page has the byte.
    g.mem.wr(PAGE as usize - 1, 0xb0u8);
    run_into_poison(&g, PAGE);
    // The guest goes on in the new page.
    g.mem.wr((PAGE + before) as usize, 0xf4u8);
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
}
