// SPDX-License-Identifier: GPL-2.0
/*
 * Each transition between the states of a VMA, in a process that is alone, in one
 * that has descendants, and in a child: the state, where the mode is on, what the
 * memory holds, and what the oracle says, before and after all of it has migrated.
 * On a kernel without the module all but the states holds as well.
 */
#define _GNU_SOURCE
#include <linux/mman.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/uio.h>

#include "kselftest_harness.h"
#include "inside.h"
#include "rmap.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define NR 32

static bool lazy;
static size_t page;

typedef void act_t(char *area, char *away);

static jmp_buf out;
static int wrong_line;

/* Does @act in this process: 0, or the line where something was not as it should be. */
static int done(act_t *act, char *area, char *away)
{
	if (setjmp(out))
		return wrong_line;
	act(area, away);
	return 0;
}

static void check(bool good, int line, const char *what)
{
	if (good)
		return;
	printf("# line %d: %s\n", line, what);
	fflush(stdout);
	wrong_line = line;
	longjmp(out, 1);
}

static void check_state(const char *at, const char *wanted, int line)
{
	const char *state = lazy ? inside_vma(0, at) : wanted;

	check(!strcmp(state, wanted), line, state);
}

#define CHECK(cond) check(cond, __LINE__, #cond)
/* The VMA at @at is in that state. */
#define STATE(at, wanted) check_state(at, wanted, __LINE__)

/* In a child, which is gone when this returns; whether all went well there. */
static bool child_does(act_t *act, char *area, char *away)
{
	int status = -1;
	pid_t pid = fork();

	if (!pid)
		_exit(done(act, area, away) != 0);
	return pid > 0 && waitpid(pid, &status, 0) == pid && !status;
}

static bool access_is(char *at, size_t pages, int prot)
{
	return !mprotect(at, pages * page, prot);
}

static char *move(char *from, size_t pages, char *to)
{
	return mremap(from, pages * page, pages * page, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

/* The VMAs of so many pages. */
static int vmas(const char *at, size_t pages)
{
	return count_vmas(at, at + pages * page);
}

/*
 * An area of NR pages, and room for as many, with a page before, between and behind them: all
 * but the area has no access, so that nothing merges with what is in it.
 */
FIXTURE(states)
{
	struct family f;
	char *area, *away;
};

enum who { ALONE, PARENT, CHILD };

FIXTURE_VARIANT(states)
{
	enum who who;
};

FIXTURE_VARIANT_ADD(states, alone)
{
	.who = ALONE,
};

FIXTURE_VARIANT_ADD(states, parent)
{
	.who = PARENT,
};

FIXTURE_VARIANT_ADD(states, child)
{
	.who = CHILD,
};

static char *reserve(void)
{
	char *area = mmap(NULL, (2 * NR + 3) * page, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED || !access_is(area + page, NR, PROT_READ | PROT_WRITE))
		return NULL;
	return area + page;
}

FIXTURE_SETUP(states)
{
	avl_case(_metadata->name);
	page = sysconf(_SC_PAGESIZE);
	lazy = lazy_mode();
	/* Not by a test that has left it off: else nothing would be looked at. */
	ASSERT_EQ(lazy, avl_counter("root_new") > 0);
	ASSERT_EQ(family_init(&self->f), 0);
	self->area = reserve();
	ASSERT_NE(self->area, NULL);
	self->away = self->area + (NR + 1) * page;
}

FIXTURE_TEARDOWN(states)
{
	/* Where a test has switched it off. */
	if (lazy)
		EXPECT_EQ(avl_write(AVL_SYSCTL, "1", 1), 0);
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_SOUND();
}

/*
 * @before in the test, @act in whom it is about, while the others stay as they are. Then
 * what is there moves from node to node; pages that are not there do not count.
 */
static void play(struct __test_metadata *_metadata, struct family *f, char *area, char *away,
		 enum who who, act_t *before, act_t *act)
{
	if (before)
		ASSERT_EQ(done(before, area, away), 0);
	if (who == CHILD) {
		KIN(f, !done(act, area, away) && KIN(f, true) > 0 &&
		    nr_present(area, NR) + nr_present(away, NR) > 0 &&
		    move_to_node(0, area, NR, 1) == nr_present(area, NR) &&
		    move_to_node(0, away, NR, 1) == nr_present(away, NR));
		ASSERT_TRUE(family_await(f, 2));
	} else {
		if (who == PARENT) {
			KIN(f, KIN(f, true) > 0);
			ASSERT_TRUE(family_await(f, 2));
		}
		ASSERT_EQ(done(act, area, away), 0);
	}
	EXPECT_SOUND();
	/* What a child faults first is all its own. */
	if (who != CHILD || before)
		EXPECT_GT(nr_present(area, NR) + nr_present(away, NR), 0);
	for (int node = 1; node >= 0; node--) {
		EXPECT_EQ(move_to_node(0, area, NR, node), nr_present(area, NR));
		EXPECT_EQ(move_to_node(0, away, NR, node), nr_present(away, NR));
		EXPECT_SOUND();
	}
	/* One more generation of what has come of it. */
	KIN(f, true);
	ASSERT_TRUE(family_await(f, 1));
	EXPECT_SOUND();
}

#define PLAY(before, act) \
	play(_metadata, &self->f, self->area, self->away, variant->who, before, act)

static void fault(char *area, char *away)
{
	CHECK(fill(area, NR, 1, 1));
	STATE(area, "lazy");
}

static void fault_and_move(char *area, char *away)
{
	fault(area, away);
	CHECK(move(area, NR, away) == away);
	STATE(away, "linked moved");
}

static void first_fault(char *area, char *away)
{
	STATE(area, "unfaulted");
	/* A read maps the page of zeros, which is nobody's. */
	CHECK(!((volatile char *)area)[page]);
	STATE(area, "unfaulted");
	fault(area, away);
	CHECK(filled(area, NR, 1, 1));
}

TEST_F(states, first_fault)
{
	PLAY(NULL, first_fault);
}

/* Each part is in the state of the whole; what merges again has one link at most. */
static void splits_and_merges(char *at, const char *state)
{
	STATE(at, state);
	CHECK(access_is(at + 8 * page, 8, PROT_READ));
	CHECK(vmas(at, NR) == 3);
	STATE(at, state);
	STATE(at + 8 * page, state);
	STATE(at + 16 * page, state);
	CHECK(filled(at, NR, 1, 1));
	CHECK(access_is(at + 8 * page, 8, PROT_READ | PROT_WRITE));
	CHECK(!lazy || vmas(at, NR) == 1);
	STATE(at, state);
	CHECK(filled(at, NR, 1, 1) && fill(at, NR, 3, 5));
}

static void lazy_splits_and_merges(char *area, char *away)
{
	splits_and_merges(area, "lazy");
}

TEST_F(states, lazy_splits_and_merges)
{
	PLAY(fault, lazy_splits_and_merges);
}

static void linked_splits_and_merges(char *area, char *away)
{
	splits_and_merges(away, "linked moved");
}

TEST_F(states, linked_splits_and_merges)
{
	PLAY(fault_and_move, linked_splits_and_merges);
}

/* Home again it is at its address, and linked all the same, as are its parts. */
static void comes_home(char *area, char *away)
{
	CHECK(move(away, NR, area) == area);
	STATE(area, "linked");
	CHECK(filled(area, NR, 1, 1));
	CHECK(access_is(area + 8 * page, 8, PROT_READ));
	STATE(area, "linked");
	STATE(area + 8 * page, "linked");
	CHECK(move(area, 4, away) == away);
	STATE(away, "linked moved");
	STATE(area + 4 * page, "linked");
	CHECK(filled(away, 4, 1, 1) && filled(area + 4 * page, NR - 4, 1, 29));
}

TEST_F(states, linked_comes_home)
{
	PLAY(fault_and_move, comes_home);
}

static void fault_half_and_move(char *area, char *away)
{
	CHECK(!mprotect(area + NR / 2 * page, NR / 2 * page, PROT_NONE));
	CHECK(fill(area, NR / 2, 1, 1) && move(area, NR / 2, away) == away);
	CHECK(access_is(area + NR / 2 * page, NR / 2, PROT_READ | PROT_WRITE));
	STATE(area + NR / 2 * page, "unfaulted");
}

/* It merges with one that was never faulted, which is linked by that. */
static void comes_home_beside_an_unfaulted_one(char *area, char *away)
{
	CHECK(move(away, NR / 2, area) == area);
	CHECK(!lazy || vmas(area, NR) == 1);
	STATE(area, "linked");
	STATE(area + NR / 2 * page, "linked");
	CHECK(filled(area, NR / 2, 1, 1) && fill(area + NR / 2 * page, NR / 2, 1, 2));
}

TEST_F(states, linked_comes_home_beside_an_unfaulted_one)
{
	PLAY(fault_half_and_move, comes_home_beside_an_unfaulted_one);
}

/* It merges with those that it was a part of, and is found as they are. */
static void comes_home_between_lazy_ones(char *area, char *away)
{
	CHECK(move(area + 8 * page, 4, away) == away);
	STATE(away, "linked moved");
	CHECK(!lazy || vmas(area, NR) == 2);
	CHECK(move(away, 4, area + 8 * page) == area + 8 * page);
	STATE(area + 8 * page, "lazy");
	CHECK(!lazy || vmas(area, NR) == 1);
	CHECK(filled(area, NR, 1, 1) && fill(area, NR, 5, 9));
}

TEST_F(states, linked_comes_home_between_lazy_ones)
{
	PLAY(fault, comes_home_between_lazy_ones);
}

/* Into room behind it, which is no VMA then. */
static void grow(char *at, const char *state)
{
	CHECK(!munmap(at + NR / 2 * page, NR / 2 * page));
	CHECK(mremap(at, NR / 2 * page, NR * page, 0) == at);
	CHECK(vmas(at, NR) == 1);
	STATE(at, state);
	STATE(at + (NR - 1) * page, state);
	CHECK(filled(at, NR / 2, 1, 1) && fill(at + NR / 2 * page, NR / 2, 1, 3));
	STATE(at + (NR - 1) * page, state);
	/* And back; what is cut off is gone. */
	CHECK(mremap(at, NR * page, NR / 4 * page, 0) == at);
	STATE(at, state);
	STATE(at + NR / 4 * page, "nothing");
	CHECK(filled(at, NR / 4, 1, 1));
}

static void lazy_grows_and_shrinks(char *area, char *away)
{
	grow(area, "lazy");
}

TEST_F(states, lazy_grows_and_shrinks)
{
	PLAY(fault, lazy_grows_and_shrinks);
}

static void linked_grows_and_shrinks(char *area, char *away)
{
	grow(away, "linked moved");
}

TEST_F(states, linked_grows_and_shrinks)
{
	PLAY(fault_and_move, linked_grows_and_shrinks);
}

/* MREMAP_DONTUNMAP: the source stays, without its pages. */
static char *move_and_keep(char *from, size_t pages, char *to)
{
	return mremap(from, pages * page, pages * page,
		      MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to);
}

/* The source of a part is a part of a VMA that has its root on. */
static void dontunmap_of_a_part(char *area, char *away)
{
	CHECK(move_and_keep(area + 4 * page, 8, away) == away);
	CHECK(vmas(area, NR) == 1);
	STATE(area, "lazy");
	STATE(area + 4 * page, "lazy");
	STATE(away, "linked moved");
	CHECK(!area[4 * page] && !area[11 * page] && filled(away, 8, 1, 29));
	CHECK(fill(area + 4 * page, 8, 1, 90));
	CHECK(filled(area, 4, 1, 1) && filled(area + 12 * page, NR - 12, 1, 85));
	/* Moved once more, while the other VMA has the same page offsets. */
	CHECK(move_and_keep(away, 8, away + 8 * page) == away + 8 * page);
	STATE(away + 8 * page, "linked moved");
	CHECK(filled(away + 8 * page, 8, 1, 29) && filled(area + 4 * page, 8, 1, 90));
}

TEST_F(states, dontunmap_of_a_part)
{
	PLAY(fault, dontunmap_of_a_part);
}

/* The source of all of it is as new, and faults first once more. */
static void dontunmap_of_all(char *area, char *away)
{
	CHECK(move_and_keep(area, NR, away) == away);
	STATE(area, "unfaulted");
	STATE(away, "linked moved");
	CHECK(!area[0] && !area[(NR - 1) * page] && filled(away, NR, 1, 1));
	CHECK(fill(area, NR, 1, 90));
	STATE(area, "lazy");
	CHECK(filled(away, NR, 1, 1) && filled(area, NR, 1, 90));
}

TEST_F(states, dontunmap_of_all)
{
	PLAY(fault, dontunmap_of_all);
}

/* VMAs in three states next to each other, and room. */
static void a_bit_of_each(char *area, char *away)
{
	CHECK(fill(area, NR, 1, 1));
	/* Linked between Lazy ones, kept from merging with these; then one that is unfaulted. */
	CHECK(access_is(area + 8 * page, 4, PROT_READ));
	CHECK(move(area + 8 * page, 4, away) == away);
	CHECK(move(away, 4, area + 8 * page) == area + 8 * page);
	CHECK(!munmap(area + 16 * page, 4 * page));
	CHECK(mmap(area + 16 * page, 4 * page, PROT_READ | PROT_WRITE | PROT_EXEC,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == area + 16 * page);
	STATE(area, "lazy");
	STATE(area + 8 * page, "linked");
	STATE(area + 12 * page, "lazy");
	STATE(area + 16 * page, "unfaulted");
	STATE(area + 20 * page, "lazy");
}

/* One munmap of parts of all of these. */
static void munmap_of_each(char *area, char *away)
{
	CHECK(!munmap(area + 4 * page, 18 * page));
	STATE(area, "lazy");
	STATE(area + 4 * page, "nothing");
	STATE(area + 16 * page, "nothing");
	STATE(area + 22 * page, "lazy");
	CHECK(vmas(area, NR) == 2);
	CHECK(filled(area, 4, 1, 1) && filled(area + 22 * page, NR - 22, 1, 155));
}

TEST_F(states, munmap_of_each)
{
	PLAY(a_bit_of_each, munmap_of_each);
}

/* MAP_FIXED over the same. */
static void mapped_over(char *area, char *away)
{
	CHECK(map_at(area + 4 * page, 18 * page) == area + 4 * page);
	/* It merges with what has a root, or is a VMA of its own, as Linux decides. */
	CHECK(!area[4 * page] && !area[21 * page]);
	CHECK(fill(area + 4 * page, 18, 1, 60));
	STATE(area + 4 * page, "lazy");
	STATE(area + 21 * page, "lazy");
	CHECK(filled(area, 4, 1, 1) && filled(area + 22 * page, NR - 22, 1, 155));
}

TEST_F(states, mapped_over)
{
	PLAY(a_bit_of_each, mapped_over);
}

/* One mremap of all that is there; the unfaulted one is natural where it comes to be. */
static void moved_at_once(char *area, char *away)
{
	CHECK(move(area, NR, away) == away);
	STATE(area, "nothing");
	STATE(away, "linked moved");
	STATE(away + 8 * page, "linked moved");
	STATE(away + 12 * page, "linked moved");
	STATE(away + 16 * page, "unfaulted");
	STATE(away + 20 * page, "linked moved");
	CHECK(fill(away + 16 * page, 4, 1, 60));
	STATE(away + 16 * page, "lazy");
	CHECK(filled(away, 16, 1, 1) && filled(away + 20 * page, NR - 20, 1, 141));
}

TEST_F(states, moved_at_once)
{
	PLAY(a_bit_of_each, moved_at_once);
}

/* A thread unmaps what takes a while. */
struct unmapping {
	char *at;
	size_t size;
	int ret;
};

static void *unmap_it(void *arg)
{
	struct unmapping *u = arg;

	u->ret = munmap(u->at, u->size);
	return NULL;
}

static void seen_while_unmapped(char *area, char *away)
{
	struct unmapping u = { .size = 64 * MIB };
	int seen = 0;

	/* Without the module there is nothing to see but that the memory is gone. */
	for (int i = 0; i < (lazy ? 20 : 1) && !seen; i++) {
		unsigned long start, end;
		pthread_t thread;
		char state[32];
		bool gone = false;

		u.at = map_at(NULL, u.size);
		CHECK(u.at);
		CHECK(!madvise(u.at, u.size, MADV_NOHUGEPAGE));
		CHECK(fill(u.at, u.size / page, 1, i));
		STATE(u.at, "lazy");
		CHECK(!pthread_create(&thread, NULL, unmap_it, &u));
		while (!gone) {
			char *text = inside_read(0), *line, *save;

			/* It is there in one way or the other until it is unmapped. */
			gone = true;
			for (line = text ? strtok_r(text, "\n", &save) : NULL; line;
			     line = strtok_r(NULL, "\n", &save)) {
				if (sscanf(line, "vma %lx-%lx %31s", &start, &end, state) != 3 ||
				    start > (uintptr_t)u.at || end <= (uintptr_t)u.at)
					continue;
				seen += !strcmp(state, "detaching");
				gone = false;
			}
			free(text);
		}
		CHECK(!pthread_join(thread, NULL) && !u.ret);
	}
	CHECK(!lazy || seen > 0);
}

TEST_F_TIMEOUT(states, detaching_while_it_is_unmapped, 240)
{
	PLAY(fault, seen_while_unmapped);
}

/* The first fault of a VMA in @pid is this process's doing. */
static bool write_to(pid_t pid, char *at, size_t pages, unsigned char seed)
{
	char *from = map_at(NULL, pages * page);
	struct iovec local = { from, pages * page }, remote = { at, pages * page };

	return from && fill(from, pages, 1, seed) &&
		process_vm_writev(pid, &local, 1, &remote, 1, 0) == (ssize_t)local.iov_len &&
		!munmap(from, local.iov_len);
}

TEST_F(states, first_fault_by_another_process)
{
	char *area = self->area;
	struct family *f = &self->f;
	const pid_t parent = getpid();
	int turn[2];
	pid_t pid;
	char c;

	ASSERT_EQ(pipe(turn), 0);
	/* Whom the variant is about is written to; alone it is the test itself, by a child. */
	if (variant->who == ALONE) {
		pid = KIN(f, write_to(parent, area, NR, 1));
		ASSERT_GT(pid, 0);
		ASSERT_TRUE(family_await(f, 1));
		EXPECT_TRUE(filled(area, NR, 1, 1));
		if (lazy)
			EXPECT_STREQ(inside_vma(0, area), "lazy");
	} else {
		pid = KIN(f, read(turn[0], &c, 1) == 1 && filled(area, NR, 1, 1) &&
			  (variant->who == CHILD || KIN(f, filled(area, NR, 1, 1)) > 0));
		ASSERT_GT(pid, 0);
		if (lazy)
			EXPECT_STREQ(inside_vma(pid, area), "unfaulted");
		ASSERT_TRUE(write_to(pid, area, NR, 1));
		if (lazy) {
			EXPECT_STREQ(inside_vma(pid, area), "lazy");
			EXPECT_STREQ(inside_vma(0, area), "unfaulted");
			EXPECT_NE(inside_root(pid), inside_root(0));
		}
		ASSERT_EQ(write(turn[1], "", 1), 1);
		ASSERT_TRUE(family_await(f, variant->who == CHILD ? 1 : 2));
		/* The pages are its own. */
		EXPECT_EQ(area[0], 0);
		EXPECT_EQ(move_to_node(pid, area, NR, 1), NR);
	}
	EXPECT_SOUND();
}

/* In a child, forked while the mode is off by a process that has a root. */
static void has_a_root_too(char *area, char *away)
{
	STATE(area, "lazy");
	STATE(away + 4 * page, "lazy");
	STATE(away + 10 * page, "unfaulted");
	CHECK(fill(away + 10 * page, 4, 1, 5));
	STATE(away + 10 * page, "lazy");
	CHECK(filled(area, NR, 1, 1) && filled(away + 4 * page, 4, 1, 4));
}

/* A program that was started while the mode is off. */
static void has_none(char *area, char *away)
{
	static const char none[] = "grep -q '^root none$' " INSIDE;

	if (lazy)
		execl("/bin/busybox", "sh", "-c", none, (char *)NULL);
	CHECK(!lazy);
}

/* The mode is off: who has a root goes on with it, what it forks gets one; what it executes not. */
static void goes_on_with_its_root(char *area, char *away)
{
	CHECK(!lazy || !avl_write(AVL_SYSCTL, "0", 1));
	CHECK(access_is(away + 4 * page, 4, PROT_READ | PROT_WRITE) &&
	      access_is(away + 10 * page, 4, PROT_READ | PROT_WRITE));
	STATE(away + 4 * page, "unfaulted");
	CHECK(fill(away + 4 * page, 4, 1, 4));
	STATE(away + 4 * page, "lazy");
	CHECK(child_does(has_a_root_too, area, away));
	CHECK(child_does(has_none, area, away));
	CHECK(!lazy || !avl_write(AVL_SYSCTL, "1", 1));
	CHECK(filled(area, NR, 1, 1) && filled(away + 4 * page, 4, 1, 4));
}

TEST_F(states, goes_on_with_its_root)
{
	PLAY(fault, goes_on_with_its_root);
}

/*
 * Descendants whose ancestors are gone, more of them than a root may have: they have the
 * VMAs that they inherited linked to the root of one of these, and their own have none.
 */
FIXTURE(foreign)
{
	struct family f;
	char *area, *away;
};

FIXTURE_SETUP(foreign)
{
	avl_case(_metadata->name);
	page = sysconf(_SC_PAGESIZE);
	lazy = lazy_mode();
	/* Not by a test that has left it off: else nothing would be looked at. */
	ASSERT_EQ(lazy, avl_counter("root_new") > 0);
	ASSERT_EQ(family_init(&self->f), 0);
	self->area = reserve();
	ASSERT_NE(self->area, NULL);
	self->away = self->area + (NR + 1) * page;
	ASSERT_TRUE(access_is(self->away, NR, PROT_READ | PROT_WRITE));
	ASSERT_TRUE(fill(self->area, NR, 1, 1));
}

FIXTURE_TEARDOWN(foreign)
{
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_SOUND();
}

static void check_foreign(const char *at, const char *how, int line)
{
	const char *state = lazy ? inside_vma(0, at) : "";
	unsigned int root = 0;
	char wanted[64];

	if (!lazy)
		return;
	if (sscanf(state, "linked root %x", &root) != 1)
		root = 0;
	snprintf(wanted, sizeof(wanted), "linked root %08x%s", root, how);
	check(!strcmp(state, wanted), line, state);
	check(root && root != inside_root(0), line, "the root of another mm");
}

/* The VMA at @at is linked to the root of another mm; @how: "", or " moved". */
#define FOREIGN(at, how) check_foreign(at, how, __LINE__)

static void play_deep(struct __test_metadata *_metadata, struct family *f, char *area, char *away,
		      act_t *act)
{
	long long before = avl_counter("fork_too_deep");

	LAST_OF(f, !done(act, area, away));
	ASSERT_TRUE(family_await(f, 1));
	if (lazy)
		EXPECT_GT(avl_counter("fork_too_deep"), before);
	EXPECT_SOUND();
	for (int node = 1; node >= 0; node--) {
		EXPECT_EQ(move_to_node(0, area, NR, node), nr_present(area, NR));
		EXPECT_SOUND();
	}
	EXPECT_TRUE(filled(area, NR, 1, 1));
}

/* Its own VMA has its own root, without a parent; a child has both kinds. */
static void has_both(char *area, char *away)
{
	FOREIGN(area, "");
	STATE(away, "unfaulted");
	CHECK(fill(away, NR, 1, 2));
	STATE(away, "lazy");
	if (lazy) {
		char *text = inside_read(0);

		CHECK(text && !strstr(text, "\nparent "));
		free(text);
	}
}

/* What is shared by all, and what is shared by the two. */
static bool both_migrate(char *area, char *away)
{
	bool good = true;

	for (int node = 1; node >= 0; node--)
		good = good && move_to_node(0, area, NR, node) == NR &&
		       move_to_node(0, away, NR, node) == NR;
	return good;
}

static void inherits_both(char *area, char *away)
{
	FOREIGN(area, "");
	STATE(away, "lazy");
	CHECK(filled(area, NR, 1, 1) && filled(away, NR, 1, 2));
	CHECK(both_migrate(area, away));
	CHECK(fill(area, NR, 3, 7) && fill(away, NR, 3, 7));
}

static void shares_both(char *area, char *away)
{
	has_both(area, away);
	CHECK(both_migrate(area, away));
	CHECK(child_does(inherits_both, area, away));
	CHECK(filled(area, NR, 1, 1) && filled(away, NR, 1, 2));
}

TEST_F(foreign, is_shared_and_migrates)
{
	play_deep(_metadata, &self->f, self->area, self->away, shares_both);
}

static void is_split_and_moved(char *area, char *away)
{
	FOREIGN(area, "");
	CHECK(access_is(area + 8 * page, 8, PROT_READ));
	CHECK(vmas(area, NR) == 3);
	FOREIGN(area, "");
	FOREIGN(area + 8 * page, "");
	FOREIGN(area + 16 * page, "");
	CHECK(access_is(area + 8 * page, 8, PROT_READ | PROT_WRITE));
	CHECK(!lazy || vmas(area, NR) == 1);
	FOREIGN(area + 8 * page, "");
	CHECK(move(area, NR, away) == away);
	FOREIGN(away, " moved");
	CHECK(filled(away, NR, 1, 1) && move_to_node(0, away, NR, 1) == NR);
	CHECK(move(away, NR, area) == area);
	FOREIGN(area, "");
	CHECK(move_and_keep(area, 8, away) == away);
	FOREIGN(area, "");
	FOREIGN(away, " moved");
	CHECK(!area[0] && filled(away, 8, 1, 1) && fill(area, 8, 1, 1));
	CHECK(!munmap(away, 4 * page) && filled(away + 4 * page, 4, 1, 29));
}

TEST_F(foreign, is_split_and_moved)
{
	play_deep(_metadata, &self->f, self->area, self->away, is_split_and_moved);
}

/* Its own neighbour, alike in all but the root, stays apart from it. */
static void does_not_merge(char *area, char *away)
{
	CHECK(!munmap(area + 8 * page, 8 * page));
	/* With access that keeps it apart until it has a root of its own. */
	CHECK(mmap(area + 8 * page, 8 * page, PROT_READ | PROT_WRITE | PROT_EXEC,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == area + 8 * page);
	CHECK(fill(away, 4, 1, 2));
	STATE(away, "lazy");
	CHECK(fill(area + 8 * page, 8, 1, 57));
	STATE(area + 8 * page, "lazy");
	CHECK(access_is(area + 8 * page, 8, PROT_READ | PROT_WRITE));
	CHECK(!lazy || vmas(area, NR) == 3);
	FOREIGN(area, "");
	STATE(area + 8 * page, "lazy");
	FOREIGN(area + 16 * page, "");
	CHECK(filled(area, NR, 1, 1));
}

TEST_F(foreign, does_not_merge_with_its_own)
{
	play_deep(_metadata, &self->f, self->area, self->away, does_not_merge);
}

static void swaps_in(char *area, char *away)
{
	FOREIGN(area, "");
	CHECK(filled(area, NR, 1, 1) && fill(area, NR, 4, 1));
}

/* Its own pages, out to swap and in again: by a child, and by itself. */
static void is_swapped(char *area, char *away)
{
	CHECK(fill(area, NR / 2, 1, 1));
	CHECK(!madvise(area, NR * page, MADV_PAGEOUT));
	CHECK(nr_swapped(area, NR) > 0);
	FOREIGN(area, "");
	CHECK(child_does(swaps_in, area, away));
	CHECK(filled(area, NR, 1, 1));
	FOREIGN(area, "");
}

TEST_F(foreign, is_swapped)
{
	ASSERT_TRUE(have_swap());
	play_deep(_metadata, &self->f, self->area, self->away, is_swapped);
}

TEST_HARNESS_MAIN
