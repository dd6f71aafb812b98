// SPDX-License-Identifier: GPL-2.0
//! Puts a kernel, its initrd and its command line into guest memory and sets the vCPU to the kernel's entry.

pub mod cpu;
pub mod load;
pub mod params;

/// Where the loader puts its own structures: in the first 640 KiB, which the kernel copies from before it reuses them.
pub mod layout {
    /// The global descriptor table.
    pub const GDT: u64 = 0x500;
    /// `hvm_start_info` of the PVH boot protocol, its module list and memory map.
    pub const PVH_INFO: u64 = 0x6000;
    /// The module list.
    pub const PVH_MODULES: u64 = 0x6040;
    /// The memory map.
    pub const PVH_MEMMAP: u64 = 0x6100;
    /// `boot_params`, the zero page of the Linux boot protocol.
    pub const ZERO_PAGE: u64 = 0x7000;
    /// The page tables: one of level 4, one of level 3, four of level 2.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// The top of a stack, below the page tables.
    pub const STACK: u64 = 0x8ff0;
    /// The command line.
    pub const CMDLINE: u64 = 0x2_0000;
    /// Room for the command line and its final zero.
    pub const CMDLINE_MAX: usize = 0x1_0000;
    /// Memory from here to 1 MiB is the BIOS's on a PC.
    pub const LOW_RAM_END: u64 = 0x9_fc00;
    /// The first megabyte ends here; kernels are loaded above.
    pub const HIMEM: u64 = 0x10_0000;
}
