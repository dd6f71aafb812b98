// SPDX-License-Identifier: GPL-2.0
//! CPUID: the guest's instruction, and the ioctls that set and tell it.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow};
use crate::hv::vcpu::Loaded;
use crate::hv::{exits, host, user};
use crate::model::cpuid::{self, BadCpuid, Entry, Shown, MAX_ENTRIES};
use crate::model::cpuid_host;
use crate::model::emu::job::Answer;
use crate::model::event::Exception;
use crate::model::guest::GuestFeatures;
use crate::model::msr;
use crate::model::regs::{RAX, RBX, RCX, RDX};
use crate::uapi::pod::Header;
use crate::uapi::{kvm_cpuid_entry, kvm_cpuid_entry2};

/// The CPUID instruction, `len` bytes long.
pub(crate) fn execute<B: Backend>(cx: &mut Loaded<'_, B>, len: u8) -> Result<Flow> {
    if faults(cx) {
        cx.raise_gp();
        return Ok(Flow::Resume);
    }
    refresh(cx)?;
    let regs = &mut cx.state.switch.regs;
    let [eax, ebx, ecx, edx] =
        cpuid::execute(&cx.state.cpuid, regs.get(RAX) as u32, regs.get(RCX) as u32).regs;
    regs.set(RAX, eax.into());
    regs.set(RBX, ebx.into());
    regs.set(RCX, ecx.into());
    regs.set(RDX, edx.into());
    cx.skip(len);
    Ok(Flow::Resume)
}

/// The guest switched CPUID faulting on, and the instruction is not its kernel's.
fn faults<B: Backend>(cx: &mut Loaded<'_, B>) -> bool {
    msr::cpuid_faulting(&*cx.state.msrs) && B::cpl(&mut cx.state.hw) > 0
}

/// CPUID for the emulator: the four registers, or #GP where user mode may not use it.
pub(crate) fn look_up<B: Backend>(cx: &mut Loaded<'_, B>, leaf: u32, subleaf: u32) -> Answer {
    if faults(cx) || refresh(cx).is_err() {
        return Answer::Fault(Exception::protection(0));
    }
    let regs = cpuid::execute(&cx.state.cpuid, leaf, subleaf).regs;
    Answer::Vector(regs.map(u64::from))
}

fn shown<B: Backend>(cx: &Loaded<'_, B>) -> Shown {
    Shown {
        cr4: cx.state.controls.cr4,
        xcr0: cx.state.controls.xcr0,
        apic_base: msr::apic_base(&*cx.state.msrs),
        mwait: cx.mwait_switch(),
    }
}

/// Brings the bits up to date that follow registers.
#[inline]
fn refresh<B: Backend>(cx: &mut Loaded<'_, B>) -> Result {
    if cx.state.cpuid_dirty {
        let now = shown(cx);
        cpuid::refresh(
            &mut cx.state.cpuid,
            &mut cx.state.features,
            host::caps()?,
            &now,
        );
        cx.state.cpuid_dirty = false;
    }
    Ok(())
}

fn entry_from(e: &kvm_cpuid_entry2) -> Entry {
    Entry {
        function: e.function,
        index: e.index,
        flags: e.flags,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    }
}

fn entry_to(e: &Entry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: e.function,
        index: e.index,
        flags: e.flags,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
        padding: [0; 3],
    }
}

const HEADER: usize = core::mem::size_of::<Header>();

/// How many entries user space has room for: at least one, or E2BIG.
fn room(header: &Header) -> Result<usize> {
    match header.count {
        0 => Err(E2BIG),
        n => Ok(n.min(MAX_ENTRIES as u32) as usize),
    }
}

/// Puts the entries that `produce` makes behind the header; E2BIG if there are more than room for them.
fn put_entries(
    arg: usize,
    header: &Header,
    produce: impl FnOnce(&mut dyn FnMut(Entry) -> Result) -> Result,
) -> Result<isize> {
    let room = room(header)?;
    let mut entries = KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?;
    produce(&mut |e: Entry| {
        if entries.len() >= room {
            return Err(E2BIG);
        }
        entries.push(entry_to(&e), GFP_KERNEL_ACCOUNT)?;
        Ok(())
    })?;
    user::put_slice(user::after(arg, HEADER)?, &entries)?;
    user::put(
        arg,
        &Header {
            count: entries.len() as u32,
            pad: header.pad,
        },
    )?;
    Ok(0)
}

/// KVM_GET_SUPPORTED_CPUID: E2BIG when there is no room for all entries.
pub(crate) fn get_supported(arg: usize) -> Result<isize> {
    let header: Header = user::get(arg)?;
    let caps = host::caps()?;
    put_entries(arg, &header, |push| {
        cpuid_host::supported(&crate::sys::cpu::cpuid, caps, &mut |e| push(e))
    })
}

/// KVM_GET_EMULATED_CPUID: E2BIG when there is no room for all entries, EINVAL when the padding of the given ones is not zero or
/// cannot be read.
pub(crate) fn get_emulated(arg: usize) -> Result<isize> {
    let header: Header = user::get(arg)?;
    let given: KVVec<kvm_cpuid_entry2> = user::get_slice(user::after(arg, HEADER)?, room(&header)?)
        .map_err(|e| if e == EFAULT { EINVAL } else { e })?;
    if given.iter().any(|e| e.padding != [0; 3]) {
        return Err(EINVAL);
    }
    let caps = host::caps()?;
    put_entries(arg, &header, |push| {
        cpuid_host::emulated(caps, &mut |e| push(e))
    })
}

/// KVM_SET_CPUID: as KVM_SET_CPUID2, with entries that have no index.
pub(crate) fn set_old<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result<isize> {
    set_entries(cx, given_old(arg)?)
}

fn given_old(arg: usize) -> Result<KVec<Entry>> {
    let header: Header = user::get(arg)?;
    if header.count as usize > MAX_ENTRIES {
        return Err(E2BIG);
    }
    let raw: KVVec<kvm_cpuid_entry> =
        user::get_slice(user::after(arg, HEADER)?, header.count as usize)?;
    let mut entries = KVec::with_capacity(raw.len(), GFP_KERNEL_ACCOUNT)?;
    for e in raw.iter() {
        let entry = Entry {
            function: e.function,
            index: 0,
            flags: 0,
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        };
        entries.push(entry, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(entries)
}

/// KVM_SET_CPUID2. E2BIG: too many entries; EINVAL: a value no CPU could have, or a change after the guest ran.
pub(crate) fn set<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result<isize> {
    set_entries(cx, given(arg)?)
}

fn given(arg: usize) -> Result<KVec<Entry>> {
    let header: Header = user::get(arg)?;
    if header.count as usize > MAX_ENTRIES {
        return Err(E2BIG);
    }
    let raw: KVVec<kvm_cpuid_entry2> =
        user::get_slice(user::after(arg, HEADER)?, header.count as usize)?;
    let mut entries = KVec::with_capacity(raw.len(), GFP_KERNEL_ACCOUNT)?;
    for e in raw.iter() {
        entries.push(entry_from(e), GFP_KERNEL_ACCOUNT)?;
    }
    Ok(entries)
}

fn set_entries<B: Backend>(cx: &mut Loaded<'_, B>, mut entries: KVec<Entry>) -> Result<isize> {
    let caps = host::caps()?;
    let now = shown(cx);
    if cx.vm.policy.disabled_exits() & exits::HLT != 0 {
        cpuid::hide_unhalt(&mut entries);
    }
    if cx.has_run() {
        let mut features = cx.state.features;
        cpuid::refresh(&mut entries, &mut features, caps, &now);
        refresh(cx)?;
        return if entries[..] == cx.state.cpuid[..] {
            Ok(0)
        } else {
            Err(EINVAL)
        };
    }
    cpuid::check_set(&entries).map_err(|e| match e {
        BadCpuid::LinearWidth => EINVAL,
        BadCpuid::DynamicState => EPERM,
    })?;
    cx.state.features = GuestFeatures::derive(&entries, caps);
    cpuid::refresh(&mut entries, &mut cx.state.features, caps, &now);
    cx.state.cpuid = entries;
    // Walks depend on it too.
    cx.state.fetches.clear();
    cx.state.walks.clear();
    cx.update_switch();
    cx.update_instructions();
    Ok(0)
}

/// KVM_GET_CPUID2. E2BIG when there is no room for all entries; nothing is written then.
pub(crate) fn get<B: Backend>(cx: &mut Loaded<'_, B>, arg: usize) -> Result<isize> {
    refresh(cx)?;
    put(arg, &cx.state.cpuid)
}

fn put(arg: usize, entries: &[Entry]) -> Result<isize> {
    let header: Header = user::get(arg)?;
    let count = entries.len();
    if (header.count as usize) < count {
        return Err(E2BIG);
    }
    let mut out = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
    for e in entries {
        out.push(entry_to(e), GFP_KERNEL_ACCOUNT)?;
    }
    user::put_slice(user::after(arg, HEADER)?, &out)?;
    let header = Header {
        count: count as u32,
        pad: header.pad,
    };
    user::put(arg, &header)?;
    Ok(0)
}
