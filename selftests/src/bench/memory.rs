// SPDX-License-Identifier: GPL-2.0
//! Guest memory: what its first touch costs, and what a VM weighs.

use super::exits::{restart, to_end, END};
use super::{each, lowest, ticks, Effort, Row};
use crate::guest::{Guest, Mode};
use crate::kvm::Kvm;
use crate::must;
use crate::sys::Map;
use iced_x86::code_asm::*;
use std::time::Duration;

/// Where the memory lies that the guest touches: in reach of its page tables.
const AT: u64 = 0x4000_0000;

const MIB: u64 = 1 << 20;

/// A guest that touches one byte in each of `count` pages of `step` bytes, from AT on.
fn load(g: &Guest, count: u32, step: i32, write: bool) {
    g.load(|a| {
        a.mov(rdi, AT)?;
        a.mov(esi, count)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        if write {
            a.mov(byte_ptr(rdi), al)?;
        } else {
            a.mov(al, byte_ptr(rdi))?;
        }
        a.add(rdi, step)?;
        a.dec(esi)?;
        a.jnz(again)?;
        a.out(END, al)
    });
}

/// What each of `count` faults on pages of `step` bytes costs; the host has the pages already.
fn fault(e: Effort, count: u32, step: u64, advice: i32) -> f64 {
    let g = Guest::new(Mode::Long);
    let size = u64::from(count) * step;
    let mem = Map::anon(size as usize);
    must!(mem.advise(0, size as usize, advice));
    for i in 0..u64::from(count) {
        mem.wr((i * step) as usize, 1u8);
    }
    load(&g, count, step as i32, true);
    let touch = || {
        restart(&g);
        ticks(|| to_end(&g))
    };
    let faults = lowest(e.rounds, || {
        must!(g.vm.region(1, 0, AT, 0, mem.addr()).or(Ok::<i32, i32>(0)));
        must!(g.vm.region(1, 0, AT, size, mem.addr()));
        touch()
    });
    each(faults, lowest(e.rounds, touch), count)
}

pub fn faults(e: Effort) -> Vec<Row> {
    let count = if e.copies < 8 { 8 } else { 256 };
    vec![
        (
            "fault: 4 KiB page",
            fault(e, count, 4096, libc::MADV_NOHUGEPAGE),
        ),
        (
            "fault: 2 MiB page",
            fault(e, count / 8, 2 * MIB, libc::MADV_HUGEPAGE),
        ),
    ]
}

/// Free memory in bytes, once what is freed later has been freed: with what each CPU keeps in store, which MemFree leaves out.
fn free() -> f64 {
    std::thread::sleep(Duration::from_millis(200));
    let text = std::fs::read_to_string("/proc/zoneinfo").unwrap_or_default();
    let pages = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let counts = name == "nr_free_pages" || name == "count:";
        counts.then(|| words.next()?.parse::<f64>().ok()).flatten()
    });
    pages.sum::<f64>() * 4096.0
}

/// Bytes that each of `n` things takes which `make` makes. As many before them use up what the allocators have in store.
fn weigh<T>(n: usize, make: impl Fn(usize) -> T) -> f64 {
    let first: Vec<T> = (0..n).map(&make).collect();
    let before = free();
    let second: Vec<T> = (n..2 * n).map(&make).collect();
    let bytes = (before - free()) / n as f64;
    drop((first, second));
    bytes
}

pub fn weights(e: Effort) -> Vec<Row> {
    let kvm = Kvm::open();
    let vm = kvm.vm();
    // An id stays taken after its vCPU is closed.
    let ids = std::cell::Cell::new(0);
    let next_id = || ids.replace(ids.get() + 1);
    vec![
        ("memory: a VM", weigh(e.copies, |_| kvm.vm())),
        ("memory: a vCPU", weigh(e.copies, |_| vm.vcpu(next_id()))),
        (
            "memory: a slot of 1 GiB",
            // Addresses alone: nothing is ever touched behind them.
            weigh(e.copies, |i| {
                let mem = Map::anon(1 << 30);
                let gpa = (i as u64 + 1) << 30;
                must!(vm.region(i as u32, 0, gpa, 1 << 30, mem.addr()));
                Slot(&vm, i as u32, mem)
            }),
        ),
        ("memory: 1 GiB mapped by 4 KiB", mapped(e)),
    ]
}

/// A slot that goes with its memory.
struct Slot<'a>(&'a crate::kvm::Vm, u32, Map);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let _ = self.0.region(self.1, 0, 0, 0, self.2.addr());
    }
}

/// What second-stage tables take for a GiB of small pages. All are the host's zero page, so that only the tables need memory.
fn mapped(e: Effort) -> f64 {
    let g = Guest::new(Mode::Long);
    let size = e.mib * MIB;
    let mem = Map::anon(size as usize);
    must!(mem.advise(0, size as usize, libc::MADV_NOHUGEPAGE));
    for i in 0..size / 4096 {
        mem.rd::<u8>((i * 4096) as usize);
    }
    must!(g.vm.region(1, 0, AT, size, mem.addr()));
    load(&g, (size / 4096) as u32, 4096, false);
    let before = free();
    to_end(&g);
    (before - free()) * 1024.0 / e.mib as f64
}
