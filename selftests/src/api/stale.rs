// SPDX-License-Identifier: GPL-2.0
//! No byte that the kernel gives depends on what was there before, whatever the ioctl: neither on the caller's buffer nor on what
//! the kernel's stack and heap held.

use crate::guest::*;
use crate::harness::{self, Test};
use crate::hostile::ioctls;
use crate::kvm::*;
use crate::sys::{self, Arg};
use crate::{check, eq};
use libc::{EBADF, EINVAL, ENOTTY, ENXIO};

pub const TESTS: &[Test] = &[
    Test::new("api/stale_structures", structures).no_ab(),
    Test::new("api/stale_arrays", arrays).no_ab(),
];

/// Fills the kernel's stack and heap with something else: system calls that copy much.
fn stir(byte: u8) {
    let noise = vec![byte; 3000];
    let (rd, wr) = sys::pipe();
    let _ = sys::write(wr.raw(), &noise);
    let mut back = vec![0u8; 3000];
    let _ = sys::read(rd.raw(), &mut back);
    let path = String::from_utf8(vec![b'a' + byte % 26; 2000]).unwrap_or_default();
    let _ = sys::OwnedFd::open(&path, 0);
}

/// Calls twice, with different poison behind `head`; gives the bytes that were written, which must be the same.
fn twice(fd: &Kfd, what: &str, nr: u64, head: &[u8], len: usize) -> Result<Vec<u8>, i32> {
    let mut got = Vec::new();
    for poison in [0x5au8, 0xa5] {
        stir(poison);
        let mut b = vec![poison; len];
        b[..head.len()].copy_from_slice(head);
        sys::ioctl(fd.0.raw(), nr, Arg::Buf(&mut b))?;
        got.push(b);
    }
    let end = got[0].iter().zip(&got[1]).position(|(x, y)| x != y);
    let end = end.unwrap_or(len);
    // Behind what is written, all is as it was.
    let kept = (end..len).all(|i| (got[0][i], got[1][i]) == (0x5a, 0xa5));
    check!(
        kept,
        "{what}: a byte at or behind {end} of {len} depends on what was there"
    );
    got[0].truncate(end);
    Ok(got.swap_remove(0))
}

/// Declared as if they wrote their argument, though they read it.
fn reads(name: &str) -> bool {
    name.starts_with("SET_") || name.starts_with("MEMORY_")
}

/// Time passes between the calls.
fn tells_time(name: &str) -> bool {
    matches!(name, "GET_CLOCK")
}

fn structures() {
    let g = Guest::new(Mode::Long);
    g.mem.write(CODE as usize, &[0xf4]);
    g.expect(&Exit::Hlt);
    let mut seen = 0;
    for (nr, name) in ioctls::ALL {
        if !ioctls::only_writes(*nr) || reads(name) || tells_time(name) {
            continue;
        }
        for fd in [&g.kvm.0, &g.vm.fd, &g.cpu.fd] {
            match twice(fd, name, *nr, &[], ioctls::size(*nr) + 64) {
                Ok(b) => {
                    seen += 1;
                    eq!(b.len(), ioctls::size(*nr), "{name}: bytes written");
                }
                // Not on this descriptor, or not served.
                Err(EINVAL | ENOTTY | ENXIO | EBADF) => {}
                Err(e) => check!(false, "{name}: errno {e}"),
            }
        }
    }
    check!(seen >= 5, "{seen} structures");
    harness::say(&format!("{seen} structures"));
}

fn arrays() {
    // CPUID tells of the CPU that it is asked on: its APIC ID.
    eq!(sys::pin(0, 0), Ok(0));
    let g = Guest::new(Mode::Long);
    let count = |n: u32| [n.to_le_bytes(), [0; 4]].concat();
    let dev = &g.kvm.0;
    let n = g.kvm.cpuid().nent;
    for (fd, name, nr, head, size, room) in [
        (dev, "GET_SUPPORTED_CPUID", GET_SUPPORTED_CPUID, 8, 40, n),
        (dev, "GET_SUPPORTED_CPUID", GET_SUPPORTED_CPUID, 8, 40, 150),
        (&g.cpu.fd, "GET_CPUID2", GET_CPUID2, 8, 40, 150),
        (dev, "GET_EMULATED_CPUID", GET_EMULATED_CPUID, 8, 40, 20),
        (dev, "GET_MSR_INDEX_LIST", GET_MSR_INDEX_LIST, 4, 4, 200),
        (dev, "GET_MSR_FEATURE_INDEX_LIST", 0xc004_ae0a, 4, 4, 200),
    ] {
        let buffer = head + size * room as usize + 64;
        match twice(fd, name, nr, &count(room)[..head], buffer) {
            Ok(b) => {
                let told = b
                    .get(..4)
                    .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                check!(told > 0 && told <= room, "{name} tells of {told} entries");
                eq!(
                    b.len(),
                    head + size * told as usize,
                    "{name}: bytes written"
                );
            }
            Err(EINVAL | ENOTTY) => {}
            Err(e) => check!(false, "{name}: errno {e}"),
        }
    }
    // GET_MSRS: the data of all that are known; of the rest nothing.
    for list in [
        &[0x277u32, 0xc000_0080, 0x1234_5678, 0x277][..],
        &[0xc000_0082],
    ] {
        let mut b = MsrsBuf::of(&list.iter().map(|i| (*i, 0)).collect::<Vec<_>>());
        let known = list.iter().take_while(|i| **i != 0x1234_5678).count();
        let r = sys::ioctl_with(g.cpu.fd.0.raw(), GET_MSRS, &mut *b);
        eq!(r, Ok(known as i32));
        for e in &b.entries[known..list.len()] {
            eq!((e.data, e.reserved), (0, 0), "MSR {:x}", e.index);
        }
    }
    // TRANSLATE: an address in, four fields out; the padding of 5 bytes comes back as it was given.
    let mut heads = [0u8; 24];
    heads[..8].copy_from_slice(&CODE.to_le_bytes());
    match twice(&g.cpu.fd, "TRANSLATE", 0xc018_ae85, &heads[..8], 24 + 64) {
        Ok(b) => eq!(b.len(), 24 - 5, "TRANSLATE"),
        Err(EINVAL | ENOTTY) => {}
        Err(e) => check!(false, "TRANSLATE: errno {e}"),
    }
}
