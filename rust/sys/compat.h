/* SPDX-License-Identifier: GPL-2.0 */
#ifndef LODGE_COMPAT_H
#define LODGE_COMPAT_H

void *lodge_srcu_new(void);
void lodge_srcu_free(void *srcu);
int lodge_srcu_read_lock(void *srcu);
void lodge_srcu_read_unlock(void *srcu, int index);
void lodge_srcu_synchronize_expedited(void *srcu);

#endif
