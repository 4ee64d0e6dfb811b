// SPDX-License-Identifier: GPL-2.0
/*
 * What happens to VMAs and to their anonymous folios, and what the oracle says
 * of the reverse map afterwards. The tests hold on any kernel; with the module
 * loaded and on, the VMAs are Lazy or Linked.
 */
#define _GNU_SOURCE
#include <linux/mman.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/uio.h>

#include "kselftest_harness.h"
#include "inside.h"
#include "rmap.h"

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

#define NR 32

FIXTURE(rmap)
{
	struct family f;
	size_t page;
	bool lazy;
};

FIXTURE_SETUP(rmap)
{
	avl_case(_metadata->name);
	self->page = sysconf(_SC_PAGESIZE);
	self->lazy = lazy_mode();
	ASSERT_EQ(family_init(&self->f), 0);
}

FIXTURE_TEARDOWN(rmap)
{
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_SOUND();
	/* Where a test has switched it off. */
	if (self->lazy)
		EXPECT_EQ(avl_write(AVL_SYSCTL, "1", 1), 0);
}

TEST_F(rmap, one_process)
{
	char *area = map_at(NULL, NR * self->page);

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 1));
}

TEST_F(rmap, three_generations)
{
	char *area = map_at(NULL, NR * self->page);

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	for (int i = 0; i < 3; i++)
		KIN(&self->f, ({
			KIN(&self->f, fill(area, NR, 4, 50 + i));
			KIN(&self->f, filled(area, NR, 1, 1));
			fill(area, NR, 2, 10 + i);
		}));
	ASSERT_TRUE(family_await(&self->f, 9));
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_TRUE(filled(area, NR, 1, 1));
}

/* Those who share the folios outlive whom they had them from. */
TEST_F(rmap, parents_exit_first)
{
	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid) {
			char *area = map_at(NULL, NR * self->page);

			fill(area, NR, 1, i);
			KIN(&self->f, ({
				KIN(&self->f, filled(area, NR, 1, i));
				KIN(&self->f, fill(area, NR, 3, 90));
				filled(area, NR, 1, i);
			}));
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	}
	ASSERT_TRUE(family_await(&self->f, 9));
	EXPECT_SOUND();
}

TEST_F(rmap, children_exit_first)
{
	char *area = map_at(NULL, NR * self->page);

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 3);
	for (int i = 0; i < 20; i++) {
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid)
			_exit(!fill(area, NR, 2, i));
		ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	}
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 3));
}

/* A chain of parents that are gone, longer than the bound on it. */
TEST_F(rmap, twelve_generations_without_a_parent)
{
	char *area = map_at(NULL, NR * self->page);

	ASSERT_NE(area, NULL);
	if (!fork()) {
		for (int i = 0; i < 12; i++) {
			char *more = map_at(NULL, 4 * self->page);

			fill(area + 2 * i * self->page, 2, 1, i);
			fill(more, 4, 1, i);
			if (fork())
				_exit(0);
			if (!filled(more, 4, 1, i))
				_exit(1);
		}
		/* Moved, split and forked once more, with the VMAs of the ancestors. */
		KIN(&self->f, ({
			char *moved = mremap(area, 4 * self->page, 4 * self->page,
					     MREMAP_MAYMOVE | MREMAP_FIXED,
					     map_at(NULL, 4 * self->page));

			moved != MAP_FAILED && filled(moved, 2, 1, 0) &&
				!mprotect(area + 8 * self->page, 2 * self->page, PROT_READ) &&
				KIN(&self->f, filled(moved, 2, 1, 0)) > 0;
		}));
		KIN(&self->f, filled(area, 2, 1, 0));
		_exit(0);
	}
	ASSERT_TRUE(family_await(&self->f, 3));
	EXPECT_SOUND();
}

/* Behind each of @nr pages with holes between them, fault one more. */
static bool fault_beside(char *area, size_t nr)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (size_t i = 0; i < nr; i++) {
		char *at = area + (4 * i + 1) * page;

		/* Not the same access, or the two would merge: neighbours share without that. */
		if (mprotect(at, page, PROT_READ | PROT_WRITE | PROT_EXEC) || !fill(at, 1, 1, i) ||
		    !filled(at - page, 1, 1, 1))
			return false;
	}
	return true;
}

/*
 * A process that has VMAs of an ancestor's root and no root of its own, as too
 * many are gone between the two, faults first beside one of them while the mode
 * is off: what it makes is an anon_vma, not one more link to that root.
 */
TEST_F(rmap, switched_off_beside_a_vma_of_an_ancestor)
{
	const size_t nr = 16;
	long long deep = avl_counter("fork_too_deep"), off = avl_counter("first_fault_off");
	char *area = mmap(NULL, 4 * nr * self->page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(area, MAP_FAILED);
	for (size_t i = 0; i < nr; i++) {
		ASSERT_EQ(mprotect(area + 4 * i * self->page, self->page,
				   PROT_READ | PROT_WRITE), 0);
		fill(area + 4 * i * self->page, 1, 1, 1);
	}
	if (!fork()) {
		for (int i = 0; i < 12; i++) {
			pid_t parent = getpid();

			if (fork())
				_exit(0);
			/* Its mm is gone before its children are. */
			while (getppid() == parent)
				usleep(1000);
		}
		if (self->lazy && avl_write(AVL_SYSCTL, "0", 1))
			_exit(1);
		KIN(&self->f, fault_beside(area, nr));
		KIN(&self->f, fault_beside(area, nr) &&
		    KIN(&self->f, filled(area, 1, 1, 1) && fault_beside(area, nr)) > 0 &&
		    !munmap(area + 4 * self->page, 4 * (nr - 1) * self->page));
		_exit(0);
	}
	ASSERT_TRUE(family_await(&self->f, 3));
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_SOUND();
	if (self->lazy) {
		EXPECT_GT(avl_counter("fork_too_deep"), deep);
		EXPECT_GE(avl_counter("first_fault_off"), off + 2 * (long long)nr);
	}
	EXPECT_TRUE(filled(area, 1, 1, 1));
}

TEST_F(rmap, split_and_merge)
{
	char *area = map_at(NULL, NR * self->page);

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	ASSERT_EQ(mprotect(area + 8 * self->page, 8 * self->page, PROT_READ), 0);
	EXPECT_GE(count_vmas(area, area + NR * self->page), 3);
	KIN(&self->f, filled(area, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	ASSERT_EQ(mprotect(area + 8 * self->page, 8 * self->page, PROT_READ | PROT_WRITE), 0);
	EXPECT_SOUND();
	fill(area, NR, 2, 5);
	EXPECT_SOUND();
}

/* With one root for the mm, VMAs that faulted separately are neighbours. */
TEST_F(rmap, separately_faulted_neighbours_merge)
{
	char *area = mmap(NULL, NR * self->page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *end = area + NR * self->page;

	ASSERT_NE(area, MAP_FAILED);
	/* The outer ones first, so that neither has a neighbour to share with. */
	ASSERT_EQ(mprotect(area, self->page, PROT_READ | PROT_WRITE), 0);
	fill(area, 1, 1, 1);
	ASSERT_EQ(mprotect(area + 2 * self->page, self->page, PROT_READ | PROT_WRITE), 0);
	fill(area + 2 * self->page, 1, 1, 1);
	ASSERT_EQ(mprotect(area + self->page, self->page, PROT_READ | PROT_WRITE), 0);
	EXPECT_LE(count_vmas(area, area + 3 * self->page), lazy_mode() ? 1 : 2);
	EXPECT_SOUND();
	munmap(area, end - area);
}

/* Where VMAs are moved to, with holes around. */
static char *room(size_t pages)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	char *area = mmap(NULL, (pages + 2) * page, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return area == MAP_FAILED ? NULL : area + page;
}

TEST_F(rmap, move_away_and_home)
{
	char *home = map_at(NULL, NR * self->page), *away = room(NR);

	ASSERT_NE(home, NULL);
	ASSERT_NE(away, NULL);
	fill(home, NR, 1, 1);
	KIN(&self->f, filled(home, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_EQ(mremap(home, NR * self->page, NR * self->page, MREMAP_MAYMOVE | MREMAP_FIXED,
			 away), away);
	EXPECT_SOUND();
	/* In place of it comes another. */
	ASSERT_EQ(map_at(home, 4 * self->page), home);
	fill(home, 4, 1, 77);
	KIN(&self->f, filled(away, NR, 1, 1) && filled(home, 4, 1, 77));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	ASSERT_EQ(munmap(home, 4 * self->page), 0);
	ASSERT_EQ(mremap(away, NR * self->page, NR * self->page, MREMAP_MAYMOVE | MREMAP_FIXED,
			 home), home);
	EXPECT_SOUND();
	fill(home, NR, 3, 9);
	ASSERT_EQ(mprotect(home + self->page, self->page, PROT_READ), 0);
	KIN(&self->f, filled(home, NR, 3, 9));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
}

/* The child moves what it inherited; then the parent does. */
TEST_F(rmap, move_after_fork_on_either_side)
{
	char *area = map_at(NULL, NR * self->page), *away = room(NR);

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	KIN(&self->f, mremap(area, NR / 2 * self->page, NR / 2 * self->page,
			     MREMAP_MAYMOVE | MREMAP_FIXED, away) == away &&
	    filled(away, NR / 2, 1, 1) && fill(away, NR / 2, 4, 8));
	KIN(&self->f, filled(area, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	ASSERT_EQ(mremap(area, NR * self->page, NR * self->page, MREMAP_MAYMOVE | MREMAP_FIXED,
			 away), away);
	KIN(&self->f, filled(away, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
}

TEST_F(rmap, shrink_grow_and_dontunmap)
{
	char *area = map_at(NULL, NR * self->page), *grown, *moved;

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	KIN(&self->f, filled(area, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_EQ(mremap(area, NR * self->page, NR / 2 * self->page, 0), area);
	EXPECT_SOUND();
	grown = mremap(area, NR / 2 * self->page, 8 * NR * self->page, MREMAP_MAYMOVE);
	ASSERT_NE(grown, MAP_FAILED);
	fill(grown + NR * self->page, 7 * NR, 5, 2);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(grown, NR / 2, 1, 1));
	/* Part of it, so that the source keeps its anon_vma; then all of it. */
	moved = mremap(grown, 4 * self->page, 4 * self->page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP,
		       NULL);
	ASSERT_NE(moved, MAP_FAILED);
	EXPECT_TRUE(filled(moved, 4, 1, 1));
	fill(grown, 4, 1, 33);
	EXPECT_SOUND();
	moved = mremap(grown + 4 * self->page, (8 * NR - 4) * self->page,
		       (8 * NR - 4) * self->page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	ASSERT_NE(moved, MAP_FAILED);
	fill(grown + 4 * self->page, NR, 1, 34);
	KIN(&self->f, filled(grown + 4 * self->page, NR, 1, 34));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
}

/*
 * What one mremap() can move at once: @NR pages of several VMAs, with a hole. Two of
 * them are of a private file, a part of which is still the file's. From @at on:
 *
 *   4 pages RW, 4 R, 4 RW without a page, 4 hole, 4 of a file, 2 of it R, 10 RW
 */
static bool several(char *at, int fd)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	return map_at(at, 12 * page) == at && fill(at, 8, 1, 1) &&
		!mprotect(at + 4 * page, 4 * page, PROT_READ) &&
		!munmap(at + 12 * page, 4 * page) &&
		mmap(at + 16 * page, 6 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd,
		     3 * page) == at + 16 * page && fill(at + 16 * page, 6, 2, 17) &&
		!mprotect(at + 20 * page, 2 * page, PROT_READ) &&
		map_at(at + 22 * page, 10 * page) == at + 22 * page &&
		fill(at + 22 * page, 10, 1, 22);
}

/* That they are at @at, as several() has made them. */
static bool several_are(const char *at)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	return filled(at, 8, 1, 1) && filled(at + 16 * page, 6, 2, 17) && at[17 * page] == 'f' &&
		at[22 * page - 1] == 'f' && filled(at + 22 * page, 10, 1, 22) &&
		count_vmas(at + 12 * page, at + 16 * page) == 0 &&
		count_vmas(at, at + 12 * page) == 3 &&
		count_vmas(at + 16 * page, at + 22 * page) == 2;
}

static char *move_several(char *from, char *to)
{
	const size_t size = NR * sysconf(_SC_PAGESIZE);

	return mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

/* Room whose pages are gone, not just without access: several_are() counts VMAs. */
static char *hole(size_t pages)
{
	char *area = room(pages);

	return area && !munmap(area, pages * sysconf(_SC_PAGESIZE)) ? area : NULL;
}

TEST_F(rmap, several_vmas_moved_at_once)
{
	int fd = open("/tmp/rmap-several", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *home = hole(NR), *away = hole(NR), *far = hole(NR), *text = malloc(16 * self->page);

	ASSERT_GE(fd, 0);
	ASSERT_NE(text, NULL);
	memset(text, 'f', 16 * self->page);
	ASSERT_EQ(write(fd, text, 16 * self->page), 16 * self->page);
	ASSERT_TRUE(several(home, fd));
	ASSERT_TRUE(several_are(home));
	KIN(&self->f, several_are(home) && KIN(&self->f, several_are(home)) > 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	/* All of them are where they were born; then none is; then they are home again. */
	ASSERT_EQ(move_several(home, away), away);
	EXPECT_TRUE(several_are(away));
	EXPECT_EQ(count_vmas(home, home + NR * self->page), 0);
	EXPECT_SOUND();
	ASSERT_EQ(move_several(away, far), far);
	EXPECT_TRUE(several_are(far));
	EXPECT_SOUND();
	/* Where they were come others, that fault anew. */
	ASSERT_TRUE(several(home, fd));
	KIN(&self->f, several_are(far) && several_are(home));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	ASSERT_EQ(munmap(home, NR * self->page), 0);
	ASSERT_EQ(move_several(far, home), home);
	EXPECT_TRUE(several_are(home));
	EXPECT_SOUND();
	/* One that had no page, as it was split off, faults where it is now. */
	fill(home + 8 * self->page, 4, 1, 8);
	fill(home + 16 * self->page, 4, 1, 99);
	KIN(&self->f, filled(home + 8 * self->page, 4, 1, 8) &&
	    filled(home + 16 * self->page, 4, 1, 99) && filled(home + 22 * self->page, 10, 1, 22));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	free(text);
	close(fd);
	unlink("/tmp/rmap-several");
}

/* The same after fork: the child, its child, then the parent, to one and the same place. */
TEST_F(rmap, several_vmas_moved_at_once_after_fork)
{
	int fd = open("/tmp/rmap-several", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *home = hole(NR), *away = hole(NR), *text = malloc(16 * self->page);

	ASSERT_GE(fd, 0);
	ASSERT_NE(text, NULL);
	memset(text, 'f', 16 * self->page);
	ASSERT_EQ(write(fd, text, 16 * self->page), 16 * self->page);
	ASSERT_TRUE(several(home, fd));
	KIN(&self->f, move_several(home, away) == away && several_are(away) &&
	    KIN(&self->f, several_are(away) && move_several(away, home) == home &&
		several_are(home)) > 0 && fill(away + 22 * self->page, 10, 3, 22));
	/* A part of them, from the middle of one VMA to the middle of another. */
	KIN(&self->f, mremap(home + 2 * self->page, 16 * self->page, 16 * self->page,
			     MREMAP_MAYMOVE | MREMAP_FIXED, away + 2 * self->page) ==
	    away + 2 * self->page && filled(home, 2, 1, 1) &&
	    filled(away + 2 * self->page, 6, 1, 15) && filled(away + 16 * self->page, 2, 2, 17) &&
	    filled(home + 18 * self->page, 4, 2, 31) && KIN(&self->f, filled(home, 2, 1, 1)) > 0);
	ASSERT_TRUE(family_await(&self->f, 4));
	EXPECT_TRUE(several_are(home));
	EXPECT_SOUND();
	ASSERT_EQ(move_several(home, away), away);
	EXPECT_TRUE(several_are(away));
	KIN(&self->f, several_are(away));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_TRUE(several_are(away));
	EXPECT_SOUND();
	free(text);
	close(fd);
	unlink("/tmp/rmap-several");
}

/*
 * A child's VMA that is unfaulted and yet not natural: its first fault links it, as a walk
 * would look for it where it was before it was moved.
 */
TEST_F(rmap, wiped_child_of_a_moved_vma_faults)
{
	char *a = map_at(NULL, NR * self->page), *b = room(NR);

	ASSERT_NE(a, NULL);
	ASSERT_NE(b, NULL);
	fill(a, NR, 1, 1);
	ASSERT_EQ(mremap(a, NR * self->page, NR * self->page, MREMAP_MAYMOVE | MREMAP_FIXED, b), b);
	ASSERT_EQ(madvise(b, NR * self->page, MADV_WIPEONFORK), 0);
	KIN(&self->f, ({
		bool wiped = !b[0] && !b[(NR - 1) * self->page];

		fill(b, NR, 1, 3);
		wiped && (!self->lazy || !strncmp(inside_vma(0, b), "linked", 6)) &&
			!madvise(b, NR * self->page, MADV_KEEPONFORK) &&
			KIN(&self->f, filled(b, NR, 1, 3)) > 0 &&
			move_to_node(0, b, NR, 1) == NR && filled(b, NR, 1, 3);
	}));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(b, NR, 1, 1));
}

/*
 * A child's VMA that is unfaulted and yet not natural, and then gets the
 * anon_vma of a natural neighbour that is moved behind it.
 */
TEST_F(rmap, wiped_child_of_a_moved_vma_merges)
{
	char *a = room(2 + 2), *b = room(2 + 2);

	ASSERT_NE(a, NULL);
	ASSERT_NE(b, NULL);
	ASSERT_EQ(map_at(a, 2 * self->page), a);
	fill(a, 2, 1, 1);
	ASSERT_EQ(map_at(a + 2 * self->page, 2 * self->page), a + 2 * self->page);
	ASSERT_EQ(mremap(a, 2 * self->page, 2 * self->page, MREMAP_MAYMOVE | MREMAP_FIXED, b), b);
	ASSERT_EQ(madvise(b, 2 * self->page, MADV_WIPEONFORK), 0);
	ASSERT_EQ(madvise(a + 2 * self->page, 2 * self->page, MADV_WIPEONFORK), 0);
	KIN(&self->f, ({
		fill(a + 2 * self->page, 2, 1, 2);
		mremap(a + 2 * self->page, 2 * self->page, 2 * self->page,
		       MREMAP_MAYMOVE | MREMAP_FIXED, b + 2 * self->page) == b + 2 * self->page &&
			count_vmas(b, b + 4 * self->page) == 1 &&
			(!self->lazy || !strncmp(inside_vma(0, b), "linked", 6)) &&
			fill(b, 2, 1, 3) && filled(b + 2 * self->page, 2, 1, 2) &&
			!madvise(b, 4 * self->page, MADV_KEEPONFORK) &&
			move_to_node(0, b, 4, 1) == 4 && KIN(&self->f, filled(b, 2, 1, 3)) > 0;
	}));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
}

/*
 * NR pages that were faulted beside NR that were not, below them or above, become one VMA: the
 * latter get the anon_vma by that, and not by a fault. NULL unless that went well.
 */
static char *merge_with_unfaulted(size_t page, bool lazy, bool below)
{
	size_t half = NR * page;
	/* With a page on each side that keeps other neighbours away. */
	char *all = mmap(NULL, 2 * half + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *area = all + page, *faulted = area + (below ? half : 0);
	char *other = area + (below ? 0 : half);

	if (all == MAP_FAILED || mprotect(other, half, PROT_READ | PROT_WRITE) ||
	    mprotect(faulted, half, PROT_READ | PROT_WRITE | PROT_EXEC))
		return NULL;
	fill(faulted, NR, 1, 1);
	if (lazy && strcmp(inside_vma(0, other), "unfaulted"))
		return NULL;
	if (mprotect(faulted, half, PROT_READ | PROT_WRITE) ||
	    count_vmas(area, area + 2 * half) != 1)
		return NULL;
	if (lazy && strcmp(inside_vma(0, other), "lazy"))
		return NULL;
	fill(other, NR, 1, 2);
	return filled(faulted, NR, 1, 1) ? faulted : NULL;
}

TEST_F(rmap, merges_with_an_unfaulted_neighbour)
{
	for (int below = 0; below < 2; below++) {
		/* One before fork, one of the parent behind it, one of the child's own. */
		char *alone = merge_with_unfaulted(self->page, self->lazy, below), *later;
		long other = (below ? -1 : 1) * (long)(NR * self->page);

		ASSERT_NE(alone, NULL);
		KIN(&self->f, ({
			char *own = merge_with_unfaulted(self->page, self->lazy, below);

			own && filled(alone, NR, 1, 1) && filled(alone + other, NR, 1, 2) &&
				KIN(&self->f, filled(own, NR, 1, 1) &&
				    filled(own + other, NR, 1, 2)) > 0 &&
				move_to_node(0, own + other, NR, 1) == NR;
		}));
		ASSERT_TRUE(family_await(&self->f, 2));
		later = merge_with_unfaulted(self->page, self->lazy, below);
		ASSERT_NE(later, NULL);
		EXPECT_SOUND();
		EXPECT_EQ(move_to_node(0, alone + other, NR, 1), NR);
		EXPECT_EQ(move_to_node(0, later + other, NR, 1), NR);
		KIN(&self->f, filled(later, NR, 1, 1) && filled(later + other, NR, 1, 2));
		ASSERT_TRUE(family_await(&self->f, 1));
		EXPECT_SOUND();
		EXPECT_TRUE(filled(alone + other, NR, 1, 2));
	}
}

TEST_F(rmap, madvise_in_a_family)
{
	char *area = map_at(NULL, 8 * NR * self->page);

	ASSERT_NE(area, NULL);
	fill(area, 8 * NR, 1, 1);
	ASSERT_EQ(madvise(area + NR * self->page, NR * self->page, MADV_DONTFORK), 0);
	ASSERT_EQ(madvise(area + 2 * NR * self->page, NR * self->page, MADV_WIPEONFORK), 0);
	KIN(&self->f, fill(area + 2 * NR * self->page, NR, 2, 5) &&
	    !madvise(area, NR * self->page, MADV_DONTNEED) && fill(area, NR, 3, 6));
	KIN(&self->f, !madvise(area + 3 * NR * self->page, NR * self->page, MADV_FREE) &&
	    !madvise(area + 4 * NR * self->page, NR * self->page, MADV_GUARD_INSTALL) &&
	    !madvise(area + 4 * NR * self->page, NR * self->page, MADV_GUARD_REMOVE) &&
	    !madvise(area + 4 * NR * self->page, NR * self->page, MADV_POPULATE_WRITE));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	ASSERT_EQ(madvise(area, 8 * NR * self->page, MADV_DONTNEED), 0);
	EXPECT_SOUND();
}

/* The stack that exec has made. */
static bool stack_is_at(char **low, char **high)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[256];
	bool found = false;

	while (maps && fgets(line, sizeof(line), maps))
		if (strstr(line, "[stack]"))
			found = sscanf(line, "%p-%p", (void **)low, (void **)high) == 2;
	if (maps)
		fclose(maps);
	return found;
}

/* It grows by half a megabyte, more than exec gives it; its pages move, and a child has them. */
TEST_F(rmap, grown_stack_of_exec_is_linked)
{
	const size_t page = self->page, size = MIB / 2, nr = size / page;
	char *area, *low, *grown, *high;

	ASSERT_TRUE(stack_is_at(&low, &high));
	/* Made here, and not where the function begins. */
	char deep[size + 16 * page];

	/* From above, as a stack is used. */
	for (long i = sizeof(deep) - 1; i >= 0; i -= 256)
		*(volatile char *)&deep[i] = 3;
	area = (char *)(((uintptr_t)deep + page - 1) & -page);
	ASSERT_TRUE(stack_is_at(&grown, &high));
	EXPECT_LT(grown, low);
	fill(area, nr, 1, 6);
	if (lazy_mode())
		EXPECT_STREQ(inside_vma(0, area), "linked moved");
	for (int node = 1; node >= 0; node--)
		EXPECT_EQ(move_to_node(0, area, nr, node), nr);
	KIN(&self->f, filled(area, nr, 1, 6) && fill(area, nr, 2, 7) &&
	    move_to_node(0, area, nr, 1) == (int)nr && filled(area, nr, 2, 7));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_EQ(move_to_node(0, area, nr, 0), nr);
	EXPECT_TRUE(filled(area, nr, 1, 6));
	EXPECT_SOUND();
}

TEST_F(rmap, private_file_stack_and_brk)
{
	int fd = open("/tmp/rmap-file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *area, *end = sbrk(0);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(ftruncate(fd, NR * self->page), 0);
	area = mmap(NULL, NR / 2 * self->page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd,
		    NR / 2 * self->page);
	ASSERT_NE(area, MAP_FAILED);
	fill(area, NR / 2, 2, 1);
	ASSERT_EQ(brk(end + NR * self->page), 0);
	fill(end, NR, 1, 2);
	KIN(&self->f, ({
		char deep[NR * 4096];

		memset(deep, 3, sizeof(deep));
		__asm__ volatile("" : : "r"(deep) : "memory");
		filled(area, NR / 2, 2, 1) && filled(end, NR, 1, 2) && fill(area, NR / 2, 1, 4) &&
			!brk(end + 2 * self->page);
	}));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	ASSERT_EQ(brk(end), 0);
	EXPECT_SOUND();
	close(fd);
	unlink("/tmp/rmap-file");
}

/* What perf has recorded in a buffer of @size bytes: the last mapping, or zeros. */
static void last_mapping(struct perf_event_mmap_page *ring, size_t size, uint64_t *addr,
			 uint64_t *len)
{
	const char *data = (const char *)ring + sysconf(_SC_PAGESIZE);
	uint64_t head = __atomic_load_n(&ring->data_head, __ATOMIC_ACQUIRE);

	*addr = *len = 0;
	for (uint64_t at = 0; at < head && head <= size;) {
		const struct perf_event_header *record = (const void *)(data + at);

		if (record->type == PERF_RECORD_MMAP) {
			/* pid and tid, address, length */
			memcpy(addr, data + at + sizeof(*record) + 8, 8);
			memcpy(len, data + at + sizeof(*record) + 16, 8);
		}
		at += record->size;
	}
}

/* A stack that grows is moved in its interval tree; perf, which may sleep, is told of it. */
TEST_F(rmap, grown_stack_is_told_to_perf)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE, .size = sizeof(attr), .config = PERF_COUNT_SW_DUMMY,
		.mmap = 1, .mmap_data = 1, .exclude_kernel = 1,
	};
	const size_t size = 8 * self->page;
	struct perf_event_mmap_page *ring;
	char *area, *top;
	uint64_t addr, len;
	int fd;

	/* Room for the gap that is kept below a stack, and then some. */
	area = mmap(NULL, 8 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(area, MAP_FAILED);
	ASSERT_EQ(munmap(area, 8 * MIB), 0);
	top = mmap(area + 7 * MIB, 2 * self->page, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	ASSERT_EQ(top, area + 7 * MIB);
	fill(top, 2, 1, 1);
	KIN(&self->f, fill(top - 6 * self->page, 6, 1, 9) && filled(top, 2, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	ASSERT_GE(fd, 0);
	ring = mmap(NULL, self->page + size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(ring, MAP_FAILED);
	for (int grown = 1; grown <= 8; grown *= 2) {
		fill(top - grown * self->page, 1, 1, grown);
		last_mapping(ring, size, &addr, &len);
		EXPECT_EQ((char *)(uintptr_t)addr, top - grown * self->page);
		EXPECT_EQ(len, (grown + 2) * self->page);
	}
	KIN(&self->f, filled(top - 8 * self->page, 1, 1, 8) && filled(top, 2, 1, 1) &&
	    fill(top - 12 * self->page, 12, 1, 5));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	munmap(ring, self->page + size);
	close(fd);
	/* A file is not mapped so: perf would allocate for its name. */
	fd = open("/tmp/rmap-stack", O_RDWR | O_CREAT | O_TRUNC, 0600);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(mmap(NULL, self->page, PROT_READ, MAP_PRIVATE | MAP_GROWSDOWN, fd, 0),
		  MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	close(fd);
	unlink("/tmp/rmap-stack");
	EXPECT_TRUE(filled(top, 2, 1, 1));
}

static void run_a_shell(void)
{
	execl("/bin/busybox", "sh", "-c", "x=$(echo a | cat); [ \"$x\" = a ]", (char *)NULL);
	_exit(127);
}

/* Programs are started while the stack that exec moves is faulted and forked. */
TEST_F(rmap, fork_and_exec)
{
	int status;

	for (int i = 0; i < 5; i++) {
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid)
			run_a_shell();
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		EXPECT_EQ(status, 0);
	}
	EXPECT_SOUND();
}

TEST_F(rmap, vfork_and_exec)
{
	int status;
	pid_t pid = vfork();

	if (!pid)
		run_a_shell();
	ASSERT_GE(pid, 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_SOUND();
}

/* Processes that share an mm without being threads. */
struct sharer {
	struct family *f;
	char *area, *away;
	bool moves;
};

/* The stack of a process that shares the mm. It is not given back while the process lives. */
static char *stack_top(void)
{
	char *stack = map_at(NULL, 1 << 16);

	return stack ? stack + (1 << 16) : NULL;
}

/* What it does there is done to both of them; what it forks is a child of the mm. */
static int share(void *arg)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	struct sharer *s = arg;

	if (!filled(s->area, NR, 1, 1))
		return 1;
	fill(s->area, NR, 2, 1);
	if (s->moves && mremap(s->area + page, page, page, MREMAP_MAYMOVE | MREMAP_FIXED,
			       s->away) != s->away)
		return 2;
	fill(s->away, 1, 1, 8);
	if (KIN(s->f, filled(s->away, 1, 1, 8) && fill(s->area + 8 * page, NR - 8, 3, 50)) < 0)
		return 3;
	return 0;
}

static int share_and_stay(void *arg)
{
	struct sharer *s = arg;
	char c;
	int err = share(arg);

	close(s->f->go[1]);
	if (err || write(s->f->ready[1], err ? "x" : "", 1) != 1)
		return err ?: 4;
	while (read(s->f->go[0], &c, 1) < 0 && errno == EINTR)
		;
	return 0;
}

TEST_F(rmap, clone_with_the_mm)
{
	struct sharer s = { &self->f, map_at(NULL, NR * self->page), room(1), true };
	struct sharer vforked = { &self->f, map_at(NULL, NR * self->page), room(1), false };
	char *stack = stack_top();
	int status;
	pid_t pid;

	ASSERT_NE(s.area, NULL);
	ASSERT_NE(stack, NULL);
	ASSERT_EQ(map_at(vforked.away, self->page), vforked.away);
	fill(s.area, NR, 1, 1);
	fill(vforked.area, NR, 1, 1);
	KIN(&self->f, filled(s.area, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	/* It is gone soon; who is ready is its child. */
	pid = clone(share, stack, CLONE_VM | SIGCHLD, &s);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(s.away, 1, 1, 8));
	EXPECT_TRUE(filled(s.area + 8 * self->page, NR - 8, 1, 8 * 7 + 1));
	/* The parent waits until it is done. */
	pid = clone(share, stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &vforked);
	ASSERT_GT(pid, 0);
	EXPECT_TRUE(filled(vforked.away, 1, 1, 8));
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_SOUND();
	/* What they leave is an mm as any other: it forks. */
	KIN(&self->f, filled(s.away, 1, 1, 8) && filled(vforked.away, 1, 1, 8) &&
	    KIN(&self->f, fill(s.area, NR, 5, 3)) > 0);
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
}

/* Whose mm it is goes first; who shares it lives on, forks, and moves what is in it. */
TEST_F(rmap, clone_with_the_mm_outlives_its_parent)
{
	for (int i = 0; i < 2; i++) {
		pid_t pid = fork();
		int status;

		ASSERT_GE(pid, 0);
		if (!pid) {
			static struct sharer s;

			s = (struct sharer){ &self->f, map_at(NULL, NR * self->page), room(1), i };
			if (!s.area || (!i && map_at(s.away, self->page) != s.away))
				_exit(1);
			fill(s.area, NR, 1, 1);
			_exit(clone(share_and_stay, stack_top(),
				    CLONE_VM | CLONE_FS | CLONE_SIGHAND | SIGCHLD, &s) < 0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
	}
	ASSERT_TRUE(family_await(&self->f, 4));
	EXPECT_SOUND();
}

TEST_F(rmap, clone3)
{
	char *area = map_at(NULL, NR * self->page);
	char *const shell[] = { "sh", "-c", "x=$(echo a | cat); [ \"$x\" = a ]", NULL };
	int status, pidfd = -1;
	struct clone_args args = {
		.flags = CLONE_CLEAR_SIGHAND | CLONE_PIDFD, .pidfd = (uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};
	pid_t pid;

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	/* A fork in all but name, and a child of it by fork. */
	pid = syscall(SYS_clone3, &args, sizeof(args));
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(!filled(area, NR, 1, 1) || !fill(area, NR, 4, 9) ||
		      KIN(&self->f, filled(area, NR, 4, 9)) < 0);
	ASSERT_GE(pidfd, 0);
	close(pidfd);
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_SOUND();
	/* With the mm until it execs, and the parent waits: clone3 where the C library has it. */
	ASSERT_EQ(posix_spawn(&pid, "/bin/busybox", NULL, NULL, shell, NULL), 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 1));
}

TEST_F(rmap, swap_out_and_in_across_forks)
{
	char *area = map_at(NULL, 4 * NR * self->page);

	if (!have_swap())
		SKIP(return, "no zram to swap to");
	ASSERT_NE(area, NULL);
	fill(area, 4 * NR, 1, 1);
	ASSERT_EQ(madvise(area, 4 * NR * self->page, MADV_PAGEOUT), 0);
	EXPECT_SOUND();
	EXPECT_GT(nr_swapped(area, 4 * NR), 0);
	/* Entries that fork copies; the child swaps in first, the parent maps what it brought. */
	KIN(&self->f, fill(area, 4 * NR, 3, 9));
	KIN(&self->f, filled(area, 4 * NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 2));
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, 4 * NR, 1, 1));
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	ASSERT_EQ(madvise(area, 4 * NR * self->page, MADV_PAGEOUT), 0);
	fill(area, 4 * NR, 2, 4);
	EXPECT_SOUND();
}

/*
 * What was shared before it was swapped out is shared when all have swapped it in, whoever
 * is the first: the parent, whose root the child's VMA is below, or the child, or its child.
 */
TEST_F(rmap, swapped_pages_stay_shared)
{
	const size_t nr = 4 * NR;
	int mine = open("/proc/self/pagemap", O_RDONLY);
	volatile pid_t *youngest = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
					MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (!have_swap())
		SKIP(return, "no zram to swap to");
	ASSERT_GE(mine, 0);
	ASSERT_NE(youngest, MAP_FAILED);
	/* How many generations are below the first one to swap in. */
	for (int first = 0; first < 3; first++) {
		char *area = map_at(NULL, nr * self->page), path[64], c;
		int others, shared = 0, turn[2];
		pid_t pid;

		ASSERT_NE(area, NULL);
		ASSERT_EQ(pipe(turn), 0);
		fill(area, nr, 1, 1);
		ASSERT_EQ(madvise(area, nr * self->page, MADV_PAGEOUT), 0);
		ASSERT_GT(nr_swapped(area, nr), nr / 2);
		/* fork copies the entries. */
		pid = KIN(&self->f,
			  (first < 2 ||
			   (*youngest = KIN(&self->f, filled(area, nr, 1, 1))) > 0) &&
			  (first == 1 || read(turn[0], &c, 1) == 1) && filled(area, nr, 1, 1));
		ASSERT_GT(pid, 0);
		if (first)
			ASSERT_TRUE(family_await(&self->f, 1));
		EXPECT_TRUE(filled(area, nr, 1, 1));
		ASSERT_EQ(write(turn[1], "", 1), 1);
		if (first != 1)
			ASSERT_TRUE(family_await(&self->f, 1));
		snprintf(path, sizeof(path), "/proc/%d/pagemap", first == 2 ? *youngest : pid);
		others = open(path, O_RDONLY);
		ASSERT_GE(others, 0);
		for (size_t i = 0; i < nr; i++) {
			const off_t at = ((uintptr_t)area / self->page + i) * 8;
			uint64_t a = 0, b = 1;

			ASSERT_EQ(pread(mine, &a, 8, at), 8);
			ASSERT_EQ(pread(others, &b, 8, at), 8);
			shared += a >> 63 && a << 9 == b << 9;
		}
		close(others);
		TH_LOG("generation %d first: %d of %zu pages are shared", first, shared, nr);
		EXPECT_GT(shared, nr / 2);
		EXPECT_SOUND();
	}
	close(mine);
}

/* Reclaim of pages that a family shares; each of them then swaps in what it wants. */
TEST_F(rmap, reclaim_of_shared_pages)
{
	char *area = map_at(NULL, 8 * NR * self->page);
	long swapped = 0;

	if (!have_swap())
		SKIP(return, "no zram to swap to");
	ASSERT_TRUE(enter_cgroup());
	ASSERT_NE(area, NULL);
	fill(area, 8 * NR, 1, 1);
	for (int i = 0; i < 4; i++)
		KIN(&self->f, KIN(&self->f, fill(area, 8 * NR, 16, i)) > 0);
	ASSERT_TRUE(family_await(&self->f, 8));
	for (int i = 0; i < 50 && swapped < NR; i++) {
		reclaim_memory("1M");
		swapped = nr_swapped(area, 8 * NR);
	}
	TH_LOG("%ld of %d pages in swap", swapped, 8 * NR);
	EXPECT_GE(swapped, NR);
	EXPECT_SOUND();
	KIN(&self->f, filled(area, 8 * NR, 1, 1) && fill(area, 8 * NR, 3, 9));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	reclaim_memory("4M");
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, 8 * NR, 1, 1));
}

/* Who swaps in first is not whom the folio is from, and goes first, too. */
TEST_F(rmap, child_swaps_in_first_and_goes)
{
	char *area = map_at(NULL, NR * self->page);
	int status;
	pid_t pid;

	if (!have_swap())
		SKIP(return, "no zram to swap to");
	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	ASSERT_EQ(madvise(area, NR * self->page, MADV_PAGEOUT), 0);
	EXPECT_GT(nr_swapped(area, NR), 0);
	/* One that keeps the entries shared. */
	KIN(&self->f, true);
	ASSERT_TRUE(family_await(&self->f, 1));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		int ok = filled(area, NR, 1, 1);

		/* Still in the swap cache when the next one maps it. */
		KIN(&self->f, filled(area, NR, 1, 1));
		usleep(50000);
		_exit(!ok);
	}
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_TRUE(filled(area, NR, 1, 1));
	EXPECT_SOUND();
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_SOUND();
	EXPECT_EQ(family_release(&self->f), 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 1));
}

TEST_F(rmap, swapoff_brings_all_back)
{
	char *area = map_at(NULL, NR * self->page);

	if (!have_swap())
		SKIP(return, "no zram to swap to");
	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	ASSERT_EQ(madvise(area, NR * self->page, MADV_PAGEOUT), 0);
	EXPECT_GT(nr_swapped(area, NR), 0);
	KIN(&self->f, filled(area, NR / 2, 1, 1));
	KIN(&self->f, true);
	ASSERT_TRUE(family_await(&self->f, 2));
	ASSERT_EQ(swapoff("/dev/zram0"), 0);
	EXPECT_EQ(nr_swapped(area, NR), 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 1));
	ASSERT_EQ(swapon("/dev/zram0", 0), 0);
}

static bool split_all(void)
{
	return !avl_write("/sys/kernel/debug/split_huge_pages", "1", 1);
}

TEST_F(rmap, huge_pages)
{
	char *area = map_aligned(8 * MIB, 2 * MIB);
	struct verdict v;

	ASSERT_NE(area, NULL);
	ASSERT_EQ(madvise(area, 8 * MIB, MADV_HUGEPAGE), 0);
	fill(area, 8 * MIB / self->page, 1, 1);
	KIN(&self->f, filled(area, 8 * MIB / self->page, 1, 1));
	KIN(&self->f, fill(area, 8 * MIB / self->page, 600, 9));
	ASSERT_TRUE(family_await(&self->f, 2));
	ASSERT_EQ(oracle(&v), 0);
	EXPECT_GE(v.large, 4);
	EXPECT_SOUND();
	/* Partly unmapped, split across VMAs, moved by less than its size. */
	ASSERT_EQ(munmap(area + MIB, 16 * self->page), 0);
	ASSERT_EQ(mprotect(area + 3 * MIB, 2 * MIB, PROT_READ), 0);
	ASSERT_NE(mremap(area + 6 * MIB, MIB, MIB, MREMAP_MAYMOVE | MREMAP_FIXED,
			 room(MIB / self->page)), MAP_FAILED);
	KIN(&self->f, filled(area + 2 * MIB, 1, 1, 2 * MIB / self->page * 7 + 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	ASSERT_TRUE(split_all());
	EXPECT_SOUND();
	/* One VMA again. */
	ASSERT_EQ(mprotect(area + 3 * MIB, 2 * MIB, PROT_READ | PROT_WRITE), 0);
	/* Compaction may have one of the pages just now. */
	for (int i = 0; i < 100 && madvise(area + 4 * MIB, 2 * MIB, MADV_COLLAPSE); i++) {
		ASSERT_EQ(errno, EAGAIN);
		usleep(10000);
	}
	ASSERT_EQ(oracle(&v), 0);
	EXPECT_GE(v.large, 1);
	EXPECT_SOUND();
}

TEST_F(rmap, collapse_in_a_family)
{
	char *area = map_aligned(4 * MIB, 2 * MIB);
	size_t nr = 4 * MIB / self->page;

	ASSERT_NE(area, NULL);
	ASSERT_EQ(madvise(area, 4 * MIB, MADV_NOHUGEPAGE), 0);
	fill(area, nr, 1, 1);
	ASSERT_EQ(madvise(area, 4 * MIB, MADV_HUGEPAGE), 0);
	KIN(&self->f, filled(area, nr, 1, 1) && fill(area, nr, 1, 4) &&
	    !madvise(area, 4 * MIB, MADV_COLLAPSE) && filled(area, nr, 1, 4));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	ASSERT_EQ(madvise(area, 4 * MIB, MADV_COLLAPSE), 0);
	EXPECT_TRUE(filled(area, nr, 1, 1));
	KIN(&self->f, filled(area, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
	ASSERT_TRUE(split_all());
	EXPECT_SOUND();
}

TEST_F(rmap, migration_of_exclusive_and_shared_pages)
{
	char *area = map_at(NULL, 4 * NR * self->page);

	ASSERT_NE(area, NULL);
	fill(area, 4 * NR, 1, 1);
	for (int round = 0; round < 3; round++) {
		for (int node = 0; node < 2; node++) {
			EXPECT_EQ(move_to_node(0, area, 4 * NR, node), 4 * NR);
			EXPECT_SOUND();
		}
		KIN(&self->f, filled(area, 4 * NR, 1, 1) && (round || fill(area, 4 * NR, 5, 2)));
		ASSERT_TRUE(family_await(&self->f, 1));
	}
	ASSERT_EQ(avl_write("/proc/sys/vm/compact_memory", "1", 1), 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, 4 * NR, 1, 1));
}

static bool told(int fd)
{
	char c;

	return read(fd, &c, 1) == 1;
}

/* Takes a VMA away, or maps another one in its place. */
static bool vacate(char *area, size_t size, bool unmap)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;

	if (unmap)
		return !munmap(area, size);
	return mmap(area, size, PROT_NONE, flags, -1, 0) == area;
}

static bool occupy(char *area, size_t size, bool unmapped)
{
	if (unmapped)
		return map_at(area, size);
	return !mprotect(area, size, PROT_READ | PROT_WRITE);
}

/*
 * Walks first try the VMA that was found last. It is unmapped, or another one is
 * mapped in its place, and its memory, the next that this CPU hands out, becomes a
 * VMA of another process at the same address.
 */
TEST_F(rmap, vma_found_last_is_gone)
{
	char *area = map_at(NULL, 3 * self->page);
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	ASSERT_EQ(sched_setaffinity(0, sizeof(set), &set), 0);
	ASSERT_NE(area, NULL);
	/* A hole, whose neighbours do not merge with what is mapped in it. */
	ASSERT_EQ(mprotect(area, 3 * self->page, PROT_NONE), 0);
	area += self->page;
	for (int round = 0; round < 8; round++) {
		int go[2];

		ASSERT_EQ(munmap(area, self->page), 0);
		ASSERT_EQ(pipe(go), 0);
		KIN(&self->f, told(go[0]) && map_at(area, self->page) && fill(area, 1, 1, 2));
		ASSERT_NE(map_at(area, self->page), NULL);
		fill(area, 1, 1, 1);
		/* There and back, which walks to this page and no other. */
		EXPECT_EQ(move_to_node(0, area, 1, 1), 1);
		EXPECT_EQ(move_to_node(0, area, 1, 0), 1);
		ASSERT_TRUE(vacate(area, self->page, round % 2));
		ASSERT_EQ(write(go[1], "", 1), 1);
		ASSERT_TRUE(family_await(&self->f, 1));
		ASSERT_TRUE(occupy(area, self->page, round % 2));
		fill(area, 1, 1, 3);
		EXPECT_EQ(move_to_node(0, area, 1, 1), 1);
		EXPECT_EQ(move_to_node(0, area, 1, 0), 1);
		EXPECT_TRUE(filled(area, 1, 1, 3));
		close(go[0]);
		close(go[1]);
	}
	EXPECT_SOUND();
}

TEST_F(rmap, migration_of_huge_pages)
{
	char *area = map_aligned(4 * MIB, 2 * MIB);
	size_t nr = 4 * MIB / self->page;

	ASSERT_NE(area, NULL);
	ASSERT_EQ(madvise(area, 4 * MIB, MADV_HUGEPAGE), 0);
	fill(area, nr, 1, 1);
	for (int round = 0; round < 2; round++) {
		for (int node = 0; node < 2; node++) {
			EXPECT_GT(move_to_node(0, area, nr, node), 0);
			EXPECT_SOUND();
		}
		KIN(&self->f, filled(area, nr, 1, 1) && fill(area, nr, 700, 2));
		ASSERT_TRUE(family_await(&self->f, 1));
	}
	EXPECT_TRUE(filled(area, nr, 1, 1));
}

/*
 * Some pages of a folio have one mapping each, which is exclusive, the others one more in a child.
 * To have restored the former is no reason to stop.
 */
TEST_F(rmap, part_of_a_huge_page_is_inherited)
{
	const size_t nr = 2 * MIB / self->page;

	for (int upper = 0; upper < 2; upper++) {
		char *area = map_aligned(2 * MIB, 2 * MIB);
		struct verdict v;

		ASSERT_NE(area, NULL);
		ASSERT_EQ(madvise(area, 2 * MIB, MADV_HUGEPAGE), 0);
		fill(area, nr, 1, 1);
		ASSERT_EQ(madvise(area + upper * MIB, MIB, MADV_DONTFORK), 0);
		KIN(&self->f, filled(area + !upper * MIB, nr / 2, 1, !upper * nr / 2 * 7 + 1));
		ASSERT_TRUE(family_await(&self->f, 1));
		ASSERT_EQ(oracle(&v), 0);
		EXPECT_GT(v.large, 0);
		for (int node = 0; node < 2; node++) {
			EXPECT_GT(move_to_node(0, area, nr, node), 0);
			ASSERT_EQ(oracle(&v), 0);
			/* Who looks at a page whose entry is left waits without end. */
			ASSERT_EQ(v.migration, 0);
			ASSERT_EQ(v.mismatch, 0);
		}
		EXPECT_TRUE(filled(area, nr, 1, 1));
		KIN(&self->f, filled(area + !upper * MIB, nr / 2, 1, !upper * nr / 2 * 7 + 1));
		ASSERT_TRUE(family_await(&self->f, 1));
	}
	EXPECT_SOUND();
}

/* KSM merges what a child shares with its parent, and so finds it where it names another root. */
TEST_F(rmap, ksm_in_a_child)
{
	char *area = map_at(NULL, 2 * NR * self->page), path[64], text[32] = "";
	pid_t pid;

	ASSERT_NE(area, NULL);
	memset(area, 0x6b, 2 * NR * self->page);
	avl_write("/sys/kernel/mm/ksm/pages_to_scan", "10000", 5);
	avl_write("/sys/kernel/mm/ksm/sleep_millisecs", "1", 1);
	pid = KIN(&self->f, !madvise(area, 2 * NR * self->page, MADV_MERGEABLE));
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_TRUE(ksm_run("1"));
	ASSERT_TRUE(ksm_scans());
	ASSERT_TRUE(ksm_scans());
	snprintf(path, sizeof(path), "/proc/%d/ksm_merging_pages", pid);
	ASSERT_GT(avl_read(path, text, sizeof(text)), 0);
	TH_LOG("%ld of %d pages are merged", strtol(text, NULL, 10), 2 * NR);
	EXPECT_GT(strtol(text, NULL, 10), NR);
	/* One of the pages became a page of KSM as it was, and this process has it, too. */
	EXPECT_SOUND_BUT_KSM();
	ASSERT_TRUE(ksm_run("2"));
	EXPECT_SOUND_BUT_KSM();
	ksm_run("0");
	ASSERT_EQ(munmap(area, 2 * NR * self->page), 0);
	EXPECT_SOUND();
}

TEST_F(rmap, ksm_across_forks)
{
	char *area = map_at(NULL, 2 * NR * self->page);
	struct verdict v;

	ASSERT_NE(area, NULL);
	memset(area, 0x5a, 2 * NR * self->page);
	ASSERT_EQ(madvise(area, 2 * NR * self->page, MADV_MERGEABLE), 0);
	avl_write("/sys/kernel/mm/ksm/pages_to_scan", "10000", 5);
	avl_write("/sys/kernel/mm/ksm/sleep_millisecs", "1", 1);
	ASSERT_TRUE(ksm_run("1"));
	ASSERT_TRUE(ksm_scans());
	KIN(&self->f, area[0] == 0x5a && fill(area, 2 * NR, 7, 3));
	KIN(&self->f, area[0] == 0x5a);
	ASSERT_TRUE(family_await(&self->f, 2));
	ASSERT_TRUE(ksm_scans());
	ASSERT_EQ(oracle(&v), 0);
	EXPECT_GT(v.ksm, 0);
	EXPECT_SOUND();
	/* A KSM page that a walk does not find everywhere stays, as on any kernel. */
	EXPECT_GE(move_to_node(0, area, 2 * NR, 1), 0);
	ASSERT_EQ(avl_write("/proc/sys/vm/compact_memory", "1", 1), 0);
	EXPECT_SOUND();
	ASSERT_EQ(madvise(area, NR * self->page, MADV_UNMERGEABLE), 0);
	EXPECT_SOUND();
	ASSERT_TRUE(ksm_run("2"));
	EXPECT_SOUND();
	EXPECT_EQ(area[self->page], 0x5a);
	ksm_run("0");
}

TEST_F(rmap, soft_and_hard_memory_failure)
{
	char *area = map_at(NULL, NR * self->page), path[64];
	int status, kin;
	pid_t pid;

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	pid = KIN(&self->f, filled(area, NR, 1, 1));
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(family_await(&self->f, 1));
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	kin = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT_EQ(madvise(area, 2 * self->page, MADV_SOFT_OFFLINE), 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, NR, 1, 1));
	/* What the child has, too, is seen through its memory. */
	ASSERT_GE(kin, 0);
	for (int i = 0; i < 2; i++) {
		char byte = 0;

		ASSERT_EQ(pread(kin, &byte, 1, (uintptr_t)area + i * self->page), 1);
		EXPECT_EQ(byte, area[i * self->page]);
	}
	close(kin);
	/* One who shares it with others injects it, and dies of it when it looks. */
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0);
		fill(area + 8 * self->page, 1, 1, 8);
		if (!fork()) {
			/* Shared by two, none of them the one that it is from. */
			usleep(300000);
			_exit(0);
		}
		if (madvise(area + 8 * self->page, self->page, MADV_HWPOISON))
			_exit(errno);
		*(volatile char *)(area + 8 * self->page);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) {
		TH_LOG("status %#x", status);
	}
	EXPECT_SOUND();
}

/* The page frame of what is at @at: pagemap tells none while it migrates. */
static bool frame_of(int pagemap, volatile char *at, uint64_t *frame)
{
	const size_t page = sysconf(_SC_PAGESIZE);

	for (int i = 0; i < 1000; i++) {
		(void)*at;
		if (pread(pagemap, frame, 8, (uintptr_t)at / page * 8) != 8)
			return false;
		if (*frame >> 63) {
			*frame &= (1ULL << 55) - 1;
			return true;
		}
		usleep(1000);
	}
	return false;
}

/* Whether a page is idle: 0 or 1; -1 if it has no bit, as the last frames of memory may not. */
static int is_idle(int bitmap, uint64_t frame)
{
	uint64_t bits;

	if (pread(bitmap, &bits, 8, frame / 64 * 8) != 8)
		return -1;
	return bits >> (frame % 64) & 1;
}

static bool mark_idle(int bitmap, uint64_t frame)
{
	const uint64_t bits = ~0ULL;

	return pwrite(bitmap, &bits, 8, frame / 64 * 8) == 8 && is_idle(bitmap, frame) >= 0;
}

TEST_F(rmap, idle_pages_and_pagemap)
{
	char *area = map_at(NULL, NR * self->page);
	int pagemap, bitmap, checked = 0;

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	KIN(&self->f, filled(area, NR, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	bitmap = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
	ASSERT_GE(pagemap, 0);
	ASSERT_GE(bitmap, 0);
	for (char *at = area; at < area + NR * self->page && !checked; at += self->page) {
		const char filling = (at - area) / self->page * 7 + 1;
		uint64_t frame;

		ASSERT_TRUE(frame_of(pagemap, at, &frame));
		if (!mark_idle(bitmap, frame))
			continue;
		EXPECT_EQ(is_idle(bitmap, frame), 1);
		/* The TLB may have it as accessed: only taking a right away flushes that. */
		ASSERT_EQ(mprotect(area, NR * self->page, PROT_NONE), 0);
		ASSERT_EQ(mprotect(area, NR * self->page, PROT_READ | PROT_WRITE), 0);
		EXPECT_EQ(*(volatile char *)at, filling);
		EXPECT_EQ(is_idle(bitmap, frame), 0);
		/* A walk of lazy roots comes to the youngest child last: its use alone counts. */
		ASSERT_TRUE(mark_idle(bitmap, frame));
		EXPECT_EQ(is_idle(bitmap, frame), 1);
		KIN(&self->f, *(volatile char *)at == filling);
		ASSERT_TRUE(family_await(&self->f, 1));
		EXPECT_EQ(is_idle(bitmap, frame), 0);
		checked++;
	}
	EXPECT_EQ(checked, 1);
	EXPECT_SOUND();
	close(pagemap);
	close(bitmap);
}

TEST_F(rmap, mlock_and_access_by_others)
{
	char *area = map_at(NULL, NR * self->page), byte;
	struct iovec local = { &byte, 1 }, remote = { area, 1 };
	pid_t pid;

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	pid = KIN(&self->f, !mlock(area, NR / 2 * self->page) && fill(area, NR, 2, 3));
	ASSERT_TRUE(family_await(&self->f, 1));
	byte = 99;
	EXPECT_EQ(process_vm_writev(pid, &local, 1, &remote, 1, 0), 1);
	EXPECT_SOUND();
	ASSERT_EQ(munlock(area, NR * self->page), 0);
	EXPECT_EQ(area[0], 1);
}

/* What mmu notifiers take when they are registered. */
TEST_F(rmap, all_locks_of_an_mm)
{
	char *area = map_at(NULL, NR * self->page), *moved;

	ASSERT_NE(area, NULL);
	fill(area, NR, 1, 1);
	moved = mremap(area, 4 * self->page, 4 * self->page, MREMAP_MAYMOVE | MREMAP_FIXED,
		       room(4));
	ASSERT_NE(moved, MAP_FAILED);
	EXPECT_EQ(avl_write(LOCK_ALL, "1", 1), 0);
	KIN(&self->f, !avl_write(LOCK_ALL, "1", 1) && fill(area + 8 * self->page, 4, 1, 3));
	ASSERT_TRUE(family_await(&self->f, 1));
	EXPECT_SOUND();
}

/* Of a child that goes on without the stack that exec has made. */
struct stackless {
	bool (*body)(void *arg);
	void *arg;
	pid_t pid;
};

static void *without_a_stack(void *arg)
{
	/* Here, and not where it comes from, which the child unmaps. */
	const struct stackless s = *(struct stackless *)arg;
	char *low, *high;
	pid_t pid;

	pid = stack_is_at(&low, &high) ? fork() : -1;
	if (!pid)
		_exit(munmap(low, high - low) || !s.body(s.arg));
	((struct stackless *)arg)->pid = pid;
	return NULL;
}

/*
 * A child that does @body without the stack that exec has made, and moved, so that it is Linked:
 * a thread forks the child, which stays on the stack of that. -1 on failure.
 */
static pid_t fork_without_a_stack(bool (*body)(void *arg), void *arg)
{
	struct stackless s = { body, arg, -1 };
	pthread_t thread;

	if (!pthread_create(&thread, NULL, without_a_stack, &s))
		pthread_join(thread, NULL);
	return s.pid;
}

static bool lock_all(void *milliseconds)
{
	return !avl_write(LOCK_ALL, milliseconds, strlen(milliseconds));
}

/* As long as it lives, from when it is told on. */
static bool be_busy(void *told)
{
	while (!*(volatile int *)told)
		usleep(1000);
	return lock_all("600000");
}

/* Again, by a process whose VMAs are all Lazy: a moved one leads to the lock of the root, too. */
TEST_F(rmap, all_locks_of_a_process_with_lazy_vmas_only)
{
	pid_t pid = fork_without_a_stack(lock_all, "1");
	int status;

	ASSERT_GT(pid, 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_SOUND();
}

static void *reclaim_a_little(void *done)
{
	reclaim_memory("256K");
	*(volatile int *)done = 1;
	return NULL;
}

/* Whether the process is inside write(). Not on the CPU, as it sleeps there. */
static bool is_writing(pid_t pid)
{
	char path[64], text[128];

	snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
	return avl_read(path, text, sizeof(text)) > 0 && strtol(text, NULL, 10) == SYS_write &&
	       text[0] >= '0' && text[0] <= '9';
}

/*
 * Reclaim asks all who map a page whether they have used it, and does not wait for the lock of one
 * of them, but goes on to the next.
 */
TEST_F(rmap, reclaim_passes_by_who_is_busy)
{
	const size_t nr = 4 * NR;
	const bool lazy = lazy_mode();
	char *area = map_at(NULL, nr * self->page);
	long skipped = 0, descended = 0, skips = 0, descents = 0;
	volatile int *told = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const time_t began = time(NULL);
	volatile int done = 0;
	cpu_set_t one;
	pthread_t thread;
	pid_t busy;
	int status;

	ASSERT_TRUE(have_swap());
	ASSERT_TRUE(enter_cgroup());
	ASSERT_NE(area, NULL);
	ASSERT_NE(told, MAP_FAILED);
	/* All pages on the lists of one node. */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
	fill(area, nr, 1, 1);
	/* The second of three children, with no other VMA than Lazy ones. */
	KIN(&self->f, filled(area, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	busy = fork_without_a_stack(be_busy, (void *)told);
	ASSERT_GT(busy, 0);
	KIN(&self->f, filled(area, nr, 1, 1));
	ASSERT_TRUE(family_await(&self->f, 1));
	ASSERT_TRUE(filled(area, nr, 1, 1));

	/* Without lazy roots it would hold the lock of all of the family. */
	if (lazy) {
		*told = 1;
		while (!is_writing(busy) && time(NULL) - began < 60)
			usleep(1000);
		ASSERT_TRUE(is_writing(busy));
		skipped = avl_counter("walk_skip");
		descended = avl_counter("walk_descend");
	}
	ASSERT_EQ(pthread_create(&thread, NULL, reclaim_a_little, (void *)&done), 0);
	/* It may unmap a page, for which it waits, before there are so many. */
	while (lazy && !done && skips < NR / 2 && time(NULL) - began < 90) {
		usleep(10000);
		skips = avl_counter("walk_skip") - skipped;
		descents = avl_counter("walk_descend") - descended;
	}
	if (lazy) {
		TH_LOG("%ld descents, %ld skipped, reclaim %s", descents, skips,
		       done ? "was done" : "went on");
		EXPECT_GE(skips, NR / 4);
		/* Of three each, and not two. The last walk may be under way. */
		EXPECT_GE(descents, 3 * (skips - 1));
	}
	/* It did nothing but hold the locks; reclaim may go on. */
	ASSERT_EQ(waitpid(busy, &status, WNOHANG), 0);
	ASSERT_EQ(kill(busy, SIGKILL), 0);
	ASSERT_EQ(waitpid(busy, &status, 0), busy);
	pthread_join(thread, NULL);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, nr, 1, 1));
}

struct shaker {
	char *area;
	size_t nr;
	volatile int stop;
	long moves;		/* after which some of the pages were where they should be */
};

static void *shake(void *arg)
{
	struct shaker *s = arg;

	for (int node = 0; !s->stop; node ^= 1) {
		if (move_to_node(0, s->area, s->nr, node) > 0)
			s->moves++;
	}
	return NULL;
}

/* What the threads below have in common; each slot is between pages that nobody may use. */
#define SLOT_PAGES 16
#define FAULTERS 2
struct crowd {
	char *slots;
	volatile int stop;
	int self;			/* the next thread's number */
	unsigned long faulted[FAULTERS], changed;
	volatile bool failed;
};

static char *slot(struct crowd *c, int i)
{
	return c->slots + (2 * i * SLOT_PAGES + 1) * sysconf(_SC_PAGESIZE);
}

/* Map, fault first, ask and unmap, in one's own slot. */
static void *fault_on(void *arg)
{
	struct crowd *c = arg;
	const int self = __atomic_fetch_add(&c->self, 1, __ATOMIC_RELAXED);
	const size_t page = sysconf(_SC_PAGESIZE);

	for (unsigned char seed = self; !c->stop && !c->failed; seed++) {
		char *at = map_at(slot(c, self), SLOT_PAGES * page);

		if (at != slot(c, self) || !fill(at, SLOT_PAGES, 1 + seed % 3, seed) ||
		    !filled(at, SLOT_PAGES, 1 + seed % 3, seed) ||
		    munmap(at, SLOT_PAGES * page))
			c->failed = true;
		c->faulted[self]++;
	}
	return NULL;
}

/* Split, merge, move away and home, in another one. */
static void *change(void *arg)
{
	struct crowd *c = arg;
	const size_t page = sysconf(_SC_PAGESIZE), size = SLOT_PAGES * page;
	char *home = slot(c, FAULTERS), *away = slot(c, FAULTERS + 1);

	if (map_at(home, size) != home)
		c->failed = true;
	for (unsigned char seed = 1; !c->stop && !c->failed; seed++) {
		bool good = fill(home, SLOT_PAGES, 1, seed) &&
			!mprotect(home + 4 * page, 4 * page, PROT_READ) &&
			filled(home, SLOT_PAGES, 1, seed) &&
			!mprotect(home + 4 * page, 4 * page, PROT_READ | PROT_WRITE) &&
			mremap(home, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, away) == away &&
			filled(away, SLOT_PAGES, 1, seed) &&
			mremap(away, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, home) == home &&
			!madvise(home, 2 * page, MADV_DONTNEED) && !home[0];

		if (!good)
			c->failed = true;
		c->changed++;
	}
	return NULL;
}

/*
 * Threads fault first and unmap, split, merge and move, and migrate pages, while another one of
 * their process forks: each child has what nobody changes, as it was, and may write to it.
 */
TEST_F_TIMEOUT(rmap, threads_fault_while_their_mm_changes, 300)
{
	struct crowd c = { 0 };
	const size_t nr = 64;
	char *still = map_at(NULL, nr * self->page);
	struct shaker s = { still, nr };
	pthread_t threads[FAULTERS + 2];
	const time_t began = time(NULL);
	int forks = 0;

	ASSERT_NE(still, NULL);
	c.slots = mmap(NULL, 2 * (FAULTERS + 2) * SLOT_PAGES * self->page, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(c.slots, MAP_FAILED);
	fill(still, nr, 1, 1);
	for (int i = 0; i < FAULTERS; i++)
		ASSERT_EQ(pthread_create(&threads[i], NULL, fault_on, &c), 0);
	ASSERT_EQ(pthread_create(&threads[FAULTERS], NULL, change, &c), 0);
	ASSERT_EQ(pthread_create(&threads[FAULTERS + 1], NULL, shake, &s), 0);
	/* Until each has done some of it, on a slow machine, too. */
	while (!c.failed && time(NULL) - began < 200 &&
	       (forks < 40 || time(NULL) - began < 4 || c.faulted[0] < 40 || c.faulted[1] < 40 ||
		c.changed < 40 || s.moves < 4)) {
		int status;
		const pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid)
			_exit(!filled(still, nr, 1, 1) || !fill(still, nr, 2, forks) ||
			      !filled(still, nr, 2, forks));
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
		forks++;
	}
	c.stop = 1;
	s.stop = 1;
	for (int i = 0; i < FAULTERS + 2; i++)
		pthread_join(threads[i], NULL);
	TH_LOG("%d forks, %lu and %lu rounds of faults, %lu of changes, %ld of migration", forks,
	       c.faulted[0], c.faulted[1], c.changed, s.moves);
	EXPECT_FALSE(c.failed);
	EXPECT_GE(forks, 40);
	EXPECT_GE(c.faulted[0], 40);
	EXPECT_GE(c.faulted[1], 40);
	EXPECT_GE(c.changed, 40);
	EXPECT_GT(s.moves, 0);
	EXPECT_TRUE(filled(still, nr, 1, 1));
	if (self->lazy) {
		EXPECT_STREQ(inside_vma(0, still), "lazy");
		/* Where it has been moved to and back. */
		EXPECT_STREQ(inside_vma(0, slot(&c, FAULTERS)), "linked");
	}
	EXPECT_SOUND();
}

/* Map, write to and unmap several VMAs at once, while another thread migrates their pages. */
static bool unmap_many(void *arg)
{
	const size_t size = 4 * MIB, page = sysconf(_SC_PAGESIZE);
	char *area = map_aligned(size, 2 * MIB);
	struct shaker s = { area, size / page };
	bool ok = area;
	pthread_t thread;

	if (!ok || pthread_create(&thread, NULL, shake, &s))
		return false;
	for (int i = 0; i < 20 && ok; i++) {
		ok = map_at(area, size) == area;
		madvise(area, size, i & 1 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		for (size_t p = 0; ok && p < size / page; p++)
			area[p * page] = i;
		/* The first one is small: what matters is behind it. */
		ok = ok && !mprotect(area, page, PROT_READ) &&
		     !mprotect(area + MIB, 2 * MIB, PROT_READ);
		usleep(1000 * (i % 7));
		ok = ok && !munmap(area, size);
	}
	s.stop = 1;
	pthread_join(thread, NULL);
	*(volatile long *)arg = s.moves;
	return ok && s.moves;
}

/* And with a root that has nothing but its VMA tree, and what is being unmapped. */
TEST_F_TIMEOUT(rmap, munmap_of_many_against_migration, 300)
{
	volatile long *moves = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t pid;

	ASSERT_NE(moves, MAP_FAILED);
	pid = fork_without_a_stack(unmap_many, (void *)moves);
	ASSERT_GT(pid, 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	TH_LOG("%ld rounds of migration", *moves);
	EXPECT_SOUND();
}

/* munmap of a large area against migration: the VMA leaves the tree long before its PTEs. */
TEST_F_TIMEOUT(rmap, munmap_against_migration, 300)
{
	const size_t size = 8 * MIB;
	char *area = map_aligned(size, 2 * MIB);
	struct shaker s = { area, size / self->page };
	pthread_t thread;

	ASSERT_NE(area, NULL);
	ASSERT_EQ(pthread_create(&thread, NULL, shake, &s), 0);
	for (int i = 0; i < 30; i++) {
		ASSERT_EQ(map_at(area, size), area);
		madvise(area, size, i & 1 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		for (size_t p = 0; p < size / self->page; p++)
			area[p * self->page] = i;
		usleep(1000 * (i % 7));
		if (i % 3 == 2)
			KIN(&self->f, area[self->page] == i && !munmap(area, size));
		ASSERT_EQ(munmap(area, size), 0);
	}
	ASSERT_TRUE(family_await(&self->f, 10));
	s.stop = 1;
	pthread_join(thread, NULL);
	TH_LOG("%ld rounds of migration", s.moves);
	EXPECT_GT(s.moves, 0);
	EXPECT_SOUND();
}

/* fork with a hole for MADV_DONTFORK against migration: the child's VMA tree is written to. */
TEST_F_TIMEOUT(rmap, fork_with_holes_against_migration, 300)
{
	const size_t nr = 256;
	char *area = map_at(NULL, nr * self->page);
	struct shaker s = { area, nr };
	pthread_t thread;

	ASSERT_NE(area, NULL);
	for (size_t i = 0; i < nr; i += 4)
		ASSERT_EQ(madvise(area + i * self->page, self->page, MADV_DONTFORK), 0);
	fill(area, nr, 1, 1);
	ASSERT_EQ(pthread_create(&thread, NULL, shake, &s), 0);
	for (int i = 0; i < 60; i++) {
		int status;
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid) {
			for (size_t p = 0; p < nr; p++)
				if (p % 4 && !filled(area + p * self->page, 1, 1, p * 7 + 1))
					_exit(1);
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
	}
	s.stop = 1;
	pthread_join(thread, NULL);
	TH_LOG("%ld rounds of migration", s.moves);
	EXPECT_GT(s.moves, 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, nr, 1, 1));
}

/* mremap against migration: page tables move from where a walk has been to where it has not. */
TEST_F_TIMEOUT(rmap, mremap_against_migration, 300)
{
	const size_t nr = 512, size = nr * self->page;
	char *here = map_at(NULL, 2 * size), *there = here + size;
	struct shaker s = { here, 2 * nr };
	pthread_t thread;

	ASSERT_NE(here, NULL);
	ASSERT_EQ(munmap(there, size), 0);
	fill(here, nr, 1, 1);
	ASSERT_EQ(pthread_create(&thread, NULL, shake, &s), 0);
	for (int i = 0; i < 120; i++) {
		char *from = i & 1 ? there : here, *to = i & 1 ? here : there;

		ASSERT_EQ(mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
		ASSERT_TRUE(filled(to, nr, 1, 1));
		if (i % 20 == 10)
			KIN(&self->f, filled(to, nr, 1, 1));
	}
	ASSERT_TRUE(family_await(&self->f, 6));
	s.stop = 1;
	pthread_join(thread, NULL);
	TH_LOG("%ld rounds of migration", s.moves);
	EXPECT_GT(s.moves, 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(here, nr, 1, 1));
}

/*
 * Half of a VMA home to a Lazy neighbour, with which it merges: a visit looks at the target, in
 * the VMA tree, before it looks at the source, in the interval tree. Linux sees that the source
 * begins at the lower page offset, takes that for the other order, and would not lock. Other VMAs
 * that were moved away from there before come in between, and make the time between the two looks
 * long. Less than a page table, which would be moved whole.
 */
TEST_F_TIMEOUT(rmap, moves_home_against_migration, 300)
{
	const size_t half = NR * self->page;
	const int others = 100;
	char *low = map_at(NULL, (8 + 2 * others) * half), *home = low + half;
	char *stays = low + 2 * half, *away = low + 5 * half;
	struct shaker s = { home, 2 * NR }, t = { away, 2 * NR };
	const time_t end = time(NULL) + 6;
	pthread_t threads[2];
	long moved = 0;

	ASSERT_NE(low, NULL);
	ASSERT_EQ(munmap(low + 3 * half, (5 + 2 * others) * half), 0);
	for (int i = 0; i < others; i++) {
		char *to = low + (8 + 2 * i) * half;

		home[0] = 1;
		ASSERT_EQ(mremap(home, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
		ASSERT_EQ(map_at(home, half), home);
	}
	fill(low, NR, 1, 1);
	fill(home, NR, 1, 2);
	fill(stays, NR, 1, 3);
	ASSERT_EQ(mremap(low, 2 * half, 2 * half, MREMAP_MAYMOVE | MREMAP_FIXED, away), away);
	/* Else the stack of a thread would be put below @stays, where half of it comes home to. */
	ASSERT_EQ(mmap(low, half, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), low);
	ASSERT_EQ(pthread_create(&threads[0], NULL, shake, &s), 0);
	ASSERT_EQ(pthread_create(&threads[1], NULL, shake, &t), 0);
	for (; time(NULL) < end || moved < 20; moved++) {
		ASSERT_EQ(mremap(away + half, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, home),
			  home);
		if (!moved)
			EXPECT_EQ(count_vmas(home, stays + half), 1);
		ASSERT_EQ(mremap(home, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, away + half),
			  away + half);
		if (moved % 16 == 0)
			ASSERT_TRUE(filled(away + half, NR, 1, 2));
	}
	s.stop = 1;
	t.stop = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	TH_LOG("%ld times there and back, %ld rounds of migration", moved, s.moves);
	EXPECT_GT(s.moves, 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(away, NR, 1, 1) && filled(away + half, NR, 1, 2) &&
		    filled(stays, NR, 1, 3));
}

/* Exit against migration of what is shared: migration entries go with the mm, or are found. */
TEST_F_TIMEOUT(rmap, exit_against_migration, 300)
{
	const size_t nr = 1024;
	char *area = map_at(NULL, nr * self->page);
	struct shaker s = { area, nr };
	pthread_t thread;

	ASSERT_NE(area, NULL);
	fill(area, nr, 1, 1);
	ASSERT_EQ(pthread_create(&thread, NULL, shake, &s), 0);
	for (int i = 0; i < 100; i++) {
		int status;
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid) {
			if (i % 3 == 0 && fork() < 0)
				_exit(1);
			_exit(!filled(area, nr, 1, 1));
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
	}
	s.stop = 1;
	pthread_join(thread, NULL);
	TH_LOG("%ld rounds of migration", s.moves);
	EXPECT_GT(s.moves, 0);
	EXPECT_SOUND();
	EXPECT_TRUE(filled(area, nr, 1, 1));
}

TEST_HARNESS_MAIN
