// SPDX-License-Identifier: GPL-2.0
/*
 * A warning of Linux 7.3.4 itself, with or without the series and without the module. The child of
 * a VMA that was faulted, moved, and is wiped in children has no anon_vma, and yet not the page
 * offset of its address. assert_sane_pgoff() in mm/vma.h does not know that, and warns when such a
 * VMA is split, or merged. For a guest of its own, with a kernel that has DEBUG_VM: once this does
 * not warn any more, stress may wipe moved VMAs, too.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include "rmap.h"

#define NR 8

TEST(child_of_a_moved_vma_is_split)
{
	const size_t page = sysconf(_SC_PAGESIZE), size = NR * page;
	char *area = mmap(NULL, 4 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *away = area + 2 * size;
	int status;
	pid_t pid;

	ASSERT_NE(area, MAP_FAILED);
	ASSERT_EQ(map_at(area + page, size), area + page);
	fill(area + page, NR, 1, 1);
	ASSERT_EQ(mremap(area + page, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, away), away);
	ASSERT_EQ(madvise(away, size, MADV_WIPEONFORK), 0);
	ASSERT_EQ(avl_log_mark("avl: wiped"), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	/* It does no harm: what is left is as empty as it should be. */
	if (!pid)
		_exit(munmap(away + 2 * page, page) || away[0] || away[size - 1]);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_TRUE(filled(away, NR, 1, 1));
	EXPECT_EQ(avl_log_count("avl: wiped", "WARNING: mm/vma.h"), 1);
}

TEST_HARNESS_MAIN
