// SPDX-License-Identifier: GPL-2.0
/* AMD: the window between guest_state_enter_irqoff() and guest_state_exit_irqoff(). */
#include <linux/kvm_host.h>
#include <linux/sched.h>
#include <asm/debugreg.h>
#include <asm/mmu.h>
#include <asm/nospec-branch.h>
#include <asm/processor.h>
#include <asm/tlbflush.h>
#include <asm/traps.h>
#include <asm/virt.h>

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
 * This CPU runs guests from now on, or no longer. Performance counters have a bit to leave guests out, which the kernel
 * may set only while SVM is on. Preemption off.
 */
void lodge_svm_online(bool on)
{
	if (!on) {
		amd_pmu_disable_virt();
		return;
	}
	/* Guests run at the host's rate, and not at what another kernel left. */
	if (boot_cpu_has(X86_FEATURE_TSCRATEMSR))
		wrmsrq(MSR_AMD64_TSC_RATIO, BIT_ULL(32));
	amd_pmu_enable_virt();
}

/*
 * Saves this CPU's FS, GS, TR, LDTR and system-call state, which VMLOAD restores after an exit. Preemption off.
 * Where SVM is off, the entry that follows finds out.
 */
void lodge_svm_vmsave(u64 pa)
{
	asm volatile("1: vmsave %%rax\n2:\n" _ASM_EXTABLE(1b, 2b) : : "a"(pa) : "memory");
}

/*
 * Whether another thread can replace the LDT of the current one at any time: its interrupt reloads LDTR, so a saved LDTR is good for
 * one entry only. Interrupts off, in a task with user memory.
 */
static bool ldt_in_use(void)
{
#ifdef CONFIG_MODIFY_LDT_SYSCALL
	return READ_ONCE(current->mm->context.ldt) != NULL;
#else
	return false;
#endif
}

/*
 * Runs the guest until its next exit. Interrupts off, the guest's software-switched state loaded.
 * An NMI that ended the run is taken at STGI, an interrupt when the caller enables interrupts.
 * False: the guest did not run, since a reboot has turned SVM off on this CPU.
 */
bool lodge_svm_enter(struct lodge_switch *sw, u64 vmcb_pa, u64 host_save_pa)
{
	asm goto("1: clgi\n" _ASM_EXTABLE(1b, %l[off]) : : : "memory" : off);
	/* Without LBR virtualization the guest runs with the host's DEBUGCTL: no branch steps, no branch records of the guest. */
	if (sw->host_debugctl)
		update_debugctlmsr(0);
	if (ldt_in_use())
		lodge_svm_vmsave(host_save_pa);
	svm_window(sw, vmcb_pa, host_save_pa);
	/* The guest cannot write it: it is zero still. */
	if (sw->host_debugctl)
		update_debugctlmsr(sw->host_debugctl);
	/* An NMI of the reboot may have turned SVM off meanwhile; it sets GIF first. */
	asm volatile("1: stgi\n2:\n" _ASM_EXTABLE(1b, 2b) : : : "memory");
	return true;
off:
	WARN_ON_ONCE(!virt_rebooting);
	return false;
}

/* CR4.MCE as the host has it: a machine check in a guest without it shuts the guest, and its report, down. */
u64 lodge_svm_host_mce(void)
{
	return cr4_read_shadow() & X86_CR4_MCE;
}
