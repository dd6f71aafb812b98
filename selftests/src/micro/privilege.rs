// SPDX-License-Identifier: GPL-2.0
//! The sensitive instructions, one by one: at privilege levels 0 and 3, with IOPL 0 and 3, in virtual-8086 mode, with and
//! without UMIP. What is expected is what the manuals say of each (Intel SDM volume 2, the instruction's own page: "Protected
//! Mode Exceptions", "Virtual-8086 Mode Exceptions"; volume 3, "Virtual-8086 Mode").
//!
//! Each piece of code ends in a UD2: a #UD there says that all before it was executed.

use super::privilege_where::{Ended, Ring, Where};
use crate::eq;
use crate::guest::*;
use crate::harness::Test;
use crate::kvm::Exit;

pub const TESTS: &[Test] = &[
    Test::new("micro/sensitive_store_tables", store_tables),
    Test::new("micro/sensitive_smsw", smsw),
    Test::new("micro/sensitive_pushf", pushf),
    Test::new("micro/sensitive_popf", popf),
    Test::new("micro/sensitive_lar_lsl", lar_lsl),
    Test::new("micro/sensitive_verr_verw", verr_verw),
    Test::new("micro/sensitive_read_segment", read_segment),
    Test::new("micro/sensitive_load_segment", load_segment),
    Test::new("micro/sensitive_cli_sti", cli_sti),
    Test::new("micro/sensitive_hlt", hlt),
    Test::new("micro/sensitive_in_out", in_out),
    Test::new("micro/sensitive_privileged", privileged),
    Test::new("micro/sensitive_lmsw_clts", lmsw_clts),
];

/// UMIP makes the five instructions #GP outside of ring 0.
fn umip(w: &Where, otherwise: Ended) -> Ended {
    if w.umip && w.outer() {
        Ended::Trap(13, 0)
    } else {
        otherwise
    }
}

fn store_tables() {
    for r in Ring::all() {
        for w in r.wheres() {
            for (n, base, limit) in [(0u8, GDT, 0xbfu16), (1, IDT, r.idt_limit())] {
                let got = r.run(&w, &[0x0f, 0x01, w.mem(n)], |_| {});
                eq!(got, umip(&w, Ended::Done), "{w:?} 0f 01 /{n}");
                if got == Ended::Done {
                    let at = DATA as usize;
                    eq!(r.g.mem.rd::<u16>(at), limit, "{w:?} /{n}");
                    eq!(r.g.mem.rd::<u32>(at + 2), base as u32, "{w:?} /{n}");
                    // Ten bytes in 64-bit mode, six elsewhere.
                    let rest = if r.bits64() { 0 } else { 0xa5a5_a5a5 };
                    eq!(r.g.mem.rd::<u32>(at + 6), rest, "{w:?} /{n}");
                }
            }
            // SLDT and STR do not exist in virtual-8086 mode.
            for (modrm, selector) in [(0xc0u8, 0x60u64), (0xc8, TSS_SEL.into())] {
                let want = if w.vm86 {
                    Ended::Trap(6, 0)
                } else {
                    umip(&w, Ended::Done)
                };
                let got = r.run(&w, &[0x0f, 0x00, modrm], |_| {});
                eq!(got, want, "{w:?} 0f 00 {modrm:x}");
                if got == Ended::Done {
                    eq!(r.g.cpu.regs().rax & 0xffff, selector, "{w:?} {modrm:x}");
                }
            }
        }
    }
}

fn smsw() {
    for r in Ring::all() {
        for w in r.wheres() {
            let got = r.run(&w, &[0x0f, 0x01, 0xe0], |_| {});
            eq!(got, umip(&w, Ended::Done), "{w:?}");
            if got == Ended::Done {
                let cr0 = r.g.cpu.sregs().cr0;
                eq!(r.g.cpu.regs().rax & 0xffff, cr0 & 0xffff, "{w:?}");
            }
        }
    }
}

/// In virtual-8086 mode with an IOPL below 3, what touches IF is the monitor's.
fn monitored(w: &Where) -> bool {
    w.vm86 && w.iopl < 3
}

fn pushf() {
    for r in Ring::all() {
        for w in r.wheres() {
            for flag_if in [0u64, 0x200] {
                let got = r.run(&w, &[0x9c, 0x58], |regs| {
                    regs.rflags = regs.rflags & !0x200 | flag_if;
                    regs.rax = 0;
                });
                if monitored(&w) {
                    eq!(got, Ended::Trap(13, 0), "{w:?}");
                    continue;
                }
                eq!(got, Ended::Done, "{w:?}");
                // Nothing is hidden from whoever asks; VM and RF are pushed as 0.
                let want = 2 | flag_if | (w.iopl << 12);
                eq!(r.g.cpu.regs().rax, want, "{w:?}");
            }
        }
    }
}

fn popf() {
    for r in Ring::all() {
        for w in r.wheres() {
            for (had, wanted) in [(0x200u64, 0u64), (0, 0x200)] {
                let other_iopl = 3 - w.iopl;
                let image = 0xd7 | wanted | (other_iopl << 12);
                let mut code = vec![0x68];
                code.extend(&(image as u32).to_le_bytes()[..w.word()]);
                code.extend([0x9d]);
                let got = r.run(&w, &code, |regs| regs.rflags = regs.rflags & !0x200 | had);
                if monitored(&w) {
                    eq!(got, Ended::TrapAt(13, 0, 3), "{w:?}");
                    continue;
                }
                eq!(got, Ended::Done, "{w:?}");
                let flags = r.g.trap().flags;
                eq!(flags & 0xd5, 0xd5, "the arithmetic flags, {w:?}");
                // IF: who may execute CLI changes it; everybody else leaves it alone, and is not told.
                let may = w.iopl >= w.cpl() || w.cpl() == 0;
                eq!(flags & 0x200, if may { wanted } else { had }, "IF, {w:?}");
                let iopl = if w.cpl() == 0 { other_iopl } else { w.iopl };
                eq!(flags >> 12 & 3, iopl, "IOPL, {w:?}");
            }
        }
    }
}

/// Selectors and what LAR and LSL say of them: (selector, its DPL, access rights, limit, LSL knows it).
fn known(bits64: bool) -> Vec<(u16, u64, u32, u32, bool)> {
    let mut v = vec![
        (DATA_SEL, 0, 0x00cf_9300, u32::MAX, true),
        (CODE_SEL, 0, 0x00cf_9b00, u32::MAX, true),
        (0x48 | 3, 3, 0x00cf_f300, u32::MAX, true),
        (0x40 | 3, 3, 0x00cf_fb00, u32::MAX, true),
        (TSS_SEL, 0, 0x0000_8b00, 0x67, true),
        (if bits64 { 0x80 } else { 0x60 }, 0, 0x0000_8200, 0xff, true),
    ];
    if !bits64 {
        // A call gate has access rights and no limit.
        v.push((0x68 | 3, 3, 0x0000_ec00, 0, false));
    }
    v
}

fn lar_lsl() {
    for r in Ring::all() {
        for w in r.wheres() {
            for (selector, dpl, rights, limit, has_limit) in known(r.bits64()) {
                for (op, value, exists) in [(2u8, rights, true), (3, limit, has_limit)] {
                    let code: &[u8] = &[0x0f, op, 0xc1];
                    let got = r.run(&w, code, |regs| {
                        (regs.rcx, regs.rax) = (selector.into(), 0xabcd_ef01);
                    });
                    if w.vm86 {
                        eq!(got, Ended::Trap(6, 0), "{w:?}");
                        continue;
                    }
                    eq!(got, Ended::Done, "{w:?}");
                    let seen = exists && w.cpl() <= dpl && u64::from(selector & 3) <= dpl;
                    let zf = r.g.trap().flags >> 6 & 1;
                    eq!(zf, u64::from(seen), "{w:?} 0f {op:02x} of {selector:x}");
                    let got = r.g.cpu.regs().rax as u32;
                    let want = if seen { value } else { 0xabcd_ef01 };
                    // LAR leaves bits 19:16 undefined.
                    let mask = if op == 2 && seen {
                        0x00f0_ff00
                    } else {
                        u32::MAX
                    };
                    eq!(got & mask, want & mask, "{w:?} 0f {op:02x} of {selector:x}");
                }
            }
            if !w.vm86 {
                // A null selector, and one behind the table.
                for selector in [0u64, 0x1ff8] {
                    let got = r.run(&w, &[0x0f, 0x02, 0xc1], |regs| regs.rcx = selector);
                    eq!(got, Ended::Done, "{w:?}");
                    eq!(r.g.trap().flags >> 6 & 1, 0, "{w:?} of {selector:x}");
                }
            }
        }
    }
}

fn verr_verw() {
    // (selector, DPL, can be read, can be written)
    let list = [
        (DATA_SEL, 0, true, true),
        (CODE_SEL, 0, true, false),
        (0x4b, 3, true, true),
        (0x43, 3, true, false),
        (TSS_SEL, 0, false, false),
        (0, 3, false, false),
    ];
    for r in Ring::all() {
        for w in r.wheres() {
            for (selector, dpl, read, write) in list {
                for (modrm, may) in [(0xe1u8, read), (0xe9, write)] {
                    let got = r.run(&w, &[0x0f, 0x00, modrm], |regs| regs.rcx = selector.into());
                    if w.vm86 {
                        eq!(got, Ended::Trap(6, 0), "{w:?}");
                        continue;
                    }
                    eq!(got, Ended::Done, "{w:?}");
                    let zf = r.g.trap().flags >> 6 & 1;
                    let want = may && w.cpl() <= dpl;
                    eq!(zf, u64::from(want), "{w:?} {modrm:x} of {selector:x}");
                }
            }
        }
    }
}

fn read_segment() {
    for r in Ring::all() {
        for w in r.wheres() {
            // MOV from CS and SS: the privilege level shows.
            for (modrm, selector) in [(0xc8u8, w.cs()), (0xd0, w.ss())] {
                let got = r.run(&w, &[0x8c, modrm], |_| {});
                eq!(got, Ended::Done, "{w:?}");
                eq!(r.g.cpu.regs().rax & 0xffff, selector.into(), "{w:?}");
            }
            // PUSH CS, which 64-bit mode does not have; PUSH FS, which it has.
            let got = r.run(&w, &[0x0e, 0x58], |_| {});
            if r.bits64() {
                eq!(got, Ended::Trap(6, 0), "{w:?}");
            } else {
                eq!(got, Ended::Done, "{w:?}");
                eq!(r.g.cpu.regs().rax & 0xffff, w.cs().into(), "{w:?}");
            }
            let got = r.run(&w, &[0x0f, 0xa0, 0x58], |_| {});
            eq!(got, Ended::Done, "{w:?}");
            eq!(r.g.cpu.regs().rax & 0xffff, w.data().into(), "{w:?}");
        }
    }
}

fn load_segment() {
    for r in Ring::all() {
        for w in r.wheres() {
            // Ring 0's data: only ring 0 may have it.
            for code in [&[0x8eu8, 0xe0][..], &[0x50, 0x0f, 0xa1]] {
                let got = r.run(&w, code, |regs| regs.rax = DATA_SEL.into());
                let at = code.len() as u64 - 2;
                let want = match (w.outer() && !w.vm86, at) {
                    (true, 0) => Ended::Trap(13, DATA_SEL.into()),
                    (true, _) => Ended::TrapAt(13, DATA_SEL.into(), at),
                    _ => Ended::Done,
                };
                eq!(got, want, "{w:?} {code:02x?}");
            }
            // POP DS is not there in 64-bit mode.
            let got = r.run(&w, &[0x50, 0x1f], |regs| regs.rax = w.data().into());
            let want = if r.bits64() {
                Ended::TrapAt(6, 0, 1)
            } else {
                Ended::Done
            };
            eq!(got, want, "{w:?} pop ds");
            // In virtual-8086 mode a selector is a paragraph.
            if w.vm86 {
                let got = r.run(&w, &[0x8e, 0xe0, 0x64, 0x8a, 0x07], |regs| {
                    (regs.rax, regs.rbx) = (0x2000, 0);
                });
                eq!(
                    (got, r.g.cpu.regs().rax & 0xff),
                    (Ended::Done, 0xa5),
                    "{w:?}"
                );
                continue;
            }
            // A null selector: anywhere but in SS, and there in 64-bit mode only, below ring 3.
            let got = r.run(&w, &[0x8e, 0xe0], |regs| regs.rax = 0);
            eq!(got, Ended::Done, "{w:?} null in FS");
            let got = r.run(&w, &[0x8e, 0xd0], |regs| regs.rax = 0);
            let may = r.bits64() && !w.outer();
            let want = if may { Ended::Done } else { Ended::Trap(13, 0) };
            eq!(got, want, "{w:?} null in SS");
            // CS is not loaded by MOV.
            let got = r.run(&w, &[0x8e, 0xc8], |regs| regs.rax = w.cs().into());
            eq!(got, Ended::Trap(6, 0), "{w:?} mov cs");
        }
    }
}

fn cli_sti() {
    for r in Ring::all() {
        for w in r.wheres() {
            for (op, had, left) in [(0xfau8, 0x200u64, 0u64), (0xfb, 0, 0x200)] {
                let got = r.run(&w, &[op], |regs| regs.rflags = regs.rflags & !0x200 | had);
                if w.cpl() > w.iopl {
                    eq!(got, Ended::Trap(13, 0), "{w:?} {op:x}");
                    eq!(r.g.trap().flags & 0x200, had, "{w:?} {op:x}");
                } else {
                    eq!(got, Ended::Done, "{w:?} {op:x}");
                    eq!(r.g.trap().flags & 0x200, left, "{w:?} {op:x}");
                }
            }
        }
    }
}

fn hlt() {
    for r in Ring::all() {
        for w in r.wheres() {
            let got = r.run(&w, &[0xf4], |_| {});
            let want = if w.outer() {
                Ended::Trap(13, 0)
            } else {
                Ended::Exit(Exit::Hlt)
            };
            eq!(got, want, "{w:?}");
        }
    }
}

fn in_out() {
    for r in Ring::all() {
        for w in r.wheres() {
            for open in [false, true] {
                // The I/O permission map: everything, or nothing.
                r.open_ports(open);
                for (code, want) in [
                    (&[0xe4u8, 0x44][..], inp(0x44, 1)),
                    (&[0xe6, 0x44], out(0x44, &[0x5a])),
                    (&[0xed], inp(0x48, r.io_size(&w))),
                    (&[0x6e], out(0x48, &[0xa5])),
                    (&[0x6c], inp(0x48, 1)),
                ] {
                    let got = r.run(&w, code, |regs| {
                        (regs.rax, regs.rdx) = (0x5a, 0x48);
                        regs.rsi = if w.vm86 { 0 } else { DATA };
                        regs.rdi = regs.rsi;
                    });
                    // In virtual-8086 mode the map decides whatever IOPL is.
                    let may = w.cpl() == 0 || open || !w.vm86 && w.iopl == 3;
                    let want = if may {
                        Ended::Exit(want)
                    } else {
                        Ended::Trap(13, 0)
                    };
                    eq!(got, want, "{w:?} {code:02x?}, ports open: {open}");
                    if may {
                        // Its end: user space answers, and the guest goes on.
                        eq!(r.go_on(), Ended::Done, "{w:?} {code:02x?}");
                    }
                }
            }
        }
    }
}

fn privileged() {
    for r in Ring::all() {
        for w in r.wheres() {
            let list: &[(&[u8], &str)] = &[
                (&[0x0f, 0x08], "invd"),
                (&[0x0f, 0x09], "wbinvd"),
                (&[0x0f, 0x01, w.mem(7)], "invlpg"),
                (&[0x0f, 0x20, 0xc0], "mov from cr0"),
                (&[0x0f, 0x22, 0xd8], "mov to cr3"),
                (&[0x0f, 0x21, 0xf8], "mov from dr7"),
                (&[0x0f, 0x23, 0xc0], "mov to dr0"),
                (&[0x0f, 0x32], "rdmsr"),
                (&[0x0f, 0x30], "wrmsr"),
                (&[0x0f, 0x01, w.mem(2)], "lgdt"),
                (&[0x0f, 0x01, w.mem(3)], "lidt"),
            ];
            for (code, what) in list {
                let got = r.run(&w, code, |regs| {
                    // CR3 as it is; IA32_SYSENTER_CS, to write 0 to; tables as they are.
                    regs.rax = if *what == "mov to cr3" { PML4 } else { 0 };
                    (regs.rcx, regs.rdx) = (0x174, 0);
                    let (base, limit) = if *what == "lgdt" {
                        (GDT, 0xbf)
                    } else {
                        (IDT, r.idt_limit())
                    };
                    r.g.mem.wr(DATA as usize, limit);
                    r.g.mem.wr(DATA as usize + 2, base);
                });
                let want = if w.outer() {
                    Ended::Trap(13, 0)
                } else {
                    Ended::Done
                };
                eq!(got, want, "{w:?} {what}");
            }
            // LLDT and LTR do not exist in virtual-8086 mode.
            for (modrm, selector) in [(0xd0u8, 0u64), (0xd8, 0x58)] {
                let got = r.run(&w, &[0x0f, 0x00, modrm], |regs| regs.rax = selector);
                let want = match (w.vm86, w.outer()) {
                    (true, _) => Ended::Trap(6, 0),
                    (_, true) => Ended::Trap(13, 0),
                    _ => Ended::Done,
                };
                eq!(got, want, "{w:?} 0f 00 {modrm:x}");
            }
        }
    }
}

fn lmsw_clts() {
    for r in Ring::all() {
        for w in r.wheres() {
            // TS and MP on; PE cannot be cleared.
            for (code, had, left) in [
                (&[0x0fu8, 0x01, 0xf0][..], 0u64, 0xa),
                (&[0x0f, 0x06], 8, 0),
            ] {
                let got = r.run_with(
                    &w,
                    code,
                    |regs| regs.rax = 0xa,
                    |s| s.cr0 = s.cr0 & !0xe | had,
                );
                let cr0 = r.g.cpu.sregs().cr0;
                if w.outer() {
                    eq!(got, Ended::Trap(13, 0), "{w:?} {code:02x?}");
                    eq!(cr0 & 0xf, 1 | had, "{w:?} {code:02x?}");
                } else {
                    eq!(got, Ended::Done, "{w:?} {code:02x?}");
                    eq!(cr0 & 0xf, 1 | left, "{w:?} {code:02x?}");
                }
            }
        }
    }
}
