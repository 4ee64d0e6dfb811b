// SPDX-License-Identifier: GPL-2.0
/*
 * What operations on memory cost, in instructions: for a guest whose clock counts
 * them (QEMU's -icount), with one CPU. Times, on a real machine.
 *
 *	speed			all benchmarks, each in a process of its own
 *	speed NAME...		these
 *	speed -p NAME NR	one for a profile: with this parameter, three times, and
 *				with pauses before and after it
 *
 * A line "NAME PARAMETER REPETITION VALUE" for each repetition. The value is the clock's
 * nanoseconds for one operation: a fork, a fault, a page that is migrated.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define HUGE (2UL << 20)
#define MPOL_MF_MOVE_ALL 4
#define CGROUP "/sys/fs/cgroup/bench"
/* Repetitions before those that count. */
#define WARM 2

static size_t page;
/* For a profile: the only parameter, and fewer operations. */
static long only = -1;
static int loops = 200;
static const char *self = "/proc/self/exe";

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void result(const char *name, long parameter, int repetition, double value)
{
	if (repetition >= WARM)
		printf("%s %ld %d %.1f\n", name, parameter, repetition - WARM, value);
}

static int repetitions(int wanted)
{
	return WARM + (only < 0 ? wanted : 1);
}

static bool left_out(long parameter)
{
	return only >= 0 && parameter != only;
}

static void must(bool ok, const char *what)
{
	if (!ok)
		err(1, "%s", what);
}

/* So many single pages, each a VMA of its own with a hole behind it; untouched. */
static char *map_separate(long vmas)
{
	const size_t size = 2 * vmas * page;
	char *area = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			  -1, 0);

	must(area != MAP_FAILED, "mmap");
	must(!munmap(area, size), "munmap");
	for (long i = 0; i < vmas; i++)
		must(mmap(area + 2 * i * page, page, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != MAP_FAILED,
		     "mmap");
	return area;
}

static void touch_separate(char *area, long vmas)
{
	for (long i = 0; i < vmas; i++)
		area[2 * i * page]++;
}

static char *map_pages(size_t size)
{
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(area != MAP_FAILED, "mmap");
	return area;
}

/* The same in each word: what swaps needs no compressor that would cost more than all else. */
static void fill(char *area, size_t size)
{
	memset(area, 1, size);
}

static void await(pid_t pid)
{
	int status;

	must(waitpid(pid, &status, 0) == pid, "waitpid");
	if (status)
		errx(1, "a child ended with status %#x", status);
}

/* Nobody preempts the one who measures; children do not inherit this. */
static void first(bool on)
{
	const struct sched_param param = { .sched_priority = on };

	must(!sched_setscheduler(0, (on ? SCHED_FIFO : SCHED_OTHER) | SCHED_RESET_ON_FORK, &param),
	     "sched_setscheduler");
}

static const long sweep[] = { 20, 200, 500, 2000, 20000, 0 };

/* The fork() call alone, and fork, exit and wait. */
static void bench_fork(const char *name)
{
	for (const long *vmas = sweep; *vmas; vmas++) {
		char *area;

		if (left_out(*vmas))
			continue;
		area = map_separate(*vmas);
		touch_separate(area, *vmas);
		first(true);
		for (int i = 0; i < repetitions(*vmas > 2000 ? 5 : 15); i++) {
			const double began = now();
			const pid_t pid = fork();
			double forked;

			if (!pid)
				_exit(0);
			forked = now();
			must(pid > 0, "fork");
			await(pid);
			result("fork_call", *vmas, i, forked - began);
			result("fork_exit_wait", *vmas, i, now() - began);
		}
		first(false);
		munmap(area, 2 * *vmas * page);
	}
}

/* The child writes to each VMA. */
static void bench_fork_touch(const char *name)
{
	for (const long *vmas = sweep; *vmas && *vmas <= 2000; vmas++) {
		char *area;

		if (left_out(*vmas))
			continue;
		area = map_separate(*vmas);
		touch_separate(area, *vmas);
		for (int i = 0; i < repetitions(15); i++) {
			const double began = now();
			const pid_t pid = fork();

			if (!pid) {
				touch_separate(area, *vmas);
				_exit(0);
			}
			must(pid > 0, "fork");
			await(pid);
			result(name, *vmas, i, now() - began);
		}
		munmap(area, 2 * *vmas * page);
	}
}

static void bench_fork_exec(const char *name)
{
	static const long sizes[] = { 20, 500, 0 };

	for (const long *vmas = sizes; *vmas; vmas++) {
		char *area;

		if (left_out(*vmas))
			continue;
		area = map_separate(*vmas);
		touch_separate(area, *vmas);
		for (int i = 0; i < repetitions(15); i++) {
			const double began = now();
			const pid_t pid = fork();

			if (!pid) {
				execl(self, "speed", "nothing", NULL);
				_exit(1);
			}
			must(pid > 0, "fork");
			await(pid);
			result(name, *vmas, i, now() - began);
		}
		munmap(area, 2 * *vmas * page);
	}
}

static void bench_first_fault(const char *name)
{
	const long vmas = 500;

	for (int i = 0; i < repetitions(15); i++) {
		char *area = map_separate(vmas);
		const double began = now();

		touch_separate(area, vmas);
		result(name, 1, i, (now() - began) / vmas);
		munmap(area, 2 * vmas * page);
	}
}

static void bench_mmap_touch(const char *name)
{
	static const long sizes[] = { 1, 16, 0 };

	for (const long *pages = sizes; *pages; pages++)
		for (int i = 0; i < repetitions(15) && !left_out(*pages); i++) {
			const double began = now();

			for (int j = 0; j < loops; j++) {
				char *area = map_pages(*pages * page);

				for (long k = 0; k < *pages; k++)
					area[k * page] = 1;
				munmap(area, *pages * page);
			}
			result(name, *pages, i, (now() - began) / loops);
		}
}

static void bench_mmap_only(const char *name)
{
	for (int i = 0; i < repetitions(15); i++) {
		const double began = now();

		for (int j = 0; j < loops; j++)
			munmap(map_pages(page), page);
		result(name, 1, i, (now() - began) / loops);
	}
}

/* One munmap of many VMAs, each of them with a page. */
static void bench_munmap_many(const char *name)
{
	static const long sizes[] = { 10, 100, 1000, 0 };

	for (const long *vmas = sizes; *vmas; vmas++)
		for (int i = 0; i < repetitions(15) && !left_out(*vmas); i++) {
			char *area = map_separate(*vmas);
			double began;

			touch_separate(area, *vmas);
			began = now();
			munmap(area, 2 * *vmas * page);
			result(name, *vmas, i, (now() - began) / *vmas);
		}
}

static void bench_mprotect(const char *name)
{
	char *area = map_pages(3 * page);

	memset(area, 1, 3 * page);
	for (int i = 0; i < repetitions(15); i++) {
		const double began = now();

		for (int j = 0; j < loops; j++) {
			mprotect(area + page, page, PROT_READ);
			mprotect(area + page, page, PROT_READ | PROT_WRITE);
		}
		result(name, 3, i, (now() - began) / loops);
	}
}

static void bench_brk(const char *name)
{
	for (int i = 0; i < repetitions(15); i++) {
		const double began = now();

		for (int j = 0; j < loops; j++) {
			char *at = sbrk(page);

			*at = 1;
			sbrk(-(intptr_t)page);
		}
		result(name, 1, i, (now() - began) / loops);
	}
}

/* There and back; before, its first fault has been taken at home. */
static void bench_mremap(const char *name)
{
	char *area = map_separate(8), *there = area + 8 * page;

	*area = 1;
	munmap(there, page);
	for (int i = 0; i < repetitions(15); i++) {
		const double began = now();

		for (int j = 0; j < loops / 2; j++) {
			mremap(area, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, there);
			mremap(there, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, area);
		}
		result(name, 1, i, (now() - began) / loops);
	}
}

/* The first move of a VMA that was touched, with its beginning and its end. */
static void bench_mremap_first(const char *name)
{
	char *area = map_separate(8), *there = area + 8 * page;

	munmap(there, page);
	for (int i = 0; i < repetitions(15); i++) {
		const double began = now();

		for (int j = 0; j < loops; j++) {
			char *at = map_pages(page);

			*at = 1;
			mremap(at, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, there);
			munmap(there, page);
		}
		result(name, 1, i, (now() - began) / loops);
	}
}

/* Children that wait and then end. */
struct children {
	int end[2], ready[2];
	long nr;
};

static void children_start(struct children *c, long nr, void (*work)(void *), void *data)
{
	char byte;

	c->nr = nr;
	must(!pipe(c->end) && !pipe(c->ready), "pipe");
	for (long i = 0; i < nr; i++) {
		const pid_t pid = fork();

		must(pid >= 0, "fork");
		if (pid)
			continue;
		close(c->end[1]);
		if (work)
			work(data);
		if (write(c->ready[1], "", 1) != 1 || read(c->end[0], &byte, 1))
			_exit(1);
		_exit(0);
	}
	for (long i = 0; i < nr; i++)
		must(read(c->ready[0], &byte, 1) == 1, "read");
}

static void children_end(struct children *c)
{
	int status;

	close(c->end[1]);
	for (long i = 0; i < c->nr; i++) {
		must(wait(&status) > 0, "wait");
		if (status)
			errx(1, "a child ended with status %#x", status);
	}
	close(c->end[0]);
	close(c->ready[0]);
	close(c->ready[1]);
}

static void grow(void *data)
{
	const long vmas = *(const long *)data;

	touch_separate(map_separate(vmas), vmas);
}

static void bench_exit(const char *name)
{
	for (const long *vmas = sweep; *vmas; vmas++)
		for (int i = 0; i < repetitions(*vmas > 2000 ? 5 : 15) && !left_out(*vmas); i++) {
			struct children c;
			double began;

			children_start(&c, 1, grow, (void *)vmas);
			began = now();
			children_end(&c);
			result(name, *vmas, i, now() - began);
		}
}

static int open_file(const char *path, int mode)
{
	const int fd = open(path, mode | O_CLOEXEC);

	must(fd >= 0, path);
	return fd;
}

static uint64_t entry_of(const char *at)
{
	const int fd = open_file("/proc/self/pagemap", O_RDONLY);
	uint64_t entry;

	must(pread(fd, &entry, 8, (uintptr_t)at / page * 8) == 8, "pagemap");
	close(fd);
	return entry;
}

static long swapped(const char *area, size_t pages)
{
	long found = 0;

	for (size_t i = 0; i < pages; i++)
		found += entry_of(area + i * page) >> 62 & 1;
	return found;
}

/* Sends pages to swap, and takes the faults that bring them back. */
static void bench_swap(const char *name)
{
	const size_t pages = 256, size = pages * page;
	char *area = map_pages(size);

	fill(area, size);
	for (int i = 0; i < repetitions(15); i++) {
		double began = now();
		long out;

		must(!madvise(area, size, MADV_PAGEOUT), "MADV_PAGEOUT");
		result("swap_out", 1, i, (now() - began) / pages);
		out = swapped(area, pages);
		if (out < (long)pages)
			errx(1, "swap: %ld of %zu pages went out", out, pages);
		began = now();
		for (size_t j = 0; j < pages; j++)
			area[j * page] = 1;
		result("swap_in", 1, i, (now() - began) / pages);
	}
}

static const long families[] = { 0, 1, 10, 100, 1000, -1 };

static int family_repetitions(long children)
{
	return repetitions(children > 100 ? 5 : 9);
}

/* Reclaim of pages that a process shares with children, or with none. */
static void bench_reclaim(const char *name)
{
	const size_t pages = 256, size = pages * page;
	const int join = open_file(CGROUP "/cgroup.procs", O_WRONLY);
	const int reclaim = open_file(CGROUP "/memory.reclaim", O_WRONLY);
	char wanted[32];

	snprintf(wanted, sizeof(wanted), "%zu", size);
	must(write(join, "0", 1) == 1, "cgroup.procs");
	for (const long *nr = families; *nr >= 0; nr++)
		for (int i = 0; i < family_repetitions(*nr) && !left_out(*nr); i++) {
			char *area = map_pages(size);
			struct children c;
			double took;
			long out;

			fill(area, size);
			children_start(&c, *nr, NULL, NULL);
			took = now();
			/* EAGAIN: not all that was asked for. What went out counts. */
			if (write(reclaim, wanted, strlen(wanted)) < 0 && errno != EAGAIN)
				err(1, "memory.reclaim");
			took = now() - took;
			out = swapped(area, pages);
			if (out < (long)pages / 2)
				errx(1, "reclaim, %ld children: %ld of %zu pages went out", *nr,
				     out, pages);
			result(name, *nr, i, took / out);
			children_end(&c);
			munmap(area, size);
		}
}

/* Moves pages, @step bytes apart, to the other node, and says how long that took for each. */
static double migrate(char *area, int pages, size_t step, int node)
{
	void *at[64];
	int nodes[64], status[64];
	double took;

	for (int i = 0; i < pages; i++) {
		at[i] = area + i * step;
		nodes[i] = node;
	}
	took = now();
	must(!syscall(SYS_move_pages, 0, pages, at, nodes, status, MPOL_MF_MOVE_ALL),
	     "move_pages");
	took = now() - took;
	for (int i = 0; i < pages; i++)
		if (status[i] != node)
			errx(1, "move_pages: page %d has status %d", i, status[i]);
	return took / pages;
}

/*
 * One walk of the reverse map for each page: page_idle clears the young bits of all
 * mappings. The write of a bit is in it.
 */
static double walk(char *area, int pages, size_t step, int idle)
{
	uint64_t pfns[64];
	double took;

	for (int i = 0; i < pages; i++) {
		pfns[i] = entry_of(area + i * step) & ((1ULL << 55) - 1);
		if (!pfns[i] || !(entry_of(area + i * step) >> 63))
			errx(1, "page %d is not there", i);
	}
	/* This brings the pages to the LRU lists, without which nothing is walked. */
	must(!madvise(area, page, MADV_COLD), "MADV_COLD");
	took = now();
	for (int i = 0; i < pages; i++) {
		const uint64_t bit = 1ULL << pfns[i] % 64;

		/* 0 is the answer where memory ends within the 64 frames; the walk is made. */
		if (pwrite(idle, &bit, 8, pfns[i] / 64 * 8) < 0)
			err(1, "page_idle");
	}
	took = now() - took;
	for (int i = 0; i < pages; i++) {
		uint64_t bits;

		if (pread(idle, &bits, 8, pfns[i] / 64 * 8) == 8 && !(bits >> pfns[i] % 64 & 1))
			errx(1, "page %d did not become idle", i);
	}
	return took / pages;
}

/*
 * Migration and walks of pages that a process shares with children: side by side in one VMA,
 * each in a VMA of its own, and those that it has mapped later: nobody else has these, but
 * for a walk they belong to the same family.
 */
static void bench_family(const char *name)
{
	const int pages = 64, idle = open_file("/sys/kernel/mm/page_idle/bitmap", O_RDWR);

	for (const long *nr = families; *nr >= 0; nr++) {
		char *area, *apart, *later;
		struct children c;

		if (left_out(*nr))
			continue;
		area = map_pages(pages * page);
		memset(area, 1, pages * page);
		apart = map_separate(pages);
		touch_separate(apart, pages);
		children_start(&c, *nr, NULL, NULL);
		/* A hole, lest the two merge. */
		later = map_separate(pages + 1) + page;
		must(mmap(later, pages * page, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == later, "mmap");
		memset(later, 1, pages * page);
		for (int i = 0; i < family_repetitions(*nr); i++) {
			const int node = !(i & 1);

			result("rmap_walk", *nr, i, walk(area, pages, page, idle));
			result("migrate", *nr, i, migrate(area, pages, page, node));
			result("rmap_walk_apart", *nr, i, walk(apart, pages, 2 * page, idle));
			result("migrate_apart", *nr, i, migrate(apart, pages, 2 * page, node));
			result("rmap_walk_later", *nr, i, walk(later, pages, page, idle));
			result("migrate_later", *nr, i, migrate(later, pages, page, node));
		}
		children_end(&c);
	}
}

static long counter(const char *name)
{
	FILE *file = fopen("/proc/vmstat", "re");
	char key[64];
	long value, found = -1;

	must(file, "/proc/vmstat");
	while (found < 0 && fscanf(file, "%63s %ld", key, &value) == 2)
		if (!strcmp(key, name))
			found = value;
	fclose(file);
	return found;
}

static void bench_thp(const char *name)
{
	const int split = open_file("/sys/kernel/debug/split_huge_pages", O_WRONLY);
	char *area = map_pages(2 * HUGE), command[96];

	area = (char *)(((uintptr_t)area + HUGE - 1) & -HUGE);
	must(!madvise(area, HUGE, MADV_HUGEPAGE), "MADV_HUGEPAGE");
	memset(area, 1, HUGE);
	snprintf(command, sizeof(command), "%d,%#lx,%#lx,0", getpid(), (unsigned long)area,
		 (unsigned long)area + HUGE);
	for (int i = 0; i < repetitions(9); i++) {
		const long before = counter("thp_split_page");
		double began = now();

		must(write(split, command, strlen(command)) > 0, "split_huge_pages");
		result("thp_split", 1, i, now() - began);
		if (counter("thp_split_page") == before)
			errx(1, "thp: nothing was split");
		began = now();
		must(!madvise(area, HUGE, MADV_COLLAPSE), "MADV_COLLAPSE");
		result("thp_collapse", 1, i, now() - began);
	}
}

static const struct {
	const char *name;
	void (*run)(const char *name);
} benchmarks[] = {
	{ "fork", bench_fork },
	{ "fork_touch", bench_fork_touch },
	{ "fork_exec", bench_fork_exec },
	{ "first_fault", bench_first_fault },
	{ "mmap_touch_munmap", bench_mmap_touch },
	{ "mmap_munmap", bench_mmap_only },
	{ "munmap_many", bench_munmap_many },
	{ "mprotect_split_merge", bench_mprotect },
	{ "brk", bench_brk },
	{ "mremap", bench_mremap },
	{ "mremap_first", bench_mremap_first },
	{ "exit", bench_exit },
	{ "swap", bench_swap },
	{ "reclaim", bench_reclaim },
	{ "family", bench_family },
	{ "thp", bench_thp },
	{ NULL, NULL }
};

static int run(const char *name)
{
	for (size_t i = 0; benchmarks[i].name; i++)
		if (!strcmp(benchmarks[i].name, name)) {
			benchmarks[i].run(name);
			return fflush(stdout) ? 1 : 0;
		}
	errx(2, "%s: no such benchmark", name);
}

int main(int argc, char **argv)
{
	int failed = 0;

	page = sysconf(_SC_PAGESIZE);
	if (argc == 2 && !strcmp(argv[1], "nothing"))
		return 0;
	if (argc == 2)
		return run(argv[1]);
	if (argc == 4 && !strcmp(argv[1], "-p")) {
		only = atol(argv[3]);
		loops = 20;
		puts("# profile begin");
		fflush(stdout);
		sleep(5);
		failed = run(argv[2]);
		puts("# profile end");
		fflush(stdout);
		sleep(5);
		return failed;
	}
	/* A program of its own for each: none inherits what another has left. */
	for (size_t i = 0; argc > 1 ? argv[i + 1] : benchmarks[i].name; i++) {
		const char *name = argc > 1 ? argv[i + 1] : benchmarks[i].name;
		const pid_t pid = fork();
		int status;

		if (!pid) {
			execl(self, "speed", name, NULL);
			_exit(127);
		}
		must(pid > 0 && waitpid(pid, &status, 0) == pid, "fork");
		if (status) {
			fprintf(stderr, "%s: status %#x\n", name, status);
			failed = 1;
		}
	}
	return failed;
}
