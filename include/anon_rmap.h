/* SPDX-License-Identifier: GPL-2.0 */
#ifndef ANON_RMAP_H
#define ANON_RMAP_H
/*
 * What anon_vma_lazy.ko offers to other modules: who maps an anonymous page.
 *
 * A module that calls this depends on anon_vma_lazy.ko, which then cannot be
 * unloaded before it. Outside of the kernel tree modpost learns of the symbol
 * from Module.symvers of anon_vma_lazy (KBUILD_EXTRA_SYMBOLS), or by building
 * both in one run; samples/rmap_who does the latter.
 */

#include <linux/types.h>

/* How a VMA is found that maps the page. */
#define ANON_RMAP_LAZY		1	/* in the VMA tree, at its natural address */
#define ANON_RMAP_LINKED	2	/* by an anon_vma_chain: moved, or exec's stack, ... */
#define ANON_RMAP_DETACHING	3	/* on the list of a munmap that is under way */

struct anon_rmap_where {
	u64 address;	/* where the page is mapped */
	s32 pid;	/* of a process that has the mm, in the caller's namespace, or 0 */
	u32 how;	/* ANON_RMAP_* */
};

/**
 * anon_rmap_who() - who maps the anonymous page that a process has at an address
 * @pid: the process or one of its threads, as the caller names it
 * @address: any byte of the page
 * @where: gets the first @max mappings, that of @pid included
 * @max: room in @where, may be 0
 *
 * The page is not faulted in. Looking at it counts as an access, as it does for
 * what else lies at the addresses where the page might be: do not ask for the
 * sake of page_idle. A mapping that appears or goes meanwhile may be listed or
 * not, one whose VMA is just being merged with its neighbour twice. VMAs whose
 * page tables have another page by now, copied on write, are not listed.
 *
 * Context: process context, no mm or rmap lock held; may sleep.
 *
 * Return: the number of mappings, also if that is more than @max, or
 * -ESRCH if there is no such process or it has no mm,
 * -ENOENT if there is no VMA, or no page is mapped there (untouched, or in swap),
 * -EOPNOTSUPP if the page is not one of a lazy root: of a file, of KSM, the zero
 * page, or of a VMA that has an ordinary anon_vma,
 * -ENOMEM if there is no memory, -E2BIG if more than 65536 VMAs may map it.
 */
long anon_rmap_who(pid_t pid, unsigned long address, struct anon_rmap_where *where,
		   size_t max);

#endif /* ANON_RMAP_H */
