// SPDX-License-Identifier: GPL-2.0
//! Port I/O that goes to user space, and what the next KVM_RUN has to finish.

use kernel::prelude::*;

use crate::hv::backend::{Backend, Flow};
use crate::hv::quirks::OUT_7E_INC_RIP;
use crate::hv::vcpu::Loaded;
use crate::model::emu::job::{Answer, Need};
use crate::model::event::Exception;
use crate::model::ioevent::Bus;
use crate::model::regs::RAX;
use crate::sys::run_page::PIO_OFFSET;
use crate::sys::trace;

/// The port of [`OUT_7E_INC_RIP`].
const QUIRK_PORT: u16 = 0x7e;

/// An access that user space carries out: the next KVM_RUN finishes the instruction before it enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Nothing.
    None,
    /// OUT: move on, unless user space moved RIP itself.
    Out { linear_rip: u64, len: u8 },
    /// IN: take the data, then the same.
    In {
        linear_rip: u64,
        len: u8,
        port: u16,
        size: u8,
    },
    /// The emulator waits for the answer to an access.
    Job(JobWait),
    /// The access was a write, and the emulator has this to do next.
    Next(Need),
    /// RDMSR that user space answers.
    Rdmsr { len: u8 },
    /// WRMSR that user space carries out.
    Wrmsr { len: u8 },
}

/// What the emulator waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobWait {
    /// A value of `size` bytes in the PIO data page.
    PortValue { port: u16, size: u8 },
    /// A value of `len` bytes in the MMIO field.
    MmioValue { gpa: u64, len: u8 },
    /// A compare-and-exchange on a device, which was carried out as a write.
    MmioExchanged,
    /// A batch of values in the PIO data page.
    PortBatch { port: u16, size: u8, count: u16 },
    /// Nothing: the access is a write.
    Write,
    /// An RDMSR (with its value) or WRMSR.
    Msr { read: bool },
}

/// The low `size` bytes of `value`, on top of the rest of `old` as IN does it (4 bytes clear the upper half).
fn merge(old: u64, value: u64, size: u8) -> u64 {
    match size {
        1 => old & !0xff | value & 0xff,
        2 => old & !0xffff | value & 0xffff,
        _ => value & 0xffff_ffff,
    }
}

#[inline(always)]
pub(super) fn trace_port(write: bool, port: u16, size: u8, count: u16, value: u64) {
    trace::pio(|| (write, port.into(), size.into(), count.into(), value as u32));
}

#[inline(always)]
pub(super) fn trace_mmio(kind: trace::Mmio, gpa: u64, len: u8, value: u64) {
    trace::mmio(|| (kind as u32, len.into(), gpa, value));
}

impl<B: Backend> Loaded<'_, B> {
    /// IN or OUT with one operand, in an instruction of `len` bytes.
    pub(crate) fn port(&mut self, port: u16, input: bool, size: u8, len: u8) -> Flow {
        let linear_rip = self.linear_rip();
        let value = self.state.switch.regs.get(RAX) as u32;
        if !input
            && self
                .vm
                .ioevents
                .write(Bus::Port, port.into(), size, value.into())
        {
            self.skip(len);
            return Flow::Resume;
        }
        self.run.io(input, port, size, 1);
        if input {
            self.state.pending = Pending::In {
                linear_rip,
                len,
                port,
                size,
            };
        } else {
            self.set_port_value(value, size);
            trace_port(true, port, size, 1, merge(0, value.into(), size));
            if port == QUIRK_PORT && self.vm.policy.quirks.has(OUT_7E_INC_RIP) {
                self.skip(len);
            } else {
                self.state.pending = Pending::Out { linear_rip, len };
            }
        }
        Flow::User
    }

    /// Puts one value into the PIO data page.
    pub(crate) fn set_port_value(&self, value: u32, size: u8) {
        let pages = &self.run.pages;
        match size {
            1 => pages.set(PIO_OFFSET, value as u8),
            2 => pages.set(PIO_OFFSET, value as u16),
            _ => pages.set(PIO_OFFSET, value),
        }
    }

    /// Takes one value from the PIO data page.
    pub(crate) fn port_value(&self, size: u8) -> u64 {
        self.port_value_at(PIO_OFFSET, size)
    }

    /// Takes the value at `offset` of the run mapping, in the PIO data page.
    pub(crate) fn port_value_at(&self, offset: usize, size: u8) -> u64 {
        let pages = &self.run.pages;
        match size {
            1 => pages.get::<u8>(offset).into(),
            2 => pages.get::<u16>(offset).into(),
            _ => pages.get::<u32>(offset).into(),
        }
    }

    /// Finishes what the last return to user space left open.
    pub(crate) fn complete_pending(&mut self) -> Result<Flow> {
        match core::mem::replace(&mut self.state.pending, Pending::None) {
            Pending::None => Ok(Flow::Resume),
            Pending::Out { linear_rip, len } => {
                if self.linear_rip() == linear_rip {
                    self.skip(len);
                }
                Ok(Flow::Resume)
            }
            Pending::In {
                linear_rip,
                len,
                port,
                size,
            } => {
                if self.linear_rip() == linear_rip {
                    let value = self.port_value(size);
                    trace_port(false, port, size, 1, value);
                    let old = self.state.switch.regs.get(RAX);
                    self.state.switch.regs.set(RAX, merge(old, value, size));
                    self.skip(len);
                }
                Ok(Flow::Resume)
            }
            Pending::Job(wait) => {
                let answer = match wait {
                    JobWait::PortValue { port, size } => {
                        let value = self.port_value(size);
                        trace_port(false, port, size, 1, value);
                        Answer::Value(value)
                    }
                    JobWait::MmioValue { gpa, len } => {
                        let data = u64::from_le_bytes(self.run.mmio_data());
                        let mask =
                            u64::MAX >> 8u32.wrapping_mul(8u32.wrapping_sub(len.into())).min(56);
                        trace_mmio(trace::Mmio::Read, gpa, len, data & mask);
                        Answer::Value(data & mask)
                    }
                    JobWait::MmioExchanged => Answer::Exchanged(true),
                    JobWait::PortBatch { port, size, count } => {
                        trace_port(false, port, size, count, self.port_value(size));
                        Answer::Ack
                    }
                    JobWait::Write => Answer::Ack,
                    JobWait::Msr { read } => match self.run.msr_answer() {
                        (true, _) => Answer::Fault(Exception::protection(0)),
                        (false, value) if read => Answer::Value(value),
                        (false, _) => Answer::Ack,
                    },
                };
                self.drive_job(answer)
            }
            Pending::Next(need) => self.drive_need(need),
            Pending::Rdmsr { len } => {
                self.complete_msr(true, len);
                Ok(Flow::Resume)
            }
            Pending::Wrmsr { len } => {
                self.complete_msr(false, len);
                Ok(Flow::Resume)
            }
        }
    }
}
