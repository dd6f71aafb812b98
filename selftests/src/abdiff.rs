// SPDX-License-Identifier: GPL-2.0
//! Compares two records made by `selftests ab`, line by line, and lets pass only what doc/errata.md explains.
//!
//! The explanations stand in fenced blocks marked `ab` there, one a line, comments with `#`:
//! `KEY-PATTERN | REFERENCE-PATTERN | OURS-PATTERN | reason`, where `*` stands for anything and a missing line is
//! written `-`. The reference pattern `FAILED` stands for any line of a test that failed there. A key is `test|call`, a value `result|output`.

use std::collections::BTreeMap;
use std::process::ExitCode;

/// One explanation.
struct Rule {
    key: String,
    reference: String,
    ours: String,
    text: String,
    used: bool,
}

/// Does `text` match `pattern`, in which `*` stands for any run of characters?
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for p in parts {
        if let Some(prev) = last.replace(p) {
            match rest.find(prev) {
                Some(i) => rest = &rest[i + prev.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |l| rest.ends_with(l))
}

fn rules(errata: &str) -> Result<Vec<Rule>, String> {
    let mut out = Vec::new();
    let mut inside = false;
    for (n, l) in errata.lines().enumerate() {
        if l.starts_with("```") {
            inside = !inside && l.trim() == "```ab";
            continue;
        }
        if !inside || l.trim().is_empty() || l.starts_with('#') {
            continue;
        }
        // Keys and values hold bars themselves: the columns are parted by a bar between spaces.
        let f: Vec<&str> = l.split(" | ").map(str::trim).collect();
        let [key, reference, ours, reason] = f[..] else {
            return Err(format!(
                "errata line {}: expected four columns parted by ' | ': {l}",
                n + 1
            ));
        };
        if reason.is_empty() {
            return Err(format!("errata line {}: no reason given", n + 1));
        }
        let text = l.to_owned();
        out.push(Rule {
            key: key.into(),
            reference: reference.into(),
            ours: ours.into(),
            text,
            used: false,
        });
    }
    Ok(out)
}

type Record = BTreeMap<String, String>;

fn parse(text: &str) -> Record {
    let mut r = Record::new();
    let mut test = "";
    for l in text.lines() {
        // The console may end lines with a carriage return.
        let l = l.trim_end();
        if let Some(name) = l.strip_prefix("AB=") {
            test = name;
        }
        let Some(l) = l.strip_prefix("AB|") else {
            continue;
        };
        let mut f = l.splitn(3, '|');
        let call = f.next().unwrap_or("");
        let (res, out) = (f.next().unwrap_or(""), f.next().unwrap_or(""));
        r.insert(format!("{test}|{call}"), format!("{res}|{out}"));
    }
    r
}

/// The verdict: unexplained differences, explained ones.
struct Verdict {
    open: Vec<String>,
    explained: usize,
}

fn compare(reference: &Record, ours: &Record, rules: &mut [Rule]) -> Verdict {
    let mut v = Verdict {
        open: Vec::new(),
        explained: 0,
    };
    let keys: std::collections::BTreeSet<&String> = reference.keys().chain(ours.keys()).collect();
    for k in keys {
        let a = reference.get(k).map_or("-", String::as_str);
        let b = ours.get(k).map_or("-", String::as_str);
        if a == b {
            continue;
        }
        let test = k.split('|').next().unwrap_or("");
        let no_reference = reference
            .get(&format!("{test}|outcome"))
            .is_some_and(|o| o == "failed|");
        let applies = |r: &Rule| match r.reference.as_str() {
            "FAILED" => no_reference,
            pattern => glob(pattern, a),
        };
        match rules
            .iter_mut()
            .find(|r| glob(&r.key, k) && applies(r) && glob(&r.ours, b))
        {
            Some(r) => {
                r.used = true;
                v.explained += 1;
            }
            None => v
                .open
                .push(format!("{k}\n    reference: {a}\n    ours:      {b}")),
        }
    }
    v
}

/// The rules that explained nothing.
fn idle(rules: &[Rule]) -> Vec<&str> {
    rules
        .iter()
        .filter(|r| !r.used)
        .map(|r| r.text.as_str())
        .collect()
}

/// Compares each pair of records, and prints what it found. True if nothing is open and, with `all`, no rule without use.
fn run(args: &[String], all: bool) -> Result<bool, String> {
    let [errata, pairs @ ..] = args else {
        return Err("no errata given".into());
    };
    let read = |p: &String| {
        std::fs::read(p)
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .map_err(|e| format!("{p}: {e}"))
    };
    let mut rules = rules(&read(errata)?)?;
    let mut good = !pairs.is_empty();
    for pair in pairs.chunks(2) {
        let [reference, ours] = pair else {
            return Err(format!("{pair:?}: one record of a pair is missing"));
        };
        let (a, b) = (parse(&read(reference)?), parse(&read(ours)?));
        if a.is_empty() || b.is_empty() {
            return Err(format!(
                "nothing to compare: {} lines in {reference}, {} in {ours}",
                a.len(),
                b.len()
            ));
        }
        println!("{reference}: {} lines; {ours}: {}", a.len(), b.len());
        let v = compare(&a, &b, &mut rules);
        for d in &v.open {
            println!("differs: {d}");
        }
        println!(
            "{} differences unexplained, {} explained",
            v.open.len(),
            v.explained
        );
        good &= v.open.is_empty();
    }
    if all {
        let idle = idle(&rules);
        for r in &idle {
            println!("explanation without use: {r}");
        }
        good &= idle.is_empty();
    }
    Ok(good)
}

/// `ab-diff [--all] ERRATA REFERENCE OURS [REFERENCE OURS ...]`. With `--all` these are the records of all tests on all machines:
/// a rule that explains nothing on any of them fails, too.
pub fn main(args: &[String]) -> ExitCode {
    let all = args.first().is_some_and(|a| a == "--all");
    match run(&args[usize::from(all)..], all) {
        Err(e) => {
            eprintln!("ab-diff: {e}");
            ExitCode::from(2)
        }
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        assert!(
            glob("a*c", "abc")
                && glob("*", "")
                && glob("a*", "a")
                && glob("*b*", "abc")
                && glob("a", "a")
        );
        assert!(
            !glob("a*c", "abd") && !glob("a", "ab") && !glob("*b", "abc") && !glob("a*b*c", "acb")
        );
    }

    #[test]
    fn unexplained_differences_fail() {
        let a = parse("AB=t\r\nAB|X()#1|0|\r\nAB|Y()#1|errno 22|\n");
        let b = parse("AB=t\nAB|X()#1|1|\nAB|Y()#1|errno 22|\n");
        let v = compare(&a, &b, &mut []);
        assert_eq!((v.open.len(), v.explained), (1, 0));
        let mut r = rules("```ab\n# why\nt|X* | 0* | 1* | because\n```\n").unwrap();
        let v = compare(&a, &b, &mut r);
        assert_eq!((v.open.len(), v.explained, idle(&r).len()), (0, 1, 0));
        // It was of use on one machine, and stays so.
        assert_eq!(compare(&a, &a, &mut r).explained, 0);
        assert_eq!(idle(&r).len(), 0);
        let mut r = rules("```ab\nt|X* | 0* | 1* | because\n```").unwrap();
        compare(&a, &a, &mut r);
        assert_eq!(idle(&r).len(), 1);
        let v = compare(&a, &Record::new(), &mut []);
        assert_eq!(v.open.len(), 2);
        // A failed test of the reference can be excused, a good one not.
        let bad = parse("AB=t\nAB|X()#1|0|\nAB|outcome|failed|");
        let good = parse("AB=t\nAB|X()#1|1|\nAB|outcome|good|");
        let excuse = "```ab\nt|* | FAILED | * | because\n```";
        assert_eq!(
            compare(&bad, &good, &mut rules(excuse).unwrap()).open.len(),
            0
        );
        assert_eq!(
            compare(&good, &bad, &mut rules(excuse).unwrap()).open.len(),
            2
        );
        assert!(rules("```ab\nnonsense\n```").is_err());
    }
}
