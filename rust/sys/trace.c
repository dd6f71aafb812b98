// SPDX-License-Identifier: GPL-2.0
/* The tracepoints' definitions, and a way into each for Rust. */
#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "trace.h"
