// SPDX-License-Identifier: GPL-2.0
//! A TLB whose entries are tagged with the ASID must never show a vCPU a translation that is not its own and current.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

const CPUS: usize = 2;
const VCPUS: usize = 5;

proptest! {
    /// Entries are (asid -> owner and version of its translations); a run reads the entry and then fills it.
    #[test]
    fn no_stale_entry(count in 2u32..5, by_asid: bool, steps in prop::collection::vec((0..CPUS, 0..VCPUS, any::<bool>(), 0..8u8), 1..200)) {
        let mut cpus = [CpuAsids::new(count); CPUS];
        let mut tlbs: Vec<BTreeMap<u32, (usize, u32)>> = (0..CPUS).map(|_| BTreeMap::new()).collect();
        let mut vcpus = [VcpuAsid::default(); VCPUS];
        let mut version = [0u32; VCPUS];
        let mut ran = [[0u32; CPUS]; VCPUS];
        for (cpu, v, change, event) in steps {
            if event == 0 {
                // The CPU was off: it may come back with anything in its TLB.
                cpus[cpu] = cpus[cpu].restarted();
                tlbs[cpu] = (1..count).map(|asid| (asid, (usize::MAX, 0))).collect();
            }
            if change {
                version[v] += 1;
            }
            // A request to flush reaches the vCPU on the CPU that it runs on next.
            let stale = version[v] != *ran[v].iter().max().unwrap_or(&0);
            let tlb = cpus[cpu].assign(&mut vcpus[v], cpu as u32, stale, by_asid);
            let asid = vcpus[v].asid;
            prop_assert!(asid >= 1 && asid < count.max(2));
            match tlb {
                Tlb::Keep => {}
                Tlb::FlushAsid => { tlbs[cpu].remove(&asid); }
                Tlb::FlushAll => tlbs[cpu].clear(),
            }
            if let Some(&(owner, seen)) = tlbs[cpu].get(&asid) {
                prop_assert_eq!((owner, seen), (v, version[v]));
            }
            tlbs[cpu].insert(asid, (v, version[v]));
            ran[v] = [0; CPUS];
            ran[v][cpu] = version[v];
        }
    }
}

#[test]
fn runs_again_without_a_flush() {
    let mut cpu = CpuAsids::new(16);
    let mut vcpu = VcpuAsid::default();
    assert_eq!(cpu.assign(&mut vcpu, 0, false, false), Tlb::FlushAll);
    let asid = vcpu.asid;
    for _ in 0..100 {
        assert_eq!(cpu.assign(&mut vcpu, 0, false, false), Tlb::Keep);
    }
    assert_eq!(vcpu.asid, asid);
    assert_eq!(cpu.assign(&mut vcpu, 0, true, false), Tlb::Keep);
    assert_ne!(
        vcpu.asid, asid,
        "without flush-by-ASID a stale vCPU gets a fresh identifier"
    );
}
