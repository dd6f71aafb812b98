// SPDX-License-Identifier: GPL-2.0
//! The modes a guest can be in, switching between them, registers and segments across exits, and states no CPU has.

use crate::guest::*;
use crate::harness::Test;
use crate::kvm::Exit;
use crate::sys::{bytes_of, on_tcg};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::kvm_regs;

pub const TESTS: &[Test] = &[
    Test::new("micro/every_mode_runs", every_mode_runs),
    Test::new("micro/hlt", hlt),
    Test::new("micro/real_to_protected_to_long", mode_switches),
    Test::new("micro/long_to_protected", long_to_protected),
    Test::new("micro/gprs_across_exits", gprs),
    Test::new("micro/segments_across_exits", segments),
    Test::new("micro/segment_loads", segment_loads),
    Test::new("micro/real_mode_segments", real_segments),
    Test::new("micro/flags_across_exits", flags),
    Test::new("micro/triple_fault", triple_fault),
    Test::new("micro/invalid_state", invalid_state),
    Test::new("micro/reset_vector", reset_vector),
];

fn every_mode_runs() {
    for mode in Mode::ALL {
        let g = Guest::new(mode);
        g.load(|a| {
            let mut top = a.create_label();
            a.mov(eax, 1)?;
            a.mov(ecx, 10)?;
            a.set_label(&mut top)?;
            a.add(eax, eax)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.out(u32::from(PORT_VALUE), eax)?;
            a.hlt()
        });
        eq!(g.values(), vec![1024], "{mode:?}");
    }
}

fn hlt() {
    for mode in Mode::ALL {
        let g = Guest::new(mode);
        g.mem.write(CODE as usize, &[0xf4, 0xf4, 0x90, 0xf4]);
        for ip in [1, 2, 4] {
            eq!(g.cpu.run(), Exit::Hlt, "{mode:?}");
            eq!(g.cpu.regs().rip, CODE + ip, "behind the instruction");
        }
    }
}

/// From real mode by the guest's own instructions to 32-bit and on to 64-bit.
fn mode_switches() {
    let g = Guest::new(Mode::Real);
    // Tables of the later modes.
    let long = Guest::new(Mode::Long);
    for at in [GDT, IDT, PML4, PDPT, PD, PD + 4096, PD + 8192, PD + 12288] {
        g.mem.write(at as usize, &long.mem.read(at as usize, 4096));
    }
    drop(long);
    let desc = DATA as usize;
    g.mem.wr(0x600usize, 0x3fu16);
    g.mem.wr(0x602usize, GDT as u32);
    let (prot, long) = (0x9000u64, 0xa000u64);
    g.load(|a| {
        a.mov(eax, 16)?;
        a.out(0xf0, eax)?;
        a.cli()?;
        a.lgdt(ptr(0x600))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // A far jump with a 32-bit offset.
        a.db(&[0x66, 0xea])?;
        a.dd(&[prot as u32])?;
        a.dw(&[CODE_SEL])
    });
    let code = assemble(32, prot, |a| {
        a.mov(ax, u32::from(DATA_SEL))?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(esp, 0x7000)?;
        a.mov(eax, 32)?;
        a.out(0xf0, eax)?;
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32)?;
        a.mov(cr0, eax)?;
        // LMA must be set now, though this is still 32-bit code.
        a.rdmsr()?;
        a.out(0xf0, eax)?;
        a.db(&[0xea])?;
        a.dd(&[long as u32])?;
        a.dw(&[CODE64_SEL])
    });
    g.mem.write(prot as usize, &code);
    let code = assemble(64, long, |a| {
        a.mov(rax, 0x1234_5678_0000_0040u64)?;
        a.out(0xf0, eax)?;
        a.shr(rax, 32)?;
        a.out(0xf0, eax)?;
        a.mov(qword_ptr(desc), rax)?;
        a.hlt()
    });
    g.mem.write(long as usize, &code);
    eq!(g.values(), vec![16, 32, 0x500, 0x40, 0x1234_5678]);
    let s = g.cpu.sregs();
    eq!(
        (s.cs.l, s.efer & 0x500, s.cr0 >> 31, s.cr4 & 0x20),
        (1, 0x500, 1, 0x20)
    );
    eq!(g.mem.rd::<u64>(desc), 0x1234_5678);
}

/// Out of long mode again: compatibility mode, paging off, real mode.
fn long_to_protected() {
    let g = Guest::new(Mode::Long);
    let (compat, real) = (0x9000u64, 0xa000u64);
    g.load(|a| {
        a.push(u32::from(CODE_SEL) as i32)?;
        a.push(compat as i32)?;
        a.db(&[0x48, 0xcb])
    });
    let code = assemble(32, compat, |a| {
        a.mov(eax, 1)?;
        a.out(0xf0, eax)?;
        a.mov(eax, cr0)?;
        a.and(eax, 0x7fff_ffffu32)?;
        a.mov(cr0, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        // Paging off clears LMA and leaves LME.
        a.out(0xf0, eax)?;
        a.and(eax, !0x100)?;
        a.wrmsr()?;
        a.db(&[0xea])?;
        a.dd(&[real as u32])?;
        a.dw(&[CODE16_SEL])
    });
    g.mem.write(compat as usize, &code);
    let code = assemble(16, real, |a| {
        a.mov(ax, u32::from(DATA16_SEL))?;
        a.mov(ds, ax)?;
        a.mov(ss, ax)?;
        a.mov(eax, cr0)?;
        a.and(al, 0xfe)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea])?;
        a.dw(&[real as u16 + 0x40, 0])
    });
    g.mem.write(real as usize, &code);
    let code = assemble(16, real + 0x40, |a| {
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(eax, cr0)?;
        a.and(eax, 1)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    g.mem.write(real as usize + 0x40, &code);
    eq!(g.values(), vec![1, 0x100, 0]);
    let s = g.cpu.sregs();
    eq!((s.cr0 & 0x8000_0001, s.efer & 0x500), (0, 0));
}

fn gprs() {
    let g = Guest::new(Mode::Long);
    // Rotates every register by one place after each exit; the host sees all 16 and the flags.
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.out(0x10, al)?;
        a.xchg(rax, rbx)?;
        a.xchg(rbx, rcx)?;
        a.xchg(rcx, rdx)?;
        a.xchg(rdx, rsi)?;
        a.xchg(rsi, rdi)?;
        a.xchg(rdi, rbp)?;
        a.xchg(rbp, r8)?;
        a.xchg(r8, r9)?;
        a.xchg(r9, r10)?;
        a.xchg(r10, r11)?;
        a.xchg(r11, r12)?;
        a.xchg(r12, r13)?;
        a.xchg(r13, r14)?;
        a.xchg(r14, r15)?;
        a.jmp(top)
    });
    let all = |r: &kvm_regs| {
        [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12,
            r.r13, r.r14, r.r15,
        ]
    };
    let mut r = g.cpu.regs();
    let seed = |i: u64| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (r.rax, r.rbx, r.rcx, r.rdx, r.rsi) = (seed(0), seed(1), seed(2), seed(3), seed(4));
    (r.rdi, r.rbp, r.r8, r.r9, r.r10) = (seed(5), seed(6), seed(7), seed(8), seed(9));
    (r.r11, r.r12, r.r13, r.r14, r.r15) = (seed(10), seed(11), seed(12), seed(13), seed(14));
    g.cpu.set_regs(&r);
    let mut want = all(&r);
    for round in 0..20 {
        g.expect(&out(0x10, &[want[0] as u8]));
        eq!(all(&g.cpu.regs()), want, "round {round}");
        eq!(g.cpu.regs().rsp, STACK);
        want.rotate_left(1);
    }
}

fn segments() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rax, qword_ptr(0).fs())?;
        a.out(0x10, al)?;
        a.mov(rax, qword_ptr(0).gs())?;
        a.out(0x10, al)?;
        a.jmp(top)
    });
    g.mem.wr(0x2_1000usize, 0x11u64);
    g.mem.wr(0x2_2000usize, 0x22u64);
    let mut s = g.cpu.sregs();
    (s.fs.base, s.gs.base) = (0x2_1000, 0x2_2000);
    g.cpu.set_sregs(&s);
    let before = g.cpu.sregs();
    for _ in 0..4 {
        g.expect(&out(0x10, &[0x11]));
        g.expect(&out(0x10, &[0x22]));
    }
    let after = g.cpu.sregs();
    for (what, a, b) in [
        ("cs", before.cs, after.cs),
        ("ss", before.ss, after.ss),
        ("fs", before.fs, after.fs),
        ("gs", before.gs, after.gs),
        ("tr", before.tr, after.tr),
        ("ldt", before.ldt, after.ldt),
    ] {
        eq!(bytes_of(&a), bytes_of(&b), "{what}");
    }
    eq!(
        (before.gdt.base, before.idt.base),
        (after.gdt.base, after.idt.base)
    );
    // The host's own TLS base is used by every line of this test: it would not have got here.
}

fn segment_loads() {
    let g = Guest::new(Mode::Prot);
    // A data segment with a base, an expand-down limit and byte granularity.
    g.mem.wr(GDT as usize + 0x28, 0x0040_f202_1000_00ffu64);
    g.load(|a| {
        a.mov(ax, 0x2bu32)?;
        a.mov(fs, ax)?;
        a.mov(eax, dword_ptr(0x10).fs())?;
        a.out(0xf0, eax)?;
        a.xor(ax, ax)?;
        a.mov(gs, ax)?;
        a.str(ax)?;
        a.movzx(eax, ax)?;
        a.out(0xf0, eax)?;
        a.mov(eax, dword_ptr(0x1000).fs())?;
        a.hlt()
    });
    g.mem.wr(0x2_1010usize, 0xcafe_f00du32);
    let mut v = Vec::new();
    let e = g.run_values(&mut v);
    eq!(v, vec![0xcafe_f00d, u32::from(TSS_SEL)]);
    if !on_tcg() {
        check!(
            matches!(e, Exit::Io { port: 0xee, .. }),
            "beyond the limit: {e:x?}"
        );
        let t = g.trap();
        eq!((t.vector, t.error), (13, 0));
    }
    let s = g.cpu.sregs();
    eq!(
        (
            s.fs.base,
            s.fs.limit,
            s.fs.selector,
            s.fs.dpl,
            s.fs.g,
            s.fs.db
        ),
        (0x2_1000, 0xff, 0x2b, 3, 0, 1)
    );
    eq!(s.gs.unusable, 1, "a null selector");
}

fn real_segments() {
    let g = Guest::new(Mode::Real);
    g.load(|a| {
        a.mov(ax, 0x2000u32)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ax, word_ptr(0x10))?;
        a.out(0x10, ax)?;
        a.mov(ax, 0x3000u32)?;
        a.mov(fs, ax)?;
        a.mov(word_ptr(0x20).fs(), 0x7788u32)?;
        a.db(&[0xea])?;
        a.dw(&[0x0000, 0x0900])
    });
    g.mem.wr(0x2_0010usize, 0x5566u16);
    g.mem.write(0x9000, &[0xb0, 0x99, 0xe6, 0x10, 0xf4]);
    g.expect(&out(0x10, &[0x66, 0x55]));
    g.expect(&out(0x10, &[0x99]));
    eq!(g.mem.rd::<u16>(0x3_0020), 0x7788);
    let (r, s) = (g.cpu.regs(), g.cpu.sregs());
    eq!(
        (s.cs.base, s.cs.selector, s.ds.base, s.fs.base),
        (0x9000, 0x900, 0x2_0000, 0x3_0000)
    );
    check!(
        matches!(r.rip, 2 | 4),
        "at the OUT or behind it: {:x}",
        r.rip
    );
    eq!(g.cpu.run(), Exit::Hlt);
    eq!(g.cpu.regs().rip, 5);
}

fn flags() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.pushfq()?;
        a.pop(rax)?;
        a.out(0x10, eax)?;
        a.jmp(top)
    });
    for f in [0x2u64, 0x8d7, 0x202, 0x3202, 0x4_0002, 0x20_0002, 0xc02] {
        let mut r = g.cpu.regs();
        (r.rflags, r.rip) = (f, CODE);
        g.cpu.set_regs(&r);
        g.expect(&out(0x10, &(f as u32).to_le_bytes()));
        eq!(g.cpu.regs().rflags, f);
    }
}

fn triple_fault() {
    for mode in Mode::ALL {
        let g = Guest::new(mode);
        g.mem.write(CODE as usize, &[0x0f, 0x0b]);
        let mut s = g.cpu.sregs();
        s.idt.limit = 0;
        g.cpu.set_sregs(&s);
        eq!(g.cpu.run(), Exit::Shutdown, "{mode:?}");
    }
    // The vCPU can be set up anew afterwards.
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0x0f, 0x0b]);
    let s = g.cpu.sregs();
    g.cpu.set_sregs(&kvm_bindings::kvm_sregs {
        idt: Default::default(),
        ..s
    });
    eq!(g.cpu.run(), Exit::Shutdown);
    g.cpu.set_sregs(&s);
    g.mem.write(CODE as usize, &[0xf4, 0xf4]);
    let mut r = g.cpu.regs();
    (r.rip, r.rsp) = (CODE, STACK);
    g.cpu.set_regs(&r);
    eq!(g.cpu.run(), Exit::Hlt);
}

fn refused_to_run(e: &Exit) -> bool {
    matches!(
        e,
        Exit::FailEntry(_) | Exit::Internal(..) | Exit::Shutdown | Exit::Err(..)
    )
}

fn invalid_state() {
    // A code segment of both 64 and 32 bits: no CPU enters that, whatever the emulator makes of it.
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0xf4, 0xf4]);
    let mut s = g.cpu.sregs();
    let good = s;
    s.cs.db = 1;
    let r = g.cpu.fd.give(crate::kvm::SET_SREGS, &s);
    if r.is_ok() {
        let e = g.cpu.run();
        check!(refused_to_run(&e) || e == Exit::Hlt, "{e:x?}");
    }
    // What matters: the process lives, and the vCPU can be used again.
    g.cpu.set_sregs(&good);
    let r = kvm_regs {
        rip: CODE,
        rsp: STACK,
        rflags: 2,
        ..Default::default()
    };
    g.cpu.set_regs(&r);
    eq!(g.cpu.run(), Exit::Hlt);
    let g = Guest::new(Mode::Real);
    g.mem.write(CODE as usize, &[0xf4, 0xf4]);
    let mut s = g.cpu.sregs();
    let good = s;
    (s.tr.present, s.tr.unusable) = (0, 1);
    if g.cpu.fd.give(crate::kvm::SET_SREGS, &s).is_ok() {
        let e = g.cpu.run();
        check!(
            refused_to_run(&e) || e == Exit::Hlt,
            "without a TSS: {e:x?}"
        );
    }
    g.cpu.set_sregs(&good);
    g.cpu.set_regs(&kvm_regs {
        rip: CODE,
        rflags: 2,
        ..Default::default()
    });
    eq!(g.cpu.run(), Exit::Hlt);
}

fn reset_vector() {
    // A fresh vCPU with a ROM below 4 GiB, as every firmware starts.
    let k = crate::kvm::Kvm::open();
    let vm = k.vm();
    let rom = crate::sys::Map::anon(0x1_0000);
    let ram = crate::sys::Map::anon(0x1_0000);
    eq!(vm.region(0, 0, 0, 0x1_0000, ram.addr()), Ok(0));
    eq!(
        vm.region(
            1,
            kvm_bindings::KVM_MEM_READONLY,
            0xffff_0000,
            0x1_0000,
            rom.addr()
        ),
        Ok(0)
    );
    rom.write(0xfff0, &[0xe9, 0x0d, 0xf0]);
    let code = assemble(16, 0, |a| {
        a.mov(al, byte_ptr(0x100).cs())?;
        a.out(0x10, al)?;
        a.mov(byte_ptr(0x200), al)?;
        a.hlt()
    });
    rom.write(
        0xf000,
        &code.iter().copied().chain([0x90; 8]).collect::<Vec<_>>(),
    );
    rom.wr(0x100, 0x5cu8);
    let c = vm.vcpu(0);
    c.use_supported_cpuid(&k);
    eq!(c.run(), out(0x10, &[0x5c]));
    eq!(c.run(), Exit::Hlt);
    eq!(ram.rd::<u8>(0x200), 0x5c);
}
