// SPDX-License-Identifier: GPL-2.0
/* AMD: the window between guest_state_enter_irqoff() and guest_state_exit_irqoff(). */
#include <linux/kvm_host.h>
#include <asm/debugreg.h>
#include <asm/nospec-branch.h>
#include <asm/processor.h>

#include "shim.h"

/* svm/enter.S */
void lodge_svm_run(struct lodge_switch *sw, u64 vmcb_pa, u64 host_save_pa);

/*
 * RCU is not watching here, and nothing that can be traced or probed may run. GIF is clear all the way, so setting
 * RFLAGS.IF (which decides whether an interrupt ends the guest's run) lets nothing in before VMRUN.
 */
static noinstr void svm_window(struct lodge_switch *sw, u64 vmcb_pa, u64 host_save_pa)
{
	guest_state_enter_irqoff();
	raw_local_irq_enable();
	amd_clear_divider();
	lodge_svm_run(sw, vmcb_pa, host_save_pa);
	raw_local_irq_disable();
	guest_state_exit_irqoff();
}

/*
 * Runs the guest until its next exit. Interrupts off, the guest's software-switched state loaded.
 * An NMI that ended the run is taken at STGI, an interrupt when the caller enables interrupts.
 */
void lodge_svm_enter(struct lodge_switch *sw, u64 vmcb_pa, u64 host_save_pa)
{
	asm volatile("clgi" : : : "memory");
	svm_window(sw, vmcb_pa, host_save_pa);
	if (get_debugctlmsr() != sw->host_debugctl)
		update_debugctlmsr(sw->host_debugctl);
	asm volatile("stgi" : : : "memory");
}

/* Saves this CPU's FS, GS, TR, LDTR and system-call state, which VMLOAD restores after an exit. Preemption off. */
void lodge_svm_vmsave(u64 pa)
{
	asm volatile("vmsave %%rax" : : "a"(pa) : "memory");
}
