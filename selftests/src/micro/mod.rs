// SPDX-License-Identifier: GPL-2.0
//! Guests of a few instructions: modes, exits, events, and memory that changes under them.

mod bits16;
mod control;
mod cpu;
mod debug;
mod dirty_log;
mod emulate_fail;
mod events;
mod exceptions;
mod exits;
mod forced;
mod fpu;
mod host;
mod io;
mod ioevents;
mod lifecycle;
mod memory;
mod mmio;
mod mmio_between;
mod mmio_insn;
mod modes;
mod pcid;
pub mod prefix;
mod privilege;
mod privilege_emulated;
mod privilege_gates;
pub mod privilege_where;
mod real;
mod speculation;
mod sysenter;
mod tasks;
mod threads;
mod trace;
mod vm86;
mod walks;

use crate::harness::Test;
pub use lifecycle::end_machine;

/// All of them.
pub fn tests() -> Vec<Test> {
    [
        modes::TESTS,
        real::TESTS,
        control::TESTS,
        pcid::TESTS,
        io::TESTS,
        ioevents::TESTS,
        mmio::TESTS,
        mmio_between::TESTS,
        mmio_insn::TESTS,
        events::TESTS,
        exceptions::TESTS,
        exits::TESTS,
        forced::TESTS,
        emulate_fail::TESTS,
        cpu::TESTS,
        sysenter::TESTS,
        speculation::TESTS,
        debug::TESTS,
        fpu::TESTS,
        memory::TESTS,
        walks::TESTS,
        dirty_log::TESTS,
        tasks::TESTS,
        threads::TESTS,
        host::TESTS,
        trace::TESTS,
        lifecycle::TESTS,
        privilege::TESTS,
        privilege_gates::TESTS,
        privilege_emulated::TESTS,
        vm86::TESTS,
        vm86::VME_TESTS,
        bits16::TESTS,
    ]
    .concat()
}
