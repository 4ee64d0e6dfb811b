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
#define GENERATIONS 4000

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

/* The same, once it stands still: roots are freed a little later than they go. */
static long settled(const char *cache)
{
	long seen = objects(cache), now;

	for (int i = 0, same = 0; i < 100 && same < 5; i++) {
		usleep(100000);
		now = objects(cache);
		same = now == seen ? same + 1 : 0;
		seen = now;
	}
	return seen;
}

FIXTURE(cost)
{
	struct family f;
	size_t page;
	long roots, anon_vmas, avcs;
};

FIXTURE_SETUP(cost)
{
	self->page = sysconf(_SC_PAGESIZE);
	ASSERT_TRUE(lazy_mode());
	ASSERT_EQ(family_init(&self->f), 0);
	self->roots = settled("anon_vma_lazy_root");
	self->anon_vmas = settled("anon_vma");
	self->avcs = settled("anon_vma_chain");
	ASSERT_GT(self->roots, 0);
	ASSERT_GE(self->anon_vmas, 0);
}

FIXTURE_TEARDOWN(cost)
{
	EXPECT_EQ(family_release(&self->f), 0);
	/* All of it is given back. */
	EXPECT_LE(settled("anon_vma_lazy_root"), self->roots);
	EXPECT_LE(settled("anon_vma_chain"), self->avcs + 1);
	EXPECT_LE(settled("anon_vma"), self->anon_vmas);
}

static bool touch_all(char *area, size_t page)
{
	for (int i = 0; i < VMAS; i++)
		area[2 * i * page]++;
	return true;
}

TEST_F(cost, one_root_for_200_vmas)
{
	char *area = avl_map_separate(VMAS);

	ASSERT_NE(area, NULL);
	touch_all(area, self->page);
	EXPECT_EQ(settled("anon_vma_lazy_root"), self->roots);
	EXPECT_EQ(settled("anon_vma"), self->anon_vmas);
	EXPECT_EQ(settled("anon_vma_chain"), self->avcs);
}

/* 20 children of it: a root each, and a link for each stack, which exec has moved. */
TEST_F(cost, one_root_for_each_child)
{
	char *area = avl_map_separate(VMAS);

	ASSERT_NE(area, NULL);
	touch_all(area, self->page);
	for (int i = 0; i < CHILDREN; i++)
		KIN(&self->f, touch_all(area, self->page));
	ASSERT_TRUE(family_await(&self->f, CHILDREN));
	EXPECT_EQ(settled("anon_vma_lazy_root"), self->roots + CHILDREN);
	EXPECT_EQ(settled("anon_vma"), self->anon_vmas);
	EXPECT_EQ(settled("anon_vma_chain"), self->avcs + CHILDREN);
	/* One that moves a VMA has a link for that, and no more. */
	ASSERT_EQ(mremap(area, self->page, self->page, MREMAP_MAYMOVE | MREMAP_FIXED,
			 area + self->page), area + self->page);
	EXPECT_EQ(settled("anon_vma_chain"), self->avcs + CHILDREN + 1);
	EXPECT_EQ(settled("anon_vma"), self->anon_vmas);
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* Each generation forks the next and exits: what is left behind is bounded. */
TEST_F_TIMEOUT(cost, endless_fork_and_exit, 600)
{
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
		while (shared->generation < GENERATIONS) {
			pid_t pid = fork();

			if (pid < 0)
				_exit(1);
			if (pid)
				_exit(0);
			area[0]++;
			if (++shared->generation == GENERATIONS / 2)
				shared->middle = seconds();
			if (shared->generation % (GENERATIONS / 8) == 0) {
				long now = settled("anon_vma_lazy_root");

				if (now > shared->most_roots)
					shared->most_roots = now;
			}
		}
		shared->end = seconds();
		__atomic_store_n(&shared->done, 1, __ATOMIC_SEQ_CST);
		_exit(0);
	}
	while (!__atomic_load_n(&shared->done, __ATOMIC_SEQ_CST))
		usleep(10000);
	wait(&status);
	TH_LOG("%d generations: %.1f s, then %.1f s; at most %ld roots more", GENERATIONS,
	       shared->middle - began, shared->end - shared->middle,
	       shared->most_roots - self->roots);
	/* The bound of the design on ancestors without an mm, and those who live. */
	EXPECT_LE(shared->most_roots - self->roots, 8 + 4);
	EXPECT_GT(shared->most_roots, 0);
	EXPECT_LT(shared->end - shared->middle, 2 * (shared->middle - began) + 4);
	EXPECT_SOUND();
}

TEST_HARNESS_MAIN
