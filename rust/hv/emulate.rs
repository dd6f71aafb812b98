// SPDX-License-Identifier: GPL-2.0
//! Driving the instruction emulator: it says what it needs, and this gets it from guest memory, registers or user space.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow, Shadow};
use crate::hv::data_walk::Found;
use crate::hv::io::{trace_mmio, trace_port, JobWait, Pending};
use crate::hv::stats::Stat;
use crate::hv::vcpu::Loaded;
use crate::mmu::gwalk::Access;
use crate::mmu::Gpa;
use crate::model::cr::dr6;
use crate::model::emu::decode::decode;
use crate::model::emu::insn::Kind;
use crate::model::emu::job::{self, AccessAs, Answer, Need, TaskSwitch};
use crate::model::event::Exception;
use crate::model::ioevent::Bus;
use crate::sys::run_page::{PIO_OFFSET, PIO_SIZE};
use crate::sys::trace;

/// Most steps that one instruction may take before the guest is entered again: a bound for our own mistakes, since
/// the emulator yields by itself in long string instructions.
const MAX_STEPS: u32 = 1 << 16;

/// What a step's need came to.
enum Met {
    /// Go on with this answer.
    Answer(Answer),
    /// User space has to carry out an access first.
    User(JobWait),
    /// The emulator is done with the instruction.
    End(Flow),
}

impl<B: Backend> Loaded<'_, B> {
    /// Emulates the instruction at RIP.
    pub(crate) fn emulate(&mut self) -> Result<Flow> {
        self.start_job()
    }

    /// Emulates the instruction whose data access ended the guest's run. Where the CPU tells the bytes that it fetched, they are what
    /// it executed, whatever is at RIP by now.
    pub(crate) fn emulate_access(&mut self) -> Result<Flow> {
        if let Some((bytes, len)) = B::fetched_insn(&mut self.state.hw) {
            let context = self.context();
            let bytes = bytes.get(..len).unwrap_or(&bytes);
            let state = &mut *self.state;
            // Fewer than the instruction has, at the end of a page for one: then it is fetched.
            if let Ok(insn) = decode(bytes, context.mode()) {
                state.job.begin(&insn, &state.switch.regs, &context);
                return self.drive_job(Answer::Start);
            }
        }
        self.start_job()
    }

    fn start_job(&mut self) -> Result<Flow> {
        self.count(Stat::InsnEmulation);
        let context = self.context();
        let Err((fetched, e)) = self.begin_job(&context) else {
            return self.drive_job(Answer::Start);
        };
        Ok(match fetched.fault(e) {
            Some(e) => {
                self.raise(e);
                Flow::Resume
            }
            None => self.emulation_failed(fetched.bytes()),
        })
    }

    /// Carries out a task switch. RIP is what the old task goes on with; `error` is pushed on the new one's stack.
    pub(crate) fn task_switch(&mut self, switch: TaskSwitch, error: Option<u16>) -> Result<Flow> {
        self.set_task_switch(switch, error);
        self.drive_job(Answer::Start)
    }

    fn set_task_switch(&mut self, switch: TaskSwitch, error: Option<u16>) {
        let context = self.context();
        let state = &mut *self.state;
        state
            .job
            .begin_task_switch(switch, error, &state.switch.regs, &context);
    }

    fn step_job(&mut self, answer: Answer) -> Result<Need> {
        if self.state.job.is_open() {
            Ok(self.state.job.step(answer))
        } else {
            Err(self.vm.kill("no emulator job"))
        }
    }

    /// Steps the stored job on until it ends or user space has to do something.
    pub(crate) fn drive_job(&mut self, answer: Answer) -> Result<Flow> {
        let need = self.step_job(answer)?;
        self.drive_need(need)
    }

    /// Meets what the stored job needs, and goes on as [`Loaded::drive_job`] does.
    pub(crate) fn drive_need(&mut self, mut need: Need) -> Result<Flow> {
        for _ in 0..MAX_STEPS {
            match self.meet(need) {
                Met::Answer(answer) => need = self.step_job(answer)?,
                Met::User(wait) => return self.leave_job(wait),
                Met::End(flow) => {
                    self.state.job.close();
                    return Ok(flow);
                }
            }
        }
        Err(self.vm.kill("the emulator did not come to an end"))
    }

    /// Leaves the job for user space to carry out an access. A write needs no answer: when it is the last thing that the
    /// instruction does, the instruction is done before user space looks at the registers.
    fn leave_job(&mut self, wait: JobWait) -> Result<Flow> {
        let answer = match wait {
            JobWait::Write => Answer::Ack,
            JobWait::MmioExchanged => Answer::Exchanged(true),
            _ => {
                self.show_progress();
                self.state.pending = Pending::Job(wait);
                return Ok(Flow::User);
            }
        };
        match self.step_job(answer)? {
            Need::Done(done) => {
                let _resume = self.finish(done);
            }
            next => {
                self.show_progress();
                self.state.pending = Pending::Next(next);
            }
        }
        Ok(Flow::User)
    }

    fn meet(&mut self, need: Need) -> Met {
        match need {
            Need::Check { at, len: _, write } => match self.translate_data(at, write) {
                Ok(Found { gpa, .. }) => Met::Answer(Answer::Ram(self.is_ram(gpa, write))),
                Err(met) => met,
            },
            Need::Read { at, len, rmw } => self.read_data(at, len, rmw),
            Need::Write { at, len, value } => self.write_data(at, len, value),
            Need::CmpXchg { at, len, old, new } => self.exchange(at, len, old, new),
            Need::In { port, size, count } => {
                self.run.io(true, port, size, count.into());
                Met::User(if count == 1 {
                    JobWait::PortValue { port, size }
                } else {
                    JobWait::PortBatch { port, size, count }
                })
            }
            Need::Out {
                port,
                size,
                count,
                value,
            } => self.write_port(port, size, count, value),
            Need::PioToMem { at, offset, len } => self.copy_pio(at, offset, len, true),
            Need::MemToPio { at, offset, len } => self.copy_pio(at, offset, len, false),
            Need::Rdmsr { index } => self.msr(index, None),
            Need::Wrmsr { index, value } => self.msr(index, Some(value)),
            Need::Done(done) => Met::End(self.finish(done)),
            Need::Fault(e) => {
                self.take_progress();
                self.raise_from_job(e);
                Met::End(Flow::Resume)
            }
            Need::TaskSwitch(switch) => {
                self.take_progress();
                let error = self.delivered_through_gate();
                self.set_task_switch(switch, error);
                Met::Answer(Answer::Start)
            }
            Need::Unhandled => {
                let fetched = self.fetch();
                Met::End(self.emulation_failed(fetched.bytes()))
            }
            other => Met::Answer(self.register_need(other)),
        }
    }

    /// RDMSR, or WRMSR of `value`. User space may be asked about one that fails.
    fn msr(&mut self, index: u32, value: Option<u64>) -> Met {
        let done = match value {
            Some(value) => self.guest_write_msr(index, value).map(|()| value),
            None => self.guest_read_msr(index),
        };
        trace::msr(|| {
            let told = done.or(value.ok_or(0)).unwrap_or(0);
            (value.is_some(), index, told, done.is_err())
        });
        match done {
            Ok(_) if value.is_some() => Met::Answer(Answer::Ack),
            Ok(value) => Met::Answer(Answer::Value(value)),
            Err(reason) if self.asks_user_space(reason) => {
                self.run.msr(index, value, reason);
                let read = value.is_none();
                Met::User(JobWait::Msr { read })
            }
            Err(_) => Met::Answer(Answer::Fault(Exception::protection(0))),
        }
    }

    /// OUT of one `value`, or of `count` values in the PIO data page. What eventfds do not take is for user space.
    fn write_port(&mut self, port: u16, size: u8, count: u16, value: u32) -> Met {
        let mut taken = 0u16;
        while taken < count {
            let value = if count == 1 {
                value.into()
            } else {
                let before = usize::from(taken).saturating_mul(size.into());
                self.port_value_at(PIO_OFFSET.saturating_add(before), size)
            };
            if !self.vm.ioevents.write(Bus::Port, port.into(), size, value) {
                break;
            }
            taken = taken.saturating_add(1);
        }
        let left = count.saturating_sub(taken);
        if left == 0 {
            return Met::Answer(Answer::Ack);
        }
        if count == 1 {
            self.set_port_value(value, size);
        } else if taken != 0 {
            self.drop_pio(taken, left, size);
        }
        self.run.io(false, port, size, left.into());
        trace_port(true, port, size, left, self.port_value(size));
        Met::User(JobWait::Write)
    }

    /// Moves the `left` values behind the first `gone` to the start of the PIO data page.
    fn drop_pio(&self, gone: u16, left: u16, size: u8) {
        let bytes = |n: u16| usize::from(n).saturating_mul(size.into());
        let mut value = [0u8; 4];
        if let Some(value) = value.get_mut(..usize::from(size)) {
            for i in 0..left {
                let to = PIO_OFFSET.saturating_add(bytes(i));
                self.run.pages.read(to.saturating_add(bytes(gone)), value);
                self.run.pages.write(to, value);
            }
        }
    }

    /// Where a data access goes; a fault is answered to the emulator.
    fn translate_data(&mut self, at: u64, write: bool) -> Result<Found, Met> {
        let who = self.state.job.access_as();
        let access = Access {
            write,
            fetch: false,
            user: who == AccessAs::Current && B::cpl(&mut self.state.hw) == 3,
            implicit: who == AccessAs::System,
        };
        self.walk_to_data(at, access).map_err(|e| match e {
            Some(e) => Met::Answer(Answer::Fault(e)),
            None => Met::End(self.emulation_failed(&[])),
        })
    }

    fn is_ram(&self, gpa: u64, write: bool) -> bool {
        self.vm.mmu.is_memory(Gpa(gpa), write)
    }

    fn read_data(&mut self, at: u64, len: u8, rmw: bool) -> Met {
        let Found { gpa, memory } = match self.translate_data(at, rmw) {
            Ok(found) => found,
            Err(met) => return met,
        };
        let mut bytes = [0u8; 8];
        if let Some(part) = bytes.get_mut(..usize::from(len)) {
            if memory && self.vm.mmu.read_guest(Gpa(gpa), part).is_ok() {
                return Met::Answer(Answer::Value(u64::from_le_bytes(bytes)));
            }
        }
        self.count(Stat::MmioExits);
        trace_mmio(trace::Mmio::Unsatisfied, gpa, len, 0);
        self.run.mmio(gpa, len, None);
        Met::User(JobWait::MmioValue { gpa, len })
    }

    fn write_data(&mut self, at: u64, len: u8, value: u64) -> Met {
        let Found { gpa, memory } = match self.translate_data(at, true) {
            Ok(found) => found,
            Err(met) => return met,
        };
        let bytes = value.to_le_bytes();
        let part = bytes.get(..usize::from(len)).unwrap_or(&bytes);
        if memory && self.vm.mmu.write_guest(Gpa(gpa), part).is_ok() {
            return Met::Answer(Answer::Ack);
        }
        if self.vm.ioevents.write(Bus::Memory, gpa, len, value) {
            return Met::Answer(Answer::Ack);
        }
        self.count(Stat::MmioExits);
        trace_mmio(trace::Mmio::Write, gpa, len, value);
        self.run.mmio(gpa, len, Some(bytes));
        Met::User(JobWait::Write)
    }

    fn exchange(&mut self, at: u64, len: u8, old: u128, new: u128) -> Met {
        let gpa = match self.translate_data(at, true) {
            Ok(found) => found.gpa,
            Err(met) => return met,
        };
        if self.is_ram(gpa, true) {
            let done = if len > 8 {
                self.exchange_wide(gpa, old, new)
            } else {
                let (old, new) = (old as u64, new as u64);
                let r = self.vm.mmu.cmpxchg_guest(Gpa(gpa), len.into(), old, new);
                r.map(|done| done.is_ok()).ok()
            };
            return match done {
                Some(done) => Met::Answer(Answer::Exchanged(done)),
                None => Met::End(self.emulation_failed(&[])),
            };
        }
        // A device has no atomic accesses: the new value is written to it.
        if self.vm.ioevents.write(Bus::Memory, gpa, len, new as u64) {
            return Met::Answer(Answer::Exchanged(true));
        }
        self.count(Stat::MmioExits);
        trace_mmio(trace::Mmio::Write, gpa, len.min(8), new as u64);
        self.run
            .mmio(gpa, len.min(8), Some((new as u64).to_le_bytes()));
        Met::User(JobWait::MmioExchanged)
    }

    /// CMPXCHG16B, which comes here only where it is emulated on purpose: as on the in-tree KVM it is not atomic.
    fn exchange_wide(&self, gpa: u64, old: u128, new: u128) -> Option<bool> {
        let mut now = [0u8; 16];
        self.vm.mmu.read_guest(Gpa(gpa), &mut now).ok()?;
        if u128::from_le_bytes(now) != old {
            return Some(false);
        }
        let written = self.vm.mmu.write_guest(Gpa(gpa), &new.to_le_bytes());
        written.map(|()| true).ok()
    }

    /// Copies between guest memory and the PIO data page, within one guest page.
    fn copy_pio(&mut self, at: u64, offset: u16, len: u16, to_memory: bool) -> Met {
        let gpa = match self.translate_data(at, to_memory) {
            Ok(found) => found.gpa,
            Err(met) => return met,
        };
        let mut left = usize::from(len).min(PIO_SIZE.saturating_sub(offset.into()));
        let (mut gpa, mut pio) = (gpa, PIO_OFFSET.saturating_add(offset.into()));
        let mut bytes = [0u8; 512];
        while left > 0 {
            let n = left.min(bytes.len());
            let Some(part) = bytes.get_mut(..n) else {
                break;
            };
            let moved = if to_memory {
                self.run.pages.read(pio, part);
                self.vm.mmu.write_guest(Gpa(gpa), part)
            } else {
                let r = self.vm.mmu.read_guest(Gpa(gpa), part);
                self.run.pages.write(pio, part);
                r
            };
            if moved.is_err() {
                return Met::End(self.emulation_failed(&[]));
            }
            gpa = gpa.wrapping_add(n as u64);
            pio = pio.wrapping_add(n);
            left = left.saturating_sub(n);
        }
        Met::Answer(Answer::Ack)
    }

    /// Lets user space see how far a repeated instruction has come: what it reads, it may write back.
    fn show_progress(&mut self) {
        if self.state.job.has_progress() {
            self.take_progress();
        }
    }

    /// Takes over the registers as the emulator left them.
    fn take_progress(&mut self) {
        self.state.switch.regs = *self.state.job.regs();
    }

    fn finish(&mut self, done: job::Done) -> Flow {
        self.take_progress();
        // The trap of a single step is taken behind STI, which ends its shadow; MOV SS puts it off by an instruction.
        let held = done.trap && done.shadow == job::Shadow::MovSs && !self.state.debug.steps();
        let shadow = match done.shadow {
            job::Shadow::None => Shadow::default(),
            job::Shadow::Sti if done.trap => Shadow::default(),
            job::Shadow::Sti => Shadow {
                sti: true,
                mov_ss: false,
            },
            job::Shadow::MovSs => Shadow {
                sti: false,
                mov_ss: true,
            },
        };
        if !done.repeat {
            B::set_shadow(&mut self.state.hw, shadow);
        }
        let kind = self.state.job.insn().kind();
        // The TF that they load is not the debugger's.
        let loads_tf = matches!(kind, Kind::Syscall | Kind::Sysret);
        if kind == Kind::Deliver && !done.repeat {
            self.state.events.complete(None);
        }
        if done.iret {
            B::set_nmi_masked(&mut self.state.hw, false);
            self.state.events.set_nmi_masked(false);
        }
        if done.halt {
            return self.halt(0);
        }
        if done.task_trap {
            self.raise(Exception::debug(dr6::BT));
        } else if held {
            B::hold_step(&mut self.state.hw);
        } else if done.trap || loads_tf && self.state.debug.steps() {
            self.raise(Exception::debug(dr6::BS));
        }
        Flow::Resume
    }
}
