// SPDX-License-Identifier: GPL-2.0
/* Who is told when the host is about to sleep: the kernel's power-management notifier. */
#include <linux/notifier.h>
#include <linux/slab.h>
#include <linux/suspend.h>

#include "power.h"

struct lodge_power {
	struct notifier_block notifier;
	const void *context;
	void (*sleeps)(const void *context);
};

/* Task context, may sleep. Other tasks run on for now: the kernel freezes them after this. */
static int notified(struct notifier_block *nb, unsigned long event, void *unused)
{
	const struct lodge_power *p = container_of(nb, struct lodge_power, notifier);

	if (event == PM_SUSPEND_PREPARE || event == PM_HIBERNATION_PREPARE)
		p->sleeps(p->context);
	return NOTIFY_DONE;
}

/* Task context, sleeps. Calls before each suspend and hibernation, until lodge_power_remove(). NULL: no memory. */
struct lodge_power *lodge_power_add(const void *context, void (*sleeps)(const void *context))
{
	struct lodge_power *p = kzalloc(sizeof(*p), GFP_KERNEL_ACCOUNT);

	if (!p)
		return NULL;
	p->notifier.notifier_call = notified;
	p->context = context;
	p->sleeps = sleeps;
	if (register_pm_notifier(&p->notifier)) {
		kfree(p);
		return NULL;
	}
	return p;
}

/* Task context, sleeps. When it returns, no call is under way, and none comes any more. */
void lodge_power_remove(struct lodge_power *p)
{
	unregister_pm_notifier(&p->notifier);
	kfree(p);
}
