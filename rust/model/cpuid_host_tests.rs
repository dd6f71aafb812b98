// SPDX-License-Identifier: GPL-2.0
use super::*;
use crate::model::cpuid::{check_set, execute, find, find_index, refresh, Shown};
use crate::model::cr::cr4;
use crate::model::guest::GuestFeatures;
use crate::model::speculation::{weak, Kernel};
use std::collections::BTreeMap;
use std::vec::Vec;

#[path = "cpuid_host_tests_kvm.rs"]
pub(crate) mod against_kvm;

/// A recorded CPU.
pub(crate) struct Cpu {
    pub(crate) name: &'static str,
    leaves: BTreeMap<(u32, u32), [u32; 4]>,
}

impl Cpu {
    fn parse(name: &'static str, text: &str) -> Self {
        let mut leaves = BTreeMap::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let v: Vec<u32> = line
                .split_whitespace()
                .map(|w| u32::from_str_radix(w, 16).unwrap())
                .collect();
            leaves.insert((v[0], v[1]), [v[2], v[3], v[4], v[5]]);
        }
        let mut cpu = Self { name, leaves };
        // As a 64-bit Linux sees it: XSAVE and protection keys are switched on.
        cpu.follow(1, 2, 26, 27);
        cpu.follow(7, 2, 3, 4);
        // Intel tells of SYSCALL in 64-bit mode only.
        cpu.follow(0x8000_0001, 3, 29, 11);
        cpu
    }

    fn follow(&mut self, leaf: u32, reg: usize, cause: u32, effect: u32) {
        if let Some(r) = self.leaves.get_mut(&(leaf, 0)) {
            r[reg] = r[reg] & !(1 << effect) | (((r[reg] >> cause) & 1) << effect);
        }
    }

    pub(crate) fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
        let sub = if is_indexed(leaf) { sub } else { 0 };
        self.leaves.get(&(leaf, sub)).copied().unwrap_or([0; 4])
    }

    pub(crate) fn config(&self) -> Config {
        let [low, _, _, high] = self.cpuid(0xd, 0);
        Config {
            host_xcr0: u64::from(low) | (u64::from(high) << 32),
            tdp_levels: 4,
            lapic: false,
            lfence_serializing: true,
            null_seg_clears_base: true,
            without: Caps::none(),
            kernel_has: Caps::none(),
            speculation: self.kernel(),
            arch_capabilities: match self.name {
                "bochs-icelake" => 0xf,
                _ => 0,
            },
        }
    }

    /// What Linux makes of the CPUID bits; and the weaknesses that it finds on two of them, on others all.
    fn kernel(&self) -> Kernel {
        let [.., intel] = self.cpuid(7, 0);
        let [_, amd, ..] = self.cpuid(0x8000_0008, 0);
        let bit = |word: u32, n: u32| word >> n & 1 != 0;
        let mut uses = 0;
        for (on, what) in [
            (bit(intel, 26), uses::IBRS | uses::IBPB | uses::SPEC_CTRL),
            (bit(intel, 27), uses::STIBP),
            (bit(amd, 12), uses::IBPB),
            (bit(amd, 14), uses::IBRS | uses::SPEC_CTRL),
            (bit(amd, 15), uses::STIBP | uses::SPEC_CTRL),
            (bit(amd, 24), uses::SPEC_CTRL),
        ] {
            if on {
                uses |= what;
            }
        }
        let tsa = weak::TSA_SQ | weak::TSA_L1 | weak::TSA_FILL;
        let weak = match self.name {
            "tcg-epyc" => weak::SPEC_STORE_BYPASS | tsa,
            "bochs-icelake" => weak::MDS | weak::ITS | weak::GDS | weak::EIBRS_PBRSB | tsa,
            _ => u32::MAX,
        };
        Kernel { weak, uses }
    }

    pub(crate) fn caps(&self) -> HostCaps {
        HostCaps::probe(&|l, s| self.cpuid(l, s), &self.config())
    }

    pub(crate) fn supported(&self, caps: &HostCaps) -> Vec<Entry> {
        let mut out = Vec::new();
        let push = &mut |e| {
            out.push(e);
            Ok::<(), ()>(())
        };
        supported(&|l, s| self.cpuid(l, s), caps, push).unwrap();
        out
    }
}

/// All fixtures.
pub(crate) fn cpus() -> Vec<Cpu> {
    macro_rules! all {
        ($($name:literal)*) => {
            std::vec![$(Cpu::parse($name, include_str!(concat!("../../selftests/fixtures/cpuid-", $name, ".txt"))),)*]
        };
    }
    all!("haswell" "icelake-client" "skylake-sp" "epyc-naples" "epyc-milan"
         "tcg-epyc" "tcg-max" "bochs-haswell" "bochs-icelake" "bochs-ryzen")
}

pub(crate) fn cpu(name: &str) -> Cpu {
    cpus().into_iter().find(|c| c.name == name).unwrap()
}

#[test]
fn every_row_is_a_place_of_its_own() {
    for (i, a) in TABLE.iter().enumerate() {
        assert!(a.feature.bit < 32, "{}", a.name);
        for b in &TABLE[i + 1..] {
            assert_ne!(a.feature, b.feature, "{} and {}", a.name, b.name);
            assert_ne!(a.name, b.name);
        }
    }
}

#[test]
fn at_most_a_hundred_entries_and_no_double() {
    for cpu in cpus() {
        let list = cpu.supported(&cpu.caps());
        assert!(list.len() <= 100, "{}: {}", cpu.name, list.len());
        for (i, a) in list.iter().enumerate() {
            for b in &list[i + 1..] {
                assert_ne!((a.function, a.index), (b.function, b.index), "{}", cpu.name);
            }
            assert_eq!(a.flags == SIGNIFICANT_INDEX, is_indexed(a.function));
        }
        assert_eq!(check_set(&list), Ok(()));
    }
}

#[test]
fn nothing_is_offered_that_the_cpu_lacks_but_what_the_module_makes() {
    for cpu in cpus() {
        let caps = cpu.caps();
        for row in TABLE {
            let made = matches!(row.offer, Offer::Always)
                || [features::LFENCE_RDTSC, features::NULL_SEL_CLR_BASE].contains(&row.feature);
            let mut other = false;
            speculation::other_forms(&|f| caps.cpu_has(f), cpu.kernel(), &mut |f| {
                other |= f == row.feature;
            });
            if caps.has(row.feature) {
                assert!(
                    made || other || caps.cpu_has(row.feature),
                    "{}: {}",
                    cpu.name,
                    row.name
                );
            } else {
                assert!(!made, "{}: {}", cpu.name, row.name);
            }
        }
    }
}

#[test]
fn no_word_has_bits_without_a_row() {
    for cpu in cpus() {
        let caps = cpu.caps();
        let list = cpu.supported(&caps);
        for w in Word::ALL {
            let (function, index, reg) = w.place();
            let Some(e) = find_index(&list, function, index) else {
                continue;
            };
            let known = TABLE
                .iter()
                .filter(|r| {
                    r.feature.word == w
                        && !matches!(r.offer, Offer::No | Offer::Dynamic | Offer::OnRequest)
                })
                .fold(0, |m, r| m | r.feature.mask());
            assert_eq!(reg.of(e.regs()) & !known, 0, "{}: {w:?}", cpu.name);
        }
    }
}

#[test]
fn what_is_not_virtualized_stays_hidden() {
    use features::*;
    for cpu in cpus() {
        let caps = cpu.caps();
        for f in [
            VMX,
            SVM,
            PDCM,
            DS,
            DTES64,
            MPX,
            INTEL_PT,
            SGX,
            AMX_TILE,
            XFD,
            SHSTK,
            IBT,
            XSAVES,
            VIRT_SSBD,
            X2APIC,
            TSC_DEADLINE,
            MWAIT,
            OSXSAVE,
            OSPKE,
            WAITPKG,
            PERFCTR_CORE,
        ] {
            assert!(!caps.has(f), "{}: {f:?}", cpu.name);
        }
        let list = cpu.supported(&caps);
        for leaf in [5, 0xa, 0x12, 0x14, 0x8000_000a, 0x8000_001f, 0x8000_0022] {
            if let Some(e) = find(&list, leaf) {
                assert_eq!(e.regs(), [0; 4], "{}: {leaf:#x}", cpu.name);
            }
        }
        assert!(caps.has(HYPERVISOR) && caps.has(TSC_ADJUST) && caps.has(LM) && caps.has(NX));
    }
}

#[test]
fn a_module_with_an_apic_offers_its_features() {
    let cpu = cpu("tcg-epyc");
    let caps = HostCaps::probe(
        &|l, s| cpu.cpuid(l, s),
        &Config {
            lapic: true,
            ..cpu.config()
        },
    );
    assert!(caps.has(features::X2APIC) && caps.has(features::TSC_DEADLINE));
}

#[test]
fn leaves_that_vmms_cannot_do_without() {
    for cpu in cpus() {
        let list = cpu.supported(&cpu.caps());
        for leaf in [
            0,
            1,
            7,
            0xd,
            0x8000_0000,
            0x8000_0001,
            0x8000_0002,
            0x8000_0004,
            0x8000_0006,
            0x8000_0008,
        ] {
            assert!(find(&list, leaf).is_some(), "{}: {leaf:#x}", cpu.name);
        }
        let sig = find(&list, 0x4000_0000).unwrap();
        assert_eq!(sig.eax, 0x4000_0001);
        let name: Vec<u8> = [sig.ebx, sig.ecx, sig.edx]
            .iter()
            .flat_map(|r| r.to_le_bytes())
            .collect();
        assert_eq!(name, b"KVMKVMKVM\0\0\0");
        assert_eq!(
            find(&list, 0x4000_0001).unwrap().regs(),
            [KVM_OFFERED, 0, 0, 0]
        );
        if cpu.name.contains("epyc") || cpu.name == "bochs-ryzen" {
            assert_eq!(
                Vendor::from_leaf0(find(&list, 0).unwrap().regs()),
                Vendor::Amd
            );
            assert!(find(&list, 0x8000_0021).is_some(), "{}", cpu.name);
        }
    }
}

#[test]
fn xsave_sizes_are_the_standard_format() {
    // Name, XCR0, standard size, compacted size.
    let want = [
        ("haswell", 0x7, 0x340, 0x340),
        ("icelake-client", 0x2e7, 0xa88, 0x988),
        // The standard format leaves the holes of MPX, which is not offered.
        ("skylake-sp", 0x2e7, 0xa88, 0x988),
        ("epyc-naples", 0x7, 0x340, 0x340),
        ("epyc-milan", 0x207, 0x988, 0x348),
        ("tcg-max", 0x207, 0xa88, 0x348),
    ];
    for (name, xcr0, standard, compacted) in want {
        let cpu = cpu(name);
        let caps = cpu.caps();
        assert_eq!(caps.xcr0(), xcr0, "{name}");
        assert_eq!(caps.xstate_size(xcr0, false), standard, "{name}");
        assert_eq!(caps.xstate_size(xcr0, true), compacted, "{name}");
        assert_eq!(caps.xstate_size(3, false), 576);
        let list = cpu.supported(&caps);
        let main = find_index(&list, 0xd, 0).unwrap();
        assert_eq!(main.regs(), [xcr0 as u32, standard, standard, 0]);
        for i in 2..20u32 {
            let there = (xcr0 >> i) & 1 != 0;
            assert_eq!(find_index(&list, 0xd, i).is_some(), there, "{name}: {i}");
            if there {
                assert_eq!(
                    find_index(&list, 0xd, i).unwrap().regs()[..2],
                    cpu.cpuid(0xd, i)[..2]
                );
            }
        }
    }
}

#[test]
fn a_host_without_xsave_offers_nothing_of_it() {
    use features::*;
    let cpu = cpu("skylake-sp");
    let off = |l, s| {
        let mut r = cpu.cpuid(l, s);
        if l == 1 {
            r[2] &= !(1 << 27);
        }
        r
    };
    let caps = HostCaps::probe(
        &off,
        &Config {
            host_xcr0: 0,
            ..cpu.config()
        },
    );
    assert_eq!(caps.xcr0(), 0);
    for f in [XSAVE, AVX, AVX2, AVX512F, FMA, PKU, XSAVEOPT] {
        assert!(!caps.has(f));
    }
    assert!(caps.has(AES) && caps.has(SMEP));
    // XCR0 without AVX-512, as with a kernel told to keep it off.
    let caps = HostCaps::probe(
        &|l, s| cpu.cpuid(l, s),
        &Config {
            host_xcr0: 7,
            ..cpu.config()
        },
    );
    assert!(caps.has(AVX2) && !caps.has(AVX512F) && !caps.has(PKU));
}

#[test]
fn protection_keys_need_the_hosts_consent() {
    let cpu = cpu("skylake-sp");
    let off = |l, s| {
        let mut r = cpu.cpuid(l, s);
        if l == 7 {
            r[2] &= !(1 << 4);
        }
        r
    };
    let caps = HostCaps::probe(&off, &cpu.config());
    assert!(cpu.caps().has(features::PKU) && !caps.has(features::PKU));
    assert_eq!(caps.xcr0(), 0xe7);
}

#[test]
fn aligned_components_begin_at_64_bytes() {
    // Sizes no CPU has, so that alignment shows: YMM is 0x104 bytes, PKRU is 8.
    for (flags, want) in [(0, 576 + 0x104 + 8), (2, 576 + 0x140 + 8)] {
        let cpu = cpu("epyc-milan");
        let odd = |l, s| match (l, s) {
            (0xd, 2) => [0x104, 0x240, 0, 0],
            (0xd, 9) => [8, 0x980, flags, 0],
            _ => cpu.cpuid(l, s),
        };
        let caps = HostCaps::probe(&odd, &cpu.config());
        assert_eq!(caps.xstate_size(0x207, true), want);
        assert_eq!(caps.xstate_size(0x207, false), 0x988);
    }
}

#[test]
fn the_kernels_word_counts() {
    let cpu = cpu("tcg-max");
    let mut config = cpu.config();
    config.follow_kernel(&[0; 22]);
    let caps = HostCaps::probe(&|l, s| cpu.cpuid(l, s), &config);
    for row in TABLE.iter().filter(|r| caps.has(r.feature)) {
        let free = matches!(row.offer, Offer::Always)
            || row.feature.word.kernel_word().is_none()
            || [
                features::LA57,
                features::EFER_LMSLE_MBZ,
                features::LFENCE_RDTSC,
                features::NULL_SEL_CLR_BASE,
            ]
            .contains(&row.feature);
        assert!(free, "{}", row.name);
    }
    assert!(caps.has(features::LA57));
    // A short array withholds nothing that it does not tell of.
    let mut config = cpu.config();
    config.follow_kernel(&[!0]);
    assert_eq!(config.without, cpu.config().without);
    assert_eq!(config.kernel_has.word(Word::L1Edx), u32::MAX);
}

#[test]
fn withheld_features_are_gone_everywhere() {
    let cpu = cpu("haswell");
    let mut config = cpu.config();
    config.without.set(features::INVPCID, true);
    let caps = HostCaps::probe(&|l, s| cpu.cpuid(l, s), &config);
    assert!(cpu.caps().has(features::INVPCID) && !caps.has(features::INVPCID));
    let guest = GuestFeatures::derive(&cpu.supported(&cpu.caps()), &caps);
    assert!(!guest.has(features::INVPCID) && guest.has(features::PCID));
}

#[test]
fn address_widths() {
    let eax = |name: &str, levels| {
        let cpu = cpu(name);
        let config = Config {
            tdp_levels: levels,
            ..cpu.config()
        };
        let caps = HostCaps::probe(&|l, s| cpu.cpuid(l, s), &config);
        find(&cpu.supported(&caps), 0x8000_0008).unwrap().eax
    };
    assert_eq!(eax("haswell", 4), 0x0027_3027);
    assert_eq!(eax("epyc-milan", 4), 0x0030_3030);
    assert_eq!(eax("tcg-max", 4), 0x0028_3928);
    // 52 bits, four levels: a guest may use 52, and 48 of them can be mapped.
    let wide = |l, s| {
        if l == 0x8000_0008 {
            [0x3934, 0, 0, 0]
        } else {
            cpu("tcg-max").cpuid(l, s)
        }
    };
    for (levels, want) in [(4, 0x0030_3934), (5, 0x0034_3934)] {
        let config = Config {
            tdp_levels: levels,
            ..cpu("tcg-max").config()
        };
        let caps = HostCaps::probe(&wide, &config);
        let mut got = None;
        let push = &mut |e: Entry| {
            if e.function == 0x8000_0008 {
                got = Some(e.eax);
            }
            Ok::<(), ()>(())
        };
        supported(&wide, &caps, push).unwrap();
        assert_eq!(got, Some(want));
    }
}

#[test]
fn a_full_receiver_ends_it() {
    let cpu = cpu("epyc-milan");
    let caps = cpu.caps();
    let total = cpu.supported(&caps).len();
    for room in 0..total {
        let mut n = 0;
        let push = &mut |_| {
            n += 1;
            if n > room {
                Err("full")
            } else {
                Ok(())
            }
        };
        assert_eq!(supported(&|l, s| cpu.cpuid(l, s), &caps, push), Err("full"));
    }
}

#[test]
fn an_endless_cache_leaf_ends() {
    let host = |l: u32, _| match l {
        0 => [0xd, 0, 0, 0],
        4 => [1, 0, 0, 0],
        _ => [0; 4],
    };
    let config = cpu("haswell").config();
    let caps = HostCaps::probe(&host, &config);
    let mut n = 0;
    let push = &mut |_| {
        n += 1;
        Ok::<(), ()>(())
    };
    supported(&host, &caps, push).unwrap();
    assert!(n < 60);
}

#[test]
fn a_guest_given_all_has_all() {
    for cpu in cpus() {
        let caps = cpu.caps();
        let mut entries = cpu.supported(&caps);
        let mut guest = GuestFeatures::derive(&entries, &caps);
        for row in TABLE {
            let (function, index, _) = row.feature.word.place();
            let told = find_index(&entries, function, index).is_some();
            let want = told && caps.has(row.feature);
            assert_eq!(guest.has(row.feature), want, "{}: {}", cpu.name, row.name);
        }
        assert_eq!(guest.limits().xcr0, caps.xcr0());
        assert_eq!(guest.limits().cr4_reserved & cr4::ALWAYS, 0);
        assert_eq!(
            guest.limits().cr4_reserved & cr4::OSXSAVE == 0,
            caps.has(features::XSAVE)
        );
        assert_ne!(guest.limits().cr4_reserved & cr4::VMXE, 0);
        let shown = Shown {
            cr4: cr4::OSXSAVE | cr4::PKE,
            xcr0: caps.xcr0() | 1,
            apic_base: 0,
            mwait: None,
        };
        refresh(&mut entries, &mut guest, &caps, &shown);
        assert!(guest.has(features::OSXSAVE) && !guest.has(features::APIC));
        let [_, _, c, d] = execute(&entries, 1, 0).regs;
        assert_eq!(((c >> 27) & 1, (d >> 9) & 1), (1, 0));
        assert_eq!(
            execute(&entries, 0xd, 0).regs[1],
            caps.xstate_size(caps.xcr0() | 1, false)
        );
    }
}

#[test]
fn what_the_emulator_makes() {
    use features::{MOVBE, RDPID, RDTSCP};
    for cpu in cpus() {
        let mut config = cpu.config();
        for rdtscp in [true, false] {
            config.without.set(RDTSCP, !rdtscp);
            let caps = HostCaps::probe(&|l, s| cpu.cpuid(l, s), &config);
            let mut list = Vec::new();
            let told: Result<(), ()> = emulated(&caps, &mut |e| {
                list.push(e);
                Ok(())
            });
            assert_eq!(told, Ok(()));
            let told: Vec<_> = list
                .iter()
                .map(|e| (e.function, e.index, e.flags, e.regs()))
                .collect();
            let rdpid = if rdtscp && caps.cpu_has(RDTSCP) {
                RDPID.mask()
            } else {
                0
            };
            let want = [
                (0, 0, 0, [7, 0, 0, 0]),
                (1, 0, 0, [0, 0, MOVBE.mask(), 0]),
                (7, 0, SIGNIFICANT_INDEX, [0, 0, rdpid, 0]),
            ];
            assert_eq!(told, want, "{}", cpu.name);
            // It is not offered for that, and a guest that is told of it has it.
            assert_eq!(caps.has(MOVBE), caps.cpu_has(MOVBE), "{}", cpu.name);
            assert_ne!(caps.honoured(Word::L1Ecx) & MOVBE.mask(), 0);
            assert_eq!(
                caps.honoured(Word::L7Ecx) & RDPID.mask() != 0,
                rdpid != 0 || caps.has(RDPID)
            );
        }
    }
    // No room for all.
    let caps = cpu("icelake-client").caps();
    let mut room = 2;
    let told = emulated(&caps, &mut |_| {
        room -= 1;
        if room < 0 {
            Err(())
        } else {
            Ok(())
        }
    });
    assert_eq!(told, Err(()));
}
