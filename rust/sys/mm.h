/* SPDX-License-Identifier: GPL-2.0 */
/* What mm.c offers to rust/sys/mm.rs. */
#ifndef LODGE_MM_H
#define LODGE_MM_H

#include <linux/mm_types.h>
#include <linux/spinlock_types.h>
#include <linux/types.h>

/* The host page behind a user address. Mirrored in mm.rs. */
struct lodge_host_page {
	u64 pfn;
	struct page *page;	/* a reference is held; NULL for memory without one */
	bool writable;
	bool ram;		/* ordinary, cached memory */
};

/* How a range is asked for its age. Mirrored in mm.rs. */
#define LODGE_AGE_TEST 0
#define LODGE_AGE_CLEAR 1
#define LODGE_AGE_CLEAR_FLUSH 2

/*
 * What happens to the host's page tables. Mirrored in mm.rs. All may run at the same time, in any task, with mmap_lock or
 * rmap locks held: no memory may be allocated by them. start and end come in pairs.
 */
struct lodge_mm_events {
	void (*invalidate_start)(const void *context, u64 start, u64 end, bool may_block);
	void (*invalidate_end)(const void *context, u64 start, u64 end);
	bool (*age)(const void *context, u64 start, u64 end, u32 how);
	void (*release)(const void *context);
};

struct lodge_mm;

void lodge_rwlock_init(rwlock_t *lock);
void lodge_read_lock(rwlock_t *lock);
void lodge_read_unlock(rwlock_t *lock);
void lodge_write_lock(rwlock_t *lock);
void lodge_write_unlock(rwlock_t *lock);
bool lodge_write_wanted(rwlock_t *lock);

u64 lodge_table_alloc(void);
void lodge_table_free(u64 pa);
void *lodge_table_va(u64 pa);
void lodge_table_bury(u64 *graves, u64 pa);
void lodge_tables_free_rcu(u64 graves);
void lodge_rcu_barrier(void);

bool lodge_small_code_only(int choice);
bool lodge_memory_encrypted(void);
void lodge_signal_poisoned(u64 hva);

int lodge_host_page_get(u64 hva, bool write, bool may_write, struct lodge_host_page *out);
void lodge_host_page_put(struct page *page, bool dirty);
u8 lodge_host_level(u64 hva);

int lodge_mm_watch(struct lodge_mm **out, const struct lodge_mm_events *events, const void *context);
void lodge_mm_unwatch(struct lodge_mm *mm);
bool lodge_mm_is_current(const struct lodge_mm *mm);

s64 lodge_map_page(struct mm_struct **mm);
void lodge_unmap_page(struct mm_struct *mm, u64 hva);
u64 lodge_user_end(void);
/* What was found at a user address. */
struct lodge_user_word {
	u64 hva;
	u64 value;
};
bool lodge_user_words_are(const struct lodge_user_word *word, u64 n);
bool lodge_read_user_word(u64 *to, u64 hva, u32 bytes);
u64 lodge_read_user(void *to, u64 hva, u64 bytes);
u64 lodge_write_user(u64 hva, const void *from, u64 bytes);
int lodge_cmpxchg_user(u64 hva, u32 bytes, u64 *old, u64 new);
#endif
