/* SPDX-License-Identifier: GPL-2.0 */
/* What the tests of the reverse map share: the oracle, families of processes. */
#ifndef RMAP_H
#define RMAP_H

#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <time.h>

#include "avl.h"

#define ORACLE "/sys/kernel/debug/anon_rmap_oracle"
#define LOCK_ALL "/sys/kernel/debug/anon_rmap_lock_all"
#define MIB 0x100000UL
/* Where /dev/mem has something that is no RAM, and no harm to read. */
#if defined(__x86_64__)
#define DEVICE 0xf0000	/* the firmware */
#else
#define DEVICE 0	/* the flash memory of QEMU's board */
#endif

/* What the oracle says of the whole machine. */
struct verdict {
	unsigned long folios, mappings, large, ksm, ksm_differ, ksm_missed, vmas, retried,
		migration, mismatch;
};

/* Ask the oracle; 0 or -errno. What is to be judged stands still meanwhile. */
static inline int oracle(struct verdict *v)
{
	char text[512];
	ssize_t len = avl_read(ORACLE, text, sizeof(text));

	memset(v, 0, sizeof(*v));
	if (len < 0)
		return len;
	/* Names and numbers, in this order. */
	if (sscanf(text, "%*s%lu%*s%lu%*s%lu%*s%lu%*s%lu%*s%lu%*s%lu%*s%lu%*s%lu%*s%lu",
		   &v->folios, &v->mappings, &v->large, &v->ksm, &v->ksm_differ, &v->ksm_missed,
		   &v->vmas, &v->retried, &v->migration, &v->mismatch) != 10)
		return -EPROTO;
	return 0;
}

#define EXPECT_ORACLE(each_of_ksm) do {					\
	struct verdict v_;						\
									\
	ASSERT_EQ(oracle(&v_), 0);					\
	EXPECT_GT(v_.folios, 0);					\
	EXPECT_EQ(v_.mismatch, 0);					\
	EXPECT_EQ(v_.migration, 0);					\
	if (each_of_ksm)						\
		EXPECT_EQ(v_.ksm_missed, 0);				\
	TH_LOG("oracle: %lu folios, %lu mappings, %lu large, %lu KSM, %lu missed, %lu VMAs", \
	       v_.folios, v_.mappings, v_.large, v_.ksm, v_.ksm_missed, v_.vmas); \
} while (0)

/* Every anonymous folio in the machine is where the reverse map says. */
#define EXPECT_SOUND() EXPECT_ORACLE(true)

/*
 * But for mappings of KSM pages that Linux does not find either. ksmd may merge a page in place
 * that a parent has, too, whom no rmap_item names; and it may note the page offset of a neighbour,
 * if the process moves both before the page is in the stable tree.
 */
#define EXPECT_SOUND_BUT_KSM() EXPECT_ORACLE(false)

/* Descendants that do something, say so, and stay until they are released. */
struct family {
	int ready[2], go[2];
};

static inline int family_init(struct family *f)
{
	/* Grandchildren whose parent is gone are ours to wait for. */
	return prctl(PR_SET_CHILD_SUBREAPER, 1) || pipe(f->ready) || pipe(f->go) ? -errno : 0;
}

/* In a new child: run @body (which ends with a true value), say so, and stay. */
#define KIN(f, body) ({							\
	struct family *f_ = (f);					\
	pid_t pid_ = fork();						\
									\
	if (!pid_) {							\
		char c_;						\
									\
		close(f_->go[1]);					\
		if (!(body)) {						\
			if (write(f_->ready[1], "x", 1) != 1)		\
				_exit(2);				\
			_exit(1);					\
		}							\
		if (write(f_->ready[1], "", 1) != 1)			\
			_exit(2);					\
		while (read(f_->go[0], &c_, 1) < 0 && errno == EINTR)	\
			;						\
		_exit(0);						\
	}								\
	pid_;								\
})

/* More generations than may be without an mm before VMAs are linked to an ancestor's root. */
#define DEEP 12

/* DEEP generations, each of which is gone before the next one comes; in the last of them, @body. */
#define LAST_OF(f, body) ({							\
	struct family *kin_ = (f);						\
	pid_t first_ = fork();							\
										\
	for (int i_ = 1; i_ < DEEP && !first_; i_++) {				\
		const pid_t parent_ = getpid();					\
		pid_t next_ = fork();						\
										\
		if (next_)							\
			_exit(next_ < 0 && write(kin_->ready[1], "x", 1) == 1);	\
		/* Its mm is gone before its children are. */			\
		while (getppid() == parent_)					\
			usleep(1000);						\
	}									\
	if (!first_)								\
		_exit(KIN(kin_, body) < 0 && write(kin_->ready[1], "x", 1) == 1); \
	first_;									\
})

/* Wait until @nr of them are ready; false if one has failed. */
static inline bool family_await(struct family *f, int nr)
{
	char c;

	while (nr--)
		if (read(f->ready[0], &c, 1) != 1 || c)
			return false;
	return true;
}

/* Let them go, and wait for all. The number of those that failed. Once is enough. */
static inline int family_release(struct family *f)
{
	int status, failed = 0;

	if (f->go[1] < 0)
		return 0;
	close(f->go[1]);
	f->go[1] = -1;
	while (wait(&status) > 0 || errno == EINTR)
		failed += status != 0;
	return failed;
}

/* Fill pages with what depends on their number and on @seed; every @step-th. */
static inline bool fill(char *area, size_t nr, size_t step, unsigned char seed)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (size_t i = 0; i < nr; i += step)
		memset(area + i * page, (unsigned char)(i * 7 + seed), page);
	return true;
}

static inline bool filled(const char *area, size_t nr, size_t step, unsigned char seed)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (size_t i = 0; i < nr; i += step) {
		const unsigned char want = i * 7 + seed;
		const unsigned char *p = (const unsigned char *)area + i * page;

		if (p[0] != want || p[page / 2] != want || p[page - 1] != want)
			return false;
	}
	return true;
}

static inline char *map_at(char *hint, size_t size)
{
	char *area = mmap(hint, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | (hint ? MAP_FIXED : 0), -1, 0);

	return area == MAP_FAILED ? NULL : area;
}

/* Room for @size bytes at an address that is a multiple of @align. */
static inline char *map_aligned(size_t size, size_t align)
{
	char *area = map_at(NULL, size + align);
	char *start = (char *)(((uintptr_t)area + align - 1) & ~(align - 1));

	if (!area)
		return NULL;
	if (start > area)
		munmap(area, start - area);
	munmap(start + size, area + align - start);
	return start;
}

/* The number of VMAs that intersect the range. */
static inline int count_vmas(const char *start, const char *end)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long from, to;
	char line[512];
	int nr = 0;

	if (!maps)
		return -1;
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx", &from, &to) == 2 && from < (unsigned long)end &&
		    to > (unsigned long)start)
			nr++;
	fclose(maps);
	return nr;
}

/* avl.seed=, or any: but not the time, a guest without a clock always starts with the same. */
static inline unsigned long seed_of_run(void)
{
	unsigned int seed = 1;

	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		seed = time(NULL);
	return avl_number("avl.seed=", seed);
}

/* Whether processes that start now get a lazy root. */
static inline bool lazy_mode(void)
{
	char text[8];

	return avl_read(AVL_SYSCTL, text, sizeof(text)) > 0 && text[0] == '1';
}

/* Move the pages to a node, those that are shared too; how many are there then. */
static inline long move_to_node(pid_t pid, char *area, size_t nr, int node)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	void **pages = calloc(nr, sizeof(*pages));
	int *nodes = calloc(nr, sizeof(*nodes));
	int *status = calloc(nr, sizeof(*status));
	long moved = 0;

	if (!pages || !nodes || !status)
		return -1;
	for (size_t i = 0; i < nr; i++) {
		pages[i] = area + i * page;
		nodes[i] = node;
	}
	if (syscall(SYS_move_pages, pid, nr, pages, nodes, status, 4 /* MPOL_MF_MOVE_ALL */) < 0)
		moved = -1;
	else
		for (size_t i = 0; i < nr; i++)
			moved += status[i] == node;
	free(pages);
	free(nodes);
	free(status);
	return moved;
}

/* A swap device in memory: zram. Made once for the guest. */
static inline bool have_swap(void)
{
	char text[256];
	int fd;

	if (avl_read("/proc/swaps", text, sizeof(text)) > 0 && strstr(text, "zram"))
		return true;
	/* Where somebody has emptied it, and was gone before it was put back. */
	if (!swapon("/dev/zram0", 0))
		return true;
	if (avl_write("/sys/block/zram0/disksize", "268435456", 9))
		return false;
	fd = open("/dev/zram0", O_RDWR);
	if (fd < 0)
		return false;
	/* The header of a swap area: version 1, last page, the magic at the end. */
	memset(text, 0, sizeof(text));
	((uint32_t *)text)[0] = 1;
	((uint32_t *)text)[1] = 268435456 / sysconf(_SC_PAGESIZE) - 1;
	if (pwrite(fd, text, 16, 1024) != 16 ||
	    pwrite(fd, "SWAPSPACE2", 10, sysconf(_SC_PAGESIZE) - 10) != 10 || fsync(fd))
		return false;
	close(fd);
	return !swapon("/dev/zram0", 0);
}

#define CGROUP "/sys/fs/cgroup/rmap"

/* Live in a memory cgroup from here on, with all children, so that it can be reclaimed. */
static inline bool enter_cgroup(void)
{
	mkdir("/sys/fs/cgroup", 0755);
	if (mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL) && errno != EBUSY)
		return false;
	avl_write("/sys/fs/cgroup/cgroup.subtree_control", "+memory", 7);
	if (mkdir(CGROUP, 0755) && errno != EEXIST)
		return false;
	return !avl_write(CGROUP "/cgroup.procs", "0", 1);
}

/* Reclaim from that cgroup, whoever shares the pages. */
static inline void reclaim_memory(const char *bytes)
{
	/* Less than wanted is an error, and all the same to us. */
	avl_write(CGROUP "/memory.reclaim", bytes, strlen(bytes));
}

/* For how many of these pages the process's pagemap has that bit, or -1. */
static inline long nr_in_pagemap(const char *area, size_t nr, int bit)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry;
	long found = 0;

	if (fd < 0)
		return -1;
	for (size_t i = 0; i < nr && found >= 0; i++) {
		if (pread(fd, &entry, 8, ((uintptr_t)area / page + i) * 8) == 8)
			found += entry >> bit & 1;
		else
			found = -1;
	}
	close(fd);
	return found;
}

static inline long nr_swapped(const char *area, size_t nr)
{
	return nr_in_pagemap(area, nr, 62);
}

static inline long nr_present(const char *area, size_t nr)
{
	return nr_in_pagemap(area, nr, 63);
}

static inline bool ksm_run(const char *how)
{
	return !avl_write("/sys/kernel/mm/ksm/run", how, 1);
}

/*
 * Wait until ksmd, which runs, has been through all that there is twice: it merges what it has
 * found unchanged.
 */
static inline bool ksm_scans(void)
{
	char text[32];
	long first = -1, now;

	for (int i = 0; i < 3000; i++) {
		if (avl_read("/sys/kernel/mm/ksm/full_scans", text, sizeof(text)) < 0)
			return false;
		now = strtol(text, NULL, 10);
		if (first < 0)
			first = now;
		if (now >= first + 3)
			return true;
		usleep(10000);
	}
	return false;
}

/* Whether this kernel has the patches of this project. */
static inline bool has_series(void)
{
	FILE *symbols = fopen("/proc/kallsyms", "re");
	char line[256];
	bool found = false;

	while (symbols && !found && fgets(line, sizeof(line), symbols))
		found = strstr(line, " anon_vma_lazy_register\n");
	if (symbols)
		fclose(symbols);
	return found;
}

#endif /* RMAP_H */
