// SPDX-License-Identifier: GPL-2.0
//! `--cpu`: how much of the machine's CPU the guest is shown. Features are only ever taken away: what the machine lacks, no name brings.

use kvm_bindings::kvm_cpuid_entry2;

use crate::features::{self, Register};

/// What every 64-bit CPU has, and what is not a feature of the CPU but of the machine around it.
const BASELINE: &str = "fpu vme de pse tsc msr pae mce cx8 sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 hypervisor \
                        syscall nx lm constant_tsc";
/// State components in XCR0 that go with a feature.
const COMPONENTS: &[(&str, u32)] = &[
    ("avx", 1 << 2),
    ("mpx", 1 << 3 | 1 << 4),
    ("avx512f", 1 << 5 | 1 << 6 | 1 << 7),
    ("pku", 1 << 9),
];

/// The wanted CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Everything that the machine has, or the baseline.
    all: bool,
    with: Vec<String>,
    without: Vec<String>,
}

/// Reads `host`, `baseline`, or a list: features by the names of /proc/cpuinfo, beside the baseline's; `-name` takes one away; `host`
/// or `baseline` may come first.
pub fn parse(text: &str) -> Result<Cpu, String> {
    let mut cpu = Cpu {
        all: false,
        with: Vec::new(),
        without: Vec::new(),
    };
    for (i, word) in text.split(',').enumerate() {
        match word {
            "host" if i == 0 => cpu.all = true,
            "baseline" if i == 0 => {}
            _ => {
                let (list, name) = match word.strip_prefix('-') {
                    Some(name) => (&mut cpu.without, name),
                    None => (&mut cpu.with, word.strip_prefix('+').unwrap_or(word)),
                };
                if !features::is_known(name) {
                    return Err(format!(
                        "'{name}' is no feature that I know; `lodge info` prints the names"
                    ));
                }
                list.push(name.to_string());
            }
        }
    }
    Ok(cpu)
}

impl Cpu {
    /// All that the machine has.
    pub fn host() -> Self {
        Self {
            all: true,
            with: Vec::new(),
            without: Vec::new(),
        }
    }

    /// May the guest see the feature, if it is there?
    fn shows(&self, name: &str) -> bool {
        let listed = |list: &[String]| list.iter().any(|n| n == name);
        let base =
            self.all || name.starts_with("kvm_") || BASELINE.split_whitespace().any(|n| n == name);
        !listed(&self.without) && (base || listed(&self.with))
    }

    /// Takes away what the guest is not to see.
    pub fn narrow(&self, entries: &mut [kvm_cpuid_entry2]) {
        features::keep(entries, |name| self.shows(name), self.all);
        let has = |entries: &[kvm_cpuid_entry2], function, register, bit: u32| {
            let e = entries
                .iter()
                .find(|e| e.function == function && e.index == 0);
            e.is_some_and(|e| features::value(e, register) >> bit & 1 != 0)
        };
        let xsave = has(entries, 1, Register::Ecx, 26);
        let mut gone = 0;
        for (name, components) in COMPONENTS {
            if !self.shows(name) {
                gone |= components;
            }
        }
        for e in entries.iter_mut() {
            match (e.function, e.index) {
                // More features, which have no names here.
                (7, 1..) | (0x8000_0021, _) if !self.all => {
                    (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0);
                }
                (0xd, _) if !xsave => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
                (0xd, 0) => e.eax &= !gone,
                (0xd, 2..=31) if gone >> e.index & 1 != 0 => {
                    (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Vec<kvm_cpuid_entry2> {
        let leaf = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        vec![
            leaf(0, 0, 0xd, 1, 2, 3),
            // fpu, sse2 and htt; sse3, xsave, avx, hypervisor.
            leaf(
                1,
                0,
                0x600,
                0,
                1 | 1 << 26 | 1 << 28 | 1 << 31,
                1 | 1 << 26 | 1 << 28,
            ),
            leaf(7, 0, 1, 1 << 5 | 1 << 10, 1 << 3, 1 << 10),
            leaf(7, 1, 1 << 4, 0, 0, 0),
            leaf(0xd, 0, 0x207, 0x240, 0xa88, 0),
            leaf(0xd, 1, 0xf, 0, 0, 0),
            leaf(0xd, 2, 256, 576, 0, 0),
            leaf(0x4000_0001, 0, 1, 0, 0, 0),
            // On AMD the low bits repeat those of leaf 1.
            leaf(
                0x8000_0001,
                0,
                0,
                0,
                1 << 5,
                1 | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29,
            ),
        ]
    }

    fn narrowed(text: &str) -> Vec<kvm_cpuid_entry2> {
        let mut entries = machine();
        parse(text).expect("a CPU").narrow(&mut entries);
        entries
    }

    #[test]
    fn host_is_all_of_it() {
        assert_eq!(narrowed("host"), machine());
    }

    #[test]
    fn baseline_is_what_every_cpu_has() {
        let e = narrowed("baseline");
        assert_eq!(e[0], machine()[0]);
        assert_eq!(
            (e[1].eax, e[1].ecx, e[1].edx),
            (0x600, 1 << 31, 1 | 1 << 26)
        );
        assert_eq!((e[2].eax, e[2].ebx, e[2].ecx, e[2].edx), (1, 0, 0, 0));
        assert_eq!(e[3].eax, 0);
        for i in [4, 5, 6] {
            assert_eq!((e[i].eax, e[i].ebx, e[i].ecx), (0, 0, 0), "no XSAVE");
        }
        assert_eq!(e[7].eax, 1);
        assert_eq!((e[8].ecx, e[8].edx), (0, 1 | 1 << 11 | 1 << 20 | 1 << 29));
    }

    #[test]
    fn lists_add_to_the_baseline_and_take_from_the_host() {
        let e = narrowed("xsave,avx");
        assert_eq!(e, narrowed("baseline,+xsave,+avx"));
        assert_eq!(e[1].ecx, 1 << 26 | 1 << 28 | 1 << 31);
        assert_eq!(
            (e[4].eax, e[6].eax),
            (7, 256),
            "AVX's state, not the protection keys'"
        );
        let e = narrowed("host,-avx,-fpu");
        assert_eq!(e[1].ecx, 1 | 1 << 26 | 1 << 31);
        assert_eq!((e[4].eax, e[6].eax), (0x203, 0));
        assert_eq!((e[1].edx & 1, e[8].edx & 1), (0, 0), "in both places");
    }

    #[test]
    fn what_the_machine_lacks_is_not_faked() {
        let e = narrowed("baseline,avx512f,la57,vmx");
        for (i, have) in machine().iter().enumerate() {
            assert_eq!(e[i].eax & !have.eax, 0);
            assert_eq!(e[i].ebx & !have.ebx, 0);
            assert_eq!(e[i].ecx & !have.ecx, 0);
            assert_eq!(e[i].edx & !have.edx, 0);
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        for bad in ["", "avx3", "host,host", "avx,baseline", "host,", "-", "."] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
