// SPDX-License-Identifier: GPL-2.0
/*
 * workload VMAS CHILDREN: a process with many separately faulted VMAs, and
 * children that it forks and that keep them.
 *
 * Says "ready" on standard output once all of it lives, and then waits for a
 * signal. What it costs the kernel is read from /proc/slabinfo meanwhile.
 */
#define _GNU_SOURCE
#include <err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t ended;

static void end(int signal)
{
	ended = signal;
}

static long number(const char *text)
{
	char *end;
	long value = strtol(text, &end, 10);

	if (*end || value < 0 || value > 100000)
		errx(2, "%s: not a value from 0 to 100000", text);
	return value;
}

int main(int argc, char **argv)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	sigset_t block, wait_mask;
	int ready[2];
	long vmas, children;
	char *area, c;

	if (argc != 3)
		errx(2, "usage: workload VMAS CHILDREN");
	/* A group of its own, which is signalled at the end. */
	if (setpgid(0, 0))
		err(1, "setpgid");
	vmas = number(argv[1]);
	children = number(argv[2]);

	/* One page each, with a hole behind it, so that none of them merge. */
	area = mmap(NULL, 2 * vmas * page + page, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		err(1, "mmap");
	for (long i = 0; i < vmas; i++) {
		if (munmap(area + (2 * i + 1) * page, page))
			err(1, "munmap");
		area[2 * i * page] = i;
	}

	/* The signal that ends it all is taken while it waits, and nowhere else. */
	sigemptyset(&block);
	sigaddset(&block, SIGTERM);
	sigprocmask(SIG_BLOCK, &block, &wait_mask);
	signal(SIGTERM, end);
	if (pipe(ready))
		err(1, "pipe");
	for (long i = 0; i < children; i++) {
		pid_t pid = fork();

		if (pid < 0)
			err(1, "fork");
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			/* The child works on half of what it inherited. */
			for (long j = 0; j < vmas; j += 2)
				area[2 * j * page]++;
			if (write(ready[1], "", 1) != 1)
				_exit(1);
			while (!ended)
				sigsuspend(&wait_mask);
			_exit(0);
		}
	}
	for (long i = 0; i < children; i++)
		if (read(ready[0], &c, 1) != 1)
			err(1, "a child died");

	puts("ready");
	fflush(stdout);
	while (!ended)
		sigsuspend(&wait_mask);
	/* Gone when this returns: the next measurement begins without them. */
	kill(0, SIGTERM);
	while (wait(NULL) > 0)
		;
	return 0;
}
