// SPDX-License-Identifier: GPL-2.0
//! A machine of two CPUs with a [`Tlb`] each, on which the module's own code runs: the engine and its flushes, the protocol between those who
//! change entries and those who run guests, ASIDs, VPIDs and invalidations. One flush at a time can be left out.

#[path = "guest.rs"]
mod guest;
#[path = "host.rs"]
mod host;
#[path = "memory.rs"]
mod memory;
#[path = "remote.rs"]
mod remote;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use self::memory::{Arena, CLOCK};
use self::remote::{Remote, Shared, StdFlag, StdNumber, Without};
use super::tlb::Tlb;
use crate::mmu::ledger::{self, Held, Missing};
use crate::mmu::pte::PteFormat;
use crate::mmu::step::{Flush, Step};
use crate::mmu::tdp::Tdp;
use crate::mmu::{GfnRange, Level};
use crate::model::kick::Presence;
use crate::svm::asid::{CpuAsids, Tlb as AsidFlush, VcpuAsid};
use crate::vmx::tlb::{Abilities, Extent, Invalidate, Stale};
use crate::vmx::vpid::Vpids;

/// What the CPUs are like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Machine {
    Amd { by_asid: bool, asids: u32 },
    Intel { vpid: bool, single: bool },
}

struct Vm<P: PteFormat> {
    tdp: Tdp<P>,
    remote: Arc<Remote>,
    /// Pages whose next use has to be seen.
    aged: BTreeSet<u64>,
}

struct Vcpu {
    shared: Arc<Shared>,
    asid: VcpuAsid,
    /// The ASID that the control block names.
    used_asid: u32,
    stale_asid: bool,
    last: Option<usize>,
    stale: Stale,
    vpid: u16,
    /// The CPU that has its control block, and whether that is new.
    active: Option<usize>,
    moved: bool,
    /// The moment since which all that it runs with was made.
    since: u64,
}

struct Cpu {
    tlb: Tlb,
    /// What the ledger thinks that is in there: by ASID, or by root.
    held: BTreeMap<u64, Held>,
    /// And with all other tags.
    rest: Held,
    asids: CpuAsids,
    online: bool,
}

impl Cpu {
    /// The ledger no longer knows what this CPU has.
    fn forget(&mut self) {
        self.held.clear();
        self.rest = Held::Unknown;
    }

    /// The ledger's part in an entry of `owner` with `tag`; gives the moment since which all was made that it runs with.
    fn note_entry(
        &mut self,
        tag: u64,
        flush: Flush,
        owner: usize,
        published: u64,
    ) -> Result<u64, Missing> {
        if flush == Flush::All {
            self.held.clear();
            self.rest = Held::Nothing;
        }
        let held = self.held.entry(tag).or_insert(self.rest);
        let now = CLOCK.load(SeqCst);
        held.enter(flush != Flush::None, owner as u64, published, now)
    }
}

/// The machine.
pub(super) struct World<P: PteFormat> {
    config: P::Config,
    machine: Machine,
    without: Without,
    arena: Arena,
    cpus: Vec<Cpu>,
    vms: Vec<Option<Vm<P>>>,
    vcpus: Vec<Option<Vcpu>>,
    vpids: Vec<u64>,
    /// What went wrong first.
    pub(super) stale: Option<std::string::String>,
    /// What the ledger found first.
    pub(super) missing: Option<Missing>,
}

impl<P: PteFormat> World<P> {
    pub(super) fn new(config: P::Config, machine: Machine, without: Option<Step>) -> Self {
        let asids = match machine {
            Machine::Amd { asids, .. } => asids,
            Machine::Intel { .. } => 2,
        };
        let mut world = Self {
            config,
            machine,
            without: Without([without, None]),
            arena: Arena::new(),
            cpus: Vec::new(),
            vms: Vec::new(),
            vcpus: Vec::new(),
            vpids: std::vec![0; 1],
            stale: None,
            missing: None,
        };
        for _ in 0..2 {
            world.cpus.push(Cpu {
                tlb: Tlb::unknown(),
                held: BTreeMap::new(),
                rest: Held::Unknown,
                asids: CpuAsids::new(asids),
                online: false,
            });
        }
        (0..2).for_each(|cpu| world.online(cpu));
        world
    }

    /// Leaves out another step as well.
    pub(super) fn also_without(&mut self, step: Step) {
        self.without.0[1] = Some(step);
    }

    pub(super) fn online(&mut self, cpu: usize) {
        let skip = self.without.has(Step::Online);
        let restart = !self.without.has(Step::Restarted);
        let c = &mut self.cpus[cpu];
        if c.online {
            return;
        }
        c.online = true;
        match self.machine {
            Machine::Amd { .. } if restart => c.asids = c.asids.restarted(),
            Machine::Amd { .. } => {}
            Machine::Intel { .. } if skip => {}
            Machine::Intel { vpid, .. } => {
                let all = Some(crate::vmx::tlb::Extent::All);
                let what = Invalidate {
                    ept: all,
                    vpid: all.filter(|_| vpid),
                };
                c.tlb.invalidate(what, 0, 0);
            }
        }
    }

    /// The CPU goes, and somebody else uses its virtualization until it is back.
    pub(super) fn offline(&mut self, cpu: usize) {
        for id in 0..self.vcpus.len() {
            if self.vcpus[id]
                .as_ref()
                .is_some_and(|v| v.active == Some(cpu))
            {
                self.exit(id);
                self.vcpus[id].as_mut().unwrap().active = None;
            }
        }
        for v in self.vcpus.iter().flatten() {
            assert_ne!(*v.shared.running.lock().unwrap(), Some(cpu));
        }
        self.cpus[cpu].online = false;
        self.cpus[cpu].tlb = Tlb::unknown();
        self.cpus[cpu].forget();
    }

    pub(super) fn new_vm(&mut self) -> usize {
        let vm = self.vms.len();
        let tdp = Tdp::new(self.config, Level::L512G, Level::L1G, &mut &self.arena).unwrap();
        let remote = Arc::new(Remote {
            vm,
            vcpus: Mutex::new(Vec::new()),
            without: self.without,
            published: AtomicU64::new(0),
        });
        self.vms.push(Some(Vm {
            tdp,
            remote,
            aged: BTreeSet::new(),
        }));
        vm
    }

    /// The VM ends: its vCPUs are gone, its tables go without anybody left to be told, and its root page is free.
    pub(super) fn drop_vm(&mut self, vm: usize) {
        for id in 0..self.vcpus.len() {
            if self.vcpus[id].as_ref().is_some_and(|v| v.shared.vm == vm) {
                self.drop_vcpu(id);
            }
        }
        self.zap(vm, GfnRange::ALL);
        if let Some(v) = self.vms[vm].take() {
            self.arena.release(v.tdp.root().get());
        }
    }

    pub(super) fn new_vcpu(&mut self, vm: usize) -> usize {
        let shared = Arc::new(Shared {
            vm,
            presence: Presence::new(
                StdFlag(AtomicBool::new(false)),
                StdFlag(AtomicBool::new(false)),
                StdNumber(AtomicU32::new(0)),
            ),
            running: Mutex::new(None),
        });
        let remote = &self.vms[vm].as_ref().unwrap().remote;
        remote.vcpus.lock().unwrap().push(shared.clone());
        let vpid = match self.machine {
            Machine::Intel { vpid: true, .. } => Vpids::new(&mut self.vpids).take().unwrap_or(0),
            _ => 0,
        };
        let mut stale = Stale::new();
        if self.without.has(Step::New) {
            stale.done();
        }
        self.vcpus.push(Some(Vcpu {
            shared,
            asid: VcpuAsid::default(),
            used_asid: 0,
            stale_asid: false,
            last: None,
            stale,
            vpid,
            active: None,
            moved: false,
            since: 0,
        }));
        self.vcpus.len() - 1
    }

    pub(super) fn drop_vcpu(&mut self, id: usize) {
        self.exit(id);
        let Some(v) = self.vcpus[id].take() else {
            return;
        };
        let vm = self.vms[v.shared.vm].as_ref().unwrap();
        vm.remote
            .vcpus
            .lock()
            .unwrap()
            .retain(|s| !Arc::ptr_eq(s, &v.shared));
        if v.vpid != 0 {
            assert!(Vpids::new(&mut self.vpids).give(v.vpid));
        }
    }

    /// From interrupts off to the guest's first instruction. `give_up`: something came up in between. `refused`: the CPU refused the entry, and did not flush.
    pub(super) fn enter(&mut self, id: usize, cpu: usize, give_up: bool, refused: bool) {
        self.exit(id);
        let occupied = |v: &Vcpu| *v.shared.running.lock().unwrap() == Some(cpu);
        if let Some(other) =
            (0..self.vcpus.len()).find(|&o| self.vcpus[o].as_ref().is_some_and(occupied))
        {
            self.exit(other);
        }
        let (without, machine) = (self.without, self.machine);
        let Some(v) = self.vcpus[id].as_mut() else {
            return;
        };
        let c = &mut self.cpus[cpu];
        if !c.online {
            return;
        }
        // The thread gets the CPU.
        if v.active != Some(cpu) {
            v.active = Some(cpu);
            v.moved = true;
        }
        let demanded = v.shared.presence.enter(cpu as u32) && !without.has(Step::Demand);
        let vm = self.vms[v.shared.vm].as_ref().unwrap();
        let (root, published) = (vm.tdp.root().get(), vm.remote.published.load(SeqCst));
        if demanded && !(give_up && without.has(Step::GivenUp)) {
            v.stale_asid = true;
            v.stale.second_stage();
        }
        if give_up {
            v.shared.presence.leave();
            return;
        }
        let noted = match machine {
            Machine::Amd { by_asid, .. } => {
                let (old, stale) = (v.used_asid, core::mem::take(&mut v.stale_asid));
                let flush = c.asids.assign(&mut v.asid, cpu as u32, stale, by_asid);
                v.used_asid = v.asid.asid;
                let kept = match flush {
                    _ if old == 0 => false,
                    _ if v.last != Some(cpu) => without.has(Step::MovedAsid),
                    AsidFlush::Keep => stale && without.has(Step::FreshAsid),
                    _ => false,
                };
                if kept {
                    v.used_asid = old;
                }
                let told = match flush {
                    AsidFlush::FlushAsid if !without.has(Step::FlushAsid) => Flush::Tag,
                    AsidFlush::FlushAll if !without.has(Step::Generation) => Flush::All,
                    _ => Flush::None,
                };
                match told {
                    _ if refused => {}
                    Flush::Tag => c.tlb.drop_asid(v.used_asid),
                    Flush::All => c.tlb.drop_asids(),
                    Flush::None => {}
                }
                let noted = c.note_entry(v.used_asid.into(), told, id, published);
                if refused && flush != AsidFlush::Keep {
                    c.forget();
                    if !without.has(Step::Refused) {
                        c.asids = c.asids.restarted();
                    }
                }
                noted
            }
            Machine::Intel { single, .. } => {
                if core::mem::take(&mut v.moved) && !without.has(Step::Moved) {
                    v.stale.second_stage();
                }
                let can = Abilities {
                    ept_single: single,
                    vpid_single: single,
                };
                let mut what = v.stale.invalidate(can, v.vpid);
                if without.has(Step::Invept) {
                    what.ept = None;
                }
                if without.has(Step::Invvpid) {
                    what.vpid = None;
                }
                c.tlb.invalidate(what, v.vpid, root);
                if v.vpid == 0 {
                    c.tlb.drop_vpid(0, root);
                }
                v.stale.done();
                let told = match what.ept {
                    Some(Extent::All) => Flush::All,
                    Some(Extent::Single) => Flush::Tag,
                    None => Flush::None,
                };
                c.note_entry(root, told, v.shared.vm, published)
            }
        };
        match noted {
            Ok(since) => v.since = since,
            Err(missing) => {
                self.missing.get_or_insert(missing);
            }
        }
        v.last = Some(cpu);
        if refused {
            v.shared.presence.leave();
            return;
        }
        *v.shared.running.lock().unwrap() = Some(cpu);
    }

    pub(super) fn exit(&mut self, id: usize) {
        let Some(v) = self.vcpus[id].as_ref() else {
            return;
        };
        let vm = self.vms[v.shared.vm].as_ref().unwrap();
        if v.shared.running.lock().unwrap().take().is_some() {
            let published = vm.remote.published.load(SeqCst);
            if let Err(missing) = ledger::exit(v.since, published) {
                self.missing.get_or_insert(missing);
            }
            v.shared.presence.leave();
        }
    }

    /// No guest runs.
    pub(super) fn exit_all(&mut self) {
        (0..self.vcpus.len()).for_each(|id| self.exit(id));
    }

    /// The VM of a vCPU.
    pub(super) fn vm_of(&self, id: usize) -> Option<usize> {
        self.vcpus[id].as_ref().map(|v| v.shared.vm)
    }

    /// Intel: the guest's own translations changed by a way that the CPU does not see.
    pub(super) fn change_linear(&mut self, id: usize) {
        self.exit(id);
        if let Some(v) = self.vcpus[id].as_mut() {
            v.stale.linear();
        }
    }
}
