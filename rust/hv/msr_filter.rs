// SPDX-License-Identifier: GPL-2.0
//! Who decides about the guest's model-specific registers besides the CPU: KVM_X86_SET_MSR_FILTER, and the exits by which user space
//! answers in the place of a #GP (KVM_CAP_X86_USER_SPACE_MSR).

use kernel::prelude::*;
use kernel::sync::{new_mutex, Mutex};

use crate::hv::backend::{Backend, Flow};
use crate::hv::io::Pending;
use crate::hv::user;
use crate::hv::vcpu::Loaded;
use crate::hv::vm::Vm;
use crate::model::msr::{BadMsr, Who};
use crate::model::msr_filter::{access, allowed, bitmap_bytes, Range, MAX_RANGES};
use crate::model::regs::{RAX, RDX};
use crate::sys::cpu::Word;
use crate::uapi;
use crate::uapi::pod::MsrFilterArg;

/// The reasons for which user space can be asked.
pub(crate) const REASONS: u32 = uapi::KVM_MSR_EXIT_REASON_INVAL
    | uapi::KVM_MSR_EXIT_REASON_UNKNOWN
    | uapi::KVM_MSR_EXIT_REASON_FILTER;

struct OwnRange {
    flags: u32,
    base: u32,
    count: u32,
    bitmap: KVVec<u8>,
}

struct Filter {
    default: bool,
    ranges: KVec<OwnRange>,
}

impl Filter {
    fn allows(&self, index: u32, access: u32) -> bool {
        let ranges = self.ranges.iter().map(|r| Range {
            flags: r.flags,
            base: r.base,
            count: r.count,
            bitmap: &r.bitmap,
        });
        allowed(self.default, ranges, index, access)
    }
}

/// A VM's filter. Its mutex is taken last, with the vCPU's held.
#[pin_data]
pub(crate) struct MsrFilter {
    #[pin]
    filter: Mutex<Option<Filter>>,
    /// Counts the filters, so that vCPUs notice a new one. 0: there has been none.
    changes: Word,
}

impl MsrFilter {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            filter <- new_mutex!(None, "lodge_msr_filter"),
            changes: Word::new(),
        })
    }

    fn allows(&self, index: u32, access: u32) -> bool {
        self.changes.get() == 0
            || self
                .filter
                .lock()
                .as_ref()
                .is_none_or(|f| f.allows(index, access))
    }
}

/// The filter that user space describes. EINVAL for unknown flags, a filter that denies everything, or a range that is too long or about
/// nothing.
#[inline(never)]
fn checked(given: &MsrFilterArg) -> Result<Filter> {
    if given.flags & !uapi::KVM_MSR_FILTER_DEFAULT_DENY != 0 {
        return Err(EINVAL);
    }
    let default = given.flags & uapi::KVM_MSR_FILTER_DEFAULT_DENY == 0;
    if !default && given.ranges.iter().all(|r| r.nmsrs == 0) {
        return Err(EINVAL);
    }
    let mut ranges = KVec::with_capacity(MAX_RANGES, GFP_KERNEL_ACCOUNT)?;
    for r in given.ranges.iter().filter(|r| r.nmsrs != 0) {
        let bytes = bitmap_bytes(r.flags, r.nmsrs).map_err(|_| EINVAL)?;
        let range = OwnRange {
            flags: r.flags,
            base: r.base,
            count: r.nmsrs,
            bitmap: user::get_bytes(r.bitmap as usize, bytes)?,
        };
        ranges.push(range, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(Filter { default, ranges })
}

/// KVM_X86_SET_MSR_FILTER, with the errors of [`checked`].
#[inline(never)]
pub(crate) fn set<B: Backend>(vm: &Vm<B>, given: &MsrFilterArg) -> Result<isize> {
    let filter = checked(given)?;
    let old = vm.msr_filter.filter.lock().replace(filter);
    drop(old);
    // A vCPU that sees the change at its next entry exits for every register from then on.
    vm.msr_filter.changes.count_change();
    vm.kicks.drive_out();
    Ok(0)
}

/// Why an access of the guest fails: a reason for which user space can be asked.
fn reason(e: BadMsr) -> u32 {
    match e {
        BadMsr::Unknown => uapi::KVM_MSR_EXIT_REASON_UNKNOWN,
        BadMsr::Refused => uapi::KVM_MSR_EXIT_REASON_INVAL,
    }
}

impl<B: Backend> Loaded<'_, B> {
    /// Before each entry: with a filter, every access exits.
    pub(crate) fn refresh_msr_exits(&mut self) {
        let changes = self.vm.msr_filter.changes.get();
        if self.state.filters_seen != changes {
            self.state.filters_seen = changes;
            B::set_msr_exits(&mut self.state.hw, true);
        }
    }

    /// The guest reads a register; the error is the reason for which it gets a #GP, unless user space is to be asked.
    pub(crate) fn guest_read_msr(&mut self, index: u32) -> Result<u64, u32> {
        if !self.vm.msr_filter.allows(index, access::READ) {
            return Err(uapi::KVM_MSR_EXIT_REASON_FILTER);
        }
        self.read_msr(index, Who::Guest).map_err(reason)
    }

    /// The guest reads a counter, of which the CPU says `value`. If the CPU refuses it, nobody is asked.
    pub(crate) fn filtered_counter(&self, index: u32, value: Result<u64>) -> Result<u64, u32> {
        if !self.vm.msr_filter.allows(index, access::READ) {
            return Err(uapi::KVM_MSR_EXIT_REASON_FILTER);
        }
        value.map_err(|_| 0)
    }

    /// The guest writes a register; the error as for [`Loaded::guest_read_msr`].
    pub(crate) fn guest_write_msr(&mut self, index: u32, value: u64) -> Result<(), u32> {
        if !self.vm.msr_filter.allows(index, access::WRITE) {
            return Err(uapi::KVM_MSR_EXIT_REASON_FILTER);
        }
        self.write_msr(index, value, Who::Guest).map_err(reason)
    }

    /// User space wants to know of an access that fails for `reason`.
    pub(crate) fn asks_user_space(&self, reason: u32) -> bool {
        self.vm.policy.user_msr_reasons() & reason != 0
    }

    /// An access that fails for `reason`, in an instruction of `len` bytes; `value` is what it would have written.
    pub(crate) fn msr_failed(
        &mut self,
        index: u32,
        value: Option<u64>,
        reason: u32,
        len: u8,
    ) -> Flow {
        if !self.asks_user_space(reason) {
            self.raise_gp();
            return Flow::Resume;
        }
        self.run.msr(index, value, reason);
        self.state.pending = match value {
            Some(_) => Pending::Wrmsr { len },
            None => Pending::Rdmsr { len },
        };
        Flow::User
    }

    /// Finishes an access that user space was asked about: `read` takes the value.
    pub(crate) fn complete_msr(&mut self, read: bool, len: u8) {
        let (failed, value) = self.run.msr_answer();
        if failed {
            self.raise_gp();
            return;
        }
        if read {
            self.state.switch.regs.set(RAX, value & 0xffff_ffff);
            self.state.switch.regs.set(RDX, value >> 32);
        }
        self.skip(len);
    }
}
