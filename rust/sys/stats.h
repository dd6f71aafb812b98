/* SPDX-License-Identifier: GPL-2.0 */
#ifndef LODGE_STATS_H
#define LODGE_STATS_H

#include <linux/types.h>

struct lodge_stats;

int lodge_stats_init(const char *const *of, unsigned int n, u64 (*read)(const void *context, unsigned int n));
void lodge_stats_exit(void);
struct lodge_stats *lodge_stats_add(int fd, const void *context);
void lodge_stats_remove(struct lodge_stats *vm);
#endif
