// SPDX-License-Identifier: GPL-2.0
//! What each exit does.
#![deny(unsafe_code)]

use kernel::prelude::*;

use super::backend::Svm;
use super::exit::{code, task, Assist, IoInfo};
use super::hw::Stepped;
use super::vmcb::event;
use crate::hv::backend::{Backend, Flow};
use crate::hv::fault::Delivery;
use crate::hv::stats::Stat;
use crate::hv::vcpu::Loaded;
use crate::hv::{cpuid, cr, fault, msr};
use crate::mmu::SecondStageFault;
use crate::model::cr::dr6;
use crate::model::emu::insn::Kind;
use crate::model::emu::job::{TaskReason, TaskSwitch};
use crate::model::event::{besides_step, may_tell, vector, Exception};
use crate::sys::cpu;
use crate::uapi;

type Cx<'a> = Loaded<'a, Svm>;

/// Deals with an exit; the most frequent ones first.
pub(super) fn handle(cx: &mut Cx<'_>, exit: u64) -> Result<Flow> {
    match exit {
        code::NPF => npf(cx),
        code::IOIO => io(cx),
        code::INTR | code::NMI => {
            cx.count(Stat::IrqExits);
            Ok(Flow::Resume)
        }
        code::VINTR => {
            cx.count(Stat::IrqWindowExits);
            Svm::set_irq_window(&mut cx.state.hw, false);
            Ok(Flow::Resume)
        }
        code::MSR => msr(cx),
        code::CPUID => cpuid(cx),
        code::HLT => after(cx, Kind::Hlt, |cx, len| Ok(cx.halt(len))),
        _ => rare(cx, exit),
    }
}

// Not inlined, so that an exit saves only the registers that it needs itself.

#[inline(never)]
fn cpuid(cx: &mut Cx<'_>) -> Result<Flow> {
    after(cx, Kind::Cpuid, cpuid::execute)
}

#[inline(never)]
fn msr(cx: &mut Cx<'_>) -> Result<Flow> {
    if cx.state.hw.vmcb().exit_info1() & 1 != 0 {
        after(cx, Kind::Wrmsr, msr::wrmsr)
    } else {
        after(cx, Kind::Rdmsr, msr::rdmsr)
    }
}

#[inline(never)]
fn rare(cx: &mut Cx<'_>, exit: u64) -> Result<Flow> {
    match exit {
        code::READ_CR0..=code::WRITE_DR15 => {
            let old_cr8 = cx.state.controls.cr8;
            let flow = register_access(cx, exit)?;
            Ok(cx.tell_of_lower_priority(old_cr8, flow))
        }
        code::UNDEFINED => cx.undefined_opcode(),
        code::EXCEPTION..=code::EXCEPTION_LAST => Ok(exception(cx, (exit & 0x1f) as u8)),
        // Taken by the host when interrupts were enabled again.
        code::SMI | code::INIT => Ok(Flow::Resume),
        code::IRET => {
            let rip = cx.state.switch.regs.rip;
            cx.state.hw.iret(rip);
            Ok(Flow::Resume)
        }
        code::INVD => after(cx, Kind::Invd, |cx, len| Ok(cx.flush_caches(len))),
        code::WBINVD => after(cx, Kind::Wbinvd, |cx, len| Ok(cx.flush_caches(len))),
        code::XSETBV => after(cx, Kind::Xsetbv, cr::xsetbv),
        code::SHUTDOWN => {
            // The control block says nothing then ("Shutdown Intercept"), nor what the CPU keeps of it.
            cx.state.hw.vmcb().forget();
            Ok(cx.shutdown())
        }
        // Through a task gate it would return to itself, so RIP moves on first.
        code::ICEBP => after(cx, Kind::Int1, |cx, len| {
            cx.skip(len);
            cx.raise(Exception::debug(0));
            Ok(Flow::Resume)
        }),
        code::RDPMC => {
            cx.raise_gp();
            Ok(Flow::Resume)
        }
        code::TASK_SWITCH => task_switch(cx),
        code::VMMCALL => after(cx, Kind::Vmmcall, |cx, len| Ok(cx.hypercall(len))),
        code::MONITOR => after(cx, Kind::Monitor, |cx, len| Ok(cx.monitor_or_mwait(len))),
        code::MWAIT | code::MWAIT_ARMED => {
            after(cx, Kind::Mwait, |cx, len| Ok(cx.monitor_or_mwait(len)))
        }
        // SVM and RDPRU are not offered to the guest.
        code::RSM
        | code::INVLPGA
        | code::VMRUN
        | code::VMLOAD..=code::SKINIT
        | code::RDPRU
        // Intercepted if the guest has them not.
        | code::RDTSCP
        | code::INVPCID => {
            cx.raise(Exception::undefined());
            Ok(Flow::Resume)
        }
        code::INVALID => {
            cx.run.fail_entry(exit, cpu::current_cpu());
            Ok(Flow::User)
        }
        _ => Ok(unexpected(cx, exit)),
    }
}

/// KVM_EXIT_INTERNAL_ERROR: an exit that no intercept asks for.
fn unexpected(cx: &mut Cx<'_>, exit: u64) -> Flow {
    let data = [exit, u64::from(cpu::current_cpu())];
    cx.run
        .internal_error(uapi::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, &data);
    Flow::User
}

/// An access to a control or debug register: known from the decode assists, or emulated.
fn register_access(cx: &mut Cx<'_>, exit: u64) -> Result<Flow> {
    let (rip, hw) = (cx.state.switch.regs.rip, &mut cx.state.hw);
    let features = hw.features;
    let (info, next) = (hw.vmcb().exit_info1(), hw.vmcb().next_rip());
    if !features.decode_assists || !features.nrip_save || next == 0 {
        return cx.emulate();
    }
    let done = match Assist::decode(exit, info) {
        Some(Assist::Cr {
            cr,
            write: true,
            gpr,
        }) => {
            let value = cx.gpr(gpr);
            cx.write_cr(cr, value)
        }
        Some(Assist::Cr { cr, gpr, .. }) => cx.read_cr(cr).map(|v| cx.set_gpr(gpr, v)),
        Some(Assist::Dr { dr, write, gpr }) => cx.access_dr(dr, write, gpr),
        _ => return cx.emulate(),
    };
    Ok(cx.conclude(done, next.wrapping_sub(rip) as u8 & 0xf))
}

/// A task switch, which the CPU has checked and left to us. What it was delivering through a task gate is delivered by
/// the switch.
fn task_switch(cx: &mut Cx<'_>) -> Result<Flow> {
    let v = cx.state.hw.vmcb();
    let (info1, info2, was) = (v.exit_info1(), v.exit_info2(), v.exit_int_info());
    let injected = cx.state.hw.injected_soft(cx.state.switch.regs.rip, was);
    let reason = match () {
        () if info2 & task::IRET != 0 => TaskReason::Iret,
        () if info2 & task::JMP != 0 => TaskReason::Jmp,
        () if was & event::VALID != 0 => TaskReason::Gate,
        () => TaskReason::Call,
    };
    let mut error = None;
    let mut soft = true;
    if reason == TaskReason::Gate {
        let vector = (was & event::VECTOR) as u8;
        soft = match was & event::TYPE {
            event::SOFT => true,
            event::EXCEPTION => vector == vector::BP || vector == vector::OF,
            _ => false,
        };
        if info2 & task::ERROR != 0 {
            error = Some(info2 as u16);
        }
        if was & event::TYPE == event::NMI {
            Svm::set_nmi_masked(&mut cx.state.hw, true);
        }
        cx.state.events.complete(None);
    }
    let insn_len = match injected {
        _ if !soft => 0,
        Some(event) => event.len,
        None => match cx.identify() {
            Ok((_, len)) => len,
            Err(_) => return Ok(Flow::Resume),
        },
    };
    let switch = TaskSwitch {
        selector: info1 as u16,
        reason,
        insn_len,
    };
    cx.task_switch(switch, error)
}

/// Runs `then` with the length of the intercepted instruction.
#[inline(always)]
fn after(
    cx: &mut Cx<'_>,
    kind: Kind,
    then: impl FnOnce(&mut Cx<'_>, u8) -> Result<Flow>,
) -> Result<Flow> {
    match length(cx, kind) {
        Ok(len) => then(cx, len),
        Err(flow) => Ok(flow),
    }
}

/// The length of the intercepted instruction: from the CPU where it tells, else by decoding. What is found at RIP must be the
/// instruction that was intercepted: another CPU may have changed it, and then it is executed anew. The error is what comes instead.
#[inline(never)]
fn length(cx: &mut Cx<'_>, kind: Kind) -> Result<u8, Flow> {
    let (rip, nrip_save) = (cx.state.switch.regs.rip, cx.state.hw.features.nrip_save);
    let next = cx.state.hw.vmcb().next_rip();
    if nrip_save && next != 0 {
        return Ok(next.wrapping_sub(rip) as u8 & 0xf);
    }
    match cx.identify() {
        Ok((found, len)) if found == kind || also(kind) == Some(found) => Ok(len),
        Ok(_) => Err(Flow::Resume),
        Err(Some(e)) => {
            cx.raise(e);
            Err(Flow::Resume)
        }
        Err(None) => Err(cx.emulation_failed(&[])),
    }
}

/// Another instruction with the same exit code.
fn also(kind: Kind) -> Option<Kind> {
    match kind {
        Kind::Wbinvd => Some(Kind::Wbnoinvd),
        Kind::Monitor => Some(Kind::Monitorx),
        Kind::Mwait => Some(Kind::Mwaitx),
        _ => None,
    }
}

/// Nested page fault.
#[inline(never)]
fn npf(cx: &mut Cx<'_>) -> Result<Flow> {
    let v = cx.state.hw.vmcb();
    let (info1, info2) = (v.exit_info1(), v.exit_info2());
    let delivery = (v.exit_int_info() & event::VALID != 0).then_some(Delivery {
        reason: code::NPF,
        info1,
        info2,
    });
    fault::second_stage(cx, SecondStageFault::from_npf(info1, info2), delivery)
}

/// Port I/O. String forms need the emulator: their operands are in memory.
#[inline(never)]
fn io(cx: &mut Cx<'_>) -> Result<Flow> {
    cx.count(Stat::IoExits);
    let (rip, v) = (cx.state.switch.regs.rip, cx.state.hw.vmcb());
    let (info, next) = (IoInfo::decode(v.exit_info1()), v.exit_info2());
    if info.string {
        return cx.emulate();
    }
    let len = next.wrapping_sub(rip) as u8 & 0xf;
    Ok(cx.port(info.port, info.input, info.size, len))
}

/// An exception that is intercepted so that it cannot be raised without end inside of the CPU.
fn exception(cx: &mut Cx<'_>, v: u8) -> Flow {
    match v {
        vector::DB => debug(cx),
        vector::BP => {
            cx.stop_at_breakpoint();
            return Flow::User;
        }
        vector::AC => cx.raise(Exception::with_error(vector::AC, 0)),
        // A machine check is the host's; `enter` handed it over.
        vector::MC => {}
        _ => return unexpected(cx, code::EXCEPTION | u64::from(v)),
    }
    Flow::Resume
}

fn debug(cx: &mut Cx<'_>) {
    cx.resident.uses_dr6.set(true);
    if core::mem::take(&mut cx.state.hw.stepping) {
        return stepped(cx);
    }
    let v = cx.state.hw.vmcb();
    let dr6 = v.dr6() & may_tell(v.dr7());
    if cx.stop_for_debugger(dr6 ^ dr6::RESET) {
        cx.update_switch();
        return;
    }
    cx.state.controls.dr6 = dr6;
    cx.raise(Exception::new(vector::DB));
}

/// A #DB in a run that was to make our single step, to the end of an IRET or of an interrupt shadow: the guest is told of nothing but what
/// else it tells of.
fn stepped(cx: &mut Cx<'_>) {
    let hw = &mut cx.state.hw;
    let Stepped {
        status,
        guest_steps,
    } = hw.stepped;
    if let Some(payload) = besides_step(status.into(), hw.vmcb().dr7(), guest_steps) {
        cx.raise(Exception::debug(payload));
    }
    // A #DB clears DR7.GD.
    cx.update_switch();
}
