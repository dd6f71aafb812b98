// SPDX-License-Identifier: GPL-2.0
//! Far transfers between privilege levels: CALL, JMP and RET far, INT n and IRET, directly and through gates (Intel SDM volume 2, the
//! pages of these instructions; volume 3, "Privilege Level Checking When Transferring Program Control Between Code Segments").

use super::privilege_where::{Ended, Ring, Where};
use crate::eq;
use crate::guest::*;
use crate::harness::Test;
use crate::sys;

pub const TESTS: &[Test] = &[
    Test::new("micro/sensitive_far_jmp", far_jmp),
    Test::new("micro/sensitive_call_gate", call_gate),
    Test::new("micro/sensitive_far_ret", far_ret),
    Test::new("micro/sensitive_int_n", int_n),
    Test::new("micro/sensitive_iret", iret),
];

/// Where the call gates lead.
const TARGET: u64 = 0x9000;

/// A far pointer at DATA + 16: a 32-bit offset and a selector.
fn pointer(r: &Ring, offset: u64, selector: u16) {
    r.g.mem.wr(DATA as usize + 16, offset as u32);
    r.g.mem.wr(DATA as usize + 20, selector);
}

/// Executes CALL or JMP (`n` 3 or 5) through that pointer; a transfer to `offset` ends at a UD2 there.
fn through(r: &Ring, w: &Where, n: u8, offset: u64, selector: u16) -> Ended {
    // [BX], [EBX] or [RBX], 16 bytes on.
    let code = [0xff, 0x40 | w.mem(n), 16];
    r.run(w, &code, |_| pointer(r, offset, selector))
}

/// The selector that the last trap's frame has for CS.
fn trapped_cs(r: &Ring) -> u16 {
    let word = if r.bits64() { 8 } else { 4 };
    r.g.mem.rd(r.g.cpu.regs().rsp as usize + 3 * word)
}

fn far_jmp() {
    for r in Ring::all() {
        for w in r.wheres().into_iter().filter(|w| !w.vm86 && !w.umip) {
            let end = CODE + 3;
            let (own, conforming) = if r.bits64() {
                (w.cs(), 0xb8)
            } else {
                (w.cs(), 0xb0)
            };
            eq!(through(&r, &w, 5, end, own), Ended::Done, "{w:?} own");
            eq!(trapped_cs(&r), own, "{w:?}");
            // Conforming code is executed at the level of whoever comes.
            let got = through(&r, &w, 5, end, conforming);
            eq!(got, Ended::Done, "{w:?} conforming");
            eq!(trapped_cs(&r), conforming | w.cpl() as u16, "{w:?}");
            eq!(u64::from(r.g.cpu.sregs().cs.selector & 3), 0, "the stub's");
            // The other ring's code, data, nothing, and what is behind the table.
            let other = match (r.bits64(), w.ring3) {
                (true, true) => CODE64_SEL,
                (true, false) => 0x53,
                (false, true) => CODE_SEL,
                (false, false) => 0x43,
            };
            for (selector, error) in [(other, other & !3), (0x4b, 0x48), (0, 0), (0x1f8, 0x1f8)] {
                let got = through(&r, &w, 5, end, selector);
                eq!(got, Ended::Trap(13, error.into()), "{w:?} {selector:x}");
            }
        }
    }
}

fn call_gate() {
    for r in Ring::all() {
        for w in r.wheres().into_iter().filter(|w| !w.vm86 && !w.umip) {
            r.g.mem.write(TARGET as usize, &[0x0f, 0x0b]);
            let code = u32::from(if r.bits64() { CODE64_SEL } else { CODE_SEL });
            // The offset in the pointer means nothing.
            let got = through(&r, &w, 3, 0xdead_beef, 0x93);
            eq!(got, Ended::TrapAt(6, 0, TARGET - CODE), "{w:?}");
            eq!(
                u32::from(trapped_cs(&r)),
                code,
                "{w:?} at the level of the gate's target"
            );
            frame_of_call(&r, &w);
            // A gate of ring 0's own.
            let got = through(&r, &w, 3, 0, 0xa0 | w.cpl() as u16);
            let want = if w.ring3 {
                Ended::Trap(13, 0xa0)
            } else {
                Ended::TrapAt(6, 0, TARGET - CODE)
            };
            eq!(got, want, "{w:?} a gate of DPL 0");
            // JMP does not change the level.
            let got = through(&r, &w, 5, 0, 0x93);
            let want = if w.ring3 {
                Ended::Trap(13, code)
            } else {
                Ended::TrapAt(6, 0, TARGET - CODE)
            };
            eq!(got, want, "{w:?} JMP through a gate");
        }
    }
}

/// What a far CALL through the gate pushed: from ring 3, on the stack of ring 0 and with the old stack above it.
fn frame_of_call(r: &Ring, w: &Where) {
    let m = &r.g.mem;
    let top = r.g.cpu.regs().rsp as usize;
    let (ip, cs, sp, ss) = if r.bits64() {
        let at = m.rd::<u64>(top + 5 * 8) as usize;
        let word = |n: usize| m.rd::<u64>(at + 8 * n);
        (word(0), word(1), word(2), word(3))
    } else {
        let word = |n: usize| u64::from(m.rd::<u32>(top + 4 * (5 + n)));
        (word(0), word(1), word(2), word(3))
    };
    eq!((ip, cs & 0xffff), (CODE + 3, w.cs().into()), "{w:?}");
    if w.ring3 {
        eq!((sp, ss & 0xffff), (DATA + 0x1000, w.ss().into()), "{w:?}");
    }
}

/// PUSH of these words (sign-extended 32-bit immediates), then `op`; gives the code and the offset of `op`.
pub fn pushes(words: &[u32], op: &[u8]) -> (Vec<u8>, u64) {
    let mut code = Vec::new();
    for w in words {
        code.push(0x68);
        code.extend(w.to_le_bytes());
    }
    let at = code.len() as u64;
    code.extend(op);
    (code, at)
}

fn far_ret() {
    for r in Ring::all() {
        for w in r.wheres().into_iter().filter(|w| !w.vm86 && !w.umip) {
            let op: &[u8] = if r.bits64() { &[0x48, 0xcb] } else { &[0xcb] };
            let (user, kernel) = if r.bits64() {
                (0x53u32, u32::from(CODE64_SEL))
            } else {
                (0x43, CODE_SEL.into())
            };
            let end = |words: usize| CODE as u32 + 5 * words as u32 + op.len() as u32;
            // To the same ring.
            let (code, _) = pushes(&[w.cs().into(), end(2)], op);
            eq!(r.run(&w, &code, |_| {}), Ended::Done, "{w:?}");
            // To ring 3, with its stack; in ring 3 that is the same ring, and the stack stays.
            let stack = DATA as u32 + 0x800;
            let (code, _) = pushes(&[0x4b, stack, user, end(4)], op);
            eq!(r.run(&w, &code, |_| {}), Ended::Done, "{w:?} to ring 3");
            eq!(u32::from(trapped_cs(&r)), user, "{w:?}");
            // To ring 0: not from ring 3.
            let (code, at) = pushes(&[kernel, end(2)], op);
            let want = if w.ring3 {
                Ended::TrapAt(13, kernel, at)
            } else {
                Ended::Done
            };
            eq!(r.run(&w, &code, |_| {}), want, "{w:?} to ring 0");
            // To nowhere.
            let (code, at) = pushes(&[0, end(2)], op);
            eq!(
                r.run(&w, &code, |_| {}),
                Ended::TrapAt(13, 0, at),
                "{w:?} null"
            );
        }
    }
}

fn int_n() {
    sys::needs_int_n();
    for r in Ring::all() {
        // Vector 0x80 is ring 3's too, 0x81 is not.
        let size = if r.bits64() { 16 } else { 8 };
        r.g.mem.wr(IDT as usize + 0x80 * size + 5, 0xeeu8);
        for w in r.wheres().into_iter().filter(|w| !w.umip) {
            let monitored = w.vm86 && w.iopl < 3;
            for (vector, dpl) in [(0x80u8, 3), (0x81, 0)] {
                let got = r.run(&w, &[0xcd, vector], |_| {});
                let want = if monitored {
                    Ended::Trap(13, 0)
                } else if w.cpl() > dpl {
                    Ended::Trap(13, u32::from(vector) * 8 + 2)
                } else {
                    Ended::TrapAt(vector, 0, 2)
                };
                eq!(got, want, "{w:?} int {vector:x}");
                if matches!(want, Ended::TrapAt(..)) {
                    // What is pushed says where it came from.
                    let flags = r.g.trap().flags;
                    eq!(flags >> 17 & 1, u64::from(w.vm86), "{w:?}");
                    eq!(trapped_cs(&r), w.cs(), "{w:?}");
                }
            }
            // INT3 is not sensitive to IOPL, but to the gate.
            let got = r.run(&w, &[0xcc], |_| {});
            let want = if w.outer() {
                Ended::Trap(13, 3 * 8 + 2)
            } else {
                Ended::TrapAt(3, 0, 1)
            };
            eq!(got, want, "{w:?} int3");
        }
    }
}

fn iret() {
    for r in Ring::all() {
        for w in r.wheres().into_iter().filter(|w| !w.umip) {
            if w.vm86 {
                // 16-bit: flags with another IOPL, CS, IP.
                let code = [0x68, 0x02, 0x00, 0x6a, 0, 0x68, 0x09, 0x80, 0xcf];
                let got = r.run(&w, &code, |_| {});
                if w.iopl < 3 {
                    eq!(got, Ended::TrapAt(13, 0, 8), "{w:?}");
                } else {
                    eq!(got, Ended::Done, "{w:?}");
                    let flags = r.g.trap().flags;
                    eq!((flags & 0x200, flags >> 12 & 3), (0, 3), "{w:?}");
                }
                continue;
            }
            let op: &[u8] = if r.bits64() { &[0x48, 0xcf] } else { &[0xcf] };
            let (user, kernel) = if r.bits64() {
                (0x53u32, u32::from(CODE64_SEL))
            } else {
                (0x43, CODE_SEL.into())
            };
            let end = CODE as u32 + 5 * 5 + op.len() as u32;
            let stack = DATA as u32 + 0x800;
            // To ring 3; the image has IF clear and another IOPL.
            let image = 2 | (3 - w.iopl as u32) << 12;
            let (code, _) = pushes(&[0x4b, stack, image, user, end], op);
            eq!(r.run(&w, &code, |_| {}), Ended::Done, "{w:?}");
            eq!(u32::from(trapped_cs(&r)), user, "{w:?}");
            let flags = r.g.trap().flags;
            let may = w.cpl() <= w.iopl;
            eq!(flags & 0x200, if may { 0 } else { 0x200 }, "IF, {w:?}");
            let iopl = if w.ring3 { w.iopl } else { 3 - w.iopl };
            eq!(flags >> 12 & 3, iopl, "IOPL, {w:?}");
            // To ring 0.
            let ss = if w.ring3 { 0x4b } else { DATA_SEL.into() };
            let (code, at) = pushes(&[ss, stack, 2, kernel, end], op);
            let want = if w.ring3 {
                Ended::TrapAt(13, kernel, at)
            } else {
                Ended::Done
            };
            eq!(r.run(&w, &code, |_| {}), want, "{w:?} to ring 0");
        }
    }
}
