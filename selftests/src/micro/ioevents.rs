// SPDX-License-Identifier: GPL-2.0
//! Guests whose writes go to eventfds: no exit for those that match, and the usual one for all others.

use crate::eq;
use crate::guest::*;
use crate::harness::Test;
use crate::kvm::Exit;
use crate::sys::{counted, eventfd};
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/ioeventfd_port", port),
    Test::new("micro/ioeventfd_mmio", mmio),
    Test::new("micro/ioeventfd_any_length", any_length),
    Test::new("micro/ioeventfd_datamatch", datamatch),
    Test::new("micro/ioeventfd_outs", outs),
    Test::new("micro/ioeventfd_mmio_forms", forms),
    Test::new("micro/ioeventfd_comes_and_goes", comes_and_goes).no_ab(),
];

const PIO: u32 = 2;
const MATCH: u32 = 1;
const GONE: u32 = 4;

fn mmio_exit(addr: u64, data: &[u8]) -> Exit {
    Exit::Mmio {
        addr,
        len: data.len() as u32,
        write: true,
        data: data.to_vec(),
    }
}

fn port() {
    let g = Guest::new(Mode::Long);
    let e = eventfd();
    eq!(g.vm.ioevent(e.raw(), (PIO, 0x10, 2, 0)), Ok(0));
    g.load(|a| {
        a.mov(eax, 0x1234_5678)?;
        a.out(0x10, ax)?;
        a.out(0x10, ax)?;
        a.out(0x10, al)?;
        a.out(0x10, eax)?;
        a.out(0x11, ax)?;
        a.out(0x10, ax)?;
        a.in_(ax, 0x10)?;
        a.hlt()
    });
    g.expect(&out(0x10, &[0x78]));
    eq!(counted(&e), 2);
    g.expect(&out(0x10, &[0x78, 0x56, 0x34, 0x12]));
    g.expect(&out(0x11, &[0x78, 0x56]));
    eq!(counted(&e), 0);
    // A read is nobody's.
    g.expect(&inp(0x10, 2));
    eq!(counted(&e), 1);
    g.cpu.answer(&[1, 2]);
    g.expect(&Exit::Hlt);
    eq!(g.cpu.regs().rax & 0xffff, 0x0201);
}

fn mmio() {
    let g = Guest::new(Mode::Long);
    let e = eventfd();
    eq!(g.vm.ioevent(e.raw(), (0, MMIO, 4, 0)), Ok(0));
    g.load(|a| {
        a.mov(ebx, MMIO as u32)?;
        a.mov(eax, 0x1234_5678)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(word_ptr(rbx), ax)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(dword_ptr(rbx + 1), eax)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.hlt()
    });
    g.expect(&mmio_exit(MMIO, &[0x78, 0x56]));
    eq!(counted(&e), 1);
    g.expect(&mmio_exit(MMIO, &[0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]));
    g.expect(&mmio_exit(MMIO + 1, &[0x78, 0x56, 0x34, 0x12]));
    let read = Exit::Mmio {
        addr: MMIO,
        len: 4,
        write: false,
        data: Vec::new(),
    };
    g.expect(&read);
    eq!(counted(&e), 1);
    g.cpu.answer(&[9, 0, 0, 0]);
    g.expect(&Exit::Hlt);
    eq!(g.cpu.regs().rax, 9);
}

fn any_length() {
    let g = Guest::new(Mode::Long);
    let (e, p) = (eventfd(), eventfd());
    eq!(g.vm.ioevent(e.raw(), (0, MMIO, 0, 0)), Ok(0));
    eq!(g.vm.ioevent(p.raw(), (PIO, 0x10, 0, 0)), Ok(0));
    g.load(|a| {
        a.mov(ebx, MMIO as u32)?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(word_ptr(rbx), ax)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.out(0x10, al)?;
        a.out(0x10, ax)?;
        a.out(0x10, eax)?;
        a.mov(byte_ptr(rbx + 1), 0x55)?;
        a.hlt()
    });
    g.expect(&mmio_exit(MMIO + 1, &[0x55]));
    eq!((counted(&e), counted(&p)), (4, 3));
    g.expect(&Exit::Hlt);
}

fn datamatch() {
    let g = Guest::new(Mode::Long);
    let fds: Vec<_> = (0..4).map(|_| eventfd()).collect();
    // The value is compared in the length of the write.
    for (i, value) in [1u64, 2, 0xffff_ffff].into_iter().enumerate() {
        eq!(g.vm.ioevent(fds[i].raw(), (MATCH, MMIO, 4, value)), Ok(0));
    }
    // More than four bytes hold: nothing can match.
    eq!(
        g.vm.ioevent(fds[3].raw(), (MATCH, MMIO + 8, 4, 1 << 32 | 5)),
        Ok(0)
    );
    g.load(|a| {
        a.mov(ebx, MMIO as u32)?;
        for v in [1u32, 2, 2, 0xffff_ffff, 3, 1] {
            a.mov(eax, v)?;
            a.mov(dword_ptr(rbx), eax)?;
        }
        a.mov(dword_ptr(rbx + 8), 5)?;
        a.hlt()
    });
    let counts = || fds.iter().map(counted).collect::<Vec<_>>();
    g.expect(&mmio_exit(MMIO, &[3, 0, 0, 0]));
    eq!(counts(), vec![1, 2, 1, 0]);
    g.expect(&mmio_exit(MMIO + 8, &[5, 0, 0, 0]));
    eq!(counts(), vec![1, 0, 0, 0]);
    g.expect(&Exit::Hlt);
    // The same at a port.
    let g = Guest::new(Mode::Long);
    for (i, value) in [1u64, 2].into_iter().enumerate() {
        eq!(
            g.vm.ioevent(fds[i].raw(), (MATCH | PIO, 0x10, 1, value)),
            Ok(0)
        );
    }
    g.load(|a| {
        for v in [0x101u32, 0x202, 0x303] {
            a.mov(eax, v)?;
            a.out(0x10, al)?;
        }
        a.hlt()
    });
    g.expect(&out(0x10, &[3]));
    eq!(counts(), vec![1, 1, 0, 0]);
    g.expect(&Exit::Hlt);
}

fn outs() {
    let g = Guest::new(Mode::Long);
    let e = eventfd();
    eq!(g.vm.ioevent(e.raw(), (PIO, 0x10, 0, 0)), Ok(0));
    g.mem.write(DATA as usize, &[1, 2, 3, 4, 5]);
    g.load(|a| {
        a.cld()?;
        a.mov(esi, DATA as u32)?;
        a.mov(ecx, 5)?;
        a.mov(dx, 0x10)?;
        a.rep().outsb()?;
        a.hlt()
    });
    g.expect(&Exit::Hlt);
    eq!(counted(&e), 5);
    eq!((g.cpu.regs().rcx, g.cpu.regs().rsi), (0, DATA + 5));
}

fn forms() {
    // Other instructions that write to a device.
    let g = Guest::new(Mode::Long);
    let e = eventfd();
    eq!(g.vm.ioevent(e.raw(), (0, MMIO, 4, 0)), Ok(0));
    g.load(|a| {
        a.cld()?;
        a.mov(edi, MMIO as u32)?;
        a.mov(eax, 0x77)?;
        a.stosd()?;
        a.mov(ebx, MMIO as u32)?;
        a.mov(dword_ptr(rbx), 0x1234)?;
        a.hlt()
    });
    g.expect(&Exit::Hlt);
    eq!(counted(&e), 2);
    eq!(
        g.cpu.regs().rdi,
        MMIO + 4,
        "the instruction's other effects"
    );
}

fn comes_and_goes() {
    let g = Guest::new(Mode::Long);
    let e = eventfd();
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.out(0x10, al)?;
        a.out(0x11, al)?;
        a.jmp(top)
    });
    for _ in 0..20 {
        g.expect(&out(0x10, &[0]));
        g.expect(&out(0x11, &[0]));
        eq!(g.vm.ioevent(e.raw(), (PIO, 0x10, 1, 0)), Ok(0));
        g.expect(&out(0x11, &[0]));
        eq!(counted(&e), 1);
        eq!(g.vm.ioevent(e.raw(), (PIO | GONE, 0x10, 1, 0)), Ok(0));
    }
}
