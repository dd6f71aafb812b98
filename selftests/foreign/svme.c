// SPDX-License-Identifier: GPL-2.0
/* Sets EFER.SVME on every CPU for as long as it is loaded. */
#include <linux/module.h>
#include <linux/smp.h>
#include <asm/msr.h>

static void set(void *unused)
{
	u64 efer;

	rdmsrq(MSR_EFER, efer);
	wrmsrq(MSR_EFER, efer | EFER_SVME);
}

static void clear(void *unused)
{
	u64 efer;

	rdmsrq(MSR_EFER, efer);
	wrmsrq(MSR_EFER, efer & ~EFER_SVME);
}

static int __init foreign_init(void)
{
	on_each_cpu(set, NULL, 1);
	return 0;
}

static void __exit foreign_exit(void)
{
	on_each_cpu(clear, NULL, 1);
}

module_init(foreign_init);
module_exit(foreign_exit);
MODULE_DESCRIPTION("Holds SVM for a test of Lodge");
MODULE_LICENSE("GPL");
