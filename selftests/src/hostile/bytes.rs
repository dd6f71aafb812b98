// SPDX-License-Identifier: GPL-2.0
//! Guests of random bytes, and of random valid instructions, in each mode.

use super::code::Code;
use super::neighbour::Neighbour;
use super::rng::Rng;
use super::{defined, seeds};
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::{Exit, Vcpu};
use crate::micro::privilege_where::tss_type;
use crate::sys;
use crate::{check, eq};
use kvm_bindings::{kvm_regs, kvm_segment, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_USE_HW_BP};

pub const TESTS: &[Test] = &[
    Test::new("hostile/bytes_real", || bytes(Place::Real))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/bytes_vm86", || bytes(Place::Vm86))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/bytes_prot16", || bytes(Place::Prot16))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/bytes_prot32", || bytes(Place::Prot32))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/bytes_paged", || bytes(Place::Paged))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/bytes_pae", || bytes(Place::Pae))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/bytes_compat", || bytes(Place::Compat))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/bytes_long", || bytes(Place::Long))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/bytes_user", || bytes(Place::User64))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/insns_real", || insns(Place::Real))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/insns_vm86", || insns(Place::Vm86))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/insns_prot16", || insns(Place::Prot16))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/insns_prot32", || insns(Place::Prot32))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/insns_paged", || insns(Place::Paged))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/insns_pae", || insns(Place::Pae))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/insns_compat", || insns(Place::Compat))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/insns_long", || insns(Place::Long))
        .secs(60)
        .long(3000)
        .no_ab(),
    Test::new("hostile/insns_user", || insns(Place::User64))
        .secs(60)
        .long(3000)
        .no_ab(),
];

/// Where random code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Real,
    Vm86,
    Prot16,
    Prot32,
    Paged,
    Pae,
    Compat,
    Long,
    /// 64-bit at privilege level 3, everything but code and data supervisor's.
    User64,
}

impl Place {
    fn mode(self) -> Mode {
        match self {
            Self::Real => Mode::Real,
            Self::Prot16 | Self::Prot32 => Mode::Prot,
            Self::Vm86 | Self::Paged => Mode::Paged,
            Self::Pae => Mode::Pae,
            Self::Compat | Self::Long | Self::User64 => Mode::Long,
        }
    }

    /// Bits of the code.
    pub fn bits(self) -> u32 {
        match self {
            Self::Real | Self::Vm86 | Self::Prot16 => 16,
            Self::Prot32 | Self::Paged | Self::Pae | Self::Compat => 32,
            Self::Long | Self::User64 => 64,
        }
    }

    /// The guest can turn its interrupts off for good.
    fn can_block(self) -> bool {
        !matches!(self, Self::Vm86 | Self::User64)
    }
}

/// Bytes of random code.
const LEN: usize = 4096;
/// What is put back before each seed: tables, stubs, code and data.
const KEPT: usize = DATA as usize + 0x4000;
/// Most exits of one seed; the timer bounds the time between two.
const EXITS: u32 = 96;
/// How often the code is entered anew, somewhere, after it came to an end.
const ENTRIES: u32 = 8;
const KICK_US: i64 = 4000;

/// A guest, and its memory as it was at first.
struct Target {
    g: Guest,
    place: Place,
    memory: Vec<u8>,
}

/// How entries ended.
#[derive(Debug, Default)]
struct Tally {
    traps: u32,
    io: u32,
    mmio: u32,
    halts: u32,
    shutdowns: u32,
    refused: u32,
    internal: u32,
    kicks: u32,
}

impl Target {
    fn new(place: Place) -> Self {
        // Making a VM can be interrupted.
        sys::alarm_every(0);
        let g = Guest::new(place.mode());
        let m = &g.mem;
        // Ring 3 code and data behind the usual descriptors, a second TSS, an LDT, a call gate, a task gate.
        let more = [
            0x00cf_fb00_0000_ffffu64,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8902_8000_0067,
            0x0000_8202_8100_00ff,
            0x0000_ec00_0008_8000,
            0x0000_e500_0058_0000,
            0,
        ];
        for (i, d) in more.iter().enumerate() {
            m.wr(GDT as usize + 0x40 + 8 * i, *d);
        }
        // The stack of ring 0, in both layouts of a TSS.
        m.wr(TSS as usize + 4, STACK);
        if place.mode() != Mode::Long {
            m.wr(TSS as usize + 8, u32::from(DATA_SEL));
        }
        if place == Place::User64 {
            // 4 KiB pages for the first 2 MiB, of which the code and what is behind DATA is the user's.
            let table = 0x1_8000u64;
            for i in 0..512u64 {
                let at = i << 12;
                let user = at >= DATA || (CODE..CODE + LEN as u64).contains(&at);
                m.wr((table + 8 * i) as usize, at | if user { 7 } else { 3 });
            }
            m.wr(PD as usize, table | 7);
        }
        if sys::on_tcg() {
            own_breakpoints(&g.cpu, 0);
        }
        let memory = m.read(0, KEPT);
        sys::alarm_every(KICK_US);
        Self { g, place, memory }
    }

    fn reset_memory(&self, code: &[u8]) {
        self.g.mem.put(0, &self.memory);
        self.g.mem.put(CODE as usize, code);
    }

    /// Enters the code somewhere, with random registers.
    fn enter(&self, rng: &mut Rng, starts: &[u64]) {
        let c = &self.g.cpu;
        self.g.enter_mode(c);
        let mut s = c.sregs();
        s.gdt.limit = 0x7f;
        s.tr.type_ = tss_type();
        let code16 = kvm_segment {
            selector: CODE16_SEL,
            limit: 0xffff,
            db: 0,
            g: 0,
            ..code_seg(false)
        };
        let vm86 = |selector: u16| kvm_segment {
            base: u64::from(selector) << 4,
            limit: 0xffff,
            selector,
            type_: 3,
            dpl: 3,
            db: 0,
            g: 0,
            ..data_seg()
        };
        let ring3 = |s: kvm_segment, selector: u16| kvm_segment {
            selector,
            dpl: 3,
            ..s
        };
        let mut flags = 2u64;
        match self.place {
            Place::Prot16 => s.cs = code16,
            Place::Compat => s.cs = code_seg(false),
            Place::Vm86 => {
                flags |= 1 << 17;
                let data = vm86(rng.pick(&[0, 0x2000, 0x1000, 0xffff]));
                (s.cs, s.ss, s.ds, s.es, s.fs, s.gs) = (vm86(0), vm86(0), data, data, data, data);
            }
            Place::User64 => {
                s.cs = ring3(code_seg(true), 0x53);
                let data = ring3(data_seg(), 0x4b);
                (s.ss, s.ds, s.es, s.fs, s.gs) = (data, data, data, data, data);
            }
            _ => {}
        }
        if rng.one_in(4) {
            s.cr4 |= rng.pick(&[1, 2, 4, 8, 0x200, 0x400, 0x600, 0x800, 0x4_0000]);
        }
        if c.fd.give(crate::kvm::SET_SREGS, &s).is_err() {
            // That bit does not exist here.
            s.cr4 = self.g.cpu.sregs().cr4;
            c.set_sregs(&s);
        }
        let blocks = self.place.can_block() && sys::on_tcg() && rng.one_in(2);
        flags |= if blocks { 0 } else { 0x200 };
        if sys::on_tcg() && rng.one_in(8) {
            flags |= rng.pick(&[0x100, 0x3000, 0x400, 0x4000, 0x4_0000]);
        }
        let mut v = [0u64; 15];
        for x in &mut v {
            *x = interesting(rng);
        }
        c.set_regs(&kvm_regs {
            rax: v[0],
            rbx: v[1],
            rcx: v[2],
            rdx: v[3],
            rsi: v[4],
            rdi: v[5],
            rbp: v[6],
            r8: v[7],
            r9: v[8],
            r10: v[9],
            r11: v[10],
            r12: v[11],
            r13: v[12],
            r14: v[13],
            r15: v[14],
            rsp: if self.place == Place::User64 {
                DATA + 0x3f00
            } else {
                STACK
            },
            rip: CODE + rng.pick(starts),
            rflags: flags,
        });
        // What the host does meanwhile.
        match rng.below(16) {
            0 => {
                let _ = c.nmi();
            }
            1 => {
                let _ = c.interrupt(rng.below(256) as u32);
            }
            2 => c.want_window(true),
            3 => c.want_window(false),
            _ => {}
        }
    }

    /// Runs one seed's code.
    fn attack(&self, rng: &mut Rng, code: &[u8], starts: &[u64], tally: &mut Tally) {
        if crate::sys::on_bochs_svm() {
            harness::skip("a guest that steps singly, or an exit from virtual-8086 mode, ends Bochs on its SVM");
        }
        self.reset_memory(code);
        let c = &self.g.cpu;
        let (mut entries, mut exits) = (0, 0);
        while entries < ENTRIES && exits < EXITS {
            self.enter(rng, starts);
            entries += 1;
            while exits < EXITS {
                exits += 1;
                let e = c.run();
                check!(defined(&e), "{:?}: {e:x?}{}", self.place, self.g.describe());
                match e {
                    Exit::Io {
                        out: true, port, ..
                    } if port == u16::from(PORT_TRAP) => {
                        tally.traps += 1;
                        break;
                    }
                    // The guest's own, which it gets after all.
                    Exit::Debug { vector: 1, .. } if sys::on_tcg() => {
                        own_breakpoints(c, KVM_GUESTDBG_INJECT_DB);
                    }
                    Exit::Io { out, .. } => {
                        tally.io += 1;
                        if !out {
                            c.run.wr(c.io_data(), rng.u64());
                        }
                    }
                    Exit::Mmio { write, .. } => {
                        tally.mmio += 1;
                        if !write {
                            c.answer(&rng.u64().to_le_bytes());
                        }
                    }
                    Exit::Err(..) => {
                        tally.kicks += 1;
                        break;
                    }
                    Exit::Hlt => {
                        tally.halts += 1;
                        break;
                    }
                    Exit::Shutdown => {
                        tally.shutdowns += 1;
                        break;
                    }
                    Exit::FailEntry(_) => {
                        tally.refused += 1;
                        break;
                    }
                    Exit::Internal(..) => {
                        tally.internal += 1;
                        break;
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Keeps the CPU to user space's breakpoints, which there are none of. TCG ends itself when the delivery of an exception touches one
/// (doc/errata.md).
fn own_breakpoints(c: &Vcpu, more: u32) {
    let bits = KVM_GUESTDBG_USE_HW_BP | more;
    eq!(c.guest_debug(bits, [0; 4], 0), Ok(0));
}

/// A number that is a good pointer, a bad one, a selector, an MSR's index or anything.
fn interesting(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => DATA + rng.below(0x1000),
        1 => CODE + rng.below(LEN as u64),
        2 => MMIO + rng.below(0x1000),
        3 => rng.pick(&[GDT, IDT, TSS, PML4, PDPT, PD, 0x2_8000, 0x1_8000]) + rng.below(64),
        4 => u64::from(rng.pick(&[
            8u16, 0x10, 0x18, 0x20, 0x30, 0x43, 0x4b, 0x53, 0x58, 0x60, 0x68, 0x70,
        ])),
        5 => u64::from(rng.pick(&[
            0x10u32,
            0x1b,
            0x174,
            0x277,
            0x1d9,
            0xc000_0080,
            0xc000_0082,
            0xc000_0102,
            0x4b56_4d00,
        ])),
        _ => rng.odd(),
    }
}

fn attack(place: Place, count: u64, make: impl Fn(&mut Rng) -> (Vec<u8>, Vec<u64>)) {
    if place.can_block() && !sys::on_tcg() {
        harness::skip("a guest that turns its interrupts off and spins stops the whole machine here (doc/errata.md)");
    }
    let mut near = Neighbour::start();
    sys::interrupting(libc::SIGALRM);
    let mut tally = Tally::default();
    let mut target = Target::new(place);
    let mut n = 0;
    seeds(&mut near, count, |rng| {
        let (code, starts) = make(rng);
        // A new VM now and then: what one seed did to the vCPU must not be all that the next ones meet.
        n += 1;
        if n % 32 == 0 || rng.one_in(32) {
            target = Target::new(place);
        }
        target.attack(rng, &code, &starts, &mut tally);
    });
    sys::alarm_every(0);
    drop(target);
    let all = tally.traps + tally.halts + tally.shutdowns + tally.internal + tally.kicks;
    check!(all > 0, "the code never came to an end: {tally:?}");
    // That the attack is one: most entries end in an exception, which the guest's own stubs report.
    check!(
        count < 16 || tally.traps > 0 && tally.io > 0,
        "too uniform: {tally:?}"
    );
    harness::say(&format!("{place:?}: {tally:?}"));
    near.end();
}

fn bytes(place: Place) {
    attack(place, harness::rounds(40, 3000), |rng| {
        let mut code = vec![0u8; LEN];
        rng.fill(&mut code);
        let starts = (0..16).map(|_| rng.below(LEN as u64)).collect();
        (code, starts)
    });
}

fn insns(place: Place) {
    attack(place, harness::rounds(40, 3000), |rng| {
        let mut code = Code::new(place.bits());
        code.generate(rng, LEN);
        (code.bytes, code.starts)
    });
}
