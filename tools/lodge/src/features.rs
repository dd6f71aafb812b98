// SPDX-License-Identifier: GPL-2.0
//! Names of the CPUID feature bits that a guest can look for, by the names Linux shows in /proc/cpuinfo.

use kvm_bindings::kvm_cpuid_entry2;

/// Which register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A register full of feature bits; a name for each bit from 0 up, `-` where it has none, `.` where it is left out.
pub struct Word {
    /// The leaf.
    pub function: u32,
    /// Its subleaf.
    pub index: u32,
    /// The register.
    pub register: Register,
    names: &'static str,
}

const WORDS: &[Word] = &[
    Word {
        function: 1,
        index: 0,
        register: Register::Edx,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi \
                mmx fxsr sse sse2 ss ht tm ia64 pbe",
    },
    Word {
        function: 1,
        index: 0,
        register: Register::Ecx,
        names: "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca \
                sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    },
    Word {
        function: 7,
        index: 0,
        register: Register::Ebx,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq \
                rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    },
    Word {
        function: 7,
        index: 0,
        register: Register::Ecx,
        names: "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
                avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri \
                movdir64b enqcmd sgx_lc pks",
    },
    Word {
        function: 7,
        index: 0,
        register: Register::Edx,
        names: "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear - - - serialize \
                hybrid tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs_ibpb stibp \
                flush_l1d arch_capabilities core_capabilities ssbd",
    },
    Word {
        function: 0xd,
        index: 1,
        register: Register::Eax,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd",
    },
    Word {
        function: 0x4000_0001,
        index: 0,
        register: Register::Eax,
        names: "kvm_clock kvm_nopiodelay kvm_mmu kvm_clock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - \
                kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int \
                kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvm_clock_stable",
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        // The other bits repeat those of leaf 1 on AMD.
        names: ". . . . . . . . . . - syscall . . . . . . - - nx - mmxext . . fxsr_opt pdpe1gb rdtscp - lm \
                3dnowext 3dnow",
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt \
                - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    },
    Word {
        function: 0x8000_0007,
        index: 0,
        register: Register::Edx,
        names: "- - - - - - - - constant_tsc",
    },
    Word {
        function: 0x8000_0008,
        index: 0,
        register: Register::Ebx,
        names: "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - - - - - - - - \
                amd_ssbd virt_ssbd amd_ssb_no",
    },
    Word {
        function: 0x8000_000a,
        index: 0,
        register: Register::Edx,
        names: "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - pfthreshold \
                avic - v_vmsave_vmload vgif",
    },
];

impl Word {
    /// The leaf and register as text.
    pub fn name(&self) -> String {
        let register = match self.register {
            Register::Eax => "eax",
            Register::Ebx => "ebx",
            Register::Ecx => "ecx",
            Register::Edx => "edx",
        };
        match self.index {
            0 => format!("{:#x}.{register}", self.function),
            index => format!("{:#x}.{index}.{register}", self.function),
        }
    }

    /// Names of the bits that are set in `value`; a bit without a name is given by its number.
    fn set_bits(&self, value: u32) -> Vec<String> {
        let mut names = self.names.split_whitespace();
        let named = (0..32).map(|bit| (bit, names.next().unwrap_or("-")));
        named
            .filter(|(bit, name)| (value >> bit) & 1 != 0 && *name != ".")
            .map(|(bit, name)| {
                if name == "-" {
                    format!("bit{bit}")
                } else {
                    name.to_string()
                }
            })
            .collect()
    }
}

/// The register of an entry.
pub fn value(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}

/// Is there a bit of this name?
pub fn is_known(name: &str) -> bool {
    !matches!(name, "-" | ".")
        && WORDS
            .iter()
            .any(|w| w.names.split_whitespace().any(|n| n == name))
}

/// Clears the bits whose names are not `wanted`, and, unless `nameless`, those without a name.
pub fn keep(entries: &mut [kvm_cpuid_entry2], wanted: impl Fn(&str) -> bool, nameless: bool) {
    for word in WORDS {
        let mut names = word.names.split_whitespace();
        // The bits that repeat another word's are all of its first: leaf 1, EDX.
        let mut repeated = WORDS[0].names.split_whitespace();
        let mask = (0..32).fold(0u32, |mask, bit| {
            let (name, original) = (names.next().unwrap_or("-"), repeated.next().unwrap_or("-"));
            let keeps = match if name == "." { original } else { name } {
                "-" => nameless,
                name => wanted(name),
            };
            mask | u32::from(keeps) << bit
        });
        for e in entries.iter_mut() {
            if (e.function, e.index) == (word.function, word.index) {
                match word.register {
                    Register::Eax => e.eax &= mask,
                    Register::Ebx => e.ebx &= mask,
                    Register::Ecx => e.ecx &= mask,
                    Register::Edx => e.edx &= mask,
                }
            }
        }
    }
}

/// The feature words that `entries` has, with the names of the bits that are set.
pub fn list(entries: &[kvm_cpuid_entry2]) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for word in WORDS {
        let entry = entries
            .iter()
            .find(|e| e.function == word.function && e.index == word.index);
        if let Some(entry) = entry {
            found.push((word.name(), word.set_bits(value(entry, word.register))));
        }
    }
    found
}

/// The vendor string of leaf 0.
pub fn vendor(entries: &[kvm_cpuid_entry2]) -> Option<String> {
    let entry = entries.iter().find(|e| e.function == 0)?;
    let bytes: Vec<u8> = [entry.ebx, entry.edx, entry.ecx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_has_more_than_32_names() {
        for word in WORDS {
            assert!(
                word.names.split_whitespace().count() <= 32,
                "{}",
                word.name()
            );
        }
    }

    #[test]
    fn well_known_bits_have_their_names() {
        let entries = [
            kvm_cpuid_entry2 {
                function: 0,
                ebx: u32::from_le_bytes(*b"Auth"),
                edx: u32::from_le_bytes(*b"enti"),
                ecx: u32::from_le_bytes(*b"cAMD"),
                ..Default::default()
            },
            kvm_cpuid_entry2 {
                function: 1,
                ecx: (1 << 21) | (1 << 24) | (1 << 31),
                edx: (1 << 9) | (1 << 10) | (1 << 26),
                ..Default::default()
            },
            kvm_cpuid_entry2 {
                function: 7,
                ebx: (1 << 0) | (1 << 31),
                ecx: (1 << 16) | (1 << 31),
                edx: 1 << 31,
                ..Default::default()
            },
            kvm_cpuid_entry2 {
                function: 0x8000_0001,
                edx: (1 << 4) | (1 << 11) | (1 << 29),
                ecx: (1 << 2) | (1 << 22),
                ..Default::default()
            },
            kvm_cpuid_entry2 {
                function: 0x4000_0001,
                eax: 1 << 24,
                ..Default::default()
            },
            kvm_cpuid_entry2 {
                function: 0x8000_000a,
                edx: (1 << 13) | (1 << 16),
                ..Default::default()
            },
        ];
        assert_eq!(vendor(&entries).as_deref(), Some("AuthenticAMD"));
        assert_eq!(vendor(&[]), None);
        let found = list(&entries);
        let bits = |name: &str| -> String {
            let word = found.iter().find(|(n, _)| n == name);
            word.map(|(_, bits)| bits.join(" ")).unwrap_or_default()
        };
        assert_eq!(bits("0x1.ecx"), "x2apic tsc_deadline_timer hypervisor");
        assert_eq!(bits("0x1.edx"), "apic bit10 sse2");
        assert_eq!(bits("0x7.ebx"), "fsgsbase avx512vl");
        assert_eq!(bits("0x7.ecx"), "la57 pks");
        assert_eq!(bits("0x7.edx"), "ssbd");
        assert_eq!(bits("0x80000001.edx"), "syscall lm");
        assert_eq!(bits("0x80000001.ecx"), "svm topoext");
        assert_eq!(bits("0x40000001.eax"), "kvm_clock_stable");
        assert_eq!(bits("0x8000000a.edx"), "avic vgif");
    }
}
