// SPDX-License-Identifier: GPL-2.0
//! Loads a bzImage or an ELF kernel, and the initrd.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{bail, Context as _, Result};
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::cpu::CpuMode;
use super::layout;
use super::params::{self, Span};
use crate::memory::LOW_END;

const ELF_MAGIC: &[u8] = b"\x7fELF";
const BZIMAGE_MAGIC: &[u8] = b"HdrS";
const BZIMAGE_MAGIC_AT: u64 = 0x202;
/// The 64-bit entry is this far into the loaded part of a bzImage.
const ENTRY_64: u64 = 0x200;
/// `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
const PAGE: u64 = 4096;
/// Where an initrd may end if the kernel does not say.
const INITRD_MAX: u64 = 0x37ff_ffff;

/// What is in memory, and how to begin.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// The mode that the entry expects.
    pub mode: CpuMode,
    /// The address of the first instruction.
    pub entry: u64,
    /// The protocol: a bzImage and a plain ELF want the zero page in RSI, PVH wants its structure in RBX.
    pub protocol: Protocol,
    /// Memory that the kernel needs at its beginning.
    kernel_end: u64,
    initrd_max: u64,
}

/// What the kernel is told, and where it looks for it.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    /// The zero page, with this header.
    Linux(setup_header),
    /// `hvm_start_info`.
    Pvh,
}

/// Loads the kernel at `path`.
pub fn kernel(memory: &GuestMemoryMmap, path: &Path) -> Result<Loaded> {
    let name = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot open the kernel {name}"))?;
    let mut magic = [0; 4];
    let mut read_at = |file: &mut File, at| -> Result<[u8; 4]> {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut magic)
            .with_context(|| format!("{name} is too short for a kernel"))?;
        Ok(magic)
    };
    if read_at(&mut file, 0)? == ELF_MAGIC {
        elf(memory, &mut file).with_context(|| format!("cannot load {name}"))
    } else if read_at(&mut file, BZIMAGE_MAGIC_AT)? == BZIMAGE_MAGIC {
        bzimage(memory, &mut file).with_context(|| format!("cannot load {name}"))
    } else {
        bail!("{name} is neither a bzImage nor an ELF kernel")
    }
}

fn bzimage(memory: &GuestMemoryMmap, file: &mut File) -> Result<Loaded> {
    let loaded = BzImage::load(memory, None, file, Some(GuestAddress(layout::HIMEM)))
        .context("is --memory large enough?")?;
    let header = loaded.setup_header.context("the kernel has no header")?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < 0x20c || flags & XLF_KERNEL_64 == 0 {
        bail!("the kernel has no 64-bit entry (boot protocol 2.12)");
    }
    // It unpacks itself to its preferred address and needs that much there.
    let start = loaded.kernel_load.raw_value().max(header.pref_address);
    let Some(unpacked_end) = start.checked_add(header.init_size.into()) else {
        bail!("the kernel cannot be unpacked to {start:#x}");
    };
    Ok(Loaded {
        mode: CpuMode::Long,
        entry: loaded.kernel_load.raw_value() + ENTRY_64,
        protocol: Protocol::Linux(header),
        kernel_end: unpacked_end.max(loaded.kernel_end),
        initrd_max: match header.initrd_addr_max {
            0 => INITRD_MAX,
            max => max.into(),
        },
    })
}

fn elf(memory: &GuestMemoryMmap, file: &mut File) -> Result<Loaded> {
    let loaded = Elf::load(memory, None, file, Some(GuestAddress(layout::HIMEM)))
        .context("is --memory large enough?")?;
    let (mode, entry, protocol) = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            (CpuMode::Protected, entry.raw_value(), Protocol::Pvh)
        }
        _ => {
            let header = params::header_for_elf();
            (
                CpuMode::Long,
                loaded.kernel_load.raw_value(),
                Protocol::Linux(header),
            )
        }
    };
    let (kernel_end, initrd_max) = (loaded.kernel_end, LOW_END - 1);
    Ok(Loaded {
        mode,
        entry,
        protocol,
        kernel_end,
        initrd_max,
    })
}

/// Where an initrd of `size` bytes goes: as high as the kernel allows, above everything that it needs at first.
pub fn place_initrd(loaded: &Loaded, memory_size: u64, size: u64) -> Result<u64> {
    let top = memory_size.min(LOW_END).min(loaded.initrd_max + 1);
    let start = top.checked_sub(size).map(|start| start & !(PAGE - 1));
    match start {
        Some(start) if start >= loaded.kernel_end => Ok(start),
        _ => {
            let need = loaded.kernel_end.saturating_add(size.saturating_add(PAGE));
            let need = need.div_ceil(1 << 20);
            bail!("kernel and initrd do not fit: use --memory {need}M or more")
        }
    }
}

/// Loads the initrd at `path`, if there is one.
pub fn initrd(
    memory: &GuestMemoryMmap,
    memory_size: u64,
    loaded: &Loaded,
    path: Option<&Path>,
) -> Result<Span> {
    let Some(path) = path else {
        if memory_size < loaded.kernel_end {
            let need = loaded.kernel_end.div_ceil(1 << 20);
            bail!("the kernel needs --memory {need}M or more");
        }
        return Ok(Span::default());
    };
    let data = std::fs::read(path)
        .with_context(|| format!("cannot read the initrd {}", path.display()))?;
    let size = data.len() as u64;
    let start = place_initrd(loaded, memory_size, size)?;
    memory
        .write_slice(&data, GuestAddress(start))
        .context("initrd")?;
    Ok(Span { start, size })
}

/// Writes the command line, as long as the kernel takes it.
pub fn cmdline(memory: &GuestMemoryMmap, loaded: &Loaded, text: &str) -> Result<()> {
    let most = match &loaded.protocol {
        Protocol::Linux(header) => (header.cmdline_size as usize).min(layout::CMDLINE_MAX - 1),
        Protocol::Pvh => layout::CMDLINE_MAX - 1,
    };
    if text.len() > most {
        bail!("the command line is too long: this kernel takes {most} bytes");
    }
    if text.contains('\0') {
        bail!("the command line has a zero byte");
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(layout::CMDLINE))
        .context("command line")
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
