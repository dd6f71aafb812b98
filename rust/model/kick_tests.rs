// SPDX-License-Identifier: GPL-2.0
//! The protocol under every interleaving of a CPU that runs guests and one that takes a page away, on a memory with store buffers as x86 has
//! them; and that breaking any one step of it shows.

use std::boxed::Box;
use std::sync::{Arc, Condvar, Mutex};
use std::vec::Vec;

use super::*;

/// A thread of the test: the vCPU's, and the one that changes an entry.
const VCPU: usize = 0;
const HOST: usize = 1;

/// Memory words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    Flush,
    InGuest,
    Cpu,
    /// The second-stage entry: 1 while it maps the page.
    Entry,
    /// The interrupt that the host sent, and whether it was answered.
    Interrupt,
    Answered,
    /// The host uses the page for something else.
    Reused,
}

/// What the threads share, and whose turn it is.
#[derive(Default)]
struct State {
    memory: [u32; 7],
    /// Stores that no other CPU sees yet, oldest first.
    buffers: [Vec<(usize, u32)>; 2],
    /// Choices: those to be made, those made, and how many there were each time.
    plan: Vec<usize>,
    made: Vec<(usize, usize)>,
    /// Whose turn it is; a thread that waits for a word to become 1; threads that are done.
    turn: Option<usize>,
    waiting: [Option<usize>; 2],
    arrived: [bool; 2],
    done: [bool; 2],
    stale: bool,
    stuck: bool,
}

impl State {
    fn read(&self, thread: usize, word: Word) -> u32 {
        let own = self.buffers[thread].iter().rev();
        own.clone()
            .find(|(w, _)| *w == word as usize)
            .map_or(self.memory[word as usize], |(_, v)| *v)
    }
    fn drain(&mut self, thread: usize) {
        if !self.buffers[thread].is_empty() {
            let (word, value) = self.buffers[thread].remove(0);
            self.memory[word] = value;
        }
    }
    fn drain_all(&mut self, thread: usize) {
        while !self.buffers[thread].is_empty() {
            self.drain(thread);
        }
    }

    /// Lets store buffers drain, or picks the next thread, as the plan says; beyond the plan, the first choice.
    fn schedule(&mut self) {
        loop {
            if !(0..2).all(|t| self.arrived[t] || self.done[t]) {
                return;
            }
            let runs =
                |s: &Self, t: usize| !s.done[t] && s.waiting[t].is_none_or(|w| s.memory[w] == 1);
            let mut choices: Vec<(bool, usize)> = (0..2)
                .filter(|t| runs(self, *t))
                .map(|t| (true, t))
                .collect();
            choices.extend(
                (0..2)
                    .filter(|t| !self.buffers[*t].is_empty())
                    .map(|t| (false, t)),
            );
            if choices.is_empty() {
                self.stuck = !self.done.iter().all(|d| *d);
                return;
            }
            let at = self.plan.get(self.made.len()).copied().unwrap_or(0);
            self.made.push((at, choices.len()));
            match choices[at] {
                (true, t) => {
                    self.turn = Some(t);
                    self.arrived[t] = false;
                    self.waiting[t] = None;
                    return;
                }
                (false, t) => self.drain(t),
            }
        }
    }
}

/// The machine as one thread sees it.
#[derive(Clone)]
struct Machine {
    thread: usize,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Machine {
    /// Takes a turn, and does `body` in it.
    fn step<R>(&self, until: Option<Word>, body: impl FnOnce(&mut State) -> R) -> R {
        let (lock, changed) = &*self.shared;
        let mut s = lock.lock().unwrap();
        s.arrived[self.thread] = true;
        s.waiting[self.thread] = until.map(|w| w as usize);
        if s.turn.is_none() {
            s.schedule();
            changed.notify_all();
        }
        while s.turn != Some(self.thread) && !s.stuck {
            s = changed.wait(s).unwrap();
        }
        let r = body(&mut s);
        s.turn = None;
        r
    }
    fn finish(&self) {
        let (lock, changed) = &*self.shared;
        let mut s = lock.lock().unwrap();
        s.drain_all(self.thread);
        s.done[self.thread] = true;
        s.schedule();
        changed.notify_all();
    }
    fn load(&self, word: Word) -> u32 {
        self.step(None, |s| s.read(self.thread, word))
    }
    fn store(&self, word: Word, value: u32) {
        self.step(None, |s| {
            s.buffers[self.thread].push((word as usize, value))
        });
    }
    fn swap(&self, word: Word, value: u32) -> u32 {
        self.step(None, |s| {
            s.drain_all(self.thread);
            core::mem::replace(&mut s.memory[word as usize], value)
        })
    }
    /// Waits, on this CPU alone, until the word is 1.
    fn wait(&self, word: Word) {
        self.step(Some(word), |_| {});
    }
}

/// A word as one thread reaches it.
struct Cell(Machine, Word);

impl Flag for Cell {
    fn load(&self) -> bool {
        self.0.load(self.1) != 0
    }
    fn store(&self, value: bool) {
        self.0.store(self.1, value.into());
    }
    fn swap(&self, value: bool) -> bool {
        self.0.swap(self.1, value.into()) != 0
    }
}

/// The word that names a CPU.
struct CpuCell(Machine);

impl Number for CpuCell {
    fn load(&self) -> u32 {
        self.0.load(Word::Cpu)
    }
    fn store(&self, value: u32) {
        self.0.store(Word::Cpu, value);
    }
}

/// What is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// The flag is not set.
    NoDemand,
    /// No interrupt is sent.
    NoKick,
    /// An entry does not look at the flag.
    NotTaken,
    /// It looks at the flag before it announces itself.
    TakenFirst,
    /// It announces itself with a store that is no barrier, and only reads the flag.
    NoBarrier,
    /// The host looks for the vCPU before it sets the flag.
    LooksFirst,
}

fn enter(m: &Machine, p: &Presence<Cell, CpuCell>, broken: Broken) -> bool {
    match broken {
        Broken::NotTaken => {
            p.enter(7);
            false
        }
        Broken::TakenFirst => {
            let owed = p.flush.swap(false);
            p.cpu.store(7);
            p.in_guest.swap(true);
            owed
        }
        Broken::NoBarrier => {
            p.cpu.store(7);
            p.in_guest.store(true);
            m.load(Word::Flush) != 0 && p.flush.swap(false)
        }
        _ => p.enter(7),
    }
}

/// One entry of a vCPU that has the page's translation cached from an earlier run.
fn run_guest(m: &Machine, broken: Broken) {
    let p = presence(m);
    let cached = !enter(m, &p, broken);
    // The guest's access, unless an interrupt ended its run before.
    m.step(None, |s| {
        let mapped = s.memory[Word::Entry as usize] == 1;
        if s.memory[Word::Interrupt as usize] == 0 && (cached || mapped) {
            // Whatever the host does with the page now, the guest reaches it.
            s.stale |= s.memory[Word::Reused as usize] == 1;
        }
    });
    p.leave();
    // Interrupts are on from here on: one that is sent is answered at once.
    m.swap(Word::Answered, 1);
}

fn take_page(m: &Machine, broken: Broken) {
    let p = presence(m);
    m.swap(Word::Entry, 0);
    let target = match broken {
        Broken::NoDemand => p.in_guest.load().then(|| p.cpu.load()),
        Broken::LooksFirst => {
            let there = p.in_guest.load();
            p.flush.swap(true);
            there.then(|| p.cpu.load())
        }
        _ => p.demand_flush(),
    };
    if let Some(cpu) = target.filter(|_| broken != Broken::NoKick) {
        assert_eq!(cpu, 7, "a CPU that it was never on");
        m.swap(Word::Interrupt, 1);
        m.wait(Word::Answered);
    }
    m.swap(Word::Reused, 1);
}

fn presence(m: &Machine) -> Presence<Cell, CpuCell> {
    let cell = |w| Cell(m.clone(), w);
    Presence::new(cell(Word::Flush), cell(Word::InGuest), CpuCell(m.clone()))
}

/// Runs one schedule; gives the choices that were made.
fn run(plan: Vec<usize>, broken: Broken) -> (Vec<(usize, usize)>, bool) {
    let mut state = State {
        plan,
        ..State::default()
    };
    state.memory[Word::Entry as usize] = 1;
    let shared = Arc::new((Mutex::new(state), Condvar::new()));
    let machine = |thread| Machine {
        thread,
        shared: shared.clone(),
    };
    std::thread::scope(|s| {
        let bodies: [Box<dyn FnOnce() + Send>; 2] = [
            Box::new({
                let m = machine(VCPU);
                move || {
                    run_guest(&m, broken);
                    m.finish();
                }
            }),
            Box::new({
                let m = machine(HOST);
                move || {
                    take_page(&m, broken);
                    m.finish();
                }
            }),
        ];
        bodies.map(|b| s.spawn(b)).map(|t| t.join().unwrap());
    });
    let s = shared.0.lock().unwrap();
    assert!(!s.stuck, "nobody can go on: {:?}", s.made);
    (s.made.clone(), s.stale)
}

/// Whether any schedule lets the guest reach the page after it is used for something else. Stops at the first; gives the number tried.
fn explore(broken: Broken) -> (bool, u32) {
    let mut plan = Vec::new();
    let mut tried = 0;
    loop {
        let (made, stale) = run(plan, broken);
        tried += 1;
        if stale {
            return (true, tried);
        }
        // The next schedule: the last choice that was not the last one there was.
        let mut next = made;
        while next.last().is_some_and(|(at, of)| at + 1 == *of) {
            next.pop();
        }
        let Some((at, _)) = next.last_mut() else {
            return (false, tried);
        };
        *at += 1;
        plan = next.into_iter().map(|(at, _)| at).collect();
    }
}

#[test]
fn no_interleaving_leaves_a_stale_translation() {
    let (stale, tried) = explore(Broken::Nothing);
    assert!(!stale);
    assert!(tried > 500, "only {tried} schedules");
}

#[test]
fn every_broken_step_shows() {
    for broken in [
        Broken::NoDemand,
        Broken::NoKick,
        Broken::NotTaken,
        Broken::TakenFirst,
        Broken::NoBarrier,
        Broken::LooksFirst,
    ] {
        assert!(explore(broken).0, "{broken:?}");
    }
}
