// SPDX-License-Identifier: GPL-2.0
//! Opens the device and makes a VM with one vCPU.

use std::path::Path;

use anyhow::{bail, Context as _, Result};
use kvm_bindings::{kvm_msr_entry, CpuId, Msrs, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::boot::cpu;
use crate::cpuid;
use crate::error::Context;
use crate::memory;
use crate::narrow::Cpu;
use crate::sys::kvm::MappedVm;

/// The version of the interface, the same for all of KVM's history.
pub const API_VERSION: i32 = 12;
/// Four pages at the end of the hole for the task state segment that Intel's real-mode emulation may want, and one more
/// for its identity map.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

const MSR_SYSENTER_CS: u32 = 0x174;
const MSR_SYSENTER_ESP: u32 = 0x175;
const MSR_SYSENTER_EIP: u32 = 0x176;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_FMASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
/// MTRRs on, write-back where none says otherwise.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// Opens a KVM device and checks that it is one.
pub fn open(device: &Path) -> Result<Kvm> {
    let path = std::ffi::CString::new(device.as_os_str().as_encoded_bytes())
        .context("--device has a zero byte")?;
    let kvm = Kvm::new_with_path(path)
        .ioctl("open")
        .with_context(|| format!("cannot use {}", device.display()))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        version => bail!(
            "{} answers KVM_GET_API_VERSION with {version}, not {API_VERSION}: not a KVM device?",
            device.display()
        ),
    }
}

/// What the device can give a guest in CPUID.
pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId> {
    Ok(kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .ioctl("KVM_GET_SUPPORTED_CPUID")?)
}

/// Makes a VM with `size` bytes of memory.
pub fn create(kvm: &Kvm, size: u64) -> Result<MappedVm> {
    let memory = memory::allocate(size)?;
    let fd = kvm.create_vm().ioctl("KVM_CREATE_VM")?;
    if kvm.check_extension(Cap::SetIdentityMapAddr) {
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .ioctl("KVM_SET_IDENTITY_MAP_ADDR")?;
    }
    if kvm.check_extension(Cap::SetTssAddr) {
        fd.set_tss_address(TSS_ADDRESS).ioctl("KVM_SET_TSS_ADDR")?;
    }
    MappedVm::new(fd, memory)
}

/// Makes the vCPU: CPUID for a machine without a local APIC, and the registers that do not depend on what it runs.
pub fn create_vcpu(kvm: &Kvm, vm: &MappedVm, wanted: &Cpu) -> Result<VcpuFd> {
    let vcpu = vm.fd.create_vcpu(0).ioctl("KVM_CREATE_VCPU")?;
    let mut cpuid = supported_cpuid(kvm)?;
    cpuid::adapt(cpuid.as_mut_slice());
    wanted.narrow(cpuid.as_mut_slice());
    vcpu.set_cpuid2(&cpuid).ioctl("KVM_SET_CPUID2")?;
    vcpu.set_fpu(&cpu::fpu()).ioctl("KVM_SET_FPU")?;
    set_msrs(&vcpu)?;
    Ok(vcpu)
}

/// The frequency of the guest's time stamp counter, if the device knows it.
pub fn tsc_khz(kvm: &Kvm, vcpu: &VcpuFd) -> Option<u32> {
    let known = kvm.check_extension(Cap::GetTscKhz);
    known
        .then(|| vcpu.get_tsc_khz().ok())
        .flatten()
        .filter(|khz| *khz > 0)
}

/// Sets the MSRs that firmware would set. One that the device does not have is left out.
fn set_msrs(vcpu: &VcpuFd) -> Result<()> {
    let values = [
        (MSR_SYSENTER_CS, 0),
        (MSR_SYSENTER_ESP, 0),
        (MSR_SYSENTER_EIP, 0),
        (MSR_STAR, 0),
        (MSR_LSTAR, 0),
        (MSR_CSTAR, 0),
        (MSR_FMASK, 0),
        (MSR_KERNEL_GS_BASE, 0),
        (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    for (index, data) in values {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).context("one MSR")?;
        if vcpu.set_msrs(&msrs).ioctl("KVM_SET_MSRS")? != 1 {
            eprintln!(
                "lodge: warning: KVM_SET_MSRS refuses MSR {index:#x}; the guest goes without"
            );
        }
    }
    Ok(())
}
