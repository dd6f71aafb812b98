// SPDX-License-Identifier: GPL-2.0
//! A model CPU that trusts the clean bits as far as the manual lets it, and random users of the VMCB before it.
use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::model::regs::Seg;
use crate::svm::asid::{CpuAsids, Tlb, VcpuAsid};

/// The parts of a VMCB that a CPU may keep: byte ranges and clean bit, from the manual's text and layout, not from the code.
const CACHED: &[(std::ops::Range<usize>, u32)] = &[
    (0x000..0x040, 0),
    (0x050..0x058, 0),
    (0x040..0x050, 1),
    (0x058..0x05c, 2),
    (0x060..0x068, 3),
    (0x090..0x098, 4),
    (0x0b0..0x0b8, 4),
    (0x668..0x670, 4),
    (0x4d0..0x4d8, 5),
    (0x548..0x560, 5),
    (0x560..0x570, 6),
    (0x460..0x470, 7),
    (0x480..0x490, 7),
    (0x400..0x440, 8),
    (0x4cb..0x4cc, 8),
    (0x640..0x648, 9),
    (0x0b8..0x0c0, 10),
    (0x670..0x698, 10),
];
/// Read from memory each time, by VMRUN or by VMLOAD.
const NEVER: &[std::ops::Range<usize>] = &[
    0x05c..0x05d, // TLB control
    0x068..0x070, // interrupt shadow
    0x0a8..0x0b0, // event injection
    0x0c0..0x0c4, // the clean bits
    0x0c8..0x0d0, // the next RIP
    0x440..0x460, // FS, GS
    0x470..0x480, // LDTR
    0x490..0x4a0, // TR
    0x570..0x580, // RFLAGS, RIP
    0x5d8..0x5e0, // RSP
    0x5f8..0x640, // RAX, the MSRs of SYSCALL and SYSENTER
    0x6e0..0x6e8, // SPEC_CTRL
];

type Bytes = [u8; 4096];

/// The VMCB as the CPU sees it.
fn bytes(v: &Vmcb) -> Bytes {
    let mut out = [0; 4096];
    let c = &v.control;
    let mut put = |at: usize, b: &[u8]| out[at..at + b.len()].copy_from_slice(b);
    put(0x00, &c.intercept_cr.to_le_bytes());
    put(0x04, &c.intercept_dr.to_le_bytes());
    put(0x08, &c.intercept_exceptions.to_le_bytes());
    put(0x0c, &c.intercept1.to_le_bytes());
    put(0x10, &c.intercept2.to_le_bytes());
    put(0x14, &c.intercept3.to_le_bytes());
    put(0x3c, &c.pause_threshold.to_le_bytes());
    put(0x3e, &c.pause_count.to_le_bytes());
    put(0x40, &c.iopm_base.to_le_bytes());
    put(0x48, &c.msrpm_base.to_le_bytes());
    put(0x50, &c.tsc_offset.to_le_bytes());
    put(0x58, &c.asid.to_le_bytes());
    put(0x5c, &[c.tlb_control]);
    put(0x60, &c.vintr.to_le_bytes());
    put(0x68, &c.int_state.to_le_bytes());
    put(0x90, &c.nested_ctl.to_le_bytes());
    put(0x98, &c.avic_bar.to_le_bytes());
    put(0xa0, &c.ghcb.to_le_bytes());
    put(0xa8, &c.event_inj.to_le_bytes());
    put(0xb0, &c.nested_cr3.to_le_bytes());
    put(0xb8, &c.virt_ext.to_le_bytes());
    put(0xc0, &c.clean.to_le_bytes());
    put(0xc8, &c.next_rip.to_le_bytes());
    let s = &v.save;
    let tables = [s.gdtr, s.ldtr, s.idtr, s.tr];
    for (i, seg) in s.segs.iter().chain(&tables).enumerate() {
        let at = 0x400 + 16 * i;
        put(at, &seg.selector.to_le_bytes());
        put(at + 2, &seg.attrib.to_le_bytes());
        put(at + 4, &seg.limit.to_le_bytes());
        put(at + 8, &seg.base.to_le_bytes());
    }
    put(0x4cb, &[s.cpl]);
    put(0x4d0, &s.efer.to_le_bytes());
    let run = [s.cr4, s.cr3, s.cr0, s.dr7, s.dr6, s.rflags, s.rip];
    for (i, x) in run.iter().enumerate() {
        put(0x548 + 8 * i, &x.to_le_bytes());
    }
    put(0x5d8, &s.rsp.to_le_bytes());
    let msrs = [
        s.rax,
        s.star,
        s.lstar,
        s.cstar,
        s.sfmask,
        s.kernel_gs_base,
        s.sysenter_cs,
        s.sysenter_esp,
        s.sysenter_eip,
        s.cr2,
    ];
    for (i, x) in msrs.iter().enumerate() {
        put(0x5f8 + 8 * i, &x.to_le_bytes());
    }
    put(0x668, &s.g_pat.to_le_bytes());
    put(0x670, &s.dbgctl.to_le_bytes());
    put(0x6e0, &s.spec_ctrl.to_le_bytes());
    out
}

/// A VMCB of zeroes.
fn zeroed() -> Vmcb {
    Vmcb {
        control: Control {
            intercept_cr: 0,
            intercept_dr: 0,
            intercept_exceptions: 0,
            intercept1: 0,
            intercept2: 0,
            intercept3: 0,
            reserved1: [0; 9],
            pause_threshold: 0,
            pause_count: 0,
            iopm_base: 0,
            msrpm_base: 0,
            tsc_offset: 0,
            asid: 0,
            tlb_control: 0,
            reserved2: [0; 3],
            vintr: 0,
            int_state: 0,
            exit_code: 0,
            exit_info1: 0,
            exit_info2: 0,
            exit_int_info: 0,
            nested_ctl: 0,
            avic_bar: 0,
            ghcb: 0,
            event_inj: 0,
            nested_cr3: 0,
            virt_ext: 0,
            clean: 0,
            reserved3: 0,
            next_rip: 0,
            insn_len: 0,
            insn_bytes: [0; 15],
            reserved4: [0; 800],
        },
        save: Save {
            segs: [VmcbSeg::default(); 6],
            gdtr: VmcbSeg::default(),
            ldtr: VmcbSeg::default(),
            idtr: VmcbSeg::default(),
            tr: VmcbSeg::default(),
            reserved1: [0; 0x2b],
            cpl: 0,
            reserved2: 0,
            efer: 0,
            reserved3: [0; 0x70],
            cr4: 0,
            cr3: 0,
            cr0: 0,
            dr7: 0,
            dr6: 0,
            rflags: 0,
            rip: 0,
            reserved4: [0; 0x58],
            rsp: 0,
            reserved5: [0; 0x18],
            rax: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            cr2: 0,
            reserved6: [0; 0x20],
            g_pat: 0,
            dbgctl: 0,
            last_branch: [0; 4],
            reserved7: [0; 0x48],
            spec_ctrl: 0,
            reserved8: [0; 0x918],
        },
    }
}

/// What a CPU keeps of the VMCB that it ran last: garbage before the first run, and after it was off.
struct Cpu {
    kept: Bytes,
    asids: CpuAsids,
}

impl Cpu {
    fn new() -> Self {
        Self {
            kept: [0xa5; 4096],
            asids: CpuAsids::new(4),
        }
    }

    /// VMRUN: loads what is not clean. The error is the offset of a byte where the CPU runs on something else than memory says.
    fn run(&mut self, v: &mut Vmcb, guest: u64) -> Result<(), usize> {
        let memory = bytes(v);
        for (range, bit) in CACHED {
            if v.clean() >> bit & 1 == 0 {
                self.kept[range.clone()].copy_from_slice(&memory[range.clone()]);
            }
        }
        for (range, _) in CACHED {
            for at in range.clone() {
                if self.kept[at] != memory[at] {
                    return Err(at);
                }
            }
        }
        // The guest changes its state; the exit writes it to memory, and the CPU keeps it.
        let s = &mut v.save;
        s.cr0 = guest;
        s.cr3 = guest.rotate_left(7);
        s.cr2 = guest.rotate_left(13);
        s.dr6 = guest.rotate_left(17);
        s.segs[0].base = guest.rotate_left(23);
        s.cpl = (guest & 3) as u8;
        s.rip = guest;
        v.control.vintr = v.control.vintr & !0xf | guest & 0xf;
        v.control.exit_code = guest;
        let memory = bytes(v);
        for (range, _) in CACHED {
            self.kept[range.clone()].copy_from_slice(&memory[range.clone()]);
        }
        Ok(())
    }
}

/// Everything that the backend can do to the VMCB between two runs.
#[derive(Clone, Debug)]
enum Op {
    Field(usize, u64),
    Intercepts(u64),
    Segment(u8, u64),
    Table(u8, u64),
    Run { cpu: usize, guest: u64, stale: bool },
    Refused { cpu: usize },
    Offline { cpu: usize },
}

fn op() -> impl Strategy<Value = Op> {
    // Few values, so that one is often written that was there before.
    let value = prop_oneof![0u64..4, any::<u64>()];
    prop_oneof![
        (0..access::SETTERS.len(), value.clone()).prop_map(|(i, x)| Op::Field(i, x)),
        value.clone().prop_map(Op::Intercepts),
        (0u8..6, value.clone()).prop_map(|(i, x)| Op::Segment(i, x)),
        (0u8..4, value).prop_map(|(i, x)| Op::Table(i, x)),
        (0..2usize, any::<u64>(), any::<bool>()).prop_map(|(cpu, guest, stale)| Op::Run {
            cpu,
            guest,
            stale
        }),
        (0..2usize).prop_map(|cpu| Op::Refused { cpu }),
        (0..2usize).prop_map(|cpu| Op::Offline { cpu }),
    ]
}

fn seg_value(x: u64) -> VmcbSeg {
    VmcbSeg {
        selector: x as u16,
        attrib: (x >> 8) as u16,
        limit: (x >> 16) as u32,
        base: x,
    }
}

fn change(v: &mut Vmcb, op: &Op) {
    match *op {
        Op::Field(i, x) => access::SETTERS[i].1(v, x),
        Op::Intercepts(x) => v.set_intercepts(x),
        Op::Segment(i, x) => v.set_segment(Seg::from_number(i).unwrap(), seg_value(x)),
        Op::Table(0, x) => v.set_gdtr(seg_value(x)),
        Op::Table(1, x) => v.set_idtr(seg_value(x)),
        Op::Table(2, x) => v.set_ldtr(seg_value(x)),
        Op::Table(_, x) => v.set_tr(seg_value(x)),
        _ => {}
    }
}

/// Plays `ops`; `with_tag` stands for the backend's use of [`Vmcb::set_tag`].
fn play(ops: &[Op], with_tag: impl Fn(&mut Vmcb, VcpuAsid, VcpuAsid, Tlb)) -> Result<(), String> {
    let mut v = zeroed();
    let mut cpus = [Cpu::new(), Cpu::new()];
    let mut tag = VcpuAsid::default();
    for (step, op) in ops.iter().enumerate() {
        let (n, guest, stale) = match *op {
            Op::Run { cpu, guest, stale } => (cpu, Some(guest), stale),
            Op::Refused { cpu } => (cpu, None, false),
            Op::Offline { cpu } => {
                cpus[cpu].kept = [0x5a; 4096];
                cpus[cpu].asids = cpus[cpu].asids.restarted();
                continue;
            }
            _ => {
                change(&mut v, op);
                continue;
            }
        };
        let cpu = &mut cpus[n];
        let before = tag;
        let flush = cpu.asids.assign(&mut tag, n as u32, stale, false);
        with_tag(&mut v, before, tag, flush);
        match guest {
            Some(guest) => {
                cpu.run(&mut v, guest)
                    .map_err(|at| format!("step {step}: stale byte at {at:#x}"))?;
                v.ran(true);
            }
            // The VMCB was refused: what the CPU kept of it is unknown.
            None => {
                cpu.kept = [0x3c; 4096];
                v.forget();
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_cpu_that_trusts_the_clean_bits_is_never_stale(
        ops in prop::collection::vec(op(), 1..80)
    ) {
        let r = play(&ops, Vmcb::set_tag);
        prop_assert!(r.is_ok(), "{}", r.unwrap_err());
    }
}

/// The model sees a mistake: without forgetting what another CPU holds, the one before runs on old state.
#[test]
fn a_cpu_change_that_is_not_noticed_is_seen() {
    let run = |cpu, guest| Op::Run {
        cpu,
        guest,
        stale: false,
    };
    let ops = [run(0, 1), run(1, 2), run(0, 3)];
    assert!(play(&ops, Vmcb::set_tag).is_ok());
    let forgetful = |v: &mut Vmcb, _before, now: VcpuAsid, flush| v.set_tag(now, now, flush);
    assert!(play(&ops, forgetful).is_err());
}

/// Each field that can be written is in the table above, under the part that the method marks, and nothing else is marked.
#[test]
fn each_change_clears_the_bit_of_its_part_only() {
    let mut writes: Vec<(String, Op)> = (0..access::SETTERS.len())
        .map(|i| {
            (
                access::SETTERS[i].0.into(),
                Op::Field(i, 0x0101_0101_0101_0101),
            )
        })
        .collect();
    for i in 0..6 {
        writes.push((format!("segment {i}"), Op::Segment(i, 0x1234)));
    }
    for i in 0..4 {
        writes.push((format!("table {i}"), Op::Table(i, 0x1234)));
    }
    for shift in [0, 32] {
        writes.push(("intercepts".into(), Op::Intercepts(1 << shift)));
    }
    for (name, op) in writes {
        let mut v = zeroed();
        v.ran(true);
        let all = v.clean();
        let before = bytes(&v);
        change(&mut v, &op);
        let after = bytes(&v);
        let mut expected = all;
        let mut changed = false;
        for at in (0..4096).filter(|at| before[*at] != after[*at] && !(0xc0..0xc4).contains(at)) {
            changed = true;
            match CACHED.iter().find(|(range, _)| range.contains(&at)) {
                Some((_, bit)) => expected &= !(1 << bit),
                None => assert!(
                    NEVER.iter().any(|range| range.contains(&at)),
                    "{name}: byte {at:#x} is in no table"
                ),
            }
        }
        assert!(changed, "{name}: nothing changed");
        assert_eq!(v.clean(), expected, "{name}");
    }
}

#[test]
fn a_write_of_the_same_value_changes_nothing() {
    for (name, set) in access::SETTERS {
        let mut v = zeroed();
        set(&mut v, 5);
        v.ran(true);
        let clean = v.clean();
        set(&mut v, 5);
        assert_eq!(v.clean(), clean, "{name}");
    }
}

#[test]
fn a_cpu_without_clean_bits_is_told_none() {
    let mut v = zeroed();
    v.ran(false);
    assert_eq!(v.clean(), 0);
}

#[test]
fn instruction_bytes() {
    let mut v = zeroed();
    assert!(v.insn_bytes().is_empty());
    v.control.insn_len = 3;
    v.control.insn_bytes[..4].copy_from_slice(&[0x8b, 0x07, 0x90, 0xcc]);
    assert_eq!(v.insn_bytes(), [0x8b, 0x07, 0x90]);
    v.control.insn_len = 15;
    assert_eq!(v.insn_bytes().len(), 15);
}
