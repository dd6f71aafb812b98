// SPDX-License-Identifier: GPL-2.0
//! Exceptions, NMIs and interrupts on their way into a guest: one queue per virtual CPU.
//!
//! An event is *pending* until the CPU is asked to deliver it, and *injected* from then until an entry has delivered it. A
//! guest exit in the middle of a delivery (the vectoring information of VMX, EXITINTINFO of SVM) puts the event back as
//! injected, and it goes first at the next entry. The life of it, per entry:
//!
//! 1. handlers call [`EventQueue::raise`], [`EventQueue::add_nmis`], [`EventQueue::queue_interrupt`];
//! 2. [`EventQueue::plan`] says what to write into the VMCS or VMCB and which windows to ask for;
//! 3. the guest is entered; if that fails before the guest ran, clear the injection field and start again at 2;
//! 4. after the exit, *first of all*, [`EventQueue::complete`] with what the CPU was delivering when it exited.
#![forbid(unsafe_code)]

use super::exception::is_exception;
pub use super::exception::{
    besides_step, checks_alignment, debug_status, may_tell, merge, vector, Exception, Merge,
};

/// The type of an event, with the code that both vendors' injection and vectoring fields use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// External interrupt.
    External = 0,
    /// NMI.
    Nmi = 2,
    /// Exception that the CPU raised. (On SVM: every exception.)
    Hardware = 3,
    /// INT n.
    Software = 4,
    /// INT1; VMX only.
    Privileged = 5,
    /// INT3 or INTO; VMX only.
    SoftException = 6,
}

impl Kind {
    /// The type with this code; `None` for the codes that mean nothing.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::External,
            2 => Self::Nmi,
            3 => Self::Hardware,
            4 => Self::Software,
            5 => Self::Privileged,
            6 => Self::SoftException,
            _ => return None,
        })
    }
}

/// An interrupt that is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// The vector.
    pub vector: u8,
    /// INT n, as opposed to an external interrupt.
    pub soft: bool,
    /// Length of the INT n instruction; 0 for an external interrupt.
    pub insn_len: u8,
}

/// What the CPU was delivering when the guest exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectoring {
    /// The type.
    pub kind: Kind,
    /// The vector.
    pub vector: u8,
    /// The error code, if the field says that it is valid.
    pub error: Option<u32>,
    /// Length of the instruction, for the kinds that an instruction causes.
    pub insn_len: u8,
}

/// What the CPU's state says about taking events now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    /// RFLAGS.IF.
    pub if_flag: bool,
    /// The previous instruction was STI, MOV SS or POP SS.
    pub shadow: bool,
    /// Something else than a previous NMI blocks NMIs and interrupts (GIF is clear).
    pub closed: bool,
    /// An in-kernel controller has an interrupt to deliver.
    pub irq_waiting: bool,
    /// User space asked to know when an interrupt can be injected (`request_interrupt_window`).
    pub irq_window_wanted: bool,
}

impl Gates {
    const fn irq_open(&self) -> bool {
        self.if_flag && !self.shadow && !self.closed
    }
}

/// The event to inject at this entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// None.
    None,
    /// An exception. `fresh` when it is injected for the first time: then, and only then, apply `payload`, set RF in the guest's
    /// RFLAGS if `set_rf`, and clear DR7.GD for a #DB.
    Exception {
        /// The exception.
        exception: Exception,
        /// It is injected for the first time.
        fresh: bool,
        /// RFLAGS.RF is to be set before.
        set_rf: bool,
    },
    /// An NMI. From here on NMIs are masked, until [`EventQueue::set_nmi_masked`] says otherwise.
    Nmi,
    /// An interrupt.
    Interrupt(Interrupt),
    /// Take the interrupt from the controller, pass its vector to [`EventQueue::queue_interrupt`] and inject it; nothing else
    /// of the plan changes. If there was none after all, inject nothing.
    Acknowledge,
}

/// What to do at an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Plan {
    /// The event to inject.
    pub next: Next,
    /// Exit as soon as an NMI could be taken.
    pub nmi_window: bool,
    /// Exit as soon as an interrupt could be taken.
    pub irq_window: bool,
    /// Something could be taken, but for the event that goes first: deliver that one, exit at once, and plan again.
    pub exit_at_once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Pending,
    Injected,
}

/// The events of one virtual CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventQueue {
    exception: Option<(Exception, Stage)>,
    interrupt: Option<Interrupt>,
    /// The interrupt is not what this entry injects: it waits until the guest takes one.
    deferred: bool,
    nmi_injected: bool,
    nmi_pending: u8,
    nmi_masked: bool,
    triple_fault: bool,
}

impl EventQueue {
    /// Nothing is queued.
    pub const fn new() -> Self {
        Self {
            exception: None,
            interrupt: None,
            deferred: false,
            nmi_injected: false,
            nmi_pending: 0,
            nmi_masked: false,
            triple_fault: false,
        }
    }

    /// Raises an exception in the guest. With another one that is not delivered yet, the two are merged as a CPU does it.
    pub fn raise(&mut self, e: Exception) {
        let verdict = match self.exception {
            Some((first, _)) => merge(first.vector, e.vector),
            None => Merge::Second,
        };
        match verdict {
            Merge::Second => self.exception = Some((e, Stage::Pending)),
            Merge::DoubleFault => {
                self.exception = Some((Exception::with_error(vector::DF, 0), Stage::Pending));
            }
            Merge::TripleFault => self.triple_fault = true,
        }
    }

    /// KVM_INTERRUPT, an acknowledged interrupt, or a bit of KVM_SET_SREGS: delivers `vector` at the next entry if the guest takes
    /// interrupts then, and no other event goes first; otherwise as soon as it does. (The instruction that user space completes may end
    /// in an exception, whose handler clears IF.) It replaces one that was queued and not delivered.
    pub fn queue_interrupt(&mut self, vector: u8) {
        self.interrupt = Some(Interrupt {
            vector,
            soft: false,
            insn_len: 0,
        });
    }

    /// Nothing waits to be delivered, and nothing is to be delivered again.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.exception.is_none()
            && self.interrupt.is_none()
            && !self.nmi_injected
            && self.nmi_pending == 0
    }

    /// Adds `n` NMIs that other threads queued. A CPU remembers one; a second is kept while none blocks the first, because
    /// a vCPU that does not run cannot take them as fast as a CPU would.
    pub fn add_nmis(&mut self, n: u32) {
        let total = u32::from(self.nmi_pending).saturating_add(n);
        self.nmi_pending = total.min(u32::from(self.nmi_limit())) as u8;
    }

    const fn nmi_limit(&self) -> u8 {
        if self.nmi_masked || self.nmi_injected {
            1
        } else {
            2
        }
    }

    /// Whether an NMI is being handled: until IRET. Where hardware tracks that (virtual NMIs), copy it here after each exit.
    pub fn set_nmi_masked(&mut self, masked: bool) {
        self.nmi_masked = masked;
    }

    /// NMIs are masked.
    pub fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    /// An NMI waits, so that IRET (or whatever unmasks it) is of interest.
    pub fn nmi_waiting(&self) -> bool {
        self.nmi_pending != 0
    }

    /// KVM_SET_REGS: an exception that was not injected yet belongs to the old RIP, and is dropped.
    pub fn drop_pending_exception(&mut self) {
        if let Some((_, Stage::Pending)) = self.exception {
            self.exception = None;
        }
    }

    /// An exception waits, or is being delivered.
    pub fn has_exception(&self) -> bool {
        self.exception.is_some()
    }

    /// The exception that waits to be injected, if it has a payload, which is taken from it: it is applied now.
    pub fn take_payload(&mut self) -> Option<Exception> {
        match &mut self.exception {
            Some((e, Stage::Pending)) if e.payload.is_some() => {
                let taken = *e;
                e.payload = None;
                Some(taken)
            }
            _ => None,
        }
    }

    /// The guest shuts down before it runs again.
    pub fn set_triple_fault(&mut self) {
        self.triple_fault = true;
    }

    /// The guest is going to shut down.
    pub fn shuts_down(&self) -> bool {
        self.triple_fault
    }

    /// The guest shuts down (three faults in a row); tells it once.
    pub fn take_triple_fault(&mut self) -> bool {
        core::mem::take(&mut self.triple_fault)
    }

    /// The external interrupt that is being delivered, for KVM_GET_SREGS.
    pub fn injected_interrupt(&self) -> Option<u8> {
        self.interrupt.filter(|i| !i.soft).map(|i| i.vector)
    }

    /// An event is in the middle of its delivery.
    fn redelivers(&self) -> bool {
        matches!(self.exception, Some((_, Stage::Injected)))
            || self.nmi_injected
            || self.interrupt.is_some()
    }

    /// `ready_for_interrupt_injection` of the run page: an interrupt queued now would be delivered at once, and user space
    /// finds the guest between two instructions.
    pub fn ready_for_interrupt(&self, gates: &Gates) -> bool {
        gates.irq_open() && self.exception.is_none() && !self.redelivers()
    }

    /// Something here ends a HLT.
    pub fn wakes(&self, gates: &Gates) -> bool {
        self.exception.is_some()
            || self.triple_fault
            || self.nmi_injected
            || self.irq_due(gates)
            || self.nmi_pending != 0 && self.nmi_open(gates)
            || gates.irq_waiting && gates.irq_open()
    }

    const fn nmi_open(&self, gates: &Gates) -> bool {
        !self.nmi_masked && !gates.shadow && !gates.closed
    }

    /// There is an interrupt, and it may be injected. A delivery that was cut short finds RFLAGS.IF as it was, set; one of which
    /// user space has said that it be injected waits until the guest takes interrupts, as no CPU delivers it before.
    const fn irq_due(&self, gates: &Gates) -> bool {
        match self.interrupt {
            Some(i) => i.soft || gates.irq_open(),
            None => false,
        }
    }

    /// Chooses the event to inject at this entry. Order: what was interrupted in its delivery, a pending exception (it belongs to
    /// the previous instruction), NMI, interrupt. Call it again only after [`EventQueue::complete`], or if the entry
    /// did not take place: planning twice without an entry gives the same event.
    pub fn plan(&mut self, gates: &Gates) -> Plan {
        let mut next = self.redelivery(gates);
        if let Some((e, Stage::Pending)) = self.exception {
            let exception = Exception { payload: None, ..e };
            self.exception = Some((exception, Stage::Injected));
            next = Next::Exception {
                exception: e,
                fresh: true,
                set_rf: e.sets_rf(),
            };
        }
        let mut plan = Plan {
            next,
            nmi_window: false,
            irq_window: gates.irq_window_wanted,
            exit_at_once: false,
        };
        self.plan_nmi(gates, &mut plan);
        plan_interrupt(gates, &mut plan);
        self.deferred = self.interrupt.is_some() && !matches!(plan.next, Next::Interrupt(_));
        plan.irq_window |= self.deferred;
        plan
    }

    fn redelivery(&self, gates: &Gates) -> Next {
        match (self.exception, self.interrupt) {
            (Some((exception, Stage::Injected)), _) => Next::Exception {
                exception,
                fresh: false,
                set_rf: false,
            },
            (Some((_, Stage::Pending)), _) => Next::None,
            _ if self.nmi_injected => Next::Nmi,
            (None, Some(i)) if self.irq_due(gates) => Next::Interrupt(i),
            (None, _) => Next::None,
        }
    }

    fn plan_nmi(&mut self, gates: &Gates, plan: &mut Plan) {
        if self.nmi_pending == 0 {
            return;
        }
        if !matches!(plan.next, Next::None) {
            plan.exit_at_once = true;
            return;
        }
        if self.nmi_open(gates) {
            self.nmi_pending = self.nmi_pending.saturating_sub(1);
            self.nmi_injected = true;
            self.nmi_masked = true;
            plan.next = Next::Nmi;
        }
        plan.nmi_window = self.nmi_pending != 0;
    }

    /// Takes note of an exit: what was injected is delivered, but for `was`, which the CPU had not finished.
    ///
    /// INT1 is not put back: RIP still points to it, and it is executed again. SVM passes `None` for an INT n or INT3 that the guest
    /// executed, for the same reason. Nor is INT n put back while an interrupt waits.
    #[inline]
    pub fn complete(&mut self, was: Option<Vectoring>) {
        self.exception = None;
        if !self.deferred {
            self.interrupt = None;
        }
        self.nmi_injected = false;
        let Some(v) = was else { return };
        match v.kind {
            Kind::Nmi => {
                self.nmi_injected = true;
                // The CPU blocked NMIs when it began; the second delivery needs them open.
                self.nmi_masked = false;
            }
            Kind::Hardware | Kind::SoftException if is_exception(v.vector) => {
                let soft = matches!(v.kind, Kind::SoftException);
                let insn_len = if soft { v.insn_len } else { 0 };
                let e = Exception {
                    vector: v.vector,
                    error: v.error,
                    payload: None,
                    insn_len,
                };
                self.exception = Some((e, Stage::Injected));
            }
            Kind::External | Kind::Software if !self.deferred => {
                let soft = matches!(v.kind, Kind::Software);
                let insn_len = if soft { v.insn_len } else { 0 };
                self.interrupt = Some(Interrupt {
                    vector: v.vector,
                    soft,
                    insn_len,
                });
            }
            Kind::External
            | Kind::Software
            | Kind::Hardware
            | Kind::SoftException
            | Kind::Privileged => {}
        }
    }

    /// For KVM_GET_VCPU_EVENTS. What an instruction caused (INT3, INTO, INT n) is not told: RIP points to it.
    pub fn save(&self) -> Saved {
        let mut s = Saved {
            nmi_injected: self.nmi_injected,
            nmi_pending: self.nmi_pending.min(self.nmi_limit()),
            nmi_masked: self.nmi_masked,
            triple_fault: self.triple_fault,
            ..Saved::default()
        };
        if let Some((e, stage)) = self.exception.filter(|(e, _)| !e.soft()) {
            s.exception_injected = matches!(stage, Stage::Injected);
            s.exception_pending = matches!(stage, Stage::Pending);
            s.exception_nr = e.vector;
            s.exception_error = e.error;
            s.exception_payload = e.payload;
        }
        if let Some(vector) = self.injected_interrupt() {
            s.interrupt_injected = true;
            s.interrupt_nr = vector;
        }
        s
    }

    /// For KVM_SET_VCPU_EVENTS: everything at once. Leave `nmi_pending` and `triple_fault` as [`EventQueue::save`] gives them
    /// when the flags do not say that they are valid.
    pub fn restore(&mut self, s: &Saved) -> Result<(), BadEvent> {
        let exception = s.exception_injected || s.exception_pending;
        if exception && !is_exception(s.exception_nr) {
            return Err(BadEvent);
        }
        let stage = if s.exception_pending {
            Stage::Pending
        } else {
            Stage::Injected
        };
        let e = Exception {
            vector: s.exception_nr,
            error: s.exception_error,
            payload: if s.exception_pending {
                s.exception_payload
            } else {
                None
            },
            insn_len: s.exception_insn_len,
        };
        *self = Self {
            exception: exception.then_some((e, stage)),
            interrupt: s.interrupt_injected.then_some(Interrupt {
                vector: s.interrupt_nr,
                soft: s.interrupt_soft,
                insn_len: s.interrupt_insn_len,
            }),
            deferred: false,
            nmi_injected: s.nmi_injected,
            nmi_pending: 0,
            nmi_masked: s.nmi_masked,
            triple_fault: s.triple_fault,
        };
        self.add_nmis(u32::from(s.nmi_pending));
        Ok(())
    }
}

fn plan_interrupt(gates: &Gates, plan: &mut Plan) {
    if !gates.irq_waiting {
        return;
    }
    if matches!(plan.next, Next::None) && gates.irq_open() {
        plan.next = Next::Acknowledge;
    } else {
        plan.irq_window = true;
    }
}

/// The queue as KVM_GET_VCPU_EVENTS tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The fields of struct kvm_vcpu_events; and the length of the instruction at RIP, if that raised the event.
pub struct Saved {
    pub exception_injected: bool,
    pub exception_pending: bool,
    pub exception_nr: u8,
    pub exception_error: Option<u32>,
    pub exception_payload: Option<u64>,
    pub exception_insn_len: u8,
    pub interrupt_injected: bool,
    pub interrupt_nr: u8,
    pub interrupt_soft: bool,
    pub interrupt_insn_len: u8,
    pub nmi_injected: bool,
    pub nmi_pending: u8,
    pub nmi_masked: bool,
    pub triple_fault: bool,
}

/// The vector is none of an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEvent;

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
