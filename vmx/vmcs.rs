// SPDX-License-Identifier: GPL-2.0
//! The owner of a VMCS: where it is active, making it current, and access to its fields.
//!
//! Unsafe because: a VMCS is memory that processors cache; `model::residency` says when it may be used and freed, and this file
//! carries that out.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr::NonNull;

use kernel::error::to_result;
use kernel::prelude::*;

use super::fields::{
    group_of, width_of, Field, Group, Width, WidthCode, TSC_MULTIPLIER, TSC_OFFSET,
};
use super::insn::{self, Failure, Run};
use crate::model::residency::{Enter, Load, Place};
use crate::sys::cpu::{IrqOff, PreemptOff, Word};
use crate::sys::page::Pages;
use crate::sys::switch::Switch;

/// `struct lodge_vmcs`, with the place behind it.
#[repr(C)]
struct Node {
    link: UnsafeCell<[usize; 2]>,
    phys: u64,
    place: Word,
}

const _: () = assert!(offset_of!(Node, link) == 0 && offset_of!(Node, phys) == 16);

impl Node {
    fn place(&self) -> Place {
        Place::from_word(self.place.get())
    }

    fn set_place(&self, place: Place) {
        self.place.set(place.to_word());
    }

    /// Clears the VMCS if it is active on this CPU.
    ///
    /// # Safety
    /// Interrupts are off; `node` is one that [`Vmcs::new`] made and that lives.
    unsafe extern "C" fn clear_here(node: *mut c_void) {
        // SAFETY: by the contract.
        let this = unsafe { &*node.cast_const().cast::<Node>() };
        let Ok(clear) = this.place().cleared(crate::sys::cpu::current_cpu()) else {
            return;
        };
        // SAFETY: the VMCS is active here, so its address is that of a VMCS; the node is in this CPU's list. A failure
        // means that VMX was turned off, which clears as well as anything.
        unsafe {
            let _ = insn::vmclear(this.phys);
            if insn::lodge_vmcs_current() == this.phys {
                insn::lodge_vmcs_set_current(0);
            }
            insn::lodge_vmcs_unlist(node);
        }
        this.set_place(clear);
    }
}

/// A VMCS.
///
/// # Invariants
/// `node` is an allocation of this value's, in the list of the CPU that its place names and in none otherwise; `page` is active on
/// that CPU at most.
pub(super) struct Vmcs {
    node: NonNull<Node>,
    page: Pages<0>,
}

// SAFETY: the residency protocol is made for use from any CPU; fields are accessed through `Fields` only.
unsafe impl Send for Vmcs {}
// SAFETY: as above.
unsafe impl Sync for Vmcs {}

impl Vmcs {
    /// A clear one. `revision` comes from the processor's capabilities.
    pub(super) fn new(revision: u32) -> Result<Self> {
        let mut page = Pages::new()?;
        for (to, from) in page.bytes_mut().iter_mut().zip(revision.to_ne_bytes()) {
            *to = from;
        }
        let node = KBox::new(
            Node {
                link: UnsafeCell::new([0; 2]),
                phys: page.phys(),
                place: Word::with(Place::Clear.to_word()),
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        // INVARIANT: just allocated, active nowhere.
        let node = NonNull::new(KBox::into_raw(node)).ok_or(ENOMEM)?;
        let vmcs = Self { node, page };
        {
            let _preempt = PreemptOff::new();
            // SAFETY: the page has a revision identifier. VMCLEAR also sets up what the processor keeps in it.
            unsafe { insn::vmclear(vmcs.page.phys()) }.map_err(|_| EIO)?;
        }
        Ok(vmcs)
    }

    fn node(&self) -> &Node {
        // SAFETY: by the invariant.
        unsafe { self.node.as_ref() }
    }

    /// Makes it current on this CPU. True when it came from another: what the VMCS holds of the host is then wrong, and so is
    /// what the TLB holds of the guest.
    ///
    /// # Context
    /// Interrupts on.
    pub(super) fn load(&self, preempt: &PreemptOff) -> Result<bool, Failure> {
        let (node, cpu) = (self.node(), preempt.cpu());
        loop {
            let place = node.place();
            // SAFETY: preemption is off.
            let current = unsafe { insn::lodge_vmcs_current() } == node.phys;
            match place.load(cpu, current) {
                Load::Ready => return Ok(false),
                Load::Point => {
                    // SAFETY: active on this CPU.
                    unsafe { self.point()? };
                    return Ok(false);
                }
                // A CPU that is offline has cleared it; then the place says so now.
                Load::ClearOn(there) => self.clear_on(there),
                Load::Claim => {
                    let irq = IrqOff::new();
                    let claimed = place.claimed(irq.cpu()).map_err(|_| Failure::Failed)?;
                    // SAFETY: interrupts are off, the VMCS is active on no CPU; the order is the protocol's.
                    unsafe {
                        insn::lodge_vmcs_list(self.node.as_ptr().cast());
                        node.set_place(claimed);
                        if let Err(e) = self.point() {
                            // VMX is off here, and nobody would clear it later.
                            Node::clear_here(self.node.as_ptr().cast());
                            return Err(e);
                        }
                    }
                    return Ok(true);
                }
            }
        }
    }

    /// # Safety
    /// The place names this CPU.
    unsafe fn point(&self) -> Result<(), Failure> {
        let phys = self.node().phys;
        // SAFETY: by the contract and the residency protocol.
        unsafe {
            insn::vmptrld(phys)?;
            insn::lodge_vmcs_set_current(phys);
        }
        Ok(())
    }

    fn clear_on(&self, cpu: u32) {
        // SAFETY: the node lives while this waits. An error says that the CPU is offline.
        let _ = unsafe { insn::lodge_vmcs_call(cpu, Node::clear_here, self.node.as_ptr().cast()) };
    }

    /// Enters the guest and comes back at its exit. `Failed` in the error says that the VMCS is not loaded here.
    pub(super) fn enter(
        &self,
        run: &mut Run,
        switch: &mut Switch,
        irq: &IrqOff,
    ) -> Result<(), Failure> {
        let (node, place) = (self.node(), self.node().place());
        let how = place.enter(irq.cpu()).map_err(|_| Failure::Failed)?;
        run.flags = if how == Enter::Resume {
            insn::RESUME
        } else {
            0
        };
        // SAFETY: interrupts are off; the VMCS is active here, and current since `load`, because whoever changes that on
        // this CPU is another vCPU's load, after which this one is loaded again.
        unsafe { insn::lodge_vmx_enter(switch, run) };
        // An entry that fails in its checks of guest state reports an exit, but does not launch.
        if run.failed == 0 && run.reason >> 31 == 0 {
            node.set_place(place.entered());
        }
        Ok(())
    }

    /// Clears what is active on this CPU: it goes offline, or VMX is about to be turned off.
    pub(super) fn clear_all(_preempt: &PreemptOff) {
        // SAFETY: the list holds nodes that live; `clear_here` unlists each.
        unsafe { insn::lodge_vmcs_clear_all(Node::clear_here) };
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        while let Some(cpu) = self.node().place().release() {
            self.clear_on(cpu);
        }
        // SAFETY: from `KBox::into_raw`; in no list, because the place is clear.
        drop(unsafe { KBox::from_raw(self.node.as_ptr()) });
    }
}

/// Access to the fields of the VMCS that is current. Each vCPU has one, in the half of its state that only the thread that has the
/// vCPU loaded can reach: what is current is its own VMCS, on whatever CPU, because the scheduler's callback loads it again
/// whenever the thread gets one.
///
/// A failure is our own mistake (or VMX was turned off): it is kept, and the guest is not entered again.
#[derive(Debug, Default)]
pub(super) struct Fields {
    broken: Option<u32>,
}

impl Fields {
    /// Reads a field; 0 if that fails.
    #[inline]
    pub(super) fn read<W: Width>(&mut self, field: Field<W>) -> W::Value {
        // SAFETY: the type's contract; reading harms nothing.
        match unsafe { insn::vmread(field.encoding()) } {
            Ok(raw) => W::from_raw(raw),
            Err(_) => {
                self.fail(field.encoding());
                W::from_raw(0)
            }
        }
    }

    /// Writes a field that can harm only the guest. Host state and addresses are for [`Fields::write_trusted`].
    #[inline]
    pub(super) fn write<W: Width>(&mut self, field: Field<W>, value: W::Value) {
        let encoding = field.encoding();
        let address = group_of(encoding) == Group::Control
            && width_of(encoding) == WidthCode::Quad
            && encoding != TSC_OFFSET.encoding()
            && encoding != TSC_MULTIPLIER.encoding();
        if group_of(encoding) == Group::Host || address {
            self.fail(encoding);
            return;
        }
        // SAFETY: the type's contract; a guest can do to itself what it likes. (Controls come from the negotiated words.)
        unsafe { self.write_trusted(field, value) };
    }

    /// Writes any field.
    ///
    /// # Safety
    /// A host-state field gets the host's state; an address is that of memory of the kind the field wants, which lives
    /// as long as the VMCS has it.
    #[inline]
    pub(super) unsafe fn write_trusted<W: Width>(&mut self, field: Field<W>, value: W::Value) {
        // SAFETY: by the contract, and the type's.
        if unsafe { insn::vmwrite(field.encoding(), W::to_raw(value)) }.is_err() {
            self.fail(field.encoding());
        }
    }

    #[cold]
    fn fail(&mut self, encoding: u32) {
        if self.broken.is_none() && !crate::sys::ffi::lodge_virt_rebooting() {
            pr_err!(
                "VMCS field {} could not be accessed\n",
                super::fields::name(encoding)
            );
        }
        self.broken = Some(encoding);
    }

    /// The VMCS could not be loaded, so that accesses would go to another.
    pub(super) fn give_up(&mut self) {
        self.broken = Some(u32::MAX);
    }

    /// An access failed.
    pub(super) fn broken(&self) -> bool {
        self.broken.is_some()
    }
}

/// Prepares what C keeps for all CPUs; gives it back when dropped.
pub(super) struct Lists(());

impl Lists {
    /// Once at load, before VMX is turned on.
    pub(super) fn new() -> Result<Self> {
        // SAFETY: task context, once.
        to_result(unsafe { insn::lodge_vmx_setup() })?;
        Ok(Self(()))
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        // SAFETY: set up by `new`; VMX is off.
        unsafe { insn::lodge_vmx_teardown() };
    }
}
