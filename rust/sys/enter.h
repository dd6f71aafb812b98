/* SPDX-License-Identifier: GPL-2.0 */
/* What the two world switches (svm/enter.S, vmx/enter.S) have in common, as macros of the assembler. */
#ifndef LODGE_ENTER_H
#define LODGE_ENTER_H

#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>

#include "rust/sys/switch.h"

/* Offsets of the general registers in struct lodge_switch: the hardware's encoding order. */
#define GPR(n) (SWITCH_GPR + 8 * (n))

/* A frame, and what the C ABI wants back. */
.macro ENTER_FUNCTION
	push	%rbp
	mov	%rsp, %rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
.endm

.macro LEAVE_FUNCTION
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
	RET
.endm

/* The guest's general registers but RAX and RSP. @sw in RDI, which is the last to be replaced. */
.macro LOAD_GUEST_REGISTERS
	mov	GPR(1)(%rdi), %rcx
	mov	GPR(2)(%rdi), %rdx
	mov	GPR(3)(%rdi), %rbx
	mov	GPR(5)(%rdi), %rbp
	mov	GPR(6)(%rdi), %rsi
	mov	GPR(8)(%rdi), %r8
	mov	GPR(9)(%rdi), %r9
	mov	GPR(10)(%rdi), %r10
	mov	GPR(11)(%rdi), %r11
	mov	GPR(12)(%rdi), %r12
	mov	GPR(13)(%rdi), %r13
	mov	GPR(14)(%rdi), %r14
	mov	GPR(15)(%rdi), %r15
	mov	GPR(7)(%rdi), %rdi
.endm

/* The same back, but RDI, which either is @sw or is saved by the caller. */
.macro STORE_GUEST_REGISTERS sw:req
	mov	%rcx, GPR(1)(\sw)
	mov	%rdx, GPR(2)(\sw)
	mov	%rbx, GPR(3)(\sw)
	mov	%rbp, GPR(5)(\sw)
	mov	%rsi, GPR(6)(\sw)
	mov	%r8, GPR(8)(\sw)
	mov	%r9, GPR(9)(\sw)
	mov	%r10, GPR(10)(\sw)
	mov	%r11, GPR(11)(\sw)
	mov	%r12, GPR(12)(\sw)
	mov	%r13, GPR(13)(\sw)
	mov	%r14, GPR(14)(\sw)
	mov	%r15, GPR(15)(\sw)
.endm

/* No guest value stays in a register that speculation could use; RAX and RBX are the caller's to clear. */
.macro CLEAR_GUEST_REGISTERS
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%ebp, %ebp
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	xor	%r12d, %r12d
	xor	%r13d, %r13d
	xor	%r14d, %r14d
	xor	%r15d, %r15d
.endm

/* Writes RDX to SPEC_CTRL. Clobbers RAX, RCX, RDX. */
.macro WRITE_SPEC_CTRL
	mov	%edx, %eax
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.endm

/* The guest's SPEC_CTRL, if it is not that of the host. @sw in RDI. */
.macro LOAD_GUEST_SPEC_CTRL
	mov	SWITCH_SPEC_CTRL(%rdi), %rdx
	cmp	PER_CPU_VAR(x86_spec_ctrl_current), %rdx
	je	.Lguest_spec_done
	WRITE_SPEC_CTRL
.endm

/*
 * The host's SPEC_CTRL, after the guest's was kept: that is the one that was loaded, unless the guest writes it without an exit.
 * Both branches may be passed in speculation with the guest's value in force. vmx/enter.S ends that with an LFENCE; in svm/enter.S nothing
 * does, as what protects returns there is UNTRAIN_RET_VM, and no bit of SPEC_CTRL. @sw in RDI; clobbers RAX, RCX, RDX and leaves nothing of
 * the guest's in them.
 */
.macro LOAD_HOST_SPEC_CTRL
	cmpl	$0, SWITCH_SPEC_PASSED(%rdi)
	je	.Lguest_spec_kept
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	rdmsr
	mov	%eax, SWITCH_SPEC_CTRL(%rdi)
	mov	%edx, SWITCH_SPEC_CTRL + 4(%rdi)
	xor	%eax, %eax
.Lguest_spec_kept:
	mov	PER_CPU_VAR(x86_spec_ctrl_current), %rdx
	cmp	SWITCH_SPEC_CTRL(%rdi), %rdx
	/* Legacy IBRS must be written again after each less privileged mode, changed or not. */
	ALTERNATIVE "je .Lhost_spec_done", "", X86_FEATURE_KERNEL_IBRS
	WRITE_SPEC_CTRL
.endm

#endif
