// SPDX-License-Identifier: GPL-2.0
//! What Lodge offers of the CPU it runs on: KVM_GET_SUPPORTED_CPUID and what derives from it.
#![forbid(unsafe_code)]

use super::cpuid::{is_indexed, Entry, Vendor, SIGNIFICANT_INDEX};
use super::cr::{efer, xcr0};
use super::features::{self, Caps, Feature, Offer, Reg, Row, Word, TABLE};
use super::speculation::{self, uses, Commands};

/// The hypervisor leaf with the signature.
pub const KVM_SIGNATURE: u32 = 0x4000_0000;
/// The hypervisor leaf with the paravirtual features.
pub const KVM_FEATURES: u32 = 0x4000_0001;
/// Leaf 0x40000001, EAX: a delay after port I/O is not needed.
pub const KVM_FEATURE_NOP_IO_DELAY: u32 = 1 << 1;
/// KVM's clock under its first numbers, and under those that it has now.
pub const KVM_FEATURE_CLOCKSOURCE: u32 = 1 << 0 | 1 << 3;
/// The page of KVM's clock says whether all CPUs' pages agree.
pub const KVM_FEATURE_CLOCKSOURCE_STABLE: u32 = 1 << 24;
/// The paravirtual features that are offered.
pub const KVM_OFFERED: u32 =
    KVM_FEATURE_NOP_IO_DELAY | KVM_FEATURE_CLOCKSOURCE | KVM_FEATURE_CLOCKSOURCE_STABLE;

/// The highest basic leaf with a meaning to Lodge.
const MAX_BASIC: u32 = 0x24;
/// The highest extended leaf with a meaning to Lodge.
const MAX_EXTENDED: u32 = 0x8000_0022;

/// State components up to the last one that is offered, PKRU.
const COMPONENTS: usize = 10;
/// The legacy area and the header of an XSAVE image, in bytes.
const XSAVE_BASE: u32 = 512 + 64;

/// What the module knows about the CPU and about itself that CPUID does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// XCR0 of the host, 0 without XSAVE.
    pub host_xcr0: u64,
    /// Levels of the deepest second-stage table: 4 or 5.
    pub tdp_levels: u8,
    /// The module has a local APIC.
    pub lapic: bool,
    /// The host kernel relies on LFENCE being serializing (X86_FEATURE_LFENCE_RDTSC).
    pub lfence_serializing: bool,
    /// Loading a null selector clears the base (no X86_BUG_NULL_SEG).
    pub null_seg_clears_base: bool,
    /// Features that the CPU has, but that cannot be given to a guest: RDTSCP, RDPID and INVPCID without their VMX controls,
    /// what the host kernel has switched off, what a module parameter hides.
    pub without: Caps,
    /// Features that the host kernel knows of, whether CPUID tells of them or not.
    pub kernel_has: Caps,
    /// What the kernel says of speculation.
    pub speculation: speculation::Kernel,
    /// The CPU's IA32_ARCH_CAPABILITIES, 0 where it has none.
    pub arch_capabilities: u64,
}

impl Config {
    /// Withholds what the host kernel does not use: `capability` is `boot_cpu_data.x86_capability`.
    pub fn follow_kernel(&mut self, capability: &[u32]) {
        for w in Word::ALL {
            let Some(known) = w.kernel_word().and_then(|i| capability.get(i)) else {
                continue;
            };
            self.without.set_word(w, self.without.word(w) | !known);
            self.kernel_has.set_word(w, *known);
        }
        // A guest can have these whether the host uses them or not.
        self.without.set(features::LA57, false);
        self.without.set(features::EFER_LMSLE_MBZ, false);
    }
}

/// One state component, of leaf 0xd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Component {
    size: u32,
    offset: u32,
    aligned: bool,
}

/// What can be offered to guests on this CPU. Made once, when the module is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCaps {
    vendor: Vendor,
    offered: Caps,
    honoured: Caps,
    raw: Caps,
    xcr0: u64,
    components: [Component; COMPONENTS],
    config: Config,
}

impl HostCaps {
    /// Reads the CPU: `host(leaf, subleaf)` executes CPUID and returns EAX, EBX, ECX, EDX.
    pub fn probe(host: &impl Fn(u32, u32) -> [u32; 4], config: &Config) -> Self {
        let mut raw = Caps::none();
        for w in Word::ALL {
            let (function, index, reg) = w.place();
            if Reg::Eax.of(host(function & 0x8000_0000, 0)) >= function {
                raw.set_word(w, reg.of(host(function, index)));
            }
        }
        // A host that has not enabled XSAVE (or protection keys) cannot switch the state for a guest.
        let mut xcr0 = config.host_xcr0 & xcr0::OFFERED;
        if !raw.has(features::XSAVE) || !raw.has(features::OSXSAVE) {
            xcr0 = 0;
        }
        if !raw.has(features::OSPKE) {
            xcr0 &= !xcr0::PKRU;
        }
        let mut caps = Self {
            vendor: Vendor::from_leaf0(host(0, 0)),
            offered: Caps::none(),
            honoured: Caps::none(),
            raw,
            xcr0,
            components: [Component::default(); COMPONENTS],
            config: *config,
        };
        caps.choose();
        if xcr0 != 0 {
            for i in 2..COMPONENTS {
                let [size, offset, flags, _] = host(0xd, i as u32);
                if let Some(c) = caps.components.get_mut(i) {
                    let aligned = flags & 2 != 0;
                    *c = Component {
                        size,
                        offset,
                        aligned,
                    };
                }
            }
        }
        caps
    }

    /// The CPU has it, and a guest can have it.
    fn is_there(&self, f: Feature) -> bool {
        self.raw.has(f) && !self.config.without.has(f)
    }

    fn emulates(&self, row: &Row) -> bool {
        match row.offer {
            Offer::Emulated(needs) => needs.is_none_or(|f| self.is_there(f)),
            _ => false,
        }
    }

    /// What of a word the emulator can make, whether the CPU has it or not.
    fn emulated(&self, w: Word) -> u32 {
        TABLE
            .iter()
            .filter(|row| row.feature.word == w && self.emulates(row))
            .fold(0, |all, row| all | row.feature.mask())
    }

    fn choose(&mut self) {
        let kernel = self.config.speculation;
        if !kernel.uses(uses::SPEC_CTRL) {
            // Nobody would switch the MSR.
            for f in speculation::OF_SPEC_CTRL {
                self.config.without.set(f, true);
            }
        }
        for row in TABLE {
            let f = row.feature;
            let there = self.is_there(f);
            let offer = match row.offer {
                Offer::Host | Offer::Emulated(_) => there,
                Offer::State(needs) => there && self.xcr0 & needs == needs,
                Offer::Kernel => self.config.kernel_has.has(f),
                Offer::Always => true,
                Offer::Apic => self.config.lapic,
                Offer::OtherForm | Offer::OnRequest | Offer::Dynamic | Offer::No => false,
            };
            self.offered.set(f, offer);
            let made = matches!(row.offer, Offer::OnRequest) || self.emulates(row);
            self.honoured.set(f, offer || made);
        }
        // Told by the host kernel rather than by CPUID: older CPUs have the property and not the bit.
        for (f, known) in [
            (features::LFENCE_RDTSC, self.config.lfence_serializing),
            (
                features::NULL_SEL_CLR_BASE,
                self.config.null_seg_clears_base || self.raw.has(features::NULL_SEL_CLR_BASE),
            ),
        ] {
            self.offered.set(f, known);
            self.honoured.set(f, known);
        }
        let mut more = Caps::none();
        speculation::other_forms(&|f| self.is_there(f), kernel, &mut |f| more.set(f, true));
        for w in Word::ALL {
            self.offered
                .set_word(w, self.offered.word(w) | more.word(w));
            self.honoured
                .set_word(w, self.honoured.word(w) | more.word(w));
        }
    }

    /// The maker of the CPU.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// `f` is offered to guests.
    pub fn has(&self, f: Feature) -> bool {
        self.offered.has(f)
    }

    /// The CPU itself has `f`, as CPUID says.
    pub fn cpu_has(&self, f: Feature) -> bool {
        self.raw.has(f)
    }

    /// What of a word a guest gets if user space asks for all of it.
    pub fn honoured(&self, w: Word) -> u32 {
        self.honoured.word(w)
    }

    /// The state components that are offered.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Bits of EFER that can be virtualized.
    pub fn efer(&self) -> u64 {
        let mut bits = efer::SCE;
        if self.has(features::LM) {
            bits |= efer::LME | efer::LMA;
        }
        if self.has(features::NX) {
            bits |= efer::NXE;
        }
        if self.has(features::FXSR_OPT) {
            bits |= efer::FFXSR;
        }
        bits
    }

    /// Bits of the widest linear address that a guest can have: 48 or 57.
    pub fn linear_bits(&self) -> u8 {
        if self.has(features::LA57) {
            57
        } else {
            48
        }
    }

    /// The commands about speculation that the CPU takes.
    pub fn commands(&self) -> Commands {
        Commands {
            ibpb: self.config.speculation.uses(uses::IBPB),
            sbpb: self.config.kernel_has.has(features::SBPB),
            flush_l1d: self.is_there(features::FLUSH_L1D),
        }
    }

    /// IA32_ARCH_CAPABILITIES as guests are told it.
    pub fn arch_capabilities(&self) -> u64 {
        let rtm = self.is_there(features::RTM);
        let c = &self.config;
        speculation::arch_capabilities(c.arch_capabilities, c.speculation, rtm)
    }

    /// LFENCE is serializing, for MSR DE_CFG.
    pub fn lfence_serializing(&self) -> bool {
        self.config.lfence_serializing
    }

    /// Bytes of an XSAVE image with the components of `mask` (those that are offered count); the compacted format if `compacted`.
    pub fn xstate_size(&self, mask: u64, compacted: bool) -> u32 {
        let mut size = XSAVE_BASE;
        let mut rest = mask >> 2;
        for c in self.components.iter().skip(2) {
            let wanted = rest & 1 != 0;
            rest >>= 1;
            if !wanted {
                continue;
            }
            let start = match (compacted, c.aligned) {
                (false, _) => c.offset,
                (true, true) => size.wrapping_add(63) & !63,
                (true, false) => size,
            };
            size = size.max(start.wrapping_add(c.size));
        }
        size
    }
}

/// Produces the entries of KVM_GET_SUPPORTED_CPUID, in order. `push` takes them one by one; its error (no room) ends it.
pub fn supported<E>(
    host: &impl Fn(u32, u32) -> [u32; 4],
    caps: &HostCaps,
    push: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let mut out = Output { host, caps, push };
    for base in [0, 0x8000_0000, KVM_SIGNATURE] {
        let limit = out.leaf(base)?;
        let mut function = base;
        while function < limit {
            function = function.wrapping_add(1);
            out.leaf(function)?;
        }
    }
    Ok(())
}

/// Produces the entries of KVM_GET_EMULATED_CPUID, as [`supported`] does: the features that the emulator makes.
pub fn emulated<E>(
    caps: &HostCaps,
    push: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let entry = |function| Entry {
        function,
        ..Entry::default()
    };
    push(Entry { eax: 7, ..entry(0) })?;
    push(Entry {
        ecx: caps.emulated(Word::L1Ecx),
        ..entry(1)
    })?;
    push(Entry {
        flags: SIGNIFICANT_INDEX,
        ecx: caps.emulated(Word::L7Ecx),
        ..entry(7)
    })
}

struct Output<'a, H, P> {
    host: &'a H,
    caps: &'a HostCaps,
    push: &'a mut P,
}

impl<H, P, E> Output<'_, H, P>
where
    H: Fn(u32, u32) -> [u32; 4],
    P: FnMut(Entry) -> Result<(), E>,
{
    /// Emits a leaf with its subleaves; the result is EAX of the first entry.
    fn leaf(&mut self, function: u32) -> Result<u32, E> {
        match function {
            0 => {
                let [max, b, c, d] = self.ask(0, 0);
                self.emit(0, 0, [max.min(MAX_BASIC), b, c, d])
            }
            1 => {
                let [a, b, ..] = self.ask(1, 0);
                self.emit(1, 0, [a, b, self.word(Word::L1Ecx), self.word(Word::L1Edx)])
            }
            // Cache descriptors.
            2 => self.emit(2, 0, self.ask(2, 0)),
            4 | 0x8000_001d => self.caches(function),
            // The APIC timer does not stop in idle states.
            6 => self.emit(6, 0, [1 << 2, 0, 0, 0]),
            7 => self.structured(),
            // The topology is user space's to tell; it starts from EDX, the x2APIC ID of some CPU.
            0xb | 0x1f => {
                let [.., d] = self.ask(function, 0);
                self.emit(function, 0, [0, 0, 0, d])
            }
            0xd => self.xsave(),
            KVM_SIGNATURE => {
                // "KVMKVMKVM", padded with zeros.
                self.emit(function, 0, [KVM_FEATURES, 0x4b4d_564b, 0x564b_4d56, 0x4d])
            }
            KVM_FEATURES => self.emit(function, 0, [KVM_OFFERED, 0, 0, 0]),
            0x8000_0000..=0x8000_ffff => self.extended(function),
            _ => self.emit(function, 0, [0; 4]),
        }
    }

    fn extended(&mut self, function: u32) -> Result<u32, E> {
        let host = self.ask(function, 0);
        let [a, b, c, d] = host;
        let regs = match function {
            0x8000_0000 => [self.max_extended(a), b, c, d],
            0x8000_0001 => {
                // EBX 27:16 are reserved, below them is the brand.
                [
                    a,
                    b & !0x0fff_0000,
                    self.word(Word::X1Ecx),
                    self.word(Word::X1Edx),
                ]
            }
            // L1 and L2 caches and TLBs.
            0x8000_0005 => host,
            0x8000_0006 => [a, b, c, d & !(3 << 16)],
            0x8000_0007 => [0, 0, 0, self.word(Word::X7Edx)],
            0x8000_0008 => [
                self.address_sizes(a),
                self.word(Word::X8Ebx),
                c & !0xffff_0f00,
                0,
            ],
            // TLBs of 1 GiB pages; performance hints.
            0x8000_0019 => [a, b, 0, 0],
            0x8000_001a => [a & 7, 0, 0, 0],
            0x8000_0021 => [self.word(Word::X21Eax), 0, self.word(Word::X21Ecx), 0],
            // SVM, topology, encryption, PMU: not offered. Brand: user space's to choose.
            _ => [0; 4],
        };
        self.emit(function, 0, regs)
    }

    /// Leaf 0x80000021 tells properties that older CPUs have too; where such a leaf cannot be mistaken for another one (that
    /// is, above the cache leaf 0x8000001d) it is offered even if the CPU ends before it.
    fn max_extended(&self, host: u32) -> u32 {
        let max = host.min(MAX_EXTENDED);
        let tells = self.caps.config.lfence_serializing || self.caps.config.null_seg_clears_base;
        if max >= 0x8000_001d && tells {
            max.max(0x8000_0021)
        } else {
            max
        }
    }

    /// EAX of leaf 0x80000008: physical bits, linear bits, and the physical bits that second-stage tables can map.
    fn address_sizes(&self, host: u32) -> u32 {
        let physical = host & 0xff;
        let linear = ((host >> 8) & 0xff).max(48);
        let mappable = if self.caps.config.tdp_levels < 5 {
            physical.min(48)
        } else {
            physical
        };
        physical | (linear << 8) | (mappable << 16)
    }

    fn caches(&mut self, function: u32) -> Result<u32, E> {
        let mut regs = self.ask(function, 0);
        let first = self.emit(function, 0, regs)?;
        let mut index = 0u32;
        // A subleaf of type 0 is the last. The bound is ours: some emulators do not end.
        while Reg::Eax.of(regs) & 0x1f != 0 && index < 16 {
            index = index.wrapping_add(1);
            regs = self.ask(function, index);
            self.emit(function, index, regs)?;
        }
        Ok(first)
    }

    fn structured(&mut self) -> Result<u32, E> {
        let [max, ..] = self.ask(7, 0);
        let max = max.min(2);
        let words = [
            max,
            self.word(Word::L7Ebx),
            self.word(Word::L7Ecx),
            self.word(Word::L7Edx),
        ];
        self.emit(7, 0, words)?;
        if max >= 1 {
            self.emit(
                7,
                1,
                [self.word(Word::L71Eax), 0, 0, self.word(Word::L71Edx)],
            )?;
        }
        if max >= 2 {
            self.emit(7, 2, [0, 0, 0, self.word(Word::L72Edx)])?;
        }
        Ok(max)
    }

    fn xsave(&mut self) -> Result<u32, E> {
        let mask = self.caps.xcr0;
        let size = self.caps.xstate_size(mask, false);
        let [a, .., d] = self.ask(0xd, 0);
        let first = self.emit(
            0xd,
            0,
            [a & mask as u32, size, size, d & (mask >> 32) as u32],
        )?;
        if mask == 0 {
            return Ok(first);
        }
        let word = self.word(Word::D1Eax);
        let compact = word & features::XSAVEC.mask() != 0;
        let size = if compact {
            self.caps.xstate_size(mask, true)
        } else {
            0
        };
        self.emit(0xd, 1, [word, size, 0, 0])?;
        for i in 2..64u32 {
            let [a, b, c, _] = self.ask(0xd, i);
            // A component without a size, or one of IA32_XSS, is none that XCR0 can enable.
            if (mask >> i) & 1 == 0 || a == 0 || c & 1 != 0 {
                continue;
            }
            // ECX bit 2 tells support of XFD.
            self.emit(0xd, i, [a, b, c & !4, 0])?;
        }
        Ok(first)
    }

    fn word(&self, w: Word) -> u32 {
        self.caps.offered.word(w)
    }

    /// The CPU's answer; zeros for a leaf past its end.
    fn ask(&self, function: u32, index: u32) -> [u32; 4] {
        if Reg::Eax.of((self.host)(function & 0x8000_0000, 0)) < function {
            return [0; 4];
        }
        (self.host)(function, index)
    }

    fn emit(&mut self, function: u32, index: u32, regs: [u32; 4]) -> Result<u32, E> {
        let flags = if is_indexed(function) {
            SIGNIFICANT_INDEX
        } else {
            0
        };
        let entry = Entry {
            function,
            index,
            flags,
            ..Entry::default()
        };
        (self.push)(entry.with(regs))?;
        Ok(Reg::Eax.of(regs))
    }
}

#[cfg(test)]
#[path = "cpuid_host_tests.rs"]
pub(crate) mod tests;
