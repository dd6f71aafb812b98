// SPDX-License-Identifier: GPL-2.0
//! `/dev/kvm`: the ioctls of the system.

use core::marker::PhantomData;

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::vm::{Kicks, Vm};
use crate::hv::{cpuid, host, mce, msr};
use crate::mmu::pages::Graves;
use crate::sys::file::{self, DevKvm, SystemDevice};
use crate::sys::run_page::PAGES;
use crate::sys::{mm, params, sched, stats, virt};
use crate::uapi::{self, caps, ioctl};

/// The system's ioctls with the backend `B`.
struct Device<B>(PhantomData<B>);

impl<B: Backend> SystemDevice for Device<B> {
    fn ioctl(cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            ioctl::CHECK_EXTENSION => Ok(caps::check::<B>(arg)),
            // The argument is the VM's type: 0 is the only one.
            ioctl::CREATE_VM if arg != 0 => Err(EINVAL),
            ioctl::CREATE_VM => file::new_fd(Vm::<B>::new),
            ioctl::X86_GET_MCE_CAP_SUPPORTED => mce::supported::<B>(arg),
            _ => of_any_backend(cmd, arg),
        }
    }
}

/// Those that do not depend on the backend.
fn of_any_backend(cmd: u32, arg: usize) -> Result<isize> {
    match cmd {
        ioctl::GET_API_VERSION | ioctl::GET_VCPU_MMAP_SIZE if arg != 0 => Err(EINVAL),
        ioctl::GET_API_VERSION => Ok(uapi::KVM_API_VERSION as isize),
        ioctl::GET_VCPU_MMAP_SIZE => Ok((PAGES * 4096) as isize),
        ioctl::GET_SUPPORTED_CPUID => cpuid::get_supported(arg),
        ioctl::GET_EMULATED_CPUID => cpuid::get_emulated(arg),
        ioctl::GET_MSR_INDEX_LIST => msr::index_list(arg),
        ioctl::GET_MSR_FEATURE_INDEX_LIST => msr::feature_index_list(arg),
        ioctl::GET_MSRS => msr::feature_msrs(arg),
        _ => Err(EINVAL),
    }
}

/// Everything that is there from load to unload, taken down in this order.
pub(crate) struct Loaded {
    _node: DevKvm,
    _shown: params::Shown,
    _stats: stats::Directory<Kicks>,
    _virt: virt::Enabled,
    _sched: sched::Enabled,
    _globals: Globals,
}

/// Memory that [`Backend::setup`] and [`host::probe`] took.
struct Globals(fn());

impl Drop for Globals {
    fn drop(&mut self) {
        (self.0)();
        host::forget();
        Graves::wait();
    }
}

/// Starts the hypervisor with the backend `B`.
pub(crate) fn load<B: Backend>() -> Result<Loaded> {
    B::setup()?;
    let globals = Globals(B::teardown);
    host::probe::<B>()?;
    // The kernel shows in sysfs what comes of it.
    let _ = mm::small_code_only(params::get().nx_huge_pages);
    let sched = sched::Enabled::new();
    let virt = virt::Enabled::new::<B>().inspect_err(|e| {
        if *e == EBUSY {
            pr_err!("virtualization is in use by somebody else on a CPU (CR4.VMXE or EFER.SVME is set)\n");
        } else {
            pr_err!("virtualization cannot be turned on (is it disabled by the firmware?)\n");
        }
    })?;
    let shown = params::Shown::new(B::INTEL, &B::in_use())?;
    let stats = stats::Directory::new()?;
    let node = DevKvm::register::<Device<B>>()?;
    pr_info!("Lodge, {}\n", B::VENDOR);
    Ok(Loaded {
        _node: node,
        _shown: shown,
        _stats: stats,
        _virt: virt,
        _sched: sched,
        _globals: globals,
    })
}
