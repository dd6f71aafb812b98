// SPDX-License-Identifier: GPL-2.0
//! The system descriptor, capabilities, and how unknown calls are answered on each descriptor.

use crate::harness::Test;
use crate::kvm::*;
use crate::sys::{bad_addr, Map, OwnedFd};
use crate::{check, eq};
use kvm_bindings::*;
use libc::{EFAULT, EINVAL, ENOTTY};

pub const TESTS: &[Test] = &[
    Test::new("api/api_version", api_version),
    Test::new("api/mmap_size", mmap_size),
    Test::new("api/create_vm_types", create_vm_types),
    Test::new("api/capabilities", capabilities),
    Test::new("api/capabilities_vm", capabilities_vm),
    Test::new("api/unknown_ioctls", unknown_ioctls),
    Test::new("api/wrong_descriptor", wrong_descriptor),
    Test::new("api/device_node", device_node),
    Test::new("api/tss_and_identity", tss_and_identity),
    Test::new("api/tsc_khz", tsc_khz),
    Test::new("api/enable_cap", enable_cap),
    Test::new("api/compat_32bit", compat_32bit).no_ab(),
    Test::new("api/parameters", parameters).no_ab(),
];

fn api_version() {
    let k = Kvm::open();
    eq!(k.0.num(GET_API_VERSION, 0), Ok(12));
    eq!(k.0.num(GET_API_VERSION, 1), Err(EINVAL));
    eq!(k.0.num(GET_API_VERSION, u64::MAX), Err(EINVAL));
}

fn mmap_size() {
    let k = Kvm::open();
    eq!(k.0.num(GET_VCPU_MMAP_SIZE, 0), Ok(3 * 4096));
    eq!(k.0.num(GET_VCPU_MMAP_SIZE, 1), Err(EINVAL));
}

fn create_vm_types() {
    let k = Kvm::open();
    let types =
        k.0.num(CHECK_EXTENSION, u64::from(KVM_CAP_VM_TYPES))
            .unwrap_or(0);
    check!(types & 1 == 1, "type 0 is offered: {types:x}");
    for t in 0..64u64 {
        let r = k.0.num(CREATE_VM, t);
        if t < 31 && (types >> t) & 1 == 1 {
            check!(r.is_ok(), "type {t}: {r:?}");
        } else {
            eq!(r, Err(EINVAL), "type {t}");
        }
        if let Ok(fd) = r {
            drop(OwnedFd::new(fd));
        }
    }
    for t in [u64::MAX, 1 << 32, 1 << 63] {
        eq!(k.0.num(CREATE_VM, t), Err(EINVAL), "type {t:x}");
    }
}

/// What this project offers from the start on, with the value that the reference gives.
const MUST: &[(u32, i32)] = &[
    (KVM_CAP_USER_MEMORY, 1),
    (KVM_CAP_USER_MEMORY2, 1),
    (KVM_CAP_EXT_CPUID, 1),
    (KVM_CAP_SET_TSS_ADDR, 1),
    (KVM_CAP_SET_IDENTITY_MAP_ADDR, 1),
    (KVM_CAP_DESTROY_MEMORY_REGION_WORKS, 1),
    (KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, 1),
    (KVM_CAP_INTERNAL_ERROR_DATA, 1),
    (KVM_CAP_IMMEDIATE_EXIT, 1),
    (KVM_CAP_GET_TSC_KHZ, 1),
    (KVM_CAP_SYNC_MMU, 1),
    (KVM_CAP_CHECK_EXTENSION_VM, 1),
    (KVM_CAP_MP_STATE, 1),
    (KVM_CAP_USER_NMI, 1),
    (KVM_CAP_READONLY_MEM, 1),
    (KVM_CAP_IOEVENTFD, 1),
    (KVM_CAP_IOEVENTFD_NO_LENGTH, 1),
    (KVM_CAP_IOEVENTFD_ANY_LENGTH, 1),
    (KVM_CAP_IRQ_ROUTING, 4096),
    (KVM_CAP_SIGNAL_MSI, 1),
];

/// Whether the CPU has XSAVE: leaf 1, ECX.
pub(super) fn has_xsave() -> bool {
    crate::sys::cpuid(1, 0)[2] & 1 << 26 != 0
}

/// [`MUST`], and what depends on the CPU.
fn check_must(fd: &Kfd) {
    let xcrs = (KVM_CAP_XCRS, has_xsave().into());
    for (cap, want) in MUST.iter().chain([&xcrs]) {
        eq!(
            fd.num(CHECK_EXTENSION, (*cap).into()),
            Ok(*want),
            "capability {cap}"
        );
    }
}

fn capabilities() {
    let k = Kvm::open();
    check_must(&k.0);
    // All, for the comparison.
    for cap in 0..260u64 {
        let r = k.0.num(CHECK_EXTENSION, cap);
        check!(r.is_ok(), "capability {cap}: {r:?}");
    }
    for cap in [1000, u64::from(u32::MAX), u64::MAX, (1 << 32) | 3] {
        eq!(k.0.num(CHECK_EXTENSION, cap), Ok(0), "capability {cap:x}");
    }
    check!(
        k.cap(KVM_CAP_NR_MEMSLOTS) >= 509,
        "slots: {}",
        k.cap(KVM_CAP_NR_MEMSLOTS)
    );
    check!(k.cap(KVM_CAP_MAX_VCPUS) >= 1, "vCPUs");
    check!(
        k.cap(KVM_CAP_MAX_VCPU_ID) >= k.cap(KVM_CAP_MAX_VCPUS),
        "vCPU ids"
    );
    check!(k.cap(KVM_CAP_NR_VCPUS) >= 1, "recommended vCPUs");
}

fn capabilities_vm() {
    let k = Kvm::open();
    let vm = k.vm();
    check_must(&vm.fd);
    for cap in 0..260u64 {
        let r = vm.fd.num(CHECK_EXTENSION, cap);
        check!(r.is_ok(), "capability {cap}: {r:?}");
    }
    eq!(vm.fd.num(CHECK_EXTENSION, 1000), Ok(0));
    let cpu = vm.vcpu(0);
    eq!(
        cpu.fd.num(CHECK_EXTENSION, u64::from(KVM_CAP_USER_MEMORY)),
        Err(EINVAL)
    );
}

/// Numbers without meaning: an unused one, an unused one with a size, another type letter.
const UNKNOWN: [u64; 4] = [0xaeff, 0xc008_aefe, 0x0000_ae0f, 0x4004_ae3f];

fn unknown_ioctls() {
    let k = Kvm::open();
    let vm = k.vm();
    let cpu = vm.vcpu(0);
    for nr in UNKNOWN {
        eq!(k.0.num(nr, 0), Err(EINVAL), "system, {nr:x}");
        eq!(vm.fd.num(nr, 0), Err(ENOTTY), "VM, {nr:x}");
        eq!(cpu.fd.num(nr, 0), Err(EINVAL), "vCPU, {nr:x}");
    }
    for nr in [0x5499u64, 0, 0xffff] {
        eq!(k.0.num(nr, 0), Err(EINVAL), "system, {nr:x}");
        eq!(vm.fd.num(nr, 0), Err(ENOTTY), "VM, {nr:x}");
        eq!(cpu.fd.num(nr, 0), Err(EINVAL), "vCPU, {nr:x}");
    }
    // The right number with a wrong size or direction is another ioctl.
    eq!(cpu.fd.num(GET_REGS ^ (8 << 16), 0), Err(EINVAL));
    eq!(cpu.fd.num(GET_REGS ^ (3 << 30), 0), Err(EINVAL));
    eq!(
        vm.fd.num(SET_USER_MEMORY_REGION ^ (8 << 16), 0),
        Err(ENOTTY)
    );
    eq!(k.0.num(GET_SUPPORTED_CPUID ^ (4 << 16), 0), Err(EINVAL));
}

fn wrong_descriptor() {
    let k = Kvm::open();
    let vm = k.vm();
    let cpu = vm.vcpu(0);
    for nr in [
        GET_API_VERSION,
        CREATE_VM,
        GET_VCPU_MMAP_SIZE,
        GET_SUPPORTED_CPUID,
    ] {
        eq!(vm.fd.num(nr, 0), Err(ENOTTY), "VM, {}", ioctl_name(nr));
        eq!(cpu.fd.num(nr, 0), Err(EINVAL), "vCPU, {}", ioctl_name(nr));
    }
    for nr in [CREATE_VCPU, SET_USER_MEMORY_REGION, SET_TSS_ADDR] {
        eq!(k.0.num(nr, 0), Err(EINVAL), "system, {}", ioctl_name(nr));
        eq!(cpu.fd.num(nr, 0), Err(EINVAL), "vCPU, {}", ioctl_name(nr));
    }
    for nr in [RUN, GET_REGS, SET_REGS, GET_SREGS, SET_CPUID2, GET_FPU] {
        eq!(
            k.0.num(nr, bad_addr()),
            Err(EINVAL),
            "system, {}",
            ioctl_name(nr)
        );
        eq!(
            vm.fd.num(nr, bad_addr()),
            Err(ENOTTY),
            "VM, {}",
            ioctl_name(nr)
        );
    }
}

fn device_node() {
    // Reading, writing, mapping and seeking the descriptors means nothing.
    let k = Kvm::open();
    let vm = k.vm();
    let cpu = vm.vcpu(0);
    let mut b = [0u8; 16];
    for (what, fd) in [
        ("system", k.0 .0.raw()),
        ("VM", vm.fd.0.raw()),
        ("vCPU", cpu.fd.0.raw()),
    ] {
        let r = crate::sys::read(fd, &mut b);
        eq!(r, Err(EINVAL), "read of the {what} descriptor");
    }
    for (what, fd) in [("system", k.0 .0.raw()), ("VM", vm.fd.0.raw())] {
        let r = Map::new(4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
        eq!(r.err(), Some(libc::ENODEV), "mmap of the {what} descriptor");
    }
    let ro = OwnedFd::open("/dev/kvm", libc::O_RDONLY).map(Kfd);
    let ro = crate::must!(ro);
    eq!(ro.num(GET_API_VERSION, 0), Ok(12));
    let sysfs = std::fs::read_to_string("/sys/class/misc/kvm/dev").unwrap_or_default();
    eq!(sysfs.trim(), "10:232");
}

fn tss_and_identity() {
    let k = Kvm::open();
    let vm = k.vm();
    eq!(vm.fd.num(SET_TSS_ADDR, 0xfffb_d000), Ok(0));
    eq!(vm.fd.num(SET_TSS_ADDR, 0xfffb_d000), Ok(0), "a second time");
    eq!(
        vm.fd.num(SET_TSS_ADDR, 0xffff_f000),
        Err(EINVAL),
        "too high for three pages"
    );
    eq!(vm.fd.num(SET_TSS_ADDR, u64::MAX), Err(EINVAL));
    eq!(vm.fd.give(SET_IDENTITY_MAP_ADDR, &0xfffb_c000u64), Ok(0));
    eq!(
        vm.fd.give(SET_IDENTITY_MAP_ADDR, &0u64),
        Ok(0),
        "0 means the default"
    );
    eq!(vm.fd.num(SET_IDENTITY_MAP_ADDR, bad_addr()), Err(EFAULT));
    let _cpu = vm.vcpu(0);
    eq!(
        vm.fd.give(SET_IDENTITY_MAP_ADDR, &0xfffb_c000u64),
        Err(EINVAL),
        "after a vCPU"
    );
}

fn tsc_khz() {
    let k = Kvm::open();
    let vm = k.vm();
    let cpu = vm.vcpu(0);
    let vm_khz = vm.fd.num(GET_TSC_KHZ, 0).unwrap_or(0);
    let khz = cpu.fd.num(GET_TSC_KHZ, 0).unwrap_or(0);
    check!(khz > 1000, "{khz} kHz");
    eq!(vm_khz, khz, "the VM's and the vCPU's frequency");
    eq!(k.0.num(GET_TSC_KHZ, 0), Err(EINVAL));
}

fn enable_cap() {
    let k = Kvm::open();
    let vm = k.vm();
    let cpu = vm.vcpu(0);
    for cap in [0u32, 1, 9999] {
        let e = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        eq!(
            vm.fd.give(ENABLE_CAP, &e),
            Err(EINVAL),
            "VM, capability {cap}"
        );
        eq!(
            cpu.fd.give(ENABLE_CAP, &e),
            Err(EINVAL),
            "vCPU, capability {cap}"
        );
    }
    eq!(vm.fd.num(ENABLE_CAP, bad_addr()), Err(EFAULT));
    eq!(cpu.fd.num(ENABLE_CAP, bad_addr()), Err(EFAULT));
}

/// A 32-bit program, whose calls come through the kernel's compatibility layer.
fn compat_32bit() {
    const PROGRAM: &str = "/bin/compat32";
    if !std::path::Path::new(PROGRAM).exists() {
        crate::harness::skip("there is no 32-bit program in the VM");
    }
    let out = match std::process::Command::new(PROGRAM).output() {
        Ok(out) => out,
        Err(e) if e.raw_os_error() == Some(libc::ENOEXEC) => {
            crate::harness::skip("the kernel runs no 32-bit programs")
        }
        Err(e) => panic!("{PROGRAM}: {e}"),
    };
    let said = String::from_utf8_lossy(&out.stdout);
    eq!((out.status.code(), said.as_ref()), (Some(0), ""));
}

/// The format of a module parameter's file.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    /// Y or N.
    Flag,
    /// A number.
    Number,
}

const KVM: &[(&str, Format)] = &[
    ("force_emulation_prefix", Format::Number),
    ("ignore_msrs", Format::Flag),
    ("enable_pmu", Format::Flag),
    ("enable_vmware_backdoor", Format::Flag),
    ("eager_page_split", Format::Flag),
    ("nx_huge_pages", Format::Flag),
];
const AMD: &[(&str, Format)] = &[
    ("npt", Format::Flag),
    ("nrips", Format::Number),
    ("intercept_smi", Format::Flag),
    ("avic", Format::Flag),
    ("lbrv", Format::Number),
    ("nested", Format::Number),
    ("vgif", Format::Number),
    ("vls", Format::Number),
    ("vnmi", Format::Flag),
    ("tsc_scaling", Format::Number),
    ("enable_mediated_pmu", Format::Flag),
];
const INTEL: &[(&str, Format)] = &[
    ("ept", Format::Flag),
    ("eptad", Format::Flag),
    ("vpid", Format::Flag),
    ("unrestricted_guest", Format::Flag),
    ("vnmi", Format::Flag),
    ("enable_apicv", Format::Flag),
    ("flexpriority", Format::Flag),
    ("emulate_invalid_guest_state", Format::Flag),
    ("nested", Format::Flag),
    ("enable_shadow_vmcs", Format::Flag),
    ("pml", Format::Flag),
    ("preemption_timer", Format::Flag),
    ("allow_smaller_maxphyaddr", Format::Flag),
    ("enable_mediated_pmu", Format::Flag),
];

/// Tools and tests read the parameters of KVM's modules: they are where theirs are and look like them.
fn parameters() {
    let intel = crate::sys::cpuid(0, 0)[1] == u32::from_le_bytes(*b"Genu");
    let read = |module: &str, name: &str| {
        std::fs::read_to_string(format!("/sys/module/{module}/parameters/{name}"))
            .map(|s| s.trim_end().to_owned())
    };
    let (vendor, list) = if intel {
        ("kvm_intel", INTEL)
    } else {
        ("kvm_amd", AMD)
    };
    let all = KVM.iter().map(|p| ("kvm", p));
    for (module, (name, format)) in all.chain(list.iter().map(|p| (vendor, p))) {
        match read(module, name) {
            Ok(v) => {
                let is = match format {
                    Format::Flag => v == "Y" || v == "N",
                    Format::Number => v.parse::<i32>().is_ok(),
                };
                check!(is, "{module}/{name}: {v:?}");
            }
            Err(e) => check!(false, "{module}/{name}: {e}"),
        }
    }
    // What this machine certainly has, and what it has not.
    let second_stage = if intel { "ept" } else { "npt" };
    eq!(read(vendor, second_stage).as_deref().ok(), Some("Y"));
    if !intel {
        // CPUID 8000_000Ah, EDX bit 3: the next RIP is saved. A parameter may have switched its use off.
        let has = crate::sys::cpuid(0x8000_000a, 0)[3] >> 3 & 1 != 0;
        check!(
            has || read(vendor, "nrips").as_deref().ok() == Some("0"),
            "nrips"
        );
    }
}
