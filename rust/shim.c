// SPDX-License-Identifier: GPL-2.0
/*
 * What the module's Rust code needs of C: inline functions and macros that the
 * kernel has no helper for, and the exports of the module.
 */
#include <linux/export.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/percpu.h>
#include <linux/random.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/siphash.h>
#include "../include/anon_rmap.h"
#include "shim.h"

/* Rust has no macro for this outside of the tree. */
EXPORT_SYMBOL_GPL(anon_rmap_who);

static_assert(sizeof(struct anon_rmap_where) == 16);

static siphash_key_t id_key;

/* Before anything else here is called. */
void anon_vma_lazy_shim_init(void)
{
	get_random_bytes(&id_key, sizeof(id_key));
}

/*
 * Tell lockdep that reclaim takes this lock. It does when it unmaps a page and the lock
 * is contended; else a trylock succeeds, from which lockdep learns no order. May sleep.
 */
void anon_vma_lazy_taken_by_reclaim(struct rw_semaphore *lock)
{
	fs_reclaim_acquire(GFP_KERNEL);
	might_lock_read(lock);
	/* As a walk takes that of a descendant: Root::read(). */
	might_lock_nested(lock, SINGLE_DEPTH_NESTING);
	fs_reclaim_release(GFP_KERNEL);
}

/* Whether the VMA tree is in RCU mode. Any context. */
bool anon_vma_lazy_in_rcu_mode(struct mm_struct *mm)
{
	/* A writer may change other flags of the tree meanwhile. */
	return data_race(mt_in_rcu(&mm->mm_mt));
}

/*
 * A name for an object that does not give its address away. Two objects may have
 * the same one, and one that is freed leaves it to the next at its place. Any context.
 */
u32 anon_vma_lazy_id(const void *address)
{
	/* 0 is for "none". */
	return (u32)siphash_1u64((u64)(uintptr_t)address, &id_key) ?: 1;
}

/*
 * A process that has the mm, as the caller names it, or 0: there is none, it has no
 * name there, or fork is not done with it. Looks at all of them; the caller keeps the
 * mm.
 *
 * Not by mm->owner: that may be a task whose fork fails, and what its number is read
 * from is freed without a grace period. Those on the list keep it under RCU.
 */
pid_t anon_vma_lazy_pid(const struct mm_struct *mm)
{
	struct task_struct *task, *thread;
	pid_t pid = 0;

	rcu_read_lock();
	for_each_process(task) {
		/* for_each_thread(), whose check names a lock that is not for modules. */
		list_for_each_entry_rcu(thread, &task->signal->thread_head, thread_node) {
			/* Only compared; a kernel thread may borrow it. */
			if (READ_ONCE(thread->mm) == mm && !(thread->flags & PF_KTHREAD))
				pid = task_tgid_vnr(thread);
		}
		if (pid)
			break;
	}
	rcu_read_unlock();
	return pid;
}

/*
 * The page at an address, referenced, or NULL. Nothing is faulted in. mmap_lock is
 * held for reading; may sleep.
 */
struct page *anon_vma_lazy_get_page(struct mm_struct *mm, unsigned long address)
{
	struct page *page;

	/* FOLL_FORCE: also where the process itself may not read. */
	return get_user_pages_remote(mm, address, 1, FOLL_NOFAULT | FOLL_FORCE,
				     &page, NULL) == 1 ? page : NULL;
}

void anon_vma_lazy_put_page(struct page *page)
{
	put_page(page);
}

/*
 * The anon_vma that the page's folio names, not to be dereferenced, and the anonymous
 * page offset. NULL for other pages, those of KSM too. The caller's reference keeps
 * the folio from being split and from being merged by KSM.
 */
void *anon_vma_lazy_page_anon_vma(struct page *page, unsigned long *pgoff)
{
	const struct folio *folio = page_folio(page);
	unsigned long mapping = (unsigned long)READ_ONCE(folio->mapping);

	if ((mapping & FOLIO_MAPPING_FLAGS) != FOLIO_MAPPING_ANON)
		return NULL;
	*pgoff = page_pgoff(folio, page);
	return (void *)(mapping - FOLIO_MAPPING_ANON);
}

/* Rust counts with this_cpu_inc(): each CPU has its own. */
DEFINE_PER_CPU(u64 [ANON_VMA_LAZY_EVENTS], anon_vma_lazy_events);

/* The counts of an event since the module was loaded. Any context. */
u64 anon_vma_lazy_sum(unsigned int event)
{
	u64 sum = 0;
	int cpu;

	if (event >= ANON_VMA_LAZY_EVENTS)
		return 0;
	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(anon_vma_lazy_events, cpu)[event]);
	return sum;
}
