/* SPDX-License-Identifier: GPL-2.0 */
/* What the C files of the module share with each other and with rust/sys/ffi.rs. */
#ifndef LODGE_SHIM_H
#define LODGE_SHIM_H

#include <linux/fs.h>
#include <linux/preempt.h>
#include <linux/types.h>
#include <asm/fpu/types.h>

#include "switch.h"

/* Turns the vendor's part on or off on this CPU. Preemption off. */
struct lodge_cpu_ops {
	int (*online)(void);
	void (*offline)(void);
};

#define LODGE_SCHED_SIZE 64

struct lodge_sched {
	struct preempt_notifier notifier;
	void *context;
	void (*in)(void *context);
	void (*out)(void *context);
};

struct mutex;

void lodge_preempt_disable(void);
void lodge_preempt_enable(void);
int lodge_mutex_lock_killable(struct mutex *m);
unsigned int lodge_irqs_off(void);
void lodge_irqs_on(void);
unsigned int lodge_cpu(void);
unsigned int lodge_nr_cpus(void);
bool lodge_has_svm(void);
bool lodge_has_vmx(void);
bool lodge_has_xsave(void);
bool lodge_lfence_serializing(void);
bool lodge_null_seg_clears_base(void);
u32 lodge_cpu_weak(void);
u32 lodge_cpu_controls(void);
u64 lodge_arch_capabilities(void);
bool lodge_virtual_spec_ctrl(void);
bool lodge_spec_ctrl_takes(u64 value);
bool lodge_pred_cmd(u64 value);
bool lodge_flush_l1d(void);
u32 lodge_fpu_x87_words(void);
void lodge_fpu_x87_init(void);
void lodge_fpu_read_vector(u8 n, u64 *value);
void lodge_fpu_write_vector(u8 n, const u64 *value, bool zero_upper);
u32 lodge_cpu_capability(unsigned int word);
u64 lodge_host_xss(void);
bool lodge_has_pku(void);
bool lodge_five_level(void);
void lodge_kick_self(void);
u32 lodge_tsc_khz(void);
u64 lodge_rdtsc(void);
u64 lodge_tsc_place(void);
bool lodge_tsc_stable(void);
u64 lodge_tsc_lost(void);
u64 lodge_rdmsr(u32 msr);
void lodge_wrmsr(u32 msr, u64 v);
int lodge_rdmsr_safe(u32 msr, u64 *v);
void lodge_cpuid(u32 leaf, u32 index, u32 *out);
u64 lodge_host_xcr0(void);
int lodge_virt_enable(bool intel, const struct lodge_cpu_ops *ops);
void lodge_virt_disable(void);
bool lodge_virt_rebooting(void);
void lodge_sched_begin(struct lodge_sched *s, void *context, void (*in)(void *), void (*out)(void *));
void lodge_sched_end(struct lodge_sched *s);
void lodge_sched_module(bool load);
void lodge_kick_note(unsigned int cpu);
void lodge_kick_noted(void);
bool lodge_guest_prepare(void);
bool lodge_guest_work_pending(void);
int lodge_guest_work(void);
void lodge_cond_resched(void);
void lodge_sigmask_enter(u64 mask);
void lodge_sigmask_leave(void);
struct fpu_guest *lodge_fpu_new(void);
void lodge_fpu_free(struct fpu_guest *g);
void lodge_fpu_swap(struct fpu_guest *g, bool enter);
void lodge_now(u64 *now);
void *lodge_fpu_fxsave(struct fpu_guest *g);
u32 lodge_fpu_image_size(struct fpu_guest *g);
void lodge_fpu_save(struct fpu_guest *g, void *image, u32 len, u64 xcr0, u32 pkru);
int lodge_fpu_restore(struct fpu_guest *g, void *image, u64 xcr0, u32 *pkru);
void lodge_fpu_header(struct fpu_guest *g, u64 *xstate_bv, bool *compacted);
void lodge_fpu_mark_legacy(struct fpu_guest *g);
void lodge_switch_in(struct lodge_switch *sw);
void lodge_switch_out(struct lodge_switch *sw);
void lodge_switch_done(void);
void lodge_vcpu_barrier(u64 number);
void lodge_get_page(struct page *page);
struct page *lodge_virt_to_page(const void *address);
u64 lodge_virt_to_phys(const void *address);
int lodge_misc_register(const struct file_operations *fops);
void lodge_misc_deregister(void);
bool lodge_svm_enter(struct lodge_switch *sw, u64 vmcb_pa, u64 host_save_pa);
void lodge_svm_online(bool on);
void lodge_svm_arrive(u64 host_save_pa);
void lodge_svm_vcpu(bool comes);
void lodge_machine_check(void);
bool lodge_svm_machine_check(void);
u64 lodge_svm_host_mce(void);
#endif
