// SPDX-License-Identifier: GPL-2.0
//! A guest that reads and writes every MSR and touches every port, and a VMM that sets every MSR.

use super::defined;
use super::neighbour::Neighbour;
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys;
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::kvm_regs;

pub const TESTS: &[Test] = &[
    Test::new("hostile/every_msr_by_guest", guest_msrs)
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/every_msr_by_vmm", vmm_msrs)
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/every_port", ports)
        .secs(60)
        .long(3000)
        .no_ab(),
];

/// Where there are MSRs: those of the architecture, AMD's and those of hypervisors.
const RANGES: [(u32, u32); 5] = [
    (0, 0x2000),
    (0xc000_0000, 0xc000_2000),
    (0xc001_0000, 0xc001_2000),
    (0x4000_0000, 0x4000_0200),
    (0x4b56_4d00, 0x4b56_4d20),
];

const VALUES: [u64; 6] = [
    0,
    u64::MAX,
    1,
    0x0000_8000_0000_0000,
    0x0007_0406_0007_0406,
    0x00ff_ffff_ffff_f000,
];

/// Counts the #GPs at DATA and goes on behind the RDMSR or WRMSR.
fn passing_over(g: &Guest) {
    g.gate(13, 0x9000);
    g.load_at(0x9000, |a| {
        a.add(rsp, 8)?;
        a.add(qword_ptr(rsp), 2)?;
        a.inc(qword_ptr(DATA))?;
        a.iretq()
    });
}

fn guest_msrs() {
    let mut near = Neighbour::start();
    let g = Guest::new(Mode::Long);
    passing_over(&g);
    // RSI: first, RDI: behind the last, R8: how far apart, R9: the value to write.
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(ecx, esi)?;
        a.rdmsr()?;
        a.mov(ecx, esi)?;
        a.mov(rax, r9)?;
        a.mov(rdx, r9)?;
        a.shr(rdx, 32)?;
        a.wrmsr()?;
        a.add(rsi, r8)?;
        a.cmp(rsi, rdi)?;
        a.jb(top)?;
        a.hlt()
    });
    // All of them now and then; a different part with each value otherwise.
    let step = 24 / harness::rounds(1, 24).min(24);
    for (n, value) in VALUES.into_iter().enumerate() {
        for (first, end) in RANGES {
            g.mem.wr(DATA as usize, 0u64);
            g.enter_mode(&g.cpu);
            g.cpu.set_regs(&kvm_regs {
                rip: CODE,
                rsp: STACK,
                rflags: 2,
                rsi: u64::from(first) + n as u64 % step,
                rdi: end.into(),
                r8: step,
                r9: value,
                ..Default::default()
            });
            let e = g.cpu.run();
            eq!(e, Exit::Hlt, "{first:x}, value {value:x}{}", g.describe());
            let faults = g.mem.rd::<u64>(DATA as usize);
            check!(faults > 0, "not one #GP from {first:x} to {end:x}");
        }
        near.check();
    }
    drop(g);
    near.end();
}

fn vmm_msrs() {
    let mut near = Neighbour::start();
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0xf4; 64]);
    let mut taken = 0;
    let step = 12 / harness::rounds(1, 12).min(12) as usize;
    for (n, value) in VALUES.into_iter().enumerate() {
        for (first, end) in RANGES {
            for index in (first..end).skip(n % step).step_by(step) {
                let mut b = MsrsBuf::of(&[(index, value)]);
                let r = sys::ioctl_with(g.cpu.fd.0.raw(), SET_MSRS, &mut *b);
                check!(matches!(r, Ok(0 | 1)), "MSR {index:x} {value:x}: {r:?}");
                taken += u32::from(r == Ok(1));
                if r == Ok(1) {
                    // It can be lived with: the guest runs, or is refused.
                    let e = g.cpu.run();
                    check!(defined(&e), "after MSR {index:x} {value:x}: {e:x?}");
                    if e != Exit::Hlt || index == 0xc000_0080 {
                        g.enter_mode(&g.cpu);
                    }
                    let mut r = g.cpu.regs();
                    r.rip = CODE;
                    g.cpu.set_regs(&r);
                }
                let mut b = MsrsBuf::of(&[(index, 0xa5a5)]);
                let r = sys::ioctl_with(g.cpu.fd.0.raw(), GET_MSRS, &mut *b);
                check!(matches!(r, Ok(0 | 1)), "reading MSR {index:x}: {r:?}");
            }
        }
        near.check();
    }
    check!(taken > 50, "{taken} writes taken");
    drop(g);
    near.end();
}

fn ports() {
    let mut near = Neighbour::start();
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.in_(al, dx)?;
        a.in_(ax, dx)?;
        a.in_(eax, dx)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.mov(edi, DATA as u32)?;
        a.mov(esi, DATA as u32)?;
        a.insb()?;
        a.insw()?;
        a.insd()?;
        a.outsb()?;
        a.outsw()?;
        a.outsd()?;
        a.mov(ecx, 3)?;
        a.rep().insw()?;
        a.mov(ecx, 3)?;
        a.rep().outsd()?;
        a.hlt()
    });
    // Every port has the same code behind it; a prime distance meets all alignments.
    let step = 257 / harness::rounds(1, 257).min(257) as usize;
    let mut n = 0u64;
    for port in (0..=0xffffu16)
        .step_by(step)
        .chain([0xfffd, 0xfffe, 0xffff])
    {
        let mut r = g.cpu.regs();
        (r.rip, r.rdx) = (CODE, port.into());
        g.cpu.set_regs(&r);
        let mut sizes = [0u32; 2];
        loop {
            match g.cpu.run() {
                Exit::Io {
                    out,
                    size,
                    port: p,
                    count,
                    ..
                } => {
                    eq!(p, port);
                    sizes[usize::from(out)] += u32::from(size) * count;
                    if !out {
                        g.cpu.run.wr(g.cpu.io_data(), n);
                    }
                    n += 1;
                }
                Exit::Hlt => break,
                e => panic!("port {port:x}: {e:x?}{}", g.describe()),
            }
        }
        // 7 for the three plain ones, 7 for the strings, and the repeated ones.
        eq!(sizes, [14 + 6, 14 + 12], "bytes in and out, port {port:x}");
    }
    near.check();
    drop(g);
    near.end();
}
