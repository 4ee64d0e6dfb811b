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

/* What a fork and an exit take now, as busy as the machine is, of a process with few ancestors. */
static double fork_and_exit(int nr)
{
	const double began = seconds();

	for (int i = 0; i < nr; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			return -1;
	}
	return seconds() - began;
}

/* Parts of the chain, between which the test's own process is measured. */
#define PARTS 32
#define FORKS 50

/* Generations that live at once; false if there are not so many. */
static bool chain(struct family *f, pid_t *pids, int nr)
{
	for (int i = 0; i < nr; i++) {
		const pid_t pid = fork();

		if (pid) {
			/* Each but the test itself stays until it is killed. */
			pids[i] = pid;
			if (pid < 0 && write(f->ready[1], "x", 1) != 1)
				_exit(1);
			while (i)
				pause();
			return family_await(f, 1);
		}
	}
	if (write(f->ready[1], "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

/*
 * A chain of roots, each of which the next one alone keeps, goes with the last of them: in a loop,
 * since no stack in the kernel has room for so many calls. Before, a walk visits them all.
 */
TEST_F_TIMEOUT(cost, a_long_chain_goes_at_once, 600)
{
	enum { LENGTH = 400 };
	pid_t *pids = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *area = avl_map_separate(1);
	bool alive;

	ASSERT_NE(area, NULL);
	ASSERT_NE(pids, MAP_FAILED);
	area[0] = 1;
	alive = chain(&self->f, pids, LENGTH);
	if (alive) {
		EXPECT_EQ(await_objects(ROOTS, self->before[ROOTS] + LENGTH),
			  self->before[ROOTS] + LENGTH);
		EXPECT_EQ(move_to_node(0, area, 1, 1), 1);
		EXPECT_EQ(move_to_node(0, area, 1, 0), 1);
		EXPECT_SOUND();
	}
	/* From the oldest on, as the next one is the test's child then. */
	for (int i = 0; i < LENGTH && pids[i] > 0; i++) {
		if (alive && i == LENGTH - 1) {
			/* All but this one have gone, and their roots have not. */
			usleep(500000);
			EXPECT_EQ(objects(caches[ROOTS]), self->before[ROOTS] + LENGTH);
			EXPECT_SOUND();
		}
		kill(pids[i], SIGKILL);
		ASSERT_EQ(waitpid(pids[i], NULL, 0), pids[i]);
	}
	ASSERT_TRUE(alive);
	EXPECT_EQ(await_objects(ROOTS, self->before[ROOTS]), self->before[ROOTS]);
}

/*
 * Each generation forks the next and exits: what is left behind is bounded. The second half takes
 * no longer than the first; each is compared with what forks take meanwhile that are not of the
 * chain, since another load of the machine comes and goes.
 */
TEST_F_TIMEOUT(cost, endless_fork_and_exit, 3600)
{
	/* Whole parts. */
	const long part = (avl_number("avl.generations=", 4000) + PARTS - 1) / PARTS;
	const long generations = part * PARTS;
	char *area = avl_map_separate(4);
	struct shared {
		long generation, most_roots;
		double since, half[2], forks[2];
		int wanted, failed;
	} *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;

	ASSERT_NE(area, NULL);
	ASSERT_NE(shared, MAP_FAILED);
	area[0] = 1;
	/* Orphans are init's here: a subreaper would have to reap them all. */
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
	shared->since = seconds();
	if (!fork()) {
		for (;;) {
			pid_t pid = fork();

			if (pid < 0)
				shared->failed = 1;
			if (pid)
				_exit(0);
			area[0]++;
			if (++shared->generation % part)
				continue;
			shared->half[2 * shared->generation > generations] +=
				seconds() - shared->since;
			if (shared->generation % (4 * part) == 0) {
				long now[CACHES] = { 0 };

				settled(now);
				if (now[ROOTS] > shared->most_roots)
					shared->most_roots = now[ROOTS];
			}
			__atomic_store_n(&shared->wanted, 1, __ATOMIC_SEQ_CST);
			while (__atomic_load_n(&shared->wanted, __ATOMIC_SEQ_CST))
				usleep(1000);
			if (shared->generation == generations || shared->failed)
				break;
			shared->since = seconds();
		}
		__atomic_store_n(&shared->wanted, -1, __ATOMIC_SEQ_CST);
		_exit(0);
	}
	while (shared->wanted >= 0 && !shared->failed) {
		double took;

		if (!__atomic_load_n(&shared->wanted, __ATOMIC_SEQ_CST)) {
			usleep(1000);
			continue;
		}
		took = fork_and_exit(FORKS);
		if (took <= 0)
			shared->failed = 1;
		shared->forks[2 * shared->generation > generations] += took;
		__atomic_store_n(&shared->wanted, 0, __ATOMIC_SEQ_CST);
	}
	wait(&status);
	EXPECT_FALSE(shared->failed);
	TH_LOG("%ld generations: %.1f s, then %.1f s; %d other forks: %.2f s, then %.2f s",
	       generations, shared->half[0], shared->half[1], FORKS * PARTS / 2,
	       shared->forks[0], shared->forks[1]);
	TH_LOG("at most %ld roots more", shared->most_roots - self->before[ROOTS]);
	/* The bound of the design on ancestors without an mm, and those who live. */
	EXPECT_LE(shared->most_roots - self->before[ROOTS], 8 + 4);
	EXPECT_GT(shared->most_roots, 0);
	ASSERT_GT(shared->half[0], 0);
	EXPECT_LT(shared->half[1] / shared->half[0], 2 * shared->forks[1] / shared->forks[0]);
	EXPECT_SOUND();
}

TEST_HARNESS_MAIN
