// SPDX-License-Identifier: GPL-2.0
//! Tests of a KVM implementation, run inside the host VM on its /dev/kvm.
//!
//! ```text
//! selftests [--slow N] [PATTERN...]      run the tests whose names hold a pattern, -PATTERN: not those; KTAP on stdout.
//!                                        A pattern that fits no test is an error
//! selftests --brief PERCENT ...          less often than usual what is repeated
//! selftests --long [--scale PERCENT] ... only those worth running for long, with full counts or PERCENT of them
//! selftests --seed N NAME...             of the attackers' tests, only the attack with that seed
//! selftests --list [PATTERN...]          their names
//! selftests bench [--quick] [--times N] [EXIT...]   measure this KVM
//! selftests bench-table OURS IN-TREE     compare two measurements
//! selftests end WAY [KERNEL INITRD]      end the machine while VMs run: reboot, crash, kexec, crash-kexec
//! selftests ab [PATTERN...]              run the deterministic ones and record every call
//! selftests ab-diff [--all] ERRATA REFERENCE OURS...   compare pairs of records; only explained differences are allowed
//! ```

mod abdiff;
mod api;
mod bench;
mod guest;
mod harness;
mod hostile;
mod kmsg;
mod kvm;
mod ledger;
mod micro;
mod record;
mod registers;
mod stress;
mod sys;

use std::process::ExitCode;

fn all() -> Vec<harness::Test> {
    [
        api::tests(),
        micro::tests(),
        stress::tests(),
        hostile::tests(),
        ledger::TESTS.to_vec(),
        bench::TESTS.to_vec(),
    ]
    .concat()
}

/// Takes an option with a number out of the arguments.
fn number(args: &mut Vec<String>, option: &str) -> Option<u64> {
    let i = args.iter().position(|a| a == option)?;
    let n = args.get(i + 1).and_then(|n| n.parse().ok());
    args.drain(i..(i + 2).min(args.len()));
    n
}

/// Takes an option out of the arguments; was it there?
fn flag(args: &mut Vec<String>, option: &str) -> bool {
    let before = args.len();
    args.retain(|a| a != option);
    args.len() < before
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "ab-diff") {
        return abdiff::main(&args[1..]);
    }
    if args.first().is_some_and(|a| a == "bench-table") {
        return bench::table_main(&args[1..]);
    }
    if args.first().is_some_and(|a| a == "bench") {
        bench::main(&args[1..]);
        return ExitCode::SUCCESS;
    }
    if args.first().is_some_and(|a| a == "end") {
        return micro::end_machine(&args[1..]);
    }
    let slow = number(&mut args, "--slow").unwrap_or(1);
    let brief = number(&mut args, "--brief").unwrap_or(100);
    let scale = number(&mut args, "--scale").unwrap_or(100);
    let long = flag(&mut args, "--long").then_some(scale);
    let list = flag(&mut args, "--list");
    if let Some(seed) = number(&mut args, "--seed") {
        hostile::set_seed(seed);
    }
    let record = args.first().is_some_and(|a| a == "ab");
    let options = harness::Options {
        patterns: args.into_iter().skip(usize::from(record)).collect(),
        slow,
        record,
        brief,
        long,
    };
    let tests = all();
    if list {
        for t in tests.iter().filter(|t| options.wants(t)) {
            // Whoever reads may have seen enough.
            harness::say(t.name);
        }
        return ExitCode::SUCCESS;
    }
    let idle = options.idle(&tests);
    if !idle.is_empty() {
        // A list of patterns that has outlived a test would otherwise run less than it says.
        harness::say(&format!("Bail out! No test's name holds {idle:?}"));
        return ExitCode::FAILURE;
    }
    if harness::run_all(&tests, &options) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
