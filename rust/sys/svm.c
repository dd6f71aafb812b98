// SPDX-License-Identifier: GPL-2.0
/* AMD: the window between guest_state_enter_irqoff() and guest_state_exit_irqoff(). */
#include <linux/kvm_host.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <asm/debugreg.h>
#include <asm/mce.h>
#include <asm/mmu.h>
#include <asm/msr.h>
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
 * On some CPUs the host is safe from predictions that a guest has trained only while a bit of BP_CFG is set, which costs the host, too:
 * it is set on a CPU when the first guest comes there, and cleared when there are no vCPUs any more. The kernel leaves that to KVM.
 */
static DEFINE_MUTEX(vcpus_lock);
static unsigned long vcpus;
static DEFINE_PER_CPU(bool, speculation_reduced);

static void reduce_speculation(void)
{
	if (!cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE) || __this_cpu_read(speculation_reduced))
		return;
	msr_set_bit(MSR_ZEN4_BP_CFG, MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
	__this_cpu_write(speculation_reduced, true);
}

/* Preemption off. */
static void restore_speculation(void *unused)
{
	if (!__this_cpu_read(speculation_reduced))
		return;
	msr_clear_bit(MSR_ZEN4_BP_CFG, MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
	__this_cpu_write(speculation_reduced, false);
}

/* A vCPU comes into being, which has not run yet, or is gone for good. May sleep. */
void lodge_svm_vcpu(bool comes)
{
	/* A vCPU that comes waits until the last one's end is over on all CPUs. */
	mutex_lock(&vcpus_lock);
	if (comes)
		vcpus++;
	else if (--vcpus == 0 && cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE))
		on_each_cpu(restore_speculation, NULL, 1);
	mutex_unlock(&vcpus_lock);
}

/*
 * This CPU runs guests from now on, or no longer. Performance counters have a bit to leave guests out, which the kernel
 * may set only while SVM is on. Preemption off.
 */
void lodge_svm_online(bool on)
{
	u64 config;

	if (!on) {
		amd_pmu_disable_virt();
		/* A CPU that comes back may come back without it. */
		restore_speculation(NULL);
		return;
	}
	/* Guests run at the host's rate, and not at what another kernel left. */
	if (boot_cpu_has(X86_FEATURE_TSCRATEMSR))
		wrmsrq(MSR_AMD64_TSC_RATIO, BIT_ULL(32));
	amd_pmu_enable_virt();
	/* Has erratum 383 show in a way that can be told from others. */
	if (boot_cpu_has_bug(X86_BUG_AMD_TLB_MMATCH) && !rdmsrq_safe(MSR_AMD64_DC_CFG, &config))
		wrmsrq_safe(MSR_AMD64_DC_CFG, config | BIT_ULL(47));
}

/*
 * Saves this CPU's FS, GS, TR, LDTR and system-call state, which VMLOAD restores after an exit. Preemption off.
 * Where SVM is off, the entry that follows finds out.
 */
static void vmsave(u64 pa)
{
	asm volatile("1: vmsave %%rax\n2:\n" _ASM_EXTABLE(1b, 2b) : : "a"(pa) : "memory");
}

/* Before this thread's first entry on this CPU. Preemption off. */
void lodge_svm_arrive(u64 host_save_pa)
{
	reduce_speculation();
	vmsave(host_save_pa);
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
		vmsave(host_save_pa);
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

/*
 * Family 10h, erratum 383 (revision guide: "CPU Core May Generate Machine Check When Simultaneously Accessing Overlapping Translations"):
 * a guest's own page tables can raise a machine check of this status, which would be the host's end. True: it was that, and it is over; the
 * guest's state is lost. Interrupts off, at the exit.
 */
static bool overlapping_translations(void)
{
	const u64 overflow = BIT_ULL(62), status_383 = 0xb600000000010015;
	u64 status, global;
	int bank;

	if (!boot_cpu_has_bug(X86_BUG_AMD_TLB_MMATCH) || rdmsrq_safe(MSR_IA32_MCx_STATUS(0), &status) ||
	    (status & ~overflow) != status_383)
		return false;
	for (bank = 0; bank < 6; bank++)
		wrmsrq_safe(MSR_IA32_MCx_STATUS(bank), 0);
	if (!rdmsrq_safe(MSR_IA32_MCG_STATUS, &global))
		wrmsrq_safe(MSR_IA32_MCG_STATUS, global & ~MCG_STATUS_MCIP);
	__flush_tlb_all();
	return true;
}

/* A machine check ended a guest's run. True: the host is well, and the guest cannot go on. Interrupts off. */
bool lodge_svm_machine_check(void)
{
	if (overlapping_translations()) {
		pr_err_ratelimited("a guest's page tables caused a machine check (erratum 383)\n");
		return true;
	}
	lodge_machine_check();
	return false;
}

/* CR4.MCE as the host has it: a machine check in a guest without it shuts the guest, and its report, down. */
u64 lodge_svm_host_mce(void)
{
	return cr4_read_shadow() & X86_CR4_MCE;
}
