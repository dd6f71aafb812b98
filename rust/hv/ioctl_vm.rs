// SPDX-License-Identifier: GPL-2.0
//! The VM descriptor: its ioctls.

use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

use crate::hv::backend::Backend;
use crate::hv::ioctl_vcpu::VcpuFile;
use crate::hv::vcpu::Vcpu;
use crate::hv::vm::Vm;
use crate::hv::{clock, msr_filter, policy, tsc, user};
use crate::mmu::slots::SlotRequest;
use crate::sys::file;
use crate::uapi::{
    caps, ioctl, kvm_msi, kvm_userspace_memory_region, kvm_userspace_memory_region2, pod,
};

impl<B: Backend> file::FileObject for Vm<B> {
    const NAME: &'static CStr = c"kvm-vm";

    fn ioctl(vm: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        vm.check_owner()?;
        match cmd {
            ioctl::CHECK_EXTENSION => Ok(caps::check::<B>(arg)),
            ioctl::CREATE_VCPU => create_vcpu(&vm.into(), arg),
            ioctl::SET_USER_MEMORY_REGION => {
                let r: kvm_userspace_memory_region = user::get(arg)?;
                set_memory(
                    &vm,
                    r.slot,
                    r.flags,
                    r.guest_phys_addr,
                    r.memory_size,
                    r.userspace_addr,
                )
            }
            ioctl::SET_USER_MEMORY_REGION2 => {
                let r: kvm_userspace_memory_region2 = user::get(arg)?;
                set_memory(
                    &vm,
                    r.slot,
                    r.flags,
                    r.guest_phys_addr,
                    r.memory_size,
                    r.userspace_addr,
                )
            }
            // A place for pages that this implementation does not need: real mode runs without them.
            ioctl::SET_TSS_ADDR => set_tss_addr(arg),
            ioctl::SET_IDENTITY_MAP_ADDR => {
                vm.before_vcpus(|table| {
                    table.identity.set_address(user::get(arg)?);
                    Ok(())
                })?;
                Ok(0)
            }
            ioctl::GET_DIRTY_LOG => {
                let arg: pod::DirtyLogArg = user::get(arg)?;
                dirty_log(&vm, arg.slot, arg.bitmap)
            }
            ioctl::IOEVENTFD => {
                vm.ioevents.change(&user::get(arg)?)?;
                Ok(0)
            }
            ioctl::GET_TSC_KHZ => Ok(tsc::default_khz(&vm) as isize),
            ioctl::SET_TSC_KHZ => tsc::set_default(&vm, arg),
            // Second-stage tables take what they need; the number is for shadow paging. Fewer than 64 are refused.
            ioctl::SET_NR_MMU_PAGES if arg < 64 => Err(EINVAL),
            ioctl::SET_NR_MMU_PAGES => Ok(0),
            ioctl::X86_SET_MSR_FILTER => msr_filter::set(&vm, &user::get(arg)?),
            ioctl::GET_CLOCK => clock::get(&vm, arg),
            ioctl::SET_CLOCK => clock::set(&vm, arg),
            ioctl::ENABLE_CAP => policy::enable_vm(&vm, arg),
            // There is no interrupt controller in the kernel to drive.
            ioctl::IRQ_LINE => Err(ENXIO),
            ioctl::SIGNAL_MSI => {
                let _msi: kvm_msi = user::get(arg)?;
                Err(EINVAL)
            }
            ioctl::SET_GSI_ROUTING => {
                let _routes: pod::Header = user::get(arg)?;
                Err(EINVAL)
            }
            _ => Err(ENOTTY),
        }
    }

    fn compat_ioctl(vm: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        vm.check_owner()?;
        match cmd {
            // The address has 32 bits; what is behind them is not of the structure.
            ioctl::GET_DIRTY_LOG => {
                let arg: pod::DirtyLogArg = user::get(arg)?;
                dirty_log(&vm, arg.slot, arg.bitmap & 0xffff_ffff)
            }
            ioctl::X86_SET_MSR_FILTER_COMPAT => set_msr_filter_compat(&vm, arg),
            _ => Self::ioctl(vm, cmd, arg),
        }
    }
}

/// KVM_X86_SET_MSR_FILTER of a 32-bit program. (Not inlined, nor what it is given: both have large stack frames.)
#[inline(never)]
fn set_msr_filter_compat<B: Backend>(vm: &Vm<B>, arg: usize) -> Result<isize> {
    let given = msr_filter_compat(arg)?;
    msr_filter::set(vm, &(&*given).into())
}

#[inline(never)]
fn msr_filter_compat(arg: usize) -> Result<KBox<pod::MsrFilterArg32>> {
    Ok(KBox::new(user::get(arg)?, GFP_KERNEL_ACCOUNT)?)
}

/// KVM_GET_DIRTY_LOG, to the bitmap at this address.
fn dirty_log<B: Backend>(vm: &Vm<B>, slot: u32, bitmap: u64) -> Result<isize> {
    let bitmap = usize::try_from(bitmap).map_err(|_| EFAULT)?;
    vm.mmu.take_dirty_log(slot, |offset, words| {
        user::put_slice(user::after(bitmap, offset)?, words)
    })?;
    Ok(0)
}

/// KVM_SET_TSS_ADDR: three pages below 4 GiB.
fn set_tss_addr(arg: usize) -> Result<isize> {
    if arg as u64 > 0xffff_d000 {
        return Err(EINVAL);
    }
    Ok(0)
}

fn set_memory<B: Backend>(
    vm: &Vm<B>,
    slot: u32,
    flags: u32,
    gpa: u64,
    size: u64,
    hva: u64,
) -> Result<isize> {
    vm.mmu.set_slot(&SlotRequest {
        slot,
        flags,
        gpa,
        size,
        hva,
    })?;
    Ok(0)
}

/// KVM_CREATE_VCPU.
fn create_vcpu<B: Backend>(vm: &Arc<Vm<B>>, arg: usize) -> Result<isize> {
    let id = u32::try_from(arg).map_err(|_| EINVAL)?;
    vm.add_vcpu(id, |shared, table| {
        let identity = table.identity.of_vcpu(vm)?;
        let vcpu = Vcpu::new(vm, id, shared, identity)?;
        file::new_fd(|_| {
            let vm = vm.clone();
            Ok(Arc::new(VcpuFile { vm, vcpu }, GFP_KERNEL_ACCOUNT)?)
        })
    })
}
