// SPDX-License-Identifier: GPL-2.0
//! The vCPU's state as text, for the reader of an error.

use std::fmt::Write as _;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::{Context, IoctlError};

const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const PTE_PRESENT: u64 = 1;
const PTE_LARGE: u64 = 1 << 7;
const PTE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bytes shown at the instruction pointer.
const CODE_BYTES: u64 = 16;

/// Registers and the bytes at the instruction pointer.
pub fn describe(vcpu: &VcpuFd, memory: &GuestMemoryMmap) -> Result<String, IoctlError> {
    let regs = vcpu.get_regs().ioctl("KVM_GET_REGS")?;
    let sregs = vcpu.get_sregs().ioctl("KVM_GET_SREGS")?;
    Ok(format!(
        "{}{}{}",
        general(&regs),
        system(&sregs),
        code(&regs, &sregs, memory)
    ))
}

/// The general registers.
pub fn general(regs: &kvm_regs) -> String {
    let r = regs;
    let mut text = String::new();
    let rows = [
        [
            ("rax", r.rax),
            ("rbx", r.rbx),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
        ],
        [
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("rbp", r.rbp),
            ("rsp", r.rsp),
        ],
        [("r8 ", r.r8), ("r9 ", r.r9), ("r10", r.r10), ("r11", r.r11)],
        [
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
        ],
    ];
    for row in rows {
        for (name, value) in row {
            let _ = write!(text, "  {name} {value:016x}");
        }
        text.push('\n');
    }
    let _ = writeln!(text, "  rip {:016x}  rflags {:08x}", r.rip, r.rflags);
    text
}

fn system(s: &kvm_sregs) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "  cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  cr8 {:x}  efer {:x}",
        s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer
    );
    let segments = [
        ("cs", s.cs),
        ("ss", s.ss),
        ("ds", s.ds),
        ("es", s.es),
        ("fs", s.fs),
        ("gs", s.gs),
        ("tr", s.tr),
        ("ldt", s.ldt),
    ];
    for (name, segment) in segments {
        let _ = writeln!(text, "  {name:3} {}", describe_segment(&segment));
    }
    let _ = writeln!(
        text,
        "  gdt base {:016x} limit {:04x}  idt base {:016x} limit {:04x}",
        s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit
    );
    text
}

fn describe_segment(s: &kvm_segment) -> String {
    if s.unusable != 0 {
        return format!("{:04x} unusable", s.selector);
    }
    format!(
        "{:04x} base {:016x} limit {:08x} type {:x} dpl {} s {} p {} l {} db {} g {}",
        s.selector, s.base, s.limit, s.type_, s.dpl, s.s, s.present, s.l, s.db, s.g
    )
}

fn code(regs: &kvm_regs, sregs: &kvm_sregs, memory: &GuestMemoryMmap) -> String {
    let linear = if sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0 {
        regs.rip
    } else {
        sregs.cs.base.wrapping_add(regs.rip) & 0xffff_ffff
    };
    let mut text = format!("  code at {linear:#x}:");
    for at in 0..CODE_BYTES {
        let address = linear.wrapping_add(at);
        let byte = translate(address, sregs, memory)
            .and_then(|physical| memory.read_obj::<u8>(GuestAddress(physical)).ok());
        match byte {
            Some(byte) => {
                let _ = write!(text, " {byte:02x}");
            }
            None if at == 0 => {
                text.push_str(" not mapped");
                break;
            }
            None => break,
        }
    }
    text.push('\n');
    text
}

/// The physical address of a linear one, without paging or with 64-bit page tables; others are not looked up.
fn translate(linear: u64, sregs: &kvm_sregs, memory: &GuestMemoryMmap) -> Option<u64> {
    if sregs.cr0 & CR0_PG == 0 {
        return Some(linear);
    }
    if sregs.efer & EFER_LMA == 0 {
        return None;
    }
    let levels = if sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let mut table = sregs.cr3 & PTE_ADDRESS;
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let index = (linear >> shift) & 511;
        let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).ok()?;
        if entry & PTE_PRESENT == 0 {
            return None;
        }
        if level == 1 || ((level == 2 || level == 3) && entry & PTE_LARGE != 0) {
            let inside = (1u64 << shift) - 1;
            return Some(entry & PTE_ADDRESS & !inside | linear & inside);
        }
        table = entry & PTE_ADDRESS;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::cpu;
    use crate::memory;

    #[test]
    fn code_is_found_through_the_page_tables() {
        let memory = memory::allocate(4 << 20).unwrap();
        let mut sregs = kvm_sregs::default();
        cpu::set_segments(&memory, &mut sregs, cpu::CpuMode::Long).unwrap();
        memory
            .write_slice(&[0x0f, 0x0b], GuestAddress(0x21_0000))
            .unwrap();
        let text = code(&cpu::registers(0x21_0000, 0), &sregs, &memory);
        assert!(text.starts_with("  code at 0x210000: 0f 0b 00"), "{text}");
        assert_eq!(translate(0x1_0000_0000, &sregs, &memory), None, "5 GiB");
        let far = code(&cpu::registers(0xffff_8000_0000_0000, 0), &sregs, &memory);
        assert!(far.contains("not mapped"), "{far}");
    }

    #[test]
    fn real_mode_code_is_at_base_and_offset() {
        let memory = memory::allocate(1 << 20).unwrap();
        let mut sregs = kvm_sregs::default();
        sregs.cs.base = 0x1000;
        memory.write_slice(&[0xf4], GuestAddress(0x1005)).unwrap();
        let text = code(&cpu::registers(5, 0), &sregs, &memory);
        assert!(text.starts_with("  code at 0x1005: f4 00"), "{text}");
    }
}
