// SPDX-License-Identifier: GPL-2.0
//! The second-stage MMU (EPT and NPT).
