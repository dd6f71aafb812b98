// SPDX-License-Identifier: GPL-2.0
//! The running machine: one vCPU, the devices, and what comes between them.
//!
//! Interrupts: when the controllers ask and the guest is ready, KVM_INTERRUPT queues the vector; when it is not,
//! `request_interrupt_window` makes KVM_RUN return as soon as it is. A halted guest waits here, until a device asks.
//! A guest that spins is interrupted by a timer whose signal ends KVM_RUN at the timer's next edge.

use anyhow::Result;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::devices::{Devices, Reset};
use crate::error::{Context, IoctlError};
use crate::input::Keys;
use crate::sys::kvm::{self, RunPage};
use crate::sys::signals::{stop, Kicks, Stop};
use crate::sys::timer::{now_ns, KickTimer};
use vmm_sys_util::errno;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest asked for a reset.
    Reset(Reset),
    /// The guest halted with interrupts off: nothing can wake it.
    Halted,
    /// A triple fault.
    TripleFault,
    /// The device could not go on; the text says why.
    Failed(String),
    /// The user, a signal or the time limit ended it.
    Stopped(Stop),
}

/// A machine that is ready to run.
pub struct Machine {
    // Fields are dropped in this order: the signal handler must not see the run page of a closed vCPU.
    timer: KickTimer,
    kicks: Kicks,
    page: RunPage,
    /// The vCPU.
    pub vcpu: VcpuFd,
    devices: Devices,
    keys: Keys,
}

impl Machine {
    /// A machine of `vcpu`, to be run by the calling thread.
    pub fn new(mut vcpu: VcpuFd, keys: Keys) -> Result<Self> {
        let page = RunPage::new(&mut vcpu);
        let kicks = Kicks::new(page)?;
        let devices = Devices::new(now_ns())?;
        Ok(Self {
            timer: KickTimer::new()?,
            kicks,
            page,
            vcpu,
            devices,
            keys,
        })
    }

    /// Runs until the guest ends or the user ends it.
    pub fn run(&mut self) -> Result<End> {
        let end = loop {
            if let Some(end) = self.look_around() {
                break end;
            }
            self.offer_interrupt()?;
            if let Some(end) = self.step()? {
                break end;
            }
            if let Some(reset) = self.devices.reset() {
                break End::Reset(reset);
            }
        };
        self.devices.flush();
        Ok(end)
    }

    /// After a kick: time has passed, input has come, or the run has to end.
    fn look_around(&mut self) -> Option<End> {
        if self.kicks.take() {
            if let Some(why) = stop() {
                return Some(End::Stopped(why));
            }
            let bytes = self.keys.take();
            if !bytes.is_empty() {
                self.devices.input(&bytes);
            }
            self.devices.flush();
            self.devices.advance(now_ns());
        }
        self.timer.arm(self.devices.deadline());
        None
    }

    /// Queues an interrupt if one waits and the guest takes it now; asks for a window if it does not.
    fn offer_interrupt(&mut self) -> Result<(), IoctlError> {
        if self.devices.interrupt_waits() && self.page.interruptible() == (true, true) {
            let vector = self.devices.acknowledge();
            kvm::interrupt(&self.vcpu, vector)?;
        }
        self.page.request_window(self.devices.interrupt_waits());
        Ok(())
    }

    /// One KVM_RUN.
    fn step(&mut self) -> Result<Option<End>> {
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let now = now_ns();
                data.chunks(self.page.io_size())
                    .for_each(|d| self.devices.write(port, d, now));
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let now = now_ns();
                data.chunks_mut(self.page.io_size())
                    .for_each(|d| self.devices.read(port, d, now));
            }
            // Nothing is at these addresses.
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::MmioWrite(..) | VcpuExit::IrqWindowOpen | VcpuExit::Intr) => {}
            Ok(VcpuExit::Hlt) => return Ok(self.halt()),
            Ok(VcpuExit::Shutdown) => return Ok(Some(End::TripleFault)),
            Ok(exit) => {
                let text = describe(&exit);
                return Ok(Some(End::Failed(
                    text.unwrap_or_else(|| internal_error(self.page)),
                )));
            }
            Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => {}
            Err(e) => {
                return Err(Err::<(), errno::Error>(e)
                    .ioctl("KVM_RUN")
                    .unwrap_err()
                    .into())
            }
        }
        Ok(None)
    }

    /// Waits until an interrupt wakes the guest.
    fn halt(&mut self) -> Option<End> {
        let (_, enabled) = self.page.interruptible();
        if !enabled {
            return Some(End::Halted);
        }
        self.devices.flush();
        loop {
            let now = now_ns();
            self.devices.advance(now);
            if self.devices.interrupt_waits() {
                return None;
            }
            self.kicks
                .sleep(self.devices.deadline().map(|at| at.saturating_sub(now)));
            if let Some(end) = self.look_around() {
                return Some(end);
            }
        }
    }
}

/// The internal error that the run page holds.
pub fn internal_error(page: RunPage) -> String {
    let (suberror, data) = page.internal_error();
    let name = match suberror {
        1 => "instruction emulation failed",
        2 => "two exceptions at the same time that make no double fault",
        3 => "an exit while an event was being delivered",
        4 => "an exit for an unexpected reason",
        _ => "unknown suberror",
    };
    let data: Vec<String> = data.iter().map(|word| format!("{word:#x}")).collect();
    format!(
        "KVM_EXIT_INTERNAL_ERROR, suberror {suberror} ({name}), data [{}]",
        data.join(", ")
    )
}

/// What an exit that cannot be handled is; nothing for an internal error, whose data is in the run page.
pub fn describe(exit: &VcpuExit) -> Option<String> {
    Some(match exit {
        VcpuExit::InternalError => return None,
        VcpuExit::FailEntry(reason, cpu) => {
            format!("KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x} on host CPU {cpu}")
        }
        VcpuExit::Unknown => "KVM_EXIT_UNKNOWN".to_string(),
        VcpuExit::Unsupported(reason) => format!("exit reason {reason}, which lodge does not know"),
        other => format!("an exit that lodge did not ask for: {other:?}"),
    })
}
