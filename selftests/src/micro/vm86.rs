// SPDX-License-Identifier: GPL-2.0
//! Virtual-8086 mode beyond the sensitive instructions: how it is entered and left, transfers, segments, devices, and its extensions (Intel
//! SDM volume 3, "8086 Emulation"; AMD APM volume 2, "Virtual-8086 Mode", which say the same).

use super::privilege_gates::pushes;
use super::privilege_where::{Emulated, Ended, Ring, Where};
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::Exit;
use crate::sys::{cpuid, on_tcg};
use crate::{check, eq};
use kvm_bindings::{kvm_regs, kvm_sregs};

pub const TESTS: &[Test] = &[
    Test::new("micro/vm86_entered_and_left", entered_and_left),
    Test::new("micro/vm86_interrupted", interrupted),
    Test::new("micro/vm86_single_step", single_step),
    Test::new("micro/vm86_far", far),
    Test::new("micro/vm86_segments", segments),
    Test::new("micro/vm86_limits", limits),
    Test::new("micro/vm86_device", device),
];

/// Those for CPUs with the extensions.
pub const VME_TESTS: &[Test] = &[
    Test::new("micro/vm86_vme_flags", vme_flags),
    Test::new("micro/vm86_vme_iret", vme_iret),
    Test::new("micro/vm86_vme_int", vme_int),
];

const IF: u64 = 1 << 9;
const TF: u64 = 1 << 8;
const VM: u64 = 1 << 17;
const RF: u32 = 1 << 16;
const VIF: u64 = 1 << 19;
const VIP: u64 = 1 << 20;

/// Code of its own, at CS 3000 and the offset in TARGET.
const SEGMENT: u64 = 0x3_0000;
const TARGET: u16 = 0x100;

/// A guest with a virtual-8086 mode, and the places that are in it.
fn places() -> (Ring, Vec<Where>) {
    let r = Ring::new(Mode::Paged);
    let v: Vec<Where> = r
        .wheres()
        .into_iter()
        .filter(|w| w.vm86 && !w.umip)
        .collect();
    if v.is_empty() {
        harness::skip("an exit from virtual-8086 mode ends Bochs itself on its SVM");
    }
    r.g.mem
        .write(SEGMENT as usize + usize::from(TARGET), &[0x0f, 0x0b]);
    // A gate that ring 3 may use.
    r.g.mem.wr(IDT as usize + 0x80 * 8 + 5, 0xeeu8);
    (r, v)
}

/// What the way out of virtual-8086 mode pushed, from below: EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS. (RF depends on the event.)
fn frame(r: &Ring) -> [u32; 9] {
    let top = r.g.cpu.regs().rsp as usize + 8;
    let mut f: [u32; 9] = std::array::from_fn(|n| r.g.mem.rd(top + 4 * n));
    f[2] &= !RF;
    for n in [1, 4, 5, 6, 7, 8] {
        f[n] &= 0xffff;
    }
    f
}

/// The vector of the last trap, and where: CS and IP.
fn trapped(r: &Ring) -> (u8, u32, u32) {
    let f = frame(r);
    (r.g.trap().vector, f[1], f[0])
}

fn entered_and_left() {
    let (r, _) = places();
    let code = [
        0x8c, 0xd8, 0x8c, 0xc3, 0x8c, 0xd1, // mov ax,ds; mov bx,es; mov cx,ss
        0x8c, 0xe2, 0x8c, 0xee, 0x89, 0xe7, // mov dx,fs; mov si,gs; mov di,sp
        0x0f, 0x0b, 0x40, 0xcd, 0x80, // ud2; inc ax; int 80h
    ];
    r.g.mem.write(SEGMENT as usize, &code);
    // The way back: add esp,8; iretd
    const BACK: u64 = 0x9100;
    r.g.mem.write(BACK as usize, &[0x83, 0xc4, 8, 0xcf]);
    let ring0 = |w: &Where| !w.outer() && !w.umip && w.iopl == 0;
    for w in r.wheres().into_iter().filter(ring0) {
        for iopl in [0u32, 3] {
            let flags = 2 | (VM | IF) as u32 | iopl << 12;
            let image = [
                0x5000, 0x4000, 0x2000, 0x6000, 0x7000, 0xffe, flags, 0x3000, 0,
            ];
            let (code, _) = pushes(&image, &[0xcf]);
            r.run(&w, &code, |_| {});
            eq!(trapped(&r), (6, 0x3000, 12), "{w:?}{}", r.g.describe());
            let regs = r.g.cpu.regs();
            let seen = [regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi];
            eq!(
                seen.map(|v| v & 0xffff),
                [0x2000, 0x6000, 0x7000, 0x4000, 0x5000, 0xffe]
            );
            let mut pushed = image;
            pushed.reverse();
            pushed[0] = 12;
            eq!(frame(&r), pushed, "{w:?}");
            // The handler is in ring 0, with its own stack and no data segments.
            let s = r.g.cpu.sregs();
            eq!((s.cs.selector, s.ss.selector), (CODE_SEL, DATA_SEL));
            eq!(
                [s.ds, s.es, s.fs, s.gs].map(|d| d.selector),
                [0; 4],
                "{w:?}"
            );
            eq!((regs.rflags & (VM | IF), s.cs.dpl), (0, 0), "{w:?}");
            // Back, behind the UD2, and out once more by INT n.
            r.g.mem.wr(regs.rsp as usize + 8, 14u32);
            r.g.cpu.set_regs(&kvm_regs { rip: BACK, ..regs });
            let by_int = matches!(r.go_on(), Ended::TrapAt(0x80, 0, _));
            eq!(by_int, iopl == 3, "{w:?}{}", r.g.describe());
            let want = if iopl == 3 {
                (0x80, 0x3000, 17)
            } else {
                (13, 0x3000, 15)
            };
            eq!(trapped(&r), want, "{w:?}");
            eq!(r.g.cpu.regs().rax & 0xffff, 0x2001, "{w:?}");
            eq!(frame(&r)[3..], pushed[3..], "{w:?}");
        }
    }
}

fn interrupted() {
    // An interrupt and an NMI come in before the first instruction. (Without IRET a second NMI would wait.)
    for (vector, iopl) in [(0x21u8, 0), (0x21, 3), (2, 0), (2, 3)] {
        let (r, places) = places();
        let there = |w: &Where| w.iopl == iopl && w.emulated == Emulated::No;
        for w in places.into_iter().filter(there) {
            let event = |s: &mut kvm_sregs| match vector {
                2 => eq!(r.g.cpu.nmi(), Ok(0)),
                _ => s.interrupt_bitmap[0] |= 1 << vector,
            };
            let got = r.run_with(&w, &[0x90], |_| {}, event);
            eq!(got, Ended::Trap(vector, 0), "{w:?}");
            let f = frame(&r);
            let flags = 2 | (VM | IF | w.iopl << 12) as u32;
            eq!(f[..5], [CODE as u32, 0, flags, 0x1000, 0x2000], "{w:?}");
        }
    }
}

fn single_step() {
    let (r, places) = places();
    for w in places {
        let got = r.run(&w, &[0x90, 0x90], |regs| regs.rflags |= TF);
        eq!(got, Ended::TrapAt(1, 0, 1), "{w:?}");
        check!(u64::from(frame(&r)[2]) & (VM | TF) == VM | TF, "{w:?}");
    }
}

fn far() {
    let (r, places) = places();
    for w in places {
        let low = |n: u64| u32::from(r.g.mem.rd::<u16>((0x2_0000 + n) as usize));
        let pointer = |regs: &mut kvm_regs| {
            r.g.mem.wr(DATA as usize, TARGET);
            r.g.mem.wr(DATA as usize + 2, 0x3000u16);
            regs.rbx = 0;
        };
        // The code, what is left of the stack of 1000h bytes, and what lies there.
        let cases: &[(&[u8], u32, &[u32])] = &[
            (&[0x9a, 0, 1, 0, 0x30], 0xffc, &[0x8005, 0]),
            (
                &[0x66, 0x9a, 0, 1, 0, 0, 0, 0x30],
                0xff8,
                &[0x8008, 0, 0, 0],
            ),
            (&[0xff, 0x1f], 0xffc, &[0x8002, 0]),
            (&[0xea, 0, 1, 0, 0x30], 0x1000, &[]),
            (&[0xff, 0x2f], 0x1000, &[]),
            (&[0x68, 0, 0x30, 0x68, 0, 1, 0xcb], 0x1000, &[]),
            (&[0x68, 0, 0x30, 0x68, 0, 1, 0xca, 6, 0], 0x1006, &[]),
        ];
        for (code, sp, pushed) in cases {
            r.run(&w, code, pointer);
            eq!(trapped(&r), (6, 0x3000, TARGET.into()), "{w:?} {code:02x?}");
            eq!(frame(&r)[3..5], [*sp, 0x2000], "{w:?} {code:02x?}");
            let seen: Vec<u32> = (0..pushed.len() as u64)
                .map(|n| low(u64::from(*sp) + 2 * n))
                .collect();
            eq!(seen, *pushed, "{w:?} {code:02x?}");
        }
        if w.emulated == Emulated::No && on_tcg() {
            continue;
        }
        // Beyond 64 KiB.
        let got = r.run(&w, &[0x66, 0xea, 0, 0, 1, 0, 0, 0x30], |_| {});
        eq!(got, Ended::Trap(13, 0), "{w:?}");
    }
}

fn segments() {
    let (r, places) = places();
    r.g.mem.wr(0x10_0000, 0x77u8);
    for w in places {
        // mov ds,ax; mov al,[10h]: the highest paragraph reaches beyond 1 MiB.
        let got = r.run(&w, &[0x8e, 0xd8, 0xa0, 0x10, 0], |regs| regs.rax = 0xffff);
        eq!(got, Ended::Done, "{w:?}");
        eq!(r.g.cpu.regs().rax & 0xff, 0x77, "{w:?}");
        eq!(frame(&r)[6], 0xffff, "{w:?}");
        // LES, LDS, LSS, LFS, LGS ax,[bx]: any selector will do.
        for (code, n) in [
            (&[0xc4u8, 0x07][..], 5),
            (&[0xc5, 0x07], 6),
            (&[0x0f, 0xb2, 0x07], 4),
            (&[0x0f, 0xb4, 0x07], 7),
            (&[0x0f, 0xb5, 0x07], 8),
        ] {
            let got = r.run(&w, code, |_| {
                r.g.mem.wr(DATA as usize, 0x1234u16);
                r.g.mem.wr(DATA as usize + 2, 0xabcdu16);
            });
            eq!(got, Ended::Done, "{w:?} {code:02x?}");
            eq!(r.g.cpu.regs().rax & 0xffff, 0x1234, "{w:?} {code:02x?}");
            eq!(frame(&r)[n], 0xabcd, "{w:?} {code:02x?}");
        }
        // PUSH and POP wrap around at 64 KiB.
        let got = r.run(&w, &[0x50, 0x5b], |regs| (regs.rax, regs.rsp) = (0x4321, 0));
        eq!(got, Ended::Done, "{w:?}");
        eq!(r.g.cpu.regs().rbx & 0xffff, 0x4321, "{w:?}");
        eq!(
            (frame(&r)[3] & 0xffff, r.g.mem.rd::<u16>(0x2_fffe)),
            (0, 0x4321),
            "{w:?}"
        );
    }
}

fn limits() {
    let (r, places) = places();
    if on_tcg() && places.iter().all(|w| w.emulated == Emulated::No) {
        harness::skip("QEMU's TCG does not check segment limits");
    }
    for w in places {
        for (code, vector) in [
            (&[0xa1u8, 0xff, 0xff][..], 13), // mov ax,[ffffh]
            (&[0x66, 0xa3, 0xfd, 0xff], 13), // mov [fffdh],eax
            (&[0x67, 0x8a, 0x01], 13),       // mov al,[ecx]
            (&[0x36, 0xa1, 0xff, 0xff], 12), // mov ax,ss:[ffffh]
            (&[0x67, 0x36, 0x88, 0x01], 12), // mov ss:[ecx],al
            (&[0x50], 12),                   // push ax, with SP 1
        ] {
            let got = r.run(&w, code, |regs| (regs.rcx, regs.rsp) = (0x1_0000, 1));
            eq!(got, Ended::Trap(vector, 0), "{w:?} {code:02x?}");
        }
    }
}

/// The screen's memory as a program of those days knows it, at B800:0, is a device's.
fn device() {
    let (r, places) = places();
    const TABLE: u64 = 0x1_5000;
    for n in 0..1024u64 {
        let to = if n == 0xb8 { MMIO } else { n << 12 };
        r.g.mem.wr((TABLE + 4 * n) as usize, (to | 7) as u32);
    }
    r.g.mem.wr(PML4 as usize, (TABLE | 7) as u32);
    let access = |at: u64, write: Option<&[u8]>| {
        Ended::Exit(Exit::Mmio {
            addr: MMIO + at,
            len: 2,
            write: write.is_some(),
            data: write.unwrap_or_default().to_vec(),
        })
    };
    for w in places {
        let run = |code: &[u8]| {
            r.run_with(
                &w,
                code,
                |regs| (regs.rax, regs.rcx, regs.rbx, regs.rdi, regs.rsi) = (0x1741, 2, 4, 4, 8),
                |s| (s.es.selector, s.es.base) = (0xb800, 0xb_8000),
            )
        };
        // mov es:[bx],ax; mov ax,es:[bx]; stosw; movsw; lodsw from it; rep stosw
        eq!(
            run(&[0x26, 0x89, 0x07]),
            access(4, Some(&[0x41, 0x17])),
            "{w:?}"
        );
        eq!(r.go_on(), Ended::Done, "{w:?}");
        eq!(run(&[0x26, 0x8b, 0x07]), access(4, None), "{w:?}");
        eq!(r.go_on(), Ended::Done, "{w:?}");
        eq!(run(&[0xab]), access(4, Some(&[0x41, 0x17])), "{w:?}");
        eq!(r.go_on(), Ended::Done, "{w:?}");
        eq!(run(&[0xa5]), access(4, Some(&[0xa5, 0xa5])), "{w:?}");
        eq!(r.go_on(), Ended::Done, "{w:?}");
        eq!(run(&[0x26, 0xad]), access(8, None), "{w:?}");
        eq!(r.go_on(), Ended::Done, "{w:?}");
        eq!(run(&[0xf3, 0xab]), access(4, Some(&[0x41, 0x17])), "{w:?}");
        eq!(r.go_on(), access(6, Some(&[0x41, 0x17])), "{w:?}");
        eq!(r.go_on(), Ended::Done, "{w:?}");
        eq!(r.g.cpu.regs().rdi & 0xffff, 8, "{w:?}");
    }
}

/// CR4.VME, and a TSS with a map of the software interrupts that the program handles itself, all but 81h.
fn vme_places() -> (Ring, Vec<Where>) {
    if cpuid(1, 0)[3] & 2 == 0 {
        harness::skip("the CPU has no extensions of virtual-8086 mode (VME)");
    }
    let (r, places) = places();
    let at = TSS as usize;
    r.g.mem.wr(at + 0x66, 0x88u16);
    r.g.mem.fill(at + 0x68, 0x20, 0);
    r.g.mem.wr(at + 0x68 + 0x81 / 8, 2u8);
    r.g.mem.fill(at + 0x88, 0x78, 0xff);
    (r, places)
}

fn with_vme(s: &mut kvm_sregs) {
    s.cr4 |= 1;
    s.tr.limit = 0xff;
}

/// RFLAGS at the start: IF, or the other way round VIF.
const FLAGS: [u64; 4] = [IF, VIF, IF | VIF, 0];

fn vme_flags() {
    let (r, places) = vme_places();
    for w in places {
        let own = w.iopl == 3;
        let base = 2 | VM | w.iopl << 12;
        for flags in FLAGS {
            let run = |code: &[u8], more: u64| {
                let got = r.run_with(
                    &w,
                    code,
                    |regs| (regs.rflags, regs.rax) = (base | flags | more, 0),
                    with_vme,
                );
                (got, u64::from(frame(&r)[2]) & (IF | VIF | VIP | 3 << 12))
            };
            let left = |flags: u64| flags | w.iopl << 12;
            // CLI and STI: IF, or what stands for it.
            let bit = if own { IF } else { VIF };
            eq!(
                run(&[0xfa], 0),
                (Ended::Done, left(flags & !bit)),
                "{w:?} cli {flags:x}"
            );
            eq!(
                run(&[0xfb], 0),
                (Ended::Done, left(flags | bit)),
                "{w:?} sti {flags:x}"
            );
            // An interrupt that waits makes STI a fault; with VIF set already, any instruction.
            if flags & VIF == 0 {
                let want = if own {
                    (Ended::Done, left(flags | bit | VIP))
                } else {
                    (Ended::Trap(13, 0), left(flags | VIP))
                };
                eq!(run(&[0xfb], VIP), want, "{w:?} sti {flags:x}");
            } else if w.emulated == Emulated::No {
                let want = (Ended::Trap(13, 0), left(flags | VIP));
                eq!(run(&[0x90], VIP), want, "{w:?} nop {flags:x}");
            }
            // PUSHF shows VIF as IF, and an IOPL of 3.
            let virtual_if = if flags & bit == 0 { 0 } else { IF };
            eq!(run(&[0x9c, 0x58], 0).0, Ended::Done, "{w:?}");
            eq!(
                r.g.cpu.regs().rax,
                2 | virtual_if | 3 << 12,
                "{w:?} pushf {flags:x}"
            );
            // The 32-bit forms are not there.
            let want = if own { Ended::Done } else { Ended::Trap(13, 0) };
            eq!(run(&[0x66, 0x9c, 0x66, 0x58], 0).0, want, "{w:?} pushfd");
            // POPF of an image with IF, without, with TF.
            for (image, pending) in [(IF, 0), (0, 0), (IF, VIP), (0, VIP)] {
                if flags & VIF != 0 && pending != 0 {
                    continue;
                }
                let [lo, hi] = ((image | 0xd7) as u16).to_le_bytes();
                let fails = !own && image == IF && pending == VIP;
                let got = run(&[0x68, lo, hi, 0x9d], pending);
                let want = if fails {
                    (Ended::TrapAt(13, 0, 3), left(flags | pending))
                } else {
                    let bits = if image == 0 {
                        flags & !bit
                    } else {
                        flags | bit
                    };
                    (Ended::Done, left(bits | pending))
                };
                eq!(got, want, "{w:?} popf {image:x} with {flags:x} {pending:x}");
            }
            if !own {
                let got = run(&[0x68, 2, 1, 0x9d], 0).0;
                eq!(got, Ended::TrapAt(13, 0, 3), "{w:?} popf with TF");
                let got = run(&[0x66, 0x9d], 0).0;
                eq!(got, Ended::Trap(13, 0), "{w:?} popfd");
            }
        }
    }
}

fn vme_iret() {
    let (r, places) = vme_places();
    for w in places {
        let own = w.iopl == 3;
        for flags in FLAGS {
            for (image, pending) in [(IF, 0), (0, 0), (IF, VIP), (0, VIP), (TF, 0)] {
                if own && image == TF || flags & VIF != 0 && pending != 0 {
                    continue;
                }
                let [lo, hi] = ((image | 2) as u16).to_le_bytes();
                let code = [0x68, lo, hi, 0x68, 0, 0x30, 0x68, 0, 1, 0xcf];
                let had = 2 | VM | w.iopl << 12 | flags | pending;
                let got = r.run_with(&w, &code, |regs| regs.rflags = had, with_vme);
                if !own && (image == TF || image & IF != 0 && pending != 0) {
                    eq!(got, Ended::TrapAt(13, 0, 9), "{w:?} {image:x} {pending:x}");
                    continue;
                }
                eq!(trapped(&r), (6, 0x3000, TARGET.into()), "{w:?} {image:x}");
                let bit = if own { IF } else { VIF };
                let bits = if image == 0 {
                    flags & !bit
                } else {
                    flags | bit
                };
                let want = bits | pending | w.iopl << 12;
                eq!(
                    u64::from(frame(&r)[2]) & (IF | VIF | VIP | 3 << 12),
                    want,
                    "{w:?} {image:x} {flags:x}"
                );
            }
            let got = r.run_with(
                &w,
                &[0x66, 0xcf],
                |regs| regs.rflags = 2 | VM | w.iopl << 12 | flags,
                with_vme,
            );
            if !own {
                eq!(got, Ended::Trap(13, 0), "{w:?} iretd");
            }
        }
    }
}

fn vme_int() {
    let (r, places) = vme_places();
    // The program's own vectors are at 0.
    for v in [0x80usize, 0x81] {
        r.g.mem.wr(4 * v, TARGET);
        r.g.mem.wr(4 * v + 2, 0x3000u16);
    }
    r.g.mem.wr(IDT as usize + 0x81 * 8 + 5, 0xeeu8);
    for w in places {
        let own = w.iopl == 3;
        for flags in FLAGS {
            let had = 2 | VM | w.iopl << 12 | flags;
            let run =
                |vector: u8| r.run_with(&w, &[0xcd, vector], |regs| regs.rflags = had, with_vme);
            // To the program: on its stack, with IF or VIF cleared.
            run(0x80);
            eq!(trapped(&r), (6, 0x3000, TARGET.into()), "{w:?} {flags:x}");
            let f = frame(&r);
            eq!(f[3..5], [0xffa, 0x2000], "{w:?} {flags:x}");
            let bit = if own { IF } else { VIF };
            eq!(
                u64::from(f[2]) & (IF | VIF | 3 << 12),
                flags & !bit | w.iopl << 12,
                "{w:?} {flags:x}"
            );
            let pushed: [u16; 3] = std::array::from_fn(|n| r.g.mem.rd(0x2_0ffa + 2 * n));
            let virtual_if = if flags & bit == 0 { 0 } else { IF };
            eq!(
                pushed,
                [CODE as u16 + 2, 0, (2 | virtual_if | 3 << 12) as u16],
                "{w:?} {flags:x}"
            );
            // To the monitor: by its gate, or, with an IOPL below 3, as a fault.
            let want = if own {
                Ended::TrapAt(0x81, 0, 2)
            } else {
                Ended::Trap(13, 0)
            };
            eq!(run(0x81), want, "{w:?} {flags:x}");
        }
    }
}
