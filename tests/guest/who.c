// SPDX-License-Identifier: GPL-2.0
/*
 * The sample module that uses this one: rmap-who lists exactly the processes that
 * map a page, and where.
 */
#define _GNU_SOURCE
#include <time.h>

#include "kselftest_harness.h"
#include "rmap.h"

#define SAMPLE "/avl/rmap_who.ko"
#define NR 4
#define MOST 64

/* What rmap-who has said; why there is no answer, if there is none. */
struct answer {
	int status, nr;
	char why[128];
	struct {
		int pid;
		unsigned long address;
		char how[16];
	} line[MOST];
};

static void run(struct answer *a, const char *command)
{
	char line[128];
	FILE *out;

	memset(a, 0, sizeof(*a));
	out = popen(command, "r");
	if (!out) {
		a->status = -1;
		return;
	}
	while (a->nr < MOST && fgets(line, sizeof(line), out))
		if (sscanf(line, "%d %lx %15s", &a->line[a->nr].pid, &a->line[a->nr].address,
			   a->line[a->nr].how) == 3)
			a->nr++;
		else
			snprintf(a->why, sizeof(a->why), "%s", line);
	a->status = pclose(out);
}

static void ask(struct answer *a, pid_t pid, const void *at)
{
	char command[96];

	snprintf(command, sizeof(command), "/avl/rmap-who %d %lx 2>&1", pid, (unsigned long)at);
	run(a, command);
}

/* Whether there was no answer, for this reason. */
static bool refused(const struct answer *a, const char *why)
{
	if (a->status == 1 << 8 && !a->nr && strstr(a->why, why))
		return true;
	printf("# status %#x, %d lines, %s\n", a->status, a->nr, a->why);
	return false;
}

/* Whether one line says this. */
static bool says(const struct answer *a, pid_t pid, const void *at, const char *how)
{
	int found = 0;

	for (int i = 0; i < a->nr; i++)
		found += a->line[i].pid == pid && a->line[i].address == (unsigned long)at &&
			 !strcmp(a->line[i].how, how);
	return found == 1;
}

FIXTURE(who)
{
	size_t page;
	char *area;
	struct family f;
};

FIXTURE_SETUP(who)
{
	self->page = sysconf(_SC_PAGESIZE);
	ASSERT_EQ(avl_load("enabled=0"), 0);
	ASSERT_EQ(avl_load_file(SAMPLE, ""), 0);
	/* Without the sample the module could go; with it, not. */
	ASSERT_EQ(avl_unload(), -EWOULDBLOCK);
	ASSERT_EQ(family_init(&self->f), 0);
	ASSERT_EQ(avl_write(AVL_SYSCTL, "1", 1), 0);
	self->area = map_aligned(NR * self->page, 1 << 21);
	ASSERT_NE(self->area, NULL);
	ASSERT_TRUE(fill(self->area, NR, 1, 1));
	ASSERT_EQ(avl_write(AVL_SYSCTL, "0", 1), 0);
}

FIXTURE_TEARDOWN_PARENT(who)
{
	ASSERT_EQ(syscall(SYS_delete_module, "rmap_who", O_NONBLOCK), 0);
	ASSERT_EQ(avl_unload_soon(), 0);
}

TEST_F(who, a_page_of_one_process)
{
	struct answer a;

	ask(&a, getpid(), self->area);
	EXPECT_EQ(a.status, 0);
	/* rmap-who itself is run by a shell that was forked, and has exec'ed. */
	EXPECT_EQ(a.nr, 1);
	EXPECT_TRUE(says(&a, getpid(), self->area, "lazy"));
	/* Any byte of it will do. */
	ask(&a, getpid(), self->area + 123);
	EXPECT_TRUE(says(&a, getpid(), self->area, "lazy"));
}

/* Children, a grandchild, one that has written, one that has moved it; and strangers. */
TEST_F_TIMEOUT(who, exactly_the_family, 120)
{
	char *area = self->area, *away;
	const size_t page = self->page;
	pid_t child, writer, mover, stranger, grandchild;
	int pids[2];
	struct answer a;

	away = map_at(NULL, page);
	ASSERT_NE(away, NULL);
	ASSERT_EQ(pipe(pids), 0);
	stranger = KIN(&self->f, area[0] = 77);
	child = KIN(&self->f, ({
		pid_t pid = KIN(&self->f, filled(area, NR, 1, 1));

		write(pids[1], &pid, sizeof(pid)) == sizeof(pid);
	}));
	writer = KIN(&self->f, fill(area + page, 1, 1, 9));
	mover = KIN(&self->f, mremap(area, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, away) ==
		    away);
	ASSERT_TRUE(family_await(&self->f, 5));
	ASSERT_EQ(read(pids[0], &grandchild, sizeof(grandchild)), sizeof(grandchild));

	/* The first page: all but the one that has written to it. */
	for (int i = 0; i < 3; i++) {
		const pid_t asked[] = { getpid(), child, grandchild };

		ask(&a, asked[i], area);
		EXPECT_EQ(a.status, 0);
		EXPECT_EQ(a.nr, 5);
		EXPECT_TRUE(says(&a, getpid(), area, "lazy"));
		EXPECT_TRUE(says(&a, child, area, "lazy"));
		EXPECT_TRUE(says(&a, grandchild, area, "lazy"));
		EXPECT_TRUE(says(&a, writer, area, "lazy"));
		EXPECT_TRUE(says(&a, mover, away, "linked"));
	}
	ask(&a, mover, away);
	EXPECT_EQ(a.nr, 5);
	ask(&a, stranger, area);
	EXPECT_EQ(a.nr, 1);
	EXPECT_TRUE(says(&a, stranger, area, "lazy"));

	/* The second page: all but the writer. */
	ask(&a, getpid(), area + page);
	EXPECT_EQ(a.nr, 5);
	EXPECT_TRUE(says(&a, stranger, area + page, "lazy"));
	EXPECT_FALSE(says(&a, writer, area + page, "lazy"));
	ask(&a, writer, area + page);
	EXPECT_EQ(a.nr, 1);

	EXPECT_EQ(family_release(&self->f), 0);
	ask(&a, getpid(), area);
	EXPECT_EQ(a.nr, 1);
}

/* More mappings than the first guess has room for. */
TEST_F_TIMEOUT(who, a_large_family, 120)
{
	struct answer a;

	for (int i = 0; i < 45; i++)
		ASSERT_GT(KIN(&self->f, true), 0);
	ASSERT_TRUE(family_await(&self->f, 45));
	ask(&a, getpid(), self->area);
	EXPECT_EQ(a.status, 0);
	EXPECT_EQ(a.nr, 46);
	EXPECT_EQ(family_release(&self->f), 0);
}

TEST_F(who, no_answer)
{
	static char regular[1 << 14];
	char *untouched = map_at(NULL, self->page);
	char *shared = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct answer a;

	ASSERT_NE(untouched, NULL);
	ASSERT_NE(shared, MAP_FAILED);
	shared[0] = 1;
	regular[1 << 13] = 1;
	/* Not there, not mapped at all, of a file, of an ordinary anon_vma, no such process. */
	ask(&a, getpid(), untouched);
	EXPECT_TRUE(refused(&a, "no page is there"));
	ask(&a, getpid(), NULL);
	EXPECT_TRUE(refused(&a, "no page is there"));
	ask(&a, getpid(), shared);
	EXPECT_TRUE(refused(&a, "not an anonymous page of a lazy root"));
	ask(&a, getpid(), regular + (1 << 13));
	EXPECT_TRUE(refused(&a, "not an anonymous page of a lazy root"));
	ask(&a, 4194304, self->area);
	EXPECT_TRUE(refused(&a, "no such process"));
	ask(&a, 2, self->area);
	EXPECT_TRUE(refused(&a, "no such process"));
}

/* What is not asked right is not asked. */
TEST_F(who, wrong_arguments)
{
	static const char * const wrong[][2] = {
		{ "", "usage" }, { "1", "usage" }, { "1 2 3", "usage" }, { "x 1", "process id" },
		{ "0 1", "process id" }, { "1 x", "not an address" },
		{ "1 11111111111111111", "not an address" },
	};
	struct answer a;

	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		char command[96];

		snprintf(command, sizeof(command), "/avl/rmap-who %s 2>&1", wrong[i][0]);
		run(&a, command);
		EXPECT_EQ(a.status, 2 << 8);
		EXPECT_NE(strstr(a.why, wrong[i][1]), NULL) {
			TH_LOG("'%s': %s", wrong[i][0], a.why);
		}
	}
}

/* Asking while the family comes and goes: each answer has the one that is asked about. */
TEST_F_TIMEOUT(who, while_processes_come_and_go, 120)
{
	const time_t end = time(NULL) + 5;
	pid_t churn[3];
	struct answer a;

	for (int i = 0; i < 3; i++) {
		churn[i] = fork();
		ASSERT_GE(churn[i], 0);
		if (!churn[i]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;) {
				pid_t pid = fork();

				if (!pid) {
					self->area[self->page]++;
					_exit(0);
				}
				if (pid > 0)
					waitpid(pid, NULL, 0);
			}
		}
	}
	for (int i = 0; i < 40 && time(NULL) < end; i++) {
		ask(&a, getpid(), self->area);
		EXPECT_EQ(a.status, 0);
		EXPECT_TRUE(says(&a, getpid(), self->area, "lazy"));
		for (int j = 0; j < 3; j++)
			EXPECT_TRUE(says(&a, churn[j], self->area, "lazy"));
	}
	for (int i = 0; i < 3; i++) {
		kill(churn[i], SIGKILL);
		ASSERT_EQ(waitpid(churn[i], NULL, 0), churn[i]);
	}
	EXPECT_SOUND();
}

TEST_HARNESS_MAIN
