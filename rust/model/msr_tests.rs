// SPDX-License-Identifier: GPL-2.0
use super::*;
use crate::model::cpuid_host::tests::{cpu, cpus};
use crate::model::cr::{cr0, efer};
use crate::model::mce;
use crate::model::msr_table::VARIABLE_MTRRS;
use std::vec::Vec;

#[path = "msr_tests_kvm.rs"]
mod against_kvm;
#[path = "msr_tests_random.rs"]
mod random;
#[path = "msr_tests_speculation.rs"]
mod speculation;

const REAL: Mode = Mode {
    cr0: cr0::ET,
    cr3: 0,
    cr4: 0,
    efer: 0,
    cs_l: false,
};
const NON_CANONICAL: u64 = 0x1234_5678_9abc_def0;

struct Vcpu {
    slots: [u64; slot::COUNT],
    guest: GuestFeatures,
    host: HostCaps,
}

impl Vcpu {
    fn new(name: &str) -> Self {
        let cpu = cpu(name);
        let host = cpu.caps();
        let guest = GuestFeatures::derive(&cpu.supported(&host), &host);
        let mut slots = [0; slot::COUNT];
        reset(&mut slots, &host, true);
        Self { slots, guest, host }
    }
    fn rd(&self, index: u32, who: Who) -> Result<Answer, BadMsr> {
        read(&self.slots, index, who, &self.guest)
    }
    fn wr(&mut self, index: u32, value: u64, who: Who) -> Result<Effect, BadMsr> {
        write(&mut self.slots, index, value, who, &REAL, &self.guest)
    }
    fn value(&self, index: u32) -> u64 {
        match self.rd(index, Who::Host) {
            Ok(Answer::Value(v)) => v,
            other => unreachable!("{index:#x}: {other:?}"),
        }
    }
    fn list(&self) -> Vec<u32> {
        let mut out = Vec::new();
        let push = &mut |i| {
            out.push(i);
            Ok::<(), ()>(())
        };
        index_list(&self.host, &|_| true, push).unwrap();
        out
    }
}

#[test]
fn the_table_is_sorted_and_slots_are_not_shared() {
    let mut used = [None; slot::COUNT];
    for pair in TABLE.windows(2) {
        assert!(
            pair[0].first + pair[0].count <= pair[1].first,
            "{} and {}",
            pair[0].name,
            pair[1].name
        );
    }
    for row in TABLE {
        if let Place::Soft(first) = row.place {
            for s in &mut used[first..first + row.count as usize] {
                // KVM's clock has two numbers for each register.
                let other = std::format!("{}_NEW", s.unwrap_or("none"));
                let before = s.replace(row.name);
                assert!(before.is_none() || row.name == other, "{}", row.name);
            }
        }
        if let Place::Hw(msr) = row.place {
            assert_eq!((row.first, row.count), (msr.index(), 1));
            assert_eq!(row.reset, msr.reset());
        }
    }
    assert!(used.iter().all(Option::is_some), "no slot is spare");
    for msr in HwMsr::ALL {
        assert!(TABLE.iter().any(|r| r.place == Place::Hw(msr)), "{msr:?}");
    }
}

#[test]
fn what_is_listed_can_be_read_and_written_back() {
    for cpu in cpus() {
        for full in [false, true] {
            let mut v = Vcpu::new(cpu.name);
            if !full {
                v.guest = GuestFeatures::derive(&[], &v.host);
            }
            let list = v.list();
            assert!((10..=256).contains(&list.len()));
            for index in list {
                let got = v
                    .rd(index, Who::Host)
                    .unwrap_or_else(|e| panic!("{}: {index:#x} {e:?}", cpu.name));
                let value = match got {
                    Answer::Value(x) => x,
                    Answer::Hw(msr) => msr.reset(),
                };
                let done = v.wr(index, value, Who::Host);
                assert!(done.is_ok(), "{}: {index:#x} {value:#x} {done:?}", cpu.name);
                assert!(
                    v.wr(index, 0, Who::Host).is_ok(),
                    "{}: {index:#x}",
                    cpu.name
                );
            }
        }
    }
}

#[test]
fn the_list_goes_by_what_the_cpu_has() {
    let v = Vcpu::new("tcg-epyc");
    let mut n = 0;
    let push = &mut |i: u32| {
        n += 1;
        assert!(!matches!(i, 0x10 | 0x277 | 0xc000_0081 | 0xc000_0103));
        Ok::<(), ()>(())
    };
    index_list(&v.host, &|_| false, push).unwrap();
    assert!(n > 5);
    assert!(!v.list().contains(&0x3a), "FEATURE_CONTROL is Intel's");
    let intel = Vcpu::new("haswell").list();
    assert!(intel.contains(&0x3a) && intel.contains(&0xc000_0103));
    let stop = &mut |_| Err("full");
    assert_eq!(index_list(&v.host, &|_| true, stop), Err("full"));
}

#[test]
fn what_vmms_set_before_they_boot_a_kernel() {
    for name in ["tcg-epyc", "bochs-icelake", "bochs-haswell", "bochs-ryzen"] {
        let mut v = Vcpu::new(name);
        for (index, value) in [
            (0x174, 0),
            (0x175, 0),
            (0x176, 0),
            (0xc000_0081, 0),
            (0xc000_0083, 0),
            (0xc000_0082, 0),
            (0xc000_0102, 0),
            (0xc000_0084, 0),
            (0x10, 0),
            (0x1a0, 1),
            (0x2ff, 0x806),
        ] {
            assert!(v.wr(index, value, Who::Host).is_ok(), "{name}: {index:#x}");
        }
        assert_eq!((v.value(0x1a0), v.value(0x2ff)), (1, 0x806));
        for i in 0..VARIABLE_MTRRS {
            assert!(v.wr(0x200 + 2 * i, 6, Who::Host).is_ok());
            assert!(v
                .wr(
                    0x201 + 2 * i,
                    0xff_8000_0800 & !v.guest.limits().gpa_reserved,
                    Who::Host
                )
                .is_ok());
        }
        for fixed in [0x250, 0x258, 0x259].into_iter().chain(0x268..=0x26f) {
            assert!(v.wr(fixed, 0x0606_0606_0606_0606, Who::Host).is_ok());
            assert_eq!(v.value(fixed), 0x0606_0606_0606_0606);
        }
        assert_eq!(v.value(0xfe) & 0xff, u64::from(VARIABLE_MTRRS));
    }
}

#[test]
fn what_kernels_read_without_asking() {
    let mut v = Vcpu::new("tcg-epyc");
    for index in [
        0x8b,
        0x17,
        0x2a,
        0xcd,
        0xce,
        0x179,
        0x17a,
        0x198,
        0x1a0,
        0x1d9,
        0x2ff,
        0x400,
        0x47f,
        0x606,
        0xc001_0000,
        0xc001_0004,
        0xc001_0010,
        0xc001_0015,
        0xc001_001f,
        0xc001_0055,
        0xc001_0112,
        0xc001_0117,
        0xc001_1021,
        0xc001_1022,
        0xc001_1029,
        0xc001_102a,
    ] {
        assert!(
            matches!(v.rd(index, Who::Guest), Ok(Answer::Value(_))),
            "{index:#x}"
        );
    }
    assert_eq!(v.value(0xc001_1029), 0);
    assert_eq!(v.wr(0xc001_1029, 2, Who::Guest), Ok(Effect::Done));
    assert_eq!(v.wr(0xc001_1029, 1 << 9, Who::Guest), Err(BadMsr::Refused));
    // A counter that does not count: written, and reads as zero.
    assert_eq!(v.wr(0xc001_0004, 0xabcd, Who::Guest), Ok(Effect::Done));
    assert_eq!(v.rd(0xc001_0004, Who::Guest), Ok(Answer::Value(0)));
    // Microcode: the trigger is taken, the revision stays.
    assert_eq!(v.wr(0x8b, 0, Who::Guest), Ok(Effect::Done));
    assert_eq!(v.value(0x8b), 0x0100_0065);
    assert_eq!(v.wr(0x8b, 7, Who::Host), Ok(Effect::Done));
    assert_eq!(v.value(0x8b), 7);
    assert_eq!(v.rd(0x79, Who::Guest), Err(BadMsr::Unknown));
}

#[test]
fn what_is_not_offered_is_not_there() {
    for name in ["skylake-sp", "epyc-milan"] {
        let mut v = Vcpu::new(name);
        for index in [
            0x122,
            0x345,
            0x480,
            0x491,
            0x560,
            0x570,
            0x6a0,
            0xc80,
            0xd90,
            0xda0,
            0x4b56_4d02,
            0x4b56_4d05,
            0x4000_0000,
            0xc000_0104,
            0xc001_0114,
            0xc001_0200,
            0xc001_1030,
            0x1234_5678,
            u32::MAX,
        ] {
            for who in [Who::Guest, Who::Host] {
                assert_eq!(v.rd(index, who), Err(BadMsr::Unknown), "{name}: {index:#x}");
                assert_eq!(
                    v.wr(index, 0, who),
                    Err(BadMsr::Unknown),
                    "{name}: {index:#x}"
                );
            }
        }
        for index in [0x800, 0x830, 0x8ff, 0x210] {
            assert_eq!(v.rd(index, Who::Guest), Err(BadMsr::Refused));
            assert_eq!(v.wr(index, 0, Who::Guest), Err(BadMsr::Refused));
        }
    }
}

#[test]
fn addresses_are_canonical() {
    for name in ["tcg-epyc", "haswell"] {
        let mut v = Vcpu::new(name);
        for msr in [
            HwMsr::FsBase,
            HwMsr::GsBase,
            HwMsr::KernelGsBase,
            HwMsr::Lstar,
            HwMsr::Cstar,
        ] {
            for who in [Who::Guest, Who::Host] {
                assert_eq!(v.wr(msr.index(), NON_CANONICAL, who), Err(BadMsr::Refused));
                let good = 0xffff_8000_0000_0000;
                assert_eq!(v.wr(msr.index(), good, who), Ok(Effect::Hw(msr, good)));
            }
        }
        // SYSENTER: made canonical, 32 bits on AMD.
        let want = if name == "haswell" {
            0x5678_9abc_def0
        } else {
            0x9abc_def0
        };
        assert_eq!(
            v.wr(0x175, NON_CANONICAL, Who::Guest),
            Ok(Effect::Hw(HwMsr::SysenterEsp, want))
        );
    }
    // A CPU with LA57 takes 57 bits whatever CR4 says.
    let mut v = Vcpu::new("tcg-max");
    let wide = 0x00ff_0000_0000_0000;
    assert_eq!(
        v.wr(0xc000_0100, wide, Who::Guest),
        Ok(Effect::Hw(HwMsr::FsBase, wide))
    );
}

#[test]
fn efer_goes_by_the_rules_of_cr() {
    let mut v = Vcpu::new("tcg-epyc");
    assert_eq!(v.rd(0xc000_0080, Who::Guest), Ok(Answer::Hw(HwMsr::Efer)));
    let on = efer::LME | efer::NXE | efer::SCE;
    assert_eq!(
        v.wr(0xc000_0080, on | efer::LMA, Who::Guest),
        Ok(Effect::Hw(HwMsr::Efer, on))
    );
    for bad in [efer::SVME, efer::AUTOIBRS, 1 << 9, u64::MAX] {
        assert_eq!(v.wr(0xc000_0080, bad, Who::Guest), Err(BadMsr::Refused));
        assert_eq!(v.wr(0xc000_0080, bad, Who::Host), Err(BadMsr::Refused));
    }
    // User space may set what the guest's CPUID hides.
    v.guest = GuestFeatures::derive(&[], &v.host);
    assert_eq!(v.wr(0xc000_0080, on, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(
        v.wr(0xc000_0080, on, Who::Host),
        Ok(Effect::Hw(HwMsr::Efer, on))
    );
}

#[test]
fn memory_types() {
    let mut v = Vcpu::new("haswell");
    for who in [Who::Guest, Who::Host] {
        for t in 0..=255u64 {
            let pat = matches!(t, 0 | 1 | 4 | 5 | 6 | 7);
            let mtrr = matches!(t, 0 | 1 | 4 | 5 | 6);
            assert_eq!(v.wr(0x277, t << 24, who).is_ok(), pat, "{t}");
            assert_eq!(v.wr(0x268, t << 56, who).is_ok(), mtrr, "{t}");
            assert_eq!(v.wr(0x200, t, who).is_ok(), mtrr, "{t}");
            assert_eq!(v.wr(0x2ff, t, who).is_ok(), mtrr, "{t}");
        }
        assert_eq!(v.wr(0x2ff, 0x1006, who), Err(BadMsr::Refused));
        assert_eq!(v.wr(0x201, 0x400, who), Err(BadMsr::Refused));
        assert_eq!(v.wr(0x201, 1 << 39, who), Err(BadMsr::Refused));
        assert!(v.wr(0x201, 0x7f_ffff_f800, who).is_ok());
        assert_eq!(v.wr(0xfe, 0, who), Err(BadMsr::Unknown));
    }
}

#[test]
fn tsc_and_its_adjustment() {
    let mut v = Vcpu::new("haswell");
    assert_eq!(v.rd(0x10, Who::Guest), Ok(Answer::Hw(HwMsr::Tsc)));
    assert_eq!(v.wr(0x10, 500, Who::Guest), Ok(Effect::Tsc(500)));
    adjust_tsc(&mut v.slots, 100u64.wrapping_neg());
    assert_eq!(v.value(0x3b), 100u64.wrapping_neg());
    assert_eq!(v.wr(0x3b, 50, Who::Guest), Ok(Effect::TscOffset(150)));
    assert_eq!(v.wr(0x3b, 7, Who::Host), Ok(Effect::Done));
    assert_eq!(v.value(0x3b), 7);
    // Without the feature it cannot be moved.
    v.guest = GuestFeatures::derive(&[], &v.host);
    assert_eq!(v.wr(0x3b, 9, Who::Guest), Ok(Effect::Done));
    assert_eq!(v.value(0x3b), 7);
}

#[test]
fn tsc_aux_wants_its_instructions() {
    for (name, wide) in [("haswell", false), ("epyc-milan", true)] {
        let mut v = Vcpu::new(name);
        assert_eq!(v.rd(0xc000_0103, Who::Guest), Ok(Answer::Hw(HwMsr::TscAux)));
        let got = v.wr(0xc000_0103, (1 << 32) | 5, Who::Guest);
        assert_eq!(got.is_ok(), wide);
        assert_eq!(
            v.wr(0xc000_0103, 5, Who::Guest),
            Ok(Effect::Hw(HwMsr::TscAux, 5))
        );
        v.guest = GuestFeatures::derive(&[], &v.host);
        assert_eq!(v.rd(0xc000_0103, Who::Guest), Err(BadMsr::Refused));
        assert!(v.wr(0xc000_0103, 5, Who::Host).is_ok());
    }
}

#[test]
fn misc_enable_keeps_what_says_there_is_no_pmu() {
    let mut v = Vcpu::new("haswell");
    assert_eq!(v.value(0x1a0), 0x1800);
    assert_eq!(v.wr(0x1a0, 1, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(v.wr(0x1a0, 0x1801 | (1 << 7), Who::Guest), Ok(Effect::Done));
    assert_eq!(v.value(0x1a0), 0x1801);
    assert_eq!(v.wr(0x1a0, 1, Who::Host), Ok(Effect::Done));
}

#[test]
fn hwcr() {
    let mut v = Vcpu::new("epyc-naples");
    assert_eq!(
        v.wr(
            0xc001_0015,
            (1 << 3) | (1 << 6) | (1 << 8) | (1 << 24),
            Who::Guest
        ),
        Ok(Effect::Done)
    );
    assert_eq!(v.value(0xc001_0015), 1 << 24);
    for bad in [1, 1 << 4, 1 << 30, 1 << 35] {
        assert_eq!(v.wr(0xc001_0015, bad, Who::Host), Err(BadMsr::Refused));
    }
}

#[test]
fn machine_check_banks() {
    let mut v = Vcpu::new("epyc-milan");
    assert_eq!(v.value(0x179), 32);
    assert_eq!(v.wr(0x17b, 0, Who::Host), Ok(Effect::Done));
    assert_eq!(v.wr(0x17b, u64::MAX, Who::Host), Err(BadMsr::Refused));
    assert_eq!(v.rd(0x17b, Who::Guest), Err(BadMsr::Refused));
    for bad in [
        0,
        33,
        0xff,
        10 | (1 << 9),
        10 | (1 << 63),
        10 | bits::MCG_CMCI_P,
    ] {
        assert_eq!(
            mce::setup(&mut v.slots, bad, false),
            Err(mce::BadCap),
            "{bad:#x}"
        );
    }
    assert_eq!(
        mce::setup(&mut v.slots, 10 | bits::MCG_CTL_P, false),
        Ok(())
    );
    assert_eq!(v.value(0x17b), u64::MAX);
    assert_eq!(
        (v.value(0x400), v.value(0x401), v.value(0x424)),
        (u64::MAX, 0, u64::MAX)
    );
    // What only Intel's register has is taken from an AMD vCPU's.
    let cap = 10 | bits::MCG_SER_P | 0x3_0000;
    for (intel, kept) in [(true, cap), (false, 10)] {
        assert_eq!(mce::setup(&mut v.slots, cap, intel), Ok(()));
        assert_eq!(v.value(0x179), kept);
    }
    assert_eq!(
        mce::setup(&mut v.slots, 10 | bits::MCG_CTL_P, false),
        Ok(())
    );
    assert_eq!(v.rd(0x428, Who::Host), Err(BadMsr::Refused));
    assert_eq!(v.wr(0x428, 0, Who::Host), Err(BadMsr::Refused));
    assert_eq!(v.rd(0x280, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(v.wr(0x400, 5, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(v.wr(0x410, !(1 << 10), Who::Guest), Ok(Effect::Done));
    // STATUS: cleared by anyone, set by user space, and by an AMD guest that unlocked it.
    assert_eq!(v.wr(0x401, 1, Who::Host), Ok(Effect::Done));
    assert_eq!(v.wr(0x401, 0, Who::Guest), Ok(Effect::Done));
    assert_eq!(v.wr(0x401, 1, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(v.wr(0xc001_0015, 1 << 18, Who::Guest), Ok(Effect::Done));
    assert_eq!(v.wr(0x401, 1, Who::Guest), Ok(Effect::Done));
}

#[test]
fn cpuid_faulting_is_switched_on() {
    let mut v = Vcpu::new("skylake-sp");
    assert!(!cpuid_faulting(&v.slots));
    assert_eq!(v.wr(0x140, 2, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(v.wr(0x140, 1, Who::Guest), Ok(Effect::Done));
    assert!(cpuid_faulting(&v.slots));
    assert_eq!(v.wr(0xce, 0, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(v.wr(0xce, 0, Who::Host), Ok(Effect::Done));
    assert_eq!(v.wr(0x140, 1, Who::Host), Err(BadMsr::Refused));
}

#[test]
fn apic_base_shows_in_cpuid() {
    let mut v = Vcpu::new("tcg-epyc");
    let on = apic_base::RESET | apic_base::BSP;
    assert_eq!(v.value(0x1b), on);
    assert_eq!(v.wr(0x1b, on, Who::Guest), Ok(Effect::Done));
    assert_eq!(
        v.wr(0x1b, on & !apic_base::ENABLE, Who::Guest),
        Ok(Effect::CpuidDirty)
    );
    assert_eq!(
        v.wr(0x1b, on | apic_base::X2APIC, Who::Guest),
        Err(BadMsr::Refused)
    );
    assert_eq!(v.wr(0x1b, 1, Who::Host), Err(BadMsr::Refused));
    assert_eq!(super::apic_base(&v.slots), on & !apic_base::ENABLE);
}

#[test]
fn feature_control_is_locked_once() {
    let mut v = Vcpu::new("haswell");
    assert_eq!(v.value(0x3a), 0);
    assert_eq!(v.wr(0x3a, 5, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(v.wr(0x3a, 1, Who::Guest), Ok(Effect::Done));
    assert_eq!(v.wr(0x3a, 1, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(v.wr(0x3a, 5, Who::Host), Ok(Effect::Done));
    assert_eq!(
        Vcpu::new("tcg-epyc").rd(0x3a, Who::Guest),
        Err(BadMsr::Unknown)
    );
}

#[test]
fn debugctl_takes_what_it_ignores() {
    let mut intel = Vcpu::new("haswell");
    assert_eq!(intel.wr(0x1d9, 3, Who::Guest), Ok(Effect::Done));
    assert_eq!(intel.rd(0x1d9, Who::Guest), Ok(Answer::Value(0)));
    assert_eq!(intel.wr(0x1d9, 1 << 11, Who::Guest), Err(BadMsr::Refused));
    assert_eq!(
        Vcpu::new("tcg-epyc").wr(0x1d9, 0xff, Who::Guest),
        Ok(Effect::Done)
    );
}

#[test]
fn feature_msrs() {
    for cpu in cpus() {
        let host = cpu.caps();
        let de_cfg = feature_value(0xc001_1029, &host, 0);
        assert_eq!(
            de_cfg,
            if host.vendor().is_amd() {
                Ok(2)
            } else {
                Err(BadMsr::Unknown)
            }
        );
        assert_eq!(feature_value(0x8b, &host, 99), Ok(99));
        assert_eq!(feature_value(0xce, &host, 0), Ok(1 << 31));
        assert_eq!(feature_value(0x10a, &host, 0), Ok(host.arch_capabilities()));
        assert_eq!(feature_value(0x345, &host, 0), Err(BadMsr::Unknown));
    }
}

fn refused<T>(unless: bool, good: T) -> Result<T, BadMsr> {
    if unless {
        Ok(good)
    } else {
        Err(BadMsr::Refused)
    }
}

/// The host writes FMASK for an Intel guest: a value that the CPU refuses must not get that far.
#[test]
fn fmask_has_32_bits_on_intel() {
    for (name, high) in [("haswell", Err(BadMsr::Refused)), ("tcg-epyc", Ok(()))] {
        let mut v = Vcpu::new(name);
        for who in [Who::Guest, Who::Host] {
            assert!(v.wr(0xc000_0084, 0xffff_ffff, who).is_ok(), "{name}");
            assert_eq!(v.wr(0xc000_0084, 1 << 32, who).map(|_| ()), high, "{name}");
        }
    }
}

#[test]
fn pass_through_needs_no_checks() {
    for msr in HwMsr::ALL {
        for amd in [false, true] {
            let pass = msr.pass_through(amd);
            if matches!(
                msr,
                HwMsr::Efer | HwMsr::Pat | HwMsr::TscAux | HwMsr::SpecCtrl
            ) {
                assert_eq!(pass, Pass::None);
            }
            if matches!(msr, HwMsr::Lstar | HwMsr::Star) {
                assert_eq!(pass == Pass::ReadWrite, amd);
            }
        }
    }
}
