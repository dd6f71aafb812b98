// SPDX-License-Identifier: GPL-2.0
//! Tracepoints: that their fields are those which tools expect, and that each access of a guest is told, once. And the counters in
//! debugfs.

use crate::guest::{inp, out, Guest, Mode, DATA, MMIO};
use crate::harness::{skip, Test};
use crate::kvm::Exit;
use crate::sys;
use crate::{check, eq};
use iced_x86::code_asm::*;
use std::fs;
use std::path::Path;

pub const TESTS: &[Test] = &[
    Test::new("trace/fields", fields).no_ab(),
    Test::new("trace/accesses", accesses).no_ab(),
    Test::new("trace/entries_and_exits", entries_and_exits).no_ab(),
    Test::new("trace/faults", faults).no_ab(),
    Test::new("trace/counters", counters).no_ab(),
];

const TRACING: &str = "/sys/kernel/tracing";

const EVENTS: &[(&str, &[&str])] = &[
    (
        "kvm_entry",
        &[
            "unsigned int vcpu_id",
            "unsigned long rip",
            "bool immediate_exit",
            "u32 intr_info",
            "u32 error_code",
        ],
    ),
    (
        "kvm_exit",
        &[
            "unsigned int exit_reason",
            "unsigned long guest_rip",
            "u32 isa",
            "u64 info1",
            "u64 info2",
            "u32 intr_info",
            "u32 error_code",
            "unsigned int vcpu_id",
            "u64 requests",
        ],
    ),
    (
        "kvm_pio",
        &[
            "unsigned int rw",
            "unsigned int port",
            "unsigned int size",
            "unsigned int count",
            "unsigned int val",
        ],
    ),
    ("kvm_mmio", &["u32 type", "u32 len", "u64 gpa", "u64 val"]),
    (
        "kvm_msr",
        &["unsigned write", "u32 ecx", "u64 data", "u8 exception"],
    ),
    (
        "kvm_page_fault",
        &[
            "unsigned int vcpu_id",
            "unsigned long guest_rip",
            "u64 fault_address",
            "u64 error_code",
        ],
    ),
];

fn fields() {
    if !Path::new(TRACING).exists() {
        skip("there is no tracefs");
    }
    for (event, want) in EVENTS {
        let path = format!("{TRACING}/events/kvm/{event}/format");
        let text = crate::must!(fs::read_to_string(&path).map_err(|e| format!("{path}: {e}")));
        let found: Vec<String> = text
            .lines()
            .filter_map(|l| l.trim().strip_prefix("field:")?.split(';').next())
            .filter(|f| !f.contains(" common_"))
            // The same type by either of its names.
            .map(|f| f.replace("unsigned int write", "unsigned write"))
            .collect();
        eq!(found, *want, "{event}");
    }
}

/// The events of this process, from here to the call of [`Trace::lines`].
struct Trace;

impl Trace {
    fn start(events: &[&str]) -> Self {
        if !Path::new(TRACING).exists() {
            skip("there is no tracefs");
        }
        let set = |file: &str, value: &str| {
            let path = format!("{TRACING}/{file}");
            crate::must!(fs::write(&path, value).map_err(|e| format!("{path}: {e}")));
        };
        set("tracing_on", "0");
        set("trace", "");
        set("set_event_pid", &sys::gettid().to_string());
        for event in events {
            set(&format!("events/kvm/{event}/enable"), "1");
        }
        set("tracing_on", "1");
        Self
    }

    /// What was told, each line from the name of its event on.
    fn lines(self) -> Vec<String> {
        let _ = fs::write(format!("{TRACING}/tracing_on"), "0");
        let text = fs::read_to_string(format!("{TRACING}/trace")).unwrap_or_default();
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .filter_map(|l| Some(l[l.find(": kvm_")? + 2..].trim_end().to_owned()))
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::write(format!("{TRACING}/events/kvm/enable"), "0");
        let _ = fs::write(format!("{TRACING}/set_event_pid"), "");
    }
}

fn accesses() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        a.mov(al, 0x12)?;
        a.out(0x80, al)?;
        a.in_(eax, 0x84)?;
        a.mov(ebx, MMIO as u32)?;
        a.mov(dword_ptr(rbx), 0x1234)?;
        a.mov(cx, word_ptr(rbx + 4))?;
        a.mov(ecx, 0x3b)?;
        a.mov(eax, 5)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 4)?;
        a.mov(edx, 0x88)?;
        a.rep().insb()?;
        // IA32_APIC_BASE with reserved bits.
        a.mov(ecx, 0x1b)?;
        a.mov(edx, 0xffff_ffffu32)?;
        a.wrmsr()?;
        a.hlt()
    });
    let trace = Trace::start(&["kvm_pio", "kvm_mmio", "kvm_msr"]);
    g.expect(&out(0x80, &[0x12]));
    g.expect(&inp(0x84, 4));
    g.cpu.answer(&[1, 2, 3, 4]);
    let write = g.cpu.run();
    check!(
        matches!(write, Exit::Mmio { write: true, .. }),
        "{write:x?}"
    );
    let read = g.cpu.run();
    check!(matches!(read, Exit::Mmio { write: false, .. }), "{read:x?}");
    g.cpu.answer(&[0xcd, 0xab]);
    let string = g.cpu.run();
    check!(
        matches!(
            string,
            Exit::Io {
                out: false,
                port: 0x88,
                count: 4,
                ..
            }
        ),
        "{string:x?}"
    );
    g.cpu.answer(&[7, 8, 9, 10]);
    eq!(g.run_to_trap().vector, 13);
    let lines = trace.lines();
    let want = [
        "kvm_pio: pio_write at 0x80 size 1 count 1 val 0x12",
        "kvm_pio: pio_read at 0x84 size 4 count 1 val 0x4030201",
        "kvm_mmio: mmio write len 4 gpa 0xd0000000 val 0x1234",
        "kvm_mmio: mmio unsatisfied-read len 2 gpa 0xd0000004 val 0x0",
        "kvm_mmio: mmio read len 2 gpa 0xd0000004 val 0xabcd",
        "kvm_msr: msr_write 3b = 0x5",
        "kvm_msr: msr_read 3b = 0x5",
        "kvm_pio: pio_read at 0x88 size 1 count 4 val 0x7 (...)",
        "kvm_msr: msr_write 1b = 0xffffffff00000005 (#GP)",
        // The stub of the #GP reports it.
        "kvm_pio: pio_write at 0xee size 1 count 1 val 0x5",
    ];
    eq!(lines, want);
}

fn entries_and_exits() {
    let g = Guest::new(Mode::Long);
    g.load(|a| {
        for _ in 0..5 {
            a.xor(eax, eax)?;
            a.cpuid()?;
        }
        a.hlt()
    });
    let trace = Trace::start(&["kvm_entry", "kvm_exit"]);
    g.expect(&Exit::Hlt);
    let lines = trace.lines();
    let count = |what: &str| lines.iter().filter(|l| l.contains(what)).count();
    eq!(count("reason cpuid") + count("reason CPUID"), 5);
    eq!(count("reason hlt") + count("reason HLT"), 1);
    eq!(
        count("kvm_entry: vcpu 0, rip 0x"),
        count("kvm_exit: vcpu 0 reason "),
        "{lines:#?}"
    );
    // The first CPUID is at CODE + 2, and each entry after one goes on behind it.
    eq!(count("rip 0x8002 info1"), 1);
    check!(count("kvm_entry: vcpu 0, rip 0x8004 ") >= 1, "{lines:#?}");
}

fn faults() {
    let g = Guest::new(Mode::Long);
    // Not in the large page that the code is in.
    let at = 0x30_0000u64;
    crate::must!(g.mem.advise(0, crate::guest::MEM, libc::MADV_NOHUGEPAGE));
    g.mem.fill(at as usize, 4096, 1);
    g.load(|a| {
        a.mov(byte_ptr(at), al)?;
        a.hlt()
    });
    let trace = Trace::start(&["kvm_page_fault"]);
    g.expect(&Exit::Hlt);
    let lines = trace.lines();
    let line = lines
        .iter()
        .find(|l| l.contains(&format!("address 0x{at:016x}")));
    check!(line.is_some(), "{lines:#?}");
    let error = line.and_then(|l| u64::from_str_radix(l.rsplit("0x").next()?, 16).ok());
    // As the CPU tells it. AMD: a write (bit 1), on the final address (bit 32) of an absent page (not bit 0). Intel: a write (bit 1) to
    // what permits nothing (bits 5:3), on the final address (bit 8) of a linear one (bit 7).
    let (bits, want) = if sys::on_amd() {
        (0x1_0000_0003, 0x1_0000_0002)
    } else {
        (0x1_0000_01ba, 0x182)
    };
    eq!(error.unwrap_or(0) & bits, want, "{lines:#?}");
}

const COUNTERS: &str = "/sys/kernel/debug/kvm";

fn counters() {
    if !Path::new(COUNTERS).exists() {
        skip("there is no debugfs");
    }
    let read = |dir: &str, name: &str| -> u64 {
        let path = format!("{dir}/{name}");
        let text = crate::must!(fs::read_to_string(&path).map_err(|e| format!("{path}: {e}")));
        crate::must!(text.trim().parse().map_err(|e| format!("{path}: {e}")))
    };
    let g = Guest::new(Mode::Long);
    let own = format!("{COUNTERS}/{}-{}", std::process::id(), g.vm.fd.0.raw());
    eq!(read(&own, "exits"), 0);
    g.load(|a| {
        for _ in 0..3 {
            a.out(0x80, al)?;
        }
        a.mov(ebx, MMIO as u32)?;
        a.mov(dword_ptr(rbx), 1)?;
        for _ in 0..5 {
            a.xor(eax, eax)?;
            a.cpuid()?;
        }
        a.hlt()
    });
    for _ in 0..3 {
        let _ = g.cpu.run();
    }
    check!(
        matches!(g.cpu.run(), Exit::Mmio { write: true, .. }),
        "a write"
    );
    g.expect(&Exit::Hlt);
    eq!(read(&own, "io_exits"), 3);
    eq!(read(&own, "mmio_exits"), 1);
    eq!(read(&own, "halt_exits"), 1);
    eq!(read(&own, "pf_emulate"), 1);
    check!(
        read(&own, "exits") >= 10,
        "three OUT, five CPUID, HLT, an access"
    );
    check!(read(&own, "pf_fixed") >= 1, "the code's page");
    check!(
        read(&own, "pf_taken") > read(&own, "pf_fixed"),
        "and a device"
    );
    eq!(read(&own, "fpu_reload"), 5);
    // Of all VMs together: this one is not the least of them.
    check!(read(COUNTERS, "exits") >= read(&own, "exits"), "the sum");
    let second = g.kvm.vm();
    let of_second = format!("{COUNTERS}/{}-{}", std::process::id(), second.fd.0.raw());
    eq!(read(&of_second, "exits"), 0);
    drop(second);
    check!(
        !Path::new(&of_second).exists(),
        "{of_second} goes with its VM"
    );
    drop(g);
    check!(!Path::new(&own).exists(), "{own} goes with its VM");
}
