// SPDX-License-Identifier: GPL-2.0
//! What a KVM costs, in instructions and bytes: `selftests bench` measures the one that is loaded, `selftests bench-table`
//! puts two measurements beside each other.
//!
//! It is meant for a VM in which one instruction is one tick of the TSC (`vm.sh --icount`, Bochs): there a difference of two
//! readings is a count. The guest's own instructions are measured by the same guest with NOP in place of the instruction, and
//! taken off. The lowest of several rounds counts: the others had a timer interrupt of the host in them.

mod calls;
mod exits;
mod memory;
mod table;

use crate::harness::Test;
use crate::sys;

pub use table::main as table_main;

/// The bench must not rot: every row can be measured, on whatever machine.
pub const TESTS: &[Test] = &[Test::new("bench/smoke", smoke).no_ab().secs(60)];

/// How thorough to be.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Rounds, of which the lowest counts.
    rounds: u32,
    /// Times a guest's instruction is executed in a round.
    times: u32,
    /// VMs and vCPUs made to weigh one.
    copies: usize,
    /// MiB of guest memory to weigh a GiB.
    mib: u64,
}

const FULL: Effort = Effort {
    rounds: 8,
    times: 64,
    copies: 192,
    mib: 256,
};

const QUICK: Effort = Effort {
    rounds: 3,
    times: 4,
    copies: 2,
    mib: 4,
};

/// One row: its name, and what it came to.
type Row = (&'static str, f64);

fn rows(e: Effort) -> Vec<Row> {
    let mut rows = exits::rows(e, &[""]);
    rows.extend(memory::faults(e));
    rows.extend(calls::rows(e));
    rows.extend(memory::weights(e));
    rows
}

/// `selftests bench [--quick] [EXIT...]`: with parts of names, those exits only. `--times N`: once, with N exits of each.
pub fn main(args: &[String]) {
    let _ = sys::pin(0, 0);
    let quick = args.iter().any(|a| a == "--quick");
    let mut effort = if quick { QUICK } else { FULL };
    let (mut names, mut args) = (Vec::new(), args.iter());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => {}
            "--times" => {
                effort.rounds = 1;
                effort.times = args.next().and_then(|n| n.parse().ok()).expect("a number");
            }
            name => names.push(name),
        }
    }
    let rows = match names[..] {
        [] => rows(effort),
        _ if names.iter().any(|name| name.starts_with("fault:")) => memory::faults(effort),
        _ if names.iter().any(|name| name.starts_with("call:")) => calls::rows(effort),
        _ => exits::rows(effort, &names),
    };
    for (name, value) in rows {
        println!("BENCH\t{name}\t{value:.1}");
    }
}

fn smoke() {
    let rows = rows(QUICK);
    for (name, _) in &rows {
        crate::check!(table::knows(name), "{name} has a place in the table");
    }
    for name in table::measured() {
        crate::check!(rows.iter().any(|(n, _)| *n == name), "{name} is measured");
    }
    // Exits cannot be free. What is the difference of two measurements drowns in noise with so few rounds.
    for (name, value) in &rows {
        let difference = name.starts_with("memory") || name.starts_with("fault");
        crate::check!(difference || *value > 10.0, "{name} is {value}");
    }
}

/// The fewest ticks that `f` reports in `rounds` rounds.
fn lowest(rounds: u32, mut f: impl FnMut() -> u64) -> u64 {
    (0..rounds).map(|_| f()).min().unwrap_or(0)
}

/// The ticks that `f` takes.
fn ticks(f: impl FnOnce()) -> u64 {
    let before = sys::rdtsc();
    f();
    sys::rdtsc().wrapping_sub(before)
}

/// What one of `times` costs more in `with` than in `without`.
fn each(with: u64, without: u64, times: u32) -> f64 {
    (with as f64 - without as f64) / f64::from(times)
}
