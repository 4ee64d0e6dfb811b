// SPDX-License-Identifier: GPL-2.0
/*
 * What the tests before this one have left in memory that nothing points to any
 * more. For a kernel with kmemleak, switched on at boot.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include "avl.h"

#define KMEMLEAK "/sys/kernel/debug/kmemleak"

FIXTURE(leaks)
{
};

FIXTURE_SETUP(leaks)
{
}

FIXTURE_TEARDOWN(leaks)
{
}

TEST_F_TIMEOUT(leaks, nothing_is_lost, 900)
{
	static char report[1 << 20];

	/* A scan looks at what is some seconds old; what is just being linked is found twice. */
	sleep(6);
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(avl_write(KMEMLEAK, "scan", 4), 0);
	ASSERT_GE(avl_read(KMEMLEAK, report, sizeof(report)), 0);
	EXPECT_EQ(report[0], 0);
	for (char *line = strtok(report, "\n"); line; line = strtok(NULL, "\n"))
		TH_LOG("%s", line);
}

TEST_HARNESS_MAIN
