// SPDX-License-Identifier: GPL-2.0
/* On a kernel without the patches: the module is refused, and the log says why. */
#define _GNU_SOURCE
#include <sys/klog.h>

#include "kselftest_harness.h"
#include "avl.h"

TEST(refused_for_want_of_the_hook_points)
{
	static char log[1 << 18];
	int len;

	ASSERT_EQ(avl_load(""), -ENOENT);
	len = klogctl(3 /* read all */, log, sizeof(log) - 1);
	ASSERT_GT(len, 0);
	log[len] = 0;
	EXPECT_NE(strstr(log, "anon_vma_lazy: Unknown symbol anon_vma_lazy_register"), NULL);
}

TEST(nothing_stays_behind)
{
	EXPECT_NE(access(AVL_SYSCTL, F_OK), 0);
	EXPECT_NE(access("/sys/module/anon_vma_lazy", F_OK), 0);
	EXPECT_EQ(avl_unload(), -ENOENT);
}

TEST_HARNESS_MAIN
