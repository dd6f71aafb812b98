// SPDX-License-Identifier: GPL-2.0
//! What a kernel is told at its entry: the zero page of the Linux boot protocol, or `hvm_start_info` of PVH.

use anyhow::{Context as _, Result};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;
use crate::memory;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// "A loader without a number of its own" in the boot protocol.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG_MAGIC: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const PVH_MAGIC: u32 = 0x336e_c578;

/// A span of guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first address.
    pub start: u64,
    /// The length in bytes.
    pub size: u64,
}

/// The memory map of a guest with `size` bytes: start, length and type of each range.
pub fn memory_map(size: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::LOW_RAM_END, E820_RAM),
        (
            layout::LOW_RAM_END,
            layout::HIMEM - layout::LOW_RAM_END,
            E820_RESERVED,
        ),
    ];
    for (start, length) in memory::ranges(size) {
        let skip = layout::HIMEM.saturating_sub(start);
        if length > skip {
            map.push((start + skip, length - skip, E820_RAM));
        }
    }
    map
}

/// The header of a kernel that has none, an ELF vmlinux.
pub fn header_for_elf() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG_MAGIC,
        header: HEADER_MAGIC,
        cmdline_size: layout::CMDLINE_MAX as u32 - 1,
        ..Default::default()
    }
}

/// Writes the zero page.
pub fn write_zero_page(
    memory: &GuestMemoryMmap,
    size: u64,
    mut header: setup_header,
    initrd: Span,
) -> Result<()> {
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = layout::CMDLINE as u32;
    header.ramdisk_image = u32::try_from(initrd.start).context("initrd above 4 GiB")?;
    header.ramdisk_size = u32::try_from(initrd.size).context("initrd of 4 GiB or more")?;
    let mut params = boot_params {
        hdr: header,
        ..Default::default()
    };
    for (entry, (addr, size, type_)) in params.e820_table.iter_mut().zip(memory_map(size)) {
        *entry = boot_e820_entry { addr, size, type_ };
        params.e820_entries += 1;
    }
    memory
        .write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .context("zero page")
}

/// Writes `hvm_start_info`, version 1: all fields are little-endian words in the order of the PVH description.
pub fn write_pvh_info(memory: &GuestMemoryMmap, size: u64, initrd: Span) -> Result<()> {
    let map = memory_map(size);
    let modules = u32::from(initrd.size != 0);
    let mut info = Vec::new();
    for word in [PVH_MAGIC, 1, 0, modules] {
        info.extend(word.to_le_bytes());
    }
    for address in [layout::PVH_MODULES, layout::CMDLINE, 0, layout::PVH_MEMMAP] {
        info.extend(address.to_le_bytes());
    }
    info.extend((map.len() as u32).to_le_bytes());
    info.extend(0u32.to_le_bytes());
    memory
        .write_slice(&info, GuestAddress(layout::PVH_INFO))
        .context("PVH start info")?;

    let mut module = Vec::new();
    for word in [initrd.start, initrd.size, 0, 0] {
        module.extend(word.to_le_bytes());
    }
    memory
        .write_slice(&module, GuestAddress(layout::PVH_MODULES))
        .context("PVH modules")?;

    let mut entries = Vec::new();
    for (start, length, kind) in map {
        entries.extend(start.to_le_bytes());
        entries.extend(length.to_le_bytes());
        entries.extend(kind.to_le_bytes());
        entries.extend(0u32.to_le_bytes());
    }
    memory
        .write_slice(&entries, GuestAddress(layout::PVH_MEMMAP))
        .context("PVH memory map")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_leaves_out_the_bios_and_the_hole() {
        assert_eq!(
            memory_map(64 << 20),
            [
                (0, 0x9_fc00, E820_RAM),
                (0x9_fc00, 0x6_0400, E820_RESERVED),
                (0x10_0000, 63 << 20, E820_RAM)
            ]
        );
        let large = memory_map(4 << 30);
        assert_eq!(large[2], (0x10_0000, (3 << 30) - 0x10_0000, E820_RAM));
        assert_eq!(large[3], (4 << 30, 1 << 30, E820_RAM));
        assert_eq!(memory_map(1 << 20).len(), 2);
    }

    #[test]
    fn the_zero_page_is_as_the_protocol_says() {
        let memory = memory::allocate(2 << 20).unwrap();
        let initrd = Span {
            start: 0x18_0000,
            size: 0x1234,
        };
        write_zero_page(&memory, 2 << 20, header_for_elf(), initrd).unwrap();
        let byte = |offset: u64| -> u8 {
            memory
                .read_obj(GuestAddress(layout::ZERO_PAGE + offset))
                .unwrap()
        };
        let word = |offset: u64| -> u32 {
            memory
                .read_obj(GuestAddress(layout::ZERO_PAGE + offset))
                .unwrap()
        };
        assert_eq!(byte(0x1e8), 3, "e820_entries");
        assert_eq!(byte(0x210), 0xff, "type_of_loader");
        assert_eq!(word(0x202), HEADER_MAGIC);
        assert_eq!((word(0x218), word(0x21c)), (0x18_0000, 0x1234));
        assert_eq!(word(0x228), layout::CMDLINE as u32);
        assert_eq!(
            (word(0x2d0), word(0x2d8), word(0x2e0)),
            (0, 0x9_fc00, E820_RAM)
        );
    }

    #[test]
    fn pvh_start_info_is_as_described() {
        let memory = memory::allocate(2 << 20).unwrap();
        write_pvh_info(
            &memory,
            2 << 20,
            Span {
                start: 0x18_0000,
                size: 7,
            },
        )
        .unwrap();
        let at = |offset: u64| -> u64 {
            memory
                .read_obj(GuestAddress(layout::PVH_INFO + offset))
                .unwrap()
        };
        assert_eq!(at(0), u64::from(PVH_MAGIC) | (1 << 32));
        assert_eq!(at(8), 1 << 32, "one module");
        assert_eq!((at(16), at(24)), (layout::PVH_MODULES, layout::CMDLINE));
        assert_eq!((at(40), at(48)), (layout::PVH_MEMMAP, 3));
        let module: u64 = memory.read_obj(GuestAddress(layout::PVH_MODULES)).unwrap();
        assert_eq!(module, 0x18_0000);
        let last: u64 = memory
            .read_obj(GuestAddress(layout::PVH_MEMMAP + 2 * 24))
            .unwrap();
        assert_eq!(last, 0x10_0000);
    }
}
