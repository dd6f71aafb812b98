// SPDX-License-Identifier: GPL-2.0
//! What the in-tree KVM does on some of the recorded CPUs, and where we differ from it on purpose.
use super::*;
use crate::model::cpuid_host::tests::against_kvm::KVM;

/// First and last index, and why KVM has them.
const DIFFERENT: &[(u32, u32, &str)] = &[
    (
        0x3a,
        0x3a,
        "the emulator reads it on an AMD, so KVM lists it there",
    ),
    (0x9e, 0x9e, "system-management mode"),
    (0x345, 0x345, "PMU"),
    (0x480, 0x491, "nested VMX"),
    (0x4000_0000, 0x4000_01ff, "Hyper-V"),
    (0x4b56_4d02, 0x4b56_4d07, "paravirtual features"),
    (0xc000_0104, 0xc000_0104, "nested SVM: TSC ratio"),
    (0xc001_0114, 0xc001_0114, "nested SVM: VM_CR"),
    (
        0xc001_011f,
        0xc001_011f,
        "speculation control: VIRT_SPEC_CTRL",
    ),
];

fn different(index: u32) -> bool {
    DIFFERENT.iter().any(|&(a, b, _)| (a..=b).contains(&index))
}

fn rows(text: &str) -> impl Iterator<Item = (&str, Vec<u64>)> {
    text.lines()
        .filter(|l| !l.starts_with(['#', 'C']))
        .map(|l| {
            let (kind, rest) = l.split_at(1);
            (
                kind,
                rest.split_whitespace()
                    .map(|w| u64::from_str_radix(w, 16).unwrap())
                    .collect(),
            )
        })
}

#[test]
fn the_list_is_the_same() {
    for (name, text) in KVM {
        let ours = Vcpu::new(name).list();
        let kvm: Vec<u32> = rows(text)
            .filter(|r| r.0 == "M")
            .map(|r| r.1[0] as u32)
            .collect();
        for i in &kvm {
            assert!(
                ours.contains(i) || different(*i),
                "{name}: {i:#x} is missing"
            );
        }
        for i in ours {
            assert!(kvm.contains(&i), "{name}: {i:#x} is too much");
        }
    }
}

#[test]
fn user_space_finds_the_same() {
    for (name, text) in KVM {
        let mut v = Vcpu::new(name);
        let mut n = 0;
        for (kind, row) in rows(text).filter(|r| r.0 != "M" && !different(r.1[0] as u32)) {
            let index = row[0] as u32;
            n += 1;
            if kind == "R" {
                let got = match v.rd(index, Who::Host) {
                    Ok(Answer::Value(x)) => [1, x],
                    Ok(Answer::Hw(msr)) => [1, msr.reset()],
                    Err(_) => [0, 0],
                };
                assert_eq!(got, row[1..], "{name}: read of {index:#x}");
            } else if index != HwMsr::Efer.index() || row[1] & efer::SVME == 0 {
                let mut got = v.wr(index, row[1], Who::Host).is_ok();
                // The CPU itself says which bits it has. QEMU's takes any.
                if index == 0x48 && name == "bochs-icelake" {
                    got &= row[1] & !7 == 0;
                }
                assert_eq!(
                    u64::from(got),
                    row[2],
                    "{name}: {:#x} to {index:#x}",
                    row[1]
                );
            }
        }
        assert!(n > 100);
    }
}
