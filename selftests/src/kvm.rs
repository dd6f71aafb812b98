// SPDX-License-Identifier: GPL-2.0
//! The KVM descriptors: ioctl numbers, and thin wrappers that record every call in comparison mode.

use crate::record;
use crate::sys::{self, Abi, Arg, Map, OwnedFd, Res};
use crate::{check, eq};
use kvm_bindings::*;
use std::mem::offset_of;

const fn ioc(dir: u64, nr: u64, size: usize) -> u64 {
    (dir << 30) | ((size as u64) << 16) | (0xae << 8) | nr
}
const fn io(nr: u64) -> u64 {
    ioc(0, nr, 0)
}
const fn iow<T>(nr: u64) -> u64 {
    ioc(1, nr, size_of::<T>())
}
const fn ior<T>(nr: u64) -> u64 {
    ioc(2, nr, size_of::<T>())
}
const fn iowr<T>(nr: u64) -> u64 {
    ioc(3, nr, size_of::<T>())
}

macro_rules! ioctls {
    ($($name:ident = $v:expr;)*) => {
        $(#[doc = stringify!($name)] pub const $name: u64 = $v;)*
        /// The name of an ioctl, or its number.
        pub fn ioctl_name(nr: u64) -> String {
            match nr {
                $($name => stringify!($name).to_owned(),)*
                _ => format!("{nr:#x}"),
            }
        }
    };
}

ioctls! {
    GET_API_VERSION = io(0x00);
    CREATE_VM = io(0x01);
    GET_MSR_INDEX_LIST = iowr::<u32>(0x02);
    CHECK_EXTENSION = io(0x03);
    GET_VCPU_MMAP_SIZE = io(0x04);
    GET_SUPPORTED_CPUID = iowr::<[u32; 2]>(0x05);
    GET_EMULATED_CPUID = iowr::<[u32; 2]>(0x09);
    CREATE_VCPU = io(0x41);
    GET_DIRTY_LOG = iow::<kvm_dirty_log>(0x42);
    SET_NR_MMU_PAGES = io(0x44);
    SET_USER_MEMORY_REGION = iow::<kvm_userspace_memory_region>(0x46);
    SET_TSS_ADDR = io(0x47);
    SET_IDENTITY_MAP_ADDR = iow::<u64>(0x48);
    SET_USER_MEMORY_REGION2 = iow::<kvm_userspace_memory_region2>(0x49);
    SET_TSC_KHZ = io(0xa2);
    GET_TSC_KHZ = io(0xa3);
    IRQ_LINE = iow::<[u32; 2]>(0x61);
    SET_GSI_ROUTING = iow::<[u32; 2]>(0x6a);
    IOEVENTFD = iow::<kvm_ioeventfd>(0x79);
    SIGNAL_MSI = iow::<kvm_msi>(0xa5);
    RUN = io(0x80);
    GET_REGS = ior::<kvm_regs>(0x81);
    SET_REGS = iow::<kvm_regs>(0x82);
    GET_SREGS = ior::<kvm_sregs>(0x83);
    SET_SREGS = iow::<kvm_sregs>(0x84);
    INTERRUPT = iow::<kvm_interrupt>(0x86);
    GET_MSRS = iowr::<[u32; 2]>(0x88);
    SET_MSRS = iow::<[u32; 2]>(0x89);
    SET_SIGNAL_MASK = iow::<u32>(0x8b);
    GET_FPU = ior::<kvm_fpu>(0x8c);
    SET_FPU = iow::<kvm_fpu>(0x8d);
    SET_CPUID2 = iow::<[u32; 2]>(0x90);
    GET_CPUID2 = iowr::<[u32; 2]>(0x91);
    GET_MP_STATE = ior::<kvm_mp_state>(0x98);
    SET_MP_STATE = iow::<kvm_mp_state>(0x99);
    NMI = io(0x9a);
    ENABLE_CAP = iow::<kvm_enable_cap>(0xa3);
    GET_MSR_FEATURE_INDEX_LIST = iowr::<u32>(0x0a);
    X86_SETUP_MCE = iow::<u64>(0x9c);
    X86_GET_MCE_CAP_SUPPORTED = ior::<u64>(0x9d);
    X86_SET_MCE = iow::<kvm_x86_mce>(0x9e);
    TRANSLATE = iowr::<kvm_translation>(0x85);
    SET_CPUID = iow::<[u32; 2]>(0x8a);
    SET_CLOCK = iow::<kvm_clock_data>(0x7b);
    GET_CLOCK = ior::<kvm_clock_data>(0x7c);
    KVMCLOCK_CTRL = io(0xad);
    SET_DEVICE_ATTR = iow::<kvm_device_attr>(0xe1);
    GET_DEVICE_ATTR = iow::<kvm_device_attr>(0xe2);
    HAS_DEVICE_ATTR = iow::<kvm_device_attr>(0xe3);
    X86_SET_MSR_FILTER = iow::<[u64; 49]>(0xc6);
    SET_GUEST_DEBUG = iow::<kvm_guest_debug>(0x9b);
    GET_VCPU_EVENTS = ior::<kvm_vcpu_events>(0x9f);
    SET_VCPU_EVENTS = iow::<kvm_vcpu_events>(0xa0);
    GET_DEBUGREGS = ior::<kvm_debugregs>(0xa1);
    SET_DEBUGREGS = iow::<kvm_debugregs>(0xa2);
    GET_XSAVE = ior::<[u8; 4096]>(0xa4);
    SET_XSAVE = iow::<[u8; 4096]>(0xa5);
    GET_SREGS2 = ior::<kvm_sregs2>(0xcc);
    SET_SREGS2 = iow::<kvm_sregs2>(0xcd);
    GET_XSAVE2 = ior::<[u8; 4096]>(0xcf);
    GET_XCRS = ior::<kvm_xcrs>(0xa6);
    SET_XCRS = iow::<kvm_xcrs>(0xa7);
}

const READS: u64 = 2;

/// The most entries that a `CpuidBuf` or `MsrsBuf` holds.
pub const MAX_ENTRIES: usize = 300;

/// `struct kvm_cpuid2` with room for entries.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CpuidBuf {
    /// Entries in use; for the GET calls the room, in.
    pub nent: u32,
    /// Padding.
    pub padding: u32,
    /// The entries.
    pub entries: [kvm_cpuid_entry2; MAX_ENTRIES],
}

/// `struct kvm_msrs` with room for entries.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MsrsBuf {
    /// Entries in use.
    pub nmsrs: u32,
    /// Padding.
    pub pad: u32,
    /// The entries.
    pub entries: [kvm_msr_entry; MAX_ENTRIES],
}

impl MsrsBuf {
    /// With these (index, value) pairs.
    pub fn of(list: &[(u32, u64)]) -> Box<Self> {
        let mut b: Box<Self> = Box::new(sys::zeroed());
        b.nmsrs = list.len() as u32;
        for (e, (index, data)) in b.entries.iter_mut().zip(list) {
            (e.index, e.data) = (*index, *data);
        }
        b
    }
}

/// A KVM file descriptor.
#[derive(Debug)]
pub struct Kfd(pub OwnedFd);

impl Kfd {
    /// An ioctl whose argument is a number, or an address that is bad on purpose.
    pub fn num(&self, nr: u64, arg: u64) -> Res {
        let r = sys::ioctl(self.0.raw(), nr, Arg::Num(arg));
        record::call(&ioctl_name(nr), &record::num(arg), r, &[]);
        r
    }
    /// An ioctl with a struct, which the kernel may fill.
    pub fn with<T: Abi>(&self, nr: u64, v: &mut T) -> Res {
        let before = sys::bytes_of(v);
        let r = sys::ioctl_with(self.0.raw(), nr, v);
        let after = sys::bytes_of(v);
        if crate::harness::recording() {
            let out = if (nr >> 30) & READS != 0 {
                after.as_slice()
            } else {
                &[]
            };
            record::call_struct(&ioctl_name(nr), nr, r, &before, out);
        }
        if (nr >> 30) & READS == 0 {
            crate::check!(before == after, "{} wrote to its argument", ioctl_name(nr));
        }
        r
    }
    /// An ioctl with a struct that is only read.
    pub fn give<T: Abi>(&self, nr: u64, v: &T) -> Res {
        let mut copy = *v;
        self.with(nr, &mut copy)
    }
    /// An ioctl that fills a struct; its memory is poisoned before, so that what the kernel leaves out shows.
    pub fn take<T: Abi>(&self, nr: u64) -> Result<T, i32> {
        let mut v: T = sys::filled(0xa5);
        self.with(nr, &mut v).map(|_| v)
    }
}

/// The system descriptor, /dev/kvm.
pub struct Kvm(pub Kfd);

impl Kvm {
    /// Opens /dev/kvm; the test ends if it cannot be.
    pub fn open() -> Self {
        match OwnedFd::open("/dev/kvm", libc::O_RDWR) {
            Ok(f) => Self(Kfd(f)),
            Err(e) => panic!("/dev/kvm: errno {e}"),
        }
    }
    /// KVM_CREATE_VM of type 0.
    pub fn vm(&self) -> Vm {
        let fd = crate::must!(sys::ioctl(self.0 .0.raw(), CREATE_VM, Arg::Num(0)));
        Vm {
            fd: Kfd(OwnedFd::new(fd)),
        }
    }
    /// KVM_CHECK_EXTENSION; an error counts as absent.
    pub fn cap(&self, cap: u32) -> i32 {
        sys::ioctl(self.0 .0.raw(), CHECK_EXTENSION, Arg::Num(cap.into())).unwrap_or(0)
    }
    /// KVM_GET_SUPPORTED_CPUID with room for all.
    pub fn cpuid(&self) -> Box<CpuidBuf> {
        let mut b: Box<CpuidBuf> = Box::new(sys::zeroed());
        b.nent = MAX_ENTRIES as u32;
        crate::must!(sys::ioctl_with(
            self.0 .0.raw(),
            GET_SUPPORTED_CPUID,
            &mut *b
        ));
        b
    }
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    /// Its descriptor.
    pub fd: Kfd,
}

impl Vm {
    /// KVM_CREATE_VCPU, with its run page mapped; the test ends if it fails.
    pub fn vcpu(&self, id: u64) -> Vcpu {
        crate::must!(self.try_vcpu(id))
    }
    /// KVM_CREATE_VCPU, with its run page mapped.
    pub fn try_vcpu(&self, id: u64) -> Result<Vcpu, i32> {
        let fd = sys::ioctl(self.fd.0.raw(), CREATE_VCPU, Arg::Num(id))?;
        let fd = Kfd(OwnedFd::new(fd));
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let run = Map::new(3 * 4096, prot, libc::MAP_SHARED, fd.0.raw(), 0)?;
        Ok(Vcpu { fd, run })
    }
    /// KVM_SET_USER_MEMORY_REGION.
    pub fn region(&self, slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Res {
        let r = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
        };
        let res = sys::ioctl_with(self.fd.0.raw(), SET_USER_MEMORY_REGION, &mut { r });
        record::call(
            "SET_USER_MEMORY_REGION",
            &format!("slot {slot} flags {flags:x} gpa {gpa:x} size {size:x}"),
            res,
            &[],
        );
        res
    }
}

/// What an eventfd is registered for: flags, address, length, value.
pub type Event = (u32, u64, u32, u64);

impl Vm {
    /// KVM_GET_DIRTY_LOG into `map`, at `offset`.
    pub fn dirty_log_into(&self, slot: u32, map: &Map, offset: usize) -> Res {
        let mut arg: [u64; 2] = [slot.into(), map.addr() + offset as u64];
        let r = sys::ioctl_with(self.fd.0.raw(), GET_DIRTY_LOG, &mut arg);
        record::call("GET_DIRTY_LOG", &format!("slot {slot:x}"), r, &[]);
        r
    }
    /// KVM_GET_DIRTY_LOG: the numbers of the pages of a slot of `pages` pages that were written.
    pub fn dirty_pages(&self, slot: u32, pages: usize) -> Result<Vec<usize>, i32> {
        let bytes = pages.div_ceil(64) * 8;
        let map = Map::anon(bytes + 8);
        map.fill(0, bytes + 8, 0xa5);
        self.dirty_log_into(slot, &map, 0)?;
        let bits = map.read(0, bytes);
        crate::check!(
            map.read(bytes, 8) == [0xa5; 8],
            "more was written than the bitmap"
        );
        let set = |page: &usize| bits[page / 8] >> (page % 8) & 1 != 0;
        let dirty: Vec<usize> = (0..bytes * 8).filter(set).collect();
        record::call(
            "dirty pages",
            &format!("{slot:x}"),
            Ok(0),
            format!("{dirty:?}").as_bytes(),
        );
        Ok(dirty)
    }
    /// KVM_IOEVENTFD with a descriptor.
    pub fn ioevent(&self, fd: i32, (flags, addr, len, datamatch): Event) -> Res {
        let mut e = kvm_ioeventfd {
            datamatch,
            addr,
            len,
            fd,
            flags,
            ..Default::default()
        };
        let r = sys::ioctl_with(self.fd.0.raw(), IOEVENTFD, &mut e);
        record::call(
            "IOEVENTFD",
            &format!("{addr:x} len {len} flags {flags:x} value {datamatch:x}"),
            r,
            &[],
        );
        r
    }
}

/// Why KVM_RUN came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Port access: bytes of all `count` items for an OUT, empty for an IN.
    Io {
        out: bool,
        size: u8,
        port: u16,
        count: u32,
        data: Vec<u8>,
    },
    /// Memory access outside the slots; data of a write.
    Mmio {
        addr: u64,
        len: u32,
        write: bool,
        data: Vec<u8>,
    },
    Hlt,
    Shutdown,
    Intr,
    IrqWindow,
    FailEntry(u64),
    Internal(u32, Vec<u64>),
    /// KVM_EXIT_DEBUG; DR6 of a #DB.
    Debug {
        vector: u32,
        pc: u64,
        dr6: u64,
    },
    Other(u32),
    /// KVM_RUN failed with this errno; exit_reason beside it.
    Err(i32, u32),
}

/// A vCPU and its run page.
pub struct Vcpu {
    /// Its descriptor.
    pub fd: Kfd,
    /// The three pages of the run mapping.
    pub run: Map,
}

const UNION: usize = offset_of!(kvm_run, __bindgen_anon_1);

impl Vcpu {
    /// `run->exit_reason`.
    pub fn exit_reason(&self) -> u32 {
        self.run.rd(offset_of!(kvm_run, exit_reason))
    }
    /// `run->immediate_exit`.
    pub fn set_immediate_exit(&self, on: bool) {
        self.run
            .wr(offset_of!(kvm_run, immediate_exit), u8::from(on));
    }
    /// `run->request_interrupt_window`.
    pub fn want_window(&self, on: bool) {
        self.run
            .wr(offset_of!(kvm_run, request_interrupt_window), u8::from(on));
    }
    /// `run->ready_for_interrupt_injection`.
    pub fn ready(&self) -> bool {
        self.run
            .rd::<u8>(offset_of!(kvm_run, ready_for_interrupt_injection))
            != 0
    }
    /// `run->if_flag`.
    pub fn if_flag(&self) -> bool {
        self.run.rd::<u8>(offset_of!(kvm_run, if_flag)) != 0
    }
    /// KVM_RUN, and its result.
    pub fn run(&self) -> Exit {
        let r = sys::ioctl(self.fd.0.raw(), RUN, Arg::Num(0));
        let e = self.exit_of(r);
        record::call("RUN", "", r, format!("{e:x?}").as_bytes());
        e
    }
    /// KVM_RUN with a signal pending: it ends before the guest is entered, with what was to be injected still to come.
    pub fn run_signalled(&self) {
        let mut none = [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let fd = self.fd.0.raw();
        sys::interrupting(libc::SIGUSR1);
        sys::block(libc::SIGUSR1, true);
        crate::must!(sys::tkill(sys::gettid(), libc::SIGUSR1));
        eq!(sys::ioctl(fd, SET_SIGNAL_MASK, Arg::Buf(&mut none)), Ok(0));
        let e = self.run();
        check!(matches!(e, Exit::Err(libc::EINTR, _)), "{e:x?}");
        eq!(sys::ioctl(fd, SET_SIGNAL_MASK, Arg::Num(0)), Ok(0));
        check!(sys::take_signal(libc::SIGUSR1).is_some(), "the signal");
        sys::block(libc::SIGUSR1, false);
    }
    /// What a KVM_RUN that gave `r` came back for.
    pub fn exit_of(&self, r: Res) -> Exit {
        match r {
            Err(e) => Exit::Err(e, self.exit_reason()),
            Ok(_) => self.exit(),
        }
    }
    fn exit(&self) -> Exit {
        let rd32 = |o: usize| self.run.rd::<u32>(UNION + o);
        let rd64 = |o: usize| self.run.rd::<u64>(UNION + o);
        match self.exit_reason() {
            KVM_EXIT_IO => {
                let (size, count) = (self.run.rd::<u8>(UNION + 1), rd32(4));
                let out = self.run.rd::<u8>(UNION) == 1;
                let n = if out {
                    usize::from(size) * count as usize
                } else {
                    0
                };
                let data = self.run.read(rd64(8) as usize, n);
                Exit::Io {
                    out,
                    size,
                    port: self.run.rd(UNION + 2),
                    count,
                    data,
                }
            }
            KVM_EXIT_MMIO => {
                let (len, write) = (rd32(16), self.run.rd::<u8>(UNION + 20) != 0);
                let data = if write {
                    self.run.read(UNION + 8, (len as usize).min(8))
                } else {
                    Vec::new()
                };
                Exit::Mmio {
                    addr: rd64(0),
                    len,
                    write,
                    data,
                }
            }
            KVM_EXIT_HLT => Exit::Hlt,
            KVM_EXIT_SHUTDOWN => Exit::Shutdown,
            KVM_EXIT_INTR => Exit::Intr,
            KVM_EXIT_IRQ_WINDOW_OPEN => Exit::IrqWindow,
            KVM_EXIT_FAIL_ENTRY => Exit::FailEntry(rd64(0)),
            KVM_EXIT_INTERNAL_ERROR => {
                let n = (rd32(4) as usize).min(16);
                Exit::Internal(rd32(0), (0..n).map(|i| rd64(8 + 8 * i)).collect())
            }
            KVM_EXIT_DEBUG => Exit::Debug {
                vector: rd32(0),
                pc: rd64(8),
                dr6: if rd32(0) == 1 { rd64(16) } else { 0 },
            },
            n => Exit::Other(n),
        }
    }
    /// The port of the last exit, which was a port access.
    pub fn io_port(&self) -> u16 {
        self.run.rd(UNION + 2)
    }
    /// Where the data of the port access of the last exit lies in `run`.
    pub fn io_data(&self) -> usize {
        self.run.rd::<u64>(UNION + 8) as usize
    }
    /// Gives the guest the data of the read that the last exit asked for.
    pub fn answer(&self, b: &[u8]) {
        let at = match self.exit_reason() {
            KVM_EXIT_IO => self.io_data(),
            KVM_EXIT_MMIO => UNION + 8,
            n => panic!("exit reason {n} takes no data"),
        };
        self.run.write(at, b);
    }
    /// KVM_GET_REGS.
    pub fn regs(&self) -> kvm_regs {
        crate::must!(self.fd.take(GET_REGS))
    }
    /// KVM_SET_REGS.
    pub fn set_regs(&self, r: &kvm_regs) {
        crate::must!(self.fd.give(SET_REGS, r));
    }
    /// KVM_GET_SREGS.
    pub fn sregs(&self) -> kvm_sregs {
        crate::must!(self.fd.take(GET_SREGS))
    }
    /// KVM_SET_SREGS.
    pub fn set_sregs(&self, r: &kvm_sregs) {
        crate::must!(self.fd.give(SET_SREGS, r));
    }
    /// KVM_SET_CPUID2 with what KVM supports.
    pub fn use_supported_cpuid(&self, kvm: &Kvm) {
        let c = kvm.cpuid();
        crate::must!(sys::ioctl_with(self.fd.0.raw(), SET_CPUID2, &mut { *c }));
    }
    /// KVM_GET_MSRS of one MSR; None if KVM does not know it.
    pub fn msr(&self, index: u32) -> Option<u64> {
        let mut b = MsrsBuf::of(&[(index, 0xa5a5)]);
        let r = sys::ioctl_with(self.fd.0.raw(), GET_MSRS, &mut *b);
        record::call(
            "GET_MSRS",
            &format!("{index:x}"),
            r,
            format!("{:x}", b.entries[0].data).as_bytes(),
        );
        (r == Ok(1)).then_some(b.entries[0].data)
    }
    /// KVM_SET_MSRS of one MSR; was it taken?
    pub fn set_msr(&self, index: u32, data: u64) -> bool {
        let mut b = MsrsBuf::of(&[(index, data)]);
        let r = sys::ioctl_with(self.fd.0.raw(), SET_MSRS, &mut *b);
        record::call("SET_MSRS", &format!("{index:x} {data:x}"), r, &[]);
        r == Ok(1)
    }
    /// KVM_NMI.
    pub fn nmi(&self) -> Res {
        self.fd.num(NMI, 0)
    }
    /// KVM_INTERRUPT.
    pub fn interrupt(&self, vector: u32) -> Res {
        self.fd.give(INTERRUPT, &kvm_interrupt { irq: vector })
    }
    /// KVM_SET_GUEST_DEBUG with these bits beside ENABLE (none: it ends), and with breakpoints.
    pub fn guest_debug(&self, bits: u32, at: [u64; 4], dr7: u64) -> Res {
        let mut d: kvm_guest_debug = sys::filled(0);
        if bits != 0 {
            d.control = KVM_GUESTDBG_ENABLE | bits;
        }
        d.arch.debugreg[..4].copy_from_slice(&at);
        d.arch.debugreg[7] = dr7;
        self.fd.give(SET_GUEST_DEBUG, &d)
    }
}
