// SPDX-License-Identifier: GPL-2.0
//! Driving the instruction emulator: it says what it needs, and this gets it from guest memory, registers or user space.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow, Shadow};
use crate::hv::guest_mem::MAX_INSN;
use crate::hv::io::{trace_mmio, trace_port, JobWait, Pending};
use crate::hv::stats::Stat;
use crate::hv::vcpu::Loaded;
use crate::mmu::gwalk::Access;
use crate::mmu::Gpa;
use crate::model::cr::dr6;
use crate::model::emu::job::{self, Answer, Job, Need};
use crate::model::event::Exception;
use crate::model::msr::Who;
use crate::sys::run_page::{PIO_OFFSET, PIO_SIZE};
use crate::sys::trace;
use crate::uapi;

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
        self.state.port_checked = false;
        self.start_job()
    }

    /// Emulates the instruction at RIP, which the CPU was allowed to do port I/O with.
    pub(crate) fn emulate_port_io(&mut self) -> Result<Flow> {
        self.state.port_checked = true;
        self.start_job()
    }

    fn start_job(&mut self) -> Result<Flow> {
        self.count(Stat::InsnEmulation);
        match self.instruction() {
            Ok(insn) => {
                let context = self.context();
                *self.state.job = Some(Job::from_insn(&insn, &self.state.switch.regs, &context));
            }
            Err((fetched, e)) => {
                return Ok(match fetched.fault(e) {
                    Some(e) => {
                        self.raise(e);
                        Flow::Resume
                    }
                    None => self.emulation_failed(fetched.bytes()),
                });
            }
        }
        self.drive_job(Answer::Start)
    }

    fn step_job(&mut self, answer: Answer) -> Result<Need> {
        match self.state.job.as_mut() {
            Some(job) => Ok(job.step(answer)),
            None => Err(self.vm.kill("no emulator job")),
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
                    *self.state.job = None;
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
                self.state.pending = Pending::Job(wait);
                return Ok(Flow::User);
            }
        };
        match self.step_job(answer)? {
            Need::Done(done) => {
                let _resume = self.finish(done);
                *self.state.job = None;
            }
            next => self.state.pending = Pending::Next(next),
        }
        Ok(Flow::User)
    }

    fn meet(&mut self, need: Need) -> Met {
        match need {
            Need::Check { at, len: _, write } => match self.translate_data(at, write) {
                Ok(gpa) => Met::Answer(Answer::Ram(self.is_ram(gpa, write))),
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
            } => {
                self.run.io(false, port, size, count.into());
                if count == 1 {
                    self.set_port_value(value, size);
                }
                trace_port(true, port, size, count, self.port_value(size));
                Met::User(JobWait::Write)
            }
            Need::PioToMem { at, offset, len } => self.copy_pio(at, offset, len, true),
            Need::MemToPio { at, offset, len } => self.copy_pio(at, offset, len, false),
            // An I/O intercept comes after the CPU's own check. After another exit, what is at RIP now is not what
            // exited (another vCPU changed it), and the CPU has to look at it.
            Need::PortAllowed { .. } if self.state.port_checked => Met::Answer(Answer::Ack),
            Need::PortAllowed { .. } => Met::End(Flow::Resume),
            Need::Done(done) => Met::End(self.finish(done)),
            Need::Fault(e) => {
                self.take_progress();
                self.raise(e);
                Met::End(Flow::Resume)
            }
            Need::Unhandled => {
                let fetched = self.fetch();
                Met::End(self.emulation_failed(fetched.bytes()))
            }
            other => Met::Answer(self.register_need(other)),
        }
    }

    /// The needs that registers meet.
    fn register_need(&mut self, need: Need) -> Answer {
        fn value(r: Result<u64, Exception>) -> Answer {
            r.map_or_else(Answer::Fault, Answer::Value)
        }
        fn ack(r: Result<(), Exception>) -> Answer {
            r.map_or_else(Answer::Fault, |()| Answer::Ack)
        }
        match need {
            Need::ReadCr { cr } => value(self.read_cr(cr)),
            Need::WriteCr { cr, value } => ack(self.write_cr(cr, value)),
            Need::ReadDr { dr } => value(self.read_dr(dr)),
            Need::WriteDr { dr, value } => ack(self.write_dr(dr, value)),
            Need::ReadMsr { index } => value(
                self.read_msr(index, Who::Guest)
                    .map_err(|_| Exception::protection(0)),
            ),
            Need::WriteMsr { index, value } => ack(self
                .write_msr(index, value, Who::Guest)
                .map_err(|_| Exception::protection(0))),
            Need::Invlpg { .. } => {
                B::flush_tlb(&mut self.state.hw);
                Answer::Ack
            }
            Need::ReadVec { reg } => Answer::Vector(crate::sys::fpu::read_vector(reg)),
            Need::WriteVec { reg, value, vex } => {
                crate::sys::fpu::write_vector(reg, value, vex);
                Answer::Ack
            }
            // Met before.
            _ => Answer::Fault(Exception::undefined()),
        }
    }

    /// The guest-physical address of a data access; a fault is answered to the emulator.
    fn translate_data(&mut self, at: u64, write: bool) -> Result<u64, Met> {
        let user = B::cpl(&mut self.state.hw) == 3;
        let access = Access {
            write,
            fetch: false,
            user,
            implicit: false,
        };
        self.translate_known(at, access).map_err(|e| match e {
            Some(e) => Met::Answer(Answer::Fault(e)),
            None => Met::End(self.emulation_failed(&[])),
        })
    }

    fn is_ram(&self, gpa: u64, write: bool) -> bool {
        self.vm.mmu.is_memory(Gpa(gpa), write)
    }

    fn read_data(&mut self, at: u64, len: u8, rmw: bool) -> Met {
        let gpa = match self.translate_data(at, rmw) {
            Ok(gpa) => gpa,
            Err(met) => return met,
        };
        let mut bytes = [0u8; 8];
        if let Some(part) = bytes.get_mut(..usize::from(len)) {
            if self.vm.mmu.read_guest(Gpa(gpa), part).is_ok() {
                return Met::Answer(Answer::Value(u64::from_le_bytes(bytes)));
            }
        }
        self.count(Stat::MmioExits);
        trace_mmio(trace::Mmio::Unsatisfied, gpa, len, 0);
        self.run.mmio(gpa, len, None);
        Met::User(JobWait::MmioValue { gpa, len })
    }

    fn write_data(&mut self, at: u64, len: u8, value: u64) -> Met {
        let gpa = match self.translate_data(at, true) {
            Ok(gpa) => gpa,
            Err(met) => return met,
        };
        let bytes = value.to_le_bytes();
        let part = bytes.get(..usize::from(len)).unwrap_or(&bytes);
        if self.vm.mmu.write_guest(Gpa(gpa), part).is_ok() {
            return Met::Answer(Answer::Ack);
        }
        self.count(Stat::MmioExits);
        trace_mmio(trace::Mmio::Write, gpa, len, value);
        self.run.mmio(gpa, len, Some(bytes));
        Met::User(JobWait::Write)
    }

    fn exchange(&mut self, at: u64, len: u8, old: u128, new: u128) -> Met {
        let gpa = match self.translate_data(at, true) {
            Ok(gpa) => gpa,
            Err(met) => return met,
        };
        if self.is_ram(gpa, true) {
            let (Ok(old), Ok(new)) = (u64::try_from(old), u64::try_from(new)) else {
                return Met::End(self.emulation_failed(&[]));
            };
            return match self.vm.mmu.cmpxchg_guest(Gpa(gpa), len.into(), old, new) {
                Ok(done) => Met::Answer(Answer::Exchanged(done.is_ok())),
                Err(_) => Met::End(self.emulation_failed(&[])),
            };
        }
        // A device has no atomic accesses: the new value is written to it.
        self.count(Stat::MmioExits);
        trace_mmio(trace::Mmio::Write, gpa, len.min(8), new as u64);
        self.run
            .mmio(gpa, len.min(8), Some((new as u64).to_le_bytes()));
        Met::User(JobWait::MmioExchanged)
    }

    /// Copies between guest memory and the PIO data page, within one guest page.
    fn copy_pio(&mut self, at: u64, offset: u16, len: u16, to_memory: bool) -> Met {
        let gpa = match self.translate_data(at, to_memory) {
            Ok(gpa) => gpa,
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

    /// Takes over the registers as the emulator left them.
    fn take_progress(&mut self) {
        if let Some(job) = self.state.job.as_ref() {
            self.state.switch.regs = *job.regs();
        }
    }

    fn finish(&mut self, done: job::Done) -> Flow {
        self.take_progress();
        let shadow = match done.shadow {
            job::Shadow::None => Shadow::default(),
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
        if done.trap {
            self.raise(Exception::debug(dr6::BS));
        }
        Flow::Resume
    }

    /// KVM_EXIT_INTERNAL_ERROR, suberror EMULATION, with the bytes of the instruction.
    pub(crate) fn emulation_failed(&mut self, insn: &[u8]) -> Flow {
        self.count(Stat::InsnEmulationFail);
        let mut words = [0u64; 3];
        let mut bytes = [0u8; 16];
        for (to, from) in bytes.iter_mut().zip(insn) {
            *to = *from;
        }
        if !insn.is_empty() {
            // Flags, then the number of bytes and the bytes themselves (kvm_run.emulation_failure).
            words[0] = u64::from(uapi::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
            let mut packed = [0u8; 16];
            packed[0] = insn.len().min(MAX_INSN) as u8;
            for (to, from) in packed.iter_mut().skip(1).zip(bytes) {
                *to = from;
            }
            for (word, chunk) in words.iter_mut().skip(1).zip(packed.chunks_exact(8)) {
                *word = chunk.try_into().map_or(0, u64::from_le_bytes);
            }
        }
        self.run
            .internal_error(uapi::KVM_INTERNAL_ERROR_EMULATION, &words);
        Flow::User
    }
}
