// SPDX-License-Identifier: GPL-2.0
//! CPUID of the guest: what the device supports, on a machine with one processor and no local APIC.

use kvm_bindings::kvm_cpuid_entry2;

const LEAF_FEATURES: u32 = 1;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_APIC: u32 = 1 << 9;
const EDX_HYPER_THREADING: u32 = 1 << 28;
/// EBX of leaf 1: logical processors, and the APIC id that was the host's.
const EBX_COUNT_AND_ID: u32 = 0xffff_0000;
const EBX_ONE_PROCESSOR: u32 = 1 << 16;

const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
/// The clock (both forms, and its stability) and "no need for I/O delays". All other features need a local APIC or make
/// sense only with one.
const KVM_FEATURES: u32 = (1 << 0) | (1 << 1) | (1 << 3) | (1 << 24);
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

/// Changes what the device supports into what the guest sees.
pub fn adapt(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries {
        match entry.function {
            LEAF_FEATURES => {
                entry.ecx &= !(ECX_X2APIC | ECX_TSC_DEADLINE);
                entry.ecx |= ECX_HYPERVISOR;
                entry.edx &= !(EDX_APIC | EDX_HYPER_THREADING);
                entry.ebx = entry.ebx & !EBX_COUNT_AND_ID | EBX_ONE_PROCESSOR;
            }
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 | LEAF_AMD_TOPOLOGY | LEAF_AMD_TOPOLOGY_V2 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            LEAF_AMD_SIZES => entry.ecx = 0,
            LEAF_KVM_FEATURES => entry.eax &= KVM_FEATURES,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        }
    }

    #[test]
    fn the_guest_sees_one_processor_without_apic() {
        let mut entries = [
            entry(0),
            entry(1),
            entry(0xb),
            entry(0x4000_0001),
            entry(0x8000_0008),
        ];
        adapt(&mut entries);
        assert_eq!(entries[0], entry(0), "other leaves stay");
        assert_eq!(entries[1].edx, !((1 << 9) | (1 << 28)));
        assert_eq!(entries[1].ecx, !((1 << 21) | (1 << 24)));
        assert_eq!(entries[1].ebx, 0x0001_ffff);
        assert_eq!(entries[2].ebx, 0);
        assert_eq!(entries[3].eax, 0x0100_000b);
        assert_eq!((entries[4].ecx, entries[4].eax), (0, !0));
        let mut small = [kvm_cpuid_entry2 {
            function: 1,
            ..Default::default()
        }];
        adapt(&mut small);
        assert_eq!(small[0].ecx, 1 << 31, "a guest always knows that it is one");
    }
}
