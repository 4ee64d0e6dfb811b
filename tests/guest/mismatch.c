// SPDX-License-Identifier: GPL-2.0
/* On a kernel of another configuration: the module is refused, and the log says why. */
#define _GNU_SOURCE
#include <sys/klog.h>

#include "kselftest_harness.h"
#include "avl.h"

TEST(refused_with_a_reason)
{
	static char log[1 << 18];
	int len;

	ASSERT_EQ(avl_load(""), -ENOEXEC);
	len = klogctl(3 /* read all */, log, sizeof(log) - 1);
	ASSERT_GT(len, 0);
	log[len] = 0;
	/* The module loader looks at its own structure first, the hook points at theirs. */
	EXPECT_TRUE(strstr(log, "rebuild the module against this kernel") ||
		    (strstr(log, "anon_vma_lazy") && strstr(log, "struct module size")));
}

TEST(nothing_stays_behind)
{
	EXPECT_NE(access(AVL_SYSCTL, F_OK), 0);
	EXPECT_NE(access("/sys/module/anon_vma_lazy", F_OK), 0);
	EXPECT_EQ(avl_unload(), -ENOENT);
}

TEST_HARNESS_MAIN
