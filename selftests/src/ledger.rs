// SPDX-License-Identifier: GPL-2.0
//! The module that is built with LODGE_LEDGER stops a VM for which a TLB flush is missing. Each of these tests does something
//! that needs a flush twice: with the whole module, which must go well, and with one step of the flush left out, which must be
//! noticed.

use crate::guest::*;
use crate::harness::{self, rounds, Test};
use crate::kvm::Exit;
use crate::stress::Setting;
use crate::sys::{self, Map};
use crate::{check, eq};
use iced_x86::code_asm::*;
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use libc::{EINTR, EIO, MADV_DONTNEED, SIGUSR1};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// What the module says when it stops a VM.
const STOPPED: &[&str] = &["VM stopped: ledger"];

const fn test(name: &'static str, run: fn()) -> Test {
    Test::new(name, run).no_ab().log_ok(STOPPED)
}

pub const TESTS: &[Test] = &[
    test("ledger/zapped", || proves(ZAPPED, thrown_away)),
    test("ledger/zapped_slot", || proves(ZAPPED, slot_deleted)),
    test("ledger/write_protected", || {
        proves(WRITE_PROTECTED, log_taken)
    }),
    test("ledger/kick", || proves(KICK, thrown_away_while_running)).cpus(2),
    test("ledger/kick_seen_by_guest", kick_seen)
        .cpus(2)
        .secs(60),
    test("ledger/missing_seen_by_guest", missing_seen),
    test("ledger/demand", || proves(DEMAND, thrown_away)),
    test("ledger/given_up", || proves(GIVEN_UP, entry_given_up)),
    test("ledger/flush_asid", flush_asid),
    test("ledger/fresh_asid", fresh_asid),
    test("ledger/moved_asid", || on_amd(MOVED_ASID, moved)).cpus(2),
    test("ledger/generation", || on_amd(GENERATION, use_all_asids)),
    test("ledger/restarted", || on_amd(RESTARTED, cpu_restarted)).cpus(2),
    test("ledger/refused", || on_amd(REFUSED, entry_refused)),
    test("ledger/invept", || on_intel(INVEPT, thrown_away)),
    test("ledger/moved", || on_intel(MOVED, moved)).cpus(2),
];

// The numbers of `Step::ALL` in mmu/step.rs.
const ZAPPED: u32 = 1;
const WRITE_PROTECTED: u32 = 2;
const KICK: u32 = 5;
const DEMAND: u32 = 6;
const GIVEN_UP: u32 = 7;
const FLUSH_ASID: u32 = 8;
const FRESH_ASID: u32 = 9;
const MOVED_ASID: u32 = 10;
const GENERATION: u32 = 11;
const RESTARTED: u32 = 12;
const REFUSED: u32 = 13;
const INVEPT: u32 = 14;
const MOVED: u32 = 15;

/// Those that leave ASIDs behind which are not what the module holds them for, so that later tests would find that too.
const SPOILING: [u32; 4] = [MOVED_ASID, GENERATION, RESTARTED, REFUSED];

/// Where the slot 1 is.
const SLOT: u64 = 0x1000_0000;
const PAGE: u64 = 4096;
/// Whether a VM is stopped for which a flush is missing.
const LEDGER: &str = "/sys/module/kvm/parameters/ledger";

fn leave_out(step: u32) -> Setting {
    let set = Setting::new("/sys/module/kvm/parameters/break_flush", step);
    set.unwrap_or_else(|| harness::skip("not the module with the ledger: VENDOR=ledger has it"))
}

/// Without the step the VM is stopped, with it not.
fn proves(step: u32, stopped: fn() -> bool) {
    // Another CPU would be a reason to flush.
    crate::must!(sys::pin(0, 0));
    let whole = leave_out(0);
    check!(!stopped(), "stopped though nothing is left out");
    drop(whole);
    let broken = leave_out(step);
    check!(stopped(), "step {step} is missing, and nobody noticed");
    drop(broken);
    if SPOILING.contains(&step) {
        recover();
    }
}

/// Identifiers that an emulated AMD CPU has; None if there are too many to use them all up.
fn asids() -> Option<u32> {
    Some(sys::cpuid(0x8000_000a, 0)[1]).filter(|n| *n <= 512)
}

/// What was left out is left out still: an ASID may have translations of who had it before. So each CPU begins a new generation
/// of them.
fn recover() {
    let _off = Setting::new(LEDGER, 0);
    for cpu in (0..sys::cpus()).filter(|_| !intel()) {
        crate::must!(sys::pin(0, cpu));
        let _ = use_all_asids();
    }
    crate::must!(sys::pin(0, 0));
}

/// True: a VM was stopped.
fn use_all_asids() -> bool {
    (0..=asids().unwrap_or(0)).any(|_| stopped(&poker(0, false).0))
}

fn on_intel(step: u32, stopped: fn() -> bool) {
    if !intel() {
        harness::skip("a step of Intel's");
    }
    proves(step, stopped);
}

fn on_amd(step: u32, stopped: fn() -> bool) {
    if intel() {
        harness::skip("a step of AMD's");
    }
    if SPOILING.contains(&step) && asids().is_none() {
        harness::skip("too many ASIDs to use them all up");
    }
    proves(step, stopped);
}

fn intel() -> bool {
    sys::cpuid(0, 0)[1] == u32::from_le_bytes(*b"Genu")
}

/// Can the module flush one ASID?
fn by_asid() -> bool {
    let on = std::fs::read_to_string("/sys/module/kvm/parameters/flush_by_asid");
    sys::cpuid(0x8000_000a, 0)[3] >> 6 & 1 != 0 && on.is_ok_and(|v| v.trim() == "Y")
}

fn flush_asid() {
    if !intel() && !by_asid() {
        harness::skip("the CPU cannot flush one ASID");
    }
    on_amd(FLUSH_ASID, thrown_away);
}

fn fresh_asid() {
    if by_asid() {
        harness::skip("the CPU flushes an ASID in place of taking a new one");
    }
    on_amd(FRESH_ASID, thrown_away);
}

/// A guest that for ever reads (or writes) what RBX points at, and reports; with memory for that.
fn poker(flags: u32, write: bool) -> (Guest, Map) {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        if write {
            a.mov(dword_ptr(rbx), eax)?;
        }
        a.mov(eax, dword_ptr(rbx))?;
        a.out(0x10, eax)?;
        a.jmp(top)
    });
    let mut r = g.cpu.regs();
    r.rbx = SLOT;
    g.cpu.set_regs(&r);
    let m = Map::anon(4 * PAGE as usize);
    m.wr(0, 7u32);
    eq!(g.vm.region(1, flags, SLOT, 4 * PAGE, m.addr()), Ok(0));
    (g, m)
}

/// Runs to the next report. True: the VM was stopped.
fn stopped(g: &Guest) -> bool {
    match g.cpu.run() {
        Exit::Io { port: 0x10, .. } => false,
        Exit::Err(EIO, _) => true,
        e => panic!("{e:x?}{}", g.describe()),
    }
}

fn thrown_away() -> bool {
    let (g, m) = poker(0, false);
    (0..4).any(|_| {
        if stopped(&g) {
            return true;
        }
        eq!(m.advise(0, PAGE as usize, MADV_DONTNEED), Ok(0));
        stopped(&g)
    })
}

fn slot_deleted() -> bool {
    let (g, m) = poker(0, false);
    if stopped(&g) {
        return true;
    }
    eq!(g.vm.region(1, 0, SLOT, 0, m.addr()), Ok(0));
    match g.cpu.run() {
        Exit::Mmio { .. } => false,
        Exit::Err(EIO, _) => true,
        e => panic!("{e:x?}"),
    }
}

fn log_taken() -> bool {
    let (g, _m) = poker(KVM_MEM_LOG_DIRTY_PAGES, true);
    (0..4).any(|_| {
        if stopped(&g) {
            return true;
        }
        eq!(g.vm.dirty_pages(1, 4), Ok(vec![0]));
        stopped(&g)
    })
}

/// KVM_RUN ends for a signal before the guest is entered.
fn entry_given_up() -> bool {
    let (g, m) = poker(0, false);
    if stopped(&g) {
        return true;
    }
    eq!(m.advise(0, PAGE as usize, MADV_DONTNEED), Ok(0));
    g.cpu.run_signalled();
    stopped(&g)
}

/// More than once, as a new generation of ASIDs, whose flush is enough, may happen to begin just there.
fn moved() -> bool {
    (0..4).any(|_| moved_once())
}

/// Stale on CPU 0, while it is on CPU 1, where the demand is met.
fn moved_once() -> bool {
    let (g, m) = poker(0, false);
    let course = [(0, false), (1, true), (1, false), (0, false)];
    let any = course.into_iter().any(|(cpu, thrown_away)| {
        crate::must!(sys::pin(0, cpu));
        if stopped(&g) {
            return true;
        }
        if thrown_away {
            eq!(m.advise(0, PAGE as usize, MADV_DONTNEED), Ok(0));
        }
        false
    });
    crate::must!(sys::pin(0, 0));
    any
}

fn cpu_restarted() -> bool {
    let Some(switch) = sys::second_cpu_switch() else {
        harness::skip("there is no second CPU to switch off");
    };
    let (g, _m) = poker(0, false);
    crate::must!(sys::pin(0, 1));
    if stopped(&g) {
        return true;
    }
    crate::must!(sys::pin(0, 0));
    check!(std::fs::write(&switch, "0").is_ok(), "{switch} off");
    check!(std::fs::write(&switch, "1").is_ok(), "{switch} on");
    crate::must!(sys::pin(0, 1));
    let stopped = stopped(&g);
    crate::must!(sys::pin(0, 0));
    stopped
}

/// Refused entries, among them such that should flush everything.
fn entry_refused() -> bool {
    let (g, _m) = poker(0, false);
    let (good, regs) = (g.cpu.sregs(), g.cpu.regs());
    (0..=asids().unwrap_or(512)).any(|_| {
        let mut bad = good;
        // Code of 64 and of 32 bits.
        bad.cs.db = 1;
        g.cpu.set_sregs(&bad);
        match g.cpu.run() {
            Exit::Err(EIO, _) => return true,
            e => check!(matches!(e, Exit::FailEntry(_)), "{e:x?}"),
        }
        g.cpu.set_sregs(&good);
        g.cpu.set_regs(&regs);
        stopped(&g)
    })
}

/// A guest that counts in the logged slot and at DATA, without exits of its own; run until it is stopped or `stop`.
struct Spinner {
    g: Guest,
    m: Map,
    stop: AtomicBool,
    stopped: AtomicBool,
    done: AtomicBool,
    tid: AtomicI32,
}

impl Spinner {
    fn new() -> Self {
        let (g, m) = poker(KVM_MEM_LOG_DIRTY_PAGES, true);
        g.load(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.inc(dword_ptr(rbx))?;
            a.inc(qword_ptr(DATA))?;
            a.jmp(top)
        });
        will_spin(&g.cpu);
        sys::interrupting(SIGUSR1);
        let flag = || AtomicBool::new(false);
        Self {
            g,
            m,
            stop: flag(),
            stopped: flag(),
            done: flag(),
            tid: AtomicI32::new(0),
        }
    }

    /// Runs the guest on CPU 1, and `body` on CPU 0.
    fn with<R>(&self, body: impl FnOnce(&Self) -> R) -> R {
        crate::must!(sys::pin(0, 0));
        std::thread::scope(|s| {
            s.spawn(|| {
                crate::must!(sys::pin(0, 1));
                self.tid.store(sys::gettid(), Ordering::SeqCst);
                while !self.stop.load(Ordering::SeqCst) {
                    match self.g.cpu.run() {
                        Exit::Err(EINTR, _) => {}
                        Exit::Err(EIO, _) => {
                            self.stopped.store(true, Ordering::SeqCst);
                            break;
                        }
                        e => panic!("{e:x?}"),
                    }
                }
                self.done.store(true, Ordering::SeqCst);
            });
            self.turns(1);
            let result = body(self);
            self.stop.store(true, Ordering::SeqCst);
            while !self.done.load(Ordering::SeqCst) {
                let _ = sys::tkill(self.tid.load(Ordering::SeqCst), SIGUSR1);
                std::thread::sleep(Duration::from_millis(1));
            }
            result
        })
    }

    fn count(&self) -> u64 {
        self.g.mem.rd(DATA as usize)
    }

    /// Waits until the guest has gone round `n` times, without giving the CPU away. False: it does not run any more.
    fn turns(&self, n: u64) -> bool {
        let (began, before) = (Instant::now(), self.count());
        while self.count() < before + n {
            if self.stopped.load(Ordering::SeqCst) {
                return false;
            }
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "the guest stands still"
            );
        }
        true
    }
}

fn thrown_away_while_running() -> bool {
    Spinner::new().with(|s| {
        (0..100).any(|_| {
            eq!(s.m.advise(0, PAGE as usize, MADV_DONTNEED), Ok(0));
            // The guest leaves by a tick of the host at the latest, and that is when it is noticed.
            std::thread::sleep(Duration::from_millis(10));
            s.stopped.load(Ordering::SeqCst)
        })
    })
}

/// In how many of `n` rounds the guest writes to the logged page and the log does not tell. Taking the log takes the right to write,
/// and is all that drives the guest out: where user space unmaps memory, or a slot goes, the kernel may interrupt the CPU as well.
fn rounds_that_lose_a_write(n: u64) -> u64 {
    // Memory that is given back would be such a case.
    let log = Map::anon(8);
    Spinner::new().with(|s| {
        let take = || {
            eq!(s.g.vm.dirty_log_into(1, &log, 0), Ok(0));
            log.rd::<u64>(0) & 1 != 0
        };
        let mut lost = 0;
        for _ in 0..n {
            s.turns(2);
            take();
            // The turn that is under way may have written before.
            s.turns(2);
            lost += u64::from(!take());
        }
        lost
    })
}

/// The emulators keep translations while a guest runs, so a guest that is not driven out shows by itself that it was not.
fn kick_seen() {
    let whole = leave_out(0);
    let n = rounds(500, 50_000);
    eq!(
        rounds_that_lose_a_write(n),
        0,
        "of {n} rounds, nothing left out"
    );
    drop(whole);
    // The ledger would stop the guest at its first exit.
    let Some(_off) = Setting::new(LEDGER, 0) else {
        harness::skip("no parameter `ledger`")
    };
    let _broken = leave_out(KICK);
    let lost = rounds_that_lose_a_write(n);
    check!(
        lost > 0,
        "in {n} rounds, no write was lost though nobody drove the guest out"
    );
    harness::say(&format!("a write was lost in {lost} of {n} rounds"));
}

/// True: a guest reads a page in whose place there is another one.
fn reads_replaced(entry_given_up: bool) -> bool {
    let (g, m) = poker(0, false);
    m.wr(PAGE as usize, 9u32);
    stopped(&g);
    let page = PAGE as usize;
    // It stays what it is, elsewhere.
    eq!(m.remap(0, 2 * page, page), Ok(0));
    eq!(m.remap(page, 0, page), Ok(0));
    if entry_given_up {
        g.cpu.run_signalled();
    }
    stopped(&g);
    let read = g.cpu.regs().rax as u32;
    check!(read == 7 || read == 9, "the guest read {read:#x}");
    read == 7
}

/// True: a guest's write is not in the log.
fn write_lost() -> bool {
    let (g, _m) = poker(KVM_MEM_LOG_DIRTY_PAGES, true);
    stopped(&g);
    eq!(g.vm.dirty_pages(1, 4), Ok(vec![0]));
    stopped(&g);
    g.vm.dirty_pages(1, 4) == Ok(vec![])
}

/// True: a guest reads memory that it does not have any more.
fn reads_deleted() -> bool {
    let (g, m) = poker(0, false);
    stopped(&g);
    eq!(g.vm.region(1, 0, SLOT, 0, m.addr()), Ok(0));
    matches!(g.cpu.run(), Exit::Io { port: 0x10, .. })
}

/// On an emulator that keeps translations across world switches (`VENDOR=tagged-tlb`), a guest shows by itself that a flush is missing,
/// and with the whole module that none is.
fn missing_seen() {
    crate::must!(sys::pin(0, 0));
    drop(leave_out(0));
    let Some(_off) = Setting::new(LEDGER, 0) else {
        harness::skip("no parameter `ledger`")
    };
    let mut steps: Vec<(u32, fn() -> bool)> = vec![
        (ZAPPED, || reads_replaced(false)),
        (ZAPPED, reads_deleted),
        (WRITE_PROTECTED, write_lost),
        (DEMAND, || reads_replaced(false)),
        (GIVEN_UP, || reads_replaced(true)),
    ];
    // Without INVEPT there is INVVPID still, after which Bochs has nothing left: it keeps no guest-physical translations.
    if !intel() {
        steps.push((FLUSH_ASID, || reads_replaced(false)));
    }
    let mut seen = vec![];
    for (step, stale) in steps {
        check!(!stale(), "stale by step {step}, though nothing is left out");
        let _broken = leave_out(step);
        seen.push((step, (0..4).any(|_| stale())));
    }
    let all = |seen: &[(u32, bool)], is| seen.iter().all(|s| s.1 == is);
    harness::say(&format!("stale without a step: {seen:?}"));
    if all(&seen, false) && std::env::var_os("LODGE_TAGGED_TLB").is_none() {
        harness::skip("the emulator keeps no translations across world switches");
    }
    check!(
        all(&seen, true),
        "a guest did not see that a step was missing"
    );
}
