// SPDX-License-Identifier: GPL-2.0
//! 16-bit protected mode, as on a 286: code, stack, gates and task state of 16 bits, segments with limits and such that expand down
//! (Intel SDM volume 3, "Mixing 16-Bit and 32-Bit Code", "Limit Checking", "Call Gates"; AMD APM volume 2, "Segmented Virtual Memory").

use super::prefix::{Forced, PREFIX};
use crate::guest::*;
use crate::harness::{self, Test};
use crate::sys::{self, on_tcg};
use crate::{check, eq};
use kvm_bindings::{kvm_regs, kvm_segment};

pub const TESTS: &[Test] = &[
    Test::new("micro/bits16_instructions", instructions),
    Test::new("micro/bits16_interrupts", interrupts),
    Test::new("micro/bits16_from_ring_3", from_ring_3),
    Test::new("micro/bits16_call_gate", call_gate),
    Test::new("micro/bits16_to_32", to_32),
    Test::new("micro/bits16_limits", || by_cpu(limits)),
    Test::new("micro/bits16_expand_down", || by_cpu(expand_down)),
    Test::new("micro/bits16_emulated", emulated),
    Test::new("micro/bits16_entered", entered),
    Test::new("micro/bits16_compatibility", compatibility),
];

/// Selectors behind those of every guest: code and data of ring 3.
const CODE3: u16 = 0x43;
const DATA3: u16 = 0x4b;
/// A 16-bit task state.
const TSS16: u16 = 0x50;
/// Data that expands down to 8000h: 16-bit and 32-bit.
const DOWN16: u16 = 0x58;
const DOWN32: u16 = 0x60;
/// 256 bytes at DATA.
const SMALL: u16 = 0x68;
/// Call gates to TARGET: 16-bit with two words, 32-bit without.
const GATE16: u16 = 0x73;
const GATE32: u16 = 0x7b;
/// Data that expands down to nothing: no byte of it is inside.
const NOTHING: u16 = 0x80;
const TARGET: u16 = 0x9000;
/// Where ring 0's stack begins for ring 3.
const INNER: u16 = 0x7000;

/// An event at a 16-bit stub, and what the CPU pushed (from IP on; up to SS if it came from ring 3).
#[derive(Debug, PartialEq)]
struct Trap16 {
    vector: u16,
    error: u16,
    frame: [u16; 5],
}

/// A guest of that kind.
fn guest() -> Guest {
    let g = Guest::new(Mode::Prot);
    let m = &g.mem;
    let gate = |kind: u64, sel: u16, at: u16| u64::from(at) | u64::from(sel) << 16 | kind << 32;
    let more = [
        0x0000_fb00_0000_ffffu64,
        0x0000_f300_0000_ffff,
        0x0000_8300_3000_002b,
        0x0000_9700_0000_7fff,
        0x0040_9700_0000_7fff,
        0x0000_9302_0000_00ff,
        gate(0xe402, CODE16_SEL, TARGET),
        gate(0xec00, CODE_SEL, TARGET),
        0x0000_9700_0000_ffff,
    ];
    for (n, d) in more.into_iter().enumerate() {
        m.wr(GDT as usize + 0x40 + 8 * n, d);
    }
    for v in 0..256u16 {
        // push 0 where the CPU pushes no error code; push the vector; out; hlt: as in real mode
        let mut stub = if matches!(v, 8 | 10..=14 | 17) {
            vec![]
        } else {
            vec![0x6a, 0]
        };
        stub.extend([0x68, v as u8, 0, 0xe6, PORT_TRAP, 0xf4]);
        m.write(STUBS as usize + 16 * usize::from(v), &stub);
        let kind = if v < 0x80 { 0x8600 } else { 0xe700 };
        m.wr(
            IDT as usize + 8 * usize::from(v),
            gate(kind, CODE16_SEL, STUBS as u16 + 16 * v),
        );
    }
    m.wr(TSS as usize + 2, INNER);
    m.wr(TSS as usize + 4, DATA16_SEL);
    let mut s = g.cpu.sregs();
    s.gdt.limit = 0x87;
    let wide = |selector, type_| kvm_segment {
        selector,
        type_,
        limit: 0xffff,
        db: 0,
        g: 0,
        ..data_seg()
    };
    s.cs = wide(CODE16_SEL, 11);
    (s.ss, s.ds, s.es, s.fs, s.gs) = {
        let d = wide(DATA16_SEL, 3);
        (d, d, d, d, d)
    };
    (s.tr.selector, s.tr.limit) = (TSS16, 0x2b);
    crate::record::muted(|| g.cpu.set_sregs(&s));
    g
}

/// Runs `code` there up to a trap; `ring3` says where. The stack begins at 6000h, with a high half that 16-bit code leaves alone.
fn run(g: &Guest, ring3: bool, code: &[u8], change: impl FnOnce(&mut kvm_regs)) -> Trap16 {
    g.mem.write(CODE as usize, code);
    g.mem.write(CODE as usize + code.len(), &[0x0f, 0x0b]);
    crate::record::muted(|| {
        let mut s = g.cpu.sregs();
        let (cs, data, dpl) = if ring3 {
            (CODE3, DATA3, 3)
        } else {
            (CODE16_SEL, DATA16_SEL, 0)
        };
        let put = |d: &mut kvm_segment, selector: u16, type_: u8| {
            *d = kvm_segment {
                selector,
                type_,
                dpl,
                db: 0,
                g: 0,
                limit: 0xffff,
                ..data_seg()
            };
        };
        put(&mut s.cs, cs, 11);
        for d in [&mut s.ss, &mut s.ds, &mut s.es, &mut s.fs, &mut s.gs] {
            put(d, data, 3);
        }
        // As for 32-bit task states, QEMU's TCG wants one that is not busy.
        s.tr.type_ = if on_tcg() { 1 } else { 3 };
        g.cpu.set_sregs(&s);
    });
    let mut r = kvm_regs {
        rip: CODE,
        rsp: 0x6000,
        rflags: 0x202,
        ..Default::default()
    };
    change(&mut r);
    g.cpu.set_regs(&r);
    trap(g)
}

fn trap(g: &Guest) -> Trap16 {
    let got = g.cpu.run();
    check!(
        matches!(&got, crate::kvm::Exit::Io { out: true, port, .. } if *port == u16::from(PORT_TRAP)),
        "{got:x?}"
    );
    let top = g.cpu.regs().rsp as usize & 0xffff;
    Trap16 {
        vector: g.mem.rd(top),
        error: g.mem.rd(top + 2),
        frame: std::array::from_fn(|n| g.mem.rd(top + 4 + 2 * n)),
    }
}

/// All of the code was executed.
fn done(t: &Trap16, len: usize) -> bool {
    (t.vector, usize::from(t.frame[0])) == (6, CODE as usize + len)
}

fn instructions() {
    let g = guest();
    const HIGH: u64 = 0xabcd_0000;
    // mov ax,1234h; mov ecx,12345678h; push ax; pop bx; push dword 5; pop edx: with a stack pointer of 16 bits
    let code = [
        0xb8, 0x34, 0x12, 0x66, 0xb9, 0x78, 0x56, 0x34, 0x12, 0x50, 0x5b, 0x66, 0x6a, 5, 0x66, 0x5a,
    ];
    let t = run(&g, false, &code, |r| (r.rsp, r.rbx) = (HIGH, 0xffff_0000));
    check!(done(&t, code.len()), "{t:x?}");
    let r = g.cpu.regs();
    eq!(
        (r.rax, r.rcx, r.rbx, r.rdx),
        (0x1234, 0x1234_5678, 0xffff_1234, 5)
    );
    // Five words of the trap; the high half of ESP is as it was.
    eq!(r.rsp, HIGH | 0x1_0000 - 10);
    eq!(
        g.mem.rd::<u16>(0xfffe),
        0x202,
        "the flags, at the top of 64 KiB"
    );
    // [bx+si+10h], loop and rep movsb with CX, SI, DI
    let code = [0x8a, 0x40, 0x10, 0x40, 0xe2, 0xfd, 0xb9, 2, 0, 0xf3, 0xa4];
    let t = run(&g, false, &code, |r| {
        (r.rbx, r.rsi, r.rcx, r.rdi) = (0x1_9000, 0x2_0100, 0x7_0003, 0x3_a000);
        g.mem.wr(0x9110, 0x40u8);
        g.mem.wr(0x0100, 0xbeefu16);
    });
    check!(done(&t, code.len()), "{t:x?}");
    let r = g.cpu.regs();
    eq!((r.rax & 0xffff, r.rcx), (0x43, 0x7_0000));
    eq!(
        (r.rsi, r.rdi, g.mem.rd::<u16>(0xa000)),
        (0x2_0102, 0x3_a002, 0xbeef)
    );
    // call, ret near: two bytes; o32 call, ret near: four
    for (code, sp) in [
        (&[0xe8u8, 0, 0, 0x58][..], 0x6000u64),
        (&[0x66, 0xe8, 0, 0, 0, 0, 0x66, 0x58], 0x6000),
    ] {
        let t = run(&g, false, code, |_| {});
        check!(done(&t, code.len()), "{t:x?}");
        let back = code.len() - if code.len() == 4 { 1 } else { 2 };
        let r = g.cpu.regs();
        eq!((r.rax, r.rsp), (CODE + back as u64, sp - 10));
    }
    // ENTER and LEAVE, PUSHA and POPA
    let code = [0xc8, 4, 0, 0, 0x60, 0x61, 0xc9];
    let t = run(&g, false, &code, |r| (r.rbp, r.rdx) = (0x5555_1111, 0x99));
    check!(done(&t, code.len()), "{t:x?}");
    let r = g.cpu.regs();
    eq!((r.rbp & 0xffff, r.rdx, r.rsp), (0x1111, 0x99, 0x6000 - 10));
}

fn interrupts() {
    sys::needs_int_n();
    let g = guest();
    // Vectors from 80h on have trap gates, which leave IF alone.
    for (code, vector, left) in [
        (&[0xcdu8, 0x80][..], 0x80, 0x200),
        (&[0xcd, 0x70], 0x70, 0),
        (&[0xcc], 3, 0),
    ] {
        let t = run(&g, false, code, |_| {});
        let ip = CODE as u16 + code.len() as u16;
        eq!(
            (t.vector, &t.frame[..3]),
            (vector, &[ip, CODE16_SEL, 0x202][..])
        );
        let r = g.cpu.regs();
        eq!((r.rsp, r.rflags & 0x200), (0x6000 - 10, left), "{vector:x}");
    }
    // An error code of 16 bits.
    let t = run(&g, false, &[0x8e, 0xd8], |r| r.rax = 0x1234);
    eq!((t.vector, t.error, t.frame[0]), (13, 0x1234, CODE as u16));
    eq!(g.cpu.regs().rsp, 0x6000 - 10);
    // One from outside, and back by IRET to the next instruction.
    g.mem.write(STUBS as usize + 16 * 0x21, &[0x43, 0xcf]);
    let t = run(&g, false, &[0x90, 0x40], |_| {
        eq!(g.cpu.interrupt(0x21), Ok(0))
    });
    check!(done(&t, 2), "{t:x?}");
    let r = g.cpu.regs();
    eq!(
        (r.rax, r.rbx, r.rsp, t.frame[2] & 0x200),
        (1, 1, 0x6000 - 10, 0x200)
    );
}

fn from_ring_3() {
    sys::needs_int_n();
    let g = guest();
    let t = run(&g, true, &[0xcd, 0x80], |_| {});
    eq!(
        (t.vector, t.frame),
        (0x80, [CODE as u16 + 2, CODE3, 0x202, 0x6000, DATA3])
    );
    let s = g.cpu.sregs();
    eq!((s.cs.selector, s.ss.selector), (CODE16_SEL, DATA16_SEL));
    eq!(g.cpu.regs().rsp & 0xffff, u64::from(INNER) - 14);
    // A gate that is not for ring 3, and a privileged instruction.
    let t = run(&g, true, &[0xcd, 0x70], |_| {});
    eq!(
        (t.vector, t.error, t.frame[0]),
        (13, 0x70 * 8 + 2, CODE as u16)
    );
    let t = run(&g, true, &[0xf4], |_| {});
    eq!(
        (t.vector, t.error, t.frame[..2].to_vec()),
        (13, 0, vec![CODE as u16, CODE3])
    );
    // IRET from ring 0 to ring 3: push ss, sp, flags, cs, ip
    let end = CODE as u16 + 16;
    let words = [DATA3, 0x5000, 0x202, CODE3, end];
    let mut code: Vec<u8> = words
        .iter()
        .flat_map(|w| [vec![0x68], w.to_le_bytes().to_vec()].concat())
        .collect();
    code.push(0xcf);
    let t = run(&g, false, &code, |_| {});
    eq!(
        (t.vector, t.frame),
        (6, [end, CODE3, 0x202 | t.frame[2] & 0x54, 0x5000, DATA3])
    );
}

/// CALL through the gate from ring 3: two words come along, and RETF takes them from both stacks.
fn call_gate() {
    let g = guest();
    // mov bp,sp; ud2 (seen, and gone on behind it); retf 4
    g.mem.write(TARGET as usize, &[0x0f, 0x0b, 0xca, 4, 0]);
    let code = [
        0x68,
        0x11,
        0x11,
        0x68,
        0x22,
        0x22,
        0x9a,
        0xef,
        0xbe,
        GATE16 as u8,
        0,
    ];
    let t = run(&g, true, &code, |_| {});
    eq!((t.vector, t.frame[0], t.frame[1]), (6, TARGET, CODE16_SEL));
    let r = g.cpu.regs();
    let at = (r.rsp as usize & 0xffff) + 10;
    let pushed: [u16; 6] = std::array::from_fn(|n| g.mem.rd(at + 2 * n));
    eq!(
        pushed,
        [CODE as u16 + 11, CODE3, 0x2222, 0x1111, 0x6000 - 4, DATA3]
    );
    g.cpu.set_regs(&kvm_regs {
        rip: u64::from(TARGET) + 2,
        rsp: at as u64,
        ..r
    });
    let t = trap(&g);
    check!(done(&t, code.len()), "{t:x?}");
    eq!((t.frame[1], t.frame[3], t.frame[4]), (CODE3, 0x6000, DATA3));
    // JMP does not change the ring; ring 0 calls with nothing copied.
    let t = run(&g, true, &[0xea, 0, 0, GATE16 as u8, 0], |_| {});
    eq!((t.vector, t.error), (13, CODE16_SEL));
    let t = run(&g, false, &[0x9a, 0, 0, GATE16 as u8, 0], |_| {});
    eq!((t.vector, t.frame[0]), (6, TARGET));
    eq!(g.cpu.regs().rsp, 0x6000 - 4 - 10);
}

/// 16-bit code calls 32-bit code through a 32-bit gate, which pushes 32-bit words on the 16-bit stack, and comes back.
fn to_32() {
    let g = guest();
    // mov eax,12345678h; retf
    g.mem
        .write(TARGET as usize, &[0xb8, 0x78, 0x56, 0x34, 0x12, 0xcb]);
    let code = [0x9a, 0, 0, GATE32 as u8, 0];
    let t = run(&g, false, &code, |_| {});
    check!(done(&t, code.len()), "{t:x?}");
    eq!(
        (g.cpu.regs().rax, g.cpu.regs().rsp),
        (0x1234_5678, 0x6000 - 10)
    );
    // The same without a gate: o32 call far.
    let code = [0x66, 0x9a, TARGET as u8, 0x90, 0, 0, CODE_SEL as u8, 0];
    let t = run(&g, false, &code, |_| {});
    check!(done(&t, code.len()), "{t:x?}");
}

/// An access through FS with this selector: the code, and which exception there is.
fn access(
    g: &Guest,
    emulated: bool,
    selector: u16,
    code: &[u8],
    change: impl FnOnce(&mut kvm_regs),
    want: Option<(u16, u16)>,
) {
    // mov fs,ax; then the instruction itself, behind the prefix or not
    let prefix: &[u8] = if emulated { PREFIX } else { &[0x90; 5] };
    let all = [&[0x8e, 0xe0], prefix, code].concat();
    let t = run(g, false, &all, |r| {
        r.rax = selector.into();
        change(r);
    });
    let at = CODE as u16 + 7;
    match want {
        None => check!(
            done(&t, all.len()),
            "{selector:x} {code:02x?} emulated {emulated}: {t:x?}"
        ),
        Some((vector, error)) => eq!(
            (t.vector, t.error, t.frame[0]),
            (vector, error, at),
            "{selector:x} {code:02x?} emulated {emulated}"
        ),
    }
}

fn limits(e: bool) {
    let g = guest();
    let gp = Some((13, 0));
    // mov al,fs:[n]; mov fs:[n],al; mov ax,fs:[n]; mov fs:[n],eax; push word fs:[n]; fs lodsw
    for (at, bytes, want) in [
        (0xfeu16, 1, None),
        (0xff, 1, None),
        (0x100, 1, gp),
        (0xfe, 2, None),
        (0xff, 2, gp),
        (0xfc, 4, None),
        (0xfd, 4, gp),
        (0xffff, 2, gp),
    ] {
        let [lo, hi] = at.to_le_bytes();
        let size: &[u8] = if bytes == 4 { &[0x66] } else { &[] };
        let wide = u8::from(bytes > 1);
        for op in [0xa0, 0xa2] {
            let code = [&[0x64], size, &[op | wide, lo, hi]].concat();
            access(&g, e, SMALL, &code, |_| {}, want);
        }
        if bytes == 2 {
            access(&g, e, SMALL, &[0x64, 0xff, 0x36, lo, hi], |_| {}, want);
            access(&g, e, SMALL, &[0x64, 0xad], |r| r.rsi = at.into(), want);
        }
    }
    // Code that goes beyond its own limit: a near jump is refused where it is.
    let prefix: &[u8] = if e { PREFIX } else { &[0x90; 5] };
    let t = run(
        &g,
        false,
        &[prefix, &[0x66, 0xe9, 0, 0, 1, 0]].concat(),
        |_| {},
    );
    eq!(
        (t.vector, t.error, t.frame[0]),
        (13, 0, CODE as u16 + 5),
        "emulated {e}"
    );
}

fn expand_down(e: bool) {
    let g = guest();
    let gp = Some((13, 0));
    // a32 mov dl,fs:[ebx]; mov fs:[ebx],dx
    let cases = [
        (DOWN16, 0x7fffu64, gp, gp),
        (DOWN16, 0x8000, None, None),
        (DOWN16, 0xffff, None, gp),
        (DOWN16, 0x1_0000, gp, gp),
        (DOWN32, 0x7fff, gp, gp),
        (DOWN32, 0x8000, None, None),
        (DOWN32, 0xffff, None, None),
        (DOWN32, 0x1_2345, None, None),
        (DOWN32, 0xffff_ffff, Some((0, 0)), gp),
        (NOTHING, 0, gp, gp),
        (NOTHING, 0xffff, gp, gp),
    ];
    for (selector, at, byte, word) in cases {
        if byte != Some((0, 0)) {
            access(
                &g,
                e,
                selector,
                &[0x67, 0x64, 0x8a, 0x13],
                |r| r.rbx = at,
                byte,
            );
        }
        access(
            &g,
            e,
            selector,
            &[0x67, 0x64, 0x89, 0x13],
            |r| r.rbx = at,
            word,
        );
    }
    // As a stack: mov ss,ax; push ax. Below the limit there is no room, not even for what the fault pushes: a fault of ring 3 shows it.
    for (sp, fails) in [
        (0x8002u64, false),
        (0x8001, true),
        (0x8000, true),
        (0, false),
    ] {
        let prefix: &[u8] = if e { PREFIX } else { &[0x90; 5] };
        g.mem
            .wr(GDT as usize + usize::from(DOWN16), 0x0000_f700_0000_7fffu64);
        let code = [&[0x8e, 0xd0][..], prefix, &[0x50]].concat();
        let t = run(&g, true, &code, |r| {
            (r.rax, r.rsp) = (u64::from(DOWN16 | 3), sp)
        });
        g.mem
            .wr(GDT as usize + usize::from(DOWN16), 0x0000_9700_0000_7fffu64);
        if fails {
            eq!(
                (t.vector, t.error, t.frame[0]),
                (12, 0, CODE as u16 + 7),
                "{sp:x} emulated {e}"
            );
        } else {
            check!(done(&t, code.len()), "{sp:x} emulated {e}: {t:x?}");
        }
    }
}

/// Checked by the CPU.
fn by_cpu(test: fn(bool)) {
    if on_tcg() {
        harness::skip("QEMU's TCG does not check segment limits");
    }
    test(false);
}

/// Checked by the emulator.
fn emulated() {
    let _forced = Forced::on();
    limits(true);
    expand_down(true);
}

/// From real mode in the way of the 286, by LMSW, and back in that of the 386.
fn entered() {
    let g = Guest::new(Mode::Real);
    for (n, d) in [0, 0x0000_9b00_0000_ffffu64, 0x0000_9302_0000_ffff]
        .into_iter()
        .enumerate()
    {
        g.mem.wr(GDT as usize + 8 * n, d);
    }
    g.mem.wr(0x600, 0x17u16);
    g.mem.wr(0x602, GDT as u32);
    g.mem.wr(0x2_0010, 0x5678u16);
    g.mem.wr(0x1234, 0x9abcu16);
    // lgdt [600h]; mov ax,1; lmsw ax; jmp 8:8010h
    g.mem.write(
        CODE as usize,
        &[
            0x0f, 0x01, 0x16, 0, 6, 0xb8, 1, 0, 0x0f, 0x01, 0xf0, 0xea, 0x10, 0x80, 8, 0,
        ],
    );
    // At 8010h: mov ax,10h; mov ds,ax; mov ax,[10h]; out; mov eax,cr0; dec ax; mov cr0,eax; jmp 0:8030h
    g.mem.write(
        0x8010,
        &[
            0xb8, 0x10, 0, 0x8e, 0xd8, 0xa1, 0x10, 0, 0xe7, PORT_VALUE, 0x0f, 0x20, 0xc0, 0x48,
            0x0f, 0x22, 0xc0, 0xea, 0x30, 0x80, 0, 0,
        ],
    );
    // At 8030h: mov ax,[10h] (the base of DS is still there); out; xor ax,ax; mov ds,ax; mov ax,[1234h]; out; hlt
    g.mem.write(
        0x8030,
        &[
            0xa1, 0x10, 0, 0xe7, PORT_VALUE, 0x31, 0xc0, 0x8e, 0xd8, 0xa1, 0x34, 0x12, 0xe7,
            PORT_VALUE, 0xf4,
        ],
    );
    eq!(g.values(), [0x5678, 0x5678, 0x9abc]);
}

/// 16-bit code under a 64-bit kernel: in compatibility mode, with 64-bit gates, and a far jump to 64-bit code.
fn compatibility() {
    sys::needs_int_n();
    let g = Guest::new(Mode::Long);
    let mut s = g.cpu.sregs();
    for (d, selector, type_) in [
        (&mut s.cs, CODE16_SEL, 11),
        (&mut s.ss, DATA16_SEL, 3),
        (&mut s.ds, DATA16_SEL, 3),
    ] {
        *d = kvm_segment {
            selector,
            type_,
            limit: 0xffff,
            db: 0,
            g: 0,
            l: 0,
            ..data_seg()
        };
    }
    g.cpu.set_sregs(&s);
    let mut r = g.cpu.regs();
    (r.rsp, r.rbx) = (0x6000, 0x1_0002);
    g.cpu.set_regs(&r);
    g.mem.wr(0x0004, 0x1111u16);
    // mov ax,[bx+2]; push ax; out; int 80h
    g.mem.write(
        CODE as usize,
        &[0x8b, 0x47, 2, 0x50, 0xe7, PORT_VALUE, 0xcd, 0x80],
    );
    let mut seen = Vec::new();
    let exit = g.run_values(&mut seen);
    check!(
        matches!(exit, crate::kvm::Exit::Io { port, .. } if port == u16::from(PORT_TRAP)),
        "{exit:x?}"
    );
    eq!(seen, [0x1111]);
    let t = g.trap();
    eq!((t.vector, t.ip), (0x80, CODE + 8));
    let top = g.cpu.regs().rsp as usize;
    eq!(top & 15, 8, "seven words on an aligned stack");
    eq!(g.mem.rd::<u64>(top + 24), u64::from(CODE16_SEL));
    eq!(g.mem.rd::<u64>(top + 40), 0x5ffe, "ESP");
    // jmp far to 64-bit code: mov rax,imm64; out
    g.cpu.set_sregs(&s);
    r.rip = CODE;
    g.cpu.set_regs(&r);
    g.mem
        .write(CODE as usize, &[0xea, 0, 0x90, CODE64_SEL as u8, 0]);
    g.mem
        .write(0x9000, &[0x48, 0xb8, 8, 7, 6, 5, 4, 3, 2, 1, 0xf4]);
    g.expect(&crate::kvm::Exit::Hlt);
    eq!(g.cpu.regs().rax, 0x0102_0304_0506_0708);
}
