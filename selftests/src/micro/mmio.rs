// SPDX-License-Identifier: GPL-2.0
//! Access to addresses without memory: sizes, instructions, read-only slots, page boundaries.

use crate::guest::*;
use crate::harness::Test;
use crate::kvm::Exit;
use crate::sys::Map;
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::KVM_MEM_READONLY;

pub const TESTS: &[Test] = &[
    Test::new("micro/mmio_write_sizes", write_sizes),
    Test::new("micro/mmio_read_sizes", read_sizes),
    Test::new("micro/mmio_extending_reads", extending),
    Test::new("micro/mmio_read_modify_write", rmw),
    Test::new("micro/mmio_string", string).no_ab(),
    Test::new("micro/mmio_sse", sse),
    Test::new("micro/mmio_modes", modes),
    Test::new("micro/mmio_readonly_slot", readonly_slot),
    Test::new("micro/mmio_page_crossing", page_crossing).no_ab(),
    Test::new("micro/mmio_behind_memory", behind_memory).no_ab(),
    Test::new("micro/mmio_addressing", addressing),
    Test::new("micro/mmio_then_modified_code", modified_code),
    Test::new("micro/mmio_stack", stack),
    Test::new("micro/mmio_fetch", fetch),
    Test::new("micro/mmio_flags_kept", flags_kept),
];

/// A write of `data` at MMIO + `off`.
pub(super) fn wr(off: u64, data: &[u8]) -> Exit {
    Exit::Mmio {
        addr: MMIO + off,
        len: data.len() as u32,
        write: true,
        data: data.to_vec(),
    }
}

/// A read of `len` bytes at MMIO + `off`.
pub(super) fn rd(off: u64, len: u32) -> Exit {
    Exit::Mmio {
        addr: MMIO + off,
        len,
        write: false,
        data: Vec::new(),
    }
}

pub(super) fn guest(f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(ebx, MMIO as u32)?;
        f(a)?;
        a.hlt()
    });
    g
}

fn write_sizes() {
    let g = guest(|a| {
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(byte_ptr(rbx + 1), ah)?;
        a.mov(word_ptr(rbx + 2), ax)?;
        a.mov(dword_ptr(rbx + 4), eax)?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.mov(byte_ptr(rbx + 0x10), 0x12)?;
        a.mov(word_ptr(rbx + 0x12), 0x1234)?;
        a.mov(dword_ptr(rbx + 0x14), 0x1234_5678)?;
        a.mov(qword_ptr(rbx + 0x18), -2)?;
        // Not aligned.
        a.mov(dword_ptr(rbx + 0x21), eax)?;
        a.mov(r9, 0x99u64)?;
        a.mov(byte_ptr(rbx + 0x30), r9b)?;
        a.mov(sil, 0x77)?;
        a.mov(byte_ptr(rbx + 0x31), sil)
    });
    let all = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88u8];
    g.expect(&wr(0, &all[..1]));
    g.expect(&wr(1, &all[1..2]));
    g.expect(&wr(2, &all[..2]));
    g.expect(&wr(4, &all[..4]));
    g.expect(&wr(8, &all));
    g.expect(&wr(0x10, &[0x12]));
    g.expect(&wr(0x12, &[0x34, 0x12]));
    g.expect(&wr(0x14, &[0x78, 0x56, 0x34, 0x12]));
    g.expect(&wr(0x18, &(-2i64).to_le_bytes()));
    g.expect(&wr(0x21, &all[..4]));
    g.expect(&wr(0x30, &[0x99]));
    g.expect(&wr(0x31, &[0x77]));
    g.expect(&Exit::Hlt);
}

fn read_sizes() {
    let g = guest(|a| {
        a.mov(al, byte_ptr(rbx))?;
        a.mov(cx, word_ptr(rbx + 2))?;
        a.mov(edx, dword_ptr(rbx + 4))?;
        a.mov(rsi, qword_ptr(rbx + 8))?;
        a.mov(r15, qword_ptr(rbx + 0x10))?;
        a.mov(dh, byte_ptr(rbx + 0x18))
    });
    let mut r = g.cpu.regs();
    (r.rax, r.rcx, r.rdx) = (u64::MAX, u64::MAX, u64::MAX);
    g.cpu.set_regs(&r);
    let data = [1, 2, 3, 4, 5, 6, 7, 8u8];
    for (off, len) in [(0, 1), (2, 2), (4, 4), (8, 8), (0x10, 8), (0x18, 1)] {
        g.expect(&rd(off, len));
        g.cpu.answer(&data[..len as usize]);
    }
    g.expect(&Exit::Hlt);
    let r = g.cpu.regs();
    eq!(
        (r.rax, r.rcx),
        (0xffff_ffff_ffff_ff01, 0xffff_ffff_ffff_0201)
    );
    eq!(
        (r.rdx, r.rsi, r.r15),
        (0x0403_0101, 0x0807_0605_0403_0201, 0x0807_0605_0403_0201)
    );
}

fn extending() {
    let g = guest(|a| {
        a.movzx(eax, byte_ptr(rbx))?;
        a.movsx(rcx, byte_ptr(rbx))?;
        a.movzx(edx, word_ptr(rbx))?;
        a.movsx(esi, word_ptr(rbx))?;
        a.movsxd(rdi, dword_ptr(rbx))
    });
    for len in [1, 1, 2, 2, 4] {
        g.expect(&rd(0, len));
        g.cpu.answer(&[0x81, 0x82, 0x83, 0x84][..len as usize]);
    }
    g.expect(&Exit::Hlt);
    let r = g.cpu.regs();
    eq!((r.rax, r.rcx, r.rdx), (0x81, 0xffff_ffff_ffff_ff81, 0x8281));
    eq!((r.rsi, r.rdi), (0xffff_8281, 0xffff_ffff_8483_8281));
}

fn rmw() {
    let g = guest(|a| {
        a.mov(eax, 0x0101_0101)?;
        a.add(dword_ptr(rbx), eax)?;
        a.or(byte_ptr(rbx), 0x80u32)?;
        a.and(word_ptr(rbx), 0x0fff)?;
        a.xor(qword_ptr(rbx), rax)?;
        a.inc(dword_ptr(rbx))?;
        a.neg(dword_ptr(rbx))?;
        a.not(byte_ptr(rbx))?;
        a.shl(dword_ptr(rbx), 4)?;
        a.bts(dword_ptr(rbx), 7)?;
        a.xchg(dword_ptr(rbx), eax)?;
        a.sub(eax, dword_ptr(rbx))?;
        a.hlt()
    });
    let steps: [(u32, u64, u64); 10] = [
        (4, 1, 0x0101_0102),
        (1, 1, 0x81),
        (2, 0xabcd, 0x0bcd),
        (8, 0xff, 0x0101_01fe),
        (4, 9, 10),
        (4, 1, 0xffff_ffff),
        (1, 0x0f, 0xf0),
        (4, 0x8000_0012, 0x120),
        (4, 1, 0x81),
        (4, 0x55, 0x0101_0101),
    ];
    for (i, (len, given, want)) in steps.iter().enumerate() {
        let n = *len as usize;
        g.expect(&rd(0, *len));
        g.cpu.answer(&given.to_le_bytes()[..n]);
        let e = g.cpu.run();
        eq!(
            e,
            wr(0, &want.to_le_bytes()[..n]),
            "step {i}{}",
            g.describe()
        );
    }
    g.expect(&rd(0, 4));
    g.cpu.answer(&[5, 0, 0, 0]);
    g.expect(&Exit::Hlt);
    eq!(g.cpu.regs().rax, 0x50);
}

fn string() {
    let g = guest(|a| {
        a.cld()?;
        a.mov(rsi, DATA)?;
        a.mov(rdi, rbx)?;
        a.mov(ecx, 3)?;
        a.rep().movsd()?;
        a.mov(rsi, rbx)?;
        a.mov(rdi, DATA + 0x100)?;
        a.mov(ecx, 3)?;
        a.rep().movsw()?;
        a.mov(al, 0x5a)?;
        a.mov(rdi, rbx)?;
        a.mov(ecx, 4)?;
        a.rep().stosb()?;
        a.mov(rsi, rbx)?;
        a.lodsd()
    });
    g.mem
        .write(DATA as usize, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    for i in 0..3u64 {
        g.expect(&wr(4 * i, &[i as u8 + 1, 0, 0, 0]));
    }
    for i in 0..3u64 {
        g.expect(&rd(2 * i, 2));
        g.cpu.answer(&[0x10 + i as u8, 0x20]);
    }
    for i in 0..4u64 {
        g.expect(&wr(i, &[0x5a]));
    }
    g.expect(&rd(0, 4));
    g.cpu.answer(&[9, 9, 9, 9]);
    g.expect(&Exit::Hlt);
    eq!(
        g.mem.read(DATA as usize + 0x100, 6),
        vec![0x10, 0x20, 0x11, 0x20, 0x12, 0x20]
    );
    eq!(g.cpu.regs().rax, 0x0909_0909);
}

fn sse() {
    let g = guest(|a| {
        a.mov(rax, cr4)?;
        a.or(rax, 0x600)?;
        a.mov(cr4, rax)?;
        a.movups(xmm1, xmmword_ptr(DATA))?;
        a.movaps(xmmword_ptr(rbx), xmm1)?;
        a.movups(xmm2, xmmword_ptr(rbx + 0x10))?;
        a.movups(xmmword_ptr(DATA + 0x10), xmm2)
    });
    let p: Vec<u8> = (1..=16).collect();
    g.mem.write(DATA as usize, &p);
    // Sixteen bytes come as two accesses of eight.
    g.expect(&wr(0, &p[..8]));
    g.expect(&wr(8, &p[8..]));
    g.expect(&rd(0x10, 8));
    g.cpu.answer(&p[8..]);
    g.expect(&rd(0x18, 8));
    g.cpu.answer(&p[..8]);
    g.expect(&Exit::Hlt);
    eq!(
        g.mem.read(DATA as usize + 0x10, 16),
        [&p[8..], &p[..8]].concat()
    );
}

fn modes() {
    for mode in [Mode::Prot, Mode::Paged, Mode::Pae, Mode::Long] {
        let g = Guest::new(mode);
        g.load(|a| {
            a.mov(ebx, MMIO as u32)?;
            a.mov(eax, dword_ptr(ebx))?;
            a.inc(eax)?;
            a.mov(dword_ptr(ebx + 8), eax)?;
            a.hlt()
        });
        g.expect(&rd(0, 4));
        g.cpu.answer(&[0x41, 0, 0, 0]);
        g.expect(&wr(8, &[0x42, 0, 0, 0]));
        g.expect(&Exit::Hlt);
    }
    // Real mode reaches as far as its memory does not.
    let k = crate::kvm::Kvm::open();
    let vm = k.vm();
    let mem = Map::anon(0xa_0000);
    eq!(vm.region(0, 0, 0, 0xa_0000, mem.addr()), Ok(0));
    let c = vm.vcpu(0);
    c.use_supported_cpuid(&k);
    let mut s = c.sregs();
    (s.cs.base, s.cs.selector, s.ds.base, s.ds.selector) = (0, 0, 0xa_0000, 0xa000);
    c.set_sregs(&s);
    c.set_regs(&kvm_bindings::kvm_regs {
        rip: CODE,
        rflags: 2,
        rax: 0x1234,
        ..Default::default()
    });
    let code = assemble(16, CODE, |a| {
        a.mov(word_ptr(0x10), ax)?;
        a.mov(cl, byte_ptr(0x11))?;
        a.hlt()
    });
    mem.write(CODE as usize, &code);
    eq!(
        c.run(),
        Exit::Mmio {
            addr: 0xa_0010,
            len: 2,
            write: true,
            data: vec![0x34, 0x12]
        }
    );
    eq!(
        c.run(),
        Exit::Mmio {
            addr: 0xa_0011,
            len: 1,
            write: false,
            data: vec![]
        }
    );
    c.answer(&[0x99]);
    eq!(c.run(), Exit::Hlt);
    eq!(c.regs().rcx, 0x99);
}

fn readonly_slot() {
    let g = guest(|a| {
        a.mov(eax, dword_ptr(rbx + 0x10))?;
        a.out(0xf0, eax)?;
        a.mov(dword_ptr(rbx + 0x10), 0x7777)?;
        a.mov(eax, dword_ptr(rbx + 0x10))?;
        a.out(0xf0, eax)?;
        a.inc(dword_ptr(rbx + 0x10))?;
        a.mov(eax, dword_ptr(rbx + 0x10))?;
        a.out(0xf0, eax)
    });
    let rom = Map::anon(0x2000);
    eq!(
        g.vm.region(1, KVM_MEM_READONLY, MMIO, 0x2000, rom.addr()),
        Ok(0)
    );
    rom.wr(0x10, 0x1111u32);
    let mut v = Vec::new();
    eq!(g.run_values(&mut v), wr(0x10, &[0x77, 0x77, 0, 0]));
    // The read of INC is from the memory, its write is an exit.
    eq!(g.run_values(&mut v), wr(0x10, &[0x12, 0x11, 0, 0]));
    eq!(g.run_values(&mut v), Exit::Hlt);
    eq!(v, vec![0x1111; 3]);
    eq!(rom.rd::<u32>(0x10), 0x1111);
}

fn page_crossing() {
    let g = guest(|a| {
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.mov(qword_ptr(rbx + 0xffd), rax)?;
        a.mov(rcx, qword_ptr(rbx + 0x1ffa))
    });
    let bytes = 0x8877_6655_4433_2211u64.to_le_bytes();
    let mut got = Vec::new();
    let mut next = MMIO + 0xffd;
    while got.len() < 8 {
        match g.cpu.run() {
            Exit::Mmio {
                addr,
                write: true,
                data,
                ..
            } if addr == next => {
                next += data.len() as u64;
                got.extend(data);
            }
            e => panic!("{e:x?}"),
        }
    }
    eq!(got, bytes);
    let mut next = MMIO + 0x1ffa;
    let mut done = 0;
    while done < 8 {
        match g.cpu.run() {
            Exit::Mmio {
                addr,
                write: false,
                len,
                ..
            } if addr == next => {
                g.cpu.answer(&bytes[done..done + len as usize]);
                (next, done) = (next + u64::from(len), done + len as usize);
            }
            e => panic!("{e:x?}"),
        }
    }
    g.expect(&Exit::Hlt);
    eq!(g.cpu.regs().rcx, 0x8877_6655_4433_2211);
}

fn behind_memory() {
    // Half of the access is memory, half is not.
    let g = guest(|a| {
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.mov(qword_ptr(MEM as u64 - 4), rax)?;
        a.mov(rcx, qword_ptr(MEM as u64 - 4))
    });
    let Exit::Mmio {
        addr,
        write: true,
        data,
        ..
    } = g.cpu.run()
    else {
        panic!("no write exit{}", g.describe())
    };
    eq!((addr, data), (MEM as u64, vec![0x55, 0x66, 0x77, 0x88]));
    let e = g.cpu.run();
    eq!(
        e,
        Exit::Mmio {
            addr: MEM as u64,
            len: 4,
            write: false,
            data: vec![]
        }
    );
    eq!(
        g.mem.rd::<u32>(MEM - 4),
        0x4433_2211,
        "the half that is memory"
    );
    g.cpu.answer(&[1, 2, 3, 4]);
    g.expect(&Exit::Hlt);
    eq!(g.cpu.regs().rcx, 0x0403_0201_4433_2211);
}

fn addressing() {
    let g = guest(|a| {
        a.mov(ecx, 0x10)?;
        a.mov(r12, rbx)?;
        a.mov(r13, rbx)?;
        a.mov(eax, 0x5a)?;
        a.mov(byte_ptr(rbx + rcx * 4 + 3), al)?;
        a.mov(byte_ptr(r12 + rcx), al)?;
        a.mov(byte_ptr(r13 + 0x1000), al)?;
        a.mov(byte_ptr(rbx - 0x10), al)?;
        a.mov(byte_ptr(ebx + ecx), al)?;
        a.mov(byte_ptr(rcx * 2 + (MMIO as i64 - (1i64 << 32)) as i32), al)?;
        a.hlt()
    });
    for off in [0x43, 0x10, 0x1000, 0u64.wrapping_sub(0x10), 0x10] {
        g.expect(&Exit::Mmio {
            addr: MMIO.wrapping_add(off),
            len: 1,
            write: true,
            data: vec![0x5a],
        });
    }
    // A sign-extended displacement lands where the guest's tables have nothing.
    let t = g.run_to_trap();
    check!(t.vector == 14, "{t:x?}");
    eq!(g.cpu.sregs().cr2, 0xffff_ffff_d000_0020);
}

fn modified_code() {
    // After an exit the guest, then user space, changes the code that follows: no old bytes may be run.
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        let mut patch = a.create_label();
        a.mov(ebx, MMIO as u32)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut top)?;
        a.inc(ecx)?;
        a.lea(rdi, qword_ptr(patch))?;
        a.mov(byte_ptr(rdi + 1), cl)?;
        a.mov(byte_ptr(rbx + 1), cl)?;
        a.set_label(&mut patch)?;
        a.mov(al, 0)?;
        a.mov(byte_ptr(rbx), al)?;
        a.jmp(top)
    });
    for i in 1..20u8 {
        g.expect(&wr(1, &[i]));
        g.expect(&wr(0, &[i]));
    }
    g.expect(&wr(1, &[20]));
    let at = (0..64)
        .find(|i| g.mem.read(CODE as usize + i, 2) == [0x88, 0x03])
        .unwrap_or(0)
        + CODE as usize;
    check!(at > CODE as usize, "the store was found");
    // The store becomes one of AH.
    let mut r = g.cpu.regs();
    r.rax = 0xaa00;
    g.cpu.set_regs(&r);
    g.mem.write(at, &[0x88, 0x23]);
    g.expect(&wr(0, &[0xaa]));
}

fn stack() {
    let g = guest(|a| {
        a.mov(rsp, rbx)?;
        a.add(rsp, 0x100)?;
        a.mov(eax, 0x1234_5678)?;
        a.push(rax)?;
        a.pop(rcx)
    });
    g.expect(&wr(0xf8, &0x1234_5678u64.to_le_bytes()));
    g.expect(&rd(0xf8, 8));
    g.cpu.answer(&0xabcdu64.to_le_bytes());
    g.expect(&Exit::Hlt);
    eq!((g.cpu.regs().rcx, g.cpu.regs().rsp), (0xabcd, MMIO + 0x100));
}

fn fetch() {
    // Code cannot be fetched from where there is no memory.
    let g = guest(|a| a.jmp(rbx));
    match g.cpu.run() {
        Exit::Internal(sub, _) => eq!(sub, kvm_bindings::KVM_INTERNAL_ERROR_EMULATION),
        e => check!(false, "{e:x?}"),
    }
    eq!(g.cpu.regs().rip, MMIO);
}

fn flags_kept() {
    let g = guest(|a| {
        a.stc()?;
        a.std()?;
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(dword_ptr(rbx), eax)?;
        a.pushfq()?;
        a.pop(rdx)?;
        a.add(eax, dword_ptr(rbx))?;
        a.pushfq()?;
        a.pop(rcx)
    });
    g.expect(&rd(0, 4));
    g.cpu.answer(&[0xff; 4]);
    g.expect(&wr(0, &[0xff; 4]));
    g.expect(&rd(0, 4));
    g.cpu.answer(&[1, 0, 0, 0]);
    g.expect(&Exit::Hlt);
    let r = g.cpu.regs();
    eq!(
        (r.rdx & 0xcd5, r.rcx & 0xcd5),
        (0x401, 0x455),
        "CF and DF; CF, PF, AF, ZF and DF"
    );
}
