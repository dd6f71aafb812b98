// SPDX-License-Identifier: GPL-2.0
//! The state that software switches around a world switch: `struct lodge_switch` of `rust/sys/switch.h`.
//!
//! Unsafe because: the assembly and C code read and write it by offset; the assertions below tie the two together.

use core::mem::{offset_of, size_of};

use crate::model::regs::Regs;
use crate::sys::cpu::IrqOff;
use crate::sys::ffi;

/// The guest's XCR0 differs from the host's and CR4.OSXSAVE is set.
pub(crate) const XCR0: u32 = 1;
/// The guest's PKRU is live.
pub(crate) const PKRU: u32 = 2;
/// The guest has breakpoints on.
pub(crate) const DR: u32 = 4;
/// The guest has XSAVES and the host's IA32_XSS is not 0: the guest's is.
pub(crate) const XSS: u32 = 8;

/// See `rust/sys/switch.h`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Switch {
    pub(crate) regs: Regs,
    pub(crate) cr2: u64,
    pub(crate) spec_ctrl: u64,
    pub(crate) xcr0: u64,
    pub(crate) host_xcr0: u64,
    pub(crate) dr: [u64; 4],
    pub(crate) dr6: u64,
    pub(crate) host_debugctl: u64,
    pub(crate) host_xss: u64,
    pub(crate) pkru: u32,
    host_pkru: u32,
    pub(crate) flags: u32,
    /// The guest writes SPEC_CTRL without an exit: 1.
    pub(crate) spec_passed: u32,
}

const _: () = {
    assert!(offset_of!(Switch, regs) == 0);
    assert!(offset_of!(Regs, gpr) == 0);
    assert!(offset_of!(Regs, rip) == 128);
    assert!(offset_of!(Switch, cr2) == 144);
    assert!(offset_of!(Switch, spec_ctrl) == 152);
    assert!(offset_of!(Switch, flags) == 240);
    assert!(offset_of!(Switch, spec_passed) == 244);
    assert!(size_of::<Switch>() == 248);
};

impl Switch {
    /// Loads what is switched in software. The world switch must follow.
    pub(crate) fn load_guest(&mut self, _irq: &IrqOff) {
        // SAFETY: `self` has the layout asserted above; interrupts are off.
        unsafe { ffi::lodge_switch_in(self) }
    }

    /// Brings the host's values back after the world switch.
    pub(crate) fn load_host(&mut self, _irq: &IrqOff) {
        // SAFETY: as above.
        unsafe { ffi::lodge_switch_out(self) }
    }
}
