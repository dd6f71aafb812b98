// SPDX-License-Identifier: GPL-2.0
//! Port access: all sizes, string instructions, page boundaries.

use crate::guest::*;
use crate::harness::Test;
use crate::kvm::Exit;
use crate::{check, eq};
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/pio_sizes", sizes),
    Test::new("micro/pio_dx_and_immediate", port_forms),
    Test::new("micro/pio_partial_registers", partial),
    Test::new("micro/pio_all_modes", all_modes),
    Test::new("micro/pio_unanswered", unanswered),
    Test::new("micro/rep_outs", rep_outs).no_ab(),
    Test::new("micro/rep_ins", rep_ins).no_ab(),
    Test::new("micro/rep_page_crossing", rep_page_crossing).no_ab(),
    Test::new("micro/rep_zero_and_single", rep_zero),
    Test::new("micro/rep_backwards", rep_backwards).no_ab(),
    Test::new("micro/rep_interrupted", rep_interrupted).no_ab(),
    Test::new("micro/outs_segment_override", segment_override),
    Test::new("micro/ins_to_readonly_page_table", ins_fault).no_ab(),
];

fn sizes() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(eax, 0x4433_2211)?;
        a.out(0x10, al)?;
        a.out(0x12, ax)?;
        a.out(0x14, eax)?;
        a.in_(al, 0x20)?;
        a.in_(ax, 0x22)?;
        a.in_(eax, 0x24)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    g.expect(&out(0x10, &[0x11]));
    g.expect(&out(0x12, &[0x11, 0x22]));
    g.expect(&out(0x14, &[0x11, 0x22, 0x33, 0x44]));
    g.expect(&inp(0x20, 1));
    g.cpu.answer(&[0xaa]);
    g.expect(&inp(0x22, 2));
    g.cpu.answer(&[0xbb, 0xcc]);
    g.expect(&inp(0x24, 4));
    g.cpu.answer(&[1, 2, 3, 4]);
    eq!(g.values(), vec![0x0403_0201]);
}

fn port_forms() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(eax, 0x9988_7766u32)?;
        for port in [0u32, 0x3f8, 0x8000, 0xffff] {
            a.mov(edx, 0xabcd_0000u32 | port)?;
            a.out(dx, al)?;
            a.in_(al, dx)?;
        }
        a.hlt()
    });
    let mut byte = 0x66u8;
    for port in [0, 0x3f8, 0x8000, 0xffff] {
        g.expect(&out(port, &[byte]));
        g.expect(&inp(port, 1));
        byte = byte.wrapping_add(1);
        g.cpu.answer(&[byte]);
    }
    g.expect(&Exit::Hlt);
}

fn partial() {
    // Reading a byte or a word leaves the rest of RAX; reading 32 bits clears the upper half.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.in_(al, 0x20)?;
        a.in_(ax, 0x20)?;
        a.in_(eax, 0x20)?;
        a.hlt()
    });
    let mut r = g.cpu.regs();
    r.rax = u64::MAX;
    g.cpu.set_regs(&r);
    for (size, want) in [
        (1u8, 0xffff_ffff_ffff_ff5a),
        (2, 0xffff_ffff_ffff_5a5a),
        (4, 0x5a5a_5a5a),
    ] {
        g.expect(&inp(0x20, size));
        g.cpu.answer(&[0x5a; 4][..size.into()]);
        g.cpu.set_immediate_exit(true);
        check!(
            matches!(g.cpu.run(), Exit::Err(libc::EINTR, _)),
            "completes only"
        );
        g.cpu.set_immediate_exit(false);
        eq!(g.cpu.regs().rax, want, "{size} bytes");
    }
}

/// User space that does not answer an IN: the guest reads 0, and not what was written last.
fn unanswered() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(eax, 0x4433_2211)?;
        a.out(0x14, eax)?;
        a.in_(eax, 0x24)?;
        a.out(0xf0, eax)?;
        a.mov(eax, 0x5544_3322)?;
        a.out(0x14, eax)?;
        a.mov(edi, DATA as u32)?;
        a.mov(edx, 0x24)?;
        a.insd()?;
        a.hlt()
    });
    g.mem.fill(DATA as usize, 4, 0xa5);
    g.expect(&out(0x14, &[0x11, 0x22, 0x33, 0x44]));
    g.expect(&inp(0x24, 4));
    g.expect(&out(0xf0, &[0; 4]));
    g.expect(&out(0x14, &[0x22, 0x33, 0x44, 0x55]));
    g.expect(&inp(0x24, 4));
    g.expect(&Exit::Hlt);
    eq!(g.mem.rd::<u32>(DATA as usize), 0, "INS");
}

fn all_modes() {
    for mode in Mode::ALL {
        let g = Guest::new(mode);
        g.load(|a| {
            a.in_(eax, 0x20)?;
            a.add(eax, 1)?;
            a.out(0x30, eax)?;
            a.hlt()
        });
        g.expect(&inp(0x20, 4));
        g.cpu.answer(&[0xff, 0, 0, 0]);
        g.expect(&out(0x30, &[0, 1, 0, 0]));
        g.expect(&Exit::Hlt);
    }
}

/// Collects what string writes to `port` give, however they are cut in exits, up to the HLT.
fn collect(g: &Guest, port: u16, size: u8) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match g.cpu.run() {
            Exit::Io {
                out: true,
                size: s,
                port: p,
                count,
                data,
            } if p == port => {
                eq!(s, size);
                eq!(data.len(), usize::from(s) * count as usize);
                all.extend(data);
            }
            Exit::Hlt => return all,
            e => panic!("{e:x?}{}", g.describe()),
        }
        assert!(all.len() < 100_000, "no end of output");
    }
}

/// Answers string reads from `port` with `data`, up to the HLT; gives how many bytes were asked for.
fn feed(g: &Guest, port: u16, size: u8, data: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match g.cpu.run() {
            Exit::Io {
                out: false,
                size: s,
                port: p,
                count,
                ..
            } if p == port => {
                eq!(s, size);
                let n = usize::from(s) * count as usize;
                assert!(
                    at + n <= data.len(),
                    "asked for {n} more bytes after {at} of {}",
                    data.len()
                );
                g.cpu.answer(&data[at..at + n]);
                at += n;
            }
            Exit::Hlt => return at,
            e => panic!("{e:x?} after {at} bytes{}", g.describe()),
        }
    }
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 256) as u8).collect()
}

fn rep_outs() {
    for mode in Mode::ALL {
        for size in [1u8, 2, 4] {
            let g = Guest::new(mode);
            let at = 0x6000usize;
            let p = pattern(40 * usize::from(size));
            g.mem.write(at, &p);
            g.load(|a| {
                a.cld()?;
                a.mov(esi, at as u32)?;
                a.mov(ecx, 40)?;
                a.mov(dx, 0x77)?;
                match size {
                    1 => a.rep().outsb()?,
                    2 => a.rep().outsw()?,
                    _ => a.rep().outsd()?,
                }
                a.hlt()
            });
            eq!(collect(&g, 0x77, size), p, "{mode:?}, size {size}");
            let r = g.cpu.regs();
            eq!(
                (r.rcx, r.rsi),
                (0, (at + p.len()) as u64),
                "{mode:?}, size {size}"
            );
        }
    }
}

fn rep_ins() {
    for mode in Mode::ALL {
        for size in [1u8, 2, 4] {
            let g = Guest::new(mode);
            let at = 0x6000usize;
            let p = pattern(40 * usize::from(size));
            g.load(|a| {
                a.cld()?;
                a.mov(edi, at as u32)?;
                a.mov(ecx, 40)?;
                a.mov(dx, 0x78)?;
                match size {
                    1 => a.rep().insb()?,
                    2 => a.rep().insw()?,
                    _ => a.rep().insd()?,
                }
                a.hlt()
            });
            eq!(feed(&g, 0x78, size, &p), p.len());
            eq!(g.mem.read(at, p.len()), p, "{mode:?}, size {size}");
            eq!(g.mem.rd::<u32>(at + p.len()), 0, "nothing behind");
            let r = g.cpu.regs();
            eq!(
                (r.rcx, r.rdi),
                (0, (at + p.len()) as u64),
                "{mode:?}, size {size}"
            );
        }
    }
}

fn rep_page_crossing() {
    let g = Guest::new(Mode::Long);
    // Over several pages, beginning in the middle of a word of one.
    let (from, to, n) = (0x2_0ffd_usize, 0x4_0ffe_usize, 3000usize);
    let p = pattern(4 * n);
    g.mem.write(from, &p);
    g.load(|a| {
        a.cld()?;
        a.mov(rsi, from as u64)?;
        a.mov(rcx, n as u64)?;
        a.mov(dx, 0x77)?;
        a.rep().outsd()?;
        a.hlt()?;
        a.mov(rdi, to as u64)?;
        a.mov(rcx, n as u64)?;
        a.rep().insd()?;
        a.hlt()
    });
    eq!(collect(&g, 0x77, 4), p);
    eq!(feed(&g, 0x77, 4, &p), p.len());
    eq!(g.mem.read(to, p.len()), p);
    eq!(
        (g.mem.rd::<u8>(to - 1), g.mem.rd::<u8>(to + p.len())),
        (0, 0)
    );
}

fn rep_zero() {
    let g = Guest::new(Mode::Long);
    g.mem.write(DATA as usize, &[1, 2, 3, 4]);
    g.load(|a| {
        a.cld()?;
        a.mov(rsi, DATA)?;
        a.mov(dx, 0x77)?;
        a.xor(ecx, ecx)?;
        a.rep().outsb()?;
        a.outsb()?;
        a.mov(rdi, DATA + 8)?;
        a.insw()?;
        a.hlt()
    });
    g.expect(&out(0x77, &[1]));
    g.expect(&inp(0x77, 2));
    g.cpu.answer(&[0x34, 0x12]);
    g.expect(&Exit::Hlt);
    let r = g.cpu.regs();
    eq!((r.rcx, r.rsi, r.rdi), (0, DATA + 1, DATA + 10));
    eq!(g.mem.rd::<u32>(DATA as usize + 8), 0x1234);
}

fn rep_backwards() {
    let g = Guest::new(Mode::Long);
    g.mem.write(DATA as usize, &[1, 2, 3, 4, 5, 6, 7, 8]);
    g.load(|a| {
        a.std()?;
        a.mov(rsi, DATA + 6)?;
        a.mov(ecx, 4)?;
        a.mov(dx, 0x77)?;
        a.rep().outsw()?;
        a.hlt()?;
        a.mov(rdi, DATA + 0x17)?;
        a.mov(ecx, 8)?;
        a.rep().insb()?;
        a.hlt()
    });
    eq!(collect(&g, 0x77, 2), vec![7, 8, 5, 6, 3, 4, 1, 2]);
    eq!(feed(&g, 0x77, 1, &[8, 7, 6, 5, 4, 3, 2, 1]), 8);
    eq!(
        g.mem.read(DATA as usize + 0x10, 8),
        vec![1, 2, 3, 4, 5, 6, 7, 8]
    );
    let r = g.cpu.regs();
    eq!((r.rsi, r.rdi, r.rcx), (DATA - 2, DATA + 0xf, 0));
}

fn rep_interrupted() {
    // User space lowers RCX in the middle of a string read, as a device reset might: the rest must not be read.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.cld()?;
        a.mov(rdi, DATA)?;
        a.mov(rcx, 5000u64)?;
        a.mov(dx, 0x80)?;
        a.rep().insb()?;
        a.hlt()
    });
    let Exit::Io {
        out: false, count, ..
    } = g.cpu.run()
    else {
        panic!("no exit for INSB")
    };
    g.cpu.answer(&vec![0x11; count as usize]);
    g.cpu.set_immediate_exit(true);
    check!(
        matches!(g.cpu.run(), Exit::Err(libc::EINTR, _)),
        "completes only"
    );
    g.cpu.set_immediate_exit(false);
    let mut r = g.cpu.regs();
    check!(
        r.rcx < 5000 && r.rdi == DATA + 5000 - r.rcx,
        "RCX {} and RDI {:x} moved together",
        r.rcx,
        r.rdi
    );
    let done = r.rdi;
    r.rcx = 1;
    g.cpu.set_regs(&r);
    // At most what was fetched ahead already may come from the old count.
    let mut n = 0;
    loop {
        match g.cpu.run() {
            Exit::Io {
                out: false, count, ..
            } => {
                n += count;
                g.cpu.answer(&vec![0x22; count as usize]);
            }
            Exit::Hlt => break,
            e => panic!("{e:x?}"),
        }
    }
    check!(n <= 1, "asked for {n} more");
    eq!(g.cpu.regs().rdi, done + 1);
}

fn segment_override() {
    let g = Guest::new(Mode::Long);
    let mut s = g.cpu.sregs();
    s.fs.base = 0x1_0000;
    g.cpu.set_sregs(&s);
    g.mem.wr(DATA as usize + 5, 0x99u8);
    g.mem.wr(DATA as usize + 0x1_0005, 0x11u8);
    // FS: OUTSB; the destination of INS has no override.
    g.mem.write(CODE as usize, &[0x64, 0x6e, 0x64, 0x6c, 0xf4]);
    let mut r = g.cpu.regs();
    (r.rsi, r.rdi, r.rdx) = (DATA - 0x1_0000 + 5, DATA + 0x20, 0x55);
    g.cpu.set_regs(&r);
    g.expect(&out(0x55, &[0x99]));
    g.expect(&inp(0x55, 1));
    g.cpu.answer(&[0x42]);
    g.expect(&Exit::Hlt);
    eq!(g.mem.rd::<u8>(DATA as usize + 0x20), 0x42);
}

fn ins_fault() {
    // The destination is not writable in the guest's own tables: the guest gets the page fault.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(rax, 0x8001_0011u64)?;
        a.mov(cr0, rax)?;
        a.mov(rdi, 0x20_0010u64)?;
        a.mov(ecx, 4)?;
        a.mov(dx, 0x55)?;
        a.rep().insb()?;
        a.hlt()
    });
    g.mem.wr(PD as usize + 8, 0x20_0000u64 | 0x85);
    let mut asked = 0;
    loop {
        match g.cpu.run() {
            Exit::Io {
                out: false, count, ..
            } => {
                asked += count;
                assert!(asked <= 4, "asked again and again");
                g.cpu.answer(&vec![1; count as usize]);
            }
            Exit::Io {
                out: true,
                port: 0xee,
                ..
            } => break,
            e => panic!("{e:x?}{}", g.describe()),
        }
    }
    let t = g.trap();
    eq!((t.vector, t.error & 3), (14, 3));
    if !crate::sys::on_bochs_svm() {
        eq!(g.cpu.sregs().cr2, 0x20_0010);
    }
    eq!(g.mem.rd::<u32>(0x20_0010), 0, "nothing was written");
}
