/* SPDX-License-Identifier: GPL-2.0 */
/* The AMD world switch. AMD APM volume 2, "VMRUN Instruction" and "VMSAVE and VMLOAD Instructions". */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>

#include "rust/sys/switch.h"

/* Offsets of the general registers in struct lodge_switch: the hardware's encoding order. */
#define GPR(n) (SWITCH_GPR + 8 * (n))

.section .noinstr.text, "ax"

/*
 * void lodge_svm_run(struct lodge_switch *sw, u64 vmcb_pa, u64 host_save_pa)
 *
 * Called with GIF clear. RAX, RSP, RIP and RFLAGS of the guest are in the VMCB, the other general registers in @sw.
 * The order of the mitigations matters: no return or indirect branch may run between restoring the guest's
 * SPEC_CTRL and VMRUN, nor between the exit and the end of RSB filling and untraining.
 */
SYM_FUNC_START(lodge_svm_run)
	push	%rbp
	mov	%rsp, %rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx

	/* What is needed after the exit, in the reverse order of its use. */
	push	%rdx
	push	%rsi
	push	%rdi

	/* Nothing to do where the CPU has no SPEC_CTRL, or switches it itself. */
	ALTERNATIVE_2 "jmp .Lguest_spec_done", "", X86_FEATURE_MSR_SPEC_CTRL, \
		"jmp .Lguest_spec_done", X86_FEATURE_V_SPEC_CTRL
	mov	SWITCH_SPEC_CTRL(%rdi), %rdx
	cmp	PER_CPU_VAR(x86_spec_ctrl_current), %rdx
	je	.Lguest_spec_done
	mov	%edx, %eax
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lguest_spec_done:

	mov	(8)(%rsp), %rax			/* vmcb_pa */
.Lvmload_guest:
	vmload	%rax
.Lvmload_guest_done:

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

	/* Clears the CPU's buffers where they leak; changes ZF, which the VMCB holds for the guest. */
	ALTERNATIVE "", __CLEAR_CPU_BUFFERS, X86_FEATURE_CLEAR_CPU_BUF_VM

.Lvmrun:
	vmrun	%rax
.Lvmrun_done:
	pop	%rax				/* sw: RAX is the only free register */
	mov	%rcx, GPR(1)(%rax)
	mov	%rdx, GPR(2)(%rax)
	mov	%rbx, GPR(3)(%rax)
	mov	%rbp, GPR(5)(%rax)
	mov	%rsi, GPR(6)(%rax)
	mov	%rdi, GPR(7)(%rax)
	mov	%r8, GPR(8)(%rax)
	mov	%r9, GPR(9)(%rax)
	mov	%r10, GPR(10)(%rax)
	mov	%r11, GPR(11)(%rax)
	mov	%r12, GPR(12)(%rax)
	mov	%r13, GPR(13)(%rax)
	mov	%r14, GPR(14)(%rax)
	mov	%r15, GPR(15)(%rax)
	mov	%rax, %rdi

	pop	%rax				/* vmcb_pa */
.Lvmsave_guest:
	vmsave	%rax
.Lvmsave_guest_done:

	pop	%rax				/* host_save_pa */
.Lvmload_host:
	vmload	%rax				/* brings back GS: per-CPU data from here on */
.Lvmload_host_done:

	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT

	ALTERNATIVE_2 "jmp .Lhost_spec_done", "", X86_FEATURE_MSR_SPEC_CTRL, \
		"jmp .Lhost_spec_done", X86_FEATURE_V_SPEC_CTRL
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

	UNTRAIN_RET_VM

	/* No guest value stays in a register that speculation could use. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%ebx, %ebx
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

	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
	RET

	/* A reboot turns SVM off under our feet: then, and only then, a fault here is expected. */
.Lvmload_guest_fault:
	cmpb	$0, virt_rebooting(%rip)
	jne	.Lvmload_guest_done
	ud2
.Lvmrun_fault:
	cmpb	$0, virt_rebooting(%rip)
	jne	.Lvmrun_done
	ud2
.Lvmsave_guest_fault:
	cmpb	$0, virt_rebooting(%rip)
	jne	.Lvmsave_guest_done
	ud2
.Lvmload_host_fault:
	cmpb	$0, virt_rebooting(%rip)
	jne	.Lvmload_host_done
	ud2

	_ASM_EXTABLE(.Lvmload_guest, .Lvmload_guest_fault)
	_ASM_EXTABLE(.Lvmrun, .Lvmrun_fault)
	_ASM_EXTABLE(.Lvmsave_guest, .Lvmsave_guest_fault)
	_ASM_EXTABLE(.Lvmload_host, .Lvmload_host_fault)
SYM_FUNC_END(lodge_svm_run)
