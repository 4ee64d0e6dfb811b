// SPDX-License-Identifier: GPL-2.0
/*
 * rmap-who PID ADDRESS: which processes map the anonymous page that PID has at
 * ADDRESS (hexadecimal, as in /proc/PID/maps)?
 *
 * Front end of samples/rmap_who, a module that asks anon_vma_lazy.ko. One line for
 * each mapping: pid, address, how the VMA is found, and the name of the process.
 * The exit status is 0 if there is an answer, 1 if not, 2 for wrong arguments.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEVICE "/dev/rmap_who"

static const char *reason(int error)
{
	switch (error) {
	case ESRCH:
		return "there is no such process, or it has no memory of its own";
	case ENOENT:
		return "no page is there: never touched, or in swap";
	case EOPNOTSUPP:
		return "not an anonymous page of a lazy root";
	case E2BIG:
		return "more than 65536 VMAs may map it";
	case EAGAIN:
		return "its family grows too fast: ask again";
	default:
		return strerror(error);
	}
}

static void show(const char *line)
{
	char path[64], name[64] = "?", how[16];
	unsigned long address;
	int pid;
	FILE *comm;

	if (sscanf(line, "%d %lx %15s", &pid, &address, how) != 3)
		errx(1, "%s: cannot read '%s'", DEVICE, line);
	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	comm = fopen(path, "re");
	if (comm) {
		if (fgets(name, sizeof(name), comm))
			name[strcspn(name, "\n")] = 0;
		fclose(comm);
	}
	printf("%7d %16lx %-9s %s\n", pid, address, how, name);
}

int main(int argc, char **argv)
{
	char question[64], *end, line[128];
	unsigned long address;
	FILE *answer;
	int fd, len;
	long pid;

	if (argc != 3)
		errx(2, "usage: rmap-who PID ADDRESS (hexadecimal, as in /proc/PID/maps)");
	pid = strtol(argv[1], &end, 10);
	if (*end || pid < 1 || pid > 0x7fffffff)
		errx(2, "%s: not a process id", argv[1]);
	errno = 0;
	address = strtoul(argv[2], &end, 16);
	if (*end || end == argv[2] || errno)
		errx(2, "%s: not an address", argv[2]);

	fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		err(1, "%s (is rmap_who.ko loaded?)", DEVICE);
	len = snprintf(question, sizeof(question), "%ld %lx\n", pid, address);
	if (write(fd, question, len) != len)
		errx(1, "pid %ld, address %lx: %s", pid, address, reason(errno));
	answer = fdopen(fd, "r");
	if (!answer)
		err(1, "fdopen");
	while (fgets(line, sizeof(line), answer))
		show(line);
	if (ferror(answer))
		err(1, "%s", DEVICE);
	fclose(answer);
	return 0;
}
