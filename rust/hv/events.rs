// SPDX-License-Identifier: GPL-2.0
//! Putting events into the guest before an entry, and taking note of them after an exit.

use crate::hv::backend::{Backend, Inject, Shadow};
use crate::hv::stats::Stat;
use crate::hv::vcpu::Loaded;
use crate::model::cr::dr7;
use crate::model::event::{debug_status, vector, Exception, Gates, Next};
use crate::model::regs::rflags;

impl<B: Backend> Loaded<'_, B> {
    /// What the guest's state says about taking events now.
    pub(crate) fn gates(&mut self) -> Gates {
        let Shadow { sti, mov_ss } = B::shadow(&mut self.state.hw);
        Gates {
            if_flag: self.state.switch.regs.rflags & rflags::IF != 0,
            shadow: sti || mov_ss,
            closed: false,
            irq_waiting: false,
            irq_window_wanted: self.run.wants_irq_window(),
        }
    }

    /// Would an interrupt that user space queues now be delivered at once?
    pub(crate) fn ready_for_interrupt(&mut self) -> bool {
        let gates = self.gates();
        self.state.events.ready_for_interrupt(&gates)
    }

    /// Asks the hardware for the next event and for the windows that are waited for. True: exit again at once.
    pub(crate) fn inject_events(&mut self) -> bool {
        // (What an interrupt controller in the kernel has to deliver will be asked here, too.)
        let wanted = self.run.wants_irq_window();
        if !wanted && !self.state.windows && self.state.events.is_idle() {
            self.end_shadow_of_step();
            return false;
        }
        self.plan_events()
    }

    /// Entry takes TF in an interrupt shadow for a single step of the guest's own that is pending.
    fn end_shadow_of_step(&mut self) {
        if B::INTEL && self.state.debug.steps() {
            B::set_shadow(&mut self.state.hw, Shadow::default());
        }
    }

    #[inline(never)]
    fn plan_events(&mut self) -> bool {
        let mut gates = self.gates();
        gates.closed = self.state.debug.blocks_interrupts();
        self.end_shadow_of_step();
        let plan = self.state.events.plan(&gates);
        if let Some(event) = self.next_event(plan.next) {
            B::inject(&mut self.state.hw, &mut self.state.switch, event);
        }
        let irq_window = plan.irq_window && !gates.closed;
        let nmi_window = plan.nmi_window && !gates.closed;
        B::set_irq_window(&mut self.state.hw, irq_window);
        B::set_nmi_window(&mut self.state.hw, nmi_window);
        self.state.windows = irq_window || nmi_window;
        plan.exit_at_once && !gates.closed
    }

    /// The event that the emulator has to deliver before the next instruction.
    pub(super) fn event_to_emulate(&mut self) -> Option<Inject> {
        if self.state.events.is_idle() {
            return None;
        }
        let mut gates = self.gates();
        gates.closed = self.state.debug.blocks_interrupts();
        let plan = self.state.events.plan(&gates);
        self.next_event(plan.next)
    }

    /// What is to be delivered, after what happens besides.
    fn next_event(&mut self, next: Next) -> Option<Inject> {
        Some(match next {
            Next::None | Next::Acknowledge => return None,
            Next::Exception {
                exception,
                fresh,
                set_rf,
            } => {
                if fresh {
                    self.apply_payload(&exception);
                    if exception.vector == vector::DB {
                        self.state.controls.dr7 &= !dr7::GD;
                        self.update_switch();
                    }
                }
                if set_rf {
                    self.state.switch.regs.rflags |= rflags::RF;
                }
                Inject::Exception(exception)
            }
            Next::Nmi => {
                self.count(Stat::NmiInjections);
                Inject::Nmi
            }
            Next::Interrupt(i) => {
                self.count(Stat::IrqInjections);
                Inject::Interrupt(i)
            }
        })
    }

    /// What an exception writes besides the stack, at the moment it is delivered.
    fn apply_payload(&mut self, e: &Exception) {
        let Some(payload) = e.payload else { return };
        match e.vector {
            vector::PF => self.state.switch.cr2 = payload,
            vector::DB => {
                let c = &mut self.state.controls;
                c.dr6 = debug_status(c.dr6, payload);
                self.update_switch();
            }
            _ => {}
        }
    }

    /// Before user space sees registers: without KVM_CAP_EXCEPTION_PAYLOAD it would lose the payload of an exception that waits, so
    /// that goes to where it belongs.
    pub(crate) fn settle_payload(&mut self) {
        if !self.vm.policy.exception_payload() {
            if let Some(e) = self.state.events.take_payload() {
                self.apply_payload(&e);
            }
        }
    }
}
