// SPDX-License-Identifier: GPL-2.0
/*
 * SRCU for Rust on kernels before 7.3; Kbuild leaves the file out of later ones.
 */
#include <linux/slab.h>
#include <linux/srcu.h>

#include "compat.h"

/* Sleeps. Null without memory. */
void *lodge_srcu_new(void)
{
	struct srcu_struct *srcu = kzalloc(sizeof(*srcu), GFP_KERNEL_ACCOUNT);

	if (srcu && init_srcu_struct(srcu)) {
		kfree(srcu);
		return NULL;
	}
	return srcu;
}

/* Sleeps. There is no reader. */
void lodge_srcu_free(void *srcu)
{
	cleanup_srcu_struct(srcu);
	kfree(srcu);
}

/* Any context. */
int lodge_srcu_read_lock(void *srcu) { return srcu_read_lock(srcu); }
void lodge_srcu_read_unlock(void *srcu, int index) { srcu_read_unlock(srcu, index); }

/* Sleeps. The caller is no reader. */
void lodge_srcu_synchronize_expedited(void *srcu) { synchronize_srcu_expedited(srcu); }
