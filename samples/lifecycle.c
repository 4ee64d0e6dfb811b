// SPDX-License-Identifier: GPL-2.0
/*
 * lifecycle: what becomes of VMAs while a process touches, splits, moves, forks,
 * swaps and unmaps. After each step the states of its VMAs are printed, as
 * debugfs/anon_vma_lazy/mm has them. Needs root, and anon_vma_lazy.ko.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define INSIDE "/sys/kernel/debug/anon_vma_lazy/mm"
#define PAGES 8

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static size_t page;
static char *area, *away;

/* The name of what is at an address, or NULL. */
static const char *name_of(unsigned long start, unsigned long end)
{
	if (start < (uintptr_t)area + PAGES * page && end > (uintptr_t)area)
		return "area";
	if (start < (uintptr_t)away + PAGES * page && end > (uintptr_t)away)
		return "away";
	return NULL;
}

/* Print the roots, and the states of the VMAs that this demo is about. */
static void show(const char *who, pid_t pid)
{
	unsigned long start, end, others = 0;
	char line[256];
	FILE *inside;
	int fd, at;

	fd = open(INSIDE, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		err(1, "%s (is anon_vma_lazy.ko loaded?)", INSIDE);
	if (dprintf(fd, "%d\n", pid) < 0)
		err(1, "%s: pid %d", INSIDE, pid);
	inside = fdopen(fd, "r");
	if (!inside)
		err(1, "fdopen");
	printf("  %s, pid %d:\n", who, pid);
	while (fgets(line, sizeof(line), inside)) {
		const char *name;

		if (sscanf(line, "vma %lx-%lx %n", &start, &end, &at) != 2) {
			printf("    %s", line);
			continue;
		}
		name = name_of(start, end);
		if (name)
			printf("    %s, %lu pages: %s", name, (end - start) / page, line + at);
		else
			others++;
	}
	fclose(inside);
	printf("    and %lu other VMAs\n", others);
}

static void step(const char *what)
{
	static int number;

	printf("%d. %s\n", ++number, what);
	fflush(stdout);
}

static void touch(char *at, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		at[i * page]++;
}

int main(void)
{
	int ready[2], go[2];
	char *room, c;
	pid_t child;

	page = sysconf(_SC_PAGESIZE);
	/* One part to work in, one to move to; holes around, so that nothing merges. */
	room = mmap(NULL, (2 * PAGES + 3) * page, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		err(1, "mmap");
	area = room + page;
	away = area + (PAGES + 1) * page;
	if (mprotect(area, PAGES * page, PROT_READ | PROT_WRITE) ||
	    munmap(away - page, (PAGES + 2) * page))
		err(1, "mprotect, munmap");

	step("Mapped, not touched: there is nothing to find");
	show("parent", getpid());

	step("Touched: one root for the process, no object for the VMA");
	touch(area, PAGES);
	show("parent", getpid());

	step("Split in three by mprotect: the copies are lazy, too");
	if (mprotect(area + 2 * page, 2 * page, PROT_READ))
		err(1, "mprotect");
	show("parent", getpid());

	step("The middle moved by mremap: it is not at its address any more, and linked");
	if (mremap(area + 2 * page, 2 * page, 2 * page, MREMAP_MAYMOVE | MREMAP_FIXED, away) !=
	    away)
		err(1, "mremap");
	show("parent", getpid());

	step("Forked: the child has its own root, below that of the parent");
	if (pipe(ready) || pipe(go))
		err(1, "pipe");
	fflush(stdout);
	child = fork();
	if (child < 0)
		err(1, "fork");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(go[1]);
		touch(area, 1);
		if (write(ready[1], "", 1) != 1 || read(go[0], &c, 1) < 0)
			_exit(1);
		_exit(0);
	}
	if (read(ready[0], &c, 1) != 1)
		errx(1, "the child died");
	show("parent", getpid());
	show("child", child);

	step("Swapped out (if there is swap) and in again: states stay, folios find the family");
	if (madvise(area, 2 * page, MADV_PAGEOUT))
		warn("MADV_PAGEOUT");
	touch(area, 2);
	show("parent", getpid());

	step("The child exits, and the first part is unmapped");
	close(go[1]);
	if (waitpid(child, NULL, 0) != child)
		err(1, "waitpid");
	if (munmap(area, 2 * page))
		err(1, "munmap");
	show("parent", getpid());
	return 0;
}
