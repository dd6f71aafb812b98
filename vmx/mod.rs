// SPDX-License-Identifier: GPL-2.0
//! The Intel backend: Virtual Machine Extensions.
