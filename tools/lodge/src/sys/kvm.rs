// SPDX-License-Identifier: GPL-2.0
//! The parts of the KVM interface that kvm-ioctls has no safe call for.
//!
//! Unsafe because: an ioctl passes a pointer, a memory slot names host memory, the run page is a union that the
//! kernel fills.

use kvm_bindings::{kvm_interrupt, kvm_run, kvm_userspace_memory_region, KVMIO};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::error::{Context, IoctlError};

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);

/// Queues the external interrupt `vector` (without an interrupt controller in the kernel).
pub fn interrupt(vcpu: &VcpuFd, vector: u8) -> Result<(), IoctlError> {
    let irq = kvm_interrupt {
        irq: u32::from(vector),
    };
    // SAFETY: KVM_INTERRUPT reads one `kvm_interrupt`, which lives until the call returns.
    let ret = unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &irq) };
    if ret == 0 {
        return Ok(());
    }
    Err(errno::Error::last()).ioctl("KVM_INTERRUPT")
}

/// Memory of a guest and the VM that may use it. The mapping outlives every use by the VM because the VM is closed
/// first: fields are dropped in order.
pub struct MappedVm {
    /// The VM.
    pub fd: VmFd,
    /// Its memory.
    pub memory: GuestMemoryMmap,
}

impl MappedVm {
    /// Gives `memory` to the VM, a slot for each region.
    pub fn new(fd: VmFd, memory: GuestMemoryMmap) -> anyhow::Result<Self> {
        for (slot, region) in (0u32..).zip(memory.iter()) {
            let host = region.get_host_address(MemoryRegionAddress(0))?;
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the region is a mapping of our own of that length, which `Self` keeps until the VM is closed.
            unsafe { fd.set_user_memory_region(slot) }.ioctl("KVM_SET_USER_MEMORY_REGION")?;
        }
        Ok(Self { fd, memory })
    }
}

/// The run page of a vCPU, for what is needed while an exit borrows the vCPU.
#[derive(Clone, Copy)]
pub struct RunPage(*mut kvm_run);

impl RunPage {
    /// The run page of `vcpu`, which must outlive the result.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        Self(vcpu.get_kvm_run())
    }

    /// The raw page, for the signal handler.
    pub fn as_ptr(self) -> *mut kvm_run {
        self.0
    }

    /// Bytes in each access of the port exit that is being handled; a string instruction moves several at once.
    pub fn io_size(self) -> usize {
        // SAFETY: the page stays mapped as long as the vCPU, and only this thread runs it. Every bit pattern is a
        // valid `io`; the caller knows that the exit is one.
        let size = unsafe { (*self.0).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }

    /// Suberror and data of KVM_EXIT_INTERNAL_ERROR.
    pub fn internal_error(self) -> (u32, Vec<u64>) {
        // SAFETY: as above; `internal` is plain data too.
        let internal = unsafe { (*self.0).__bindgen_anon_1.internal };
        let data = internal.data.iter().take(internal.ndata as usize);
        (internal.suberror, data.copied().collect())
    }

    /// Whether a maskable interrupt can be queued now, and the guest's interrupt flag, as of the last exit.
    pub fn interruptible(self) -> (bool, bool) {
        // SAFETY: as above.
        unsafe {
            (
                (*self.0).ready_for_interrupt_injection != 0,
                (*self.0).if_flag != 0,
            )
        }
    }

    /// Asks for an exit as soon as an interrupt can be queued.
    pub fn request_window(self, wanted: bool) {
        // SAFETY: as above; the kernel reads the field at the next KVM_RUN only.
        unsafe { (*self.0).request_interrupt_window = wanted.into() }
    }
}
