// SPDX-License-Identifier: GPL-2.0
/* vm.anon_vma_lazy: its values, what it refuses, and where its first value comes from. */
#define _GNU_SOURCE
#include <sys/stat.h>

#include "kselftest_harness.h"
#include "avl.h"

FIXTURE(sysctl)
{
};

FIXTURE_VARIANT(sysctl)
{
	const char *params;
	const char *first;
};

FIXTURE_VARIANT_ADD(sysctl, by_default)
{
	.params = "",
	.first = "1\n",
};

FIXTURE_VARIANT_ADD(sysctl, enabled_0)
{
	.params = "enabled=0",
	.first = "0\n",
};

FIXTURE_VARIANT_ADD(sysctl, enabled_1)
{
	.params = "enabled=1",
	.first = "1\n",
};

FIXTURE_SETUP(sysctl)
{
	ASSERT_EQ(avl_load(variant->params), 0);
}

/* In the parent: the test itself may have a lazy root by then. */
FIXTURE_TEARDOWN_PARENT(sysctl)
{
	ASSERT_EQ(avl_unload_soon(), 0);
}

static const char *value(void)
{
	static char text[64];

	return avl_read(AVL_SYSCTL, text, sizeof(text)) < 0 ? "unreadable" : text;
}

TEST_F(sysctl, first_value)
{
	EXPECT_STREQ(value(), variant->first);
}

TEST_F(sysctl, takes_0_and_1)
{
	static const char * const accepted[] = { "0", "1", "0\n", "1\n", " 1\t\n", "\t0" };

	for (size_t i = 0; i < sizeof(accepted) / sizeof(*accepted); i++) {
		EXPECT_EQ(avl_write(AVL_SYSCTL, accepted[i], strlen(accepted[i])), 0);
		EXPECT_STREQ(value(), strchr(accepted[i], '1') ? "1\n" : "0\n");
	}
}

TEST_F(sysctl, refuses_everything_else)
{
	static const char * const refused[] = {
		"2", "-1", "+1", "-0", "00", "01", "10", "0x1", "0x0", "1 1", "0 0", "0 1", "on",
		"off", "y", "n", "true", "1,", "1.0", "\n", " ",
		"1x", "x1", "4294967297",
		"18446744073709551617", "4294967296",
	};

	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
		EXPECT_EQ(avl_write(AVL_SYSCTL, refused[i], strlen(refused[i])), -EINVAL) {
			TH_LOG("'%s' was not refused", refused[i]);
		}
		EXPECT_STREQ(value(), variant->first);
	}
	/* A NUL in the text is not an end. */
	EXPECT_EQ(avl_write(AVL_SYSCTL, "1\0001", 3), -EINVAL);
	EXPECT_STREQ(value(), variant->first);
}

/* What is refused is said, in one line and with what would do; what is taken is not. */
TEST_F(sysctl, says_what_to_write)
{
	static const char says[] = "anon_vma_lazy: vm.anon_vma_lazy takes 0 or 1";

	ASSERT_EQ(avl_log_mark("avl: one bad value"), 0);
	EXPECT_EQ(avl_write(AVL_SYSCTL, "2", 1), -EINVAL);
	EXPECT_EQ(avl_log_count("avl: one bad value", says), 1);
	ASSERT_EQ(avl_log_mark("avl: good values"), 0);
	EXPECT_EQ(avl_write(AVL_SYSCTL, "0", 1), 0);
	EXPECT_EQ(avl_write(AVL_SYSCTL, variant->first, 1), 0);
	EXPECT_EQ(avl_log_count("avl: good values", says), 0);
	EXPECT_STREQ(value(), variant->first);
}

TEST_F(sysctl, nothing_behind_the_value)
{
	char text[8];
	int fd = open(AVL_SYSCTL, O_RDWR);

	ASSERT_GE(fd, 0);
	EXPECT_EQ(read(fd, text, 1), 1);
	EXPECT_EQ(text[0], variant->first[0]);
	EXPECT_EQ(read(fd, text, sizeof(text)), 1);
	EXPECT_EQ(text[0], '\n');
	EXPECT_EQ(read(fd, text, sizeof(text)), 0);
	/* A second write through the same file is not at its start. */
	ASSERT_EQ(lseek(fd, 0, SEEK_SET), 0);
	EXPECT_EQ(write(fd, variant->first, 2), 2);
	EXPECT_EQ(write(fd, variant->first, 2), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(pread(fd, text, 1, 1000000), 0);
	close(fd);
	EXPECT_STREQ(value(), variant->first);
}

TEST_F(sysctl, mode_of_the_file)
{
	struct stat st;

	ASSERT_EQ(stat(AVL_SYSCTL, &st), 0);
	EXPECT_EQ(st.st_mode & 07777, 0644);
	EXPECT_EQ(st.st_uid, 0);
}

TEST_HARNESS_MAIN
