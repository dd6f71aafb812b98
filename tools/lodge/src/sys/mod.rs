// SPDX-License-Identifier: GPL-2.0
//! What safe code cannot do: a raw ioctl, the shared run page, signals, timers and the terminal.
#![allow(unsafe_code)]

pub mod kvm;
pub mod signals;
pub mod terminal;
pub mod timer;
