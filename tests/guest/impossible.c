// SPDX-License-Identifier: GPL-2.0
/*
 * A VMA in a state that no transition leads to: each kind of operation on it says so once, with
 * what was seen, and fails or does the least harm; all others go on, and the module stays. For
 * a guest of its own, whose console and whose taint show the reports.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include "inside.h"
#include "rmap.h"

#define NR 8
#define COPY "a VMA in no state to be copied: anon_vma Foreign, chain Empty"
#define UNLINK "a VMA cannot be in this state: anon_vma Foreign, chain Empty"

static size_t page;

/* In a child, whose root has a parent: false, and the errno, for what is not as it should be. */
static bool copies_fail_and_the_rest_goes_on(void)
{
	for (int i = 0; i < 2; i++) {
		/* Beside nothing that it could merge with. */
		char *room = mmap(NULL, (NR + 4) * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
				  -1, 0);
		char *area = map_at(room + page, NR * page), *away = area + (NR + 1) * page;

		if (!area || !fill(area, NR, 1, 1) ||
		    strncmp(inside_vma(0, area), "impossible ", 11))
			return false;
		/* A split, a move, a fork. */
		if (!mprotect(area, page, PROT_READ) || errno != ENOMEM ||
		    mremap(area, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, away) != MAP_FAILED ||
		    errno != ENOMEM ||
		    fork() >= 0 || errno != ENOMEM)
			return false;
		if (!filled(area, NR, 1, 1) || munmap(area, NR * page))
			return false;
	}
	/* Without it the child forks as ever. */
	return true;
}

TEST(is_reported_once_and_survived)
{
	struct family f;
	int status;
	pid_t pid;

	page = sysconf(_SC_PAGESIZE);
	ASSERT_EQ(family_init(&f), 0);
	ASSERT_EQ(avl_log_mark("avl: impossible"), 0);
	ASSERT_EQ(avl_load("test_break=2"), 0);
	/* One that has a root, and stays; its child, whose VMAs get that. */
	KIN(&f, ({
		char *shared = map_at(NULL, NR * page);

		fill(shared, NR, 1, 3);
		pid = fork();
		if (!pid)
			_exit(!copies_fail_and_the_rest_goes_on() || !filled(shared, NR, 1, 3));
		waitpid(pid, &status, 0) == pid && !status && filled(shared, NR, 1, 3);
	}));
	ASSERT_TRUE(family_await(&f, 1));
	EXPECT_EQ(avl_log_count("avl: impossible", COPY), 1);
	EXPECT_EQ(avl_log_count("avl: impossible", UNLINK), 1);
	/* Each of them was counted, though. */
	EXPECT_GE(avl_counter("refused"), 2 * 4);
	EXPECT_SOUND();
	/* The others are as lazy as before. */
	EXPECT_GT(KIN(&f, ({
		char *area = map_at(NULL, NR * page);

		fill(area, NR, 1, 2) && !strcmp(inside_vma(0, area), "lazy") &&
			move_to_node(0, area, NR, 1) == NR && filled(area, NR, 1, 2);
	})), 0);
	EXPECT_TRUE(family_await(&f, 1));
	EXPECT_EQ(family_release(&f), 0);
	/* Nobody knows what may still name its roots. */
	EXPECT_EQ(avl_unload_soon(), -EAGAIN);
	EXPECT_EQ(avl_log_count("avl: impossible", "the module stays for good"), 2);
}

TEST_HARNESS_MAIN
