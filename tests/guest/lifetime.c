// SPDX-License-Identifier: GPL-2.0
/* Loading and unloading the module, alone and while first faults race. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "kselftest_harness.h"
#include "avl.h"

/* Loads and unloads: less on a kernel on which each takes seconds (avl.cycles=). */
#define CYCLES ((int)avl_number("avl.cycles=", 100))
#define FAULTERS 3

TEST(unload_when_not_loaded)
{
	ASSERT_EQ(avl_unload(), -ENOENT);
}

TEST(load_twice)
{
	ASSERT_EQ(avl_load("enabled=0"), 0);
	EXPECT_EQ(avl_load("enabled=0"), -EEXIST);
	/* The first one goes on. */
	EXPECT_EQ(access(AVL_SYSCTL, F_OK), 0);
	EXPECT_GE(avl_counter("first_fault"), 0);
	EXPECT_EQ(avl_unload(), 0);
	EXPECT_EQ(avl_unload(), -ENOENT);
}

/* The loader's way with any module: it says so, and goes on without. */
TEST(unknown_parameter)
{
	ASSERT_EQ(avl_log_mark("avl: unknown parameter"), 0);
	ASSERT_EQ(avl_load("enabled=0 enbaled=1"), 0);
	EXPECT_EQ(avl_log_count("avl: unknown parameter",
				"anon_vma_lazy: unknown parameter 'enbaled' ignored"), 1);
	EXPECT_EQ(avl_unload(), 0);
}

TEST(bad_value_of_parameter)
{
	ASSERT_EQ(avl_log_mark("avl: bad value"), 0);
	EXPECT_EQ(avl_load("enabled=perhaps"), -EINVAL);
	EXPECT_EQ(avl_log_count("avl: bad value", "invalid for parameter `enabled'"), 1);
	EXPECT_NE(access(AVL_SYSCTL, F_OK), 0);
	EXPECT_EQ(avl_unload(), -ENOENT);
}

/* Nothing of the module stays behind when it goes. */
TEST(files_come_and_go)
{
	EXPECT_NE(access(AVL_SYSCTL, F_OK), 0);
	EXPECT_NE(access(AVL_COUNTERS, F_OK), 0);
	ASSERT_EQ(avl_load("enabled=0"), 0);
	EXPECT_EQ(access(AVL_SYSCTL, F_OK), 0);
	EXPECT_EQ(access(AVL_COUNTERS, F_OK), 0);
	ASSERT_EQ(avl_unload(), 0);
	EXPECT_NE(access(AVL_SYSCTL, F_OK), 0);
	EXPECT_NE(access(AVL_COUNTERS, F_OK), 0);
}

/*
 * A file in debugfs that is open holds the module; a sysctl that is open does not,
 * and gives an error when the module is gone. Neither is a crash.
 */
TEST(files_open_across_unload)
{
	char text[64];
	int sysctl, counters;

	ASSERT_EQ(avl_load("enabled=0"), 0);
	sysctl = open(AVL_SYSCTL, O_RDWR);
	counters = open(AVL_COUNTERS, O_RDONLY);
	ASSERT_GE(sysctl, 0);
	ASSERT_GE(counters, 0);
	EXPECT_EQ(avl_unload(), -EWOULDBLOCK);
	EXPECT_GT(read(counters, text, sizeof(text)), 0);
	close(counters);
	ASSERT_EQ(avl_unload_soon(), 0);
	EXPECT_LT(read(sysctl, text, sizeof(text)), 0);
	EXPECT_LT(write(sysctl, "0\n", 2), 0);
	close(sysctl);
}

/* A process that has a root keeps the module, and nothing else does. */
TEST(lazy_state_keeps_the_module)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	char *area = avl_map_separate(4), c;
	int ready[2], go[2], status;
	pid_t pid;

	ASSERT_NE(area, NULL);
	ASSERT_EQ(pipe(ready), 0);
	ASSERT_EQ(pipe(go), 0);
	ASSERT_EQ(avl_load("enabled=0"), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		/* On for as long as this takes: nobody else is to become lazy. */
		if (avl_write(AVL_SYSCTL, "1", 1))
			_exit(1);
		area[0] = 1;
		area[2 * page] = 1;
		if (avl_write(AVL_SYSCTL, "0", 1) || write(ready[1], "", 1) != 1 ||
		    read(go[0], &c, 1) != 1)
			_exit(1);
		_exit(area[0] == 1 ? 0 : 1);
	}
	ASSERT_EQ(read(ready[0], &c, 1), 1);
	EXPECT_EQ(avl_counter("root_new"), 1);
	EXPECT_EQ(avl_counter("vma_lazy"), 2);
	EXPECT_EQ(avl_unload(), -EAGAIN);
	ASSERT_EQ(write(go[1], "", 1), 1);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_EQ(avl_unload_soon(), 0);
}

static long milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * A task that sleeps inside the hook when the module is unloaded: unloading
 * waits for it, and it does not wake up in memory that was freed. Everything
 * that faults first in the guest sleeps, this test included.
 */
TEST(unload_waits_for_a_hook_that_sleeps)
{
	const long delay = 2000;
	char *area = avl_map_separate(1);
	long began, took;
	int status;
	pid_t pid;

	ASSERT_NE(area, NULL);
	ASSERT_EQ(avl_load("enabled=0 test_delay_ms=2000"), 0);
	began = milliseconds();
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		area[0] = 1;
		_exit(area[0] == 1 ? 0 : 1);
	}
	/* The child has nothing but this VMA to fault first: fork gave it the others. */
	while (avl_counter("first_fault") < 1 && milliseconds() - began < 10000)
		usleep(1000);
	/* It sleeps now, and the module goes. */
	began = milliseconds();
	ASSERT_EQ(avl_unload(), 0);
	took = milliseconds() - began;
	TH_LOG("unloading took %ld ms", took);
	EXPECT_GT(took, delay / 10);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

/* Becomes lazy, makes a child that shares a huge page, and splits it. */
static void split_a_shared_page(const int *ready, const int *go)
{
	const size_t size = 2 << 20;
	char *area = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char range[64], c;

	/* If the test fails, the child reads an end of file. */
	close(go[1]);
	area = (char *)(((uintptr_t)area + size - 1) & -size);
	if (madvise(area, size, MADV_HUGEPAGE) || avl_write(AVL_SYSCTL, "1", 1))
		_exit(1);
	area[0] = 1;
	if (avl_write(AVL_SYSCTL, "0", 1))
		_exit(2);
	switch (fork()) {
	case -1:
		_exit(3);
	case 0:
		_exit(write(ready[1], "", 1) != 1 || read(go[0], &c, 1) != 1);
	}
	snprintf(range, sizeof(range), "%d,%#lx,%#lx", getpid(), (unsigned long)area,
		 (unsigned long)area + size);
	_exit(avl_write("/sys/kernel/debug/split_huge_pages", range, strlen(range)) ? 4 : 0);
}

/*
 * A walk that was about to lock the root of a child when that went drops the last reference to the
 * root. Splitting a folio holds the lock of the root that its walks begin with all the time: who
 * frees the other one, and waits for its lock, is better somebody else.
 */
TEST(a_walk_may_drop_the_last_reference_to_a_root)
{
	const long began = milliseconds(), pin = 5000;
	int ready[2], go[2], status;
	long descended;
	pid_t parent, ended = 0;
	char c;

	ASSERT_EQ(pipe(ready), 0);
	ASSERT_EQ(pipe(go), 0);
	ASSERT_EQ(avl_load("enabled=0 test_pin_ms=5000"), 0);
	parent = fork();
	ASSERT_GE(parent, 0);
	if (!parent)
		split_a_shared_page(ready, go);
	ASSERT_EQ(read(ready[0], &c, 1), 1);
	/* The walk sleeps with a pin on the child's root now. It keeps the root, and no more. */
	while (avl_counter("walk_descend") < 1 && milliseconds() - began < 30000)
		usleep(1000);
	descended = milliseconds();
	ASSERT_GE(avl_counter("walk_descend"), 1);
	ASSERT_EQ(write(go[1], "", 1), 1);
	while (avl_counter("root_detach") < 1 && milliseconds() - began < 30000)
		usleep(1000);
	EXPECT_EQ(avl_counter("root_detach"), 1);
	/* The process lets go soon after that; what keeps the root then is the pin. */
	usleep(300000);
	EXPECT_EQ(avl_counter("root_free"), 0);
	EXPECT_LT(milliseconds() - descended, pin);
	for (int i = 0; i < 300 && !ended; i++) {
		usleep(100000);
		ended = waitpid(parent, &status, WNOHANG);
	}
	ASSERT_EQ(ended, parent);
	EXPECT_EQ(status, 0);
	EXPECT_EQ(avl_unload_soon(), 0);
}

/* Pages of a process that has gone, which two children keep. */
struct legacy {
	uint64_t frame;
	pid_t heirs[2];
};

/* Becomes lazy, has two children that keep what it wrote, says where that is, and goes. */
static void leave_pages_to_children(int out)
{
	const size_t page = sysconf(_SC_PAGESIZE), size = 64 * page;
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct legacy legacy = { 0 };
	cpu_set_t one;

	/* One CPU's batches fill with its own pages. */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		_exit(6);
	if (area == MAP_FAILED || pagemap < 0 || avl_write(AVL_SYSCTL, "1", 1))
		_exit(1);
	memset(area, 1, size);
	if (avl_write(AVL_SYSCTL, "0", 1))
		_exit(2);
	for (int i = 0; i < 2; i++) {
		legacy.heirs[i] = fork();
		if (legacy.heirs[i] < 0)
			_exit(3);
		if (!legacy.heirs[i])
			for (;;)
				pause();
	}
	/* The first page, which is on a list of reclaim by now: those wait for a batch to fill. */
	if (pread(pagemap, &legacy.frame, 8, (uintptr_t)area / page * 8) != 8 ||
	    !(legacy.frame >> 63))
		_exit(4);
	legacy.frame &= (1ULL << 55) - 1;
	_exit(write(out, &legacy, sizeof(legacy)) != sizeof(legacy));
}

/* Mark the frame as idle, which takes a walk to all who map it. */
static void *walk_to_frame(void *arg)
{
	const uint64_t frame = *(uint64_t *)arg, bit = 1ULL << frame % 64;
	int bitmap = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR | O_CLOEXEC);
	bool ok = bitmap >= 0 && pwrite(bitmap, &bit, 8, frame / 64 * 8) == 8;

	close(bitmap);
	return ok ? arg : NULL;
}

/*
 * A walk is at the root of a process that has gone when the children go, too, which were all that
 * kept it: the walk's lock keeps it on.
 */
TEST(a_walk_keeps_a_root_by_its_lock)
{
	const long began = milliseconds(), visit = 15000;
	struct legacy legacy;
	pthread_t thread;
	long walked;
	int out[2], status;
	void *ok;
	pid_t pid;

	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	ASSERT_EQ(pipe(out), 0);
	ASSERT_EQ(avl_load("enabled=0 test_visit_ms=15000"), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		leave_pages_to_children(out[1]);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	ASSERT_EQ(read(out[0], &legacy, sizeof(legacy)), sizeof(legacy));
	EXPECT_EQ(avl_counter("roots"), 3);
	EXPECT_EQ(avl_counter("walk"), 0);

	ASSERT_EQ(pthread_create(&thread, NULL, walk_to_frame, &legacy.frame), 0);
	while (avl_counter("walk") < 1 && milliseconds() - began < 60000)
		usleep(1000);
	walked = milliseconds();
	ASSERT_EQ(avl_counter("walk"), 1);
	for (int i = 0; i < 2; i++) {
		kill(legacy.heirs[i], SIGKILL);
		ASSERT_EQ(waitpid(legacy.heirs[i], &status, 0), legacy.heirs[i]);
	}
	while (avl_counter("root_detach") < 3 && milliseconds() - walked < visit)
		usleep(1000);
	/* Nobody refers to the root any more; what would free it waits. */
	usleep(500000);
	EXPECT_EQ(avl_counter("root_detach"), 3);
	EXPECT_LT(avl_counter("root_free"), 3);
	EXPECT_LT(milliseconds() - walked, visit) {
		TH_LOG("so slow that the walk may have gone on");
	}
	ASSERT_EQ(pthread_join(thread, &ok), 0);
	EXPECT_NE(ok, NULL);
	EXPECT_EQ(avl_counter("walk_end"), 1);
	/* Unloading takes that all three are freed. */
	EXPECT_EQ(avl_unload_soon(), 0);
}

/* Roots are read by walks that look behind the back of who frees them. */
TEST(memory_of_roots_stays_theirs)
{
	const char *cache = "/sys/kernel/slab/anon_vma_lazy_root/";
	char path[128], text[64];

	ASSERT_EQ(avl_load("enabled=0"), 0);
	snprintf(path, sizeof(path), "%sdestroy_by_rcu", cache);
	ASSERT_GT(avl_read(path, text, sizeof(text)), 0);
	EXPECT_EQ(atoi(text), 1);
	/* With a constructor, the lock in there is one at all times. */
	snprintf(path, sizeof(path), "%sctor", cache);
	ASSERT_GT(avl_read(path, text, sizeof(text)), 0);
	EXPECT_GT(strlen(text), 1);
	EXPECT_EQ(avl_unload_soon(), 0);
}

/* Shared with the faulting processes. */
struct progress {
	unsigned long faults[FAULTERS];
	int stop;
};

static void *fault_loop(void *arg)
{
	struct progress *progress = ((void **)arg)[0];
	const long self = (long)((void **)arg)[1];
	const size_t page = sysconf(_SC_PAGESIZE);

	while (!__atomic_load_n(&progress->stop, __ATOMIC_RELAXED)) {
		char *area = avl_map_separate(8);

		if (!area)
			_exit(1);
		for (int i = 0; i < 8; i++)
			area[2 * i * page] = 1;
		__atomic_fetch_add(&progress->faults[self], 8, __ATOMIC_RELAXED);
		if (munmap(area, 16 * page))
			_exit(1);
	}
	return NULL;
}

/* Two threads fault in one mm, and every now and then it forks. */
static void faulter(struct progress *progress, long self)
{
	void *arg[2] = { progress, (void *)self };
	pthread_t thread;

	if (pthread_create(&thread, NULL, fault_loop, arg))
		_exit(1);
	while (!__atomic_load_n(&progress->stop, __ATOMIC_RELAXED)) {
		pid_t pid = fork();
		int status;

		if (pid < 0)
			_exit(1);
		if (!pid) {
			char *area = avl_map_separate(4);

			if (!area)
				_exit(1);
			area[0] = 1;
			_exit(0);
		}
		if (waitpid(pid, &status, 0) != pid || status)
			_exit(1);
	}
	pthread_join(thread, NULL);
	_exit(0);
}

FIXTURE(race)
{
	struct progress *progress;
	pid_t pids[FAULTERS];
};

FIXTURE_SETUP(race)
{
	self->progress = mmap(NULL, sizeof(*self->progress), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->progress, MAP_FAILED);
	for (long i = 0; i < FAULTERS; i++) {
		self->pids[i] = fork();
		ASSERT_GE(self->pids[i], 0);
		if (!self->pids[i])
			faulter(self->progress, i);
	}
}

FIXTURE_TEARDOWN(race)
{
	/* Also after a failed assertion: nobody is left behind to fault on. */
	__atomic_store_n(&self->progress->stop, 1, __ATOMIC_RELAXED);
	while (wait(NULL) > 0)
		;
	munmap(self->progress, sizeof(*self->progress));
}

TEST_F_TIMEOUT(race, load_and_unload_many_times, 900)
{
	const int cycles = CYCLES;
	unsigned long seen = 0, before, after;
	int with_faults = 0;

	for (int i = 0; i < cycles; i++) {
		before = 0;
		after = 0;
		for (int j = 0; j < FAULTERS; j++)
			before += __atomic_load_n(&self->progress->faults[j], __ATOMIC_RELAXED);
		ASSERT_EQ(avl_load("enabled=0"), 0) {
			TH_LOG("cycle %d", i);
		}
		/* At least one fault runs through the hook, then more race with the unload. */
		for (int spin = 0; spin < 1000 && avl_counter("first_fault") < 1; spin++)
			usleep(1000);
		if (avl_counter("first_fault") > 0)
			with_faults++;
		ASSERT_EQ(avl_unload(), 0) {
			TH_LOG("cycle %d", i);
		}
		for (int j = 0; j < FAULTERS; j++)
			after += __atomic_load_n(&self->progress->faults[j], __ATOMIC_RELAXED);
		seen += after - before;
	}
	__atomic_store_n(&self->progress->stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < FAULTERS; i++) {
		int status;

		ASSERT_EQ(waitpid(self->pids[i], &status, 0), self->pids[i]);
		EXPECT_EQ(status, 0);
	}
	TH_LOG("%d cycles, first faults through the hook in %d, %lu page faults beside them",
	       cycles, with_faults, seen);
	EXPECT_EQ(with_faults, cycles);
	EXPECT_GT(seen, cycles);
}

/* Shared with those who make short-lived lazy processes. */
struct storm {
	unsigned long born[FAULTERS];
	int stop;
};

/* Not lazy itself: all that faults first is in the children. */
static void make_lazy_children(struct storm *storm, long self)
{
	while (!__atomic_load_n(&storm->stop, __ATOMIC_RELAXED)) {
		pid_t pid = fork();
		int status;

		if (pid < 0)
			_exit(1);
		if (!pid) {
			char *area = avl_map_separate(4);

			if (!area)
				_exit(1);
			area[0] = 1;
			/* A grandchild, so that roots have children when they go. */
			pid = fork();
			if (!pid)
				_exit(area[0] != 1);
			_exit(pid < 0 || waitpid(pid, &status, 0) != pid || status);
		}
		if (waitpid(pid, &status, 0) != pid || status)
			_exit(1);
		__atomic_fetch_add(&storm->born[self], 1, __ATOMIC_RELAXED);
		usleep(1000 + 700 * self);
	}
	_exit(0);
}

FIXTURE(storm)
{
};

FIXTURE_SETUP(storm)
{
}

FIXTURE_TEARDOWN(storm)
{
}

/* The last root of the machine goes, again and again, while others are made. */
TEST_F_TIMEOUT(storm, unload_between_lazy_processes, 600)
{
	struct storm *storm = mmap(NULL, sizeof(*storm), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const int cycles = CYCLES;
	long refused = 0, with_roots = 0;
	pid_t pids[FAULTERS];
	int status;

	ASSERT_NE(storm, MAP_FAILED);
	for (long i = 0; i < FAULTERS; i++) {
		pids[i] = fork();
		ASSERT_GE(pids[i], 0);
		if (!pids[i])
			make_lazy_children(storm, i);
	}
	for (int i = 0; i < cycles / 2; i++) {
		int err;

		ASSERT_EQ(avl_load(""), 0);
		for (int spin = 0; spin < 2000 && avl_counter("root_new") < 2; spin++)
			usleep(1000);
		with_roots += avl_counter("root_new") >= 2;
		for (int spin = 0; spin < 100000; spin++) {
			err = avl_unload();
			if (err != -EAGAIN)
				break;
			refused++;
			usleep(100);
		}
		ASSERT_EQ(err, 0);
	}
	__atomic_store_n(&storm->stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < FAULTERS; i++) {
		ASSERT_EQ(waitpid(pids[i], &status, 0), pids[i]);
		EXPECT_EQ(status, 0);
	}
	TH_LOG("%d unloads, refused %ld times while there were roots", cycles / 2, refused);
	EXPECT_EQ(with_roots, cycles / 2);
	EXPECT_GT(refused, 0);
}

TEST_HARNESS_MAIN
