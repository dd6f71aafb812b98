/* SPDX-License-Identifier: GPL-2.0 */
/* Tracepoints with the names and fields that KVM has, since tools such as perf know them. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm

#if !defined(LODGE_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define LODGE_TRACE_H

#include <linux/tracepoint.h>
#include <asm/svm.h>
#include <asm/vmx.h>

#include "trace_exit.h"

/* Before the world switch, with interrupts off. */
TRACE_EVENT(kvm_entry,
	TP_PROTO(u32 vcpu_id, u64 rip, bool immediate_exit, u32 intr_info, u32 error_code),
	TP_ARGS(vcpu_id, rip, immediate_exit, intr_info, error_code),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(unsigned long, rip)
		__field(bool, immediate_exit)
		__field(u32, intr_info)
		__field(u32, error_code)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu_id;
		__entry->rip = rip;
		__entry->immediate_exit = immediate_exit;
		__entry->intr_info = intr_info;
		__entry->error_code = error_code;
	),
	TP_printk("vcpu %u, rip 0x%lx intr_info 0x%08x error_code 0x%08x%s", __entry->vcpu_id, __entry->rip,
		  __entry->intr_info, __entry->error_code, __entry->immediate_exit ? "[immediate exit]" : "")
);

/* After the world switch, with interrupts off. The reason's upper half is flags on Intel. */
TRACE_EVENT(kvm_exit,
	TP_PROTO(u32 vcpu_id, u64 rip, const struct lodge_trace_exit *exit),
	TP_ARGS(vcpu_id, rip, exit),
	TP_STRUCT__entry(
		__field(unsigned int, exit_reason)
		__field(unsigned long, guest_rip)
		__field(u32, isa)
		__field(u64, info1)
		__field(u64, info2)
		__field(u32, intr_info)
		__field(u32, error_code)
		__field(unsigned int, vcpu_id)
		__field(u64, requests)
	),
	TP_fast_assign(
		__entry->exit_reason = exit->reason;
		__entry->guest_rip = rip;
		__entry->isa = exit->isa;
		__entry->info1 = exit->info1;
		__entry->info2 = exit->info2;
		__entry->intr_info = exit->intr_info;
		__entry->error_code = exit->error_code;
		__entry->vcpu_id = vcpu_id;
		__entry->requests = 0;
	),
	TP_printk("vcpu %u reason %s%s%s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x error_code 0x%08x "
		  "requests 0x%016llx", __entry->vcpu_id,
		  __entry->isa == LODGE_ISA_VMX ?
			__print_symbolic(__entry->exit_reason & 0xffff, VMX_EXIT_REASONS) :
			__print_symbolic(__entry->exit_reason, SVM_EXIT_REASONS),
		  __entry->isa == LODGE_ISA_VMX && __entry->exit_reason >> 16 ? " " : "",
		  __entry->isa == LODGE_ISA_VMX ?
			__print_flags(__entry->exit_reason & ~0xffff, " ", VMX_EXIT_REASON_FLAGS) : "",
		  __entry->guest_rip, __entry->info1, __entry->info2, __entry->intr_info, __entry->error_code,
		  __entry->requests)
);

/* Port I/O: a write when it goes out, a read when its data has come. The first item's value. */
TRACE_EVENT(kvm_pio,
	TP_PROTO(bool write, u32 port, u32 size, u32 count, u32 val),
	TP_ARGS(write, port, size, count, val),
	TP_STRUCT__entry(
		__field(unsigned int, rw)
		__field(unsigned int, port)
		__field(unsigned int, size)
		__field(unsigned int, count)
		__field(unsigned int, val)
	),
	TP_fast_assign(
		__entry->rw = write;
		__entry->port = port;
		__entry->size = size;
		__entry->count = count;
		__entry->val = val;
	),
	TP_printk("pio_%s at 0x%x size %d count %d val 0x%x %s", __entry->rw ? "write" : "read", __entry->port,
		  __entry->size, __entry->count, __entry->val, __entry->count > 1 ? "(...)" : "")
);

/* An access to a device: a read both when it goes out and when its data has come. */
TRACE_EVENT(kvm_mmio,
	TP_PROTO(u32 type, u32 len, u64 gpa, u64 val),
	TP_ARGS(type, len, gpa, val),
	TP_STRUCT__entry(
		__field(u32, type)
		__field(u32, len)
		__field(u64, gpa)
		__field(u64, val)
	),
	TP_fast_assign(
		__entry->type = type;
		__entry->len = len;
		__entry->gpa = gpa;
		__entry->val = val;
	),
	TP_printk("mmio %s len %u gpa 0x%llx val 0x%llx",
		  __print_symbolic(__entry->type, { 0, "unsatisfied-read" }, { 1, "read" }, { 2, "write" }),
		  __entry->len, __entry->gpa, __entry->val)
);

/* RDMSR and WRMSR; exception: it was refused. */
TRACE_EVENT(kvm_msr,
	TP_PROTO(bool write, u32 ecx, u64 data, bool exception),
	TP_ARGS(write, ecx, data, exception),
	TP_STRUCT__entry(
		__field(unsigned int, write)
		__field(u32, ecx)
		__field(u64, data)
		__field(u8, exception)
	),
	TP_fast_assign(
		__entry->write = write;
		__entry->ecx = ecx;
		__entry->data = data;
		__entry->exception = exception;
	),
	TP_printk("msr_%s %x = 0x%llx%s", __entry->write ? "write" : "read", __entry->ecx, __entry->data,
		  __entry->exception ? " (#GP)" : "")
);

/* A second-stage fault. The error code is as the CPU tells it, as in KVM: EXITINFO1, or the exit qualification. */
TRACE_EVENT(kvm_page_fault,
	TP_PROTO(u32 vcpu_id, u64 rip, u64 fault_address, u64 error_code),
	TP_ARGS(vcpu_id, rip, fault_address, error_code),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(unsigned long, guest_rip)
		__field(u64, fault_address)
		__field(u64, error_code)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu_id;
		__entry->guest_rip = rip;
		__entry->fault_address = fault_address;
		__entry->error_code = error_code;
	),
	TP_printk("vcpu %u rip 0x%lx address 0x%016llx error_code 0x%llx", __entry->vcpu_id, __entry->guest_rip,
		  __entry->fault_address, __entry->error_code)
);

#endif

/* Read again with other meanings of the macros above, and so outside of the guard. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH rust/sys
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
