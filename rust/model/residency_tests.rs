// SPDX-License-Identifier: GPL-2.0
//! A model check of VMCS residency: every interleaving of two threads, each with a VMCS, on two processors.
//!
//! The hardware's own idea of what is active, current and launched is kept beside the bookkeeping, and after every
//! step the two must agree as far as the module's head comment promises.
use super::*;
use std::collections::HashSet;
use std::vec::Vec;

const CPUS: usize = 2;
const VMCSS: usize = 2;

/// One processor: the hardware's side, and the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Cpu {
    hw_active: [bool; VMCSS],
    hw_current: Option<usize>,
    listed: [bool; VMCSS],
    current: Option<usize>,
    /// The thread that runs here with preemption off.
    owner: Option<usize>,
    irqs_off: bool,
    /// VMCLEAR of this one was executed, and one of unlisting and setting its place is still to do.
    clearing: Option<usize>,
}

/// How far the owner of a VMCS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Away,
    Loading,
    Listed,
    Placed,
    Inside,
    Freed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Vmcs {
    place: Place,
    hw_launched: bool,
    step: Step,
    cpu: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    cpus: [Cpu; CPUS],
    vmcss: [Vmcs; VMCSS],
}

/// Deliberate changes of the protocol, to see what the check makes of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mutation {
    None,
    NoClearOnMigration,
    FreeWithoutClear,
    PointBeforeListing,
    PlaceBeforeUnlisting,
    ForgetCurrent,
}

impl World {
    fn start() -> Self {
        let vmcs = Vmcs {
            place: Place::Clear,
            hw_launched: false,
            step: Step::Away,
            cpu: 0,
        };
        Self {
            cpus: [Cpu::default(); CPUS],
            vmcss: [vmcs; VMCSS],
        }
    }

    fn vmptrld(&mut self, cpu: usize, v: usize) {
        self.cpus[cpu].hw_active[v] = true;
        self.cpus[cpu].hw_current = Some(v);
        self.cpus[cpu].current = Some(v);
    }

    /// The first half of clearing `v` on `cpu`, which has interrupts off until the second.
    fn begin_clear(&mut self, cpu: usize, v: usize, mutation: Mutation) -> Result<(), Misplaced> {
        let cleared = self.vmcss[v].place.cleared(cpu as u32)?;
        self.cpus[cpu].hw_active[v] = false;
        self.vmcss[v].hw_launched = false;
        if self.cpus[cpu].hw_current == Some(v) {
            self.cpus[cpu].hw_current = None;
        }
        if self.cpus[cpu].current == Some(v) && mutation != Mutation::ForgetCurrent {
            self.cpus[cpu].current = None;
        }
        if mutation == Mutation::PlaceBeforeUnlisting {
            self.vmcss[v].place = cleared;
        } else {
            self.cpus[cpu].listed[v] = false;
        }
        self.cpus[cpu].clearing = Some(v);
        self.cpus[cpu].irqs_off = true;
        Ok(())
    }

    /// The second half of a clearing on `cpu`, if there is one.
    fn end_clear(mut self, cpu: usize, mutation: Mutation) -> Result<Option<Self>, Misplaced> {
        let Some(v) = self.cpus[cpu].clearing.take() else {
            return Ok(None);
        };
        if mutation == Mutation::PlaceBeforeUnlisting {
            self.cpus[cpu].listed[v] = false;
        } else {
            self.vmcss[v].place = self.vmcss[v].place.cleared(cpu as u32)?;
        }
        self.cpus[cpu].irqs_off = false;
        Ok(Some(self))
    }

    /// The worlds that one step of the owner of `v` can lead to.
    fn thread_steps(self, v: usize, mutation: Mutation) -> Result<Vec<Self>, Misplaced> {
        let mut next = Vec::new();
        let mut w = self;
        let cpu = self.vmcss[v].cpu;
        let running = !matches!(self.vmcss[v].step, Step::Away | Step::Freed);
        if running && self.cpus[cpu].clearing.is_some() {
            // The processor is in the interrupt handler.
            return Ok(next);
        }
        match self.vmcss[v].step {
            Step::Away => {
                for cpu in 0..CPUS {
                    if self.cpus[cpu].owner.is_none() && self.cpus[cpu].clearing.is_none() {
                        let mut w = self;
                        w.cpus[cpu].owner = Some(v);
                        w.vmcss[v].cpu = cpu;
                        w.vmcss[v].step = Step::Loading;
                        next.push(w);
                    }
                }
                match self.vmcss[v].place.release() {
                    Some(there) if mutation != Mutation::FreeWithoutClear => {
                        if !self.cpus[there as usize].irqs_off {
                            w.begin_clear(there as usize, v, mutation)?;
                            next.push(w);
                        }
                    }
                    _ => {
                        w.vmcss[v].step = Step::Freed;
                        next.push(w);
                    }
                }
            }
            Step::Loading => {
                match self.vmcss[v]
                    .place
                    .load(cpu as u32, self.cpus[cpu].current == Some(v))
                {
                    Load::Ready => w.vmcss[v].step = Step::Inside,
                    Load::Point => {
                        w.vmptrld(cpu, v);
                        w.vmcss[v].step = Step::Inside;
                    }
                    Load::ClearOn(there) if mutation != Mutation::NoClearOnMigration => {
                        assert_ne!(there as usize, cpu);
                        if self.cpus[there as usize].irqs_off {
                            return Ok(next);
                        }
                        w.begin_clear(there as usize, v, mutation)?;
                    }
                    Load::ClearOn(_) | Load::Claim => {
                        w.cpus[cpu].irqs_off = true;
                        if mutation == Mutation::PointBeforeListing {
                            w.vmptrld(cpu, v);
                        } else {
                            w.cpus[cpu].listed[v] = true;
                        }
                        w.vmcss[v].step = Step::Listed;
                    }
                }
                next.push(w);
            }
            Step::Listed => {
                w.cpus[cpu].listed[v] = true;
                w.vmcss[v].place = self.vmcss[v].place.claimed(cpu as u32)?;
                w.vmcss[v].step = Step::Placed;
                next.push(w);
            }
            Step::Placed => {
                w.vmptrld(cpu, v);
                w.cpus[cpu].irqs_off = false;
                w.vmcss[v].step = Step::Inside;
                next.push(w);
            }
            Step::Inside => {
                w.cpus[cpu].owner = None;
                w.vmcss[v].step = Step::Away;
                next.push(w);

                // An entry: the hardware's rules are checked here.
                let mut w = self;
                assert_eq!(
                    self.cpus[cpu].hw_current,
                    Some(v),
                    "entry with the wrong VMCS"
                );
                match self.vmcss[v].place.enter(cpu as u32)? {
                    Enter::Launch => assert!(!self.vmcss[v].hw_launched),
                    Enter::Resume => assert!(self.vmcss[v].hw_launched),
                }
                w.vmcss[v].hw_launched = true;
                w.vmcss[v].place = self.vmcss[v].place.entered();
                next.push(w);
            }
            Step::Freed => {}
        }
        Ok(next)
    }

    /// `cpu` goes offline, which it can do when no thread holds it: what is listed there is cleared, one after the other.
    fn offline(mut self, cpu: usize, mutation: Mutation) -> Result<Option<Self>, Misplaced> {
        if self.cpus[cpu].owner.is_some() || self.cpus[cpu].irqs_off {
            return Ok(None);
        }
        match (0..VMCSS).find(|v| self.cpus[cpu].listed[*v]) {
            Some(v) => self.begin_clear(cpu, v, mutation)?,
            None => {
                assert_eq!(
                    self.cpus[cpu].hw_active, [false; VMCSS],
                    "active on a dead processor"
                );
                return Ok(None);
            }
        }
        Ok(Some(self))
    }

    /// What must hold between any two steps.
    fn check(&self) -> Result<(), &'static str> {
        for v in 0..VMCSS {
            let active: Vec<usize> = (0..CPUS).filter(|c| self.cpus[*c].hw_active[v]).collect();
            if active.len() > 1 {
                return Err("active twice");
            }
            if self.vmcss[v].step == Step::Freed && !active.is_empty() {
                return Err("freed while active");
            }
            if self.cpus.iter().filter(|c| c.listed[v]).count() > 1 {
                return Err("in two lists");
            }
            if active.iter().any(|c| !self.cpus[*c].listed[v]) {
                return Err("a crash would miss it");
            }
        }
        Ok(())
    }
}

/// Explores everything that is reachable; the number of worlds, or what went wrong.
fn explore(mutation: Mutation) -> Result<usize, std::string::String> {
    let mut seen = HashSet::new();
    let mut todo = std::vec![World::start()];
    while let Some(world) = todo.pop() {
        if !seen.insert(world) {
            continue;
        }
        world.check()?;
        let fail = |misplaced: Misplaced| std::format!("{misplaced:?}");
        for v in 0..VMCSS {
            todo.extend(world.thread_steps(v, mutation).map_err(fail)?);
        }
        for cpu in 0..CPUS {
            todo.extend(world.offline(cpu, mutation).map_err(fail)?);
            todo.extend(world.end_clear(cpu, mutation).map_err(fail)?);
        }
    }
    Ok(seen.len())
}

#[test]
fn every_interleaving_is_sound() {
    let worlds = explore(Mutation::None).unwrap();
    assert!(
        worlds > 500,
        "only {worlds} worlds: the model does not move"
    );
}

/// The check is worth something only if it finds mistakes.
#[test]
fn mistakes_are_found() {
    for mutation in [
        Mutation::NoClearOnMigration,
        Mutation::FreeWithoutClear,
        Mutation::PointBeforeListing,
    ] {
        assert!(explore(mutation).is_err());
    }
}

/// The place is asked first, so a current pointer that outlived its VMCS does no harm.
#[test]
fn a_stale_current_pointer_is_harmless() {
    assert!(explore(Mutation::ForgetCurrent).is_ok());
}

#[test]
fn words_round_trip() {
    for place in [
        Place::Clear,
        Place::Active {
            cpu: 0,
            launched: false,
        },
        Place::Active {
            cpu: u32::MAX,
            launched: true,
        },
    ] {
        assert_eq!(Place::from_word(place.to_word()), place);
    }
    assert_eq!(Place::Clear.to_word(), 0);
}
