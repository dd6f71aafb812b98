// SPDX-License-Identifier: GPL-2.0
/*
 * What the kernel offers only as inline functions or macros, with a scalar or opaque-pointer ABI for Rust.
 * The world switches are in svm.c and vmx.c, memory management in mm.c. Each function states its context.
 */
#include <linux/anon_inodes.h>
#include <linux/cpuhotplug.h>
#include <linux/entry-virt.h>
#include <linux/kvm_host.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/smp.h>
#include <linux/syscore_ops.h>
#include <linux/timekeeping.h>
#include <trace/events/ipi.h>
#include <asm/cpuid/api.h>
#include <asm/debugreg.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/mce.h>
#include <asm/msr.h>
#include <asm/virt.h>

#include "shim.h"

/* ---- Context: preemption, interrupts, CPUs ---- */

/* A macro where lockdep is built in. Sleeps; EINTR if the task is killed meanwhile. */
int lodge_mutex_lock_killable(struct mutex *m) { return mutex_lock_killable(m); }

void lodge_preempt_disable(void) { preempt_disable(); }
void lodge_preempt_enable(void) { preempt_enable(); }

/* Turns preemption and interrupts off, and tells this CPU's number. Task context. */
unsigned int lodge_irqs_off(void)
{
	preempt_disable();
	local_irq_disable();
	return smp_processor_id();
}

/* On again. */
void lodge_irqs_on(void)
{
	local_irq_enable();
	preempt_enable();
}

unsigned int lodge_cpu(void) { return raw_smp_processor_id(); }
unsigned int lodge_nr_cpus(void) { return nr_cpu_ids; }

/* What the boot CPU has. */
bool lodge_has_svm(void) { return boot_cpu_has(X86_FEATURE_SVM); }
bool lodge_has_vmx(void) { return boot_cpu_has(X86_FEATURE_VMX); }
bool lodge_has_xsave(void) { return boot_cpu_has(X86_FEATURE_XSAVE); }
bool lodge_lfence_serializing(void) { return cpu_feature_enabled(X86_FEATURE_LFENCE_RDTSC); }
bool lodge_null_seg_clears_base(void) { return !static_cpu_has_bug(X86_BUG_NULL_SEG); }
u32 lodge_cpu_capability(unsigned int word)
{
	return word < NCAPINTS ? boot_cpu_data.x86_capability[word] : 0;
}
bool lodge_has_pku(void) { return cpu_feature_enabled(X86_FEATURE_OSPKE); }
bool lodge_five_level(void) { return pgtable_l5_enabled(); }
u32 lodge_tsc_khz(void) { return tsc_khz; }
u64 lodge_rdtsc(void) { return rdtsc_ordered(); }

/* ---- Model-specific registers. Any context. ---- */

u64 lodge_rdmsr(u32 msr)
{
	u64 v;

	rdmsrq(msr, v);
	return v;
}

void lodge_wrmsr(u32 msr, u64 v) { wrmsrq(msr, v); }

int lodge_rdmsr_safe(u32 msr, u64 *v) { return rdmsrq_safe(msr, v); }

void lodge_cpuid(u32 leaf, u32 index, u32 *out)
{
	cpuid_count(leaf, index, &out[0], &out[1], &out[2], &out[3]);
}

/* The host's XCR0, or 0 without XSAVE. */
u64 lodge_host_xcr0(void)
{
	return boot_cpu_has(X86_FEATURE_OSXSAVE) ? xgetbv(XCR_XFEATURE_ENABLED_MASK) : 0;
}

u64 lodge_host_xss(void)
{
	return boot_cpu_has(X86_FEATURE_XSAVES) ? lodge_rdmsr(MSR_IA32_XSS) : 0;
}

/* The time-stamp counter, the time since boot at its raw rate, and the time of day, all at about the same moment. Any context. */
void lodge_now(u64 *now)
{
	unsigned long flags;

	local_irq_save(flags);
	now[0] = rdtsc_ordered();
	now[1] = ktime_get_raw_ns() + ktime_to_ns(ktime_mono_to_any(0, TK_OFFS_BOOT));
	now[2] = ktime_get_real_ns();
	local_irq_restore(flags);
}

/* ---- Virtualization on and off, per CPU (cpuhp, suspend, reboot) ---- */

static int virt_feature;
static struct lodge_cpu_ops virt_ops;
static DEFINE_PER_CPU(bool, virt_on);

static int virt_cpu_on(void)
{
	int r = x86_virt_get_ref(virt_feature);

	if (r)
		return r;
	r = virt_ops.online();
	if (r) {
		x86_virt_put_ref(virt_feature);
		return r;
	}
	__this_cpu_write(virt_on, true);
	return 0;
}

static void virt_cpu_off(void *unused)
{
	if (!__this_cpu_read(virt_on))
		return;
	virt_ops.offline();
	x86_virt_put_ref(virt_feature);
	__this_cpu_write(virt_on, false);
}

/* cpuhp callbacks run on the CPU concerned, in its hotplug thread, which is bound to it. */
static int virt_cpu_online(unsigned int cpu)
{
	int r;

	preempt_disable();
	r = virt_cpu_on();
	preempt_enable();
	return r;
}

static int virt_cpu_offline(unsigned int cpu)
{
	preempt_disable();
	virt_cpu_off(NULL);
	preempt_enable();
	return 0;
}

/* What suspends did to the time-stamp counter, which some machines reset: how often, and how much it fell back in all. */
static u64 tsc_at_suspend, tsc_resumes, tsc_lost;

/*
 * Any context. What a counter's offset is good for: this CPU, since this resume; never 0. What changed before the count of resumes did is seen
 * with it: tasks were frozen.
 */
u64 lodge_tsc_place(void) { return READ_ONCE(tsc_resumes) << 32 | (raw_smp_processor_id() + 1); }

/* The counters of all CPUs are one. Once they are not, they never are again. */
bool lodge_tsc_stable(void) { return !check_tsc_unstable(); }
u64 lodge_tsc_lost(void) { return READ_ONCE(tsc_lost); }

/* syscore: one CPU left, interrupts off. */
static int virt_suspend(void *unused)
{
	virt_cpu_off(NULL);
	tsc_at_suspend = rdtsc_ordered();
	return 0;
}

static void virt_resume(void *unused)
{
	u64 now = rdtsc_ordered();

	/* Where the CPUs' counters differ, they are not compared. */
	if (now < tsc_at_suspend && !check_tsc_unstable())
		WRITE_ONCE(tsc_lost, tsc_lost + (tsc_at_suspend - now));
	WRITE_ONCE(tsc_resumes, tsc_resumes + 1);
	if (virt_cpu_on())
		pr_err("kvm: virtualization could not be enabled again after suspend\n");
}

/* Virtualization blocks INIT, which firmware and the next kernel need. */
static void virt_shutdown(void *unused)
{
	virt_rebooting = true;
	on_each_cpu(virt_cpu_off, NULL, 1);
}

static const struct syscore_ops virt_syscore_ops = {
	.suspend = virt_suspend,
	.resume = virt_resume,
	.shutdown = virt_shutdown,
};
static struct syscore virt_syscore = { .ops = &virt_syscore_ops };

void lodge_virt_disable(void)
{
	unregister_syscore(&virt_syscore);
	cpuhp_remove_state(CPUHP_AP_KVM_ONLINE);
}

/* Task context, may sleep. 0, or the errno of the first CPU that refused (all others are off again). */
int lodge_virt_enable(bool intel, const struct lodge_cpu_ops *ops)
{
	int r;

	virt_feature = intel ? X86_FEATURE_VMX : X86_FEATURE_SVM;
	virt_ops = *ops;
	r = cpuhp_setup_state(CPUHP_AP_KVM_ONLINE, "kvm/cpu:online", virt_cpu_online, virt_cpu_offline);
	if (r)
		return r;
	register_syscore(&virt_syscore);
	/* If the machine was on its way down before, nobody would turn it off. */
	if (system_state == SYSTEM_HALT || system_state == SYSTEM_POWER_OFF || system_state == SYSTEM_RESTART) {
		lodge_virt_disable();
		return -EBUSY;
	}
	return 0;
}

bool lodge_virt_rebooting(void) { return virt_rebooting; }

/* ---- Scheduling: preempt notifier, kicks, work before guest entry ---- */

static void sched_in(struct preempt_notifier *pn, int cpu)
{
	struct lodge_sched *s = container_of(pn, struct lodge_sched, notifier);

	s->in(s->context);
}

static void sched_out(struct preempt_notifier *pn, struct task_struct *next)
{
	struct lodge_sched *s = container_of(pn, struct lodge_sched, notifier);

	s->out(s->context);
}

static struct preempt_ops sched_ops = { .sched_in = sched_in, .sched_out = sched_out };

/* Leaves preemption off. The notifier belongs to the current task until lodge_sched_end(). */
void lodge_sched_begin(struct lodge_sched *s, void *context, void (*in)(void *), void (*out)(void *))
{
	BUILD_BUG_ON(sizeof(*s) > LODGE_SCHED_SIZE);
	preempt_disable();
	preempt_notifier_init(&s->notifier, &sched_ops);
	s->context = context;
	s->in = in;
	s->out = out;
	preempt_notifier_register(&s->notifier);
}

/* Preemption is off, and on afterwards. */
void lodge_sched_end(struct lodge_sched *s)
{
	preempt_notifier_unregister(&s->notifier);
	preempt_enable();
}

void lodge_sched_module(bool load)
{
	if (load)
		preempt_notifier_inc();
	else
		preempt_notifier_dec();
}

static void kick_ack(void *unused) {}

/* Makes this CPU exit as soon as it is in guest mode. Interrupts off. */
void lodge_kick_self(void) { smp_send_reschedule(raw_smp_processor_id()); }

static DEFINE_PER_CPU(struct cpumask, kicked);

/*
 * Notes a CPU for lodge_kick_noted(). Preemption is off, and stays off until that; interrupts are on. May be called under a spinning
 * lock.
 */
void lodge_kick_note(unsigned int cpu) { __cpumask_set_cpu(cpu, this_cpu_ptr(&kicked)); }

/* Returns when all noted CPUs have left guest mode: one call for all of them. */
void lodge_kick_noted(void)
{
	smp_call_function_many(this_cpu_ptr(&kicked), kick_ack, NULL, true);
	cpumask_clear(this_cpu_ptr(&kicked));
}

/* Interrupts off: last look before guest mode. True: there is work. */
bool lodge_guest_prepare(void)
{
	xfer_to_guest_mode_prepare();
	return __xfer_to_guest_mode_work_pending();
}

/* Whether lodge_guest_work() has something to do. Task; the answer may be old. */
bool lodge_guest_work_pending(void) { return __xfer_to_guest_mode_work_pending(); }
/* Interrupts on, may sleep: reschedules, delivers task work. -EINTR when a signal is pending. */
int lodge_guest_work(void) { return xfer_to_guest_mode_handle_work(); }
void lodge_cond_resched(void) { cond_resched(); }

/* The thread's own mask waits in real_blocked, where signal delivery on the way out looks for it. */
void lodge_sigmask_enter(u64 mask)
{
	sigset_t set;

	static_assert(sizeof(set) == sizeof(mask));
	memcpy(&set, &mask, sizeof(set));
	/* sigprocmask() leaves it to its callers that these two are never blocked. */
	sigdelsetmask(&set, sigmask(SIGKILL) | sigmask(SIGSTOP));
	sigprocmask(SIG_SETMASK, &set, &current->real_blocked);
}

void lodge_sigmask_leave(void)
{
	sigprocmask(SIG_SETMASK, &current->real_blocked, NULL);
	sigemptyset(&current->real_blocked);
}


/* ---- The guest's FPU state ---- */

struct fpu_guest *lodge_fpu_new(void)
{
	struct fpu_guest *g = kzalloc(sizeof(*g), GFP_KERNEL_ACCOUNT);

	if (g && !fpu_alloc_guest_fpstate(g)) {
		kfree(g);
		g = NULL;
	}
	return g;
}

void lodge_fpu_free(struct fpu_guest *g)
{
	fpu_free_guest_fpstate(g);
	kfree(g);
}

/* Task context, interrupts on: exchanges the task's registers for the guest's, or back. */
void lodge_fpu_swap(struct fpu_guest *g, bool enter) { fpu_swap_kvm_fpstate(g, enter); }

/* The 512-byte FXSAVE image of the state (not loaded). */
void *lodge_fpu_fxsave(struct fpu_guest *g) { return &g->fpstate->regs.fxsave; }

/* What the header says of that image; nothing is written where there is none, without XSAVE. */
void lodge_fpu_header(struct fpu_guest *g, u64 *xstate_bv, bool *compacted)
{
	const struct xstate_header *header = &g->fpstate->regs.xsave.header;

	if (!boot_cpu_has(X86_FEATURE_XSAVE))
		return;
	*xstate_bv = header->xfeatures;
	*compacted = header->xcomp_bv >> 63;
}

/* Makes the next XRSTOR of the guest take x87 and SSE from the image instead of their initial state. */
void lodge_fpu_mark_legacy(struct fpu_guest *g)
{
	if (boot_cpu_has(X86_FEATURE_XSAVE))
		g->fpstate->regs.xsave.header.xfeatures |= XFEATURE_MASK_FPSSE;
}

/* Bytes of the image that user space sees: at least those of struct kvm_xsave. */
u32 lodge_fpu_image_size(struct fpu_guest *g) { return g->uabi_size; }

/* The state as a standard-format XSAVE image, of the components of @xcr0 and of x87 and SSE. Not loaded. */
void lodge_fpu_save(struct fpu_guest *g, void *image, u32 len, u64 xcr0, u32 pkru)
{
	fpu_copy_guest_fpstate_to_uabi(g, image, len, xcr0 | XFEATURE_MASK_FPSSE, pkru);
}

/* Takes an image of uabi_size bytes; -EINVAL for one that is not valid. Not loaded. */
int lodge_fpu_restore(struct fpu_guest *g, void *image, u64 xcr0, u32 *pkru)
{
	union fpregs_state *state = image;

	/* What XFD disables has to be in its initial state. */
	state->xsave.header.xfeatures &= ~g->fpstate->xfd;
	return fpu_copy_uabi_to_guest_fpstate(g, image, xcr0, pkru);
}

/*
 * The vector registers hold the guest's values while its fpstate is swapped in, unless the kernel used the FPU in
 * between; with preemption off and the registers restored they can be touched directly.
 */
static void guest_fpregs_get(void)
{
	fpregs_lock();
	fpregs_assert_state_consistent();
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		switch_fpu_return();
}

#define VECTOR_CASES(op)									\
	switch (n & 15) {									\
	op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7)						\
	op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)					\
	}

#define READ_YMM(i) case i: asm volatile("vmovdqu %%ymm" #i ", %0" : "=m"(*v)); break;
#define READ_XMM(i) case i: asm volatile("movdqu %%xmm" #i ", %0" : "=m"(*v)); break;
#define WRITE_YMM(i) case i: asm volatile("vmovdqu %0, %%ymm" #i : : "m"(*v)); break;
#define WRITE_XMM(i) case i: asm volatile("movdqu %0, %%xmm" #i : : "m"(*v)); break;

u32 lodge_fpu_x87_words(void)
{
	u16 control, status;

	guest_fpregs_get();
	asm volatile("fnstcw %0" : "=m" (control));
	asm volatile("fnstsw %0" : "=m" (status));
	fpregs_unlock();
	return control | (u32)status << 16;
}

void lodge_fpu_x87_init(void)
{
	guest_fpregs_get();
	asm volatile("fninit");
	fpregs_unlock();
}

struct vector { u64 q[4]; };

void lodge_fpu_read_vector(u8 n, u64 *value)
{
	struct vector *v = (struct vector *)value;

	guest_fpregs_get();
	if (boot_cpu_has(X86_FEATURE_AVX)) {
		VECTOR_CASES(READ_YMM)
	} else {
		VECTOR_CASES(READ_XMM)
	}
	fpregs_unlock();
}

void lodge_fpu_write_vector(u8 n, const u64 *value, bool zero_upper)
{
	const struct vector *v = (const struct vector *)value;

	guest_fpregs_get();
	if (boot_cpu_has(X86_FEATURE_AVX) && zero_upper) {
		VECTOR_CASES(WRITE_YMM)
	} else {
		VECTOR_CASES(WRITE_XMM)
	}
	fpregs_unlock();
}

/* ---- Around the world switch: what both vendors switch in software ---- */

/* Interrupts off, immediately before the world switch. */
void lodge_switch_in(struct lodge_switch *sw)
{
	fpregs_assert_state_consistent();
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		switch_fpu_return();
	if (sw->flags & SWITCH_XCR0)
		xsetbv(XCR_XFEATURE_ENABLED_MASK, sw->xcr0);
	if (sw->flags & SWITCH_XSS)
		wrmsrq(MSR_IA32_XSS, 0);
	if (sw->flags & SWITCH_DR) {
		set_debugreg(DR7_FIXED_1, 7);
		set_debugreg(sw->dr[0], 0);
		set_debugreg(sw->dr[1], 1);
		set_debugreg(sw->dr[2], 2);
		set_debugreg(sw->dr[3], 3);
	} else if (hw_breakpoint_active()) {
		set_debugreg(DR7_FIXED_1, 7);
	}
	sw->host_debugctl = get_debugctlmsr();
	guest_timing_enter_irqoff();
	if (sw->flags & SWITCH_PKRU) {
		sw->host_pkru = rdpkru();
		if (sw->pkru != sw->host_pkru)
			wrpkru(sw->pkru);
	}
}

/* Interrupts off, immediately after the world switch. */
void lodge_switch_out(struct lodge_switch *sw)
{
	if (sw->flags & SWITCH_PKRU) {
		sw->pkru = rdpkru();
		if (sw->pkru != sw->host_pkru)
			wrpkru(sw->host_pkru);
	}
	if (hw_breakpoint_active())
		hw_breakpoint_restore();
	if (sw->flags & SWITCH_XCR0)
		xsetbv(XCR_XFEATURE_ENABLED_MASK, sw->host_xcr0);
	if (sw->flags & SWITCH_XSS)
		wrmsrq(MSR_IA32_XSS, sw->host_xss);
	/* User space of this CPU must not run on branch predictions that the guest trained. */
	if (cpu_feature_enabled(X86_FEATURE_IBPB_EXIT_TO_USER))
		this_cpu_write(x86_ibpb_exit_to_user, true);
}

/* After lodge_irqs_off(), whose end it is too: takes what is pending, then stops the guest's clock. */
void lodge_switch_done(void)
{
	local_irq_enable();
	/* One instruction for the interrupt shadow of STI. */
	barrier();
	asm volatile("nop");
	local_irq_disable();
	guest_timing_exit_irqoff();
	local_irq_enable();
	preempt_enable();
}

static DEFINE_PER_CPU(u64, last_vcpu);

/* IBPB when another vCPU was the last to run on this CPU and the mitigation is on. No two vCPUs ever have the same number. Preemption off. */
void lodge_vcpu_barrier(u64 number)
{
	if (__this_cpu_read(last_vcpu) == number)
		return;
	__this_cpu_write(last_vcpu, number);
	if (static_branch_likely(&switch_vcpu_ibpb))
		indirect_branch_prediction_barrier();
}

/*
 * A machine check that ended a guest's run is not delivered to the host: its handler is called here, as if from user space, whatever
 * the guest did: it is not the kernel's state that is lost. Interrupts off.
 */
void lodge_machine_check(void)
{
	struct pt_regs regs = { .cs = 3, .flags = X86_EFLAGS_IF };

	do_machine_check(&regs);
}

/* ---- Pages ---- */

void lodge_get_page(struct page *page) { get_page(page); }
struct page *lodge_virt_to_page(const void *address) { return virt_to_page(address); }
u64 lodge_virt_to_phys(const void *address) { return __pa(address); }

/* ---- /dev/kvm ---- */

static struct miscdevice kvm_misc = { .minor = KVM_MINOR, .name = "kvm" };

int lodge_misc_register(const struct file_operations *fops)
{
	kvm_misc.fops = fops;
	return misc_register(&kvm_misc);
}

void lodge_misc_deregister(void) { misc_deregister(&kvm_misc); }

/* As the node asks to be loaded: by name and by number. */
MODULE_ALIAS_MISCDEV(KVM_MINOR);
MODULE_ALIAS("devname:kvm");
