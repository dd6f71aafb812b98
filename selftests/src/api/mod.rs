// SPDX-License-Identifier: GPL-2.0
//! Every ioctl with good and bad input: exact errnos, and nothing changed by a refused call.

mod alloc_fail;
pub mod clock;
mod cpuid;
mod dirty_log;
mod events;
mod ioevents;
mod lifetime;
mod mce;
mod memory;
mod msr_filter;
mod msrs;
mod quirks;
mod run;
pub mod speculation;
mod sregs;
mod stale;
mod state;
mod sync;
mod system;
mod xsave;

use crate::harness::Test;

/// All of them.
pub fn tests() -> Vec<Test> {
    [
        system::TESTS,
        alloc_fail::TESTS,
        lifetime::TESTS,
        memory::TESTS,
        dirty_log::TESTS,
        ioevents::TESTS,
        state::TESTS,
        stale::TESTS,
        sregs::TESTS,
        cpuid::TESTS,
        msrs::TESTS,
        speculation::TESTS,
        run::TESTS,
        quirks::TESTS,
        events::TESTS,
        msr_filter::TESTS,
        clock::TESTS,
        sync::TESTS,
        mce::TESTS,
        xsave::TESTS,
    ]
    .concat()
}
