// SPDX-License-Identifier: GPL-2.0
/*
 * Intel: the window between guest_state_enter_irqoff() and guest_state_exit_irqoff(), and what of VMX needs C: the lists
 * of active VMCSs, which an NMI may walk, and the host state that a VM exit does not bring back by itself.
 */
#include <linux/kvm_host.h>
#include <linux/kvm_para.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/ptrace.h>
#include <asm/cpu.h>
#include <asm/cpu_entry_area.h>
#include <asm/desc.h>
#include <asm/fred.h>
#include <asm/hardirq.h>
#include <asm/mmu_context.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/perf_event.h>
#include <asm/processor.h>
#include <asm/traps.h>
#include <asm/virt.h>
#include <asm/vmx.h>

#include "shim.h"
#include "vmx/enter.h"

/* vmx/enter.S */
u32 lodge_vmx_run(struct lodge_switch *sw, struct lodge_vmx *vmx);
void lodge_vmx_exit(void);

void lodge_vmx_enter(struct lodge_switch *sw, struct lodge_vmx *vmx);
void lodge_vmx_interrupt(const struct lodge_vmx *vmx);
void lodge_vmx_wait_for_page(u32 token);
void lodge_vmx_cpu_state(struct lodge_vmx_cpu *s);
void lodge_vmx_thread_save(struct lodge_vmx_thread *t);
void lodge_vmx_thread_restore(const struct lodge_vmx_thread *t);
bool lodge_split_locks_trap(void);
bool lodge_guest_split_lock(u64 rip);
void lodge_vmcs_list(struct lodge_vmcs *v);
void lodge_vmcs_unlist(struct lodge_vmcs *v);
void lodge_vmcs_clear_all(void (*clear)(struct lodge_vmcs *v));
u64 lodge_vmcs_current(void);
void lodge_vmcs_set_current(u64 phys);
int lodge_vmcs_call(unsigned int cpu, void (*f)(void *), void *arg);
int lodge_vmx_setup(void);
void lodge_vmx_teardown(void);

/* A fault leaves the result as it was: that happens in a reboot only, when nobody will use it. */
static __always_inline u64 vmread(unsigned long field)
{
	u64 value = 0;

	asm volatile("1: vmread %1, %0\n2:\n" _ASM_EXTABLE(1b, 2b) : "+r"(value) : "r"(field) : "cc");
	return value;
}

static __always_inline void vmwrite(unsigned long field, u64 value)
{
	asm volatile("1: vmwrite %1, %0\n2:\n" _ASM_EXTABLE(1b, 2b) : : "r"(field), "r"(value) : "cc");
}

/* ---- L1 terminal fault: the L1 data cache may hold host secrets that a guest could read ---- */

#define L1D_ORDER 4
#define L1D_BYTES (PAGE_SIZE << L1D_ORDER)

enum l1d_flush { L1D_FLUSH_NEVER, L1D_FLUSH_IF_DIRTY, L1D_FLUSH_EACH_TIME };

static enum l1d_flush l1d_flush;
/* For CPUs without the flush command: reading all of it displaces what is in the cache. */
static char *l1d_pages;

static noinstr void flush_l1d(void)
{
	volatile char *p = l1d_pages;
	unsigned int i;

	if (l1d_flush == L1D_FLUSH_IF_DIRTY) {
		if (!kvm_get_cpu_l1tf_flush_l1d())
			return;
		kvm_clear_cpu_l1tf_flush_l1d();
	}
	if (cpu_feature_enabled(X86_FEATURE_FLUSH_L1D)) {
		native_wrmsrq(MSR_IA32_FLUSH_CMD, L1D_FLUSH);
		return;
	}
	/* The translations first, so that page walks do not disturb the second pass. */
	for (i = 0; i < L1D_BYTES; i += PAGE_SIZE)
		(void)p[i];
	for (i = 0; i < L1D_BYTES; i += 64)
		(void)p[i];
	asm volatile("lfence" : : : "memory");
}

static int l1d_setup(void)
{
	u64 caps = 0;

	l1d_flush = L1D_FLUSH_NEVER;
	if (!boot_cpu_has_bug(X86_BUG_L1TF)) {
		l1tf_vmx_mitigation = VMENTER_L1D_FLUSH_NOT_REQUIRED;
		return 0;
	}
	if (boot_cpu_has(X86_FEATURE_ARCH_CAPABILITIES))
		rdmsrq(MSR_IA32_ARCH_CAPABILITIES, caps);
	if (caps & ARCH_CAP_SKIP_VMENTRY_L1DFLUSH) {
		l1tf_vmx_mitigation = VMENTER_L1D_FLUSH_NOT_REQUIRED;
		return 0;
	}
	switch (l1tf_mitigation) {
	case L1TF_MITIGATION_OFF:
		l1tf_vmx_mitigation = VMENTER_L1D_FLUSH_NEVER;
		return 0;
	case L1TF_MITIGATION_FULL:
	case L1TF_MITIGATION_FULL_FORCE:
		l1d_flush = L1D_FLUSH_EACH_TIME;
		l1tf_vmx_mitigation = VMENTER_L1D_FLUSH_ALWAYS;
		break;
	default:
		l1d_flush = L1D_FLUSH_IF_DIRTY;
		l1tf_vmx_mitigation = VMENTER_L1D_FLUSH_COND;
		break;
	}
	if (!boot_cpu_has(X86_FEATURE_FLUSH_L1D)) {
		l1d_pages = (char *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, L1D_ORDER);
		if (!l1d_pages) {
			l1d_flush = L1D_FLUSH_NEVER;
			l1tf_vmx_mitigation = VMENTER_L1D_FLUSH_AUTO;
			return -ENOMEM;
		}
	}
	return 0;
}

static void l1d_teardown(void)
{
	l1tf_vmx_mitigation = VMENTER_L1D_FLUSH_AUTO;
	l1d_flush = L1D_FLUSH_NEVER;
	free_pages((unsigned long)l1d_pages, L1D_ORDER);
	l1d_pages = NULL;
}

/* ---- The world switch ---- */

/* Does an exit for this reason come with an event in the interruption information? In all others it is not valid. */
static __always_inline bool tells_of_event(u16 reason)
{
	return reason == EXIT_REASON_EXCEPTION_NMI || reason == EXIT_REASON_EXTERNAL_INTERRUPT;
}

/* RCU is not watching here, and nothing that can be traced or probed may run. */
static noinstr void vmx_window(struct lodge_switch *sw, struct lodge_vmx *vmx)
{
	guest_state_enter_irqoff();
	if (unlikely(l1d_flush != L1D_FLUSH_NEVER))
		flush_l1d();
	if (sw->cr2 != native_read_cr2())
		native_write_cr2(sw->cr2);

	vmx->failed = lodge_vmx_run(sw, vmx);

	sw->cr2 = native_read_cr2();
	if (likely(!vmx->failed)) {
		vmx->reason = vmread(VM_EXIT_REASON);
		if (tells_of_event(vmx->reason))
			vmx->intr_info = vmread(VM_EXIT_INTR_INFO);
		/* The exit took the NMI; the kernel must see it before another can come. */
		if ((u16)vmx->reason == EXIT_REASON_EXCEPTION_NMI &&
		    (vmx->intr_info & (INTR_INFO_VALID_MASK | INTR_INFO_INTR_TYPE_MASK)) ==
		    (INTR_INFO_VALID_MASK | INTR_TYPE_NMI_INTR))
			x86_entry_from_kvm(EVENT_TYPE_NMI, NMI_VECTOR);
	}
	guest_state_exit_irqoff();
}

static bool is_exception(const struct lodge_vmx *vmx, u8 vector)
{
	const u32 mask = INTR_INFO_VALID_MASK | INTR_INFO_INTR_TYPE_MASK | INTR_INFO_VECTOR_MASK;

	return (u16)vmx->reason == EXIT_REASON_EXCEPTION_NMI &&
	       (vmx->intr_info & mask) == (INTR_INFO_VALID_MASK | INTR_TYPE_HARD_EXCEPTION | vector);
}

/*
 * The host's performance counters that must not count the guest, among them all that write records to the host's
 * memory by linear address (PEBS). Entries and exits switch them, so that no NMI comes in between.
 */
static void switch_counters(struct lodge_vmx *vmx)
{
	/* A guest's own counters: there are none. */
	static struct kvm_pmu none;
	struct perf_guest_switch_msr *m;
	u32 n = 0;
	int i, nr = 0;

	m = perf_guest_get_msrs(&nr, &none);
	for (i = 0; m && i < nr && n < LODGE_VMX_MSRS; i++) {
		if (m[i].host == m[i].guest)
			continue;
		vmx->msrs[n] = (struct vmx_msr_entry){ .index = m[i].msr, .value = m[i].guest };
		vmx->msrs[LODGE_VMX_MSRS + n] = (struct vmx_msr_entry){ .index = m[i].msr, .value = m[i].host };
		n++;
		/*
		 * A record in flight at the entry would be written to that address in the guest's memory. It has the time until
		 * then, which the entry's own switch would not give it.
		 */
		if (m[i].msr == MSR_IA32_PEBS_ENABLE)
			wrmsrq(MSR_IA32_PEBS_ENABLE, 0);
	}
	if (n != vmx->msr_count) {
		vmwrite(VM_ENTRY_MSR_LOAD_COUNT, n);
		vmwrite(VM_EXIT_MSR_LOAD_COUNT, n);
		vmx->msr_count = n;
	}
}

/* There was no exit, which would have brought back what switch_counters() changed. */
static void counters_back(const struct lodge_vmx *vmx)
{
	const struct vmx_msr_entry *host = vmx->msrs + LODGE_VMX_MSRS;
	u32 i;

	for (i = 0; i < vmx->msr_count; i++)
		if (host[i].index == MSR_IA32_PEBS_ENABLE)
			wrmsrq(MSR_IA32_PEBS_ENABLE, host[i].value);
}

/*
 * Whether dealing with an exit leaves nothing in the L1 data cache that the guest should not see. An interrupt's handler
 * says so by itself, and coming back from user space or another CPU does; what remains is next to nothing but the guest's registers.
 */
static bool leaves_l1d_clean(u16 reason)
{
	switch (reason) {
	case EXIT_REASON_EXTERNAL_INTERRUPT:
	case EXIT_REASON_INTERRUPT_WINDOW:
	case EXIT_REASON_NMI_WINDOW:
	case EXIT_REASON_CPUID:
	case EXIT_REASON_MSR_READ:
	case EXIT_REASON_MSR_WRITE:
		return true;
	}
	return false;
}

/*
 * Runs the guest until its next exit. Interrupts off, the VMCS current, the guest's software-switched state loaded.
 * At return an NMI or machine check that ended the run was handled; an interrupt was not, see lodge_vmx_interrupt().
 */
void lodge_vmx_enter(struct lodge_switch *sw, struct lodge_vmx *vmx)
{
	u64 cr3 = __get_current_cr3_fast(), cr4 = cr4_read_shadow();

	/* Both may change whenever the thread was away, or patched code. */
	if (unlikely(cr3 != vmx->host_cr3)) {
		vmwrite(HOST_CR3, cr3);
		vmx->host_cr3 = cr3;
	}
	if (unlikely(cr4 != vmx->host_cr4)) {
		vmwrite(HOST_CR4, cr4);
		vmx->host_cr4 = cr4;
	}
	switch_counters(vmx);

	vmx->reason = 0;
	vmx->intr_info = 0;
	vmx->idt_vectoring = 0;
	vmx->error = 0;
	vmx->page_not_present = 0;
	vmx_window(sw, vmx);

	/* An exit zeroes DEBUGCTL. */
	if (sw->host_debugctl)
		update_debugctlmsr(sw->host_debugctl);

	if (unlikely(vmx->failed)) {
		counters_back(vmx);
		vmx->error = vmread(VM_INSTRUCTION_ERROR);
		return;
	}
	if (!leaves_l1d_clean(vmx->reason))
		kvm_set_cpu_l1tf_flush_l1d();
	if (!(vmx->reason & BIT(31)))
		vmx->idt_vectoring = vmread(IDT_VECTORING_INFO_FIELD);
	if ((u16)vmx->reason == EXIT_REASON_MCE_DURING_VMENTRY || is_exception(vmx, X86_TRAP_MC))
		lodge_machine_check();
	/* No guest's page fault exits. Its flags must be read before the next can come. */
	if (is_exception(vmx, X86_TRAP_PF))
		vmx->page_not_present = kvm_read_and_reset_apf_flags() & KVM_PV_REASON_PAGE_NOT_PRESENT;
}

/*
 * Takes the interrupt that ended the run, which the exit acknowledged. Interrupts off, and the host's software-switched
 * state back: the handler may use the FPU.
 */
void lodge_vmx_interrupt(const struct lodge_vmx *vmx)
{
	if (!vmx->failed && (u16)vmx->reason == EXIT_REASON_EXTERNAL_INTERRUPT &&
	    (vmx->intr_info & INTR_INFO_VALID_MASK))
		x86_entry_from_kvm(EVENT_TYPE_EXTINT, vmx->intr_info & INTR_INFO_VECTOR_MASK);
}

/* Sleeps until the hypervisor below has the page. @token is the address of the #PF. Task context, interrupts on. */
void lodge_vmx_wait_for_page(u32 token)
{
	local_irq_disable();
	kvm_async_pf_task_wait_schedule(token);
	local_irq_enable();
}

/* ---- Host state. Preemption off. ---- */

/* The host state of this CPU that stays the same as long as the CPU does. */
void lodge_vmx_cpu_state(struct lodge_vmx_cpu *s)
{
	unsigned int cpu = raw_smp_processor_id();
	struct desc_ptr idt;
	u64 cs;

	store_idt(&idt);
	rdmsrq(MSR_IA32_SYSENTER_CS, cs);
	rdmsrq(MSR_IA32_SYSENTER_EIP, s->sysenter_eip);
	rdmsrq(MSR_IA32_CR_PAT, s->pat);
	rdmsrq(MSR_EFER, s->efer);
	s->cr0 = read_cr0();
	s->gdt = (unsigned long)get_current_gdt_ro();
	s->idt = idt.address;
	s->tr = (unsigned long)&get_cpu_entry_area(cpu)->tss.x86_tss;
	s->sysenter_esp = (unsigned long)(cpu_entry_stack(cpu) + 1);
	s->sysenter_cs = cs;
	s->rip = (unsigned long)lodge_vmx_exit;
	s->cs = __KERNEL_CS;
	s->ss = __KERNEL_DS;
	s->tr_selector = GDT_ENTRY_TSS * 8;
	/* What is in the L1 data cache now may be another guest's or the host's. */
	kvm_set_cpu_l1tf_flush_l1d();
}

/*
 * The thread's own segment state. Exits load null selectors, and the two bases from the VMCS: @fs_base is the thread's,
 * @gs_base the kernel's for this CPU.
 */
void lodge_vmx_thread_save(struct lodge_vmx_thread *t)
{
	asm volatile("sldt %0" : "=rm"(t->ldt));
	savesegment(ds, t->ds);
	savesegment(es, t->es);
	/* Without FSGSBASE the record has no base beside a selector. */
	if (likely(boot_cpu_has(X86_FEATURE_FSGSBASE) && is_64bit_mm(current->mm))) {
		/* Brings the thread's record up to date, which is quicker than reading MSRs. */
		current_save_fsgs();
		t->fs = current->thread.fsindex;
		t->gs = current->thread.gsindex;
		t->fs_base = current->thread.fsbase;
		t->kernel_gs_base = current->thread.gsbase;
	} else {
		savesegment(fs, t->fs);
		savesegment(gs, t->gs);
		rdmsrq(MSR_FS_BASE, t->fs_base);
		rdmsrq(MSR_KERNEL_GS_BASE, t->kernel_gs_base);
	}
	t->gs_base = cpu_kernelmode_gs_base(raw_smp_processor_id());
	kvm_set_cpu_l1tf_flush_l1d();
}

/*
 * Whether the process has an LDT, and this CPU knows of it. Its first one can come at any time, by another thread's
 * interrupt, and the next exit takes it out of LDTR. An interrupt that is still to come will load LDTR by itself.
 */
static bool ldt_came(void)
{
#ifdef CONFIG_MODIFY_LDT_SYSCALL
	return READ_ONCE(current->mm->context.ldt) && get_current_gdt_ro()[GDT_ENTRY_LDT].p;
#else
	return false;
#endif
}

/* Undoes what exits did to the thread's and the CPU's segment state, but for MSR_KERNEL_GS_BASE. */
void lodge_vmx_thread_restore(const struct lodge_vmx_thread *t)
{
	if (t->ldt || ldt_came())
		asm volatile("lldt %0" : : "r"((u16)(GDT_ENTRY_LDT * 8)));
	if (t->gs)
		load_gs_index(t->gs);
	if (t->fs) {
		loadsegment(fs, t->fs);
		wrmsrq(MSR_FS_BASE, t->fs_base);
	}
	if (t->ds | t->es) {
		loadsegment(ds, t->ds);
		loadsegment(es, t->es);
	}
	/* Exits leave limits that are too small (TSS) and too large (GDT). */
	invalidate_tss_limit();
	load_fixmap_gdt(raw_smp_processor_id());
}

/* ---- Split locks ---- */

/* The host has accesses with LOCK across cache lines raise #AC, in guests too. */
bool lodge_split_locks_trap(void) { return boot_cpu_has(X86_FEATURE_SPLIT_LOCK_DETECT); }

/* The guest has made one. True: it may do it again, more slowly or untrapped. False: the thread has been sent SIGBUS. May sleep. */
bool lodge_guest_split_lock(u64 rip) { return handle_guest_split_lock(rip); }

/* ---- Which VMCSs are active on which CPU ---- */

static DEFINE_PER_CPU(struct list_head, active_vmcss);
static DEFINE_PER_CPU(u64, current_vmcs);

/* Interrupts off, for this CPU. An NMI may read the list at any time, so the order of stores matters: list_add's is good. */
void lodge_vmcs_list(struct lodge_vmcs *v) { list_add(&v->link, this_cpu_ptr(&active_vmcss)); }
void lodge_vmcs_unlist(struct lodge_vmcs *v) { list_del(&v->link); }

/* Calls @clear, which unlists, for each on this CPU, with interrupts off. Preemption off, interrupts on or off. */
void lodge_vmcs_clear_all(void (*clear)(struct lodge_vmcs *v))
{
	struct lodge_vmcs *v, *next;
	unsigned long flags;

	local_irq_save(flags);
	list_for_each_entry_safe(v, next, this_cpu_ptr(&active_vmcss), link)
		clear(v);
	local_irq_restore(flags);
}

/* The physical address of what VMPTRLD loaded last on this CPU. Preemption off. */
u64 lodge_vmcs_current(void) { return __this_cpu_read(current_vmcs); }
void lodge_vmcs_set_current(u64 phys) { __this_cpu_write(current_vmcs, phys); }

/* Runs @f on @cpu with interrupts off and waits. -ENXIO when it is offline. */
int lodge_vmcs_call(unsigned int cpu, void (*f)(void *), void *arg)
{
	return smp_call_function_single(cpu, f, arg, 1);
}

/* NMI context, the machine is going down: writes back what the memory image of a crash should hold. */
static void emergency(void)
{
	struct lodge_vmcs *v;

	list_for_each_entry(v, this_cpu_ptr(&active_vmcss), link)
		asm volatile("1: vmclear %0\n2:\n" _ASM_EXTABLE(1b, 2b) : : "m"(v->phys) : "cc", "memory");
}

/* Task context, before any CPU is used. */
int lodge_vmx_setup(void)
{
	int cpu, r;

	for_each_possible_cpu(cpu) {
		INIT_LIST_HEAD(per_cpu_ptr(&active_vmcss, cpu));
		per_cpu(current_vmcs, cpu) = 0;
	}
	r = l1d_setup();
	if (r)
		return r;
	x86_virt_register_emergency_callback(emergency);
	return 0;
}

void lodge_vmx_teardown(void)
{
	x86_virt_unregister_emergency_callback(emergency);
	l1d_teardown();
}
