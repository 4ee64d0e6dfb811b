// SPDX-License-Identifier: GPL-2.0
/* On a kernel without the patches: the module is refused, and the log says why. */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include "avl.h"

TEST(refused_for_want_of_the_hook_points)
{
	ASSERT_EQ(avl_load(""), -ENOENT);
	EXPECT_TRUE(avl_log_has("anon_vma_lazy: Unknown symbol anon_vma_lazy_register"));
}

TEST(nothing_stays_behind)
{
	EXPECT_NE(access(AVL_SYSCTL, F_OK), 0);
	EXPECT_NE(access("/sys/module/anon_vma_lazy", F_OK), 0);
	EXPECT_EQ(avl_unload(), -ENOENT);
}

TEST_HARNESS_MAIN
