// SPDX-License-Identifier: GPL-2.0
/* On a kernel of another configuration: the module is refused, and the log says why. */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include "avl.h"

TEST(refused_with_a_reason)
{
	ASSERT_EQ(avl_load(""), -ENOEXEC);
	/* The module loader looks at its own structure first, the hook points at theirs. */
	EXPECT_TRUE(avl_log_has("rebuild the module against this kernel") ||
		    avl_log_has("module anon_vma_lazy: .gnu.linkonce.this_module section size"));
}

TEST(nothing_stays_behind)
{
	EXPECT_NE(access(AVL_SYSCTL, F_OK), 0);
	EXPECT_NE(access("/sys/module/anon_vma_lazy", F_OK), 0);
	EXPECT_EQ(avl_unload(), -ENOENT);
}

TEST_HARNESS_MAIN
