/* SPDX-License-Identifier: GPL-2.0 */
/* What a kvm_exit event is made of; rust/sys/trace.rs mirrors it. */
#ifndef LODGE_TRACE_EXIT_H
#define LODGE_TRACE_EXIT_H

#include <linux/types.h>
#include <linux/build_bug.h>

/* The values that tools know the vendors by. */
#define LODGE_ISA_VMX 1
#define LODGE_ISA_SVM 2

struct lodge_trace_exit {
	u64 info1;
	u64 info2;
	u32 reason;
	u32 isa;
	u32 intr_info;
	u32 error_code;
};
static_assert(sizeof(struct lodge_trace_exit) == 32);
#endif
