// SPDX-License-Identifier: GPL-2.0
//! Guest memory that changes under a guest: slots come, go and move; user space unmaps, protects, moves its pages.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::{Exit, SET_SIGNAL_MASK};
use crate::sys::{self, Map};
use crate::{check, eq};
use iced_x86::code_asm::*;
use libc::{EFAULT, MADV_DONTNEED, MADV_HUGEPAGE, PROT_NONE, PROT_READ, PROT_WRITE};

pub const TESTS: &[Test] = &[
    Test::new("micro/slot_delete", slot_delete),
    Test::new("micro/slot_move", slot_move),
    Test::new("micro/slot_replace", slot_replace),
    Test::new("micro/slot_two_views", two_views),
    Test::new("micro/slot_many_pages", many_pages)
        .secs(60)
        .no_ab(),
    Test::new("micro/mem_dontneed", dontneed),
    Test::new("micro/mem_mprotect", mprotect),
    Test::new("micro/mem_unmapped", unmapped),
    Test::new("micro/mem_mremap", mremap),
    Test::new("micro/mem_written_by_host", host_writes),
    Test::new("micro/mem_private_copy", private_copy),
    Test::new("micro/mem_file_readonly", file_readonly),
    Test::new("micro/mem_large_pages", large_pages)
        .secs(60)
        .no_ab(),
    Test::new("micro/mem_large_pages_split", large_split)
        .secs(60)
        .no_ab(),
    Test::new("micro/mem_large_pages_executed", large_executed).no_ab(),
    Test::new("micro/mem_zero_page", zero_page),
    Test::new("micro/mem_code_page_replaced", code_replaced),
    Test::new("micro/mem_poisoned", poisoned),
    Test::new("micro/mem_rom_of_device", rom_of_device).no_ab(),
];

/// Where the tests put their slot 1.
const SLOT: u64 = 0x1000_0000;

/// A guest that for ever reads, or writes, what RBX points at, and reports.
fn poker(write: bool) -> Guest {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        if write {
            a.inc(ecx)?;
            a.mov(dword_ptr(rbx), ecx)?;
        }
        a.mov(eax, dword_ptr(rbx))?;
        a.out(0x10, eax)?;
        a.jmp(top)
    });
    let mut r = g.cpu.regs();
    r.rbx = SLOT;
    g.cpu.set_regs(&r);
    g
}

fn sees(v: u32) -> Exit {
    out(0x10, &v.to_le_bytes())
}

fn read_at(addr: u64) -> Exit {
    Exit::Mmio {
        addr,
        len: 4,
        write: false,
        data: vec![],
    }
}

fn slot_delete() {
    let g = poker(false);
    let m = Map::anon(0x4000);
    m.wr(0, 0x11u32);
    for round in 0..10 {
        eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
        g.expect(&sees(0x11));
        eq!(g.vm.region(1, 0, 0, 0, 0), Ok(0));
        g.expect(&read_at(SLOT));
        g.cpu.answer(&[round, 0, 0, 0]);
        g.expect(&sees(round.into()));
    }
}

fn slot_move() {
    let g = poker(false);
    let m = Map::anon(0x4000);
    m.wr(0, 0x22u32);
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    g.expect(&sees(0x22));
    eq!(g.vm.region(1, 0, SLOT + 0x10_0000, 0x4000, m.addr()), Ok(0));
    g.expect(&read_at(SLOT));
    g.cpu.answer(&[0; 4]);
    g.expect(&sees(0));
    let mut r = g.cpu.regs();
    r.rbx = SLOT + 0x10_0000;
    g.cpu.set_regs(&r);
    g.expect(&sees(0x22));
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    g.expect(&read_at(SLOT + 0x10_0000));
}

fn slot_replace() {
    let g = poker(false);
    let (a, b) = (Map::anon(0x4000), Map::anon(0x4000));
    a.wr(0, 0xaau32);
    b.wr(0, 0xbbu32);
    for _ in 0..5 {
        for (m, v) in [(&a, 0xaa), (&b, 0xbb)] {
            eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
            g.expect(&sees(v));
            eq!(g.vm.region(1, 0, SLOT, 0, m.addr()), Ok(0));
        }
    }
}

fn two_views() {
    // The same user memory at two guest addresses.
    let g = poker(true);
    let m = Map::anon(0x4000);
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    eq!(g.vm.region(2, 0, SLOT + 0x4000, 0x4000, m.addr()), Ok(0));
    g.expect(&sees(1));
    let mut r = g.cpu.regs();
    r.rbx = SLOT + 0x4000;
    g.cpu.set_regs(&r);
    g.expect(&sees(2));
    eq!(m.rd::<u32>(0), 2);
    eq!(g.vm.region(1, 0, 0, 0, 0), Ok(0));
    g.expect(&sees(3));
    eq!(m.rd::<u32>(0), 3);
}

fn many_pages() {
    let g = Guest::new(Mode::Long);
    let pages = 2048u64;
    let m = Map::anon((pages * 4096) as usize);
    eq!(g.vm.region(1, 0, SLOT, pages * 4096, m.addr()), Ok(0));
    for i in 0..pages {
        m.wr((i * 4096) as usize, i as u32);
    }
    g.load(|a| {
        let mut top = a.create_label();
        a.mov(ebx, SLOT as u32)?;
        a.mov(ecx, pages as u32)?;
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.add(eax, dword_ptr(rbx))?;
        a.mov(dword_ptr(rbx + 8), eax)?;
        a.add(rbx, 4096)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.out(0xf0, eax)?;
        a.hlt()
    });
    let sum: u64 = (0..pages).sum();
    eq!(g.values(), vec![sum as u32]);
    for i in 0..pages {
        let want = i * (i + 1) / 2;
        check!(
            m.rd::<u32>((i * 4096 + 8) as usize) == want as u32,
            "page {i}"
        );
    }
}

fn dontneed() {
    let g = poker(true);
    let m = Map::anon(0x4000);
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    g.expect(&sees(1));
    g.expect(&sees(2));
    for _ in 0..10 {
        eq!(m.advise(0, 0x4000, MADV_DONTNEED), Ok(0));
        let mut r = g.cpu.regs();
        // Straight to the read.
        r.rip = CODE + 4;
        g.cpu.set_regs(&r);
        g.expect(&sees(0));
        let v = r.rcx as u32 + 1;
        g.expect(&sees(v));
        eq!(m.rd::<u32>(0), v, "user space sees the guest's write");
    }
}

fn mprotect() {
    let g = poker(true);
    let m = Map::anon(0x4000);
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    g.expect(&sees(1));
    eq!(m.protect(0, 0x4000, PROT_READ), Ok(0));
    let e = g.cpu.run();
    check!(
        matches!(e, Exit::Err(EFAULT, _)),
        "write to what user space cannot write: {e:x?}"
    );
    eq!(m.protect(0, 0x4000, PROT_READ | PROT_WRITE), Ok(0));
    g.expect(&sees(2));
    eq!(m.protect(0, 0x4000, PROT_NONE), Ok(0));
    let e = g.cpu.run();
    check!(
        matches!(e, Exit::Err(EFAULT, _)),
        "access to what user space cannot read: {e:x?}"
    );
    eq!(m.protect(0, 0x4000, PROT_READ | PROT_WRITE), Ok(0));
    g.expect(&sees(3));
}

fn unmapped() {
    // A slot over user memory that is not there, or not any more.
    let g = poker(false);
    eq!(
        g.vm.region(1, 0, SLOT, 0x1000, crate::sys::bad_addr()),
        Ok(0)
    );
    let e = g.cpu.run();
    check!(matches!(e, Exit::Err(EFAULT, _)), "{e:x?}");
    eq!(g.vm.region(1, 0, SLOT, 0, 0), Ok(0));
    let m = Map::anon(0x4000);
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    g.expect(&sees(0));
    drop(m);
    let e = g.cpu.run();
    check!(matches!(e, Exit::Err(EFAULT, _)), "{e:x?}");
}

fn mremap() {
    let g = poker(false);
    let m = Map::anon(0x8000);
    m.wr(0, 0x11u32);
    m.wr(0x4000, 0x44u32);
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    g.expect(&sees(0x11));
    // Other pages come to lie where the slot's memory is.
    eq!(m.remap(0x4000, 0, 0x1000), Ok(0));
    g.expect(&sees(0x44));
    m.wr(0, 0x45u32);
    g.expect(&sees(0x45));
}

fn host_writes() {
    let g = poker(false);
    let m = Map::anon(0x4000);
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    for i in 0..20u32 {
        m.wr(0, i * 7);
        g.expect(&sees(i * 7));
    }
}

fn private_copy() {
    // fork() makes the pages copy-on-write: a guest's write after it must not reach the child's view.
    let g = poker(true);
    let m = Map::anon(0x4000);
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    g.expect(&sees(1));
    let (rd, wr) = crate::sys::pipe();
    let pid = crate::sys::fork(|| {
        // Ends when the parent closes its end of the pipe.
        let _ = wr.close();
        let _ = crate::sys::read(rd.raw(), &mut [0u8; 1]);
        m.rd::<u32>(0) as i32
    });
    g.expect(&sees(2));
    g.expect(&sees(3));
    eq!(m.rd::<u32>(0), 3);
    let _ = wr.close();
    let ended = crate::sys::wait(pid, true);
    eq!(
        ended,
        crate::sys::Ended::Exit(1),
        "the child's page is as it was at the fork"
    );
}

fn file_readonly() {
    // A read-only shared mapping of a file serves a read-only slot, and a writable one until the first write.
    let path = "/tmp/selftests-page";
    let _ = std::fs::write(path, [0x5a; 8192]);
    let f = crate::must!(crate::sys::OwnedFd::open(path, libc::O_RDONLY));
    let m = crate::must!(Map::new(8192, PROT_READ, libc::MAP_SHARED, f.raw(), 0));
    let g = poker(false);
    eq!(
        g.vm.region(1, kvm_bindings::KVM_MEM_READONLY, SLOT, 0x2000, m.addr()),
        Ok(0)
    );
    g.expect(&sees(0x5a5a_5a5a));
    eq!(g.vm.region(1, 0, SLOT, 0, 0), Ok(0));
    let g = poker(true);
    eq!(g.vm.region(1, 0, SLOT, 0x2000, m.addr()), Ok(0));
    let e = g.cpu.run();
    check!(matches!(e, Exit::Err(EFAULT, _)), "{e:x?}");
    let _ = std::fs::remove_file(path);
}

const BIG: u64 = 32 << 20;

/// A guest that adds up one word of each page of slot 1, again and again.
fn summer() -> Guest {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut again = a.create_label();
        let mut top = a.create_label();
        a.set_label(&mut again)?;
        a.mov(ebx, SLOT as u32)?;
        a.mov(ecx, (BIG / 4096) as u32)?;
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.add(eax, dword_ptr(rbx))?;
        a.add(rbx, 4096)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.out(0x10, eax)?;
        a.jmp(again)
    });
    g
}

fn big_memory() -> (Guest, Map) {
    let g = summer();
    let m = Map::anon(BIG as usize);
    let _ = m.advise(0, BIG as usize, MADV_HUGEPAGE);
    eq!(g.vm.region(1, 0, SLOT, BIG, m.addr()), Ok(0));
    for i in 0..BIG / 4096 {
        m.wr((i * 4096) as usize, 1u32);
    }
    (g, m)
}

fn large_pages() {
    let (g, m) = big_memory();
    let pages = (BIG / 4096) as u32;
    g.expect(&sees(pages));
    // A page in the middle of what may be one large page.
    m.wr(0x20_3000, 100u32);
    g.expect(&sees(pages + 99));
    eq!(m.advise(0x20_3000, 4096, MADV_DONTNEED), Ok(0));
    g.expect(&sees(pages - 1));
    eq!(m.advise(0, 0x20_0000, MADV_DONTNEED), Ok(0));
    g.expect(&sees(pages - 1 - 512));
    m.wr(0, 5u32);
    g.expect(&sees(pages - 1 - 512 + 5));
    // A slot whose guest address and user address do not fit each other for large pages.
    eq!(g.vm.region(1, 0, 0, 0, 0), Ok(0));
    eq!(
        g.vm.region(1, 0, SLOT, BIG - 0x1000, m.addr() + 0x1000),
        Ok(0)
    );
    eq!(
        g.vm.region(2, 0, SLOT + BIG - 0x1000, 0x1000, m.addr()),
        Ok(0)
    );
    g.expect(&sees(pages - 1 - 512 + 5));
}

fn large_split() {
    let (g, m) = big_memory();
    let pages = (BIG / 4096) as u32;
    g.expect(&sees(pages));
    // Every 64th page goes; the others must stay as they are.
    let mut gone = 0;
    for i in (0..BIG).step_by(64 * 4096) {
        eq!(m.advise(i as usize, 4096, MADV_DONTNEED), Ok(0));
        gone += 1;
    }
    g.expect(&sees(pages - gone));
    eq!(m.advise(0, BIG as usize, libc::MADV_NOHUGEPAGE), Ok(0));
    eq!(m.protect(0x40_0000, 0x20_0000, PROT_READ), Ok(0));
    g.expect(&sees(pages - gone));
    eq!(
        m.protect(0x40_0000, 0x20_0000, PROT_READ | PROT_WRITE),
        Ok(0)
    );
    eq!(m.remap(0x80_0000, 0xa0_0000, 0x20_0000), Ok(0));
    let e = g.cpu.run();
    check!(matches!(e, Exit::Err(EFAULT, _)), "a hole: {e:x?}");
}

fn zero_page() {
    // Reading fresh memory maps the shared page of zeroes; the first write must get a page of its own.
    let g = poker(false);
    let m = Map::anon(0x4000);
    eq!(g.vm.region(1, 0, SLOT, 0x4000, m.addr()), Ok(0));
    g.expect(&sees(0));
    g.load(|a| {
        a.mov(dword_ptr(rbx), 0x77)?;
        a.mov(eax, dword_ptr(rbx + 0x1000))?;
        a.out(0x10, eax)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.out(0x10, eax)?;
        a.hlt()
    });
    let mut r = g.cpu.regs();
    r.rip = CODE;
    g.cpu.set_regs(&r);
    g.expect(&sees(0));
    g.expect(&sees(0x77));
    eq!((m.rd::<u32>(0), m.rd::<u32>(0x1000)), (0x77, 0));
}

fn code_replaced() {
    // The page that the guest executes is exchanged for another.
    let g = Guest::new(Mode::Long);
    let m = Map::anon(0x2000);
    m.write(0, &[0xb0, 0x11, 0xe6, 0x10, 0xeb, 0xfa]);
    m.write(0x1000, &[0xb0, 0x22, 0xe6, 0x10, 0xeb, 0xfa]);
    eq!(g.vm.region(1, 0, SLOT, 0x1000, m.addr()), Ok(0));
    let mut r = g.cpu.regs();
    r.rip = SLOT;
    g.cpu.set_regs(&r);
    g.expect(&out(0x10, &[0x11]));
    g.expect(&out(0x10, &[0x11]));
    eq!(m.remap(0x1000, 0, 0x1000), Ok(0));
    g.expect(&out(0x10, &[0x22]));
    g.expect(&out(0x10, &[0x22]));
    m.wr(1, 0x33u8);
    g.expect(&out(0x10, &[0x33]));
}

/// The page at `page` is lost to an uncorrectable error, and the guest runs into it: the vCPU's thread gets the signal of an access of its own. Then
/// there is a new page in its place.
pub(super) fn run_into_poison(g: &Guest, page: u64) {
    g.mem.wr(page as usize, 1u8);
    if let Err(e) = g.mem.advise(page as usize, 4096, libc::MADV_HWPOISON) {
        harness::skip(&format!("the kernel poisons no pages: errno {e}"));
    }
    // Blocked but for the time of the run, so that it can be looked at.
    sys::block(libc::SIGBUS, true);
    let mut mask = [0u8; 12];
    mask[0] = 8;
    crate::must!(sys::ioctl(
        g.cpu.fd.0.raw(),
        SET_SIGNAL_MASK,
        sys::Arg::Buf(&mut mask)
    ));
    let e = g.cpu.run();
    eq!(e, Exit::Err(libc::EINTR, kvm_bindings::KVM_EXIT_INTR));
    // The address is that of the page.
    const BUS_MCEERR_AR: i32 = 4;
    let hva = g.mem.addr() + page;
    eq!(sys::take_signal(libc::SIGBUS), Some((BUS_MCEERR_AR, hva)));
    eq!(
        g.mem.advise(page as usize, 4096, libc::MADV_DONTNEED),
        Ok(0)
    );
}

/// A page with an uncorrectable error: other pages go on working.
fn poisoned() {
    const PAGE: u64 = 3 << 20;
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(rax, qword_ptr(PAGE + 0x128))?;
        a.hlt()
    });
    run_into_poison(&g, PAGE);
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    eq!(g.cpu.regs().rax, 0);
}

/// What a driver maps without pages of memory, and for reading only: a guest's writes to it are for user space.
fn rom_of_device() {
    // The machine's firmware, which the kernel lets root map.
    const ROM: i64 = 0xf_0000;
    let Ok(dev) = sys::OwnedFd::open("/dev/mem", libc::O_RDONLY) else {
        harness::skip("no /dev/mem");
    };
    let Ok(m) = Map::new(0x1000, PROT_READ, libc::MAP_SHARED, dev.raw(), ROM) else {
        harness::skip("the firmware cannot be mapped");
    };
    let first: u32 = m.rd(0);
    let g = poker(false);
    eq!(g.vm.region(1, 0, SLOT, 0x1000, m.addr()), Ok(0));
    g.expect(&sees(first));
    let g = poker(true);
    eq!(g.vm.region(1, 0, SLOT, 0x1000, m.addr()), Ok(0));
    for n in 1..3u32 {
        g.expect(&Exit::Mmio {
            addr: SLOT,
            len: 4,
            write: true,
            data: n.to_le_bytes().to_vec(),
        });
        // It reads what is there.
        g.expect(&sees(first));
    }
}

/// Code and data in one large page, touched in turns: where a CPU may execute from small pages only (iTLB multihit, or
/// nx_huge_pages=force), the large one gives way at the first fetch.
fn large_executed() {
    const LARGE: u64 = 2 << 20;
    let g = Guest::new(Mode::Long);
    eq!(
        g.mem.advise(LARGE as usize, LARGE as usize, MADV_HUGEPAGE),
        Ok(0)
    );
    g.load(|a| {
        let mut again = a.create_label();
        a.mov(rdi, LARGE)?;
        a.mov(ecx, 50)?;
        a.set_label(&mut again)?;
        // INC EAX; RET, written as data first, then executed, each time in another page.
        a.mov(dword_ptr(rdi + 0x10), 0x00c3_c0ffu32 as i32)?;
        a.inc(dword_ptr(rdi + 0x800))?;
        a.lea(rdx, qword_ptr(rdi + 0x10))?;
        a.call(rdx)?;
        a.add(rdi, 0x3000)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.mov(edx, dword_ptr(LARGE + 0x800))?;
        a.hlt()
    });
    let mut r = g.cpu.regs();
    r.rax = 0;
    g.cpu.set_regs(&r);
    eq!(g.cpu.run(), Exit::Hlt, "{}", g.describe());
    let r = g.cpu.regs();
    eq!((r.rax as u32, r.rdx as u32), (50, 1));
    for page in 0..50 {
        eq!(
            g.mem.rd::<u32>((LARGE + page * 0x3000 + 0x800) as usize),
            1,
            "page {page}"
        );
    }
}
