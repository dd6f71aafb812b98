// SPDX-License-Identifier: GPL-2.0
//! Runs tests, each in a forked child with a time limit, and reports in KTAP.
//!
//! A failed check does not end its test (`eq!`, `check!`): what follows is still tried and, in comparison mode,
//! still recorded. `must!` and a panic end it. A skip is a panic with a payload of its own.

use crate::kmsg::Kmsg;
use crate::sys::{self, Ended};
use std::fmt::{Arguments, Debug, Display};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// One test.
#[derive(Clone, Copy)]
pub struct Test {
    /// Its name: `group/what`.
    pub name: &'static str,
    /// The body.
    pub run: fn(),
    /// Seconds after which it is killed and has failed; multiplied by `--slow`.
    pub secs: u64,
    /// CPUs it needs.
    pub cpus: usize,
    /// Is its course deterministic, so that comparing two implementations makes sense?
    pub ab: bool,
    /// Kernel log lines holding one of these are no complaint.
    pub log_ok: &'static [&'static str],
    /// Is it worth running for long? Then this takes the place of `secs` in such a run (`--long`).
    pub long: Option<u64>,
    /// Does it belong to an ordinary run?
    pub short: bool,
}

impl Test {
    /// A deterministic test for one CPU with the usual time limit.
    pub const fn new(name: &'static str, run: fn()) -> Self {
        Self {
            name,
            run,
            secs: 20,
            cpus: 1,
            ab: true,
            log_ok: &[],
            long: None,
            short: true,
        }
    }
    /// A run with `--long` repeats it with full counts (see `rounds`), within `secs` seconds.
    pub const fn long(self, secs: u64) -> Self {
        Self {
            long: Some(secs),
            ..self
        }
    }
    /// It belongs to a run with `--long` only.
    pub const fn long_only(self, secs: u64) -> Self {
        Self {
            long: Some(secs),
            short: false,
            ..self
        }
    }
    /// With another time limit.
    pub const fn secs(self, secs: u64) -> Self {
        Self { secs, ..self }
    }
    /// Needs `cpus` CPUs.
    pub const fn cpus(self, cpus: usize) -> Self {
        Self { cpus, ..self }
    }
    /// Its course depends on timing, or on freedom that an implementation has: left out of the comparison.
    pub const fn no_ab(self) -> Self {
        Self { ab: false, ..self }
    }
    /// Lines that this test may cause in the kernel log.
    pub const fn log_ok(self, log_ok: &'static [&'static str]) -> Self {
        Self { log_ok, ..self }
    }
}

const EXIT_SKIP: i32 = 4;
const EXIT_FAIL: i32 = 1;

static FAILS: AtomicU32 = AtomicU32::new(0);
static RECORDING: AtomicBool = AtomicBool::new(false);
/// Per cent of the full counts in a run with `--long`; 0 in an ordinary one.
static SCALE: AtomicU64 = AtomicU64::new(0);
/// Per cent of the counts of an ordinary run, in one.
static BRIEF: AtomicU64 = AtomicU64::new(100);
static NAME: OnceLock<&'static str> = OnceLock::new();

/// What a line begins with that tells of a failed check. A process that the test made and killed can tell in no other way.
const FAILED: &str = "FAILED: ";

/// Notes a failed check of the running test.
pub fn fail(msg: &str) {
    // A test that fails in a loop must not flood the console.
    let n = FAILS.fetch_add(1, Ordering::Relaxed);
    if n < 40 {
        say(&format!("{FAILED}{msg}"));
    }
}

/// Prints a line. Not by `println!`, which a test of the harness itself would capture.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The number of failed checks so far in this process.
pub fn fails() -> u32 {
    FAILS.load(Ordering::Relaxed)
}

/// Is this a run for comparison?
pub fn recording() -> bool {
    RECORDING.load(Ordering::Relaxed)
}

/// How often a test that can go on for long repeats itself: `short` times in an ordinary run, less often with `--brief`,
/// but once at least; `full` times with `--long`, more or less often with `--scale`, but never less than `short` times.
pub fn rounds(short: u64, full: u64) -> u64 {
    match SCALE.load(Ordering::Relaxed) {
        0 => short
            .saturating_mul(BRIEF.load(Ordering::Relaxed))
            .div_ceil(100),
        percent => scaled(short, full, percent),
    }
}

fn scaled(short: u64, full: u64, percent: u64) -> u64 {
    (full.saturating_mul(percent) / 100).max(short)
}

/// The name of the running test.
pub fn name() -> &'static str {
    NAME.get().copied().unwrap_or("none")
}

/// What a test panics with to be skipped.
pub struct Skip(pub String);

/// Ends the running test as skipped.
pub fn skip(why: &str) -> ! {
    std::panic::panic_any(Skip(why.to_owned()))
}

/// Checks that two values are equal; goes on if not.
#[macro_export]
macro_rules! eq {
    ($got:expr, $want:expr) => { $crate::eq!($got, $want, "") };
    ($got:expr, $want:expr, $($note:tt)+) => {
        match (&$got, &$want) {
            (got, want) => if *got != *want {
                $crate::harness::differs(
                    concat!(file!(), ":", line!()), stringify!($got), &got, &want, format_args!($($note)+)
                );
            },
        }
    };
}

/// Checks a condition; goes on if it does not hold.
#[macro_export]
macro_rules! check {
    ($cond:expr, $($note:tt)+) => {{
        if !$cond {
            $crate::harness::unmet(concat!(file!(), ":", line!()), stringify!($cond), format_args!($($note)+));
        }
    }};
}

/// The value of a result; an error ends the test.
#[macro_export]
macro_rules! must {
    ($e:expr) => {
        match $e {
            Ok(v) => v,
            Err(e) => $crate::harness::refused(concat!(file!(), ":", line!()), stringify!($e), &e),
        }
    };
}

// What the macros do when a check fails is in functions, so that each of the many checks is little code.

/// A failed [`eq!`].
#[cold]
pub fn differs(at: &str, what: &str, got: &dyn Debug, want: &dyn Debug, note: Arguments<'_>) {
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    fail(&format!(
        "{at}: {what} is {got:x?}, expected {want:x?} {note}"
    ));
}

/// A failed [`check!`].
#[cold]
pub fn unmet(at: &str, what: &str, note: Arguments<'_>) {
    fail(&format!("{at}: not {what}: {note}"));
}

/// A failed [`must!`].
#[cold]
pub fn refused(at: &str, what: &str, errno: &dyn Display) -> ! {
    panic!("{at}: {what} failed: errno {errno}")
}

fn child(t: &Test, out: i32) -> i32 {
    sys::own_session();
    let _ = sys::dup2(out, 1);
    let _ = sys::dup2(out, 2);
    let _ = NAME.set(t.name);
    if recording() {
        // Some answers, such as the initial APIC id in CPUID, are those of the CPU that gave them.
        let _ = sys::pin(0, 0);
    }
    std::panic::set_hook(Box::new(|info| {
        if info.payload().downcast_ref::<Skip>().is_none() {
            let text = info.payload().downcast_ref::<String>().map(String::as_str);
            let text = text
                .or(info.payload().downcast_ref::<&str>().copied())
                .unwrap_or("panic");
            let at = info.location().map(ToString::to_string).unwrap_or_default();
            say(&format!("{text} ({at})"));
        }
    }));
    let outcome = std::panic::catch_unwind(t.run);
    let skipped = matches!(&outcome, Err(p) if p.is::<Skip>());
    crate::record::end(fails() == 0 && (outcome.is_ok() || skipped));
    match outcome {
        Ok(()) if fails() == 0 => 0,
        Ok(()) => EXIT_FAIL,
        Err(p) => match p.downcast_ref::<Skip>() {
            Some(s) if fails() == 0 => {
                say(&s.0);
                EXIT_SKIP
            }
            _ => EXIT_FAIL,
        },
    }
}

/// What became of one test.
enum Outcome {
    Pass,
    Fail(String),
    Skip(String),
}

/// What the child printed, and how it ended.
struct Run {
    text: String,
    ended: Ended,
    late: bool,
}

fn run_child(t: &Test, limit: Duration) -> Run {
    let (rd, wr) = sys::pipe();
    let pid = sys::fork(|| child(t, wr.raw()));
    let _ = wr.close();
    let began = Instant::now();
    let (mut text, mut buf) = (Vec::new(), vec![0u8; 65536]);
    let (mut late, mut ended) = (false, Ended::Not);
    let mut killed_at = None;
    loop {
        if sys::readable(rd.raw(), 20) {
            match sys::read(rd.raw(), &mut buf) {
                Ok(n) if n > 0 => {
                    text.extend_from_slice(&buf[..n]);
                    continue;
                }
                // The end of the pipe can come before the child can be reaped: do not spin on it.
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        if ended == Ended::Not {
            ended = sys::wait(pid, false);
        }
        if ended != Ended::Not {
            break;
        }
        if !late && began.elapsed() > limit {
            late = true;
            killed_at = Some(Instant::now());
            let _ = sys::kill(-pid, libc::SIGKILL);
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        // A child that SIGKILL does not end hangs in the kernel: report that and leave it behind.
        if killed_at.is_some_and(|k| k.elapsed() > Duration::from_secs(10)) {
            break;
        }
    }
    let _ = sys::kill(-pid, libc::SIGKILL);
    while sys::readable(rd.raw(), 0) {
        match sys::read(rd.raw(), &mut buf) {
            Ok(n) if n > 0 => text.extend_from_slice(&buf[..n]),
            _ => break,
        }
    }
    Run {
        text: String::from_utf8_lossy(&text).into_owned(),
        ended,
        late,
    }
}

fn judge(t: &Test, r: &Run, limit: Duration, log: &[String]) -> Outcome {
    let last = r
        .text
        .lines()
        .rfind(|l| !l.starts_with("AB"))
        .unwrap_or("")
        .to_owned();
    if r.late {
        let how = if r.ended == Ended::Not {
            "and SIGKILL does not end it"
        } else {
            "killed"
        };
        return Outcome::Fail(format!(
            "{} took longer than {} s, {how}",
            t.name,
            limit.as_secs()
        ));
    }
    if !log.is_empty() {
        return Outcome::Fail("the kernel complained".to_owned());
    }
    let failed = r.text.lines().any(|l| l.starts_with(FAILED));
    match r.ended {
        Ended::Exit(0 | EXIT_SKIP) if failed => Outcome::Fail(String::new()),
        Ended::Exit(0) => Outcome::Pass,
        Ended::Exit(EXIT_SKIP) => Outcome::Skip(last),
        Ended::Exit(_) => Outcome::Fail(String::new()),
        Ended::Signal(s) => Outcome::Fail(format!("ended by signal {s}")),
        Ended::Not => Outcome::Fail("never ended".to_owned()),
    }
}

/// How a run is done.
pub struct Options {
    /// Only tests whose name holds one of these, all if there is none; not those whose name holds what follows a `-`.
    pub patterns: Vec<String>,
    /// Factor on the time limits.
    pub slow: u64,
    /// Record for comparison, and run only what is deterministic.
    pub record: bool,
    /// Per cent of the counts of an ordinary run.
    pub brief: u64,
    /// Run only what is worth it for long, with this many per cent of the full counts.
    pub long: Option<u64>,
}

impl Options {
    /// Is this test asked for?
    pub fn wants(&self, t: &Test) -> bool {
        let (out, only): (Vec<&str>, Vec<&str>) = self
            .patterns
            .iter()
            .map(String::as_str)
            .partition(|p| p.starts_with('-'));
        let left_out = out.iter().any(|p| t.name.contains(&p[1..]));
        !left_out
            && (only.is_empty() || only.iter().any(|p| t.name.contains(p)))
            && (!self.record || t.ab)
            && if self.long.is_some() {
                t.long.is_some()
            } else {
                t.short
            }
    }

    /// The patterns that fit none of `tests`, whatever kind of run it is: mistakes, or names that are no longer.
    pub fn idle<'a>(&'a self, tests: &[Test]) -> Vec<&'a str> {
        let fits = |p: &str| {
            let part = p.strip_prefix('-').unwrap_or(p);
            tests.iter().any(|t| t.name.contains(part))
        };
        let all = self.patterns.iter().map(String::as_str);
        all.filter(|p| !fits(p)).collect()
    }

    /// The time that a test may take.
    fn limit(&self, t: &Test) -> Duration {
        let secs = self.long.and(t.long).unwrap_or(t.secs);
        Duration::from_secs(secs.saturating_mul(self.slow))
    }
}

/// Runs the tests; true if none failed and at least one passed.
pub fn run_all(tests: &[Test], o: &Options) -> bool {
    RECORDING.store(o.record, Ordering::Relaxed);
    BRIEF.store(o.brief.clamp(1, 100), Ordering::Relaxed);
    SCALE.store(o.long.map_or(0, |scale| scale.max(1)), Ordering::Relaxed);
    let chosen: Vec<&Test> = tests.iter().filter(|t| o.wants(t)).collect();
    let log = Kmsg::open();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    println!("KTAP version 1");
    if !log.watching() {
        println!("# /dev/kmsg cannot be read: complaints of the kernel go unseen");
    }
    println!("1..{}", chosen.len());
    for (i, t) in chosen.iter().enumerate() {
        let n = i + 1;
        let limit = o.limit(t);
        let began = Instant::now();
        let (outcome, text) = if sys::cpus() < t.cpus {
            (
                Outcome::Skip(format!("needs {} CPUs", t.cpus)),
                String::new(),
            )
        } else {
            let r = run_child(t, limit);
            let complaints = log.complaints(t.log_ok);
            for c in &complaints {
                println!("# kernel: {c}");
            }
            if complaints.is_empty() && !t.log_ok.is_empty() {
                // Nobody shall find again what was judged here.
                sys::clear_kernel_log();
            }
            (judge(t, &r, limit, &complaints), r.text)
        };
        for l in text.lines() {
            if l.starts_with("AB") {
                println!("{l}");
            } else if !matches!(outcome, Outcome::Skip(_)) {
                println!("# {l}");
            }
        }
        let ms = began.elapsed().as_millis();
        match outcome {
            Outcome::Pass => {
                passed += 1;
                println!("ok {n} {} # {ms} ms", t.name);
            }
            Outcome::Skip(why) => {
                skipped += 1;
                println!("ok {n} {} # SKIP {why}", t.name);
            }
            Outcome::Fail(why) => {
                failed += 1;
                if !why.is_empty() {
                    println!("# {why}");
                }
                println!("not ok {n} {} # {ms} ms", t.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    failed == 0 && passed > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(t: &Test) -> Outcome {
        let limit = Duration::from_secs(t.secs);
        judge(t, &run_child(t, limit), limit, &[])
    }

    fn chosen_by(patterns: &[&str]) -> Options {
        Options {
            patterns: patterns.iter().map(|p| (*p).to_owned()).collect(),
            slow: 1,
            record: false,
            brief: 100,
            long: None,
        }
    }

    #[test]
    fn idle_patterns_are_found() {
        let tests = [
            Test::new("a/b", || {}),
            Test::new("c/d", || {}).long_only(1).no_ab(),
        ];
        let idle = |patterns: &[&str]| -> Vec<String> {
            let options = chosen_by(patterns);
            options
                .idle(&tests)
                .into_iter()
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(idle(&[]), [""; 0]);
        assert_eq!(idle(&["a/", "-d", "c/d"]), [""; 0]);
        assert_eq!(idle(&["a/", "e", "-b", "-f"]), ["e", "-f"]);
    }

    #[test]
    fn patterns_choose_and_leave_out() {
        let wants = |patterns: &[&str], name| chosen_by(patterns).wants(&Test::new(name, || {}));
        assert!(wants(&[], "a/b"));
        assert!(wants(&["a/", "c/"], "a/b"));
        assert!(!wants(&["c/"], "a/b"));
        assert!(!wants(&["-a/"], "a/b"));
        assert!(wants(&["-a/"], "c/b"));
        assert!(!wants(&["a/", "-b"], "a/b"));
        assert!(wants(&["a/", "-b"], "a/c"));
    }

    #[test]
    fn long_runs_are_chosen_and_scaled() {
        let options = |long| Options {
            patterns: Vec::new(),
            slow: 2,
            record: false,
            brief: 100,
            long,
        };
        let usual = Test::new("t", || {});
        let (both, only) = (usual.long(500), usual.long_only(600));
        for (t, short, long) in [
            (usual, true, false),
            (both, true, true),
            (only, false, true),
        ] {
            assert_eq!(options(None).wants(&t), short);
            assert_eq!(options(Some(100)).wants(&t), long);
        }
        assert_eq!(options(None).limit(&both).as_secs(), 40);
        assert_eq!(options(Some(1)).limit(&both).as_secs(), 1000);
        assert_eq!(scaled(10, 1000, 0), 10);
        assert_eq!(scaled(10, 1000, 100), 1000);
        assert_eq!(scaled(10, 1000, 25), 250);
        assert_eq!(scaled(10, 1000, 200), 2000);
        // A test may be written with a full count below its short one: it is never less than that.
        assert_eq!(scaled(10, 1000, 1), 10);
        assert_eq!(scaled(0, u64::MAX, 200), u64::MAX / 100);
    }

    #[test]
    fn tests_can_fail() {
        assert!(matches!(
            outcome(&Test::new("t", || eq!(1, 1))),
            Outcome::Pass
        ));
        assert!(matches!(
            outcome(&Test::new("t", || eq!(1, 2))),
            Outcome::Fail(_)
        ));
        assert!(matches!(
            outcome(&Test::new("t", || check!(1 > 2, "no"))),
            Outcome::Fail(_)
        ));
        assert!(matches!(
            outcome(&Test::new("t", || panic!("p"))),
            Outcome::Fail(_)
        ));
        assert!(matches!(
            outcome(&Test::new("t", || must!(Err::<(), i32>(5)))),
            Outcome::Fail(_)
        ));
        assert!(matches!(
            outcome(&Test::new("t", || std::process::abort())),
            Outcome::Fail(_)
        ));
        assert!(matches!(outcome(&Test::new("t", || skip("why"))), Outcome::Skip(w) if w == "why"));
        let late = Test::new("t", || std::thread::sleep(Duration::from_secs(60))).secs(1);
        assert!(matches!(outcome(&late), Outcome::Fail(_)));
        // A skip after a failed check is a failure.
        let both = Test::new("t", || {
            eq!(1, 2);
            skip("why")
        });
        assert!(matches!(outcome(&both), Outcome::Fail(_)));
        // So is one in a process that does not live to tell.
        let killed = Test::new("t", || {
            let pid = sys::fork(|| {
                eq!(1, 2);
                let _ = sys::kill(std::process::id() as i32, libc::SIGKILL);
                0
            });
            eq!(sys::wait(pid, true), Ended::Signal(libc::SIGKILL));
        });
        assert!(matches!(outcome(&killed), Outcome::Fail(_)));
        // The kernel's complaint fails a test that passed.
        let good = Test::new("t", || eq!(1, 1));
        let limit = Duration::from_secs(5);
        let r = run_child(&good, limit);
        assert!(matches!(
            judge(&good, &r, limit, &["WARNING: x".to_owned()]),
            Outcome::Fail(_)
        ));
    }
}
