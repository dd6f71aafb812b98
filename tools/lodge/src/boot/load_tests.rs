// SPDX-License-Identifier: GPL-2.0
//! Tests of the loader with files made here.

use super::*;
use crate::memory;
use std::io::Write;

struct TempFile(std::path::PathBuf);

impl TempFile {
    fn new(name: &str, data: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("lodge-{}-{name}", std::process::id()));
        File::create(&path).unwrap().write_all(data).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A bzImage with one setup sector and 64 bytes of kernel.
fn bzimage_file(version: u16, xloadflags: u16) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&version.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x20_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x8_0000u32.to_le_bytes());
    image.extend([0x90; 64]);
    image
}

/// An ELF executable with one segment of 16 bytes at 2 MiB, and a PVH note if asked for.
fn elf_file(pvh: bool) -> Vec<u8> {
    let mut file = vec![0u8; 0x200];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    let put16 =
        |file: &mut Vec<u8>, at: usize, v: u16| file[at..at + 2].copy_from_slice(&v.to_le_bytes());
    let put32 =
        |file: &mut Vec<u8>, at: usize, v: u32| file[at..at + 4].copy_from_slice(&v.to_le_bytes());
    let put64 =
        |file: &mut Vec<u8>, at: usize, v: u64| file[at..at + 8].copy_from_slice(&v.to_le_bytes());
    put16(&mut file, 16, 2);
    put16(&mut file, 18, 62);
    put32(&mut file, 20, 1);
    put64(&mut file, 24, 0x20_0004);
    put64(&mut file, 32, 64);
    put16(&mut file, 52, 64);
    put16(&mut file, 54, 56);
    put16(&mut file, 56, if pvh { 2 } else { 1 });
    // PT_LOAD
    put32(&mut file, 64, 1);
    put64(&mut file, 64 + 8, 0x180);
    put64(&mut file, 64 + 24, 0x20_0000);
    put64(&mut file, 64 + 32, 16);
    put64(&mut file, 64 + 40, 16);
    file[0x180..0x190].fill(0xcc);
    if pvh {
        put32(&mut file, 120, 4);
        put64(&mut file, 120 + 8, 0x1a0);
        put64(&mut file, 120 + 32, 20);
        put64(&mut file, 120 + 48, 4);
        put32(&mut file, 0x1a0, 4);
        put32(&mut file, 0x1a4, 4);
        put32(&mut file, 0x1a8, 18);
        file[0x1ac..0x1b0].copy_from_slice(b"Xen\0");
        put32(&mut file, 0x1b0, 0x20_0008);
    }
    file
}

fn load(name: &str, data: &[u8]) -> Result<Loaded> {
    let memory = memory::allocate(8 << 20).unwrap();
    let file = TempFile::new(name, data);
    let loaded = kernel(&memory, &file.0)?;
    if loaded.mode == CpuMode::Long && loaded.entry > layout::HIMEM + ENTRY_64 {
        assert_eq!(
            memory.read_obj::<u8>(GuestAddress(loaded.entry)).unwrap(),
            0xcc
        );
    }
    Ok(loaded)
}

#[test]
fn a_bzimage_begins_at_its_64_bit_entry() {
    let loaded = load("bz", &bzimage_file(0x20f, 1)).unwrap();
    assert_eq!((loaded.mode, loaded.entry), (CpuMode::Long, 0x10_0200));
    assert_eq!(
        loaded.kernel_end, 0x28_0000,
        "preferred address and init_size"
    );
    assert_eq!(loaded.initrd_max, 0x7fff_ffff);
    assert!(matches!(loaded.protocol, Protocol::Linux(_)));
}

#[test]
fn a_kernel_without_a_64_bit_entry_is_refused() {
    assert!(load("bz-old", &bzimage_file(0x20b, 1)).is_err());
    assert!(load("bz-32", &bzimage_file(0x20f, 0)).is_err());
}

#[test]
fn a_kernel_that_ends_behind_all_addresses_is_refused() {
    let mut image = bzimage_file(0x20f, 1);
    image[0x258..0x260].copy_from_slice(&(u64::MAX - 0x7_ffff).to_le_bytes());
    let error = format!("{:#}", load("bz-far", &image).unwrap_err());
    assert!(error.contains("0xfffffffffff80000"), "{error}");
    // One that just fits into the address space does not fit into memory.
    image[0x258..0x260].copy_from_slice(&(u64::MAX - 0x8_0000).to_le_bytes());
    let loaded = load("bz-high", &image).unwrap();
    assert_eq!(loaded.kernel_end, u64::MAX);
    assert!(place_initrd(&loaded, 8 << 20, 5000).is_err());
}

#[test]
fn an_elf_begins_at_its_entry_or_its_pvh_entry() {
    let loaded = load("elf", &elf_file(false)).unwrap();
    assert_eq!((loaded.mode, loaded.entry), (CpuMode::Long, 0x20_0004));
    assert!(matches!(loaded.protocol, Protocol::Linux(_)));
    let loaded = load("elf-pvh", &elf_file(true)).unwrap();
    assert_eq!((loaded.mode, loaded.entry), (CpuMode::Protected, 0x20_0008));
    assert!(matches!(loaded.protocol, Protocol::Pvh));
}

#[test]
fn anything_else_is_refused_with_its_name() {
    for (name, data) in [("empty", &[][..]), ("text", &[b'x'; 4096])] {
        let error = format!("{:#}", load(name, data).unwrap_err());
        assert!(error.contains(name), "{error}");
    }
    assert!(kernel(
        &memory::allocate(1 << 20).unwrap(),
        Path::new("/nonexistent")
    )
    .is_err());
}

#[test]
fn an_initrd_is_high_but_below_the_limits() {
    let mut loaded = load("bz-initrd", &bzimage_file(0x20f, 1)).unwrap();
    assert_eq!(
        place_initrd(&loaded, 8 << 20, 5000).unwrap(),
        (8 << 20) - 8192
    );
    assert_eq!(place_initrd(&loaded, 4 << 30, 4096).unwrap(), 0x7fff_f000);
    loaded.initrd_max = LOW_END - 1;
    assert_eq!(
        place_initrd(&loaded, 8 << 30, 4096).unwrap(),
        LOW_END - 4096
    );
    let error = place_initrd(&loaded, 8 << 20, 7 << 20)
        .unwrap_err()
        .to_string();
    assert!(error.contains("--memory 10M"), "{error}");
    assert!(place_initrd(&loaded, 8 << 20, 9 << 20).is_err());
}

#[test]
fn the_command_line_ends_with_a_zero() {
    let memory = memory::allocate(1 << 20).unwrap();
    let mut image = bzimage_file(0x20f, 1);
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    let loaded = load("bz-cmdline", &image).unwrap();
    cmdline(&memory, &loaded, "quiet").unwrap();
    let mut text = [0xff; 6];
    memory
        .read_slice(&mut text, GuestAddress(layout::CMDLINE))
        .unwrap();
    assert_eq!(&text, b"quiet\0");
    assert!(cmdline(&memory, &loaded, &"x".repeat(2047)).is_ok());
    assert!(cmdline(&memory, &loaded, &"x".repeat(2048)).is_err());
    assert!(cmdline(&memory, &loaded, "a\0b").is_err());
}
