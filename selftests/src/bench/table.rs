// SPDX-License-Identifier: GPL-2.0
//! The table: two measurements beside each other, their ratio, and whether it is as low as it should be.

use std::collections::HashMap;
use std::process::ExitCode;

/// What a row is called, its unit, and the highest ratio to the in-tree KVM that is aimed at.
const ROWS: &[(&str, &str, f64)] = &[
    ("exit: CPUID", "insn", 0.5),
    ("exit: WRMSR IA32_TSC_ADJUST", "insn", 0.5),
    ("exit: RDMSR IA32_TSC_ADJUST", "insn", 0.5),
    ("exit: MMIO write to an ioeventfd", "insn", 0.7),
    ("exit: INC of ROM with an ioeventfd", "insn", 0.7),
    ("user: OUT", "insn", 0.7),
    ("user: OUT, SYNC_REGS", "insn", 0.7),
    ("user: IN", "insn", 0.7),
    ("user: HLT", "insn", 0.7),
    ("user: MMIO write", "insn", 0.7),
    ("user: MMIO read", "insn", 0.7),
    ("user: REP OUTSB, 4 KiB", "insn", 0.7),
    ("user: REP INSB, 4 KiB", "insn", 0.7),
    ("fault: 4 KiB page", "insn", 0.7),
    ("fault: 2 MiB page", "insn", 0.7),
    ("call: GET_REGS", "insn", 0.7),
    ("call: SET_REGS", "insn", 0.7),
    ("call: GET_SREGS", "insn", 0.7),
    ("call: SET_SREGS", "insn", 0.7),
    ("call: SET_CPUID2", "insn", 0.7),
    ("call: TRANSLATE", "insn", 0.7),
    ("slot: create", "insn", 0.7),
    ("slot: delete", "insn", 0.7),
    ("slot: madvise outside of all", "insn", 1.0),
    ("life: create a VM and a vCPU", "insn", 0.7),
    ("life: destroy them", "insn", 0.7),
    ("memory: a VM", "bytes", 0.5),
    ("memory: a vCPU", "bytes", 0.5),
    ("memory: a slot of 1 GiB", "bytes", 0.5),
    ("memory: 1 GiB mapped by 4 KiB", "bytes", 0.5),
    ("text: kvm.ko against kvm and kvm-amd", "bytes", 0.5),
    ("text: kvm.ko against kvm and kvm-intel", "bytes", 0.5),
];

/// Does the table have a row of this name?
pub fn knows(name: &str) -> bool {
    ROWS.iter().any(|(n, ..)| *n == name)
}

/// The rows that are measured in the VM.
pub fn measured() -> impl Iterator<Item = &'static str> {
    let names = ROWS.iter().map(|(name, ..)| *name);
    names.filter(|name| !name.starts_with("text"))
}

/// The lines `BENCH<tab>name<tab>value` among `text`, wherever they begin: a console may have something before them.
fn parse(text: &str) -> HashMap<String, f64> {
    let value = |line: &str| {
        let mut fields = line.split_once("BENCH\t")?.1.split('\t');
        let name = fields.next()?.to_owned();
        Some((name, fields.next()?.trim().parse().ok()?))
    };
    text.lines().filter_map(value).collect()
}

/// The table as it is printed, and how many rows miss their target; None if a row that both should have is missing.
fn table(ours: &HashMap<String, f64>, theirs: &HashMap<String, f64>) -> Option<(String, usize)> {
    let mut text = format!(
        "{:<40} {:>12} {:>12} {:>7} {:>7}\n",
        "", "ours", "in-tree", "ratio", "target"
    );
    let mut missed = 0;
    for (name, unit, target) in ROWS {
        let (Some(a), Some(b)) = (ours.get(*name), theirs.get(*name)) else {
            if name.starts_with("text") {
                continue;
            }
            return None;
        };
        let ratio = a / b;
        let late = *b > 0.0 && ratio > *target;
        missed += usize::from(late);
        text += &format!(
            "{:<40} {a:>12.0} {b:>12.0} {ratio:>7.2} {target:>7.1}{}\n",
            format!("{name} [{unit}]"),
            if late { "  missed" } else { "" }
        );
    }
    Some((text, missed))
}

/// `selftests bench-table OURS IN-TREE`: files that hold the output of `selftests bench`.
pub fn main(args: &[String]) -> ExitCode {
    let [ours, theirs] = args else {
        eprintln!("usage: selftests bench-table OURS IN-TREE");
        return ExitCode::FAILURE;
    };
    let read = |path: &String| std::fs::read(path).map(|b| parse(&String::from_utf8_lossy(&b)));
    let (ours, theirs) = match (read(ours), read(theirs)) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(e), _) | (_, Err(e)) => {
            eprintln!("bench-table: {e}");
            return ExitCode::FAILURE;
        }
    };
    match table(&ours, &theirs) {
        Some((text, missed)) => {
            print!("{text}");
            println!("{missed} rows miss their target; doc/performance.md says why");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("bench-table: a measurement is not complete");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_bench_prints() {
        let found = parse("[1.0] BENCH\texit: CPUID\t12.5\r\nother\nBENCH\tx\n");
        assert_eq!(found.get("exit: CPUID"), Some(&12.5));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn counts_what_misses_its_target() {
        let all = |v: f64| ROWS.iter().map(|(n, ..)| ((*n).to_owned(), v)).collect();
        let (mut ours, theirs): (HashMap<String, f64>, _) = (all(40.0), all(100.0));
        assert_eq!(table(&ours, &theirs).map(|t| t.1), Some(0));
        ours.insert("exit: CPUID".to_owned(), 60.0);
        assert_eq!(table(&ours, &theirs).map(|t| t.1), Some(1));
        ours.remove("exit: CPUID");
        assert!(table(&ours, &theirs).is_none());
    }
}
