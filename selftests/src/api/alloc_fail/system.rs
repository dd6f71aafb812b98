// SPDX-License-Identifier: GPL-2.0
//! The ioctls of /dev/kvm.

use super::covered;
use super::inject::{call, nothing, num, take, Inject};
use crate::kvm::*;
use crate::sys::{self, OwnedFd};
use kvm_bindings::*;
use libc::{EFAULT, EINVAL};
use std::cell::RefCell;

pub fn system() {
    let i = Inject::new();
    let kvm = Kvm::open();
    let open = |_: &()| OwnedFd::open("/dev/kvm", libc::O_RDWR).map(|_| 0);
    i.each_on("open", &(), open, nothing);
    let fd = &kvm.0;
    for (what, nr, arg) in [
        ("GET_API_VERSION", GET_API_VERSION, 0),
        ("CHECK_EXTENSION", CHECK_EXTENSION, KVM_CAP_NR_VCPUS),
        ("GET_VCPU_MMAP_SIZE", GET_VCPU_MMAP_SIZE, 0),
    ] {
        i.each_on(what, fd, |f| num(f, nr, arg.into()), nothing);
    }
    let list = RefCell::new(Box::new([0u32; 1 + MAX_ENTRIES]));
    for (what, nr) in [
        ("GET_MSR_INDEX_LIST", GET_MSR_INDEX_LIST),
        ("GET_MSR_FEATURE_INDEX_LIST", GET_MSR_FEATURE_INDEX_LIST),
    ] {
        let all = |f: &Kfd| {
            list.borrow_mut()[0] = MAX_ENTRIES as u32;
            call(f, nr, &list)
        };
        i.each_on(what, fd, all, nothing);
    }
    // The last list was that of the features.
    let feature = list.borrow()[1];
    let msrs = RefCell::new(MsrsBuf::of(&[(feature, 0)]));
    i.each_on("GET_MSRS", fd, |f| call(f, GET_MSRS, &msrs), nothing);
    let cpuid = RefCell::new(Box::<CpuidBuf>::new(sys::zeroed()));
    let tell = |f: &Kfd, nr: u64, room: usize| {
        cpuid.borrow_mut().nent = room as u32;
        call(f, nr, &cpuid)
    };
    i.each_on(
        "GET_SUPPORTED_CPUID",
        fd,
        |f| tell(f, GET_SUPPORTED_CPUID, MAX_ENTRIES),
        nothing,
    );
    // Entries that cannot be read count as bad ones, as in KVM.
    let emulated = |f: &Kfd| match tell(f, GET_EMULATED_CPUID, 20) {
        Err(EINVAL) => Err(EFAULT),
        other => other,
    };
    i.each_on("GET_EMULATED_CPUID", fd, emulated, nothing);
    i.each_on(
        "X86_GET_MCE_CAP_SUPPORTED",
        fd,
        |f| take::<u64>(f, X86_GET_MCE_CAP_SUPPORTED),
        nothing,
    );
    i.covers(covered::SYSTEM);
}
