// SPDX-License-Identifier: GPL-2.0
//! What each exit does.
#![deny(unsafe_code)]

use kernel::prelude::*;

use super::backend::{Exit, Vmx};
use super::exit::{Basic, CrAccess, DrAccess, Io, Kind, TaskSwitch, TaskSwitchBy};
use super::fields as f;
use crate::hv::backend::{Backend, Flow};
use crate::hv::fault::Delivery;
use crate::hv::stats::Stat;
use crate::hv::vcpu::Loaded;
use crate::hv::{cpuid, cr, fault, msr};
use crate::mmu::SecondStageFault;
use crate::model::cr::{cr0, lmsw};
use crate::model::emu::job::{self, TaskReason};
use crate::model::event::{checks_alignment, may_tell, vector, Exception};
use crate::sys::cpu::{self, guest_split_lock, split_locks_trap};
use crate::uapi;

type Cx<'a> = Loaded<'a, Vmx>;

/// Deals with an exit; the most frequent ones first.
pub(super) fn handle(cx: &mut Cx<'_>, exit: Exit) -> Result<Flow> {
    if cx.state.hw.broken() {
        return Err(cx.vm.kill("a VMCS field could not be accessed"));
    }
    if let Some(error) = exit.failed {
        cx.run.fail_entry(error.into(), cpu::current_cpu());
        return Ok(Flow::User);
    }
    if exit.reason.entry_failed() {
        cx.run.fail_entry(exit.reason.0.into(), cpu::current_cpu());
        return Ok(Flow::User);
    }
    let Some(reason) = exit.reason.basic() else {
        return Ok(unexpected(cx, exit));
    };
    match reason {
        Basic::EptViolation => ept_violation(cx, exit),
        // Taken by the host.
        Basic::ExternalInterrupt => {
            cx.count(Stat::IrqExits);
            Ok(Flow::Resume)
        }
        Basic::InterruptWindow => {
            cx.count(Stat::IrqWindowExits);
            Vmx::set_irq_window(&mut cx.state.hw, false);
            Ok(Flow::Resume)
        }
        _ => instruction(cx, exit, reason),
    }
}

/// Exits that an instruction made, mostly.
#[inline]
fn instruction(cx: &mut Cx<'_>, exit: Exit, reason: Basic) -> Result<Flow> {
    let len = cx.state.hw.instruction_length();
    match reason {
        Basic::Io => io(cx, len),
        Basic::Wrmsr => msr::wrmsr(cx, len),
        Basic::Rdmsr => msr::rdmsr(cx, len),
        Basic::Cpuid => cpuid::execute(cx, len),
        Basic::Hlt => Ok(cx.halt(len)),
        Basic::CrAccess => cr_access(cx, len),
        _ => rare(cx, exit, reason, len),
    }
}

fn rare(cx: &mut Cx<'_>, exit: Exit, reason: Basic, len: u8) -> Result<Flow> {
    match reason {
        Basic::ExceptionOrNmi if exit.info.exception() == Some(vector::UD) => cx.undefined_opcode(),
        Basic::ExceptionOrNmi => Ok(exception(cx, exit, len)),
        Basic::NmiWindow => {
            Vmx::set_nmi_window(&mut cx.state.hw, false);
            Ok(Flow::Resume)
        }
        Basic::TripleFault => Ok(cx.shutdown()),
        Basic::DrAccess => Ok(dr_access(cx, len)),
        Basic::Xsetbv => cr::xsetbv(cx, len),
        Basic::Invd | Basic::Wbinvd => Ok(cx.flush_caches(len)),
        Basic::Rdpmc => {
            cx.raise_gp();
            Ok(Flow::Resume)
        }
        Basic::TaskSwitch => task_switch(cx, exit, len),
        Basic::EptMisconfiguration => Err(cx
            .vm
            .kill("an entry of the second-stage tables is malformed")),
        Basic::Vmcall => Ok(cx.hypercall(len)),
        Basic::Monitor | Basic::Mwait => Ok(cx.monitor_or_mwait(len)),
        // VMX and SMX are not offered to the guest.
        Basic::Vmclear
        | Basic::Vmlaunch
        | Basic::Vmptrld
        | Basic::Vmptrst
        | Basic::Vmread
        | Basic::Vmresume
        | Basic::Vmwrite
        | Basic::Vmxoff
        | Basic::Vmxon
        | Basic::Invept
        | Basic::Invvpid
        | Basic::Vmfunc
        | Basic::Getsec
        | Basic::Seamcall
        | Basic::Tdcall
        | Basic::RdmsrImmediate
        | Basic::WrmsrImmediate
        | Basic::Encls => {
            cx.raise(Exception::undefined());
            Ok(Flow::Resume)
        }
        _ => Ok(unexpected(cx, exit)),
    }
}

/// KVM_EXIT_INTERNAL_ERROR: an exit that no control asks for.
fn unexpected(cx: &mut Cx<'_>, exit: Exit) -> Flow {
    let data = [u64::from(exit.reason.0), u64::from(cpu::current_cpu())];
    cx.run
        .internal_error(uapi::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, &data);
    Flow::User
}

/// A task switch, which the processor has checked and left to us. What it was delivering through a task gate is
/// delivered by the switch.
fn task_switch(cx: &mut Cx<'_>, exit: Exit, len: u8) -> Result<Flow> {
    let qualification = cx.state.hw.vmcs.read(f::EXIT_QUALIFICATION);
    let task = TaskSwitch::decode(qualification);
    let event = exit.vectoring;
    let (reason, gate) = match task.by {
        TaskSwitchBy::Call => (TaskReason::Call, false),
        TaskSwitchBy::Iret => (TaskReason::Iret, false),
        TaskSwitchBy::Jmp => (TaskReason::Jmp, false),
        TaskSwitchBy::Gate => (TaskReason::Gate, true),
    };
    let mut error = None;
    if gate && event.valid() {
        if event.has_error_code() {
            error = Some(cx.state.hw.vmcs.read(f::IDT_VECTORING_ERROR_CODE) as u16);
        }
        if event.is_nmi() {
            Vmx::set_nmi_masked(&mut cx.state.hw, true);
        }
        cx.state.events.complete(None);
    }
    let asked = !gate || !event.valid() || event.kind().is_some_and(Kind::needs_length);
    let switch = job::TaskSwitch {
        selector: task.selector,
        reason,
        insn_len: if asked { len } else { 0 },
    };
    cx.task_switch(switch, error)
}

fn ept_violation(cx: &mut Cx<'_>, exit: Exit) -> Result<Flow> {
    let vmcs = &mut cx.state.hw.vmcs;
    let qualification = vmcs.read(f::EXIT_QUALIFICATION);
    let gpa = vmcs.read(f::GUEST_PHYSICAL_ADDRESS);
    let delivery = exit.vectoring.valid().then_some(Delivery {
        reason: exit.reason.0.into(),
        info1: qualification,
        info2: exit.vectoring.0.into(),
    });
    let fault = SecondStageFault::from_ept_violation(qualification, gpa);
    fault::second_stage(cx, fault, delivery)
}

/// Port I/O. String forms need the emulator: their operands are in memory.
fn io(cx: &mut Cx<'_>, len: u8) -> Result<Flow> {
    cx.count(Stat::IoExits);
    let qualification = cx.state.hw.vmcs.read(f::EXIT_QUALIFICATION);
    match Io::decode(qualification) {
        Some(io) if !io.string => Ok(cx.port(io.port, io.input, io.bytes, len)),
        _ => cx.emulate(),
    }
}

fn cr_access(cx: &mut Cx<'_>, len: u8) -> Result<Flow> {
    let qualification = cx.state.hw.vmcs.read(f::EXIT_QUALIFICATION);
    let old_cr0 = cx.state.controls.cr0;
    let old_cr8 = cx.state.controls.cr8;
    let done = match CrAccess::decode(qualification) {
        CrAccess::MovTo { cr, gpr: n } => {
            let value = cx.gpr(n);
            cx.write_cr(cr, value)
        }
        CrAccess::MovFrom { cr, gpr: n } => cx.read_cr(cr).map(|v| cx.set_gpr(n, v)),
        CrAccess::Clts => cx.write_cr(0, old_cr0 & !cr0::TS),
        CrAccess::Lmsw { source } => cx.write_cr(0, lmsw(old_cr0, source)),
    };
    let flow = cx.conclude(done, len);
    Ok(cx.tell_of_lower_priority(old_cr8, flow))
}

fn dr_access(cx: &mut Cx<'_>, len: u8) -> Flow {
    let qualification = cx.state.hw.vmcs.read(f::EXIT_QUALIFICATION);
    let access = DrAccess::decode(qualification);
    let done = cx.access_dr(access.dr, !access.read, access.gpr);
    cx.conclude(done, len)
}

/// An NMI, or an exception that is intercepted so that it cannot be raised without end inside of the CPU.
fn exception(cx: &mut Cx<'_>, exit: Exit, len: u8) -> Flow {
    match exit.info.exception() {
        // The host's: it was taken in the window after the exit.
        None if exit.info.is_nmi() => {}
        Some(vector::MC) => {}
        Some(vector::DB) => debug(cx, exit, len),
        Some(vector::BP) => {
            cx.stop_at_breakpoint();
            return Flow::User;
        }
        Some(vector::AC) => {
            let error = cx.state.hw.vmcs.read(f::EXIT_INTR_ERROR_CODE);
            return alignment_check(cx, error);
        }
        Some(vector::PF) => {
            let token = cx.state.hw.vmcs.read(f::EXIT_QUALIFICATION) as u32;
            if !cx.state.hw.run.wait_for_page(token) {
                return unexpected(cx, exit);
            }
        }
        _ => return unexpected(cx, exit),
    }
    Flow::Resume
}

/// #AC: the guest's own, or the host's way to notice locked accesses across cache lines, which no guest expects.
fn alignment_check(cx: &mut Cx<'_>, error: u32) -> Flow {
    let regs = &cx.state.switch.regs;
    let (rip, rflags) = (regs.rip, regs.rflags);
    let cpl = Vmx::cpl(&mut cx.state.hw);
    if !split_locks_trap() || checks_alignment(cpl, cx.state.controls.cr0, rflags) {
        cx.raise(Exception::with_error(vector::AC, error));
    } else if !guest_split_lock(rip) {
        cx.run.exception(vector::AC, error);
        return Flow::User;
    }
    Flow::Resume
}

fn debug(cx: &mut Cx<'_>, exit: Exit, len: u8) {
    let vmcs = &mut cx.state.hw.vmcs;
    let payload = vmcs.read(f::EXIT_QUALIFICATION) & may_tell(vmcs.read(f::GUEST_DR7));
    if cx.stop_for_debugger(payload) {
        return;
    }
    if exit.info.kind() == Some(Kind::PrivilegedSoftwareException) {
        // INT1: a trap, so RIP moves on before it is delivered again as a plain #DB.
        cx.skip(len);
    }
    cx.raise(Exception::debug(payload));
}
