// SPDX-License-Identifier: GPL-2.0
//! Comparison mode: after `AB=test` one line for each call, `AB|call(arguments)#n|result|output`, to be
//! compared between two implementations by `abdiff`. What differs from run to run by its nature is masked here, with the reason.

use crate::harness;
use crate::kvm;
use crate::sys::Res;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write;

/// What has been recorded of one call: how often it was made, and what it gave the last time.
type Past = HashMap<String, (u32, String)>;

thread_local! {
    static PAST: RefCell<Past> = RefCell::new(HashMap::new());
    static CALLS: Cell<u32> = const { Cell::new(0) };
    static MUTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` without recording: what every test does to set up is recorded by tests of its own.
pub fn muted<T>(f: impl FnOnce() -> T) -> T {
    let before = MUTED.replace(true);
    let v = f();
    MUTED.set(before);
    v
}

/// Call names whose result is a measurement: (name, reason).
const MASK_RESULT: &[(&str, &str)] = &[
    (
        "GET_TSC_KHZ",
        "the emulator's TSC is calibrated anew at each boot",
    ),
    ("CREATE_VM", "a descriptor number"),
    ("CREATE_VCPU", "a descriptor number"),
];

/// MSRs whose value is the time: (index in hex, reason).
const MASK_MSR: &[(&str, &str)] = &[("10", "the time-stamp counter")];

/// A number as it is recorded: an address depends on where memory lies, so only its kind is.
pub fn num(arg: u64) -> String {
    match arg {
        a if a == crate::sys::bad_addr() => "BAD".to_owned(),
        a if (0x5000_0000_0000..0x7fff_ffff_f000).contains(&a) => "PTR".to_owned(),
        a => format!("{a:x}"),
    }
}

fn result(name: &str, r: Res) -> String {
    match r {
        Err(e) => format!("errno {e}"),
        Ok(v) if v > 0 && MASK_RESULT.iter().any(|(n, _)| *n == name) => "positive".to_owned(),
        Ok(v) => format!("{v:x}"),
    }
}

/// One line; `label` tells calls of a test apart, and a count tells apart those with the same label. A call that gives
/// the same as the time before is left out: the serial line of a VM is slow.
pub fn line(label: &str, args: &str, res: &str, out: &str) {
    if !harness::recording() || MUTED.get() {
        return;
    }
    if CALLS.replace(CALLS.get() + 1) == 0 {
        harness::say(&format!("AB={}", harness::name()));
    }
    let value = format!("{res}|{out}");
    PAST.with_borrow_mut(|p| {
        let (n, last) = p.entry(format!("{label}({args})")).or_default();
        *n += 1;
        if *last != value {
            harness::say(&format!("AB|{label}({args})#{n}|{value}"));
            *last = value;
        }
    });
}

/// Ends the record of a test with the number of its calls, so that one that was left out can be told from one not made,
/// and with whether it went well, since a failed test is no reference.
pub fn end(good: bool) {
    if harness::recording() && CALLS.get() > 0 {
        harness::say(&format!("AB|calls|{}|", CALLS.get()));
        harness::say(&format!(
            "AB|outcome|{}|",
            if good { "good" } else { "failed" }
        ));
    }
}

/// A call with printable output.
pub fn call(name: &str, args: &str, r: Res, out: &[u8]) {
    if !harness::recording() {
        return;
    }
    let masked = MASK_MSR
        .iter()
        .any(|(m, _)| name == "GET_MSRS" && *m == args);
    let out = if masked {
        "masked".into()
    } else {
        String::from_utf8_lossy(out).into_owned()
    };
    line(name, args, &result(name, r), &out);
}

fn hex(b: &[u8]) -> String {
    let mut s = String::with_capacity(2 * b.len());
    for x in b {
        let _ = write!(s, "{x:02x}");
    }
    s
}

fn words(out: &[u8], per_line: usize, mut emit: impl FnMut(usize, String)) {
    for (i, c) in out.chunks(per_line).enumerate() {
        emit(i, hex(c));
    }
}

/// A call with a struct. Large outputs are split in lines of 32 bytes, lists in lines of one entry.
pub fn call_struct(name: &str, nr: u64, r: Res, before: &[u8], out: &[u8]) {
    // What was given is not part of the label: it may derive from an earlier answer. Small arguments are numbers.
    let given = match before.first_chunk::<4>() {
        Some(b) if out.is_empty() && before.len() == 4 => format!("{:x}", u32::from_le_bytes(*b)),
        _ => String::new(),
    };
    line(name, &given, &result(name, r), "");
    if r.is_err() {
        if !out.is_empty() && out != before {
            let same = |a: &[u8], b: &[u8]| a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(0);
            line(
                name,
                "changed although refused",
                &format!("from byte {}", same(before, out)),
                "",
            );
        }
        return;
    }
    match nr {
        kvm::GET_CPUID2 | kvm::GET_SUPPORTED_CPUID | kvm::GET_EMULATED_CPUID => {
            cpuid_lines(name, out)
        }
        kvm::GET_MSRS => {}
        kvm::GET_SREGS => sregs_lines(out),
        // There CR2 is an address of the host.
        kvm::GET_SREGS2 if crate::sys::on_bochs_svm() => {
            let mut known = out.to_vec();
            if let Some(cr2) = known.get_mut(232..240) {
                cr2.fill(0);
            }
            whole(name, &known);
        }
        _ => whole(name, out),
    }
}

/// All bytes of a struct.
fn whole(name: &str, out: &[u8]) {
    words(out, 32, |i, h| {
        line(&format!("{name}+{:03x}", i * 32), "", "0", &h)
    })
}

fn cpuid_lines(name: &str, out: &[u8]) {
    let u32_at = |o: usize| {
        out.get(o..o + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    };
    let n = u32_at(0) as usize;
    line(&format!("{name} nent"), "", &format!("{n}"), "");
    for i in 0..n {
        let e = 8 + 40 * i;
        let key = format!("{name} {:08x}.{:x}", u32_at(e), u32_at(e + 4));
        line(&key, "flags", &format!("{:x}", u32_at(e + 8)), "");
        for (k, r) in ["eax", "ebx", "ecx", "edx"].iter().enumerate() {
            line(&key, r, &format!("{:08x}", u32_at(e + 12 + 4 * k)), "");
        }
        if out
            .get(e + 28..e + 40)
            .is_some_and(|p| p.iter().any(|b| *b != 0))
        {
            line(&key, "padding", &hex(&out[e + 28..e + 40]), "");
        }
    }
}

/// One line for each register of `struct kvm_sregs`.
fn sregs_lines(out: &[u8]) {
    const SEGMENTS: [&str; 8] = ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"];
    const REST: [&str; 11] = [
        "cr0",
        "cr2",
        "cr3",
        "cr4",
        "cr8",
        "efer",
        "apic_base",
        "pending0",
        "pending1",
        "pending2",
        "pending3",
    ];
    let at = |o: usize, n: usize| {
        let b = out.get(o..o + n).unwrap_or(&[]);
        b.iter().rev().fold(0u64, |v, x| v << 8 | u64::from(*x))
    };
    for (i, name) in SEGMENTS.iter().enumerate() {
        let o = 24 * i;
        let hidden: Vec<u64> = (14..24).map(|k| at(o + k, 1)).collect();
        let v = format!(
            "{:x} {:x} {:x} {hidden:x?}",
            at(o + 12, 2),
            at(o, 8),
            at(o + 8, 4)
        );
        line("GET_SREGS", name, "0", &v);
    }
    for (name, o) in [("gdt", 192), ("idt", 208)] {
        line(
            "GET_SREGS",
            name,
            "0",
            &format!("{:x} {:x} {:x}", at(o, 8), at(o + 8, 2), at(o + 10, 6)),
        );
    }
    for (i, name) in REST.iter().enumerate() {
        // There CR2 is an address of the host.
        if *name == "cr2" && crate::sys::on_bochs_svm() {
            continue;
        }
        line("GET_SREGS", name, "0", &format!("{:x}", at(224 + 8 * i, 8)));
    }
}
