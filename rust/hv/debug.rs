// SPDX-License-Identifier: GPL-2.0
//! Debugging: the debug registers as user space gets and sets them, and KVM_SET_GUEST_DEBUG, by which user space debugs the guest
//! with breakpoints and single steps that the guest does not see.

use kernel::prelude::*;

use crate::hv::backend::Backend;
use crate::hv::vcpu::{Loaded, VcpuState};
use crate::model::cr::{self, dr6, rflags};
use crate::model::emu::insn::Kind;
use crate::model::event::{vector, Exception};
use crate::uapi::{self, kvm_debugregs, kvm_guest_debug};

const STEP: u32 = uapi::KVM_GUESTDBG_SINGLESTEP;
const HW_BREAKPOINTS: u32 = uapi::KVM_GUESTDBG_USE_HW_BP;

/// KVM_CAP_SET_GUEST_DEBUG2: the bits of `control` that mean something.
pub(crate) const VALID: u32 = uapi::KVM_GUESTDBG_ENABLE
    | STEP
    | HW_BREAKPOINTS
    | uapi::KVM_GUESTDBG_USE_SW_BP
    | uapi::KVM_GUESTDBG_INJECT_BP
    | uapi::KVM_GUESTDBG_INJECT_DB
    | uapi::KVM_GUESTDBG_BLOCKIRQ;

/// What user space asked for with KVM_SET_GUEST_DEBUG.
///
/// While single steps are on, RFLAGS.TF in [`Switch`](crate::sys::switch::Switch) is the host's, as it is in the hardware: a handler that the
/// guest enters runs without it until its IRET. User space does not see it.
/// The upper halves of DR6 and DR7 are always clear, and not kept.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GuestDebug {
    control: u32,
    /// The breakpoints' addresses, in place of the guest's.
    dr: [u64; 4],
    dr7: u32,
    /// Where the guest was when single steps were asked for.
    step_rip: u64,
    /// DR6 of a #DB that ends the run.
    stop: Option<u32>,
}

impl GuestDebug {
    fn has(&self, bits: u32) -> bool {
        self.control & bits != 0
    }

    /// The guest is being debugged.
    pub(crate) fn on(&self) -> bool {
        self.control != 0
    }

    /// Single steps are on.
    pub(crate) fn steps(&self) -> bool {
        self.has(STEP)
    }

    /// INT3 is user space's.
    pub(crate) fn stops_at_int3(&self) -> bool {
        self.has(uapi::KVM_GUESTDBG_USE_SW_BP)
    }

    /// Interrupts and NMIs wait.
    pub(crate) fn blocks_interrupts(&self) -> bool {
        self.has(uapi::KVM_GUESTDBG_BLOCKIRQ)
    }

    /// DR0 to DR3 and DR7 that are in effect instead of the guest's.
    pub(crate) fn breakpoints(&self) -> Option<([u64; 4], u64)> {
        self.has(HW_BREAKPOINTS)
            .then_some((self.dr, self.dr7.into()))
    }
}

impl<B: Backend> VcpuState<B> {
    /// RFLAGS as user space sees them.
    pub(crate) fn rflags(&self) -> u64 {
        let raw = self.switch.regs.rflags;
        if self.debug.steps() {
            raw & !rflags::TF
        } else {
            raw
        }
    }

    /// DR7 that is in effect: user space's as long as it has the breakpoints.
    pub(crate) fn effective_dr7(&self) -> u64 {
        self.debug
            .breakpoints()
            .map_or(self.controls.dr7, |(_, dr7)| dr7)
    }
}

impl<B: Backend> Loaded<'_, B> {
    /// KVM_GET_DEBUGREGS.
    pub(crate) fn debugregs(&mut self) -> kvm_debugregs {
        self.settle_payload();
        let c = &self.state.controls;
        kvm_debugregs {
            db: c.dr,
            dr6: c.dr6,
            dr7: c.dr7,
            flags: 0,
            reserved: [0; 9],
        }
    }

    /// KVM_SET_DEBUGREGS. EINVAL for flags, and for bits above 31 in DR6 and DR7; nothing is changed then.
    pub(crate) fn set_debugregs(&mut self, d: &kvm_debugregs) -> Result {
        if d.flags != 0 {
            return Err(EINVAL);
        }
        cr::valid_debugregs(d.dr6, d.dr7).map_err(|_| EINVAL)?;
        let c = &mut self.state.controls;
        c.dr = d.db;
        c.dr6 = d.dr6;
        c.dr7 = d.dr7;
        self.update_switch();
        Ok(())
    }

    /// KVM_SET_GUEST_DEBUG. EBUSY: an exception is to be raised while another one waits.
    pub(crate) fn set_guest_debug(&mut self, d: &kvm_guest_debug) -> Result {
        const INJECT: u32 = uapi::KVM_GUESTDBG_INJECT_DB | uapi::KVM_GUESTDBG_INJECT_BP;
        if d.control & INJECT != 0 {
            if self.state.events.has_exception() || self.state.events.shuts_down() {
                return Err(EBUSY);
            }
            let e = if d.control & uapi::KVM_GUESTDBG_INJECT_DB != 0 {
                Exception::new(vector::DB)
            } else {
                self.breakpoint_exception()
            };
            self.state.events.raise(e);
        }
        let flags = self.state.rflags();
        let control = if d.control & uapi::KVM_GUESTDBG_ENABLE != 0 {
            d.control
        } else {
            0
        };
        let step_rip = self.linear_rip();
        let [dr0, dr1, dr2, dr3, _, _, _, dr7] = d.arch.debugreg;
        self.state.debug = GuestDebug {
            control,
            dr: [dr0, dr1, dr2, dr3],
            // Bits that DR7 cannot have would keep the guest from being entered.
            dr7: (dr7 & cr::dr7::VOLATILE | cr::dr7::FIXED_1) as u32,
            step_rip,
            stop: None,
        };
        self.set_rflags(flags);
        let software = control & uapi::KVM_GUESTDBG_USE_SW_BP != 0;
        B::set_breakpoint_exits(&mut self.state.hw, software);
        self.update_switch();
        Ok(())
    }

    /// #BP as the INT3 at RIP raises it, or as the CPU would if there is none.
    fn breakpoint_exception(&mut self) -> Exception {
        let insn_len = match self.identify() {
            Ok((Kind::Int3, len)) => len,
            _ => 0,
        };
        Exception {
            insn_len,
            ..Exception::new(vector::BP)
        }
    }

    /// Sets RFLAGS. Single steps go on only from where they were asked for: elsewhere may be a handler, which does not have TF.
    pub(crate) fn set_rflags(&mut self, value: u64) {
        let step = self.state.debug.steps() && self.linear_rip() == self.state.debug.step_rip;
        let tf = if step { rflags::TF } else { 0 };
        self.state.switch.regs.rflags = value | rflags::FIXED | tf;
    }

    /// A #DB with `payload` (laid out as for [`Exception::debug`]) belongs to user space, which debugs the guest: the run ends. False:
    /// it is the guest's.
    pub(crate) fn stop_for_debugger(&mut self, payload: u64) -> bool {
        let d = &mut self.state.debug;
        // Single steps of the host make no access to a debug register.
        let mine = if payload & dr6::BD != 0 {
            HW_BREAKPOINTS
        } else {
            HW_BREAKPOINTS | STEP
        };
        if d.has(mine) {
            d.stop = Some((payload | dr6::RESET) as u32);
            return true;
        }
        false
    }

    /// The #DB of breakpoints at the instruction that the emulator is about to execute, as the hardware raises it before one.
    pub(crate) fn breakpoint_here(&mut self) -> Option<Exception> {
        let c = &self.state.controls;
        let (dr, dr7) = self.state.debug.breakpoints().unwrap_or((c.dr, c.dr7));
        if dr7 & cr::dr7::ENABLES == 0 || self.state.switch.regs.rflags & rflags::RF != 0 {
            return None;
        }
        let hit = cr::code_breakpoints(&dr, dr7, self.linear_rip());
        (hit != 0).then(|| Exception::debug(hit))
    }

    /// A breakpoint instruction: KVM_EXIT_DEBUG for who asked for it.
    pub(crate) fn stop_at_breakpoint(&mut self) {
        let pc = self.linear_rip();
        self.run.debug(vector::BP, pc, None);
    }

    /// Ends the run with KVM_EXIT_DEBUG if a #DB asks for it.
    #[inline]
    pub(crate) fn debug_exit(&mut self) -> bool {
        let Some(dr6) = self.state.debug.stop.take() else {
            return false;
        };
        let pc = self.linear_rip();
        let dr7 = self.state.effective_dr7();
        self.run.debug(vector::DB, pc, Some((dr6.into(), dr7)));
        true
    }
}
