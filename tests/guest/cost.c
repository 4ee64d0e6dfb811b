// SPDX-License-Identifier: GPL-2.0
/*
 * What lazy roots cost: objects, counted in the slab caches, and what a chain
 * of processes that fork and exit leaves behind. For a guest in which every
 * program is lazy, booted with slab_debug=F for these caches: counts are exact.
 */
#define _GNU_SOURCE
#include <time.h>

#include "kselftest_harness.h"
#include "rmap.h"

#define VMAS 200
#define CHILDREN 20

/* Objects in use of a cache, or -1. */
static long objects(const char *cache)
{
	FILE *file = fopen("/proc/slabinfo", "re");
	char line[512], name[64];
	long found = -1, nr;

	if (!file)
		return -1;
	while (found < 0 && fgets(line, sizeof(line), file))
		if (sscanf(line, "%63s %ld", name, &nr) == 2 && !strcmp(name, cache))
			found = nr;
	fclose(file);
	return found;
}

enum { ROOTS, ANON_VMAS, AVCS, CACHES };

static const char *const caches[CACHES] = {
	[ROOTS] = "anon_vma_lazy_root",
	[ANON_VMAS] = "anon_vma",
	[AVCS] = "anon_vma_chain",
};

/*
 * What is freed goes a little later than it could: after a grace period, by a
 * worker. On a busy machine that can take seconds, so nothing here is a matter
 * of a fixed time: a count is waited for, up to a minute.
 */
static long await_objects(int cache, long wanted)
{
	long now = objects(caches[cache]);

	for (int i = 0; i < 600 && now != wanted; i++) {
		usleep(100000);
		now = objects(caches[cache]);
	}
	return now;
}

/* All the counts, once none has changed for two seconds. */
static void settled(long counts[CACHES])
{
	for (int i = 0, same = 0; i < 600 && same < 20; i++) {
		bool changed = false;

		for (int cache = 0; cache < CACHES; cache++) {
			const long now = objects(caches[cache]);

			changed |= now != counts[cache];
			counts[cache] = now;
		}
		same = changed ? 0 : same + 1;
		usleep(100000);
	}
}

FIXTURE(cost)
{
	struct family f;
	size_t page;
	long before[CACHES], links;
};

/* So many objects more than before the test, of each cache. */
#define EXPECT_MORE(roots, anon_vmas, avcs) do {						\
	const long more_[CACHES] = {								\
		[ROOTS] = (roots), [ANON_VMAS] = (anon_vmas), [AVCS] = (avcs),			\
	};											\
												\
	for (int c_ = 0; c_ < CACHES; c_++)							\
		EXPECT_EQ(await_objects(c_, self->before[c_] + more_[c_]),			\
			  self->before[c_] + more_[c_]);					\
} while (0)

FIXTURE_SETUP(cost)
{
	self->page = sysconf(_SC_PAGESIZE);
	ASSERT_TRUE(lazy_mode());
	ASSERT_EQ(family_init(&self->f), 0);
	settled(self->before);
	ASSERT_GT(self->before[ROOTS], 0);
	ASSERT_GE(self->before[ANON_VMAS], 0);
}

FIXTURE_TEARDOWN(cost)
{
	EXPECT_EQ(family_release(&self->f), 0);
	/* All of it is given back, but for a link of what the test has moved itself. */
	EXPECT_EQ(await_objects(ROOTS, self->before[ROOTS]), self->before[ROOTS]);
	EXPECT_EQ(await_objects(ANON_VMAS, self->before[ANON_VMAS]), self->before[ANON_VMAS]);
	EXPECT_EQ(await_objects(AVCS, self->before[AVCS] + self->links),
		  self->before[AVCS] + self->links);
}

static bool touch_all(char *area, size_t page)
{
	for (int i = 0; i < VMAS; i++)
		area[2 * i * page]++;
	return true;
}

TEST_F_TIMEOUT(cost, one_root_for_200_vmas, 300)
{
	char *area = avl_map_separate(VMAS);

	ASSERT_NE(area, NULL);
	touch_all(area, self->page);
	EXPECT_MORE(0, 0, 0);
}

/* 20 children of it: a root each, and a link for each stack, which exec has moved. */
TEST_F_TIMEOUT(cost, one_root_for_each_child, 600)
{
	char *area = avl_map_separate(VMAS);

	ASSERT_NE(area, NULL);
	touch_all(area, self->page);
	for (int i = 0; i < CHILDREN; i++)
		KIN(&self->f, touch_all(area, self->page));
	ASSERT_TRUE(family_await(&self->f, CHILDREN));
	EXPECT_MORE(CHILDREN, 0, CHILDREN);
	/* One that moves a VMA has a link for that, and no more. */
	ASSERT_EQ(mremap(area, self->page, self->page, MREMAP_MAYMOVE | MREMAP_FIXED,
			 area + self->page), area + self->page);
	self->links = 1;
	EXPECT_MORE(CHILDREN, 0, CHILDREN + self->links);
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* Each generation forks the next and exits: what is left behind is bounded. */
TEST_F_TIMEOUT(cost, endless_fork_and_exit, 3600)
{
	const long generations = avl_number("avl.generations=", 4000);
	char *area = avl_map_separate(4);
	struct shared {
		long generation, most_roots;
		double middle, end;
		int done;
	} *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const double began = seconds();
	int status;

	ASSERT_NE(area, NULL);
	ASSERT_NE(shared, MAP_FAILED);
	area[0] = 1;
	/* Orphans are init's here: a subreaper would have to reap them all. */
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
	if (!fork()) {
		while (shared->generation < generations) {
			pid_t pid = fork();

			if (pid < 0)
				_exit(1);
			if (pid)
				_exit(0);
			area[0]++;
			if (++shared->generation == generations / 2)
				shared->middle = seconds();
			if (shared->generation % (generations / 8) == 0) {
				long now[CACHES] = { 0 };

				settled(now);
				if (now[ROOTS] > shared->most_roots)
					shared->most_roots = now[ROOTS];
			}
		}
		shared->end = seconds();
		__atomic_store_n(&shared->done, 1, __ATOMIC_SEQ_CST);
		_exit(0);
	}
	while (!__atomic_load_n(&shared->done, __ATOMIC_SEQ_CST))
		usleep(10000);
	wait(&status);
	TH_LOG("%ld generations: %.1f s, then %.1f s; at most %ld roots more", generations,
	       shared->middle - began, shared->end - shared->middle,
	       shared->most_roots - self->before[ROOTS]);
	/* The bound of the design on ancestors without an mm, and those who live. */
	EXPECT_LE(shared->most_roots - self->before[ROOTS], 8 + 4);
	EXPECT_GT(shared->most_roots, 0);
	EXPECT_LT(shared->end - shared->middle, 2 * (shared->middle - began) + 4);
	EXPECT_SOUND();
}

TEST_HARNESS_MAIN
