// SPDX-License-Identifier: GPL-2.0
//! Which ioctls are made to fail. Each test finds its list done in full; that nothing the module serves is in no list, the sources of
//! its dispatch tell.

use crate::kvm::*;

pub const SYSTEM: &[u64] = &[
    GET_API_VERSION,
    CHECK_EXTENSION,
    GET_VCPU_MMAP_SIZE,
    GET_MSR_INDEX_LIST,
    GET_MSR_FEATURE_INDEX_LIST,
    GET_MSRS,
    GET_SUPPORTED_CPUID,
    GET_EMULATED_CPUID,
    X86_GET_MCE_CAP_SUPPORTED,
];
pub const CREATE: &[u64] = &[CREATE_VM, CREATE_VCPU];
pub const MEMORY: &[u64] = &[SET_USER_MEMORY_REGION, SET_TSS_ADDR, SET_IDENTITY_MAP_ADDR];
pub const VM: &[u64] = &[
    CHECK_EXTENSION,
    SET_NR_MMU_PAGES,
    GET_TSC_KHZ,
    SET_TSC_KHZ,
    SET_GSI_ROUTING,
    SIGNAL_MSI,
    IRQ_LINE,
    GET_CLOCK,
    SET_CLOCK,
    ENABLE_CAP,
    IOEVENTFD,
    X86_SET_MSR_FILTER,
];
pub const SLOTS: &[u64] = &[
    SET_USER_MEMORY_REGION,
    SET_USER_MEMORY_REGION2,
    GET_DIRTY_LOG,
];
pub const STATE: &[u64] = &[
    GET_REGS,
    SET_REGS,
    GET_SREGS,
    SET_SREGS,
    GET_SREGS2,
    SET_SREGS2,
    GET_FPU,
    SET_FPU,
    GET_XCRS,
    SET_XCRS,
    GET_XSAVE,
    SET_XSAVE,
    GET_VCPU_EVENTS,
    SET_VCPU_EVENTS,
    GET_DEBUGREGS,
    SET_DEBUGREGS,
    GET_MP_STATE,
    SET_MP_STATE,
    GET_MSRS,
    SET_MSRS,
    GET_CPUID2,
    SET_CPUID2,
];
pub const VCPU: &[u64] = &[
    NMI,
    INTERRUPT,
    SET_SIGNAL_MASK,
    TRANSLATE,
    GET_XSAVE2,
    ENABLE_CAP,
    X86_SETUP_MCE,
    X86_SET_MCE,
    KVMCLOCK_CTRL,
    GET_TSC_KHZ,
    SET_TSC_KHZ,
    HAS_DEVICE_ATTR,
    GET_DEVICE_ATTR,
    SET_DEVICE_ATTR,
    SET_CPUID,
    SET_GUEST_DEBUG,
];
pub const RUN_ONLY: &[u64] = &[RUN];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// What is in no list, and why.
    const LEFT_OUT: &[(&str, &str)] = &[(
        "X86_SET_MSR_FILTER_COMPAT",
        "only 32-bit programs make it; it is one copy and one allocation more than the other",
    )];

    /// The names that stand behind `before` in a source, up to what is no letter of theirs.
    fn names(source: &str, before: &str) -> BTreeSet<String> {
        let part = |c: &char| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_';
        source
            .split(before)
            .skip(1)
            .map(|rest| rest.chars().take_while(part).collect())
            .filter(|name: &String| name.starts_with(|c: char| c.is_ascii_uppercase()))
            .collect()
    }

    /// What a source has and no list nor [`LEFT_OUT`].
    fn forgotten(all: &BTreeSet<String>, lists: &[&[u64]]) -> Vec<String> {
        let covered: BTreeSet<String> = lists.concat().into_iter().map(ioctl_name).collect();
        all.difference(&covered)
            .filter(|name| LEFT_OUT.iter().all(|(out, _)| out != name))
            .cloned()
            .collect()
    }

    #[test]
    fn every_ioctl_of_each_descriptor_is_made_to_fail() {
        const DEVICE: &str = include_str!("../../../../rust/hv/device.rs");
        const OF_VM: &str = include_str!("../../../../rust/hv/ioctl_vm.rs");
        const OF_VCPU: &str = include_str!("../../../../rust/hv/ioctl_vcpu.rs");
        // CREATE_VM is of the system; the test that makes VMs makes vCPUs too.
        for (source, at_least, lists) in [
            (DEVICE, 10, &[SYSTEM, CREATE][..]),
            (OF_VM, 18, &[CREATE, MEMORY, VM, SLOTS]),
            (OF_VCPU, 38, &[STATE, VCPU, RUN_ONLY]),
        ] {
            let all = names(source, "ioctl::");
            assert!(all.len() >= at_least, "{all:?}");
            assert_eq!(forgotten(&all, lists), Vec::<String>::new());
        }
    }

    #[test]
    fn every_known_number_is_made_to_fail() {
        const NUMBERS: &str = include_str!("../../../../uapi/ioctl.rs");
        let all: BTreeSet<String> = NUMBERS
            .lines()
            .filter(|l| l.contains("= _IO"))
            .filter_map(|l| l.split_whitespace().next())
            .map(str::to_owned)
            .collect();
        assert!(all.len() > 60, "{all:?}");
        let lists = [SYSTEM, CREATE, MEMORY, VM, SLOTS, STATE, VCPU, RUN_ONLY];
        assert_eq!(forgotten(&all, &lists), Vec::<String>::new());
        for (name, why) in LEFT_OUT {
            assert!(all.contains(*name) && !why.is_empty(), "{name}");
        }
    }

    #[test]
    fn what_is_forgotten_is_found() {
        let all = names(
            "ioctl::RUN => x, ioctl::FLY | ioctl::{} ioctl::NMI",
            "ioctl::",
        );
        assert_eq!(forgotten(&all, &[RUN_ONLY, &[NMI]]), ["FLY"]);
        assert_eq!(forgotten(&all, &[&[NMI]]), ["FLY", "RUN"]);
    }
}
