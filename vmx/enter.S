/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The Intel world switch. Intel SDM, chapters "VM Entries" and "VM Exits"; "Speculative Execution Side Channel Mitigations".
 *
 * Before the guest, in this order:
 *  1. IA32_SPEC_CTRL becomes the guest's, if it differs. From here on the host runs with what the guest chose: no return, no indirect
 *     branch. It comes before anything that can fail, so that wherever it fails, step 7 finds the guest's value.
 *  2. The host's RSP in the VMCS.
 *  3. The guest's general registers.
 *  4. VERW clears CPU buffers, where the host has that mitigation: last, so that no host data comes into them again.
 * After it:
 *  5. The guest's registers are stored, and no value of the guest's stays in a register.
 *  6. The return stack buffer is filled: calls and returns in pairs.
 *  7. The guest's IA32_SPEC_CTRL is read if it writes that without an exit, and only then the host's written: if it differs, or always
 *     where IBRS has to be written after each less privileged mode.
 *  8. LFENCE, where it need not be written: nothing below runs in speculation with the guest's value.
 *  9. The branch history is cleared; then comes the first return.
 */
#include "rust/sys/enter.h"
#include "vmx/enter.h"

/* The VMCS field that holds the stack pointer after an exit. */
#define FIELD_HOST_RSP 0x6c14

.section .noinstr.text, "ax"

/*
 * u32 lodge_vmx_run(struct lodge_switch *sw, struct lodge_vmx *vmx)
 *
 * Enters the guest; returns 0 after its exit, 1 if the instruction failed. RSP, RIP and RFLAGS of the guest are in the
 * VMCS, the other general registers in @sw. Interrupts are off.
 *
 * The order of the mitigations matters, see the head of this file: no return or indirect branch may run between loading the guest's
 * SPEC_CTRL and the entry, nor between the exit and the end of RSB filling and SPEC_CTRL handling.
 */
SYM_FUNC_START(lodge_vmx_run)
	ENTER_FUNCTION

	/* What is needed after the exit: (%rsp) is @sw, 8(%rsp) the flags. */
	mov	VMX_FLAGS(%rsi), %eax
	push	%rax
	push	%rdi

	ALTERNATIVE "jmp .Lguest_spec_done", "", X86_FEATURE_MSR_SPEC_CTRL
	LOAD_GUEST_SPEC_CTRL
.Lguest_spec_done:

	/* The exit restores RSP from the VMCS; the stack is mostly as deep as last time. */
	cmp	%rsp, VMX_HOST_RSP(%rsi)
	je	.Lrsp_done
	mov	$FIELD_HOST_RSP, %eax
.Lvmwrite_rsp:
	vmwrite	%rsp, %rax
	jbe	.Lfailed
	mov	%rsp, VMX_HOST_RSP(%rsi)
.Lrsp_done:

	mov	GPR(0)(%rdi), %rax
	LOAD_GUEST_REGISTERS

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
	STORE_GUEST_REGISTERS %rdi
	popq	GPR(7)(%rdi)

	xor	%ebx, %ebx			/* the result: an exit */

.Lclear:
	/* RBX is the result. */
	xor	%eax, %eax
	CLEAR_GUEST_REGISTERS

	FILL_RETURN_BUFFER %rcx, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE

	pop	%rdi				/* sw */
	ALTERNATIVE "jmp .Lhost_spec_done", "", X86_FEATURE_MSR_SPEC_CTRL
	LOAD_HOST_SPEC_CTRL
.Lhost_spec_done:
	/* The branch above must not be passed in speculation with the guest's SPEC_CTRL: legacy IBRS always writes. */
	ALTERNATIVE_2 "", "lfence", X86_FEATURE_MSR_SPEC_CTRL, "", X86_FEATURE_KERNEL_IBRS

	CLEAR_BRANCH_HISTORY_VMEXIT

	mov	%ebx, %eax
	add	$8, %rsp			/* the flags */
	LEAVE_FUNCTION

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
