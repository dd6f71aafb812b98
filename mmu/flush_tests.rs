// SPDX-License-Identifier: GPL-2.0
//! Nothing that the module does leaves a translation behind that a guest could use and should not: random courses of a machine
//! whose TLBs keep all they may, and for each flush a course that goes wrong without it.

#[path = "flush_tests/tlb.rs"]
mod tlb;
#[path = "flush_tests/world.rs"]
mod world;

use std::vec;

use proptest::prelude::*;

use self::world::{Machine, World};
use super::*;
use crate::mmu::ept::{Ept, EptConfig};
use crate::mmu::npt::{Npt, NptConfig};
use crate::mmu::step::Step;
use crate::mmu::{Gfn, Level};

const NPT: NptConfig = NptConfig { encryption_mask: 0 };
const EPT: EptConfig = EptConfig {
    accessed_dirty: true,
};
const AMD: Machine = Machine::Amd {
    by_asid: true,
    asids: 4,
};
const AMD_PLAIN: Machine = Machine::Amd {
    by_asid: false,
    asids: 4,
};
const INTEL: Machine = Machine::Intel {
    vpid: true,
    single: true,
};
const INTEL_PLAIN: Machine = Machine::Intel {
    vpid: false,
    single: false,
};

fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::new(Gfn(start), pages)
}

/// A vCPU that has used page 1, and runs on CPU 0.
fn running<P: PteFormat>(w: &mut World<P>) -> (usize, usize) {
    let vm = w.new_vm();
    let vcpu = w.new_vcpu(vm);
    w.map(vm, 1, 100, Level::L4K, true);
    w.enter(vcpu, 0, false, false);
    w.access(vcpu, 1, true);
    (vm, vcpu)
}

/// What shows that a step is missing, on any machine that has it.
fn remote<P: PteFormat>(w: &mut World<P>, step: Step) {
    let (vm, vcpu) = running(w);
    // A flush that is demanded takes effect at the next entry; all but the kick is shown by one.
    if step != Step::Kick {
        w.exit(vcpu);
    }
    match step {
        Step::Remote(FlushReason::WriteProtected) => w.write_protect(vm, range(0, 8)),
        Step::Remote(FlushReason::AgedOut) => w.age(vm, range(0, 8), false),
        Step::Remote(FlushReason::Aged) => w.age(vm, range(0, 8), true),
        _ => w.zap(vm, range(0, 8)),
    }
    match step {
        Step::Kick => {}
        Step::GivenUp => {
            w.enter(vcpu, 0, true, false);
            w.enter(vcpu, 0, false, false);
        }
        _ => w.enter(vcpu, 0, false, false),
    }
    w.access(vcpu, 1, true);
}

fn amd(w: &mut World<Npt>, step: Step) {
    match step {
        // Stale on CPU 0, while it runs on CPU 1, where the demand is met.
        Step::MovedAsid => {
            let (vm, vcpu) = running(w);
            w.enter(vcpu, 1, false, false);
            w.zap(vm, range(0, 8));
            w.enter(vcpu, 1, false, false);
            w.enter(vcpu, 0, false, false);
            w.access(vcpu, 1, false);
        }
        // There are three ASIDs: the fourth vCPU gets the first one's.
        Step::Generation => {
            running(w);
            for _ in 0..3 {
                let vm = w.new_vm();
                let vcpu = w.new_vcpu(vm);
                w.map(vm, 1, 200, Level::L4K, true);
                w.enter(vcpu, 0, false, false);
                w.access(vcpu, 1, false);
            }
        }
        Step::Restarted => {
            let (_, vcpu) = running(w);
            w.exit(vcpu);
            w.offline(0);
            w.online(0);
            w.enter(vcpu, 0, false, false);
            w.access(vcpu, 2, false);
        }
        // The flush of the new generation was asked for by an entry that did not happen.
        Step::Refused => {
            running(w);
            for refused in [false, false, true, false] {
                let vm = w.new_vm();
                let vcpu = w.new_vcpu(vm);
                w.map(vm, 1, 200, Level::L4K, true);
                w.enter(vcpu, 0, false, refused);
                w.enter(vcpu, 0, false, false);
                w.access(vcpu, 1, false);
            }
        }
        _ => remote(w, step),
    }
}

fn intel(w: &mut World<Ept>, step: Step) {
    match step {
        Step::Moved => {
            let (vm, vcpu) = running(w);
            w.enter(vcpu, 1, false, false);
            w.zap(vm, range(0, 8));
            w.enter(vcpu, 1, false, false);
            w.enter(vcpu, 0, false, false);
            w.access(vcpu, 1, false);
        }
        // Another VM gets the same page for its root.
        Step::New => {
            let (vm, _) = running(w);
            w.drop_vm(vm);
            let vm = w.new_vm();
            let vcpu = w.new_vcpu(vm);
            // Already loaded here, as if it had not moved.
            w.map(vm, 1, 200, Level::L4K, true);
            w.enter(vcpu, 0, false, false);
            w.access(vcpu, 1, false);
        }
        Step::Invvpid => {
            let (_, vcpu) = running(w);
            w.change_linear(vcpu);
            w.enter(vcpu, 0, false, false);
            if w.uses_old_linear(vcpu, 0, 1) {
                w.stale = Some(std::string::String::from("linear"));
            }
        }
        Step::Online => {
            let (_, vcpu) = running(w);
            w.offline(0);
            w.online(0);
            w.enter(vcpu, 0, false, false);
            w.access(vcpu, 2, false);
        }
        _ => remote(w, step),
    }
}

/// Flushes that [`Step::Moved`] makes good where they are missing: they guard against mistakes in that one, and are needed where it is missing too.
const BACKSTOPS: [Step; 2] = [
    // A VMCS that a CPU gets is taken to have moved there, whoever had the CPU before.
    Step::Online,
    // A new vCPU's VMCS is loaded for the first time, which counts as a move.
    Step::New,
];

/// What the ledger is not there to find.
const NOT_IN_LEDGER: [Step; 2] = [
    // Accessed bits take nothing from anybody.
    Step::Remote(FlushReason::Aged),
    // The guest's own translations.
    Step::Invvpid,
];

/// What went wrong in the end. Where the guest used something stale the ledger has to have noticed, and it may not where nothing
/// was left out.
fn found<P: PteFormat>(mut w: World<P>, without: Option<Step>) -> Option<std::string::String> {
    w.exit_all();
    match without {
        None => assert_eq!(w.missing, None),
        Some(step) if w.stale.is_some() && !NOT_IN_LEDGER.contains(&step) => {
            assert!(w.missing.is_some(), "{step:?}: {:?}", w.stale);
        }
        Some(_) => {}
    }
    w.stale
}

#[test]
fn every_flush_is_needed() {
    for why in FlushReason::ALL {
        assert!(Step::ALL.contains(&Step::Remote(why)));
    }
    for step in Step::ALL {
        let on_amd = |machine, without| {
            let mut w = World::<Npt>::new(NPT, machine, without);
            amd(&mut w, step);
            found(w, without)
        };
        let on_intel = |config, machine, without| {
            let mut w = World::<Ept>::new(config, machine, without);
            intel(&mut w, step);
            found(w, without)
        };
        let no_bits = EptConfig {
            accessed_dirty: false,
        };
        // Whole, nothing goes wrong.
        for without in [None] {
            assert_eq!(on_amd(AMD, without), None, "{step:?}");
            assert_eq!(on_amd(AMD_PLAIN, without), None, "{step:?}");
            for machine in [INTEL, INTEL_PLAIN] {
                assert_eq!(on_intel(EPT, machine, without), None, "{step:?}");
                assert_eq!(on_intel(no_bits, machine, without), None, "{step:?}");
            }
        }
        // Without it, something does, on a machine that has it.
        let without = Some(step);
        let shown = match step {
            Step::FlushAsid
            | Step::MovedAsid
            | Step::Generation
            | Step::Restarted
            | Step::Refused => on_amd(AMD, without),
            Step::FreshAsid => on_amd(AMD_PLAIN, without),
            Step::Invept | Step::Moved | Step::New | Step::Invvpid | Step::Online => {
                on_intel(EPT, INTEL, without)
            }
            Step::Remote(FlushReason::AgedOut) => on_intel(no_bits, INTEL, without),
            Step::Remote(_) | Step::Kick | Step::Demand | Step::GivenUp => {
                assert!(on_intel(EPT, INTEL, without).is_some(), "{step:?} on Intel");
                on_amd(AMD, without)
            }
        };
        let backstop = BACKSTOPS.contains(&step);
        assert_eq!(shown.is_none(), backstop, "{step:?}: {shown:?}");
        if backstop {
            let without_both = |first| {
                let mut w = World::<Ept>::new(EPT, INTEL, first);
                w.also_without(Step::Moved);
                intel(&mut w, step);
                found(w, Some(step))
            };
            assert_eq!(without_both(None), None, "{step:?} there");
            assert!(without_both(Some(step)).is_some(), "neither {step:?}");
        }
    }
}

/// What happens to the machine.
#[derive(Clone, Debug)]
enum Op {
    Map {
        vm: usize,
        gfn: u64,
        pfn: u64,
        large: bool,
        write: bool,
    },
    Zap {
        vm: usize,
        gfn: u64,
        pages: u64,
    },
    Protect {
        vm: usize,
        gfn: u64,
        pages: u64,
    },
    Age {
        vm: usize,
        gfn: u64,
        pages: u64,
        exact: bool,
    },
    Enter {
        vcpu: usize,
        cpu: usize,
        give_up: bool,
        refused: bool,
    },
    Exit {
        vcpu: usize,
    },
    Access {
        vcpu: usize,
        gfn: u64,
        write: bool,
    },
    NewVcpu {
        vm: usize,
    },
    DropVcpu {
        vcpu: usize,
    },
    NewVm {
        old: usize,
    },
    Toggle {
        cpu: usize,
    },
}

fn ops() -> impl Strategy<Value = Op> {
    let gfn = || prop_oneof![0u64..4, 510u64..514];
    let pages = || prop_oneof![Just(1u64), Just(3), Just(512), Just(4096)];
    prop_oneof![
        6 => (0usize..2, gfn(), 0u64..3, any::<bool>(), any::<bool>()).prop_map(
            |(vm, gfn, n, large, write)| Op::Map { vm, gfn, pfn: (n << 9) + (gfn & 511), large, write }),
        3 => (0usize..2, gfn(), pages()).prop_map(|(vm, gfn, pages)| Op::Zap { vm, gfn, pages }),
        2 => (0usize..2, gfn(), pages()).prop_map(|(vm, gfn, pages)| Op::Protect { vm, gfn, pages }),
        2 => (0usize..2, gfn(), pages(), any::<bool>()).prop_map(
            |(vm, gfn, pages, exact)| Op::Age { vm, gfn, pages, exact }),
        6 => (0usize..6, 0usize..2, prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
            |(vcpu, cpu, give_up, refused)| Op::Enter { vcpu, cpu, give_up, refused }),
        2 => (0usize..6).prop_map(|vcpu| Op::Exit { vcpu }),
        12 => (0usize..6, gfn(), any::<bool>()).prop_map(
            |(vcpu, gfn, write)| Op::Access { vcpu, gfn, write }),
        1 => (0usize..2).prop_map(|vm| Op::NewVcpu { vm }),
        1 => (0usize..6).prop_map(|vcpu| Op::DropVcpu { vcpu }),
        1 => (0usize..2).prop_map(|old| Op::NewVm { old }),
        1 => (0usize..2).prop_map(|cpu| Op::Toggle { cpu }),
    ]
}

/// Goes on until a guest uses something stale.
fn course<P: PteFormat>(mut w: World<P>, ops: &[Op]) -> World<P> {
    // The VMs and vCPUs that the numbers mean at the moment.
    let mut vms = [w.new_vm(), w.new_vm()];
    let mut vcpus: vec::Vec<usize> = (0..4).map(|n| w.new_vcpu(vms[n % 2])).collect();
    let mut on = [true; 2];
    for op in ops {
        let pick = |vcpus: &[usize], n: usize| vcpus.get(n % vcpus.len().max(1)).copied();
        match *op {
            Op::Map {
                vm,
                gfn,
                pfn,
                large,
                write,
            } => {
                let level = if large { Level::L2M } else { Level::L4K };
                w.map(vms[vm], gfn, pfn, level, write);
            }
            Op::Zap { vm, gfn, pages } => w.zap(vms[vm], range(gfn, pages)),
            Op::Protect { vm, gfn, pages } => w.write_protect(vms[vm], range(gfn, pages)),
            Op::Age {
                vm,
                gfn,
                pages,
                exact,
            } => w.age(vms[vm], range(gfn, pages), exact),
            Op::Enter {
                vcpu,
                cpu,
                give_up,
                refused,
            } => {
                if let Some(v) = pick(&vcpus, vcpu) {
                    w.enter(v, cpu, give_up, refused);
                }
            }
            Op::Exit { vcpu } => pick(&vcpus, vcpu).into_iter().for_each(|v| w.exit(v)),
            Op::Access { vcpu, gfn, write } => {
                if let Some(v) = pick(&vcpus, vcpu) {
                    w.access(v, gfn, write);
                }
            }
            Op::NewVcpu { vm } if vcpus.len() < 6 => vcpus.push(w.new_vcpu(vms[vm])),
            Op::NewVcpu { .. } => {}
            Op::DropVcpu { vcpu } if vcpus.len() > 1 => {
                let v = vcpus.remove(vcpu % vcpus.len());
                w.drop_vcpu(v);
            }
            Op::DropVcpu { .. } => {}
            Op::NewVm { old } => {
                vcpus.retain(|v| w.vm_of(*v) != Some(vms[old]));
                w.drop_vm(vms[old]);
                vms[old] = w.new_vm();
                vcpus.push(w.new_vcpu(vms[old]));
            }
            Op::Toggle { cpu } => {
                on[cpu] = !on[cpu];
                if on[cpu] {
                    w.online(cpu);
                } else {
                    w.offline(cpu);
                }
            }
        }
        if w.stale.is_some() {
            break;
        }
    }
    w.exit_all();
    w
}

/// A course of the whole module: nothing stale is used, and the ledger accuses nobody.
fn whole<P: PteFormat>(w: World<P>, ops: &[Op]) -> Result<(), TestCaseError> {
    let w = course(w, ops);
    prop_assert_eq!(w.stale, None);
    prop_assert_eq!(w.missing, None);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn amd_uses_nothing_stale(
        ops in proptest::collection::vec(ops(), 1..150),
        by_asid in any::<bool>(),
        asids in 2u32..6,
    ) {
        whole(World::<Npt>::new(NPT, Machine::Amd { by_asid, asids }, None), &ops)?;
    }

    #[test]
    fn intel_uses_nothing_stale(
        ops in proptest::collection::vec(ops(), 1..150),
        vpid in any::<bool>(),
        single in any::<bool>(),
        accessed_dirty in any::<bool>(),
    ) {
        let config = EptConfig { accessed_dirty };
        whole(World::<Ept>::new(config, Machine::Intel { vpid, single }, None), &ops)?;
    }
}

/// The random courses are sharp enough: most steps that are left out are found by some of them, and then by the ledger too.
#[test]
fn random_courses_find_missing_steps() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    for step in [
        Step::Remote(FlushReason::Zapped),
        Step::Remote(FlushReason::WriteProtected),
        Step::Kick,
        Step::Demand,
        Step::FlushAsid,
        Step::Generation,
        Step::MovedAsid,
    ] {
        let mut runner = TestRunner::deterministic();
        let all = proptest::collection::vec(ops(), 150);
        let found = (0..200).any(|_| {
            let ops = all.new_tree(&mut runner).unwrap().current();
            found(
                course(World::<Npt>::new(NPT, AMD, Some(step)), &ops),
                Some(step),
            )
            .is_some()
        });
        assert!(found, "{step:?}");
    }
    for step in [Step::Invept, Step::Moved, Step::Kick] {
        let mut runner = TestRunner::deterministic();
        let all = proptest::collection::vec(ops(), 150);
        let found = (0..200).any(|_| {
            let ops = all.new_tree(&mut runner).unwrap().current();
            found(
                course(World::<Ept>::new(EPT, INTEL, Some(step)), &ops),
                Some(step),
            )
            .is_some()
        });
        assert!(found, "{step:?}");
    }
}
