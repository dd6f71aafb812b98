// SPDX-License-Identifier: GPL-2.0
//! The AMD backend: Secure Virtual Machine.
