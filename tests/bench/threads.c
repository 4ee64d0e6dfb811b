// SPDX-License-Identifier: GPL-2.0
/*
 * 16 threads of one process map, touch and unmap while their memory is reclaimed: how
 * often a sleeping lock was contended. For a guest with several CPUs. What it prints
 * is indicative: it depends on how the CPUs happen to run, and there are no times.
 *
 * Lines "NAME PARAMETER REPETITION VALUE"; the parameter is the number of threads.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 16
#define ROUNDS 100
#define PAGES 16
#define KEPT 64
#define REPETITIONS 3
#define CGROUP "/sys/fs/cgroup/bench"
#define EVENT "/sys/kernel/tracing/events/lock/contention_begin/id"
#define CPUS 64

static size_t page;
static volatile bool stopped;

static void must(bool ok, const char *what)
{
	if (!ok)
		err(1, "%s", what);
}

static char *map_pages(size_t pages)
{
	char *area = mmap(NULL, pages * page, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(area != MAP_FAILED, "mmap");
	return area;
}

static void *work(void *unused)
{
	char *kept = map_pages(KEPT);

	for (int i = 0; i < ROUNDS; i++) {
		char *area = map_pages(PAGES);

		for (int j = 0; j < PAGES; j++)
			area[j * page] = 1;
		/* These are what reclaim finds, and what comes back. */
		for (int j = 0; j < KEPT; j++)
			kept[j * page] = 1;
		munmap(area, PAGES * page);
	}
	munmap(kept, KEPT * page);
	return NULL;
}

static void *squeeze(void *unused)
{
	const int fd = open(CGROUP "/memory.reclaim", O_WRONLY | O_CLOEXEC);

	must(fd >= 0, "memory.reclaim");
	while (!stopped)
		/* EAGAIN: less than that was found. */
		if (write(fd, "1M", 2) < 0 && errno != EAGAIN)
			err(1, "memory.reclaim");
	close(fd);
	return NULL;
}

/* A count of contended acquisitions of a rwsem, on all CPUs. */
static void count(int fds[CPUS], const char *filter)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
	};
	FILE *file = fopen(EVENT, "re");
	unsigned long long id;

	must(file && fscanf(file, "%llu", &id) == 1, EVENT);
	fclose(file);
	attr.config = id;
	for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++) {
		fds[cpu] = syscall(SYS_perf_event_open, &attr, -1, cpu, -1, 0);
		must(fds[cpu] >= 0, "perf_event_open");
		must(!ioctl(fds[cpu], PERF_EVENT_IOC_SET_FILTER, filter), "the event's filter");
	}
}

static long long total(const int fds[CPUS])
{
	long long sum = 0, value;

	for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++) {
		must(read(fds[cpu], &value, sizeof(value)) == sizeof(value), "read");
		sum += value;
	}
	return sum;
}

static long long stolen(void)
{
	FILE *file = fopen(CGROUP "/memory.stat", "re");
	long long value, found = 0;
	char key[64];

	must(file, "memory.stat");
	while (fscanf(file, "%63s %lld", key, &value) == 2)
		if (!strcmp(key, "pgsteal"))
			found = value;
	fclose(file);
	return found;
}

int main(void)
{
	int readers[CPUS], writers[CPUS], join = open(CGROUP "/cgroup.procs", O_WRONLY | O_CLOEXEC);

	page = sysconf(_SC_PAGESIZE);
	must(join >= 0 && write(join, "0", 1) == 1, "cgroup.procs");
	/* LCB_F_READ and LCB_F_WRITE alone are those of a rwsem. */
	count(readers, "flags == 2");
	count(writers, "flags == 4");
	for (int i = 0; i < REPETITIONS; i++) {
		const long long read_before = total(readers), write_before = total(writers);
		const long long stolen_before = stolen();
		pthread_t threads[THREADS], reclaimer;

		stopped = false;
		must(!pthread_create(&reclaimer, NULL, squeeze, NULL), "pthread_create");
		for (int j = 0; j < THREADS; j++)
			must(!pthread_create(&threads[j], NULL, work, NULL), "pthread_create");
		for (int j = 0; j < THREADS; j++)
			pthread_join(threads[j], NULL);
		stopped = true;
		pthread_join(reclaimer, NULL);
		printf("contended_read %d %d %lld\n", THREADS, i, total(readers) - read_before);
		printf("contended_write %d %d %lld\n", THREADS, i, total(writers) - write_before);
		printf("reclaimed_pages %d %d %lld\n", THREADS, i, stolen() - stolen_before);
	}
	return 0;
}
