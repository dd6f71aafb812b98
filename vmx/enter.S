/* SPDX-License-Identifier: GPL-2.0 */
/* The Intel world switch. Intel SDM, chapters "VM Entries" and "VM Exits". */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>

#include "rust/sys/switch.h"
#include "vmx/enter.h"

/* Offsets of the general registers in struct lodge_switch: the hardware's encoding order. */
#define GPR(n) (SWITCH_GPR + 8 * (n))

/* The VMCS field that holds the stack pointer after an exit. */
#define FIELD_HOST_RSP 0x6c14

.section .noinstr.text, "ax"

/*
 * u32 lodge_vmx_run(struct lodge_switch *sw, struct lodge_vmx *vmx)
 *
 * Enters the guest; returns 0 after its exit, 1 if the instruction failed. RSP, RIP and RFLAGS of the guest are in the
 * VMCS, the other general registers in @sw. Interrupts are off.
 *
 * The order of the mitigations matters: no return or indirect branch may run between loading the guest's SPEC_CTRL and
 * the entry, nor between the exit and the end of RSB filling and SPEC_CTRL handling.
 */
SYM_FUNC_START(lodge_vmx_run)
	push	%rbp
	mov	%rsp, %rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx

	/* What is needed after the exit: (%rsp) is @sw, 8(%rsp) the flags. */
	mov	VMX_FLAGS(%rsi), %eax
	push	%rax
	push	%rdi

	/* The exit restores RSP from the VMCS; the stack is mostly as deep as last time. */
	cmp	%rsp, VMX_HOST_RSP(%rsi)
	je	.Lrsp_done
	mov	$FIELD_HOST_RSP, %eax
.Lvmwrite_rsp:
	vmwrite	%rsp, %rax
	jbe	.Lfailed
	mov	%rsp, VMX_HOST_RSP(%rsi)
.Lrsp_done:

	ALTERNATIVE "jmp .Lguest_spec_done", "", X86_FEATURE_MSR_SPEC_CTRL
	mov	SWITCH_SPEC_CTRL(%rdi), %rdx
	cmp	PER_CPU_VAR(x86_spec_ctrl_current), %rdx
	je	.Lguest_spec_done
	mov	%edx, %eax
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lguest_spec_done:

	mov	GPR(0)(%rdi), %rax
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

	/*
	 * Clears the CPU's buffers where they leak. Where only MMIO leaks, a guest without access to any would not need
	 * it; that distinction is not made.
	 */
	ALTERNATIVE_2 "", __CLEAR_CPU_BUFFERS, X86_FEATURE_CLEAR_CPU_BUF_VM_MMIO, \
		__CLEAR_CPU_BUFFERS, X86_FEATURE_CLEAR_CPU_BUF_VM

	/* After VERW, which changes ZF. */
	testl	$VMX_FLAG_RESUME, 8(%rsp)
	jz	.Lvmlaunch

	/* An exit continues below with the stack as it is here, but does not come from here as far as objtool can see. */
	UNWIND_HINT_SAVE
.Lvmresume:
	vmresume
	jmp	.Lfailed
.Lvmlaunch:
	vmlaunch
	jmp	.Lfailed

SYM_INNER_LABEL_ALIGN(lodge_vmx_exit, SYM_L_GLOBAL)
	UNWIND_HINT_RESTORE
	ENDBR

	push	%rdi
	mov	8(%rsp), %rdi			/* sw */
	mov	%rax, GPR(0)(%rdi)
	mov	%rcx, GPR(1)(%rdi)
	mov	%rdx, GPR(2)(%rdi)
	mov	%rbx, GPR(3)(%rdi)
	mov	%rbp, GPR(5)(%rdi)
	mov	%rsi, GPR(6)(%rdi)
	mov	%r8, GPR(8)(%rdi)
	mov	%r9, GPR(9)(%rdi)
	mov	%r10, GPR(10)(%rdi)
	mov	%r11, GPR(11)(%rdi)
	mov	%r12, GPR(12)(%rdi)
	mov	%r13, GPR(13)(%rdi)
	mov	%r14, GPR(14)(%rdi)
	mov	%r15, GPR(15)(%rdi)
	popq	GPR(7)(%rdi)

	xor	%ebx, %ebx			/* the result: an exit */

.Lclear:
	/* No guest value stays in a register that speculation could use. RBX is the result. */
	xor	%eax, %eax
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

	FILL_RETURN_BUFFER %rcx, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE

	pop	%rdi				/* sw */
	ALTERNATIVE "jmp .Lhost_spec_done", "", X86_FEATURE_MSR_SPEC_CTRL
	/* The guest cannot write SPEC_CTRL (it is not offered), so its value is the one that was loaded. */
	mov	PER_CPU_VAR(x86_spec_ctrl_current), %rdx
	cmp	SWITCH_SPEC_CTRL(%rdi), %rdx
	/* Legacy IBRS must be written again after each less privileged mode, changed or not. */
	ALTERNATIVE "je .Lhost_spec_done", "", X86_FEATURE_KERNEL_IBRS
	mov	%edx, %eax
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lhost_spec_done:
	/* The branch above must not be passed in speculation with the guest's SPEC_CTRL: legacy IBRS always writes. */
	ALTERNATIVE_2 "", "lfence", X86_FEATURE_MSR_SPEC_CTRL, "", X86_FEATURE_KERNEL_IBRS

	CLEAR_BRANCH_HISTORY_VMEXIT

	mov	%ebx, %eax
	add	$8, %rsp			/* the flags */
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
	RET

	/* A reboot turns VMX off under our feet: then, and only then, a fault here is expected. */
.Lfault:
	cmpb	$0, virt_rebooting(%rip)
	jne	.Lfailed
	ud2
.Lfailed:
	mov	$1, %ebx
	jmp	.Lclear

	_ASM_EXTABLE(.Lvmwrite_rsp, .Lfault)
	_ASM_EXTABLE(.Lvmresume, .Lfault)
	_ASM_EXTABLE(.Lvmlaunch, .Lfault)
SYM_FUNC_END(lodge_vmx_run)
