// SPDX-License-Identifier: GPL-2.0
//! Raw system calls, mapped memory, views of ABI structs as bytes.
//!
//! The tests must be able to hand the kernel every kind of bad argument, so they go through the system call itself
//! and not through a wrapper crate. What is checked here is only that the test program does not corrupt itself.

use std::ffi::CString;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::OnceLock;

mod tasks;
pub use tasks::*;

/// What a system call gives: its value, or the errno.
pub type Res = Result<i32, i32>;

/// A type all of whose bit patterns are valid, so that it may be viewed and filled as bytes.
///
/// # Safety
/// The type holds no references, no `bool`, no enum; it is `repr(C)` or a primitive.
pub unsafe trait Abi: Copy {}

macro_rules! abi {
    ($($t:ty),* $(,)?) => { $(
        // SAFETY: integers and C structs of integers and unions of these.
        unsafe impl Abi for $t {}
    )* };
}
use kvm_bindings as kb;
abi!(
    i8,
    u8,
    u16,
    u32,
    u64,
    i32,
    kb::kvm_regs,
    kb::kvm_sregs,
    kb::kvm_segment,
    kb::kvm_fpu,
    kb::kvm_xcrs,
    kb::kvm_mp_state,
    kb::kvm_interrupt,
    kb::kvm_run,
    kb::kvm_userspace_memory_region,
    kb::kvm_userspace_memory_region2,
    kb::kvm_cpuid_entry2,
    kb::kvm_msr_entry,
    kb::kvm_enable_cap,
    kb::kvm_pit_config,
    kb::kvm_lapic_state,
    kb::kvm_vcpu_events,
    kb::kvm_debugregs,
    kb::kvm_device_attr,
    kb::kvm_x86_mce,
    kb::kvm_guest_debug,
    kb::kvm_sregs2,
    kb::kvm_clock_data,
    kb::kvm_translation,
    kb::kvm_ioeventfd,
    kb::kvm_msi,
    crate::kvm::CpuidBuf,
    crate::kvm::MsrsBuf,
);
// SAFETY: an array of such a type has no bytes of its own.
unsafe impl<T: Abi, const N: usize> Abi for [T; N] {}

/// A value with every byte equal to `byte`.
pub fn filled<T: Abi>(byte: u8) -> T {
    let mut v = std::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the whole of `v` is written, and every bit pattern of an `Abi` type is valid.
    unsafe {
        ptr::write_bytes(v.as_mut_ptr().cast::<u8>(), byte, size_of::<T>());
        v.assume_init()
    }
}

/// A value of zero bytes.
pub fn zeroed<T: Abi>() -> T {
    filled(0)
}

/// The bytes of `v`.
pub fn bytes_of<T: Abi>(v: &T) -> Vec<u8> {
    let mut out = vec![0u8; size_of::<T>()];
    // SAFETY: copies as many bytes as `v` has; the kernel's ABI structs name their padding.
    unsafe { ptr::copy_nonoverlapping(ptr::from_ref(v).cast::<u8>(), out.as_mut_ptr(), out.len()) };
    out
}

/// The last errno of this thread.
pub fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn ret(v: i32) -> Res {
    if v < 0 {
        Err(errno())
    } else {
        Ok(v)
    }
}

/// An ioctl's argument.
pub enum Arg<'a> {
    /// A number, or an address that is bad on purpose.
    Num(u64),
    /// A buffer that the kernel may read and write.
    Buf(&'a mut [u8]),
}

/// `ioctl(fd, nr, arg)`.
pub fn ioctl(fd: i32, nr: u64, arg: Arg) -> Res {
    let raw = match arg {
        Arg::Num(n) => n,
        Arg::Buf(b) => b.as_mut_ptr() as u64,
    };
    // SAFETY: a buffer is a live one of ours; a number is a scalar or an address that the test knows not to be
    // memory of this program (or to be a `Map`, which nobody holds references into).
    let r = unsafe { libc::syscall(libc::SYS_ioctl, libc::c_long::from(fd), nr, raw) };
    // A result of 2^31 and more, such as a rate that KVM_SET_TSC_KHZ took, is an int below zero, and no error.
    if r == -1 {
        Err(errno())
    } else {
        Ok(r as i32)
    }
}

/// `ioctl` with a typed argument, which must not be smaller than what the kernel touches.
pub fn ioctl_with<T: Abi>(fd: i32, nr: u64, v: &mut T) -> Res {
    // SAFETY: the bytes of a live value whose every bit pattern is valid.
    let b =
        unsafe { std::slice::from_raw_parts_mut(ptr::from_mut(v).cast::<u8>(), size_of::<T>()) };
    ioctl(fd, nr, Arg::Buf(b))
}

/// A file descriptor that is closed when dropped.
#[derive(Debug)]
pub struct OwnedFd(AtomicI32);

impl OwnedFd {
    /// Takes ownership of `fd`.
    pub fn new(fd: i32) -> Self {
        Self(AtomicI32::new(fd))
    }
    /// Opens `path` with `flags`.
    pub fn open(path: &str, flags: i32) -> Result<Self, i32> {
        let c = CString::new(path).map_err(|_| libc::EINVAL)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        ret(unsafe { libc::open(c.as_ptr(), flags | libc::O_CLOEXEC) }).map(Self::new)
    }
    /// The number.
    pub fn raw(&self) -> i32 {
        self.0.load(Ordering::Relaxed)
    }
    /// Closes now; later uses give EBADF.
    pub fn close(&self) -> Res {
        let fd = self.0.swap(-1, Ordering::Relaxed);
        // SAFETY: the descriptor is ours and is not used again.
        ret(unsafe { libc::close(fd) })
    }
}

impl Drop for OwnedFd {
    fn drop(&mut self) {
        if self.raw() >= 0 {
            let _ = self.close();
        }
    }
}

/// Memory made by mmap, which the kernel, a guest and other threads may change at any time.
#[derive(Debug)]
pub struct Map {
    at: *mut u8,
    len: usize,
}

// SAFETY: every access goes through volatile reads and writes of plain bytes.
unsafe impl Send for Map {}
// SAFETY: as above; a race gives some mixture of bytes, which is what the tests expect of it.
unsafe impl Sync for Map {}

impl Map {
    /// mmap with the given protection, flags, descriptor and offset.
    pub fn new(len: usize, prot: i32, flags: i32, fd: i32, off: i64) -> Result<Self, i32> {
        // SAFETY: no fixed address, so no mapping of this program is replaced.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd, off) };
        if at == libc::MAP_FAILED {
            return Err(errno());
        }
        Ok(Self { at: at.cast(), len })
    }
    /// Private zeroed memory of `len` bytes, aligned to 2 MiB so that large pages are possible.
    pub fn anon(len: usize) -> Self {
        const ALIGN: usize = 2 << 20;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let big = Self::new(
            len + ALIGN,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
        .unwrap_or_else(|e| panic!("mmap of {len} bytes: errno {e}"));
        let start = (big.at as usize).next_multiple_of(ALIGN);
        let head = start - big.at as usize;
        let (at, tail) = (big.at, ALIGN - head);
        std::mem::forget(big);
        // SAFETY: the two ends of a mapping of ours, to which no reference exists.
        unsafe {
            if head > 0 {
                libc::munmap(at.cast(), head);
            }
            if tail > 0 {
                libc::munmap(at.add(head + len).cast(), tail);
            }
            Self {
                at: at.add(head),
                len,
            }
        }
    }
    /// The address.
    pub fn addr(&self) -> u64 {
        self.at as u64
    }
    fn check(&self, off: usize, n: usize) {
        assert!(
            off.checked_add(n).is_some_and(|e| e <= self.len),
            "offset {off:#x}+{n} outside the map"
        );
    }
    /// Reads a value at `off`.
    pub fn rd<T: Abi>(&self, off: usize) -> T {
        self.check(off, size_of::<T>());
        // SAFETY: inside the mapping; any bytes are a valid `T`; alignment is not assumed.
        unsafe {
            if self.at.add(off).cast::<T>().is_aligned() {
                ptr::read_volatile(self.at.add(off).cast::<T>())
            } else {
                ptr::read_unaligned(self.at.add(off).cast::<T>())
            }
        }
    }
    /// Writes a value at `off`.
    pub fn wr<T: Abi>(&self, off: usize, v: T) {
        self.check(off, size_of::<T>());
        // SAFETY: inside the mapping; alignment is not assumed.
        unsafe {
            if self.at.add(off).cast::<T>().is_aligned() {
                ptr::write_volatile(self.at.add(off).cast::<T>(), v);
            } else {
                ptr::write_unaligned(self.at.add(off).cast::<T>(), v);
            }
        }
    }
    /// Copies `b` to `off`.
    pub fn write(&self, off: usize, b: &[u8]) {
        for (i, x) in b.iter().enumerate() {
            self.wr(off + i, *x);
        }
    }
    /// Copies `b` to `off` at once; for much memory that no guest is using.
    pub fn put(&self, off: usize, b: &[u8]) {
        self.check(off, b.len());
        // SAFETY: inside the mapping, to which no reference exists.
        unsafe { ptr::copy_nonoverlapping(b.as_ptr(), self.at.add(off), b.len()) };
    }
    /// Reads `n` bytes at `off` at once; for much memory that no guest is using.
    pub fn get(&self, off: usize, n: usize) -> Vec<u8> {
        self.check(off, n);
        let mut b = vec![0; n];
        // SAFETY: inside the mapping, into a buffer of this length.
        unsafe { ptr::copy_nonoverlapping(self.at.add(off), b.as_mut_ptr(), n) };
        b
    }
    /// Replaces a part by fresh private memory of another protection (mmap with MAP_FIXED).
    pub fn replace(&self, off: usize, n: usize, prot: i32) -> Res {
        self.check(off, n);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the range is ours and no reference into it exists.
        let p = unsafe { libc::mmap(self.at.add(off).cast(), n, prot, flags, -1, 0) };
        if p == libc::MAP_FAILED {
            return Err(errno());
        }
        Ok(0)
    }
    /// Reads `n` bytes at `off`.
    pub fn read(&self, off: usize, n: usize) -> Vec<u8> {
        (0..n).map(|i| self.rd(off + i)).collect()
    }
    /// Sets `n` bytes at `off` to `byte`.
    pub fn fill(&self, off: usize, n: usize, byte: u8) {
        self.check(off, n);
        // SAFETY: inside the mapping, to which no reference exists.
        unsafe { ptr::write_bytes(self.at.add(off), byte, n) };
    }
    /// mprotect on a part.
    pub fn protect(&self, off: usize, n: usize, prot: i32) -> Res {
        self.check(off, n);
        // SAFETY: the range is ours; the caller does not touch it against its protection.
        ret(unsafe { libc::mprotect(self.at.add(off).cast(), n, prot) })
    }
    /// madvise on a part.
    pub fn advise(&self, off: usize, n: usize, advice: i32) -> Res {
        self.check(off, n);
        // SAFETY: the range is ours and no reference into it exists.
        ret(unsafe { libc::madvise(self.at.add(off).cast(), n, advice) })
    }
    /// msync(MS_SYNC) of all of it.
    pub fn sync(&self) -> Res {
        // SAFETY: the range is ours.
        ret(unsafe { libc::msync(self.at.cast(), self.len, libc::MS_SYNC) })
    }
    /// Moves the pages `from..from+n` of this mapping over `to..to+n` of it (mremap with MREMAP_FIXED).
    pub fn remap(&self, from: usize, to: usize, n: usize) -> Res {
        self.check(from, n);
        self.check(to, n);
        // SAFETY: both ranges are ours and no reference into them exists.
        let p = unsafe {
            libc::mremap(
                self.at.add(from).cast(),
                n,
                n,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                self.at.add(to),
            )
        };
        if p == libc::MAP_FAILED {
            Err(errno())
        } else {
            Ok(0)
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; `self` is its only handle.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// An address in the middle of nowhere: mapped once without access, so that nothing else can come to lie there.
pub fn bad_addr() -> u64 {
    static BAD: OnceLock<u64> = OnceLock::new();
    *BAD.get_or_init(|| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let m = Map::new(1 << 20, libc::PROT_NONE, flags, -1, 0).expect("a PROT_NONE mapping");
        let a = m.addr();
        std::mem::forget(m);
        a + 4096
    })
}

/// A pipe: (read end, write end).
pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut p = [0i32; 2];
    // SAFETY: an array of two ints.
    let r = unsafe { libc::pipe2(p.as_mut_ptr(), libc::O_CLOEXEC) };
    assert!(r == 0, "pipe: errno {}", errno());
    (OwnedFd::new(p[0]), OwnedFd::new(p[1]))
}

/// An eventfd that counts, and whose reads do not wait.
pub fn eventfd() -> OwnedFd {
    // SAFETY: no memory is handed over.
    match ret(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) }) {
        Ok(fd) => OwnedFd::new(fd),
        Err(e) => panic!("eventfd: errno {e}"),
    }
}

/// Takes what an eventfd has counted.
pub fn counted(fd: &OwnedFd) -> u64 {
    let mut b = [0u8; 8];
    match read(fd.raw(), &mut b) {
        Ok(8) => u64::from_le_bytes(b),
        Err(libc::EAGAIN) => 0,
        r => panic!("read of an eventfd: {r:?}"),
    }
}

/// dup2(2).
pub fn dup2(from: i32, to: i32) -> Res {
    // SAFETY: descriptors are numbers.
    ret(unsafe { libc::dup2(from, to) })
}

/// read(2) into a buffer.
pub fn read(fd: i32, b: &mut [u8]) -> Result<usize, i32> {
    // SAFETY: a live buffer of this length.
    let n = unsafe { libc::read(fd, b.as_mut_ptr().cast(), b.len()) };
    usize::try_from(n).map_err(|_| errno())
}

/// write(2) of a buffer.
pub fn write(fd: i32, b: &[u8]) -> Result<usize, i32> {
    // SAFETY: a live buffer of this length.
    let n = unsafe { libc::write(fd, b.as_ptr().cast(), b.len()) };
    usize::try_from(n).map_err(|_| errno())
}

/// dup(2).
pub fn dup(fd: i32) -> Res {
    // SAFETY: descriptors are numbers.
    ret(unsafe { libc::dup(fd) })
}

/// Waits until `fd` can be read, at most `ms` milliseconds.
pub fn readable(fd: i32, ms: i32) -> bool {
    let mut p = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live pollfd.
    unsafe { libc::poll(&mut p, 1, ms) > 0 }
}

/// lseek to the end.
pub fn seek_end(fd: i32) -> Res {
    // SAFETY: no memory is involved.
    ret(unsafe { libc::lseek(fd, 0, libc::SEEK_END) } as i32)
}

/// delete_module(2) without waiting.
pub fn delete_module(name: &str) -> Res {
    let c = CString::new(name).map_err(|_| libc::EINVAL)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    ret(unsafe { libc::syscall(libc::SYS_delete_module, c.as_ptr(), libc::O_NONBLOCK) } as i32)
}

/// Loads the kernel module in the file `path`.
pub fn load_module(path: &str, parameters: &str) -> Res {
    let f = OwnedFd::open(path, libc::O_RDONLY)?;
    let c = CString::new(parameters).map_err(|_| libc::EINVAL)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    ret(unsafe { libc::syscall(libc::SYS_finit_module, f.raw(), c.as_ptr(), 0) } as i32)
}

/// pread(2).
pub fn pread(fd: i32, b: &mut [u8], at: u64) -> Result<usize, i32> {
    // SAFETY: a live buffer of this length.
    let n = unsafe { libc::pread(fd, b.as_mut_ptr().cast(), b.len(), at as i64) };
    usize::try_from(n).map_err(|_| errno())
}

/// perf_event_open(2) for the calling thread on any CPU; `attr` says its own size.
pub fn perf_event_open(attr: &mut [u64; 16]) -> Res {
    const CLOEXEC: u64 = 8;
    // SAFETY: a live structure, of the size that it names.
    let r = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attr.as_mut_ptr(),
            0,
            -1,
            -1,
            CLOEXEC,
        )
    };
    ret(r as i32)
}

/// memfd_create(2).
pub fn memfd(name: &str, flags: u32) -> Result<OwnedFd, i32> {
    let c = CString::new(name).map_err(|_| libc::EINVAL)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    ret(unsafe { libc::memfd_create(c.as_ptr(), flags | libc::MFD_CLOEXEC) }).map(OwnedFd::new)
}

/// ftruncate(2).
pub fn truncate(fd: i32, len: u64) -> Res {
    // SAFETY: no memory is involved but mappings of the file, to which nobody holds references.
    ret(unsafe { libc::ftruncate(fd, len as i64) })
}

/// Makes a hole in a file: it reads as zeroes there.
pub fn punch_hole(fd: i32, at: u64, len: u64) -> Res {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: as above.
    ret(unsafe { libc::fallocate(fd, mode, at as i64, len as i64) })
}

/// userfaultfd(2), also for faults that the kernel takes. It does not block: only so can it be waited for.
pub fn userfaultfd() -> Result<OwnedFd, i32> {
    // SAFETY: no memory is involved.
    ret(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) } as i32)
        .map(OwnedFd::new)
}

/// Waits for an RCU grace period: membarrier(MEMBARRIER_CMD_GLOBAL).
pub fn rcu_grace_period() -> Res {
    // SAFETY: no memory is involved.
    ret(unsafe { libc::syscall(libc::SYS_membarrier, 1, 0, 0) } as i32)
}

/// kexec_file_load(2): the kernel to run next, or the one for after a crash.
pub fn kexec_load(kernel: &str, initrd: &str, cmdline: &str, on_crash: bool) -> Res {
    const KEXEC_FILE_ON_CRASH: u64 = 2;
    let kernel = OwnedFd::open(kernel, libc::O_RDONLY)?;
    let initrd = OwnedFd::open(initrd, libc::O_RDONLY)?;
    let line = CString::new(cmdline).map_err(|_| libc::EINVAL)?;
    let flags = if on_crash { KEXEC_FILE_ON_CRASH } else { 0 };
    let len = line.as_bytes_with_nul().len();
    // SAFETY: a NUL-terminated string of that length that outlives the call.
    ret(unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.raw(),
            initrd.raw(),
            len,
            line.as_ptr(),
            flags,
        )
    } as i32)
}

/// reboot(2) at once: into the loaded kernel, or the machine's reset.
pub fn reboot(kexec: bool) -> Res {
    let how = if kexec {
        libc::LINUX_REBOOT_CMD_KEXEC
    } else {
        libc::LINUX_REBOOT_CMD_RESTART
    };
    // SAFETY: no memory is involved.
    ret(unsafe { libc::reboot(how) })
}

/// CPUID on the CPU that runs this.
pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    // SAFETY: every x86-64 CPU has the instruction.
    let r = unsafe { std::arch::x86_64::__cpuid_count(leaf, sub) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// RDTSC.
pub fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets user space use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Is this a CPU with AMD's SVM, whoever emulates it?
pub fn on_amd() -> bool {
    cpuid(0, 0)[1] == u32::from_le_bytes(*b"Auth")
}

/// Is this machine QEMU's TCG? It leaves out checks that every CPU makes: segment limits, reserved bits of CR0 and CR3.
pub fn on_tcg() -> bool {
    cpuid(1, 0)[2] >> 31 == 1 && cpuid(0x4000_0000, 0)[1] == u32::from_le_bytes(*b"TCGT")
}

/// Is this machine Bochs with an AMD CPU? Its SVM (3.0) loads neither DR6 nor CR2 for an injected fault, and a guest's
/// single step ends in a triple fault of the host, whatever KVM does. (ACPI tables of this maker, and no hypervisor. The debug kernel
/// has no PCI, turns ACPI off for that and shows no tables: there `tools/env/vm.sh` has said where this runs.)
pub fn on_bochs_svm() -> bool {
    let told = std::env::var_os("LODGE_EMULATOR").is_some_and(|e| e == "bochs");
    let bochs = told
        || std::fs::read("/sys/firmware/acpi/tables/FACP")
            .is_ok_and(|t| t.windows(5).any(|w| w == b"BOCHS"));
    bochs && cpuid(1, 0)[2] >> 31 == 0 && on_amd()
}

/// Does this machine lose an INT n whose delivery leaves the guest for a page that is not mapped yet? Bochs' SVM names in EXITINTINFO what
/// was delivered before it, and that is delivered again. Where large pages are mapped, no test's guest leaves there.
pub fn loses_int_n() -> bool {
    let large = std::fs::read_to_string("/sys/module/kvm/parameters/large_pages");
    on_bochs_svm() && large.is_ok_and(|v| v.trim() == "N")
}

/// Skips a test of INT n where [`loses_int_n`].
pub fn needs_int_n() {
    if loses_int_n() {
        crate::harness::skip("Bochs' SVM loses an INT n that exits, and with small pages it does");
    }
}

/// Does the hardware run guests in every mode? An Intel CPU without unrestricted guest, or a KVM that was told to do without, does not.
pub fn unrestricted_guest() -> bool {
    let parameter = "/sys/module/kvm_intel/parameters/unrestricted_guest";
    std::fs::read_to_string(parameter).map_or(true, |s| s.trim() == "Y")
}

/// Empties what dmesg shows. Those who read /dev/kmsg still see all of it.
pub fn clear_kernel_log() {
    const SYSLOG_ACTION_CLEAR: libc::c_int = 5;
    // SAFETY: no memory is involved.
    let _ = unsafe { libc::klogctl(SYSLOG_ACTION_CLEAR, ptr::null_mut(), 0) };
}
