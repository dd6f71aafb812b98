// SPDX-License-Identifier: GPL-2.0
/* Sets CR4.VMXE on every CPU for as long as it is loaded. */
#include <linux/module.h>
#include <linux/smp.h>
#include <asm/tlbflush.h>

static void set(void *unused)
{
	cr4_set_bits_irqsoff(X86_CR4_VMXE);
}

static void clear(void *unused)
{
	cr4_clear_bits_irqsoff(X86_CR4_VMXE);
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
MODULE_DESCRIPTION("Holds VMX for a test of Lodge");
MODULE_LICENSE("GPL");
