// SPDX-License-Identifier: GPL-2.0
/*
 * The oracle can fail: the module, told to break its walks, has to be found out.
 * Nothing migrates or is reclaimed meanwhile, which would do harm.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include "rmap.h"

#define NR 32

/* Fill one lazy VMA, and have a child share it. Only this process is to be lazy. */
static bool share_lazy_pages(struct family *f)
{
	char *area = map_at(NULL, NR * sysconf(_SC_PAGESIZE));

	return area && !avl_write(AVL_SYSCTL, "1", 1) && fill(area, NR, 1, 1) &&
	       !avl_write(AVL_SYSCTL, "0", 1) && KIN(f, filled(area, NR, 1, 1)) > 0;
}

TEST(a_walk_that_misses_the_children_is_noticed)
{
	struct verdict v;
	struct family f;

	EXPECT_SOUND();
	ASSERT_EQ(family_init(&f), 0);
	ASSERT_EQ(avl_load("enabled=0 test_break=1"), 0);
	KIN(&f, share_lazy_pages(&f));
	ASSERT_TRUE(family_await(&f, 2));
	ASSERT_EQ(oracle(&v), 0);
	TH_LOG("%lu folios differ", v.mismatch);
	EXPECT_EQ(v.mismatch, NR);
	/* The sample that asks it says so, too. */
	EXPECT_EQ(system("/avl/rmap-oracle >/dev/null"), 1 << 8);
	EXPECT_EQ(family_release(&f), 0);
	EXPECT_EQ(avl_unload_soon(), 0);
	EXPECT_SOUND();
}

TEST(the_same_without_the_fault_is_sound)
{
	struct family f;

	ASSERT_EQ(family_init(&f), 0);
	ASSERT_EQ(avl_load("enabled=0"), 0);
	KIN(&f, share_lazy_pages(&f));
	ASSERT_TRUE(family_await(&f, 2));
	EXPECT_EQ(avl_counter("root_new"), 2);
	EXPECT_SOUND();
	EXPECT_EQ(system("/avl/rmap-oracle >/dev/null"), 0);
	EXPECT_EQ(family_release(&f), 0);
	EXPECT_EQ(avl_unload_soon(), 0);
}

TEST_HARNESS_MAIN
