// SPDX-License-Identifier: GPL-2.0
//! Calls of user space: registers, slots, and the life of a VM.

use super::{lowest, ticks, Effort, Row};
use crate::guest::{Guest, Mode, CODE};
use crate::kvm::{Kvm, GET_REGS, GET_SREGS, SET_CPUID2, SET_REGS, SET_SREGS, TRANSLATE};
use crate::must;
use crate::sys::{self, Abi, Map};
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_translation};

/// Where the slot that is made and deleted lies, and its size.
const SLOT: (u64, u64) = (0x1_0000_0000, 16 << 20);

/// Ticks for one ioctl with a struct.
fn call<T: Abi>(g: &Guest, e: Effort, nr: u64, v: &mut T) -> f64 {
    let fd = g.cpu.fd.0.raw();
    lowest(e.rounds, || {
        ticks(|| {
            let _ = sys::ioctl_with(fd, nr, v);
        })
    }) as f64
}

pub fn rows(e: Effort) -> Vec<Row> {
    let g = Guest::new(Mode::Long);
    let mut regs: kvm_regs = g.cpu.regs();
    let mut sregs: kvm_sregs = g.cpu.sregs();
    let mut cpuid = g.kvm.cpuid();
    let mut place = kvm_translation {
        linear_address: CODE,
        ..Default::default()
    };
    let mut rows = vec![
        ("call: GET_REGS", call(&g, e, GET_REGS, &mut regs)),
        ("call: SET_REGS", call(&g, e, SET_REGS, &mut regs)),
        ("call: GET_SREGS", call(&g, e, GET_SREGS, &mut sregs)),
        ("call: SET_SREGS", call(&g, e, SET_SREGS, &mut sregs)),
        ("call: SET_CPUID2", call(&g, e, SET_CPUID2, &mut *cpuid)),
        ("call: TRANSLATE", call(&g, e, TRANSLATE, &mut place)),
    ];
    let mem = Map::anon(SLOT.1 as usize);
    let (mut create, mut delete) = (u64::MAX, u64::MAX);
    for _ in 0..e.rounds {
        create = create.min(ticks(|| {
            must!(g.vm.region(1, 0, SLOT.0, SLOT.1, mem.addr()));
        }));
        delete = delete.min(ticks(|| {
            must!(g.vm.region(1, 0, SLOT.0, 0, mem.addr()));
        }));
    }
    rows.push(("slot: create", create as f64));
    rows.push(("slot: delete", delete as f64));
    // Of no slot any more: what KVM adds is the notifier.
    let away = lowest(e.rounds, || {
        ticks(|| {
            let _ = mem.advise(0, 4096, libc::MADV_DONTNEED);
        })
    });
    rows.push(("slot: madvise outside of all", away as f64));
    rows.extend(life(e));
    rows
}

/// A VM with one vCPU, made and destroyed.
fn life(e: Effort) -> [Row; 2] {
    let kvm = Kvm::open();
    let (mut make, mut end) = (u64::MAX, u64::MAX);
    for _ in 0..e.rounds {
        let mut both = None;
        make = make.min(ticks(|| {
            let vm = kvm.vm();
            let cpu = vm.vcpu(0);
            both = Some((cpu, vm));
        }));
        end = end.min(ticks(|| drop(both)));
    }
    [
        ("life: create a VM and a vCPU", make as f64),
        ("life: destroy them", end as f64),
    ]
}
