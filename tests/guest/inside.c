// SPDX-License-Identifier: GPL-2.0
/*
 * See inside: the states that debugfs shows of a process, counters, tracepoints,
 * and that looking is safe while processes come and go.
 */
#define _GNU_SOURCE
#include <linux/perf_event.h>
#include <time.h>

#include "kselftest_harness.h"
#include "inside.h"
#include "rmap.h"

#define TRACING "/sys/kernel/tracing/"
#define EVENTS TRACING "events/anon_vma_lazy/"
#define NR 8

FIXTURE(inside)
{
	size_t page;
	/* Pages to work in, and a place to move them to: nothing merges with these. */
	char *area, *away;
};

FIXTURE_SETUP(inside)
{
	self->page = sysconf(_SC_PAGESIZE);
	ASSERT_EQ(avl_load("enabled=0"), 0);
	/* Only the test itself is to be lazy, and what it forks. */
	ASSERT_EQ(avl_write(AVL_SYSCTL, "1", 1), 0);
	self->area = mmap(NULL, (2 * NR + 3) * self->page, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(self->area, MAP_FAILED);
	self->area += self->page;
	self->away = self->area + (NR + 1) * self->page;
	ASSERT_EQ(mprotect(self->area, NR * self->page, PROT_READ | PROT_WRITE), 0);
	/* The root, if the set-up has not made it already. */
	*(volatile char *)mmap(NULL, self->page, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) = 1;
	ASSERT_EQ(avl_write(AVL_SYSCTL, "0", 1), 0);
}

FIXTURE_TEARDOWN_PARENT(inside)
{
	ASSERT_EQ(avl_unload_soon(), 0);
}

#define EXPECT_STATE(pid, at, wanted) EXPECT_STREQ(inside_vma(pid, at), wanted)

TEST_F(inside, states_of_a_vma)
{
	const size_t page = self->page;
	char *area = self->area, *away = self->away;

	EXPECT_STATE(0, area, "unfaulted");
	fill(area, NR, 1, 1);
	EXPECT_STATE(0, area, "lazy");
	EXPECT_STATE(getpid(), area, "lazy");
	ASSERT_EQ(mprotect(area + 2 * page, page, PROT_READ), 0);
	EXPECT_STATE(0, area, "lazy");
	EXPECT_STATE(0, area + 2 * page, "lazy");
	EXPECT_STATE(0, area + 3 * page, "lazy");
	ASSERT_EQ(mremap(area + 2 * page, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, away), away);
	EXPECT_STATE(0, area + 2 * page, "nothing");
	EXPECT_STATE(0, away, "linked moved");
	EXPECT_STATE(0, away + page, "unfaulted");
	/* Home again: at its address, and linked all the same. */
	ASSERT_EQ(mremap(away, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, area + 2 * page),
		  area + 2 * page);
	EXPECT_STATE(0, area + 2 * page, "linked");
	ASSERT_EQ(munmap(area, page), 0);
	EXPECT_STATE(0, area, "nothing");
	EXPECT_STATE(0, area + page, "lazy");
	EXPECT_TRUE(filled(area + page, NR - 1, 1, 8));
}

TEST_F(inside, vmas_from_before_are_regular)
{
	static char earlier[1 << 14];

	/* Of the program that was started before the module was loaded. */
	earlier[1 << 13] = 1;
	EXPECT_STATE(0, earlier + (1 << 13), "regular");
}

TEST_F(inside, a_family)
{
	char line[64], *area = self->area;
	unsigned int mine, theirs;
	struct family f;
	pid_t pid;

	ASSERT_EQ(family_init(&f), 0);
	fill(area, NR, 1, 1);
	mine = inside_root(0);
	ASSERT_NE(mine, 0);
	EXPECT_EQ(inside_root(getpid()), mine);
	pid = KIN(&f, filled(area, NR, 1, 1));
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(family_await(&f, 1));

	theirs = inside_root(pid);
	ASSERT_NE(theirs, 0);
	EXPECT_NE(theirs, mine);
	snprintf(line, sizeof(line), "parent %08x pid %d", mine, getpid());
	EXPECT_TRUE(inside_has(pid, line));
	snprintf(line, sizeof(line), "child %08x pid %d", theirs, pid);
	EXPECT_TRUE(inside_has(0, line));
	EXPECT_STATE(pid, area, "lazy");

	EXPECT_EQ(family_release(&f), 0);
	/* The work item takes it off the list a moment later. */
	for (int i = 0; i < 500 && inside_has(0, line); i++)
		usleep(10000);
	EXPECT_FALSE(inside_has(0, line));
}

TEST_F(inside, an_orphan_shows_as_such)
{
	char line[64], *area = self->area, *text;
	unsigned int grandchild, orphan = 0;
	struct family f;
	int pids[2];
	pid_t pid;

	ASSERT_EQ(family_init(&f), 0);
	ASSERT_EQ(pipe(pids), 0);
	fill(area, NR, 1, 1);
	/* A child whose own child stays when it goes. */
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		pid = KIN(&f, filled(area, NR, 1, 1));
		_exit(write(pids[1], &pid, sizeof(pid)) != sizeof(pid));
	}
	ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	ASSERT_EQ(read(pids[0], &pid, sizeof(pid)), sizeof(pid));
	ASSERT_TRUE(family_await(&f, 1));
	grandchild = inside_root(pid);
	ASSERT_NE(grandchild, 0);
	EXPECT_GE(avl_counter("roots_orphaned"), 1);
	/* Its parent has no process, and has the name that our list of children has. */
	text = inside_read(pid);
	ASSERT_NE(text, NULL);
	ASSERT_NE(strstr(text, "parent "), NULL);
	orphan = strtoul(strstr(text, "parent ") + 7, NULL, 16);
	free(text);
	snprintf(line, sizeof(line), "parent %08x orphan", orphan);
	EXPECT_TRUE(inside_has(pid, line));
	snprintf(line, sizeof(line), "child %08x orphan", orphan);
	EXPECT_TRUE(inside_has(0, line));
	EXPECT_EQ(family_release(&f), 0);
}

TEST_F(inside, what_is_no_process_is_refused)
{
	static const struct {
		const char *text;
		int err;
	} refused[] = {
		{ "0", EINVAL }, { "-1", EINVAL }, { "self", EINVAL }, { "1 2", EINVAL },
	 { "12345678901234567890", EINVAL },
		{ "2147483648", EINVAL }, { "2147483647", ESRCH }, { "4194304", ESRCH },
		/* kthreadd has no mm. */
		{ "2", ESRCH },
	};
	char text[64];
	int fd = open(INSIDE, O_RDWR);
	pid_t pid;

	ASSERT_GE(fd, 0);
	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
		EXPECT_EQ(write(fd, refused[i].text, strlen(refused[i].text)), -1);
		EXPECT_EQ(errno, refused[i].err) {
			TH_LOG("'%s'", refused[i].text);
		}
	}
	/* What was refused has changed nothing: it is about the reader. */
	EXPECT_GT(read(fd, text, sizeof(text)), 0);

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		pause();
		_exit(0);
	}
	snprintf(text, sizeof(text), "%d\n", pid);
	EXPECT_EQ(write(fd, text, strlen(text)), strlen(text));
	EXPECT_GT(read(fd, text, sizeof(text)), 0);
	kill(pid, SIGKILL);
	ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	ASSERT_EQ(lseek(fd, 0, SEEK_SET), 0);
	EXPECT_EQ(read(fd, text, sizeof(text)), -1);
	EXPECT_EQ(errno, ESRCH);
	close(fd);
}

TEST_F(inside, for_root_only)
{
	struct stat st;
	int status;
	pid_t pid;

	ASSERT_EQ(stat(INSIDE, &st), 0);
	EXPECT_EQ(st.st_mode & 07777, 0600);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (setuid(1000))
			_exit(2);
		_exit(open(INSIDE, O_RDWR) >= 0 || errno != EACCES);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

TEST_F(inside, counters_follow)
{
	long long lazy, linked, forks, copies, walks, visits, vmas, hints, lookups, listed,
		  unlinked;
	char *area = self->area, *away = self->away;
	const size_t page = self->page;
	struct family f;

	ASSERT_EQ(family_init(&f), 0);
	lazy = avl_counter("vmas_lazy");
	linked = avl_counter("vmas_linked");
	fill(area, NR, 1, 1);
	EXPECT_EQ(avl_counter("vmas_lazy"), lazy + 1);
	ASSERT_EQ(mprotect(area + page, page, PROT_READ), 0);
	EXPECT_EQ(avl_counter("vmas_lazy"), lazy + 3);
	ASSERT_EQ(mremap(area + page, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, away), away);
	EXPECT_EQ(avl_counter("vmas_lazy"), lazy + 2);
	EXPECT_EQ(avl_counter("vmas_linked"), linked + 1);
	EXPECT_EQ(avl_counter("vmas_detaching"), 0);

	forks = avl_counter("root_fork");
	copies = avl_counter("fork_vma");
	ASSERT_EQ(avl_counter("roots"), 1);
	KIN(&f, filled(area, 1, 1, 1));
	ASSERT_TRUE(family_await(&f, 1));
	EXPECT_EQ(avl_counter("root_fork"), forks + 1);
	EXPECT_EQ(avl_counter("roots"), 2);
	EXPECT_GE(avl_counter("fork_vma"), copies + 3);
	EXPECT_EQ(avl_counter("vmas_linked"), linked + 2);

	walks = avl_counter("walk");
	visits = avl_counter("walk_visits");
	vmas = avl_counter("walk_vma");
	hints = avl_counter("walk_hint");
	lookups = avl_counter("walk_lookup");
	listed = avl_counter("walk_listed");
	EXPECT_SOUND();
	/* The oracle visits parent and child for each page that they share. */
	EXPECT_GE(avl_counter("walk"), walks + NR);
	EXPECT_GE(avl_counter("walk_visits"), visits + 2 * NR);
	EXPECT_GE(avl_counter("walk_vma"), vmas + 2 * NR);
	/* It goes by frames: some that follow each other are of one VMA. */
	EXPECT_GT(avl_counter("walk_hint"), hints);
	EXPECT_GT(avl_counter("walk_lookup"), lookups);
	/* One VMA of each was moved. */
	EXPECT_GT(avl_counter("walk_listed"), listed);
	EXPECT_EQ(avl_counter("refused"), 0);
	EXPECT_EQ(avl_counter("no_memory"), 0);

	unlinked = avl_counter("vma_unlinked_detaching");
	ASSERT_EQ(munmap(area, page), 0);
	EXPECT_EQ(avl_counter("vma_unlinked_detaching"), unlinked + 1);
	EXPECT_EQ(avl_counter("vmas_detaching"), 0);
	/* Several at once, and a hole: each of them. */
	ASSERT_EQ(mprotect(area + 3 * page, 2 * page, PROT_READ), 0);
	ASSERT_EQ(munmap(area, NR * page), 0);
	EXPECT_EQ(avl_counter("vma_unlinked_detaching"), unlinked + 4);
	EXPECT_EQ(avl_counter("vmas_detaching"), 0);
	EXPECT_EQ(family_release(&f), 0);
	for (int i = 0; i < 500 && avl_counter("roots") != 1; i++)
		usleep(10000);
	EXPECT_EQ(avl_counter("roots"), 1);
	EXPECT_EQ(avl_counter("roots_orphaned"), 0);
	EXPECT_EQ(avl_counter("vmas_linked"), linked + 1);
}

/* The trace, as text; the events of this module only. */
static char *trace_read(void)
{
	size_t len = 0, size = 1 << 22;
	char *text = malloc(size);
	int fd = open(TRACING "trace", O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (fd < 0 || !text)
		return NULL;
	while (len < size - 1 && (got = read(fd, text + len, size - 1 - len)) > 0)
		len += got;
	close(fd);
	text[len] = 0;
	return text;
}

/* Opening it to be truncated is what empties it. */
static bool trace_clear(void)
{
	int fd = open(TRACING "trace", O_WRONLY | O_TRUNC | O_CLOEXEC);

	return fd >= 0 && !close(fd);
}

/* What has to be in the trace. */
struct wanted {
	char event[24][160];
	int nr;
};

#define WANT(w, ...) do {							\
	struct wanted *w_ = (w);						\
										\
	snprintf(w_->event[w_->nr++], sizeof(w_->event[0]), __VA_ARGS__);	\
} while (0)

/* How many of them are not there; said once it is clear. */
static int missing(struct __test_metadata *_metadata, const struct wanted *w, bool say)
{
	char *text = trace_read();
	int nr = 0;

	if (!text)
		return w->nr;
	for (int i = 0; i < w->nr; i++) {
		if (strstr(text, w->event[i]))
			continue;
		nr++;
		if (say)
			TH_LOG("no event '%s'", w->event[i]);
	}
	free(text);
	return nr;
}

/* Touch, move, fork, migrate, unmap and exit, in memory of its own, and say what that is. */
static void traced(struct __test_metadata *_metadata, struct wanted *w, size_t page)
{
	char *area = mmap(NULL, 5 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			  -1, 0);
	char *away = area + 3 * page;
	const unsigned long at = (uintptr_t)area + page, to = (uintptr_t)away;
	const unsigned int mine = inside_root(0);
	unsigned int theirs;
	struct family f;
	pid_t pid;

	ASSERT_NE(area, MAP_FAILED);
	ASSERT_NE(mine, 0);
	ASSERT_EQ(family_init(&f), 0);
	area += page;
	ASSERT_EQ(mprotect(area, 2 * page, PROT_READ | PROT_WRITE), 0);
	fill(area, 2, 1, 1);
	WANT(w, "lazy_vma: root=%08x vma=%lx-%lx from=unfaulted to=lazy", mine, at, at + 2 * page);
	ASSERT_EQ(mremap(area + page, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, away), away);
	WANT(w, "lazy_vma: root=%08x vma=%lx-%lx from=unfaulted to=linked", mine, to, to + page);

	pid = KIN(&f, filled(area, 1, 1, 1));
	ASSERT_TRUE(family_await(&f, 1));
	theirs = inside_root(pid);
	ASSERT_NE(theirs, 0);
	WANT(w, "lazy_root_new: root=%08x up=%08x", theirs, mine);
	WANT(w, "lazy_root_link: root=%08x up=%08x", theirs, mine);
	WANT(w, "lazy_vma: root=%08x vma=%lx-%lx from=unfaulted to=lazy", theirs, at, at + page);
	WANT(w, "lazy_vma: root=%08x vma=%lx-%lx from=unfaulted to=linked", theirs, to, to + page);

	/* Walks from the parent's root that come to the child. */
	EXPECT_EQ(move_to_node(0, area, 1, 1), 1);
	EXPECT_EQ(move_to_node(0, area, 1, 0), 1);
	WANT(w, "lazy_walk_visit: start=%08x root=%08x pgoff=%lx-%lx", mine, mine, at / page,
	     at / page);
	WANT(w, "lazy_walk_visit: start=%08x root=%08x pgoff=%lx-%lx", mine, theirs, at / page,
	     at / page);
	WANT(w, "lazy_walk_end: start=%08x", mine);

	EXPECT_EQ(munmap(area, page), 0);
	WANT(w, "lazy_vma: root=%08x vma=%lx-%lx from=lazy to=detaching", mine, at, at + page);
	WANT(w, "lazy_vma: root=%08x vma=%lx-%lx from=detaching to=unfaulted", mine, at, at + page);
	EXPECT_EQ(family_release(&f), 0);
	WANT(w, "lazy_vma: root=%08x vma=%lx-%lx from=lazy to=unfaulted", theirs, at, at + page);
	WANT(w, "lazy_vma: root=%08x vma=%lx-%lx from=linked to=unfaulted", theirs, to, to + page);
	for (int i = 0; i < 500 && avl_counter("roots") != 1; i++)
		usleep(10000);
	EXPECT_EQ(avl_counter("roots"), 1);
	WANT(w, "lazy_root_detach: root=%08x up=%08x", theirs, mine);
	WANT(w, "lazy_root_free: root=%08x up=%08x", theirs, mine);
}

/*
 * Some attempts: where a static key is switched by one instruction in place, an
 * emulator may go on with what was there before for a while.
 */
TEST_F_TIMEOUT(inside, tracepoints, 120)
{
	struct wanted *w = calloc(1, sizeof(*w));
	int attempt = 0;
	char *text;

	ASSERT_NE(w, NULL);
	ASSERT_TRUE(trace_clear());
	ASSERT_EQ(avl_write(EVENTS "enable", "1", 1), 0);
	do {
		w->nr = 0;
		traced(_metadata, w, self->page);
	} while (missing(_metadata, w, false) && ++attempt < 5);
	EXPECT_EQ(missing(_metadata, w, true), 0);
	TH_LOG("%d events, at attempt %d", w->nr, attempt + 1);

	/* Off again: nothing is recorded. */
	ASSERT_EQ(avl_write(EVENTS "enable", "0", 1), 0);
	ASSERT_TRUE(trace_clear());
	w->nr = 0;
	traced(_metadata, w, self->page);
	text = trace_read();
	ASSERT_NE(text, NULL);
	EXPECT_EQ(strstr(text, "lazy_"), NULL);
	free(text);
	free(w);
}

/* Perf finds them by their number, and counts. */
TEST_F(inside, tracepoints_for_perf)
{
	static const char * const names[] = {
		"lazy_root_new", "lazy_root_link", "lazy_root_detach", "lazy_root_free",
		"lazy_walk_visit", "lazy_walk_end", "lazy_vma",
	};
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
	};
	uint64_t count = 0;
	char path[128], text[64];
	int fd;

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		snprintf(path, sizeof(path), EVENTS "%s/id", names[i]);
		ASSERT_GT(avl_read(path, text, sizeof(text)), 0) {
			TH_LOG("%s", path);
		}
		attr.config = atoi(text);
		EXPECT_GT(attr.config, 0);
	}
	/* The last one, of this process. */
	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	ASSERT_GE(fd, 0);
	for (int i = 0; i < 50 && !count; i++) {
		char *area = map_at(NULL, self->page);

		ASSERT_NE(area, NULL);
		area[0] = 1;
		munmap(area, self->page);
		ASSERT_EQ(read(fd, &count, sizeof(count)), sizeof(count));
	}
	EXPECT_GT(count, 0);
	close(fd);
}

#define WORKERS 3
#define READERS 3

/* Fork, change the address space, exit; for ever. */
static void churn(char *area, size_t page)
{
	for (unsigned int n = 0;; n++) {
		pid_t pid = fork();

		if (!pid) {
			char *away = map_at(NULL, page);

			if (away)
				mremap(area + page, page, page, MREMAP_MAYMOVE | MREMAP_FIXED,
				       away);
			area[0]++;
			if (n % 3 == 0)
				munmap(area, 2 * page);
			_exit(0);
		}
		if (pid > 0)
			waitpid(pid, NULL, 0);
		area[(n % NR) * page]++;
	}
}

/* Read about processes that are there, that just went, and that just came. */
static int look(const pid_t *workers, int reader, size_t *read_all)
{
	pid_t next = workers[WORKERS - 1];
	time_t end = time(NULL) + 4;
	pid_t pid;

	while (time(NULL) < end) {
		for (int i = 0; i < WORKERS; i++, next++) {
			char *text = inside_read(workers[i]);

			/* Workers live as long as this. */
			if (!text || strncmp(text, "root ", 5))
				return 1;
			(*read_all)++;
			free(text);
			text = inside_read(next + reader);
			if (!text && errno != ESRCH)
				return 2;
			*read_all += !!text;
			free(text);
		}
		/* Where the newest are: a fork of our own says. */
		pid = fork();
		if (!pid)
			_exit(0);
		if (pid < 0)
			return 3;
		if (waitpid(pid, NULL, 0) == pid)
			next = pid - 2 * WORKERS;
	}
	return 0;
}

TEST_F_TIMEOUT(inside, readers_race_with_fork_and_exit, 120)
{
	pid_t workers[WORKERS], readers[READERS];
	size_t *read_all = mmap(NULL, self->page, PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;

	ASSERT_NE(read_all, MAP_FAILED);
	fill(self->area, NR, 1, 1);
	for (int i = 0; i < WORKERS; i++) {
		workers[i] = fork();
		ASSERT_GE(workers[i], 0);
		if (!workers[i]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			churn(self->area, self->page);
		}
	}
	for (int i = 0; i < READERS; i++) {
		readers[i] = fork();
		ASSERT_GE(readers[i], 0);
		if (!readers[i]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			_exit(look(workers, i, read_all + i));
		}
	}
	for (int i = 0; i < READERS; i++) {
		ASSERT_EQ(waitpid(readers[i], &status, 0), readers[i]);
		EXPECT_EQ(status, 0);
	}
	for (int i = 0; i < WORKERS; i++) {
		kill(workers[i], SIGKILL);
		ASSERT_EQ(waitpid(workers[i], NULL, 0), workers[i]);
	}
	TH_LOG("%zu answers", read_all[0] + read_all[1] + read_all[2]);
	EXPECT_GT(read_all[0] + read_all[1] + read_all[2], 5);
	EXPECT_SOUND();
}

TEST(an_open_file_holds_the_module)
{
	char text[64];
	int fd;

	ASSERT_EQ(avl_load("enabled=0"), 0);
	fd = open(INSIDE, O_RDWR);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(avl_unload(), -EWOULDBLOCK);
	EXPECT_GT(read(fd, text, sizeof(text)), 0);
	close(fd);
	EXPECT_EQ(avl_unload_soon(), 0);
	EXPECT_EQ(open(INSIDE, O_RDWR), -1);
}

/* An event that is on does not: the module takes it away with it. */
TEST(an_event_that_is_on_across_unload)
{
	ASSERT_EQ(avl_load("enabled=0"), 0);
	ASSERT_EQ(avl_write(EVENTS "enable", "1", 1), 0);
	ASSERT_EQ(avl_unload_soon(), 0);
	EXPECT_EQ(access(EVENTS "enable", F_OK), -1);
	/* What is in the buffer can still be read. */
	free(trace_read());
}

TEST_F(inside, lifecycle_sample)
{
	char text[8192];
	size_t len;
	FILE *out;

	ASSERT_EQ(avl_write(AVL_SYSCTL, "1", 1), 0);
	out = popen("/avl/lifecycle", "r");
	ASSERT_NE(out, NULL);
	len = fread(text, 1, sizeof(text) - 1, out);
	text[len] = 0;
	EXPECT_EQ(pclose(out), 0);
	EXPECT_NE(strstr(text, "area, 8 pages: unfaulted"), NULL);
	EXPECT_NE(strstr(text, "area, 8 pages: lazy"), NULL);
	EXPECT_NE(strstr(text, "away, 2 pages: linked moved"), NULL);
	EXPECT_NE(strstr(text, "  child, pid "), NULL);
	EXPECT_EQ(strstr(text, "impossible"), NULL);
}

TEST_HARNESS_MAIN
