// SPDX-License-Identifier: GPL-2.0
/*
 * Random operations of a family of processes on VMAs that it inherits and makes,
 * while the machine reclaims, compacts, merges and splits, and the mode changes if
 * it was on. Each process knows what is in its pages. All stand still from time to
 * time, and the oracle looks.
 *
 * avl.seed=, avl.rounds= and avl.soak= (minutes) on the kernel command line repeat
 * a run or prolong it.
 *
 * mixed.c is the same in processes that began without the module.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <linux/futex.h>
#include <linux/mman.h>
#include <pthread.h>
#include <sys/random.h>
#include <time.h>

#include "kselftest_harness.h"
#include "inside.h"
#include "rmap.h"
#include "uffd.h"

#ifndef LOADED_MEANWHILE
#define LOADED_MEANWHILE false
#endif

#define SLOTS 48		/* places for areas, each at its own address */
#define SLOT_PAGES 16		/* may be one folio of an order that the test allows */
#define FOUNDERS 4
#define MAX_PROCESSES 24
#define OPS 40			/* of a process, between two looks */
#define THP "/sys/kernel/mm/transparent_hugepage/"

/* Shared by all of them. */
struct control {
	int round;		/* operate until this round is done, then stand still */
	int standing;		/* those who do */
	int living;
	int stop, failed;
	int quiet, disturbing;	/* asked for; not yet so */
	int toggle;		/* the mode changes, too */
	unsigned long ops, forks, exits, moved, kept, wiped, taken, resized;
	unsigned long seed, idle, brought_back;		/* of those who disturb */
	pid_t founders[FOUNDERS];
	char what[128];		/* of the first failure */
};

static struct control *control;
static char *slots;
static size_t page;
static int file;
/* What this process has at each page of its slots: 0 is not mapped. */
static unsigned char content[SLOTS][SLOT_PAGES];
/* What a child gets of them. */
enum { ALL, NOTHING, ZEROES };
static unsigned char inherited[SLOTS];
static bool moved[SLOTS];
static uint64_t state;
static bool founder;
/* Linux without patch 15 loses migration entries of KSM pages that mremap moves, and hangs. */
static bool mergeable;

static uint32_t rnd(uint32_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 11) % below;
}

static char *slot(int i)
{
	return slots + (size_t)i * 2 * SLOT_PAGES * page;
}

/* Ends the test, with the first failure of any process. */
static void blame(const char *what, int i, int p, int got)
{
	int zero = 0;

	if (__atomic_compare_exchange_n(&control->failed, &zero, 1, false, __ATOMIC_SEQ_CST,
					__ATOMIC_SEQ_CST))
		snprintf(control->what, sizeof(control->what),
			 "%s: slot %d page %d got %d errno %d", what, i, p, got, errno);
}

static void fail(const char *what, int i, int p, int got)
{
	blame(what, i, p, got);
	_exit(1);
}

static void check_slot(int i)
{
	for (int p = 0; p < SLOT_PAGES; p++) {
		volatile unsigned char *at = (unsigned char *)slot(i) + p * page;

		if (content[i][p] && (at[0] != content[i][p] || at[page - 1] != content[i][p]))
			fail("content", i, p, at[0]);
	}
}

static void write_pages(int i)
{
	int from = rnd(SLOT_PAGES), nr = 1 + rnd(SLOT_PAGES - from);

	for (int p = from; p < from + nr; p++) {
		unsigned char byte = 1 + rnd(255);

		if (!content[i][p])
			continue;
		memset(slot(i) + p * page, byte, page);
		content[i][p] = byte;
	}
}

static void map_slot(int i)
{
	const size_t size = SLOT_PAGES * page;
	const bool private_file = rnd(8) == 0;

	if (mmap(slot(i), size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_FIXED | (private_file ? 0 : MAP_ANONYMOUS),
		 private_file ? file : -1, 0) != slot(i))
		fail("mmap", i, 0, 0);
	inherited[i] = ALL;
	moved[i] = false;
	/* The first page that is written to brings the others, in one folio. */
	if (!private_file && rnd(3) == 0)
		madvise(slot(i), size, MADV_HUGEPAGE);
	/* Filled in part: the rest is unfaulted. */
	memset(content[i], 0, SLOT_PAGES);
	for (int p = 0; p < SLOT_PAGES; p++) {
		if (rnd(4)) {
			content[i][p] = 1 + rnd(255);
			memset(slot(i) + p * page, content[i][p], page);
		}
	}
}

static void unmap_slot(int i, int from, int nr)
{
	if (munmap(slot(i) + from * page, nr * page))
		fail("munmap", i, from, nr);
	memset(content[i] + from, 0, nr);
}

static void move_slot(int i, int to)
{
	bool keep = rnd(4) == 0;

	if (i == to)
		return;
	/* What is moved is not wiped in children: see inherit(). */
	madvise(slot(i), SLOT_PAGES * page, MADV_KEEPONFORK);
	if (inherited[i] == ZEROES)
		inherited[i] = ALL;
	/* All of it or nothing: holes are for the kernel to refuse. */
	if (mremap(slot(i), SLOT_PAGES * page, SLOT_PAGES * page,
		   MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? 4 : 0), slot(to)) == MAP_FAILED) {
		/* The target may be unmapped by then, and part of the source be moved. */
		map_slot(to);
		map_slot(i);
		return;
	}
	memcpy(content[to], content[i], SLOT_PAGES);
	memset(content[i], 0, SLOT_PAGES);
	inherited[to] = inherited[i];
	moved[to] = true;
	if (!keep && rnd(2))
		map_slot(i);
}

/* Shrink, and grow to where that was: what lies there is empty. */
static void resize(int i)
{
	const int nr = 1 + rnd(SLOT_PAGES - 1);

	/* Shrinking may unmap several VMAs; growing back is for the one that is left. */
	if (mremap(slot(i), SLOT_PAGES * page, nr * page, 0) == MAP_FAILED)
		return;
	memset(content[i] + nr, 0, SLOT_PAGES - nr);
	if (mremap(slot(i), nr * page, SLOT_PAGES * page, 0) != MAP_FAILED)
		__atomic_fetch_add(&control->resized, 1, __ATOMIC_RELAXED);
}

/* Pages of a slot that are this process's own, into the empty VMA of another one: UFFDIO_MOVE. */
static void take(int i, int to)
{
	const size_t size = SLOT_PAGES * page;
	int fd;

	if (i == to || mmap(slot(to), size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != slot(to))
		return;
	memset(content[to], 0, SLOT_PAGES);
	inherited[to] = ALL;
	moved[to] = false;
	fd = uffd_open(UFFD_FEATURE_MOVE);
	if (fd < 0)
		fail("userfaultfd", i, 0, 0);
	if (uffd_register(fd, slot(to), size, UFFDIO_REGISTER_MODE_MISSING)) {
		for (int p = 0; p < SLOT_PAGES; p++) {
			/* Not a page that is shared, locked, of a file, or none. */
			if (uffd_move(fd, slot(to) + p * page, slot(i) + p * page, page) !=
			    (long)page)
				continue;
			content[to][p] = content[i][p];
			content[i][p] = 0;
			__atomic_fetch_add(&control->taken, 1, __ATOMIC_RELAXED);
		}
	}
	/* From here on what is missing is zero again. */
	close(fd);
}

static void protect(int i)
{
	int from = rnd(SLOT_PAGES), nr = 1 + rnd(SLOT_PAGES - from);

	/* Splits and merges; what is not mapped is refused. */
	mprotect(slot(i) + from * page, nr * page, PROT_READ);
	if (rnd(2) && mergeable)
		madvise(slot(i) + from * page, nr * page, MADV_MERGEABLE);
	for (int p = 0; p < SLOT_PAGES; p++)
		mprotect(slot(i) + p * page, page, PROT_READ | PROT_WRITE);
}

static void advise(int i)
{
	/* Nothing of this changes what is in a page. */
	static const int how[] = { MADV_PAGEOUT, MADV_COLD, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
				   MADV_WILLNEED, MADV_UNMERGEABLE, MADV_POPULATE_WRITE,
				   MADV_GUARD_REMOVE };
	int from = rnd(SLOT_PAGES), nr = 1 + rnd(SLOT_PAGES - from);

	madvise(slot(i) + from * page, nr * page, how[rnd(8)]);
}

/* Where there are holes this is an error, and done for the rest; where it is locked, for none. */
static void drop(int i)
{
	static const int how[] = { MADV_DONTNEED, MADV_FREE, MADV_GUARD_INSTALL };
	const int kind = rnd(3);

	/*
	 * Linux loses what others have merged with it: features.ksm_page_that_is_freed. What was
	 * merged when it was swapped out comes back as a page of KSM, into an unmergeable VMA, too:
	 * so each page is written to, which copies it.
	 */
	if (how[kind] == MADV_FREE) {
		madvise(slot(i), SLOT_PAGES * page, MADV_UNMERGEABLE);
		for (int p = 0; p < SLOT_PAGES; p++)
			if (content[i][p])
				*(volatile unsigned char *)(slot(i) + p * page) = content[i][p];
	}
	madvise(slot(i), SLOT_PAGES * page, how[kind]);
	memset(content[i], 0, SLOT_PAGES);
}

static void lock(int i)
{
	/* More are unlocked than locked, or nothing would be reclaimed at last. */
	if (rnd(3))
		munlock(slot(i), SLOT_PAGES * page);
	else
		mlock(slot(i), SLOT_PAGES * page);
}

/* Pages may have to move to where the VMA wants them. */
static void bind_slot(int i)
{
	const unsigned long node = 1UL << rnd(2);
	/* MPOL_BIND with MPOL_MF_MOVE; or MPOL_DEFAULT, so that VMAs merge again. */
	const bool bind = rnd(2);

	syscall(SYS_mbind, slot(i), SLOT_PAGES * page, bind ? 2 : 0, bind ? &node : NULL,
		bind ? 8 : 0, bind ? 2 : 0);
}

static void inherit(int i)
{
	static const struct {
		int advice, child;
	} how[] = { { MADV_DONTFORK, NOTHING }, { MADV_WIPEONFORK, ZEROES } };
	/* Linux warns when a child splits what it has wiped of a moved VMA (wiped.c). */
	const int kind = moved[i] ? 0 : rnd(2);

	madvise(slot(i), SLOT_PAGES * page, MADV_DOFORK);
	madvise(slot(i), SLOT_PAGES * page, MADV_KEEPONFORK);
	inherited[i] = ALL;
	if (!rnd(3))
		return;
	/* A hole is an error, and done for the rest. */
	if (!madvise(slot(i), SLOT_PAGES * page, how[kind].advice) || errno == ENOMEM)
		inherited[i] = how[kind].child;
	/* A file, of which a move may leave some, cannot be wiped; what lies before it would be. */
	else
		madvise(slot(i), SLOT_PAGES * page, MADV_KEEPONFORK);
}

/* In a new child: what it has is what was not kept from it. */
static void inherited_slots(void)
{
	for (int i = 0; i < SLOTS; i++) {
		if (inherited[i] == ALL)
			continue;
		for (int p = 0; inherited[i] == ZEROES && p < SLOT_PAGES; p++) {
			volatile unsigned char *at = (unsigned char *)slot(i) + p * page;

			if (content[i][p] && (at[0] || at[page - 1]))
				fail("wiped", i, p, at[0]);
		}
		__atomic_fetch_add(inherited[i] == ZEROES ? &control->wiped : &control->kept, 1,
				   __ATOMIC_RELAXED);
		memset(content[i], 0, SLOT_PAGES);
	}
}

static void stand_still(int round)
{
	__atomic_fetch_add(&control->standing, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&control->round, __ATOMIC_SEQ_CST) == round &&
	       !__atomic_load_n(&control->stop, __ATOMIC_SEQ_CST))
		syscall(SYS_futex, &control->round, FUTEX_WAIT, round, NULL, NULL, 0);
	__atomic_fetch_sub(&control->standing, 1, __ATOMIC_SEQ_CST);
}

static void next_round(void)
{
	__atomic_fetch_add(&control->round, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &control->round, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static void live(int round);

static void operate(int round)
{
	int i = rnd(SLOTS);

	__atomic_fetch_add(&control->ops, 1, __ATOMIC_RELAXED);
	switch (rnd(24)) {
	case 0 ... 4:
		write_pages(i);
		break;
	case 5:
		map_slot(i);
		break;
	case 6:
		unmap_slot(i, 0, SLOT_PAGES);
		break;
	case 7:
		unmap_slot(i, rnd(SLOT_PAGES / 2), 1 + rnd(SLOT_PAGES / 2));
		break;
	case 8 ... 9:
		move_slot(i, rnd(SLOTS));
		break;
	case 10 ... 11:
		protect(i);
		break;
	case 12 ... 13:
		advise(i);
		break;
	case 14:
		/* -1 where nothing is mapped. */
		__atomic_fetch_add(&control->moved,
				   move_to_node(0, slot(i), SLOT_PAGES, rnd(2)) > 0,
				   __ATOMIC_RELAXED);
		break;
	case 15:
		drop(i);
		break;
	case 16:
		inherit(i);
		break;
	case 17: {
		pid_t pid;

		/* A child has as many operations as its parent: it would never end. */
		if (__atomic_load_n(&control->stop, __ATOMIC_SEQ_CST))
			break;
		if (__atomic_fetch_add(&control->living, 1, __ATOMIC_SEQ_CST) >= MAX_PROCESSES) {
			__atomic_fetch_sub(&control->living, 1, __ATOMIC_SEQ_CST);
			break;
		}
		pid = fork();
		if (pid < 0)
			fail("fork", 0, 0, 0);
		if (!pid) {
			founder = false;
			inherited_slots();
			state = state * 6364136223846793005ULL + getpid();
			__atomic_fetch_add(&control->forks, 1, __ATOMIC_RELAXED);
			live(round);
		}
		break;
	}
	case 18:
		check_slot(i);
		break;
	case 19:
		/* Founders stay, so that there is always somebody. */
		if (founder || rnd(3))
			break;
		__atomic_fetch_add(&control->exits, 1, __ATOMIC_RELAXED);
		__atomic_fetch_sub(&control->living, 1, __ATOMIC_SEQ_CST);
		_exit(0);
	case 20:
		lock(i);
		break;
	case 21:
		bind_slot(i);
		break;
	case 22:
		resize(i);
		break;
	case 23:
		take(i, rnd(SLOTS));
		break;
	}
}

/* Those who died of something would be waited for without end. */
static void reap(int options)
{
	int status;

	while (waitpid(-1, &status, options) > 0)
		if (WIFSIGNALED(status))
			blame("a process died of a signal", 0, 0, WTERMSIG(status));
}

static void live(int round)
{
	for (;;) {
		for (int i = 0; i < OPS && !control->failed; i++)
			operate(round);
		reap(WNOHANG);
		for (int i = 0; i < SLOTS; i++)
			check_slot(i);
		if (control->stop)
			break;
		stand_still(round);
		if (control->stop)
			break;
		round = __atomic_load_n(&control->round, __ATOMIC_SEQ_CST);
		/* Some leave between two rounds, parents before their children, too. */
		if (!founder && rnd(3) == 0 &&
		    __atomic_load_n(&control->living, __ATOMIC_SEQ_CST) > MAX_PROCESSES / 2) {
			__atomic_fetch_add(&control->exits, 1, __ATOMIC_RELAXED);
			break;
		}
	}
	__atomic_fetch_sub(&control->living, 1, __ATOMIC_SEQ_CST);
	_exit(0);
}

/* Marking what a founder has as idle takes a walk for each page, and for its neighbours. */
static void mark_idle(int bitmap)
{
	const uint64_t all = ~0ULL;
	uint64_t entry;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", control->founders[rnd(FOUNDERS)]);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	for (int i = 0; i < SLOTS; i++) {
		const char *at = slot(i) + rnd(SLOT_PAGES) * page;

		/* The last frames of memory have no bits, if there are less than 64. */
		if (pread(fd, &entry, 8, (uintptr_t)at / page * 8) == 8 && entry >> 63 &&
		    pwrite(bitmap, &all, 8, (entry & ((1ULL << 55) - 1)) / 64 * 8) == 8)
			control->idle++;
	}
	close(fd);
}

/* How much swap is in use, in kB. */
static long swap_in_use(void)
{
	char text[512], *at;
	long used = 0;

	if (avl_read("/proc/swaps", text, sizeof(text)) > 0) {
		at = strstr(text, "zram0");
		if (at)
			sscanf(at, "zram0 %*s %*d %ld", &used);
	}
	return used;
}

/* All that is in swap comes back, while it is copied, moved and unmapped. */
static void empty_swap(void)
{
	const long used = swap_in_use();

	/* It may lack memory. */
	if (used && !swapoff("/dev/zram0")) {
		control->brought_back += used;
		if (swapon("/dev/zram0", 0))
			blame("swapon", 0, 0, errno);
	}
}

/* What was in files of the kernel, and is to be there afterwards. */
static const char *const balancing[] = {
	"/proc/sys/kernel/numa_balancing",
	"/sys/kernel/debug/sched/numa_balancing/scan_delay_ms",
	"/sys/kernel/debug/sched/numa_balancing/scan_period_min_ms",
};

static void balance_soon(char saved[][32], bool restore)
{
	for (int i = 0; i < 3; i++) {
		if (!restore && avl_read(balancing[i], saved[i], sizeof(saved[i])) <= 0)
			saved[i][0] = 0;
		if (restore)
			avl_write(balancing[i], saved[i], strlen(saved[i]));
		else
			avl_write(balancing[i], i ? "20" : "1", i ? 2 : 1);
	}
}

static void *disturb(void *arg)
{
	unsigned int *turns = arg, n;
	const int bitmap = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR | O_CLOEXEC);
	char saved[3][32];

	balance_soon(saved, false);
	state = control->seed + 88172645463325252ULL;

	while (!control->stop) {
		/* Not while the oracle looks: it would see what is under way. */
		__atomic_store_n(&control->disturbing, 1, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(&control->quiet, __ATOMIC_SEQ_CST)) {
			__atomic_store_n(&control->disturbing, 0, __ATOMIC_SEQ_CST);
			usleep(1000);
			continue;
		}
		n = ++*turns;
		switch (n % 10) {
		case 0:
			avl_write("/proc/sys/vm/compact_memory", "1", 1);
			break;
		case 1:
		case 2:
			reclaim_memory("2M");
			break;
		case 3:
			avl_write("/sys/kernel/debug/split_huge_pages", "1", 1);
			break;
		case 4:
			avl_write("/sys/kernel/mm/ksm/run", n % 20 == 4 ? "1" : "0", 1);
			break;
		case 5:
			avl_write("/proc/sys/vm/drop_caches", "3", 1);
			break;
		case 6:
			if (__atomic_load_n(&control->toggle, __ATOMIC_SEQ_CST))
				avl_write(AVL_SYSCTL, n % 20 == 6 ? "0" : "1", 1);
			break;
		case 7:
			mark_idle(bitmap);
			break;
		case 8:
			if (n % 50 == 8)
				empty_swap();
			break;
		case 9:
			/* On else: the scheduler unmaps pages, to see who wants them where. */
			avl_write(balancing[0], n % 20 == 9 ? "0" : "1", 1);
			break;
		}
		__atomic_store_n(&control->disturbing, 0, __ATOMIC_SEQ_CST);
		usleep(2000);
	}
	close(bitmap);
	balance_soon(saved, true);
	return NULL;
}

/* One line on each process of ours: its state, where it sleeps, what it has called. */
static void show_processes(void)
{
	struct dirent *entry;
	DIR *proc = opendir("/proc");

	while (proc && (entry = readdir(proc))) {
		char path[300], stat[512], wchan[64] = "?", call[256] = "?", *end;

		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		if (!atoi(entry->d_name) || avl_read(path, stat, sizeof(stat)) < 0 ||
		    !strstr(stat, program_invocation_short_name))
			continue;
		end = strchr(stat, ')') + 2;
		if (*end == 'Z')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/wchan", entry->d_name);
		avl_read(path, wchan, sizeof(wchan));
		snprintf(path, sizeof(path), "/proc/%s/syscall", entry->d_name);
		avl_read(path, call, sizeof(call));
		call[strcspn(call, "\n")] = 0;
		printf("# process %s: %c in %s, system call %.60s\n", entry->d_name, *end, wchan,
		       call);
	}
	fflush(stdout);
	if (proc)
		closedir(proc);
}

/*
 * Whether a process has VMAs with a lazy root and others with an anon_vma of their own. A
 * child looks: who is to unload the module must not take a first fault.
 */
static bool has_both(pid_t pid)
{
	int status;
	pid_t child = fork();
	char *text;

	if (!child) {
		text = inside_read(pid);
		_exit(!(text && strstr(text, " lazy") && strstr(text, " regular")));
	}
	return child > 0 && waitpid(child, &status, 0) == child && !status;
}

/* Where everybody is, if nothing goes on for so many seconds. */
#define PATIENCE 180

static void *watch(void *arg)
{
	int seen = -1, seconds = 0;

	while (!control->stop && seconds < PATIENCE) {
		seconds = control->round == seen ? seconds + 1 : 0;
		seen = control->round;
		sleep(1);
	}
	if (!control->stop) {
		show_processes();
		/* Those that do not answer to this are found in the kernel's log. */
		avl_write("/proc/sysrq-trigger", "w", 1);
		blame("nothing goes on: round, standing, living", seen, control->standing,
		      control->living);
	}
	return arg;
}

TEST(there_is_an_oracle)
{
	/* The oracle is there: without it nothing below means anything. */
	struct verdict v;

	ASSERT_EQ(oracle(&v), 0);
	EXPECT_GT(v.folios, 0);
}

FIXTURE(stress)
{
};

FIXTURE_SETUP(stress)
{
	page = sysconf(_SC_PAGESIZE);
	mergeable = has_series();
	control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(control, MAP_FAILED);
	/* No slot has neighbours before it is mapped; each may be one folio. */
	slots = map_aligned((size_t)SLOTS * 2 * SLOT_PAGES * page, 2 * MIB);
	ASSERT_NE(slots, NULL);
	ASSERT_EQ(mprotect(slots, (size_t)SLOTS * 2 * SLOT_PAGES * page, PROT_NONE), 0);
	file = memfd_create("stress", 0);
	ASSERT_GE(file, 0);
	ASSERT_EQ(ftruncate(file, SLOT_PAGES * page), 0);
}

FIXTURE_TEARDOWN(stress)
{
}

/* The harness has a limit as well; this one is for a soak. */
TEST_F_TIMEOUT(stress, random_operations, 24 * 3600)
{
	unsigned long seed = seed_of_run();
	/* The first of them is over when it is loaded meanwhile. */
	unsigned long rounds = avl_number("avl.rounds=", 25) + LOADED_MEANWHILE;
	const time_t soak = 60 * avl_number("avl.soak=", 0);
	struct timespec began, now;
	unsigned long looks = 0, folios = 0, mappings = 0, merged = 0, large = 0;
	long long skipped;
	int of_both = 0;
	unsigned int n = 0;
	pthread_t thread, watchdog;
	struct verdict v;
	char path[128];

	TH_LOG("avl.seed=%lu avl.rounds=%lu", seed, rounds);
	control->seed = seed;
	/* Orphans are ours, so that all of them are gone at the end. */
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	snprintf(path, sizeof(path), THP "hugepages-%zukB/enabled", SLOT_PAGES * page >> 10);
	ASSERT_EQ(avl_write(path, "madvise", 7), 0);
	/* Pages are alike by chance: have KSM find them soon. */
	ASSERT_EQ(avl_write("/sys/kernel/mm/ksm/pages_to_scan", "10000", 5), 0);
	ASSERT_EQ(avl_write("/sys/kernel/mm/ksm/sleep_millisecs", "1", 1), 0);
	/* Whoever loads it must not have a root. */
	ASSERT_EQ(LOADED_MEANWHILE && !access(AVL_SYSCTL, F_OK), false);
	control->toggle = lazy_mode();
	skipped = avl_counter("walk_skip");
	for (int i = 0; i < FOUNDERS; i++) {
		__atomic_fetch_add(&control->living, 1, __ATOMIC_SEQ_CST);
		const pid_t pid = fork();

		ASSERT_GE(pid, 0);
		/* Not by the child: they share it. */
		if (pid)
			control->founders[i] = pid;
		if (!pid) {
			state = seed * 2654435761u + i + 88172645463325252ULL;
			founder = true;
			for (int s = 0; s < SLOTS; s++)
				map_slot(s);
			live(0);
		}
	}
	ASSERT_EQ(pthread_create(&thread, NULL, disturb, &n), 0);
	ASSERT_EQ(pthread_create(&watchdog, NULL, watch, NULL), 0);
	clock_gettime(CLOCK_MONOTONIC, &began);
	now = began;
	/* Until all kinds of disturbance have had a turn, on a slow machine, too. */
	for (unsigned long round = 0; (round < rounds || now.tv_sec - began.tv_sec < soak ||
				       (!control->brought_back && round < 5 * rounds)) &&
	     !control->failed; round++) {
		/* All of them have come to a stop; those that are gone do not count. */
		while (control->standing < control->living && !control->failed)
			usleep(1000);
		__atomic_store_n(&control->quiet, 1, __ATOMIC_SEQ_CST);
		while (__atomic_load_n(&control->disturbing, __ATOMIC_SEQ_CST))
			usleep(1000);
		/* A slow ksmd gets the time that it needs, until there are pages of its. */
		if (!merged && mergeable) {
			ASSERT_TRUE(ksm_run("1"));
			/* If that is not enough, there is another round. */
			ksm_scans();
		}
		ASSERT_TRUE(ksm_run("0"));
		ASSERT_EQ(oracle(&v), 0);
		__atomic_store_n(&control->quiet, 0, __ATOMIC_SEQ_CST);
		EXPECT_EQ(v.mismatch, 0) {
			TH_LOG("in round %lu", round);
		}
		EXPECT_EQ(v.migration, 0);
		looks++;
		folios += v.folios;
		mappings += v.mappings;
		merged += v.ksm;
		large += v.large;
		for (int i = 0; LOADED_MEANWHILE && round && i < FOUNDERS; i++)
			of_both += has_both(control->founders[i]);
		reap(WNOHANG);
		next_round();
		/* While they all are at it. */
		if (LOADED_MEANWHILE && round == 0) {
			ASSERT_EQ(avl_load(""), 0);
			control->toggle = 1;
		}
		/* Everybody has seen it before the next stop is counted. */
		usleep(20000);
		clock_gettime(CLOCK_MONOTONIC, &now);
	}
	control->stop = 1;
	next_round();
	pthread_join(thread, NULL);
	pthread_join(watchdog, NULL);
	reap(0);
	/* All that was merged is parted: KSM keeps roots, too. */
	ksm_run("2");
	ksm_run("0");
	EXPECT_EQ(avl_write(path, "never", 5), 0);
	if (control->toggle)
		EXPECT_EQ(avl_write(AVL_SYSCTL, "1", 1), 0);
	/* There is no module without the series: KSM was not left out by mistake. */
	EXPECT_TRUE(mergeable || access(AVL_SYSCTL, F_OK));
	EXPECT_EQ(control->failed, 0) {
		TH_LOG("%s", control->what);
	}
	TH_LOG("%ld seconds", (long)(now.tv_sec - began.tv_sec));
	TH_LOG("%lu operations, %lu forks, %lu exits, %lu moves to a node", control->ops,
	       control->forks, control->exits, control->moved);
	TH_LOG("%lu pages moved by userfaultfd, %lu areas resized", control->taken,
	       control->resized);
	TH_LOG("disturbed %u times; %lu times 64 pages idle, %lu kB back from swap", n,
	       control->idle, control->brought_back);
	TH_LOG("%lu times a slot was kept from a child, %lu times wiped there", control->kept,
	       control->wiped);
	TH_LOG("the oracle saw %lu folios, %lu large, %lu of KSM, %lu mappings in %lu looks",
	       folios, large, merged, mappings, looks);
	EXPECT_GT(control->forks, 0);
	EXPECT_GT(control->exits, 0);
	EXPECT_GT(control->moved, 0);
	EXPECT_EQ(merged > 0, mergeable);
	EXPECT_GT(large, 0);
	EXPECT_GT(control->kept, 0);
	EXPECT_GT(control->wiped, 0);
	EXPECT_GT(control->taken, 0);
	EXPECT_GT(control->resized, 0);
	EXPECT_GT(control->idle, 0);
	EXPECT_GT(control->brought_back, 0);
	/* Reclaim went past roots that others had locked. */
	if (lazy_mode())
		EXPECT_GT(avl_counter("walk_skip"), skipped);
	EXPECT_SOUND();
	if (!LOADED_MEANWHILE)
		return;
	TH_LOG("%d times a founder had VMAs with a root, and others of before", of_both);
	EXPECT_GT(of_both, 0);
	/* Nobody is left who has a root. */
	EXPECT_EQ(avl_unload_soon(), 0);
}

TEST_HARNESS_MAIN
