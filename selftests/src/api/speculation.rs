// SPDX-License-Identifier: GPL-2.0
//! The MSRs of speculation control as user space reaches them: SPEC_CTRL, PRED_CMD, FLUSH_CMD, IA32_ARCH_CAPABILITIES.

use super::cpuid::find;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::{check, eq};

pub const TESTS: &[Test] = &[
    Test::new("api/spec_ctrl", spec_ctrl),
    Test::new("api/speculation_commands", commands),
    Test::new("api/arch_capabilities", arch_capabilities),
];

pub const SPEC_CTRL: u32 = 0x48;
pub const PRED_CMD: u32 = 0x49;
pub const ARCH_CAPABILITIES: u32 = 0x10a;
pub const FLUSH_CMD: u32 = 0x10b;

/// What a guest can be told of: Intel's bits (leaf 7, EDX) and AMD's (leaf 0x80000008, EBX).
#[derive(Clone, Copy)]
pub struct Told {
    pub intel: u32,
    pub amd: u32,
}

impl Told {
    pub fn by(c: &CpuidBuf) -> Self {
        Self {
            intel: find(c, 7, 0).map_or(0, |e| e.edx),
            amd: find(c, 0x8000_0008, 0).map_or(0, |e| e.ebx),
        }
    }
    fn has(self, intel: u32, amd: u32) -> bool {
        (self.intel >> intel | self.amd >> amd) & 1 != 0
    }
    /// The bits of SPEC_CTRL.
    pub fn bits(self) -> u64 {
        u64::from(self.has(26, 14))
            | u64::from(self.has(27, 15)) << 1
            | u64::from(self.has(31, 24)) << 2
    }
    pub fn barrier(self) -> bool {
        self.has(26, 12)
    }
    pub fn flush(self) -> bool {
        self.intel >> 28 & 1 != 0
    }
}

/// Takes all these bits away.
pub fn hide(c: &mut CpuidBuf) {
    for e in &mut c.entries[..c.nent as usize] {
        match (e.function, e.index) {
            (7, 0) => e.edx &= !(0xf << 26 | 1 << 31),
            (7, 2) => e.edx &= !0x1f,
            (0x8000_0008, _) => e.ebx &= !(1 << 12 | 1 << 14 | 1 << 15 | 1 << 24),
            (0x8000_0021, _) => e.eax &= !(1 << 27),
            _ => {}
        }
    }
}

/// The bits of SPEC_CTRL, or the test is skipped.
pub fn needed(k: &Kvm) -> u64 {
    match Told::by(&k.cpuid()).bits() {
        0 => harness::skip("this CPU has no SPEC_CTRL"),
        bits => bits,
    }
}

fn spec_ctrl() {
    let k = Kvm::open();
    let bits = needed(&k);
    let vm = k.vm();
    // User space needs no CPUID for it.
    for told in [false, true] {
        let c = vm.vcpu(told.into());
        if told {
            c.use_supported_cpuid(&k);
        }
        eq!(c.msr(SPEC_CTRL), Some(0), "after reset");
        for v in [bits, bits & 1, bits & 6, 0, bits] {
            check!(c.set_msr(SPEC_CTRL, v), "{v:x}");
            eq!(c.msr(SPEC_CTRL), Some(v));
        }
        for bad in [1 << 63, 1 << 32, 0x1800, u64::MAX] {
            check!(!c.set_msr(SPEC_CTRL, bad), "{bad:x} is refused");
            eq!(c.msr(SPEC_CTRL), Some(bits), "and the value kept");
        }
    }
}

fn commands() {
    let k = Kvm::open();
    let told = Told::by(&k.cpuid());
    let vm = k.vm();
    for (n, with_cpuid) in [(0, false), (1, true)] {
        let c = vm.vcpu(n);
        if with_cpuid {
            c.use_supported_cpuid(&k);
        }
        check!(c.set_msr(PRED_CMD, 0), "nothing is commanded");
        eq!(c.set_msr(PRED_CMD, 1), told.barrier(), "IBPB");
        eq!(c.set_msr(FLUSH_CMD, 0), told.flush());
        eq!(c.set_msr(FLUSH_CMD, 1), told.flush(), "L1D_FLUSH");
        for bad in [2, 1 << 63, u64::MAX] {
            check!(!c.set_msr(PRED_CMD, bad), "PRED_CMD {bad:x}");
            check!(!c.set_msr(FLUSH_CMD, bad), "FLUSH_CMD {bad:x}");
        }
        eq!(c.msr(PRED_CMD), None, "there is nothing to read");
        eq!(c.msr(FLUSH_CMD), None, "there is nothing to read");
    }
}

/// What KVM offers of IA32_ARCH_CAPABILITIES.
pub fn offered(k: &Kvm) -> u64 {
    let mut m = MsrsBuf::of(&[(ARCH_CAPABILITIES, 0xa5)]);
    eq!(k.0.with(GET_MSRS, &mut *m), Ok(1), "a feature MSR");
    m.entries[0].data
}

fn arch_capabilities() {
    let k = Kvm::open();
    let told = find(&k.cpuid(), 7, 0).is_some_and(|e| e.edx >> 29 & 1 != 0);
    if !told {
        harness::skip("ARCH_CAPABILITIES is not offered");
    }
    let value = offered(&k);
    // Bits of MSRs that a guest could not find: MCU_ENUM, FB_CLEAR_CTRL, XAPIC_DISABLE, and reserved ones.
    eq!(
        value & (1 << 16 | 1 << 18 | 1 << 21 | 1 << 63),
        0,
        "{value:x}"
    );
    let vm = k.vm();
    let c = vm.vcpu(0);
    // Without CPUID it is not there, but as one that is listed it can be saved and restored.
    eq!(c.msr(ARCH_CAPABILITIES), Some(0));
    check!(c.set_msr(ARCH_CAPABILITIES, 0), "zero");
    check!(!c.set_msr(ARCH_CAPABILITIES, 1), "is not there");
    c.use_supported_cpuid(&k);
    eq!(c.msr(ARCH_CAPABILITIES), Some(value), "after reset");
    for v in [0, u64::MAX, value] {
        check!(c.set_msr(ARCH_CAPABILITIES, v), "{v:x}");
        eq!(c.msr(ARCH_CAPABILITIES), Some(v));
    }
}
