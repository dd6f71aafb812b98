// SPDX-License-Identifier: GPL-2.0
//! Speculation control in the guest: SPEC_CTRL, which passes through once it is used and is switched with each exit; the commands;
//! IA32_ARCH_CAPABILITIES.

use crate::api::speculation::*;
use crate::guest::*;
use crate::harness::{self, Test};
use crate::kvm::*;
use crate::sys::{self, OwnedFd};
use crate::{check, eq};
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[
    Test::new("micro/spec_ctrl_round_trip", round_trip),
    Test::new("micro/spec_ctrl_reserved", reserved),
    Test::new("micro/spec_ctrl_own", own).no_ab(),
    Test::new("micro/spec_ctrl_preempted", preempted).no_ab(),
    Test::new("micro/speculation_hidden", hidden),
    Test::new("micro/speculation_commands", commands),
    Test::new("micro/arch_capabilities_read", arch_capabilities_read),
];

/// Where the guest has the values that it writes.
const VALUES: usize = DATA as usize;

/// A guest that writes `values` to SPEC_CTRL, one after the other. Behind each it exits and reports what it reads, twice.
fn writer(values: &[u64]) -> Guest {
    let g = Guest::new(Mode::Long);
    load_writer(&g, values);
    g
}

fn load_writer(g: &Guest, values: &[u64]) {
    for (i, v) in values.iter().enumerate() {
        g.mem.wr(VALUES + 8 * i, *v);
    }
    g.load(|a| {
        let mut top = a.create_label();
        a.mov(esi, VALUES as u32)?;
        a.mov(ebp, values.len() as u32)?;
        a.set_label(&mut top)?;
        a.mov(ecx, SPEC_CTRL)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(edx, dword_ptr(rsi + 4))?;
        a.wrmsr()?;
        // An exit that the kernel deals with, and one of user space.
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.mov(ecx, SPEC_CTRL)?;
        a.rdmsr()?;
        a.out(0xf0, eax)?;
        a.mov(ecx, SPEC_CTRL)?;
        a.rdmsr()?;
        a.out(0xf0, eax)?;
        a.add(rsi, 8)?;
        a.dec(ebp)?;
        a.jne(top)?;
        a.hlt()
    });
}

fn reported(cpu: &Vcpu) -> Option<u32> {
    match cpu.run() {
        Exit::Io {
            out: true,
            port: 0xf0,
            data,
            ..
        } => {
            let mut v = [0; 4];
            v.copy_from_slice(&data[..4]);
            Some(u32::from_le_bytes(v))
        }
        Exit::Hlt => None,
        e => panic!("{e:x?}"),
    }
}

fn round_trip() {
    let bits = needed(&Kvm::open());
    let values = [0, bits, bits & 1, 0, bits & 6, 0, bits & 4, bits];
    let g = writer(&values);
    for v in values {
        for _ in 0..2 {
            eq!(reported(&g.cpu), Some(v as u32), "as the guest reads it");
            eq!(g.cpu.msr(SPEC_CTRL), Some(v), "as user space reads it");
        }
    }
    eq!(reported(&g.cpu), None);
    // User space changes it while it passes through, and while it does not.
    for before in [0, bits] {
        let g = writer(&[before]);
        eq!(reported(&g.cpu), Some(before as u32));
        for v in [bits & 6, 0, bits] {
            check!(g.cpu.set_msr(SPEC_CTRL, v), "{v:x}");
            g.load(|a| {
                a.mov(ecx, SPEC_CTRL)?;
                a.rdmsr()?;
                a.out(0xf0, eax)?;
                a.hlt()
            });
            let mut r = g.cpu.regs();
            r.rip = CODE;
            g.cpu.set_regs(&r);
            eq!(reported(&g.cpu), Some(v as u32), "after user space set it");
            eq!(g.cpu.msr(SPEC_CTRL), Some(v));
        }
    }
}

fn reserved() {
    let bits = needed(&Kvm::open());
    for first in [0, bits] {
        for bad in [1 << 63, 0x1800, u64::MAX] {
            let g = writer(&[first, bad]);
            eq!(reported(&g.cpu), Some(first as u32));
            eq!(reported(&g.cpu), Some(first as u32));
            let t = g.run_to_trap();
            eq!((t.vector, t.error), (13, 0), "{bad:x} behind {first:x}");
            eq!(g.cpu.msr(SPEC_CTRL), Some(first), "is kept");
        }
    }
}

/// The host's own, on the first CPU, where the test is then.
struct HostMsr(OwnedFd);

impl HostMsr {
    fn open() -> Self {
        crate::must!(sys::pin(0, 0));
        let _ = crate::stress::insmod("msr");
        let path = format!("/dev/cpu/{}/msr", sys::cpu_number(0).unwrap_or(0));
        let Ok(dev) = OwnedFd::open(&path, libc::O_RDONLY) else {
            harness::skip(&format!("no {path}"))
        };
        Self(dev)
    }

    fn get(&self) -> Option<u64> {
        let mut b = [0; 8];
        (sys::pread(self.0.raw(), &mut b, SPEC_CTRL.into()) == Ok(8)).then(|| u64::from_le_bytes(b))
    }
}

fn own() {
    // Each vCPU has its own, and the host its own, whatever they have done to it by turns on one CPU.
    let bits = needed(&Kvm::open());
    let host = HostMsr::open();
    let before = host.get();
    check!(before.is_some(), "the host has it");
    let values = [bits & 4, 0, bits & 6, bits, bits & 1];
    let g = writer(&values);
    let other = g.second_vcpu(1);
    for v in values {
        eq!(reported(&g.cpu), Some(v as u32));
        eq!(host.get(), before, "in the host, after a guest with {v:x}");
        eq!(reported(&g.cpu), Some(v as u32));
        eq!(other.msr(SPEC_CTRL), Some(0));
    }
    eq!(reported(&g.cpu), None);
    // The other one has not written it, though this one has left all bits set.
    check!(g.cpu.set_msr(SPEC_CTRL, bits), "{bits:x}");
    load_writer(&g, &[0, bits & 4, 0]);
    for v in [0, bits & 4, 0] {
        for _ in 0..2 {
            eq!(reported(&other), Some(v as u32));
            eq!(host.get(), before);
            eq!(g.cpu.msr(SPEC_CTRL), Some(bits));
        }
    }
}

fn preempted() {
    // Two guests that are switched by the scheduler, each with a value that it must find again, and the host's never theirs.
    let bits = needed(&Kvm::open());
    let host = HostMsr::open();
    let before = host.get();
    std::thread::scope(|s| {
        for v in [bits, bits & 6] {
            s.spawn(move || {
                crate::must!(sys::pin(0, 0));
                let g = Guest::new(Mode::Long);
                g.load(|a| {
                    let mut top = a.create_label();
                    let mut bad = a.create_label();
                    a.mov(esi, 3000)?;
                    a.mov(ecx, SPEC_CTRL)?;
                    a.xor(edx, edx)?;
                    a.mov(eax, v as u32)?;
                    a.wrmsr()?;
                    a.set_label(&mut top)?;
                    a.xor(eax, eax)?;
                    a.cpuid()?;
                    a.mov(ecx, SPEC_CTRL)?;
                    a.rdmsr()?;
                    a.cmp(eax, v as i32)?;
                    a.jne(bad)?;
                    a.dec(esi)?;
                    a.jne(top)?;
                    a.set_label(&mut bad)?;
                    a.out(0xf0, eax)?;
                    a.hlt()
                });
                eq!(g.values(), vec![v as u32]);
                eq!(g.cpu.regs().rsi, 0, "all rounds");
            });
        }
        for _ in 0..50 {
            eq!(host.get(), before);
        }
    });
    eq!(host.get(), before);
}

/// RDMSR or WRMSR of 0 or `value`: is it #GP?
fn refused(g: &Guest, msr: u32, value: Option<u64>) -> bool {
    g.load(|a| {
        match value {
            Some(_) => a.wrmsr()?,
            None => a.rdmsr()?,
        }
        a.hlt()
    });
    let v = value.unwrap_or(0);
    let mut r = g.cpu.regs();
    (r.rip, r.rsp, r.rcx) = (CODE, STACK, msr.into());
    (r.rax, r.rdx) = (v & 0xffff_ffff, v >> 32);
    g.cpu.set_regs(&r);
    match g.cpu.run() {
        Exit::Hlt => false,
        Exit::Io {
            out: true,
            port: 0xee,
            ..
        } => {
            let t = g.trap();
            eq!((t.vector, t.error, t.ip), (13, 0, CODE), "MSR {msr:x}");
            true
        }
        e => panic!("MSR {msr:x}: {e:x?}{}", g.describe()),
    }
}

fn hidden() {
    // What its CPUID does not tell of, a guest does not have, whatever the CPU has.
    let g = Guest::new(Mode::Long);
    let mut c = g.kvm.cpuid();
    hide(&mut c);
    crate::must!(g.cpu.fd.give(SET_CPUID2, &*c));
    for (msr, values) in [
        (SPEC_CTRL, &[0u64, 1, 4][..]),
        (PRED_CMD, &[0, 1]),
        (FLUSH_CMD, &[0, 1]),
        (ARCH_CAPABILITIES, &[0, 1]),
    ] {
        check!(refused(&g, msr, None), "read of MSR {msr:x}");
        for v in values {
            check!(refused(&g, msr, Some(*v)), "write of {v:x} to MSR {msr:x}");
        }
    }
    eq!(g.cpu.msr(SPEC_CTRL), Some(0));
}

fn commands() {
    let told = Told::by(&Kvm::open().cpuid());
    if !told.barrier() && !told.flush() {
        harness::skip("this CPU has neither IBPB nor L1D_FLUSH");
    }
    let g = Guest::new(Mode::Long);
    for (msr, there) in [(PRED_CMD, told.barrier()), (FLUSH_CMD, told.flush())] {
        check!(
            refused(&g, msr, None),
            "there is nothing to read in {msr:x}"
        );
        for _ in 0..3 {
            eq!(refused(&g, msr, Some(0)), !there, "0 to {msr:x}");
            eq!(refused(&g, msr, Some(1)), !there, "1 to {msr:x}");
        }
        for bad in [2, 1 << 63, u64::MAX] {
            check!(refused(&g, msr, Some(bad)), "{bad:x} to {msr:x}");
        }
    }
}

fn arch_capabilities_read() {
    let g = Guest::new(Mode::Long);
    if Told::by(&g.kvm.cpuid()).intel >> 29 & 1 == 0 {
        harness::skip("ARCH_CAPABILITIES is not offered");
    }
    let value = offered(&g.kvm);
    let read = |g: &Guest| {
        check!(!refused(g, ARCH_CAPABILITIES, None), "it can be read");
        let r = g.cpu.regs();
        r.rax | r.rdx << 32
    };
    eq!(read(&g), value);
    check!(refused(&g, ARCH_CAPABILITIES, Some(value)), "read only");
    // The guest ran: what it saw stays.
    check!(g.cpu.set_msr(ARCH_CAPABILITIES, value), "the same");
    check!(!g.cpu.set_msr(ARCH_CAPABILITIES, value ^ 1), "another");
    eq!(read(&g), value);
    let g = Guest::new(Mode::Long);
    check!(g.cpu.set_msr(ARCH_CAPABILITIES, 0x21), "before it runs");
    eq!(read(&g), 0x21);
}
