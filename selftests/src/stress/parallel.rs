// SPDX-License-Identifier: GPL-2.0
//! vCPUs that fault at the same time: on the same pages, on neighbouring ones, on others. A fault of one must not shut out another's, so
//! the function trace of the module may show no exclusive section.

use super::ftrace::{Trace, EXCLUSIVE, SHARED};
use super::sweep::{check_pages, AT, SLOT};
use crate::guest::*;
use crate::harness::{self, rounds, Test};
use crate::kvm::*;
use crate::sys::{self, Map};
use crate::{check, eq};
use iced_x86::code_asm::*;
use std::sync::Barrier;

pub const TESTS: &[Test] = &[
    Test::new("stress/fault_same_pages", same)
        .cpus(2)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/fault_neighbours", neighbours)
        .cpus(2)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/fault_apart", apart)
        .cpus(2)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/fault_no_exclusive_lock", no_exclusive_lock)
        .cpus(2)
        .secs(60)
        .long(600)
        .no_ab(),
];

const SIZE: u64 = 8 << 20;
const PAGES: u64 = SIZE / 4096;

/// Two vCPUs that add 1 to a word of each page of theirs, each with an access of its own to both ends of the page.
struct Two {
    g: Guest,
    second: Vcpu,
    m: Map,
}

impl Two {
    fn new() -> Self {
        let g = Guest::new(Mode::Long);
        // RSI: the first page; RDI: how many; RBP: bytes from one to the next.
        g.load(|a| {
            let mut page = a.create_label();
            a.set_label(&mut page)?;
            a.lock().inc(qword_ptr(rsi))?;
            a.lock().inc(qword_ptr(rsi + 4088))?;
            a.add(rsi, rbp)?;
            a.dec(rdi)?;
            a.jne(page)?;
            a.hlt()
        });
        let second = g.second_vcpu(1);
        let m = Map::anon(SIZE as usize);
        eq!(m.advise(0, SIZE as usize, libc::MADV_NOHUGEPAGE), Ok(0));
        eq!(g.vm.region(SLOT, 0, AT, SIZE, m.addr()), Ok(0));
        Self { g, second, m }
    }

    /// Both sweep once, beginning at the same moment: (first page, pages, stride) of each. The second-stage tables are empty before it;
    /// the host's are not, if `present`.
    fn go(&self, present: bool, jobs: [(u64, u64, u64); 2]) {
        self.go_inside(present, jobs, |sweeps| sweeps());
    }

    /// The same; `around` calls what it is given, in which there is nothing but the two sweeps.
    fn go_inside(&self, present: bool, jobs: [(u64, u64, u64); 2], around: impl FnOnce(&dyn Fn())) {
        eq!(self.g.vm.region(SLOT, 0, AT, 0, 0), Ok(0));
        if present {
            self.m.fill(0, SIZE as usize, 0);
        } else {
            eq!(self.m.advise(0, SIZE as usize, libc::MADV_DONTNEED), Ok(0));
        }
        eq!(self.g.vm.region(SLOT, 0, AT, SIZE, self.m.addr()), Ok(0));
        let (start, end) = (Barrier::new(3), Barrier::new(3));
        std::thread::scope(|s| {
            for (i, (cpu, (first, pages, stride))) in [&self.g.cpu, &self.second]
                .into_iter()
                .zip(jobs)
                .enumerate()
            {
                let (start, end) = (&start, &end);
                s.spawn(move || {
                    crate::must!(sys::pin(0, i));
                    let mut r = cpu.regs();
                    (r.rsi, r.rdi, r.rbp, r.rip) = (AT + first, pages, stride, CODE);
                    cpu.set_regs(&r);
                    will_spin(cpu);
                    start.wait();
                    eq!(cpu.run(), Exit::Hlt);
                    end.wait();
                });
            }
            around(&|| {
                start.wait();
                end.wait();
            });
        });
    }
}

const SAME: [(u64, u64, u64); 2] = [(0, PAGES, 4096), (0, PAGES, 4096)];
const NEIGHBOURS: [(u64, u64, u64); 2] = [(0, PAGES / 2, 8192), (4096, PAGES / 2, 8192)];
const APART: [(u64, u64, u64); 2] = [(0, PAGES / 2, 4096), (SIZE / 2, PAGES / 2, 4096)];

fn repeat(jobs: [(u64, u64, u64); 2], each: u64) {
    let two = Two::new();
    for i in 0..rounds(6, 200) {
        two.go(i % 2 == 0, jobs);
        check_pages(&two.m, 0, SIZE, 4096, each);
    }
}

fn same() {
    repeat(SAME, 2);
}

fn neighbours() {
    repeat(NEIGHBOURS, 1);
}

fn apart() {
    repeat(APART, 1);
}

fn no_exclusive_lock() {
    let Some(trace) = Trace::of(&format!("{SHARED} {EXCLUSIVE}")) else {
        harness::skip("no function trace, or another KVM's functions")
    };
    let two = Two::new();
    let of =
        |calls: &[String], what: &str| calls.iter().filter(|l| l.contains(what)).count() as u64;
    // The code's and the page tables' own faults come first, and a slot with pages that goes shows that the trace has what is looked for.
    two.go(true, APART);
    let calls = trace.calls(|| eq!(two.g.vm.region(SLOT, 0, AT, 0, 0), Ok(0)));
    check!(of(&calls, EXCLUSIVE) >= 1, "a slot goes: {calls:#?}");
    eq!(two.g.vm.region(SLOT, 0, AT, SIZE, two.m.addr()), Ok(0));
    for (name, jobs) in [("apart", APART), ("neighbours", NEIGHBOURS), ("same", SAME)] {
        for present in [true, false] {
            let mut calls = Vec::new();
            two.go_inside(present, jobs, |sweeps| calls = trace.calls(sweeps));
            let (shared, exclusive) = (of(&calls, SHARED), of(&calls, EXCLUSIVE));
            check!(
                shared >= PAGES,
                "{name}: {shared} shared sections: is the trace complete?"
            );
            // No page is taken away meanwhile, and no large leaf is in the way of a small one: nothing needs one.
            eq!(
                exclusive,
                0,
                "{name}, present: {present}: exclusive sections in {shared} faults"
            );
        }
    }
}
