// SPDX-License-Identifier: GPL-2.0
//! Guests whose writes are logged: no page that was written is missing, and none is told that was not.

use crate::guest::*;
use crate::harness::Test;
use crate::kvm::Exit;
use crate::sys::Map;
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use libc::{EFAULT, MADV_DONTNEED, MADV_HUGEPAGE};
use std::sync::atomic::{AtomicBool, Ordering};

pub const TESTS: &[Test] = &[
    Test::new("micro/dirty_log", basic),
    Test::new("micro/dirty_log_again", again),
    Test::new("micro/dirty_log_live_slot", live_slot),
    Test::new("micro/dirty_log_large_pages", large_pages),
    Test::new("micro/dirty_log_moved", moved),
    Test::new("micro/dirty_log_readonly", readonly),
    Test::new("micro/dirty_log_reads", reads).no_ab(),
    Test::new("micro/dirty_log_host_writes", host_writes).no_ab(),
    Test::new("micro/dirty_log_bad_buffer", bad_buffer).no_ab(),
    Test::new("micro/dirty_log_harvest", harvest)
        .cpus(2)
        .secs(60)
        .no_ab(),
];

const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
const PAGE: u64 = 4096;
/// Where the logged slot is.
const SLOT: u64 = 0x1000_0000;

/// A guest that writes EAX to what RBX points at, reports and begins anew.
fn writer() -> Guest {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.out(0x10, al)?;
        a.jmp(top)
    });
    g
}

/// Has the guest write to these pages.
fn write(g: &Guest, pages: &[u64]) {
    for page in pages {
        let mut r = g.cpu.regs();
        (r.rbx, r.rax) = (SLOT + page * PAGE, *page + 1);
        (r.rip, r.rflags) = (CODE, 2);
        g.cpu.set_regs(&r);
        g.expect(&out(0x10, &[(*page + 1) as u8]));
    }
}

fn basic() {
    let g = writer();
    let m = Map::anon(64 << 12);
    eq!(g.vm.region(1, LOG, SLOT, 64 * PAGE, m.addr()), Ok(0));
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![]));
    write(&g, &[3, 5, 63, 5]);
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![3, 5, 63]));
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![]), "told once");
    write(&g, &[5]);
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![5]), "written again");
    eq!(m.rd::<u32>(5 << 12), 6);
}

fn again() {
    // Over a word's border, several times, in another order each time.
    let g = writer();
    let m = Map::anon(200 << 12);
    eq!(g.vm.region(1, LOG, SLOT, 200 * PAGE, m.addr()), Ok(0));
    for round in 1..8u64 {
        let mut pages: Vec<u64> = (0..20).map(|i| (i * 37 * round) % 200).collect();
        write(&g, &pages);
        pages.sort_unstable();
        pages.dedup();
        let want = pages.iter().map(|p| *p as usize).collect();
        eq!(g.vm.dirty_pages(1, 200), Ok(want), "round {round}");
    }
}

fn live_slot() {
    // Logging begins and ends while pages are mapped.
    let g = writer();
    let m = Map::anon(64 << 12);
    let flags = |f: u32| g.vm.region(1, f, SLOT, 64 * PAGE, m.addr());
    eq!(flags(0), Ok(0));
    write(&g, &[1, 2, 3]);
    eq!(flags(LOG), Ok(0));
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![]), "before it began");
    write(&g, &[2, 4]);
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![2, 4]));
    write(&g, &[7]);
    eq!(flags(0), Ok(0));
    eq!(g.vm.dirty_pages(1, 64), Err(libc::ENOENT));
    write(&g, &[2, 8]);
    eq!(flags(LOG), Ok(0));
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![]), "a new log");
    write(&g, &[2]);
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![2]));
    // The host takes the memory away, and the mark stays.
    write(&g, &[9]);
    eq!(m.advise(9 << 12, 1 << 12, MADV_DONTNEED), Ok(0));
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![9]));
}

fn large_pages() {
    // Large pages that were mapped before are logged page by page.
    let g = writer();
    let size = 8u64 << 20;
    let m = Map::anon(size as usize);
    let _ = m.advise(0, size as usize, MADV_HUGEPAGE);
    m.fill(0, size as usize, 0);
    let pages = (size / PAGE) as usize;
    let flags = |f: u32| g.vm.region(1, f, SLOT, size, m.addr());
    eq!(flags(0), Ok(0));
    write(&g, &[0, 600, 1200]);
    eq!(flags(LOG), Ok(0));
    eq!(g.vm.dirty_pages(1, pages), Ok(vec![]));
    write(&g, &[0, 1, 511, 512, 2047]);
    eq!(g.vm.dirty_pages(1, pages), Ok(vec![0, 1, 511, 512, 2047]));
    write(&g, &[1, 513]);
    eq!(g.vm.dirty_pages(1, pages), Ok(vec![1, 513]));
    eq!(flags(0), Ok(0));
    write(&g, &[0, 1, 1300]);
    eq!(m.rd::<u32>(1300 << 12), 1301);
}

fn moved() {
    // A slot that moves keeps its log.
    let g = writer();
    let m = Map::anon(64 << 12);
    eq!(g.vm.region(1, LOG, SLOT, 64 * PAGE, m.addr()), Ok(0));
    write(&g, &[3]);
    eq!(
        g.vm.region(1, LOG, SLOT + 8 * PAGE, 64 * PAGE, m.addr()),
        Ok(0)
    );
    write(&g, &[12]);
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![3, 4]));
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![]));
}

fn readonly() {
    let g = writer();
    let m = Map::anon(16 << 12);
    eq!(
        g.vm.region(1, LOG | KVM_MEM_READONLY, SLOT, 16 * PAGE, m.addr()),
        Ok(0)
    );
    let mut r = g.cpu.regs();
    (r.rbx, r.rax) = (SLOT, 7);
    g.cpu.set_regs(&r);
    let e = g.cpu.run();
    check!(
        matches!(
            e,
            Exit::Mmio {
                addr: SLOT,
                write: true,
                ..
            }
        ),
        "{e:x?}"
    );
    eq!(g.vm.dirty_pages(1, 16), Ok(vec![]));
}

fn reads() {
    // Reading marks nothing here; the in-tree KVM may map a page that is read for writing, and marks it then.
    let g = Guest::new(Mode::Long);
    let m = Map::anon(16 << 12);
    eq!(g.vm.region(1, LOG, SLOT, 16 * PAGE, m.addr()), Ok(0));
    g.load(|a| {
        a.mov(ebx, SLOT as u32)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.add(eax, dword_ptr(rbx + 0x1000))?;
        a.out(0x10, al)?;
        a.mov(dword_ptr(rbx + 0x1000), eax)?;
        a.out(0x10, al)?;
        a.hlt()
    });
    g.expect(&out(0x10, &[0]));
    eq!(g.vm.dirty_pages(1, 16), Ok(vec![]));
    g.expect(&out(0x10, &[0]));
    eq!(g.vm.dirty_pages(1, 16), Ok(vec![1]));
    g.expect(&Exit::Hlt);
}

fn host_writes() {
    // What the kernel writes on the guest's behalf: here what string input stores.
    let g = Guest::new(Mode::Long);
    let m = Map::anon(16 << 12);
    eq!(g.vm.region(1, LOG, SLOT, 16 * PAGE, m.addr()), Ok(0));
    g.load(|a| {
        a.cld()?;
        a.mov(edi, (SLOT + 2 * PAGE) as u32)?;
        a.mov(ecx, 4)?;
        a.mov(dx, 0x20)?;
        a.rep().insb()?;
        a.hlt()
    });
    loop {
        match g.cpu.run() {
            Exit::Io {
                out: false, count, ..
            } => g.cpu.answer(&vec![7; count as usize]),
            Exit::Hlt => break,
            e => panic!("{e:x?}"),
        }
    }
    eq!(m.read(2 << 12, 5), vec![7, 7, 7, 7, 0]);
    eq!(g.vm.dirty_pages(1, 16), Ok(vec![2]));
    // User space's own writes are its own business.
    m.wr(3 << 12, 1u32);
    eq!(g.vm.dirty_pages(1, 16), Ok(vec![]));
}

fn bad_buffer() {
    // Marks that could not be handed out are not lost.
    let g = writer();
    let m = Map::anon(64 << 12);
    eq!(g.vm.region(1, LOG, SLOT, 64 * PAGE, m.addr()), Ok(0));
    write(&g, &[3, 40]);
    let arg = [1u64, crate::sys::bad_addr()];
    eq!(g.vm.fd.give(crate::kvm::GET_DIRTY_LOG, &arg), Err(EFAULT));
    write(&g, &[5]);
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![3, 5, 40]));
    eq!(g.vm.dirty_pages(1, 64), Ok(vec![]));
}

fn harvest() {
    // The guest writes a growing number to one page after the other, while another thread takes the log and copies what is told: in the end the
    // copy must be the same as the memory.
    let g = Guest::new(Mode::Long);
    let pages = 96u64;
    let rounds = 4000u32;
    let m = Map::anon((pages << 12) as usize);
    eq!(g.vm.region(1, LOG, SLOT, pages * PAGE, m.addr()), Ok(0));
    g.load(|a| {
        let mut again = a.create_label();
        let mut top = a.create_label();
        a.mov(esi, rounds)?;
        a.set_label(&mut again)?;
        a.mov(ebx, SLOT as u32)?;
        a.mov(ecx, pages as u32)?;
        a.set_label(&mut top)?;
        a.inc(eax)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.add(rbx, 4096)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.dec(esi)?;
        a.jne(again)?;
        a.hlt()
    });
    let copy = Map::anon((pages << 12) as usize);
    let done = AtomicBool::new(false);
    let mut taken = 0usize;
    let mut copy_dirty = || {
        let dirty = g.vm.dirty_pages(1, pages as usize).unwrap_or_default();
        for page in &dirty {
            copy.wr(page << 12, m.rd::<u32>(page << 12));
        }
        taken += dirty.len();
    };
    std::thread::scope(|s| {
        s.spawn(|| {
            eq!(g.cpu.run(), Exit::Hlt);
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            copy_dirty();
        }
    });
    copy_dirty();
    for page in 0..pages as usize {
        let (got, want) = (copy.rd::<u32>(page << 12), m.rd::<u32>(page << 12));
        check!(got == want, "page {page}: copied {got}, but it is {want}");
    }
    eq!(
        m.rd::<u32>(((pages - 1) << 12) as usize),
        rounds * pages as u32
    );
    check!(
        taken > pages as usize,
        "only {taken} marks in all: logged and taken at the same time?"
    );
}
