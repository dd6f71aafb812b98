// SPDX-License-Identifier: GPL-2.0
//! Running a guest that the hardware cannot run as it is ([`Backend::emulates`]): the emulator executes its instructions and delivers its
//! events, one for each round of the run loop, which looks at everything that the next one might have to wait for.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow, Inject};
use crate::hv::fault::{populate, Populated};
use crate::hv::vcpu::Loaded;
use crate::mmu::gwalk;
use crate::mmu::{Access, Gpa};
use crate::model::emu::insn::Kind;
use crate::model::emu::job::{Answer, Delivery};
use crate::model::event::Exception;
use crate::model::regs::Seg;
use crate::sys::cpu;

impl<B: Backend> Loaded<'_, B> {
    /// Delivers the next event, or executes the next instruction.
    #[cold]
    #[inline(never)]
    pub(super) fn run_emulated(&mut self) -> Result<Flow> {
        if self.irq_window_is_open() {
            return Ok(Flow::User);
        }
        if cpu::guest_work_pending() {
            return self.work();
        }
        if self.host_tsc.changed() {
            self.follow_host_tsc();
        }
        self.state.was_emulated = true;
        B::wake(&mut self.state.hw);
        match self.event_to_emulate() {
            Some(event) => self.deliver(event),
            None => self.emulate_next(),
        }
    }

    /// Has the emulator deliver an event that the hardware cannot deliver.
    fn deliver(&mut self, event: Inject) -> Result<Flow> {
        let delivery = match event {
            Inject::Exception(e) => Delivery {
                vector: e.vector,
                error: e.error,
                insn_len: e.insn_len,
                int_n: false,
            },
            Inject::Interrupt(i) => Delivery {
                vector: i.vector,
                error: None,
                insn_len: i.insn_len,
                int_n: i.soft,
            },
            Inject::Nmi => {
                B::set_nmi_masked(&mut self.state.hw, true);
                Delivery {
                    vector: 2,
                    error: None,
                    insn_len: 0,
                    int_n: false,
                }
            }
        };
        let context = self.context();
        let state = &mut *self.state;
        state
            .job
            .begin_delivery(&delivery, &state.switch.regs, &context);
        self.drive_job(Answer::Start)
    }

    /// Raises what the emulator's job ended with. Where that was the delivery of an event, an exception stays until then, for the two become
    /// one; an interrupt or NMI is lost, as the CPU had taken it. In a shutdown nothing is left.
    pub(super) fn raise_from_job(&mut self, e: Exception) {
        let delivery = self.state.job.insn().kind() == Kind::Deliver;
        if delivery && !self.state.events.has_exception() {
            self.state.events.complete(None);
        }
        self.raise(e);
        if delivery && self.state.events.shuts_down() {
            self.state.events.complete(None);
        }
    }

    /// An event goes through a task gate, if that is what the emulator did: the switch delivers it, with this error code.
    pub(super) fn delivered_through_gate(&mut self) -> Option<u16> {
        let delivery = self.state.job.insn().delivery()?;
        self.state.events.complete(None);
        delivery.error.map(|error| error as u16)
    }

    fn emulate_next(&mut self) -> Result<Flow> {
        if let Some(e) = self.breakpoint_here() {
            self.raise(e);
            return Ok(Flow::Resume);
        }
        if self.beyond_code(1) {
            self.raise_gp();
            return Ok(Flow::Resume);
        }
        let (kind, len) = match self.identify() {
            Ok(found) => found,
            Err(None) if self.unread_code()? == Populated::Retry => return Ok(Flow::Resume),
            // What is no instruction raises its fault when it is emulated.
            Err(_) => return self.emulate(),
        };
        if self.beyond_code(len) {
            self.raise_gp();
            return Ok(Flow::Resume);
        }
        match kind {
            Kind::Vmcall | Kind::Vmmcall => Ok(self.hypercall(len)),
            // It may stand for a forced emulation.
            Kind::Ud => self.undefined_opcode(),
            Kind::Int3 if self.state.debug.stops_at_int3() => {
                self.stop_at_breakpoint();
                Ok(Flow::User)
            }
            _ => self.emulate(),
        }
    }

    /// What is where the instruction at RIP could not be read on: as for a second-stage fault of a guest that the hardware runs.
    fn unread_code(&mut self) -> Result<Populated> {
        let fetch = gwalk::Access {
            fetch: true,
            user: B::cpl(&mut self.state.hw) == 3,
            ..gwalk::Access::default()
        };
        let read = self.fetch().bytes().len() as u64;
        let at = self.linear_rip().wrapping_add(read);
        let Ok(found) = self.translate(at, fetch) else {
            return Ok(Populated::Device);
        };
        populate(self, Gpa(found.gpa), Access::EXEC)
    }

    /// The instruction of `len` bytes at RIP reaches beyond the code segment.
    fn beyond_code(&mut self, len: u8) -> bool {
        let last = u64::from(len).saturating_sub(1);
        let end = self.state.switch.regs.rip.saturating_add(last);
        !self.is_64bit() && end > u64::from(B::segment(&mut self.state.hw, Seg::Cs).limit)
    }
}
