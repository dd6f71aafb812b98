// SPDX-License-Identifier: GPL-2.0
//! Tests of a KVM implementation, run inside the host VM on its /dev/kvm.
//!
//! ```text
//! selftests [--slow N] [PATTERN...]      run the tests whose names hold a pattern; KTAP on stdout
//! selftests --list [PATTERN...]          their names
//! selftests ab [PATTERN...]              run the deterministic ones and record every call
//! selftests ab-diff REFERENCE OURS ERRATA   compare two records; only explained differences are allowed
//! ```

mod abdiff;
mod api;
mod guest;
mod harness;
mod kmsg;
mod kvm;
mod micro;
mod record;
mod sys;

use std::process::ExitCode;

fn all() -> Vec<harness::Test> {
    [api::tests(), micro::tests()].concat()
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "ab-diff") {
        return abdiff::main(&args[1..]);
    }
    let mut slow = 1;
    if let Some(i) = args.iter().position(|a| a == "--slow") {
        slow = args.get(i + 1).and_then(|n| n.parse().ok()).unwrap_or(1);
        args.drain(i..(i + 2).min(args.len()));
    }
    let list = args.iter().any(|a| a == "--list");
    let record = args.first().is_some_and(|a| a == "ab");
    let patterns = args
        .into_iter()
        .skip(usize::from(record))
        .filter(|a| a != "--list")
        .collect();
    let options = harness::Options {
        patterns,
        slow,
        record,
    };
    let tests = all();
    if list {
        for t in tests.iter().filter(|t| options.wants(t)) {
            println!("{}", t.name);
        }
        return ExitCode::SUCCESS;
    }
    if harness::run_all(&tests, &options) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
