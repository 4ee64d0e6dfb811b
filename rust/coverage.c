// SPDX-License-Identifier: GPL-2.0
/*
 * How often each edge of the module's Rust code ran. Only in a module that was built with
 * AVL_COVERAGE=y, for `make coverage`: clang, which makes the object from rustc's
 * bitcode, puts a call into each edge. On the host the places of the calls are
 * turned into lines of the source.
 */
#include <linux/atomic.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/sizes.h>
#include "shim.h"

/* Calls are at least four bytes apart. A module's text is smaller than twice this. */
#define REACH SZ_256K

static atomic_t runs[2 * REACH / 4];
static unsigned int next;
static DEFINE_MUTEX(reading);

/* In any context, also before the module's init function: touches nothing but the table. */
notrace void __sanitizer_cov_trace_pc(void)
{
	unsigned long at = _RET_IP_ - (unsigned long)__sanitizer_cov_trace_pc + REACH;

	if (at < 2 * REACH)
		arch_atomic_inc(&runs[at / 4]);
}

/*
 * Each read gives the next page of lines "PLACE COUNT", the place as a distance to
 * the function above in words, until one gives nothing: the next one then starts again.
 * What has been read is not counted again.
 */
static int coverage_get(char *buffer, const struct kernel_param *kp)
{
	int len = 0;

	guard(mutex)(&reading);
	for (; next < ARRAY_SIZE(runs) && len < PAGE_SIZE - 32; next++) {
		int count = arch_atomic_xchg(&runs[next], 0);

		if (count)
			len += sprintf(buffer + len, "%d %u\n", (int)(next - REACH / 4), count);
	}
	if (!len)
		next = 0;
	return len;
}

static const struct kernel_param_ops coverage_ops = { .get = coverage_get };

module_param_cb(coverage, &coverage_ops, NULL, 0400);
MODULE_PARM_DESC(coverage, "For tests: how often each edge ran");
