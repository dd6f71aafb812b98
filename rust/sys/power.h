/* SPDX-License-Identifier: GPL-2.0 */
/* What power.c offers to power.rs. */
#ifndef LODGE_POWER_H
#define LODGE_POWER_H

struct lodge_power;

struct lodge_power *lodge_power_add(const void *context, void (*sleeps)(const void *context));
void lodge_power_remove(struct lodge_power *p);

#endif
