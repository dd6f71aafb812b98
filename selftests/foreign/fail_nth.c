// SPDX-License-Identifier: GPL-2.0
/*
 * Makes allocations fail, and copies from and to user space, on a kernel that is built without fault injection. The file
 * lodge_fail_nth in debugfs works as /proc/PID/fail-nth does: a number N that a task writes makes its N-th such call from
 * then on fail; what is read is how many are left, 0 when it has failed. It serves one task at a time.
 */
#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/uaccess.h>

static struct task_struct *target;
static unsigned int left;
static struct dentry *file;

/* What a function that fails is replaced by: it returns at once, with the result that was put into RAX. */
static noinline notrace __used void just_return(void) { asm volatile(""); }

/*
 * Tasks only: an interrupt's handler is not what the task asked for. The context of the probe itself says nothing, as a
 * breakpoint in the kernel counts as an NMI.
 */
static bool fails(struct pt_regs *regs)
{
	if (READ_ONCE(target) != current || !left || !(regs->flags & X86_EFLAGS_IF) || in_serving_softirq())
		return false;
	return --left == 0;
}

static int end(struct pt_regs *regs, unsigned long result)
{
	regs->ax = result;
	regs->ip = (unsigned long)just_return;
	return 1;
}

/* A call that may not fail is not counted. */
static int allocation(struct pt_regs *regs, gfp_t gfp)
{
	if ((gfp & __GFP_NOFAIL) || !fails(regs))
		return 0;
	return end(regs, 0);
}

/* By the argument that has the flags. */
static int gfp_1(struct kprobe *p, struct pt_regs *regs) { return allocation(regs, regs->di); }
static int gfp_2(struct kprobe *p, struct pt_regs *regs) { return allocation(regs, regs->si); }
static int gfp_3(struct kprobe *p, struct pt_regs *regs) { return allocation(regs, regs->dx); }
static int gfp_4(struct kprobe *p, struct pt_regs *regs) { return allocation(regs, regs->cx); }
static int gfp_5(struct kprobe *p, struct pt_regs *regs) { return allocation(regs, regs->r8); }

/* Nothing was copied. */
static int copy(struct kprobe *p, struct pt_regs *regs)
{
	return fails(regs) ? end(regs, regs->dx) : 0;
}

/* With one, the probe may change where the function goes on. */
static void after(struct kprobe *p, struct pt_regs *regs, unsigned long flags) { }

#define PROBE(name, handler) { .symbol_name = name, .pre_handler = handler, .post_handler = after }
static struct kprobe probes[] = {
	PROBE("kmem_cache_alloc_noprof", gfp_2),
	PROBE("kmem_cache_alloc_node_noprof", gfp_2),
	PROBE("kmem_cache_alloc_lru_noprof", gfp_3),
	PROBE("__kmalloc_noprof", gfp_2),
	PROBE("__kmalloc_cache_noprof", gfp_2),
	PROBE("__kmalloc_cache_node_noprof", gfp_2),
	PROBE("__kmalloc_large_noprof", gfp_2),
	PROBE("krealloc_node_align_noprof", gfp_4),
	PROBE("__alloc_frozen_pages_noprof", gfp_1),
	PROBE("__vmalloc_node_range_noprof", gfp_5),
	PROBE("pcpu_alloc_noprof", gfp_4),
	PROBE("_copy_from_user", copy),
	PROBE("_copy_to_user", copy),
	PROBE("rust_helper_copy_from_user", copy),
	PROBE("rust_helper_copy_to_user", copy),
#ifdef CONFIG_SLAB_BUCKETS
	PROBE("__kmalloc_node_noprof", gfp_3),
	PROBE("__kmalloc_node_track_caller_noprof", gfp_3),
	PROBE("__kvmalloc_node_noprof", gfp_4),
#else
	PROBE("__kmalloc_node_noprof", gfp_2),
	PROBE("__kmalloc_node_track_caller_noprof", gfp_2),
	PROBE("__kvmalloc_node_noprof", gfp_3),
#endif
};

static ssize_t get(struct file *f, char __user *to, size_t size, loff_t *at)
{
	char text[16];
	int length = scnprintf(text, sizeof(text), "%u\n", target == current ? left : 0);

	return simple_read_from_buffer(to, size, at, text, length);
}

static ssize_t set(struct file *f, const char __user *from, size_t size, loff_t *at)
{
	unsigned int n;
	int r = kstrtouint_from_user(from, size, 0, &n);

	if (r)
		return r;
	left = n;
	WRITE_ONCE(target, n ? current : NULL);
	return size;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = get,
	.write = set,
	.llseek = default_llseek,
};

static int __init fail_init(void)
{
	unsigned int i;
	int r;

	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		r = register_kprobe(&probes[i]);
		if (r) {
			pr_err("no probe on %s: %d\n", probes[i].symbol_name, r);
			goto out;
		}
	}
	file = debugfs_create_file("lodge_fail_nth", 0600, NULL, NULL, &operations);
	r = PTR_ERR_OR_ZERO(file);
	if (!r)
		return 0;
out:
	while (i--)
		unregister_kprobe(&probes[i]);
	return r;
}

static void __exit fail_exit(void)
{
	unsigned int i;

	debugfs_remove(file);
	for (i = 0; i < ARRAY_SIZE(probes); i++)
		unregister_kprobe(&probes[i]);
}

module_init(fail_init);
module_exit(fail_exit);
MODULE_DESCRIPTION("Makes allocations fail for a test of Lodge");
MODULE_LICENSE("GPL");
