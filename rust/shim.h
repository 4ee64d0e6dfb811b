/* SPDX-License-Identifier: GPL-2.0 */
#ifndef ANON_VMA_LAZY_SHIM_H
#define ANON_VMA_LAZY_SHIM_H
/* C of the module that its Rust calls: rust/shim.rs is the other side. */

#include <linux/percpu-defs.h>
#include <linux/types.h>

struct mm_struct;
struct page;
struct rw_semaphore;

void anon_vma_lazy_shim_init(void);
void anon_vma_lazy_taken_by_reclaim(struct rw_semaphore *lock);
bool anon_vma_lazy_in_rcu_mode(struct mm_struct *mm);
u32 anon_vma_lazy_id(const void *address);
pid_t anon_vma_lazy_pid(const struct mm_struct *mm);
struct page *anon_vma_lazy_get_page(struct mm_struct *mm, unsigned long address);
void anon_vma_lazy_put_page(struct page *page);
void *anon_vma_lazy_page_anon_vma(struct page *page, unsigned long *pgoff);

/* Room for one counter for each Event of rust/pure/counters.rs. */
#define ANON_VMA_LAZY_EVENTS 32
DECLARE_PER_CPU(u64 [ANON_VMA_LAZY_EVENTS], anon_vma_lazy_events);
u64 anon_vma_lazy_sum(unsigned int event);

/* make coverage only: clang puts the calls in. */
void __sanitizer_cov_trace_pc(void);

#endif /* ANON_VMA_LAZY_SHIM_H */
