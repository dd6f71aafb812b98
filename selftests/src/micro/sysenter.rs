// SPDX-License-Identifier: GPL-2.0
//! SYSENTER's stack and entry: 64 bits on Intel's CPUs, 32 on AMD's, and 64 there, too, for a guest that was told of an Intel.

use crate::eq;
use crate::guest::*;
use crate::harness::Test;
use crate::kvm::*;
use crate::{check, must, sys};
use iced_x86::code_asm::*;

pub const TESTS: &[Test] = &[Test::new("micro/sysenter_addresses", addresses)];

const ESP: u32 = 0x175;
const EIP: u32 = 0x176;
const STACK_TOP: u64 = 0xffff_fe00_0000_3000;
const ENTRY: u64 = 0xffff_ffff_8160_1000;

/// What the guest or user space has written is there after the guest has run.
fn addresses() {
    let g = Guest::new(Mode::Long);
    let mut cpuid = g.kvm.cpuid();
    let n = cpuid.nent as usize;
    for e in cpuid.entries.iter_mut().take(n) {
        if matches!(e.function, 0 | 0x8000_0000) {
            // As in "GenuineIntel", which is spread over EBX, EDX and ECX.
            (e.ebx, e.edx, e.ecx) = (0x756e_6547, 0x4965_6e69, 0x6c65_746e);
        }
    }
    must!(sys::ioctl_with(g.cpu.fd.0.raw(), SET_CPUID2, &mut *cpuid));
    check!(g.cpu.set_msr(ESP, STACK_TOP), "ESP");
    g.load(|a| {
        a.mov(ecx, ESP)?;
        a.rdmsr()?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.mov(eax, edx)?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.mov(ecx, EIP)?;
        a.mov(eax, ENTRY as u32)?;
        a.mov(edx, (ENTRY >> 32) as u32)?;
        a.wrmsr()?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.rdmsr()?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.mov(eax, edx)?;
        a.out(u32::from(PORT_VALUE), eax)?;
        a.hlt()
    });
    let halves = |v: u64| [v as u32, (v >> 32) as u32];
    eq!(g.values(), [halves(STACK_TOP), halves(ENTRY)].concat());
    eq!(
        (g.cpu.msr(ESP), g.cpu.msr(EIP)),
        (Some(STACK_TOP), Some(ENTRY))
    );
}
