/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Intel world switch is told and what it tells: offsets for assembly, the same struct for C.
 * vmx/insn.rs mirrors it and asserts each offset.
 */
#ifndef LODGE_VMX_ENTER_H
#define LODGE_VMX_ENTER_H

#define VMX_HOST_RSP		0
#define VMX_FLAGS		24

/* The launch state is launched: VMRESUME. */
#define VMX_FLAG_RESUME		1

#ifndef __ASSEMBLER__
#include <linux/build_bug.h>
#include <linux/list.h>
#include <linux/types.h>
#include <asm/vmx.h>

/* One vCPU's. What the VMCS holds of the host is repeated here, so that it is written only when it changed. */
struct lodge_vmx {
	u64 host_rsp;
	u64 host_cr3;
	u64 host_cr4;
	u32 flags;
	/* From here on: about the exit. */
	u32 failed;		/* no exit came: the instruction failed, with error number, or faulted (0) */
	u32 error;
	u32 reason;
	u32 intr_info;
	u32 idt_vectoring;
	/* A page with the MSRs that entries and exits load, the guest's values in its first half, the host's in the other. */
	u32 msr_count;		/* as the VMCS has it, for both */
	u32 page_not_present;	/* the exit is a #PF by which a hypervisor below says that it fetches a page */
	struct vmx_msr_entry *msrs;
};
static_assert(offsetof(struct lodge_vmx, host_rsp) == VMX_HOST_RSP);
static_assert(offsetof(struct lodge_vmx, flags) == VMX_FLAGS);
static_assert(sizeof(struct lodge_vmx) == 64);

/* Entries in one half of the page. */
#define LODGE_VMX_MSRS 128

/* The host state of a CPU that a VMCS must repeat; CR3 and CR4 are looked at before each entry instead. */
struct lodge_vmx_cpu {
	u64 cr0;
	u64 gdt, idt, tr;
	u64 sysenter_esp, sysenter_eip;
	u64 pat, efer;
	u64 rip;
	u32 sysenter_cs;
	u16 cs, ss, tr_selector;
};
static_assert(sizeof(struct lodge_vmx_cpu) == 88);

/* What a VM exit does not bring back, or brings back from the VMCS, of the thread that runs the vCPU. */
struct lodge_vmx_thread {
	u64 fs_base, gs_base, kernel_gs_base;
	u16 fs, gs, ds, es, ldt;
};
static_assert(sizeof(struct lodge_vmx_thread) == 40);

/* A VMCS as the lists of active ones hold it. */
struct lodge_vmcs {
	struct list_head link;
	u64 phys;
};
#endif
#endif
