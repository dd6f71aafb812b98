// SPDX-License-Identifier: GPL-2.0
//! A VMM that loads random state into a vCPU and runs it.

use super::ioctls::size;
use super::neighbour::Neighbour;
use super::rng::Rng;
use super::{defined, seeds};
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::micro::privilege_where::tss_type;
use crate::sys::{self, Arg};
use crate::{check, eq};
use kvm_bindings::*;
use libc::{E2BIG, EINVAL, ENOTTY, ENXIO, EPERM};

pub const TESTS: &[Test] = &[
    Test::new("hostile/registers", registers)
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/cpuid", cpuids)
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/refused_entry", refused_entry).no_ab(),
    Test::new("hostile/refused_entry_keeps_event", refused_event).no_ab(),
];

const KICK_US: i64 = 4000;

/// State that can be read and written: the two calls.
const PAIRS: &[(u64, u64)] = &[
    (0x8090_ae81, 0x4090_ae82), // REGS
    (0x8138_ae83, 0x4138_ae84), // SREGS
    (0x8138_ae83, 0x4138_ae84), // once more: it has the most to offer
    (0x8140_aecc, 0x4140_aecd), // SREGS2
    (0x81a0_ae8c, 0x41a0_ae8d), // FPU
    (0x9000_aea4, 0x5000_aea5), // XSAVE
    (0x8188_aea6, 0x4188_aea7), // XCRS
    (0x8080_aea1, 0x4080_aea2), // DEBUGREGS
    (0x8040_ae9f, 0x4040_aea0), // VCPU_EVENTS
    (0x8004_ae98, 0x4004_ae99), // MP_STATE
];

/// Changes a few fields, or all.
pub fn mutate(rng: &mut Rng, b: &mut [u8]) {
    if rng.one_in(16) {
        rng.fill(b);
        return;
    }
    for _ in 0..=rng.below(3) {
        let width = rng.pick(&[1usize, 2, 4, 8, 8]).min(b.len());
        let at = rng.below((b.len() / width) as u64) as usize * width;
        let v = rng.odd().to_le_bytes();
        if rng.one_in(3) {
            b[at] ^= 1 << rng.below(8);
        } else {
            b[at..at + width].copy_from_slice(&v[..width]);
        }
    }
}

/// Makes nearly random state such that the emulator below survives the guest: QEMU's TCG ends itself where an exception in ring 3 finds
/// a task register that it does not like (see `tss_type`), and at some breakpoints (doc/errata.md); Bochs' SVM where a guest steps singly
/// or hits a breakpoint, or an exit comes from virtual-8086 mode (see `on_bochs_svm`).
pub fn tame(set: u64, b: &mut [u8]) {
    const TR: usize = std::mem::offset_of!(kvm_sregs, tr);
    const RFLAGS: usize = std::mem::offset_of!(kvm_regs, rflags);
    const DR7: usize = std::mem::offset_of!(kvm_debugregs, dr7);
    let bochs_svm = sys::on_bochs_svm();
    if bochs_svm || sys::on_tcg() {
        let no = match set & 0xff {
            // TF and VM.
            0x82 if bochs_svm => Some((RFLAGS, 1 << 8 | 1 << 17)),
            // Single steps and hardware breakpoints.
            0x9b if bochs_svm => Some((0, KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP)),
            0x9b => Some((0, KVM_GUESTDBG_USE_HW_BP)),
            // L0 to G3.
            0xa2 => Some((DR7, 0xff)),
            _ => None,
        };
        let word = no.and_then(|(at, bits)| Some((b.get_mut(at..)?.first_chunk_mut()?, bits)));
        if let Some((word, bits)) = word {
            *word = (u32::from_le_bytes(*word) & !bits).to_le_bytes();
        }
    }
    if !sys::on_tcg() || !matches!(set & 0xff, 0x84 | 0xcd) {
        return;
    }
    for (field, value) in [
        (std::mem::offset_of!(kvm_segment, type_), tss_type()),
        (std::mem::offset_of!(kvm_segment, present), 1),
        (std::mem::offset_of!(kvm_segment, s), 0),
        (std::mem::offset_of!(kvm_segment, unusable), 0),
    ] {
        if let Some(x) = b.get_mut(TR + field) {
            *x = value;
        }
    }
}

/// One vCPU to be filled with nonsense, and its good state.
struct Victim {
    g: Guest,
    good: kvm_sregs,
    memory: Vec<u8>,
    msrs: Vec<u32>,
}

impl Victim {
    fn new(rng: &mut Rng) -> Self {
        // Making a VM can be interrupted.
        sys::alarm_every(0);
        let g = Guest::new(rng.pick(&Mode::ALL));
        // Whatever is executed out of place is a HLT: nothing spins.
        g.mem.fill(DATA as usize, MEM - DATA as usize, 0xf4);
        g.mem.fill(CODE as usize, 0x8000, 0xf4);
        let mut good = g.cpu.sregs();
        good.tr.type_ = tss_type();
        g.cpu.set_sregs(&good);
        let memory = g.mem.get(0, DATA as usize);
        let mut list = [0u32; 1 + MAX_ENTRIES];
        list[0] = MAX_ENTRIES as u32;
        crate::must!(sys::ioctl_with(
            g.kvm.0 .0.raw(),
            GET_MSR_INDEX_LIST,
            &mut list
        ));
        let msrs = list[1..=list[0] as usize].to_vec();
        sys::alarm_every(KICK_US);
        Self {
            g,
            good,
            memory,
            msrs,
        }
    }

    fn call(&self, nr: u64, b: &mut [u8]) -> sys::Res {
        sys::ioctl(self.g.cpu.fd.0.raw(), nr, Arg::Buf(b))
    }

    /// Changes one piece of state.
    fn disturb(&self, rng: &mut Rng) {
        let (get, set) = rng.pick(PAIRS);
        let mut before = vec![0u8; size(get)];
        match self.call(get, &mut before) {
            Ok(_) => {}
            // Not served yet, or not on this CPU.
            Err(ENOTTY | EINVAL) => return,
            Err(e) => panic!("{get:x}: errno {e}"),
        }
        let mut b = before.clone();
        mutate(rng, &mut b);
        tame(set, &mut b);
        match self.call(set, &mut b) {
            Ok(_) => {}
            Err(EINVAL | EPERM | ENXIO | ENOTTY) => {
                let mut after = vec![0u8; size(get)];
                eq!(self.call(get, &mut after), Ok(0));
                let at = after.iter().zip(&before).position(|(a, b)| a != b);
                eq!(at, None, "{set:x} was refused and changed something");
            }
            Err(e) => panic!("{set:x}: errno {e}"),
        }
    }

    fn disturb_msrs(&self, rng: &mut Rng) {
        for _ in 0..rng.below(8) {
            let mut b = MsrsBuf::of(&[(rng.pick(&self.msrs), rng.odd())]);
            let r = sys::ioctl_with(self.g.cpu.fd.0.raw(), SET_MSRS, &mut *b);
            check!(matches!(r, Ok(0 | 1)), "SET_MSRS: {r:?}");
        }
    }

    fn run(&self) -> Exit {
        let mut e = self.g.cpu.run();
        for _ in 0..8 {
            check!(defined(&e), "{e:x?}");
            if !matches!(e, Exit::Io { .. } | Exit::Mmio { .. } | Exit::Other(_)) {
                break;
            }
            e = self.g.cpu.run();
        }
        e
    }

    /// Back to a state that can be lived with: a vCPU is never lost.
    fn recover(&self) {
        let c = &self.g.cpu;
        self.g.mem.put(0, &self.memory);
        let mut events: kvm_vcpu_events = sys::zeroed();
        events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
        let _ = sys::ioctl_with(c.fd.0.raw(), 0x4040_aea0, &mut events);
        let mut debug: kvm_debugregs = sys::zeroed();
        (debug.dr6, debug.dr7) = (0xffff_0ff0, 0x400);
        let _ = sys::ioctl_with(c.fd.0.raw(), 0x4080_aea2, &mut debug);
        c.set_sregs(&self.good);
        c.set_regs(&kvm_regs {
            rip: CODE,
            rsp: STACK,
            rflags: 0x202,
            ..Default::default()
        });
        c.run.wr(std::mem::offset_of!(kvm_run, cr8), 0u64);
        // What was left pending comes first.
        let mut seen = Vec::new();
        for _ in 0..12 {
            let e = c.run();
            let done = e == Exit::Hlt;
            seen.push(e);
            if done {
                return;
            }
        }
        check!(false, "the vCPU is lost: {seen:x?}{}", self.g.describe());
    }
}

fn registers() {
    let mut near = Neighbour::start();
    sys::interrupting(libc::SIGALRM);
    let mut victim = None;
    let (mut entered, mut refused) = (0u32, 0u32);
    seeds(&mut near, harness::rounds(300, 20_000), |rng| {
        if victim.is_none() || rng.one_in(24) {
            victim = Some(Victim::new(rng));
        }
        let Some(v) = &victim else { return };
        for _ in 0..=rng.below(3) {
            v.disturb(rng);
        }
        if rng.one_in(3) {
            v.disturb_msrs(rng);
        }
        match rng.below(8) {
            0 => {
                let _ = v.g.cpu.nmi();
            }
            1 => {
                let _ = v.g.cpu.interrupt(rng.below(256) as u32);
            }
            _ => {}
        }
        match v.run() {
            Exit::FailEntry(_) => refused += 1,
            Exit::Err(..) => {}
            _ => entered += 1,
        }
        v.recover();
    });
    sys::alarm_every(0);
    drop(victim);
    harness::say(&format!("{entered} ran, {refused} refused"));
    check!(entered > 0, "nothing ever ran");
    near.end();
}

fn cpuids() {
    let mut near = Neighbour::start();
    sys::interrupting(libc::SIGALRM);
    let k = Kvm::open();
    let supported = k.cpuid();
    let mem = sys::Map::anon(1 << 16);
    let fresh = || {
        let vm = k.vm();
        crate::must!(vm.region(0, 0, 0, 1 << 16, mem.addr()));
        vm
    };
    let mut vm = fresh();
    // CPUID of what is in EAX and ECX, then HLT.
    mem.write(0x8000, &[0x0f, 0xa2, 0xf4]);
    let (mut taken, mut id) = (0, 0);
    seeds(&mut near, harness::rounds(100, 4000), |rng| {
        // A VM gives each id once.
        if id == 500 {
            (vm, id) = (fresh(), 0);
        }
        let mut b = supported.clone();
        let n = b.nent as usize;
        match rng.below(8) {
            0 => b.nent = rng.odd() as u32,
            1 => b.nent = rng.below(n as u64 + 1) as u32,
            _ => {}
        }
        for _ in 0..rng.below(6) {
            let at = rng.below(n as u64) as usize;
            let e = &mut b.entries[at];
            match rng.below(6) {
                0 => e.eax = rng.odd() as u32,
                1 => e.ebx = rng.odd() as u32,
                2 => e.ecx = rng.odd() as u32,
                3 => e.edx = rng.odd() as u32,
                4 => e.function = rng.odd() as u32,
                _ => (e.index, e.flags) = (rng.odd() as u32, rng.u32()),
            }
        }
        if rng.one_in(16) {
            for e in &mut b.entries[..n] {
                (e.eax, e.ebx, e.ecx, e.edx) = (u32::MAX, u32::MAX, u32::MAX, u32::MAX);
            }
        }
        if b.nent as usize > MAX_ENTRIES {
            let r = vm
                .vcpu(id)
                .fd
                .num(SET_CPUID2, std::ptr::from_ref(&*b) as u64);
            eq!(r, Err(E2BIG), "{} entries", b.nent);
            id += 1;
            return;
        }
        let c = vm.vcpu(id);
        id += 1;
        let r = sys::ioctl_with(c.fd.0.raw(), SET_CPUID2, &mut *b);
        check!(
            matches!(r, Ok(0) | Err(EINVAL | EPERM | E2BIG)),
            "SET_CPUID2: {r:?}"
        );
        taken += u32::from(r == Ok(0));
        // Live with it: every register that CPUID has a say in.
        let mut s = c.sregs();
        s.cs.base = 0;
        s.cs.selector = 0;
        (s.cr4, s.efer) = (s.cr4 | 1 << rng.below(26), 0);
        if c.fd.give(SET_SREGS, &s).is_err() {
            s.cr4 = 0;
            c.set_sregs(&s);
        }
        let mut x: kvm_xcrs = sys::zeroed();
        (x.nr_xcrs, x.xcrs[0].value) = (1, rng.odd() | 1);
        let _ = c.fd.give(SET_XCRS, &x);
        for _ in 0..4 {
            let index = rng.pick(&[
                0xc000_0082u32,
                0xc000_0102,
                0xc000_0103,
                0x176,
                0xc000_0080,
                0xda0,
                0x1b,
            ]);
            let mut m = MsrsBuf::of(&[(index, rng.odd())]);
            let r = sys::ioctl_with(c.fd.0.raw(), SET_MSRS, &mut *m);
            check!(matches!(r, Ok(0 | 1)), "MSR {index:x}: {r:?}");
        }
        for _ in 0..4 {
            c.set_regs(&kvm_regs {
                rax: rng
                    .pick(&[0u64, 1, 7, 0xd, 0x14, 0x4000_0000, 0x8000_0001, 0xffff_ffff])
                    .wrapping_add(rng.below(4)),
                rcx: rng.below(70),
                rip: 0x8000,
                rflags: 2,
                ..Default::default()
            });
            // Ends a guest that runs wild; the ordinary one needs a moment, but the machine may be slow.
            sys::alarm_every(5_000_000);
            let e = c.run();
            sys::alarm_every(0);
            let at = c.regs().rip;
            check!(
                matches!(e, Exit::Hlt | Exit::FailEntry(_)),
                "{e:x?} at {at:x}, cr4 {:x}",
                s.cr4
            );
        }
    });
    check!(taken > 0, "no CPUID was taken");
    drop((vm, k, mem));
    near.end();
}

/// State that no CPU enters: KVM_EXIT_FAIL_ENTRY, with the hardware's reason; and the vCPU can be used again.
fn refused_entry() {
    const ANOTHER_RING: &str = "a stack segment of another ring";
    let intel = sys::cpuid(0, 0)[1] == u32::from_le_bytes(*b"Genu");
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0xf4; 16]);
    let good = g.cpu.sregs();
    type Spoil = fn(&mut kvm_sregs);
    let both: [(&str, Spoil); 1] = [("code of 64 and of 32 bits", |s| s.cs.db = 1)];
    let on_intel: [(&str, Spoil); 4] = [
        ("a base of FS that is not canonical", |s| {
            s.fs.base = 1 << 62
        }),
        ("a GDT at no address", |s| s.gdt.base = 1 << 62),
        ("an IDT at no address", |s| s.idt.base = 1 << 62),
        (ANOTHER_RING, |s| s.ss.dpl = 2),
    ];
    let list = both
        .iter()
        .chain(on_intel.iter().filter(|_| intel))
        // Segment registers that entry refuses, and that a CPU may have after a change of mode, are emulated.
        .filter(|(what, _)| *what != ANOTHER_RING || sys::unrestricted_guest());
    for (what, spoil) in list {
        let mut s = good;
        spoil(&mut s);
        g.cpu.set_sregs(&s);
        let e = g.cpu.run();
        // VMX: entry failure due to invalid guest state. SVM: VMEXIT_INVALID.
        let reason = if intel { 0x8000_0021 } else { u64::MAX };
        eq!(e, Exit::FailEntry(reason), "{what}");
        // Bochs' SVM leaves the host's state in the control block of a guest that it refused.
        if !sys::on_bochs_svm() {
            eq!(g.cpu.run(), Exit::FailEntry(reason), "{what}, again");
        }
        g.cpu.set_sregs(&good);
        let mut r = g.cpu.regs();
        r.rip = CODE;
        g.cpu.set_regs(&r);
        eq!(g.cpu.run(), Exit::Hlt, "after {what}");
    }
}

/// What such an entry was to inject waits for one that takes place.
fn refused_event() {
    for (vector, behind) in [(3, 1), (6, 0)] {
        let g = Guest::new(Mode::Long);
        g.mem.write(CODE as usize, &[0xcc, 0xf4]);
        let mut e: kvm_vcpu_events = crate::must!(g.cpu.fd.take(GET_VCPU_EVENTS));
        (e.flags, e.exception.injected, e.exception.nr) = (0, 1, vector);
        eq!(g.cpu.fd.give(SET_VCPU_EVENTS, &e), Ok(0));
        let good = g.cpu.sregs();
        let mut s = good;
        s.cs.db = 1;
        g.cpu.set_sregs(&s);
        let e = g.cpu.run();
        check!(matches!(e, Exit::FailEntry(_)), "{e:x?}");
        eq!(g.cpu.regs().rip, CODE);
        g.cpu.set_sregs(&good);
        g.cpu.set_regs(&g.cpu.regs());
        let t = g.run_to_trap();
        eq!((t.vector, t.ip), (vector, CODE + behind));
    }
}
