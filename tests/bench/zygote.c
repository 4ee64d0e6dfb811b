// SPDX-License-Identifier: GPL-2.0
/*
 * zygote CHILDREN LIBRARY...: a process that loads all the libraries and forks
 * children that do not exec. Each child writes to every second page of all that it
 * can write to. Says "ready N", N libraries, on standard output once all of that
 * lives, and then waits for a signal.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define RANGES 8192

static struct { char *start, *end; } ranges[RANGES];

static void touch_half(void)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512], mode[5];
	int nr = 0;

	if (!maps)
		err(1, "/proc/self/maps");
	while (nr < RANGES && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%p-%p %4s", (void **)&ranges[nr].start, (void **)&ranges[nr].end,
			   mode) == 3 && !strcmp(mode, "rw-p"))
			nr++;
	fclose(maps);
	for (int i = 0; i < nr; i++)
		for (char *at = ranges[i].start; at < ranges[i].end; at += 2 * page) {
			volatile char *byte = at;

			*byte = *byte;
		}
}

int main(int argc, char **argv)
{
	int ready[2], loaded = 0;
	char byte;

	if (argc < 3)
		errx(2, "usage: zygote CHILDREN LIBRARY...");
	for (int i = 2; i < argc; i++)
		loaded += !!dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
	if (pipe(ready))
		err(1, "pipe");
	for (int i = 0; i < atoi(argv[1]); i++) {
		const pid_t pid = fork();

		if (pid < 0)
			err(1, "fork");
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			touch_half();
			if (write(ready[1], "", 1) != 1)
				_exit(1);
			for (;;)
				pause();
		}
	}
	for (int i = 0; i < atoi(argv[1]); i++)
		if (read(ready[0], &byte, 1) != 1)
			err(1, "a child died");
	printf("ready %d\n", loaded);
	fflush(stdout);
	for (;;)
		pause();
}
