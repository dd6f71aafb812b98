// SPDX-License-Identifier: GPL-2.0
//! KVM_GET_SUPPORTED_CPUID and KVM_SET/GET_CPUID2.

use crate::guest::{Guest, Mode, CODE, DATA};
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{bad_addr, bytes_of, filled, zeroed, Map};
use crate::{check, eq};
use kvm_bindings::*;
use libc::{E2BIG, EFAULT, EINVAL, ENOMEM};

pub const TESTS: &[Test] = &[
    Test::new("api/supported_cpuid", supported),
    Test::new("api/supported_cpuid_room", room),
    Test::new("api/cpuid_emulated", emulated),
    Test::new("api/cpuid_emulated_refused", emulated_refused),
    Test::new("api/cpuid_emulated_instructions", emulated_instructions),
    Test::new("api/cpuid2_round_trip", round_trip),
    Test::new("api/cpuid2_limits", limits),
    Test::new("api/cpuid2_after_run", after_run),
    Test::new("api/cpuid2_before_entry", before_entry),
    Test::new("api/cpuid2_osxsave", osxsave),
];

fn list(c: &CpuidBuf) -> &[kvm_cpuid_entry2] {
    &c.entries[..c.nent as usize]
}

pub fn find(c: &CpuidBuf, f: u32, i: u32) -> Option<kvm_cpuid_entry2> {
    list(c)
        .iter()
        .find(|e| e.function == f && e.index == i)
        .copied()
}

fn with_room(n: u32) -> Box<CpuidBuf> {
    let mut b: Box<CpuidBuf> = Box::new(filled(0));
    b.nent = n;
    b
}

fn supported() {
    let k = Kvm::open();
    let mut c = with_room(256);
    eq!(k.0.with(GET_SUPPORTED_CPUID, &mut *c), Ok(0));
    check!(c.nent > 5 && c.nent <= 100, "{} entries", c.nent);
    for (i, e) in list(&c).iter().enumerate() {
        let same = |o: &kvm_cpuid_entry2| {
            o.function == e.function && (e.flags & 1 == 0 || o.index == e.index)
        };
        check!(
            !list(&c)[..i].iter().any(same),
            "leaf {:x}.{:x} twice",
            e.function,
            e.index
        );
        check!(
            e.flags & !1 == 0,
            "leaf {:x} has flags {:x}",
            e.function,
            e.flags
        );
    }
    let l0 = find(&c, 0, 0).unwrap_or(zeroed());
    let host = crate::sys::cpuid(0, 0);
    eq!(
        (l0.ebx, l0.ecx, l0.edx),
        (host[1], host[2], host[3]),
        "vendor"
    );
    let l1 = find(&c, 1, 0).unwrap_or(zeroed());
    check!((l1.ecx >> 31) & 1 == 1, "hypervisor bit");
    for (bit, name) in [
        (0, "FPU"),
        (3, "PSE"),
        (4, "TSC"),
        (5, "MSR"),
        (6, "PAE"),
        (8, "CX8"),
        (24, "FXSR"),
        (25, "SSE"),
        (26, "SSE2"),
    ] {
        check!((l1.edx >> bit) & 1 == 1, "{name}");
    }
    check!(
        (l1.ecx >> 27) & 1 == 0,
        "OSXSAVE is not a feature but a state"
    );
    let ext = find(&c, 0x8000_0001, 0).unwrap_or(zeroed());
    check!((ext.edx >> 29) & 1 == 1, "long mode");
    for leaf in [7, 0xd, 0x8000_0000, 0x8000_0008, 0x4000_0000, 0x4000_0001] {
        // Older CPUs end before the first two.
        let beyond = leaf > host[0] && leaf < 0x4000_0000;
        eq!(find(&c, leaf, 0).is_none(), beyond, "leaf {leaf:x}");
    }
    let hv = find(&c, 0x4000_0000, 0).unwrap_or(zeroed());
    eq!(
        (hv.ebx, hv.ecx, hv.edx),
        (0x4b4d_564b, 0x564b_4d56, 0x4d),
        "KVM's signature"
    );
    for e in list(&c) {
        if (0x4000_0000..0x5000_0000).contains(&e.function) {
            continue;
        }
        // What is offered must be something that this CPU has: feature words only.
        let h = crate::sys::cpuid(e.function, e.index);
        if (e.function, e.index) == (7, 0) {
            check!(
                e.ebx & !h[1] & !2 == 0,
                "leaf 7 EBX offers {:x} of {:x}",
                e.ebx,
                h[1]
            );
        }
        if e.function == 0x8000_0001 {
            check!(
                e.edx & !h[3] == 0,
                "leaf 80000001 EDX offers {:x} of {:x}",
                e.edx,
                h[3]
            );
        }
    }
}

fn room() {
    let k = Kvm::open();
    let n = k.cpuid().nent;
    for (have, want) in [
        (0, Err(E2BIG)),
        (1, Err(E2BIG)),
        (n - 1, Err(E2BIG)),
        (n, Ok(0)),
        (n + 1, Ok(0)),
    ] {
        let mut c = with_room(have);
        eq!(
            k.0.with(GET_SUPPORTED_CPUID, &mut *c),
            want,
            "room for {have} of {n}"
        );
        if want.is_ok() {
            eq!(c.nent, n);
        } else {
            eq!(c.nent, have, "nothing is written on E2BIG");
            check!(
                list(&c).iter().all(|e| e.function == 0 && e.eax == 0),
                "no entry either"
            );
        }
        check!(
            c.entries[have.max(n) as usize..]
                .iter()
                .all(|e| bytes_of(e).iter().all(|b| *b == 0)),
            "nothing behind"
        );
    }
    // Room for more than the kernel would ever hold is cut down.
    let m = Map::anon(1 << 20);
    m.wr(0, u32::MAX);
    eq!(
        k.0.num(GET_SUPPORTED_CPUID, m.addr()),
        Ok(0),
        "room for 2^32 - 1 entries"
    );
    eq!(m.rd::<u32>(0), n);
    eq!(k.0.num(GET_SUPPORTED_CPUID, bad_addr()), Err(EFAULT));
    eq!(k.0.num(GET_SUPPORTED_CPUID, 0), Err(EFAULT));
    // The header can be read, the entries cannot be written.
    let edge = Map::anon(8192);
    let _ = edge.protect(4096, 4096, libc::PROT_NONE);
    edge.wr(4088, 256u32);
    eq!(
        k.0.num(GET_SUPPORTED_CPUID, edge.addr() + 4088),
        Err(EFAULT)
    );
    let _ = ENOMEM;
}

fn get(c: &Vcpu) -> Box<CpuidBuf> {
    let mut b = with_room(MAX_ENTRIES as u32);
    crate::must!(crate::sys::ioctl_with(c.fd.0.raw(), GET_CPUID2, &mut *b));
    b
}

fn round_trip() {
    let k = Kvm::open();
    let vm = k.vm();
    let c = vm.vcpu(0);
    eq!(get(&c).nent, 0, "a fresh vCPU has none");
    let s = k.cpuid();
    eq!(c.fd.give(SET_CPUID2, &*s), Ok(0));
    let g = get(&c);
    eq!(g.nent, s.nent);
    for (a, b) in list(&g).iter().zip(list(&s)) {
        // Some bits follow the state of the vCPU.
        let (mut a, mut b) = (*a, *b);
        if a.function == 1 {
            (a.ecx, b.ecx) = (a.ecx & !(1 << 27), b.ecx & !(1 << 27));
            (a.edx, b.edx) = (a.edx & !(1 << 9), b.edx & !(1 << 9));
        }
        if a.function == 0xd && a.index < 2 {
            (a.ebx, b.ebx) = (0, 0);
        }
        if a.function == 7 && a.index == 0 {
            (a.ecx, b.ecx) = (a.ecx & !(1 << 4), b.ecx & !(1 << 4));
        }
        eq!(
            bytes_of(&a),
            bytes_of(&b),
            "leaf {:x}.{:x}",
            b.function,
            b.index
        );
    }
    // Entries that mean nothing are kept too, in their order.
    let mut odd = with_room(3);
    for (i, f) in [0x1234_5678u32, 0x4000_0f00, 0].iter().enumerate() {
        odd.entries[i] = kvm_cpuid_entry2 {
            function: *f,
            eax: 0x100 + i as u32,
            ..zeroed()
        };
    }
    eq!(c.fd.give(SET_CPUID2, &*odd), Ok(0));
    let g = get(&c);
    eq!(g.nent, 3);
    eq!(bytes_of(&g.entries[0]), bytes_of(&odd.entries[0]));
    eq!(bytes_of(&g.entries[2]), bytes_of(&odd.entries[2]));
    eq!(c.fd.give(SET_CPUID2, &*with_room(0)), Ok(0), "none");
    eq!(get(&c).nent, 0);
}

fn limits() {
    let k = Kvm::open();
    let vm = k.vm();
    let c = vm.vcpu(0);
    c.use_supported_cpuid(&k);
    let n = get(&c).nent;
    let mut small = with_room(n - 1);
    eq!(c.fd.with(GET_CPUID2, &mut *small), Err(E2BIG));
    crate::record::line(
        "nent after E2BIG",
        "",
        &(i64::from(small.nent) - i64::from(n)).to_string(),
        "",
    );
    let mut zero = with_room(0);
    eq!(c.fd.with(GET_CPUID2, &mut *zero), Err(E2BIG));
    eq!(
        c.fd.give(SET_CPUID2, &*with_room(257)),
        Err(E2BIG),
        "257 entries"
    );
    eq!(c.fd.give(SET_CPUID2, &*with_room(u32::MAX)), Err(E2BIG));
    eq!(get(&c).nent, n, "a refused call changes nothing");
    let mut full = with_room(256);
    for (i, e) in full.entries.iter_mut().enumerate().take(256) {
        e.function = 0x1000 + i as u32;
    }
    eq!(c.fd.give(SET_CPUID2, &*full), Ok(0), "256 entries");
    eq!(get(&c).nent, 256);
    eq!(c.fd.num(SET_CPUID2, bad_addr()), Err(EFAULT));
    // The header can be read, the entries cannot.
    let edge = Map::anon(8192);
    let _ = edge.protect(4096, 4096, libc::PROT_NONE);
    edge.wr(4088, 1u32);
    edge.wr(4092, 0u32);
    eq!(c.fd.num(SET_CPUID2, edge.addr() + 4088), Err(EFAULT));
    eq!(get(&c).nent, 256);
    // An address width that no CPU has.
    let mut s = k.cpuid();
    let count = s.nent as usize;
    for e in &mut s.entries[..count] {
        if e.function == 0x8000_0008 {
            e.eax = e.eax & !0xff00 | (52 << 8);
        }
    }
    eq!(
        c.fd.give(SET_CPUID2, &*s),
        Err(EINVAL),
        "virtual addresses of 52 bits"
    );
    eq!(get(&c).nent, 256);
}

fn after_run() {
    let g = Guest::new(Mode::Real);
    g.mem.wr(0x8000, 0xf4u8);
    eq!(g.cpu.run(), Exit::Hlt);
    let same = get(&g.cpu);
    eq!(
        g.cpu.fd.give(SET_CPUID2, &*same),
        Ok(0),
        "the same again is no change"
    );
    let mut other = same;
    other.entries[0].eax ^= 1;
    eq!(
        g.cpu.fd.give(SET_CPUID2, &*other),
        Err(EINVAL),
        "a change after the first run"
    );
    other.entries[0].eax ^= 1;
    other.nent -= 1;
    eq!(g.cpu.fd.give(SET_CPUID2, &*other), Err(EINVAL), "one less");
}

/// The model stays open until the guest is entered: not by a KVM_RUN that ends before.
fn before_entry() {
    const IMMUTABLE: u32 = 0x10a;
    let g = Guest::new(Mode::Real);
    g.mem.wr(CODE as usize, 0xf4u8);
    let c = &g.cpu;
    let open = |what: &str| {
        let mut cpuid = get(c);
        cpuid.entries[0].eax ^= 1;
        eq!(c.fd.give(SET_CPUID2, &*cpuid), Ok(0), "{what}");
        eq!(list(&get(c))[0].eax, cpuid.entries[0].eax, "{what}");
    };
    let shown = c.msr(IMMUTABLE);
    let settable = shown.is_some_and(|v| v != 0);
    c.run_signalled();
    open("after a signal");
    if settable {
        check!(c.set_msr(IMMUTABLE, 0), "MSR {IMMUTABLE:x}");
    }

    let mut e: kvm_vcpu_events = crate::must!(c.fd.take(GET_VCPU_EVENTS));
    if g.kvm.cap(KVM_CAP_X86_TRIPLE_FAULT_EVENT) != 0 {
        let mut cap: kvm_enable_cap = filled(0);
        (cap.cap, cap.args[0]) = (KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1);
        eq!(g.vm.fd.give(ENABLE_CAP, &cap), Ok(0));
        (e.flags, e.triple_fault.pending) = (KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 1);
        eq!(c.fd.give(SET_VCPU_EVENTS, &e), Ok(0));
        eq!(c.run(), Exit::Shutdown);
        open("after a shutdown");
    }

    let mut r = c.regs();
    r.rip = CODE;
    c.set_regs(&r);
    eq!(c.run(), Exit::Hlt);
    let mut cpuid = get(c);
    cpuid.entries[0].eax ^= 1;
    eq!(c.fd.give(SET_CPUID2, &*cpuid), Err(EINVAL));
    if settable {
        check!(!c.set_msr(IMMUTABLE, 1), "MSR {IMMUTABLE:x}");
    }
}

fn osxsave() {
    let g = Guest::new(Mode::Long);
    let bit = |c: &Vcpu| find(&get(c), 1, 0).map(|e| (e.ecx >> 27) & 1);
    if find(&g.kvm.cpuid(), 1, 0).is_none_or(|e| (e.ecx >> 26) & 1 == 0) {
        crate::harness::skip("no XSAVE on this CPU");
    }
    eq!(bit(&g.cpu), Some(0));
    let mut s = g.cpu.sregs();
    s.cr4 |= 1 << 18;
    g.cpu.set_sregs(&s);
    eq!(bit(&g.cpu), Some(1), "follows CR4.OSXSAVE");
    let size = |c: &Vcpu| find(&get(c), 0xd, 0).map(|e| e.ebx);
    eq!(size(&g.cpu), Some(576), "the area that XCR0 of 1 needs");
    let mut x: kvm_xcrs = filled(0);
    (x.nr_xcrs, x.xcrs[0].value) = (1, 7);
    crate::must!(g.cpu.fd.give(SET_XCRS, &x));
    eq!(size(&g.cpu), Some(832), "the area that XCR0 of 7 needs");
}

/// Bit 22: MOVBE in ECX of leaf 1, RDPID in ECX of leaf 7.
const BIT22: u32 = 1 << 22;
pub(super) const TSC_AUX: u32 = 0xc000_0103;

/// KVM_GET_EMULATED_CPUID with room for all.
fn emulated_list(k: &Kvm) -> Box<CpuidBuf> {
    if k.cap(KVM_CAP_EXT_EMUL_CPUID) == 0 {
        harness::skip("no KVM_CAP_EXT_EMUL_CPUID");
    }
    let mut c = with_room(256);
    eq!(k.0.with(GET_EMULATED_CPUID, &mut *c), Ok(0));
    c
}

fn emulated() {
    let c = emulated_list(&Kvm::open());
    let told: Vec<_> = list(&c)
        .iter()
        .map(|e| (e.function, e.index, e.flags, e.eax, e.ebx, e.edx))
        .collect();
    eq!(
        told,
        [(0, 0, 0, 7, 0, 0), (1, 0, 0, 0, 0, 0), (7, 0, 1, 0, 0, 0)]
    );
    eq!(find(&c, 0, 0).map(|e| e.ecx), Some(0));
    eq!(find(&c, 1, 0).map(|e| e.ecx), Some(BIT22));
    let rdpid = find(&c, 7, 0).map_or(0, |e| e.ecx);
    check!(rdpid == 0 || rdpid == BIT22, "{rdpid:x}");
}

fn emulated_refused() {
    let k = Kvm::open();
    emulated_list(&k);
    for n in [0, 1, 2] {
        eq!(
            k.0.with(GET_EMULATED_CPUID, &mut *with_room(n)),
            Err(E2BIG),
            "{n}"
        );
    }
    eq!(k.0.num(GET_EMULATED_CPUID, bad_addr()), Err(EFAULT));
    for n in 0..3 {
        let mut c = with_room(20);
        c.entries[19].padding[n] = 1;
        eq!(
            k.0.with(GET_EMULATED_CPUID, &mut *c),
            Err(EINVAL),
            "padding {n}"
        );
        eq!(c.nent, 20, "nothing was told");
    }
    // What is in the entries besides does not matter.
    let mut c = with_room(20);
    (c.entries[0].function, c.entries[0].eax) = (7, !0);
    eq!(k.0.with(GET_EMULATED_CPUID, &mut *c), Ok(0));
}

/// A guest that executes `code` and halts, with CPUID leaf `leaf` told or not told of bit 22 of ECX.
pub(super) fn told_of(leaf: u32, told: bool, code: &[u8]) -> Guest {
    let g = Guest::new(Mode::Long);
    let mut c = *g.kvm.cpuid();
    let n = c.nent as usize;
    match c.entries[..n]
        .iter_mut()
        .find(|e| e.function == leaf && e.index == 0)
    {
        Some(e) if told => e.ecx |= BIT22,
        Some(e) => e.ecx &= !BIT22,
        None => harness::skip(&format!("no CPUID leaf {leaf}")),
    }
    eq!(g.cpu.fd.give(SET_CPUID2, &c), Ok(0));
    g.mem.write(CODE as usize, code);
    g.mem.wr(CODE as usize + code.len(), 0xf4u8);
    g.mem.wr(DATA as usize, 0x1122_3344u32);
    let mut r = g.cpu.regs();
    r.rbx = DATA;
    g.cpu.set_regs(&r);
    g
}

/// A guest that is told of it can execute it, by the CPU or by the emulator; on a CPU without it others cannot.
fn emulated_instructions() {
    let c = emulated_list(&Kvm::open());
    let movbe: &[u8] = &[0x0f, 0x38, 0xf0, 0x03];
    let rdpid: &[u8] = &[0xf3, 0x0f, 0xc7, 0xf8];
    for (leaf, code, want) in [(1, movbe, 0x4433_2211), (7, rdpid, 0x77)] {
        if find(&c, leaf, 0).map_or(0, |e| e.ecx) & BIT22 == 0 {
            continue;
        }
        let native = crate::sys::cpuid(leaf, 0)[2] & BIT22 != 0;
        harness::say(&format!("leaf {leaf}: the CPU has it: {native}"));
        let g = told_of(leaf, true, code);
        if leaf == 7 {
            let set = g
                .cpu
                .fd
                .with(SET_MSRS, &mut *MsrsBuf::of(&[(TSC_AUX, want)]));
            eq!(set, Ok(1), "TSC_AUX");
        }
        g.expect(&Exit::Hlt);
        eq!(g.cpu.regs().rax, want, "leaf {leaf}");
        if !native {
            let t = told_of(leaf, false, code).run_to_trap();
            eq!((t.vector, t.ip), (6, CODE), "leaf {leaf}");
        }
    }
}
