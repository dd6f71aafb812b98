// SPDX-License-Identifier: GPL-2.0
/*
 * Host memory for the second-stage MMU: mmu_lock, table pages, user pages, the MMU notifier, user memory access.
 *
 * In C because all of it is inline functions and macros. Each function states its context; "task" is process context that may
 * sleep, "atomic" is any context in which a spinlock may be taken by a task.
 */
#include <asm/e820/api.h>
#include <linux/cc_platform.h>
#include <linux/cpu.h>
#include <linux/highmem.h>
#include <linux/mman.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/rcupdate.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/swap.h>
#include <linux/uaccess.h>
#include <linux/vmstat.h>
#include <asm/cpufeature.h>
#include <asm/memtype.h>
#include <asm/spec-ctrl.h>

#include "mm.h"

/* Table pages are handed on as rcu_head while buried in a list by page->private: both must fit at the same time. */
static_assert(offsetof(struct page, private) >= offsetof(struct page, rcu_head) + sizeof(struct rcu_head));

/* -- mmu_lock. Atomic; the holder is atomic. */

void lodge_rwlock_init(rwlock_t *lock)
{
	rwlock_init(lock);
}

void lodge_read_lock(rwlock_t *lock)
{
	read_lock(lock);
}

void lodge_read_unlock(rwlock_t *lock)
{
	read_unlock(lock);
}

void lodge_write_lock(rwlock_t *lock)
{
	write_lock(lock);
}

void lodge_write_unlock(rwlock_t *lock)
{
	write_unlock(lock);
}

/* Whether the holder of the write side should let it go for a moment: others wait for the lock, or for the CPU. */
bool lodge_write_wanted(rwlock_t *lock)
{
	return rwlock_needbreak(lock) || need_resched();
}

/* -- Table pages, by physical address. */

static void account_table(struct page *page, int n)
{
	lruvec_stat_mod_folio(page_folio(page), NR_SECONDARY_PAGETABLE, n);
}

/* A zeroed page charged to the current task's memory cgroup; 0 if there is none. Task. */
u64 lodge_table_alloc(void)
{
	struct page *page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);

	if (!page)
		return 0;
	account_table(page, 1);
	return page_to_phys(page);
}

/* Frees a page that no CPU can reach. Atomic. */
void lodge_table_free(u64 pa)
{
	struct page *page = pfn_to_page(PHYS_PFN(pa));

	account_table(page, -1);
	__free_page(page);
}

/* Atomic. */
void *lodge_table_va(u64 pa)
{
	return __va(pa);
}

/* Puts a page on a list of unlinked tables; an empty list is 0. The page's memory is left alone. Atomic. */
void lodge_table_bury(u64 *graves, u64 pa)
{
	set_page_private(pfn_to_page(PHYS_PFN(pa)), *graves);
	*graves = pa;
}

static void free_table_rcu(struct rcu_head *head)
{
	lodge_table_free(page_to_phys(container_of(head, struct page, rcu_head)));
}

/* Frees the pages of a list after an RCU grace period. Atomic. */
void lodge_tables_free_rcu(u64 graves)
{
	while (graves) {
		struct page *page = pfn_to_page(PHYS_PFN(graves));

		graves = page_private(page);
		set_page_private(page, 0);
		call_rcu(&page->rcu_head, free_table_rcu);
	}
}

/* Waits until all pages given to lodge_tables_free_rcu() are freed: code of this module does that. Task. */
void lodge_rcu_barrier(void)
{
	rcu_barrier();
}

/* -- What the host demands of second-stage tables. Task. */

/*
 * Whether guests may execute from small leaves only: one that changes the size of a page that it executes can stop some CPUs for good
 * (iTLB multihit). @choice is the user's: 0 or 1, or less for what the CPU needs. The kernel shows in sysfs that this is seen to.
 */
bool lodge_small_code_only(int choice)
{
	bool needed = boot_cpu_has_bug(X86_BUG_ITLB_MULTIHIT) && !cpu_mitigations_off();
	bool on = choice < 0 ? needed : choice;

	itlb_multihit_kvm_mitigation = on;
	return on;
}

/* Whether the host's memory is encrypted, so that physical addresses carry a bit that says so (SME). */
bool lodge_memory_encrypted(void)
{
	return cc_platform_has(CC_ATTR_HOST_MEM_ENCRYPT);
}

/* -- User pages. */

/* Tells the thread of an uncorrectable memory error at a user address, as an access of its own would. Task. */
void lodge_signal_poisoned(u64 hva)
{
	send_sig_mceerr(BUS_MCEERR_AR, (void __user *)hva, PAGE_SHIFT, current);
}

/* Device memory is not RAM even where it has a struct page; DAX memory is. */
static bool pfn_is_ram(unsigned long pfn)
{
	if (!pfn_valid(pfn))
		return e820__mapped_raw_any(PFN_PHYS(pfn), PFN_PHYS(pfn + 1) - 1, E820_TYPE_RAM);
	if (is_zero_pfn(pfn) || !PageReserved(pfn_to_page(pfn)))
		return true;
	return pat_enabled() && !pat_pfn_immune_to_uc_mtrr(pfn);
}

static void fill(struct lodge_host_page *out, unsigned long pfn, struct page *page, bool writable)
{
	*out = (struct lodge_host_page) {
		.pfn = pfn,
		.page = page,
		.writable = writable,
		/* An ordinary page says it itself. */
		.ram = (page && !PageReserved(page)) || pfn_is_ram(pfn),
	};
}

/*
 * Memory that drivers map without struct pages. The mapping may go at any time: only for use under the MMU notifier. -EROFS for a write
 * to what is mapped, and cannot be written.
 */
static int remapped_page(u64 hva, bool write, struct lodge_host_page *out)
{
	struct mm_struct *mm = current->mm;
	struct follow_pfnmap_args args = { .address = hva };
	bool unlocked = false;
	int r = -EFAULT;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	args.vma = vma_lookup(mm, hva);
	if (!args.vma || !(args.vma->vm_flags & (VM_IO | VM_PFNMAP)))
		goto out;
	r = follow_pfnmap_start(&args);
	if (r) {
		r = fixup_user_fault(mm, hva, write ? FAULT_FLAG_WRITE : 0, &unlocked);
		if (r)
			goto out;
		/* mmap_lock was dropped, so the VMA may be another by now: the guest tries again. */
		r = -EAGAIN;
		if (unlocked)
			goto out;
		r = follow_pfnmap_start(&args);
		if (r)
			goto out;
	}
	if (write && !args.writable)
		r = -EROFS;
	else
		fill(out, args.pfn, NULL, args.writable);
	follow_pfnmap_end(&args);
out:
	mmap_read_unlock(mm);
	return r;
}

/*
 * Finds the page behind a user address of the current mm, faulting it in, without pinning it; the caller holds a reference until
 * lodge_host_page_put(). With may_write, a read finds out whether the page could be mapped writable as well.
 * -EFAULT, -EROFS, -EHWPOISON, -EINTR when a signal is pending, -EAGAIN to start over. Task.
 */
int lodge_host_page_get(u64 hva, bool write, bool may_write, struct lodge_host_page *out)
{
	unsigned int flags = FOLL_HWPOISON | FOLL_HONOR_NUMA_FAULT | FOLL_INTERRUPTIBLE;
	struct page *page, *writable_page;
	long n;

	if (write)
		flags |= FOLL_WRITE;
	/* A read alone always goes the long way: the short one could find a page that is being copied on write. */
	if ((write || may_write) && get_user_page_fast_only(hva, FOLL_WRITE, &page)) {
		fill(out, page_to_pfn(page), page, true);
		return 0;
	}
	n = get_user_pages_unlocked(hva, 1, &page, flags);
	if (n == 1) {
		bool writable = write;

		if (!write && may_write && get_user_page_fast_only(hva, FOLL_WRITE, &writable_page)) {
			put_page(page);
			page = writable_page;
			writable = true;
		}
		fill(out, page_to_pfn(page), page, writable);
		return 0;
	}
	if (n == -EINTR || n == -EAGAIN)
		return -EINTR;
	if (n == -EHWPOISON)
		return -EHWPOISON;
	return remapped_page(hva, write, out);
}

/* Drops the reference. dirty: the guest may write to the page from now on. Atomic; before mmu_lock is let go. */
void lodge_host_page_put(struct page *page, bool dirty)
{
	if (!page)
		return;
	if (!PageReserved(page)) {
		if (dirty)
			SetPageDirty(page);
		mark_page_accessed(page);
	}
	put_page(page);
}

/*
 * The level (1, 2 or 3 for 4 KiB, 2 MiB or 1 GiB) at which the current mm maps a user address now. The caller checks the
 * notifier's sequence afterwards. Entries are read once, since a table may become a large page meanwhile; interrupts are off so
 * that tables are not freed under the walk. Atomic.
 */
u8 lodge_host_level(u64 hva)
{
	unsigned long flags;
	u8 level = 1;
	pgd_t pgd;
	p4d_t p4d;
	pud_t pud;
	pmd_t pmd;

	local_irq_save(flags);
	pgd = READ_ONCE(*pgd_offset(current->mm, hva));
	if (pgd_none(pgd))
		goto out;
	p4d = READ_ONCE(*p4d_offset(&pgd, hva));
	if (p4d_none(p4d) || !p4d_present(p4d))
		goto out;
	pud = READ_ONCE(*pud_offset(&p4d, hva));
	if (pud_none(pud) || !pud_present(pud))
		goto out;
	if (pud_leaf(pud)) {
		level = 3;
		goto out;
	}
	pmd = READ_ONCE(*pmd_offset(&pud, hva));
	if (!pmd_none(pmd) && pmd_present(pmd) && pmd_leaf(pmd))
		level = 2;
out:
	local_irq_restore(flags);
	return level;
}

/* -- The MMU notifier. */

struct lodge_mm {
	struct mmu_notifier notifier;
	struct mm_struct *mm;
	const struct lodge_mm_events *events;
	const void *context;
};

static struct lodge_mm *of(struct mmu_notifier *notifier)
{
	return container_of(notifier, struct lodge_mm, notifier);
}

static int invalidate_start(struct mmu_notifier *n, const struct mmu_notifier_range *range)
{
	of(n)->events->invalidate_start(of(n)->context, range->start, range->end,
					mmu_notifier_range_blockable(range));
	return 0;
}

static void invalidate_end(struct mmu_notifier *n, const struct mmu_notifier_range *range)
{
	of(n)->events->invalidate_end(of(n)->context, range->start, range->end);
}

static bool clear_flush_young(struct mmu_notifier *n, struct mm_struct *mm, unsigned long start,
			      unsigned long end)
{
	return of(n)->events->age(of(n)->context, start, end, LODGE_AGE_CLEAR_FLUSH);
}

static bool clear_young(struct mmu_notifier *n, struct mm_struct *mm, unsigned long start,
			unsigned long end)
{
	return of(n)->events->age(of(n)->context, start, end, LODGE_AGE_CLEAR);
}

static bool test_young(struct mmu_notifier *n, struct mm_struct *mm, unsigned long address)
{
	return of(n)->events->age(of(n)->context, address, address + 1, LODGE_AGE_TEST);
}

static void release(struct mmu_notifier *n, struct mm_struct *mm)
{
	of(n)->events->release(of(n)->context);
}

static const struct mmu_notifier_ops notifier_ops = {
	.invalidate_range_start = invalidate_start,
	.invalidate_range_end = invalidate_end,
	.clear_flush_young = clear_flush_young,
	.clear_young = clear_young,
	.test_young = test_young,
	.release = release,
};

/* Calls events with context from now on, for the current mm. They may be called before this returns. Task. */
int lodge_mm_watch(struct lodge_mm **out, const struct lodge_mm_events *events, const void *context)
{
	struct lodge_mm *mm = kzalloc(sizeof(*mm), GFP_KERNEL_ACCOUNT);
	int r;

	if (!mm)
		return -ENOMEM;
	mm->mm = current->mm;
	mm->events = events;
	mm->context = context;
	mm->notifier.ops = &notifier_ops;
	r = mmu_notifier_register(&mm->notifier, current->mm);
	if (r) {
		kfree(mm);
		return r;
	}
	*out = mm;
	return 0;
}

/* Events have ended when this returns; release was one of them. Task, not from an event. */
void lodge_mm_unwatch(struct lodge_mm *mm)
{
	mmu_notifier_unregister(&mm->notifier, mm->mm);
	kfree(mm);
}

/* Whether the current task runs in the mm that is watched. The watch holds a reference, so the address is not reused. Any context. */
bool lodge_mm_is_current(const struct lodge_mm *mm)
{
	return current->mm == mm->mm;
}

/* -- User memory of the current mm. Task. */

/*
 * Maps a page into the current mm, shared so that no fork makes a copy of it: its address, or a negative error. *@mm is the mm, with a
 * reference, if it worked. Sleeps.
 */
s64 lodge_map_page(struct mm_struct **mm)
{
	unsigned long hva = vm_mmap(NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, 0);

	if (!IS_ERR_VALUE(hva)) {
		mmgrab(current->mm);
		*mm = current->mm;
	}
	return hva;
}

/* Gives back the reference, and unmaps the page if @mm is the current one: it goes with its mm otherwise. Sleeps. */
void lodge_unmap_page(struct mm_struct *mm, u64 hva)
{
	if (current->mm == mm)
		vm_munmap(hva, PAGE_SIZE);
	mmdrop(mm);
}

/* The first address that is not a user address. */
u64 lodge_user_end(void)
{
	return TASK_SIZE_MAX;
}

/* Gives the number of bytes at the end that could not be copied; those are zeroed. */
u64 lodge_read_user(void *to, u64 hva, u64 bytes)
{
	return copy_from_user(to, (const void __user *)hva, bytes);
}

/* Reads a user word of 4 or 8 bytes. False if that is not possible. Task context; may sleep. */
bool lodge_read_user_word(u64 *to, u64 hva, u32 bytes)
{
	u32 half;

	if (bytes == sizeof(u64))
		return !get_user(*to, (const u64 __user *)hva);
	if (get_user(half, (const u32 __user *)hva))
		return false;
	*to = half;
	return true;
}

/* Whether each of n user words still has the value beside its address. Task context; may sleep. */
bool lodge_user_words_are(const struct lodge_user_word *word, u64 n)
{
	u64 i, now;

	if (!user_access_begin((const void __user *)word->hva, sizeof(now)))
		return false;
	for (i = 0; i < n; i++) {
		const u64 __user *at = (const u64 __user *)word[i].hva;

		if (!access_ok(at, sizeof(now)))
			goto differs;
		unsafe_get_user(now, at, differs);
		if (now != word[i].value)
			goto differs;
	}
	user_access_end();
	return true;
differs:
	user_access_end();
	return false;
}

/* Gives the number of bytes at the end that could not be copied. */
u64 lodge_write_user(u64 hva, const void *from, u64 bytes)
{
	return copy_to_user((void __user *)hva, from, bytes);
}

/* Each use needs a label of its own. */
#define TRY_CMPXCHG(type)                                                                   \
	({                                                                                  \
		type expected = *old;                                                       \
		int r = __try_cmpxchg_user((type __user *)hva, &expected, (type)new, f_##type); \
		*old = expected;                                                            \
		r;                                                                          \
	})

/*
 * Writes new to a naturally aligned user word of 1, 2, 4 or 8 bytes if it is *old, atomically. 0 if so; otherwise 1, and *old
 * is what was found. -EFAULT if the address is not writable.
 */
int lodge_cmpxchg_user(u64 hva, u32 bytes, u64 *old, u64 new)
{
	if (!access_ok((void __user *)hva, bytes))
		return -EFAULT;
	switch (bytes) {
	case 1:
		return TRY_CMPXCHG(u8);
	case 2:
		return TRY_CMPXCHG(u16);
	case 4:
		return TRY_CMPXCHG(u32);
	case 8:
		return TRY_CMPXCHG(u64);
	}
	return -EFAULT;
}
