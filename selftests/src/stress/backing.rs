// SPDX-License-Identifier: GPL-2.0
//! Guest memory of other kinds than plain anonymous memory: huge pages of a pool, memory files, files of a file system, memory that
//! user space itself provides page by page.

use super::pages::{ram_disks, range, tool, wait_for, SIZE};
use super::sweep::{check_pages, Progress, Sweeper};
use super::{number, set, Setting};
use crate::harness::{self, rounds, Test};
use crate::registers::Random;
use crate::sys::{self, Map, OwnedFd};
use crate::{check, eq};
use libc::{MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub const TESTS: &[Test] = &[
    Test::new("stress/mem_hugetlb_2m", hugetlb_2m)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/mem_hugetlb_1g", hugetlb_1g)
        .secs(120)
        .long(600)
        .no_ab(),
    Test::new("stress/mem_memfd", memfd)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/mem_memfd_holes", memfd_holes)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/mem_file", file)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/mem_file_private", file_private)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/mem_userfault", userfault)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/mem_userfault_wp", userfault_wp)
        .secs(60)
        .long(600)
        .no_ab(),
    Test::new("stress/mem_slot_moves", slot_moves)
        .secs(60)
        .long(600)
        .no_ab(),
];

const BOTH: i32 = PROT_READ | PROT_WRITE;

/// Starts the sweeps anew: the memory is all zero again.
fn restart(s: &Sweeper) {
    let mut r = s.g.cpu.regs();
    r.r12 = 0;
    s.g.cpu.set_regs(&r);
}

/// A pool of `n` pages of `kib`; None if the kernel cannot make it.
fn pool(kib: u64, n: u64) -> Option<Setting> {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages");
    let s = Setting::new(&path, n)?;
    (number(&path) >= Some(n)).then_some(s)
}

fn hugetlb_2m() {
    let Some(_pool) = pool(2048, SIZE >> 21) else {
        harness::skip("no pool of 2 MiB pages")
    };
    let flags = MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    let m = crate::must!(Map::new(SIZE as usize, BOTH, flags, -1, 0));
    let s = Sweeper::new(m.addr(), SIZE);
    for _ in 0..rounds(3, 40) {
        let swept = s.while_sweeping(&[&s.g.cpu], |p| {
            for i in 0..10usize {
                let at = (i % 2) << 21;
                eq!(m.protect(at, 1 << 21, PROT_READ), Ok(0));
                eq!(m.protect(at, 1 << 21, BOTH), Ok(0));
                p[0].advance(1);
            }
        });
        check_pages(&m, 0, SIZE, 4096, swept[0]);
        // Pages go back to the pool; fresh ones are zero.
        eq!(m.advise(0, SIZE as usize, libc::MADV_DONTNEED), Ok(0));
        restart(&s);
    }
}

fn hugetlb_1g() {
    if sys::cpuid(0x8000_0001, 0)[3] >> 26 & 1 == 0 {
        harness::skip("this CPU has no 1 GiB pages");
    }
    let Some(_pool) = pool(1 << 20, 1) else {
        harness::skip(
            "no page of 1 GiB is free: give the VM more memory, and `hugepagesz=1G hugepages=1`",
        )
    };
    let flags = MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB;
    let m = crate::must!(Map::new(1 << 30, BOTH, flags, -1, 0));
    // The guest's address has to be a multiple of 1 GiB as well.
    let s = Sweeper::without_memory(1 << 30);
    eq!(
        s.g.vm
            .region(super::sweep::SLOT, 0, 1 << 30, 1 << 30, m.addr()),
        Ok(0)
    );
    let mut r = s.g.cpu.regs();
    (r.rsi, r.rdi, r.rbp) = (1 << 30, 1 << 12, 1 << 18);
    s.g.cpu.set_regs(&r);
    let p = Progress::default();
    for _ in 0..rounds(3, 30) {
        if !s.sweep(&s.g.cpu, &p) {
            return;
        }
        eq!(m.protect(0, 1 << 30, PROT_READ), Ok(0));
        eq!(m.protect(0, 1 << 30, BOTH), Ok(0));
    }
    check_pages(&m, 0, 1 << 30, 1 << 18, s.swept(&s.g.cpu));
}

fn memfd() {
    let f = crate::must!(sys::memfd("guest", 0));
    eq!(sys::truncate(f.raw(), SIZE), Ok(0));
    let mine = crate::must!(Map::new(SIZE as usize, BOTH, MAP_SHARED, f.raw(), 0));
    let other = crate::must!(Map::new(SIZE as usize, BOTH, MAP_SHARED, f.raw(), 0));
    let s = Sweeper::new(mine.addr(), SIZE);
    let p = Progress::default();
    for i in 0..rounds(10, 300) {
        for _ in 0..2 {
            if !s.sweep(&s.g.cpu, &p) {
                return;
            }
        }
        // Another mapping of the same file sees what the guest wrote.
        check_pages(&other, 0, SIZE, 4096, 2);
        if i % 2 == 0 {
            eq!(sys::punch_hole(f.raw(), 0, SIZE), Ok(0));
        } else {
            // A file that is shorter than the slot: the guest has no memory there, until it grows again.
            eq!(sys::truncate(f.raw(), 0), Ok(0));
            let e = s.g.cpu.run();
            check!(
                matches!(e, crate::kvm::Exit::Err(libc::EFAULT, _)),
                "{e:x?}"
            );
            eq!(sys::truncate(f.raw(), SIZE), Ok(0));
        }
        restart(&s);
    }
    let swept = s.while_sweeping(&[&s.g.cpu], |p| {
        for i in 0..rounds(50, 2000) {
            // Written back to memory by another mapping while the guest runs: the last word of each page is not the guest's to lose.
            other.wr(((i * 4096) % SIZE) as usize + 2048, i);
            if i % 16 == 0 {
                p[0].advance(1);
            }
        }
    });
    check_pages(&other, 0, SIZE, 4096, swept[0]);
}

/// Holes are made in the file, and it becomes shorter and longer, under a guest that goes over it.
fn memfd_holes() {
    let f = crate::must!(sys::memfd("guest", 0));
    eq!(sys::truncate(f.raw(), SIZE), Ok(0));
    let mine = crate::must!(Map::new(SIZE as usize, BOTH, MAP_SHARED, f.raw(), 0));
    let other = crate::must!(Map::new(SIZE as usize, BOTH, MAP_SHARED, f.raw(), 0));
    let s = Sweeper::with_holes(mine.addr(), SIZE);
    let mut rng = Random::new(8);
    let mut efaults = 0;
    for _ in 0..rounds(5, 100) {
        let swept = s.while_sweeping(&[&s.g.cpu], |p| {
            for i in 0..24 {
                let (at, n) = range(&mut rng, SIZE, 200);
                if i % 4 == 3 {
                    eq!(sys::truncate(f.raw(), at as u64), Ok(0));
                    // The guest gets to where there is nothing, and waits.
                    let before = p[0].efaults.load(Ordering::SeqCst);
                    wait_for("EFAULT", || {
                        p[0].efaults.load(Ordering::SeqCst) > before || p[0].over()
                    });
                    efaults += 1;
                    eq!(sys::truncate(f.raw(), SIZE), Ok(0));
                } else {
                    eq!(sys::punch_hole(f.raw(), at as u64, n as u64), Ok(0));
                }
                if p[0].over() {
                    return;
                }
            }
        });
        // A page that the guest still had after it was taken out of the file would have the words, and the file not.
        check_pages(&other, 0, SIZE, 4096, swept[0]);
    }
    check!(
        s.holes() > 0,
        "the guest saw no hole; EFAULT {efaults} times"
    );
}

/// A file system on a RAM disk while it lives.
struct Disk;

const MOUNT: &str = "/run/disk";

impl Disk {
    fn mount() -> Self {
        ram_disks();
        tool(&["mke2fs", "/dev/ram1"]);
        let _ = std::fs::create_dir(MOUNT);
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !known.lines().any(|l| l.trim_start() == "ext4") {
            harness::skip("the kernel has no ext4");
        }
        tool(&["mount", "-t", "ext4", "/dev/ram1", MOUNT]);
        Self
    }

    /// A file of `len` zero bytes.
    fn file(len: u64) -> OwnedFd {
        let path = format!("{MOUNT}/memory");
        crate::must!(std::fs::write(&path, vec![0u8; len as usize])
            .map_err(|e| e.raw_os_error().unwrap_or(0)));
        crate::must!(OwnedFd::open(&path, libc::O_RDWR))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let r = std::process::Command::new("busybox")
            .args(["umount", MOUNT])
            .status();
        check!(r.is_ok_and(|s| s.success()), "umount");
    }
}

/// What of the file is on the disk: all of its cache is thrown away first.
fn on_disk(f: &OwnedFd, at: u64) -> u64 {
    let mut b = [0u8; 8];
    eq!(sys::pread(f.raw(), &mut b, at), Ok(8));
    u64::from_le_bytes(b)
}

fn file() {
    let _disk = Disk::mount();
    let size = SIZE / 2;
    let f = Disk::file(size);
    let m = crate::must!(Map::new(size as usize, BOTH, MAP_SHARED, f.raw(), 0));
    let s = Sweeper::new(m.addr(), size);
    // Writing back makes pages read-only, so that the next write makes them dirty again: if the guest could go on writing through its
    // old mapping, that write would never reach the disk.
    let swept = s.while_sweeping(&[&s.g.cpu], |p| {
        for _ in 0..rounds(10, 300) {
            eq!(m.sync(), Ok(0));
            p[0].advance(1);
            check!(set("/proc/sys/vm/drop_caches", 1), "drop_caches");
            if p[0].over() {
                break;
            }
        }
    });
    check_pages(&m, 0, size, 4096, swept[0]);
    eq!(m.sync(), Ok(0));
    drop((s, m));
    check!(set("/proc/sys/vm/drop_caches", 1), "drop_caches");
    let wrong = (0..size)
        .step_by(4096)
        .filter(|at| on_disk(&f, *at) != swept[0])
        .count();
    eq!(wrong, 0, "pages on the disk that do not hold {}", swept[0]);
}

fn file_private() {
    // A private mapping of a file: read from the file until the guest writes, then a copy that the file never sees.
    let _disk = Disk::mount();
    let size = SIZE / 4;
    let f = Disk::file(size);
    let m = crate::must!(Map::new(size as usize, BOTH, MAP_PRIVATE, f.raw(), 0));
    let s = Sweeper::new(m.addr(), size);
    for _ in 0..rounds(5, 100) {
        let swept = s.while_sweeping(&[&s.g.cpu], |p| {
            check!(set("/proc/sys/vm/drop_caches", 1), "drop_caches");
            p[0].advance(3);
        });
        check_pages(&m, 0, size, 4096, swept[0]);
        eq!(on_disk(&f, 0), 0, "the file");
        eq!(m.advise(0, size as usize, libc::MADV_DONTNEED), Ok(0));
        restart(&s);
    }
}

/// ioctls of userfaultfd(2), and the words of their arguments.
mod uffd {
    pub const API: u64 = 0xc018_aa3f;
    pub const REGISTER: u64 = 0xc020_aa00;
    pub const COPY: u64 = 0xc028_aa03;
    pub const WRITEPROTECT: u64 = 0xc018_aa06;
    pub const MODE_MISSING: u64 = 1;
    pub const MODE_WP: u64 = 2;
    pub const EVENT_PAGEFAULT: u8 = 0x12;
}

/// A userfaultfd for `m`; the test is skipped where there is none.
fn user_faults(m: &Map, size: u64, mode: u64) -> OwnedFd {
    let Ok(fd) = sys::userfaultfd() else {
        harness::skip("no userfaultfd here")
    };
    eq!(
        sys::ioctl_with(fd.raw(), uffd::API, &mut [0xaau64, 1, 0]),
        Ok(0)
    );
    eq!(
        sys::ioctl_with(fd.raw(), uffd::REGISTER, &mut [m.addr(), size, mode, 0]),
        Ok(0)
    );
    fd
}

/// The next fault: its address. None if there is none within a moment.
fn next_fault(fd: &OwnedFd) -> Option<u64> {
    if !sys::readable(fd.raw(), 5) {
        return None;
    }
    let mut b = [0u8; 32];
    if sys::read(fd.raw(), &mut b) != Ok(32) || b[0] != uffd::EVENT_PAGEFAULT {
        return None;
    }
    b[16..24]
        .try_into()
        .ok()
        .map(|a| u64::from_le_bytes(a) & !0xfff)
}

/// Serves faults in a thread while `body` runs; gives how many there were.
fn served(fd: &OwnedFd, serve: impl Fn(u64) + Sync, body: impl FnOnce(&AtomicU64)) -> u64 {
    let (stop, n) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                if let Some(at) = next_fault(fd) {
                    serve(at);
                    // Only now: who waited for the last one may protect all pages again, and this one must not be opened then.
                    n.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        body(&n);
        stop.store(true, Ordering::SeqCst);
    });
    n.load(Ordering::SeqCst)
}

fn userfault() {
    let size = SIZE / 8;
    let m = Map::anon(size as usize);
    eq!(m.advise(0, size as usize, libc::MADV_NOHUGEPAGE), Ok(0));
    let fd = user_faults(&m, size, uffd::MODE_MISSING);
    let page = Map::anon(4096);
    let s = Sweeper::new(m.addr(), size);
    for i in 0..rounds(6, 200) {
        // Each page arrives with the number that the guest expects, and the sweeps go on from there.
        let start = 100 * i;
        page.wr(0, start);
        page.wr(4088, start);
        let mut r = s.g.cpu.regs();
        r.r12 = start;
        s.g.cpu.set_regs(&r);
        let copy = |at: u64| {
            let r = sys::ioctl_with(fd.raw(), uffd::COPY, &mut [at, page.addr(), 4096, 0, 0]);
            check!(matches!(r, Ok(0) | Err(libc::EEXIST)), "UFFDIO_COPY: {r:?}");
        };
        let n = served(&fd, copy, |_| {
            let p = Progress::default();
            let _ = s.sweep(&s.g.cpu, &p) && s.sweep(&s.g.cpu, &p);
        });
        eq!(n, size / 4096, "faults that user space served");
        check_pages(&m, 0, size, 4096, start + 2);
        eq!(m.advise(0, size as usize, libc::MADV_DONTNEED), Ok(0));
    }
    // While a fault waits to be served, a signal must get the vCPU out, and a change of the slots must get through afterwards.
    sys::interrupting(libc::SIGUSR1);
    let tid = std::sync::atomic::AtomicI32::new(0);
    std::thread::scope(|t| {
        let h = t.spawn(|| {
            tid.store(sys::gettid(), Ordering::SeqCst);
            s.g.cpu.run()
        });
        wait_for("the fault", || next_fault(&fd).is_some());
        let _ = sys::tkill(tid.load(Ordering::SeqCst), libc::SIGUSR1);
        let e = h.join();
        check!(
            matches!(e, Ok(crate::kvm::Exit::Err(libc::EINTR, _))),
            "{e:x?}"
        );
    });
    eq!(
        s.g.vm.region(super::sweep::SLOT, 0, super::sweep::AT, 0, 0),
        Ok(0)
    );
}

fn userfault_wp() {
    let size = SIZE / 8;
    let m = Map::anon(size as usize);
    eq!(m.advise(0, size as usize, libc::MADV_NOHUGEPAGE), Ok(0));
    m.fill(0, size as usize, 0);
    let fd = user_faults(&m, size, uffd::MODE_WP);
    let s = Sweeper::new(m.addr(), size);
    let p = Progress::default();
    let protect = |at: u64, n: u64, on: bool| {
        let r = sys::ioctl_with(fd.raw(), uffd::WRITEPROTECT, &mut [at, n, u64::from(on)]);
        eq!(r, Ok(0), "UFFDIO_WRITEPROTECT");
    };
    for _ in 0..rounds(5, 200) {
        protect(m.addr(), size, true);
        let n = served(
            &fd,
            |at| protect(at, 4096, false),
            |_| {
                let _ = s.sweep(&s.g.cpu, &p) && s.sweep(&s.g.cpu, &p);
            },
        );
        // Not one write may pass by: each page reports its first.
        eq!(n, size / 4096, "writes that user space was told of");
    }
    check_pages(&m, 0, size, 4096, s.swept(&s.g.cpu));
    // And while the guest writes all the time.
    let n = served(
        &fd,
        |at| protect(at, 4096, false),
        |n| {
            let swept = s.while_sweeping(&[&s.g.cpu], |p| {
                for _ in 0..rounds(10, 300) {
                    let before = n.load(Ordering::SeqCst);
                    protect(m.addr(), size, true);
                    wait_for("faults", || {
                        n.load(Ordering::SeqCst) >= before + size / 4096 || p[0].over()
                    });
                }
            });
            check_pages(&m, 0, size, 4096, swept[0]);
        },
    );
    check!(n >= rounds(10, 300) * size / 4096, "{n} faults");
}

fn slot_moves() {
    // The guest's slot moves to another guest address, is deleted and made again, between two sweeps; what the guest wrote stays.
    let m = Map::anon(SIZE as usize);
    let s = Sweeper::new(m.addr(), SIZE);
    let p = Progress::default();
    let mut at = super::sweep::AT;
    for i in 0..rounds(30, 1000) {
        if !s.sweep(&s.g.cpu, &p) {
            return;
        }
        let to = super::sweep::AT + (i % 7) * 0x20_1000;
        if i % 3 == 0 || to == at {
            eq!(s.g.vm.region(super::sweep::SLOT, 0, at, 0, m.addr()), Ok(0));
        }
        eq!(
            s.g.vm.region(super::sweep::SLOT, 0, to, SIZE, m.addr()),
            Ok(0)
        );
        at = to;
        let mut r = s.g.cpu.regs();
        r.rsi = at;
        s.g.cpu.set_regs(&r);
    }
    check_pages(&m, 0, SIZE, 4096, s.swept(&s.g.cpu));
}
