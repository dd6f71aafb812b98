// SPDX-License-Identifier: GPL-2.0
//! KVM_RUN: the loop between user space and the guest.
//!
//! Context: task context with the vCPU loaded. From [`enter`]'s `IrqOff::new` to `IrqOff::finish` interrupts are off, and nothing
//! may sleep or touch user memory.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow};
use crate::hv::quirks;
use crate::hv::stats::Stat;
use crate::hv::user_run::Summary;
use crate::hv::vcpu::{Loaded, Vcpu};
use crate::hv::vm::Vm;
use crate::mmu::vm_ledger;
use crate::model::cr;
use crate::model::event::Exception;
use crate::model::features;
use crate::model::misc_enable;
use crate::model::msr;
use crate::model::regs::{rflags, RAX};
use crate::sys::cpu::{self, IrqOff};
use crate::sys::trace;
use crate::uapi;

impl<B: Backend> Vcpu<B> {
    /// The KVM_RUN ioctl.
    pub(crate) fn ioctl_run(&self, vm: &Vm<B>) -> Result<isize> {
        self.with_loaded(vm, |cx| {
            cx.run.clear_flags();
            let result = cpu::with_signal_mask(cx.state.signal_mask, || cx.with_guest_fpu(run));
            cx.leave_registers();
            cx.summarise();
            result.map(|()| 0)
        })
    }
}

/// From the start of KVM_RUN to its end, with the guest's FPU loaded.
fn run<B: Backend>(cx: &mut Loaded<'_, B>) -> Result {
    cx.take_registers()?;
    cx.state.controls.cr8 = cr::check_cr8(cx.run.cr8()).map_err(|_| EINVAL)?.into();
    B::set_cr8(&mut cx.state.hw, cx.state.controls.cr8);
    if cx.complete_pending()? == Flow::User || cx.debug_exit() {
        return Ok(());
    }
    if cx.run.wants_immediate_exit() {
        return Err(EINTR);
    }
    cx.run.set_reason(uapi::KVM_EXIT_UNKNOWN);
    loop {
        if enter(cx)? == Flow::User || cx.debug_exit() {
            return Ok(());
        }
        if cx.irq_window_is_open() {
            return Ok(());
        }
    }
}

/// Enters the guest once and deals with the exit.
fn enter<B: Backend>(cx: &mut Loaded<'_, B>) -> Result<Flow> {
    if cx.vm.kicks.dead() {
        return Err(EIO);
    }
    if cx.state.events.take_triple_fault() {
        cx.run.set_reason(uapi::KVM_EXIT_SHUTDOWN);
        return Ok(Flow::User);
    }
    cx.refresh_clock();
    if B::emulates(&mut cx.state.hw, &cx.state.switch) {
        return cx.run_emulated();
    }
    let exit_at_once = cx.inject_events();
    let irq = IrqOff::new();
    if cx.shared.presence.enter(irq.cpu()) && !vm_ledger::forgets_demand() {
        cx.shared.stats.count(Stat::TlbFlush);
        B::flush_tlb(&mut cx.state.hw);
        if cx.vm.kicks.dead() {
            cx.turn_back(irq);
            return Err(EIO);
        }
        if cx.shared.host_slept.exchange(false) {
            cx.turn_back(irq);
            // A guest that does not use the clock is not told.
            let _no_clock = cx.guest_was_stopped();
            return Ok(Flow::Resume);
        }
    }
    if cx.host_tsc.changed() {
        cx.turn_back(irq);
        cx.follow_host_tsc();
        return Ok(Flow::Resume);
    }
    // By KVM_SET_CLOCK, which drives out whoever was counted in before it.
    if cx.clock_was_set() {
        cx.turn_back(irq);
        return Ok(Flow::Resume);
    }
    cx.refresh_msr_exits();
    if irq.prepare_guest() {
        cx.turn_back(irq);
        return cx.work();
    }
    if exit_at_once {
        irq.kick_self();
    }
    let switch = &mut cx.state.switch;
    trace::entry(|| {
        let (info, error) = B::entry_info(&mut cx.state.hw);
        (cx.shared.id, switch.regs.rip, exit_at_once, info, error)
    });
    B::ledger(&mut cx.state.hw).look(cx.vm.mmu.ledger());
    switch.load_guest(&irq);
    let exit = B::enter(&mut cx.state.hw, cx.resident, switch, &irq);
    B::ledger(&mut cx.state.hw).left(cx.vm.mmu.ledger());
    switch.load_host(&irq);
    trace::exit(|| {
        let info = B::exit_info(&mut cx.state.hw, &exit);
        (cx.shared.id, switch.regs.rip, info)
    });
    cx.shared.stats.count(Stat::Exits);
    B::take_interrupt(&mut cx.state.hw, &irq);
    cx.shared.presence.leave();
    irq.finish();
    if let Some(reason) = B::ledger(&mut cx.state.hw).accusation() {
        return Err(cx.vm.kill(reason));
    }

    if B::entered(&exit) {
        let was = B::vectoring(&mut cx.state.hw, &mut cx.state.switch, &exit);
        cx.state.events.complete(was);
    } else {
        // Nothing was delivered: what was to be waits for the next entry.
        B::cancel_injection(&mut cx.state.hw, &mut cx.state.switch);
    }
    let masked = B::nmi_masked(&mut cx.state.hw);
    cx.state.events.set_nmi_masked(masked);
    B::handle(cx, exit)
}

impl<B: Backend> Loaded<'_, B> {
    /// The guest is not entered after all.
    fn turn_back(&mut self, irq: IrqOff) {
        self.shared.presence.leave();
        drop(irq);
        B::cancel_injection(&mut self.state.hw, &mut self.state.switch);
    }

    /// The guest was entered, or the emulator took its place: its CPU model is settled. (The count of exits is kept anyway.)
    pub(super) fn has_run(&self) -> bool {
        self.state.was_emulated || self.shared.stats.any(Stat::Exits)
    }

    /// Counts one.
    pub(crate) fn count(&self, stat: Stat) {
        self.shared.stats.count(stat);
    }

    /// User space waits for the moment at which an interrupt can be injected, and it is now.
    #[inline]
    pub(super) fn irq_window_is_open(&mut self) -> bool {
        let open = self.run.wants_irq_window() && self.ready_for_interrupt();
        if open {
            self.run.set_reason(uapi::KVM_EXIT_IRQ_WINDOW_OPEN);
            self.count(Stat::RequestIrqExits);
        }
        open
    }

    /// Does the work that waited for this thread when it was about to enter the guest: EINTR when it is a signal.
    #[cold]
    pub(super) fn work(&mut self) -> Result<Flow> {
        if self.irq_window_is_open() {
            return Ok(Flow::User);
        }
        if let Err(e) = cpu::guest_work() {
            self.run.set_reason(uapi::KVM_EXIT_INTR);
            self.count(Stat::SignalExits);
            return Err(e);
        }
        Ok(Flow::Resume)
    }

    /// What each return to user space tells.
    fn summarise(&mut self) {
        let summary = Summary {
            ready_for_interrupt: self.ready_for_interrupt(),
            if_flag: self.state.switch.regs.rflags & rflags::IF != 0,
            cr8: self.state.controls.cr8,
            apic_base: msr::apic_base(&*self.state.msrs),
        };
        self.run.summarise(summary);
    }

    /// HLT, `len` bytes long. Without an in-kernel interrupt controller user space waits for the next interrupt.
    pub(crate) fn halt(&mut self, len: u8) -> Flow {
        self.count(Stat::HaltExits);
        self.skip(len);
        // What is queued here user space has handed over already: it would wait for something else.
        let gates = self.gates();
        if self.state.events.wakes(&gates) {
            return Flow::Resume;
        }
        self.run.set_reason(uapi::KVM_EXIT_HLT);
        Flow::User
    }

    /// INVD or WBINVD, `len` bytes long. The caches are the host's, which keeps them coherent. CPUs look at the privilege level before
    /// the intercept; QEMU's TCG does not.
    pub(crate) fn flush_caches(&mut self, len: u8) -> Flow {
        if B::cpl(&mut self.state.hw) == 0 {
            self.skip(len);
        } else {
            self.raise_gp();
        }
        Flow::Resume
    }

    /// MONITOR or MWAIT, `len` bytes long: the guest waits for nothing.
    pub(crate) fn monitor_or_mwait(&mut self, len: u8) -> Flow {
        let nothing = self.vm.policy.quirks.has(quirks::MWAIT_NEVER_UD_FAULTS);
        // IA32_MISC_ENABLE may have been written since CPUID was looked at.
        let there = match self.mwait_switch() {
            Some(on) => on,
            None => self.state.features.has(features::MWAIT),
        };
        if nothing || there {
            self.skip(len);
        } else {
            self.raise(Exception::undefined());
        }
        Flow::Resume
    }

    /// What IA32_MISC_ENABLE says of MONITOR and MWAIT, where it has a say.
    pub(crate) fn mwait_switch(&self) -> Option<bool> {
        let quirk = self.vm.policy.quirks.has(quirks::MISC_ENABLE_NO_MWAIT);
        (!quirk).then(|| misc_enable::mwait(&*self.state.msrs))
    }

    /// A hypercall, in an instruction of `len` bytes. Those that KVM does whether CPUID offers them or not are done here too: without
    /// local APICs a kick or yield finds no vCPU, and there is nothing to do.
    pub(crate) fn hypercall(&mut self, len: u8) -> Flow {
        self.count(Stat::Hypercalls);
        let number = self.gpr(RAX);
        let error = if B::cpl(&mut self.state.hw) != 0 {
            uapi::KVM_EPERM
        } else {
            match u32::try_from(number) {
                Ok(uapi::KVM_HC_VAPIC_POLL_IRQ) => 0,
                Ok(uapi::KVM_HC_KICK_CPU | uapi::KVM_HC_SCHED_YIELD) => 0,
                _ => uapi::KVM_ENOSYS,
            }
        };
        let value = 0u64.wrapping_sub(error.into());
        let value = if self.is_64bit() {
            value
        } else {
            value & 0xffff_ffff
        };
        self.state.switch.regs.set(RAX, value);
        self.skip(len);
        Flow::Resume
    }

    /// Triple fault.
    pub(crate) fn shutdown(&mut self) -> Flow {
        self.run.set_reason(uapi::KVM_EXIT_SHUTDOWN);
        Flow::User
    }
}
