// SPDX-License-Identifier: GPL-2.0
/*
 * Subsystems that use the reverse map, or that change anonymous VMAs and folios
 * behind the back of their process: each of them in a family, with a proof that
 * it did its work, and the oracle after each step. The tests hold on any kernel;
 * with the module loaded and on, the VMAs are Lazy or Linked.
 */
#define _GNU_SOURCE
#include <linux/elf.h>
#include <linux/fs.h>
#include <linux/kernel-page-flags.h>
#include <linux/mman.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <time.h>

#include "kselftest_harness.h"
#include "rmap.h"
#include "inside.h"
#include "uffd.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MPOL_BIND
#define MPOL_BIND 2
#define MPOL_MF_STRICT 1
#define MPOL_MF_MOVE 2
#define MPOL_MF_MOVE_ALL 4
#endif

#define NR 32
#define THP "/sys/kernel/mm/transparent_hugepage/"
#define MTHP THP "hugepages-64kB/"
#define KSM "/sys/kernel/mm/ksm/"
#define DAMON "/sys/kernel/mm/damon/admin/kdamonds/"
#define TRACING "/sys/kernel/tracing/"
#define NUMAB "/sys/kernel/debug/sched/numa_balancing/"

/* Files of the kernel. */

static bool put(const char *path, const char *text)
{
	return !avl_write(path, text, strlen(text));
}

/* Formatted, into a file below @dir. */
static bool putf(const char *dir, const char *name, const char *format, ...)
{
	char path[256], text[256];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	snprintf(path, sizeof(path), "%s%s", dir, name);
	return put(path, text);
}

/* The number that a file begins with, or -1. */
static long number(const char *path)
{
	char text[64];

	return avl_read(path, text, sizeof(text)) > 0 ? strtol(text, NULL, 0) : -1;
}

/* The number behind a name in a file of names and numbers, or -1. */
static long field(const char *path, const char *name)
{
	FILE *file = fopen(path, "re");
	char line[512], key[128];
	long value, found = -1;

	if (!file)
		return -1;
	while (found < 0 && fgets(line, sizeof(line), file))
		if (sscanf(line, "%127s %ld", key, &value) == 2 && !strcmp(key, name))
			found = value;
	fclose(file);
	return found;
}

static long event(const char *name)
{
	return field("/proc/vmstat", name);
}

static long status_kb(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return field(path, name);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Until @cond, but for @seconds at most. */
#define WAIT_FOR(cond, seconds) ({					\
	double end_ = now() + (seconds);				\
	bool met_;							\
									\
	while (!(met_ = (cond)) && now() < end_)			\
		usleep(5000);						\
	met_;								\
})

/* What the page tables of this process say. */

static uint64_t entry_of(const void *at)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)at / sysconf(_SC_PAGESIZE) * 8) != 8)
		entry = 0;
	close(fd);
	return entry;
}

static unsigned long pfn_of(const void *at)
{
	uint64_t entry = entry_of(at);

	return entry >> 63 ? entry & ((1UL << 55) - 1) : 0;
}

/* How many pages have this bit of pagemap. */
static long nr_with_bit(const char *area, size_t nr, int bit)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	long n = 0;

	for (size_t i = 0; i < nr; i++)
		n += entry_of(area + i * page) >> bit & 1;
	return n;
}

/* How many pages PAGEMAP_SCAN finds of a category, or -1. With @flags, which it protects. */
static long nr_scanned(const char *area, size_t nr, uint64_t category, uint64_t flags)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	struct page_region regions[256];
	struct pm_scan_arg arg = {
		.size = sizeof(arg), .flags = flags, .start = (uintptr_t)area,
		.end = (uintptr_t)area + nr * page, .vec = (uintptr_t)regions, .vec_len = 256,
		.category_mask = category, .return_mask = category,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	long n = 0, got;

	do {
		got = fd < 0 ? -1 : ioctl(fd, PAGEMAP_SCAN, &arg);
		for (long i = 0; i < got; i++)
			n += (regions[i].end - regions[i].start) / page;
		arg.start = arg.walk_end;
	} while (got > 0 && arg.start < arg.end);
	close(fd);
	return got < 0 ? -1 : n;
}

/* How many pages of a process are on this node. */
static long on_node(pid_t pid, char *area, size_t nr, int node)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	long n = 0;

	for (size_t i = 0; i < nr; i++) {
		void *at = area + i * page;
		int status = -1;

		if (syscall(SYS_move_pages, pid, 1UL, &at, NULL, &status, 0))
			return -1;
		n += status == node;
	}
	return n;
}

static bool bind_area(char *area, size_t size, int node, int flags)
{
	unsigned long mask = 1UL << node;

	return !syscall(SYS_mbind, area, size, MPOL_BIND, &mask, 64UL, flags);
}

/* Run on the CPUs of this node. */
static bool bind_cpus(int node)
{
	char path[64], text[64];
	int first, last;
	cpu_set_t set;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", node);
	if (avl_read(path, text, sizeof(text)) <= 0)
		return false;
	first = atoi(text);
	if (sscanf(text, "%*d-%d", &last) < 1)
		last = first;
	CPU_ZERO(&set);
	for (int i = first; i <= last; i++)
		CPU_SET(i, &set);
	return !sched_setaffinity(0, sizeof(set), &set);
}

/* Families that act in step. */

static volatile int *step;	/* shared by all: how far they may go */

static bool await_step(int n)
{
	/* As long as a test may take: a debug kernel on a busy machine needs it. */
	return WAIT_FOR(*step >= n, 150);
}

/* Say that this member is as far as the family waits for it to be. */
static bool report(struct family *f)
{
	return write(f->ready[1], "", 1) == 1;
}

/* A memory cgroup beside the one of enter_cgroup(). */
static bool make_cgroup(const char *name, char *path, size_t size)
{
	mkdir("/sys/fs/cgroup", 0755);
	if (mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL) && errno != EBUSY)
		return false;
	put("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	snprintf(path, size, "/sys/fs/cgroup/%s/", name);
	return !mkdir(path, 0755) || errno == EEXIST;
}

/* Make the pages of a family go to swap, as far as that is possible. */
static long reclaim_until_swapped(char *area, size_t nr, long enough)
{
	long swapped = 0;

	for (int i = 0; i < 60 && swapped < enough; i++) {
		reclaim_memory("1M");
		/* So few pages are active, and stay so, until this has brought counts together. */
		number(CGROUP "/memory.stat");
		swapped = nr_swapped(area, nr);
	}
	return swapped;
}

/* Where VMAs are moved to, with holes around. */
static char *room(size_t pages)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	char *area = mmap(NULL, (pages + 2) * page, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return area == MAP_FAILED ? NULL : area + page;
}

static char *move_to(char *from, size_t size, char *to)
{
	return mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

FIXTURE(features)
{
	struct family f;
	size_t page;
	double started;
};

FIXTURE_SETUP(features)
{
	avl_case(_metadata->name);
	self->started = now();
	self->page = sysconf(_SC_PAGESIZE);
	ASSERT_EQ(family_init(&self->f), 0);
	step = mmap(NULL, self->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(step, MAP_FAILED);
}

FIXTURE_TEARDOWN(features)
{
	*step = INT32_MAX / 2;
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_SOUND();
	TH_LOG("%.1f seconds", now() - self->started);
}

/* userfaultfd */

static bool uffd_protect(int fd, const void *area, size_t size, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)area, size },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return !ioctl(fd, UFFDIO_WRITEPROTECT, &wp);
}

/* A thread that answers the faults of this process, and of children. */
struct uffd {
	struct pollfd polls[8];		/* the first one says when to end */
	int nr, quit;
	char *area, *from;		/* pages are moved from there, else made up */
	size_t page;
	unsigned char seed;
	pthread_t thread;
	unsigned long missing, wp, forks, moved, copied;
	int error;
};

static void uffd_missing(struct uffd *u, int fd, char *at)
{
	size_t i = (at - u->area) / u->page;
	char page[65536];
	struct uffdio_copy copy = { .dst = (uintptr_t)at, .src = (uintptr_t)page, .len = u->page };
	long moved;

	u->missing++;
	if (u->from) {
		moved = uffd_move(fd, at, u->from + i * u->page, u->page);
		if (moved == u->page) {
			u->moved++;
			return;
		}
		/* A page that is shared cannot be moved. */
		if (moved != -EBUSY)
			u->error = -moved;
		copy.src = (uintptr_t)u->from + i * u->page;
	} else {
		memset(page, (unsigned char)(i * 7 + u->seed), u->page);
	}
	if (ioctl(fd, UFFDIO_COPY, &copy))
		u->error = errno;
	u->copied++;
}

static void *uffd_thread(void *arg)
{
	struct uffd *u = arg;

	while (poll(u->polls, u->nr, -1) > 0 && !u->polls[0].revents) {
		for (int i = 1; i < u->nr; i++) {
			int fd = u->polls[i].fd;
			struct uffd_msg msg;
			char *at;

			if (!(u->polls[i].revents & POLLIN) || read(fd, &msg, sizeof(msg)) < 0)
				continue;
			at = (char *)(uintptr_t)(msg.arg.pagefault.address & -u->page);
			if (msg.event == UFFD_EVENT_FORK) {
				u->polls[u->nr++] = (struct pollfd){ msg.arg.fork.ufd, POLLIN };
				u->forks++;
			} else if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
				u->wp++;
				if (!uffd_protect(fd, at, u->page, false))
					u->error = errno;
			} else {
				uffd_missing(u, fd, at);
			}
		}
	}
	return NULL;
}

static bool uffd_start(struct uffd *u, char *area, size_t size, uint64_t mode, uint64_t features)
{
	int fd = uffd_open(features), quit[2];

	u->area = area;
	u->page = sysconf(_SC_PAGESIZE);
	if (fd < 0 || pipe(quit) || !uffd_register(fd, area, size, mode))
		return false;
	u->polls[0] = (struct pollfd){ quit[0], POLLIN };
	u->polls[1] = (struct pollfd){ fd, POLLIN };
	u->nr = 2;
	u->quit = quit[1];
	return !pthread_create(&u->thread, NULL, uffd_thread, u);
}

/* The error of the thread, if there was one. */
static int uffd_stop(struct uffd *u)
{
	if (write(u->quit, "", 1) != 1)
		return errno;
	pthread_join(u->thread, NULL);
	for (int i = 1; i < u->nr; i++)
		close(u->polls[i].fd);
	close(u->polls[0].fd);
	close(u->quit);
	return u->error;
}

/* The thread fills pages in, also in children, whose faults it is told of. */
TEST_F(features, uffd_missing_and_write_protected)
{
	char *area = map_at(NULL, NR * self->page);
	struct uffd u = { .seed = 5 };
	unsigned long seen;

	ASSERT_NE(area, NULL);
	ASSERT_TRUE(uffd_start(&u, area, NR * self->page,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
			       UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_PAGEFAULT_FLAG_WP));
	EXPECT_TRUE(filled(area, NR / 2, 1, 5));
	EXPECT_EQ(u.missing, NR / 2);
	EXPECT_SOUND();
	ASSERT_TRUE(uffd_protect(u.polls[1].fd, area, NR / 4 * self->page, true));
	KIN(&self->f, filled(area, NR, 1, 5) && fill(area, NR, 3, 60) &&
	    KIN(&self->f, filled(area, NR, 3, 60)) > 0);
	KIN(&self->f, filled(area, NR / 2, 1, 5));
	ASSERT_TRUE(family_await(&self->f, 3));
	EXPECT_EQ(u.forks, 3);
	EXPECT_EQ(u.missing, NR);
	/* Of the child's pages 0, 3 and so on those that were protected. */
	EXPECT_EQ(u.wp, (NR / 4 + 2) / 3);
	EXPECT_SOUND();
	seen = u.wp;
	fill(area, NR / 4, 1, 77);
	EXPECT_EQ(u.wp, seen + NR / 4);
	EXPECT_SOUND();
	KIN(&self->f, filled(area, NR / 4, 1, 77));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_GT(move_to_node(0, area, NR / 2, 1), 0);
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_EQ(uffd_stop(&u), 0);
}

/* What came by UFFDIO_MOVE, in an area of NR pages, is forked, migrated and reclaimed. */
static void use_moved(struct __test_metadata *_metadata, struct family *f, char *area,
		      unsigned char seed)
{
	for (int node = 0; node < 2; node++) {
		EXPECT_EQ(move_to_node(0, area, NR, node), NR);
		EXPECT_SOUND();
	}
	KIN(f, filled(area, NR, 1, seed) && fill(area, NR, 3, 200));
	KIN(f, filled(area, NR, 1, seed));
	ASSERT_TRUE(family_await(f, 2));
	EXPECT_SOUND();
	for (int node = 0; node < 2; node++) {
		EXPECT_EQ(move_to_node(0, area, NR, node), NR);
		EXPECT_SOUND();
	}
	EXPECT_GT(reclaim_until_swapped(area, NR, NR / 2), 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, seed));
	EXPECT_SOUND();
}

TEST_F(features, uffd_move_between_vmas)
{
	size_t size = NR * self->page;
	char *from = map_at(room(NR), size), *to = map_at(room(NR + 1), size + self->page);
	int fd = uffd_open(UFFD_FEATURE_MOVE);

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	ASSERT_GE(fd, 0);
	/* Two VMAs that faulted each for itself. */
	fill(to + size, 1, 1, 9);
	fill(from, NR, 1, 1);
	ASSERT_TRUE(uffd_register(fd, to, size, UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(uffd_move(fd, to, from, size), size);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(to, NR, 1, 1));
	EXPECT_EQ(from[0], 0);
	EXPECT_EQ(from[size - 1], 0);
	use_moved(_metadata, &self->f, to, 1);
	EXPECT_TRUE(filled(to + size, 1, 1, 9));
	close(fd);
}

/* From a VMA that mremap has moved, and into one. */
TEST_F(features, uffd_move_of_moved_vmas)
{
	size_t size = NR * self->page;
	char *a = map_at(NULL, size), *b = map_at(room(NR), size), *linked = room(NR);
	int fd = uffd_open(UFFD_FEATURE_MOVE);

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	ASSERT_GE(fd, 0);
	fill(a, NR, 1, 1);
	ASSERT_EQ(move_to(a, size, linked), linked);
	ASSERT_TRUE(uffd_register(fd, b, size, UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(uffd_move(fd, b, linked, size), size);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(b, NR, 1, 1));
	use_moved(_metadata, &self->f, b, 1);
	/* Back, each page once it is this process's own again. */
	fill(b, NR, 1, 2);
	ASSERT_TRUE(uffd_register(fd, linked, size, UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(uffd_move(fd, linked, b, size), size);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(linked, NR, 1, 2));
	use_moved(_metadata, &self->f, linked, 2);
	close(fd);
}

/* Inherited pages: not as long as they are shared, then in the child, then in the parent. */
TEST_F(features, uffd_move_in_a_family)
{
	size_t size = NR * self->page;
	char *from = map_at(room(NR), size), *to = map_at(room(NR), size);
	int fd = uffd_open(UFFD_FEATURE_MOVE);

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	ASSERT_GE(fd, 0);
	fill(from, NR, 1, 1);
	ASSERT_TRUE(uffd_register(fd, to, size, UFFDIO_REGISTER_MODE_MISSING));
	KIN(&self->f, ({
		int mine = uffd_open(UFFD_FEATURE_MOVE);

		uffd_register(mine, to, size, UFFDIO_REGISTER_MODE_MISSING) &&
			uffd_move(mine, to, from, size) == -EBUSY && fill(from, NR, 1, 3) &&
			uffd_move(mine, to, from, size) == size && filled(to, NR, 1, 3) &&
			KIN(&self->f, filled(to, NR, 1, 3) && fill(to, NR, 2, 4)) > 0;
	}));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	KIN(&self->f, filled(from, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_EQ(uffd_move(fd, to, from, size), -EBUSY);
	EXPECT_EQ(move_to_node(0, from, NR, 1), NR);
	EXPECT_SOUND();
	fill(from, NR, 1, 6);
	ASSERT_EQ(uffd_move(fd, to, from, size), size);
	EXPECT_SOUND();
	use_moved(_metadata, &self->f, to, 6);
	close(fd);
}

/*
 * Between a VMA that is linked to the root of an ancestor that has gone and one of one's own root:
 * the folio then names the other root.
 */
TEST_F(features, uffd_move_between_roots)
{
	size_t size = NR * self->page;
	char *from = map_at(room(NR), size), *to = map_at(room(NR), size);
	const bool lazy = lazy_mode();

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	fill(from, NR, 1, 1);
	LAST_OF(&self->f, ({
		int mine = uffd_open(UFFD_FEATURE_MOVE);
		bool good = uffd_register(mine, to, size, UFFDIO_REGISTER_MODE_MISSING) &&
			fill(from, NR, 1, 3) && uffd_move(mine, to, from, size) == (long)size &&
			(!lazy || !strncmp(inside_vma(0, from), "linked root ", 12)) &&
			(!lazy || !strcmp(inside_vma(0, to), "lazy")) && filled(to, NR, 1, 3) &&
			move_to_node(0, to, NR, 1) == NR &&
			KIN(&self->f, filled(to, NR, 1, 3) && fill(to, NR, 2, 4) &&
			    await_step(1)) > 0 &&
			move_to_node(0, to, NR, 0) == NR && report(&self->f) && await_step(1);

		/* And back, a swapped half, too: now that it is its own again. */
		good && fill(to, NR, 1, 5) && !madvise(to, size / 2, MADV_PAGEOUT) &&
			nr_swapped(to, NR) > 0 &&
			uffd_register(mine, from, size, UFFDIO_REGISTER_MODE_MISSING) &&
			uffd_move(mine, from, to, size) == (long)size && filled(from, NR, 1, 5) &&
			move_to_node(0, from, NR, 1) == NR &&
			KIN(&self->f, filled(from, NR, 1, 5)) > 0 &&
			move_to_node(0, from, NR, 0) == NR;
	}));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	*step = 1;
	/* The last one, and its two children. */
	ASSERT_TRUE(family_await(&self->f, 3));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(from, NR, 1, 1));
	EXPECT_EQ(move_to_node(0, from, NR, 1), NR);
	EXPECT_SOUND();
}

/* Swap entries are moved; of half of them the folio is in the swap cache. */
TEST_F(features, uffd_move_of_swapped_pages)
{
	size_t size = 2 * NR * self->page;
	char *from = map_at(room(2 * NR), size), *to = map_at(room(2 * NR), size);
	int fd = uffd_open(UFFD_FEATURE_MOVE);
	long swapped;

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	ASSERT_GE(fd, 0);
	fill(to, 1, 1, 8);
	ASSERT_EQ(madvise(to, self->page, MADV_DONTNEED), 0);
	fill(from, 2 * NR, 1, 1);
	ASSERT_EQ(madvise(from, size, MADV_PAGEOUT), 0);
	swapped = nr_swapped(from, 2 * NR);
	EXPECT_GE(swapped, NR);
	ASSERT_EQ(madvise(from + size / 2, size / 2, MADV_WILLNEED), 0);
	ASSERT_TRUE(uffd_register(fd, to, size, UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(uffd_move(fd, to, from, size), size);
	EXPECT_EQ(nr_swapped(from, 2 * NR), 0);
	EXPECT_GE(nr_swapped(to, 2 * NR), NR / 2);
	EXPECT_SOUND();
	KIN(&self->f, filled(to, 2 * NR, 1, 1) && fill(to, 2 * NR, 3, 7));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(to, 2 * NR, 1, 1));
	EXPECT_SOUND();
	use_moved(_metadata, &self->f, to, 1);
	close(fd);
}

TEST_F(features, uffd_move_of_huge_pages)
{
	const size_t nr = 2 * MIB / self->page;
	char *from = map_aligned(4 * MIB, 2 * MIB), *to = map_aligned(4 * MIB, 2 * MIB);
	int fd = uffd_open(UFFD_FEATURE_MOVE);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(madvise(from, 4 * MIB, MADV_HUGEPAGE), 0);
	fill(from, 2 * nr, 1, 1);
	ASSERT_EQ(nr_scanned(from, 2 * nr, PAGE_IS_HUGE, 0), 2 * nr);
	ASSERT_TRUE(uffd_register(fd, to, 4 * MIB, UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(uffd_move(fd, to, from, 2 * MIB), 2 * MIB);
	EXPECT_EQ(nr_scanned(to, nr, PAGE_IS_HUGE, 0), nr);
	EXPECT_TRUE(filled(to, nr, 1, 1));
	EXPECT_SOUND();
	/* Half of one, to where it is not aligned: that splits it. */
	ASSERT_EQ(uffd_move(fd, to + 2 * MIB + 16 * self->page, from + 2 * MIB, MIB), MIB);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(to + 2 * MIB + 16 * self->page, nr / 2, 1, (unsigned char)(nr * 7 + 1)));
	KIN(&self->f, filled(to, nr, 1, 1) && fill(to, nr, 100, 9));
	KIN(&self->f, filled(from + 3 * MIB, nr / 2, 1, (unsigned char)(nr * 3 / 2 * 7 + 1)));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	for (int node = 0; node < 2; node++) {
		EXPECT_GT(move_to_node(0, to, nr, node), 0);
		EXPECT_SOUND();
	}
	ASSERT_TRUE(put("/sys/kernel/debug/split_huge_pages", "1"));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(to, nr, 1, 1));
	close(fd);
}

/* As a moving garbage collector does: the pages go away, and come back one by one. */
TEST_F(features, dontunmap_and_uffd)
{
	for (int shared = 0; shared < 2; shared++) {
		char *area = map_at(room(NR), NR * self->page);
		struct uffd u = { .seed = 1 };

		fill(area, NR, 1, 1);
		if (shared) {
			KIN(&self->f, filled(area, NR, 1, 1));
			ASSERT_TRUE(family_await(&self->f, 1));
		}
		u.from = mremap(area, NR * self->page, NR * self->page,
				MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
		ASSERT_NE(u.from, MAP_FAILED);
		EXPECT_SOUND();
		ASSERT_TRUE(uffd_start(&u, area, NR * self->page, UFFDIO_REGISTER_MODE_MISSING,
				       UFFD_FEATURE_MOVE));
		EXPECT_TRUE(filled(area, NR, 1, 1));
		EXPECT_SOUND();
		/* The thread counts what it has done when the page is there already. */
		EXPECT_EQ(uffd_stop(&u), 0);
		EXPECT_EQ(u.missing, NR);
		EXPECT_EQ(u.moved, shared ? 0 : NR);
		EXPECT_EQ(u.copied, shared ? NR : 0);
		KIN(&self->f, filled(area, NR, 1, 1) && fill(area, NR, 5, 3) &&
		    KIN(&self->f, filled(area, NR, 5, 3)) > 0);
		ASSERT_TRUE(family_await(&self->f, 2));
		EXPECT_EQ(move_to_node(0, area, NR, 1), NR);
		EXPECT_SOUND();
		ASSERT_EQ(munmap(u.from, NR * self->page), 0);
		EXPECT_SOUND();
	}
}

/*
 * userfaultfd prepares the VMA at its destination before it looks what that is. One that is no CoW
 * mapping has no anonymous page. It lies where a page that has moved away was first touched, and a
 * walk for that page must not come by.
 */
TEST_F(features, a_mapping_without_anonymous_pages)
{
	char *area = map_at(room(NR), NR * self->page), *away = map_at(room(NR), NR * self->page);
	const size_t size = NR * self->page;
	const long special = lazy_mode() ? avl_counter("first_fault_special") : 0;
	struct uffdio_zeropage zero = { .range = { (uintptr_t)area, self->page } };
	int fd = uffd_open(0), file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	ASSERT_GE(fd, 0);
	ASSERT_GE(file, 0);
	fill(area, NR, 1, 1);
	ASSERT_EQ(mremap(area, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, away), away);
	ASSERT_EQ(mmap(area, self->page, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0), area);
	ASSERT_EQ(*(volatile char *)area, 0x7f);
	EXPECT_EQ(ioctl(fd, UFFDIO_ZEROPAGE, &zero), -1);
	EXPECT_EQ(errno, ENOENT);
	if (lazy_mode()) {
		EXPECT_STREQ(inside_vma(0, area), "regular");
		EXPECT_STREQ(inside_vma(0, away), "linked moved");
		EXPECT_GT(avl_counter("first_fault_special"), special);
	}
	KIN(&self->f, filled(away, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	EXPECT_EQ(move_to_node(0, away, NR, 1), NR);
	EXPECT_EQ(move_to_node(0, away, NR, 0), NR);
	ASSERT_EQ(madvise(away, size, MADV_PAGEOUT), 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(away, NR, 1, 1));
	EXPECT_EQ(*(volatile char *)area, 0x7f);
	close(file);
	close(fd);
}

/*
 * A private mapping of memory that is no RAM: what the process writes to is copied to anonymous
 * folios, the rest has no folio. Such a VMA stays Regular, also when fork copies it.
 */
TEST_F(features, a_private_mapping_of_a_device)
{
	const size_t page = self->page;
	const long special = lazy_mode() ? avl_counter("first_fault_special") : 0;
	int fd = open("/dev/mem", O_RDONLY | O_CLOEXEC);
	volatile char *device_page, *at;
	char *area, first, second;

	ASSERT_GE(fd, 0);
	area = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, DEVICE);
	ASSERT_NE(area, MAP_FAILED);
	device_page = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, DEVICE + page);
	ASSERT_NE(device_page, MAP_FAILED);
	at = area + page;
	first = at[0];
	second = at[1];
	if (lazy_mode())
		EXPECT_STREQ(inside_vma(0, area), "unfaulted");
	at[0] = first + 1;
	/* The rest of the page came from the device, and the device did not change. */
	EXPECT_EQ(at[1], second);
	EXPECT_EQ(device_page[0], first);
	if (lazy_mode()) {
		EXPECT_STREQ(inside_vma(0, area), "regular");
		EXPECT_GT(avl_counter("first_fault_special"), special);
	}
	KIN(&self->f, at[0] == (char)(first + 1) && (at[0] = first + 2, at[page] = 1, true) &&
	    (!lazy_mode() || !strcmp(inside_vma(0, area), "regular")) &&
	    !munmap(area, page) && at[0] == (char)(first + 2));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_EQ(at[0], (char)(first + 1));
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	ASSERT_EQ(munmap(area + 2 * page, page), 0);
	EXPECT_EQ(at[0], (char)(first + 1));
	EXPECT_SOUND();
	close(fd);
}

/* Which pages were written to, asked and protected again in one call. */
TEST_F(features, pagemap_scan)
{
	char *area = map_at(room(NR), NR * self->page);
	int fd = uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	const uint64_t flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;

	ASSERT_GE(fd, 0);
	fill(area, NR, 1, 1);
	ASSERT_TRUE(uffd_register(fd, area, NR * self->page, UFFDIO_REGISTER_MODE_WP));
	EXPECT_EQ(nr_scanned(area, NR, PAGE_IS_WRITTEN, flags), NR);
	EXPECT_EQ(nr_scanned(area, NR, PAGE_IS_WRITTEN, flags), 0);
	fill(area, NR, 4, 2);
	EXPECT_EQ(nr_scanned(area, NR, PAGE_IS_WRITTEN, 0), NR / 4);
	KIN(&self->f, filled(area, NR, 4, 2) && fill(area, NR, 2, 3));
	ASSERT_TRUE(family_await(&self->f, 1));
	/* What the child writes is not written here. */
	EXPECT_EQ(nr_scanned(area, NR, PAGE_IS_WRITTEN, flags), NR / 4);
	EXPECT_SOUND();
	EXPECT_EQ(move_to_node(0, area, NR, 1), NR);
	EXPECT_EQ(move_to_node(0, area, NR, 0), NR);
	EXPECT_EQ(nr_scanned(area, NR, PAGE_IS_WRITTEN, 0), 0);
	fill(area, NR, 8, 4);
	EXPECT_EQ(nr_scanned(area, NR, PAGE_IS_WRITTEN, flags), NR / 8);
	EXPECT_SOUND();
	close(fd);
}

#ifdef __x86_64__
TEST_F(features, soft_dirty)
{
	char *area = map_at(NULL, NR * self->page), path[64];
	pid_t pid;

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	EXPECT_EQ(nr_with_bit(area, NR, 55), NR);
	ASSERT_TRUE(put("/proc/self/clear_refs", "4"));
	EXPECT_EQ(nr_with_bit(area, NR, 55), 0);
	EXPECT_SOUND();
	pid = KIN(&self->f, report(&self->f) && await_step(1) &&
		  nr_with_bit(area, NR, 55) == 0 && fill(area, NR, 2, 3) &&
		  nr_with_bit(area, NR, 55) == NR / 2);
	ASSERT_TRUE(family_await(&self->f, 1));
	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	ASSERT_TRUE(put(path, "4"));
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_EQ(nr_with_bit(area, NR, 55), 0);
	fill(area, NR, 8, 2);
	EXPECT_EQ(nr_with_bit(area, NR, 55), NR / 8);
	EXPECT_SOUND();
}
#endif

/* DAMON */

/* One kdamond with one scheme for regions that were hit so often in an aggregation. */
static bool damon_start(const char *ops, pid_t pid, const char *action, int min, int max)
{
	const char *context = DAMON "0/contexts/0/";
	const char *scheme = DAMON "0/contexts/0/schemes/0/";

	return put(DAMON "nr_kdamonds", "0") && put(DAMON "nr_kdamonds", "1") &&
		put(DAMON "0/contexts/nr_contexts", "1") &&
		putf(context, "operations", "%s", ops) &&
		putf(context, "monitoring_attrs/intervals/sample_us", "5000") &&
		putf(context, "monitoring_attrs/intervals/aggr_us", "100000") &&
		putf(context, "monitoring_attrs/intervals/update_us", "500000") &&
		putf(context, "targets/nr_targets", "1") &&
		(!pid || putf(context, "targets/0/pid_target", "%d", pid)) &&
		putf(context, "schemes/nr_schemes", "1") &&
		putf(scheme, "action", "%s", action) &&
		putf(scheme, "access_pattern/sz/min", "0") &&
		putf(scheme, "access_pattern/sz/max", "%lu", ~0UL >> 1) &&
		putf(scheme, "access_pattern/nr_accesses/min", "%d", min) &&
		putf(scheme, "access_pattern/nr_accesses/max", "%d", max) &&
		putf(scheme, "access_pattern/age/min", "0") &&
		putf(scheme, "access_pattern/age/max", "%d", INT32_MAX);
}

static bool damon_region(unsigned long start, unsigned long end)
{
	const char *regions = DAMON "0/contexts/0/targets/0/regions/";

	return putf(regions, "nr_regions", "1") && putf(regions, "0/start", "%lu", start) &&
		putf(regions, "0/end", "%lu", end);
}

static long damon_stat(const char *name)
{
	char path[256];

	if (!put(DAMON "0/state", "update_schemes_stats"))
		return -1;
	snprintf(path, sizeof(path), DAMON "0/contexts/0/schemes/0/stats/%s", name);
	return number(path);
}

static bool damon_stop(void)
{
	return put(DAMON "0/state", "off") && put(DAMON "nr_kdamonds", "0");
}

/* Have a scheme for the physical addresses of a huge page come to something, and leave it on. */
static bool damon_physical(char *area, size_t size, const char *action, const char *stat)
{
	const unsigned long start = pfn_of(area) * sysconf(_SC_PAGESIZE);

	return start && damon_start("paddr", 0, action, 1, INT32_MAX) &&
		damon_region(start, start + size) && put(DAMON "0/state", "on") &&
		WAIT_FOR(damon_stat(stat) > 0, 60);
}

/*
 * Touch pages until the family has come so far. What a TLB knows is not seen again,
 * and mprotect() of what is shared, and so read-only anyway, flushes nothing: go to
 * another CPU each time.
 */
static bool touch_until(char *area, size_t size, int end)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	volatile char sum;

	for (long n = 0; *step < end; n++) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(n % cpus, &set);
		if (sched_setaffinity(0, sizeof(set), &set))
			return false;
		for (size_t i = 0; i < size; i += page)
			sum = area[i];
	}
	(void)sum;
	return true;
}

TEST_F(features, damon_on_virtual_addresses)
{
	const size_t size = 4 * MIB;
	char *area = map_at(room(size / self->page), size);
	pid_t pid;

	ASSERT_TRUE(have_swap());
	fill(area, size / self->page, 1, 1);
	pid = KIN(&self->f, report(&self->f) && touch_until(area, size, 1) &&
		  filled(area, size / self->page, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	/* It sees what the child touches. */
	ASSERT_TRUE(damon_start("vaddr", pid, "stat", 1, INT32_MAX));
	ASSERT_TRUE(put(DAMON "0/state", "on"));
	EXPECT_TRUE(WAIT_FOR(damon_stat("nr_tried") > 0, 60));
	EXPECT_SOUND();
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_TRUE(damon_stop());
	EXPECT_EQ(family_release(&self->f), 0);
	/* It pages out what nobody touches. */
	ASSERT_TRUE(damon_start("fvaddr", getpid(), "pageout", 0, 0));
	ASSERT_TRUE(damon_region((uintptr_t)area, (uintptr_t)area + size));
	ASSERT_TRUE(put(DAMON "0/state", "on"));
	EXPECT_TRUE(WAIT_FOR(nr_swapped(area, size / self->page) > NR, 60));
	EXPECT_GT(damon_stat("sz_applied"), 0);
	ASSERT_TRUE(damon_stop());
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, size / self->page, 1, 1));
}

/* By address in memory: each look is a walk of the reverse map. */
TEST_F(features, damon_on_physical_addresses)
{
	const size_t size = 2 * MIB, nr = size / self->page;
	char *area = map_aligned(size, size);
	unsigned long start;

	ASSERT_TRUE(have_swap());
	ASSERT_EQ(madvise(area, size, MADV_HUGEPAGE), 0);
	fill(area, nr, 1, 1);
	ASSERT_EQ(nr_scanned(area, nr, PAGE_IS_HUGE, 0), nr);
	/* Who touches them is not whom they are from. */
	KIN(&self->f, KIN(&self->f, report(&self->f) && touch_until(area, size, 1)) > 0);
	KIN(&self->f, filled(area, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 3));
	ASSERT_TRUE(damon_physical(area, size, "stat", "nr_tried"));
	EXPECT_SOUND();
	ASSERT_TRUE(damon_stop());
	ASSERT_TRUE(damon_physical(area, size, "lru_prio", "sz_applied"));
	EXPECT_SOUND();
	ASSERT_TRUE(damon_stop());
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 1));
	start = pfn_of(area) * self->page;
	ASSERT_NE(start, 0);
	ASSERT_TRUE(damon_start("paddr", 0, "pageout", 0, 0));
	ASSERT_TRUE(damon_region(start, start + size));
	ASSERT_TRUE(put(DAMON "0/state", "on"));
	EXPECT_TRUE(WAIT_FOR(nr_swapped(area, nr) > 0, 60));
	EXPECT_TRUE(WAIT_FOR(damon_stat("sz_applied") > 0, 60));
	EXPECT_SOUND();
	ASSERT_TRUE(damon_stop());
	KIN(&self->f, filled(area, nr, 1, 1) && fill(area, nr, 20, 7));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, nr, 1, 1));
}

/* uprobes: the kernel copies a page of the program's text, in each process that has it. */

static void probed_function(void)
{
	__asm__ volatile("nop\n\tnop" : : : "memory");
}

/* Not for the compiler to know, who would inline it. */
static void (*volatile probed)(void) = probed_function;

/* A check of what a program that is started here was given, in place of any test. */
__attribute__((constructor)) static void other_lives(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "probed")) {
		for (int i = 0; i < 5; i++)
			probed();
		_exit(0);
	}
	if (argc > 2 && !strcmp(argv[1], "arguments")) {
		for (int i = 2; i < argc; i++) {
			size_t len = strlen(argv[i]);

			if (len != (size_t)atoi(argv[i] + 1) || argv[i][0] != 'a' + i ||
			    argv[i][len - 1] != 'a' + i)
				_exit(1);
		}
		_exit(0);
	}
}

/* Where a function is: the file, and the place in it. */
static bool place_of(void (*function)(void), char *path, size_t size, unsigned long *place)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long from, to, offset, at = (unsigned long)function;
	char line[512], file[256];
	bool found = false;

	while (maps && !found && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %*s %lx %*s %*s %255s", &from, &to, &offset, file) == 4 &&
		    at >= from && at < to) {
			snprintf(path, size, "%s", file);
			*place = at - from + offset;
			found = true;
		}
	if (maps)
		fclose(maps);
	return found;
}

static long uprobe_hits(void)
{
	FILE *profile = fopen(TRACING "uprobe_profile", "re");
	char line[512], name[64];
	long hits = -1, n;

	while (profile && fgets(line, sizeof(line), profile))
		if (sscanf(line, "%*s %63s %ld", name, &n) == 2 && !strcmp(name, "features_hit"))
			hits = n;
	if (profile)
		fclose(profile);
	return hits;
}

static bool call_probed(int times)
{
	while (times--)
		probed();
	return true;
}

TEST_F(features, uprobes)
{
	char path[256], *text = (char *)((uintptr_t)probed_function & -self->page);
	unsigned long place, pfn = pfn_of(text);
	int status;
	pid_t pid;

	probed();
	ASSERT_TRUE(place_of(probed_function, path, sizeof(path), &place));
	KIN(&self->f, report(&self->f) && await_step(1) && call_probed(3));
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_TRUE(putf(TRACING, "uprobe_events", "p:features/features_hit %s:0x%lx", path,
			 place));
	ASSERT_TRUE(put(TRACING "events/features/features_hit/enable", "1"));
	EXPECT_EQ(uprobe_hits(), 0);
	call_probed(2);
	EXPECT_EQ(uprobe_hits(), 2);
	/* The page of the text has been copied, and is one of the VMA's anonymous pages. */
	EXPECT_EQ(nr_scanned(text, 1, PAGE_IS_PRESENT, 0), 1);
	EXPECT_EQ(nr_scanned(text, 1, PAGE_IS_FILE, 0), 0);
	EXPECT_NE(pfn_of(text), pfn);
	EXPECT_SOUND();
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_EQ(uprobe_hits(), 5);
	EXPECT_SOUND();
	KIN(&self->f, call_probed(4) && KIN(&self->f, call_probed(6)) > 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_EQ(uprobe_hits(), 15);
	EXPECT_SOUND();
	pid = fork();
	if (!pid) {
		execl("/proc/self/exe", "features", "probed", (char *)NULL);
		_exit(127);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_EQ(uprobe_hits(), 20);
	EXPECT_EQ(move_to_node(0, text, 1, 1), 1);
	EXPECT_SOUND();
	call_probed(1);
	EXPECT_EQ(uprobe_hits(), 21);
	ASSERT_TRUE(put(TRACING "events/features/features_hit/enable", "0"));
	EXPECT_SOUND();
	call_probed(1);
	ASSERT_TRUE(put(TRACING "uprobe_events", "-:features/features_hit"));
	EXPECT_SOUND();
}

/* Memory that is taken from those who are dying. */

/* Stop a child at the point where it exits, which is before it gives up its memory. */
static bool stop_at_exit(pid_t pid)
{
	return !ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXIT);
}

static bool has_stopped_at_exit(pid_t pid)
{
	int status;

	return waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status) &&
		status >> 8 == (SIGTRAP | PTRACE_EVENT_EXIT << 8);
}

static bool died_of(pid_t pid, int sig)
{
	int status;

	return waitpid(pid, &status, __WALL) == pid && WIFSIGNALED(status) &&
		WTERMSIG(status) == sig;
}

TEST_F(features, process_mrelease)
{
	const size_t nr = 4 * MIB / self->page;
	char *area = map_at(room(nr), 4 * MIB), *more = map_at(room(nr), 4 * MIB);
	pid_t pid;
	int fd;

	fill(area, nr, 1, 1);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		fill(more, nr, 1, 2);
		for (int i = 0; i < 3; i++)
			KIN(&self->f, filled(area, nr, 1, 1) && fill(more, nr, 5, i) &&
			    report(&self->f) && await_step(1) && filled(area, nr, 1, 1) &&
			    filled(more, nr, 5, i));
		mprotect(more + 8 * self->page, 8 * self->page, PROT_READ);
		move_to(more, 4 * self->page, room(4));
		report(&self->f);
		pause();
		_exit(0);
	}
	ASSERT_TRUE(family_await(&self->f, 4));
	ASSERT_TRUE(stop_at_exit(pid));
	fd = syscall(SYS_pidfd_open, pid, 0);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(syscall(SYS_process_mrelease, fd, 0), -1);
	EXPECT_EQ(errno, EINVAL);
	ASSERT_EQ(kill(pid, SIGKILL), 0);
	ASSERT_TRUE(has_stopped_at_exit(pid));
	EXPECT_GE(status_kb(pid, "RssAnon:"), 4096);
	EXPECT_EQ(syscall(SYS_process_mrelease, fd, 0), 0);
	EXPECT_EQ(status_kb(pid, "RssAnon:"), 0);
	EXPECT_SOUND();
	EXPECT_GT(move_to_node(0, area, nr, 1), 0);
	EXPECT_SOUND();
	ASSERT_EQ(ptrace(PTRACE_CONT, pid, 0, 0), 0);
	EXPECT_TRUE(died_of(pid, SIGKILL));
	close(fd);
	EXPECT_SOUND();
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 3));
	EXPECT_TRUE(filled(area, nr, 1, 1));
}

/* The console's log level; the previous one. */
static int console_level(int level)
{
	int before = number("/proc/sys/kernel/printk");

	putf("/proc/sys/kernel/", "printk", "%d", level);
	return before;
}

/*
 * Killed for want of memory, and reaped while it cannot exit. The kernel shows a
 * backtrace then, which is none of a defect: it is kept from the console.
 */
TEST_F(features, oom_killer_and_reaper)
{
	const size_t nr = 2 * MIB / self->page;
	char *area = map_at(room(nr), 2 * MIB), group[64], path[80];
	int level = console_level(4);
	long kills;
	pid_t pid;

	ASSERT_TRUE(make_cgroup("oom", group, sizeof(group)));
	ASSERT_TRUE(putf(group, "memory.max", "%lu", 32 * MIB));
	ASSERT_TRUE(putf(group, "memory.swap.max", "0"));
	snprintf(path, sizeof(path), "%smemory.events", group);
	kills = field(path, "oom_kill");
	fill(area, nr, 1, 1);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		char *own = map_at(NULL, 2 * MIB), *big = map_at(room(64 * 256), 64 * MIB);

		if (!putf(group, "cgroup.procs", "0"))
			_exit(1);
		fill(own, nr, 1, 2);
		for (int i = 0; i < 3; i++)
			KIN(&self->f, filled(area, nr, 1, 1) && fill(own, nr, 5, i) &&
			    report(&self->f) && await_step(2) && filled(area, nr, 1, 1) &&
			    filled(own, nr, 5, i));
		/* Nobody else has to go. */
		put("/proc/self/oom_score_adj", "1000");
		report(&self->f);
		await_step(1);
		fill(big, 64 * MIB / self->page, 1, 3);
		_exit(3);
	}
	ASSERT_TRUE(family_await(&self->f, 4));
	ASSERT_TRUE(stop_at_exit(pid));
	*step = 1;
	ASSERT_TRUE(has_stopped_at_exit(pid));
	EXPECT_EQ(field(path, "oom_kill"), kills + 1);
	/* The reaper gives it two seconds. */
	EXPECT_TRUE(WAIT_FOR(!status_kb(pid, "RssAnon:"), 10));
	EXPECT_SOUND();
	EXPECT_GT(move_to_node(0, area, nr, 1), 0);
	EXPECT_SOUND();
	ASSERT_EQ(ptrace(PTRACE_CONT, pid, 0, 0), 0);
	EXPECT_TRUE(died_of(pid, SIGKILL));
	console_level(level);
	EXPECT_TRUE(avl_log_has("oom_reaper: reaped process"));
	*step = 2;
	ASSERT_TRUE(family_await(&self->f, 3));
	EXPECT_TRUE(filled(area, nr, 1, 1));
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_EQ(rmdir(group), 0);
}

/* Whether the dump has this memory, with the pattern of fill(). */
static bool core_has(int fd, const char *area, size_t nr, unsigned char seed)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	char *copy = malloc(nr * page);
	struct elf64_hdr header;
	struct elf64_phdr segment;
	bool found = false;

	if (!copy || pread(fd, &header, sizeof(header), 0) != sizeof(header) ||
	    memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_type != ET_CORE)
		return false;
	/* It may be in several segments, one after the other. */
	for (size_t p = 0, i; p < nr; p++) {
		uint64_t at = (uintptr_t)area + p * page;

		found = false;
		for (i = 0; i < header.e_phnum && !found; i++) {
			if (pread(fd, &segment, sizeof(segment),
				  header.e_phoff + i * sizeof(segment)) != sizeof(segment))
				return false;
			if (segment.p_type == PT_LOAD && at >= segment.p_vaddr &&
			    at + page <= segment.p_vaddr + segment.p_filesz)
				found = pread(fd, copy + p * page, page, segment.p_offset + at -
					      segment.p_vaddr) == page;
		}
		if (!found)
			break;
	}
	found = found && filled(copy, nr, 1, seed);
	free(copy);
	return found;
}

TEST_F(features, core_dump)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	char *area = map_at(room(NR), NR * self->page), *own = map_at(room(NR), NR * self->page);
	char *moved = room(NR), pattern[128], path[64];
	int fd, file, status;
	pid_t pid;

	ASSERT_TRUE(have_swap());
	file = memfd_create("features", 0);
	ASSERT_EQ(ftruncate(file, NR * self->page), 0);
	ASSERT_GT(avl_read("/proc/sys/kernel/core_pattern", pattern, sizeof(pattern)), 0);
	ASSERT_TRUE(put("/proc/sys/kernel/core_pattern", "/tmp/core.%p"));
	fill(area, NR, 1, 1);
	KIN(&self->f, filled(area, NR, 1, 1));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		char *copied = mmap(own + 4 * NR * self->page, NR * self->page,
				    PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);

		if (setrlimit(RLIMIT_CORE, &limit) || copied == MAP_FAILED)
			_exit(1);
		fill(own, NR, 1, 2);
		/* Several VMAs, part of it in swap, and one that was moved. */
		mprotect(own + 8 * self->page, 8 * self->page, PROT_READ);
		madvise(own + 20 * self->page, 8 * self->page, MADV_PAGEOUT);
		fill(copied, NR, 1, 3);
		if (move_to(copied, NR * self->page, moved) != moved)
			_exit(1);
		KIN(&self->f, filled(own, NR, 1, 2) && fill(moved, NR, 2, 5));
		report(&self->f);
		await_step(1);
		abort();
	}
	ASSERT_TRUE(family_await(&self->f, 3));
	*step = 1;
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && WCOREDUMP(status)) {
		TH_LOG("status %#x", status);
	}
	EXPECT_SOUND();
	snprintf(path, sizeof(path), "/tmp/core.%d", pid);
	fd = open(path, O_RDONLY);
	ASSERT_GE(fd, 0);
	EXPECT_TRUE(core_has(fd, area, NR, 1));
	EXPECT_TRUE(core_has(fd, own, NR, 2));
	EXPECT_TRUE(core_has(fd, moved, NR, 3));
	EXPECT_FALSE(core_has(fd, moved, NR, 4));
	unlink(path);
	pattern[strcspn(pattern, "\n")] = 0;
	put("/proc/sys/kernel/core_pattern", pattern);
	EXPECT_TRUE(filled(area, NR, 1, 1));
	close(fd);
	close(file);
}

/* Large folios that are smaller than a huge page. */
TEST_F(features, mthp)
{
	const size_t nr = MIB / self->page, n = 65536 / self->page;
	/* Too small for huge pages, and not neighbours. */
	char *area = map_aligned(4 * MIB, 2 * MIB), *swap = area + 2 * MIB, *moved = room(n);
	long faults = number(MTHP "stats/anon_fault_alloc"), out = number(MTHP "stats/swpout");
	struct verdict v;

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	ASSERT_EQ(munmap(area + MIB, MIB), 0);
	ASSERT_EQ(munmap(swap + MIB, MIB), 0);
	ASSERT_TRUE(put(MTHP "enabled", "madvise"));
	ASSERT_EQ(madvise(area, MIB, MADV_HUGEPAGE), 0);
	ASSERT_EQ(madvise(swap, MIB, MADV_HUGEPAGE), 0);
	fill(area, nr, 1, 1);
	fill(swap, nr, 1, 2);
	EXPECT_GE(number(MTHP "stats/anon_fault_alloc"), faults + 24);
	ASSERT_EQ(oracle(&v), 0);
	EXPECT_GE(v.large, 24);
	/* Swapped out whole, forked, swapped in. */
	ASSERT_EQ(madvise(swap, MIB, MADV_PAGEOUT), 0);
	EXPECT_GE(nr_swapped(swap, nr), nr / 2);
	EXPECT_GT(number(MTHP "stats/swpout"), out);
	EXPECT_SOUND();
	KIN(&self->f, filled(swap, nr, 1, 2) && fill(swap, nr, 3, 7));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(swap, nr, 1, 2));
	EXPECT_SOUND();
	/* Shared; the first page unmapped, across a border, spread over VMAs, moved in part. */
	KIN(&self->f, filled(area, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_EQ(munmap(area, 2 * self->page), 0);
	ASSERT_EQ(munmap(area + (2 * n - 2) * self->page, 4 * self->page), 0);
	ASSERT_EQ(mprotect(area + (4 * n + 3) * self->page, 2 * n * self->page, PROT_READ), 0);
	ASSERT_EQ(move_to(area + (8 * n + 4) * self->page, n / 2 * self->page, moved), moved);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(moved, n / 2, 1, (unsigned char)((8 * n + 4) * 7 + 1)));
	KIN(&self->f, filled(area + 10 * n * self->page, n, 1, (unsigned char)(10 * n * 7 + 1)) &&
	    fill(area + 10 * n * self->page, 4 * n, 5, 9) &&
	    KIN(&self->f, fill(area + 12 * n * self->page, n, 2, 3)) > 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	for (int node = 0; node < 2; node++) {
		EXPECT_GT(move_to_node(0, area + 3 * n * self->page, nr - 3 * n, node), 0);
		EXPECT_SOUND();
	}
	EXPECT_GT(reclaim_until_swapped(area + 3 * n * self->page, nr - 3 * n, n), 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area + 10 * n * self->page, 6 * n, 1, (unsigned char)(10 * n * 7 + 1)));
	ASSERT_TRUE(put("/sys/kernel/debug/split_huge_pages", "1"));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area + 10 * n * self->page, 6 * n, 1, (unsigned char)(10 * n * 7 + 1)));
	EXPECT_TRUE(put(MTHP "enabled", "never"));
}

/* Memory follows its task to another node: what a task has for itself. */
TEST_F(features, numa_balancing)
{
	const size_t nr = 512;
	char *area = map_at(room(nr), nr * self->page);
	long migrated, faults;

	ASSERT_TRUE(put("/proc/sys/kernel/numa_balancing", "1"));
	put(NUMAB "scan_delay_ms", "50");
	put(NUMAB "scan_period_min_ms", "50");
	put(NUMAB "scan_period_max_ms", "200");
	fill(area, nr, 1, 1);
	ASSERT_EQ(move_to_node(0, area, nr, 0), nr);
	migrated = event("numa_pages_migrated");
	faults = event("numa_hint_faults");
	ASSERT_GE(migrated, 0);
	KIN(&self->f, ({
		double end = now() + 12;
		long there = 0;

		/* Half of the pages are its own from here on. */
		fill(area, nr, 2, 7);
		move_to_node(0, area, nr, 0);
		bind_cpus(1);
		while (now() < end && there < nr / 8) {
			for (int i = 0; i < 20; i++)
				if (!filled(area, nr, 2, 7))
					break;
			there = on_node(0, area, nr, 1);
		}
		there >= nr / 8 && filled(area, nr, 2, 7) &&
			KIN(&self->f, filled(area, nr, 2, 7)) > 0;
	}));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_GT(event("numa_hint_faults"), faults);
	EXPECT_GE(event("numa_pages_migrated"), migrated + (long)nr / 8);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, nr, 1, 1));
	put(NUMAB "scan_delay_ms", "1000");
	put(NUMAB "scan_period_min_ms", "1000");
	put(NUMAB "scan_period_max_ms", "60000");
}

TEST_F(features, mbind_and_migrate_pages)
{
	char *area = map_at(room(NR), NR * self->page);
	unsigned long from = 1, to = 2;
	pid_t pid;

	fill(area, NR, 1, 1);
	ASSERT_TRUE(bind_area(area, NR * self->page, 1, MPOL_MF_MOVE | MPOL_MF_STRICT));
	EXPECT_EQ(on_node(0, area, NR, 1), NR);
	EXPECT_SOUND();
	pid = KIN(&self->f, filled(area, NR, 1, 1) && fill(area, NR, 4, 2) &&
		  KIN(&self->f, filled(area, NR, 4, 2)) > 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	/* What is shared is left alone, but if one wants all. The policy splits the VMA. */
	ASSERT_TRUE(bind_area(area, NR / 2 * self->page, 0, MPOL_MF_MOVE));
	EXPECT_EQ(on_node(0, area, NR / 2, 1), NR / 2 - NR / 8);
	EXPECT_SOUND();
	ASSERT_TRUE(bind_area(area, NR * self->page, 0, MPOL_MF_MOVE_ALL | MPOL_MF_STRICT));
	EXPECT_EQ(on_node(0, area, NR, 0), NR);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 1));
	/* All pages of the child, with all that it shares with us. */
	EXPECT_GE(syscall(SYS_migrate_pages, pid, 64UL, &from, &to), 0);
	EXPECT_EQ(on_node(pid, area, NR, 1), NR);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 1));
	KIN(&self->f, filled(area, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
}

/* Others read and write a process's memory, also where itself it may not. */
TEST_F(features, ptrace_and_process_vm)
{
	char *area = map_at(room(NR), NR * self->page), copy[65536];
	struct iovec local = { copy, self->page }, remote = { area + 2 * self->page, self->page };
	int status;
	long word;
	pid_t pid;

	fill(area, NR, 1, 1);
	pid = KIN(&self->f, !mprotect(area, self->page, PROT_READ) && report(&self->f) &&
		  await_step(1) && area[0] == 9 && area[1] == 1 && area[2 * self->page] == 77 &&
		  filled(area + 3 * self->page, 1, 1, 3 * 7 + 1) &&
		  KIN(&self->f, area[0] == 9) > 0);
	KIN(&self->f, filled(area, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 2));
	ASSERT_EQ(ptrace(PTRACE_SEIZE, pid, 0, 0), 0);
	ASSERT_EQ(ptrace(PTRACE_INTERRUPT, pid, 0, 0), 0);
	ASSERT_EQ(waitpid(pid, &status, __WALL), pid);
	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, pid, area, 0);
	EXPECT_EQ(errno, 0);
	EXPECT_EQ(word, 0x0101010101010101L);
	EXPECT_EQ(ptrace(PTRACE_POKEDATA, pid, area, (word & ~0xffL) | 9), 0);
	EXPECT_SOUND();
	EXPECT_EQ(process_vm_readv(pid, &local, 1, &remote, 1, 0), self->page);
	EXPECT_EQ(copy[0], 2 * 7 + 1);
	memset(copy, 77, self->page);
	EXPECT_EQ(process_vm_writev(pid, &local, 1, &remote, 1, 0), self->page);
	EXPECT_SOUND();
	ASSERT_EQ(ptrace(PTRACE_DETACH, pid, 0, 0), 0);
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_TRUE(filled(area, NR, 1, 1));
	EXPECT_SOUND();
}

/* A child in another memory cgroup: what it makes is charged and reclaimed there. */
TEST_F(features, memory_cgroups)
{
	const size_t nr = 4 * MIB / self->page;
	char *area = map_at(room(nr), 4 * MIB), group[64], path[96];

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	ASSERT_TRUE(make_cgroup("other", group, sizeof(group)));
	fill(area, nr, 1, 1);
	KIN(&self->f, putf(group, "cgroup.procs", "0") && fill(area, nr, 2, 5) &&
	    KIN(&self->f, filled(area, nr, 2, 5) && report(&self->f) && await_step(1) &&
		filled(area, nr, 2, 5)) > 0 && report(&self->f) &&
	    await_step(1) && nr_swapped(area, nr) > NR && filled(area, nr, 2, 5));
	KIN(&self->f, filled(area, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 3));
	snprintf(path, sizeof(path), "%smemory.stat", group);
	/* Half of the pages, once. */
	EXPECT_GE(field(path, "anon"), 2 * MIB);
	EXPECT_LT(field(path, "anon"), 3 * MIB);
	EXPECT_SOUND();
	for (int i = 0; i < 20 && field(path, "anon") > MIB; i++)
		putf(group, "memory.reclaim", "1M");
	EXPECT_LT(field(path, "anon"), MIB + MIB / 2);
	EXPECT_SOUND();
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, nr, 1, 1));
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_EQ(rmdir(group), 0);
}

/* A RAM disk as swap, beside zram. */

/* kB in use on this swap device, or -1. */
static long swap_used(const char *device)
{
	FILE *swaps = fopen("/proc/swaps", "re");
	char line[256], name[64];
	long used = -1, n;

	while (swaps && fgets(line, sizeof(line), swaps))
		if (sscanf(line, "%63s %*s %*d %ld", name, &n) == 2 && !strcmp(name, device))
			used = n;
	if (swaps)
		fclose(swaps);
	return used;
}

TEST_F(features, swap_on_a_ram_disk)
{
	const size_t nr = 2048;
	char *area = map_at(room(nr), nr * self->page), *page = calloc(1, self->page);
	long used, size = number("/sys/block/ram0/size") * 512;
	int fd = open("/dev/ram0", O_RDWR);

	ASSERT_TRUE(have_swap());
	ASSERT_GE(fd, 0);
	((uint32_t *)page)[256] = 1;
	((uint32_t *)page)[257] = size / self->page - 1;
	memcpy(page + self->page - 10, "SWAPSPACE2", 10);
	ASSERT_EQ(pwrite(fd, page, self->page, 0), self->page);
	ASSERT_EQ(fsync(fd), 0);
	close(fd);
	free(page);
	ASSERT_EQ(swapon("/dev/ram0", SWAP_FLAG_PREFER | 100), 0);
	used = swap_used("/dev/zram0");
	/* More than is room for on the disk. */
	fill(area, nr, 1, 1);
	ASSERT_EQ(madvise(area, nr * self->page, MADV_PAGEOUT), 0);
	TH_LOG("of %ld kB: %ld kB on the RAM disk, %ld kB in zram", size / 1024,
	       swap_used("/dev/ram0"), swap_used("/dev/zram0") - used);
	EXPECT_GT(swap_used("/dev/ram0"), size / 2048);
	EXPECT_GT(swap_used("/dev/zram0"), used);
	EXPECT_SOUND();
	KIN(&self->f, filled(area, nr / 2, 1, 1) && fill(area, nr, 9, 3) &&
	    KIN(&self->f, filled(area, nr, 9, 3)) > 0);
	KIN(&self->f, true);
	ASSERT_TRUE(family_await(&self->f, 3));
	EXPECT_SOUND();
	ASSERT_EQ(swapoff("/dev/ram0"), 0);
	EXPECT_EQ(swap_used("/dev/ram0"), -1);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, nr, 1, 1));
	KIN(&self->f, filled(area, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
}

/* Map, fault, fork and unmap until the family has come so far. */
static bool fault_and_fork_until(int end)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	unsigned char seed = getpid();

	for (int i = 0; *step < end; i++) {
		char *area = map_at(NULL, NR * page);
		int status = 0;
		pid_t pid;

		if (!area)
			return false;
		fill(area, NR, 1, seed + i);
		if (i % 4 == 0) {
			pid = fork();
			if (!pid)
				_exit(!filled(area, NR, 1, seed + i));
			if (pid < 0 || waitpid(pid, &status, 0) != pid)
				return false;
		}
		if (status || !filled(area, NR, 1, seed + i) || munmap(area, NR * page))
			return false;
	}
	return true;
}

TEST_F(features, cpu_hotplug)
{
	char *area = map_at(room(NR), NR * self->page);
	static const char * const cpus[] = { "1", "3", "1" };

	fill(area, NR, 1, 1);
	for (int i = 0; i < 3; i++)
		KIN(&self->f, report(&self->f) && fault_and_fork_until(1) &&
		    filled(area, NR, 1, 1) && fill(area, NR, 3, i));
	ASSERT_TRUE(family_await(&self->f, 3));
	for (int i = 0; i < 3; i++) {
		char path[64];

		snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%s/online", cpus[i]);
		ASSERT_TRUE(put(path, "0"));
		EXPECT_EQ(number(path), 0);
		usleep(200000);
		ASSERT_TRUE(put(path, "1"));
		EXPECT_EQ(number(path), 1);
		usleep(200000);
	}
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 3));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 1));
}

/* 0 or -errno. A block whose pages cannot be moved is tried for ever: not here. */
static int offline_block(long block)
{
	char dir[64];
	int status = 0;
	pid_t pid = fork();

	if (!pid) {
		alarm(60);
		snprintf(dir, sizeof(dir), "/sys/devices/system/memory/memory%ld/", block);
		_exit(putf(dir, "state", "offline") ? 0 : errno);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -ECHILD;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

/* Memory that is taken away: its anonymous pages have to go elsewhere. */
TEST_F_TIMEOUT(features, memory_offline, 300)
{
	const size_t size = 64 * MIB, nr = size / self->page;
	char *area = map_at(room(nr), size), *before = map_aligned(384 * MIB, 2 * MIB);
	char text[64], dir[64];
	unsigned long block_size, pages[256] = { 0 };
	int offlined = 0, refused = 0, tried = 0;

	ASSERT_GT(avl_read("/sys/devices/system/memory/block_size_bytes", text, sizeof(text)), 0);
	block_size = strtoul(text, NULL, 16) / self->page;
	ASSERT_GT(block_size, 0);
	ASSERT_TRUE(bind_area(area, size, 1, 0));
	/* What the kernel has for itself it does not let go: get away from that. */
	ASSERT_EQ(madvise(before, 384 * MIB, MADV_HUGEPAGE), 0);
	ASSERT_TRUE(bind_area(before, 384 * MIB, 1, 0));
	for (size_t i = 0; i < 384; i += 2)
		before[i * MIB] = 1;
	fill(area, nr, 1, 1);
	ASSERT_EQ(munmap(before, 384 * MIB), 0);
	/* Pages may be anywhere, but not forbidden to leave the node. */
	ASSERT_EQ(syscall(SYS_mbind, area, size, 0 /* MPOL_DEFAULT */, NULL, 0UL, 0), 0);
	KIN(&self->f, filled(area, nr, 50, 1) && fill(area, nr, 3, 2) &&
	    KIN(&self->f, filled(area, nr, 3, 2) && fill(area, nr, 100, 3)) > 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	for (size_t i = 0; i < nr; i += 16)
		pages[pfn_of(area + i * self->page) / block_size % 256]++;
	for (int offset = 0; offset < 256 && !offlined; offset++) {
		unsigned long most = 0;
		long block = -1;
		int err;

		for (long i = 0; i < 256; i++)
			if (pages[i] > most) {
				most = pages[i];
				block = i;
			}
		if (block < 0)
			break;
		pages[block] = 0;
		tried++;
		err = offline_block(block);
		TH_LOG("block %ld, with %lu of our pages: %s", block, most * 16,
		       err ? strerror(-err) : "offline");
		/* -EINVAL: it has a hole. -EPERM: arm64 keeps all that it booted with. */
		EXPECT_TRUE(!err || err == -EBUSY || err == -EINTR || err == -EINVAL ||
			    err == -EPERM);
		refused += err == -EPERM;
		if (err)
			continue;
		offlined++;
		for (size_t i = 0; i < nr; i += 16)
			EXPECT_NE(pfn_of(area + i * self->page) / block_size, block);
		EXPECT_SOUND();
		EXPECT_TRUE(filled(area, nr, 1, 1));
		KIN(&self->f, filled(area, nr, 7, 1));
		ASSERT_TRUE(family_await(&self->f, 1));
		EXPECT_SOUND();
		snprintf(dir, sizeof(dir), "/sys/devices/system/memory/memory%ld/", block);
		EXPECT_TRUE(putf(dir, "state", "online"));
	}
	if (refused && !offlined)
		SKIP(return, "this kernel lets no memory go that it booted with");
	EXPECT_GT(offlined, 0) {
		TH_LOG("tried %d blocks", tried);
	}
}

/* Whether a child that looks there is killed. */
static bool is_guarded(char *at)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		*(volatile char *)at;
		_exit(0);
	}
	return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
		WTERMSIG(status) == SIGSEGV;
}

TEST_F(features, guard_pages)
{
	char *area = map_at(room(NR), NR * self->page);
	char *untouched = map_at(room(NR), NR * self->page);

	fill(area, NR, 1, 1);
	ASSERT_EQ(madvise(area + 8 * self->page, 4 * self->page, MADV_GUARD_INSTALL), 0);
	ASSERT_EQ(madvise(untouched + 2 * self->page, self->page, MADV_GUARD_INSTALL), 0);
	EXPECT_EQ(nr_scanned(area, NR, PAGE_IS_GUARD, 0), 4);
	EXPECT_TRUE(is_guarded(area + 8 * self->page));
	EXPECT_TRUE(is_guarded(untouched + 2 * self->page));
	EXPECT_FALSE(is_guarded(untouched + 3 * self->page));
	EXPECT_SOUND();
	/* A child has them, too, and may do away with them. */
	KIN(&self->f, nr_scanned(area, NR, PAGE_IS_GUARD, 0) == 4 &&
	    is_guarded(area + 9 * self->page) && is_guarded(untouched + 2 * self->page) &&
	    !madvise(area, NR * self->page, MADV_GUARD_REMOVE) &&
	    fill(area + 8 * self->page, 4, 1, 9) && filled(area, 8, 1, 1) &&
	    !madvise(untouched, NR * self->page, MADV_GUARD_REMOVE) && fill(untouched, NR, 1, 4) &&
	    KIN(&self->f, filled(untouched, NR, 1, 4)) > 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	EXPECT_TRUE(is_guarded(area + 8 * self->page));
	EXPECT_EQ(move_to_node(0, area, 8, 1), 8);
	EXPECT_SOUND();
	/* Moved with their VMA, split off, over pages that are shared. */
	ASSERT_EQ(move_to(area + 6 * self->page, 8 * self->page, untouched + 8 * self->page),
		  untouched + 8 * self->page);
	EXPECT_TRUE(is_guarded(untouched + 10 * self->page));
	ASSERT_EQ(madvise(area + 20 * self->page, 4 * self->page, MADV_GUARD_INSTALL), 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, 6, 1, 1));
}

TEST_F(features, populate)
{
	char *area = map_at(room(NR), NR * self->page), *shared = map_at(room(NR), NR * self->page);

	ASSERT_EQ(madvise(area, NR * self->page, MADV_POPULATE_READ), 0);
	EXPECT_EQ(nr_scanned(area, NR, PAGE_IS_PFNZERO, 0), NR);
	fill(shared, NR, 1, 1);
	EXPECT_EQ(nr_with_bit(shared, NR, 56), NR);
	KIN(&self->f, !madvise(area, NR * self->page, MADV_POPULATE_WRITE) &&
	    !nr_scanned(area, NR, PAGE_IS_PFNZERO, 0) && nr_with_bit(area, NR, 56) == NR &&
	    !madvise(shared, NR / 2 * self->page, MADV_POPULATE_WRITE) &&
	    nr_with_bit(shared, NR, 56) == NR / 2 && filled(shared, NR, 1, 1));
	KIN(&self->f, !madvise(shared, NR * self->page, MADV_POPULATE_READ) &&
	    nr_with_bit(shared, NR, 56) == 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_EQ(nr_with_bit(shared, NR, 56), 0);
	EXPECT_SOUND();
	ASSERT_EQ(madvise(shared, NR * self->page, MADV_POPULATE_WRITE), 0);
	EXPECT_EQ(nr_with_bit(shared, NR, 56), NR);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(shared, NR, 1, 1));
}

/* Pages that others map, too, are not for one process to page out. */
TEST_F(features, cold_and_pageout_of_shared_pages)
{
	char *area = map_at(room(NR), NR * self->page);

	ASSERT_TRUE(have_swap());
	fill(area, NR, 1, 1);
	KIN(&self->f, filled(area, NR, 1, 1) && fill(area, NR / 2, 1, 2) &&
	    !madvise(area, NR * self->page, MADV_COLD) &&
	    !madvise(area, NR * self->page, MADV_PAGEOUT) &&
	    nr_swapped(area, NR / 2) > 0 && !nr_swapped(area + NR / 2 * self->page, NR / 2) &&
	    filled(area, NR / 2, 1, 2));
	KIN(&self->f, filled(area, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 2));
	ASSERT_EQ(madvise(area, NR * self->page, MADV_COLD), 0);
	ASSERT_EQ(madvise(area, NR * self->page, MADV_PAGEOUT), 0);
	EXPECT_EQ(nr_swapped(area, NR), 0);
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	ASSERT_EQ(madvise(area, NR * self->page, MADV_PAGEOUT), 0);
	EXPECT_GT(nr_swapped(area, NR), 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 1));
}

/* What the kernel says of the page that is mapped at an address: /proc/kpageflags and -count. */
static uint64_t kpage(const char *file, const void *at)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	uint64_t value = ~0ULL;
	unsigned long pfn = pfn_of(at);

	if (fd < 0 || !pfn || pread(fd, &value, 8, pfn * 8) != 8)
		value = ~0ULL;
	close(fd);
	return value;
}

/* How often each of these pages is mapped, or -1 if they differ in that. */
static long page_count(const char *area, size_t nr)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	uint64_t count = kpage("/proc/kpagecount", area);

	for (size_t i = 1; i < nr; i++)
		if (kpage("/proc/kpagecount", area + i * page) != count)
			return -1;
	return count;
}

/* Whether all of these pages have these flags, and none of the others. */
static bool page_flags(const char *area, size_t nr, uint64_t set, uint64_t clear)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (size_t i = 0; i < nr; i++) {
		uint64_t flags = kpage("/proc/kpageflags", area + i * page);

		/* All bits: there is no page. */
		if (flags == UINT64_MAX || (flags & set) != set || flags & clear)
			return false;
	}
	return true;
}

#define KPF(flag) (1ULL << KPF_##flag)

static bool same_pages(const char *a, const char *b, size_t nr)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (size_t i = 0; i < nr; i++)
		if (pfn_of(a + i * page) != pfn_of(b + i * page))
			return false;
	return true;
}

/* Two areas of the same contents, that KSM may merge. */
static bool ksm_twins(char *a, char *b, size_t nr)
{
	const size_t size = nr * sysconf(_SC_PAGESIZE);

	return fill(a, nr, 1, 1) && fill(b, nr, 1, 1) && !madvise(a, size, MADV_MERGEABLE) &&
		!madvise(b, size, MADV_MERGEABLE);
}

/* Have KSM merge @nr pages at @a with those at @b, and stop then. */
static bool ksm_merge(const char *a, const char *b, size_t nr)
{
	return put(KSM "pages_to_scan", "10000") && put(KSM "sleep_millisecs", "1") &&
		put(KSM "run", "1") && WAIT_FOR(same_pages(a, b, nr), 60) && put(KSM "run", "0") &&
		page_flags(a, nr, KPF(KSM), 0);
}

/* They go, and no page is KSM's any more. */
static bool ksm_part(char *a, char *b, size_t nr)
{
	const size_t size = nr * sysconf(_SC_PAGESIZE);

	return !munmap(a, size) && !munmap(b, size) && put(KSM "run", "2") && put(KSM "run", "0");
}

/*
 * A defect of Linux 7.3.4, with or without the series and the module: MADV_FREE takes a KSM page
 * with one mapping for its caller's own, and marks it clean and to be freed. Whoever has the same
 * content is merged with it nevertheless, by a clean entry, and reads zeroes once it is reclaimed.
 * When this fails, Linux was mended: stress may then free pages that are mergeable.
 */
TEST_F(features, ksm_page_that_is_freed)
{
	char *a = map_at(room(1), self->page), *b = map_at(room(1), self->page);
	char *other = map_at(room(1), self->page);

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	memset(a, 0x5a, self->page);
	memset(b, 0x5a, self->page);
	ASSERT_EQ(madvise(a, self->page, MADV_MERGEABLE), 0);
	ASSERT_EQ(madvise(b, self->page, MADV_MERGEABLE), 0);
	ASSERT_TRUE(ksm_merge(a, b, 1));
	ASSERT_EQ(munmap(b, self->page), 0);
	ASSERT_EQ(madvise(a, self->page, MADV_FREE), 0);
	memset(other, 0x5a, self->page);
	ASSERT_EQ(madvise(other, self->page, MADV_MERGEABLE), 0);
	ASSERT_TRUE(ksm_merge(a, other, 1));
	for (int i = 0; i < 100 && nr_present(other, 1); i++)
		reclaim_memory("1M");
	EXPECT_EQ(other[0], 0);
	EXPECT_SOUND();
	ASSERT_TRUE(ksm_part(a, other, 1));
}

/* Pages are seen to be anonymous, and how often they are mapped, whoever maps them. */
TEST_F(features, kpageflags_and_kpagecount)
{
	const size_t nr = 2 * MIB / self->page;
	char *area = map_at(room(NR), NR * self->page), *huge = map_aligned(2 * MIB, 2 * MIB);
	char *same = map_at(room(4), 4 * self->page);

	ASSERT_NE(huge, NULL);
	ASSERT_EQ(madvise(huge, 2 * MIB, MADV_HUGEPAGE), 0);
	ASSERT_EQ(madvise(area, NR * self->page, MADV_NOHUGEPAGE), 0);
	fill(area, NR, 1, 1);
	fill(huge, nr, 1, 1);
	memset(same, 0x77, 4 * self->page);
	EXPECT_EQ(page_count(area, NR), 1);
	EXPECT_TRUE(page_flags(area, NR, KPF(ANON) | KPF(MMAP) | KPF(SWAPBACKED),
			       KPF(KSM) | KPF(THP) | KPF(HUGE) | KPF(NOPAGE)));
	EXPECT_EQ(page_count(huge, nr), 1);
	EXPECT_TRUE(page_flags(huge, nr, KPF(ANON) | KPF(MMAP) | KPF(THP), KPF(KSM) | KPF(HUGE)));
	EXPECT_TRUE(page_flags(huge, 1, KPF(COMPOUND_HEAD), KPF(COMPOUND_TAIL)));
	EXPECT_TRUE(page_flags(huge + self->page, nr - 1, KPF(COMPOUND_TAIL), KPF(COMPOUND_HEAD)));
	/* A child and a grandchild; then another, which has copied half of the pages. */
	KIN(&self->f, KIN(&self->f, filled(area, NR, 1, 1) && page_count(area, NR) == 3) > 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	KIN(&self->f, fill(area, NR / 2, 1, 1) && page_count(area, NR / 2) == 1 &&
	    page_flags(area, NR, KPF(ANON) | KPF(MMAP), KPF(KSM)) && filled(huge, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_EQ(page_count(area, NR / 2), 3);
	EXPECT_EQ(page_count(area + NR / 2 * self->page, NR / 2), 4);
	EXPECT_EQ(page_count(huge, nr), 4);
	EXPECT_TRUE(page_flags(area, NR, KPF(ANON) | KPF(MMAP), KPF(KSM)));
	EXPECT_SOUND();
	/* Moved, they are the same pages. */
	area = move_to(area, NR * self->page, room(NR));
	ASSERT_NE(area, MAP_FAILED);
	EXPECT_EQ(page_count(area, NR / 2), 3);
	EXPECT_EQ(page_count(area + NR / 2 * self->page, NR / 2), 4);
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_EQ(page_count(area, NR), 1);
	EXPECT_EQ(page_count(huge, nr), 1);
	/* Of KSM: one for four. */
	ASSERT_EQ(madvise(same, 4 * self->page, MADV_MERGEABLE), 0);
	ASSERT_TRUE(ksm_merge(same, same + self->page, 3));
	EXPECT_EQ(page_count(same, 4), 4);
	EXPECT_TRUE(page_flags(same, 4, KPF(KSM) | KPF(ANON) | KPF(MMAP), KPF(THP)));
	ASSERT_TRUE(put(KSM "run", "2"));
	EXPECT_TRUE(page_flags(same, 4, KPF(ANON) | KPF(MMAP), KPF(KSM)));
	EXPECT_EQ(page_count(same, 4), 1);
	EXPECT_SOUND();
	ASSERT_TRUE(put(KSM "run", "0"));
}

static int *sigbus;	/* shared: how many of these each member of a family got */
static int sigbus_self;

static void count_sigbus(int sig, siginfo_t *info, void *context)
{
	/* Of a failed page; anything else is an error of the test. */
	if (info->si_code == BUS_MCEERR_AO || info->si_code == BUS_MCEERR_AR)
		sigbus[sigbus_self]++;
	else
		_exit(3);
}

/* Be told of failed pages at once, with all children from here on. */
static bool count_failures(void)
{
	const struct sigaction action = {
		.sa_sigaction = count_sigbus, .sa_flags = SA_SIGINFO,
	};

	sigbus = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return sigbus != MAP_FAILED && !sigaction(SIGBUS, &action, NULL) &&
		!prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
}

/*
 * A page of KSM that fails: who maps it is told. A child that has something
 * else at the same addresses, made after the fork, is not.
 */
TEST_F(features, failure_of_a_ksm_page)
{
	const size_t nr = 4;
	char *a = room(nr), *b = room(nr), pfn[32];

	ASSERT_TRUE(count_failures());
	for (sigbus_self = 2; sigbus_self > 0; sigbus_self--)
		KIN(&self->f, map_at(a, nr * self->page) == a && map_at(b, nr * self->page) == b &&
		    fill(a, nr, 1, 100 + sigbus_self) && fill(b, nr, 1, 150 + sigbus_self) &&
		    report(&self->f) && await_step(1) &&
		    filled(a, nr, 1, 100 + sigbus_self) && filled(b, nr, 1, 150 + sigbus_self));
	ASSERT_EQ(map_at(a, nr * self->page), a);
	ASSERT_EQ(map_at(b, nr * self->page), b);
	ASSERT_TRUE(ksm_twins(a, b, nr));
	ASSERT_TRUE(family_await(&self->f, 2));
	ASSERT_TRUE(ksm_merge(a, b, nr));
	EXPECT_SOUND();
	snprintf(pfn, sizeof(pfn), "%#lx", pfn_of(a + 2 * self->page));
	ASSERT_TRUE(put("/sys/kernel/debug/hwpoison/corrupt-pfn", pfn));
	EXPECT_GE(sigbus[0], 1);
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_EQ(sigbus[1], 0);
	EXPECT_EQ(sigbus[2], 0);
	EXPECT_TRUE(filled(a, 2, 1, 1));
	EXPECT_TRUE(filled(b + 3 * self->page, 1, 1, 22));
	EXPECT_EQ(pfn_of(a + 2 * self->page), 0);
	EXPECT_EQ(pfn_of(b + 2 * self->page), 0);
	EXPECT_SOUND();
	ASSERT_TRUE(ksm_part(a, b, nr));
}

/* A member of the family below: @who shares the pages, or has its own; the failed one is gone. */
static bool told_of_failure(struct family *f, int who, char *at, size_t nr, bool shares)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	sigbus_self = who;
	return report(f) && await_step(1) && filled(at, 2, 1, shares ? 1 : 100) &&
	       (pfn_of(at + 2 * page) == 0) == shares &&
	       filled(at + 3 * page, nr - 3, 1, shares ? 22 : 121);
}

/*
 * A page that a family shares fails: who maps it is told, by a signal, also a grandchild,
 * and one that has moved it; who has its own by now is not.
 */
TEST_F(features, failure_of_a_shared_page)
{
	const size_t nr = 8, size = nr * self->page;
	char *area = map_at(room(nr), size), *away = room(nr), pfn[32];

	ASSERT_NE(area, NULL);
	ASSERT_TRUE(count_failures());
	fill(area, nr, 1, 1);
	KIN(&self->f, KIN(&self->f, told_of_failure(&self->f, 2, area, nr, true)) > 0 &&
	    told_of_failure(&self->f, 1, area, nr, true));
	KIN(&self->f, move_to(area, size, away) == away &&
	    told_of_failure(&self->f, 3, away, nr, true));
	KIN(&self->f, fill(area, nr, 1, 100) && told_of_failure(&self->f, 4, area, nr, false));
	ASSERT_TRUE(family_await(&self->f, 4));
	EXPECT_SOUND();
	snprintf(pfn, sizeof(pfn), "%#lx", pfn_of(area + 2 * self->page));
	ASSERT_TRUE(put("/sys/kernel/debug/hwpoison/corrupt-pfn", pfn));
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 4));
	for (int who = 0; who < 4; who++)
		EXPECT_GE(sigbus[who], 1);
	EXPECT_EQ(sigbus[4], 0);
	EXPECT_EQ(pfn_of(area + 2 * self->page), 0);
	EXPECT_TRUE(filled(area, 2, 1, 1));
	EXPECT_SOUND();
	/* Not to fault on it at the end. */
	EXPECT_EQ(family_release(&self->f), 0);
	ASSERT_EQ(munmap(area, size), 0);
}

/* Whoever looks there dies of it. */
static bool is_deadly(volatile char *at)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		signal(SIGBUS, SIG_DFL);
		_exit(*at);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
	       WTERMSIG(status) == SIGBUS;
}

/* A member of the family below: what it has from page @from on, and which one has failed. */
static bool met_huge_failure(struct family *f, int who, char *at, size_t from, size_t nr,
			     size_t failed)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	sigbus_self = who;
	if (!report(f) || !await_step(1))
		return false;
	for (size_t i = 0; i < nr; i++)
		if (from + i == failed ? pfn_of(at + i * page) || !is_deadly(at + i * page) :
		    !filled(at + i * page, 1, 1, (from + i) * 7 + 1))
			return false;
	return true;
}

/*
 * One page of a huge one that a family shares fails: the folio is split under the lock of its root,
 * who maps that page has it no more, and the other pages stay. Who maps the folio as a whole
 * is told; not who has moved half of it, from whom the split itself takes the page.
 */
TEST_F(features, failure_of_a_huge_page)
{
	const size_t size = 2 * MIB, nr = size / self->page, failed = nr / 2 + 44;
	char *area = map_aligned(size, size), *away = room(nr / 2), pfn[32];

	ASSERT_NE(area, NULL);
	ASSERT_TRUE(count_failures());
	ASSERT_EQ(madvise(area, size, MADV_HUGEPAGE), 0);
	fill(area, nr, 1, 1);
	KIN(&self->f, KIN(&self->f,
			  met_huge_failure(&self->f, 2, area, 0, nr, failed)) > 0 &&
	    met_huge_failure(&self->f, 1, area, 0, nr, failed));
	KIN(&self->f, move_to(area + size / 2, size / 2, away) == away &&
	    met_huge_failure(&self->f, 3, away, nr / 2, nr / 2, failed));
	/* Has its own copy of the one that fails, and nothing to be told. */
	KIN(&self->f, (area[failed * self->page] = 1, true) &&
	    met_huge_failure(&self->f, 4, area, 0, failed, failed));
	ASSERT_TRUE(family_await(&self->f, 4));
	EXPECT_TRUE(page_flags(area, nr, KPF(THP) | KPF(ANON), 0));
	EXPECT_SOUND();
	snprintf(pfn, sizeof(pfn), "%#lx", pfn_of(area + failed * self->page));
	ASSERT_TRUE(put("/sys/kernel/debug/hwpoison/corrupt-pfn", pfn));
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 4));
	for (int who = 0; who < 3; who++) {
		EXPECT_GE(sigbus[who], 1) {
			TH_LOG("member %d of the family", who);
		}
	}
	EXPECT_EQ(sigbus[4], 0);
	EXPECT_TRUE(is_deadly(area + failed * self->page));
	EXPECT_EQ(pfn_of(area + failed * self->page), 0);
	EXPECT_TRUE(filled(area, failed, 1, 1));
	EXPECT_SOUND();
	/* Not to fault on it at the end. */
	EXPECT_EQ(family_release(&self->f), 0);
	ASSERT_EQ(munmap(area, size), 0);
}

/*
 * What KSM has merged and fork shares is found in each child, whom no rmap_item names: all of it
 * is swapped out.
 */
TEST_F(features, ksm_pages_of_a_family_are_swapped)
{
	const size_t nr = 8, size = nr * self->page;
	char *a = map_at(room(nr), size), *b = map_at(room(nr), size);
	struct verdict v;

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	ASSERT_TRUE(ksm_twins(a, b, nr));
	ASSERT_TRUE(ksm_merge(a, b, nr));
	for (int i = 0; i < 2; i++)
		KIN(&self->f, KIN(&self->f, report(&self->f) && await_step(1) &&
				  nr_swapped(a, nr) == (long)nr && filled(a, nr, 1, 1)) > 0 &&
		    report(&self->f) && await_step(1) && nr_swapped(b, nr) == (long)nr &&
		    filled(b, nr, 1, 1) && fill(b, nr, 2, 1));
	ASSERT_TRUE(family_await(&self->f, 4));
	ASSERT_EQ(oracle(&v), 0);
	EXPECT_GE(v.ksm, nr);
	EXPECT_SOUND();
	EXPECT_TRUE(WAIT_FOR((reclaim_memory("64M"),
			      nr_swapped(a, nr) == (long)nr && nr_swapped(b, nr) == (long)nr), 60));
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 4));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(a, nr, 1, 1) && filled(b, nr, 1, 1));
	ASSERT_TRUE(ksm_part(a, b, nr));
}

/* Move @nr pages between @at and @away, for @seconds; false if their contents do not follow. */
static bool to_and_fro(char *at, char *away, size_t nr, double seconds)
{
	const size_t size = nr * sysconf(_SC_PAGESIZE);
	double end = now() + seconds;
	bool good = true;

	while (good && now() < end)
		good = move_to(at, size, away) == away && filled(away, nr, 1, 1) &&
		       move_to(away, size, at) == at && filled(at, nr, 1, 1);
	return good;
}

/*
 * mremap parts KSM's pages from the others before it moves them, in a VMA that is
 * mergeable. Two ways to have it move one all the same follow. A walk that looked
 * where KSM has merged the page, and not at its page offset, would not find the
 * migration entries that were moved, and whoever meets one of these waits for ever.
 * That was seen in stress.
 *
 * MADV_UNMERGEABLE parts none that is in swap; back from there it is KSM's again.
 */
TEST_F_TIMEOUT(features, ksm_pages_back_from_swap, 240)
{
	const size_t nr = 4, size = nr * self->page;
	char *a = map_at(room(nr), size), *b = map_at(room(nr), size), *away = room(nr);
	struct iovec iov = { a, size };
	const pid_t self_pid = getpid();
	pid_t mover;
	int fds[2];

	if (!has_series())
		SKIP(return, "Linux without patch 15 loses the migration entries");
	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	ASSERT_TRUE(ksm_twins(a, b, nr));
	ASSERT_TRUE(ksm_merge(a, b, nr));
	/* Who has a reference keeps them in the swap cache. */
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), size);
	ASSERT_TRUE(WAIT_FOR((reclaim_memory("64M"), nr_swapped(a, nr) == nr), 60));
	ASSERT_EQ(madvise(a, size, MADV_UNMERGEABLE), 0);
	ASSERT_TRUE(filled(a, nr, 1, 1));
	/* Else there is nothing to see. */
	ASSERT_TRUE(page_flags(a, nr, KPF(ANON) | KPF(KSM), 0));
	EXPECT_TRUE(filled(b, nr, 1, 1));
	close(fds[0]);
	close(fds[1]);
	mover = fork();
	ASSERT_GE(mover, 0);
	for (int i = 0; !mover && getppid() == self_pid; i++) {
		move_to_node(self_pid, a, nr, i & 1);
		move_to_node(self_pid, away, nr, i & 1);
	}
	if (!mover)
		_exit(0);
	EXPECT_TRUE(to_and_fro(a, away, nr, 3));
	kill(mover, SIGKILL);
	waitpid(mover, NULL, 0);
	EXPECT_SOUND();
	ASSERT_TRUE(ksm_part(a, b, nr));
}

/* The child of ksm_pages_made_of_shared_ones: 0, or which step went wrong. */
static int moves_shared_ones(char *a, char *b, char *away, size_t nr)
{
	const size_t page = sysconf(_SC_PAGESIZE), size = nr * page;

	if (madvise(a, size, MADV_UNMERGEABLE) || madvise(b, size, MADV_UNMERGEABLE))
		return 1;
	*step = 1;
	if (!await_step(2))
		return 2;
	/* Of two pages one became KSM's, also here; the parent has given up the other. */
	for (size_t i = 0; i < nr; i++)
		if (page_flags(a + i * page, 1, KPF(KSM), 0) ==
		    page_flags(b + i * page, 1, KPF(KSM), 0))
			return 3;
	/* From here on they move. */
	*step = 3;
	for (int i = 0; i < 20; i++)
		if (!to_and_fro(a, away, nr, 0.1) || !to_and_fro(b, away, nr, 0.1))
			return 4;
	return 0;
}

/*
 * ksmd makes a page that fork shares one of its own when one of its processes is
 * mergeable. It is in the others, too, that have said MADV_UNMERGEABLE, or that
 * mremap is just moving.
 */
TEST_F_TIMEOUT(features, ksm_pages_made_of_shared_ones, 240)
{
	const size_t nr = 4, size = nr * self->page;
	char *a = map_at(room(nr), size), *b = map_at(room(nr), size), *away = room(nr);
	int status = -1;
	double end;
	pid_t pid;

	if (!has_series())
		SKIP(return, "Linux without patch 15 loses the migration entries");
	ASSERT_TRUE(ksm_twins(a, b, nr));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(moves_shared_ones(a, b, away, nr));
	ASSERT_TRUE(await_step(1));
	ASSERT_TRUE(ksm_merge(a, b, nr));
	*step = 2;
	ASSERT_TRUE(await_step(3));
	end = now() + 60;
	for (int i = 0; !waitpid(pid, &status, WNOHANG) && now() < end; i++)
		move_to_node(0, a, nr, i & 1);
	/* -1: it still waits for a migration that is over. It is killed at last, which is a BUG. */
	ASSERT_EQ(status, 0);
	EXPECT_TRUE(filled(a, nr, 1, 1));
	EXPECT_TRUE(filled(b, nr, 1, 1));
	EXPECT_SOUND();
	ASSERT_TRUE(ksm_part(a, b, nr));
}

TEST_F(features, hugetlb)
{
	const size_t size = 4 * MIB, nr = size / self->page;
	long was = number("/proc/sys/vm/nr_hugepages"), lazy, migrated;
	char *area, *away;
	pid_t pid;

	ASSERT_TRUE(put("/proc/sys/vm/nr_hugepages", "16"));
	ASSERT_EQ(number("/proc/sys/vm/nr_hugepages"), 16);
	area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB,
		    -1, 0);
	ASSERT_NE(area, MAP_FAILED);
	away = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB,
		    -1, 0);
	ASSERT_NE(away, MAP_FAILED);
	lazy = avl_counter("vma_lazy");
	fill(area, nr, 1, 1);
	/* These stay as they always were. */
	EXPECT_EQ(avl_counter("vma_lazy"), lazy);
	KIN(&self->f, filled(area, nr, 1, 1) && fill(area, nr / 2, 1, 2) &&
	    KIN(&self->f, filled(area, nr / 2, 1, 2)) > 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	for (int node = 0; node < 2; node++) {
		EXPECT_GT(move_to_node(0, area, nr, node), 0);
		EXPECT_GT(on_node(0, area + 2 * MIB, 1, node), 0);
		EXPECT_TRUE(filled(area, nr, 1, 1));
	}
	/* Moved; a page of a grandchild that was forked before is moved along, and after. */
	ASSERT_EQ(move_to(area, size, away), away);
	KIN(&self->f, filled(away, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	for (int node = 0; node < 2; node++) {
		EXPECT_GT(move_to_node(0, away, nr, node), 0);
		EXPECT_TRUE(filled(away, nr, 1, 1));
	}
	/* Back and away while they migrate. */
	migrated = event("pgmigrate_success");
	pid = fork();
	ASSERT_GE(pid, 0);
	for (int node = 0; !pid; node ^= 1) {
		move_to_node(getppid(), area, nr, node);
		move_to_node(getppid(), away, nr, node);
	}
	for (int i = 0; i < 40 || i & 1 ||
	     (i < 4000 && event("pgmigrate_success") == migrated); i++) {
		ASSERT_EQ(move_to(i & 1 ? area : away, size, i & 1 ? away : area),
			  i & 1 ? away : area);
		ASSERT_TRUE(filled(i & 1 ? away : area, nr, 64, 1));
	}
	kill(pid, SIGKILL);
	ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	EXPECT_GT(event("pgmigrate_success"), migrated);
	fill(away, nr, 1, 8);
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_TRUE(filled(away, nr, 1, 8));
	ASSERT_EQ(munmap(away, size), 0);
	ASSERT_TRUE(putf("/proc/sys/vm/", "nr_hugepages", "%ld", was));
	EXPECT_EQ(field("/proc/meminfo", "HugePages_Free:"), was);
}

/* A lock is not inherited, and yet keeps the shared pages in memory. */
TEST_F(features, mlock_across_fork)
{
	const size_t nr = 8 * NR;
	char *area = map_at(room(nr), nr * self->page), *other = map_at(room(nr), nr * self->page);
	char *onfault;

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	fill(area, nr, 1, 1);
	fill(other, nr, 1, 2);
	/* Readable only, so that the lock does not copy them. */
	KIN(&self->f, !mprotect(area, nr * self->page, PROT_READ) &&
	    !mlock(area, nr * self->page) && report(&self->f) && await_step(1) &&
	    nr_swapped(area, nr) == 0 && filled(area, nr, 1, 1) &&
	    KIN(&self->f, status_kb(getpid(), "VmLck:") == 0) > 0);
	KIN(&self->f, filled(area, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	EXPECT_GT(reclaim_until_swapped(other, nr, nr / 2), 0);
	EXPECT_SOUND();
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_TRUE(filled(area, nr, 1, 1));
	EXPECT_TRUE(filled(other, nr, 1, 2));
	/* On fault, and all that comes. */
	onfault = map_at(room(nr), nr * self->page);
	ASSERT_EQ(mlock2(onfault, nr * self->page, MLOCK_ONFAULT), 0);
	fill(onfault, nr, 4, 3);
	EXPECT_EQ(nr_scanned(onfault, nr, PAGE_IS_PRESENT, 0), nr / 4);
	KIN(&self->f, filled(onfault, nr, 4, 3) && status_kb(getpid(), "VmLck:") == 0 &&
	    fill(onfault, nr, 8, 5));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	ASSERT_EQ(mlockall(MCL_CURRENT | MCL_FUTURE), 0);
	EXPECT_EQ(nr_scanned(onfault, nr, PAGE_IS_PRESENT, 0), nr);
	EXPECT_EQ(nr_scanned(map_at(NULL, NR * self->page), NR, PAGE_IS_PRESENT, 0), NR);
	KIN(&self->f, status_kb(getpid(), "VmLck:") == 0 && filled(onfault, nr, 4, 3));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	ASSERT_EQ(munlockall(), 0);
	EXPECT_EQ(status_kb(getpid(), "VmLck:"), 0);
	EXPECT_SOUND();
}

/* As in mm/gup_test.h. */
struct pin_longterm_test {
	uint64_t addr, size;
	uint32_t flags;
};

#define PIN_LONGTERM_TEST_START _IOW('g', 7, struct pin_longterm_test)
#define PIN_LONGTERM_TEST_STOP _IO('g', 8)
#define PIN_LONGTERM_TEST_READ _IOW('g', 9, uint64_t)

/* Pages that are pinned for writing are copied by fork, not shared. */
TEST_F(features, pinned_pages)
{
	const size_t huge = 2 * MIB / self->page;
	char *area = map_at(room(NR), NR * self->page), *copy = map_at(NULL, NR * self->page);
	char *thp = map_aligned(2 * MIB, 2 * MIB);
	int fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	struct pin_longterm_test pin = { (uintptr_t)area, NR / 2 * self->page, 1 /* write */ };
	uint64_t to = (uintptr_t)copy;
	unsigned long pfn[NR];

	ASSERT_GE(fd, 0);
	fill(area, NR, 1, 1);
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &pin), 0);
	for (int i = 0; i < NR; i++)
		pfn[i] = pfn_of(area + i * self->page);
	KIN(&self->f, ({
		bool ok = filled(area, NR, 1, 1);

		for (int i = 0; i < NR; i++)
			ok &= (pfn_of(area + i * self->page) == pfn[i]) == (i >= NR / 2);
		ok && fill(area, NR, 3, 8) && KIN(&self->f, filled(area, NR, 3, 8)) > 0;
	}));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	/* Who has pinned them sees what the parent writes: they are still its pages. */
	fill(area, NR, 1, 5);
	for (int i = 0; i < NR / 2; i++)
		EXPECT_EQ(pfn_of(area + i * self->page), pfn[i]);
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_READ, &to), 0);
	EXPECT_TRUE(filled(copy, NR / 2, 1, 5));
	EXPECT_EQ(move_to_node(0, area, NR / 2, 1), on_node(0, area, NR / 2, 1));
	EXPECT_SOUND();
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_STOP), 0);
	EXPECT_EQ(move_to_node(0, area, NR, 1), NR);
	EXPECT_SOUND();
	/* One page of a huge one. */
	ASSERT_EQ(madvise(thp, 2 * MIB, MADV_HUGEPAGE), 0);
	fill(thp, huge, 1, 3);
	pin.addr = (uintptr_t)thp + 5 * self->page;
	pin.size = self->page;
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &pin), 0);
	KIN(&self->f, filled(thp, huge, 1, 3) && fill(thp, huge, 50, 4));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	memset(thp + 5 * self->page, 99, self->page);
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_READ, &to), 0);
	EXPECT_EQ(copy[0], 99);
	close(fd);
	EXPECT_SOUND();
}

/* A child keeps a page in a pipe, and does not see what the parent writes to it later. */
TEST_F(features, vmsplice)
{
	char *area = map_at(room(NR), NR * self->page), *copy = map_at(NULL, self->page);
	struct iovec iov = { area, 4 * self->page };
	int fds[2];

	ASSERT_EQ(pipe(fds), 0);
	fill(area, NR, 1, 1);
	KIN(&self->f, ({
		bool ok = vmsplice(fds[1], &iov, 1, 0) == iov.iov_len &&
			!munmap(area, NR * self->page) && report(&self->f) && await_step(1);

		for (int i = 0; i < 4 && ok; i++)
			ok = read(fds[0], copy, self->page) == self->page &&
				filled(copy, 1, 1, i * 7 + 1);
		ok;
	}));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	fill(area, NR, 1, 2);
	KIN(&self->f, filled(area, NR, 1, 2));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
}

/* The stack that exec fills before it moves it, reclaimed meanwhile. */
TEST_F(features, exec_with_huge_arguments)
{
	enum { COUNT = 15, LENGTH = 120000 };
	char *argv[COUNT + 3] = { "features", "arguments" };
	pid_t reclaimer;
	long out;

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	for (int i = 2; i < COUNT + 2; i++) {
		argv[i] = malloc(LENGTH + 1);
		memset(argv[i], 'a' + i, LENGTH);
		argv[i][1 + snprintf(argv[i] + 1, 16, "%d", LENGTH)] = '-';
		argv[i][LENGTH] = 0;
	}
	/* What is swapped out is of those who exec, and not the test's own. */
	ASSERT_EQ(mlockall(MCL_CURRENT), 0);
	reclaimer = KIN(&self->f, ({
		/* Nor the reclaimer's. */
		bool good = !mlockall(MCL_CURRENT);

		while (*step < 1)
			reclaim_memory("1M");
		good;
	}));
	ASSERT_GT(reclaimer, 0);
	out = event("pswpout");
	for (int i = 0; i < 6; i++) {
		int status[2];
		pid_t pid[2];

		for (int j = 0; j < 2; j++) {
			pid[j] = fork();
			if (!pid[j]) {
				execv("/proc/self/exe", argv);
				_exit(127);
			}
		}
		for (int j = 0; j < 2; j++) {
			ASSERT_EQ(waitpid(pid[j], &status[j], 0), pid[j]);
			EXPECT_EQ(status[j], 0);
		}
	}
	*step = 1;
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_GT(event("pswpout"), out);
	EXPECT_SOUND();
}

TEST_F(features, remap_file_pages)
{
	int file = memfd_create("features", 0);
	char *area, *private;

	ASSERT_EQ(ftruncate(file, NR * self->page), 0);
	area = mmap(NULL, NR * self->page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	ASSERT_NE(area, MAP_FAILED);
	fill(area, NR, 1, 1);
	private = mmap(NULL, NR * self->page, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	ASSERT_NE(private, MAP_FAILED);
	fill(private, NR, 2, 9);
	KIN(&self->f, filled(private, NR, 2, 9));
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_EQ(remap_file_pages(area + 4 * self->page, 2 * self->page, 0, 20, 0), 0);
	EXPECT_TRUE(filled(area + 4 * self->page, 2, 1, 20 * 7 + 1));
	EXPECT_EQ(remap_file_pages(private, self->page, 0, 20, 0), -1);
	KIN(&self->f, filled(private, NR, 2, 9) &&
	    !remap_file_pages(area, 2 * self->page, 0, 10, 0) &&
	    filled(area, 2, 1, 10 * 7 + 1) && fill(private, NR, 1, 4));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(private, NR, 2, 9));
	EXPECT_EQ(move_to_node(0, private, 1, 1), 1);
	EXPECT_SOUND();
	close(file);
}

/* Truncation zaps private copies behind the end of the file, in whoever has them. */

static sigjmp_buf no_page;

static void beyond_the_end(int sig)
{
	siglongjmp(no_page, 1);
}

/* Write if there is a file. */
static void try_to_fill(char *area, size_t nr, unsigned char seed)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (size_t i = 0; i < nr; i++)
		if (!sigsetjmp(no_page, 1))
			memset(area + i * page, seed, page);
}

struct truncator {
	int file;
	size_t size;
	volatile int stop;
	unsigned long rounds;
};

static void *truncate_and_extend(void *arg)
{
	struct truncator *t = arg;

	while (!t->stop) {
		if (ftruncate(t->file, t->size / 2) || ftruncate(t->file, t->size))
			break;
		t->rounds++;
	}
	return NULL;
}

TEST_F(features, truncate_against_fork)
{
	static const char path[] = "/features-file";

	signal(SIGBUS, beyond_the_end);
	for (int kind = 0; kind < 2; kind++) {
		struct truncator t = { .size = 2 * NR * self->page };
		char *area, zero = 0;
		pthread_t thread;

		t.file = kind ? open(path, O_RDWR | O_CREAT, 0600) : memfd_create("features", 0);
		ASSERT_GE(t.file, 0);
		ASSERT_EQ(ftruncate(t.file, t.size), 0);
		area = mmap(NULL, t.size, PROT_READ | PROT_WRITE, MAP_PRIVATE, t.file, 0);
		ASSERT_NE(area, MAP_FAILED);
		fill(area, NR, 1, 1);
		ASSERT_EQ(pthread_create(&thread, NULL, truncate_and_extend, &t), 0);
		for (int i = 0; i < 30; i++) {
			int status;
			pid_t pid;

			try_to_fill(area + NR * self->page, NR, i + 1);
			pid = fork();
			ASSERT_GE(pid, 0);
			if (!pid) {
				try_to_fill(area + NR * self->page, NR, i + 100);
				_exit(!filled(area, NR, 1, 1));
			}
			try_to_fill(area + NR * self->page, NR, i + 2);
			ASSERT_EQ(waitpid(pid, &status, 0), pid);
			ASSERT_EQ(status, 0);
		}
		t.stop = 1;
		pthread_join(thread, NULL);
		TH_LOG("truncated %lu times", t.rounds);
		EXPECT_GT(t.rounds, 10);
		ASSERT_EQ(ftruncate(t.file, t.size), 0);
		fill(area + NR * self->page, NR, 1, 3);
		KIN(&self->f, filled(area, NR, 1, 1) && report(&self->f) && await_step(kind + 1) &&
		    filled(area, NR, 1, 1) && !area[NR * self->page]);
		ASSERT_TRUE(family_await(&self->f, 1));
		EXPECT_SOUND();
		ASSERT_EQ(ftruncate(t.file, t.size / 2), 0);
		ASSERT_EQ(ftruncate(t.file, t.size), 0);
		EXPECT_SOUND();
		*step = kind + 1;
		ASSERT_TRUE(family_await(&self->f, 1));
		EXPECT_TRUE(filled(area, NR, 1, 1));
		for (int i = NR; i < 2 * NR; i++)
			zero |= area[i * self->page];
		EXPECT_EQ(zero, 0);
		EXPECT_SOUND();
		ASSERT_EQ(munmap(area, t.size), 0);
		close(t.file);
	}
	unlink(path);
}

/*
 * Storms: workers do one kind of thing as fast as they can, the test disturbs
 * them, and at the end of each round they stand still, and the oracle is asked.
 */

static uint64_t chance;
static int kids;

static uint32_t rnd(uint32_t below)
{
	chance ^= chance << 13;
	chance ^= chance >> 7;
	chance ^= chance << 17;
	return (chance >> 11) % below;
}

/* Wait until there are no more than @max children; false if one has failed. */
static bool reap(int max)
{
	int status;

	while (kids && waitpid(-1, &status, kids > max ? 0 : WNOHANG) > 0) {
		kids--;
		if (status)
			return false;
	}
	return true;
}

/* A child that exits with whether @body is true. */
#define KID(body) ({							\
	pid_t pid_ = fork();						\
									\
	if (!pid_) {							\
		chance += getpid() * 77777;				\
		kids = 0;						\
		_exit(!(body));						\
	}								\
	kids += pid_ > 0;						\
	pid_ > 0 && reap(4);						\
})

static unsigned long *storm_ops;	/* shared by all */
static unsigned long seed;

static bool work(bool (*start)(void), bool (*operate)(void), int round)
{
	chance = 88172645463325252ULL + seed * 2654435761u + getpid() * 7919;
	if (!start())
		return false;
	while (*step < round) {
		if (!operate())
			return false;
		__atomic_fetch_add(storm_ops, 1, __ATOMIC_RELAXED);
	}
	return reap(0);
}

static bool ksm_operate(void);

/*
 * For three seconds a round, and on until @disturb has had its four turns, and until @done, if
 * there is that to wait for.
 */
static void storm(struct __test_metadata *_metadata, struct family *f, bool (*start)(void),
		  bool (*operate)(void), void (*disturb)(unsigned int n), bool (*done)(void))
{
	enum { WORKERS = 3, ROUNDS = 2 };
	unsigned int n = 0;

	storm_ops = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(storm_ops, MAP_FAILED);
	seed = seed_of_run();
	TH_LOG("avl.seed=%lu", seed);
	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	for (int round = 1; round <= ROUNDS; round++) {
		double end = now() + 3;

		for (int i = 0; i < WORKERS; i++)
			ASSERT_GT(KIN(f, work(start, operate, round)), 0);
		/* A debug kernel in an emulator does few of them in three seconds. */
		while (now() < end || ((*storm_ops <= 60 * round || n < 4 || (done && !done())) &&
				       now() < end + 200)) {
			disturb(n++);
			usleep(2000);
		}
		*step = round;
		ASSERT_TRUE(family_await(f, WORKERS));
		put(KSM "run", "0");
		if (operate == ksm_operate)
			EXPECT_SOUND_BUT_KSM();
		else
			EXPECT_SOUND();
	}
	TH_LOG("%lu operations, disturbed %u times", *storm_ops, n);
	EXPECT_GT(*storm_ops, 100);
}

/* What all storms are against; each of the lowest two bits of @n has its turn. */
static void migrate_and_reclaim(unsigned int n)
{
	if (n % 4)
		reclaim_memory("512K");
	else
		put("/proc/sys/vm/compact_memory", "1");
}

#define PLACES 16
#define SLOTS 8

static char *places;
static int place_of_slot[SLOTS];
static unsigned char slot_seed[SLOTS];

static char *place(int i)
{
	return places + i * 2 * NR * sysconf(_SC_PAGESIZE);
}

static bool slots_start(void)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	places = mmap(NULL, PLACES * 2 * NR * page, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (int i = 0; i < SLOTS; i++) {
		place_of_slot[i] = i;
		slot_seed[i] = rnd(256);
		map_at(place(i), NR * page);
		fill(place(i), NR, 1, slot_seed[i]);
	}
	return places != MAP_FAILED;
}

static bool slots_good(void)
{
	for (int i = 0; i < SLOTS; i++)
		if (!filled(place(place_of_slot[i]), NR, 1, slot_seed[i]))
			return false;
	return true;
}

static bool move_slot(int i)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	char *from = place(place_of_slot[i]);
	int to = rnd(PLACES);

	for (int j = 0; j < SLOTS; j++)
		if (place_of_slot[j] == to)
			return true;
	if (move_to(from, NR * page, place(to)) != place(to))
		return false;
	place_of_slot[i] = to;
	/* Nobody else may take what it leaves. */
	return mmap(from, NR * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED |
		    MAP_NORESERVE, -1, 0) == from;
}

static bool slots_operate(void)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	int i = rnd(SLOTS);
	char *at = place(place_of_slot[i]);

	switch (rnd(10)) {
	case 0 ... 4:
		return move_slot(i);
	case 5:
		slot_seed[i] = rnd(256);
		return fill(at, NR, 1, slot_seed[i]);
	case 6:
		return filled(at, NR, 1, slot_seed[i]);
	case 7:
		return move_to_node(0, at, NR, rnd(2)) >= 0;
	case 8:
		return !madvise(at + rnd(NR) * page, page, MADV_PAGEOUT);
	default:
		return KID(move_slot(rnd(SLOTS)) && move_slot(rnd(SLOTS)) && slots_good() &&
			   fill(place(place_of_slot[i]), NR, 2, 1) && move_slot(i));
	}
}

TEST_F_TIMEOUT(features, storm_of_mremap, 600)
{
	long out = event("pswpout"), migrated = event("pgmigrate_success");

	storm(_metadata, &self->f, slots_start, slots_operate, migrate_and_reclaim, NULL);
	EXPECT_GT(event("pswpout"), out);
	EXPECT_GT(event("pgmigrate_success"), migrated);
}

static char *equal;	/* 2 * NR pages with the same content */

static bool ksm_start(void)
{
	const size_t size = 2 * NR * sysconf(_SC_PAGESIZE);

	equal = map_at(NULL, size);
	if (!equal)
		return false;
	memset(equal, 0x5a, size);
	return !madvise(equal, size, MADV_MERGEABLE);
}

static bool ksm_good(void)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (int i = 0; i < 2 * NR; i++)
		if (equal[i * page] != 0x5a || equal[(i + 1) * page - 1] != 0x5a)
			return false;
	return true;
}

static bool ksm_operate(void)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	int i = rnd(2 * NR), nr = 1 + rnd(2 * NR - i);
	char *at = equal + i * page;

	switch (rnd(16)) {
	case 0:
		memset(at, rnd(256), page);
		memset(at, 0x5a, page);
		return true;
	case 1:
		return KID(ksm_good() && memset(at, 3, page) && at[page - 1] == 3);
	case 2:
		return KID(!madvise(at, nr * page, MADV_UNMERGEABLE) && ksm_good());
	case 3:
		return !madvise(at, nr * page, MADV_UNMERGEABLE) &&
			!madvise(at, nr * page, MADV_MERGEABLE);
	case 4:
		return move_to_node(0, at, nr, rnd(2)) >= 0;
	case 5:
		if (map_at(at, nr * page) != at)
			return false;
		memset(at, 0x5a, nr * page);
		return !madvise(at, nr * page, MADV_MERGEABLE);
	default:
		usleep(500);
		return ksm_good();
	}
}

static void merge_and_unmerge(unsigned int n)
{
	put(KSM "run", n % 64 == 63 ? "2" : "1");
	if (n % 8 < 2)
		migrate_and_reclaim(n);
}

static long copied_before;

static bool copied(void)
{
	return event("cow_ksm") > copied_before;
}

TEST_F_TIMEOUT(features, storm_of_ksm, 600)
{
	const long out = event("pswpout");

	copied_before = event("cow_ksm");
	ASSERT_TRUE(put(KSM "pages_to_scan", "2000"));
	ASSERT_TRUE(put(KSM "sleep_millisecs", "1"));
	storm(_metadata, &self->f, ksm_start, ksm_operate, merge_and_unmerge, copied);
	EXPECT_TRUE(copied());
	EXPECT_TRUE(put(KSM "run", "2"));
	EXPECT_SOUND();
	put(KSM "run", "0");
	EXPECT_GT(event("pswpout"), out);
}

static char *huge;	/* 4 MiB; in each page its number in the first word */

static bool huge_start(void)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	huge = map_aligned(4 * MIB, 2 * MIB);
	if (!huge || madvise(huge, 4 * MIB, MADV_HUGEPAGE))
		return false;
	for (size_t i = 0; i < 4 * MIB / page; i++)
		*(size_t *)(huge + i * page) = i;
	return true;
}

static bool huge_good(size_t from, size_t nr)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (size_t i = from; i < from + nr; i++)
		if (*(size_t *)(huge + i * page) != i)
			return false;
	return true;
}

static bool huge_rewrite(size_t from, size_t nr)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (size_t i = from; i < from + nr; i++)
		*(size_t *)(huge + i * page) = i;
	return true;
}

static bool huge_operate(void)
{
	const size_t page = sysconf(_SC_PAGESIZE), all = 4 * MIB / page;
	size_t i = rnd(all), nr = 1 + rnd(all - i < 64 ? all - i : 64);
	char *at = huge + i * page;

	switch (rnd(10)) {
	case 0 ... 1:
		/* It may have no pages, or be busy. */
		madvise(huge + rnd(2) * 2 * MIB, 2 * MIB, MADV_COLLAPSE);
		return true;
	case 2:
		return !mprotect(at, nr * page, PROT_READ) && huge_good(i, nr) &&
			!mprotect(at, nr * page, PROT_READ | PROT_WRITE);
	case 3:
		return !madvise(at, nr * page, MADV_DONTNEED) && huge_rewrite(i, nr);
	case 4:
		return map_at(at, nr * page) == at && huge_rewrite(i, nr) &&
			!madvise(at, nr * page, MADV_HUGEPAGE);
	case 5:
		return huge_rewrite(i, nr);
	case 6:
		return move_to_node(0, at, 1, rnd(2)) >= 0;
	case 7:
		return huge_good(0, all);
	default:
		return KID(huge_good(0, all) && huge_rewrite(i, nr) &&
			   (madvise(huge, 2 * MIB, MADV_COLLAPSE), true) && huge_good(0, all));
	}
}

static void split_and_migrate(unsigned int n)
{
	if (n % 4 == 1)
		put("/sys/kernel/debug/split_huge_pages", "1");
	else
		migrate_and_reclaim(n);
}

TEST_F_TIMEOUT(features, storm_of_huge_pages, 600)
{
	long splits = event("thp_split_page"), collapses = event("thp_collapse_alloc");
	long out = event("pswpout");

	storm(_metadata, &self->f, huge_start, huge_operate, split_and_migrate, NULL);
	EXPECT_GT(event("pswpout"), out);
	EXPECT_GT(event("thp_split_page"), splits);
	EXPECT_GT(event("thp_collapse_alloc"), collapses);
}

static char *inherited;

static bool unmap_start(void)
{
	inherited = map_at(NULL, NR * sysconf(_SC_PAGESIZE));
	return inherited && fill(inherited, NR, 1, 1);
}

static bool unmap_operate(void)
{
	const size_t page = sysconf(_SC_PAGESIZE), nr = 2 * MIB / page;
	char *area = map_aligned(nr * page, 2 * MIB);
	unsigned char seed = rnd(256);
	bool ok;

	if (!area || madvise(area, nr * page, rnd(2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		return false;
	fill(area, nr, 1, seed);
	ok = rnd(3) || KID(filled(area, nr, 8, seed) && !munmap(area, nr * page / 2) &&
			   filled(inherited, NR, 1, 1));
	return ok && !munmap(area + page * rnd(nr / 2), page) && !munmap(area, nr * page);
}

TEST_F_TIMEOUT(features, storm_of_munmap, 600)
{
	long out = event("pswpout"), migrated = event("pgmigrate_success");
	long huge_ones = event("thp_fault_alloc");

	storm(_metadata, &self->f, unmap_start, unmap_operate, migrate_and_reclaim, NULL);
	EXPECT_GT(event("pswpout"), out);
	EXPECT_GT(event("pgmigrate_success"), migrated);
	EXPECT_GT(event("thp_fault_alloc"), huge_ones);
}

static bool exit_start(void)
{
	inherited = map_at(NULL, 32 * NR * sysconf(_SC_PAGESIZE));
	return inherited && fill(inherited, 32 * NR, 1, 1);
}

static bool exit_operate(void)
{
	int from = rnd(24 * NR);
	char *at = inherited + from * sysconf(_SC_PAGESIZE);
	bool ok;

	/* A child whose child outlives it. */
	ok = KID(filled(at, 2 * NR, 1, from * 7 + 1) && fill(at, 4 * NR, 3, 9) &&
		 KID(filled(at, 4 * NR, 3, 9)));
	return ok && (rnd(4) || filled(at, 8 * NR, 1, from * 7 + 1));
}

TEST_F_TIMEOUT(features, storm_of_exit, 600)
{
	long out = event("pswpout"), migrated = event("pgmigrate_success");

	storm(_metadata, &self->f, exit_start, exit_operate, migrate_and_reclaim, NULL);
	EXPECT_GT(event("pswpout"), out);
	EXPECT_GT(event("pgmigrate_success"), migrated);
}

/* The last of them does what others do in storm_of_mremap, until the round is over. */
static bool deep_start(void)
{
	const int round = *step + 1;

	if (!slots_start() || prctl(PR_SET_CHILD_SUBREAPER, 1))
		return false;
	for (int i = 0; i < DEEP; i++) {
		const pid_t parent = getpid(), pid = fork();

		if (pid < 0)
			_exit(1);
		if (pid) {
			if (i)
				_exit(0);
			/* All of them are ours, when their parents have gone. */
			kids = DEEP;
			return true;
		}
		kids = 0;
		chance += i + 1;
		/* Its mm is gone before its children are. */
		while (i && getppid() == parent)
			usleep(1000);
	}
	while (*step < round) {
		if (!slots_operate())
			_exit(2);
		__atomic_fetch_add(storm_ops, 1, __ATOMIC_RELAXED);
	}
	_exit(!reap(0) || !slots_good());
}

/* The first of them keeps what all have from it. */
static bool deep_operate(void)
{
	const int round = *step + 1;

	while (*step < round)
		usleep(5000);
	return slots_good();
}

/* Linked to the root of an ancestor that has gone, moved, copied and unmapped. */
TEST_F_TIMEOUT(features, storm_of_late_generations, 600)
{
	long out = event("pswpout"), migrated = event("pgmigrate_success");
	const bool lazy = lazy_mode();
	const long foreign = lazy ? avl_counter("vma_linked_foreign") : 0;
	const long deep = lazy ? avl_counter("fork_too_deep") : 0;

	storm(_metadata, &self->f, deep_start, deep_operate, migrate_and_reclaim, NULL);
	EXPECT_GT(event("pswpout"), out);
	EXPECT_GT(event("pgmigrate_success"), migrated);
	if (lazy) {
		EXPECT_GT(avl_counter("vma_linked_foreign"), foreign + 100);
		EXPECT_GT(avl_counter("fork_too_deep"), deep + 10);
	}
}

TEST_HARNESS_MAIN
