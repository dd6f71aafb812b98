// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_SUPPORTED_CPUID of the in-tree KVM on some of the recorded CPUs: ours is the same, but for what is written here.
use super::*;
use crate::model::features::*;

/// The name of a CPU and what the in-tree KVM says there.
pub(crate) const KVM: [(&str, &str); 2] = [
    (
        "tcg-epyc",
        include_str!("../../selftests/fixtures/kvm-tcg-epyc.txt"),
    ),
    (
        "bochs-icelake",
        include_str!("../../selftests/fixtures/kvm-bochs-icelake.txt"),
    ),
];

/// Offered by KVM and not by us; the table says why.
const LESS: &[Feature] = &[
    X2APIC,
    TSC_DEADLINE,
    VMX,
    SVM,
    XSAVES,
    GP_ON_USER_CPUID,
    VIRT_SSBD,
];

/// An entry without what may differ.
fn masked(e: Entry) -> Entry {
    let mut r = e.regs();
    for &f in LESS {
        let (function, index, reg) = f.word.place();
        if (function, index) == (e.function, e.index) {
            r[reg as usize] &= !f.mask();
        }
    }
    match e.function {
        // Nested SVM, paravirtual features.
        0x8000_000a | 0x4000_0001 => r = [0; 4],
        _ => {}
    }
    e.with(r)
}

#[test]
fn the_entries_are_the_same() {
    for (name, text) in KVM {
        let cpu = cpu(name);
        let mut config = cpu.config();
        // The kernel finds the null-selector quirk on this AMD, and that fast strings are off on this Intel.
        config.null_seg_clears_base = name != "tcg-epyc";
        if name == "bochs-icelake" {
            let mut kernel = [!0; 22];
            kernel[Word::L7Ebx.kernel_word().unwrap()] &= !ERMS.mask();
            config.follow_kernel(&kernel);
        }
        let caps = HostCaps::probe(&|l, s| cpu.cpuid(l, s), &config);
        let ours: Vec<Entry> = cpu.supported(&caps).into_iter().map(masked).collect();
        let kvm: Vec<Entry> = text
            .lines()
            .filter(|l| l.starts_with('C'))
            .map(|l| {
                let v: Vec<u32> = l[2..]
                    .split(' ')
                    .map(|w| u32::from_str_radix(w, 16).unwrap())
                    .collect();
                let e = Entry {
                    function: v[0],
                    index: v[1],
                    flags: v[2],
                    ..Entry::default()
                };
                masked(e.with([v[3], v[4], v[5], v[6]]))
            })
            .collect();
        for (a, b) in ours.iter().zip(&kvm) {
            assert_eq!(a, b, "{name}");
        }
        assert_eq!(ours.len(), kvm.len(), "{name}");
    }
}
