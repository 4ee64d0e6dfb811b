// SPDX-License-Identifier: GPL-2.0
/*
 * Allocations that fail, one after the other, in what makes or copies an anon_vma,
 * of one's own and of ancestors that are gone: the call fails with ENOMEM or does
 * without, memory keeps what was in it, the reverse map stays right, the same call
 * works afterwards, and no root is left behind. For a kernel with failslab and
 * fail_page_alloc.
 *
 * Each operation is repeated with its first, its second, ... allocation failing
 * (fail-nth), until it comes to its end without. Then once more with only those
 * that have the module on their stack; and again, while others migrate and
 * reclaim the pages that it is about.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <time.h>

#include "kselftest_harness.h"
#include "inside.h"
#include "rmap.h"

#define FAULTS "/sys/kernel/debug/"
#define PAGES 8
/* More than any of these operations allocates. */
#define MANY 2000

/* Exit codes of a worker: what became of one operation. */
enum { DONE = 10, DONE_WITHOUT, FAILED, WRONG };

static size_t page;

/* What a worker shares with those who disturb it: where its pages are. */
#define COMMON_PAGES 256
static struct board {
	pid_t worker;
	char *natural, *moved;
	int stop;
	unsigned long migrated, reclaimed;
} *board;
/* At a low address: fork has copied it before most of what can fail. */
#define COMMON ((char *)(1UL << 32))
static char *common;
/* Lower still: what a fork that has failed is busy with before it comes to its copy of that. */
#define BALLAST_PAGES 512
#define BALLAST ((char *)(1UL << 31))

/* The allocations of code between these addresses fail, or of all code. */
static bool injection(const char *start, const char *end)
{
	static const char *const attrs[] = { "failslab", "fail_page_alloc" };
	static const char *const quiet[][2] = {
		/* What the kernel would print for each has "Call Trace" in it. */
		{ "verbose", "0" }, { "ignore-gfp-wait", "N" }, { "stacktrace-depth", "32" },
	};
	char path[128];

	for (int i = 0; i < 2; i++) {
		for (int j = 0; j < 3; j++) {
			snprintf(path, sizeof(path), FAULTS "%s/%s", attrs[i], quiet[j][0]);
			if (avl_write(path, quiet[j][1], strlen(quiet[j][1])))
				return false;
		}
		snprintf(path, sizeof(path), FAULTS "%s/require-start", attrs[i]);
		if (avl_write(path, start, strlen(start)))
			return false;
		snprintf(path, sizeof(path), FAULTS "%s/require-end", attrs[i]);
		if (avl_write(path, end, strlen(end)))
			return false;
	}
	return !avl_write(FAULTS "fail_page_alloc/min-order", "0", 1) &&
	       !avl_write(FAULTS "fail_page_alloc/ignore-gfp-highmem", "N", 1);
}

/* From the first to the last address of the module's text, as kallsyms has it. */
static bool module_text(char *start, char *end, size_t size)
{
	FILE *file = fopen("/proc/kallsyms", "re");
	unsigned long low = ~0UL, high = 0, address;
	char line[512], type, owner[64];

	if (!file)
		return false;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx %c %*s [%63[^]]]", &address, &type, owner) != 3 ||
		    strcmp(owner, "anon_vma_lazy") || (type != 't' && type != 'T'))
			continue;
		low = address < low ? address : low;
		high = address > high ? address : high;
	}
	fclose(file);
	snprintf(start, size, "%#lx", low);
	/* The last function has some bytes, too. */
	snprintf(end, size, "%#lx", high + 256);
	return low < high;
}

static int nth_file = -1, left_over;

/* The @nth allocation of this thread from now on fails. */
static void arm(int nth)
{
	char text[16];

	/* Opened before it counts, since that allocates. */
	nth_file = open("/proc/self/fail-nth", O_RDWR);
	snprintf(text, sizeof(text), "%d", nth);
	if (nth_file < 0 || pwrite(nth_file, text, strlen(text), 0) < 0)
		_exit(WRONG);
}

/* None fails any more. What was left to count: nothing, if one has failed. */
static int disarm(void)
{
	char text[16] = "";

	if (nth_file < 0)
		return left_over;
	if (pread(nth_file, text, sizeof(text) - 1, 0) <= 0 || pwrite(nth_file, "0", 1, 0) < 0)
		_exit(WRONG);
	close(nth_file);
	nth_file = -1;
	left_over = atoi(text);
	return left_over;
}

/* In a worker: what should not be. */
static void wrong(const char *why, int errnum)
{
	disarm();
	printf("# %s: %s\n", why, strerror(errnum));
	fflush(stdout);
	_exit(WRONG);
}

/*
 * What the operations work on: natural, moved away, a file's, and a copy of a device's memory,
 * which has an ordinary anon_vma; where these can move to, and a stack that can grow.
 */
struct memory {
	char *natural, *moved, *file, *device, *room, *stack;
};

static bool set_up(struct memory *m)
{
	const size_t size = PAGES * page;
	char *reserved = mmap(NULL, 10 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = memfd_create("fail", 0), mem = open("/dev/mem", O_RDONLY | O_CLOEXEC);

	if (reserved == MAP_FAILED || fd < 0 || ftruncate(fd, size) || mem < 0)
		return false;
	m->room = reserved + 6 * size;
	m->natural = map_at(reserved, size);
	m->moved = map_at(reserved + 2 * size, size);
	if (!m->natural || !m->moved || !fill(m->natural, PAGES, 1, 1) ||
	    !fill(m->moved, PAGES, 1, 2))
		return false;
	m->moved = mremap(m->moved, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, reserved + 4 * size);
	if (m->moved == MAP_FAILED)
		return false;
	m->file = mmap(reserved + 2 * size, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
		       fd, 0);
	/* Behind the others: fork has copied these when it comes to it. */
	m->device = mmap(reserved + 8 * size, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_FIXED, mem, DEVICE);
	close(fd);
	close(mem);
	return m->file != MAP_FAILED && fill(m->file, PAGES, 1, 3) &&
	       m->device != MAP_FAILED && fill(m->device, PAGES, 1, 4) &&
	       !strcmp(inside_vma(0, m->device), "regular");
}

/* What a worker has from its ancestors instead of setting it up. */
static const struct memory *handed_down;

static bool intact(const struct memory *m)
{
	return filled(m->natural, PAGES, 1, 1) && filled(m->moved, PAGES, 1, 2) &&
	       filled(m->file, PAGES, 1, 3) && filled(m->device, PAGES, 1, 4);
}

/* The operations: 0, or -errno. What they did is part of what is checked. */

static int first_fault(struct memory *m)
{
	const int ret = madvise(m->room, page, MADV_POPULATE_WRITE) ? -errno : 0;

	/* EFAULT is what it makes of a fault that is out of memory, in some places. */
	if (!ret)
		m->room[0] = 1;
	return ret == -EFAULT ? -ENOMEM : ret;
}

static bool before_first_fault(struct memory *m)
{
	return map_at(m->room, page);
}

static int fork_and_look(struct memory *m)
{
	int status;
	/* The child counts from 0 again. */
	pid_t pid = fork();

	if (pid < 0)
		return errno == EAGAIN ? -ENOMEM : -errno;
	if (!pid) {
		bool ok = intact(m);

		m->natural[0]++;
		m->moved[0]++;
		m->file[0]++;
		m->device[0]++;
		_exit(!ok);
	}
	disarm();
	if (waitpid(pid, &status, 0) != pid || status)
		_exit(WRONG);
	return 0;
}

/* Below all others, so that fork fails before it has copied any. */
#define LOWEST ((char *)(1UL << 16))

static bool before_fork_lowest(struct memory *m)
{
	return map_at(m->room, page) && fill(m->room, 1, 1, 5) &&
	       mremap(m->room, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, LOWEST) == LOWEST &&
	       !strcmp(inside_vma(0, LOWEST), "linked moved");
}

static int fork_twice(struct memory *m)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return errno == EAGAIN ? -ENOMEM : -errno;
	if (!pid)
		_exit(fork_and_look(m) != 0);
	disarm();
	if (waitpid(pid, &status, 0) != pid || status)
		_exit(WRONG);
	return 0;
}

static int move_away(struct memory *m)
{
	const size_t size = PAGES * page;

	if (mremap(m->natural, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, m->room) == MAP_FAILED)
		return -errno;
	m->natural = m->room;
	return 0;
}

static int move_half(struct memory *m)
{
	const size_t half = PAGES / 2 * page;

	if (mremap(m->moved + half, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, m->room) ==
	    MAP_FAILED)
		return -errno;
	/* Back where the test looks for it; no allocation fails any more. */
	disarm();
	return mremap(m->room, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, m->moved + half) ==
		MAP_FAILED ? -errno : 0;
}

static int move_and_keep(struct memory *m)
{
	const size_t size = PAGES * page;

	if (mremap(m->natural, size, size, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
		   m->room) == MAP_FAILED)
		return -errno;
	m->natural = m->room;
	return 0;
}

static int split(struct memory *m)
{
	return mprotect(m->natural + page, page, PROT_READ) ||
	       mprotect(m->moved + page, page, PROT_READ) ||
	       mprotect(m->device + page, page, PROT_READ) ? -errno : 0;
}

static int merge(struct memory *m)
{
	return mprotect(m->natural + page, page, PROT_READ | PROT_WRITE) ||
	       mprotect(m->moved + page, page, PROT_READ | PROT_WRITE) ? -errno : 0;
}

static bool before_merge(struct memory *m)
{
	return !split(m);
}

static const char *merged_state;

/* The first half is as new; the rest, with a root, is of another access until they merge. */
static bool before_merge_unfaulted(struct memory *m)
{
	const size_t half = PAGES / 2 * page;

	merged_state = "lazy";
	return !mprotect(m->natural + half, half, PROT_READ) && map_at(m->natural, half);
}

/* The rest is linked to its root, at its address all the same. */
static bool before_merge_linked(struct memory *m)
{
	const size_t size = PAGES * page;
	const bool good = mremap(m->natural, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
				 m->room) == m->room &&
		mremap(m->room, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       m->natural) == m->natural && before_merge_unfaulted(m);

	merged_state = "linked";
	return good;
}

/* What was never faulted grows over its neighbour, and gets its root, or stays as it is. */
static int merge_unfaulted(struct memory *m)
{
	const size_t half = PAGES / 2 * page;
	const int ret = mprotect(m->natural + half, half, PROT_READ | PROT_WRITE) ? -errno : 0;
	struct verdict v;

	disarm();
	if (ret) {
		if (strcmp(inside_vma(0, m->natural), "unfaulted") ||
		    strcmp(inside_vma(0, m->natural + half), merged_state))
			wrong("a state has changed", -ret);
		/* Half way, before it is tried again, if the machine stands still. */
		if (!board && (oracle(&v) || v.mismatch || v.migration))
			wrong("reverse map half way", -ret);
		if (mprotect(m->natural + half, half, PROT_READ | PROT_WRITE))
			wrong("mprotect once more", errno);
	}
	if (strcmp(inside_vma(0, m->natural), merged_state))
		wrong(inside_vma(0, m->natural), -ret);
	/* For intact(), which only the second half can tell something. */
	fill(m->natural, PAGES / 2, 1, 1);
	return ret;
}

static int unmap_the_middle(struct memory *m)
{
	if (munmap(m->natural + page, page))
		return -errno;
	/* For intact(): what is gone was asked to go. */
	disarm();
	if (!map_at(m->natural + page, page))
		return -errno;
	memset(m->natural + page, (unsigned char)(7 + 1), page);
	return 0;
}

static sigjmp_buf out;

static void no_stack(int signal)
{
	siglongjmp(out, 1);
}

static bool before_grow(struct memory *m)
{
	struct sigaction action = { .sa_handler = no_stack };
	const size_t half = 2 * MIB;
	char *area = mmap(NULL, 2 * half, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	/* Into a hole; what is below is no neighbour that a guard gap must keep away from. */
	if (area == MAP_FAILED || munmap(area + half, half))
		return false;
	m->stack = area + 2 * half - page;
	return mmap(m->stack, page, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0) == m->stack &&
	       !sigaction(SIGSEGV, &action, NULL);
}

static int grow(struct memory *m)
{
	volatile char *stack = m->stack;

	/* A stack that cannot grow is a segmentation fault, as ever. */
	if (sigsetjmp(out, 1))
		return -ENOMEM;
	stack[-4L * page] = 1;
	return 0;
}

/* After exec, before all else: what is left to count. */
__attribute__((constructor)) static void was_executed(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--was-executed")) {
		nth_file = open("/proc/self/fail-nth", O_RDWR);
		_exit(disarm() ? DONE : DONE_WITHOUT);
	}
}

/* The program again; its first faults are those of exec. */
static int exec(struct memory *m)
{
	execl("/proc/self/exe", "fail", "--was-executed", NULL);
	/* What exec makes of a lack of memory: it opens and reads a file, copies arguments. */
	return errno == ENOENT || errno == E2BIG || errno == ENOEXEC ? -ENOMEM : -errno;
}

struct operation {
	int (*run)(struct memory *m);
	bool (*before)(struct memory *m);
	/* The module allocates something in it. */
	bool allocates;
	/* All that it allocates it can do without: a fault is tried again. */
	bool succeeds;
	/* Done so far below those who made the memory that it is linked to their root. */
	bool below;
};

/* In a process of its own: one operation with its @nth allocation failing. */
static void work(const struct operation *op, int nth)
{
	struct memory m;
	struct verdict v;
	int ret, left;

	/*
	 * What the kernel writes to on its way back to user space (rseq) is not to be swapped in by
	 * an allocation that fails: it takes that for a bad address, and kills without a word.
	 */
	if (board && (mlockall(MCL_CURRENT) || munlock(common, COMMON_PAGES * page)))
		wrong("mlock", errno);
	if (handed_down)
		m = *handed_down;
	else if (!set_up(&m))
		wrong("set up", errno);
	if (handed_down && board &&
	    (munlock(m.natural, PAGES * page) || munlock(m.moved, PAGES * page)))
		wrong("munlock", errno);
	if (op->before && !op->before(&m))
		wrong("set up", errno);
	if (board) {
		board->natural = m.natural;
		board->moved = m.moved;
		__atomic_store_n(&board->worker, getpid(), __ATOMIC_RELEASE);
	}
	arm(nth);
	ret = op->run(&m);
	/* An operation that had more to do has disarmed itself. */
	left = disarm();
	if (ret && ret != -ENOMEM)
		wrong("error", -ret);
	if (!intact(&m))
		wrong("memory has changed", -ret);
	/*
	 * Looks at the whole machine: where something went half way; the test asks at its end, and
	 * there only, if pages move.
	 */
	if (ret && !board && (oracle(&v) || v.mismatch || v.migration))
		wrong("reverse map", -ret);
	/* It works afterwards; a split or a merge that went half way, too. */
	if (ret && op->run(&m))
		wrong("once more", errno);
	if (!intact(&m))
		wrong("memory has changed at last", -ret);
	if (ret)
		_exit(FAILED);
	_exit(left ? DONE : DONE_WITHOUT);
}

FIXTURE(fail)
{
	long alive;
	time_t began;
};

FIXTURE_VARIANT(fail)
{
	struct operation op;
};

FIXTURE_VARIANT_ADD(fail, first_fault)
{
	.op = { first_fault, before_first_fault, false },
};

FIXTURE_VARIANT_ADD(fail, fork_and_look)
{
	.op = { fork_and_look, NULL, true },
};

FIXTURE_VARIANT_ADD(fail, fork_lowest_linked)
{
	.op = { fork_and_look, before_fork_lowest, true },
};

FIXTURE_VARIANT_ADD(fail, fork_twice)
{
	.op = { fork_twice, NULL, true },
};

FIXTURE_VARIANT_ADD(fail, move_away)
{
	.op = { move_away, NULL, true },
};

FIXTURE_VARIANT_ADD(fail, move_half)
{
	.op = { move_half, NULL, true },
};

FIXTURE_VARIANT_ADD(fail, move_and_keep)
{
	.op = { move_and_keep, NULL, true },
};

FIXTURE_VARIANT_ADD(fail, split)
{
	.op = { split, NULL, true },
};

FIXTURE_VARIANT_ADD(fail, merge)
{
	.op = { merge, before_merge, false },
};

FIXTURE_VARIANT_ADD(fail, merge_unfaulted)
{
	.op = { merge_unfaulted, before_merge_unfaulted, false },
};

FIXTURE_VARIANT_ADD(fail, merge_linked)
{
	.op = { merge_unfaulted, before_merge_linked, true },
};

FIXTURE_VARIANT_ADD(fail, unmap_the_middle)
{
	.op = { unmap_the_middle, NULL, false },
};

FIXTURE_VARIANT_ADD(fail, grow)
{
	.op = { grow, before_grow, false, true },
};

FIXTURE_VARIANT_ADD(fail, exec)
{
	.op = { exec, NULL, true },
};

/* Whose mm has no root yet: it makes one. */
FIXTURE_VARIANT_ADD(fail, first_fault_below)
{
	.op = { first_fault, before_first_fault, true, .below = true },
};

FIXTURE_VARIANT_ADD(fail, fork_below)
{
	.op = { fork_twice, NULL, true, .below = true },
};

FIXTURE_VARIANT_ADD(fail, move_half_below)
{
	.op = { move_half, NULL, true, .below = true },
};

FIXTURE_VARIANT_ADD(fail, split_below)
{
	.op = { split, NULL, true, .below = true },
};

/* Roots that were made and not freed. */
static long roots(void)
{
	return avl_counter("root_new") - avl_counter("root_free");
}

FIXTURE_SETUP(fail)
{
	avl_case(_metadata->name);
	/* Generations whose parents are gone are ours to wait for. */
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	page = sysconf(_SC_PAGESIZE);
	self->began = time(NULL);
	ASSERT_TRUE(lazy_mode());
	self->alive = roots();
	ASSERT_GT(self->alive, 0);
}

FIXTURE_TEARDOWN(fail)
{
	ASSERT_TRUE(injection("0", "0xffffffffffffffff"));
	/* No failure has left a root behind. They are freed a little later than they go. */
	for (int i = 0; i < 600 && roots() != self->alive; i++)
		usleep(100000);
	EXPECT_EQ(roots(), self->alive);
	TH_LOG("%ld seconds", (long)(time(NULL) - self->began));
}

/*
 * Move the pages of the worker, and those that it shares with the test, from node to node,
 * and swap them out, until told to stop. It may be gone by then, which is an error of the call.
 */
static void disturb(void)
{
	for (int n = 0; !__atomic_load_n(&board->stop, __ATOMIC_RELAXED); n++) {
		const pid_t worker = __atomic_load_n(&board->worker, __ATOMIC_ACQUIRE);
		long moved = move_to_node(0, common, COMMON_PAGES, n & 1);

		if (moved > 0)
			board->migrated += moved;
		if (worker) {
			move_to_node(worker, board->natural, PAGES, n & 1);
			move_to_node(worker, board->moved, PAGES, n & 1);
		}
		if (n % 8 == 7) {
			reclaim_memory("1M");
			board->reclaimed++;
		}
		if (n % 32 == 31)
			avl_write("/proc/sys/vm/compact_memory", "1", 1);
	}
	_exit(0);
}

/*
 * The operation with its allocation @first failing, then @stride ones later, and so on
 * to the end of them; how many have failed, or -1. @failed: so often it could not do without.
 */
static int fail_each(const struct operation *op, int *failed, int first, int stride)
{
	int nr = 0;

	*failed = 0;
	for (int nth = first; nth < MANY; nth += stride, nr++) {
		int status;
		pid_t pid = fork();

		if (pid < 0)
			return -1;
		if (!pid)
			work(op, nth);
		if (waitpid(pid, &status, 0) != pid)
			return -1;
		/*
		 * Exec that fails too late to return kills, as ever; and what fails behind it is
		 * the new program's to report.
		 */
		if (op->run == exec && (WIFSIGNALED(status) || WEXITSTATUS(status) == 127)) {
			(*failed)++;
			continue;
		}
		if (!WIFEXITED(status) || WEXITSTATUS(status) < DONE ||
		    WEXITSTATUS(status) >= WRONG) {
			printf("# allocation %d: status %#x\n", nth, status);
			return -1;
		}
		if (WEXITSTATUS(status) == DONE)
			return nr;
		*failed += WEXITSTATUS(status) == FAILED;
	}
	return -1;
}

struct outcome {
	pid_t pids[DEEP + 1];
	int nr, failed;
};

/* In the last of them, whose ancestors are gone: each allocation, or -1. */
static void below(const struct operation *op, struct outcome *outcome, int first, int stride)
{
	struct memory m;
	pid_t pid = 0;

	outcome->nr = -1;
	if (!set_up(&m))
		_exit(1);
	for (int i = 1; i <= DEEP; i++) {
		const pid_t parent = getpid();

		pid = fork();
		if (pid) {
			outcome->pids[i] = pid;
			_exit(pid < 0);
		}
		/* Its mm is gone before its children are. */
		while (getppid() == parent)
			usleep(1000);
	}
	handed_down = &m;
	if (!strncmp(inside_vma(0, m.natural), "linked root ", 12) &&
	    !strncmp(inside_vma(0, m.moved), "linked root ", 12))
		outcome->nr = fail_each(op, &outcome->failed, first, stride);
	_exit(!intact(&m));
}

/* fail_each(), there if the operation says so. */
static int fail_all(const struct operation *op, int *failed, int first, int stride)
{
	struct outcome *outcome;
	pid_t pid;
	int nr;

	if (!op->below)
		return fail_each(op, failed, first, stride);
	outcome = mmap(NULL, sizeof(*outcome), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	if (outcome == MAP_FAILED)
		return -1;
	pid = fork();
	if (!pid)
		below(op, outcome, first, stride);
	outcome->pids[0] = pid;
	/* Each is ours as soon as its parent is gone. */
	nr = 0;
	for (int i = 0; i <= DEEP; i++) {
		int status;

		if (waitpid(outcome->pids[i], &status, 0) != outcome->pids[i] || status)
			nr = -1;
	}
	if (!nr)
		nr = outcome->nr;
	*failed = outcome->failed;
	munmap(outcome, sizeof(*outcome));
	return nr;
}

TEST_F_TIMEOUT(fail, each_allocation, 1200)
{
	int failed, nr;

	ASSERT_TRUE(injection("0", "0xffffffffffffffff"));
	nr = fail_all(&variant->op, &failed, 1, 1);
	TH_LOG("%d allocations, %d of them needed", nr, failed);
	EXPECT_GT(nr, 0);
	EXPECT_EQ(failed == 0, variant->op.succeeds);
	EXPECT_SOUND();
}

TEST_F_TIMEOUT(fail, each_of_the_module, 1200)
{
	char start[32], end[32];
	int failed, nr;

	ASSERT_TRUE(module_text(start, end, sizeof(start)));
	ASSERT_TRUE(injection(start, end));
	nr = fail_all(&variant->op, &failed, 1, 1);
	TH_LOG("%d allocations of the module, %d of them needed", nr, failed);
	ASSERT_GE(nr, 0);
	EXPECT_EQ(nr > 0, variant->op.allocates);
	EXPECT_SOUND();
}

/*
 * Migration entries that fork has copied, or mremap moved, before it fails. With
 * avl.stride= it takes so many times as many rounds to come by each allocation.
 */
TEST_F_TIMEOUT(fail, while_pages_move, 1200)
{
	const int stride = avl_number("avl.stride=", 1);
	const time_t began = time(NULL);
	int failed, nr, rounds = 0, sum = 0, status;
	pid_t pid;

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	ASSERT_NE(board, MAP_FAILED);
	common = map_at(COMMON, COMMON_PAGES * page);
	ASSERT_EQ(common, COMMON);
	fill(common, COMMON_PAGES, 1, 9);
	if (variant->op.run == fork_and_look) {
		ASSERT_EQ(map_at(BALLAST, BALLAST_PAGES * page), BALLAST);
		fill(BALLAST, BALLAST_PAGES, 1, 8);
		/* Else all of it would be swapped in for each worker. */
		ASSERT_EQ(mlock(BALLAST, BALLAST_PAGES * page), 0);
	}
	ASSERT_TRUE(injection("0", "0xffffffffffffffff"));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		disturb();
	do {
		nr = fail_all(&variant->op, &failed, 1 + rounds % stride, stride);
		rounds++;
		sum += nr;
	} while (nr >= 0 && (time(NULL) - began < 5 || rounds < 2 || !board->reclaimed ||
			     board->migrated <= COMMON_PAGES));
	board->stop = 1;
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	TH_LOG("%d rounds, %d allocations failed; %lu pages migrated, reclaimed %lu times",
	       rounds, sum, board->migrated, board->reclaimed);
	EXPECT_GE(nr, 0);
	EXPECT_GT(sum, 0);
	EXPECT_GT(board->migrated, COMMON_PAGES);
	EXPECT_GT(board->reclaimed, 0);
	EXPECT_TRUE(filled(common, COMMON_PAGES, 1, 9));
	EXPECT_SOUND();
}

/* VMAs of which two neighbours go: so many that some of them are in the same node of the tree. */
#define SEPARATE 24

static bool set_failslab(const char *name, const char *value)
{
	char path[64];

	snprintf(path, sizeof(path), FAULTS "failslab/%s", name);
	return !avl_write(path, value, strlen(value));
}

/*
 * In a process of its own, which may have a child: munmap of @first and the next one, with two
 * allocations failing.
 */
static void unmap_two(int first, bool share)
{
	const int make_it_fail = open("/proc/self/make-it-fail", O_WRONLY);
	char *area = avl_map_separate(SEPARATE), *at = area + 2 * first * page, left[16], c;
	struct verdict v;
	int ret, hold[2], status = 0;
	pid_t child = 1;

	if (make_it_fail < 0 || !area || pipe(hold))
		wrong("set up", errno);
	for (int i = 0; i < SEPARATE; i++) {
		const int move = MREMAP_MAYMOVE | MREMAP_FIXED;
		char *one = area + 2 * i * page, *hole = one + page;

		*one = 1;
		/* Every fourth is away and home again: linked, so that it is not marked. */
		if (i % 4 == 0 && (mremap(one, page, page, move, hole) != hole ||
				   mremap(hole, page, page, move, one) != one))
			wrong("mremap", errno);
	}
	/* A child that shares all of it, until it is told. */
	if (share)
		child = fork();
	if (child < 0)
		wrong("fork", errno);
	if (!child)
		_exit(close(hold[1]) || read(hold[0], &c, 1) != 0 || at[0] != 1 ||
		      at[2 * page] != 1);
	if (write(make_it_fail, "1", 1) != 1)
		wrong("make-it-fail", errno);
	ret = munmap(at, 4 * page) ? errno : 0;
	if (write(make_it_fail, "0", 1) != 1 ||
	    avl_read(FAULTS "failslab/times", left, sizeof(left)) <= 0)
		wrong("failslab", errno);
	if (ret && ret != ENOMEM)
		wrong("error", ret);
	/* No mark is left of those that were taken back, and walks find what they find. */
	for (int i = 0; ret && i < SEPARATE; i++) {
		if (area[2 * i * page] != 1)
			wrong("memory has changed", ret);
		if (strcmp(inside_vma(0, area + 2 * i * page), i % 4 ? "lazy" : "linked"))
			wrong(inside_vma(0, area + 2 * i * page), ret);
	}
	if (ret && (oracle(&v) || v.mismatch || v.migration ||
		    move_to_node(0, at, 1, 1) != 1 || move_to_node(0, at, 1, 0) != 1))
		wrong("reverse map", ret);
	if (ret && munmap(at, 4 * page))
		wrong("once more", errno);
	close(hold[1]);
	if (share && (waitpid(child, &status, 0) != child || status))
		wrong("the child's memory has changed", ret);
	_exit(ret ? FAILED : atoi(left) == 2 ? DONE : DONE_WITHOUT);
}

/*
 * munmap marks the VMAs and takes them out of the tree then, which may fail: the marks are taken
 * back. The tree tries again at once, so that two allocations have to fail in a row: those
 * behind so many bytes. Where it needs more than one node it has them from a stock.
 */
TEST(munmap_that_fails_behind_its_marks)
{
	const long undone = avl_counter("vma_undone"), node = 256;
	int failed = 0, nr = 0;

	avl_case(_metadata->name);
	page = sysconf(_SC_PAGESIZE);
	ASSERT_TRUE(lazy_mode());
	ASSERT_TRUE(injection("0", "0xffffffffffffffff"));
	ASSERT_TRUE(set_failslab("task-filter", "Y") && set_failslab("probability", "100"));
	for (int first = 0; first < SEPARATE - 1; first += 3) {
		for (int nodes = 0; nodes < MANY; nodes++, nr++) {
			char space[16];
			int status;
			pid_t pid;

			snprintf(space, sizeof(space), "%ld", nodes * node);
			ASSERT_TRUE(set_failslab("space", space) && set_failslab("times", "2"));
			pid = fork();
			ASSERT_GE(pid, 0);
			if (!pid)
				unmap_two(first, (first + nodes) % 2);
			ASSERT_EQ(waitpid(pid, &status, 0), pid);
			ASSERT_TRUE(WIFEXITED(status));
			if (WEXITSTATUS(status) == DONE)
				break;
			ASSERT_TRUE(WEXITSTATUS(status) == FAILED ||
				    WEXITSTATUS(status) == DONE_WITHOUT);
			failed += WEXITSTATUS(status) == FAILED;
		}
	}
	ASSERT_TRUE(set_failslab("probability", "0") && set_failslab("task-filter", "N"));
	ASSERT_TRUE(set_failslab("space", "0"));
	TH_LOG("%d times two allocations, %d times needed, %lld marks taken back", nr, failed,
	       avl_counter("vma_undone") - undone);
	EXPECT_GT(failed, 0);
	EXPECT_GT(avl_counter("vma_undone"), undone);
	EXPECT_SOUND();
}

TEST_HARNESS_MAIN
