/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The AMD world switch. AMD APM volume 2, "VMRUN Instruction", "VMSAVE and VMLOAD Instructions" and "Speculation Control MSRs".
 *
 * Before the guest, in this order:
 *  1. SPEC_CTRL becomes the guest's, if it differs. From here on the host runs with what the guest chose: no return, no indirect
 *     branch. (Virtualized SPEC_CTRL: VMRUN loads it from the VMCB, and this step and 6 are not there.)
 *  2. VMLOAD brings the rest of the guest's state, GS among it: no per-CPU data, and so no look at the host's SPEC_CTRL, from here on.
 *  3. The guest's general registers.
 *  4. VERW clears CPU buffers, where the host has that mitigation: last, so that no host data comes into them again.
 * After it:
 *  5. The guest's registers are stored, and VMSAVE and VMLOAD bring the host's GS back. Then the return stack buffer is filled, as all
 *     that follows may return.
 *  6. The guest's SPEC_CTRL is read if it writes that without an exit, and only then the host's written, if it differs.
 *  7. What the guest trained of returns is undone (UNTRAIN_RET_VM, which may be an IBPB), under the host's SPEC_CTRL.
 *  8. No value of the guest's stays in a register; then comes the first return.
 */
#include "rust/sys/enter.h"

.section .noinstr.text, "ax"

/*
 * void lodge_svm_run(struct lodge_switch *sw, u64 vmcb_pa, u64 host_save_pa)
 *
 * Called with GIF clear. RAX, RSP, RIP and RFLAGS of the guest are in the VMCB, the other general registers in @sw.
 * The order of the mitigations matters, see the head of this file: no return or indirect branch may run between loading the guest's
 * SPEC_CTRL and VMRUN, nor between the exit and the end of RSB filling and untraining.
 */
SYM_FUNC_START(lodge_svm_run)
	ENTER_FUNCTION

	/* What is needed after the exit, in the reverse order of its use. */
	push	%rdx
	push	%rsi
	push	%rdi

	/* Nothing to do where the CPU has no SPEC_CTRL, or switches it itself. */
	ALTERNATIVE_2 "jmp .Lguest_spec_done", "", X86_FEATURE_MSR_SPEC_CTRL, \
		"jmp .Lguest_spec_done", X86_FEATURE_V_SPEC_CTRL
	LOAD_GUEST_SPEC_CTRL
.Lguest_spec_done:

	mov	(8)(%rsp), %rax			/* vmcb_pa */
.Lvmload_guest:
	vmload	%rax
.Lvmload_guest_done:

	LOAD_GUEST_REGISTERS

	/* Clears the CPU's buffers where they leak; changes ZF, which the VMCB holds for the guest. */
	ALTERNATIVE "", __CLEAR_CPU_BUFFERS, X86_FEATURE_CLEAR_CPU_BUF_VM

.Lvmrun:
	vmrun	%rax
.Lvmrun_done:
	pop	%rax				/* sw: RAX is the only free register */
	mov	%rdi, GPR(7)(%rax)
	STORE_GUEST_REGISTERS %rax
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
	LOAD_HOST_SPEC_CTRL
.Lhost_spec_done:

	UNTRAIN_RET_VM

	CLEAR_GUEST_REGISTERS
	xor	%ebx, %ebx

	LEAVE_FUNCTION

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
