// SPDX-License-Identifier: GPL-2.0
//! The Intel backend: Virtual Machine Extensions.

pub mod controls;
pub mod exit;
pub mod fields;
pub mod vpid;
