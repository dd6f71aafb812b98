// SPDX-License-Identifier: GPL-2.0
//! Page tables, descriptors and registers for the first instruction of a guest.

use anyhow::{Context as _, Result};
use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_FIXED: u64 = 1 << 1;

const PTE_PRESENT: u64 = 1 << 0;
const PTE_WRITABLE: u64 = 1 << 1;
const PTE_LARGE: u64 = 1 << 7;
const TABLE_SIZE: u64 = 4096;
/// Gibibytes that the boot page tables map one to one.
const MAPPED_GIB: u64 = 4;

/// Selectors as the Linux boot protocol names them: __BOOT_CS, __BOOT_DS, and a task state segment.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Segment types: execute/read accessed, read/write accessed, busy 32- or 64-bit TSS, LDT.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_BUSY_TSS: u8 = 0xb;
const TYPE_LDT: u8 = 0x2;

/// How the processor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuMode {
    /// 16-bit real mode.
    Real,
    /// 32-bit protected mode without paging.
    Protected,
    /// 64-bit mode, the first 4 GiB mapped one to one.
    Long,
}

/// Writes the page tables that map the first 4 GiB one to one with 2 MiB pages.
pub fn write_page_tables(memory: &GuestMemoryMmap) -> Result<()> {
    let table = |index: u64| layout::PAGE_TABLES + index * TABLE_SIZE;
    let link = |index: u64| table(index) | PTE_PRESENT | PTE_WRITABLE;
    let put = |entry: u64, at: u64| memory.write_obj(entry, GuestAddress(at));
    put(link(1), table(0)).context("page tables")?;
    for gib in 0..MAPPED_GIB {
        put(link(2 + gib), table(1) + gib * 8).context("page tables")?;
        for large in 0..512 {
            let address = (gib << 30) | (large << 21);
            let entry = address | PTE_PRESENT | PTE_WRITABLE | PTE_LARGE;
            put(entry, table(2 + gib) + large * 8).context("page tables")?;
        }
    }
    Ok(())
}

/// A flat segment of 4 GiB.
fn flat(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// A segment as it is in real mode.
fn real(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: u64::from(selector) << 4,
        limit: 0xffff,
        selector,
        type_,
        present: 1,
        s: 1,
        ..Default::default()
    }
}

fn system(selector: u16, type_: u8, limit: u32, present: bool) -> kvm_segment {
    kvm_segment {
        limit,
        selector,
        type_,
        present: u8::from(present),
        unusable: u8::from(!present),
        ..Default::default()
    }
}

/// The descriptor-table form of a segment.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g != 0 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let bit = |value: u8, shift: u32| u64::from(value & 1) << shift;
    (limit & 0xffff)
        | ((segment.base & 0xff_ffff) << 16)
        | (u64::from(segment.type_ & 0xf) << 40)
        | bit(segment.s, 44)
        | (u64::from(segment.dpl & 3) << 45)
        | bit(segment.present, 47)
        | (((limit >> 16) & 0xf) << 48)
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | (((segment.base >> 24) & 0xff) << 56)
}

/// Changes the reset state `sregs` into that of `mode`; writes the descriptor table for the protected modes.
pub fn set_segments(memory: &GuestMemoryMmap, sregs: &mut kvm_sregs, mode: CpuMode) -> Result<()> {
    let (code, data) = match mode {
        CpuMode::Real => (real(0, TYPE_CODE), real(0, TYPE_DATA)),
        CpuMode::Protected => (
            flat(BOOT_CS, TYPE_CODE, false),
            flat(BOOT_DS, TYPE_DATA, false),
        ),
        // A data segment of 64-bit mode keeps its big bit, its long bit means nothing.
        CpuMode::Long => (
            flat(BOOT_CS, TYPE_CODE, true),
            flat(BOOT_DS, TYPE_DATA, false),
        ),
    };
    sregs.cs = code;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    if mode == CpuMode::Real {
        return Ok(());
    }
    sregs.tr = system(BOOT_TSS, TYPE_BUSY_TSS, 0x67, true);
    sregs.ldt = system(0, TYPE_LDT, 0, false);
    let tss = descriptor(&sregs.tr);
    let table = [0, 0, descriptor(&code), descriptor(&data), tss, 0];
    for (at, entry) in (layout::GDT..).step_by(8).zip(table) {
        memory
            .write_obj(entry, GuestAddress(at))
            .context("descriptor table")?;
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (table.len() * 8 - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE;
    if mode == CpuMode::Long {
        write_page_tables(memory)?;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
        sregs.cr0 |= CR0_PG;
    }
    Ok(())
}

/// General registers for an entry at `rip`.
pub fn registers(rip: u64, rsp: u64) -> kvm_regs {
    kvm_regs {
        rip,
        rsp,
        rflags: RFLAGS_FIXED,
        ..Default::default()
    }
}

/// The FPU as FNINIT and a reset of MXCSR leave it.
pub fn fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn page_tables_map_one_to_one() {
        let memory = memory::allocate(1 << 20).unwrap();
        write_page_tables(&memory).unwrap();
        let read = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        for address in [
            0u64,
            0x20_0000,
            0x3fff_ffff,
            0x4000_0000,
            0xfee0_0000,
            0xffff_ffff,
        ] {
            let level4 = read(layout::PAGE_TABLES + ((address >> 39) & 511) * 8);
            assert_eq!(level4 & 0xfff, 3);
            let level3 = read((level4 & !0xfff) + ((address >> 30) & 511) * 8);
            assert_eq!(level3 & 0xfff, 3);
            let level2 = read((level3 & !0xfff) + ((address >> 21) & 511) * 8);
            assert_eq!(level2, address & !0x1f_ffff | 0x83);
        }
        assert_eq!(read(layout::PAGE_TABLES + 8), 0);
    }

    #[test]
    fn descriptors_have_the_hardware_format() {
        assert_eq!(
            descriptor(&flat(BOOT_CS, TYPE_CODE, true)),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat(BOOT_CS, TYPE_CODE, false)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat(BOOT_DS, TYPE_DATA, false)),
            0x00cf_9300_0000_ffff
        );
        assert_eq!(
            descriptor(&system(BOOT_TSS, TYPE_BUSY_TSS, 0x67, true)),
            0x0000_8b00_0000_0067
        );
    }
}
