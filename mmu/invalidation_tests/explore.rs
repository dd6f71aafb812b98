// SPDX-License-Identifier: GPL-2.0
//! All that several threads can do to each other, tried one by one.
//!
//! A thread is a function that asks for accesses to shared memory, and the state of a thread is the list of the answers that it
//! got: to take it a step further, it is run again from its beginning with those, up to its next access. So ordinary code runs
//! here unchanged.
//!
//! Memory is weaker than x86's: a load may give any value that its thread does not know to be overwritten. What a thread knows,
//! its view, comes from its own accesses, from loads with acquire of what was stored with release, and from locks and grace
//! periods. So an order that only hardware or luck would give is not relied on.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::format;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::string::String;
use std::vec::Vec;

use crate::mmu::invalidation::{Invalidations, Number};

/// Guest pages that there are.
pub(super) const GFNS: usize = 2;

/// A number in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Loc {
    /// The two of `HostChanges`.
    Active,
    Sequence,
    /// The published set of slots.
    Slots,
    /// What the host's page table says of the one user page.
    Page,
}

const LOCS: usize = 4;

/// What the lock `host` guards. A slot is told by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub(super) invalidations: Invalidations,
    pub(super) retiring: Option<usize>,
}

/// Something that one thread does and others can notice.
#[allow(
    clippy::large_enum_variant,
    reason = "it has to be Copy, and there are few at a time"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Load(Loc),
    Store(Loc, u64),
    HostLock,
    HostUnlock(Host),
    ReadLock,
    ReadUnlock,
    WriteLock,
    WriteUnlock,
    SrcuEnter,
    SrcuLeave,
    GraceBegin,
    GraceEnd,
    /// A leaf for this guest page becomes visible, or goes.
    Map(usize, u64),
    Zap(usize),
    /// From here on, up to the next, the host relies on the page not being mapped.
    Quiet,
    Loud,
    /// The host puts another page there.
    Change,
}

impl Access {
    /// Takes nothing but from its own thread, and only lets others go on: nothing is lost if it comes at once.
    fn lets_go(self) -> bool {
        use Access::*;
        matches!(
            self,
            HostUnlock(_) | ReadUnlock | WriteUnlock | SrcuLeave | Quiet
        )
    }
    /// Others cannot tell whether it came earlier: the access after it comes at once.
    fn takes(self) -> bool {
        matches!(self, Self::HostLock | Self::ReadLock | Self::WriteLock)
    }
}

/// A part of the memory order that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weak {
    Acquire(Loc),
    Release(Loc),
    /// The store does not happen.
    Store(Loc),
}

#[allow(
    clippy::large_enum_variant,
    reason = "it has to be Copy, and there are few at a time"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Number(u64),
    Host(Host),
}

/// The newest value of each number that a thread knows of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct View([u8; LOCS]);

impl View {
    fn join(&mut self, other: Self) {
        for (mine, other) in self.0.iter_mut().zip(other.0) {
            *mine = (*mine).max(other);
        }
    }
}

/// What a thread's code asks for its accesses.
pub(super) struct Io<'a> {
    log: &'a [Answer],
    at: Cell<usize>,
    next: Cell<Option<Access>>,
}

impl Io<'_> {
    fn ask(&self, access: Access) -> Answer {
        let at = self.at.get();
        self.at.set(at + 1);
        if at == self.log.len() {
            self.next.set(Some(access));
        }
        // What follows the next access is not looked at.
        self.log.get(at).copied().unwrap_or(Answer::Number(0))
    }
    pub(super) fn does(&self, access: Access) {
        self.ask(access);
    }
    pub(super) fn load(&self, loc: Loc) -> u64 {
        match self.ask(Access::Load(loc)) {
            Answer::Number(n) => n,
            Answer::Host(_) => unreachable!(),
        }
    }
    pub(super) fn host<R>(&self, f: impl FnOnce(&mut Host) -> R) -> R {
        let mut host = match self.ask(Access::HostLock) {
            Answer::Host(host) => host,
            Answer::Number(_) => Host::default(),
        };
        let result = f(&mut host);
        self.ask(Access::HostUnlock(host));
        result
    }
}

/// A number, for the code under test.
pub(super) struct Shared<'a>(pub(super) &'a Io<'a>, pub(super) Loc);

impl Number for Shared<'_> {
    fn load(&self) -> u64 {
        self.0.load(self.1)
    }
    fn store(&self, value: u64) {
        self.0.does(Access::Store(self.1, value));
    }
}

/// The code of a thread.
pub(super) type Thread<'a> = &'a dyn Fn(&Io<'_>);

#[derive(Clone, Hash)]
struct State {
    numbers: [Vec<(u64, View)>; LOCS],
    views: Vec<View>,
    logs: Vec<Vec<Answer>>,
    host: Host,
    host_locked: bool,
    host_view: View,
    readers: u32,
    writing: bool,
    /// What a writer, and what a reader of `mmu_lock` learns.
    all_view: View,
    written_view: View,
    srcu: Vec<usize>,
    waited_for: Vec<usize>,
    grace_view: View,
    left_view: View,
    leaves: [Option<u64>; GFNS],
    quiet: u32,
}

impl State {
    /// How many results the access can have now.
    fn options(&self, t: usize, access: Access) -> usize {
        let free = match access {
            Access::Load(loc) => {
                return self.numbers[loc as usize].len()
                    - usize::from(self.views[t].0[loc as usize])
            }
            Access::HostLock => !self.host_locked,
            Access::ReadLock => !self.writing,
            Access::WriteLock => !self.writing && self.readers == 0,
            Access::GraceEnd => self.waited_for.is_empty(),
            _ => true,
        };
        usize::from(free)
    }

    fn store(&mut self, t: usize, loc: Loc, value: u64, release: bool) {
        let all = &mut self.numbers[loc as usize];
        let mut view = View::default();
        self.views[t].0[loc as usize] = all.len() as u8;
        view.0[loc as usize] = all.len() as u8;
        all.push((value, if release { self.views[t] } else { view }));
    }

    /// Locks, SRCU and its grace periods. Who takes learns what those knew who let go.
    fn lock(&mut self, t: usize, access: Access, view: &mut View) {
        match access {
            Access::HostLock => {
                self.host_locked = true;
                view.join(self.host_view);
            }
            Access::HostUnlock(host) => {
                (self.host_locked, self.host) = (false, host);
                self.host_view.join(*view);
            }
            Access::ReadLock => {
                self.readers += 1;
                view.join(self.written_view);
            }
            Access::ReadUnlock => {
                self.readers -= 1;
                self.all_view.join(*view);
            }
            Access::WriteLock => {
                self.writing = true;
                view.join(self.all_view);
            }
            Access::WriteUnlock => {
                self.writing = false;
                self.all_view.join(*view);
                self.written_view.join(*view);
            }
            Access::SrcuEnter => {
                self.srcu.push(t);
                view.join(self.grace_view);
            }
            Access::SrcuLeave => {
                self.srcu.retain(|&other| other != t);
                self.waited_for.retain(|&other| other != t);
                self.left_view.join(*view);
            }
            Access::GraceBegin => {
                self.grace_view.join(*view);
                self.waited_for = self.srcu.clone();
            }
            Access::GraceEnd => view.join(self.left_view),
            _ => unreachable!("{access:?} is no lock"),
        }
    }

    /// One of its results.
    fn step(
        &mut self,
        t: usize,
        access: Access,
        option: usize,
        weak: Option<Weak>,
    ) -> Result<(), String> {
        let mut answer = Answer::Number(0);
        let mut view = self.views[t];
        match access {
            Access::Load(loc) => {
                let index = usize::from(view.0[loc as usize]) + option;
                let (value, of_store) = self.numbers[loc as usize][index];
                view.0[loc as usize] = index as u8;
                if loc != Loc::Page && weak != Some(Weak::Acquire(loc)) {
                    view.join(of_store);
                }
                answer = Answer::Number(value);
            }
            Access::Store(loc, _) if weak == Some(Weak::Store(loc)) => {}
            Access::Store(loc, value) => {
                self.store(t, loc, value, weak != Some(Weak::Release(loc)));
                view = self.views[t];
            }
            Access::Map(gfn, page) => {
                self.leaves[gfn] = Some(page);
                let now = self.numbers[Loc::Page as usize].last().map(|n| n.0);
                if self.quiet > 0 || now != Some(page) {
                    return Err(format!("{t} maps page {page}, the host has {now:?}"));
                }
            }
            Access::Zap(gfn) => self.leaves[gfn] = None,
            Access::Quiet => {
                self.quiet += 1;
                if self.leaves.iter().any(Option::is_some) {
                    return Err(format!("{t} left {:?} mapped", self.leaves));
                }
            }
            Access::Loud => self.quiet -= 1,
            Access::Change => {
                let pages = self.numbers[Loc::Page as usize].len();
                self.store(t, Loc::Page, pages as u64, false);
                view = self.views[t];
            }
            _ => {
                if access == Access::HostLock {
                    answer = Answer::Host(self.host);
                }
                self.lock(t, access, &mut view);
            }
        }
        self.views[t] = view;
        self.logs[t].push(answer);
        Ok(())
    }
}

/// What was seen on all ways together.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) states: usize,
    /// Ends with a leaf, and without.
    pub(super) mapped: usize,
    pub(super) unmapped: usize,
}

struct Explorer<'a> {
    threads: &'a [Thread<'a>],
    weak: Option<Weak>,
    known: RefCell<HashSet<u64>>,
}

impl Explorer<'_> {
    fn next(&self, state: &State, t: usize) -> Option<Access> {
        let io = Io {
            log: &state.logs[t],
            at: Cell::new(0),
            next: Cell::new(None),
        };
        self.threads[t](&io);
        io.next.get()
    }

    /// Takes one step of a thread in all ways, with what comes at once after it.
    fn go(
        &self,
        state: &State,
        t: usize,
        access: Access,
        out: &mut Vec<State>,
    ) -> Result<(), String> {
        for option in 0..state.options(t, access) {
            let mut new = state.clone();
            new.step(t, access, option, self.weak)?;
            let next = self.next(&new, t);
            let at_once =
                |next: &Access| next.lets_go() || (access.takes() && new.options(t, *next) > 0);
            if let Some(next) = next.filter(at_once) {
                self.go(&new, t, next, out)?;
                continue;
            }
            let mut hash = DefaultHasher::new();
            new.hash(&mut hash);
            if self.known.borrow_mut().insert(hash.finish()) {
                out.push(new);
            }
        }
        Ok(())
    }
}

/// Tries all ways in which the threads can go, with `slots` published. The first that is wrong is an error.
pub(super) fn explore(
    slots: u64,
    threads: &[Thread<'_>],
    weak: Option<Weak>,
) -> Result<Seen, String> {
    let number = |value| std::vec![(value, View::default())];
    let mut todo = std::vec![State {
        numbers: [number(0), number(0), number(slots), number(0)],
        views: std::vec![View::default(); threads.len()],
        logs: std::vec![Vec::new(); threads.len()],
        host: Host::default(),
        host_locked: false,
        host_view: View::default(),
        readers: 0,
        writing: false,
        all_view: View::default(),
        written_view: View::default(),
        srcu: Vec::new(),
        waited_for: Vec::new(),
        grace_view: View::default(),
        left_view: View::default(),
        leaves: [None; GFNS],
        quiet: 0,
    }];
    let explorer = Explorer {
        threads,
        weak,
        known: RefCell::new(HashSet::new()),
    };
    let mut seen = Seen::default();
    while let Some(state) = todo.pop() {
        seen.states += 1;
        let before = todo.len();
        let (mut running, mut stuck) = (false, true);
        for t in 0..threads.len() {
            if let Some(access) = explorer.next(&state, t) {
                running = true;
                stuck &= state.options(t, access) == 0;
                explorer.go(&state, t, access, &mut todo)?;
            }
        }
        if running && stuck {
            return Err(format!("stuck, {} on the way", before));
        }
        match state.leaves.iter().any(Option::is_some) {
            _ if running => {}
            true => seen.mapped += 1,
            false => seen.unmapped += 1,
        }
    }
    Ok(seen)
}
